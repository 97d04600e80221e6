"""The circuit breaker as a pure state machine."""

import asyncio
import json
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.clock import boot_time_s
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.errors import (
    GatewayError,
    GatewayRestingError,
    GatewayTimeoutError,
    GatewayUnreachableError,
)
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.pacing.circuit_breaker import (
    BELIEVED,
    MOST_FAILURES,
    Absence,
    Availability,
    Breaker,
    BreakerState,
    Depth,
    admission,
    availability,
    failed,
    seen_absent,
    succeeded,
)
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.ib.source import open_source
from ktrdr_pipelines.limits import IbLimitsRegistry
from tests.ib.paced import Time

FIRST_PAUSE_S = IbLimitsRegistry.BREAKER_PAUSE_S.value.first_s

LONGEST_PAUSE_S = IbLimitsRegistry.BREAKER_PAUSE_S.value.longest_s


def failing(
    times: int,
    breaker: Breaker | None = None,
    now: float = 100.0,
    depth: Depth = Depth.CONNECTION,
) -> Breaker:
    """Let requests fail one after another, each sent when the one before had failed."""
    breaker = breaker or Breaker()
    for number in range(times):
        breaker = failed(breaker, sent_at=now + number, now=now + number, depth=depth)
    return breaker


def test_a_few_failures_leave_it_closed() -> None:
    """One less than the limit stops nothing."""
    breaker = failing(MOST_FAILURES - 1)
    assert breaker.state is BreakerState.CLOSED
    assert admission(breaker, 200, probe_s=10).wait_s == 0


def test_enough_failures_in_a_row_open_it() -> None:
    """Then nothing passes until the pause is over."""
    breaker = failing(MOST_FAILURES)
    assert breaker.state is BreakerState.OPEN
    opened_at = 100.0 + MOST_FAILURES - 1
    assert admission(breaker, opened_at + 1, probe_s=10).wait_s == FIRST_PAUSE_S - 1


def test_failures_that_were_under_way_together_are_one() -> None:
    """A hang that takes forty requests down is one failure."""
    breaker = Breaker()
    for number in range(40):
        breaker = failed(breaker, sent_at=100, now=130 + number / 100)
    assert (breaker.state, breaker.failures) == (BreakerState.CLOSED, 1)


def test_after_the_pause_one_request_attempts() -> None:
    """The first that asks passes, the next waits for its end."""
    breaker = failing(MOST_FAILURES)
    first = admission(breaker, breaker.until, probe_s=45)
    assert first.wait_s == 0
    assert first.breaker.state is BreakerState.HALF_OPEN
    assert admission(first.breaker, breaker.until + 5, probe_s=45).wait_s == 40


def test_a_trial_that_never_ends_makes_room_for_another() -> None:
    """A process that dies while it tries leaves nobody waiting for ever."""
    breaker = failing(MOST_FAILURES)
    trial = admission(breaker, breaker.until, probe_s=45).breaker
    assert admission(trial, trial.until, probe_s=45).wait_s == 0


def test_a_failed_trial_doubles_the_pause_up_to_a_longest() -> None:
    """Half a minute, one, two, and never more than ten."""
    breaker, pauses = failing(MOST_FAILURES), []
    for _ in range(7):
        pauses.append(breaker.pause_s)
        trial = admission(breaker, breaker.until, probe_s=45).breaker
        breaker = failed(trial, sent_at=breaker.until, now=breaker.until + 30)
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S


def test_late_failures_do_not_prolong_the_pause() -> None:
    """What was sent before it opened changes nothing."""
    breaker = failing(MOST_FAILURES)
    assert failed(breaker, sent_at=99, now=110) == breaker


def test_connecting_does_not_make_good_that_bars_never_come() -> None:
    """Failures of bars count on through new connections and contracts; bars end them."""
    breaker = failing(MOST_FAILURES - 1, depth=Depth.DATA)
    assert succeeded(breaker, Depth.CONNECTION) == breaker
    assert succeeded(breaker, Depth.CONTRACTS) == breaker
    assert succeeded(breaker, Depth.DATA) == Breaker()
    assert failing(1, breaker, 200.0).state is BreakerState.OPEN


