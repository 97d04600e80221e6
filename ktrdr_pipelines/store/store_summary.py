"""What services say of a store at once: symbols with bars, the universe, counts of requests.

Listing 4,000 series folders, parsing a universe of 500 symbols and counting a million requests take
longer than a status may. So the results are kept, and each call checks by cheap marks what may have
changed: a stat of the folder of each symbol and of the universe, the newest row of a table. Only
that a series has lost its bars may be noticed five seconds late.

Not here: what is missing (``gaps.index``), reading bars (``store.bars.bar_store``).
"""

import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.fields import KEY_PATTERN
from ktrdr_pipelines.domain.universe.universe import Universe
from ktrdr_pipelines.store.files import disk_errors
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.ledger import Ledger
from ktrdr_pipelines.store.ledger.request_audit import RequestTotals
from ktrdr_pipelines.store.universe_file import UniverseFile

_CHECKED_EVERY: Final = timedelta(seconds=5)
"""How often the folders of series that have bars are checked for having lost them."""

_TOO_YOUNG_NS: Final = 1_000_000_000
"""A folder that changed so recently may change again within one tick of the file system's clock,
and then keep its time of change."""

_Mark = tuple[int, int]
"""Inode and time of the last change of a folder or file, in nanoseconds since 1970 UTC."""


@dataclass(slots=True)
class _SeriesFolder:
    """The folder of a series: whether it has bars, and whether that must be checked again."""

    path: str
    mark: _Mark | None = None
    has_bars: bool = False
    is_final: bool = False


@dataclass(slots=True)
class _SymbolFolder:
    """The folder of a symbol with those of its series, and whether those are all final."""

    path: str
    mark: _Mark | None = None
    series: dict[Timeframe, _SeriesFolder] = field(default_factory=dict)
    is_final: bool = False


