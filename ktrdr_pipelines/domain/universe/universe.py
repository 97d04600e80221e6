"""The universe: all instruments by symbol, parsed from the text of a universe file.

Not here: the file itself (``store.universe_file``), the fields of an entry and their defaults
(``domain.universe.fields``, ``domain.universe.defaults``), YAML (``domain.universe.yaml_nodes``).
"""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from types import MappingProxyType
from typing import Any, Final

from ktrdr_pipelines.domain.instruments import Instrument, SecType, Series
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.defaults import base_of, instrument_of
from ktrdr_pipelines.domain.universe.fields import (
    DEFAULTS,
    FIRST_DAY,
    LAST_DAY,
    entries_of,
    read_fields,
    refuse,
    shown,
)
from ktrdr_pipelines.domain.universe.yaml_nodes import Item, parsed
from ktrdr_pipelines.errors import UniverseError, UnknownSymbolError

_SECTIONS: Final = ("defaults", "windows", "symbols")


@dataclass(frozen=True, slots=True)
class Windows:
    """The years of Dagster's first windows: that of 1m, and that of all other timeframes."""

    first_year_1m: int = 2020
    first_year: int = 1980

    def year_of(self, timeframe: Timeframe) -> int:
        """Return the year of the first window of a timeframe."""
        return self.first_year_1m if timeframe is Timeframe.M1 else self.first_year

    def first_day(self, timeframe: Timeframe) -> date:
        """Return the first session date of the windows of a timeframe."""
        return date(self.year_of(timeframe), 1, 1)

    def not_after(self, other: "Windows") -> "Windows":
        """Return these windows, begun earlier where those of ``other`` begin earlier."""
        return Windows(
            min(self.first_year_1m, other.first_year_1m), min(self.first_year, other.first_year)
        )


@dataclass(frozen=True, slots=True)
class Universe:
    """All instruments by symbol, in the order of the file.

    ``name`` is the file, for messages; ``origins`` tells by symbol where each field comes from: set
    in its entry, from the defaults, derived, or as another symbol. ``problems`` are the errors of
    entries that are malformed, by key: they have no instrument, or that of an earlier text.
    ``windows`` are those in use: ``later_windows`` are those of the file, if it asks for later
    ones.
    """

    instruments: Mapping[str, Instrument]
    windows: Windows = field(default_factory=Windows)
    name: str = "universe.yaml"
    origins: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    problems: Mapping[str, tuple[UniverseError, ...]] = field(default_factory=dict)
    later_windows: Windows | None = None

    @property
    def all_problems(self) -> tuple[UniverseError, ...]:
        """The errors of all entries, in the order of the file."""
        return tuple(error for errors in self.problems.values() for error in errors)

    @property
    def windows_notice(self) -> str:
        """What to know if the file asks for later windows than those in use; empty otherwise."""
        asked, used = self.later_windows, self.windows
        if asked is None:
            return ""
        keys = [
            ("1m", asked.first_year_1m, used.first_year_1m),
            ("yearly", asked.first_year, used.first_year),
        ]
        later = ", ".join(f"{key}: {year} (in use: {now})" for key, year, now in keys if year > now)
        return (
            f"windows of {self.name} ask for a later start, {later}: windows begin where they did, "
            "since windows are added, never removed"
        )

    def with_windows_since(self, used: Windows) -> "Universe":
        """Return this universe with windows that begin no later than those in use before."""
        windows = self.windows.not_after(used)
        later = None if windows == self.windows else self.windows
        return replace(self, windows=windows, later_windows=later)

    def instrument(self, symbol: str) -> Instrument:
        """Return the instrument of a symbol.

        Raises:
            UnknownSymbolError: the symbol is not in the universe; the hint names similar ones.
        """
        if symbol in self.instruments:
            return self.instruments[symbol]
        by_capitals = {key.upper(): key for key in self.instruments}
        near = difflib.get_close_matches(symbol.upper(), by_capitals, n=3)
        hint = f"Did you mean {', '.join(by_capitals[one] for one in near)}? " if near else ""
        raise UnknownSymbolError(
            f"symbol {symbol!r}",
            reason="not in the universe",
            hint=f"{hint}Add it under `symbols:` in {self.name}",
        )

    def before_windows(
        self, named: Collection[Instrument] | None = None
    ) -> dict[Timeframe, list[str]]:
        """Return the symbols whose start lies before Dagster's first window, by timeframe.

        Of ``named`` instruments only, if they are given.
        """
        chosen = None if named is None else set(named)
        found: dict[Timeframe, list[str]] = {}
        for instrument in self.instruments.values():
            if chosen is not None and instrument not in chosen:
                continue
            for timeframe in instrument.timeframes:
                if instrument.start < self.windows.first_day(timeframe):
                    found.setdefault(timeframe, []).append(instrument.symbol)
        return found

    def series(self, timeframe: Timeframe | None = None) -> tuple[Series, ...]:
        """Return all series, or those of one timeframe, in the order of the file."""
        return tuple(
            Series(instrument, one)
            for instrument in self.instruments.values()
            for one in instrument.timeframes
            if timeframe in {None, one}
        )

    def describe(self, instrument: Instrument) -> dict[str, str]:
        """Return each field by IB's name as text, with its origin in parentheses."""
        return {
            name: f"{shown(value)} ({origin})"
            for name, (value, origin) in self.fields_of(instrument).items()
        }

    def fields_of(self, instrument: Instrument) -> dict[str, tuple[Any, str]]:
        """Return the value of each field by IB's name, and its origin (``origins``; else set)."""
        values: dict[str, Any] = {
            "sec_type": instrument.sec_type,
            "symbol": instrument.ib_symbol,
            "exchange": instrument.exchange,
            "primary_exchange": instrument.primary_exchange,
            "currency": instrument.currency,
            "con_id": instrument.contract_id,
            "what_to_show": instrument.what_to_show,
            "use_rth": instrument.use_rth,
            "calendar": instrument.calendar,
            "timeframes": instrument.timeframes,
            "start": instrument.start,
            "end": instrument.end,
            "backfill": instrument.backfill,
        }
        if instrument.sec_type is SecType.FUT:
            values |= {
                "last_trade_date": f"{instrument.last_trade_date:%Y%m%d}",
                "multiplier": instrument.multiplier,
                "local_symbol": instrument.local_symbol,
                "trading_class": instrument.trading_class,
            }
        if instrument.has_ended:
            values["ended"] = True
        origins = self.origins.get(instrument.symbol, {})
        return {name: (value, origins.get(name, "set")) for name, value in values.items()}


