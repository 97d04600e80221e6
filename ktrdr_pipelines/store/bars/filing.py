"""How bars are filed: which file holds which bars, and what each file of a series holds now.

1m and 5m have one file a year (by session date), other timeframes one file for all. A year begins
when the session day of 1 January begins, so the evening of 31 December in New York is filed with
the FX session it opens.

Not here: merging bars into files (``store.bars.bar_store``), the format of one file
(``store.bars.bar_file``), the rows of the file index (``store.ledger.file_index``).
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa

from ktrdr_pipelines.domain.bars import (
    STORED_SCHEMA,
    bars_between,
    is_flat,
    moment,
    rows_per_session,
    timestamps,
)
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Identity, Origin, Series
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import CorruptFileError
from ktrdr_pipelines.store.bars.bar_file import (
    ALL_BARS,
    BarBounds,
    corrupt,
    count_bars_between,
    has_lost_basis,
    may_have_flat,
    opened,
    read_bars,
    read_footer,
    read_keys,
    write_file,
)
from ktrdr_pipelines.store.bars.footer import Footer
from ktrdr_pipelines.store.bars.integrity import (
    TrueFile,
    current_footer,
    true_file,
    without_implausible,
)
from ktrdr_pipelines.store.layout import StoreLayout, store_origin, upgrade_store
from ktrdr_pipelines.store.ledger.file_index import (
    FileCheck,
    Fingerprint,
    IndexedFile,
    encode_sessions,
    fingerprint,
    indexed_file,
    known_by,
)
from ktrdr_pipelines.store.ledger.ledger import Ledger

ALL = "all"
"""Stem of the only file of a series that is not filed by year."""

EVER = Interval(datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC))
"""The interval of a file that holds all bars of its series."""

_BAR = timedelta(microseconds=1)


_MOST_WRITTEN = 4
"""Files whose content is kept after it was written: a backfill writes one, and the year before."""


@dataclass(frozen=True, slots=True)
class _Written:
    """A file as it was written: the version, its footer and all its bars."""

    fingerprint: Fingerprint
    footer: Footer
    bars: pa.Table


@dataclass(frozen=True, slots=True)
class FilePart:
    """The part of a save that goes into one file; ``stem`` is its name without ``.parquet``."""

    stem: str
    bars: pa.Table
    coverage: Coverage


def filed_parts(series: Series, bars: pa.Table, coverage: Coverage) -> Iterator[FilePart]:
    """Split sorted bars and their coverage by file; yield only files that receive anything."""
    keys = timestamps(bars)
    around = [coverage.bars.bounds, *(proof.interval for proof in coverage.empty)]
    parts = [part for part in around if part]
    if len(keys):
        parts.append(Interval(moment(int(keys[0])), moment(int(keys[-1])) + _BAR))
    if not parts:
        return
    bounds = Interval(min(p.start for p in parts), max(p.end for p in parts))
    for stem, held in file_intervals(series, bounds):
        part = FilePart(stem, bars_between(bars, held.start, held.end), coverage.clip(held))
        if part.bars.num_rows or part.coverage:
            yield part


def file_intervals(series: Series, wanted: Interval) -> Iterator[tuple[str, Interval]]:
    """Yield the stem and interval of each file that overlaps an interval of bar timestamps."""
    if not series.timeframe.is_yearly_filed:
        yield ALL, EVER
        return
    calendar = calendar_named(series.instrument.calendar)
    last = calendar.day_of(wanted.end - _BAR).year
    for year in range(calendar.day_of(wanted.start).year, last + 1):
        bounds = (calendar.day_starts_at(date(y, 1, 1)) for y in (year, year + 1))
        yield str(year), Interval(*bounds)


def misfiled(
    path: Path,
    footer: Footer,
    symbol: str,
    timeframe: Timeframe,
    *,
    origin: Origin | None = None,
) -> str:
    """Return why a file does not belong where it lies, or an empty string.

    A misplaced copy would count its bars twice. ``origin`` is that of the store, where it has one.
    """
    held = footer.identity
    if (held.symbol, held.timeframe) != (symbol, timeframe):
        return f"it holds {held}, its folder is that of {symbol} {timeframe}"
    if origin not in {None, held.origin}:
        return f"it holds {held}, the store holds bars of origin {origin}"
    if wrong := misnamed(path, timeframe):
        return wrong
    if not timeframe.is_yearly_filed:
        return ""
    strange = [day for day in footer.rows_per_session if day.year != int(path.stem)]
    return f"it holds bars of {strange[0]}, which are filed under that year" if strange else ""


def replaced(footer: Footer, known: Callable[[], Footer] | None) -> str:
    """Return how a file's instrument differs from the ledger's record of it, or an empty string."""
    before = footer.identity if known is None else known().identity
    return (
        "" if footer.identity == before else f"it holds {footer.identity}, and held {before} before"
    )


def misnamed(path: Path, timeframe: Timeframe) -> str:
    """Return why a file of a timeframe cannot have its name, or an empty string."""
    pattern = r"[0-9]{4}" if timeframe.is_yearly_filed else ALL
    return "" if re.fullmatch(pattern, path.stem) else f"no file of {timeframe} bars is named so"


class BarFiles:
    """The files of every series, each with its row of the file index.

    A file is opened only where its fingerprint is not the recorded one.

    Args:
        layout: where the files lie.
        ledger: holds the file index.
        clock: returns the time at which damage is found.
    """

    def __init__(self, layout: StoreLayout, ledger: Ledger, clock: Callable[[], datetime]) -> None:
        self._layout = layout
        self._ledger = ledger
        self._clock = clock
        self._written: dict[Path, _Written] = {}

    def of(self, series: Series) -> Mapping[Path, IndexedFile]:
        """Return the row of each file of a series; files that changed are recounted.

        The result of a recount is recorded, so that each version of a file is counted once; but
        for files that another program wrote without the basis of their bars.

        Raises:
            CorruptFileError: a file cannot be read, does not belong where it lies, or holds
                another instrument than the series.
        """
        key = (series.symbol, series.timeframe)
        current, recounted = self._current(*key, calendar=series.instrument.calendar)
        # A file that has lost the basis of its bars stays unrecorded: queries find it by that.
        recounted = {
            name: row
            for name, row in recounted.items()
            if not has_lost_basis(self._layout.root / name, row.schema_version)
        }
        if recounted:
            self._ledger.files.record(f"{series.symbol}|{series.timeframe}", recounted)
        return current

    def version(self, symbol: str, timeframe: Timeframe) -> Hashable:
        """Return a value that changes with every change of a file of a series; None is unknown.

        It costs a few microseconds a file: nothing is opened, and the file index is not read.
        """
        folder = self._layout.series_folder(symbol, timeframe)
        try:
            with os.scandir(folder) as entries:
                return tuple(
                    sorted(
                        (one.name, status.st_size, status.st_mtime_ns, status.st_ino)
                        for one in entries
                        if one.name.endswith(".parquet")
                        for status in (one.stat(follow_symlinks=False),)
                    )
                )
        except OSError:
            return None

    def of_symbol(self, symbol: str, timeframe: Timeframe) -> Mapping[Path, IndexedFile]:
        """Return the row of each file of a series that may have left the universe.

        Nothing is recorded: without its calendar a recount may find less covered than there is.

        Raises: as ``of``.
        """
        return self._current(symbol, timeframe)[0]

    def one(self, path: Path, symbol: str, timeframe: Timeframe) -> IndexedFile:
        """Return the row of one file of a series; as ``of_symbol``.

        Raises:
            CorruptFileError: the file cannot be read, or does not belong where it lies.
        """
        row = self.recorded(symbol, timeframe).get(self._layout.relative(path))
        return self._current_row(path, symbol, timeframe, row)

    def recorded(self, symbol: str, timeframe: Timeframe) -> dict[str, IndexedFile]:
        """Return the recorded rows of a series' files, by name, whatever the files hold now."""
        return self._ledger.files.of(f"{symbol}|{timeframe}")

    def prevailing(self, symbol: str, held: Iterable[IndexedFile | Footer]) -> Identity | None:
        """Return the identity of a series whose files disagree, or None where no file counts.

        Files of another origin than the store's do not count. The identity of the contract that is
        pinned to the symbol prevails, else the one with the most bars.
        """
        origin = store_origin(self._layout)
        pinned = self._ledger.contracts.of(symbol, origin)
        bars: Counter[Identity] = Counter()
        for one in held:
            if origin in {None, one.identity.origin}:
                bars[one.identity] += one.rows + 1
        return max(bars, key=lambda one: (one.contract_id == pinned, bars[one]), default=None)

    def with_flat(self, path: Path, row: IndexedFile) -> IndexedFile:
        """Return a file's row with its flat bars; they are counted now if they never were."""
        if row.flat:
            return row
        flat: dict[date, int] = {}
        with self.recording_damage(path):
            if may_have_flat(path):
                flat = _flat_per_session(read_bars(path, known_by(row)))
        self._ledger.files.record_flat(self._layout.relative(path), row.fingerprint, flat)
        return replace(row, flat=encode_sessions(flat))

    def bars(
        self, path: Path, row: IndexedFile | None, interval: Interval | None = None
    ) -> pa.Table:
        """Return bars of a file as stored, sorted by timestamp; damage is recorded.

        Args:
            path: the file.
            row: its row.
            interval: only bars with a timestamp in it; None for all.
        """
        bounds = ALL_BARS if interval is None else BarBounds.of(interval)
        with self.recording_damage(path), opened(path) as file:
            return file.bars(STORED_SCHEMA.names, bounds, footer=file.footer(known_by(row)))

    def count(self, path: Path, row: IndexedFile, interval: Interval) -> int:
        """Return how many bars of a file have a timestamp in an interval."""
        return count_bars_between(path, interval, known_by(row))

    def bounds(self, path: Path, row: IndexedFile) -> tuple[datetime, datetime]:
        """Return the timestamps of the first and the last bar of a file that has any."""
        with self.recording_damage(path):
            keys = timestamps(read_keys(path, known_by(row))[1])
            if not len(keys):
                raise corrupt(path, f"it has no bars, and {row.rows} were written")
        return moment(int(keys.min())), moment(int(keys.max()))

    def read(self, path: Path, row: IndexedFile | None, *, calendar: str | None = None) -> TrueFile:
        """Return what a file holds now; ``calendar`` is as for ``of``, by name.

        Raises:
            CorruptFileError: the file cannot be read.
        """
        return true_file(path, known_by(row), calendar_named(calendar) if calendar else None)

    def read_to_merge(self, series: Series, path: Path) -> tuple[Footer | None, pa.Table]:
        """Return footer and bars of a file that new bars are merged into; it may not exist yet.

        A file that was written here last, and is still that version, is not read again.

        Bars that another program may have written with implausible values are not covered.

        Raises:
            CorruptFileError: the file cannot be read; the damage is recorded.
        """
        if not path.exists():
            return None, STORED_SCHEMA.empty_table()
        written = self._written.get(path)
        if written is not None and written.fingerprint == fingerprint(path):
            return written.footer, written.bars
        row = self.recorded(series.symbol, series.timeframe).get(self._layout.relative(path))
        with self.recording_damage(path):
            held = self.read(path, row, calendar=series.instrument.calendar)
        if held.is_as_written:
            return held.footer, held.bars
        known = self._ledger.findings.of(f"{series.symbol}|{series.timeframe}")
        footer = without_implausible(held.footer, held.bars, known, series.instrument.sec_type)
        return footer, held.bars

    def write(
        self,
        path: Path,
        bars: pa.Table,
        footer: Footer,
        *,
        is_as_written: bool = True,
        with_flat: bool = False,
    ) -> None:
        """Write a file as ``bar_file.write_file`` does, and record its row.

        Args:
            path, bars, footer, is_as_written: as ``write_file``.
            with_flat: whether to count its flat bars too.
        """
        upgrade_store(self._layout)
        footer = write_file(
            path,
            bars,
            footer,
            is_as_written=is_as_written,
            before_renaming=self._layout.require_same,
        )
        taken = self._record(path, footer, _flat_per_session(bars) if with_flat else None)
        self._written.pop(path, None)
        if is_as_written:
            self._written[path] = _Written(taken, footer, bars)
            # Every series of a run is written in a thread of its own; copying the keys is atomic.
            for older in list(self._written)[:-_MOST_WRITTEN]:
                self._written.pop(older, None)

    def record(self, path: Path) -> Identity:
        """Record a file's row by its own footer, which the caller has checked; return its identity.

        Raises: as ``bar_file.read_footer``.
        """
        footer = read_footer(path)
        self._record(path, footer)
        return footer.identity

    @contextmanager
    def recording_damage(self, path: Path) -> Iterator[None]:
        """Record a file that turns out to be damaged, so that no query reads it."""
        try:
            yield
        except CorruptFileError as error:
            check = FileCheck(fingerprint(path), self._clock(), error.reason)
            self._ledger.checks.record({self._layout.relative(path): check})
            raise

    def _record(
        self, path: Path, footer: Footer, flat: Mapping[date, int] | None = None
    ) -> Fingerprint:
        """Record a file's row; return the fingerprint of the version that it is of."""
        identity, row = footer.identity, indexed_file(fingerprint(path), footer, flat)
        key = f"{identity.symbol}|{identity.timeframe}"
        self._ledger.files.record(key, {self._layout.relative(path): row})
        return row.fingerprint

    def _current(
        self, symbol: str, timeframe: Timeframe, *, calendar: str | None = None
    ) -> tuple[dict[Path, IndexedFile], dict[str, IndexedFile]]:
        """Return the row of each file, and by name the rows of files that had to be opened."""
        paths = self._layout.bar_files(symbol, timeframe)
        known = self.recorded(symbol, timeframe) if paths else {}
        current: dict[Path, IndexedFile] = {}
        recounted: dict[str, IndexedFile] = {}
        for path in paths:
            name = self._layout.relative(path)
            row = self._current_row(path, symbol, timeframe, known.get(name), calendar=calendar)
            if row is not known.get(name):
                recounted[name] = row
            current[path] = row
        if len({row.identity_json for row in current.values()}) > 1:
            usual = self.prevailing(symbol, current.values())
            for path, row in current.items():
                if row.identity != usual:
                    raise corrupt(path, f"it holds {row.identity}, the series holds {usual}")
        return current, recounted

    def _current_row(
        self,
        path: Path,
        symbol: str,
        timeframe: Timeframe,
        row: IndexedFile | None,
        *,
        calendar: str | None = None,
    ) -> IndexedFile:
        """Return the recorded row of a file where it is current, else that of a recount."""
        taken, known = fingerprint(path), known_by(row)
        if row is not None and row.fingerprint == taken:
            return row
        footer = current_footer(path, known, calendar_named(calendar) if calendar else None)
        origin = store_origin(self._layout)
        wrong = misfiled(path, footer, symbol, timeframe, origin=origin)
        if wrong or (wrong := replaced(footer, known)):
            raise corrupt(path, wrong)
        return indexed_file(taken, footer)


def _flat_per_session(bars: pa.Table) -> dict[date, int]:
    return rows_per_session(bars.filter(pa.array(is_flat(bars))))
