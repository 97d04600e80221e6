"""The series and jobs that names select: symbols and timeframes of the universe, and modes.

A list of symbols has names, patterns such as ``US*``, and ``ALL`` or ``*`` for all symbols, in any
mixture, separated by commas; each symbol is selected once. In a list of timeframes ``ALL`` means
those that the universe lists for each symbol.

Not here: files of names, and the options that a command declares (``cli.arguments``), reading start
and end (``domain.planning.date_bounds``), what a job loads (``domain.planning.jobs``).
"""

import difflib
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from ktrdr_pipelines.errors import UnknownSymbolError, UsageError

if TYPE_CHECKING:
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.domain.instruments import Instrument, Series
    from ktrdr_pipelines.domain.planning.date_bounds import DateRange
    from ktrdr_pipelines.domain.planning.jobs import Job, Mode
    from ktrdr_pipelines.domain.timeframes import Timeframe
    from ktrdr_pipelines.domain.universe.universe import Universe
    from ktrdr_pipelines.store.bars.bar_store import BarStore

ALL: Final = "ALL"
"""All symbols, unless a symbol of the universe has this name; all listed timeframes."""

EVERY: Final = "*"
"""All symbols, whatever their names."""

_WILDCARDS: Final = frozenset("*?[")


def chosen_series(
    universe: "Universe", store: "BarStore", symbols: str | None, timeframes: str | None
) -> "list[Series]":
    """Return the named series, each once.

    Without timeframes, those that the universe lists and those on disk; without symbols, all.

    Raises:
        UnknownSymbolError: a symbol is not in the universe.
        UsageError: a name is empty, or not that of a timeframe.
    """
    from ktrdr_pipelines.domain.instruments import Series

    chosen = instruments_of(universe, symbols)
    kinds, has_listed = _kinds(timeframes)
    if timeframes is not None and not has_listed:
        return [Series(instrument, kind) for instrument in chosen for kind in kinds]
    found = {one.symbol: list(dict.fromkeys((*one.timeframes, *kinds))) for one in chosen}
    listed = [Series(one, kind) for one in chosen for kind in found[one.symbol]]
    on_disk = [
        Series(universe.instruments[symbol], kind)
        for symbol in sorted(found.keys() & set(store.layout.symbols()))
        for kind in store.layout.timeframes_of(symbol)
        if kind not in found[symbol] and store.layout.has_bar_files(symbol, kind)
    ]
    return [*listed, *on_disk]


def instruments_of(universe: "Universe", symbols: str | None) -> "list[Instrument]":
    """Return the instruments that a list of symbols selects, each once; all without a list.

    Raises:
        UnknownSymbolError: a symbol is not in the universe, or a pattern matches none.
        UsageError: a name is empty.
    """
    if symbols is None:
        return list(universe.instruments.values())
    chosen: dict[str, Instrument] = {}
    for name in _names("symbol", symbols):
        for symbol in _matches(universe, name):
            chosen[symbol] = universe.instrument(symbol)
    return list(chosen.values())


def is_symbol_named_all(universe: "Universe", symbols: str | None) -> bool:
    """Return whether a list has ``ALL``, and it is a symbol of the universe, which is meant."""
    names = [] if symbols is None else [name.strip() for name in symbols.split(",")]
    return ALL in names and ALL in universe.instruments


def is_everything(universe: "Universe", symbols: str | None) -> bool:
    """Return whether a list means all symbols: there is none, or it has ``ALL`` or ``*``."""
    names = [EVERY] if symbols is None else [name.strip() for name in symbols.split(",")]
    return EVERY in names or (ALL in names and ALL not in universe.instruments)


def _matches(universe: "Universe", name: str) -> list[str]:
    """Return the symbols that one entry of a list means; a name may be that of no symbol.

    Raises:
        UnknownSymbolError: a pattern matches no symbol.
    """
    symbols = list(universe.instruments)
    if name in universe.instruments:
        return [name]
    if name in {ALL, EVERY}:
        return symbols
    if not _WILDCARDS & set(name):
        return [name]
    if found := [symbol for symbol in symbols if fnmatchcase(symbol, name)]:
        return found
    by_capitals = {symbol.upper(): symbol for symbol in symbols}
    letters = "".join(letter for letter in name.upper() if letter not in "*?[]!")
    near = difflib.get_close_matches(letters, by_capitals, n=3, cutoff=0.4)
    hint = f"Near are {', '.join(by_capitals[one] for one in near)}. " if near else ""
    raise UnknownSymbolError(
        f"symbols {name!r}",
        reason=f"no symbol of {universe.name} matches",
        hint=f"{hint}* stands for any letters, ? for one; quote a pattern in a shell",
    )


