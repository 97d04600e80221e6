"""Closed connections leave nothing behind, and no connection sends an order."""

import asyncio
import gc
import socket
import struct
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.domain.instruments import Instrument
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.connection.client_ids import ClientIdLeases
from ktrdr_pipelines.ib.connection.strategy import IbConnectionStrategy
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.ib.pacing.rules import pacing_of
from ktrdr_pipelines.ib.source import GatewaySource, open_source


def test_many_connections_leave_nothing(config: GatewayConfig, gateways: Any) -> None:
    """A hundred connections leave no socket, thread, task or lock behind."""
    gateway = gateways()
    gateway_config = replace(config, port=gateway.port)

    async def connect(count: int) -> Any:
        for _ in range(count):
            with closing(
                RateLimiter(gateway_config.folder, pacing=pacing_of().scaled(0))
            ) as rate_limiter:
                async with open_source(gateway_config, rate_limiter=rate_limiter) as source:
                    await source.health()
        return len(asyncio.all_tasks())

    asyncio.run(connect(1))
    gc.collect()
    before = open_files(), threading.active_count()
    assert asyncio.run(connect(100)) == 1
    gc.collect()
    assert (open_files(), threading.active_count()) == before
    assert {fields[2] for fields in gateway.frames(71)} == {"201"}


def open_files() -> Any:
    """Return the number of open files of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), SystemExit(3)])
def test_after_any_exception_the_connection_is_closed(
    config: GatewayConfig, gateways: Any, error: Any
) -> None:
    """After any exception the socket is closed and the id is free."""
    gateway = gateways()
    gateway_config = replace(config, port=gateway.port)
    held = []

    async def once() -> None:
        async with open_source(gateway_config) as source:
            held.append(source)
            raise error

    with pytest.raises(type(error)):
        asyncio.run(once())
    assert "down" in repr(held[0])
    ClientIdLeases(gateway_config.folder).lease((201, 201)).release()


def test_a_cancelled_session_is_closed(
    config: GatewayConfig, gateways: Any, replies: Any, aapl: Instrument
) -> None:
    """A task that is cancelled during a request closes its socket and frees its id."""
    gateway = gateways(contract=replies.ignore)
    gateway_config = replace(config, port=gateway.port)

    async def work() -> None:
        async with open_source(gateway_config) as source:
            await source.contract_id(aapl)

    async def once() -> Any:
        task = asyncio.create_task(work())
        await gateway.wait_for_frame(9)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return len(asyncio.all_tasks())

    assert asyncio.run(once()) == 1
    ClientIdLeases(gateway_config.folder).lease((201, 201)).release()


def test_no_frame_of_a_session_is_an_order(
    harness: Any, minute_request: BarRequest, aapl: Instrument
) -> None:
    """A session sends the handshake, the time, contracts, bars, heads and cancels only."""

    async def ask(source: GatewaySource) -> None:
        await source.bars(minute_request)
        await source.head(aapl)
        await source.health()

    harness(ask)
    assert {fields[0] for fields in harness.gateway.received} <= {
        "71",
        "49",
        "9",
        "20",
        "25",
        "87",
        "90",
    }


def test_a_reset_connection_is_closed_without_an_error(
    config: GatewayConfig, gateways: Any
) -> None:
    """The system refuses to shut a reset socket down; closing it raises nothing."""
    gateway, is_cut = gateways(), threading.Event()
    gateway_config = replace(config, port=gateway.port)

    def cut(client: Any, fields: list[str]) -> None:
        at_once = struct.pack("ii", 1, 0)
        client.writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, at_once
        )
        client.writer.transport.abort()
        asyncio.get_running_loop().call_soon(is_cut.set)

    async def once() -> Any:
        strategy = IbConnectionStrategy(gateway_config)
        async with strategy.get_connection_for_operation("cli") as connection:
            gateway.script.time = cut
            with connection._transport.permitted():
                connection._transport.client.reqCurrentTime()
            assert is_cut.wait(60)  # the loop stands still meanwhile, and does not know
            assert connection.is_up
        return connection.is_up

    assert asyncio.run(once()) is False
    ClientIdLeases(gateway_config.folder).lease((201, 201)).release()
