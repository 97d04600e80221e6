"""Connecting: refusals, hangs, other servers, and the client ids that are tried."""

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


class RecordedSleep:
    """A sleep that records its seconds and returns at once."""

    def __init__(self) -> None:
        self.seconds = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


@pytest.fixture
def connect(config: GatewayConfig, gateways: Any) -> Any:
    """Return a function that connects once to a gateway of a script, and keeps the gateway."""

    def run(operation: str = "cli", timeout_s: float = 60.0, **script: Any) -> Any:
        gateway, sleep = gateways(**script), RecordedSleep()
        run.gateway, run.sleep = gateway, sleep
        gateway_config = replace(config, port=gateway.port, timeout_s=timeout_s)

        async def once() -> Any:
            strategy = IbConnectionStrategy(gateway_config, sleep=sleep)
            async with strategy.get_connection_for_operation(operation) as connection:
                return connection.client_id

        return asyncio.run(once())

    return run


def test_a_closed_port_says_how_to_start_a_gateway(config: GatewayConfig, closed_port: int) -> None:
    """The error names host and port, the gateway, and the simulator."""

    async def once() -> None:
        async with open_source(replace(config, port=closed_port)):
            pass

    with pytest.raises(GatewayUnreachableError, match=f"127.0.0.1:{closed_port}") as caught:
        asyncio.run(once())
    assert f"enable the API on port {closed_port}" in str(caught.value)
    assert "ktrdr simulate" in str(caught.value)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "gate..home", "[::1]", "gate\0way"])
def test_an_unknown_host_is_unreachable(config: GatewayConfig, host: str) -> None:
    """A name that does not resolve points to IB_HOST, not to the gateway."""

    async def once() -> None:
        async with open_source(replace(config, host=host)):
            pass

    with pytest.raises(GatewayUnreachableError, match=re.escape(host)) as caught:
        asyncio.run(once())
    assert "no such host is known" in caught.value.reason
    assert "IB_HOST" in caught.value.hint
    assert "Start IB Gateway" not in caught.value.hint


def test_a_host_that_never_accepts_is_unreachable(config: GatewayConfig) -> None:
    """A connection that is never accepted ends at the deadline, as unreachable."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        gateway_config = replace(config, port=listener.getsockname()[1], timeout_s=0.5)

        async def once() -> None:
            async with open_source(gateway_config):
                pass

        with pytest.raises(
            GatewayUnreachableError, match=r"no connection could be made \(in time\)"
        ):
            asyncio.run(once())


def test_a_port_that_closes_at_once_is_unreachable(connect: Any) -> None:
    """A container's port does so while the gateway in it is down."""
    with pytest.raises(GatewayUnreachableError, match="closed the connection"):
        connect(greet=lambda client: client.close())


def test_an_end_after_the_handshake_is_unreachable(connect: Any) -> None:
    """A gateway that closes after its greeting is unreachable."""
    with pytest.raises(GatewayUnreachableError, match="closed the connection"):
        connect(start=lambda client, _: client.close())


def test_a_port_that_sends_nothing_is_a_timeout(connect: Any, replies: Any) -> None:
    """A port that accepts and sends nothing is a hanging gateway, not a missing one."""
    with pytest.raises(GatewayTimeoutError, match="did not answer"):
        connect(timeout_s=0.5, greet=lambda _: None)


def test_a_handshake_that_is_not_completed_is_a_timeout(connect: Any, replies: Any) -> None:
    """A gateway that does not complete its start-up is a timeout."""
    with pytest.raises(GatewayTimeoutError):
        connect(timeout_s=0.5, start=replies.ignore)


def test_a_gateway_that_does_not_send_the_time_is_a_timeout(connect: Any, replies: Any) -> None:
    """A connection needs one round trip."""
    with pytest.raises(GatewayTimeoutError, match="time of 127"):
        connect(timeout_s=0.5, time=replies.ignore)