@dataclass(slots=True)
class _Known:
    """What was read of one store; marks are of its folder of bars, its universe and its ledger."""

    bars_mark: _Mark | None = None
    checked_at: datetime = field(default=datetime.min.replace(tzinfo=UTC))
    symbols: dict[str, _SymbolFolder] = field(default_factory=dict)
    held: Mapping[str, tuple[Timeframe, ...]] | None = None
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

    def series(self, layout: StoreLayout, ledger: Ledger) -> Mapping[str, tuple[Timeframe, ...]]:
        """Return the timeframes with bars of each symbol that has any on disk, sorted by symbol.

        The files decide, not the universe. A file that is not in the file index yet counts as one
        with bars; one that is known to hold none (all confirmed empty) does not. While nothing
        changes, calls return the same object.

        Raises:
            DiskError: the folders cannot be read.
            StoreError: the ledger cannot be read.
        """
        with self._guard:
            known = self._of(layout)
            with disk_errors(layout.bars):
                self._find_symbols(known, layout)
                self._find_bars(known, ledger)
            if known.held is None:
                known.held = {
                    symbol: held
                    for symbol in sorted(known.symbols)
                    if (held := _held(known.symbols[symbol]))
                }
            return known.held

    def universe(self, layout: StoreLayout, file: UniverseFile) -> Universe:
        """Return the universe of a store; it is parsed again when its file has changed.

        An invalid edit keeps the last good one.

        Raises:
            UniverseError: the file is malformed, and there is no earlier copy.
        """
        with self._guard:
            known = self._of(layout)
            now_mark = _mark(file.path)
            is_young = now_mark is not None and now_mark[1] >= self._old_before_ns()
            if known.universe is None or now_mark != known.universe_mark or is_young:
                known.universe = file.read()[0]
                known.universe_mark = now_mark
            return known.universe

    def requests(self, layout: StoreLayout, ledger: Ledger) -> RequestTotals:
        """Return the counts of the requests that are recorded.

        Raises:
            StoreError: the ledger cannot be read.
        """
        with self._guard:
            known = self._of(layout)
            inode = _inode(ledger.path)
            if known.ledger_mark != inode:
                known.totals = None
            known.totals = ledger.requests.totals(known.totals)
            known.ledger_mark = inode
            return known.totals

    def _of(self, layout: StoreLayout) -> _Known:
        return self._known.setdefault(layout.root, _Known())

    def _old_before_ns(self) -> int:
        """Return the time of change before which a mark can be relied on."""
        return int(self._clock().timestamp() * 1e9) - _TOO_YOUNG_NS

    def _find_symbols(self, known: _Known, layout: StoreLayout) -> None:
        """Read the folder of all bars if it has changed, and those of symbols that have."""
        old_before_ns = self._old_before_ns()
        mark = _mark(layout.bars)
        if mark != known.bars_mark or mark is None or mark[1] >= old_before_ns:
            found = {
                name: path
                for name, path in _folders(layout.bars, "symbol")
                if re.fullmatch(KEY_PATTERN, name)
            }
            known.symbols = {
                name: known.symbols.get(name) or _SymbolFolder(path) for name, path in found.items()
            }
            known.bars_mark, known.held = mark, None
        for folder in known.symbols.values():
            mark = _mark(folder.path)
            if mark != folder.mark or mark is None or mark[1] >= old_before_ns:
                paths = dict(_folders(folder.path, "timeframe"))
                folder.series = {
                    one: _SeriesFolder(paths[one]) for one in Timeframe if one in paths
                }
                folder.mark, folder.is_final, known.held = mark, False, None

    def _find_bars(self, known: _Known, ledger: Ledger) -> None:
        """Find out which series have bars, where that is not known or may have changed."""
        now, old_before_ns = self._clock(), self._old_before_ns()
        checks_all = not timedelta() <= now - known.checked_at < _CHECKED_EVERY
        changed: dict[str, _SeriesFolder] = {}
        before: list[tuple[_SeriesFolder, bool]] = []
        for symbol, folder in known.symbols.items():
            if folder.is_final and not checks_all:
                continue
            for timeframe, series in folder.series.items():
                mark = _mark(series.path)
                if series.is_final and mark == series.mark:
                    continue
                before.append((series, series.has_bars))
                series.mark = mark
                series.is_final = folder.is_final = False
                series.has_bars = mark is not None and _has_file(series.path)
                if series.has_bars:
                    changed[f"{symbol}|{timeframe}"] = series
        if checks_all:
            known.checked_at = now
        _count_bars(changed, ledger, old_before_ns)
        if any(series.has_bars is not had_bars for series, had_bars in before):
            known.held = None
        for folder in known.symbols.values():
            folder.is_final = folder.is_final or all(one.is_final for one in folder.series.values())


_MANY: Final = 64
"""Number of series from which one read of the whole file index is cheaper."""


def _count_bars(changed: Mapping[str, _SeriesFolder], ledger: Ledger, old_before_ns: int) -> None:
    """Find out by the file index which series with files have bars, and which are final."""
    if not changed:
        return
    rows = ledger.files.rows_of(None if len(changed) > _MANY else list(changed))
    for key, series in changed.items():
        count = rows.get(key)
        series.has_bars = count is None or count > 0
        is_old = series.mark is not None and series.mark[1] < old_before_ns
        series.is_final = bool(count) and is_old


def _held(folder: _SymbolFolder) -> tuple[Timeframe, ...]:
    return tuple(timeframe for timeframe, one in folder.series.items() if one.has_bars)


def _folders(path: Path | str, key: str) -> Iterator[tuple[str, str]]:
    """Yield value and path of the folders named ``key=value`` in a folder that may be gone."""
    with suppress(FileNotFoundError), os.scandir(path) as entries:
        for entry in entries:
            name, _, value = entry.name.partition("=")
            if name == key and entry.is_dir():
                yield value, entry.path


def _has_file(path: str) -> bool:
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(path) as entries:
        return any(entry.name.endswith(".parquet") for entry in entries)
    return False


def _mark(path: Path | str) -> _Mark | None:
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
