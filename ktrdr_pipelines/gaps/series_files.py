"""Read what the files of many series hold; a file is opened only if the file index lacks it.

Not here: what is missing (``gaps.index``), reading and checking a file (``store.bars.bar_store``).
"""

import json
import os
import stat
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path

import numpy as np

from ktrdr_pipelines.domain.bars import UNCONFIRMED, micros
from ktrdr_pipelines.domain.calendars.session_grid import SessionGrid, session_grid
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from ktrdr_pipelines.domain.coverage import Emptiness, valid_emptiness
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.sparse_sessions import (
    have_bars,
    may_be_sparse,
    sparse_indexes,
)
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import StoreError
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.bars.footer import coverage_from_json
from ktrdr_pipelines.store.files import disk_errors, not_a_bar_file, require_series_folder
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.file_index import IndexedFile
from ktrdr_pipelines.store.ledger.ledger import series_key

_MANY = 32
"""Number of series from which one read of the whole file index is cheaper than one read each."""

_Stats = tuple[tuple[str, int, int, int], ...]
"""Name, size, time of change in ns and inode of the files of a series, sorted."""

_Rows = Mapping[str, IndexedFile]

_UNCONFIRMED_TEXT = str(UNCONFIRMED)
"""What the JSON of a file's price basis contains where bars are on an unconfirmed one."""


@dataclass(frozen=True, slots=True, eq=False)
class SeriesFiles:
    """What the files of one series hold.

    ``stats`` tell one version of the files from another; ``grid`` are the sessions of ``calendar``;
    ``bars`` is what is covered with bars; ``oldest_bar`` the timestamp, in microseconds since 1970
    UTC, at which the oldest span begins that has a bar; ``sparse_sessions`` are index in the
    calendar, session date and bars of the sessions that have far fewer bars than their neighbours.
    ``unconfirmed_bars`` are held on an unconfirmed price basis, in ``unconfirmed_basis``.
    """

    stats: _Stats
    calendar: SessionCalendar
    grid: SessionGrid
    bars: IntervalSet
    proofs: tuple[Emptiness, ...]
    rows: int
    contract_id: int | None
    first: date | None
    last: date | None
    oldest_bar: int | None
    sparse_sessions: tuple[tuple[int, date, int], ...]
    unconfirmed_basis: IntervalSet = field(default_factory=IntervalSet)
    unconfirmed_bars: int = 0

    def covered(self, now: datetime) -> IntervalSet:
        """Return what is covered at ``now``, with bars or as confirmed empty."""
        if not self.proofs:
            return self.bars
        return self.bars | self.empty(now)

    def empty(self, now: datetime) -> IntervalSet:
        """Return what is confirmed empty by a proof that is valid at ``now``."""
        return valid_emptiness(self.proofs, now, self.grid)

    def expired(self, now: datetime) -> Iterator[tuple[Interval, datetime]]:
        """Yield the intervals of expired proofs, and when each was proved empty."""
        for proof in self.proofs:
            if proof.valid_part(now) != proof.interval:
                yield proof.interval, proof.proved_at

    def next_expiry(self, now: datetime) -> datetime | None:
        """Return when the next part of a proof expires, or None."""
        later = (at for proof in self.proofs for at in proof.expiries if at > now)
        return min(later, default=None)


@dataclass(frozen=True, slots=True, eq=False)
class _Sessions:
    """What the sessions in the files of a series show; ``sparse`` as in ``SeriesFiles``."""

    first: date | None
    last: date | None
    oldest_bar: int | None
    sparse: tuple[tuple[int, date, int], ...]


