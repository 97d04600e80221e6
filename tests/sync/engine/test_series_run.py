"""Loading one series by mode and calendar: complete, and without needless requests."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta

import pytest

from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.session_grid import session_grid
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.jobs import Bounds, Mode, RequestedBy
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import RequestRejectedError
from ktrdr_pipelines.sync.runner import Job
from tests.support.fake_gateway import dense_keys, series_of, thinned, true_bars_of, utc
from tests.support.loading import World

MakeWorld = Callable[..., World]

CALENDARS = ["XNYS.RTH", "XNYS.ETH", "FX"]

INTERVALS = {
    "a half day in November": (date(2023, 11, 20), date(2023, 11, 28)),
    "a half day in July": (date(2024, 7, 1), date(2024, 7, 9)),
    "clocks forward": (date(2024, 3, 7), date(2024, 3, 15)),
    "clocks back": (date(2024, 10, 31), date(2024, 11, 7)),
    "a holiday end": (date(2024, 5, 20), date(2024, 5, 28)),
    "a week end": (date(2024, 6, 3), date(2024, 6, 9)),
    "a year end": (date(2023, 12, 20), date(2024, 1, 6)),
    "Good Friday": (date(2024, 3, 18), date(2024, 4, 3)),
    "a month end": (date(2024, 1, 29), date(2024, 2, 2)),
    "a leap day": (date(2024, 2, 26), date(2024, 3, 4)),
}


PAIRS = [
    (name, timeframe, CALENDARS[(row + column) % len(CALENDARS)])
    for row, name in enumerate(INTERVALS)
    for column, timeframe in enumerate(Timeframe)
]
"""Every pair of two of interval, timeframe and calendar."""


@pytest.mark.parametrize(("interval", "timeframe", "calendar"), PAIRS)
def test_an_interval_is_stored_exactly_as_it_was(
    world: MakeWorld, interval: str, timeframe: Timeframe, calendar: str
) -> None:
    """Every bar is stored, none is invented, cut or altered; a repeat requests nothing."""
    first, end = INTERVALS[interval]
    made = world(calendar, timeframe, first, end)
    report = made.load()
    assert report.is_complete
    made.check_complete()
    request_count = made.harness.request_count
    assert made.load().requests == 0
    assert made.harness.request_count == request_count
    assert made.harness.gateway.opened == 1


@pytest.mark.parametrize("calendar", CALENDARS)
@pytest.mark.parametrize("days", [31, 44, 45, 70, 100])
def test_hours_of_a_span_are_whole(world: MakeWorld, calendar: str, days: int) -> None:
    """Spans that are no multiple of a request's length lose nothing and take few requests."""
    first = date(2024, 2, 5)
    made = world(calendar, Timeframe.H1, first, first + timedelta(days=days))
    assert made.load().is_complete
    made.check_complete()
    assert made.harness.request_count <= -(-days // 29)


@pytest.mark.parametrize("calendar", CALENDARS)
@pytest.mark.parametrize("timeframe", Timeframe)
def test_a_thin_market_is_stored_exactly_as_it_was(
    world: MakeWorld, calendar: str, timeframe: Timeframe
) -> None:
    """Missing bars inside and at the ends of sessions, and whole ones, hide or add no bar."""
    first, end = date(2024, 6, 24), date(2024, 7, 13)
    around = first - timedelta(days=40), end + timedelta(days=20)
    keys = thinned(dense_keys(calendar, timeframe, *around), 0.6)
    made = world(calendar, timeframe, first, end, keys=keys)
    assert made.load_until_confirmed().is_complete
    made.check_complete()
    assert made.load().requests == 0


@pytest.mark.parametrize("calendar", CALENDARS)
@pytest.mark.parametrize("timeframe", Timeframe)
def test_an_end_in_mid_session_cuts_no_bar(
    world: MakeWorld, calendar: str, timeframe: Timeframe
) -> None:
    """Whole bars of an open session are stored, and the others once they have ended."""
    first, end = date(2024, 5, 28), date(2024, 6, 7)
    made = world(calendar, timeframe, first, end, now=utc(2024, 6, 5, 15, 17, 41))
    report = made.load()
    assert report.is_complete
    made.check()
    held = made.harness.store.rows(made.series)
    made.harness.gateway.time = utc(2024, 6, 5, 17, 3, 2)
    made.load()
    made.check()
    assert made.harness.store.rows(made.series) >= held
    made.harness.gateway.time = utc(2024, 7, 5)
    assert made.load().is_complete
    made.check_complete()


def test_the_session_after_the_clocks_went_back_is_one_request(world: MakeWorld) -> None:
    """The FX session that opens on the Sunday of the clock change is whole, in one request."""
    made = world("FX", Timeframe.M1, date(2024, 11, 4), date(2024, 11, 5))
    assert made.load().is_complete
    made.check_complete()
    assert made.harness.gateway.sizes == ["1 D"]


def test_bars_of_equal_values_all_stay(world: MakeWorld) -> None:
    """Bars that differ only by their time are all kept."""
    made = world("XNYS.RTH", Timeframe.M1, date(2024, 6, 4), date(2024, 6, 5))
    made.harness.gateway.mutate = lambda _, bars: bars.set_column(
        5, bars.schema.field("close"), [[1.0] * bars.num_rows]
    )
    made.load()
    assert made.harness.store.rows(made.series) == 390


def test_a_wanted_end_in_mid_session_loses_no_bar(world: MakeWorld) -> None:
    """Two adjoining intervals that meet inside a session store all of it."""
    made = world("XNYS.RTH", Timeframe.H1, date(2024, 6, 4), date(2024, 6, 5))
    cut = made.wanted.start.replace(hour=15, minute=45)
    made.harness.load(made.series, type(made.wanted)(cut, made.wanted.end))
    made.harness.load(made.series, type(made.wanted)(made.wanted.start, cut))
    made.check_complete()


RTH = "XNYS.RTH"

SPRING = date(2024, 2, 1), date(2024, 6, 29)

NOW = utc(2024, 6, 28, 23)


def spring(world: MakeWorld, timeframe: Timeframe = Timeframe.H1) -> World:
    """Make a world of five months that have just ended."""
    return world(RTH, timeframe, *SPRING, now=NOW)


def part(made: World, first: date, end: date) -> Interval:
    """Return the interval between two dates, at midnight in New York in summer."""
    return Interval(
        utc(first.year, first.month, first.day, 4), utc(end.year, end.month, end.day, 4)
    )


def run(made: World, mode: Mode, requested_by: RequestedBy = RequestedBy.PERSON) -> SeriesReport:
    """Load by a mode, from the start of the world."""
    bounds = Bounds(start=made.wanted.start)
    return made.harness.run(Job(made.series, mode, bounds, requested_by=requested_by))[0]


def uncovered(made: World) -> IntervalSet:
    """Return the expected intervals before the newest covered moment that are not covered."""
    covered = made.harness.store.coverage(made.series).bars
    assert covered.bounds is not None
    sessions = calendar_named(RTH)
    bounds = covered.bounds
    spans = session_grid(sessions, made.series.timeframe).spans_in(bounds)
    return IntervalSet(span.interval for span in spans).clip(bounds) - covered


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("timeframe", [Timeframe.M5, Timeframe.H1, Timeframe.D1, Timeframe.W1])
def test_every_mode_loads_all_where_nothing_is_stored(
    world: MakeWorld, timeframe: Timeframe, mode: Mode
) -> None:
    """With nothing covered, each mode loads everything from the start."""
    made = spring(world, timeframe)
    assert run(made, mode).is_complete
    made.check_complete()


@pytest.mark.parametrize("timeframe", [Timeframe.M5, Timeframe.H1, Timeframe.D1, Timeframe.W1])
def test_a_complete_store_needs_no_request_in_any_mode(
    world: MakeWorld, timeframe: Timeframe
) -> None:
    """A second run makes no request and opens no connection."""
    made = spring(world, timeframe)
    run(made, Mode.FULL)
    for mode in Mode:
        assert run(made, mode).requests == 0
    assert made.harness.gateway.opened == 1


def test_a_tail_of_an_old_store_leaves_no_gap(world: MakeWorld) -> None:
    """A tail continues at the last covered bar, ninety days back as well as one."""
    made = spring(world)
    made.harness.load(made.series, part(made, date(2024, 2, 1), date(2024, 3, 29)))
    report = run(made, Mode.TAIL)
    assert report.is_complete
    assert report.requests == 3
    made.check_complete()


def test_a_tail_on_friday_evening_loads_the_rest_of_friday(world: MakeWorld) -> None:
    """The session that was loaded until noon is completed after the close."""
    made = spring(world, Timeframe.M1)
    made.harness.gateway.time = utc(2024, 6, 28, 16, 0, 30)
    made.harness.load(made.series, part(made, date(2024, 6, 27), date(2024, 6, 29)))
    assert made.harness.store.rows(made.series) == 390 + 150
    made.harness.gateway.time = utc(2024, 6, 28, 22)
    report = run(made, Mode.TAIL)
    assert report.is_complete
    assert report.added == 390 - 150
    assert report.requests == 1


def test_a_tail_requests_oldest_first_so_that_a_stop_leaves_no_gap(world: MakeWorld) -> None:
    """The next tail continues an interrupted one: no newer bars are stored after a gap."""
    made = spring(world, Timeframe.M5)
    made.harness.load(made.series, part(made, date(2024, 2, 1), date(2024, 2, 3)))

    async def stop(_: BarRequest) -> None:
        if made.harness.request_count == 8:
            await made.harness.cancel()

    made.harness.gateway.before_response = stop
    with pytest.raises(asyncio.CancelledError):
        run(made, Mode.TAIL)
    made.check()
    assert not uncovered(made)
    made.harness.gateway.before_response = None
    assert run(made, Mode.TAIL).is_complete
    made.check_complete()


def test_a_tail_requests_a_failed_chunk_again_when_it_is_due(world: MakeWorld) -> None:
    """The chunk stays unexplained while it is deferred."""
    made = spring(world, Timeframe.M5)
    made.harness.load(made.series, part(made, date(2024, 2, 1), date(2024, 2, 3)))
    count = iter(range(100))
    made.harness.gateway.mutate = lambda _, bars: (
        RequestRejectedError("bars") if next(count) == 3 else bars
    )
    assert not run(made, Mode.TAIL, RequestedBy.SENSOR).is_complete
    report = run(made, Mode.TAIL, RequestedBy.SENSOR)
    assert not report.is_complete
    assert report.requests == 0
    made.harness.gateway.time += timedelta(minutes=6)
    report = run(made, Mode.TAIL, RequestedBy.SENSOR)
    assert report.is_complete
    assert report.requests == 1
    made.check_complete()


def test_a_backfill_ends_at_the_oldest_covered_bar(world: MakeWorld) -> None:
    """A backfill requests what lies before the stored bars, and nothing after them."""
    made = spring(world)
    made.harness.load(made.series, part(made, date(2024, 5, 1), date(2024, 5, 20)))
    run(made, Mode.BACKFILL)
    covered = made.harness.store.coverage(made.series).bars.bounds
    assert covered is not None
    assert covered.start <= made.wanted.start + timedelta(days=1)
    assert covered.end == utc(2024, 5, 20, 13, 30)
    made.check()


def test_full_fills_gaps_inside(world: MakeWorld) -> None:
    """A full load requests only what is missing between covered intervals."""
    made = spring(world)
    for first, end in ((date(2024, 2, 1), date(2024, 3, 8)), (date(2024, 4, 2), date(2024, 6, 29))):
        made.harness.load(made.series, part(made, first, end))
    report = run(made, Mode.FULL)
    assert report.is_complete
    assert report.requests == 1
    made.check_complete()


def test_neighbouring_gaps_are_one_request(world: MakeWorld) -> None:
    """Two short gaps of one month are filled by one request."""
    made = spring(world)
    for first, end in ((date(2024, 2, 1), date(2024, 6, 4)), (date(2024, 6, 6), date(2024, 6, 12))):
        made.harness.load(made.series, part(made, first, end))
    assert run(made, Mode.FULL).requests == 1
    made.check_complete()


INTRADAY = [one for one in Timeframe if one.is_intraday]


@pytest.mark.parametrize("timeframe", Timeframe)
def test_a_weekend_is_no_gap(world: MakeWorld, timeframe: Timeframe) -> None:
    """On Saturday and Sunday, a store that was complete on Friday night requests nothing."""
    made = world(RTH, timeframe, date(2024, 6, 3), date(2024, 6, 8), now=utc(2024, 6, 7, 23))
    assert run(made, Mode.FULL).is_complete
    for hours in (12, 24, 36, 58):
        made.harness.gateway.time = utc(2024, 6, 7, 23) + timedelta(hours=hours)
        for mode in Mode:
            report = run(made, mode)
            assert (report.requests, report.unexplained) == (0, IntervalSet()), mode


@pytest.mark.parametrize(
    ("timeframe", "day"),
    [
        *((timeframe, date(2024, 7, 4)) for timeframe in INTRADAY),
        (Timeframe.M1, date(2024, 6, 19)),
        (Timeframe.H1, date(2025, 1, 9)),
    ],
)
def test_a_holiday_is_no_gap(world: MakeWorld, timeframe: Timeframe, day: date) -> None:
    """A day on which the exchange is closed is neither expected nor requested."""
    made = world(RTH, timeframe, day - timedelta(days=3), day + timedelta(days=1))
    report = made.load()
    assert report.is_complete
    made.check_complete()
    assert made.load().requests == 0
    alone = Interval(utc(day.year, day.month, day.day, 5), utc(day.year, day.month, day.day, 23))
    assert made.harness.load(made.series, alone).requests == 0


@pytest.mark.parametrize("timeframe", INTRADAY)
def test_a_half_day_ends_at_one(world: MakeWorld, timeframe: Timeframe) -> None:
    """The afternoon of a half day is no gap, and its last bar is whole."""
    made = world(RTH, timeframe, date(2024, 11, 29), date(2024, 11, 30))
    report = made.load()
    assert (report.is_complete, report.requests) == (True, 1)
    made.check_complete()
    assert made.harness.store.read(made.series)["ts"][-1].as_py() < utc(2024, 11, 29, 18)


CLOCK_CHANGES = [date(2024, 3, 11), date(2024, 11, 4)]


@pytest.mark.parametrize(
    ("timeframe", "calendar", "monday"),
    [
        (timeframe, calendar, CLOCK_CHANGES[(row + column) % 2])
        for row, timeframe in enumerate(INTRADAY)
        for column, calendar in enumerate(CALENDARS)
    ],
)
def test_the_days_around_a_clock_change_are_whole(
    world: MakeWorld, timeframe: Timeframe, calendar: str, monday: date
) -> None:
    """No bar is lost or requested twice where clocks go forward or back."""
    made = world(calendar, timeframe, monday - timedelta(days=4), monday + timedelta(days=3))
    assert made.load().is_complete
    made.check_complete()
    assert made.load().requests == 0


@pytest.mark.parametrize("timeframe", INTRADAY)
def test_a_tail_on_friday_evening_loads_friday_once(world: MakeWorld, timeframe: Timeframe) -> None:
    """After the last close of a week its bars are loaded, and the weekend needs no request."""
    made = world(RTH, timeframe, date(2024, 6, 3), date(2024, 6, 15), now=utc(2024, 6, 6, 23))
    run(made, Mode.FULL)
    made.harness.gateway.time = utc(2024, 6, 7, 21, 30)
    report = run(made, Mode.TAIL)
    assert (report.requests, report.is_complete) == (1, True)
    made.harness.check_complete(made.series, Interval(made.wanted.start, utc(2024, 6, 8, 4)))
    made.harness.gateway.time = utc(2024, 6, 9, 12)
    assert run(made, Mode.TAIL).requests == 0


@pytest.mark.parametrize(
    ("timeframe", "end"),
    [
        *((timeframe, date(2024, 12, 31)) for timeframe in Timeframe),
        (Timeframe.M1, date(2024, 1, 31)),
        (Timeframe.W1, date(2024, 1, 31)),
        (Timeframe.M5, date(2024, 2, 29)),
        (Timeframe.D1, date(2024, 2, 29)),
    ],
)
def test_a_month_end_loses_no_bar(world: MakeWorld, timeframe: Timeframe, end: date) -> None:
    """Two loads that meet at the end of a month store each bar once."""
    after = end + timedelta(days=1)
    made = world(RTH, timeframe, end - timedelta(days=20), after + timedelta(days=20))
    calendar = calendar_named(RTH)
    middle = calendar.day_starts_at(after)
    made.harness.load(made.series, Interval(middle, made.wanted.end))
    made.harness.load(made.series, Interval(made.wanted.start, middle))
    made.check_complete()
    assert made.load().requests == 0


@pytest.mark.parametrize("timeframe", Timeframe)
def test_a_leap_day_is_loaded(world: MakeWorld, timeframe: Timeframe) -> None:
    """The 29th of February is loaded alone, and with its neighbours."""
    made = world(RTH, timeframe, date(2024, 2, 26), date(2024, 3, 4))
    leap = Interval(utc(2024, 2, 29, 5), utc(2024, 3, 1, 5))
    if timeframe.is_intraday:
        assert made.harness.load(made.series, leap).requests == 1
        made.harness.check_complete(made.series, leap)
    assert made.load().is_complete
    made.check_complete()


@pytest.mark.parametrize("timeframe", INTRADAY)
def test_after_the_expiry_day_nothing_is_expected(world: MakeWorld, timeframe: Timeframe) -> None:
    """The last session is complete; nothing after the instrument's end is ever requested."""
    made = world(
        RTH,
        timeframe,
        date(2024, 6, 3),
        date(2024, 7, 6),
        keys=dense_keys(RTH, timeframe, date(2024, 5, 1), date(2024, 6, 22)),
        now=utc(2024, 7, 8),
    )
    ended = series_of(replace(made.series.instrument, end=date(2024, 6, 22)), timeframe)
    report = made.harness.load(ended, made.wanted)
    assert report.is_complete
    made.harness.check_complete(ended, Interval(made.wanted.start, utc(2024, 6, 22, 4)))
    assert made.harness.store.coverage(ended).empty == ()
    assert max(request.ends_at for request in made.harness.gateway.requests) <= utc(2024, 6, 22, 4)
    for mode in Mode:
        made.harness.gateway.time += timedelta(days=40)
        (report,) = made.harness.run(Job(ended, mode, Bounds(made.wanted.start)))
        assert (report.requests, report.is_complete) == (0, True)


@pytest.mark.parametrize("mode", [Mode.TAIL, Mode.FULL])
@pytest.mark.parametrize("timeframe", Timeframe)
def test_a_store_ninety_days_old_is_updated_without_a_gap(
    world: MakeWorld, timeframe: Timeframe, mode: Mode
) -> None:
    """After any time without a load, the tail begins at the last covered bar."""
    made = world(RTH, timeframe, date(2024, 1, 2), date(2024, 6, 29), now=utc(2024, 3, 28, 23))
    assert run(made, Mode.FULL).is_complete
    made.harness.gateway.time += timedelta(days=90)
    report = run(made, mode)
    assert report.is_complete
    made.harness.check_complete(made.series, Interval(made.wanted.start, utc(2024, 6, 22, 4)))
    covered = made.harness.store.coverage(made.series).bars
    true_bars = true_bars_of(
        dense_keys(RTH, timeframe, date(2024, 1, 2), date(2024, 6, 22)),
        timeframe,
        calendar_named(RTH),
    )
    expected = [one for one in true_bars.bars["ts"].to_pylist() if one >= made.wanted.start]
    assert all(timestamp in covered for timestamp in expected[:: max(1, len(expected) // 200)])
