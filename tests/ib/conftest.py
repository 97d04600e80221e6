"""Scripted gateways, rate limiters with a fake clock, and requests for them."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ktrdr_pipelines.domain.instruments import Instrument, Series
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.ib.pacing.rules import Pacing, pacing_of
from ktrdr_pipelines.ib.source import GatewaySource, open_source
from tests.ib.pacing_support import FakeClock
from tests.ib.scripted_gateway import Replies, Script, ScriptedGateway, history
from tests.support.universes import AAPL

T = TypeVar("T")


@pytest.fixture
def gateways() -> Iterator[Callable[..., ScriptedGateway]]:
    """Return a function that starts scripted gateways, which end with the test."""
    started: list[ScriptedGateway] = []

    def start(**parts: Any) -> ScriptedGateway:
        gateway = ScriptedGateway(Script(**parts))
        gateway.start()
        started.append(gateway)
        return gateway

    yield start
    for gateway in started:
        gateway.stop()


@pytest.fixture
def replies() -> Replies:
    """Return the usual replies of a scripted gateway."""
    return Replies()


@pytest.fixture
def closed_port() -> int:
    """Return a port at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def config(tmp_path: Path) -> GatewayConfig:
    """Return a configuration with a new state folder, and deadlines for a busy machine."""
    return GatewayConfig(state_dir=tmp_path / "state", port=1, timeout_s=60.0, outage_s=60.0)


@pytest.fixture
def aapl() -> Instrument:
    """Return a stock in regular hours."""
    return replace(AAPL, timeframes=tuple(Timeframe))


@pytest.fixture
def minute_request(aapl: Instrument) -> BarRequest:
    """Return a request for a day of minutes up to now."""
    return BarRequest(Series(aapl, Timeframe.M1), None, "1 D")


@dataclass
class SourceHarness:
    """Connects to one scripted gateway and calls its source."""

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
        """Start a gateway, connect to it, and return what ``ask`` does; errors are raised.

        A test sets a deadline only if it waits for one, so that no response is too late.
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
        """Connect to the running gateway, with a rate limiter whose windows have no length."""
        assert self.gateway is not None
        config = replace(self.config, port=self.gateway.port)
        rate_limiter = RateLimiter(config.folder, pacing=pacing_of().scaled(0))
        try:
            async with open_source(config, rate_limiter=rate_limiter) as source:
                yield source
        finally:
            rate_limiter.close()


@pytest.fixture
def harness(config: GatewayConfig, gateways: Callable[..., ScriptedGateway]) -> SourceHarness:
    """Return a harness for one scripted gateway."""
    return SourceHarness(config, gateways)


@pytest.fixture
def response_of(harness: SourceHarness, minute_request: BarRequest) -> Callable[..., Any]:
    """Return a function that returns the source's response to a message 17 of some rows."""

    def respond(
        *rows: tuple[object, ...],
        request: BarRequest | None = None,
        reach: tuple[str, str] = ("", ""),
    ) -> Any:
        return harness(
            lambda source: source.bars(request or minute_request),
            bars=lambda client, fields: client.raw(history(fields[1], *rows, reach=reach)),
        )

    return respond


@pytest.fixture
def clock() -> FakeClock:
    """Return a fake clock."""
    return FakeClock()


@pytest.fixture
def rate_limiter(tmp_path: Path, clock: FakeClock) -> Any:
    """Return a function that makes rate limiters of one gateway, one for each simulated process."""
    made = []

    def make(boot: str = "boot", pacing: Pacing | None = None) -> RateLimiter:
        made.append(RateLimiter(tmp_path, clock=clock, sleep=clock.sleep, boot=boot, pacing=pacing))
        return made[-1]

    yield make
    for one in made:
        one.close()
