"""The common interface of both API clients, with plain values that can be compared."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol
from zoneinfo import ZoneInfo

WAIT_S = 60.0
NOTICES = frozenset({2104, 2106, 2158, 2174})
Row = tuple[Any, ...]

DETAILS = ("minTick", "marketName", "longName", "contractMonth", "timeZoneId", "tradingHours")
MORE_DETAILS = ("liquidHours", "validExchanges", "realExpirationDate", "stockType", "lastTradeTime")
CONTRACT = ("conId", "symbol", "secType", "lastTradeDateOrContractMonth", "right", "multiplier")
MORE_CONTRACT = ("exchange", "primaryExchange", "currency", "localSymbol", "tradingClass")


@dataclass
class Response:
    """The response to one request: rows of plain values, or errors."""

    rows: list[Row] = field(default_factory=list)
    errors: list[tuple[int, str]] = field(default_factory=list)


class Client(Protocol):
    """The requests that both clients can send; contracts are dictionaries of IB's fields."""

    name: str
    version: int

    def details(self, contract: dict[str, Any]) -> Response: ...
    def bars(
        self, contract: dict[str, Any], size: str, duration: str, **other: Any
    ) -> Response: ...
    def schedule(self, contract: dict[str, Any], days: int, end: str) -> Response: ...
    def head(self, contract: dict[str, Any], what: str) -> Response: ...
    def summary(self) -> dict[str, str]: ...
    def values(self) -> dict[str, str]: ...
    def positions(self) -> int: ...
    def cancelled(self, contract: dict[str, Any]) -> list[int]: ...
    def live(self, contract: dict[str, Any], size: str, move: Callable[[], None]) -> Response: ...


def details_row(found: Any) -> Row:
    """Return the fields of contract details that both clients know."""
    contract = [getattr(found.contract, name) for name in CONTRACT + MORE_CONTRACT]
    rest = [getattr(found, name) for name in DETAILS + MORE_DETAILS]
    sizes = [float(getattr(found, name)) for name in ("minSize", "sizeIncrement")]
    return (*contract, *rest, *sizes, float(found.contract.strike))


def bar_row(bar: Any) -> Row:
    """Return a bar with its date as epoch seconds or eight digits."""
    date = bar.date
    if isinstance(date, datetime):
        date = str(int(date.timestamp()))
    elif not isinstance(date, str):
        date = f"{date:%Y%m%d}"
    elif " " in date:
        day, clock, zone = date.split()
        moment = datetime.strptime(day + clock, "%Y%m%d%H:%M:%S").replace(tzinfo=ZoneInfo(zone))
        date = str(int(moment.timestamp()))
    average = bar.average if hasattr(bar, "average") else bar.wap
    prices = (bar.open, bar.high, bar.low, bar.close)
    return (date, *prices, float(bar.volume), float(average), bar.barCount)


def with_defaults(other: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a request for bars, completed by defaults."""
    return {"end": "", "what": "TRADES", "rth": True, "format": 2} | other


def sessions(found: Any) -> list[Row]:
    """Return sessions of a schedule as start, end and date."""
    return [(each.startDateTime, each.endDateTime, each.refDate) for each in found]
