"""Tails whose end is empty: the same bars as with an end, and nothing that is not proved."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta

import pyarrow.compute as pc
import pytest

from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.planning.jobs import Bounds, Mode
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.planning.responses import (
    BarRequest,
    NoData,
    OnSent,
    Response,
    ignore_sent,
)
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.sync.runner import Job
from tests.support.fake_gateway import FakeGateway, utc
from tests.support.loading import Bench, World

MakeWorld = Callable[..., World]
RTH = "XNYS.RTH"
JUNE = date(2024, 5, 1), date(2024, 7, 13)
OPEN = utc(2024, 6, 27, 16, 0, 30)
"""A Thursday at noon in New York."""
EVENING = utc(2024, 6, 27, 23)
SUNDAY = utc(2024, 6, 30, 18)


@dataclass
class SlowGateway(FakeGateway):
    """A gateway that responds to requests of a tail only some time after they were sent."""

    takes: timedelta = timedelta(seconds=7)

    async def bars(self, request: BarRequest, *, sent: OnSent = ignore_sent) -> Response | NoData:
        answer = await super().bars(request, sent=sent)
        self.time += self.takes if request.tail else timedelta(0)
        return answer


def slow(made: World, takes: timedelta = timedelta(seconds=7)) -> World:
    """Return the world with a slow gateway."""
    old = made.bench.gateway
    gateway = SlowGateway(old.true_bars, old.time, takes=takes)
    return World(Bench(made.bench.layout, gateway), made.series, made.wanted)


def tail_after(made: World, then: datetime, now: datetime) -> SeriesReport:
    """Load all up to a moment, then a tail at a later one; the requests are those of the tail."""
    made.bench.gateway.time = then
    run(made, Mode.FULL)
    made.bench.gateway.time = now
    made.bench.gateway.requests.clear()
    return run(made, Mode.TAIL)


def run(made: World, mode: Mode) -> SeriesReport:
    """Load by a mode, from the start of the world."""
    return made.bench.run(Job(made.series, mode, Bounds(start=made.wanted.start)))[0]


def ends(made: World) -> list[datetime | None]:
    """Return the requested ends."""
    return [request.ends_at for request in made.bench.gateway.requests]


@pytest.mark.parametrize("timeframe", [Timeframe.M1, Timeframe.M5, Timeframe.M30, Timeframe.H1])
def test_a_tail_in_an_open_session_is_one_request_with_an_empty_end(
    world: MakeWorld, timeframe: Timeframe
) -> None:
    """Bars up to now are stored, the unfinished one is left out, and nothing is requested twice."""
    made = slow(world(RTH, timeframe, *JUNE))
    report = tail_after(made, OPEN - timedelta(hours=2), OPEN)
    assert ends(made) == [None]
    assert report.requests == 1
    began = 1 if timeframe is Timeframe.H1 else 0  # the half hour before ten is no whole bar then
    assert report.added == 7200 // timeframe.seconds + began
    made.check()


@pytest.mark.parametrize("now", [EVENING, utc(2024, 6, 28, 11), SUNDAY])
@pytest.mark.parametrize("timeframe", [*Timeframe])
def test_a_tail_at_night_or_on_a_sunday_brings_the_same_with_an_empty_end(
    world: MakeWorld, timeframe: Timeframe, now: datetime
) -> None:
    """Between now and the last session nothing is expected, so now is as good as its close."""
    made = slow(world(RTH, timeframe, *JUNE))
    report = tail_after(made, utc(2024, 6, 24, 16, 0, 30), now)
    assert all(end is None for end in ends(made)[-1:])
    assert report.is_complete
    if timeframe is not Timeframe.W1 or now is SUNDAY:
        assert report.added
    made.check()


@pytest.mark.parametrize("mode", [Mode.FULL, Mode.BACKFILL])
def test_other_loads_keep_their_ends(world: MakeWorld, mode: Mode) -> None:
    """A load of history sends ends, also where it reaches to now."""
    made = world(RTH, Timeframe.M5, *JUNE, now=OPEN)
    assert run(made, mode).requests
    assert None not in ends(made)


def test_only_the_newest_chunk_of_a_tail_ends_now(world: MakeWorld) -> None:
    """Older ones, behind which bars are expected, are requested with their ends."""
    made = slow(world(RTH, Timeframe.M1, *JUNE))
    report = tail_after(made, utc(2024, 6, 24, 16, 0, 30), EVENING)
    assert report.is_complete
    assert ends(made)[-1] is None
    assert len(ends(made)) > 1
    assert None not in ends(made)[:-1]


def test_a_held_day_behind_the_chunk_keeps_its_end(world: MakeWorld) -> None:
    """Daily bars of yesterday, while today's session is open, are requested with their end."""
    made = world(RTH, Timeframe.D1, *JUNE)
    tail_after(made, utc(2024, 6, 25, 23), OPEN)
    assert ends(made) == [utc(2024, 6, 27, 3, 59, 59)]
    made.check()


