"""Derive the instrument of a universe entry: fields that are not given, and its calendar.

A key alone names an instrument. Fields that contradict each other are refused. A calendar is never
guessed: an instrument whose sessions are not known is refused by an error that names what to set.

Not here: which fields there are (``domain.universe.fields``), tables of exchanges
(``domain.universe.ib_exchanges``).

Source: currencies of IB's spot market from
https://www.interactivebrokers.com/en/trading/products-spot-currencies.php.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from difflib import get_close_matches
from typing import Any, Final

from ktrdr_pipelines.domain.calendars.cme_futures import FAMILIES
from ktrdr_pipelines.domain.calendars.eurex_futures import EUREX_FAMILIES
from ktrdr_pipelines.domain.calendars.registry import GATEWAY, is_calendar, is_gateways
from ktrdr_pipelines.domain.instruments import Instrument, SecType, WhatToShow
from ktrdr_pipelines.domain.universe.fields import DEFAULTS, Entry, shown
from ktrdr_pipelines.domain.universe.ib_exchanges import (
    SMART,
    US_STOCKS,
    ListingVenue,
    exchange_codes_of,
    market_of,
)
from ktrdr_pipelines.errors import UniverseError

FUTURES_CALENDARS: Final = (*FAMILIES, *EUREX_FAMILIES)
_REGULAR, _EXTENDED = ".RTH", ".ETH"
_LISTING = ("exchange", "primary_exchange", "sec_type")
_ENDS = ("end", "delisted", "ended")


@dataclass(frozen=True, slots=True)
class _Finding:
    """An error about an instrument, and the fields that it follows from."""

    error: UniverseError
    fields: tuple[str, ...]


def _calendar_of(
    entry: Entry, made: Instrument, market: ListingVenue | None
) -> tuple[str, UniverseError | None]:
    """Return the key of an instrument's calendar, or the error that there is none.

    Args:
        entry: the entry, for the position of errors.
        made: the instrument, with the calendar that was given or derived; empty if neither.
        market: where it trades, if a table has it.
    """
    derived = market.calendar(use_rth=made.use_rth) if market else ""
    if made.calendar == GATEWAY:
        if market is None:
            return "", entry.at("calendar").error(
                f"is {GATEWAY}, and the zone of {_location(made)} is not known",
                f"Add it, such as `calendar: {GATEWAY}:Europe/London`, or "
                f"`{GATEWAY}:Asia/Tokyo@16:00` where a session day begins on the day before",
            )
        return market.gateways, None
    if not made.calendar:
        return "", entry.item.error(
            f"is {made.sec_type} at {_location(made)} with use_rth: {shown(made.use_rth)}, "
            "whose sessions are not known",
            _ways(made, market),
        )
    is_free = is_gateways(made.calendar) and is_calendar(made.calendar)
    if made.calendar != derived and not is_free and (error := _other(entry, made, derived)):
        return "", error
    return made.calendar, None


def _other(entry: Entry, made: Instrument, derived: str) -> UniverseError | None:
    """Return why a calendar that is not the derived one is wrong; None where it is possible."""
    allowed = f"for {made.sec_type} with use_rth: {shown(made.use_rth)}"
    item = entry.at("calendar")
    if derived:
        return item.error(f"is {made.calendar!r}", f"Allowed {allowed} is {derived}, or {GATEWAY}")
    if not is_calendar(made.calendar):
        return item.error(
            f"is {made.calendar!r}, which does not exist",
            f"Allowed are XLON{_REGULAR} and others by ISO 10383 code, the GLOBEX families, or "
            f"{GATEWAY}",
        )
    if made.calendar.endswith(_EXTENDED if made.use_rth else _REGULAR):
        return item.error(
            f"is {made.calendar!r}, but use_rth is {shown(made.use_rth)}",
            f"Set use_rth: {shown(not made.use_rth)}, or calendar: {GATEWAY}",
        )
    return None


def _location(made: Instrument) -> str:
    return f"{made.exchange}/{made.primary_exchange}".rstrip("/")


def _ways(made: Instrument, market: ListingVenue | None) -> str:
    """Return a hint on what the user can set."""
    near = _near_codes(made) if market is None else ""
    if market is not None and market.products:
        known = ", ".join(market.products)
        near = f"Products at {made.exchange} whose sessions are known: {known}. "
    zone = "" if market is not None else ":ZONE, such as `calendar: GATEWAY:Europe/London`"
    gateway = f"`calendar: {GATEWAY}`{zone} (the sessions as the gateway states them)"
    if made.sec_type is SecType.FUT:
        other = "`use_rth: false`" if made.use_rth else f"one of {', '.join(FUTURES_CALENDARS)}"
        return f"{near}Set {other}, or {gateway}"
    if not made.use_rth:
        return f"{near}Set {gateway}, or `use_rth: true` where it has regular hours"
    example = "`calendar: XLON.RTH` with the exchange's ISO 10383 code"
    return f"{near}Set primary_exchange, {example}, or {gateway}"


def _near_codes(made: Instrument) -> str:
    """Return the known codes that resemble an unknown one; empty where the code is known."""
    code = made.primary_exchange or made.exchange
    known = exchange_codes_of(made.sec_type)
    if code in {*known, SMART}:
        return ""
    near = get_close_matches(code, known, n=4, cutoff=0.4)
    similar = f"; similar ones are {', '.join(near)}" if near else ""
    return f"{code} is none of the {len(known)} exchange codes that are known{similar}. "


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
    *("sec_type", "symbol", "exchange", "primary_exchange", "currency", "con_id", *_ENDS),
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
) -> tuple[Instrument, dict[str, str], list[UniverseError]]:
    """Return the instrument of an entry, the origin of each of its fields, and what is wrong.

    A key of two currencies is a currency pair, any other a US stock, unless `sec_type` is given;
    ``base`` is the entry of the key without its suffix, whose contract fields count where this
    entry does not give them. Errors that only follow from a malformed field are left out.
    """
    stem, fixed = base_of(entry.key)
    choice = _Choice(entry, base, defaults)
    halves = (stem[:3], stem[3:])
    is_pair = len(stem) == 6 and CURRENCIES.issuperset(halves) and halves[0] != halves[1]
    pair = halves if is_pair else None
    sec_type: SecType = choice.of("sec_type", SecType.CASH if pair else SecType.STK)
    kind = _KINDS[sec_type]
    exchange = choice.of("exchange", kind.exchange)
    primary_exchange = choice.of("primary_exchange", "")
    set_currency = choice.of("currency", "") if sec_type is not SecType.CASH else ""
    listed = (exchange, primary_exchange)
    listing = market_of(sec_type, *listed, symbol="", currency=set_currency)
    is_us = listing == US_STOCKS or (listing is None and set_currency in {"", "USD"})
    symbol, currency = _named(sec_type, stem, pair, spaced=is_us)
    ib_symbol = choice.of("symbol", symbol)
    market = market_of(sec_type, *listed, symbol=ib_symbol, currency=set_currency)
    use_rth = choice.of("use_rth", fixed.get("use_rth") if kind.use_rth is None else kind.use_rth)
    last_trade_date = choice.of("last_trade_date", None)
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
        end=_end_of(choice, last_trade_date),
        last_trade_date=last_trade_date,
        multiplier=choice.of("multiplier", ""),
        local_symbol=choice.of("local_symbol", ""),
        trading_class=choice.of("trading_class", ""),
        has_ended=choice.of("ended", None) or False,
    )
    calendar, error = _calendar_of(entry, instrument, market)
    findings = [*_contradictions(entry, instrument, fixed, stem)]
    if error is not None and exchange and (ib_symbol or sec_type is not SecType.FUT):
        findings.append(_Finding(error, ("calendar", "use_rth", "currency", *_LISTING)))
    errors = [one.error for one in findings if entry.malformed.isdisjoint(one.fields)]
    return replace(instrument, calendar=calendar), choice.origins, errors


def _named(
    sec_type: SecType, stem: str, pair: tuple[str, str] | None, *, spaced: bool
) -> tuple[str, str]:
    """Return symbol and currency as the key gives them; empty where it does not.

    IB writes the class of a US share after a space (``BRK B``), and keeps the dot of symbols of
    other exchanges: ``BP.`` in London, ``VOLV.B`` in Stockholm, ``RCI.B`` in Toronto.

    Source: symbol and local symbol of VOLVO AB-B SHS (conid 917920) at SFB are ``VOLV.B`` and
    ``VOLV B``, in public records of contract details and of IB's list of shortable stocks
    (grade C).
    """
    if sec_type is SecType.CASH:
        return pair or ("", "")
    if sec_type is SecType.FUT:
        return "", ""
    if sec_type is SecType.CRYPTO and len(stem) > 3:
        return stem.removesuffix("USD"), ""
    return stem.replace(".", " ") if spaced else stem, ""


def _end_of(choice: _Choice, last_trade_date: date | None) -> date | None:
    """Return the first session date without the instrument: set, or after its last session."""
    delisted = choice.of("delisted", None)
    last = delisted or last_trade_date
    end: date | None = choice.of("end", None if last is None else last + _DAY)
    if delisted is not None and choice.origins["end"] == "derived":
        choice.origins["end"] = choice.origins["delisted"]
    return end


def _contradictions(
    entry: Entry, made: Instrument, fixed: Mapping[str, Any], stem: str
) -> Iterator[_Finding]:
    """Yield what is wrong with an instrument: missing fields, and such that contradict."""
    parts = {stem[:3], stem[3:]}
    resembles_pair = len(stem) == 6 and not CURRENCIES.isdisjoint(parts)
    is_named = not {"sec_type", "symbol"}.isdisjoint(entry.fields)
    if resembles_pair and made.sec_type is SecType.STK and not is_named:
        # A mistyped pair, or a metal, would silently become a stock.
        error = entry.item.error(
            f"looks like a currency pair, but {stem[:3]} and {stem[3:]} are not two of IB's "
            "currencies",
            "Set `sec_type: STK` and `symbol` if it is a stock, `sec_type: CRYPTO` if it is a "
            f"coin; currencies are {' '.join(sorted(CURRENCIES))}",
        )
        yield _Finding(error, ("sec_type", "symbol"))
    if made.sec_type is SecType.FUT and not made.ib_symbol:
        error = entry.item.error(
            "is FUT without `symbol`", "Set IB's symbol of the product, such as `symbol: ES`"
        )
        yield _Finding(error, ("sec_type", "symbol"))
    if not made.exchange:
        error = entry.item.error(
            f"is {made.sec_type} without `exchange`",
            "Set IB's exchange, such as `exchange: CME` (futures) or `exchange: CBOE` (indices)",
        )
        yield _Finding(error, ("sec_type", "exchange"))
    for name, value in fixed.items():
        if entry.fields.get(name, value) != value:
            error = entry.at(name).error(
                f"is {shown(entry.fields[name])}, but the key {entry.key} sets {shown(value)}",
                "Leave it out, or choose a key without that suffix",
            )
            yield _Finding(error, (name,))
    pair = {made.ib_symbol, made.currency}
    if made.sec_type is SecType.CASH and (len(pair) < 2 or not pair <= CURRENCIES):
        error = entry.item.error(
            f"is CASH with symbol {made.ib_symbol!r} and currency {made.currency!r}",
            f"Set two of {' '.join(sorted(CURRENCIES))}, or choose a key such as EURUSD",
        )
        yield _Finding(error, ("sec_type", "symbol", "currency"))
    shows = _KINDS[made.sec_type].shows
    if made.what_to_show not in shows:
        error = entry.at("what_to_show").error(
            f"is {made.what_to_show}, which IB does not serve for {made.sec_type}",
            f"Allowed are {', '.join(shows)}",
        )
        yield _Finding(error, ("sec_type", "what_to_show"))
    yield from _bad_hours(entry, made)
    yield from _bad_end(entry, made)
    if made.exchange and not made.currency and made.sec_type is not SecType.CASH:
        error = entry.item.error(
            f"is {made.sec_type} at {made.exchange}, whose currency is not known",
            "Set it, such as `currency: EUR`",
        )
        yield _Finding(error, ("sec_type", "currency", *_LISTING))


def _bad_hours(entry: Entry, made: Instrument) -> Iterator[_Finding]:
    if made.use_rth and made.sec_type in {SecType.CASH, SecType.CRYPTO}:
        error = entry.at("use_rth").error(
            f"is true, but {made.sec_type} has no regular hours", "Set it to false or leave it out"
        )
        yield _Finding(error, ("sec_type", "use_rth"))
    if not made.use_rth and made.sec_type is SecType.IND:
        error = entry.at("use_rth").error(
            "is false, but IB serves indices in regular hours only",
            "Set it to true or leave it out",
        )
        yield _Finding(error, ("sec_type", "use_rth"))


def _bad_end(entry: Entry, made: Instrument) -> Iterator[_Finding]:
    if made.sec_type is SecType.FUT and made.last_trade_date is None:
        error = entry.item.error(
            "is FUT without `last_trade_date`",
            'Set the day of its last trade in quotes, such as `last_trade_date: "20231215"`',
        )
        yield _Finding(error, ("sec_type", "last_trade_date"))
    for name in ("last_trade_date", "multiplier", "local_symbol", "trading_class"):
        if made.sec_type is not SecType.FUT and name in entry.fields:
            error = entry.at(name).error(f"is given for {made.sec_type}", "Only FUT has it")
            yield _Finding(error, ("sec_type", name))
    ends = [name for name in _ENDS if entry.fields.get(name)]
    if len(ends) > 1:
        error = entry.at(ends[1]).error(
            f"is given beside {ends[0]}",
            "Give one: `delisted` (its last session), `end` (the day after it), or `ended: true` "
            "(the last session that is held)",
        )
        yield _Finding(error, _ENDS)
    if made.end is not None and made.end <= made.start:
        at = next((name for name in (*_ENDS, "last_trade_date") if name in entry.fields), "end")
        error = entry.at(at).error(
            f"means that it ended on {made.end}, but its start is {made.start}",
            "Set an earlier `start` for it, or leave it out of the universe",
        )
        yield _Finding(error, (*_ENDS, "last_trade_date", "start"))
