"""What the source makes of connections that end: its own, and the gateway's."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.errors import (
    ConnectionLostError,
    OutageError,
)
from ktrdr_pipelines.ib.source import GatewaySource


def test_an_end_inside_an_answer_is_a_lost_connection(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """Half a frame and then nothing more fails the request at once."""

    def half(talk: Any, fields: list[str]) -> None:
        talk.raw(words.history(fields[1], words.bar(words.first))[:30])
        talk.close()

    with pytest.raises(ConnectionLostError, match="closed the connection"):
        bench(lambda source: source.bars(minute_request), bars=half)


def test_a_lost_connection_fails_every_open_request_at_once(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """Nobody waits for the deadline when the socket is gone."""

    def close_at_third(talk: Any, fields: list[str]) -> None:
        if len(bench.gateway.what(20)) == 3:
            talk.close()

    async def ask(source: GatewaySource) -> Any:
        requests = [replace(minute_request, duration=f"{days} D") for days in (1, 2, 3)]
        return await asyncio.gather(
            *(source.bars(request) for request in requests), return_exceptions=True
        )

    errors = bench(ask, bars=close_at_third)
    assert [type(error) for error in errors] == [ConnectionLostError] * 3
    assert len({str(error) for error in errors}) == 3


def test_a_request_on_a_lost_connection_fails_at_once(
    bench: Any, minute_request: BarRequest
) -> None:
    """What is asked after the end does not wait either."""

    async def ask(source: GatewaySource) -> None:
        with pytest.raises(ConnectionLostError):
            await source.bars(minute_request)
        await source.bars(minute_request)

    with pytest.raises(ConnectionLostError, match="is gone"):
        bench(ask, bars=lambda talk, _: talk.close())


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x00",
        b"\x00\x00\x00\x06hello\x00",
        b"\x00\x00\x00\x03\xff\xfe\x00",
    ],
)
def test_garbage_ends_the_connection(bench: Any, minute_request: BarRequest, data: Any) -> None:
    """A stream that cannot be read is given up at once, with a typed error."""
    with pytest.raises(ConnectionLostError, match="does not speak"):
        bench(lambda source: source.bars(minute_request), bars=lambda talk, _: talk.raw(data))


LOST = (1100, "Connectivity between IBKR and Trader Workstation has been lost.")


def test_requests_wait_while_the_link_is_lost(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """Nothing is sent between 1100 and 1101; then it goes on."""
    sent_in_between: list[int] = []

    def lost_at_first(talk: Any, fields: list[str]) -> None:
        words.start(talk, fields)
        talk.error(-1, *LOST)

    def restored(talk: Any) -> None:
        sent_in_between.append(len(bench.gateway.what(9)))
        talk.error(-1, 1101, "Connectivity restored - data lost.")

    def tell_time(talk: Any, fields: list[str]) -> None:
        words.tell_time(talk, fields)
        if len(bench.gateway.what(49)) == 2:
            talk.later(0.2, lambda: restored(talk))

    async def ask(source: GatewaySource) -> Any:
        answer = asyncio.create_task(source.bars(minute_request))
        await source.health()
        return await answer

    assert bench(ask, start=lost_at_first, time=tell_time).bars.num_rows == 2
    assert sent_in_between == [0]


def test_a_link_that_stays_lost_ends_at_the_deadline(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """What waits for the link says so when it gives up, and has asked nothing."""

    def lost_at_first(talk: Any, fields: list[str]) -> None:
        words.start(talk, fields)
        talk.error(-1, *LOST)

    with pytest.raises(OutageError, match="1100 Connectivity"):
        bench(lambda source: source.bars(minute_request), outage_s=0.5, start=lost_at_first)
    assert bench.gateway.what(9) == []


def test_a_broken_farm_explains_the_silence(bench: Any, minute_request: BarRequest) -> None:
    """A request that times out while the data farm is broken says so; health does too."""

    def broken(talk: Any, fields: list[str]) -> None:
        talk.error(-1, 2105, "HMDS data farm connection is broken:ushmds")

    async def ask(source: GatewaySource) -> Any:
        with pytest.raises(OutageError, match="2105 HMDS data farm connection is broken"):
            await source.bars(minute_request)
        return await source.health()

    health = bench(ask, timeout_s=1.0, outage_s=1.0, bars=broken)
    assert health.troubles == ("2105 HMDS data farm connection is broken:ushmds",)


def test_a_fixed_farm_is_forgotten(bench: Any, words: Any) -> None:
    """2106 for the same farm ends the trouble."""

    def start(talk: Any, fields: list[str]) -> None:
        words.start(talk, fields)
        talk.error(-1, 2105, "HMDS data farm connection is broken:ushmds")
        talk.error(-1, 2106, "HMDS data farm connection is OK:ushmds")

    assert bench(lambda source: source.health(), start=start).is_good


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (1300, "TWS socket port has been reset and this connection is being dropped."),
        (504, "Not connected"),
        (507, "Bad message length"),
    ],
)
def test_a_connection_that_is_called_off_fails_what_is_open(
    bench: Any, minute_request: BarRequest, code: int, text: str
) -> None:
    """A gateway that drops the connection, or cannot read it any more, says so before it does."""

    def dropping(talk: Any, fields: list[str]) -> None:
        talk.error(-1, code, text)

    with pytest.raises(ConnectionLostError, match=str(code)):
        bench(lambda source: source.bars(minute_request), bars=dropping)