@pytest.mark.parametrize("hours", [0.2, 30])
def test_a_request_that_goes_out_late_has_an_end(world: MakeWorld, hours: float) -> None:
    """Minutes after its planning, or hours, now would mean less than is wanted: an end is sent."""
    made = world(RTH, Timeframe.M1, *JUNE)
    made.bench.gateway.time = OPEN - timedelta(hours=2)
    run(made, Mode.FULL)
    made.bench.gateway.time = OPEN
    made.bench.gateway.requests.clear()
    waits = iter([timedelta(hours=hours)])

    async def wait(_: BarRequest) -> None:
        made.bench.gateway.time += next(waits, timedelta(0))

    made.bench.gateway.before_response = wait
    report = run(made, Mode.TAIL)
    assert ends(made)[0] is None
    assert ends(made)[1] is not None
    assert report.is_complete
    made.check()
    sent = made.bench.ledger.requests.newest(len(ends(made)) - 1)
    assert [one.asked_end for one in reversed(sent)] == ends(made)[1:]


def test_a_response_after_the_next_open_is_not_taken(world: MakeWorld) -> None:
    """The gateway may have counted its sessions from there: the same is requested with its end."""
    made = slow(world(RTH, Timeframe.H1, *JUNE), timedelta(minutes=20))
    report = tail_after(made, utc(2024, 6, 26, 23), utc(2024, 6, 28, 13, 15))
    assert ends(made)[:2] == [None, utc(2024, 6, 28, 13, 15)]
    assert not report.unexplained
    made.check()


@pytest.mark.parametrize("timeframe", [Timeframe.M5, Timeframe.D1])
def test_a_session_that_ends_while_the_gateway_responds_is_not_final(
    world: MakeWorld, timeframe: Timeframe
) -> None:
    """Sent a minute before the close counts as final, answered a minute after it."""
    final = utc(2024, 6, 27, 20, 30)
    made = slow(world(RTH, timeframe, *JUNE), timedelta(minutes=2))
    made.bench.gateway.time = utc(2024, 6, 26, 23)
    run(made, Mode.FULL)
    made.bench.gateway.time = final - timedelta(minutes=1)
    made.bench.gateway.requests.clear()
    run(made, Mode.TAIL)
    covered = made.bench.store.coverage(made.series).bars.bounds
    assert covered is not None
    if timeframe is Timeframe.D1:
        assert not made.bench.gateway.requests
    else:
        assert covered.end < utc(2024, 6, 27, 20) or len(ends(made)) > 1
    made.check()


