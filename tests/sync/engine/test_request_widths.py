"""Requests that time out or are refused because they are too wide are made narrower."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.chunks import BY_THE_YEAR, narrower
from ktrdr_pipelines.domain.planning.jobs import Mode
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import (
    GatewayError,
    GatewayTimeoutError,
    RequestRejectedError,
    RequestTooLongError,
)
from ktrdr_pipelines.sync.engine.request_widths import Widths
from ktrdr_pipelines.sync.runner import Job
from tests.support.fake_gateway import start_of, utc
from tests.support.loading import NotedTexts, World
from tests.support.width_memory import Memory

MakeWorld = Callable[..., World]
RTH = "XNYS.RTH"


def reaches_over_days(request: BarRequest, bars: pa.Table) -> int:
    """Count the days from the start of a request to its last bar."""
    assert request.ends_at is not None
    last = bars["ts"][-1].as_py() if bars.num_rows else request.ends_at
    days: int = (last - start_of(request, request.ends_at)).days
    return days


def times_out_beyond(days: int) -> Callable[[BarRequest, pa.Table], pa.Table | GatewayError]:
    """Return a mutation that times out where the bars reach over more than some days."""

    def mutate(request: BarRequest, bars: pa.Table) -> pa.Table | GatewayError:
        is_wide = reaches_over_days(request, bars) > days
        return GatewayTimeoutError("bars", reason="no answer in 30 s") if is_wide else bars

    return mutate


@pytest.mark.parametrize("mode", [Mode.FULL, Mode.TAIL])
@pytest.mark.parametrize(
    ("timeframe", "days", "most"),
    [(Timeframe.H1, 10, 40), (Timeframe.M5, 4, 75), (Timeframe.D1, 70, 15), (Timeframe.W1, 180, 9)],
)
def test_a_width_that_works_is_found_and_kept(
    world: MakeWorld, mode: Mode, timeframe: Timeframe, days: int, most: int
) -> None:
    """Each timeout halves the width once; a width that works is used for the rest of the run."""
    made = world(RTH, timeframe, date(2024, 1, 2), date(2024, 6, 29))
    made.harness.gateway.mutate = times_out_beyond(days)
    made.harness.gateway.concurrency = 1
    (report,) = made.harness.run(Job(made.series, mode, wanted=IntervalSet([made.wanted])))
    assert report.is_complete, report.summary
    assert report.failures == ()
    made.check_complete()
    unmutated = made.harness.gateway.unmutated
    wide = [
        request
        for request in made.harness.gateway.requests
        if reaches_over_days(request, unmutated(request)) > days
    ]
    assert len(wide) <= 6
    assert report.requests <= most
    assert made.load().requests == 0


def test_concurrent_timeouts_narrow_the_width_once(world: MakeWorld) -> None:
    """Six timeouts of the same width halve it once."""
    made = world(RTH, Timeframe.H1, date(2023, 1, 3), date(2024, 6, 29))
    made.harness.gateway.mutate = times_out_beyond(15)
    report = made.load()
    assert report.is_complete
    assert report.requests <= 6 + 38 + 16
    made.check_complete()


def test_one_session_that_always_times_out_stays_a_failure(world: MakeWorld) -> None:
    """The rest of the chunk is loaded; the failing session alone is left, with an attempt."""
    made = world(RTH, Timeframe.H1, date(2024, 6, 3), date(2024, 6, 29))
    failing = utc(2024, 6, 12, 14), utc(2024, 6, 12, 15)

    def mutate(request: BarRequest, bars: pa.Table) -> pa.Table | GatewayError:
        assert request.ends_at is not None
        start = start_of(request, request.ends_at)
        overlaps = start < failing[1] and failing[0] < request.ends_at
        return GatewayTimeoutError("bars") if overlaps else bars

    made.harness.gateway.mutate = mutate
    report = made.load()
    assert [part.start.day for part in report.unexplained] == [12]
    assert report.unexplained.length.total_seconds() == 6.5 * 3600
    assert len(report.failures) == 1
    made.check()
    made.harness.gateway.mutate = None
    assert made.load().requests == 1
    made.check_complete()


@pytest.mark.parametrize("timeframe", Timeframe)
def test_a_narrower_width_is_always_less(timeframe: Timeframe) -> None:
    """Narrowing any width ends at one session."""
    width: int | None = 300
    seen = []
    while width is not None:
        seen.append(width)
        width = narrower(timeframe, width)
    assert seen == sorted(seen, reverse=True)
    assert len(set(seen)) == len(seen) <= 9
    assert seen[-1] == 1


def test_the_wait_of_an_identical_request_is_reported(world: MakeWorld) -> None:
    """IB's rule of identical requests delays a retry, and the reason is reported."""
    made = world(RTH, Timeframe.M1, date(2024, 6, 12), date(2024, 6, 13))
    noted = NotedTexts()
    failing = iter([True])
    made.harness.gateway.mutate = lambda _, bars: (
        GatewayTimeoutError("bars") if next(failing, False) else bars
    )
    manager = replace(made.harness.manager(), progress=noted)
    asyncio.run(manager.run([Job(made.series, wanted=IntervalSet([made.wanted]))]))
    assert any("IB accepts identical requests only every 15 s" in text for text in noted.texts)


