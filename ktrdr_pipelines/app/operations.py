"""Operations: loads that run in the background, are watched, cancelled and remembered.

Each runs in a thread of its own with an event loop and a connection of its own; some run at once,
the others are queued. An operation is a record on disk, too: whatever ends a process, the next one
tells which operations were interrupted, and other processes see those that run.

Not here: the loads and their results (``app.data_manager``), the files of the records
(``store.operation_records``).
"""

import asyncio
import logging
import threading
import uuid
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from pydantic import ValidationError

from ktrdr_pipelines.app.data_manager import LoadProgress, SeriesLoads, jobs_of
from ktrdr_pipelines.app.selection import update_jobs
from ktrdr_pipelines.app.views.documents import ErrorDocument
from ktrdr_pipelines.app.views.load_documents import (
    LoadStatus,
    OperationDocument,
    OperationList,
    OperationState,
)
from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.domain.planning.jobs import Job
from ktrdr_pipelines.errors import (
    IncompleteError,
    KtrdrError,
    StoppingError,
    StoreError,
    UnknownOperationError,
    UsageError,
)
from ktrdr_pipelines.store.claim_owners import living_owner
from ktrdr_pipelines.store.operation_records import OperationRecord, OperationRecords

if TYPE_CHECKING:
    from ktrdr_pipelines.sync.loader import When

MOST_KEPT: Final = 200
"""Operations that are remembered; older ones are forgotten."""

KEPT_FOR: Final = timedelta(days=30)
"""How long an operation is remembered after its end."""

_WRITTEN_EVERY: Final = timedelta(seconds=1)
"""How often the progress of an operation is written at most."""

_POLL_S: Final = 0.25
_UPDATE: Final = "update"
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Running:
    """One operation of this process: what it loads, how far it is, and what can cancel it."""

    document: OperationDocument
    workspace: Workspace
    jobs: Sequence[Job]
    same: Hashable
    progress: LoadProgress = field(init=False)
    loads: SeriesLoads | None = None
    thread: threading.Thread | None = None
    loop: asyncio.AbstractEventLoop | None = None
    task: "asyncio.Task[None] | None" = None
    is_stopped: bool = False
    is_cancelled: bool = False
    written_at: datetime | None = None
    at_end: list[Callable[[OperationDocument], object]] = field(default_factory=list)

    @property
    def now(self) -> OperationDocument:
        """The document with the progress as it is now."""
        return self.document.model_copy(update={"progress": self.progress.document()})


