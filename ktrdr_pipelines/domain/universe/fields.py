"""The fields that an entry of the universe may have, how each is read, and the rule for keys.

Not here: values that are not given (``domain.universe.defaults``), YAML
(``domain.universe.yaml_nodes``).

Source: field names from https://ibkrcampus.com/campus/ibkr-api-page/twsapi-doc/#contracts.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from types import MappingProxyType
from typing import Any, Final

from ktrdr_pipelines.domain.calendars.registry import KNOWN_FROM, KNOWN_TO
from ktrdr_pipelines.domain.instruments import SYMBOL_PATTERN, Backfill, SecType, WhatToShow
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.yaml_nodes import Item
from ktrdr_pipelines.errors import SeveralEntriesError, UniverseError

KEY_PATTERN: Final = SYMBOL_PATTERN
KEY_RULE: Final = (
    "a symbol has at most 20 letters, digits, '.', '_' or '-' and begins with none of '.' and '-'"
)
FIRST_DAY, LAST_DAY = date.fromisoformat(KNOWN_FROM), date.fromisoformat(KNOWN_TO)
DEFAULTS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "use_rth": True,
        "timeframes": (Timeframe.M1, Timeframe.H1, Timeframe.D1),
        "start": date(2020, 1, 1),
        "backfill": Backfill.AUTO,
    }
)


def _sec_type(item: Item) -> SecType:
    if item.text() in _NOT_YET:
        raise item.error(f"is {item.text()}, which is not supported", _NOT_YET[item.text()])
    if item.text() not in list(SecType):
        raise item.error(
            f"is {item.text()!r}, which this release does not support",
            f"Allowed are {', '.join(SecType)}",
        )
    return item.choice(SecType)


def _what_to_show(item: Item) -> WhatToShow:
    if item.text() in _NOT_YET:
        raise item.error(f"is {item.text()}, which is not supported", _NOT_YET[item.text()])
    return item.choice(WhatToShow)


def _last_trade_date(item: Item) -> date:
    text = item.word(r"[0-9]{8}", 'IB\'s last trade date, such as "20231215"')
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise item.error(f"is {text!r}", 'It must be a day, such as "20231215"') from None
    if not FIRST_DAY <= day < LAST_DAY:
        raise item.error(f"is {text!r}", f"It must be from {FIRST_DAY} to before {LAST_DAY}")
    return day


_NOT_YET: Final[Mapping[str, str]] = {
    "BID_ASK": "Use one symbol with BID and one with ASK, whose bars are like all others",
    "ADJUSTED_LAST": "IB serves it only back from now, so it cannot be proved complete; use "
    "TRADES, which is adjusted for splits",
    "CONTFUT": "IB serves it only back from now, so it cannot be proved complete; use the "
    "single contracts, each FUT with its last_trade_date",
}

READERS: Final[Mapping[str, Callable[[Item], Any]]] = {
    "sec_type": _sec_type,
    "symbol": lambda item: item.word(r"[!-~]([ -~]*[!-~])?", "IB's symbol, such as AAPL or BRK B"),
    "exchange": lambda item: item.word(r"[A-Z0-9.]+", "an IB exchange in capitals, such as SMART"),
    "primary_exchange": lambda item: item.word(
        r"[A-Z0-9.]+", "an IB exchange in capitals, such as NASDAQ"
    ),
    "currency": lambda item: item.word(r"[A-Z]{3}", "a currency in capitals, such as USD"),
    "con_id": lambda item: int(item.word(r"[1-9][0-9]{0,9}", "IB's contract id, a whole number")),
    "what_to_show": _what_to_show,
    "use_rth": Item.flag,
    "calendar": Item.text,
    "timeframes": lambda item: item.choices(Timeframe),
    "start": lambda item: item.day(FIRST_DAY, LAST_DAY),
    "end": lambda item: item.day(FIRST_DAY, LAST_DAY),
    "delisted": lambda item: item.day(FIRST_DAY, LAST_DAY - timedelta(days=1)),
    "ended": Item.flag,
    "last_trade_date": _last_trade_date,
    "multiplier": lambda item: item.word(r"[0-9]+(\.[0-9]+)?", "IB's multiplier, such as 50"),
    "local_symbol": lambda item: item.word(r"[!-~]([ -~]*[!-~])?", "IB's, such as ESZ3"),
    "trading_class": lambda item: item.word(r"[!-~]+", "IB's trading class, such as ES"),
    "backfill": lambda item: item.choice(Backfill),
}
"""All fields of an entry, and how their values are read."""


Problems = dict[str, list[UniverseError]]
"""The errors of entries, by the key of the entry as written."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The entry of one symbol as written.

    ``fields`` are the values of the fields that it sets, ``malformed`` the names of those that
    could not be read.
    """

    key: str
    item: Item
    fields: Mapping[str, Any]
    malformed: frozenset[str] = frozenset()

    def at(self, name: str) -> Item:
        """Return the position of a field, or of the whole entry if the field is not given."""
        return self.item.mapping().get(name, self.item)


def read_fields(item: Item, known: tuple[str, ...]) -> dict[str, Any]:
    """Return the values of a mapping of fields.

    Raises:
        UniverseError: a field is unknown or malformed; several as one
            ``SeveralEntriesError``.
    """
    values, errors = _readable_fields(item, known)
    refuse([error for _, error in errors])
    return values


def _readable_fields(
    item: Item, known: tuple[str, ...]
) -> tuple[dict[str, Any], list[tuple[str, UniverseError]]]:
    """Return the values of the fields that can be read, and by name the errors of the others."""
    values: dict[str, Any] = {}
    errors: list[tuple[str, UniverseError]] = []
    fields = item.mapping()
    # An unsupported kind is reported before fields that are unknown because of it.
    for name in sorted(fields, key=lambda name: name != "sec_type"):
        try:
            fields[name].require_known(known)
            values[name] = READERS[name](fields[name])
        except UniverseError as error:
            errors.append((name, error))
    return values, errors


def entries_of(symbols: Item) -> tuple[list[Entry], Problems]:
    """Return the entries under ``symbols:``, and what is wrong with them, by key.

    An entry is returned with those of its fields that can be read, unless its key is no symbol or
    names another entry too; keys are unique without regard to case.
    """
    entries: dict[str, Entry] = {}
    problems: Problems = {}
    first: dict[str, tuple[str, int]] = {}
    for key, item in symbols.pairs():
        found = problems.setdefault(key, [])
        if not re.fullmatch(KEY_PATTERN, key):
            found.append(item.error("is not a symbol", f"Rename it: {KEY_RULE}"))
            continue
        same, line = first.setdefault(key.upper(), (key, item.line))
        if line != item.line or same != key or key in entries:
            found.append(_same_key(item, same, line))
            entries.pop(key, None)
            continue
        try:
            values, errors = _readable_fields(item, tuple(READERS))
        except UniverseError as error:  # no mapping at all
            found.append(error)
            continue
        found += [error for _, error in errors]
        malformed = frozenset(name for name, _ in errors)
        entries[key] = Entry(key, item, values, malformed)
    return list(entries.values()), {key: errors for key, errors in problems.items() if errors}


def _same_key(item: Item, same: str, line: int) -> UniverseError:
    if item.keys[-1] == same:
        return item.error("is given twice", f"Remove one; the other is in line {line}")
    return item.error(
        f"differs from {same} by case only",
        "Rename one; some file systems cannot tell them apart",
    )


def refuse(errors: Sequence[UniverseError]) -> None:
    """Raise the errors, if there are any, as one."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise SeveralEntriesError.of(errors)


def shown(value: object) -> str:
    """Return a field's value as it is written in the file."""
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
