"""The circuit breaker and the absence of a gateway: the state machine, and what processes share."""

import asyncio
import json
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

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
from tests.ib.pacing_support import FakeClock

FIRST_PAUSE_S = IbLimitsRegistry.BREAKER_PAUSE_S.value.first_s

LONGEST_PAUSE_S = IbLimitsRegistry.BREAKER_PAUSE_S.value.longest_s


def failing(
    times: int,
    breaker: Breaker | None = None,
    now: float = 100.0,
    depth: Depth = Depth.CONNECTION,
) -> Breaker:
    """Return the breaker after consecutive failures, each sent after the one before."""
    breaker = breaker or Breaker()
    for number in range(times):
        breaker = failed(breaker, sent_at=now + number, now=now + number, depth=depth)
    return breaker


def test_a_few_failures_leave_it_closed() -> None:
    """One failure less than the limit changes nothing."""
    breaker = failing(MOST_FAILURES - 1)
    assert breaker.state is BreakerState.CLOSED
    assert admission(breaker, 200, probe_s=10).wait_s == 0


def test_enough_failures_in_a_row_open_it() -> None:
    """No request is admitted until the pause is over."""
    breaker = failing(MOST_FAILURES)
    assert breaker.state is BreakerState.OPEN
    opened_at = 100.0 + MOST_FAILURES - 1
    assert admission(breaker, opened_at + 1, probe_s=10).wait_s == FIRST_PAUSE_S - 1


def test_concurrent_failures_count_once() -> None:
    """Forty requests that were in flight together count as one failure."""
    breaker = Breaker()
    for number in range(40):
        breaker = failed(breaker, sent_at=100, now=130 + number / 100)
    assert (breaker.state, breaker.failures) == (BreakerState.CLOSED, 1)


def test_after_the_pause_one_request_probes() -> None:
    """The first request is admitted as a probe, the next waits for its result."""
    breaker = failing(MOST_FAILURES)
    first = admission(breaker, breaker.until, probe_s=45)
    assert first.wait_s == 0
    assert first.breaker.state is BreakerState.HALF_OPEN
    assert admission(first.breaker, breaker.until + 5, probe_s=45).wait_s == 40


def test_a_probe_without_a_result_is_followed_by_another() -> None:
    """If the process of a probe dies, another request probes after the probe's deadline."""
    breaker = failing(MOST_FAILURES)
    trial = admission(breaker, breaker.until, probe_s=45).breaker
    assert admission(trial, trial.until, probe_s=45).wait_s == 0


def test_a_failed_probe_doubles_the_pause_up_to_the_longest() -> None:
    """The pause doubles from its first value up to its longest."""
    breaker, pauses = failing(MOST_FAILURES), []
    for _ in range(7):
        pauses.append(breaker.pause_s)
        trial = admission(breaker, breaker.until, probe_s=45).breaker
        breaker = failed(trial, sent_at=breaker.until, now=breaker.until + 30)
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S


def test_late_failures_do_not_prolong_the_pause() -> None:
    """A failure of a request sent before the breaker opened changes nothing."""
    breaker = failing(MOST_FAILURES)
    assert failed(breaker, sent_at=99, now=110) == breaker


def test_only_a_response_of_the_same_depth_resets_failures() -> None:
    """Connections and contracts do not reset failures of bars; bars do."""
    breaker = failing(MOST_FAILURES - 1, depth=Depth.DATA)
    assert succeeded(breaker, Depth.CONNECTION) == breaker
    assert succeeded(breaker, Depth.CONTRACTS) == breaker
    assert succeeded(breaker, Depth.DATA) == Breaker()
    assert failing(1, breaker, 200.0).state is BreakerState.OPEN


def test_a_shallow_response_leaves_the_probe_to_the_next_request() -> None:
    """The breaker stays half-open; the next request probes, and its failure doubles the pause."""
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


def test_a_gateway_without_failures_may_be_tried() -> None:
    """Neither a closed breaker nor an ended absence stops a run."""
    ended = Absence(NOW - MINUTE, NOW - MINUTE, "nothing listens", ended_at=NOW)
    for absence in (None, ended):
        now = availability(Breaker(), absence, now_s=100, real_now=NOW)
        assert now == Availability()
        assert now.may_try