def timeframes_named(text: str) -> "list[Timeframe]":
    """Return the timeframes of a comma-separated list, each once; ``ALL`` is none of them.

    Raises:
        UsageError: a name is empty, or not that of a timeframe.
    """
    from ktrdr_pipelines.domain.timeframes import timeframe_named

    return [timeframe_named(name) for name in _names("timeframe", text)]


def _kinds(timeframes: str | None) -> "tuple[list[Timeframe], bool]":
    """Return the timeframes of a list, and whether it has those that the universe lists, too.

    Raises:
        UsageError: a name is empty, or not that of a timeframe.
    """
    if timeframes is None:
        return [], True
    names = _names("timeframe", timeframes)
    others = [name for name in names if name not in {ALL, EVERY}]
    return timeframes_named(",".join(others)) if others else [], len(others) < len(names)


def _names(what: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UsageError(
            f"{what}s {text!r}",
            reason=f"a {what} is empty",
            hint=f"Separate {what}s by single commas",
        )
    return list(dict.fromkeys(names))


def named_jobs(
    workspace: "Workspace",
    symbols: str,
    timeframes: str | None,
    date_range: "DateRange",
    *,
    mode: "Mode",
    refresh: bool = False,
) -> "list[Job]":
    """Return the jobs of named series; without timeframes, those that the universe lists.

    Raises:
        UsageError: a name is unknown or empty, or a bound lies after market time.
    """
    from ktrdr_pipelines.domain.instruments import Series
    from ktrdr_pipelines.domain.planning.jobs import Job

    kinds, has_listed = _kinds(timeframes)
    chosen = dict.fromkeys(
        Series(instrument, kind)
        for instrument in instruments_of(workspace.universe, symbols)
        for kind in ((*instrument.timeframes, *kinds) if has_listed else kinds)
    )
    now = workspace.now
    return [Job(one, mode, date_range.bounds(one, now), refresh=refresh) for one in chosen]


def update_jobs(workspace: "Workspace", symbols: str | None = None) -> "list[Job]":
    """Return the jobs that keep the universe up to date and complete, tails first.

    Ranges with failed attempts are deferred until their next attempt is due. Series whose
    ``backfill`` is manual are kept up to date from the bar timestamp that the ledger holds for
    them, as sensors do (``gaps.due_chunks``), and are skipped while they have no bar: the user
    loads their history.

    Args:
        workspace: the store and the universe whose series are loaded.
        symbols: only these; None for all.

    Raises:
        UsageError: a symbol is empty, or not in the universe.
        StoreError: the ledger cannot be read.
    """
    from ktrdr_pipelines.domain.instruments import Backfill
    from ktrdr_pipelines.domain.planning.jobs import Bounds, Job, Mode, RequestedBy

    universe = workspace.universe
    chosen = set(instruments_of(universe, symbols))
    fresh_from = workspace.fresh_from()
    series = [one for one in universe.series() if one.instrument in chosen]
    known = set(workspace.layout.series_folders())
    fresh = [one for one in series if (one.symbol, one.timeframe) in known]
    whole = [one for one in series if one.instrument.backfill is Backfill.AUTO]
    since = [
        (one, fresh_from[key])
        for one in fresh
        if one.instrument.backfill is Backfill.MANUAL
        and (key := f"{one.symbol}|{one.timeframe}") in fresh_from
    ]
    return [
        *(Job(one, Mode.TAIL, requested_by=RequestedBy.SENSOR) for one in fresh),
        *(Job(one, Mode.FULL, requested_by=RequestedBy.SENSOR) for one in whole),
        *(Job(one, bounds=Bounds(start), requested_by=RequestedBy.SENSOR) for one, start in since),
    ]