def test_a_shallow_answer_leaves_the_trial_to_the_next() -> None:
    """Half-open it stays; the next request tries at once, and its failure doubles the pause."""
    breaker = failing(MOST_FAILURES, depth=Depth.DATA)
    trial = admission(breaker, breaker.until, probe_s=45).breaker
    connected = succeeded(trial, Depth.CONNECTION)
    assert connected.state is BreakerState.HALF_OPEN
    second = admission(connected, breaker.until + 1, probe_s=45)
    assert second.wait_s == 0
    assert admission(second.breaker, breaker.until + 2, probe_s=45).wait_s == 44
    again = failed(second.breaker, sent_at=breaker.until + 1, now=200, depth=Depth.DATA)
    assert (again.state, again.until) == (BreakerState.OPEN, 200 + 2 * FIRST_PAUSE_S)


NOW = datetime(2026, 6, 12, 12, tzinfo=UTC)

MINUTE = timedelta(minutes=1)


def test_a_gateway_of_which_nothing_is_known_may_be_tried() -> None:
    """Neither a closed breaker nor an absence that has ended stops a run."""
    ended = Absence(NOW - MINUTE, NOW - MINUTE, "nothing listens", ended_at=NOW)
    for absence in (None, ended):
        now = availability(Breaker(), absence, now_s=100, real_now=NOW)
        assert now == Availability()
        assert now.may_try


def test_an_absence_stops_runs_for_ten_minutes_after_it_was_last_seen() -> None:
    """Confirming it makes it count on; its start and its latest reason are told."""
    absence = seen_absent(None, NOW, "nothing listens")
    absence = seen_absent(absence, NOW + 5 * MINUTE, "no response")
    assert absence == Absence(NOW, NOW + 5 * MINUTE, "no response")
    told = availability(Breaker(), absence, now_s=100, real_now=NOW + 14 * MINUTE)
    assert not told.may_try
    assert str(told) == "the gateway is away since 2026-06-12 12:00:00Z: no response"
    assert (told.since, told.next_at) == (NOW, NOW + 5 * MINUTE + BELIEVED)
    assert availability(Breaker(), absence, now_s=100, real_now=NOW + 15 * MINUTE).may_try


@pytest.mark.parametrize("jump", [-timedelta(hours=1), timedelta(hours=1)])
def test_a_clock_that_jumps_costs_one_attempt(jump: timedelta) -> None:
    """No run waits for the hour to pass, and the next record counts by the new clock."""
    absence, now = seen_absent(None, NOW, "nothing listens"), NOW + jump
    assert availability(Breaker(), absence, now_s=100, real_now=now).may_try
    absence = seen_absent(absence, now, "nothing listens")
    assert absence.since == min(NOW, now)
    assert not availability(Breaker(), absence, now_s=100, real_now=now + MINUTE).may_try


def test_a_new_absence_has_a_start_of_its_own() -> None:
    """One that has ended is over."""
    ended = Absence(NOW, NOW, "nothing listens", ended_at=NOW + MINUTE)
    later = NOW + 2 * MINUTE
    assert seen_absent(ended, later, "no response") == Absence(later, later, "no response")


def test_an_open_breaker_stops_runs_until_its_pause_is_over() -> None:
    """Told in real moments, and measured by a clock that never jumps."""
    breaker = failing(MOST_FAILURES)
    opened_s = 100.0 + MOST_FAILURES - 1
    for real_now in (NOW, NOW - timedelta(days=1)):
        told = availability(breaker, None, now_s=opened_s + 10, real_now=real_now)
        assert str(told) == (
            "circuit breaker open after 5 consecutive failures; next attempt in 20 s"
        )
        assert told.since == real_now - timedelta(seconds=10)
        assert told.next_at == real_now + timedelta(seconds=20)
    assert availability(breaker, None, now_s=opened_s + 30, real_now=NOW).may_try


def test_a_half_open_breaker_stops_no_run() -> None:
    """Its requests wait for the one that probes."""
    breaker = failing(MOST_FAILURES)
    trial = admission(breaker, breaker.until, probe_s=45).breaker
    assert availability(trial, None, now_s=breaker.until + 5, real_now=NOW).may_try