def test_an_absence_stops_runs_for_ten_minutes_after_it_was_last_seen() -> None:
    """A confirmation extends the absence, keeps its start and replaces its reason."""
    absence = seen_absent(None, NOW, "nothing listens")
    absence = seen_absent(absence, NOW + 5 * MINUTE, "no response")
    assert absence == Absence(NOW, NOW + 5 * MINUTE, "no response")
    result = availability(Breaker(), absence, now_s=100, real_now=NOW + 14 * MINUTE)
    assert not result.may_try
    assert str(result) == "the gateway is away since 2026-06-12 12:00:00Z: no response"
    assert (result.since, result.next_at) == (NOW, NOW + 5 * MINUTE + BELIEVED)
    assert availability(Breaker(), absence, now_s=100, real_now=NOW + 15 * MINUTE).may_try


@pytest.mark.parametrize("jump", [-timedelta(hours=1), timedelta(hours=1)])
def test_a_clock_that_jumps_costs_one_attempt(jump: timedelta) -> None:
    """A record of another time does not stop a run, and the next record uses the new clock."""
    absence, now = seen_absent(None, NOW, "nothing listens"), NOW + jump
    assert availability(Breaker(), absence, now_s=100, real_now=now).may_try
    absence = seen_absent(absence, now, "nothing listens")
    assert absence.since == min(NOW, now)
    assert not availability(Breaker(), absence, now_s=100, real_now=now + MINUTE).may_try


def test_a_new_absence_has_a_start_of_its_own() -> None:
    """An absence that has ended does not count on."""
    ended = Absence(NOW, NOW, "nothing listens", ended_at=NOW + MINUTE)
    later = NOW + 2 * MINUTE
    assert seen_absent(ended, later, "no response") == Absence(later, later, "no response")


def test_an_open_breaker_stops_runs_until_its_pause_is_over() -> None:
    """Its moments are real time, its pause that of a monotonic clock."""
    breaker = failing(MOST_FAILURES)
    opened_s = 100.0 + MOST_FAILURES - 1
    for real_now in (NOW, NOW - timedelta(days=1)):
        result = availability(breaker, None, now_s=opened_s + 10, real_now=real_now)
        assert str(result) == (
            "circuit breaker open after 5 consecutive failures; next attempt in 20 s"
        )
        assert result.since == real_now - timedelta(seconds=10)
        assert result.next_at == real_now + timedelta(seconds=20)
    assert availability(breaker, None, now_s=opened_s + 30, real_now=NOW).may_try


def test_a_half_open_breaker_stops_no_run() -> None:
    """Its requests wait for the one that probes."""
    breaker = failing(MOST_FAILURES)
    trial = admission(breaker, breaker.until, probe_s=45).breaker
    assert availability(trial, None, now_s=breaker.until + 5, real_now=NOW).may_try


def test_breaker_and_absence_are_combined() -> None:
    """The reason is that of the absence, the next attempt the later of both."""
    breaker = failing(MOST_FAILURES)
    absence = Absence(NOW - 9 * MINUTE, NOW - 9 * MINUTE, "no response")
    result = availability(breaker, absence, now_s=breaker.until - 20, real_now=NOW)
    assert (str(result), result.next_at) == (str(absence), NOW + MINUTE)
    absence = Absence(NOW - 9 * MINUTE, NOW - BELIEVED + timedelta(seconds=5), "no response")
    result = availability(breaker, absence, now_s=breaker.until - 20, real_now=NOW)
    assert result.next_at == NOW + timedelta(seconds=20)


def test_reading_the_availability_creates_nothing(config: GatewayConfig) -> None:
    """Reading the availability creates no state folder."""
    with closing(RateLimiter.of(config)) as one:
        assert one.availability(NOW) == Availability()
        assert one.absence() is None
    assert not config.state_dir.exists()


def test_what_one_process_records_every_process_reads(rate_limiter: Any) -> None:
    """The start of the absence is kept until the recovery, which closes the breaker."""
    one, other = rate_limiter(), rate_limiter()
    one.note_absence(NOW, "nothing listens")
    other.note_absence(NOW + timedelta(minutes=2), "no response")
    result = one.availability(NOW + timedelta(minutes=3))
    assert (result.may_try, result.since) == (False, NOW)
    assert str(result) == "the gateway is away since 2026-06-12 12:00:00Z: no response"
    for _ in range(MOST_FAILURES):
        one.note_trouble(failure="it hung up")
    other.note_recovery(NOW + timedelta(minutes=4))
    assert one.availability(NOW + timedelta(minutes=4)) == Availability()
    assert one.vitals().breaker.state is BreakerState.CLOSED
    assert one.absence().ended_at == NOW + timedelta(minutes=4)
    other.note_recovery(NOW + timedelta(minutes=5))
    assert one.absence().ended_at == NOW + timedelta(minutes=4)


