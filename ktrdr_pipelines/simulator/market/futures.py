"""Futures: products, their months and last trade dates, and the continuous chain.

Source: CME Group's contract specifications (grade O): equity index futures end at 08:30 Chicago
on the third Friday of March, June, September and December, crude oil at 14:30 New York three
business days before the 25th of the month before the contract's, gold at 13:30 New York on the
third last business day of its month; Eurex's: index futures end on the third Friday, of the DAX at
13:00 and of the EURO STOXX 50 at 12:00 Frankfurt. MES and gold as live gateways report them:
https://github.com/ib-api-reloaded/ib_async/issues/128 (grade L). When a contract is first listed is
this simulator's choice (grade P).
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import numpy as np

from ktrdr_pipelines.simulator.market.hours import ZONES, Venue
from ktrdr_pipelines.simulator.market.market_calendars import calendar_of
from ktrdr_pipelines.simulator.market.simulated_instruments import (
    Expiry,
    SecurityType,
    SimulatedInstrument,
    con_id_of,
)

_MONTH_CODES = "FGHJKMNQUVXZ"
_LOCAL_SYMBOL = re.compile(rf"([A-Z]{{1,3}})([{_MONTH_CODES}])([0-9])")
_EPOCH = date(1970, 1, 1)
_LISTED_DAYS = 456
"""Days before its end from which a contract is known: five quarters."""


@dataclass(frozen=True, slots=True)
class Product:
    """What the contracts of one future have in common; ``months`` are those it expires in."""

    symbol: str
    venue: Venue
    exchange: str
    name: str
    min_tick: float
    multiplier: str
    months: tuple[int, ...]
    ends_at: time
    ends_on: Callable[[int, int], date]
    currency: str = "USD"
    trading_class: str = ""


def _third_friday(year: int, month: int) -> date:
    first = date(year, month, 1)
    return _business_day(first + timedelta(days=(4 - first.weekday()) % 7 + 14), back=0)


def _before_the_25th(year: int, month: int) -> date:
    """Return the third business day before the 25th of the month before."""
    before = date(year, month, 1) - timedelta(days=1)
    return _business_day(before.replace(day=25), back=3)


def _third_last(year: int, month: int) -> date:
    """Return the third last business day of a month."""
    following = date(year + month // 12, month % 12 + 1, 1)
    return _business_day(following - timedelta(days=1), back=2)


def _third_friday_at_eurex(year: int, month: int) -> date:
    first = date(year, month, 1)
    friday = first + timedelta(days=(4 - first.weekday()) % 7 + 14)
    return _business_day(friday, back=0, venue=Venue.EUREX)


_QUARTERS, _ALL = (3, 6, 9, 12), tuple(range(1, 13))


def _equity(symbol: str, name: str, multiplier: str) -> Product:
    ends = (time(8, 30), _third_friday)
    return Product(symbol, Venue.CME, "CME", name, 0.25, multiplier, _QUARTERS, *ends)


def _at_eurex(
    symbol: str, trading_class: str, name: str, *, min_tick: float, multiplier: str, ends_at: time
) -> Product:
    return Product(
        symbol=symbol,
        venue=Venue.EUREX,
        exchange="EUREX",
        name=name,
        min_tick=min_tick,
        multiplier=multiplier,
        months=_QUARTERS,
        ends_at=ends_at,
        ends_on=_third_friday_at_eurex,
        currency="EUR",
        trading_class=trading_class,
    )


PRODUCTS = {
    each.symbol: each
    for each in (
        _at_eurex("DAX", "FDAX", "DAX Index", min_tick=0.5, multiplier="25", ends_at=time(13)),
        _at_eurex(
            "ESTX50", "FESX", "EURO STOXX 50", min_tick=1.0, multiplier="10", ends_at=time(12)
        ),
        _equity("ES", "E-mini S&P 500", "50"),
        _equity("MES", "Micro E-Mini S&P 500 Stock Price Index", "5"),
        _equity("NQ", "E-mini NASDAQ 100", "20"),
        Product(
            symbol="CL",
            venue=Venue.NYMEX,
            exchange="NYMEX",
            name="Crude Oil",
            min_tick=0.01,
            multiplier="1000",
            months=_ALL,
            ends_at=time(14, 30),
            ends_on=_before_the_25th,
        ),
        Product(
            symbol="GC",
            venue=Venue.NYMEX,
            exchange="COMEX",
            name="Gold",
            min_tick=0.1,
            multiplier="100",
            months=_ALL,
            ends_at=time(13, 30),
            ends_on=_third_last,
        ),
    )
}


def contract(product: Product, year: int, month: int, *, kept: bool = False) -> SimulatedInstrument:
    """Return one contract; a ``kept`` one stays known after its end."""
    root = f"{product.trading_class or product.symbol}{_MONTH_CODES[month - 1]}"
    key = f"{root}{year}"
    return replace(
        continuous(product),
        key=key,
        con_id=con_id_of(SecurityType.FUTURE, key),
        sec_type=SecurityType.FUTURE,
        local_symbol=f"{root}{year % 10}",
        expiry=_expiry(product, year, month, kept=kept),
    )


def continuous(product: Product) -> SimulatedInstrument:
    """Return the continuous chain of a product's front contracts."""
    return SimulatedInstrument(
        key=product.symbol,
        con_id=con_id_of(SecurityType.CONTINUOUS, product.symbol),
        symbol=product.symbol,
        sec_type=SecurityType.CONTINUOUS,
        venue=product.venue,
        exchange=product.exchange,
        primary_exchange="",
        currency=product.currency,
        name=product.name,
        min_tick=product.min_tick,
        local_symbol=product.trading_class or product.symbol,
        trading_class=product.trading_class or product.symbol,
        multiplier=product.multiplier,
    )


