"""Tails with an empty end: the same bars as with an end, and no coverage without proof."""

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
from tests.support.loading import Harness, World

MakeWorld = Callable[..., World]
RTH = "XNYS.RTH"
JUNE = date(2024, 5, 1), date(2024, 7, 13)
OPEN = utc(2024, 6, 27, 16, 0, 30)
"""A Thursday at noon in New York."""
EVENING = utc(2024, 6, 27, 23)
SUNDAY = utc(2024, 6, 30, 18)


@dataclass
class SlowGateway(FakeGateway):
    """A fake gateway that responds to requests of tails with a delay."""

    takes: timedelta = timedelta(seconds=7)

    async def bars(self, request: BarRequest, *, sent: OnSent = ignore_sent) -> Response | NoData:
        answer = await super().bars(request, sent=sent)
        self.time += self.takes if request.tail else timedelta(0)
        return answer


def slow(made: World, takes: timedelta = timedelta(seconds=7)) -> World:
    """Return the world with a slow gateway."""
    old = made.harness.gateway
    gateway = SlowGateway(old.true_bars, old.time, takes=takes)
    return World(Harness(made.harness.layout, gateway), made.series, made.wanted)


def tail_after(made: World, then: datetime, now: datetime) -> SeriesReport:
    """Load all up to a moment, then a tail at a later one; the requests are those of the tail."""
    made.harness.gateway.time = then
    run(made, Mode.FULL)
    made.harness.gateway.time = now
    made.harness.gateway.requests.clear()
    return run(made, Mode.TAIL)


def run(made: World, mode: Mode) -> SeriesReport:
    """Load by a mode, from the start of the world."""
    return made.harness.run(Job(made.series, mode, Bounds(start=made.wanted.start)))[0]


def ends(made: World) -> list[datetime | None]:
    """Return the requested ends."""
    return [request.ends_at for request in made.harness.gateway.requests]


@pytest.mark.parametrize("timeframe", [Timeframe.M1, Timeframe.M5, Timeframe.M30, Timeframe.H1])
def test_a_tail_in_an_open_session_is_one_request_with_an_empty_end(
    world: MakeWorld, timeframe: Timeframe
) -> None:
    """Bars up to now are stored, the unfinished one is left out, and nothing is requested twice."""
    made = slow(world(RTH, timeframe, *JUNE))
    report = tail_after(made, OPEN - timedelta(hours=2), OPEN)
    assert ends(made) == [None]
    assert report.requests == 1
    began = 1 if timeframe is Timeframe.H1 else 0  # the bar from 9:30 to 10:00 is not whole then
    assert report.added == 7200 // timeframe.seconds + began
    made.check()


@pytest.mark.parametrize("now", [EVENING, utc(2024, 6, 28, 11), SUNDAY])
@pytest.mark.parametrize("timeframe", [*Timeframe])
def test_a_tail_at_night_or_on_a_sunday_may_have_an_empty_end(
    world: MakeWorld, timeframe: Timeframe, now: datetime
) -> None:
    """No bar is expected between the last close and now, so that both ends are equivalent."""
    made = slow(world(RTH, timeframe, *JUNE))
    report = tail_after(made, utc(2024, 6, 24, 16, 0, 30), now)
    assert all(end is None for end in ends(made)[-1:])
    assert report.is_complete
    if timeframe is not Timeframe.W1 or now is SUNDAY:
        assert report.added
    made.check()


@pytest.mark.parametrize("mode", [Mode.FULL, Mode.BACKFILL])
def test_other_loads_keep_their_ends(world: MakeWorld, mode: Mode) -> None:
    """A load of history sends ends, even where it reaches to now."""
    made = world(RTH, Timeframe.M5, *JUNE, now=OPEN)
    assert run(made, mode).requests
    assert None not in ends(made)


def test_only_the_newest_chunk_of_a_tail_ends_now(world: MakeWorld) -> None:
    """Older chunks, after which bars are expected, are requested with their ends."""
    made = slow(world(RTH, Timeframe.M1, *JUNE))
    report = tail_after(made, utc(2024, 6, 24, 16, 0, 30), EVENING)
    assert report.is_complete
    assert ends(made)[-1] is None
    assert len(ends(made)) > 1
    assert None not in ends(made)[:-1]


def test_a_chunk_of_days_before_an_open_session_has_an_end(world: MakeWorld) -> None:
    """Daily bars of yesterday, while today's session is open, are requested with their end."""
    made = world(RTH, Timeframe.D1, *JUNE)
    tail_after(made, utc(2024, 6, 25, 23), OPEN)
    assert ends(made) == [utc(2024, 6, 27, 3, 59, 59)]
    made.check()


