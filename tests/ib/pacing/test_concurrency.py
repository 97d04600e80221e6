"""The number of requests in flight, against gateways whose latency grows with load."""

import asyncio
import heapq
import random
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ktrdr_pipelines.domain.planning.responses import BarRequest, Response
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.pacing.concurrency import (
    REST_S,
    Concurrency,
    Pace,
    Sample,
    answered,
    pace_after,
    troubled,
)
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.ib.pacing.rules import pacing_of
from ktrdr_pipelines.ib.source import open_source
from ktrdr_pipelines.limits import IbLimitsRegistry


@dataclass
class LoadedGateway:
    """A gateway with some workers, each busy for a while with one request; others queue.

    ``noise`` spreads the service time; requests come as fast as the width allows.
    """

    workers: int
    service_s: float = 0.5
    noise: float = 0.0
    concurrency: Concurrency = field(default_factory=Concurrency)
    now: float = 1000.0
    most_open: int = 0
    answers: int = 0
    _pace: Pace | None = None
    _random: random.Random = field(default_factory=lambda: random.Random(7))

    def run(self, seconds: float) -> float:
        """Keep the gateway as busy as the concurrency allows; return responses per second."""
        until, before = self.now + seconds, self.answers
        free_at = [self.now] * self.workers
        open_requests: list[tuple[float, float]] = []
        while self.now < until:
            while len(open_requests) < self.concurrency.limit(self.now):
                starts = max(heapq.heappop(free_at), self.now)
                took = self.service_s * self._random.lognormvariate(0, self.noise)
                heapq.heappush(free_at, starts + took)
                heapq.heappush(open_requests, (starts + took, self.now))
            self.most_open = max(self.most_open, len(open_requests))
            self.now, sent_at = heapq.heappop(open_requests)
            self.take(Sample(sent_at, self.now, len(open_requests) + 1))
        return (self.answers - before) / seconds

    def take(self, sample: Sample) -> None:
        """Update the concurrency with a response."""
        self.answers += 1
        self._pace = pace_after(self._pace, sample, ratio=self.concurrency.ratio)
        self.concurrency = answered(self.concurrency, sample, self._pace.idle_s)

    @property
    def best(self) -> float:
        """The most responses per second that the gateway can return."""
        return self.workers / self.service_s


@pytest.mark.parametrize(
    ("workers", "noise"),
    [(1, 0.0), (2, 0.3), (4, 0.3), (8, 0.0), (16, 0.3), (30, 0.0), (44, 0.3), (200, 0.0)],
)
def test_the_rate_is_near_the_best(workers: int, noise: float) -> None:
    """The rate is near the gateway's best, and fewer than 50 requests are open."""
    gateway = LoadedGateway(workers, noise=noise)
    gateway.run(120)
    rate = gateway.run(300)
    possible = min(gateway.best, 45 / gateway.service_s)
    mean_noise = 1.046 if noise else 1.0
    assert rate * mean_noise >= 0.85 * possible
    assert gateway.most_open <= 45


@pytest.mark.parametrize(("workers", "noise"), [(4, 0.3), (8, 0.0), (12, 0.3)])
def test_requests_do_not_queue_for_long(workers: int, noise: float) -> None:
    """The latency stays below about 2.5 times that of an idle gateway."""
    gateway = LoadedGateway(workers, noise=noise)
    gateway.run(900)
    assert 0.9 * workers <= gateway.concurrency.width <= 2.6 * workers


def test_a_gateway_that_becomes_slower_and_faster_is_followed() -> None:
    """The concurrency falls with the number of workers, and rises with it."""
    gateway = LoadedGateway(20)
    gateway.run(120)
    wide = gateway.concurrency.width
    gateway.workers = 2
    gateway.run(300)
    narrow = gateway.concurrency.width
    gateway.workers = 20
    gateway.run(300)
    assert wide >= 16
    assert narrow <= 8
    assert gateway.concurrency.width >= 16


def test_a_lasting_slowdown_becomes_the_new_idle_time() -> None:
    """At a low concurrency the idle time is measured again."""
    gateway = LoadedGateway(8)
    gateway.run(60)
    gateway.service_s = 4.0
    gateway.run(2000)
    assert gateway.concurrency.width >= 6


