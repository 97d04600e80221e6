"""Queries that the gateway drops: requested again on the same connection, a few times."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from ktrdr_pipelines.domain.instruments import Instrument
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.ib.protocol.error_codes import QueryDroppedError
from ktrdr_pipelines.sync.engine.source_session import RetryPolicy, SourceSession
from tests.ib.scripted_gateway import HMDS

DROPPED = [
    (162, f"{HMDS}API historical data query cancelled: 3"),
    (366, "No historical data query found for ticker id:3"),
]


def refusing(code: int, text: str) -> Any:
    """Return a handler that sends an error."""
    return lambda client, fields: client.error(fields[1], code, text)


async def no_wait(_: float) -> None:
    """Return at once."""


@pytest.mark.parametrize(("code", "text"), DROPPED)
def test_a_dropped_query_is_repeated_on_the_same_connection(
    harness: Any, minute_request: BarRequest, replies: Any, *, code: int, text: str
) -> None:
    """Other open requests are not affected, and the attempts are counted."""
    slow: list[Any] = []

    def bars(client: Any, fields: list[str]) -> None:
        if fields[17] == "2 D":
            slow.append((client, fields))
        elif len(harness.gateway.frames(20)) == 2:
            client.error(fields[1], code, text)
        else:
            replies.send_bars(*slow[0])
            replies.send_bars(client, fields)

    harness.gateway = harness.start(bars=bars)
    retry_policy = RetryPolicy(max_retries=3, sleep=no_wait)

    async def ask() -> Any:
        async with SourceSession(harness.source, retry_policy) as source_session:
            two_days = replace(minute_request, duration="2 D")
            other = asyncio.create_task(source_session.ask(lambda source: source.bars(two_days)))
            await harness.gateway.wait_for_frame(20)
            answer = await source_session.ask(lambda source: source.bars(minute_request))
            return answer, await other

    answer, other = asyncio.run(ask())
    assert answer.bars.num_rows == other.bars.num_rows == 2
    assert harness.gateway.connects == 1
    assert len(harness.gateway.frames(20)) == 3


def test_a_query_that_is_always_dropped_fails(harness: Any, minute_request: BarRequest) -> None:
    """It fails after the configured retries."""
    harness.gateway = harness.start(bars=refusing(*DROPPED[0]))

    async def ask() -> None:
        retry_policy = RetryPolicy(max_retries=2, sleep=no_wait)
        async with SourceSession(harness.source, retry_policy) as source_session:
            await source_session.ask(lambda source: source.bars(minute_request))

    with pytest.raises(QueryDroppedError, match="query cancelled"):
        asyncio.run(ask())
    assert len(harness.gateway.frames(20)) == 3
    assert harness.gateway.connects == 1


@pytest.mark.parametrize(("code", "text"), DROPPED)
def test_a_dropped_head_request_is_an_error(
    harness: Any, aapl: Instrument, code: int, text: str
) -> None:
    """A 162 that says "cancelled" is no statement about the head."""
    with pytest.raises(QueryDroppedError):
        harness(lambda source: source.head(aapl), head=refusing(code, text))


def test_a_disconnected_farm_repeats_the_query(
    harness: Any, minute_request: BarRequest, replies: Any
) -> None:
    """After 165 the request is repeated on the same connection; its good news end nothing."""
    message = "Historical Market Data Service query message:HMDS server"

    def bars(client: Any, fields: list[str]) -> None:
        if len(harness.gateway.frames(20)) == 1:
            client.error(fields[1], 165, f"{message} disconnect occurred.  Attempting reconnection")
        else:
            client.error(fields[1], 165, f"{message} connection was successful.")
            replies.send_bars(client, fields)

    answer = harness(lambda source: source.bars(minute_request), bars=bars)
    assert answer.bars.num_rows == 2
    first, _ = harness.gateway.frames(20)
    assert harness.gateway.wait_for_frames(25) == [["25", "1", first[1]]]
    assert harness.gateway.connects == 1