@pytest.mark.parametrize("hours", [0.2, 30])
def test_a_request_that_is_sent_late_has_an_end(world: MakeWorld, hours: float) -> None:
    """Minutes or hours after planning, an empty end would reach less far back than is wanted."""
    made = world(RTH, Timeframe.M1, *JUNE)
    made.harness.gateway.time = OPEN - timedelta(hours=2)
    run(made, Mode.FULL)
    made.harness.gateway.time = OPEN
    made.harness.gateway.requests.clear()
    waits = iter([timedelta(hours=hours)])

    async def wait(_: BarRequest) -> None:
        made.harness.gateway.time += next(waits, timedelta(0))

    made.harness.gateway.before_response = wait
    report = run(made, Mode.TAIL)
    assert ends(made)[0] is None
    assert ends(made)[1] is not None
    assert report.is_complete
    made.check()
    sent = made.harness.ledger.requests.newest(len(ends(made)) - 1)
    assert [one.asked_end for one in reversed(sent)] == ends(made)[1:]


def test_a_response_after_the_next_open_is_discarded(world: MakeWorld) -> None:
    """The gateway may have counted sessions from that open: the request is sent with its end."""
    made = slow(world(RTH, Timeframe.H1, *JUNE), timedelta(minutes=20))
    report = tail_after(made, utc(2024, 6, 26, 23), utc(2024, 6, 28, 13, 15))
    assert ends(made)[:2] == [None, utc(2024, 6, 28, 13, 15)]
    assert not report.unexplained
    made.check()


@pytest.mark.parametrize("timeframe", [Timeframe.M5, Timeframe.D1])
def test_a_session_that_ends_while_the_gateway_responds_is_not_final(
    world: MakeWorld, timeframe: Timeframe
) -> None:
    """A request that is sent before the session is final does not cover its end."""
    final = utc(2024, 6, 27, 20, 30)
    made = slow(world(RTH, timeframe, *JUNE), timedelta(minutes=2))
    made.harness.gateway.time = utc(2024, 6, 26, 23)
    run(made, Mode.FULL)
    made.harness.gateway.time = final - timedelta(minutes=1)
    made.harness.gateway.requests.clear()
    run(made, Mode.TAIL)
    covered = made.harness.store.coverage(made.series).bars.bounds
    assert covered is not None
    if timeframe is Timeframe.D1:
        assert not made.harness.gateway.requests
    else:
        assert covered.end < utc(2024, 6, 27, 20) or len(ends(made)) > 1
    made.check()


def test_no_more_is_covered_than_the_response_reaches_over(world: MakeWorld) -> None:
    """A gateway that is a quarter of an hour behind states so, and the rest stays due."""
    made = world(RTH, Timeframe.M1, *JUNE)
    reach_end = OPEN - timedelta(minutes=15, seconds=30)

    def behind(request: BarRequest, bars: object) -> Response:
        seen = made.harness.gateway.unmutated(replace(request, ends_at=reach_end))
        return Response(request, seen, Interval(OPEN - timedelta(days=1), reach_end))

    made.harness.gateway.time = OPEN - timedelta(hours=2)
    run(made, Mode.FULL)
    made.harness.gateway.time = OPEN
    made.harness.gateway.mutate = behind
    made.harness.gateway.requests.clear()
    run(made, Mode.TAIL)
    assert ends(made)[0] is None
    covered = made.harness.store.coverage(made.series).bars.bounds
    assert covered is not None
    assert covered.end <= reach_end
    made.check()
    made.harness.gateway.mutate = None
    made.harness.gateway.time += timedelta(minutes=1)
    assert run(made, Mode.TAIL).added >= 15


def test_an_empty_end_is_no_statement_about_a_closed_session(world: MakeWorld) -> None:
    """A session without bars is requested with its end, and that response alone is a statement."""
    made = world(RTH, Timeframe.M5, *JUNE)
    made.harness.gateway.time = utc(2024, 6, 26, 23)
    run(made, Mode.FULL)
    made.harness.gateway.time = EVENING
    made.harness.gateway.requests.clear()
    made.harness.gateway.mutate = lambda request, _: NoData(request, "no data")
    report = run(made, Mode.TAIL)
    assert report.unexplained
    assert ends(made) == [None, EVENING]
    assert len(made.harness.ledger.statements.of(made.series.symbol)) == 1


def test_a_quiet_open_session_is_requested_once(world: MakeWorld) -> None:
    """Some minutes without a trade are no statement, and no reason to request with an end."""
    made = slow(world(RTH, Timeframe.M1, *JUNE))
    made.harness.gateway.time = OPEN
    run(made, Mode.FULL)
    made.harness.gateway.time = OPEN + timedelta(minutes=3)
    made.harness.gateway.requests.clear()
    made.harness.gateway.mutate = lambda request, _: NoData(request, "no data")
    report = run(made, Mode.TAIL)
    assert ends(made) == [None]
    assert not report.unexplained
    assert made.harness.ledger.statements.of(made.series.symbol) == []


def test_newest_bars_that_are_held_back_stay_due(world: MakeWorld) -> None:
    """With notice 2188 the end of a response proves nothing, whatever end was requested."""
    made = world(RTH, Timeframe.M1, *JUNE)

    def held_back(request: BarRequest, bars: object) -> Response:
        seen = made.harness.gateway.unmutated(
            replace(request, ends_at=OPEN - timedelta(minutes=15))
        )
        return Response(request, seen, None, lacks_newest=True)

    made.harness.gateway.time = OPEN - timedelta(hours=2)
    run(made, Mode.FULL)
    made.harness.gateway.time = OPEN
    made.harness.gateway.mutate = held_back
    made.harness.gateway.requests.clear()
    report = run(made, Mode.TAIL)
    assert ends(made) == [None]
    assert report.added == 105
    made.check()


