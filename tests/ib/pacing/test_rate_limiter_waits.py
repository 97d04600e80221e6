"""Long waits of the connection and of the rate limiter are reported."""

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
from tests.ib.pacing_support import FakeClock, bars, send


@pytest.fixture
def waits() -> list[tuple[str, float]]:
    """Return a list for the reported waits."""
    return []


def recording(waits: Any) -> Any:
    """Return a callback that records waits."""
    return lambda why, wait_s: waits.append((why, wait_s))


def test_a_pause_is_reported_with_its_rest(rate_limiter: Any, clock: FakeClock, waits: Any) -> None:
    """Every process waits for the rest of the pause."""

    async def run() -> None:
        rate_limiter().pause_after_violation()
        clock.now += 20
        async with rate_limiter().permit(bars(1), hold_s=45, waits=recording(waits)) as permit:
            permit.release()

    asyncio.run(run())
    assert waits[0] == (
        "the gateway received too many requests, and every process pauses",
        pytest.approx(40.0),
    )


def test_ordinary_waits_are_not_reported(rate_limiter: Any, waits: Any) -> None:
    """An ordinary wait for the budget is not reported."""

    async def run() -> None:
        one = rate_limiter()
        await send(one, bars(1))
        async with one.permit(bars(1), hold_s=45, waits=recording(waits)) as permit:
            permit.release()

    asyncio.run(run())
    assert waits == []


def test_the_deadline_of_a_cancelled_request_is_reported(
    rate_limiter: Any, clock: FakeClock, waits: Any
) -> None:
    """A run that follows a terminated one asks for the same, and waits in silence otherwise."""

    async def run() -> float:
        one = rate_limiter()
        sent = asyncio.Event()
        cancelled = asyncio.create_task(silent(one, sent))
        await sent.wait()
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        begun = clock.now
        async with one.permit(bars(1), hold_s=45, waits=recording(waits)) as permit:
            permit.release()
        return permit.sent_at_s - begun

    async def silent(one: RateLimiter, sent: asyncio.Event) -> None:
        async with one.permit(bars(1), hold_s=45):
            sent.set()
            await asyncio.Event().wait()

    waited_s = asyncio.run(run())
    assert waits[0][0].startswith("earlier requests count against IB's limits, cancelled ones")
    assert waits[0][1] == pytest.approx(waited_s, abs=1.0)
    assert waited_s > 40


def test_the_window_of_heads_is_reported(rate_limiter: Any, waits: Any) -> None:
    """The heads of many symbols take as long as IB's ten-minute window; some come in between."""

    async def run() -> None:
        one = rate_limiter()
        for number in range(61):
            head = PacedRequest(
                RequestKind.HEAD, str(number), f"head|{number}", small=True, tail=number < 60
            )
            async with one.permit(head, hold_s=45, waits=recording(waits)) as permit:
                permit.release()

    asyncio.run(run())
    assert "requests for the oldest data" in waits[0][0]
    assert 500 < max(wait_s for _, wait_s in waits) <= 600


def test_the_probe_of_another_process_is_reported(
    rate_limiter: Any, clock: FakeClock, waits: Any
) -> None:
    """Requests report that they wait for the probe of another process."""

    async def run() -> None:
        one, other = rate_limiter(), rate_limiter()
        for _ in range(MOST_FAILURES):
            clock.now += 1
            one.note_trouble(failure="silence")
        clock.now += 31
        await one.admit("bars", probe_s=45)
        await other.admit("bars", probe_s=45, waits=recording(waits))

    asyncio.run(run())
    assert waits[0] == ("another request probes whether the gateway responds again", 45)


def test_a_lost_link_is_reported(
    config: GatewayConfig, gateways: Any, replies: Any, minute_request: BarRequest, waits: Any
) -> None:
    """The reason is the gateway's own message."""

    def lost_at_first(client: Any, fields: list[str]) -> None:
        replies.start(client, fields)
        client.error(-1, 1100, "Connectivity between IBKR and Trader Workstation has been lost.")
        client.later(0.1, lambda: client.error(-1, 1102, "restored"))

    gateway_config = replace(config, port=gateways(start=lost_at_first).port)

    async def run() -> int:
        rate_limiter = RateLimiter.of(gateway_config)
        async with open_source(
            gateway_config, rate_limiter=rate_limiter, waits=recording(waits)
        ) as source:
            answer = await source.bars(minute_request)
        rate_limiter.close()
        return answer.bars.num_rows

    assert asyncio.run(run()) == 2
    assert waits[0][0].startswith("1100 Connectivity")
    assert 0 < waits[0][1] <= gateway_config.outage_s
