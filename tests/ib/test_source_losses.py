"""Connections that end, and outages of the gateway's own connections."""

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


def test_an_end_inside_a_response_is_a_lost_connection(
    harness: Any, minute_request: BarRequest, replies: Any
) -> None:
    """A connection that ends inside a frame fails the request at once."""

    def half(client: Any, fields: list[str]) -> None:
        client.raw(replies.history(fields[1], replies.bar(replies.first))[:30])
        client.close()

    with pytest.raises(ConnectionLostError, match="closed the connection"):
        harness(lambda source: source.bars(minute_request), bars=half)


def test_a_lost_connection_fails_every_open_request_at_once(
    harness: Any, minute_request: BarRequest, replies: Any
) -> None:
    """No request waits for its deadline."""

    def close_at_third(client: Any, fields: list[str]) -> None:
        if len(harness.gateway.frames(20)) == 3:
            client.close()

    async def ask(source: GatewaySource) -> Any:
        requests = [replace(minute_request, duration=f"{days} D") for days in (1, 2, 3)]
        return await asyncio.gather(
            *(source.bars(request) for request in requests), return_exceptions=True
        )

    errors = harness(ask, bars=close_at_third)
    assert [type(error) for error in errors] == [ConnectionLostError] * 3
    assert len({str(error) for error in errors}) == 3


def test_a_request_on_a_lost_connection_fails_at_once(
    harness: Any, minute_request: BarRequest
) -> None:
    """A later request does not wait either."""

    async def ask(source: GatewaySource) -> None:
        with pytest.raises(ConnectionLostError):
            await source.bars(minute_request)
        await source.bars(minute_request)

    with pytest.raises(ConnectionLostError, match="is gone"):
        harness(ask, bars=lambda client, _: client.close())


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x00",
        b"\x00\x00\x00\x06hello\x00",
        b"\x00\x00\x00\x0317\x00",
        b"\x00\x00\x00\x0417\x001",
        b"\x00\x00\x00\x0517\x00x\x00",
        b"\x00\x00\x00\x03\xff\xfe\x00",
    ],
)
def test_garbage_ends_the_connection(harness: Any, minute_request: BarRequest, data: Any) -> None:
    """An unreadable stream ends the connection at once, with a typed error."""
    with pytest.raises(ConnectionLostError, match="does not speak"):
        harness(lambda source: source.bars(minute_request), bars=lambda client, _: client.raw(data))


LOST = (1100, "Connectivity between IBKR and Trader Workstation has been lost.")


def test_requests_wait_while_the_link_is_lost(
    harness: Any, minute_request: BarRequest, replies: Any
) -> None:
    """Nothing is sent between 1100 and 1101."""
    sent_in_between: list[int] = []

    def lost_at_first(client: Any, fields: list[str]) -> None:
        replies.start(client, fields)
        client.error(-1, *LOST)

    def restored(client: Any) -> None:
        sent_in_between.append(len(harness.gateway.frames(9)))
        client.error(-1, 1101, "Connectivity restored - data lost.")

    def send_time(client: Any, fields: list[str]) -> None:
        replies.send_time(client, fields)
        if len(harness.gateway.frames(49)) == 2:
            client.later(0.2, lambda: restored(client))

    async def ask(source: GatewaySource) -> Any:
        answer = asyncio.create_task(source.bars(minute_request))
        await source.health()
        return await answer

    assert harness(ask, start=lost_at_first, time=send_time).bars.num_rows == 2
    assert sent_in_between == [0]


def test_a_link_that_stays_lost_ends_at_the_deadline(
    harness: Any, minute_request: BarRequest, replies: Any
) -> None:
    """The request fails with the gateway's message, and was not sent."""

    def lost_at_first(client: Any, fields: list[str]) -> None:
        replies.start(client, fields)
        client.error(-1, *LOST)

    with pytest.raises(OutageError, match="1100 Connectivity"):
        harness(lambda source: source.bars(minute_request), outage_s=0.5, start=lost_at_first)
    assert harness.gateway.frames(9) == []


def test_a_timeout_names_a_broken_farm(harness: Any, minute_request: BarRequest) -> None:
    """A request that times out during an outage of a farm names it, and so does the health."""

    def broken(client: Any, fields: list[str]) -> None:
        client.error(-1, 2105, "HMDS data farm connection is broken:ushmds")

    async def ask(source: GatewaySource) -> Any:
        with pytest.raises(OutageError, match="2105 HMDS data farm connection is broken"):
            await source.bars(minute_request)
        return await source.health()

    health = harness(ask, timeout_s=0.5, outage_s=0.5, bars=broken)
    assert health.troubles == ("2105 HMDS data farm connection is broken:ushmds",)


def test_a_fixed_farm_is_no_trouble(harness: Any, replies: Any) -> None:
    """2106 for the same farm ends the trouble."""

    def start(client: Any, fields: list[str]) -> None:
        replies.start(client, fields)
        client.error(-1, 2105, "HMDS data farm connection is broken:ushmds")
        client.error(-1, 2106, "HMDS data farm connection is OK:ushmds")

    assert harness(lambda source: source.health(), start=start).is_good


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (1300, "TWS socket port has been reset and this connection is being dropped."),
        (504, "Not connected"),
        (507, "Bad message length"),
    ],
)
def test_an_announced_disconnect_fails_open_requests(
    harness: Any, minute_request: BarRequest, code: int, text: str
) -> None:
    """The gateway announces that it drops the connection."""

    def dropping(client: Any, fields: list[str]) -> None:
        client.error(-1, code, text)

    with pytest.raises(ConnectionLostError, match=str(code)):
        harness(lambda source: source.bars(minute_request), bars=dropping)