def test_breaker_and_absence_together_give_one_answer() -> None:
    """The absence is told, and the later of the two moments."""
    breaker = failing(MOST_FAILURES)
    absence = Absence(NOW - 9 * MINUTE, NOW - 9 * MINUTE, "no response")
    told = availability(breaker, absence, now_s=breaker.until - 20, real_now=NOW)
    assert (str(told), told.next_at) == (str(absence), NOW + MINUTE)
    absence = Absence(NOW - 9 * MINUTE, NOW - BELIEVED + timedelta(seconds=5), "no response")
    told = availability(breaker, absence, now_s=breaker.until - 20, real_now=NOW)
    assert told.next_at == NOW + timedelta(seconds=20)


def test_looking_creates_nothing(config: GatewayConfig) -> None:
    """A machine without state stays one."""
    with closing(RateLimiter.of(config)) as one:
        assert one.availability(NOW) == Availability()
        assert one.absence() is None
    assert not config.state_dir.exists()


def test_what_one_process_records_every_process_reads(rate_limiter: Any) -> None:
    """The start is kept until the gateway is found again; then the breaker closes too."""
    one, other = rate_limiter(), rate_limiter()
    one.note_absence(NOW, "nothing listens")
    other.note_absence(NOW + timedelta(minutes=2), "no response")
    told = one.availability(NOW + timedelta(minutes=3))
    assert (told.may_try, told.since) == (False, NOW)
    assert str(told) == "the gateway is away since 2026-06-12 12:00:00Z: no response"
    for _ in range(MOST_FAILURES):
        one.note_trouble(failure="it hung up")
    other.note_recovery(NOW + timedelta(minutes=4))
    assert one.availability(NOW + timedelta(minutes=4)) == Availability()
    assert one.vitals().breaker.state is BreakerState.CLOSED
    assert one.absence().ended_at == NOW + timedelta(minutes=4)
    other.note_recovery(NOW + timedelta(minutes=5))
    assert one.absence().ended_at == NOW + timedelta(minutes=4)


def test_an_absence_outlasts_a_restart_of_the_machine_and_an_open_breaker_does_not(
    rate_limiter: Any, time: Time
) -> None:
    """Real moments mean the same after it; seconds of another boot mean nothing."""
    before = rate_limiter(boot="yesterday")
    before.note_absence(NOW, "nothing listens")
    for _ in range(MOST_FAILURES):
        time.now += 1
        before.note_trouble(failure="it hung up")
    assert "circuit breaker open" in str(before.availability(NOW + timedelta(hours=1)))
    time.now = 30.0
    after = rate_limiter(boot="today")
    assert after.absence() == before.absence()
    assert not after.availability(NOW + timedelta(minutes=9)).may_try
    assert after.availability(NOW + timedelta(hours=1)).may_try


@pytest.mark.parametrize(
    ("other", "is_same"),
    [({"host": "localhost"}, True), ({"port": 2}, False), ({"host": "gate.example"}, False)],
)
def test_an_absence_belongs_to_one_gateway(
    config: GatewayConfig, other: dict[str, Any], *, is_same: bool
) -> None:
    """Under whatever name of this machine; another port is another gateway."""
    with closing(RateLimiter.of(config)) as one:
        one.note_absence(NOW, "nothing listens")
    with closing(RateLimiter.of(replace(config, **other))) as one:
        assert one.availability(NOW).may_try is not is_same


def test_a_breaker_that_an_earlier_version_recorded_goes_on(rate_limiter: Any, time: Time) -> None:
    """It wrote the length of its pause as well, which follows from the failures."""
    one = rate_limiter()
    value = {"state": "open", "failures": 6, "failed_at": 4990.0, "until": 5050.0, "pause_s": 60.0}

    def record(database: Any) -> None:
        row = ("boot", "breaker", json.dumps({**value, "depth": 0, "reason": "it hung up"}))
        database.execute("INSERT INTO memory VALUES (?, ?, ?)", row)

    one.remember(lambda _, database: record(database))
    breaker = one.vitals().breaker
    assert (breaker.until, breaker.pause_s) == (5050.0, 60.0)
    assert str(one.availability(NOW)) == (
        "circuit breaker open after 6 consecutive failures (last: it hung up); next attempt in 50 s"
    )


