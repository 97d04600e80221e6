"""What follows from an entry of the universe: the instrument, with all that was not said.

Here: how a key alone names an instrument, and which fields contradict each other. Not here: how
fields are read (``universe_fields``), the universe as a whole (``universe``).

Source: currencies of IB's spot market from
https://www.interactivebrokers.com/en/trading/products-spot-currencies.php.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ktrdr_pipelines.core.instruments import Instrument, SecType, WhatToShow
from ktrdr_pipelines.universe_fields import DEFAULTS, Entry

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
_CONTRACT = ("sec_type", "symbol", "exchange", "primary_exchange", "currency", "con_id")


@dataclass(slots=True)
class _Choice:
    """Picks the value of each field, and keeps where it came from."""

    said: Mapping[str, Any]
    base: Entry | None
    defaults: Mapping[str, Any]
    origins: dict[str, str] = field(default_factory=dict)

    def of(self, name: str, derived: Any) -> Any:
        value, self.origins[name] = self._pick(name, derived)
        return value

    def _pick(self, name: str, derived: Any) -> tuple[Any, str]:
        if name in self.said:
            return self.said[name], "said"
        if self.base and name in _CONTRACT and name in self.base.said:
            return self.base.said[name], f"as {self.base.key}"
        if derived is None and name in self.defaults:
            return self.defaults[name], "defaults"
        return (DEFAULTS.get(name) if derived is None else derived), "derived"


def base_of(key: str) -> tuple[str, dict[str, Any]]:
    """Split a key into the one without suffixes, in capitals, and what the suffixes fix."""
    stem, fixed = key.upper(), dict[str, Any]()
    while suffix := next((one for one in _SUFFIXES if stem.endswith(one)), None):
        name, value = _SUFFIXES[suffix]
        stem = stem.removesuffix(suffix)
        fixed[name] = value
    return stem, fixed


def instrument_of(
    entry: Entry, defaults: Mapping[str, Any], base: Entry | None
) -> tuple[Instrument, dict[str, str]]:
    """Make the instrument of an entry, and say of each field where it came from.

    A key in two currencies is a currency pair, any other a US stock; ``base`` is the entry of
    the key without its suffix, whose contract counts where this one says nothing.
    """
    stem, fixed = base_of(entry.key)
    choice = _Choice(entry.said, base, defaults)
    pair = (stem[:3], stem[3:]) if _is_pair(stem) else None
    cash = choice.of("sec_type", SecType.CASH if pair else SecType.STK) is SecType.CASH
    if not cash:
        _refuse_near_pairs(entry, stem, choice.origins)
    symbol, currency = (pair or ("", "")) if cash else (stem.replace(".", " "), "USD")
    use_rth = choice.of("use_rth", False if cash else fixed.get("use_rth"))
    instrument = Instrument(
        symbol=entry.key,
        ib_symbol=choice.of("symbol", symbol),
        sec_type=SecType.CASH if cash else SecType.STK,
        exchange=choice.of("exchange", "IDEALPRO" if cash else "SMART"),
        currency=choice.of("currency", currency),
        what_to_show=choice.of(
            "what_to_show",
            fixed.get("what_to_show", WhatToShow.MIDPOINT if cash else WhatToShow.TRADES),
        ),
        use_rth=use_rth,
        calendar=choice.of("calendar", _calendar(cash=cash, use_rth=use_rth)),
        timeframes=choice.of("timeframes", None),
        start=choice.of("start", None),
        backfill=choice.of("backfill", None),
        primary_exchange=choice.of("primary_exchange", ""),
        contract_id=choice.of("con_id", None),
    )
    _refuse_contradictions(entry, instrument, fixed)
    return instrument, choice.origins


def _calendar(*, cash: bool, use_rth: bool) -> str:
    if cash:
        return "FX"
    return "XNYS.RTH" if use_rth else "XNYS.ETH"


def _is_pair(stem: str) -> bool:
    return len(stem) == 6 and {stem[:3], stem[3:]} <= CURRENCIES and stem[:3] != stem[3:]


def _refuse_near_pairs(entry: Entry, stem: str, origins: Mapping[str, str]) -> None:
    """Refuse a mistyped pair, or a metal, that would become a stock without a word."""
    looks_paired = len(stem) == 6 and not CURRENCIES.isdisjoint({stem[:3], stem[3:]})
    if looks_paired and origins["sec_type"] == "derived" and "symbol" not in entry.said:
        raise entry.item.error(
            f"looks like a currency pair, and {stem[:3]} and {stem[3:]} are not two of IB's",
            "Say `sec_type: STK` and `symbol` if it is a stock; currencies are "
            f"{' '.join(sorted(CURRENCIES))}",
        )


def _refuse_contradictions(entry: Entry, made: Instrument, fixed: Mapping[str, Any]) -> None:
    for name, value in fixed.items():
        if entry.said.get(name, value) != value:
            raise entry.at(name).error(
                f"is {shown(entry.said[name])}, and the key {entry.key} says {shown(value)}",
                "Leave it out, or choose a key without that suffix",
            )
    (_refuse_bad_cash if made.sec_type is SecType.CASH else _refuse_bad_stock)(entry, made)
    calendar = _calendar(cash=made.sec_type is SecType.CASH, use_rth=made.use_rth)
    if made.calendar != calendar:
        raise entry.at("calendar").error(
            f"is {made.calendar!r}",
            f"Allowed for {made.sec_type} with use_rth: {shown(made.use_rth)} is {calendar}",
        )


def _refuse_bad_cash(entry: Entry, made: Instrument) -> None:
    pair = {made.ib_symbol, made.currency}
    if len(pair) < 2 or not pair <= CURRENCIES:
        raise entry.item.error(
            f"is CASH of symbol {made.ib_symbol!r} and currency {made.currency!r}",
            f"Say two of {' '.join(sorted(CURRENCIES))}, or choose a key such as EURUSD",
        )
    if made.what_to_show is WhatToShow.TRADES:
        raise entry.at("what_to_show").error(
            "is TRADES, which IB does not have for CASH", "Allowed are MIDPOINT, BID, ASK"
        )
    if made.use_rth:
        raise entry.at("use_rth").error(
            "is true, and CASH has no regular hours", "Say false or leave it out"
        )


def _refuse_bad_stock(entry: Entry, made: Instrument) -> None:
    if made.currency != "USD":
        raise entry.at("currency").error(
            f"is {made.currency}", "This release has stocks in USD only; say USD or leave it out"
        )


def shown(value: object) -> str:
    """Write a field's value as the file would."""
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
