"""What the connection and the budget wait for long is told to whoever asks."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.pacing.circuit_breaker import MOST_FAILURES
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.ib.pacing.rules import PacedRequest, RequestKind
from ktrdr_pipelines.ib.source import open_source
from tests.ib.paced import Time, bars, send


@pytest.fixture
def told() -> list[tuple[str, float]]:
    """Give a list of what was told."""
    return []


def telling(told: Any) -> Any:
    """Make what is told of waits."""
    return lambda why, wait_s: told.append((why, wait_s))


def test_a_pause_is_told_with_its_rest(rate_limiter: Any, time: Time, told: Any) -> None:
    """Everybody waits for it, also who had no part in the violation."""

    async def run() -> None:
        rate_limiter().pause_after_violation()
        time.now += 20
        async with rate_limiter().permit(bars(1), hold_s=45, waits=telling(told)) as permit:
            permit.release()

    asyncio.run(run())
    assert told[0] == (
        "the gateway received too many requests, and every process pauses",
        pytest.approx(40.0),
    )


def test_other_turns_are_not_told(rate_limiter: Any, told: Any) -> None:
    """Waiting in turn is no wait that a person wonders about."""

    async def run() -> None:
        one = rate_limiter()
        await send(one, bars(1))
        async with one.permit(bars(1), hold_s=45, waits=telling(told)) as permit:
            permit.release()

    asyncio.run(run())
    assert told == []


def test_the_window_of_heads_is_told(rate_limiter: Any, told: Any) -> None:
    """The first look at a hundred symbols takes as long as IB's ten minutes allow."""

    async def run() -> None:
        one = rate_limiter()
        for number in range(58):
            head = PacedRequest(RequestKind.HEAD, str(number), f"head|{number}", small=True)
            async with one.permit(head, hold_s=45, waits=telling(told)) as permit:
                permit.release()

    asyncio.run(run())
    assert "requests for the oldest data" in told[0][0]
    assert 500 < max(wait_s for _, wait_s in told) <= 600


def test_the_try_of_another_process_is_told(rate_limiter: Any, time: Time, told: Any) -> None:
    """While one question tries a gateway that rested, the others say what they wait for."""

    async def run() -> None:
        one, other = rate_limiter(), rate_limiter()
        for _ in range(MOST_FAILURES):
            time.now += 1
            one.note_trouble(failure="silence")
        time.now += 31
        await one.admit("bars", probe_s=45)
        await other.admit("bars", probe_s=45, waits=telling(told))

    asyncio.run(run())
    assert told[0] == ("another request probes whether the gateway responds again", 45)


def test_a_lost_link_is_told(
    config: GatewayConfig, gateways: Any, words: Any, minute_request: BarRequest, told: Any
) -> None:
    """A load that waits for the gateway's own connection says so, in the gateway's words."""

    def lost_at_first(talk: Any, fields: list[str]) -> None:
        words.start(talk, fields)
        talk.error(-1, 1100, "Connectivity between IBKR and Trader Workstation has been lost.")
        talk.later(0.1, lambda: talk.error(-1, 1102, "restored"))

    there = replace(config, port=gateways(start=lost_at_first).port)

    async def run() -> int:
        rate_limiter = RateLimiter.of(there)
        async with open_source(there, rate_limiter=rate_limiter, waits=telling(told)) as source:
            answer = await source.bars(minute_request)
        rate_limiter.close()
        return answer.bars.num_rows

    assert asyncio.run(run()) == 2
    assert told[0][0].startswith("1100 Connectivity")
    assert 0 < told[0][1] <= there.outage_s