def test_the_error_quotes_the_messages_of_the_handshake(connect: Any, replies: Any) -> None:
    """The error quotes the dialog for which a gateway waits."""

    def disclaim(client: Any, fields: list[str]) -> None:
        client.error(-1, 2104, "Market data farm connection is OK:usfarm")
        client.error(
            -1, 10141, "Paper trading disclaimer must first be accepted for API connection."
        )

    with pytest.raises(GatewayTimeoutError, match=r"did not answer \(10141 Paper trading discl"):
        connect(timeout_s=0.5, start=disclaim)

    def disclaim_and_close(client: Any, fields: list[str]) -> None:
        disclaim(client, fields)
        client.close()

    with pytest.raises(GatewayUnreachableError, match=r"closed the connection \(10141 Paper"):
        connect(start=disclaim_and_close)


def test_a_gateway_without_an_account_is_a_timeout(connect: Any, replies: Any) -> None:
    """The account decides the origin of bars: without one there is no connection."""

    def no_account(client: Any, fields: list[str]) -> None:
        client.send(15, 1, "")
        client.send(9, 1, 1)

    with pytest.raises(GatewayTimeoutError, match="it names no account"):
        connect(timeout_s=0.5, start=no_account)


def test_a_late_account_is_waited_for(connect: Any, replies: Any) -> None:
    """A gateway that is still logging in sends an empty list of accounts first."""

    def late(client: Any, fields: list[str]) -> None:
        client.send(15, 1, "")
        client.later(0.1, lambda: replies.start(client, fields))

    assert connect(start=late) == 201


@pytest.mark.parametrize("version", [20, 156, 179, 201])
def test_an_unsupported_protocol_version_is_not_retried(connect: Any, version: int) -> None:
    """An unsupported version fails at once, and is not retried."""
    with pytest.raises(GatewayUnreachableError, match=f"version {version}") as caught:
        connect(version=version)
    assert not caught.value.retry


@pytest.mark.parametrize("data", [b"SSH-2.0-OpenSSH_9.6\r\n", b"\x00\x00\x00\x04abc\x00"])
def test_another_protocol_at_the_port_is_recognized(connect: Any, data: Any) -> None:
    """Another protocol at the port fails at once, before the deadline."""
    with pytest.raises(GatewayUnreachableError, match="something else listens there"):
        connect(greet=lambda client: client.raw(data))


def refuse_id(client: Any, fields: list[str]) -> None:
    """Send 326 and close, as the gateway does."""
    client.error(-1, 326, "Unable to connect as the client id is already in use.")
    client.close()


def test_an_id_in_use_leads_to_the_next(connect: Any, replies: Any) -> None:
    """After 326 and a pause the next id is tried."""

    def start(client: Any, fields: list[str]) -> None:
        (refuse_id if client.client_id == 201 else replies.start)(client, fields)

    assert connect(start=start) == 202
    assert connect.sleep.seconds == [IbLimitsRegistry.CLIENT_ID_PAUSE_S.value]


def test_few_ids_are_tried(connect: Any) -> None:
    """After three refused ids it gives up: more would make the gateway refuse every client."""
    with pytest.raises(ClientIdInUseError) as caught:
        connect(start=refuse_id)
    assert caught.value.code == 326
    assert [fields[2] for fields in connect.gateway.frames(71)] == ["201", "202", "203"]
    assert len(connect.sleep.seconds) == 2


def test_a_refused_id_is_skipped_by_the_next_connection(
    config: GatewayConfig, gateways: Any, replies: Any
) -> None:
    """The quarantine of an id outlasts the connection that was refused."""

    def start(client: Any, fields: list[str]) -> None:
        (refuse_id if client.client_id == 201 else replies.start)(client, fields)

    gateway = gateways(start=start)

    async def once() -> None:
        strategy = IbConnectionStrategy(replace(config, port=gateway.port), sleep=RecordedSleep())
        async with strategy.get_connection_for_operation("cli"):
            pass

    asyncio.run(once())
    asyncio.run(once())
    assert [fields[2] for fields in gateway.frames(71)] == ["201", "202", "202"]


def test_a_state_folder_that_cannot_be_made_is_a_disk_error(
    config: GatewayConfig, gateways: Any, tmp_path: Path
) -> None:
    """A file in place of the folder is an error that names the setting."""
    (tmp_path / "state").write_text("no folder")
    gateway_config = replace(config, port=gateways().port)

    async def once() -> None:
        async with open_source(gateway_config):
            pass

    with pytest.raises(DiskError, match="KTRDR_STATE"):
        asyncio.run(once())
