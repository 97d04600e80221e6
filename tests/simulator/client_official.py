"""IB's own ibapi client, which reads in a thread as IB's samples do."""

import queue
import threading
from collections.abc import Callable
from typing import Any

from ibapi.account_summary_tags import AccountSummaryTags
from ibapi.client import EClient
from ibapi.contract import Contract
from ibapi.wrapper import EWrapper

from tests.simulator.clients import (
    NOTICES,
    WAIT_S,
    Response,
    bar_row,
    details_row,
    sessions,
    with_defaults,
)


class OfficialClient(EWrapper, EClient):  # type: ignore[misc]
    """ibapi, reading in a thread as IB's own samples do."""

    name = "ibapi"

    def __init__(self, port: int, client_id: int) -> None:
        EClient.__init__(self, self)
        self._messages: queue.Queue[tuple[Any, ...]] = queue.Queue()
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
        messages = self._until("details end")
        return Response(
            [details_row(each[1]) for each in messages if each[0] == "details"], errors_in(messages)
        )

    def bars(self, contract: dict[str, Any], size: str, duration: str, **other: Any) -> Response:
        messages = self._history(contract, size, duration, with_defaults(other), keep=False)
        return Response(
            [bar_row(each[1]) for each in messages if each[0] == "bar"], errors_in(messages)
        )

    def schedule(self, contract: dict[str, Any], days: int, end: str) -> Response:
        options = with_defaults({"end": end, "what": "SCHEDULE"})
        messages = self._history(contract, "1 day", f"{days} D", options, keep=False)
        return Response([each[1] for each in messages if each[0] == "end"], errors_in(messages))

    def head(self, contract: dict[str, Any], what: str) -> Response:
        self.reqHeadTimeStamp(self._next(), official(contract), what, 1, 2)
        messages = self._until("head")
        return Response([each[1:] for each in messages if each[0] == "head"], errors_in(messages))

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
        number = self._send_history(contract, "1 day", "1 D", with_defaults({}), keep=False)
        for _ in range(2):
            self.cancelHistoricalData(number)
        return [
            code for messages in (self._until(), self._until()) for code, _ in errors_in(messages)
        ]

    def live(self, contract: dict[str, Any], size: str, move: Callable[[], None]) -> Response:
        messages = self._history(contract, size, "1 D", with_defaults({}), keep=True)
        bars = {row[0]: row for row in (bar_row(each[1]) for each in messages if each[0] == "bar")}
        count = len(bars)
        move()
        while len(bars) == count:
            row = bar_row(self._until("update")[-1][1])
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
        options: dict[str, Any],
        *,
        keep: bool,
    ) -> list[tuple[Any, ...]]:
        self._send_history(contract, size, duration, options, keep=keep)
        return self._until("end")

    def _send_history(
        self,
        contract: dict[str, Any],
        size: str,
        duration: str,
        options: dict[str, Any],
        *,
        keep: bool,
    ) -> int:
        number, rth = self._next(), int(options["rth"])
        texts = (options["end"], duration, size, options["what"])
        self.reqHistoricalData(number, official(contract), *texts, rth, options["format"], keep, [])
        return number

    def _until(self, last: str = "") -> list[tuple[Any, ...]]:
        """Return all messages up to one of a kind, or up to an error."""
        messages = [self._messages.get(timeout=WAIT_S)]
        while messages[-1][0] not in {last, "error"}:
            messages.append(self._messages.get(timeout=WAIT_S))
        return messages

    def nextValidId(self, orderId: int) -> None:  # noqa: N802, N803 - ibapi's names
        self._messages.put(("next", orderId))

    def error(self, reqId: int, errorTime: int, errorCode: int, errorString: str, *_: Any) -> None:  # noqa: N803
        if reqId >= 0 and errorCode not in NOTICES:
            self._messages.put(("error", (errorCode, errorString)))

    def contractDetails(self, reqId: int, contractDetails: Any) -> None:  # noqa: N802, N803
        self._messages.put(("details", contractDetails))

    def contractDetailsEnd(self, reqId: int) -> None:  # noqa: N802, N803
        self._messages.put(("details end",))

    def historicalData(self, reqId: int, bar: Any) -> None:  # noqa: N802, N803
        self._messages.put(("bar", bar))

    def historicalDataEnd(self, reqId: int, start: str, end: str) -> None:  # noqa: N802, N803
        self._messages.put(("end", start, end))

    def historicalDataUpdate(self, reqId: int, bar: Any) -> None:  # noqa: N802, N803
        self._messages.put(("update", bar))

    def historicalSchedule(self, reqId: int, *fields: Any) -> None:  # noqa: N802, N803
        zone, found = fields[-2:]
        self._messages.put(("end", (zone, *sessions(found))))

    def headTimestamp(self, reqId: int, headTimestamp: str) -> None:  # noqa: N802, N803
        self._messages.put(("head", headTimestamp))

    def accountSummary(self, reqId: int, account: str, tag: str, value: str, currency: str) -> None:  # noqa: N802, N803
        self._messages.put(("summary", tag, value))

    def accountSummaryEnd(self, reqId: int) -> None:  # noqa: N802, N803
        self._messages.put(("summary end",))

    def updateAccountValue(self, key: str, val: str, currency: str, accountName: str) -> None:  # noqa: N802, N803
        self._messages.put(("value", key, val))

    def accountDownloadEnd(self, accountName: str) -> None:  # noqa: N802, N803
        self._messages.put(("values end",))

    def position(self, *fields: Any) -> None:
        self._messages.put(("position", fields))

    def positionEnd(self) -> None:  # noqa: N802
        self._messages.put(("positions end",))


def errors_in(messages: list[tuple[Any, ...]]) -> list[tuple[int, str]]:
    """Return code and text of the errors among messages."""
    return [each[1] for each in messages if each[0] == "error"]


def official(contract: dict[str, Any]) -> Contract:
    """Return a contract of ibapi."""
    made = Contract()
    for name, value in contract.items():
        setattr(made, name, value)
    return made
