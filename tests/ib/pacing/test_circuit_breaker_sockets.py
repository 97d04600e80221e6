"""The circuit breaker at work: shared by processes, over real sockets."""

import asyncio
from dataclasses import replace
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
from ktrdr_pipelines.ib.pacing.circuit_breaker import MOST_FAILURES, BreakerState
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.ib.source import open_source


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
            one.note_trouble(ill_with="it hung up")
        with pytest.raises(GatewayRestingError) as caught:
            await other.admit("bars", probe_s=45)
        assert "(last: it hung up)" in str(caught.value)
        time.now += caught.value.retry_in_s
        await one.admit("bars", probe_s=45)
        waiting = asyncio.create_task(other.admit("bars", probe_s=45))
        await asyncio.sleep(0)
        assert other.vitals().breaker.state is BreakerState.HALF_OPEN
        assert not waiting.done()
        one.note_life()
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
    assert len(gateway.what(20)) == MOST_FAILURES


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
