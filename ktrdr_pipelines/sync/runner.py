"""LoadManager: many series in one run, over one connection and one store.

Not here: the work on one series (``sync.series_loader``), what a command or an asset wants
to load (``cli``, ``defs``).
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from ktrdr_pipelines.domain.instruments import Instrument, Origin
from ktrdr_pipelines.domain.planning.jobs import Job, Mode
from ktrdr_pipelines.domain.planning.reports import Progress, Quiet, SeriesReport
from ktrdr_pipelines.domain.planning.responses import BarSource
from ktrdr_pipelines.domain.planning.width_learning import WidthMemory
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import (
    ClientIdInUseError,
    DiskError,
    ForeignIdentityError,
    GatewayUnreachableError,
    KtrdrError,
    NoStoreError,
    StoreError,
    StoreReplacedError,
)
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.claim_owners import claiming
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.ledger import open_ledger
from ktrdr_pipelines.sync.discovery.earliest_data import Discovery, EarliestData
from ktrdr_pipelines.sync.discovery.head_timestamps import RangeDiscovery
from ktrdr_pipelines.sync.engine.bar_requester import Requests
from ktrdr_pipelines.sync.engine.request_widths import WidthLearner, Widths
from ktrdr_pipelines.sync.engine.source_session import RetryPolicy, SourceSession
from ktrdr_pipelines.sync.series_loader import SeriesLoader

__all__ = ["Job", "LoadManager"]

_AT_ONCE = 8
_WRITES = 4
"""Writes at once: each of them waits for the disk for a part of its time."""

_FATAL = (GatewayUnreachableError, ClientIdInUseError, DiskError, StoreReplacedError)


@dataclass(frozen=True, slots=True)
class LoadManager:
    """Loads jobs into a store.

    Args:
        layout: the store.
        open_source: opens a source of bars; called when the first request is due.
        gateway: the gateway's name, under which the ledger records what is known of it.
        retry_policy: how often and how soon failed requests are retried.
        progress: receives the progress of the run.
        widths: remembers how wide requests to the gateway should be; None for the safe plan's.
        timeout_s: the deadline of a request, which bounds their width.
    """

    layout: StoreLayout
    open_source: Callable[[], AbstractAsyncContextManager[BarSource]]
    gateway: str
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)
    progress: Progress = field(default_factory=Quiet)
    widths: WidthMemory | None = None
    timeout_s: float = 30.0

    async def run(self, jobs: Sequence[Job]) -> list[SeriesReport]:
        """Load every job, long timeframes first, and return the reports in the order of the jobs.

        A series that cannot be loaded does not stop the others: its report has the error. What the
        run has loaded until an error or a cancellation ended it, ``progress`` was told.

        Raises:
            GatewayUnreachableError, ClientIdInUseError: no gateway can be reached, within the time
                that the retry policy waits for one.
            DiskError: the store cannot be written.
            StoreReplacedError: the store is not the one that was opened.
        """
        async with _open_requests(self) as (requests, store):
            with (
                claiming(self.layout, store.ledger) as claimant,
                ThreadPoolExecutor(_WRITES, thread_name_prefix="commit") as threads,
            ):
                loader = SeriesLoader(requests, store, claimant, self.gateway, threads=threads)
                reports = await _load_all(loader, jobs, self.progress)
                return [
                    loader.checked_again(job, one) for job, one in zip(jobs, reports, strict=True)
                ]

    async def discover(
        self, instruments: Sequence[Instrument], *, refresh: bool = False
    ) -> list[EarliestData]:
        """Find where the data of instruments begin, without requests if that is freshly known.

        An instrument whose requests fail does not stop the others: its result has the error.

        Raises:
            GatewayUnreachableError, ClientIdInUseError: no gateway can be reached.
            DiskError: the store cannot be written.
            StoreReplacedError: the store is not the one that was opened.
        """
        found = []
        async with _open_requests(self) as (requests, store):
            discovery = Discovery(requests, store)
            for instrument in instruments:
                try:
                    found.append(await discovery.ask(instrument, refresh=refresh))
                except _FATAL:
                    raise
                except KtrdrError as error:
                    found.append(replace(discovery.known(instrument), error=error))
        return found


@asynccontextmanager
async def _open_requests(manager: LoadManager) -> AsyncIterator[tuple[Requests, BarStore]]:
    """Hold the requests of one run, and check at the end that the store is still the same.

    The connection is opened when the first request is due.
    """
    ledger, policy = open_ledger(manager.layout), manager.retry_policy
    learner = None
    if manager.widths is not None:
        learner = WidthLearner(manager.widths, timeout_s=manager.timeout_s, clock=policy.clock)
    waits = Waits(manager.progress.waiting, policy.clock)
    try:
        open_source = _OneOrigin(manager.open_source)
        async with SourceSession(open_source, policy, waits=waits) as source_session:
            requests = Requests(
                source_session,
                ledger,
                heads=RangeDiscovery(ledger, manager.gateway),
                widths=Widths(ledger, manager.gateway, policy.clock, learner),
                progress=manager.progress,
            )
            try:
                yield requests, BarStore(manager.layout, ledger)
            finally:
                ledger.requests.store_queued()
            if learner is not None:
                learner.share()
            manager.layout.require_same()
    except (NoStoreError, StoreError):
        manager.layout.require_same()  # a replaced store explains more than the error it led to
        raise
    finally:
        if manager.widths is not None:
            manager.widths.close()


class _OneOrigin:
    """Opens sources of one origin: a run never continues simulated bars with real ones.

    Another gateway may listen on the port after a restart.
    """

    def __init__(self, open_source: Callable[[], AbstractAsyncContextManager[BarSource]]) -> None:
        self._open_source = open_source
        self._origin: Origin | None = None
        self._error: ForeignIdentityError | None = None

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[BarSource]:
        """Open a source.

        Raises:
            ForeignIdentityError: its origin is not that of the first source of this run.
        """
        if self._error is not None:
            raise self._error
        async with self._open_source() as source:
            self._origin = self._origin or source.origin
            if source.origin is not self._origin:
                self._error = ForeignIdentityError(
                    f"continue the load at {source.gateway}",
                    reason=f"this load began with bars of origin {self._origin}, and the gateway "
                    f"that listens there now has bars of origin {source.origin}",
                    hint="Start the gateway that the load began with, and repeat the command",
                )
                raise self._error
            yield source


async def _load_all(
    loader: SeriesLoader, jobs: Sequence[Job], progress: Progress
) -> list[SeriesReport]:
    """Load jobs, several at a time; two of one series are loaded one after the other."""
    concurrency = asyncio.Semaphore(_AT_ONCE)
    locks = {job.series: asyncio.Lock() for job in jobs}
    order = sorted(range(len(jobs)), key=lambda n: jobs[n].series.timeframe.seconds, reverse=True)
    daily = {
        job.series.symbol: asyncio.Event()
        for job in jobs
        if job.series.timeframe is Timeframe.D1 and job.mode is not Mode.TAIL
    }

    async def load_alone(job: Job) -> SeriesReport:
        """Load a job after the daily bars of its symbol, which are evidence for all timeframes."""
        first = daily.get(job.series.symbol)
        if first is not None and job.series.timeframe is not Timeframe.D1:
            await first.wait()
        try:
            async with locks[job.series], concurrency:
                report = await loader.load(job)
        except _FATAL:
            raise
        except KtrdrError as error:
            report = SeriesReport(job.series, error=error)
        finally:
            if first is not None and job.series.timeframe is Timeframe.D1:
                first.set()
        progress.ended(report)
        return report

    try:
        async with asyncio.TaskGroup() as group:
            tasks = {number: group.create_task(load_alone(jobs[number])) for number in order}
    except BaseExceptionGroup as failures:
        # The project's own error is the most specific; without one, the first is raised.
        flat = _flat(failures)
        error = next((one for one in flat if isinstance(one, KtrdrError)), flat[0])
        raise error from failures
    return [tasks[number].result() for number in range(len(jobs))]


def _flat(failures: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    return [
        leaf
        for error in failures.exceptions
        for leaf in (_flat(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]


REPORTED_FROM_S: Final = 3.0
"""Seconds from which a wait is reported: a shorter one is over before a user notices."""

_SAME: Final = timedelta(minutes=1)


class Waits:
    """Reports waits; the same reason again only after its end or if it grows by over a minute.

    Args:
        report: called with the reason of a wait and the moment at which it ends at the latest.
        clock: this machine's time.
    """

    def __init__(
        self, report: Callable[[str, datetime], None], clock: Callable[[], datetime]
    ) -> None:
        self._report, self._clock = report, clock
        self._reported: dict[str, datetime] = {}

    def __call__(self, why: str, wait_s: float) -> None:
        """Report a wait of so many seconds, unless it is short or has been reported."""
        if wait_s < REPORTED_FROM_S:
            return
        now = self._clock()
        until, reported = now + timedelta(seconds=wait_s), self._reported.get(why)
        if reported is None or reported < now or until - reported > _SAME:
            self._reported[why] = until
            self._report(why, until)