class AllSeriesFiles:
    """Reads what many series hold, and keeps the result while their files are unchanged.

    Series whose files state the same of sessions or of coverage share what is made of it.

    Args:
        store: files and ledger.
        kept: earlier results by series key, updated in place.
    """

    def __init__(self, store: BarStore, kept: dict[str, SeriesFiles]) -> None:
        self._store = store
        self._kept = kept
        self._bars = store.layout.bars.name
        self._coverages: dict[tuple[str, ...], tuple[IntervalSet, tuple[Emptiness, ...]]] = {}
        self._sessions: dict[Hashable, _Sessions] = {}

    def of(
        self, wanted: Iterable[tuple[Series, SessionCalendar]]
    ) -> list[SeriesFiles | StoreError]:
        """Return what each series holds, or the error that prevents reading it."""
        found: list[SeriesFiles | StoreError | None] = []
        changed: list[tuple[int, Series, SessionCalendar, _Stats]] = []
        folders = _SeriesFolders(self._store.layout)
        for position, (series, calendar) in enumerate(wanted):
            try:
                stats = folders.stats(series)
            except StoreError as error:
                found.append(error)
                continue
            kept = self._kept.get(series_key(series))
            if kept is not None and kept.stats == stats and kept.calendar is calendar:
                found.append(kept)
            else:
                found.append(None)
                changed.append((position, series, calendar, stats))
        filled = [series_key(series) for _, series, _, stats in changed if stats]
        rows: Mapping[str, _Rows]
        if len(filled) >= _MANY:
            rows = self._store.ledger.files.all()
        else:
            rows = {key: self._store.ledger.files.of(key) for key in filled}
        for position, series, calendar, stats in changed:
            known = rows.get(series_key(series), {})
            found[position] = self._read(series, calendar, stats, known)
        return [one for one in found if one is not None]

    def _read(
        self, series: Series, calendar: SessionCalendar, stats: _Stats, known: _Rows
    ) -> SeriesFiles | StoreError:
        base = (
            f"{self._store.layout.bars.name}/symbol={series.symbol}/timeframe={series.timeframe}/"
        )
        rows = {name: known[name] for one, *_ in stats if (name := base + one) in known}
        is_known = len(rows) == len(stats) and all(
            row.fingerprint == one[1:] for row, one in zip(rows.values(), stats, strict=True)
        )
        try:
            if not is_known:
                files = self._store.files.of(series)
                rows = {base + path.name: files[path] for path in sorted(files)}
                stats = tuple((path.name, *files[path].fingerprint) for path in sorted(files))
            series_files = self._series_files(series, calendar, stats, rows)
        except StoreError as error:
            self._kept.pop(series_key(series), None)
            return error
        self._kept[series_key(series)] = series_files
        return series_files

    def _series_files(
        self, series: Series, calendar: SessionCalendar, stats: _Stats, known: _Rows
    ) -> SeriesFiles:
        rows = list(known.values())
        spans = session_grid(calendar, series.timeframe)
        texts = tuple(row.coverage_json for row in rows)
        coverage = self._coverages.get(texts)
        if coverage is None:
            coverage = self._coverages[texts] = _coverage(texts)
        covered, proofs = coverage
        stated = tuple((row.sessions, row.flat) for row in rows)
        key = (calendar, series.timeframe, texts, stated)
        sessions = self._sessions.get(key)
        if sessions is None:
            counted = _Counted(self._store, known)
            sessions = _sessions_in(spans, calendar, covered, rows, counted=counted)
            if not counted.has_read:
                self._sessions[key] = sessions
        unconfirmed, unconfirmed_bars = IntervalSet(), 0
        if any(_may_be_unconfirmed(row) and row.basis.unconfirmed for row in rows):
            unconfirmed, unconfirmed_bars = self._store.unconfirmed(series.symbol, series.timeframe)
        return SeriesFiles(
            stats=stats,
            calendar=calendar,
            grid=spans,
            bars=covered,
            proofs=proofs,
            rows=sum(row.rows for row in rows),
            contract_id=rows[0].identity.contract_id if rows else None,
            first=sessions.first,
            last=sessions.last,
            oldest_bar=sessions.oldest_bar,
            sparse_sessions=tuple(
                one for one in sessions.sparse if may_be_sparse(series.instrument, one[1])
            ),
            unconfirmed_basis=unconfirmed,
            unconfirmed_bars=unconfirmed_bars,
        )


class _Counted:
    """The rows of a series' files with their flat bars, which are counted where they never were.

    ``has_read``: whether bars were read for it.
    """

    def __init__(self, store: BarStore, known: _Rows) -> None:
        self._store, self._known = store, known
        self.has_read = False

    def __call__(self) -> list[IndexedFile]:
        """Return the rows."""
        self.has_read = not all(row.flat for row in self._known.values())
        root, files = self._store.layout.root, self._store.files
        return [files.with_flat(root / name, row) for name, row in self._known.items()]


class _SeriesFolders:
    """The bar files in the folders of series; each folder above them is listed once."""

    def __init__(self, layout: StoreLayout) -> None:
        self._bars = str(layout.bars)
        # Of a linked folder of bars, each series checks where it leads.
        self._symbols = None if layout.bars.is_symlink() else _folders_in(self._bars)
        self._timeframes: dict[str, Mapping[str, bool] | None] = {}

    def stats(self, series: Series) -> _Stats:
        """Return the files of a series; none where it has no folder.

        Raises:
            StoreError: its folder, or one above it, cannot be used or read, or an entry with the
                name of a bar file is none.
        """
        symbol, name = f"symbol={series.symbol}", f"timeframe={series.timeframe}"
        if symbol not in self._timeframes:
            self._timeframes[symbol] = self._timeframes_of(symbol)
        listed = self._timeframes[symbol]
        if listed is not None and name not in listed:
            return ()
        folder = f"{self._bars}/{symbol}/{name}"
        if listed is None or not listed[name]:
            require_series_folder(Path(folder))
        return tuple(sorted(_files_in(folder)))

    def _timeframes_of(self, symbol: str) -> Mapping[str, bool] | None:
        """Return the listing of a symbol's folder; None where each series is to check it."""
        path = f"{self._bars}/{symbol}"
        if self._symbols is None:
            return None
        if symbol not in self._symbols:
            return None if os.path.lexists(path) else {}
        return _folders_in(path) if self._symbols[symbol] else None


