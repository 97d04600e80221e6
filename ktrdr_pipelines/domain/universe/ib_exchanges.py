"""Tables of IB's exchange codes: the market, currency and calendar of each.

Nothing is guessed: what is not in a table has no calendar, and the universe must set one.

Not here: the calendars (``domain.calendars.registry``), the instrument of an entry
(``domain.universe.defaults``).

Source: codes from https://www.interactivebrokers.com/en/trading/products-exchanges.php; ISO 10383
codes from https://www.iso20022.org/market-identifier-codes; families of CME's products from
https://www.cmegroup.com/trading/products/, of Eurex's from
https://www.eurex.com/ex-en/trade/trading-hours. An index keeps the hours of the stocks in it. Days
of other futures begin with the evening session that their exchange counts to the next day (grade
C); they matter where a universe sets ``calendar: GATEWAY``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from ktrdr_pipelines.domain.calendars.registry import GATEWAY, calendar_named, is_gateways
from ktrdr_pipelines.domain.instruments import SecType

SMART: Final = "SMART"
_NEW_YORK: Final = "XNYS"


@dataclass(frozen=True, slots=True)
class ListingVenue:
    """Where an instrument trades.

    ``regular`` and ``all_hours`` are keys of calendars, empty where no library has the hours;
    ``days`` is the calendar whose zone and session days hold for all hours. ``products`` are IB's
    symbols of the futures at this exchange whose hours are known.
    """

    currency: str
    regular: str
    all_hours: str
    days: str
    products: tuple[str, ...] = ()

    def calendar(self, *, use_rth: bool) -> str:
        """Return the calendar of regular or of all hours; empty where it is unknown."""
        return self.regular if use_rth else self.all_hours

    @property
    def gateways(self) -> str:
        """The calendar whose sessions only the gateway knows, in this market's zone."""
        if is_gateways(self.days):
            return self.days
        known = calendar_named(self.days)
        if not known.roll:
            return f"{GATEWAY}:{known.zone}"
        begins_min = 24 * 60 - round(known.roll.total_seconds() / 60)
        return f"{GATEWAY}:{known.zone}@{begins_min // 60:02}:{begins_min % 60:02}"


_CURRENCIES: Final = """
USD XNYS NASDAQ NYSE ARCA AMEX BATS ISLAND IEX BEX CHX PSX NYSENAT BYX EDGEA DRCTEDGE MEMX PEARL
USD XNYS LTSE NYSEFLOOR PINK
CAD XTSE TSE VENTURE AEQLIT PURE
MXN XMEX MEXI
GBP XLON LSE LSEETF
EUR XETR IBIS IBIS2
EUR XFRA FWB FWB2
EUR XSTU SWB SWB2
EUR XPAR SBF
EUR XAMS AEB
EUR XBRU ENEXT.BE
EUR XLIS BVL
EUR XMIL BVME BVME.ETF
EUR XMAD BM
EUR XWBO VSE
EUR XHEL HEX
EUR XDUB ISED
EUR XTAL N.TALLINN
EUR XRIS N.RIGA
EUR XLIT N.VILNIUS
CHF XSWX EBS VIRTX
SEK XSTO SFB
DKK XCSE CPH
NOK XOSL OSE
PLN XWAR WSE
CZK XPRA PRA
HUF XBUD BUX
SAR XSAU TADAWUL
JPY XTKS TSEJ
HKD XHKG SEHK
CNH XSHG SEHKNTL SEHKSZSE SEHKSTAR CHINEXT
AUD XASX ASX ASXCEN
SGD XSES SGX
INR XNSE NSE
KRW XKRX KSE
TWD XTAI TWSE
MYR XKLS BURSAMY
"""
"""Stock exchanges: currency, ISO 10383 code, IB's codes."""

_INDICES: Final = """
USD XNYS CBOE NASDAQ NYSE ARCA AMEX RUSSELL PSE PHLX
EUR XETR EUREX DTB
EUR XPAR MONEP
EUR XAMS FTA
EUR XBRU BELFOX
EUR XMIL IDEM
EUR XMAD MEFFRV
CHF XSWX SOFFEX
SEK XSTO OMS
GBP XLON LSE
JPY XTKS OSE.JPN
HKD XHKG HKFE
AUD XASX ASX SNFE
CAD XTSE TSE CDE
"""
"""Exchanges at which indices are listed: currency, ISO 10383 code of the stocks, IB's codes."""

_FUTURES: Final = """
GLOBEX.EQUITY CME ES MES NQ MNQ RTY M2K EMD SP NKD NIY
GLOBEX.EQUITY CBOT YM MYM
GLOBEX.RATES CME GE SR1 SR3
GLOBEX.RATES CBOT ZB ZN ZF ZT UB TN ZQ
GLOBEX.FX CME EUR GBP JPY AUD CAD CHF MXP NZD M6E M6B M6A MJY
GLOBEX.ENERGY_METALS NYMEX CL MCL QM NG QG MNG RB HO BZ PL PA
GLOBEX.ENERGY_METALS COMEX GC MGC QO SI SIL QI HG MHG QC
GLOBEX.GRAINS CBOT ZC ZS ZW ZM ZL ZO ZR KE
GLOBEX.LIVESTOCK CME LE HE GF
EUREX.INDEX EUREX DAX ESTX50
EUREX.INDEX DTB DAX ESTX50
EUREX.RATES EUREX GBL GBM GBS GBX
EUREX.RATES DTB GBL GBM GBS GBX
"""
"""Futures: calendar, exchange, IB's symbols. Crypto futures trade in hours of their own that
changed often: only the gateway knows them."""

