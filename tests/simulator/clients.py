"""Both clients of the API behind one face: ib_async, and IB's own ibapi in a thread.

Each asks one thing at a time and tells what came in plain values, so that answers can be
compared. Nothing of either client is changed.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import ib_async
from ib_async import IB
from ibapi.account_summary_tags import AccountSummaryTags
from ibapi.client import EClient
from ibapi.contract import Contract
from ibapi.wrapper import EWrapper

from ktrdr_pipelines.simulator.server import SimulatorServer

WAIT_S = 20.0
NOTICES = frozenset({2104, 2106, 2158, 2174})
Row = tuple[Any, ...]

DETAILS = ("minTick", "marketName", "longName", "contractMonth", "timeZoneId", "tradingHours")
MORE_DETAILS = ("liquidHours", "validExchanges", "realExpirationDate", "stockType", "lastTradeTime")
CONTRACT = ("conId", "symbol", "secType", "lastTradeDateOrContractMonth", "right", "multiplier")
MORE_CONTRACT = ("exchange", "primaryExchange", "currency", "localSymbol", "tradingClass")


@dataclass
class Answer:
    """What came of one request: rows of plain values, or errors."""

    rows: list[Row] = field(default_factory=list)
    errors: list[tuple[int, str]] = field(default_factory=list)


class Client(Protocol):
    """What both can be asked for; contracts are dictionaries of IB's fields."""

    name: str
    version: int

    def details(self, contract: dict[str, Any]) -> Answer: ...
    def bars(self, contract: dict[str, Any], size: str, duration: str, **other: Any) -> Answer: ...
    def schedule(self, contract: dict[str, Any], days: int, end: str) -> Answer: ...
    def head(self, contract: dict[str, Any], what: str) -> Answer: ...
    def summary(self) -> dict[str, str]: ...
    def positions(self) -> int: ...
    def cancelled(self, contract: dict[str, Any]) -> list[int]: ...
    def live(self, contract: dict[str, Any], size: str, move: Callable[[], None]) -> Answer: ...


def described(found: Any) -> Row:
    """Return the fields of contract details that both clients know."""
    contract = [getattr(found.contract, name) for name in CONTRACT + MORE_CONTRACT]
    rest = [getattr(found, name) for name in DETAILS + MORE_DETAILS]
    sizes = [float(getattr(found, name)) for name in ("minSize", "sizeIncrement")]
    return (*contract, *rest, *sizes, float(found.contract.strike))


def plain(bar: Any) -> Row:
    """Return a bar with its date as epoch seconds or eight digits."""
    date = bar.date
    if isinstance(date, datetime):
        date = str(int(date.timestamp()))
    elif not isinstance(date, str):
        date = f"{date:%Y%m%d}"
    average = bar.average if hasattr(bar, "average") else bar.wap
    prices = (bar.open, bar.high, bar.low, bar.close)
    return (date, *prices, float(bar.volume), float(average), bar.barCount)


def wanted(other: dict[str, Any]) -> dict[str, Any]:
    """Fill in what a test does not say of a request for bars."""
    return {"end": "", "what": "TRADES", "rth": True} | other


