"""No range is confirmed empty too early by a gateway that only sometimes returns its bars."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ktrdr_pipelines.domain.bars import bars_between, micros
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between, monday_of
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.planning.responses import BarRequest, NoData
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.gaps.index import GapIndex
from ktrdr_pipelines.gaps.windows import WindowState
from ktrdr_pipelines.store.layout import create_store
from ktrdr_pipelines.sync.runner import Job
from tests.support.examples import UNSHRUNK, examples
from tests.support.fake_gateway import (
    NO_DATA_TEXT,
    FakeGateway,
    TrueBars,
    dense_keys,
    start_of,
    stock,
    true_bars_of,
    true_daily_bars,
    utc,
)
from tests.support.loading import Harness, World

RTH = "XNYS.RTH"
FIRST, END = date(2024, 9, 2), date(2024, 11, 1)
BEGIN = utc(2024, 11, 4, 15)
SYMBOLS = ("AAPL", "MSFT")
TIMEFRAMES = (Timeframe.D1, Timeframe.H1)


@dataclass(frozen=True)
class Market:
    """A market that trades in every session or, if it is thin, in some, with few bars each."""

    is_thin: bool = False
    timeframes: tuple[Timeframe, ...] = TIMEFRAMES
    zero_bars: bool = False

    def keys(self, timeframe: Timeframe) -> np.ndarray:
        """Return the timestamps of its trades."""
        keys = dense_keys(RTH, timeframe, FIRST - timedelta(days=60), date(2026, 6, 1))
        if not self.is_thin:
            return keys
        chance = np.random.default_rng(7)
        days = calendar_named(RTH).days_of(keys)
        empty = [day for day in np.unique(days) if chance.random() < 0.3]
        return keys[(chance.random(len(keys)) < 0.4) & ~np.isin(days, empty)]


MARKETS = (
    Market(),
    Market(zero_bars=True),
    Market(is_thin=True),
    Market(timeframes=(Timeframe.W1, Timeframe.M30)),
)


@dataclass
class Pattern:
    """A seeded rule for which requests return no bars.

    ``kind`` is burst (some requests in a row), window (a time of hours), share (by chance), symbol
    (of one symbol for hours), session (that reach some dates, for hours) or timeframe (of one
    timeframe, for hours).
    """

    kind: str
    seed: int
    share: float
    hours: int
    request_count: int = field(default=0)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.first = self.rng.randrange(1, 12)
        self.length = self.rng.randrange(5, 60)
        days = calendar_named(RTH).sessions(FIRST, END)
        place = self.rng.randrange(0, len(days) - 3)
        few = days[place : place + self.rng.randrange(1, 8)]
        self.dates = Interval(few[0].opens_at, few[-1].closes_at)

    def hides(self, request: BarRequest, now: datetime) -> bool:
        """Return whether a request returns no bars."""
        self.request_count += 1
        is_on = BEGIN <= now < BEGIN + timedelta(hours=self.hours)
        chance = self.rng.random() < self.share
        match self.kind:
            case "burst":
                return self.first <= self.request_count < self.first + self.length
            case "window":
                return is_on
            case "share":
                return chance and now < BEGIN + timedelta(days=5)
            case "symbol":
                return is_on and request.series.symbol == SYMBOLS[0]
            case "timeframe":
                return is_on and request.series.timeframe.is_intraday is bool(self.seed % 2)
            case _:
                ends_at = request.ends_at or now
                reach = Interval(start_of(request, ends_at), ends_at)
                return is_on and reach.overlaps(self.dates)


patterns = st.builds(
    Pattern,
    st.sampled_from(["burst", "window", "share", "symbol", "session", "timeframe"]),
    st.integers(0, 10_000),
    st.sampled_from([0.1, 0.35, 0.6]),
    st.integers(1, 23),
)


@dataclass
class Store:
    """A store of a small universe whose gateway follows a pattern."""

    harness: Harness
    wanted: IntervalSet
    series: list[Series]

    def load(self) -> list[SeriesReport]:
        """Load everything, and check that no series with missing bars is reported complete."""
        jobs = [Job(one, wanted=self.wanted_of(one)) for one in self.series]
        reports = self.harness.run(*jobs)
        for report in reports:
            if report.is_complete:
                assert self.missing(report.series) == 0, report.summary
        self.check_gap_index()
        return reports

    def wanted_of(self, one: Series) -> IntervalSet:
        return IntervalSet([interval_between(calendar_named(RTH), one.timeframe, FIRST, END)])

    def missing(self, one: Series) -> int:
        """Count the bars that the gateway has and the store lacks."""
        (part,) = self.wanted_of(one)
        true_bars = bars_between(self.harness.true_bars(one).bars, part.start, part.end)
        stored = self.harness.store.read(one, part)
        return true_bars.num_rows - stored.num_rows

    def check_gap_index(self) -> None:
        """Check that neither the gap index nor a window is complete over a missing bar."""
        now = self.harness.gateway.time
        index = GapIndex(self.harness.store, self.calendars(), self.harness.gateway.gateway)
        for found in index.series_gaps(self.series, now):
            (part,) = self.wanted_of(found.series)
            if self.missing(found.series):
                assert found.missing.clip(part), found.series
                state = index.windows(found.series, {"all": (FIRST, END)}, now)
                assert state["all"].state is WindowState.UNEXPLAINED

    def calendars(self) -> object:
        return self.harness.ledger.calendars()


def store_of(folder: Path, pattern: Pattern, market: Market = MARKETS[0]) -> Store:
    """Make a store whose gateway follows a pattern."""
    true_bars = {}
    series = []
    finest = market.timeframes[-1]
    bars = true_bars_of(market.keys(finest), finest, calendar_named(RTH))
    life = date(2026, 5, 1), date(2026, 6, 1)
    for symbol in SYMBOLS:
        true_bars[symbol, finest] = bars
        true_bars[symbol, Timeframe.D1] = true_daily_bars(bars.bars, finest, RTH, life)
        true_bars[symbol, Timeframe.W1] = true_weekly_bars(true_bars[symbol, Timeframe.D1].bars)
        series += [Series(stock(symbol), timeframe) for timeframe in market.timeframes]
    gateway = FakeGateway(true_bars, BEGIN)
    gateway.contract_ids = {"AAPL": 265598, "MSFT": 272093}
    text = "the gateway answered with 0 bars" if market.zero_bars else NO_DATA_TEXT

    def mutate(request: BarRequest, bars: pa.Table) -> pa.Table | NoData:
        return NoData(request, text) if pattern.hides(request, gateway.time) else bars

    gateway.mutate = mutate
    wanted = IntervalSet([interval_between(calendar_named(RTH), Timeframe.H1, FIRST, END)])
    return Store(Harness(create_store(folder), gateway), wanted, series)


def true_weekly_bars(daily: pa.Table) -> TrueBars:
    """Return the weekly bars of the weeks in which there are daily ones."""
    days = np.unique([monday_of(day) for day in daily["session_date"].to_pylist()])
    keys = days.astype("datetime64[us]").astype(np.int64)
    return true_bars_of(keys, Timeframe.W1, calendar_named(RTH))


HIDES_TEN_DAYS = Pattern("session", 9869, 0.35, 14)
"""For 14 hours requests for the oldest days return no bars, and many are sent."""


@pytest.mark.timeout(900)  # 60 examples take six minutes on a busy machine
@pytest.mark.slow
@given(pattern=patterns, market=st.sampled_from(MARKETS))
@example(pattern=HIDES_TEN_DAYS, market=MARKETS[2])
@examples(60, phases=UNSHRUNK)
def test_nothing_is_called_complete_over_a_missing_bar(
    pattern: Pattern, market: Market, folders: Iterator[Path]
) -> None:
    """Empty responses for less than a day, at random or for one timeframe never hide a bar.

    Once the gateway has recovered, every bar is stored.
    """
    store = store_of(next(folders), pattern, market)
    gateway = store.harness.gateway
    for step in (0, 1, 16, 20, 45, 240, 900, 1500, 1500, 1500):
        gateway.time += timedelta(minutes=step)
        store.load()
    gateway.mutate = None
    for _ in range(4):
        gateway.time += timedelta(days=1, minutes=1)
        reports = store.load()
    assert all(report.is_complete for report in reports), [one.summary for one in reports]
    assert [store.missing(one) for one in store.series] == [0] * len(store.series)


def test_a_session_with_a_late_bar_alone_is_not_called_empty(
    world: Callable[..., World],
) -> None:
    """Bars after the close extend sessions before those without bars are determined."""
    first, end, day = date(2024, 6, 3), date(2024, 6, 22), date(2024, 6, 12)
    calendar = calendar_named("XNYS.RTH")
    around = first - timedelta(days=40), end + timedelta(days=20)
    keys = dense_keys("XNYS.RTH", Timeframe.M30, *around)
    late = [micros(one.closes_at) for one in calendar.sessions(*around)]
    keys = np.union1d(keys[calendar.days_of(keys) != np.datetime64(day)], late)
    made = world("XNYS.RTH", Timeframe.M30, first, end, keys=keys)
    made.load()
    assert made.harness.store.rows_per_session(made.series)[day] == 1
    session = calendar.sessions(day, day + timedelta(days=1))[0]
    statements = made.harness.ledger.statements.of(made.series.symbol)
    assert [one for one in statements if session.opens_at in one.interval] == []
