"""What can be asked for: instruments, and which of them a client's contract fields name.

Contract ids are this simulator's own, far above those that IB uses for the same instruments, so
that a pinned id of one gateway is never mistaken for that of the other.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from zlib import crc32

from ktrdr_pipelines.simulator.hours import ZONE, MarketKind
from ktrdr_pipelines.simulator.messages import ContractFields

FX_EXCHANGE = "IDEALPRO"
SMART = "SMART"
CURRENCIES = frozenset({"AUD", "CAD", "CHF", "EUR", "GBP", "JPY", "NZD", "USD"})

_FIRST_CON_ID = 1_900_000_000
_CON_IDS = 100_000_000


@dataclass(frozen=True, slots=True)
class Instrument:
    """One contract: its fields as contract details state them."""

    symbol: str
    kind: MarketKind
    primary_exchange: str
    currency: str
    name: str
    min_tick: float
    zone: str = ZONE

    @property
    def key(self) -> str:
        """The symbol of a stock, both currencies of a pair."""
        return self.symbol if self.kind is MarketKind.STOCK else self.symbol + self.currency

    @property
    def con_id(self) -> int:
        """A contract id that depends on kind and key alone."""
        return _FIRST_CON_ID + crc32(f"{self.kind}/{self.key}".encode()) % _CON_IDS

    @property
    def exchange(self) -> str:
        """The exchange that bars are asked from."""
        return SMART if self.kind is MarketKind.STOCK else FX_EXCHANGE

    @property
    def local_symbol(self) -> str:
        """The exchange's own name: ``AAPL``, ``EUR.USD``."""
        if self.kind is MarketKind.STOCK:
            return self.symbol
        return f"{self.symbol}.{self.currency}"

    @property
    def trading_class(self) -> str:
        """The class that options of it would have: ``NMS`` for US stocks, the pair for FX."""
        return "NMS" if self.kind is MarketKind.STOCK else self.local_symbol

    @property
    def exchanges(self) -> tuple[str, ...]:
        """Every exchange that a request may name."""
        if self.kind is MarketKind.FX:
            return (FX_EXCHANGE,)
        return (SMART, self.primary_exchange)


def fitting(instruments: Iterable[Instrument], asked: ContractFields) -> list[Instrument]:
    """Return the instruments that contradict no field the client filled in."""
    return [instrument for instrument in instruments if _fits(instrument, asked)]


def _fits(instrument: Instrument, asked: ContractFields) -> bool:
    if asked.con_id:
        return instrument.con_id == asked.con_id and asked.exchange in {"", *instrument.exchanges}
    if not (asked.symbol or asked.local_symbol):
        return False
    primary = instrument.primary_exchange
    return (
        asked.symbol in {"", instrument.symbol}
        and asked.local_symbol in {"", instrument.local_symbol}
        and asked.sec_type in {"", instrument.kind}
        and asked.currency in {"", instrument.currency}
        and asked.exchange in {"", *instrument.exchanges}
        and asked.primary_exchange in {"", primary}
        and not asked.last_trade_date
    )


def pair_of(key: str) -> tuple[str, str] | None:
    """Split ``EURUSD`` into its currencies; None where it is no currency pair."""
    base, quote = key[:3], key[3:]
    is_pair = base != quote and {base, quote} <= CURRENCIES
    return (base, quote) if is_pair else None


def fx_pair(base: str, quote: str) -> Instrument:
    """Describe a currency pair; its tick is half a pip.

    Source: IB quotes IDEALPRO in half pips (grade O).
    """
    tick = 0.005 if quote == "JPY" else 0.00005
    return Instrument(base, MarketKind.FX, "", quote, f"{base}.{quote}", tick)


def us_stock(symbol: str, primary_exchange: str, name: str) -> Instrument:
    """Describe a US stock."""
    return Instrument(symbol, MarketKind.STOCK, primary_exchange, "USD", name, 0.01)