class AsyncClient:
    """ib_async, with its event loop run while something is asked."""

    name = "ib_async"

    def __init__(self, port: int, client_id: int) -> None:
        self._runner = asyncio.Runner()
        self._ib = IB()
        self._run(self._ib.connectAsync("127.0.0.1", port, clientId=client_id))
        self.version = self._ib.client.serverVersion()

    def close(self) -> None:
        self._run(self._disconnect())
        self._runner.close()

    def details(self, contract: dict[str, Any]) -> Answer:
        found, errors = self._ask(lambda: self._ib.reqContractDetailsAsync(of_async(contract)))
        return Answer([described(each) for each in found or []], errors)

    def bars(self, contract: dict[str, Any], size: str, duration: str, **other: Any) -> Answer:
        asked = wanted(other)
        found, errors = self._ask(
            lambda: self._ib.reqHistoricalDataAsync(
                of_async(contract), asked["end"], duration, size, asked["what"], asked["rth"], 2
            )
        )
        return Answer([plain(bar) for bar in found or []], errors)

    def schedule(self, contract: dict[str, Any], days: int, end: str) -> Answer:
        found, errors = self._ask(
            lambda: self._ib.reqHistoricalScheduleAsync(of_async(contract), days, end)
        )
        return Answer([(found.timeZone, *sessions(found.sessions))] if found else [], errors)

    def head(self, contract: dict[str, Any], what: str) -> Answer:
        found, errors = self._ask(
            lambda: self._ib.reqHeadTimeStampAsync(of_async(contract), what, True, 2)
        )
        return Answer([(str(int(found.timestamp())),)] if found else [], errors)

    def summary(self) -> dict[str, str]:
        self._ask(self._ib.reqAccountSummaryAsync)
        return {each.tag: each.value for each in self._ib.wrapper.acctSummary.values()}

    def positions(self) -> int:
        return len(self._ask(self._ib.reqPositionsAsync)[0])

    def cancelled(self, contract: dict[str, Any]) -> list[int]:
        async def conversation() -> list[int]:
            codes: asyncio.Queue[int] = asyncio.Queue()
            self._ib.errorEvent += lambda _, code, *__: codes.put_nowait(code)
            asked = self._ib.reqHistoricalDataAsync(
                of_async(contract), "", "1 D", "1 day", "TRADES", useRTH=True
            )
            task = asyncio.ensure_future(asked)
            await asyncio.sleep(0)
            number = self._ib.client.getReqId() - 1
            for _ in range(2):
                self._ib.client.cancelHistoricalData(number)
            found = [await codes.get(), await codes.get()]
            task.cancel()
            return found

        return self._run(conversation())

    def live(self, contract: dict[str, Any], size: str, move: Callable[[], None]) -> Answer:
        async def conversation() -> Answer:
            bars = await self._ib.reqHistoricalDataAsync(
                of_async(contract),
                "",
                "1 D",
                size,
                "TRADES",
                useRTH=True,
                formatDate=2,
                keepUpToDate=True,
            )
            count = len(bars)
            move()
            while len(bars) == count:
                await bars.updateEvent
            self._ib.cancelHistoricalData(bars)
            await self._ib.errorEvent
            return Answer([plain(bar) for bar in bars])

        return self._run(conversation())

    def _run(self, work: Any) -> Any:
        async def limited() -> Any:
            return await asyncio.wait_for(work, WAIT_S)

        return self._runner.run(limited())

    def _ask(self, request: Callable[[], Any]) -> tuple[Any, list[tuple[int, str]]]:
        return self._run(self._answered(request))

    async def _answered(self, request: Callable[[], Any]) -> tuple[Any, list[tuple[int, str]]]:
        """Wait for an answer or an error: 321 alone would leave ib_async waiting for ever."""
        errors: list[tuple[int, str]] = []
        refused = asyncio.Event()

        def note(request_id: int, code: int, text: str, _: Any) -> None:
            if request_id >= 0 and code not in NOTICES:
                errors.append((code, text))
                refused.set()

        self._ib.errorEvent += note
        task, waiting = asyncio.ensure_future(request()), asyncio.ensure_future(refused.wait())
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        self._ib.errorEvent -= note
        waiting.cancel()
        if errors:
            task.cancel()
        with suppress(asyncio.CancelledError):
            return (await task if not errors else None), errors
        return None, errors

    async def _disconnect(self) -> None:
        self._ib.disconnect()


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

    def details(self, contract: dict[str, Any]) -> Answer:
        self.reqContractDetails(self._next(), official(contract))
        told = self._until("details end")
        return Answer(
            [described(each[1]) for each in told if each[0] == "details"], errors_in(told)
        )

    def bars(self, contract: dict[str, Any], size: str, duration: str, **other: Any) -> Answer:
        told = self._history(contract, size, duration, wanted(other), keep=False)
        return Answer([plain(each[1]) for each in told if each[0] == "bar"], errors_in(told))

    def schedule(self, contract: dict[str, Any], days: int, end: str) -> Answer:
        asked = wanted({"end": end, "what": "SCHEDULE"})
        told = self._history(contract, "1 day", f"{days} D", asked, keep=False)
        return Answer([each[1] for each in told if each[0] == "end"], errors_in(told))

    def head(self, contract: dict[str, Any], what: str) -> Answer:
        self.reqHeadTimeStamp(self._next(), official(contract), what, 1, 2)
        told = self._until("head")
        return Answer([each[1:] for each in told if each[0] == "head"], errors_in(told))

    def summary(self) -> dict[str, str]:
        self.reqAccountSummary(self._next(), "All", AccountSummaryTags.AllTags)
        return {each[1]: each[2] for each in self._until("summary end") if each[0] == "summary"}

    def positions(self) -> int:
        self.reqPositions()
        return sum(each[0] == "position" for each in self._until("positions end"))

    def cancelled(self, contract: dict[str, Any]) -> list[int]:
        number = self._send_history(contract, "1 day", "1 D", wanted({}), keep=False)
        for _ in range(2):
            self.cancelHistoricalData(number)
        return [code for told in (self._until(), self._until()) for code, _ in errors_in(told)]

    def live(self, contract: dict[str, Any], size: str, move: Callable[[], None]) -> Answer:
        told = self._history(contract, size, "1 D", wanted({}), keep=True)
        bars = {row[0]: row for row in (plain(each[1]) for each in told if each[0] == "bar")}
        count = len(bars)
        move()
        while len(bars) == count:
            row = plain(self._until("update")[-1][1])
            bars[row[0]] = row
        self.cancelHistoricalData(self._number)
        self._until()
        return Answer(list(bars.values()))

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
        self.reqHistoricalData(number, official(contract), *texts, rth, 2, keep, [])
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

    def position(self, *fields: Any) -> None:
        self._told.put(("position", fields))

    def positionEnd(self) -> None:  # noqa: N802
        self._told.put(("positions end",))


def sessions(found: Any) -> list[Row]:
    """Return sessions of a schedule as start, end and date."""
    return [(each.startDateTime, each.endDateTime, each.refDate) for each in found]


def errors_in(told: list[tuple[Any, ...]]) -> list[tuple[int, str]]:
    """Return code and text of the errors among what was told."""
    return [each[1] for each in told if each[0] == "error"]


def of_async(contract: dict[str, Any]) -> ib_async.Contract:
    """Describe a contract to ib_async."""
    return ib_async.Contract(**contract)


def official(contract: dict[str, Any]) -> Contract:
    """Describe a contract to ibapi."""
    made = Contract()
    for name, value in contract.items():
        setattr(made, name, value)
    return made


@contextmanager
def both_clients(server: SimulatorServer) -> Iterator[tuple[Client, Client]]:
    """Connect one of each, and disconnect them at the end."""
    one = AsyncClient(server.port, 31)
    try:
        other = OfficialClient(server.port, 32)
        try:
            yield one, other
        finally:
            other.close()
    finally:
        one.close()
