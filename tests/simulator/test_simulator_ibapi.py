"""The gateway asked by the official ibapi client, where it is installed."""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ktrdr_pipelines.simulator.server import SimulatorServer

pytest.importorskip("ibapi")

from ibapi.client import EClient
from ibapi.contract import Contract
from ibapi.wrapper import EWrapper


class App(EWrapper, EClient):
    """Collect what the gateway says."""

    def __init__(self) -> None:
        EClient.__init__(self, self)
        self.told: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self.bars: list[Any] = []

    def nextValidId(self, orderId: int) -> None:  # noqa: N802, N803 - ibapi's names
        self.told.put(("next", orderId))

    def contractDetails(self, reqId: int, contractDetails: Any) -> None:  # noqa: N802, N803
        self.told.put(("details", reqId, contractDetails))

    def historicalData(self, reqId: int, bar: Any) -> None:  # noqa: N802, N803
        self.bars.append(bar)

    def historicalDataEnd(self, reqId: int, start: str, end: str) -> None:  # noqa: N802, N803
        self.told.put(("bars", reqId, start, end))

    def headTimestamp(self, reqId: int, headTimestamp: str) -> None:  # noqa: N802, N803
        self.told.put(("head", reqId, headTimestamp))

    def error(self, reqId: int, *rest: Any) -> None:  # noqa: N803
        if reqId != -1:
            self.told.put(("error", reqId, *rest[-2:]))


def stock(symbol: str) -> Contract:
    """Name a US stock."""
    contract = Contract()
    contract.symbol, contract.secType = symbol, "STK"
    contract.exchange, contract.currency = "SMART", "USD"
    return contract


@contextmanager
def connected(server: SimulatorServer) -> Iterator[App]:
    """Connect and read in a thread, as ibapi's own samples do."""
    app = App()
    app.connect("127.0.0.1", server.port, clientId=21)
    reader = threading.Thread(target=app.run)
    reader.start()
    try:
        yield app
    finally:
        app.done = True
        app.disconnect()
        reader.join(5)


def test_ibapi_gets_details_bars_and_errors(gateway: SimulatorServer) -> None:
    """The official client decodes every answer; installed releases start at version 157."""
    with connected(gateway) as app:
        assert app.told.get(timeout=5) == ("next", 1)
        app.reqContractDetails(1, stock("AAPL"))
        details = app.told.get(timeout=5)[2]
        assert (details.contract.primaryExchange, details.stockType) == ("NASDAQ", "COMMON")
        assert details.liquidHours.startswith("20240110:0930-20240110:1600")
        asked = (stock("AAPL"), "20240109-21:00:00", "1 D", "1 hour", "TRADES", 1, 2, False, [])
        app.reqHistoricalData(2, *asked)
        assert app.told.get(timeout=5) == (
            "bars",
            2,
            "20240108 16:00:00 US/Eastern",
            "20240109 16:00:00 US/Eastern",
        )
        assert len(app.bars) == 7
        app.reqHeadTimeStamp(3, stock("AAPL"), "TRADES", 1, 1)
        assert app.told.get(timeout=5) == ("head", 3, "19801212-14:30:00")
        app.reqContractDetails(4, stock("NOSUCH"))
        code, text = app.told.get(timeout=5)[2:]
        assert (code, text) == (200, "No security definition has been found for the request")