def parse_universe(text: str, name: str) -> Universe:
    """Return the universe that a text describes; ``name`` is the file's, for messages.

    Raises:
        UniverseError: it is malformed; the error names file, line and key; several errors
            are one ``SeveralEntriesError``.
    """
    universe = read_universe(text, name)
    refuse(universe.all_problems)
    return universe


def read_universe(text: str, name: str) -> Universe:
    """Return the universe of the entries of a text that are valid, with the errors of the others.

    Raises:
        UniverseError: the file as a whole is malformed, or its ``defaults`` or ``windows`` are.
    """
    top = parsed(text, name)
    top.refuse_unknown(_SECTIONS)
    sections = top.mapping()
    if "symbols" not in sections or not sections["symbols"].pairs():
        raise sections.get("symbols", top).error(
            "names no symbol", "Add at least one under `symbols:`, such as `  AAPL: {}`"
        )
    defaults = read_fields(sections["defaults"], tuple(DEFAULTS)) if "defaults" in sections else {}
    windows = _windows(sections["windows"]) if "windows" in sections else Windows()
    entries, problems = entries_of(sections["symbols"])
    by_key = {entry.key.upper(): entry for entry in entries}
    bad = {key.upper(): key for key in problems}
    instruments, origins_of = {}, {}
    for entry in entries:
        stem, _ = base_of(entry.key)
        is_base = stem == entry.key.upper()
        found: list[UniverseError] = []
        if "sec_type" not in entry.malformed:
            base = None if is_base else by_key.get(stem)
            instrument, origins, found = instrument_of(entry, defaults, base)
            instruments[entry.key], origins_of[entry.key] = instrument, origins
        if not is_base and stem in bad and not found:
            found.append(
                entry.item.error(
                    f"takes its contract from {bad[stem]}, whose entry is wrong",
                    "Correct that entry",
                )
            )
        if found:
            problems.setdefault(entry.key, []).extend(found)
            bad[entry.key.upper()] = entry.key
    return Universe(
        MappingProxyType({key: one for key, one in instruments.items() if key not in problems}),
        windows,
        name,
        MappingProxyType(origins_of),
        MappingProxyType({key: tuple(errors) for key, errors in problems.items()}),
    )


def _windows(item: Item) -> Windows:
    item.refuse_unknown(("1m", "yearly"))
    parts, standard = item.mapping(), Windows()
    years = range(FIRST_DAY.year, LAST_DAY.year + 1)
    found = {"1m": standard.first_year_1m, "yearly": standard.first_year}
    if "1m" in parts:
        # Windows of 1m were months once: a month stands for its year.
        text = parts["1m"].word(r"[1-9][0-9]{3}(-(0[1-9]|1[0-2]))?", "a year such as 2020")
        found["1m"] = int(text[:4])
    if "yearly" in parts:
        found["yearly"] = int(parts["yearly"].word(r"[0-9]{4}", "a year such as 1980"))
    for key, value in found.items():
        if value not in years:
            raise parts[key].error(f"is {value}", f"Years go from {years[0]} to {years[-1]}")
    return Windows(found["1m"], found["yearly"])
