"""Simulated instruments: their fields, and which of them a client's contract fields select."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from zlib import crc32

from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.simulator.market.hours import DAY_S, ZONES, Venue
from ktrdr_pipelines.simulator.protocol.messages import ContractFields

KEPT_S = IbLimitsRegistry.FUTURES_HISTORY_DAYS.value * DAY_S

_FIRST_CON_ID = 1_900_000_000
_CON_IDS = 100_000_000


class SecurityType(StrEnum):
    """The security types that are served."""

    STOCK = "STK"
    FX = "CASH"
    FUTURE = "FUT"
    CONTINUOUS = "CONTFUT"
    INDEX = "IND"
    CRYPTO = "CRYPTO"


@dataclass(frozen=True, slots=True)
class Expiry:
    """The life of a future: its month, its last trade date and the moments around it.

    ``kept`` says whether it is forgotten two years after its end, as IB does (grade O).
    """

    contract_month: str
    last_trade_date: str
    last_trade_time: str
    first_s: int
    end_s: int
    kept: bool = False


@dataclass(frozen=True, slots=True)
class SimulatedInstrument:
    """One contract: its fields as contract details state them.

    ``key`` names it in logs and folders of recordings, ``exchange`` is where bars are requested
    from, ``exchanges`` is every name a request may use for that; ``own_zone`` is set where its
    times are reported in another zone than its venue.
    """

    key: str
    con_id: int
    symbol: str
    sec_type: SecurityType
    venue: Venue
    exchange: str
    primary_exchange: str
    currency: str
    name: str
    min_tick: float
    local_symbol: str
    trading_class: str
    multiplier: str = ""
    expiry: Expiry | None = None
    own_zone: str = ""

    @property
    def zone(self) -> str:
        """The zone of its exchange."""
        return self.own_zone or ZONES[self.venue]

    @property
    def exchanges(self) -> tuple[str, ...]:
        """Every exchange that a request may name."""
        if self.primary_exchange in {"", self.exchange}:
            return (self.exchange,)
        return (self.exchange, self.primary_exchange)

    def is_known(self, now_s: int, *, include_expired: bool) -> bool:
        """Return whether a gateway lists it: from its first day, expired ones on request."""
        if self.expiry is None:
            return True
        if now_s < self.expiry.end_s:
            return now_s >= self.expiry.first_s
        return include_expired and (self.expiry.kept or now_s < self.expiry.end_s + KEPT_S)


def con_id_of(sec_type: SecurityType, key: str) -> int:
    """Return the contract id of a type and key: the same in every market.

    Ids are this simulator's own, far above those that IB uses for the same instruments, so that
    a pinned id of one gateway is never mistaken for that of the other.
    """
    return _FIRST_CON_ID + crc32(f"{sec_type}/{key}".encode()) % _CON_IDS


def fitting(
    instruments: Iterable[SimulatedInstrument], wanted: ContractFields
) -> list[SimulatedInstrument]:
    """Return the instruments that contradict no field the client filled in."""
    return [instrument for instrument in instruments if _fits(instrument, wanted)]


def _fits(instrument: SimulatedInstrument, wanted: ContractFields) -> bool:
    if wanted.con_id:
        return instrument.con_id == wanted.con_id and _same_exchange(instrument, wanted)
    if not (wanted.symbol or wanted.local_symbol):
        return False
    return (
        wanted.symbol in {"", instrument.symbol}
        and wanted.local_symbol in {"", instrument.local_symbol}
        and wanted.currency in {"", instrument.currency}
        and wanted.primary_exchange in {"", instrument.primary_exchange}
        and wanted.multiplier in {"", instrument.multiplier}
        and wanted.trading_class in {"", instrument.trading_class}
        and _same_exchange(instrument, wanted)
        and _same_month(instrument.expiry, wanted.last_trade_date)
    )


def _same_exchange(instrument: SimulatedInstrument, wanted: ContractFields) -> bool:
    """Compare type and exchange; an id without a type is a contract's, not the chain's."""
    if not wanted.sec_type and instrument.sec_type is SecurityType.CONTINUOUS:
        return False
    return wanted.sec_type in {"", instrument.sec_type} and (
        wanted.exchange in {"", *instrument.exchanges}
    )


def _same_month(expiry: Expiry | None, wanted: str) -> bool:
    """Compare ``yyyymm`` with a contract's month, ``yyyymmdd`` with its last trade date."""
    if not wanted:
        return True
    return expiry is not None and wanted in {expiry.contract_month, expiry.last_trade_date}