def test_no_more_is_covered_than_the_response_reaches_over(world: MakeWorld) -> None:
    """A gateway that is a quarter of an hour behind says so, and the rest stays due."""
    made = world(RTH, Timeframe.M1, *JUNE)
    reach_end = OPEN - timedelta(minutes=15, seconds=30)

    def behind(request: BarRequest, bars: object) -> Response:
        seen = made.bench.gateway.unmutated(replace(request, ends_at=reach_end))
        return Response(request, seen, Interval(OPEN - timedelta(days=1), reach_end))

    made.bench.gateway.time = OPEN - timedelta(hours=2)
    run(made, Mode.FULL)
    made.bench.gateway.time = OPEN
    made.bench.gateway.mutate = behind
    made.bench.gateway.requests.clear()
    run(made, Mode.TAIL)
    assert ends(made)[0] is None
    covered = made.bench.store.coverage(made.series).bars.bounds
    assert covered is not None
    assert covered.end <= reach_end
    made.check()
    made.bench.gateway.mutate = None
    made.bench.gateway.time += timedelta(minutes=1)
    assert run(made, Mode.TAIL).added >= 15


def test_an_empty_end_is_no_statement_about_a_closed_session(world: MakeWorld) -> None:
    """A session without bars is requested with its end, and that response alone is a statement."""
    made = world(RTH, Timeframe.M5, *JUNE)
    made.bench.gateway.time = utc(2024, 6, 26, 23)
    run(made, Mode.FULL)
    made.bench.gateway.time = EVENING
    made.bench.gateway.requests.clear()
    made.bench.gateway.mutate = lambda request, _: NoData(request, "no data")
    report = run(made, Mode.TAIL)
    assert report.unexplained
    assert ends(made) == [None, EVENING]
    assert len(made.bench.ledger.statements.of(made.series.symbol)) == 1


def test_a_quiet_open_session_is_requested_once(world: MakeWorld) -> None:
    """No trade for some minutes is no statement, and no reason to ask with an end."""
    made = slow(world(RTH, Timeframe.M1, *JUNE))
    made.bench.gateway.time = OPEN
    run(made, Mode.FULL)
    made.bench.gateway.time = OPEN + timedelta(minutes=3)
    made.bench.gateway.requests.clear()
    made.bench.gateway.mutate = lambda request, _: NoData(request, "no data")
    report = run(made, Mode.TAIL)
    assert ends(made) == [None]
    assert not report.unexplained
    assert made.bench.ledger.statements.of(made.series.symbol) == []


def test_newest_bars_that_are_held_back_stay_due(world: MakeWorld) -> None:
    """With notice 2188 the end of the response means nothing, as with an end."""
    made = world(RTH, Timeframe.M1, *JUNE)

    def held_back(request: BarRequest, bars: object) -> Response:
        seen = made.bench.gateway.unmutated(replace(request, ends_at=OPEN - timedelta(minutes=15)))
        return Response(request, seen, None, lacks_newest=True)

    made.bench.gateway.time = OPEN - timedelta(hours=2)
    run(made, Mode.FULL)
    made.bench.gateway.time = OPEN
    made.bench.gateway.mutate = held_back
    made.bench.gateway.requests.clear()
    report = run(made, Mode.TAIL)
    assert ends(made) == [None]
    assert report.added == 105
    made.check()


def test_bars_of_a_session_that_no_calendar_knows_make_the_reach_unknown(world: MakeWorld) -> None:
    """A response of an unexpected Saturday session alone has Friday requested again."""
    made = world(RTH, Timeframe.M5, *JUNE, now=SUNDAY)
    made.bench.gateway.time = utc(2024, 6, 27, 23)
    run(made, Mode.FULL)
    made.bench.gateway.time = SUNDAY
    made.bench.gateway.requests.clear()
    saturday = made.bench.gateway.unmutated(BarRequest(made.series, utc(2024, 6, 28, 21), "1 D"))
    later = pc.add(saturday["ts"], timedelta(days=1))
    moved = saturday.set_column(0, saturday.schema.field("ts"), later)

    def saturday_alone(request: BarRequest, bars: object) -> Response:
        unmutated = made.bench.gateway.unmutated(request)
        return Response(request, moved if request.ends_at is None else unmutated, None)

    made.bench.gateway.mutate = saturday_alone
    report = run(made, Mode.TAIL)
    assert len(ends(made)) == 2
    assert ends(made)[1] is not None
    assert report.is_complete
    made.check()
    assert made.bench.ledger.statements.of(made.series.symbol) == []


