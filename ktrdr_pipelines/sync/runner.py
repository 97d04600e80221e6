"""Many series in one run, over one connection and one store.

Not here: the work on one series (``sync.loader``), what a command or an asset wants.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from ktrdr_pipelines.domain.instruments import Instrument
from ktrdr_pipelines.domain.planning.jobs import Mode
from ktrdr_pipelines.domain.planning.reports import Progress, Quiet, SeriesReport
from ktrdr_pipelines.domain.planning.responses import BarSource
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import (
    ClientIdInUseError,
    DiskError,
    GatewayUnreachableError,
    KtrdrError,
    NoStoreError,
    StoreError,
    StoreReplacedError,
)
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.claim_owners import claiming
from ktrdr_pipelines.store.evidence import Evidence
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.ledger import open_ledger
from ktrdr_pipelines.sync.discovery.earliest_data import Discovery, EarliestData
from ktrdr_pipelines.sync.discovery.head_timestamps import RangeDiscovery
from ktrdr_pipelines.sync.discovery.trading_hours import Schedules
from ktrdr_pipelines.sync.engine.bar_requester import LifeSigns
from ktrdr_pipelines.sync.engine.context import RunContext
from ktrdr_pipelines.sync.engine.request_widths import Widths
from ktrdr_pipelines.sync.engine.series_state import Job
from ktrdr_pipelines.sync.engine.source_session import RetryPolicy, SourceSession
from ktrdr_pipelines.sync.loader import IbDataLoader

__all__ = ["Job", "LoadManager"]

_AT_ONCE = 8
_FATAL = (GatewayUnreachableError, ClientIdInUseError, DiskError, StoreReplacedError)


@dataclass(frozen=True, slots=True)
class LoadManager:
    """Loads jobs into a store.

    Args:
        layout: the store.
        open_source: opens a source of bars; called when something has to be asked.
        gateway: its name, for what is remembered of it.
        patience: how often and how soon failed questions are asked again.
        progress: who listens.
    """

    layout: StoreLayout
    open_source: Callable[[], AbstractAsyncContextManager[BarSource]]
    gateway: str
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)
    progress: Progress = field(default_factory=Quiet)

    async def run(self, jobs: Sequence[Job]) -> list[SeriesReport]:
        """Load every job, long timeframes first; reports come in the order of the jobs.

        A series that cannot be loaded does not stop the others: its report says why.

        Raises:
            GatewayUnreachableError, ClientIdInUseError: there is no gateway to ask.
            DiskError: the store cannot be written.
            StoreReplacedError: the store is not the one that was opened.
        """
        async with self._context() as context:
            loader = IbDataLoader(context)
            reports = await _all(loader, jobs)
            return [loader.checked_again(job, one) for job, one in zip(jobs, reports, strict=True)]

    async def discover(
        self, instruments: Sequence[Instrument], *, refresh: bool = False
    ) -> list[EarliestData]:
        """Find out where the data of instruments begin; what is freshly known is not asked.

        An instrument that cannot be asked about does not stop the others: its result says why.

        Raises:
            GatewayUnreachableError, ClientIdInUseError: there is no gateway to ask.
        """
        async with self._context() as context:
            discovery = Discovery(context)
            return [await _begun(discovery, one, refresh=refresh) for one in instruments]

    @asynccontextmanager
    async def _context(self) -> AsyncIterator[RunContext]:
        """Hold what a run needs, in a store that stays the one that was opened."""
        try:
            async with self._held() as context:
                yield context
                self.layout.require_same()
        except (NoStoreError, StoreError):
            self.layout.require_same()  # says more than what it led to
            raise

    @asynccontextmanager
    async def _held(self) -> AsyncIterator[RunContext]:
        """Hold what a run needs; a connection is opened when something has to be asked."""
        ledger = open_ledger(self.layout)
        with claiming(self.layout, ledger) as claimant:
            waits = Waits(self.progress.waiting, self.retry_policy.clock)
            async with SourceSession(
                self.open_source, self.retry_policy, waits=waits
            ) as source_session:
                store = BarStore(self.layout, ledger)
                yield RunContext(
                    source_session=source_session,
                    store=store,
                    schedules=Schedules(store, source_session),
                    claimant=claimant,
                    ranges=RangeDiscovery(ledger, self.gateway),
                    life=LifeSigns(),
                    evidence=Evidence(store, self.gateway, self.retry_policy.clock),
                    widths=Widths(ledger, self.gateway, self.retry_policy.clock),
                    progress=self.progress,
                )


async def _begun(discovery: Discovery, instrument: Instrument, *, refresh: bool) -> EarliestData:
    try:
        return await discovery.ask(instrument, refresh=refresh)
    except _FATAL:
        raise
    except KtrdrError as error:
        return replace(discovery.known(instrument), error=error)


async def _all(loader: IbDataLoader, jobs: Sequence[Job]) -> list[SeriesReport]:
    """Work on jobs, several at a time; two of one series come one after the other."""
    concurrency = asyncio.Semaphore(_AT_ONCE)
    locks = {job.series: asyncio.Lock() for job in jobs}
    order = sorted(range(len(jobs)), key=lambda n: jobs[n].series.timeframe.seconds, reverse=True)
    daily = {
        job.series.symbol: asyncio.Event()
        for job in jobs
        if job.series.timeframe is Timeframe.D1 and job.mode is not Mode.TAIL
    }

    async def within(job: Job) -> SeriesReport:
        """Load a job after the daily bars of its symbol, which speak for every timeframe."""
        first = daily.get(job.series.symbol)
        if first is not None and job.series.timeframe is not Timeframe.D1:
            await first.wait()
        try:
            async with locks[job.series], concurrency:
                return await _one(loader, job)
        finally:
            if first is not None and job.series.timeframe is Timeframe.D1:
                first.set()

    try:
        async with asyncio.TaskGroup() as group:
            tasks = {number: group.create_task(within(jobs[number])) for number in order}
    except BaseExceptionGroup as failures:
        raise _first(failures) from failures
    return [tasks[number].result() for number in range(len(jobs))]


async def _one(loader: IbDataLoader, job: Job) -> SeriesReport:
    try:
        return await loader.load(job)
    except _FATAL:
        raise
    except KtrdrError as error:
        return SeriesReport(job.series, error=error)


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """Give the one error that says most: the first of the project's own, else the first."""
    flat = list(_flat(failures))
    return next((error for error in flat if isinstance(error, KtrdrError)), flat[0])


def _flat(failures: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    return [
        leaf
        for error in failures.exceptions
        for leaf in (_flat(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]


TOLD_FROM_S: Final = 3.0
"""Seconds from which a wait is told: a shorter one is over before anybody wonders."""

_SAME: Final = timedelta(minutes=1)


class Waits:
    """Tells of waits.

    Args:
        tell: takes in words what is waited for, and the moment at which that ends at the latest.
        clock: this machine's time.
    """

    def __init__(
        self, tell: Callable[[str, datetime], None], clock: Callable[[], datetime]
    ) -> None:
        self._tell, self._clock = tell, clock
        self._told: dict[str, datetime] = {}

    def __call__(self, why: str, wait_s: float) -> None:
        """Take in that something is waited for so many seconds."""
        if wait_s < TOLD_FROM_S:
            return
        now = self._clock()
        until, told = now + timedelta(seconds=wait_s), self._told.get(why)
        if told is None or told < now or until - told > _SAME:
            self._told[why] = until
            self._tell(why, until)
