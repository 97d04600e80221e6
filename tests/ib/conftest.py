"""Scripted gateways, budgets under a clock that is set, and what is asked of them."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ktrdr_pipelines.domain.instruments import Instrument, SecType, Series, WhatToShow
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.ib.pacing.rules import Pacing, pacing_of
from ktrdr_pipelines.ib.source import GatewaySource, open_source
from tests.ib.paced import Time
from tests.ib.scripted import Script, ScriptedGateway, Words

T = TypeVar("T")


@pytest.fixture
def gateways() -> Iterator[Callable[..., ScriptedGateway]]:
    """Start scripted gateways; all end with the test."""
    started: list[ScriptedGateway] = []

    def begin(**parts: Any) -> ScriptedGateway:
        gateway = ScriptedGateway(Script(**parts))
        gateway.begin()
        started.append(gateway)
        return gateway

    yield begin
    for gateway in started:
        gateway.end()


@pytest.fixture
def words() -> Words:
    """Give what a scripted gateway can say."""
    return Words()


@pytest.fixture
def closed_port() -> int:
    """Give a port at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def config(tmp_path: Path) -> GatewayConfig:
    """Give a configuration with a state folder of its own, and patience for any busy machine."""
    return GatewayConfig(state_dir=tmp_path / "state", port=1, timeout_s=60.0, outage_s=60.0)


@pytest.fixture
def aapl() -> Instrument:
    """Give a stock in regular hours."""
    return Instrument(
        symbol="AAPL",
        ib_symbol="AAPL",
        sec_type=SecType.STK,
        exchange="SMART",
        currency="USD",
        what_to_show=WhatToShow.TRADES,
        use_rth=True,
        calendar="XNYS.RTH",
        timeframes=tuple(Timeframe),
        start=date(2020, 1, 1),
    )


@pytest.fixture
def minute_request(aapl: Instrument) -> BarRequest:
    """Give a request for a day of minutes up to now."""
    return BarRequest(Series(aapl, Timeframe.M1), None, "1 D")


@dataclass
class Bench:
    """What a test needs to put questions to a scripted gateway."""

    config: GatewayConfig
    start: Callable[..., ScriptedGateway]
    gateway: ScriptedGateway | None = field(default=None)

    def __call__(
        self,
        ask: Callable[[GatewaySource], Awaitable[T]],
        *,
        timeout_s: float | None = None,
        outage_s: float | None = None,
        **script: Any,
    ) -> T:
        """Start a gateway, connect to it, ask, and give what came; errors pass through.

        A deadline is given only where it is waited for: an answer that comes is never late.
        """
        self.gateway = self.start(**script)
        self.config = replace(
            self.config,
            timeout_s=timeout_s or self.config.timeout_s,
            outage_s=outage_s or self.config.outage_s,
        )

        async def session() -> T:
            async with self.source() as source:
                return await ask(source)

        return asyncio.run(session())

    @asynccontextmanager
    async def source(self) -> AsyncIterator[GatewaySource]:
        """Connect to the gateway that runs, with a budget whose windows pass at once."""
        assert self.gateway is not None
        config = replace(self.config, port=self.gateway.port)
        rate_limiter = RateLimiter(config.folder, pacing=pacing_of().scaled(0))
        try:
            async with open_source(config, rate_limiter=rate_limiter) as source:
                yield source
        finally:
            rate_limiter.close()


@pytest.fixture
def bench(config: GatewayConfig, gateways: Callable[..., ScriptedGateway]) -> Bench:
    """Ask one scripted gateway."""
    return Bench(config, gateways)


@pytest.fixture
def time() -> Time:
    """Give a clock."""
    return Time()


@pytest.fixture
def rate_limiter(tmp_path: Path, time: Time) -> Any:
    """Make pacers of one gateway under one clock; each stands for a process of its own."""
    made = []

    def make(boot: str = "boot", pacing: Pacing | None = None) -> RateLimiter:
        made.append(RateLimiter(tmp_path, clock=time, sleep=time.sleep, boot=boot, pacing=pacing))
        return made[-1]

    yield make
    for one in made:
        one.close()
