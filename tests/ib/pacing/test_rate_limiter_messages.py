"""The message rate: no second holds more messages to a gateway than IB allows."""

import asyncio
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ktrdr_pipelines.clock import boot_time_s
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.errors import DiskError, GatewayTimeoutError
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.connection.strategy import IbConnectionStrategy
from ktrdr_pipelines.ib.pacing.shared_file import FILE
from ktrdr_pipelines.ib.source import GatewaySource, open_source
from ktrdr_pipelines.limits import IbLimitsRegistry

MOST = IbLimitsRegistry.MESSAGES_PER_S.value
SECOND_S = 1.0 + IbLimitsRegistry.MESSAGE_JITTER_S.value
ONE_IN = 8
"""Of so many requests the gateway leaves one without a response."""


def timestamps(config: GatewayConfig) -> list[float]:
    """Return when each message was written to a socket, as the shared record has it, in order."""
    with closing(sqlite3.connect(config.folder / FILE)) as database:
        found = database.execute("SELECT at FROM requests WHERE state <> 'waiting' ORDER BY at")
        return [at for (at,) in found]


def most_in(at: list[float], length_s: float) -> int:
    """Return the most timestamps in any interval of a length."""
    return max(sum(first <= one < first + length_s for one in at) for first in at)


def different(request: BarRequest, count: int, first: int) -> list[BarRequest]:
    """Return requests that differ by their ends."""
    start = datetime(2026, 1, 6, tzinfo=UTC)
    return [replace(request, ends_at=start + timedelta(hours=first + n)) for n in range(count)]


async def ask_all(source: GatewaySource, requests: list[BarRequest]) -> int:
    """Send all requests at once, with health checks; return how many had no response."""

    async def one(request: BarRequest) -> bool:
        try:
            await source.bars(request)
        except GatewayTimeoutError:
            return True
        return False

    checks = [source.health() for _ in range(20)]
    missing, _ = await asyncio.gather(asyncio.gather(*map(one, requests)), asyncio.gather(*checks))
    return sum(missing)


@pytest.mark.slow
def test_a_load_with_timeouts_and_cancels_keeps_the_rate(
    config: GatewayConfig, gateways: Any, replies: Any, minute_request: BarRequest
) -> None:
    """Requests, cancels, handshakes and time requests of two clients count together."""

    def sometimes(client: Any, fields: list[str]) -> None:
        if len(gateway.frames(20)) % ONE_IN:
            replies.send_bars(client, fields)

    gateway = gateways(bars=sometimes)
    gateway_config = replace(config, port=gateway.port, timeout_s=1.5)

    written: list[float] = []

    def recording(write: Callable[[bytes], None]) -> Callable[[bytes], None]:
        def record(message: bytes) -> None:
            written.append(boot_time_s())
            write(message)

        return record

    async def client(first: int) -> int:
        async with open_source(gateway_config) as source:
            transport = source._connection._transport
            transport._write = recording(transport._write)
            return await ask_all(source, different(minute_request, 120, first))

    async def run() -> int:
        return sum(await asyncio.gather(client(0), client(1000)))

    missing = asyncio.run(run())
    gateway.wait_for_frames(25, missing)
    kinds = Counter(fields[0] for fields in gateway.received)
    sent = timestamps(gateway_config)
    assert kinds["25"] == missing >= 240 // ONE_IN // 2
    assert (kinds["20"], kinds["71"], kinds["49"]) == (240, 2, 42)
    assert len(sent) == len(gateway.received) + gateway.connects, "a message had no turn"
    assert most_in(sent, SECOND_S) <= MOST
    assert len(written) == len(sent) - 6, "each client's handshake and first look come before"
    assert most_in(written, SECOND_S) <= MOST, "when they went to the sockets"
    assert len(sent) / (sent[-1] - sent[0]) < MOST


def test_head_timestamps_and_their_cancels_count(
    config: GatewayConfig, gateways: Any, aapl: Any
) -> None:
    """A head timestamp request is two messages."""
    gateway = gateways()
    gateway_config = replace(config, port=gateway.port)

    async def run() -> None:
        async with open_source(gateway_config) as source:
            await source.head(aapl)

    asyncio.run(run())
    gateway.wait_for_frames(90)
    kinds = Counter(fields[0] for fields in gateway.received)
    assert (kinds["87"], kinds["90"], kinds["9"]) == (1, 1, 1)
    assert len(timestamps(gateway_config)) == len(gateway.received) + gateway.connects


def test_a_connection_of_its_own_counts_too(config: GatewayConfig, gateways: Any) -> None:
    """A strategy without a rate limiter uses the shared budget: three messages a connection."""
    gateway = gateways()
    gateway_config = replace(config, port=gateway.port)

    async def run() -> None:
        strategy = IbConnectionStrategy(gateway_config)
        for _ in range(3):
            async with strategy.get_connection_for_operation("cli") as connection:
                assert connection.is_up

    asyncio.run(run())
    assert len(timestamps(gateway_config)) == 9


def test_nothing_is_sent_without_the_record(config: GatewayConfig, gateways: Any) -> None:
    """If the record cannot be used, nothing is sent and a DiskError is raised."""
    is_connected = threading.Event()
    gateway = gateways(greet=lambda _: is_connected.set())
    gateway_config = replace(config, port=gateway.port)

    async def run() -> None:
        strategy = IbConnectionStrategy(gateway_config)
        (gateway_config.folder / FILE).mkdir(parents=True)
        try:
            async with strategy.get_connection_for_operation("cli"):
                pass
        finally:
            await strategy.cleanup_temporary_connections()

    with pytest.raises(DiskError):
        asyncio.run(run())
    assert is_connected.wait(60)
    assert gateway.received == []
