"""What services say of a store at once: symbols with bars, the universe, counts of requests.

Listing 4,000 series folders, parsing a universe of 500 symbols and counting a million requests take
longer than a status may. So the results are kept, and each call checks by cheap marks what may have
changed: a stat of each folder and file, the newest row of a table. A result is never served after
its mark has changed.

Not here: what is missing (``gaps.index``), reading bars (``store.bars.bar_store``).
"""

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from ktrdr_pipelines.app.workspace import Workspace, universe_file
from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.fields import KEY_PATTERN
from ktrdr_pipelines.domain.universe.universe import Universe
from ktrdr_pipelines.store.files import disk_errors
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.ledger import Ledger
from ktrdr_pipelines.store.ledger.request_audit import RequestTotals

_CHECKED_EVERY: Final = timedelta(seconds=5)
"""How often the folders of series that have bars are checked for having lost them."""

_TOO_YOUNG: Final = timedelta(seconds=1)
"""A folder that changed so recently may change again within one tick of the file system's clock,
and then keep its time of change."""

_Mark = tuple[int, int]
"""Inode and time of the last change of a folder or file."""


@dataclass(slots=True)
class _SeriesFolder:
    """The folder of a series: whether it has bars, and whether that must be checked again."""

    path: Path
    mark: _Mark | None = None
    has_bars: bool = False
    is_final: bool = False


@dataclass(slots=True)
class _SymbolFolder:
    """The folder of a symbol with those of its series."""

    mark: _Mark | None
    series: dict[Timeframe, _SeriesFolder]


@dataclass(slots=True)
class _Known:
    """What was read of one store; marks are of its folder of bars, its universe and its ledger."""

    bars_mark: _Mark | None = None
    checked_at: datetime = field(default=datetime.min.replace(tzinfo=UTC))
    symbols: dict[str, _SymbolFolder] = field(default_factory=dict)
    universe_mark: _Mark | None = None
    universe: Universe | None = None
    ledger_mark: _Mark | None = None
    totals: RequestTotals | None = None


