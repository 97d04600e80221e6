"""Days that calendars make difficult: each loads whole, and asks for nothing that is not there."""

from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta

import pytest

from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.jobs import Bounds, Mode
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.sync.runner import Job
from tests.support.fake_gateway import dense_keys, series_of, truth_of, utc
from tests.support.loading import World

MakeWorld = Callable[..., World]
RTH = "XNYS.RTH"
INTRADAY = [one for one in Timeframe if one.is_intraday]


def by_mode(made: World, mode: Mode) -> SeriesReport:
    """Load from the world's start by a mode."""
    return made.bench.run(Job(made.series, mode, Bounds(made.wanted.start)))[0]


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("timeframe", Timeframe)
def test_a_weekend_is_no_gap(world: MakeWorld, timeframe: Timeframe, mode: Mode) -> None:
    """On Saturday and Sunday a store that was complete on Friday night asks nothing."""
    made = world(RTH, timeframe, date(2024, 6, 3), date(2024, 6, 8), now=utc(2024, 6, 7, 23))
    assert by_mode(made, Mode.FULL).is_complete
    for hours in (12, 24, 36, 58):
        made.bench.gateway.time = utc(2024, 6, 7, 23) + timedelta(hours=hours)
        report = by_mode(made, mode)
        assert (report.requests, report.unexplained) == (0, IntervalSet())


@pytest.mark.parametrize("timeframe", INTRADAY)
@pytest.mark.parametrize("day", [date(2024, 7, 4), date(2024, 6, 19), date(2025, 1, 9)])
def test_a_holiday_is_no_gap(world: MakeWorld, timeframe: Timeframe, day: date) -> None:
    """A day on which the exchange is closed is neither expected nor asked for."""
    made = world(RTH, timeframe, day - timedelta(days=3), day + timedelta(days=1))
    report = made.load()
    assert report.is_complete
    made.check_complete()
    assert made.load().requests == 0
    alone = Interval(utc(day.year, day.month, day.day, 5), utc(day.year, day.month, day.day, 23))
    assert made.bench.load(made.series, alone).requests == 0


@pytest.mark.parametrize("timeframe", INTRADAY)
def test_a_half_day_ends_at_one(world: MakeWorld, timeframe: Timeframe) -> None:
    """The afternoon of a half day is no gap, and its last bar is whole."""
    made = world(RTH, timeframe, date(2024, 11, 29), date(2024, 11, 30))
    report = made.load()
    assert (report.is_complete, report.requests) == (True, 1)
    made.check_complete()
    assert made.bench.store.read(made.series)["ts"][-1].as_py() < utc(2024, 11, 29, 18)


@pytest.mark.parametrize("timeframe", INTRADAY)
@pytest.mark.parametrize("calendar", [RTH, "XNYS.ETH", "FX"])
@pytest.mark.parametrize("monday", [date(2024, 3, 11), date(2024, 11, 4)])
def test_the_days_around_a_clock_change_are_whole(
    world: MakeWorld, timeframe: Timeframe, calendar: str, monday: date
) -> None:
    """No bar is lost or asked twice where the clocks go forward or back."""
    made = world(calendar, timeframe, monday - timedelta(days=4), monday + timedelta(days=3))
    assert made.load().is_complete
    made.check_complete()
    assert made.load().requests == 0


@pytest.mark.parametrize("timeframe", INTRADAY)
def test_a_tail_on_friday_evening_brings_friday(world: MakeWorld, timeframe: Timeframe) -> None:
    """After the close of a week's last session its bars come, once, and the weekend waits."""
    made = world(RTH, timeframe, date(2024, 6, 3), date(2024, 6, 15), now=utc(2024, 6, 6, 23))
    by_mode(made, Mode.FULL)
    made.bench.gateway.time = utc(2024, 6, 7, 21, 30)
    report = by_mode(made, Mode.TAIL)
    assert (report.requests, report.is_complete) == (1, True)
    made.bench.check_complete(made.series, Interval(made.wanted.start, utc(2024, 6, 8, 4)))
    made.bench.gateway.time = utc(2024, 6, 9, 12)
    assert by_mode(made, Mode.TAIL).requests == 0