class Operations:
    """Runs loads in the background and remembers them; a context manager that closes at the end.

    All methods may be called from any thread, also from one with a running event loop: only
    ``wait`` and ``close`` block. An operation outlives the client that started it.

    Args:
        open_workspace: opens the store; called for each operation, so that changed settings and
            universes count.
        operation: the operation whose client ids are used (``ib.connection.strategy.Operation``).
        at_once: how many run at once, as far as there are client ids; the others are queued.
        wait_s: how many seconds a load waits for a gateway that accepts no connection.
    """

    def __init__(
        self,
        open_workspace: Callable[[], Workspace] = Workspace.open,
        *,
        operation: str = "api",
        at_once: int = 4,
        wait_s: float = 0.0,
    ) -> None:
        self._open_workspace, self._operation = open_workspace, operation
        self._at_once, self._wait_s = max(1, at_once), wait_s
        self._changed = threading.Condition()
        self._known: dict[str, _Running] = {}
        self._ended: dict[str, OperationDocument] = {}
        self._queue: deque[_Running] = deque()
        self._stack = ExitStack()
        self._records: OperationRecords | None = None
        self._owner: str | None = None
        self._catalog = CatalogRenewal(open_workspace)
        self._closed = False

    def __repr__(self) -> str:
        with self._changed:
            running = sum(one.thread is not None for one in self._unfinished())
            return f"Operations({running} running, {len(self._queue)} queued)"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start_load(
        self,
        symbol: str,
        timeframe: str,
        *,
        mode: str = "tail",
        start: "When | None" = None,
        end: "When | None" = None,
        kind: str = "load",
        description: str = "",
    ) -> OperationDocument:
        """Start the load of a series, or join one of the same range and mode that is not ended.

        Args:
            symbol: a symbol of the universe.
            timeframe: the name of a timeframe.
            mode: a mode of ``DataManager``.
            start: the start of the range, included; by default that of the universe.
            end: its end, not included; by default now.
            kind: what lists call it.
            description: what it does, in words; by default made of the rest.

        Raises:
            UsageError: the input is invalid.
            StoppingError: the operations are closed.
            StoreError: the store cannot be used.
        """
        workspace = self._open_workspace()
        jobs = jobs_of(workspace, symbol, timeframe, start=start, end=end, mode=mode)
        document = self._new_document(
            workspace,
            kind,
            description or f"load {jobs[0].series}, {mode}",
            symbol=symbol,
            timeframe=timeframe,
            mode=mode,
        )
        return self._start(document, workspace, jobs, (mode, jobs[0]))

    def start_update(
        self, symbols: str | None = None, *, kind: str = _UPDATE, description: str = ""
    ) -> OperationDocument:
        """Start what ``ktrdr update`` does, or join an update of the same symbols.

        Raises:
            UsageError: a symbol is unknown.
            StoppingError: the operations are closed.
            StoreError: the store cannot be used.
        """
        workspace = self._open_workspace()
        jobs = update_jobs(workspace, symbols)
        text = description or f"update {symbols or 'all symbols'}"
        document = self._new_document(workspace, kind, text)
        return self._start(document, workspace, jobs, (_UPDATE, symbols))

    def get(self, operation_id: str) -> OperationDocument:
        """Return an operation: one of this process, of another one, or of an earlier one.

        Raises:
            UnknownOperationError: it is not, or no longer, known.
            StoreError: its record cannot be read.
        """
        with self._changed:
            if operation_id in self._known:
                return self._known[operation_id].now
            if operation_id in self._ended:
                return self._ended[operation_id]
            records = self._opened()
            record = records.get(operation_id)
            found = None if record is None else self._recorded(records, record)
        if found is None:
            raise UnknownOperationError(
                f"operation {operation_id}",
                reason="there is none of this id",
                hint=f"The last {MOST_KEPT} of {KEPT_FOR.days} days are remembered",
            )
        return found

    def list(self) -> OperationList:
        """Return the operations that are remembered, newest first.

        Raises:
            StoreError: the records cannot be read.
        """
        with self._changed:
            records = self._opened()
            found = [
                document
                for record in records.all()
                if record.operation_id not in self._known
                and record.operation_id not in self._ended
                and (document := self._recorded(records, record)) is not None
            ]
            found += [one.now for one in self._known.values()]
            found += self._ended.values()
        found.sort(key=lambda one: (one.started_at, one.id), reverse=True)
        return OperationList(operations=tuple(found))

    def cancel(self, operation_id: str) -> OperationDocument:
        """Cancel an operation; it ends when what it received is saved. An ended one stays as it is.

        Raises:
            UnknownOperationError: it is not known.
            UsageError: it runs in another process.
        """
        with self._changed:
            one = self._known.get(operation_id)
            if one is not None:
                one.is_cancelled = True
                self._stop(one)
                return one.now
        document = self.get(operation_id)
        if not document.is_ended:
            raise UsageError(
                f"cancel operation {operation_id}",
                reason="it runs in another process",
                hint="Cancel it there, or end that process: what it received is saved",
            )
        return document

    def wait(self, operation_id: str, timeout_s: float | None = None) -> OperationDocument:
        """Wait for an operation to end, and return it as it is at the end or after ``timeout_s``.

        Raises: as ``get``.
        """
        left_s = timeout_s
        while True:
            with self._changed:
                one = self._known.get(operation_id)
                if one is not None:
                    self._changed.wait_for(partial(_is_ended, one), timeout=left_s)
                    return one.now
            document = self.get(operation_id)
            if document.is_ended or (left_s is not None and left_s <= 0):
                return document
            # Another process runs it.
            pause_s = _POLL_S if left_s is None else min(_POLL_S, left_s)
            with self._changed:
                self._changed.wait(pause_s)
            left_s = None if left_s is None else left_s - pause_s

    def call_at_end(self, operation_id: str, act: Callable[[OperationDocument], object]) -> None:
        """Call a function with an operation of this process when it has ended, or now if it has.

        It is called once, in any thread, and must neither wait nor raise. One of another process
        is passed as it is now.

        Raises: as ``get``.
        """
        with self._changed:
            one = self._known.get(operation_id)
            if one is not None:
                one.at_end.append(act)
                return
            document = self.get(operation_id)
        act(document)

    def close(self) -> None:
        """Cancel what is running, and return when it has saved what it received.

        Such operations are interrupted. None can be started afterwards; may be called again.
        """
        with self._changed:
            self._closed = True
            unfinished = self._unfinished()
            for one in unfinished:
                self._stop(one)
        for one in unfinished:
            if one.thread is not None:
                one.thread.join()
        self._catalog.close()
        self._stack.close()

    def _new_document(
        self,
        workspace: Workspace,
        kind: str,
        description: str,
        *,
        symbol: str | None = None,
        timeframe: str | None = None,
        mode: str | None = None,
    ) -> OperationDocument:
        return OperationDocument(
            id=uuid.uuid4().hex,
            kind=kind,
            description=description,
            state=OperationState.QUEUED,
            started_at=workspace.clock.real_now(),
            symbol=symbol,
            timeframe=timeframe,
            mode=mode,
        )

    def _start(
        self,
        document: OperationDocument,
        workspace: Workspace,
        jobs: Sequence[Job],
        same: Hashable,
    ) -> OperationDocument:
        """Queue an operation, and run it at once if there is room; or join the ``same`` one."""
        with self._changed:
            if self._closed:
                raise StoppingError(document.description, reason="this process is being stopped")
            for one in self._unfinished():
                if one.same == same and not one.is_stopped:
                    return one.now
            records = self._opened()
            if self._owner is None:
                self._owner = self._stack.enter_context(living_owner(workspace.layout))
            _forget_old(records, workspace.clock.real_now())
            one = _Running(document, workspace, jobs, same)
            one.progress = LoadProgress(
                workspace.clock.real_now, changed=partial(self._progressed, document.id)
            )
            self._known[document.id] = one
            self._queue.append(one)
            self._start_next()
            if one.thread is None:
                self._write(one)
            return one.now

    def _unfinished(self) -> Sequence[_Running]:
        return list(self._known.values())

    def _start_next(self) -> None:
        """Run queued operations while there is room; the lock is held."""
        running = sum(one.thread is not None for one in self._unfinished())
        while self._queue and running < self._room(self._queue[0].workspace):
            one = self._queue.popleft()
            one.document = one.document.model_copy(update={"state": OperationState.RUNNING})
            self._write(one)
            name = f"ktrdr-operation-{one.document.id[:8]}"
            # A daemon: a process that ends without `close` is not kept alive by its loads.
            one.thread = threading.Thread(target=self._run, args=(one,), name=name, daemon=True)
            one.thread.start()
            running += 1

    def _room(self, workspace: Workspace) -> int:
        """Return how many operations may run at once: each has a client id, and the monitor one."""
        first, last = workspace.settings.client_ids[self._operation]
        return max(1, min(self._at_once, last - first))

    def _stop(self, one: _Running) -> None:
        """Stop an operation once, as a second time would keep it from saving; the lock is held."""
        if one.is_stopped:
            return
        one.is_stopped = True
        if one.thread is None:
            self._queue.remove(one)
            self._end(one, self._state_when_stopped(one))
        elif one.loop is not None and one.task is not None:
            with suppress(RuntimeError):  # the loop has ended meanwhile
                one.loop.call_soon_threadsafe(one.task.cancel)

    def _state_when_stopped(self, one: _Running) -> OperationState:
        return OperationState.CANCELLED if one.is_cancelled else OperationState.INTERRUPTED

    def _run(self, one: _Running) -> None:
        """Run an operation to its end, whatever that is; the target of its thread."""
        state = OperationState.COMPLETED
        error: KtrdrError | None = None
        what = one.document.description
        try:
            asyncio.run(self._load(one))
        except asyncio.CancelledError:
            state = self._state_when_stopped(one)
            error = IncompleteError(what, reason=f"it was {state}")
        except Exception as caught:  # noqa: BLE001  (the edge of the thread)
            state, error = OperationState.FAILED, _as_known(what, caught)
        try:
            self._end(one, state, error)
        except Exception as caught:  # noqa: BLE001  (as above)
            error = error or _as_known(what, caught)
            self._end(one, OperationState.FAILED, error, has_results=False)
        del error  # by its traceback it would hold this frame, and so the workspace

    async def _load(self, one: _Running) -> None:
        with self._changed:
            one.loop, one.task = asyncio.get_running_loop(), asyncio.current_task()
            if one.is_stopped:
                raise asyncio.CancelledError
        one.loads = SeriesLoads(
            one.workspace,
            one.jobs,
            mode=one.document.mode or _UPDATE,
            progress=one.progress,
            operation=self._operation,
            wait_s=self._wait_s,
        )
        await one.loads.run()

    def _end(
        self,
        one: _Running,
        state: OperationState,
        error: KtrdrError | None = None,
        *,
        has_results: bool = True,
    ) -> None:
        """Record the end of an operation with its results, and let the next one run."""
        changes: dict[str, object] = {"ended_at": one.workspace.clock.real_now()}
        if has_results and one.loads is not None:
            found = one.loads.results(error)
            results = [
                result
                for result, _ in found
                if one.document.mode or not one.loads.is_untouched(result)
            ]
            if results and all(result.status is LoadStatus.FAILED for result in results):
                state = OperationState.FAILED if state is OperationState.COMPLETED else state
            changes["error"] = next((one.error for one in results if one.error), None)
            changes["results"] = tuple(results)
            changes["bars_held"] = sum(held.rows for _, held in found)
        if state is OperationState.FAILED and error is not None:
            changes["error"] = ErrorDocument.of(error)
        if one.progress.has_saved:
            self._catalog.request()
        with self._changed:
            one.document = one.now.model_copy(update={"state": state, **changes})
            self._write(one)
            # The document alone is kept: a workspace holds files open.
            self._known.pop(one.document.id, None)
            self._ended[one.document.id] = one.document
            while len(self._ended) > MOST_KEPT:  # no more than on disk
                del self._ended[next(iter(self._ended))]
            if not self._closed:
                self._start_next()
            self._changed.notify_all()
            for act in one.at_end:
                act(one.document)
            one.at_end.clear()

    def _progressed(self, operation_id: str) -> None:
        """Write the progress of an operation, if it was not just written; in its own thread."""
        one = self._known.get(operation_id)
        if one is None:
            return
        now = one.workspace.clock.real_now()
        if one.written_at is None or not timedelta() <= now - one.written_at < _WRITTEN_EVERY:
            self._write(one)

    def _write(self, one: _Running) -> None:
        """Write the record of an operation; a load goes on without it."""
        one.written_at = one.workspace.clock.real_now()
        assert self._records is not None  # noqa: S101  (opened before any operation)
        assert self._owner is not None  # noqa: S101
        operation = one.now.model_dump(mode="json")
        record = OperationRecord(one.document.id, self._owner, one.written_at, operation)
        try:
            self._records.write(record)
        except StoreError as error:
            _log.warning("%s is not recorded: %s", one.document.description, error)

    def _opened(self) -> OperationRecords:
        """Return the records of the store; the lock is held."""
        if self._records is None:
            self._records = OperationRecords(self._open_workspace().layout)
        return self._records

    def _recorded(
        self, records: OperationRecords, record: OperationRecord
    ) -> OperationDocument | None:
        """Return the operation of a record; one whose process has ended is interrupted."""
        try:
            document = OperationDocument.model_validate(record.operation)
        except ValidationError as error:
            _log.warning("operation %s is left out: %s", record.operation_id, error)
            return None
        if document.is_ended or records.is_running(record):
            return document
        document = document.model_copy(
            update={
                "state": OperationState.INTERRUPTED,
                "ended_at": record.written_at,
                "progress": document.progress.model_copy(update={"waiting": None}),
                "bars_held": _bars_held(self._open_workspace(), document),
            }
        )
        ended = OperationRecord(
            record.operation_id, record.owner, record.written_at, document.model_dump(mode="json")
        )
        try:
            records.write(ended)
        except StoreError as error:
            _log.warning("%s is not recorded as interrupted: %s", document.description, error)
        return document