def quarter(number: int) -> Interval:
    """Return one quarter of 2023, as timestamps of hours."""
    first, end = utc(2023, 1, 3, 5), utc(2023, 4, 3, 4)
    days = timedelta(days=91 * (number - 1))
    return Interval(first + days, end + days)


def too_wide(made: World, number: int, days: int) -> int:
    """Load a quarter of a year, and count the requests that were too wide for a response."""
    request_count, unmutated = made.harness.request_count, made.harness.gateway.unmutated
    assert made.harness.load(made.series, quarter(number)).is_complete
    new = made.harness.gateway.requests[request_count:]
    return sum(reaches_over_days(one, unmutated(one)) > days for one in new)


def test_a_width_that_two_runs_learned_holds_for_a_day(world: MakeWorld) -> None:
    """One timeout may be chance; after two runs no request is too wide until a day later."""
    made = world(RTH, Timeframe.H1, date(2023, 1, 3), date(2024, 6, 29))
    made.harness.gateway.mutate = times_out_beyond(15)
    made.harness.gateway.concurrency = 1
    found = [too_wide(made, number, 15) > 0 for number in (1, 2, 3, 4)]
    assert found == [True, True, False, False]
    made.harness.gateway.time += timedelta(days=1, minutes=1)
    assert [too_wide(made, number, 15) > 0 for number in (5, 6)] == [True, False]


def test_a_single_timeout_is_forgotten_after_a_response_to_a_wide_request(
    world: MakeWorld,
) -> None:
    """Runs with one timeout each, and one without between them, narrow nothing."""
    made = world(RTH, Timeframe.H1, date(2023, 1, 3), date(2024, 6, 29))
    made.harness.gateway.concurrency = 1
    for number in (1, 3):
        failing = iter([True])
        made.harness.gateway.mutate = lambda _, bars, failing=failing: (
            GatewayTimeoutError("bars") if next(failing, False) else bars
        )
        made.harness.load(made.series, quarter(number))
        assert made.harness.ledger.widths.of("fake:1")[Timeframe.H1].runs == 1
        made.harness.gateway.mutate = None
        made.harness.load(made.series, quarter(number + 1))
        assert made.harness.ledger.widths.of("fake:1") == {}
    assert made.harness.load(made.series, quarter(5)).requests == 3


def test_timeouts_of_every_width_narrow_nothing(world: MakeWorld) -> None:
    """A width is too wide only if a narrower request got a response."""
    made = world(RTH, Timeframe.H1, *(date(2023, 1, 3), date(2023, 6, 29)))
    made.harness.gateway.mutate = lambda *_: GatewayTimeoutError("bars")
    assert not made.load().is_complete
    assert made.harness.ledger.widths.of("fake:1") == {}


def refused_beyond(sessions: int) -> Callable[[BarRequest, pa.Table], pa.Table | GatewayError]:
    """Refuse requests for more than some sessions, as IB's conservative table does."""

    def mutate(request: BarRequest, bars: pa.Table) -> pa.Table | GatewayError:
        count, unit = request.duration.split()
        is_long = unit == "Y" or (unit == "D" and int(count) > sessions)
        return (
            RequestTooLongError("bars", reason="162 Time length exceed max.") if is_long else bars
        )

    return mutate


def test_a_refusal_for_length_narrows_and_is_remembered(world: MakeWorld) -> None:
    """It takes one refused request in the first run, none in the next, and one after a month."""
    made = world(RTH, Timeframe.H1, date(2023, 1, 3), date(2024, 6, 29))
    made.harness.gateway.mutate = refused_beyond(5)
    made.harness.gateway.concurrency = 1

    def refused(number: int) -> int:
        request_count = made.harness.request_count
        assert made.harness.load(made.series, quarter(number)).is_complete
        new = made.harness.gateway.requests[request_count:]
        return sum(int(one.duration.split()[0]) > 5 for one in new)

    assert [refused(number) > 0 for number in (1, 2, 3)] == [True, False, False]
    made.harness.gateway.time += timedelta(days=31)
    assert [refused(number) > 0 for number in (4, 5)] == [True, False]