@pytest.mark.parametrize("timeframe", Timeframe)
@pytest.mark.parametrize("end", [date(2024, 1, 31), date(2024, 2, 29), date(2024, 12, 31)])
def test_a_month_end_loses_no_bar(world: MakeWorld, timeframe: Timeframe, end: date) -> None:
    """Month by month, in two loads that meet at the month's end, all is there, once."""
    after = end + timedelta(days=1)
    made = world(RTH, timeframe, end - timedelta(days=20), after + timedelta(days=20))
    calendar = calendar_named(RTH)
    middle = calendar.day_starts_at(after)
    made.bench.load(made.series, Interval(middle, made.wanted.end))
    made.bench.load(made.series, Interval(made.wanted.start, middle))
    made.check_complete()
    assert made.load().requests == 0


@pytest.mark.parametrize("timeframe", Timeframe)
def test_a_leap_day_is_a_day_like_others(world: MakeWorld, timeframe: Timeframe) -> None:
    """The 29th of February is loaded alone, and with its neighbours."""
    made = world(RTH, timeframe, date(2024, 2, 26), date(2024, 3, 4))
    leap = Interval(utc(2024, 2, 29, 5), utc(2024, 3, 1, 5))
    if timeframe.is_intraday:
        assert made.bench.load(made.series, leap).requests == 1
        made.bench.check_complete(made.series, leap)
    assert made.load().is_complete
    made.check_complete()


@pytest.mark.parametrize("timeframe", INTRADAY)
def test_after_the_expiry_day_nothing_is_expected(world: MakeWorld, timeframe: Timeframe) -> None:
    """The last session comes whole; nothing after the instrument's end is asked for, ever."""
    made = world(
        RTH,
        timeframe,
        date(2024, 6, 3),
        date(2024, 7, 6),
        keys=dense_keys(RTH, timeframe, date(2024, 5, 1), date(2024, 6, 22)),
        now=utc(2024, 7, 8),
    )
    ended = series_of(replace(made.series.instrument, end=date(2024, 6, 22)), timeframe)
    report = made.bench.load(ended, made.wanted)
    assert report.is_complete
    made.bench.check_complete(ended, Interval(made.wanted.start, utc(2024, 6, 22, 4)))
    assert made.bench.store.coverage(ended).empty == ()
    assert max(request.ends_at for request in made.bench.gateway.asked) <= utc(2024, 6, 22, 4)
    for mode in Mode:
        made.bench.gateway.time += timedelta(days=40)
        (report,) = made.bench.run(Job(ended, mode, Bounds(made.wanted.start)))
        assert (report.requests, report.is_complete) == (0, True)


@pytest.mark.parametrize("mode", [Mode.TAIL, Mode.FULL])
@pytest.mark.parametrize("timeframe", Timeframe)
def test_a_cache_ninety_days_old_is_brought_up_without_a_hole(
    world: MakeWorld, timeframe: Timeframe, mode: Mode
) -> None:
    """However long nothing was loaded, the tail begins at the last covered bar."""
    made = world(RTH, timeframe, date(2024, 1, 2), date(2024, 6, 29), now=utc(2024, 3, 28, 23))
    assert by_mode(made, Mode.FULL).is_complete
    made.bench.gateway.time += timedelta(days=90)
    report = by_mode(made, mode)
    assert report.is_complete
    made.bench.check_complete(made.series, Interval(made.wanted.start, utc(2024, 6, 22, 4)))
    covered = made.bench.store.coverage(made.series).bars
    truth = truth_of(
        dense_keys(RTH, timeframe, date(2024, 1, 2), date(2024, 6, 22)),
        timeframe,
        calendar_named(RTH),
    )
    interval = [one for one in truth.bars["ts"].to_pylist() if one >= made.wanted.start]
    assert all(timestamp in covered for timestamp in interval[:: max(1, len(interval) // 200)])
