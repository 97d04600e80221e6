"""Shell completion of symbols, timeframes and modes.

A completion is run at every press of the tab key: it reads the universe file alone, prints nothing
but its answers, and never creates anything. What cannot be read has no completions.

Not here: the completion of commands and options, which typer provides.
"""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from ktrdr_pipelines.errors import KtrdrError

DATA_VARIABLE = "KTRDR_DATA"


def complete_symbols(incomplete: str) -> list[str]:
    """Return the completions of a list of symbols, of whose last entry only a part is typed."""
    return _completed(incomplete, (*_symbols(), "ALL"))


def complete_symbol(incomplete: str) -> list[str]:
    """Return the symbols that begin with a text, where one symbol is named."""
    return [symbol for symbol in _symbols() if symbol.startswith(incomplete)]


def complete_timeframes(incomplete: str) -> list[str]:
    """Return the completions of a list of timeframes, of whose last entry a part is typed."""
    from ktrdr_pipelines.domain.timeframes import Timeframe

    return _completed(incomplete, (*map(str, Timeframe), "ALL"))


def complete_timeframe(incomplete: str) -> list[str]:
    """Return the timeframes that begin with a text, where one timeframe is named."""
    from ktrdr_pipelines.domain.timeframes import Timeframe

    return [str(one) for one in Timeframe if one.startswith(incomplete)]


def complete_modes(incomplete: str) -> list[str]:
    """Return the modes of a load that begin with a text."""
    return [mode for mode in ("tail", "backfill", "full") if mode.startswith(incomplete)]


def _completed(incomplete: str, names: Sequence[str]) -> list[str]:
    """Return a list with its last entry completed in every way, without what it has already."""
    before, comma, last = incomplete.rpartition(",")
    used = set(before.split(","))
    found = (name for name in names if name.startswith(last) and name not in used)
    return [f"{before}{comma}{name}" for name in dict.fromkeys(found)]


def _symbols() -> Iterable[str]:
    """Return the symbols of the store's universe file; none if it cannot be read."""
    from ktrdr_pipelines.domain.universe.yaml_nodes import parsed

    with suppress(OSError, ValueError, RuntimeError, KtrdrError):
        path = _data_folder() / "universe.yaml"
        entries = parsed(path.read_text(encoding="utf-8-sig"), path.name).mapping().get("symbols")
        return [] if entries is None else list(entries.mapping())
    return []


def _data_folder() -> Path:
    """Return the data folder; the settings are read only if no variable names it, as that is slow.

    Raises:
        NoStoreError: there is none.
    """
    if named := os.environ.get(DATA_VARIABLE):
        return Path(named).expanduser()
    from ktrdr_pipelines.settings import workspace_folder

    return workspace_folder() / "data"