def test_a_burst_of_failures_halves_the_concurrency_once() -> None:
    """Forty concurrent failures halve the concurrency once."""
    concurrency = Concurrency(width=40, seen_at=100)
    for number in range(40):
        concurrency = troubled(concurrency, sent_at=90, at=101 + number / 100)
    assert concurrency.width == 20
    assert troubled(concurrency, sent_at=102, at=103).width == 10


def test_the_concurrency_never_falls_below_one() -> None:
    """One request may always be in flight."""
    concurrency = Concurrency(seen_at=100)
    for number in range(10):
        concurrency = troubled(concurrency, sent_at=100 + number, at=100.5 + number)
    assert concurrency.limit(111) == 1


def test_an_unused_concurrency_does_not_grow() -> None:
    """Quick responses to few requests say nothing about many."""
    concurrency = Concurrency(width=10, seen_at=100)
    for number in range(100):
        concurrency = answered(concurrency, Sample(100 + number, 100.5 + number, open_now=2), 0.5)
    assert concurrency.width == 10


def test_after_a_long_rest_it_starts_over() -> None:
    """After ten minutes without a response the initial concurrency applies."""
    concurrency = Concurrency(width=40, seen_at=100)
    assert concurrency.limit(100 + REST_S) == 40
    assert concurrency.limit(101 + REST_S) == IbLimitsRegistry.CONCURRENCY.value


WORKERS, SERVICE_S = 3, 0.03


class Busy:
    """Sends bars as a gateway with a few workers does, and counts open requests."""

    def __init__(self, send_bars: Any) -> None:
        self._send_bars = send_bars
        self._free_at = [0.0] * WORKERS
        self.open_now = self.most_open = 0

    def __call__(self, client: Any, fields: list[str]) -> None:
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        now = time.monotonic()
        done_at = max(heapq.heappop(self._free_at), now) + SERVICE_S
        heapq.heappush(self._free_at, done_at)
        client.later(done_at - now, lambda: self._answer(client, fields))

    def _answer(self, client: Any, fields: list[str]) -> None:
        self.open_now -= 1
        self._send_bars(client, fields)


def different(request: BarRequest, count: int, first_minute: int) -> list[BarRequest]:
    """Return requests that differ by their ends, which lie after the returned bars."""
    start = datetime(2026, 1, 5, 15, tzinfo=UTC)
    minutes = range(first_minute, first_minute + count)
    return [replace(request, ends_at=start + timedelta(minutes=one)) for one in minutes]


async def ask_all(config: GatewayConfig, requests: list[BarRequest]) -> list[Any]:
    """Send all requests at once from one client with a rate limiter of its own."""
    rate_limiter = RateLimiter(config.folder, pacing=pacing_of().scaled(0))
    try:
        async with open_source(config, rate_limiter=rate_limiter) as source:
            answers = await asyncio.gather(*(source.bars(request) for request in requests))
            return [*answers, source.concurrency]
    finally:
        rate_limiter.close()


def test_two_clients_share_one_concurrency(
    config: GatewayConfig, gateways: Any, replies: Any, minute_request: BarRequest
) -> None:
    """Both share one concurrency, which stays near the gateway's workers."""
    busy = Busy(replies.send_bars)
    gateway = gateways(bars=busy)
    gateway_config = replace(config, port=gateway.port, timeout_s=60)

    async def run() -> Any:
        return await asyncio.gather(
            ask_all(gateway_config, different(minute_request, 80, 0)),
            ask_all(gateway_config, different(minute_request, 80, 100)),
        )

    begun_s = time.monotonic()
    (*one, concurrency), (*other, _) = asyncio.run(run())
    took_s = time.monotonic() - begun_s
    assert all(isinstance(answer, Response) for answer in [*one, *other])
    assert busy.most_open <= 6 * WORKERS
    assert 1 <= concurrency <= 4 * WORKERS
    assert took_s < 10 * (160 * SERVICE_S / WORKERS)


def test_conservative_pacing_has_a_fixed_concurrency(config: GatewayConfig) -> None:
    """IB_PACING=conservative does not adapt the concurrency."""
    pacing = pacing_of(conservative=True)
    assert (pacing.adapts, pacing.concurrency) == (False, 6)
    assert pacing_of().adapts
