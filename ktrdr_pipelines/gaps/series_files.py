"""Read what the files of many series hold; a file is opened only if the file index lacks it.

Not here: what is missing (``gaps.index``), reading and checking a file (``store.bars.bar_store``).
"""

import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path

import numpy as np

from ktrdr_pipelines.domain.bars import micros
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
from ktrdr_pipelines.store.files import disk_errors, not_a_bar_file, require_series_folder
from ktrdr_pipelines.store.ledger.file_index import Fingerprint, IndexedFile
from ktrdr_pipelines.store.ledger.ledger import series_key

_MANY = 32
"""Number of series from which one read of the whole file index is cheaper than one read each."""

_Prints = tuple[tuple[str, Fingerprint], ...]
_Rows = Mapping[str, IndexedFile]


@dataclass(frozen=True, slots=True, eq=False)
class SeriesFiles:
    """What the files of one series hold.

    ``prints`` are the fingerprints of the files by name relative to the data folder; ``grid`` are
    the sessions of ``calendar``; ``bars`` is what is covered with bars; ``oldest_bar`` the
    timestamp, in microseconds since 1970 UTC, at which the oldest span begins that has a bar;
    ``sparse_sessions`` are index in the calendar, session date and bars of the sessions that have
    far fewer bars than their neighbours. ``unconfirmed_bars`` are held on an unconfirmed price
    basis, in ``unconfirmed_basis``.
    """

    prints: _Prints
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


class AllSeriesFiles:
    """Reads what many series hold, and keeps the result while their files are unchanged.

    Args:
        store: files and ledger.
        kept: earlier results by series key, updated in place.
    """

    def __init__(self, store: BarStore, kept: dict[str, SeriesFiles]) -> None:
        self._store = store
        self._kept = kept

    def of(
        self, wanted: Mapping[Series, SessionCalendar]
    ) -> dict[Series, SeriesFiles | StoreError]:
        """Return what each series holds, or the error that prevents reading it."""
        found: dict[Series, SeriesFiles | StoreError] = {}
        changed: dict[Series, _Prints] = {}
        for series, calendar in wanted.items():
            try:
                folder = self._store.layout.series_folder(series.symbol, series.timeframe)
                require_series_folder(folder)
                base = self._store.layout.relative(folder)
                prints = tuple(sorted((f"{base}/{name}", one) for name, one in _files_in(folder)))
            except StoreError as error:
                found[series] = error
                continue
            kept = self._kept.get(series_key(series))
            if kept is not None and kept.prints == prints and kept.calendar is calendar:
                found[series] = kept
            else:
                changed[series] = prints
        filled = [series_key(series) for series, prints in changed.items() if prints]
        rows: Mapping[str, _Rows]
        if len(filled) >= _MANY:
            rows = self._store.ledger.files.all()
        else:
            rows = {key: self._store.ledger.files.of(key) for key in filled}
        for series, prints in changed.items():
            key = series_key(series)
            found[series] = self._read(series, wanted[series], prints, rows.get(key, {}))
        return found

    def _read(
        self, series: Series, calendar: SessionCalendar, prints: _Prints, rows: _Rows
    ) -> SeriesFiles | StoreError:
        try:
            if any(name not in rows or rows[name].fingerprint != taken for name, taken in prints):
                files = self._store.files.of(series)
                rows = {self._store.layout.relative(path): row for path, row in files.items()}
                prints = tuple(sorted((name, row.fingerprint) for name, row in rows.items()))
            series_files = self._series_files(series, calendar, prints, rows)
        except StoreError as error:
            self._kept.pop(series_key(series), None)
            return error
        self._kept[series_key(series)] = series_files
        return series_files

    def _series_files(
        self, series: Series, calendar: SessionCalendar, prints: _Prints, known: _Rows
    ) -> SeriesFiles:
        rows = [known[name] for name, _ in prints]
        covered, proofs = _coverage(rows)
        days, counts = _sessions(row.session_arrays for row in rows)
        spans = session_grid(calendar, series.timeframe)
        held = days[counts > 0]
        unconfirmed, unconfirmed_bars = IntervalSet(), 0
        if any(row.basis.unconfirmed for row in rows):
            unconfirmed, unconfirmed_bars = self._store.unconfirmed(series.symbol, series.timeframe)

        def traded() -> np.ndarray:
            root = self._store.layout.root
            counted = (self._store.files.with_flat(root / name, known[name]) for name, _ in prints)
            return _sessions(row.traded_arrays for row in counted)[1]

        return SeriesFiles(
            prints=prints,
            calendar=calendar,
            grid=spans,
            bars=covered,
            proofs=proofs,
            rows=sum(row.rows for row in rows),
            contract_id=rows[0].identity.contract_id if rows else None,
            first=held.min().item() if len(held) else None,
            last=held.max().item() if len(held) else None,
            oldest_bar=_start_of(spans, calendar, held.min()) if len(held) else None,
            sparse_sessions=tuple(
                one
                for one in _sparse_sessions(spans, covered, days, counts, traded=traded)
                if may_be_sparse(series.instrument, one[1])
            ),
            unconfirmed_basis=unconfirmed,
            unconfirmed_bars=unconfirmed_bars,
        )


def _files_in(folder: Path) -> Iterator[tuple[str, Fingerprint]]:
    """Yield names and fingerprints; a file that is removed meanwhile is left out."""
    with disk_errors(folder), suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".parquet"):
                with suppress(FileNotFoundError):
                    info = entry.stat(follow_symlinks=False)
                    if not stat.S_ISREG(info.st_mode):
                        raise not_a_bar_file(folder / entry.name)
                    yield entry.name, Fingerprint(info.st_size, info.st_mtime_ns, info.st_ino)


def _coverage(rows: Iterable[IndexedFile]) -> tuple[IntervalSet, tuple[Emptiness, ...]]:
    """Join the coverage of a series' files; no two of them cover the same interval."""
    bounds: list[list[int]] = []
    proofs: list[Emptiness] = []
    for row in rows:
        fields = json.loads(row.coverage_json)
        bounds += fields["bars"]
        if fields["empty"] or "proofs" in fields:
            proofs += row.coverage.empty
    starts, ends = np.array(bounds, dtype=np.int64).reshape(-1, 2).T
    return IntervalSet.from_arrays(starts, ends), tuple(proofs)


def _sessions(
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
