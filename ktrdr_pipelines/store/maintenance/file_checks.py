"""Which bar files are read as a whole, which are damaged, and which no query may read.

Bits change on disk without a trace in size or time, and DuckDB 2.0 returns the rows of a page whose
checksum is wrong. Files are therefore read as a whole from time to time, and the ledger keeps the
result until the file is rewritten.

Not here: checking one file (``store.maintenance.inspection``).
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
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
from ktrdr_pipelines.store.files import bar_file_oddity, disk_errors, require_series_folder
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
    """

    refused: Mapping[Path, str]
    has_older: bool
    series: Mapping[tuple[str, Timeframe], int]
    known: AbstractSet[str]


def queried_files(store: BarStore) -> QueriedFiles:
    """Find the files that no query may read, and which versions the others have.

    Refused are the files that a load would refuse: known to be damaged, with a name that no file of
    the series has, or with bars that do not belong where the file lies. So are files that have lost
    the price basis of their bars to another program, until they are written again. A file whose
    present version is not in the ledger is read to decide; the others are not opened.

    Raises:
        OddPathError: a folder of bars is not a folder, or is a link into a store.
    """
    damaged, recorded = damaged_files(store), store.ledger.files.recorded_stats()
    refused: dict[Path, str] = {}
    has_older = False
    series: dict[tuple[str, Timeframe], int] = {}
    known: set[str] = set()
    usual_names: dict[tuple[str, Timeframe], str] = {}
    for (symbol, timeframe), entries in _series_entries(store.layout):
        is_changed = False
        series[symbol, timeframe] = len(entries)
        for entry in entries:
            name = f"bars/symbol={symbol}/timeframe={timeframe}/{entry.name}"
            wrong = damaged.get(name)
            if not wrong:
                key = entry.name, timeframe
                if key not in usual_names:
                    usual_names[key] = misnamed(Path(entry.name), timeframe)
                wrong = usual_names[key]
            if not entry.is_file(follow_symlinks=False):
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
            found, is_older = _changed(store, symbol, timeframe, refused)
            refused |= found
            has_older |= is_older
    return QueriedFiles(refused, has_older, series, known)


def _version(entry: "os.DirEntry[str]", recorded: tuple[int, int, int, int] | None) -> int | None:
    """Return the schema version that the ledger has of a file; None if it is another file now."""
    if recorded is None:
        return None
    try:
        found = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    *taken, version = recorded
    return version if taken == [found.st_size, found.st_mtime_ns, found.st_ino] else None


_FOLDERS: Final = {f"timeframe={timeframe}": timeframe for timeframe in Timeframe}


def _series_entries(
    layout: StoreLayout,
) -> Iterator[tuple[tuple[str, Timeframe], "list[os.DirEntry[str]]"]]:
    """Yield the series that have files, sorted by symbol, and whatever is named like a file.

    Only folders that are links, or lie in one, may lead into a store.
    """
    is_linked = layout.bars.is_symlink()
    for folder in _entries(layout.bars):
        symbol = folder.name.partition("=")[2]
        if not folder.name.startswith("symbol=") or not re.fullmatch(KEY_PATTERN, symbol):
            continue
        if not _is_folder(folder):
            continue
        for below in _entries(folder.path):
            timeframe = _FOLDERS.get(below.name)
            if timeframe is None or not _is_folder(below):
                continue
            if is_linked or folder.is_symlink() or below.is_symlink():
                require_series_folder(Path(below.path))
            if entries := [one for one in _entries(below.path) if one.name.endswith(".parquet")]:
                yield (symbol, timeframe), entries


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