def test_an_absence_outlasts_a_restart_of_the_machine_and_an_open_breaker_does_not(
    rate_limiter: Any, clock: FakeClock
) -> None:
    """Real time is valid after a restart, seconds of another boot are not."""
    before = rate_limiter(boot="yesterday")
    before.note_absence(NOW, "nothing listens")
    for _ in range(MOST_FAILURES):
        clock.now += 1
        before.note_trouble(failure="it hung up")
    assert "circuit breaker open" in str(before.availability(NOW + timedelta(hours=1)))
    clock.now = 30.0
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
    """The names of this machine are one gateway; another port is another gateway."""
    with closing(RateLimiter.of(config)) as one:
        one.note_absence(NOW, "nothing listens")
    with closing(RateLimiter.of(replace(config, **other))) as one:
        assert one.availability(NOW).may_try is not is_same


def test_a_record_of_an_earlier_version_is_read(rate_limiter: Any, clock: FakeClock) -> None:
    """Its field for the pause is ignored: the pause follows from the failures."""
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
    """Connect several times, one after another, and return the outcomes."""

    async def once() -> str:
        try:
            async with open_source(config):
                return "connected"
        except (GatewayTimeoutError, GatewayUnreachableError) as error:
            return type(error).__name__

    return [asyncio.run(once()) for _ in range(times)]


def test_failed_connections_open_the_breaker(config: GatewayConfig, gateways: Any) -> None:
    """After five failed connections no process connects."""
    gateway = gateways(greet=lambda client: client.close())
    outcomes = connect(replace(config, port=gateway.port), MOST_FAILURES + 3)
    expected = ["GatewayUnreachableError"] * MOST_FAILURES + ["GatewayRestingError"] * 3
    assert outcomes == expected
    assert gateway.connects == MOST_FAILURES


def test_a_closed_port_does_not_open_the_breaker(config: GatewayConfig, closed_port: int) -> None:
    """Without a listener the next attempt finds the gateway as soon as it runs."""
    outcomes = connect(replace(config, port=closed_port), MOST_FAILURES + 2)
    assert set(outcomes) == {"GatewayUnreachableError"}


def test_a_success_resets_the_count(config: GatewayConfig, gateways: Any) -> None:
    """Only consecutive failures count."""
    gateway = gateways()
    gateway_config = replace(config, port=gateway.port)
    for _ in range(3):
        gateway.script.greet = lambda client: client.close()
        connect(gateway_config, MOST_FAILURES - 1)
        gateway.script.greet = None
        assert connect(gateway_config, 1) == ["connected"]


def test_one_process_probes_and_the_others_wait(tmp_path: Path) -> None:
    """After the pause one request probes; its response admits the others."""
    clock = FakeClock()
    one, other = (RateLimiter(tmp_path, clock=clock, sleep=clock.sleep, boot="b") for _ in range(2))

    async def run() -> Any:
        for _ in range(MOST_FAILURES):
            clock.now += 1
            one.note_trouble(failure="it hung up")
        with pytest.raises(GatewayRestingError) as caught:
            await other.admit("bars", probe_s=45)
        assert "(last: it hung up)" in str(caught.value)
        clock.now += caught.value.retry_in_s
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


def test_bars_without_a_response_open_the_breaker(
    config: GatewayConfig, gateways: Any, replies: Any, minute_request: BarRequest
) -> None:
    """Connections and contracts do not reset the failures of bars."""
    gateway = gateways(bars=replies.ignore)
    gateway_config = replace(config, port=gateway.port, timeout_s=0.5)

    async def once(days: int) -> str:
        try:
            async with open_source(gateway_config) as source:
                await source.bars(replace(minute_request, duration=f"{days} D"))
        except GatewayError as error:
            return type(error).__name__
        return "bars"

    outcomes = [asyncio.run(once(days)) for days in range(1, MOST_FAILURES + 3)]
    assert outcomes == ["GatewayTimeoutError"] * MOST_FAILURES + ["GatewayRestingError"] * 2
    assert len(gateway.wait_for_frames(20, MOST_FAILURES)) == MOST_FAILURES