def _is_ended(one: _Running) -> bool:
    return one.document.is_ended


def _as_known(what: str, error: Exception) -> KtrdrError:
    """Return an error as one that has a document; a defect is logged with its traceback."""
    if isinstance(error, KtrdrError):
        return error
    _log.error("%s has failed", what, exc_info=error)
    return KtrdrError(what, reason=f"an unexpected {type(error).__name__}: {error}")


def _forget_old(records: OperationRecords, now: datetime) -> None:
    """Remove the records of operations that ended long ago, or before many others."""
    unfinished = {OperationState.QUEUED, OperationState.RUNNING}
    try:
        ended = [
            one
            for one in records.all()
            if one.operation.get("state") not in unfinished or not records.is_running(one)
        ]
        ended.sort(key=lambda one: one.written_at, reverse=True)
        for number, one in enumerate(ended, start=1):
            if number >= MOST_KEPT or now - one.written_at > KEPT_FOR:
                records.remove(one.operation_id)
    except StoreError as error:
        _log.warning("old operations are not forgotten: %s", error)


def _bars_held(workspace: Workspace, document: OperationDocument) -> int | None:
    """Return the bars held of the series of an operation; None if they cannot be read."""
    store, named = workspace.store, (document.symbol, document.timeframe)
    try:
        series = [
            (symbol, timeframe)
            for symbol, timeframe in store.series_on_disk()
            if document.symbol is None or (symbol, str(timeframe)) == named
        ]
        return sum(row.rows for one in series for row in store.files.of_symbol(*one).values())
    except StoreError as error:
        _log.warning("the bars of %s cannot be counted: %s", document.description, error)
        return None