def connect(config: GatewayConfig, times: int) -> list[str]:
    """Connect one time after another and name what came of it."""

    async def once() -> str:
        try:
            async with open_source(config):
                return "connected"
        except (GatewayTimeoutError, GatewayUnreachableError) as error:
            return type(error).__name__

    return [asyncio.run(once()) for _ in range(times)]


def test_a_gateway_that_hangs_up_again_and_again_is_left_alone(
    config: GatewayConfig, gateways: Any
) -> None:
    """After five vain connections no more reach it, from any process."""
    gateway = gateways(greet=lambda talk: talk.close())
    reason = connect(replace(config, port=gateway.port), MOST_FAILURES + 3)
    expected = ["GatewayUnreachableError"] * MOST_FAILURES + ["GatewayRestingError"] * 3
    assert reason == expected
    assert gateway.connects == MOST_FAILURES


def test_a_closed_port_does_not_open_the_breaker(config: GatewayConfig, closed_port: int) -> None:
    """Where nothing listens nothing is hammered: the gateway is found as soon as it is there."""
    reason = connect(replace(config, port=closed_port), MOST_FAILURES + 2)
    assert set(reason) == {"GatewayUnreachableError"}


def test_an_answer_closes_the_count(config: GatewayConfig, gateways: Any) -> None:
    """Failures count only while they stay in a row."""
    gateway = gateways()
    there = replace(config, port=gateway.port)
    for _ in range(3):
        gateway.script.greet = lambda talk: talk.close()
        connect(there, MOST_FAILURES - 1)
        gateway.script.greet = None
        assert connect(there, 1) == ["connected"]


class Time:
    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)
        self.now += seconds


def test_one_process_attempts_and_the_others_wait_for_it(tmp_path: Path) -> None:
    """After the pause one question passes; its answer lets the others through."""
    time = Time()
    one, other = (RateLimiter(tmp_path, clock=time, sleep=time.sleep, boot="b") for _ in range(2))

    async def run() -> Any:
        for _ in range(MOST_FAILURES):
            time.now += 1
            one.note_trouble(failure="it hung up")
        with pytest.raises(GatewayRestingError) as caught:
            await other.admit("bars", probe_s=45)
        assert "(last: it hung up)" in str(caught.value)
        time.now += caught.value.retry_in_s
        await one.admit("bars", probe_s=45)
        waiting = asyncio.create_task(other.admit("bars", probe_s=45))
        await asyncio.sleep(0)
        assert other.vitals().breaker.state is BreakerState.HALF_OPEN
        assert not waiting.done()
        one.note_response()
        await waiting
        return caught.value.retry_in_s

    assert asyncio.run(run()) == pytest.approx(30.0)
    assert one.vitals().breaker.state is BreakerState.CLOSED
    one.close()
    other.close()


def test_a_gateway_whose_bars_never_come_is_left_alone(
    config: GatewayConfig, gateways: Any, words: Any, minute_request: BarRequest
) -> None:
    """It takes connections and knows contracts, and that does not clear it of silence."""
    gateway = gateways(bars=words.ignore)
    there = replace(config, port=gateway.port, timeout_s=1.0)

    async def once(days: int) -> str:
        try:
            async with open_source(there) as source:
                await source.bars(replace(minute_request, duration=f"{days} D"))
        except GatewayError as error:
            return type(error).__name__
        return "bars"

    reason = [asyncio.run(once(days)) for days in range(1, MOST_FAILURES + 3)]
    assert reason == ["GatewayTimeoutError"] * MOST_FAILURES + ["GatewayRestingError"] * 2
    assert len(gateway.wait_for(20, MOST_FAILURES)) == MOST_FAILURES


def test_health_says_how_the_data_path_is(bench: Any, minute_request: Any) -> None:
    """Round trip, age of the last bars by anyone, breaker and width come in one value."""

    async def ask(source: Any) -> Any:
        before, begun_s = await source.health(), boot_time_s()
        await source.bars(minute_request)
        after = await source.health()
        return before, after, boot_time_s() - begun_s

    before, after, took_s = bench(ask)
    assert before.last_answer_age_s is None
    assert 0 <= after.last_answer_age_s <= took_s
    assert 0 < after.round_trip_s <= took_s
    assert (after.breaker, after.concurrency) == (BreakerState.CLOSED, 6)
