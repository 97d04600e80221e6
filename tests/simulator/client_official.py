"""IB's own ibapi as one of both clients, reading in a thread as IB's samples do."""

import queue
import threading
from collections.abc import Callable
from typing import Any

from ibapi.account_summary_tags import AccountSummaryTags
from ibapi.client import EClient
from ibapi.contract import Contract
from ibapi.wrapper import EWrapper

from tests.simulator.clients import NOTICES, WAIT_S, Response, described, plain, sessions, wanted


class OfficialClient(EWrapper, EClient):  # type: ignore[misc]
    """ibapi, reading in a thread as IB's own samples do."""

    name = "ibapi"

    def __init__(self, port: int, client_id: int) -> None:
        EClient.__init__(self, self)
        self._told: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self._number = 100
        self.connect("127.0.0.1", port, clientId=client_id)
        self._thread = threading.Thread(target=self.run, daemon=True)
        self._thread.start()
        self._until("next")
        self.version = self.serverVersion()

    def close(self) -> None:
        self.done = True
        self.disconnect()
        self._thread.join(WAIT_S)

    def details(self, contract: dict[str, Any]) -> Response:
        self.reqContractDetails(self._next(), official(contract))
        told = self._until("details end")
        return Response(
            [described(each[1]) for each in told if each[0] == "details"], errors_in(told)
        )

    def bars(self, contract: dict[str, Any], size: str, duration: str, **other: Any) -> Response:
        told = self._history(contract, size, duration, wanted(other), keep=False)
        return Response([plain(each[1]) for each in told if each[0] == "bar"], errors_in(told))

    def schedule(self, contract: dict[str, Any], days: int, end: str) -> Response:
        asked = wanted({"end": end, "what": "SCHEDULE"})
        told = self._history(contract, "1 day", f"{days} D", asked, keep=False)
        return Response([each[1] for each in told if each[0] == "end"], errors_in(told))

    def head(self, contract: dict[str, Any], what: str) -> Response:
        self.reqHeadTimeStamp(self._next(), official(contract), what, 1, 2)
        told = self._until("head")
        return Response([each[1:] for each in told if each[0] == "head"], errors_in(told))

    def summary(self) -> dict[str, str]:
        self.reqAccountSummary(self._next(), "All", AccountSummaryTags.AllTags)
        return {each[1]: each[2] for each in self._until("summary end") if each[0] == "summary"}

    def values(self) -> dict[str, str]:
        self.reqAccountUpdates(True, "")
        return {each[1]: each[2] for each in self._until("values end") if each[0] == "value"}

    def positions(self) -> int:
        self.reqPositions()
        return sum(each[0] == "position" for each in self._until("positions end"))

    def cancelled(self, contract: dict[str, Any]) -> list[int]:
        number = self._send_history(contract, "1 day", "1 D", wanted({}), keep=False)
        for _ in range(2):
            self.cancelHistoricalData(number)
        return [code for told in (self._until(), self._until()) for code, _ in errors_in(told)]

    def live(self, contract: dict[str, Any], size: str, move: Callable[[], None]) -> Response:
        told = self._history(contract, size, "1 D", wanted({}), keep=True)
        bars = {row[0]: row for row in (plain(each[1]) for each in told if each[0] == "bar")}
        count = len(bars)
        move()
        while len(bars) == count:
            row = plain(self._until("update")[-1][1])
            bars[row[0]] = row
        self.cancelHistoricalData(self._number)
        self._until()
        return Response(list(bars.values()))

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _history(
        self,
        contract: dict[str, Any],
        size: str,
        duration: str,
        asked: dict[str, Any],
        *,
        keep: bool,
    ) -> list[tuple[Any, ...]]:
        self._send_history(contract, size, duration, asked, keep=keep)
        return self._until("end")

    def _send_history(
        self,
        contract: dict[str, Any],
        size: str,
        duration: str,
        asked: dict[str, Any],
        *,
        keep: bool,
    ) -> int:
        number, rth = self._next(), int(asked["rth"])
        texts = (asked["end"], duration, size, asked["what"])
        self.reqHistoricalData(number, official(contract), *texts, rth, asked["format"], keep, [])
        return number

    def _until(self, last: str = "") -> list[tuple[Any, ...]]:
        """Return everything that is told until some message, or until an error."""
        told = [self._told.get(timeout=WAIT_S)]
        while told[-1][0] not in {last, "error"}:
            told.append(self._told.get(timeout=WAIT_S))
        return told

    def nextValidId(self, orderId: int) -> None:  # noqa: N802, N803 - ibapi's names
        self._told.put(("next", orderId))

    def error(self, reqId: int, errorTime: int, errorCode: int, errorString: str, *_: Any) -> None:  # noqa: N803
        if reqId >= 0 and errorCode not in NOTICES:
            self._told.put(("error", (errorCode, errorString)))

    def contractDetails(self, reqId: int, contractDetails: Any) -> None:  # noqa: N802, N803
        self._told.put(("details", contractDetails))

    def contractDetailsEnd(self, reqId: int) -> None:  # noqa: N802, N803
        self._told.put(("details end",))

    def historicalData(self, reqId: int, bar: Any) -> None:  # noqa: N802, N803
        self._told.put(("bar", bar))

    def historicalDataEnd(self, reqId: int, start: str, end: str) -> None:  # noqa: N802, N803
        self._told.put(("end", start, end))

    def historicalDataUpdate(self, reqId: int, bar: Any) -> None:  # noqa: N802, N803
        self._told.put(("update", bar))

    def historicalSchedule(self, reqId: int, *fields: Any) -> None:  # noqa: N802, N803
        zone, found = fields[-2:]
        self._told.put(("end", (zone, *sessions(found))))

    def headTimestamp(self, reqId: int, headTimestamp: str) -> None:  # noqa: N802, N803
        self._told.put(("head", headTimestamp))

    def accountSummary(self, reqId: int, account: str, tag: str, value: str, currency: str) -> None:  # noqa: N802, N803
        self._told.put(("summary", tag, value))

    def accountSummaryEnd(self, reqId: int) -> None:  # noqa: N802, N803
        self._told.put(("summary end",))

    def updateAccountValue(self, key: str, val: str, currency: str, accountName: str) -> None:  # noqa: N802, N803
        self._told.put(("value", key, val))

    def accountDownloadEnd(self, accountName: str) -> None:  # noqa: N802, N803
        self._told.put(("values end",))

    def position(self, *fields: Any) -> None:
        self._told.put(("position", fields))

    def positionEnd(self) -> None:  # noqa: N802
        self._told.put(("positions end",))


def errors_in(told: list[tuple[Any, ...]]) -> list[tuple[int, str]]:
    """Return code and text of the errors among what was told."""
    return [each[1] for each in told if each[0] == "error"]


def official(contract: dict[str, Any]) -> Contract:
    """Describe a contract to ibapi."""
    made = Contract()
    for name, value in contract.items():
        setattr(made, name, value)
    return made
