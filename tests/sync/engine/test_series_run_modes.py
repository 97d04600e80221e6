"""Tail, backfill and full: what each asks for, and that a complete store asks for nothing."""

import asyncio
from collections.abc import Callable
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
from tests.support.fake_gateway import utc
from tests.support.loading import World

MakeWorld = Callable[..., World]
RTH = "XNYS.RTH"
SPRING = date(2024, 2, 1), date(2024, 6, 29)
NOW = utc(2024, 6, 28, 23)


def spring(world: MakeWorld, timeframe: Timeframe = Timeframe.H1) -> World:
    """Make a world of five months that have just ended."""
    return world(RTH, timeframe, *SPRING, now=NOW)


def part(made: World, first: date, end: date) -> Interval:
    """Give the interval between two dates, at midnight in New York in summer."""
    return Interval(
        utc(first.year, first.month, first.day, 4), utc(end.year, end.month, end.day, 4)
    )


def run(made: World, mode: Mode, requested_by: RequestedBy = RequestedBy.PERSON) -> SeriesReport:
    """Load by a mode, from the start of the world."""
    bounds = Bounds(start=made.wanted.start)
    return made.bench.run(Job(made.series, mode, bounds, requested_by=requested_by))[0]


def joined_gaps(made: World) -> IntervalSet:
    """Give what is expected and not covered before the newest covered moment."""
    covered = made.bench.store.coverage(made.series).bars
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
    """With nothing covered yet each mode means everything from the start."""
    made = spring(world, timeframe)
    assert run(made, mode).is_complete
    made.check_complete()


@pytest.mark.parametrize("timeframe", [Timeframe.M5, Timeframe.H1, Timeframe.D1, Timeframe.W1])
def test_a_complete_store_asks_nothing_in_any_mode(world: MakeWorld, timeframe: Timeframe) -> None:
    """A second run makes no request, and does not even connect."""
    made = spring(world, timeframe)
    run(made, Mode.FULL)
    for mode in Mode:
        assert run(made, mode).requests == 0
    assert made.bench.gateway.opened == 1


def test_a_tail_of_an_old_cache_leaves_no_hole(world: MakeWorld) -> None:
    """A tail goes on from the last covered bar, ninety days back as well as one."""
    made = spring(world)
    made.bench.load(made.series, part(made, date(2024, 2, 1), date(2024, 3, 29)))
    report = run(made, Mode.TAIL)
    assert report.is_complete
    assert report.requests == 3
    made.check_complete()


def test_a_tail_on_friday_evening_gives_the_rest_of_friday(world: MakeWorld) -> None:
    """What was loaded at noon is completed after the close."""
    made = spring(world, Timeframe.M1)
    made.bench.gateway.time = utc(2024, 6, 28, 16, 0, 30)
    made.bench.load(made.series, part(made, date(2024, 6, 27), date(2024, 6, 29)))
    assert made.bench.store.rows(made.series) == 390 + 150
    made.bench.gateway.time = utc(2024, 6, 28, 22)
    report = run(made, Mode.TAIL)
    assert report.is_complete
    assert report.added == 390 - 150
    assert report.requests == 1


def test_a_tail_asks_oldest_first_so_that_a_stop_leaves_no_hole(world: MakeWorld) -> None:
    """A broken tail is gone on with by the next one: nothing newer stands behind a hole."""
    made = spring(world, Timeframe.M5)
    made.bench.load(made.series, part(made, date(2024, 2, 1), date(2024, 2, 3)))

    async def stop(_: BarRequest) -> None:
        if made.bench.asked == 8:
            await made.bench.cancel()

    made.bench.gateway.before_answer = stop
    with pytest.raises(asyncio.CancelledError):
        run(made, Mode.TAIL)
    made.check()
    assert not joined_gaps(made)
    made.bench.gateway.before_answer = None
    assert run(made, Mode.TAIL).is_complete
    made.check_complete()


def test_a_tail_comes_back_to_what_it_could_not_have(world: MakeWorld) -> None:
    """A failed chunk stays unexplained while it is deferred, and is asked for when it is due."""
    made = spring(world, Timeframe.M5)
    made.bench.load(made.series, part(made, date(2024, 2, 1), date(2024, 2, 3)))
    count = iter(range(100))
    made.bench.gateway.twist = lambda _, bars: (
        RequestRejectedError("bars") if next(count) == 3 else bars
    )
    assert not run(made, Mode.TAIL, RequestedBy.SENSOR).is_complete
    report = run(made, Mode.TAIL, RequestedBy.SENSOR)
    assert not report.is_complete
    assert report.requests == 0
    made.bench.gateway.time += timedelta(minutes=6)
    report = run(made, Mode.TAIL, RequestedBy.SENSOR)
    assert report.is_complete
    assert report.requests == 1
    made.check_complete()


def test_a_backfill_ends_at_the_oldest_covered_bar(world: MakeWorld) -> None:
    """A backfill asks for what lies before what is stored, and for nothing after it."""
    made = spring(world)
    made.bench.load(made.series, part(made, date(2024, 5, 1), date(2024, 5, 20)))
    run(made, Mode.BACKFILL)
    covered = made.bench.store.coverage(made.series).bars.bounds
    assert covered is not None
    assert covered.start <= made.wanted.start + timedelta(days=1)
    assert covered.end == utc(2024, 5, 20, 13, 30)
    made.check()


def test_full_fills_holes_inside(world: MakeWorld) -> None:
    """Full finds what is missing between covered intervals, and asks for that alone."""
    made = spring(world)
    for first, end in ((date(2024, 2, 1), date(2024, 3, 8)), (date(2024, 4, 2), date(2024, 6, 29))):
        made.bench.load(made.series, part(made, first, end))
    report = run(made, Mode.FULL)
    assert report.is_complete
    assert report.requests == 1
    made.check_complete()


def test_neighbouring_gaps_are_one_request(world: MakeWorld) -> None:
    """Two short holes of one month are served by one request."""
    made = spring(world)
    for first, end in ((date(2024, 2, 1), date(2024, 6, 4)), (date(2024, 6, 6), date(2024, 6, 12))):
        made.bench.load(made.series, part(made, first, end))
    assert run(made, Mode.FULL).requests == 1
    made.check_complete()
