"""What the source makes of silence and slowness: every call ends in time."""

import asyncio
from typing import Any

import pytest

from ktrdr_pipelines.domain.instruments import Instrument
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.errors import (
    GatewayTimeoutError,
)
from ktrdr_pipelines.ib.source import GatewaySource

SHORT_S = 1.0
"""A deadline that is waited for; everything else is answered well before it."""


def test_silence_ends_at_the_deadline_and_is_cancelled(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """A request without an answer raises, and the gateway is told to forget it."""

    async def ask(source: GatewaySource) -> None:
        with pytest.raises(GatewayTimeoutError, match="no answer in 1 s"):
            await source.bars(minute_request)
        await source.health()

    bench(ask, timeout_s=SHORT_S, bars=words.ignore)
    assert bench.gateway.what(25) == [["25", "1", bench.gateway.what(20)[0][1]]]


def test_silence_about_a_head_is_cancelled_too(bench: Any, aapl: Instrument, words: Any) -> None:
    """No head request is left open at the gateway."""

    async def ask(source: GatewaySource) -> None:
        with pytest.raises(GatewayTimeoutError):
            await source.head(aapl)
        await source.health()

    bench(ask, timeout_s=SHORT_S, head=words.ignore)
    assert len(bench.gateway.what(90)) == 1


def test_silence_about_a_contract_ends_at_the_deadline(
    bench: Any, aapl: Instrument, words: Any
) -> None:
    """Contract details have a deadline as everything has."""
    with pytest.raises(GatewayTimeoutError, match="contract of AAPL"):
        bench(lambda source: source.contract_id(aapl), timeout_s=SHORT_S, contract=words.ignore)


def test_a_request_given_up_by_its_caller_is_cancelled(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """A cancelled task leaves nothing open at the gateway."""

    async def ask(source: GatewaySource) -> None:
        task = asyncio.create_task(source.bars(minute_request))
        await bench.gateway.until_asked(20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await source.health()

    bench(ask, bars=words.ignore)
    assert len(bench.gateway.what(25)) == 1


def test_bars_that_come_after_the_deadline_go_to_no_listener(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """Late bars neither appear in the next answer nor hurt anything."""
    held: list[Any] = []

    def late_then_good(talk: Any, fields: list[str]) -> None:
        held.append(fields[1])
        if len(held) == 2:
            talk.raw(words.history(held[0], words.bar(words.first, close=99.0)))
            words.tell_bars(talk, fields)

    async def ask(source: GatewaySource) -> Any:
        with pytest.raises(GatewayTimeoutError):
            await source.bars(minute_request)
        return await source.bars(minute_request)

    answer = bench(ask, timeout_s=SHORT_S, bars=late_then_good)
    assert answer.bars["close"].to_pylist() == [10.5, 10.5]


def test_a_slow_trickle_is_put_together(bench: Any, minute_request: BarRequest, words: Any) -> None:
    """An answer that comes byte by byte is the same answer."""

    def trickle(talk: Any, fields: list[str]) -> None:
        data = words.history(fields[1], words.bar(words.first), words.bar(words.first + 60))
        for entry in range(len(data)):
            talk.later(entry * 0.001, lambda entry=entry: talk.raw(data[entry : entry + 1]))

    assert bench(lambda source: source.bars(minute_request), bars=trickle).bars.num_rows == 2


def test_a_trickle_without_end_ends_at_the_deadline(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """Bytes that keep coming do not move the deadline."""

    def endless(talk: Any, fields: list[str]) -> None:
        data = words.history(fields[1], *[words.bar(words.first)] * 1000)

        def more(entry: int) -> None:
            talk.raw(data[entry : entry + 1])
            talk.later(0.01, lambda: more(entry + 1))

        more(0)

    with pytest.raises(GatewayTimeoutError):
        bench(lambda source: source.bars(minute_request), timeout_s=SHORT_S, bars=endless)


def test_health_without_an_answer_is_a_value(bench: Any, words: Any) -> None:
    """A gateway that stops answering is reported, not raised."""

    def once(talk: Any, fields: list[str]) -> None:
        if len(bench.gateway.what(49)) == 1:
            words.tell_time(talk, fields)

    health = bench(lambda source: source.health(), timeout_s=SHORT_S, time=once)
    assert health.connected
    assert health.round_trip_s is None
    assert health.last_answer_age_s is None
    assert not health.is_good