def test_bars_of_a_session_that_no_calendar_knows_make_the_reach_unknown(world: MakeWorld) -> None:
    """A response of an unexpected Saturday session alone has Friday requested again."""
    made = world(RTH, Timeframe.M5, *JUNE, now=SUNDAY)
    made.harness.gateway.time = utc(2024, 6, 27, 23)
    run(made, Mode.FULL)
    made.harness.gateway.time = SUNDAY
    made.harness.gateway.requests.clear()
    saturday = made.harness.gateway.unmutated(BarRequest(made.series, utc(2024, 6, 28, 21), "1 D"))
    later = pc.add(saturday["ts"], timedelta(days=1))
    moved = saturday.set_column(0, saturday.schema.field("ts"), later)

    def saturday_alone(request: BarRequest, bars: object) -> Response:
        unmutated = made.harness.gateway.unmutated(request)
        return Response(request, moved if request.ends_at is None else unmutated, None)

    made.harness.gateway.mutate = saturday_alone
    report = run(made, Mode.TAIL)
    assert len(ends(made)) == 2
    assert ends(made)[1] is not None
    assert report.is_complete
    made.check()
    assert made.harness.ledger.statements.of(made.series.symbol) == []


def test_a_tail_every_minute_makes_one_request_each(world: MakeWorld) -> None:
    """Half an hour of tails on a moving clock: one request each, and every bar is stored."""
    made = slow(world(RTH, Timeframe.M1, *JUNE), timedelta(seconds=1.5))
    made.harness.gateway.time = utc(2024, 6, 27, 13, 0)
    run(made, Mode.FULL)
    made.harness.gateway.requests.clear()
    for minute in range(30):
        made.harness.gateway.time = utc(2024, 6, 27, 14, minute, 10)
        run(made, Mode.TAIL)
    assert len(ends(made)) == 30
    assert set(ends(made)) == {None}
    made.check()


def test_a_request_repeated_at_once_has_an_end(world: MakeWorld) -> None:
    """Implausible bars are requested once more: with an end that is no identical request."""
    made = world(RTH, Timeframe.M1, *JUNE)
    made.harness.gateway.time = OPEN - timedelta(hours=2)
    run(made, Mode.FULL)
    made.harness.gateway.time = OPEN
    made.harness.gateway.requests.clear()

    def odd(request: BarRequest, bars: object) -> Response:
        seen = made.harness.gateway.unmutated(request)
        key = int(seen["ts"].cast("int64")[-5].as_py())
        return Response(request, seen, None, implausible=(key,) if request.ends_at is None else ())

    made.harness.gateway.mutate = odd
    assert run(made, Mode.TAIL).added == 120
    assert ends(made)[0] is None
    assert ends(made)[1] is not None
    made.check()


def test_the_audit_has_no_end_for_an_empty_end(world: MakeWorld) -> None:
    """The rows of other requests have their ends."""
    made = world(RTH, Timeframe.M1, *JUNE)
    tail_after(made, OPEN - timedelta(hours=2), OPEN)
    newest, *older = made.harness.ledger.requests.newest(50)
    assert newest.asked_end is None
    assert all(one.asked_end is not None for one in older)


@pytest.mark.parametrize("behind", [timedelta(minutes=10), -timedelta(minutes=10)])
def test_a_clock_that_is_wrong_makes_no_bar_final(world: MakeWorld, behind: timedelta) -> None:
    """The earlier of two clocks bounds what is kept, whichever of them is wrong."""
    made = world(RTH, Timeframe.M1, *JUNE)
    made.harness.gateway.time = OPEN - timedelta(hours=2)
    run(made, Mode.FULL)
    made.harness.gateway.time = OPEN
    manager = made.harness.manager()
    retry_policy = replace(manager.retry_policy, clock=lambda: made.harness.gateway.time - behind)
    job = Job(made.series, Mode.TAIL, Bounds(start=made.wanted.start))
    asyncio.run(replace(manager, retry_policy=retry_policy).run([job]))
    covered = made.harness.store.coverage(made.series).bars.bounds
    assert covered is not None
    assert covered.end <= min(OPEN, OPEN - behind)
    made.check()


@pytest.mark.parametrize("takes", [timedelta(seconds=70), timedelta(minutes=6)])
def test_a_tail_ends_though_the_gateway_is_slower_than_a_bar(
    world: MakeWorld, takes: timedelta
) -> None:
    """It does not follow each new bar until the close: the next tail requests the newest."""
    made = slow(world(RTH, Timeframe.M1, *JUNE), takes)
    report = tail_after(made, OPEN - timedelta(minutes=90), OPEN)
    assert len(ends(made)) <= 8
    assert report.added >= 90
    assert not report.unexplained
    made.check()