def recorded_contract(name: str, newest: date) -> SimulatedInstrument | None:
    """Return the contract of a recording named like ``ESZ3``; None for another name.

    The year's digit repeats every ten years: the contract is the first one that ends on or after
    the month of the newest recorded bar.
    """
    found = _LOCAL_SYMBOL.fullmatch(name)
    if found is None or found[1] not in PRODUCTS:
        return None
    month = _MONTH_CODES.index(found[2]) + 1
    earliest = newest.year - (month < newest.month)
    year = earliest + (int(found[3]) - earliest) % 10
    return replace(contract(PRODUCTS[found[1]], year, month, kept=True), key=name)


def with_front(
    chain: SimulatedInstrument, instruments: Iterable[SimulatedInstrument], now_s: int
) -> SimulatedInstrument:
    """Return a chain under the id, name and dates of its front contract, as IB reports it."""
    live = [
        each
        for each in instruments
        if each.sec_type is SecurityType.FUTURE
        and each.symbol == chain.symbol
        and each.is_known(now_s, include_expired=False)
    ]
    if not live:
        return chain
    front = min(live, key=lambda each: each.expiry.end_s if each.expiry else 0)
    return replace(chain, con_id=front.con_id, local_symbol=front.local_symbol, expiry=front.expiry)


def _expiry(product: Product, year: int, month: int, *, kept: bool) -> Expiry:
    last = product.ends_on(year, month)
    zone = ZoneInfo(ZONES[product.venue])
    end = datetime.combine(last, product.ends_at, zone).astimezone(UTC)
    return Expiry(
        contract_month=f"{year}{month:02}",
        last_trade_date=f"{last:%Y%m%d}",
        last_trade_time=f"{product.ends_at:%H:%M:%S}",
        first_s=int((end - timedelta(days=_LISTED_DAYS)).timestamp()),
        end_s=int(end.timestamp()),
        kept=kept,
    )


def _business_day(day: date, *, back: int, venue: Venue = Venue.US_INDEX) -> date:
    """Return the business day so many before a day, or before the last one until that."""
    labels = calendar_of(venue).regular.labels
    last = int(np.searchsorted(labels, (day - _EPOCH).days, side="right")) - 1
    return _EPOCH + timedelta(days=int(labels[last - back]))