def test_a_tail_every_minute_makes_one_request_each(world: MakeWorld) -> None:
    """A day of tails on a clock that goes on: one request each, and every bar is there."""
    made = slow(world(RTH, Timeframe.M1, *JUNE), timedelta(seconds=1.5))
    made.bench.gateway.time = utc(2024, 6, 27, 13, 0)
    run(made, Mode.FULL)
    made.bench.gateway.requests.clear()
    for minute in range(30):
        made.bench.gateway.time = utc(2024, 6, 27, 14, minute, 10)
        run(made, Mode.TAIL)
    assert len(ends(made)) == 30
    assert set(ends(made)) == {None}
    made.check()


def test_what_would_wait_for_the_rule_of_identical_requests_has_an_end(world: MakeWorld) -> None:
    """Implausible bars are requested once more at once: with an end that is another request."""
    made = world(RTH, Timeframe.M1, *JUNE)
    made.bench.gateway.time = OPEN - timedelta(hours=2)
    run(made, Mode.FULL)
    made.bench.gateway.time = OPEN
    made.bench.gateway.requests.clear()

    def odd(request: BarRequest, bars: object) -> Response:
        seen = made.bench.gateway.unmutated(request)
        key = int(seen["ts"].cast("int64")[-5].as_py())
        return Response(request, seen, None, implausible=(key,) if request.ends_at is None else ())

    made.bench.gateway.mutate = odd
    assert run(made, Mode.TAIL).added == 120
    assert ends(made)[0] is None
    assert ends(made)[1] is not None
    made.check()


def test_the_audit_says_which_ends_were_empty(world: MakeWorld) -> None:
    """A request with an empty end has none in the audit; others have theirs."""
    made = world(RTH, Timeframe.M1, *JUNE)
    tail_after(made, OPEN - timedelta(hours=2), OPEN)
    newest, *older = made.bench.ledger.requests.newest(50)
    assert newest.asked_end is None
    assert all(one.asked_end is not None for one in older)


@pytest.mark.parametrize("behind", [timedelta(minutes=10), -timedelta(minutes=10)])
def test_a_clock_that_is_wrong_makes_no_bar_final(world: MakeWorld, behind: timedelta) -> None:
    """The earlier of two clocks bounds what is kept, whichever of them is wrong."""
    made = world(RTH, Timeframe.M1, *JUNE)
    made.bench.gateway.time = OPEN - timedelta(hours=2)
    run(made, Mode.FULL)
    made.bench.gateway.time = OPEN
    manager = made.bench.manager()
    retry_policy = replace(manager.retry_policy, clock=lambda: made.bench.gateway.time - behind)
    job = Job(made.series, Mode.TAIL, Bounds(start=made.wanted.start))
    asyncio.run(replace(manager, retry_policy=retry_policy).run([job]))
    covered = made.bench.store.coverage(made.series).bars.bounds
    assert covered is not None
    assert covered.end <= min(OPEN, OPEN - behind)
    made.check()


@pytest.mark.parametrize("takes", [timedelta(seconds=70), timedelta(minutes=6)])
def test_a_gateway_slower_than_a_bar_keeps_no_tail_busy(world: MakeWorld, takes: timedelta) -> None:
    """It is not followed bar by bar until the close: the newest are left to the next tail."""
    made = slow(world(RTH, Timeframe.M1, *JUNE), takes)
    report = tail_after(made, OPEN - timedelta(minutes=90), OPEN)
    assert len(ends(made)) <= 8
    assert report.added >= 90
    assert not report.unexplained
    made.check()
