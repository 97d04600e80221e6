"""Which bar files are read as a whole, which are damaged, and which no query may read.

Bits change on disk without a trace in size or time, and DuckDB 2.0 returns the rows of a page whose
checksum is wrong. Files are therefore read as a whole from time to time, and the ledger keeps the
result until the file is rewritten.

Not here: checking one file (``store.maintenance.inspection``).
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from typing import Final

from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.fields import KEY_PATTERN
from ktrdr_pipelines.errors import CorruptFileError
from ktrdr_pipelines.store.bars.bar_file import LOST_BASIS, has_lost_basis
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.bars.filing import misnamed
from ktrdr_pipelines.store.files import (
    bar_file_oddity,
    disk_errors,
    is_series_folder,
    not_a_bar_file,
    require_series_folder,
)
from ktrdr_pipelines.store.layout import StoreLayout, store_origin
from ktrdr_pipelines.store.ledger.file_index import FileCheck, fingerprint, known_by
from ktrdr_pipelines.store.maintenance.inspection import Checked, check_file

ROUND_DAYS: Final = 30
"""Days within which the daily check reads every file once."""


def check_files(
    store: BarStore,
    symbol: str,
    timeframe: Timeframe,
    paths: Iterable[Path],
    *,
    calendar: SessionCalendar | None,
    at: datetime,
) -> Iterator[tuple[Path, Checked]]:
    """Check files of one series, and record the results in the ledger.

    Args:
        store: the store.
        symbol, timeframe: the series.
        paths: its files to check.
        calendar: its sessions; None where they are unknown.
        at: real time.

    Yields: each path with its result.

    Raises:
        StoreError: a newer version wrote a file, or the ledger cannot be used.
    """
    layout, checks = store.layout, {}
    origin = store_origin(layout)
    known = store.ledger.files.of(f"{symbol}|{timeframe}")
    try:
        for path in paths:
            if oddity := bar_file_oddity(path):
                yield path, Checked(wrong=oddity)
                continue
            name, taken = layout.relative(path), fingerprint(path)
            found = check_file(
                path,
                symbol,
                timeframe,
                known=known_by(known.get(name)),
                calendar=calendar,
                origin=origin,
            )
            checks[name] = FileCheck(taken, at, found.damage)
            yield path, found
    finally:
        store.ledger.checks.record(checks)


def due_files(store: BarStore, timeframe: Timeframe) -> dict[str, list[Path]]:
    """Return the files of a timeframe that today's check reads, by symbol.

    It is one of ``ROUND_DAYS`` parts: files that were never checked first, then those with the
    oldest check.
    """
    checks, layout = store.ledger.checks.all(), store.layout
    files = [
        (symbol, path)
        for symbol, kind in layout.series_folders()
        if kind is timeframe
        for path in layout.bar_files(symbol, kind)
    ]

    def age(item: tuple[str, Path]) -> tuple[bool, float]:
        known = checks.get(layout.relative(item[1]))
        return known is not None, known.checked_at.timestamp() if known else 0.0

    chosen: dict[str, list[Path]] = {}
    for symbol, path in sorted(files, key=age)[: -(-len(files) // ROUND_DAYS)]:
        chosen.setdefault(symbol, []).append(path)
    return chosen


def damaged_files(store: BarStore) -> dict[str, str]:
    """Return the damage of each file known to be damaged, by name relative to the data folder."""
    found = {}
    for name, check in store.ledger.checks.all(damaged=True).items():
        path = store.layout.root / name
        if path.is_file() and fingerprint(path) == check.fingerprint:
            found[name] = check.damage
    return found


@dataclass(frozen=True, slots=True)
class QueriedFiles:
    """The files in series folders as queries see them.

    Attributes:
        refused: the files that no query may read, each with the reason.
        has_older: whether there are files without a column ``basis``: those of version 1, and
            refused ones, which must be read to be refused.
        series: how many files each series has that has any.
        known: the names, relative to the data folder, of the files whose present version is in the
            ledger.
        linked: the folders of symbols and series that are links.
        unnamed: folders named like one of a symbol, with a name that no symbol can have.
    """

    refused: Mapping[Path, str]
    has_older: bool
    series: Mapping[tuple[str, Timeframe], int]
    known: AbstractSet[str]
    linked: Sequence[Path] = ()
    unnamed: Sequence[Path] = ()


def queried_files(store: BarStore, *, is_strict: bool = False) -> QueriedFiles:
    """Find the files that no query may read, and which versions the others have.

    Refused are the files that a load would refuse: known to be damaged, with a name that no file of
    the series has, or with bars that do not belong where the file lies. So are files that have lost
    the price basis of their bars to another program, until they are written again. A file whose
    present version is not in the ledger is read to decide; the others are not opened.

    Args:
        store: the store.
        is_strict: whether anything else that lies where bars should be is an error, for a query
            that would skip it without notice: DuckDB skips whatever is neither a file nor a folder,
            and follows links.

    Raises:
        OddPathError: a folder of bars is not a folder, or is a link into a store.
        CorruptFileError: a bar file is something else, with ``is_strict``.
    """
    damaged, recorded = damaged_files(store), store.ledger.files.recorded_stats()
    refused: dict[Path, str] = {}
    has_older = False
    series: dict[tuple[str, Timeframe], int] = {}
    known: set[str] = set()
    found = _FoundFolders(store.layout, is_strict=is_strict)
    usual_names: dict[tuple[str, Timeframe], str] = {}
    for (symbol, timeframe), entries in found.series_entries():
        is_changed = False
        series[symbol, timeframe] = len(entries)
        folder = f"bars/symbol={symbol}/timeframe={timeframe}/"
        for entry in entries:
            name = folder + entry.name
            wrong = damaged.get(name)
            if not wrong:
                key = entry.name, timeframe
                if key not in usual_names:
                    usual_names[key] = misnamed(Path(entry.name), timeframe)
                wrong = usual_names[key]
            if not entry.is_file(follow_symlinks=False):
                if is_strict:
                    raise not_a_bar_file(Path(entry.path))
                wrong = bar_file_oddity(Path(entry.path)) or wrong
            if wrong:
                refused[Path(entry.path)] = wrong
                continue
            version = _version(entry, recorded.get(name))
            if version is None:
                is_changed = True
            else:
                known.add(name)
                has_older |= version == 1
        if is_changed:
            changed, is_older = _changed(store, symbol, timeframe, refused)
            refused |= changed
            has_older |= is_older
    return QueriedFiles(refused, has_older, series, known, found.linked, found.unnamed)


def _version(entry: "os.DirEntry[str]", recorded: tuple[int, int, int, int] | None) -> int | None:
    """Return the schema version that the ledger has of a file; None if it is another file now."""
    if recorded is None:
        return None
    try:
        found = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    size, mtime_ns, inode, version = recorded
    is_same = size == found.st_size and mtime_ns == found.st_mtime_ns and inode == found.st_ino
    return version if is_same else None


_FOLDERS: Final = {f"timeframe={timeframe}": timeframe for timeframe in Timeframe}


@dataclass(slots=True)
class _FoundFolders:
    """One look at all folders of bars: see ``QueriedFiles`` for what it finds."""

    layout: StoreLayout
    is_strict: bool
    linked: list[Path] = field(default_factory=list)
    unnamed: list[Path] = field(default_factory=list)

    def series_entries(self) -> Iterator[tuple[tuple[str, Timeframe], "list[os.DirEntry[str]]"]]:
        """Yield the series that have files, sorted by symbol, and whatever is named like a file.

        Only folders that are links, or lie in one, may lead into a store.
        """
        if self.is_strict:
            require_series_folder(self.layout.bars / "symbol" / "timeframe")
        is_linked = self.layout.bars.is_symlink()
        for folder in _entries(self.layout.bars):
            if not folder.name.startswith("symbol=") or not self._is_used(folder):
                continue
            symbol = folder.name.partition("=")[2]
            is_named = re.fullmatch(KEY_PATTERN, symbol)
            if not is_named:
                self.unnamed.append(Path(folder.path))
            for below, entries in self._entries_below(folder):
                if not is_named:
                    self._refuse_odd_files(entries)
                    continue
                links = [Path(one.path) for one in (folder, below) if one.is_symlink()]
                if is_linked or links:
                    require_series_folder(Path(below.path))
                self.linked += [one for one in links if one not in self.linked]
                if entries:
                    yield (symbol, _FOLDERS[below.name]), entries

    def _entries_below(
        self, folder: "os.DirEntry[str]"
    ) -> "Iterator[tuple[os.DirEntry[str], list[os.DirEntry[str]]]]":
        """Yield the folders of timeframes in one of a symbol, with what is named like a file."""
        for below in _entries(folder.path):
            is_series = below.name.startswith("timeframe=") and self._is_used(below)
            if is_series and below.name in _FOLDERS:
                yield below, [one for one in _entries(below.path) if one.name.endswith(".parquet")]

    def _is_used(self, entry: "os.DirEntry[str]") -> bool:
        """Return whether an entry is a folder of bars, or a link to one.

        Raises:
            OddPathError: it is no folder of bars of its own, with ``is_strict``.
        """
        if entry.is_dir(follow_symlinks=False):
            return True
        path = Path(entry.path)
        if self.is_strict and not is_series_folder(path):
            require_series_folder(path)
        return _is_folder(entry)

    def _refuse_odd_files(self, entries: "Iterable[os.DirEntry[str]]") -> None:
        for entry in entries:
            if self.is_strict and not entry.is_file(follow_symlinks=False):
                raise not_a_bar_file(Path(entry.path))


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry is a folder, or a link to one."""
    with disk_errors(Path(entry.path)):
        return entry.is_dir()


def _entries(folder: Path | str) -> "list[os.DirEntry[str]]":
    """Return what is in a folder, by name; nothing where it is gone, such as during a rename."""
    with disk_errors(Path(folder)), suppress(FileNotFoundError), os.scandir(folder) as entries:
        return sorted(entries, key=attrgetter("name"))
    return []


def _changed(
    store: BarStore, symbol: str, timeframe: Timeframe, refused: Iterable[Path]
) -> tuple[dict[Path, str], bool]:
    """Return the files of a series that no query may read, and whether any have no basis."""
    found: dict[Path, str] = {}
    rows = {}
    taken = set(refused)
    for path in store.layout.bar_files(symbol, timeframe):
        if path in taken:
            continue
        try:
            rows[path] = store.files.one(path, symbol, timeframe)
        except CorruptFileError as error:
            found[path] = error.reason
    usual = store.files.prevailing(symbol, rows.values())
    for path, row in rows.items():
        if row.identity != usual:
            found[path] = f"it holds {row.identity}, the series holds {usual}"
        elif has_lost_basis(path, row.schema_version):
            found[path] = LOST_BASIS
    versions = [row.schema_version for row in rows.values()]
    return found, 1 in versions or LOST_BASIS in found.values()
