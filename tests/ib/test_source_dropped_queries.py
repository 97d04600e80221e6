"""Queries that the gateway drops by itself: asked again, on the same connection, a few times."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from ktrdr_pipelines.domain.instruments import Instrument
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.ib.protocol.error_codes import QueryDroppedError
from ktrdr_pipelines.sync.engine.source_session import RetryPolicy, SourceSession

HMDS = "Historical Market Data Service error message:"
DROPPED = [
    (162, f"{HMDS}API historical data query cancelled: 3"),
    (366, "No historical data query found for ticker id:3"),
]


def refusing(code: int, text: str) -> Any:
    """Answer requests for data with an error frame."""
    return lambda talk, fields: talk.error(fields[1], code, text)


async def no_wait(_: float) -> None:
    """Pass the time between tries at once."""


@pytest.mark.parametrize(("code", "text"), DROPPED)
def test_a_query_that_the_gateway_drops_is_asked_again_on_the_same_connection(
    bench: Any, minute_request: BarRequest, words: Any, *, code: int, text: str
) -> None:
    """Nobody had cancelled it; what else is open does not suffer, and the tries are counted."""
    slow: list[Any] = []

    def bars(talk: Any, fields: list[str]) -> None:
        if fields[17] == "2 D":
            slow.append((talk, fields))
        elif len(bench.gateway.what(20)) == 2:
            talk.error(fields[1], code, text)
        else:
            words.tell_bars(*slow[0])
            words.tell_bars(talk, fields)

    bench.gateway = bench.start(bars=bars)
    retry_policy = RetryPolicy(max_retries=3, sleep=no_wait)

    async def ask() -> Any:
        async with SourceSession(bench.source, retry_policy) as source_session:
            two_days = replace(minute_request, duration="2 D")
            other = asyncio.create_task(source_session.ask(lambda source: source.bars(two_days)))
            await bench.gateway.until_asked(20)
            answer = await source_session.ask(lambda source: source.bars(minute_request))
            return answer, await other

    answer, other = asyncio.run(ask())
    assert answer.bars.num_rows == other.bars.num_rows == 2
    assert bench.gateway.connects == 1
    assert len(bench.gateway.what(20)) == 3


def test_a_query_that_is_dropped_for_ever_is_given_up(
    bench: Any, minute_request: BarRequest
) -> None:
    """After the retries that a person allowed, and not later."""
    bench.gateway = bench.start(bars=refusing(*DROPPED[0]))

    async def ask() -> None:
        retry_policy = RetryPolicy(max_retries=2, sleep=no_wait)
        async with SourceSession(bench.source, retry_policy) as source_session:
            await source_session.ask(lambda source: source.bars(minute_request))

    with pytest.raises(QueryDroppedError, match="query cancelled"):
        asyncio.run(ask())
    assert len(bench.gateway.what(20)) == 3
    assert bench.gateway.connects == 1


@pytest.mark.parametrize(("code", "text"), DROPPED)
def test_a_dropped_question_for_a_head_does_not_mean_that_there_is_none(
    bench: Any, aapl: Instrument, code: int, text: str
) -> None:
    """162 means no head, unless it says that the query was cancelled."""
    with pytest.raises(QueryDroppedError):
        bench(lambda source: source.head(aapl), head=refusing(code, text))


def test_a_farm_that_leaves_a_query_is_an_outage_of_that_query(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """165 asks again on the same connection, and its good news ends nothing."""
    message = "Historical Market Data Service query message:HMDS server"

    def bars(talk: Any, fields: list[str]) -> None:
        if len(bench.gateway.what(20)) == 1:
            talk.error(fields[1], 165, f"{message} disconnect occurred.  Attempting reconnection")
        else:
            talk.error(fields[1], 165, f"{message} connection was successful.")
            words.tell_bars(talk, fields)

    answer = bench(lambda source: source.bars(minute_request), bars=bars)
    assert answer.bars.num_rows == 2
    first, _ = bench.gateway.what(20)
    assert bench.gateway.wait_for(25) == [["25", "1", first[1]]]
    assert bench.gateway.connects == 1
