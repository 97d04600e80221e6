"""A store, a fake gateway and a load manager, for tests of loads."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ktrdr_pipelines.domain.bars import bars_between, timestamps
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.instruments import Instrument, Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.reports import Progress, Quiet, SeriesReport
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.layout import StoreLayout, create_store
from ktrdr_pipelines.store.ledger.ledger import Ledger
from ktrdr_pipelines.sync.engine.source_session import RetryPolicy
from ktrdr_pipelines.sync.runner import Job, LoadManager
from tests.support.fake_gateway import (
    PARTIAL,
    FakeGateway,
    TrueBars,
    dense_keys,
    instrument_of,
    series_of,
    true_bars_of,
    true_daily_bars,
)


async def no_sleep(_: float) -> None:
    """Let other tasks run, without waiting."""
    await asyncio.sleep(0)


@dataclass
class Harness:
    """A store, a fake gateway and the load manager that loads from one into the other."""

    layout: StoreLayout
    gateway: FakeGateway
    retries: int = 1
    ledger: Ledger = field(init=False)
    task: asyncio.Task[object] | None = None

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.layout.ledger)

    @property
    def store(self) -> BarStore:
        return BarStore(self.layout, self.ledger)

    @property
    def request_count(self) -> int:
        """The number of bar requests."""
        return len(self.gateway.requests)

    def manager(self) -> LoadManager:
        retry_policy = RetryPolicy(
            max_retries=self.retries, delay_s=0.0, sleep=no_sleep, clock=self.gateway.now
        )
        return LoadManager(self.layout, self.gateway.open, self.gateway.gateway, retry_policy)

    def run(self, *jobs: Job) -> list[SeriesReport]:
        """Load jobs to their end."""

        async def main() -> list[SeriesReport]:
            self.task = asyncio.current_task()
            return await self.manager().run(jobs)

        return asyncio.run(main())

    def run_with(self, progress: Progress, series: Series, wanted: Interval) -> list[SeriesReport]:
        """Load an interval, and report its progress."""
        manager = replace(self.manager(), progress=progress)
        return asyncio.run(manager.run([Job(series, wanted=IntervalSet([wanted]))]))

    async def cancel(self) -> None:
        """Cancel the running load, as a user or a daemon does, and wait for it."""
        assert self.task is not None
        self.task.cancel()
        await asyncio.Event().wait()

    def load(self, series: Series, wanted: Interval) -> SeriesReport:
        """Load one interval of one series."""
        return self.run(Job(series, wanted=IntervalSet([wanted])))[0]

    def true_bars(self, series: Series) -> TrueBars:
        """Return the true bars of a series."""
        return self.gateway.true_bars[series.symbol, series.timeframe]

    def check(self, series: Series, wanted: Interval) -> None:
        """Check that every stored bar is true and whole, and that no covered bar is missing."""
        stored = self.store.read(series)
        assert PARTIAL not in stored["close"].to_pylist()
        keys, true = timestamps(stored), self.true_bars(series)
        real = timestamps(true.bars)
        place = np.searchsorted(real, keys)
        assert np.array_equal(real[place], keys)
        assert stored.equals(true.bars.take(pa.array(place)))
        covered = self.store.coverage(series).covered(self.gateway.time)
        for part in covered.clip(wanted):
            true_bars = bars_between(true.bars, part.start, part.end)
            assert bars_between(stored, part.start, part.end).equals(true_bars), part

    def check_complete(self, series: Series, wanted: Interval) -> None:
        """Check that the store holds exactly the true bars of an interval of closed sessions."""
        self.check(series, wanted)
        true_bars = bars_between(self.true_bars(series).bars, wanted.start, wanted.end)
        assert self.store.read(series, wanted).equals(true_bars)


class NotedTexts(Quiet):
    """Progress that keeps the texts that a load notes."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def noted(self, series: Series, text: str) -> None:
        self.texts.append(text)


MakeHarness = Callable[[FakeGateway], Harness]


@dataclass(frozen=True)
class World:
    """One series, its true bars and the wanted interval."""

    harness: Harness
    series: Series
    wanted: Interval

    def load(self) -> SeriesReport:
        """Load what is wanted."""
        return self.harness.load(self.series, self.wanted)

    def load_until_confirmed(self, most: int = 12) -> SeriesReport:
        """Load, and again each time that an empty range or a sparse session can be confirmed."""
        report = self.load()
        for _ in range(most):
            times = (report.confirmed_at, report.next_try_at if report.sparse else None)
            due = min((at for at in times if at is not None), default=None)
            if due is None:
                break
            self.harness.gateway.time = due + timedelta(minutes=1)
            report = self.load()
        return report

    def check(self) -> None:
        """Check that nothing false is stored or covered."""
        self.harness.check(self.series, self.wanted)

    def check_complete(self) -> None:
        """Check that exactly the true bars are stored."""
        self.harness.check_complete(self.series, self.wanted)


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Path]:
    """Return an iterator over folders that do not exist yet."""
    return (tmp_path / str(number) for number in range(100_000))


@pytest.fixture
def harness(folders: Iterator[Path]) -> MakeHarness:
    """Return a function that makes a harness of a gateway and an empty store."""
    return lambda gateway: Harness(create_store(next(folders)), gateway)


@pytest.fixture
def world(harness: MakeHarness) -> Callable[..., World]:
    """Return a function that makes a world: one series, wanted between two session dates."""

    def make(
        calendar: str,
        timeframe: Timeframe,
        first: date,
        end: date,
        *,
        now: datetime | None = None,
        keys: np.ndarray | None = None,
    ) -> World:
        instrument = instrument_of(calendar)
        sessions = calendar_named(calendar)
        wanted = interval_between(sessions, timeframe, first, end)
        around = first - timedelta(days=40), end + timedelta(days=20)
        if keys is None:
            keys = dense_keys(calendar, timeframe, *around)
        true_bars = {(instrument.symbol, timeframe): true_bars_of(keys, timeframe, sessions)}
        _add_daily(true_bars, instrument, timeframe, around)
        gateway = FakeGateway(true_bars, now or wanted.end + timedelta(days=400))
        return World(harness(gateway), series_of(instrument, timeframe), wanted)

    return make


def _add_daily(
    true_bars: dict[tuple[str, Timeframe], TrueBars],
    instrument: Instrument,
    timeframe: Timeframe,
    around: tuple[date, date],
) -> None:
    """Add daily bars of the session dates on which the instrument traded, and of a later month."""
    key = (instrument.symbol, Timeframe.D1)
    if key not in true_bars:
        later = date(2027, 12, 1)
        bars = true_bars[instrument.symbol, timeframe].bars
        true_bars[key] = true_daily_bars(bars, timeframe, instrument.calendar, (around[1], later))