class StoreSummary:
    """The summary of one store, shared by the threads of a service.

    Another store at the same path is noticed by its folders and files.

    Args:
        clock: this machine's time, by which the file system's times are judged.
    """

    def __init__(self, clock: Callable[[], datetime] = system_now) -> None:
        self._clock = clock
        self._known: dict[Path, _Known] = {}
        self._guard = threading.Lock()

    def __repr__(self) -> str:
        return f"StoreSummary({', '.join(map(str, self._known)) or 'nothing read'})"

    def series(self, workspace: Workspace) -> dict[str, tuple[Timeframe, ...]]:
        """Return the timeframes with bars of each symbol that has any on disk, sorted by symbol.

        The files decide, not the universe. A file that is not in the file index yet counts as one
        with bars; one that is known to hold none (all confirmed empty) does not.

        Raises:
            DiskError: the folders cannot be read.
            StoreError: the ledger cannot be read.
        """
        with self._guard:
            known = self._of(workspace.layout)
            with disk_errors(workspace.layout.bars):
                self._find_symbols(known, workspace.layout)
                self._find_bars(known, workspace.ledger)
            return {
                symbol: held
                for symbol in sorted(known.symbols)
                if (held := _held(known.symbols[symbol]))
            }

    def universe(self, workspace: Workspace) -> Universe:
        """Return the universe of a store; it is parsed again when its file has changed.

        Raises:
            UniverseError: the file is malformed, and there is no earlier copy.
        """
        layout = workspace.layout
        with self._guard:
            known = self._of(layout)
            now_mark = _mark(layout.universe)
            is_young = now_mark is not None and self._is_young(now_mark)
            if known.universe is None or now_mark != known.universe_mark or is_young:
                known.universe = universe_file(layout).read()[0]
                known.universe_mark = now_mark
            return known.universe

    def requests(self, workspace: Workspace) -> RequestTotals:
        """Return the counts of the requests that are recorded.

        Raises:
            StoreError: the ledger cannot be read.
        """
        ledger = workspace.ledger
        with self._guard:
            known = self._of(workspace.layout)
            inode = _inode(ledger.path)
            if known.ledger_mark != inode:
                known.totals = None
            known.totals = ledger.requests.totals(known.totals)
            known.ledger_mark = inode
            return known.totals

    def _of(self, layout: StoreLayout) -> _Known:
        return self._known.setdefault(layout.root, _Known())

    def _is_young(self, mark: _Mark) -> bool:
        changed_at = datetime.fromtimestamp(mark[1] / 1e9, tz=UTC)
        return self._clock() - changed_at < _TOO_YOUNG

    def _find_symbols(self, known: _Known, layout: StoreLayout) -> None:
        """Read the folder of all bars if it has changed, and those of symbols that have."""
        mark = _mark(layout.bars)
        if mark != known.bars_mark or mark is None or self._is_young(mark):
            present = dict(_folders(layout.bars, "symbol"))
            names = {name for name in present if re.fullmatch(KEY_PATTERN, name)}
            for gone in known.symbols.keys() - names:
                del known.symbols[gone]
            for name in names - known.symbols.keys():
                known.symbols[name] = _SymbolFolder(None, {})
            known.bars_mark = mark
        for symbol, folder in known.symbols.items():
            path = layout.symbol_folder(symbol)
            mark = _mark(path)
            if mark != folder.mark or mark is None or self._is_young(mark):
                found = {name: Path(one) for name, one in _folders(path, "timeframe")}
                folder.series = {
                    timeframe: _SeriesFolder(found[timeframe])
                    for timeframe in Timeframe
                    if timeframe in found
                }
                folder.mark = mark

    def _find_bars(self, known: _Known, ledger: Ledger) -> None:
        """Find out which series have bars, where that is not known or may have changed."""
        checks_all = self._clock() - known.checked_at >= _CHECKED_EVERY
        changed: dict[str, _SeriesFolder] = {}
        for symbol, folder in known.symbols.items():
            for timeframe, series in folder.series.items():
                if series.is_final and not checks_all:
                    continue
                mark = _mark(series.path)
                if series.is_final and mark == series.mark:
                    continue
                series.mark = mark
                series.has_bars = mark is not None and _has_file(series.path)
                series.is_final = False
                if series.has_bars:
                    changed[f"{symbol}|{timeframe}"] = series
        if checks_all:
            known.checked_at = self._clock()
        if not changed:
            return
        rows = ledger.files.rows_of(None if len(changed) > _MANY else list(changed))
        for key, series in changed.items():
            count = rows.get(key)
            series.has_bars = count is None or count > 0
            is_young = series.mark is None or self._is_young(series.mark)
            series.is_final = bool(count) and not is_young


_MANY: Final = 64
"""Number of series from which one read of the whole file index is cheaper."""


def _held(folder: _SymbolFolder) -> tuple[Timeframe, ...]:
    return tuple(timeframe for timeframe, one in folder.series.items() if one.has_bars)


def _folders(path: Path, key: str) -> Iterator[tuple[str, str]]:
    """Yield value and path of the folders named ``key=value`` in a folder that may be gone."""
    with suppress(FileNotFoundError), os.scandir(path) as entries:
        for entry in entries:
            name, _, value = entry.name.partition("=")
            if name == key and entry.is_dir():
                yield value, entry.path


def _has_file(path: Path) -> bool:
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(path) as entries:
        return any(entry.name.endswith(".parquet") for entry in entries)
    return False


def _mark(path: Path) -> _Mark | None:
    """Return the mark of a folder or file; None where there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116  (a third faster; there are thousands)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _inode(path: Path) -> _Mark | None:
    """Return what distinguishes a file from another one at its path, whatever is written to it."""
    mark = _mark(path)
    return None if mark is None else (mark[0], 0)
