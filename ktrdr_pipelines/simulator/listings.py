"""The instruments of the synthetic market: when they were listed and how they move.

Here: what the tables of ``symbols`` mean. Not here: the price process (``minutes``).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cache
from itertools import product

from ktrdr_pipelines.simulator.describing import (
    crypto,
    fx_pair,
    index,
    listed_again,
    stock_abroad,
    us_stock,
)
from ktrdr_pipelines.simulator.futures import PRODUCTS, continuous, contract
from ktrdr_pipelines.simulator.instruments import Instrument, SecType
from ktrdr_pipelines.simulator.symbols import (
    CRYPTOS,
    FUTURES,
    INDICES,
    PAIRS,
    STOCKS,
    STOCKS_ABROAD,
    STOCKS_AGAIN,
)

THIN_TRADE_SHARE = 60
"""Of 256 minutes of a thin stock, how many see a trade."""

LATE_EXTENDED_SHARE = 1
"""Of 256 minutes of a late stock outside regular hours, how many see a trade."""

_CRYPTO_EXCHANGES = ("PAXOS", "ZEROHASH")
_FUTURE_YEARS = range(2008, 2037)
_BASIS_YEAR = 2020
_COIN_PARTS = 100

_REACH = {
    SecType.STOCK: 1.2,
    SecType.FX: 0.18,
    SecType.FUTURE: 0.7,
    SecType.CONTINUOUS: 0.7,
    SecType.INDEX: 0.7,
    SecType.CRYPTO: 2.0,
}


@dataclass(frozen=True, slots=True)
class Listing:
    """An instrument with the parameters of its price process.

    ``price`` is its level at the start of 2020, ``daily_move`` the standard deviation of a
    session's relative move, ``minute_volume`` the shares of a middling minute (0: it has no
    volume), ``trade_share`` of 256 minutes how many see a trade, ``extended_share`` those outside
    regular hours. ``path`` names the random
    numbers it moves by, which instruments may share, ``shift_ticks`` the distance from that path;
    ``volume_parts`` is how many units of volume make one.
    """

    instrument: Instrument
    listed: date
    price: float
    daily_move: float
    minute_volume: int
    trade_share: int = 256
    extended_share: int = 256
    path: str = ""
    shift_ticks: int = 0
    volume_parts: int = 1

    @property
    def stream(self) -> str:
        """The name of its random numbers."""
        return self.path or self.instrument.key

    @property
    def ticks_per_unit(self) -> int:
        """How many ticks make one unit of the currency."""
        return round(1 / self.instrument.min_tick)

    @property
    def reach(self) -> float:
        """How far, in logarithms, the price may wander from its level."""
        return _REACH[self.instrument.sec_type]


@cache
def listings() -> dict[Instrument, Listing]:
    """Return every instrument of the synthetic market; it is built once a process.

    ``THIN``, which often does not trade, ``LATE``, whose first trade before the regular hours comes
    late or never, and ``TWIN``, of which there are two, are invented.
    """
    stocks = (_stocks(), _stocks_again(), _stocks_abroad())
    kinds = (*stocks, _pairs(), _indices(), _cryptos(), _futures())
    return {listing.instrument: listing for kind in kinds for listing in kind}


def _lines(table: str) -> list[str]:
    return table.strip().splitlines()


def _stocks() -> Iterator[Listing]:
    for line in _lines(STOCKS):
        exchange, listed, price, move, volume, name = line[6:].split(maxsplit=5)
        stock = us_stock(line[:6].strip(), exchange, name)
        day = date.fromisoformat(listed)
        yield Listing(stock, day, float(price), float(move), int(volume))
    thin = us_stock("THIN", "NYSE", "THINLY TRADED INC")
    yield Listing(
        thin,
        date(2003, 6, 2),
        12.4,
        0.024,
        300,
        trade_share=THIN_TRADE_SHARE,
        extended_share=THIN_TRADE_SHARE,
    )
    late = us_stock("LATE", "NYSE", "LATE RISING INC")
    yield Listing(late, date(2002, 4, 1), 31.7, 0.014, 2_000, extended_share=LATE_EXTENDED_SHARE)
    yield Listing(us_stock("TWIN", "NYSE", "TWIN ONE INC"), date(2001, 3, 5), 44.1, 0.018, 900)


def _stocks_again() -> Iterator[Listing]:
    first = {each.instrument.symbol: each.instrument for each in _stocks()}
    for line in _lines(STOCKS_AGAIN):
        symbol, exchange, currency, listed, price, move, volume = line.split()
        stock = listed_again(first[symbol], exchange, currency)
        day = date.fromisoformat(listed)
        yield Listing(stock, day, float(price), float(move), int(volume))


def _stocks_abroad() -> Iterator[Listing]:
    for line in _lines(STOCKS_ABROAD):
        symbol, exchange, currency, listed, price, move, volume, name = line.split(maxsplit=7)
        stock = stock_abroad(symbol, exchange, currency, name)
        day = date.fromisoformat(listed)
        yield Listing(stock, day, float(price), float(move), int(volume))


def _pairs() -> Iterator[Listing]:
    for line in _lines(PAIRS):
        key, listed, price, move = line.split()
        pair = fx_pair(key[:3], key[3:])
        yield Listing(pair, date.fromisoformat(listed), float(price), float(move), 0)


def _indices() -> Iterator[Listing]:
    for line in _lines(INDICES):
        symbol, exchange, listed, price, move, name = line.split(maxsplit=5)
        found = index(symbol, exchange, name)
        yield Listing(found, date.fromisoformat(listed), float(price), float(move), 0)


def _cryptos() -> Iterator[Listing]:
    for line, exchange in product(_lines(CRYPTOS), _CRYPTO_EXCHANGES):
        symbol, listed, price, move, volume, tick, name = line.split(maxsplit=6)
        yield Listing(
            crypto(symbol, exchange, name, float(tick)),
            date.fromisoformat(listed),
            float(price),
            float(move),
            int(volume),
            volume_parts=_COIN_PARTS,
        )


def _futures() -> Iterator[Listing]:
    for line in _lines(FUTURES):
        symbol, listed, price, move, volume, basis = line.split()
        chain = Listing(
            continuous(PRODUCTS[symbol]),
            date.fromisoformat(listed),
            float(price),
            float(move),
            int(volume),
            path=symbol,
        )
        yield chain
        yield from _contracts(chain, int(basis))


def _contracts(chain: Listing, basis: int) -> Iterator[Listing]:
    what = PRODUCTS[chain.instrument.symbol]
    for year, month in product(_FUTURE_YEARS, what.months):
        found = contract(what, year, month)
        first_s = found.expiry.first_s if found.expiry else 0
        yield Listing(
            found,
            datetime.fromtimestamp(first_s, UTC).date(),
            chain.price,
            chain.daily_move,
            chain.minute_volume,
            path=chain.path,
            shift_ticks=basis * (12 * (year - _BASIS_YEAR) + month),
        )
