"""False responses of a gateway that made an earlier version report a load as complete."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ktrdr_pipelines.cli.load_report import exit_code_of
from ktrdr_pipelines.domain.bars import bars_between
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between, monday_of
from ktrdr_pipelines.domain.coverage import ProofKind
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.planning.responses import BarRequest, NoData
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import ExitCode
from ktrdr_pipelines.store.layout import create_store
from ktrdr_pipelines.sync.runner import Job
from tests.support.fake_gateway import (
    NO_DATA_TEXT,
    FakeGateway,
    dense_keys,
    stock,
    true_bars_of,
    true_daily_bars,
    utc,
)
from tests.support.loading import Harness

RTH = "XNYS.RTH"
NOW = utc(2024, 11, 4, 15)
ZERO_BARS = "the gateway answered with 0 bars"
Mutation = Callable[[BarRequest, pa.Table], "pa.Table | NoData"]


@dataclass
class Market:
    """Symbols with hourly, daily and weekly bars from a first date on, and a wanted range."""

    folder: Path
    symbols: tuple[str, ...] = ("AAPL",)
    first: date = date(2024, 1, 2)
    begins: date = date(2023, 6, 1)
    end: date = date(2024, 11, 2)
    harness: Harness = field(init=False)

    def __post_init__(self) -> None:
        calendar = calendar_named(RTH)
        keys = dense_keys(RTH, Timeframe.H1, self.begins, date(2026, 1, 2))
        hours = true_bars_of(keys, Timeframe.H1, calendar)
        life = date(2025, 12, 1), date(2026, 1, 2)
        daily = true_daily_bars(hours.bars, Timeframe.H1, RTH, life)
        mondays = np.unique([monday_of(day) for day in daily.bars["session_date"].to_pylist()])
        weeks = mondays.astype("datetime64[us]").astype(np.int64)
        true_bars = {}
        for symbol in self.symbols:
            true_bars[symbol, Timeframe.H1] = hours
            true_bars[symbol, Timeframe.D1] = daily
            true_bars[symbol, Timeframe.W1] = true_bars_of(weeks, Timeframe.W1, calendar)
        gateway = FakeGateway(true_bars, NOW)
        gateway.contract_ids = {symbol: place + 1 for place, symbol in enumerate(self.symbols)}
        self.harness = Harness(create_store(self.folder), gateway)

    def series(self, timeframe: Timeframe) -> list[Series]:
        """Return the series of one timeframe, of every symbol."""
        return [Series(stock(symbol), timeframe) for symbol in self.symbols]

    def load(self, *timeframes: Timeframe) -> list[SeriesReport]:
        """Load in one run, and compare what is reported complete with the true bars."""
        jobs = [
            Job(one, wanted=IntervalSet([self.wanted(timeframe)]))
            for timeframe in timeframes
            for one in self.series(timeframe)
        ]
        reports = self.harness.run(*jobs)
        for report in reports:
            if report.is_complete:
                assert not self.missing(report.series), report.summary
        return reports

    def wanted(self, timeframe: Timeframe) -> Interval:
        """Return the wanted interval, by bar timestamp."""
        return interval_between(calendar_named(RTH), timeframe, self.first, self.end)

    def missing(self, series: Series) -> int:
        """Count the bars that the gateway has and the store lacks."""
        part = self.wanted(series.timeframe)
        true = bars_between(self.harness.true_bars(series).bars, part.start, part.end)
        return true.num_rows - self.harness.store.read(series, part).num_rows

    def lacks(self, *timeframes: Timeframe) -> int:
        """Count the missing bars of all symbols."""
        return sum(self.missing(one) for timeframe in timeframes for one in self.series(timeframe))


@pytest.fixture
def market(folders: Iterator[Path]) -> Callable[..., Market]:
    """Return a function that makes markets."""
    return lambda **given: Market(next(folders), **given)


def burst(market: Market, first: int, last: int, text: str) -> None:
    """Respond to some consecutive requests without bars."""
    request_count = 0

    def mutate(request: BarRequest, bars: pa.Table) -> pa.Table | NoData:
        nonlocal request_count
        request_count += 1
        return NoData(request, text) if first <= request_count <= last else bars

    market.harness.gateway.mutate = mutate


@pytest.mark.parametrize("text", [NO_DATA_TEXT, ZERO_BARS])
def test_a_burst_of_empty_responses_over_sixteen_series(
    market: Callable[..., Market], text: str
) -> None:
    """After 60 in a row the load is incomplete (exit code 3), and the next ones get every bar."""
    made = market(symbols=tuple(f"S{place:02}" for place in range(16)))
    burst(made, 10, 69, text)
    reports = made.load(Timeframe.H1)
    assert not made.lacks(Timeframe.H1) or exit_code_of(reports) is ExitCode.INCOMPLETE
    for _ in range(3):
        made.harness.gateway.time += timedelta(minutes=16)
        reports = made.load(Timeframe.H1)
    assert exit_code_of(reports) is ExitCode.DONE
    assert not made.lacks(Timeframe.H1)


@pytest.mark.parametrize("text", [NO_DATA_TEXT, ZERO_BARS])
def test_empty_responses_within_a_day_never_hide_a_session(
    market: Callable[..., Market], text: str
) -> None:
    """However often a session is returned empty within a day, it stays missing."""
    made = market()
    hidden = utc(2024, 10, 9, 13, 30), utc(2024, 10, 9, 20)

    def mutate(request: BarRequest, bars: pa.Table) -> pa.Table | NoData:
        left = [
            bars_between(bars, utc(2000, 1, 1), hidden[0]),
            bars_between(bars, hidden[1], utc(2100, 1, 1)),
        ]
        kept = pa.concat_tables(left) if request.series.timeframe is Timeframe.H1 else bars
        return kept if kept.num_rows else NoData(request, text)

    made.harness.gateway.mutate = mutate
    for minutes in (0, 1, 16, 16, 60):
        made.harness.gateway.time += timedelta(minutes=minutes)
        assert exit_code_of(made.load(Timeframe.H1)) is ExitCode.INCOMPLETE
    made.harness.gateway.mutate = None
    made.harness.gateway.time += timedelta(days=1)
    assert exit_code_of(made.load(Timeframe.H1)) is ExitCode.DONE
    assert not made.lacks(Timeframe.H1)


def test_the_week_of_a_listing_is_not_empty_where_days_of_it_are_held(
    market: Callable[..., Market],
) -> None:
    """A gateway without bars for requests past its oldest one hides no week."""
    made = market(begins=date(2024, 5, 15))
    made.harness.gateway.nothing_past_oldest = True
    for _ in range(5):
        made.load(Timeframe.D1, Timeframe.W1)
        made.harness.gateway.time += timedelta(minutes=16)
    week = made.harness.store.read(made.series(Timeframe.W1)[0])["session_date"][0].as_py()
    assert week == date(2024, 5, 13)
    assert not made.lacks(Timeframe.D1, Timeframe.W1)


@pytest.mark.parametrize("is_loaded_first", [False, True])
def test_a_wrong_head_hides_no_bar(market: Callable[..., Market], is_loaded_first: bool) -> None:
    """The head is three years late, and older daily bars are held: hours begin with the days."""
    made = market(first=date(2021, 1, 4), begins=date(2021, 3, 1))
    made.harness.gateway.head_at = utc(2024, 6, 3, 13, 30)
    if is_loaded_first:
        made.load(Timeframe.H1)
    for _ in range(3):
        made.load(Timeframe.D1)
        reports = made.load(Timeframe.H1)
        made.harness.gateway.time += timedelta(minutes=16)
    assert exit_code_of(reports) is ExitCode.DONE
    assert not made.lacks(Timeframe.D1, Timeframe.H1)


def always_without(day: date) -> Mutation:
    """Return a mutation that omits the bars of one date from every response."""

    def mutate(request: BarRequest, bars: pa.Table) -> pa.Table | NoData:
        dates = bars["session_date"].to_numpy().astype("datetime64[D]")
        kept = bars.filter(pa.array(dates != np.datetime64(day)))
        return kept if kept.num_rows else NoData(request, NO_DATA_TEXT)

    return mutate


def test_a_date_that_is_always_returned_empty_ends_disputed(
    market: Callable[..., Market],
) -> None:
    """A date without bars among full ones takes statements on three days."""
    made = market()
    made.harness.gateway.mutate = always_without(date(2024, 10, 9))
    codes = []
    for _ in range(6):
        codes.append(exit_code_of(made.harness.run(*_jobs(made))))
        made.harness.gateway.time += timedelta(days=1, minutes=1)
    assert codes[:2] == [ExitCode.INCOMPLETE] * 2
    assert codes[-1] is ExitCode.DONE
    (hours,) = made.series(Timeframe.H1)
    proofs = made.harness.store.coverage(hours).empty
    assert {proof.kind for proof in proofs} == {ProofKind.DISPUTED}
    around = [
        one
        for one in made.harness.ledger.statements.of(hours.symbol)
        if one.interval.start <= utc(2024, 10, 9, 13, 30) < one.interval.end
    ]
    assert len({one.said_at.date() for one in around}) >= 3


def _jobs(made: Market) -> list[Job]:
    wanted = IntervalSet([made.wanted(Timeframe.H1)])
    return [Job(one, wanted=wanted) for one in made.series(Timeframe.H1)]
