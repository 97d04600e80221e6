"""The number of requests in flight against the simulated gateway whose workers slow under load."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ktrdr_pipelines.domain.planning.responses import BarRequest, Response
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.ib.pacing.rules import Pacing, pacing_of
from ktrdr_pipelines.ib.source import open_source
from ktrdr_pipelines.simulator.requests.pacing_rules import SimulatedPacing, Speed, WorkersFrom
from ktrdr_pipelines.simulator.server import SimulatorServer, running_simulator
from ktrdr_pipelines.simulator.simulated_gateway import Behaviour

NOW = "2024-01-10T20:00:30+00:00"


@contextmanager
def soft_gateway(speed: Speed) -> Iterator[SimulatorServer]:
    """Run a gateway of a speed, which loses requests that break its rules: none may."""
    behaviour = Behaviour(pacing=SimulatedPacing.SOFT, speed=speed)
    with running_simulator(now=NOW, behaviour=behaviour) as server:
        yield server
        assert server.violations == {}


def distinct(request: BarRequest, count: int) -> list[BarRequest]:
    """Return requests for an hour each that end at different minutes of the week before."""
    start = datetime(2024, 1, 3, 20, tzinfo=UTC)
    ends = (start + timedelta(days=one % 2, minutes=one // 2) for one in range(count))
    return [replace(request, ends_at=end, duration="3600 S") for end in ends]


async def load(
    config: GatewayConfig, requests: list[BarRequest], pacing: Pacing
) -> tuple[float, int]:
    """Send all requests; return the seconds that it took, and the concurrency at the end."""
    rate_limiter = RateLimiter(config.folder, pacing=pacing)
    try:
        async with open_source(config, rate_limiter=rate_limiter) as source:
            begun_s = time.monotonic()
            answers = await asyncio.gather(*(source.bars(request) for request in requests))
            took_s = time.monotonic() - begun_s
    finally:
        rate_limiter.close()
    assert all(isinstance(each, Response) for each in answers)
    return took_s, rate_limiter.concurrency


SPEED = Speed(request_s=0.3, bar_s=0.0, load=0.1, noise=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [3, 6])
def test_a_cold_start_is_near_the_best(
    workers: int, config: GatewayConfig, minute_request: BarRequest, tmp_path: Path
) -> None:
    """Through sockets and shared record, too: nearly as fast as with the right number known."""
    requests = distinct(minute_request, 80 * workers)
    took_s = []
    for number, pacing in enumerate((pacing_of(), pacing_of(), pacing_of(concurrency=workers))):
        with soft_gateway(replace(SPEED, workers=workers)) as server:
            mine = replace(config, port=server.port, state_dir=tmp_path / str(number))
            took_s.append(asyncio.run(load(mine, requests, pacing))[0])
    *adapted_s, best_s = took_s
    assert best_s >= 80 * 0.3 * 0.9
    # About 0.95 alone on a machine. Other programs disturb single runs, and seldom two in a row.
    assert best_s / min(adapted_s) >= 0.75


@pytest.mark.slow
def test_more_workers_in_the_middle_are_used(
    config: GatewayConfig, minute_request: BarRequest
) -> None:
    """The number in flight follows workers that come while requests are in flight."""
    requests = distinct(minute_request, 600)
    speed = replace(SPEED, workers=3, changes=(WorkersFrom(12, 10.0),))
    with soft_gateway(speed) as server:
        mine = replace(config, port=server.port)
        took_s, concurrency = asyncio.run(load(mine, requests, pacing_of()))
    assert concurrency >= 8
    assert took_s <= 0.75 * 600 * 0.3 / 3
