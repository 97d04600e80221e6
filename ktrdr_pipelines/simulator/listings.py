"""The instruments of the synthetic market: when they were listed and how they move.

Symbols and listing dates are those of real instruments (grade C: public company histories;
dates before 1980 start with the calendar); prices are plausible levels of early 2020, and every
price that follows from them is invented.
"""

from dataclasses import dataclass
from datetime import date

from ktrdr_pipelines.simulator.hours import MarketKind
from ktrdr_pipelines.simulator.instruments import Instrument, fx_pair, us_stock

THIN_TRADE_SHARE = 60
"""Of 256 minutes of a thin stock, how many see a trade."""


@dataclass(frozen=True, slots=True)
class Listing:
    """An instrument with the parameters of its price process.

    ``price`` is its level at the start of 2020, ``daily_move`` the standard deviation of a
    session's relative move, ``minute_volume`` the shares of a middling minute, ``trade_share``
    of 256 minutes how many see a trade.
    """

    instrument: Instrument
    listed: date
    price: float
    daily_move: float
    minute_volume: int
    trade_share: int = 256

    @property
    def ticks_per_unit(self) -> int:
        """How many ticks make one unit of the currency."""
        return round(1 / self.instrument.min_tick)

    @property
    def reach(self) -> float:
        """How far, in logarithms, the price may wander from its level."""
        return 1.2 if self.instrument.kind is MarketKind.STOCK else 0.18


_STOCKS = """
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
"""

_PAIRS = """
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


def _stock(line: str) -> Listing:
    symbol, rest = line[:6].strip(), line[6:].split(maxsplit=5)
    exchange, listed, price, move, volume, name = rest
    return Listing(
        us_stock(symbol, exchange, name),
        date.fromisoformat(listed),
        float(price),
        float(move),
        int(volume),
    )


def _pair(line: str) -> Listing:
    key, listed, price, move = line.split()
    instrument = fx_pair(key[:3], key[3:])
    return Listing(instrument, date.fromisoformat(listed), float(price), float(move), 0)


_THIN = Listing(
    us_stock("THIN", "NYSE", "THINLY TRADED INC"),
    date(2003, 6, 2),
    price=12.4,
    daily_move=0.024,
    minute_volume=300,
    trade_share=THIN_TRADE_SHARE,
)

LISTINGS: dict[Instrument, Listing] = {
    listing.instrument: listing
    for listing in (
        *map(_stock, _STOCKS.strip().splitlines()),
        _THIN,
        *map(_pair, _PAIRS.strip().splitlines()),
    )
}
"""Every instrument of the synthetic market; ``THIN`` is invented and often does not trade."""
