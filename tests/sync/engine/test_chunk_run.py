"""Impossible rows and implausible bars are requested once more, and reported."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from ktrdr_pipelines.domain.bars import micros, moment, timestamps
from ktrdr_pipelines.domain.calendars.sessions import midnight
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.empty_ranges import StatementKind
from ktrdr_pipelines.domain.planning.responses import BarRequest, NoData, Response
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import BadAnswerError, GatewayTimeoutError
from ktrdr_pipelines.store.bars.filing import EVER
from ktrdr_pipelines.store.ledger.ledger import series_key
from ktrdr_pipelines.sync.runner import Job
from tests.support.loading import World

MakeWorld = Callable[..., World]

DAY = date(2024, 6, 4)

LENGTH = timedelta(minutes=1)


@pytest.fixture
def made(world: MakeWorld) -> World:
    """Return a world of one day of 1m bars."""
    return world("XNYS.RTH", Timeframe.M1, DAY, DAY + timedelta(days=1))


def without_row(request: BarRequest, bars: pa.Table, row: int) -> Response:
    """Return a response of which one row is impossible."""
    at = moment(int(timestamps(bars)[row]))
    kept = pa.array(np.arange(bars.num_rows) != row)
    place = IntervalSet([Interval(at, at + LENGTH)])
    return Response(request, bars.filter(kept), None, impossible=place)


def test_an_impossible_row_takes_one_more_request(made: World) -> None:
    """The second response is whole, and is kept."""
    first = iter([True])
    made.harness.gateway.mutate = lambda request, bars: (
        without_row(request, bars, 7) if next(first, False) else bars
    )
    report = made.load()
    assert report.is_complete
    assert report.requests == 2
    made.check_complete()


def test_an_impossible_row_that_stays_is_never_covered(made: World) -> None:
    """All other bars are kept; its minute is missing until a bar is returned."""

    def always(request: BarRequest, bars: pa.Table) -> Response | pa.Table | NoData:
        at = np.flatnonzero(timestamps(bars) == 1_717_508_220_000_000)
        return without_row(request, bars, int(at[0])) if len(at) else bars

    made.harness.gateway.mutate = always
    report = made.load()
    assert not report.is_complete
    assert report.unexplained.length == LENGTH
    assert made.harness.store.rows(made.series) == 389
    made.check()
    made.harness.gateway.mutate = None
    assert made.load_until_confirmed().is_complete
    made.check_complete()


def odd(bars: pa.Table, row: int, close: float) -> pa.Table:
    """Return bars of which one has a close above its high."""
    values = bars["close"].to_numpy().copy()
    values[row] = close
    place = bars.schema.get_field_index("close")
    return bars.set_column(place, bars.schema.field("close"), pa.array(values))


def test_an_implausible_bar_that_is_returned_twice_is_kept_with_a_finding(made: World) -> None:
    """It is stored as the gateway returned it, with a finding in the ledger."""

    def always(request: BarRequest, bars: pa.Table) -> Response:
        key = int(timestamps(bars)[7])
        return Response(request, odd(bars, 7, 1e9), None, implausible=(key,))

    made.harness.gateway.mutate = always
    report = made.load()
    assert report.is_complete
    assert report.requests == 2
    assert made.harness.store.read(made.series)["close"].to_pylist()[7] == 1e9
    (finding,) = made.harness.ledger.findings.of(series_key(made.series))
    assert "close=1000000000.0" in finding.detail


def test_an_implausible_bar_that_differs_each_time_is_not_kept(made: World) -> None:
    """Its true values are not known, so its minute stays missing."""
    closes = iter(range(10**9, 10**9 + 100))

    def changing(request: BarRequest, bars: pa.Table) -> Response | pa.Table:
        at = np.flatnonzero(timestamps(bars) == 1_717_508_220_000_000)
        if not len(at):
            return bars
        key = int(timestamps(bars)[at[0]])
        return Response(
            request, odd(bars, int(at[0]), float(next(closes))), None, implausible=(key,)
        )

    made.harness.gateway.mutate = changing
    report = made.load()
    assert report.unexplained.length == LENGTH
    assert made.harness.store.rows(made.series) == 389
    assert made.harness.ledger.findings.of(series_key(made.series)) == []


@pytest.mark.parametrize("timeframe", [Timeframe.D1, Timeframe.H1])
def test_a_response_with_an_impossible_row_does_not_state_that_its_day_is_empty(
    world: MakeWorld, timeframe: Timeframe
) -> None:
    """Each response had a row of the session, so no number of responses confirms it empty."""
    made = world("XNYS.RTH", timeframe, date(2024, 5, 20), date(2024, 6, 22))
    hidden = np.datetime64("2024-06-05")

    def always(request: BarRequest, bars: pa.Table) -> Response | pa.Table | BadAnswerError:
        days = bars["session_date"].to_numpy().astype("datetime64[D]")
        gone = days == hidden
        if gone.all():
            return BadAnswerError("bars", reason="most rows are no bars")
        if not gone.any():
            return bars
        length = request.series.timeframe.length
        unread = [
            Interval(moment(int(key)), moment(int(key)) + length) for key in timestamps(bars)[gone]
        ]
        kept = bars.filter(pa.array(~gone))
        return Response(request, kept, None, impossible=IntervalSet(unread))

    made.harness.gateway.mutate = always
    for _ in range(3):
        report = made.load_until_confirmed()
        made.harness.gateway.time += timedelta(days=1)
    assert not report.is_complete
    assert report.unexplained.length > timedelta(0)
    made.check()
    made.harness.gateway.mutate = None
    assert made.load_until_confirmed().is_complete
    made.check_complete()


def parsed_without(
    request: BarRequest, bars: pa.Table, bad: set[int]
) -> Response | pa.Table | NoData:
    """Return the response as it is parsed when the rows at some timestamps are no bars."""
    keys = timestamps(bars)
    is_bad = np.isin(keys, list(bad))
    if not is_bad.any():
        return bars
    if is_bad.all():
        return NoData(request, "HMDS query returned no data")
    good = keys[~is_bad]
    length = request.series.timeframe.length
    unread = []
    for key in keys[is_bad]:
        at = int(np.searchsorted(good, key))
        start = moment(int(good[at - 1])) + length if at else EVER.start
        unread.append(Interval(start, moment(int(good[at])) if at < len(good) else EVER.end))
    return Response(request, bars.filter(pa.array(~is_bad)), None, impossible=IntervalSet(unread))


def days(*dates: date) -> set[int]:
    """Return the timestamps of daily bars."""
    return {micros(midnight(day)) for day in dates}


@pytest.mark.parametrize(
    "bad",
    [
        days(date(2024, 3, 13)),
        days(date(2024, 3, 13), date(2024, 3, 14), date(2024, 3, 15)),
        days(date(2024, 3, 1)),
        days(date(2024, 3, 1), date(2024, 3, 4)),
        days(date(2024, 3, 28)),
    ],
)
def test_a_daily_row_that_is_no_bar_makes_no_day_empty(world: MakeWorld, bad: set[int]) -> None:
    """Bars on both sides, or none before, are no statement about a date whose row is impossible."""
    made = world("XNYS.RTH", Timeframe.D1, date(2024, 3, 1), date(2024, 3, 29))
    made.harness.gateway.mutate = lambda request, bars: parsed_without(request, bars, bad)
    report = made.load()
    assert not report.is_complete, report.summary
    missing = report.unexplained
    assert all(moment(key) in missing for key in bad)
    assert made.harness.store.rows(made.series) == 20 - len(bad)
    made.check()
    made.harness.gateway.mutate = None
    assert made.load_until_confirmed().is_complete
    made.check_complete()


def test_a_session_of_rows_that_are_no_bars_is_not_empty(world: MakeWorld) -> None:
    """A daily response whose row of that date is no bar either is no statement."""
    made = world("XNYS.RTH", Timeframe.H1, date(2024, 3, 1), date(2024, 3, 29))
    opens = datetime(2024, 3, 13, tzinfo=UTC)
    whole = {micros(opens + timedelta(minutes=n)) for n in range(0, 1440, 30)}
    made.harness.gateway.mutate = lambda request, bars: parsed_without(
        request, bars, whole | days(date(2024, 3, 13))
    )
    report = made.load()
    assert not report.is_complete, report.summary
    assert datetime(2024, 3, 13, 15, tzinfo=UTC) in report.unexplained
    made.check()
    made.harness.gateway.mutate = None
    assert made.load_until_confirmed().is_complete
    made.check_complete()


def test_a_daily_row_that_is_no_bar_confirms_no_empty_session(world: MakeWorld) -> None:
    """Bars of one date are left out, and its daily row, the evidence for it, is impossible."""
    made = world("XNYS.RTH", Timeframe.H1, date(2024, 3, 1), date(2024, 3, 29))
    low, high = micros(datetime(2024, 3, 13, tzinfo=UTC)), micros(datetime(2024, 3, 14, tzinfo=UTC))

    def mutate(request: BarRequest, bars: pa.Table) -> Response | pa.Table | NoData:
        if request.series.timeframe is Timeframe.D1:
            return parsed_without(request, bars, days(date(2024, 3, 13)))
        keys = timestamps(bars)
        return bars.filter(pa.array((keys < low) | (keys >= high)))

    made.harness.gateway.mutate = mutate
    made.load()
    symbol = made.series.symbol
    statements = made.harness.ledger.statements.of(symbol)
    assert any(one.series.timeframe is Timeframe.D1 for one in made.harness.gateway.requests)
    noon = datetime(2024, 3, 13, 15, tzinfo=UTC)
    assert not [
        one
        for one in statements
        if one.timeframe == Timeframe.D1.value
        and noon in one.interval
        and one.kind is not StatementKind.TRADED
    ]


def test_a_single_bar_that_changes_each_time_is_no_response(made: World) -> None:
    """If no bar of a response is valid, another run requests its range."""
    closes = iter(range(10**9, 10**9 + 1000))

    def changing(request: BarRequest, bars: pa.Table) -> Response:
        key = int(timestamps(bars)[0])
        return Response(
            request, odd(bars.slice(0, 1), 0, float(next(closes))), None, implausible=(key,)
        )

    made.harness.gateway.mutate = changing
    report = made.load()
    assert not report.is_complete
    assert report.requests < 12
    assert made.harness.store.rows(made.series) == 0
    made.harness.gateway.mutate = None
    assert made.load_until_confirmed().is_complete
    made.check_complete()


def test_an_empty_second_response_leaves_an_implausible_bar_missing(made: World) -> None:
    """The bars of the first response are kept but for the implausible one."""
    key = 1_717_508_220_000_000

    def first_only(request: BarRequest, bars: pa.Table) -> Response | NoData:
        if made.harness.request_count > 1:
            return NoData(request, "HMDS query returned no data")
        row = int(np.flatnonzero(timestamps(bars) == key)[0])
        return Response(request, odd(bars, row, 1e9), None, implausible=(key,))

    made.harness.gateway.mutate = first_only
    report = made.load()
    assert not report.is_complete
    assert moment(key) in report.unexplained
    assert made.harness.store.rows(made.series) == 389
    made.harness.gateway.mutate = None
    assert made.load_until_confirmed().is_complete
    made.check_complete()


def test_a_failure_of_the_second_request_loses_nothing(made: World) -> None:
    """The first response is not kept then; the next run requests all of it."""
    made.harness.gateway.mutate = lambda request, bars: (
        without_row(request, bars, 7)
        if made.harness.request_count == 1
        else GatewayTimeoutError("bars")
    )
    assert not made.load().is_complete
    made.check()
    made.harness.gateway.mutate = None
    made.harness.gateway.time += timedelta(hours=2)
    assert made.load_until_confirmed().is_complete
    made.check_complete()


def test_a_corrected_bar_has_no_finding(made: World) -> None:
    """A refresh replaces the bar and deletes its finding."""

    def always(request: BarRequest, bars: pa.Table) -> Response:
        return Response(request, odd(bars, 7, 1e9), None, implausible=(int(timestamps(bars)[7]),))

    made.harness.gateway.mutate = always
    made.load()
    assert made.harness.ledger.findings.counts() == {series_key(made.series): 1}
    made.harness.gateway.mutate = None
    made.harness.run(Job(made.series, wanted=IntervalSet([made.wanted]), refresh=True))
    assert made.harness.ledger.findings.counts() == {}
    made.check_complete()


@pytest.mark.parametrize("timeframe", [Timeframe.H1, Timeframe.H4])
def test_a_short_first_bar_alone_is_covered(
    world: Callable[..., World], timeframe: Timeframe
) -> None:
    """The bar from 09:30 to 10:00 is whole if the bars after it are covered."""
    made = world("XNYS.RTH", timeframe, date(2024, 6, 4), date(2024, 6, 5))
    first = made.harness.true_bars(made.series).bars["ts"].to_pylist()
    opening = next(moment for moment in first if moment >= made.wanted.start)

    requests = iter(range(100))

    def without_opening_at_first(_: BarRequest, bars: pa.Table) -> pa.Table:
        is_first = next(requests) == 0
        later = [not is_first or moment > opening for moment in bars["ts"].to_pylist()]
        return bars.filter(pa.array(later))

    made.harness.gateway.mutate = without_opening_at_first
    report = made.load()
    assert report.is_complete, report.summary
    assert report.requests == 2
    made.check_complete()
