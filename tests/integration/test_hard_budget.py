"""The hard budget against a gateway that applies IB's hard rules to every request."""

import asyncio
import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.ib.pacing.rules import pacing_of
from ktrdr_pipelines.ib.source import open_source
from ktrdr_pipelines.simulator.requests.pacing_rules import PacingRules, SimulatedPacing
from ktrdr_pipelines.simulator.server import running_simulator
from tests.support.universes import AAPL

SCALE = 1 / 20
"""How long a second of IB's rules is: the window is 30 s."""

REQUESTS, CLIENTS = 76, 4
SYMBOLS = ("AAPL", "MSFT", "NVDA", "SPY")


@pytest.mark.slow
def test_a_hard_gateway_is_used_in_full_and_without_a_violation(tmp_path: Path) -> None:
    """Four clients send 76 requests, the last within a window, and the gateway refuses none."""
    with running_simulator(now="2024-01-10T20:00:30+00:00", latency_s=0.02) as gateway:
        # The gateway's rules run by a clock of their own, as its market keeps to real time.
        gateway._gateway.rules.pacing = PacingRules(
            SimulatedPacing.HARD, lambda: time.monotonic() / SCALE
        )
        config = GatewayConfig(state_dir=tmp_path, port=gateway.port, timeout_s=20.0)
        pacing = pacing_of(conservative=True).scaled(SCALE)

        begun, answered = time.monotonic(), []

        async def client(symbol: str) -> None:
            series = Series(replace(AAPL, symbol=symbol, ib_symbol=symbol), Timeframe.M1)
            with closing(RateLimiter(config.folder, pacing=pacing)) as rate_limiter:
                async with open_source(config, rate_limiter=rate_limiter) as source:
                    await source.contract(series.instrument)
                    for number in range(REQUESTS // CLIENTS):
                        end = datetime(2024, 1, 9, 21, tzinfo=UTC) - timedelta(minutes=number)
                        answer = await source.bars(BarRequest(series, end, "1800 S"))
                        assert answer.bars.num_rows
                        answered.append(time.monotonic() - begun)

        async def run() -> None:
            await asyncio.gather(*map(client, SYMBOLS))

        asyncio.run(run())
        assert gateway.violations == {}
        assert len(gateway.requests) >= REQUESTS
    # The time that requests themselves take is not scaled: one more is sent once another is as old
    # as the window, so the last one follows that one of the first 54.
    assert answered[-1] - answered[REQUESTS - 54] <= 1.05 * 600 * SCALE