def _folders_in(folder: str) -> Mapping[str, bool] | None:
    """Return for each name in a folder whether it is a folder and no link to one.

    None where the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
    except OSError:
        return None


def _files_in(folder: str) -> Iterator[tuple[str, int, int, int]]:
    """Yield what tells versions of files apart; a file that is removed meanwhile is left out."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.endswith(".parquet"):
                    try:
                        info = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if not stat.S_ISREG(info.st_mode):
                        raise not_a_bar_file(Path(folder, name))
                    yield name, info.st_size, info.st_mtime_ns, info.st_ino
    except FileNotFoundError:
        return
    except OSError:
        with disk_errors(Path(folder)):
            raise


def _may_be_unconfirmed(row: IndexedFile) -> bool:
    """Return whether bars of a file may be on an unconfirmed basis, without decoding its basis."""
    return _UNCONFIRMED_TEXT in row.basis_json


def _coverage(texts: Sequence[str]) -> tuple[IntervalSet, tuple[Emptiness, ...]]:
    """Join the coverage of a series' files; no two of them cover the same interval."""
    bounds: list[list[int]] = []
    proofs: list[Emptiness] = []
    for text, fields in zip(texts, json.loads(f"[{','.join(texts)}]"), strict=True):
        bounds += fields["bars"]
        if fields["empty"] or "proofs" in fields:
            proofs += coverage_from_json(text).empty
    starts, ends = np.array(bounds, dtype=np.int64).reshape(-1, 2).T
    return IntervalSet.from_arrays(starts, ends), tuple(proofs)


def _sessions_in(
    spans: SessionGrid,
    calendar: SessionCalendar,
    covered: IntervalSet,
    rows: Iterable[IndexedFile],
    *,
    counted: Callable[[], Iterable[IndexedFile]],
) -> _Sessions:
    """Return what the sessions in files show; ``counted`` returns the rows with flat bars."""
    days, counts = _joined(row.session_arrays for row in rows)
    held = days[counts > 0]
    if not len(held):
        return _Sessions(None, None, None, ())
    first, last = held.min(), held.max()

    def traded() -> np.ndarray:
        return _joined(row.traded_arrays for row in counted())[1]

    return _Sessions(
        first.item(),
        last.item(),
        _start_of(spans, calendar, first),
        _sparse_sessions(spans, covered, days, counts, traded=traded),
    )


def _joined(
    arrays: Iterable[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Join the session dates, and the bars of each, of several files."""
    parts = list(arrays)
    if not parts:
        return np.empty(0, "datetime64[D]"), np.empty(0, np.int64)
    return np.concatenate([days for days, _ in parts]), np.concatenate([n for _, n in parts])


def _start_of(spans: SessionGrid, calendar: SessionCalendar, day: np.datetime64) -> int:
    """Return where the span of a session date begins, or the date if no span is expected on it."""
    (position,) = spans.positions_of(np.array([day]))
    if position >= 0:
        return int(spans.starts[position])
    if spans.trading is None:
        return int(day.astype("datetime64[us]").astype(np.int64))
    return micros(calendar.day_starts_at(date.fromisoformat(str(day))))


def _sparse_sessions(
    spans: SessionGrid,
    covered: IntervalSet,
    days: np.ndarray,
    counts: np.ndarray,
    *,
    traded: Callable[[], np.ndarray],
) -> tuple[tuple[int, date, int], ...]:
    if spans.timeframe is Timeframe.W1 or not len(days):
        return ()
    low = max(int(np.searchsorted(spans.days, days.min())), 0)
    high = int(np.searchsorted(spans.days, days.max(), side="right"))
    part = spans.slice(low, high)
    have = have_bars(part, days, counts)
    if np.array_equal(have, part.bars):
        return ()
    traded_bars = have_bars(part, days, traded())
    positions = sparse_indexes(
        part.bars, have, covered.covers_each(part.starts, part.ends), traded_bars
    )
    return tuple(
        (int(position) + low, part.days[position].item(), int(have[position]))
        for position in positions
    )
