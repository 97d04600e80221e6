"""Missing and slow responses: every call ends at its deadline."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from ktrdr_pipelines.domain.instruments import Instrument
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.errors import (
    GatewayTimeoutError,
)
from ktrdr_pipelines.ib.pacing.circuit_breaker import MOST_FAILURES, BreakerState
from ktrdr_pipelines.ib.source import GatewaySource

SHORT_S = 0.5
"""A deadline that is waited for; everything else is answered well before it."""


def test_a_request_without_a_response_is_cancelled_at_its_deadline(
    harness: Any, minute_request: BarRequest, replies: Any
) -> None:
    """A request without a response raises, and is cancelled at the gateway."""

    async def ask(source: GatewaySource) -> None:
        with pytest.raises(GatewayTimeoutError, match=r"no answer in 0\.5 s"):
            await source.bars(minute_request)
        await source.health()

    harness(ask, timeout_s=SHORT_S, bars=replies.ignore)
    assert harness.gateway.frames(25) == [["25", "1", harness.gateway.frames(20)[0][1]]]


@pytest.mark.parametrize("is_trial", [False, True])
def test_a_timeout_of_a_trial_shows_nothing_of_the_gateway(
    harness: Any, minute_request: BarRequest, replies: Any, *, is_trial: bool
) -> None:
    """Only the timeout of a request of a width that is known to work counts as trouble."""

    async def ask(source: GatewaySource) -> BreakerState | None:
        for _ in range(MOST_FAILURES):
            with pytest.raises(GatewayTimeoutError):
                await source.bars(replace(minute_request, is_trial=is_trial))
        return (await source.health()).breaker

    breaker = harness(ask, timeout_s=SHORT_S, bars=replies.ignore)
    assert breaker is (BreakerState.CLOSED if is_trial else BreakerState.OPEN)


def test_a_head_request_without_a_response_is_cancelled(
    harness: Any, aapl: Instrument, replies: Any
) -> None:
    """No head request stays open at the gateway."""

    async def ask(source: GatewaySource) -> None:
        with pytest.raises(GatewayTimeoutError):
            await source.head(aapl)
        await source.health()

    harness(ask, timeout_s=SHORT_S, head=replies.ignore)
    assert len(harness.gateway.frames(90)) == 1


def test_a_contract_request_without_a_response_ends_at_the_deadline(
    harness: Any, aapl: Instrument, replies: Any
) -> None:
    """Contract details have a deadline, too."""
    with pytest.raises(GatewayTimeoutError, match="contract of AAPL"):
        harness(lambda source: source.contract_id(aapl), timeout_s=SHORT_S, contract=replies.ignore)


def test_a_request_given_up_by_its_caller_is_cancelled(
    harness: Any, minute_request: BarRequest, replies: Any
) -> None:
    """A cancelled task leaves no request open at the gateway."""

    async def ask(source: GatewaySource) -> None:
        task = asyncio.create_task(source.bars(minute_request))
        await harness.gateway.wait_for_frame(20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await source.health()

    harness(ask, bars=replies.ignore)
    assert len(harness.gateway.frames(25)) == 1


def test_bars_after_the_deadline_are_dropped(
    harness: Any, minute_request: BarRequest, replies: Any
) -> None:
    """Late bars are neither part of the next response nor an error."""
    held: list[Any] = []

    def late_then_good(client: Any, fields: list[str]) -> None:
        held.append(fields[1])
        if len(held) == 2:
            client.raw(replies.history(held[0], replies.bar(replies.first, close=99.0)))
            replies.send_bars(client, fields)

    async def ask(source: GatewaySource) -> Any:
        with pytest.raises(GatewayTimeoutError):
            await source.bars(minute_request)
        return await source.bars(minute_request)

    answer = harness(ask, timeout_s=SHORT_S, bars=late_then_good)
    assert answer.bars["close"].to_pylist() == [10.5, 10.5]


def test_a_response_in_pieces_is_complete(
    harness: Any, minute_request: BarRequest, replies: Any
) -> None:
    """A response that arrives byte by byte is complete."""

    def trickle(client: Any, fields: list[str]) -> None:
        data = replies.history(
            fields[1], replies.bar(replies.first), replies.bar(replies.first + 60)
        )
        for index in range(len(data)):
            client.later(index * 0.001, lambda index=index: client.raw(data[index : index + 1]))

    assert harness(lambda source: source.bars(minute_request), bars=trickle).bars.num_rows == 2


def test_a_response_without_an_end_fails_at_the_deadline(
    harness: Any, minute_request: BarRequest, replies: Any
) -> None:
    """Arriving bytes do not extend the deadline."""

    def endless(client: Any, fields: list[str]) -> None:
        data = replies.history(fields[1], *[replies.bar(replies.first)] * 1000)

        def more(index: int) -> None:
            client.raw(data[index : index + 1])
            client.later(0.01, lambda: more(index + 1))

        more(0)

    with pytest.raises(GatewayTimeoutError):
        harness(lambda source: source.bars(minute_request), timeout_s=SHORT_S, bars=endless)


def test_health_without_a_response_is_a_value(harness: Any, replies: Any) -> None:
    """A gateway that does not respond is reported, not raised."""

    def once(client: Any, fields: list[str]) -> None:
        if len(harness.gateway.frames(49)) == 1:
            replies.send_time(client, fields)

    health = harness(lambda source: source.health(), timeout_s=SHORT_S, time=once)
    assert health.connected
    assert health.round_trip_s is None
    assert health.last_answer_age_s is None
    assert not health.is_good
