"""The number in flight over real sockets, shared by two clients of one gateway."""

import asyncio
import heapq
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from ktrdr_pipelines.domain.planning.responses import BarRequest, Response
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.ib.pacing.rules import pacing_of
from ktrdr_pipelines.ib.source import open_source

WORKERS, SERVICE_S = 3, 0.03


class Busy:
    """Answers bars as a gateway of a few workers does; counts what is open."""

    def __init__(self, tell_bars: Any) -> None:
        self._tell_bars = tell_bars
        self._free_at = [0.0] * WORKERS
        self.open_now = self.most_open = 0

    def __call__(self, talk: Any, fields: list[str]) -> None:
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        now = time.monotonic()
        done_at = max(heapq.heappop(self._free_at), now) + SERVICE_S
        heapq.heappush(self._free_at, done_at)
        talk.later(done_at - now, lambda: self._answer(talk, fields))

    def _answer(self, talk: Any, fields: list[str]) -> None:
        self.open_now -= 1
        self._tell_bars(talk, fields)


def different(request: BarRequest, count: int, first_minute: int) -> list[BarRequest]:
    """Make requests that differ by their ends, which lie behind the bars that are returned."""
    start = datetime(2026, 1, 5, 15, tzinfo=UTC)
    minutes = range(first_minute, first_minute + count)
    return [replace(request, ends_at=start + timedelta(minutes=one)) for one in minutes]


async def ask_all(config: GatewayConfig, requests: list[BarRequest]) -> list[Any]:
    """Ask everything at once from one client with a budget object of its own."""
    rate_limiter = RateLimiter(config.folder, pacing=pacing_of().scaled(0))
    try:
        async with open_source(config, rate_limiter=rate_limiter) as source:
            answers = await asyncio.gather(*(source.bars(request) for request in requests))
            return [*answers, source.concurrency]
    finally:
        rate_limiter.close()


def test_two_clients_together_find_the_width_of_a_gateway(
    config: GatewayConfig, gateways: Any, words: Any, minute_request: BarRequest
) -> None:
    """Both share one width; it stays near what the gateway can do, and all are answered."""
    busy = Busy(words.tell_bars)
    gateway = gateways(bars=busy)
    there = replace(config, port=gateway.port, timeout_s=60)

    async def run() -> Any:
        return await asyncio.gather(
            ask_all(there, different(minute_request, 80, 0)),
            ask_all(there, different(minute_request, 80, 100)),
        )

    begun_s = time.monotonic()
    (*one, concurrency), (*other, _) = asyncio.run(run())
    took_s = time.monotonic() - begun_s
    assert all(isinstance(answer, Response) for answer in [*one, *other])
    assert busy.most_open <= 6 * WORKERS
    assert 1 <= concurrency <= 4 * WORKERS
    assert took_s < 10 * (160 * SERVICE_S / WORKERS)


def test_conservative_pacing_keeps_a_fixed_width(config: GatewayConfig) -> None:
    """IB_PACING=conservative does not adapt."""
    pacing = pacing_of(conservative=True)
    assert (pacing.adapts, pacing.concurrency) == (False, 6)
    assert pacing_of().adapts