SMART = "SMART"
FX_EXCHANGE = "IDEALPRO"
_VENUES_ABROAD = {
    "TSE": Venue.TORONTO,
    "LSE": Venue.LONDON,
    "SBF": Venue.PARIS,
    "AEB": Venue.AMSTERDAM,
    "IBIS": Venue.XETRA,
    "EBS": Venue.ZURICH,
    "SFB": Venue.STOCKHOLM,
    "TSEJ": Venue.TOKYO,
    "SEHK": Venue.HONG_KONG,
    "ASX": Venue.SYDNEY,
}
CURRENCIES = frozenset({"AUD", "CAD", "CHF", "EUR", "GBP", "JPY", "NZD", "USD"})


def pair_of(key: str) -> tuple[str, str] | None:
    """Split ``EURUSD`` into its currencies; None where it is no currency pair."""
    base, quote = key[:3], key[3:]
    is_pair = base != quote and {base, quote} <= CURRENCIES
    return (base, quote) if is_pair else None


def fx_pair(base: str, quote: str) -> SimulatedInstrument:
    """Return a currency pair; its tick is half a pip.

    Source: IB quotes IDEALPRO in half pips (grade O).
    """
    name = f"{base}.{quote}"
    return SimulatedInstrument(
        key=base + quote,
        con_id=con_id_of(SecurityType.FX, base + quote),
        symbol=base,
        sec_type=SecurityType.FX,
        venue=Venue.FX,
        exchange=FX_EXCHANGE,
        primary_exchange="",
        currency=quote,
        name=name,
        min_tick=0.005 if quote == "JPY" else 0.00005,
        local_symbol=name,
        trading_class=name,
    )


def us_stock(symbol: str, primary_exchange: str, name: str) -> SimulatedInstrument:
    """Return a US stock."""
    return SimulatedInstrument(
        key=symbol,
        con_id=con_id_of(SecurityType.STOCK, symbol),
        symbol=symbol,
        sec_type=SecurityType.STOCK,
        venue=Venue.US_STOCKS,
        exchange=SMART,
        primary_exchange=primary_exchange,
        currency="USD",
        name=name,
        min_tick=0.01,
        local_symbol=symbol,
        trading_class="NMS",
    )


def stock_abroad(
    symbol: str, primary_exchange: str, currency: str, name: str
) -> SimulatedInstrument:
    """Return a stock that is listed outside the US only."""
    return _listed_at(us_stock(symbol, primary_exchange, name), primary_exchange, currency)


def listed_again(
    stock: SimulatedInstrument, primary_exchange: str, currency: str
) -> SimulatedInstrument:
    """Return a stock's listing at a second exchange: it differs in that and the currency."""
    key = f"{stock.symbol}.{primary_exchange}"
    again = replace(stock, key=key, con_id=con_id_of(SecurityType.STOCK, key))
    return _listed_at(again, primary_exchange, currency)


def _listed_at(
    stock: SimulatedInstrument, primary_exchange: str, currency: str
) -> SimulatedInstrument:
    venue = _VENUES_ABROAD.get(primary_exchange)
    return replace(
        stock,
        venue=venue or Venue.US_STOCKS,
        primary_exchange=primary_exchange,
        currency=currency,
        trading_class=stock.symbol if venue else "NMS",
    )


def index(symbol: str, exchange: str, name: str) -> SimulatedInstrument:
    """Return a US stock index."""
    return _at_one_exchange(
        (SecurityType.INDEX, Venue.US_INDEX, exchange),
        symbol,
        name,
        min_tick=0.01,
        local_symbol=symbol,
    )


def crypto(symbol: str, exchange: str, name: str, min_tick: float) -> SimulatedInstrument:
    """Return a crypto currency in dollars at one of the exchanges that trade it."""
    kind = (SecurityType.CRYPTO, Venue.CRYPTO, exchange)
    return _at_one_exchange(kind, symbol, name, min_tick=min_tick, local_symbol=f"{symbol}.USD")


def _at_one_exchange(
    kind: tuple[SecurityType, Venue, str],
    symbol: str,
    name: str,
    *,
    min_tick: float,
    local_symbol: str,
) -> SimulatedInstrument:
    """Return an instrument in dollars at one exchange, which is part of its key."""
    sec_type, venue, exchange = kind
    key = f"{symbol}.{exchange}"
    return SimulatedInstrument(
        key=key,
        con_id=con_id_of(sec_type, key),
        symbol=symbol,
        sec_type=sec_type,
        venue=venue,
        exchange=exchange,
        primary_exchange="",
        currency="USD",
        name=name,
        min_tick=min_tick,
        local_symbol=local_symbol,
        trading_class=local_symbol,
    )
