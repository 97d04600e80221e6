"""A load in its own thread, and the mailbox through which it reports to the main thread of a run.

The loader thread owns the event loop and the only connection. It reports the series that have new
bars on disk through a set, which cannot grow beyond the series of the run. Only the main thread
calls Dagster. However the main thread ends, the loader is cancelled and joined, and disconnects
inside its own loop.

Not here: what runs do with the reports (``defs.runs.bars_run``, ``defs.runs.tail_run``), the load
itself (``sync.runner``).
"""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from types import TracebackType
from typing import Final, Self

import dagster as dg

from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.planning.reports import Progress, SeriesReport
from ktrdr_pipelines.sync.runner import Job, LoadManager

_GATHER_S: Final = 1.0
"""What happens within this time is one log entry: each is committed, which takes a disk 80 ms."""


class Mailbox:
    """Passes series with new bars on disk, and log lines, from the loader to the main thread.

    Implements ``Progress``.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._series: dict[Series, None] = {}
        self._messages: list[str] = []
        self._ended: list[SeriesReport] = []
        self._closed = False

    def planned(self, series: Series, requests: int) -> None:
        """Add a log line with the number of planned requests."""
        self._add_message(f"{series}: {requests} request{'' if requests == 1 else 's'} planned")

    def answered(self, series: Series, rows: int) -> None:
        """Ignore single responses; only saved bars are reported."""

    def saved(self, series: Series) -> None:
        """Add a series that has new bars on disk."""
        with self._changed:
            self._series[series] = None
            self._changed.notify()

    def noted(self, series: Series, text: str) -> None:
        """Add a log line about a series."""
        self._add_message(f"{series}: {text}")

    def noticed(self, text: str) -> None:
        """Add a log line about the gateway."""
        self._add_message(text)

    def waiting(self, text: str, until: datetime) -> None:
        """Add a log line that says what the load waits for, and until when."""
        self._add_message(f"waiting until {until:%Y-%m-%dT%H:%M:%SZ}: {text}")

    def ended(self, report: SeriesReport) -> None:
        """Add the report of a series that has ended."""
        with self._changed:
            self._ended.append(report)
            self._changed.notify()

    def close(self) -> None:
        """Mark the mailbox as closed: no more entries follow."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def collect(self, wait_s: float, gather_s: float = 0.0) -> tuple[list[Series], list[str], bool]:
        """Return changed series, log lines, and whether more may follow.

        Wait up to ``wait_s`` seconds for an entry, then ``gather_s`` for those that follow it.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._series or self._messages or self._ended or self._closed,
                timeout=wait_s,
            )
            self._changed.wait_for(lambda: self._closed, timeout=gather_s)
            series, messages = list(self._series), self._messages
            self._series, self._messages = {}, []
            return series, messages, not self._closed

    def take_ended(self) -> list[SeriesReport]:
        """Return the reports of the series that have ended since the last call."""
        with self._changed:
            ended, self._ended = self._ended, []
            return ended

    def _add_message(self, text: str) -> None:
        with self._changed:
            self._messages.append(text)
            self._changed.notify()


class LoaderThread:
    """A load in its own thread; a context manager that cancels and joins the thread on exit."""

    def __init__(
        self, make_manager: Callable[[Progress], LoadManager], jobs: Sequence[Job]
    ) -> None:
        self._manager_of = make_manager
        self._jobs = jobs
        self._mailbox = Mailbox()
        self._thread = threading.Thread(target=self._run, name="ktrdr-loader", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[list[SeriesReport]] | None = None
        self._started = threading.Event()
        self._reports: list[SeriesReport] = []
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread.is_alive() and self._loop is not None and self._task is not None:
            with suppress(RuntimeError):  # the loop may end between the check and the call
                self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()

    def changes(
        self, wait_s: float = 1.0, gather_s: float = _GATHER_S
    ) -> Iterator[tuple[list[Series], list[str]]]:
        """Yield changed series and log lines until the load ends.

        Those of ``gather_s`` come together; without any, empty lists come every ``wait_s``.
        """
        more = True
        while more:
            series, messages, more = self._mailbox.collect(wait_s, gather_s)
            yield series, messages

    def ended(self) -> list[SeriesReport]:
        """Return the reports of the series that have ended since the last call."""
        return self._mailbox.take_ended()

    def reports(self) -> list[SeriesReport]:
        """Return the report of each job; wait for the load to end.

        Raises:
            KtrdrError: the error that ended the load.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._reports

    def _run(self) -> None:
        try:
            asyncio.run(self._load())
        except BaseException as error:  # noqa: BLE001  (raised again by reports, in the main thread)
            self._error = error
        finally:
            self._started.set()
            self._mailbox.close()

    async def _load(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.ensure_future(self._manager_of(self._mailbox).run(self._jobs))
        self._started.set()
        self._reports = await self._task


def drive(
    thread: LoaderThread,
    context: dg.OpExecutionContext | dg.AssetExecutionContext,
    on_changed: Callable[[Sequence[Series]], None],
    on_ended: Callable[[Sequence[SeriesReport]], None] = lambda _: None,
) -> list[SeriesReport]:
    """Run the loader of a Dagster run, log its messages, and return its reports.

    Args:
        thread: the loader, which is not running yet.
        context: that of the run.
        on_changed: called in this thread with the series of which bars have been saved.
        on_ended: called in this thread with the reports of series that have ended.

    Raises:
        dg.Failure: Dagster has ended the run meanwhile.
    """
    with thread:
        for changed, messages in thread.changes():
            if messages:
                context.log.info("\n".join(messages))
            if changed:
                on_changed(changed)
            if ended := thread.ended():
                on_ended(ended)
            # A retry of a run that Dagster has given up would request everything twice.
            run = context.instance.get_run_by_id(context.run.run_id)
            if run is not None and run.is_finished:
                raise dg.Failure("Dagster has already ended this run", allow_retries=False)
        return thread.reports()