class CatalogRenewal:
    """Renews the catalog of a store in the background, once for many loads that saved bars.

    It is as fresh as automatic work keeps it (``gaps.catalog_refresh``); closing renews it at once
    if it is behind.

    Args:
        open_workspace: opens the store.
    """

    def __init__(self, open_workspace: Callable[[], Workspace]) -> None:
        self._open_workspace = open_workspace
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_behind = False
        self._closed = False

    def request(self) -> None:
        """Have the catalog renewed soon."""
        with self._changed:
            self._is_behind = True
            is_running = self._thread is not None and self._thread.is_alive()
            if not is_running and not self._closed:
                self._thread = threading.Thread(target=self._run, name="ktrdr-catalog", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def close(self) -> None:
        """Renew the catalog if it is behind, and end; may be called again."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        if self._is_behind:
            self._renew(at_once=True)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_behind or self._closed)
                if self._closed:
                    return
            if not self._renew(at_once=False):
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, timeout=1.0)

    def _renew(self, *, at_once: bool) -> bool:
        """Renew the catalog if that is due, and return whether it was."""
        try:
            workspace = self._open_workspace()
            if not at_once and not workspace.is_catalog_due():
                return False
            with self._changed:
                self._is_behind = False
            error = workspace.try_renew_catalog()
        except KtrdrError as caught:  # the store or its universe cannot be opened
            error = caught
            self._is_behind = False
        if error is not None:
            _log.warning("the bars are saved; the catalog is not up to date: %s", error)
        return True
