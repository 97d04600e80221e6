"""How instruments of each kind are described: the fields that follow from a few.

Not here: futures (``futures``), and which instruments there are (``listings``).
"""

from dataclasses import replace

from ktrdr_pipelines.simulator.hours import Venue
from ktrdr_pipelines.simulator.instruments import Instrument, SecType, con_id_of

SMART = "SMART"
FX_EXCHANGE = "IDEALPRO"
_VENUES_ABROAD = {"TSE": Venue.TORONTO, "LSE": Venue.LONDON}
CURRENCIES = frozenset({"AUD", "CAD", "CHF", "EUR", "GBP", "JPY", "NZD", "USD"})


def pair_of(key: str) -> tuple[str, str] | None:
    """Split ``EURUSD`` into its currencies; None where it is no currency pair."""
    base, quote = key[:3], key[3:]
    is_pair = base != quote and {base, quote} <= CURRENCIES
    return (base, quote) if is_pair else None


def fx_pair(base: str, quote: str) -> Instrument:
    """Describe a currency pair; its tick is half a pip.

    Source: IB quotes IDEALPRO in half pips (grade O).
    """
    name = f"{base}.{quote}"
    return Instrument(
        key=base + quote,
        con_id=con_id_of(SecType.FX, base + quote),
        symbol=base,
        sec_type=SecType.FX,
        venue=Venue.FX,
        exchange=FX_EXCHANGE,
        primary_exchange="",
        currency=quote,
        name=name,
        min_tick=0.005 if quote == "JPY" else 0.00005,
        local_symbol=name,
        trading_class=name,
    )


def us_stock(symbol: str, primary_exchange: str, name: str) -> Instrument:
    """Describe a US stock."""
    return Instrument(
        key=symbol,
        con_id=con_id_of(SecType.STOCK, symbol),
        symbol=symbol,
        sec_type=SecType.STOCK,
        venue=Venue.US_STOCKS,
        exchange=SMART,
        primary_exchange=primary_exchange,
        currency="USD",
        name=name,
        min_tick=0.01,
        local_symbol=symbol,
        trading_class="NMS",
    )


def stock_abroad(symbol: str, primary_exchange: str, currency: str, name: str) -> Instrument:
    """Describe a stock that is listed outside the US only."""
    return _listed_at(us_stock(symbol, primary_exchange, name), primary_exchange, currency)


def listed_again(stock: Instrument, primary_exchange: str, currency: str) -> Instrument:
    """Describe a stock's listing at a second exchange: only that and the currency tell it."""
    key = f"{stock.symbol}.{primary_exchange}"
    again = replace(stock, key=key, con_id=con_id_of(SecType.STOCK, key))
    return _listed_at(again, primary_exchange, currency)


def _listed_at(stock: Instrument, primary_exchange: str, currency: str) -> Instrument:
    venue = _VENUES_ABROAD.get(primary_exchange)
    return replace(
        stock,
        venue=venue or Venue.US_STOCKS,
        primary_exchange=primary_exchange,
        currency=currency,
        trading_class=stock.symbol if venue else "NMS",
    )


def index(symbol: str, exchange: str, name: str) -> Instrument:
    """Describe a US stock index."""
    return _at_one_exchange(
        (SecType.INDEX, Venue.US_INDEX, exchange), symbol, name, min_tick=0.01, local_symbol=symbol
    )


def crypto(symbol: str, exchange: str, name: str, min_tick: float) -> Instrument:
    """Describe a crypto currency in dollars at one of the exchanges that trade it."""
    kind = (SecType.CRYPTO, Venue.CRYPTO, exchange)
    return _at_one_exchange(kind, symbol, name, min_tick=min_tick, local_symbol=f"{symbol}.USD")


def _at_one_exchange(
    kind: tuple[SecType, Venue, str],
    symbol: str,
    name: str,
    *,
    min_tick: float,
    local_symbol: str,
) -> Instrument:
    """Describe what is told in dollars under one name at one exchange, which is in its key."""
    sec_type, venue, exchange = kind
    key = f"{symbol}.{exchange}"
    return Instrument(
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
