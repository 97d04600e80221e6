"""Serve a market until cancelled: what the command line and the demo run."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from ktrdr_pipelines.simulator.clock import SimClock
from ktrdr_pipelines.simulator.markets import open_market
from ktrdr_pipelines.simulator.server import SimulatorServer


async def serve(
    *,
    host: str,
    port: int,
    bars: Path | None,
    now: datetime | None,
    seed: int,
    ready: Callable[[int], None],
) -> None:
    """Serve until cancelled; ``ready`` is called with the port once it listens.

    Raises:
        SimulatorError: the folder is no folder of bars, or the port cannot be listened on.
    """
    market = await asyncio.to_thread(open_market, bars, seed)
    clock = SimClock(now if now is not None else market.default_now())
    server = SimulatorServer(market, clock=clock, host=host, port=port)
    await server.start()
    try:
        ready(server.port)
        await asyncio.get_running_loop().create_future()
    finally:
        await server.close()
