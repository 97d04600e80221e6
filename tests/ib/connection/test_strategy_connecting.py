"""Connecting: what refuses, hangs, or is no gateway, and the client ids that are tried."""

import asyncio
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.errors import (
    ClientIdInUseError,
    DiskError,
    GatewayTimeoutError,
    GatewayUnreachableError,
)
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.connection.strategy import IbConnectionStrategy
from ktrdr_pipelines.ib.source import open_source
from ktrdr_pipelines.limits import IbLimitsRegistry


class Naps:
    """A sleep that only notes how long it would have taken."""

    def __init__(self) -> None:
        self.seconds = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


@pytest.fixture
def connect(config: GatewayConfig, gateways: Any) -> Any:
    """Connect once to a gateway of a script, and give the gateway and the naps between tries."""

    def run(operation: str = "cli", timeout_s: float = 60.0, **script: Any) -> Any:
        gateway, naps = gateways(**script), Naps()
        run.gateway, run.naps = gateway, naps
        there = replace(config, port=gateway.port, timeout_s=timeout_s)

        async def once() -> Any:
            strategy = IbConnectionStrategy(there, sleep=naps)
            async with strategy.get_connection_for_operation(operation) as connection:
                return connection.client_id

        return asyncio.run(once())

    return run


def test_a_closed_port_says_how_to_start_a_gateway(config: GatewayConfig, closed_port: int) -> None:
    """Nothing listening names host and port, the gateway, and the simulator."""

    async def once() -> None:
        async with open_source(replace(config, port=closed_port)):
            pass

    with pytest.raises(GatewayUnreachableError, match=f"127.0.0.1:{closed_port}") as caught:
        asyncio.run(once())
    assert f"enable the API on port {closed_port}" in str(caught.value)
    assert "ktrdr simulate" in str(caught.value)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "gate..home", "[::1]"])
def test_a_host_that_no_listener_knows_is_unreachable(config: GatewayConfig, host: str) -> None:
    """A name that does not resolve, or is none, points to IB_HOST and not to the gateway."""

    async def once() -> None:
        async with open_source(replace(config, host=host)):
            pass

    with pytest.raises(GatewayUnreachableError, match=re.escape(host)) as caught:
        asyncio.run(once())
    assert "no such host is known" in caught.value.reason
    assert "IB_HOST" in caught.value.hint
    assert "Start IB Gateway" not in caught.value.hint


def test_a_host_that_never_answers_is_unreachable(config: GatewayConfig) -> None:
    """A connection that is never accepted ends at the deadline, and is no silent gateway."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        there = replace(config, port=listener.getsockname()[1], timeout_s=1.0)

        async def once() -> None:
            async with open_source(there):
                pass

        with pytest.raises(
            GatewayUnreachableError, match=r"no connection could be made \(in time\)"
        ):
            asyncio.run(once())


def test_a_port_that_closes_at_once_is_unreachable(connect: Any) -> None:
    """Accept, then the end: what a container's port does when the gateway in it is down."""
    with pytest.raises(GatewayUnreachableError, match="closed the connection"):
        connect(greet=lambda talk: talk.close())


def test_an_end_after_the_handshake_is_unreachable(connect: Any) -> None:
    """A gateway that greets and then hangs up is no gateway to work with."""
    with pytest.raises(GatewayUnreachableError, match="closed the connection"):
        connect(start=lambda talk, _: talk.close())


def test_a_port_that_stays_silent_is_told_apart(connect: Any, words: Any) -> None:
    """Accepting and saying nothing is the gateway's own hang, not a missing gateway."""
    with pytest.raises(GatewayTimeoutError, match="did not answer"):
        connect(timeout_s=1.0, greet=lambda _: None)


def test_silence_after_the_handshake_is_silence(connect: Any, words: Any) -> None:
    """A gateway that never says that it is ready is silent."""
    with pytest.raises(GatewayTimeoutError):
        connect(timeout_s=1.0, start=words.ignore)


def test_a_gateway_that_does_not_tell_the_time_is_silent(connect: Any, words: Any) -> None:
    """Being connected is not enough: one round trip must come back."""
    with pytest.raises(GatewayTimeoutError, match="time of 127"):
        connect(timeout_s=1.0, time=words.ignore)


