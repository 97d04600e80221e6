"""The instruments of the synthetic market: symbols, listing dates, prices and moves.

Symbols and listing dates are those of real instruments (grade C: public company histories;
dates before 1980 start with the calendar); prices are plausible levels of early 2020, and every
price that follows from them is invented.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cache
from itertools import product

from ktrdr_pipelines.simulator.market.futures import PRODUCTS, continuous, contract
from ktrdr_pipelines.simulator.market.simulated_instruments import (
    SecurityType,
    SimulatedInstrument,
    crypto,
    fx_pair,
    index,
    listed_again,
    stock_abroad,
    us_stock,
)

STOCKS = """
AAPL  NASDAQ 1980-12-12  297.43 0.017 110000 APPLE INC
MSFT  NASDAQ 1986-03-13  158.62 0.016  90000 MICROSOFT CORP
AMZN  NASDAQ 1997-05-15   93.75 0.021  80000 AMAZON.COM INC
GOOGL NASDAQ 2004-08-19   67.43 0.017  60000 ALPHABET INC-CL A
GOOG  NASDAQ 2014-04-03   67.08 0.017  50000 ALPHABET INC-CL C
META  NASDAQ 2012-05-18  205.25 0.022  60000 META PLATFORMS INC-CLASS A
NVDA  NASDAQ 1999-01-22   58.83 0.027 120000 NVIDIA CORP
TSLA  NASDAQ 2010-06-29   27.89 0.034 150000 TESLA INC
NFLX  NASDAQ 2002-05-23  323.57 0.026  20000 NETFLIX INC
INTC  NASDAQ 1980-01-02   59.85 0.019  60000 INTEL CORP
AMD   NASDAQ 1980-01-02   45.86 0.030 120000 ADVANCED MICRO DEVICES
CSCO  NASDAQ 1990-02-16   47.96 0.017  50000 CISCO SYSTEMS INC
ADBE  NASDAQ 1986-08-20  329.81 0.020   7000 ADOBE INC
PYPL  NASDAQ 2015-07-06  108.17 0.023  20000 PAYPAL HOLDINGS INC
QQQ   NASDAQ 1999-03-10  212.61 0.013 100000 INVESCO QQQ TRUST SERIES 1
JPM   NYSE   1980-03-17  139.40 0.016  30000 JPMORGAN CHASE & CO
BAC   NYSE   1980-01-02   35.22 0.018 120000 BANK OF AMERICA CORP
V     NYSE   2008-03-19  187.90 0.014  18000 VISA INC-CLASS A SHARES
MA    NYSE   2006-05-25  298.59 0.016   8000 MASTERCARD INC - A
JNJ   NYSE   1980-01-02  145.87 0.011  16000 JOHNSON & JOHNSON
PG    NYSE   1980-01-02  124.90 0.011  17000 PROCTER & GAMBLE CO
KO    NYSE   1980-01-02   55.35 0.011  30000 COCA-COLA CO
XOM   NYSE   1980-01-02   69.78 0.016  45000 EXXON MOBIL CORP
WMT   NYSE   1980-01-02  119.40 0.012  20000 WALMART INC
DIS   NYSE   1980-01-02  144.63 0.016  22000 WALT DISNEY CO
IBM   NYSE   1980-01-02  134.34 0.014  10000 INTL BUSINESS MACHINES CORP
GE    NYSE   1980-01-02   88.56 0.022  12000 GENERAL ELECTRIC
BA    NYSE   1980-01-02  325.76 0.023  12000 BOEING CO
CAT   NYSE   1980-01-02  147.68 0.018   9000 CATERPILLAR INC
HD    NYSE   1981-09-22  218.38 0.015   9000 HOME DEPOT INC
UNH   NYSE   1984-10-17  293.98 0.016   8000 UNITEDHEALTH GROUP INC
F     NYSE   1980-01-02    9.30 0.022 110000 FORD MOTOR CO
T     NYSE   1984-07-19   39.08 0.013  70000 AT&T INC
ON    NASDAQ 2000-05-02   24.38 0.029  14000 ON SEMICONDUCTOR
BRK B NYSE   1996-05-09  226.50 0.012   9000 BERKSHIRE HATHAWAY INC-CL B
SPY   ARCA   1993-01-29  321.86 0.011 160000 SPDR S&P 500 ETF TRUST
IWM   ARCA   2000-05-26  165.67 0.014  60000 ISHARES RUSSELL 2000 ETF
DIA   ARCA   1998-01-20  285.38 0.011  10000 SPDR DJIA TRUST
GLD   ARCA   2004-11-18  142.90 0.009  20000 SPDR GOLD SHARES
TLT   NASDAQ 2002-07-26  137.01 0.009  25000 ISHARES 20+ YEAR TREASURY BD
SHOP  NYSE   2015-05-21   39.76 0.034  15000 SHOPIFY INC - CLASS A
RY    NYSE   1995-10-16   79.20 0.010   3000 ROYAL BANK OF CANADA
"""

PAIRS = """
EURUSD 2005-03-09 1.11730 0.0055
GBPUSD 2005-03-09 1.31500 0.0058
USDJPY 2005-03-09 108.560 0.0056
USDCHF 2005-03-09 0.97100 0.0054
AUDUSD 2005-03-09 0.69850 0.0066
USDCAD 2005-03-09 1.29870 0.0050
NZDUSD 2005-03-09 0.66900 0.0068
EURGBP 2005-03-09 0.84960 0.0048
EURJPY 2005-03-09 121.300 0.0062
EURCHF 2005-03-09 1.08490 0.0036
GBPJPY 2005-03-09 142.760 0.0070
AUDJPY 2005-03-09 75.8300 0.0074
"""

STOCKS_AGAIN = """
SHOP TSE  CAD 2015-05-21  51.63 0.034  4000
RY   TSE  CAD 1980-01-02 102.75 0.010 12000
TWIN AMEX USD 2005-01-03  18.20 0.020   800
"""
"""Second listings of a symbol: a request must say which by currency or primary exchange."""

STOCKS_ABROAD = """
VOD  LSE GBP 1988-10-26 146.76 0.016 60000 VODAFONE GROUP PLC
HSBA LSE GBP 1991-04-08 591.90 0.014 30000 HSBC HOLDINGS PLC
BP. LSE GBP 1980-01-02 475.20 0.016 40000 BP PLC
AIR SBF EUR 2000-07-10 131.20 0.019 3000 AIRBUS SE
ASML AEB EUR 1995-03-15 265.80 0.018 2000 ASML HOLDING NV
SAP IBIS EUR 1988-11-04 120.60 0.014 4000 SAP SE
NESN EBS CHF 1990-07-03 104.90 0.010 9000 NESTLE SA-REG
ERIC.B SFB SEK 1980-01-02 81.70 0.017 12000 ERICSSON LM-B SHS
7203 TSEJ JPY 1997-01-06 1541.00 0.012 20000 TOYOTA MOTOR CORP
700 SEHK HKD 2004-06-16 376.00 0.018 30000 TENCENT HOLDINGS LTD
BHP ASX AUD 1980-01-02 39.10 0.015 16000 BHP GROUP LTD
"""
"""Stocks that are listed outside the US only; prices at London are in pence."""

INDICES = """
SPX CBOE 1980-01-02 3230.78 0.011 S&P 500 Stock Index
NDX CBOE 1985-01-31 8733.07 0.014 NASDAQ 100 Stock Index
VIX CBOE 1990-01-02   13.78 0.070 CBOE Volatility Index
"""

CRYPTOS = """
BTC 2015-01-02 7194.89 0.038 30000 0.25 Bitcoin
ETH 2017-01-03  129.61 0.048 90000 0.01 Ethereum
"""
"""Volumes are in hundredths of a coin."""

FUTURES = """
ES 1997-09-09 3231.00 0.011 1200  7
MES 2019-05-06 3231.00 0.011 2400 7
NQ 1999-06-21 8745.00 0.014  600 20
CL 1983-03-30   61.06 0.023  500  3
GC 1980-01-02 1523.10 0.010  700  9
DAX 1990-11-23 13249.0 0.012 120 12
ESTX50 1998-06-22 3745.0 0.011 900 6
"""
"""The last column is the basis: ticks by which each later month is above the one before."""


THIN_TRADE_SHARE = 60
"""Of 256 minutes of a thin stock, how many see a trade."""

LATE_EXTENDED_SHARE = 1
"""Of 256 minutes of a late stock outside regular hours, how many see a trade."""

_CRYPTO_EXCHANGES = ("PAXOS", "ZEROHASH")
_FUTURE_YEARS = range(2008, 2037)
_BASIS_YEAR = 2020
_COIN_PARTS = 100

_REACH = {
    SecurityType.STOCK: 1.2,
    SecurityType.FX: 0.18,
    SecurityType.FUTURE: 0.7,
    SecurityType.CONTINUOUS: 0.7,
    SecurityType.INDEX: 0.7,
    SecurityType.CRYPTO: 2.0,
}


@dataclass(frozen=True, slots=True)
class Listing:
    """An instrument with the parameters of its price process.

    ``price`` is its level at the start of 2020, ``daily_move`` the standard deviation of a
    session's relative move, ``minute_volume`` the shares of an average minute (0: it has no
    volume). ``trade_share`` is the number of minutes with a trade among 256, ``extended_share``
    that number outside regular hours. ``path`` names the random numbers of its price, which
    instruments may share, ``shift_ticks`` the distance from that path; ``volume_parts`` units of
    volume make one share or coin.
    """

    instrument: SimulatedInstrument
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
def listings() -> dict[SimulatedInstrument, Listing]:
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
