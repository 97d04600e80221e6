"""The unmodified ib_async client in an event loop of its own."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from ib_async import IB, Forex, Stock

from ktrdr_pipelines.simulator.server import SimulatorServer

AAPL = Stock("AAPL", "SMART", "USD")
EURUSD = Forex("EURUSD")
END = datetime(2024, 1, 9, 21, tzinfo=UTC)


def run_session(
    server: SimulatorServer, session: Callable[[IB], Awaitable[Any]], **connect: Any
) -> Any:
    """Connect, run a session and disconnect, in an event loop of its own."""

    async def run() -> Any:
        async with client(server, **connect) as ib:
            return await asyncio.wait_for(session(ib), 60)

    return asyncio.run(run())


@asynccontextmanager
async def client(server: SimulatorServer, client_id: int = 5, **connect: Any) -> AsyncIterator[IB]:
    """Connect an ib_async client that raises the errors of its requests."""
    ib = IB()
    ib.RaiseRequestErrors = True
    settings = {"timeout": 30.0} | connect
    await ib.connectAsync("127.0.0.1", server.port, clientId=client_id, **settings)
    try:
        yield ib
    finally:
        ib.disconnect()


def history(ib: IB, contract: Any, size: str, duration: str, **other: Any) -> Awaitable[Any]:
    """Request bars with epoch dates."""
    what = "MIDPOINT" if contract.secType == "CASH" else "TRADES"
    options = {"endDateTime": END, "whatToShow": what, "useRTH": True, "formatDate": 2}
    return ib.reqHistoricalDataAsync(
        contract, durationStr=duration, barSizeSetting=size, **(options | other)
    )