def test_concurrent_refusals_narrow_the_width_once(world: MakeWorld) -> None:
    """Six refusals of one width are one finding."""
    made = world(RTH, Timeframe.H1, date(2023, 1, 3), date(2024, 6, 29))
    made.harness.gateway.mutate = refused_beyond(11)
    report = made.load()
    assert report.is_complete
    assert made.harness.ledger.widths.of("fake:1")[Timeframe.H1].most >= 10
    made.check_complete()


def test_requests_sent_before_a_narrowing_do_not_narrow_further(world: MakeWorld) -> None:
    """Requests sent before the first refusal arrived are wider than the width known since."""
    made = world(RTH, Timeframe.H1, date(2024, 1, 2), date(2024, 3, 1))
    widths = Widths(made.harness.ledger, "fake:1", lambda: datetime(2024, 6, 1, tzinfo=UTC))
    for sessions in (22, 21, 15, 22):
        assert widths.narrow(Timeframe.H1, sessions, refused=f"{sessions} D")
        assert widths.most(Timeframe.H1) == 11
        assert made.harness.ledger.widths.of("fake:1")[Timeframe.H1].most == 11
    assert widths.narrow(Timeframe.H1, 11, refused="11 D")
    assert widths.most(Timeframe.H1) == 5


def wanted_days(first: date, end: date) -> Interval:
    """Return the timestamps of daily bars between two session dates."""
    return interval_between(calendar_named(RTH), Timeframe.D1, first, end)


def only_by_the_year(request: BarRequest, bars: pa.Table) -> pa.Table | GatewayError:
    """Refuse more than two counted sessions, whatever the bar size; allow a month and a year."""
    count, unit = request.duration.split()
    is_long = unit == "D" and int(count) > 2
    return RequestTooLongError("bars", reason="162 Time length exceed max.") if is_long else bars


def test_days_that_may_not_be_counted_are_requested_by_the_year(world: MakeWorld) -> None:
    """A refused month of days does not lead to requests of two days, in later runs either."""
    made = world(RTH, Timeframe.D1, date(2010, 1, 4), date(2024, 6, 29))
    made.harness.gateway.mutate = only_by_the_year
    first = date(2014, 5, 5)
    assert made.harness.load(made.series, wanted_days(date(2014, 4, 1), first)).is_complete
    request_count = made.harness.request_count
    assert request_count <= 4
    assert made.harness.load(made.series, wanted_days(first, date(2024, 4, 1))).is_complete
    new = made.harness.gateway.requests[request_count:]
    assert len(new) <= 15, "ten years, and seams where this gateway's year has 365 days"
    assert not any(one.duration.endswith("D") and int(one.duration.split()[0]) > 2 for one in new)


@pytest.mark.parametrize(
    ("timeframe", "unit", "counts", "whole", "fewer"),
    [(Timeframe.D1, "D", (30, 20, 40), 252, 60), (Timeframe.W1, "W", (3, 2, 4), 52, 26)],
)
def test_concurrent_refusals_of_days_are_one_finding(
    world: MakeWorld,
    timeframe: Timeframe,
    unit: str,
    counts: tuple[int, ...],
    whole: int,
    fewer: int,
) -> None:
    """The finding holds in any order of refusals; a refused year narrows it to counted days."""
    made = world(RTH, Timeframe.D1, date(2024, 1, 2), date(2024, 3, 1))
    widths = Widths(made.harness.ledger, "fake:1", lambda: datetime(2024, 6, 1, tzinfo=UTC))
    for count in counts:
        assert widths.narrow(timeframe, count, refused=f"{count} {unit}")
        assert widths.most(timeframe) == BY_THE_YEAR
    assert widths.narrow(timeframe, whole, refused="1 Y")
    assert widths.most(timeframe) == fewer
    assert widths.narrow(timeframe, fewer, refused=f"{fewer} {unit}")
    assert widths.most(timeframe) == fewer // 2


def test_weeks_that_may_not_be_counted_are_requested_by_the_year(world: MakeWorld) -> None:
    """A refused month of weeks does not make every week of ten years a request."""
    made = world(RTH, Timeframe.W1, date(2010, 1, 4), date(2024, 6, 29))
    made.harness.gateway.mutate = lambda request, bars: (
        RequestTooLongError("bars", reason="162 Time length exceed max.")
        if request.duration.endswith("W") and request.duration != "1 W"
        else bars
    )
    newest = interval_between(calendar_named(RTH), Timeframe.W1, date(2024, 3, 4), date(2024, 4, 1))
    assert made.harness.load(made.series, newest).is_complete
    request_count = made.harness.request_count
    assert request_count <= 4
    older = interval_between(calendar_named(RTH), Timeframe.W1, date(2014, 3, 3), date(2024, 4, 1))
    assert made.harness.load(made.series, older).is_complete
    new = made.harness.gateway.requests[request_count:]
    assert len(new) <= 15
    assert not any(one.duration.endswith("W") and one.duration != "1 W" for one in new)