_FUTURES_EXCHANGES: Final = """
USD GLOBEX.EQUITY CME CBOT NYMEX COMEX
USD GATEWAY:America/Chicago@17:00 CFE
USD GATEWAY:America/New_York@18:00 NYBOT ICEUS
USD GATEWAY:Europe/London@23:00 IPE ICEEU ICEEUSOFT
USD GATEWAY:Europe/London LMEOTC
CAD GATEWAY:America/Toronto@18:00 CDE
MXN GATEWAY:America/Mexico_City MEXDER
EUR EUREX.INDEX EUREX DTB
EUR GATEWAY:Europe/Paris MONEP MATIF
EUR GATEWAY:Europe/Amsterdam FTA ENDEX
EUR GATEWAY:Europe/Brussels BELFOX
EUR GATEWAY:Europe/Rome IDEM
EUR GATEWAY:Europe/Madrid MEFFRV
CHF GATEWAY:Europe/Zurich SOFFEX
SEK GATEWAY:Europe/Stockholm OMS
JPY GATEWAY:Asia/Tokyo@16:00 OSE.JPN
HKD GATEWAY:Asia/Hong_Kong@17:00 HKFE
SGD GATEWAY:Asia/Singapore@14:00 SGX
KRW GATEWAY:Asia/Seoul KSE
INR GATEWAY:Asia/Kolkata NSE
AUD GATEWAY:Australia/Sydney@17:00 SNFE
"""
"""Futures exchanges: usual currency, the calendar of their session days, IB's codes."""


def _exchanges(table: str) -> Mapping[str, ListingVenue]:
    found: dict[str, ListingVenue] = {}
    for line in table.strip().splitlines():
        currency, code, *names = line.split()
        all_hours = f"{code}.ETH" if code == _NEW_YORK else ""
        market = ListingVenue(currency, f"{code}.RTH", all_hours, f"{code}.RTH")
        found |= dict.fromkeys(names, market)
    return MappingProxyType(found)


STOCK_EXCHANGES: Final = _exchanges(_CURRENCIES)
INDEX_EXCHANGES: Final = MappingProxyType({**STOCK_EXCHANGES, **_exchanges(_INDICES)})
US_STOCKS: Final = STOCK_EXCHANGES["NYSE"]
_FAMILIES: Final = {
    (exchange, symbol): family
    for family, exchange, *symbols in map(str.split, _FUTURES.strip().splitlines())
    for symbol in symbols
}
FUTURES_EXCHANGES: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        name: (currency, days)
        for currency, days, *names in map(str.split, _FUTURES_EXCHANGES.strip().splitlines())
        for name in names
    }
)
"""The usual currency of a futures exchange, and the calendar of its session days."""
_SPOT: Final = ListingVenue("", "", "FX", "FX")
_CRYPTO: Final = ListingVenue("USD", "", "CRYPTO", "CRYPTO")


def market_of(
    sec_type: SecType, exchange: str, primary_exchange: str, *, symbol: str, currency: str
) -> ListingVenue | None:
    """Return the market of an instrument, or None where no table has it.

    ``currency`` is what the user gave, or empty. A stock that SMART routes is a US stock unless
    its primary exchange or its currency is another one.
    """
    if sec_type is SecType.CASH:
        return _SPOT
    if sec_type is SecType.CRYPTO:
        return _CRYPTO
    if sec_type is SecType.FUT:
        return _future(exchange, symbol)
    listed = primary_exchange or exchange
    if sec_type is SecType.IND:
        return INDEX_EXCHANGES.get(listed)
    if listed == SMART:
        return US_STOCKS if currency in {"", "USD"} else None
    return STOCK_EXCHANGES.get(listed)


def exchange_codes_of(sec_type: SecType) -> tuple[str, ...]:
    """Return IB's codes of the exchanges that are known for a kind of instrument."""
    if sec_type is SecType.FUT:
        return tuple(FUTURES_EXCHANGES)
    return tuple(INDEX_EXCHANGES if sec_type is SecType.IND else STOCK_EXCHANGES)


def _future(exchange: str, symbol: str) -> ListingVenue | None:
    """Return a future's market; for products in no family only the days are known."""
    if exchange not in FUTURES_EXCHANGES:
        return None
    currency, days = FUTURES_EXCHANGES[exchange]
    products = tuple(one for code, one in _FAMILIES if code == exchange)
    return ListingVenue(currency, "", _FAMILIES.get((exchange, symbol), ""), days, products)
