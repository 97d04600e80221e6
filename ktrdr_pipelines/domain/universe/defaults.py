"""Derive the instrument of a universe entry: fields that are not given, and its calendar.

A key alone names an instrument. Fields that contradict each other are refused. A calendar is never
guessed: an instrument whose sessions are not known is refused by an error that names what to set.

Not here: which fields there are (``domain.universe.fields``), tables of exchanges
(``domain.universe.ib_exchanges``).

Source: currencies of IB's spot market from
https://www.interactivebrokers.com/en/trading/products-spot-currencies.php.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Final

from ktrdr_pipelines.domain.calendars.cme_futures import FAMILIES
from ktrdr_pipelines.domain.calendars.registry import GATEWAY, is_calendar, is_gateways
from ktrdr_pipelines.domain.instruments import Instrument, SecType, WhatToShow
from ktrdr_pipelines.domain.universe.fields import DEFAULTS, Entry, shown
from ktrdr_pipelines.domain.universe.ib_exchanges import SMART, ListingVenue, market_of

_REGULAR, _EXTENDED = ".RTH", ".ETH"


def calendar_for(entry: Entry, made: Instrument, market: ListingVenue | None) -> str:
    """Return the key of an instrument's calendar.

    Args:
        entry: the entry, for the position of errors.
        made: the instrument, with the calendar that was given or derived; empty if neither.
        market: where it trades, if a table has it.

    Raises:
        UniverseError: no calendar can be derived, or the given one is not possible.
    """
    derived = market.calendar(use_rth=made.use_rth) if market else ""
    if made.calendar == GATEWAY:
        if market is None:
            raise entry.at("calendar").error(
                f"is {GATEWAY}, and the zone of {_location(made)} is not known",
                f"Add it, such as `calendar: {GATEWAY}:Europe/London`, or "
                f"`{GATEWAY}:Asia/Tokyo@16:00` where a session day begins on the day before",
            )
        return market.gateways
    if not made.calendar:
        raise entry.item.error(
            f"is {made.sec_type} at {_location(made)} with use_rth: {shown(made.use_rth)}, "
            "whose sessions are not known",
            _ways(made),
        )
    is_free = is_gateways(made.calendar) and is_calendar(made.calendar)
    if made.calendar != derived and not is_free:
        _refuse_other(entry, made, derived)
    return made.calendar


def _refuse_other(entry: Entry, made: Instrument, derived: str) -> None:
    """Refuse a calendar that contradicts the known one, or that does not exist."""
    allowed = f"for {made.sec_type} with use_rth: {shown(made.use_rth)}"
    if derived:
        raise entry.at("calendar").error(
            f"is {made.calendar!r}", f"Allowed {allowed} is {derived}, or {GATEWAY}"
        )
    if not is_calendar(made.calendar):
        raise entry.at("calendar").error(
            f"is {made.calendar!r}, which does not exist",
            f"Allowed are XLON{_REGULAR} and others by ISO 10383 code, the GLOBEX families, or "
            f"{GATEWAY}",
        )
    wrong = _EXTENDED if made.use_rth else _REGULAR
    if made.calendar.endswith(wrong):
        raise entry.at("calendar").error(
            f"is {made.calendar!r}, but use_rth is {shown(made.use_rth)}",
            f"Set use_rth: {shown(not made.use_rth)}, or calendar: {GATEWAY}",
        )


def _location(made: Instrument) -> str:
    return f"{made.exchange}/{made.primary_exchange}".rstrip("/")


def _ways(made: Instrument) -> str:
    """Return a hint on what the user can set."""
    gateway = f"`calendar: {GATEWAY}` (the sessions as the gateway states them)"
    if made.sec_type is SecType.FUT:
        other = "`use_rth: false`" if made.use_rth else f"one of {', '.join(FAMILIES)}"
        return f"Set {other}, or {gateway}"
    if not made.use_rth:
        return f"Set {gateway}, or `use_rth: true` where it has regular hours"
    example = "`calendar: XLON.RTH` with the exchange's ISO 10383 code"
    return f"Set primary_exchange, {example}, or {gateway}"


CURRENCIES: Final = frozenset(
    {"AED", "AUD", "CAD", "CHF", "CNH", "CZK", "DKK", "EUR", "GBP", "HKD", "HUF", "ILS", "JPY"}
    | {"KRW", "KWD", "MXN", "NOK", "NZD", "PLN", "QAR", "RON", "SAR", "SEK", "SGD", "THB"}
    | {"TRY", "TWD", "USD", "ZAR"}
)
_SUFFIXES: Final[Mapping[str, tuple[str, Any]]] = {
    ".ETH": ("use_rth", False),
    ".BID": ("what_to_show", WhatToShow.BID),
    ".ASK": ("what_to_show", WhatToShow.ASK),
    ".MID": ("what_to_show", WhatToShow.MIDPOINT),
}
_CONTRACT = (
    *("sec_type", "symbol", "exchange", "primary_exchange", "currency", "con_id", "end"),
    *("last_trade_date", "multiplier", "local_symbol", "trading_class"),
)
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class _Kind:
    """Defaults of a kind of instrument, and what IB serves of it.

    ``use_rth`` is None where the defaults of the universe decide. The first of ``shows`` is the
    default.

    Source: https://ibkrcampus.com/campus/ibkr-api-page/twsapi-doc/#historical-whattoshow; IB
    forces regular hours on indices (grade R).
    """

    exchange: str
    shows: tuple[WhatToShow, ...]
    use_rth: bool | None = None


_QUOTES = (WhatToShow.MIDPOINT, WhatToShow.BID, WhatToShow.ASK)
_KINDS: Final[Mapping[SecType, _Kind]] = {
    SecType.STK: _Kind(SMART, (WhatToShow.TRADES, *_QUOTES)),
    SecType.CASH: _Kind("IDEALPRO", _QUOTES, use_rth=False),
    SecType.FUT: _Kind("", (WhatToShow.TRADES, *_QUOTES), use_rth=False),
    SecType.IND: _Kind("", (WhatToShow.TRADES,), use_rth=True),
    SecType.CRYPTO: _Kind("PAXOS", (WhatToShow.AGGTRADES, *_QUOTES), use_rth=False),
}


@dataclass(slots=True)
class _Choice:
    """Chooses the value of each field, and records its origin."""

    entry: Entry
    base: Entry | None
    defaults: Mapping[str, Any]
    origins: dict[str, str] = field(default_factory=dict)

    def of(self, name: str, derived: Any) -> Any:
        if name in self.entry.fields:
            value, origin = self.entry.fields[name], "set"
        elif self.base and name in _CONTRACT and name in self.base.fields:
            value, origin = self.base.fields[name], f"as {self.base.key}"
        elif derived is None and name in self.defaults:
            value, origin = self.defaults[name], "defaults"
        else:
            value, origin = (DEFAULTS.get(name) if derived is None else derived), "derived"
        self.origins[name] = origin
        return value


def base_of(key: str) -> tuple[str, dict[str, Any]]:
    """Return a key without its suffixes, in capitals, and the fields that the suffixes set."""
    stem, fixed = key.upper(), dict[str, Any]()
    while suffix := next((one for one in _SUFFIXES if stem.endswith(one)), None):
        name, value = _SUFFIXES[suffix]
        stem = stem.removesuffix(suffix)
        fixed[name] = value
    return stem, fixed


def instrument_of(
    entry: Entry, defaults: Mapping[str, Any], base: Entry | None
) -> tuple[Instrument, dict[str, str]]:
    """Return the instrument of an entry, and the origin of each of its fields.

    A key of two currencies is a currency pair, any other a US stock, unless `sec_type` is given;
    ``base`` is the entry of the key without its suffix, whose contract fields count where this
    entry does not give them.

    Raises:
        UniverseError: fields are missing or contradict each other.
    """
    stem, fixed = base_of(entry.key)
    choice = _Choice(entry, base, defaults)
    halves = (stem[:3], stem[3:])
    is_pair = len(stem) == 6 and CURRENCIES.issuperset(halves) and halves[0] != halves[1]
    pair = halves if is_pair else None
    sec_type: SecType = choice.of("sec_type", SecType.CASH if pair else SecType.STK)
    if sec_type is SecType.STK:
        _refuse_near_pairs(entry, stem, choice.origins)
    kind = _KINDS[sec_type]
    symbol, currency = _named(sec_type, stem, pair)
    ib_symbol = choice.of("symbol", symbol)
    exchange = choice.of("exchange", kind.exchange)
    primary_exchange = choice.of("primary_exchange", "")
    set_currency = choice.of("currency", "") if sec_type is not SecType.CASH else ""
    market = market_of(
        sec_type, exchange, primary_exchange, symbol=ib_symbol, currency=set_currency
    )
    _refuse_unnamed(entry, sec_type, ib_symbol, exchange)
    use_rth = choice.of("use_rth", fixed.get("use_rth") if kind.use_rth is None else kind.use_rth)
    last_trade_date = choice.of("last_trade_date", None)
    end = None if last_trade_date is None else last_trade_date + _DAY
    instrument = Instrument(
        symbol=entry.key,
        ib_symbol=ib_symbol,
        sec_type=sec_type,
        exchange=exchange,
        currency=choice.of("currency", currency or (market.currency if market else "")),
        what_to_show=choice.of("what_to_show", fixed.get("what_to_show", kind.shows[0])),
        use_rth=use_rth,
        calendar=choice.of("calendar", market.calendar(use_rth=use_rth) if market else ""),
        timeframes=choice.of("timeframes", None),
        start=choice.of("start", None),
        backfill=choice.of("backfill", None),
        primary_exchange=primary_exchange,
        contract_id=choice.of("con_id", None),
        end=choice.of("end", end),
        last_trade_date=last_trade_date,
        multiplier=choice.of("multiplier", ""),
        local_symbol=choice.of("local_symbol", ""),
        trading_class=choice.of("trading_class", ""),
    )
    _refuse_contradictions(entry, instrument, fixed)
    calendar = calendar_for(entry, instrument, market)
    return replace(instrument, calendar=calendar), choice.origins


def _named(sec_type: SecType, stem: str, pair: tuple[str, str] | None) -> tuple[str, str]:
    """Return symbol and currency as the key gives them; empty where it does not."""
    if sec_type is SecType.CASH:
        return pair or ("", "")
    if sec_type is SecType.FUT:
        return "", ""
    if sec_type is SecType.CRYPTO and len(stem) > 3:
        return stem.removesuffix("USD"), ""
    return stem.replace(".", " "), ""


def _refuse_near_pairs(entry: Entry, stem: str, origins: Mapping[str, str]) -> None:
    """Refuse a mistyped pair, or a metal, that would silently become a stock."""
    is_pair = len(stem) == 6 and not CURRENCIES.isdisjoint({stem[:3], stem[3:]})
    if is_pair and origins["sec_type"] == "derived" and "symbol" not in entry.fields:
        raise entry.item.error(
            f"looks like a currency pair, but {stem[:3]} and {stem[3:]} are not two of IB's "
            "currencies",
            "Set `sec_type: STK` and `symbol` if it is a stock, `sec_type: CRYPTO` if it is a "
            f"coin; currencies are {' '.join(sorted(CURRENCIES))}",
        )


def _refuse_unnamed(entry: Entry, sec_type: SecType, symbol: str, exchange: str) -> None:
    if sec_type is SecType.FUT and not symbol:
        raise entry.item.error(
            "is FUT without `symbol`", "Set IB's symbol of the product, such as `symbol: ES`"
        )
    if not exchange:
        raise entry.item.error(
            f"is {sec_type} without `exchange`",
            "Set IB's exchange, such as `exchange: CME` (futures) or `exchange: CBOE` (indices)",
        )


def _refuse_contradictions(entry: Entry, made: Instrument, fixed: Mapping[str, Any]) -> None:
    for name, value in fixed.items():
        if entry.fields.get(name, value) != value:
            raise entry.at(name).error(
                f"is {shown(entry.fields[name])}, but the key {entry.key} sets {shown(value)}",
                "Leave it out, or choose a key without that suffix",
            )
    pair = {made.ib_symbol, made.currency}
    if made.sec_type is SecType.CASH and (len(pair) < 2 or not pair <= CURRENCIES):
        raise entry.item.error(
            f"is CASH with symbol {made.ib_symbol!r} and currency {made.currency!r}",
            f"Set two of {' '.join(sorted(CURRENCIES))}, or choose a key such as EURUSD",
        )
    shows = _KINDS[made.sec_type].shows
    if made.what_to_show not in shows:
        raise entry.at("what_to_show").error(
            f"is {made.what_to_show}, which IB does not serve for {made.sec_type}",
            f"Allowed are {', '.join(shows)}",
        )
    _refuse_bad_hours(entry, made)
    _refuse_bad_end(entry, made)
    if not made.currency:
        raise entry.item.error(
            f"is {made.sec_type} at {made.exchange}, whose currency is not known",
            "Set it, such as `currency: EUR`",
        )


def _refuse_bad_hours(entry: Entry, made: Instrument) -> None:
    if made.use_rth and made.sec_type in {SecType.CASH, SecType.CRYPTO}:
        raise entry.at("use_rth").error(
            f"is true, but {made.sec_type} has no regular hours", "Set it to false or leave it out"
        )
    if not made.use_rth and made.sec_type is SecType.IND:
        raise entry.at("use_rth").error(
            "is false, but IB serves indices in regular hours only",
            "Set it to true or leave it out",
        )


def _refuse_bad_end(entry: Entry, made: Instrument) -> None:
    if made.sec_type is SecType.FUT and made.last_trade_date is None:
        raise entry.item.error(
            "is FUT without `last_trade_date`",
            'Set the day of its last trade in quotes, such as `last_trade_date: "20231215"`',
        )
    for name in ("last_trade_date", "multiplier", "local_symbol", "trading_class"):
        if made.sec_type is not SecType.FUT and name in entry.fields:
            raise entry.at(name).error(f"is given for {made.sec_type}", "Only FUT has it")
    if made.end is not None and made.end <= made.start:
        raise entry.at("end" if "end" in entry.fields else "last_trade_date").error(
            f"means that it ended on {made.end}, but its start is {made.start}",
            "Set an earlier `start` for it, or leave it out of the universe",
        )