def test_another_refusal_narrows_nothing(world: MakeWorld) -> None:
    """An invalid what_to_show is refused at every width."""
    made = world(RTH, Timeframe.H1, date(2023, 1, 3), date(2023, 3, 1))
    made.harness.gateway.mutate = lambda *_: RequestRejectedError("bars", reason="162 No such data")
    assert not made.load().is_complete
    assert made.harness.ledger.widths.of("fake:1") == {}


def truncated(days: int) -> Callable[[BarRequest, pa.Table], pa.Table | GatewayError]:
    """Return a mutation that leaves out all but the newest days of a response of minutes."""

    def mutate(request: BarRequest, bars: pa.Table) -> pa.Table | GatewayError:
        if not request.series.timeframe.is_intraday or not bars.num_rows:
            return bars
        first = pc.max(bars["session_date"]).as_py() - timedelta(days=days)
        return bars.filter(pc.greater(bars["session_date"], pa.scalar(first)))

    return mutate


def rejects(day: date) -> Callable[[BarRequest, pa.Table], pa.Table | GatewayError]:
    """Return a mutation that rejects every request that has bars of a day."""

    def mutate(request: BarRequest, bars: pa.Table) -> pa.Table | GatewayError:
        has_day = pc.any(pc.equal(bars["session_date"], pa.scalar(day))).as_py()
        return RequestRejectedError("bars", reason="rejected") if has_day else bars

    return mutate


def refuses_beyond(days: int) -> Callable[[BarRequest, pa.Table], pa.Table | GatewayError]:
    """Return a mutation that refuses durations of more than some days."""

    def mutate(request: BarRequest, bars: pa.Table) -> pa.Table | GatewayError:
        count, unit = request.duration.split()
        is_long = unit == "D" and int(count) > days
        return RequestTooLongError("bars", reason="too long") if is_long else bars

    return mutate


@pytest.mark.parametrize(
    ("mutation", "least", "widest", "most_requests"),
    [
        (None, 5, 200, 60),
        (times_out_beyond(5), 1, 2, 110),
        (truncated(3), 1, 2, 130),
        (refuses_beyond(4), 1, 4, 100),
    ],
)
def test_a_backfill_gets_wider_as_far_as_it_works(
    world: MakeWorld,
    mutation: Callable[[BarRequest, pa.Table], pa.Table | GatewayError] | None,
    least: int,
    widest: int,
    most_requests: int,
) -> None:
    """All that is wanted is loaded, whatever wide requests come to; a tail is as wide as before."""
    made = world(RTH, Timeframe.M1, date(2024, 1, 2), date(2024, 6, 29))
    made.harness.gateway.mutate = mutation
    memory = Memory()
    manager = replace(made.harness.manager(), widths=memory)
    (report,) = asyncio.run(manager.run([Job(made.series, wanted=IntervalSet([made.wanted]))]))
    assert report.is_complete, report.summary
    assert report.failures == ()
    made.check_complete()
    assert least <= memory.width <= widest
    assert report.requests <= most_requests
    made.harness.gateway.mutate = None
    assert made.load().requests == 0


def test_one_session_that_is_rejected_does_not_take_its_neighbours_along(
    world: MakeWorld,
) -> None:
    """After a refusal of a wide request, the load goes on with the safe width."""
    made = world(RTH, Timeframe.M1, date(2024, 1, 2), date(2024, 6, 29))
    made.harness.gateway.mutate = rejects(date(2024, 2, 6))
    manager = replace(made.harness.manager(), widths=Memory())
    (report,) = asyncio.run(manager.run([Job(made.series, wanted=IntervalSet([made.wanted]))]))
    (left,) = report.unexplained
    assert left.start.date() == date(2024, 2, 6)
    assert left.length <= timedelta(hours=6.5)
    made.check()


def test_a_tail_keeps_the_safe_width(world: MakeWorld) -> None:
    """Nothing is learned from it either."""
    made = world(RTH, Timeframe.M1, date(2024, 6, 3), date(2024, 6, 29))
    memory = Memory()
    manager = replace(made.harness.manager(), widths=memory)
    job = Job(made.series, Mode.TAIL, wanted=IntervalSet([made.wanted]))
    (report,) = asyncio.run(manager.run([job]))
    assert report.is_complete
    assert memory.texts == {}
    assert {one.duration for one in made.harness.gateway.requests} <= {"1 D", "2 D", "1 M"}
