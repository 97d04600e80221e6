"""Rows that are no bars, and bars that hardly can be: requested once more, and told."""

from collections.abc import Callable
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pytest

from ktrdr_pipelines.core.answers import Answer, BarRequest, NoData
from ktrdr_pipelines.core.bars import moment, stamps
from ktrdr_pipelines.core.intervals import Interval, IntervalSet
from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.errors import BadAnswerError
from ktrdr_pipelines.store.ledger import series_key
from tests.load.conftest import World

MakeWorld = Callable[..., World]
DAY = date(2024, 6, 4)
LENGTH = timedelta(minutes=1)


@pytest.fixture
def made(world: MakeWorld) -> World:
    """Make one day of minutes."""
    return world("XNYS.RTH", Timeframe.M1, DAY, DAY + timedelta(days=1))


def without_row(request: BarRequest, bars: pa.Table, row: int) -> Answer:
    """Give a response of which one row was no bar."""
    at = moment(int(stamps(bars)[row]))
    kept = pa.array(np.arange(bars.num_rows) != row)
    place = IntervalSet([Interval(at, at + LENGTH)])
    return Answer(request, bars.filter(kept), None, impossible=place)


def test_an_impossible_row_once_costs_one_request(made: World) -> None:
    """The second response is whole, and stands."""
    first = iter([True])
    made.bench.gateway.twist = lambda request, bars: (
        without_row(request, bars, 7) if next(first, False) else bars
    )
    report = made.load()
    assert report.is_complete
    assert report.requests == 2
    made.check_complete()


def test_an_impossible_row_that_stays_is_never_covered(made: World) -> None:
    """All other bars are kept; its minute is missing until it comes."""

    def always(request: BarRequest, bars: pa.Table) -> Answer | pa.Table | NoData:
        at = np.flatnonzero(stamps(bars) == 1_717_508_220_000_000)
        return without_row(request, bars, int(at[0])) if len(at) else bars

    made.bench.gateway.twist = always
    report = made.load()
    assert not report.is_complete
    assert report.unexplained.length == LENGTH
    assert made.bench.store.rows(made.series) == 389
    made.check()
    made.bench.gateway.twist = None
    assert made.load_until_confirmed().is_complete
    made.check_complete()


def odd(bars: pa.Table, row: int, close: float) -> pa.Table:
    """Give one bar a close above its high."""
    values = bars["close"].to_numpy().copy()
    values[row] = close
    place = bars.schema.get_field_index("close")
    return bars.set_column(place, bars.schema.field("close"), pa.array(values))


def test_an_implausible_bar_that_comes_twice_is_kept_with_a_finding(made: World) -> None:
    """It stands as the gateway returned it, and the ledger says so."""

    def always(request: BarRequest, bars: pa.Table) -> Answer:
        key = int(stamps(bars)[7])
        return Answer(request, odd(bars, 7, 1e9), None, implausible=(key,))

    made.bench.gateway.twist = always
    report = made.load()
    assert report.is_complete
    assert report.requests == 2
    assert made.bench.store.read(made.series)["close"].to_pylist()[7] == 1e9
    (finding,) = made.bench.ledger.findings(series_key(made.series))
    assert "close=1000000000.0" in finding.detail


def test_an_implausible_bar_that_differs_each_time_is_not_kept(made: World) -> None:
    """Nobody knows what was traded then: its minute stays missing."""
    closes = iter(range(10**9, 10**9 + 100))

    def changing(request: BarRequest, bars: pa.Table) -> Answer | pa.Table:
        at = np.flatnonzero(stamps(bars) == 1_717_508_220_000_000)
        if not len(at):
            return bars
        key = int(stamps(bars)[at[0]])
        return Answer(request, odd(bars, int(at[0]), float(next(closes))), None, implausible=(key,))

    made.bench.gateway.twist = changing
    report = made.load()
    assert report.unexplained.length == LENGTH
    assert made.bench.store.rows(made.series) == 389
    assert made.bench.ledger.findings(series_key(made.series)) == []


@pytest.mark.parametrize("timeframe", [Timeframe.D1, Timeframe.H1])
def test_a_response_with_an_impossible_row_does_not_state_that_its_day_is_empty(
    world: MakeWorld, timeframe: Timeframe
) -> None:
    """A row came for the day each time, so no number of responses makes it empty."""
    made = world("XNYS.RTH", timeframe, date(2024, 5, 20), date(2024, 6, 22))
    hidden = np.datetime64("2024-06-05")

    def always(request: BarRequest, bars: pa.Table) -> Answer | pa.Table | BadAnswerError:
        days = bars["session_date"].to_numpy().astype("datetime64[D]")
        gone = days == hidden
        if gone.all():
            return BadAnswerError("bars", came="most rows are no bars")
        if not gone.any():
            return bars
        length = request.series.timeframe.length
        places = [
            Interval(moment(int(key)), moment(int(key)) + length) for key in stamps(bars)[gone]
        ]
        kept = bars.filter(pa.array(~gone))
        return Answer(request, kept, None, impossible=IntervalSet(places))

    made.bench.gateway.twist = always
    for _ in range(3):
        report = made.load_until_confirmed()
        made.bench.gateway.time += timedelta(days=1)
    assert not report.is_complete
    assert report.unexplained.length > timedelta(0)
    made.check()
    made.bench.gateway.twist = None
    assert made.load_until_confirmed().is_complete
    made.check_complete()