def test_what_the_gateway_says_in_the_handshake_is_told(connect: Any, words: Any) -> None:
    """A gateway that waits for a click says for which, and a person gets to read it."""

    def disclaim(talk: Any, fields: list[str]) -> None:
        talk.error(-1, 2104, "Market data farm connection is OK:usfarm")
        talk.error(-1, 10141, "Paper trading disclaimer must first be accepted for API connection.")

    with pytest.raises(GatewayTimeoutError, match=r"did not answer \(10141 Paper trading discl"):
        connect(timeout_s=1.0, start=disclaim)

    def disclaim_and_close(talk: Any, fields: list[str]) -> None:
        disclaim(talk, fields)
        talk.close()

    with pytest.raises(GatewayUnreachableError, match=r"closed the connection \(10141 Paper"):
        connect(start=disclaim_and_close)


def test_a_gateway_that_names_no_account_is_told_as_such(connect: Any, words: Any) -> None:
    """Whose bars they are says the account: without one nothing is asked."""

    def nobody(talk: Any, fields: list[str]) -> None:
        talk.send(15, 1, "")
        talk.send(9, 1, 1)

    with pytest.raises(GatewayTimeoutError, match="it names no account"):
        connect(timeout_s=1.0, start=nobody)


def test_an_account_that_comes_late_is_waited_for(connect: Any, words: Any) -> None:
    """A gateway that is still logging in names nobody first."""

    def late(talk: Any, fields: list[str]) -> None:
        talk.send(15, 1, "")
        talk.later(0.1, lambda: words.start(talk, fields))

    assert connect(start=late) == 201


@pytest.mark.parametrize("version", [20, 156, 179, 201])
def test_another_protocol_version_is_refused_for_good(connect: Any, version: int) -> None:
    """Versions that are not spoken end at once and are not worth another try."""
    with pytest.raises(GatewayUnreachableError, match=f"version {version}") as caught:
        connect(version=version)
    assert not caught.value.retry


@pytest.mark.parametrize("data", [b"SSH-2.0-OpenSSH_9.6\r\n", b"\x00\x00\x00\x04abc\x00"])
def test_something_else_at_the_port_is_recognised(connect: Any, data: Any) -> None:
    """Another protocol on the port is told as such, without waiting for the deadline."""
    with pytest.raises(GatewayUnreachableError, match="something else listens there"):
        connect(greet=lambda talk: talk.raw(data))


def refuse_id(talk: Any, fields: list[str]) -> None:
    """Say 326 and hang up, as the gateway does."""
    talk.error(-1, 326, "Unable to connect as the client id is already in use.")
    talk.close()


def test_an_id_in_use_leads_to_the_next(connect: Any, words: Any) -> None:
    """326 costs a pause, not the connection."""

    def start(talk: Any, fields: list[str]) -> None:
        (refuse_id if talk.client_id == 201 else words.start)(talk, fields)

    assert connect(start=start) == 202
    assert connect.naps.seconds == [IbLimitsRegistry.CLIENT_ID_PAUSE_S.value]


def test_few_ids_are_tried(connect: Any) -> None:
    """After three refused ids it gives up, for more would make the gateway refuse everyone."""
    with pytest.raises(ClientIdInUseError) as caught:
        connect(start=refuse_id)
    assert caught.value.code == 326
    assert [fields[2] for fields in connect.gateway.what(71)] == ["201", "202", "203"]
    assert len(connect.naps.seconds) == 2


def test_a_refused_id_is_skipped_by_the_next_connection(
    config: GatewayConfig, gateways: Any, words: Any
) -> None:
    """The quarantine of an id outlives the connection that met it."""

    def start(talk: Any, fields: list[str]) -> None:
        (refuse_id if talk.client_id == 201 else words.start)(talk, fields)

    gateway = gateways(start=start)

    async def once() -> None:
        strategy = IbConnectionStrategy(replace(config, port=gateway.port), sleep=Naps())
        async with strategy.get_connection_for_operation("cli"):
            pass

    asyncio.run(once())
    asyncio.run(once())
    assert [fields[2] for fields in gateway.what(71)] == ["201", "202", "202"]


def test_a_state_folder_that_cannot_be_made_is_told(
    config: GatewayConfig, gateways: Any, tmp_path: Path
) -> None:
    """A file where the folder should be names the setting to change."""
    (tmp_path / "state").write_text("no folder")
    there = replace(config, port=gateways().port)

    async def once() -> None:
        async with open_source(there):
            pass

    with pytest.raises(DiskError, match="KTRDR_STATE"):
        asyncio.run(once())
