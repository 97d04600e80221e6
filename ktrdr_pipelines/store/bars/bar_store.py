"""The bar store: reads, merges and saves the bars of every series. No other code writes bars.

Bars and coverage are cut at the same moments, so no file claims what lies in another, and they
change together: each file is true by itself.

Not here: which file holds which bars, and what each file holds now (``store.bars.filing``), the
format of one file (``store.bars.bar_file``).
"""

from collections import Counter
from collections.abc import Callable, Collection, Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from functools import partial, reduce
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.domain.adjustments import Adjustment, AdjustmentKind, on_todays_basis
from ktrdr_pipelines.domain.bars import (
    BAR_SCHEMA,
    STORED_SCHEMA,
    UNCONFIRMED,
    bars_between,
    basis_of,
    empty_bars,
    is_untraded,
    merge_bars,
    micros,
    rows_per_session,
    sorted_unique,
    timestamps,
    unconfirmed_where,
    with_basis,
)
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between, midnight, monday_of
from ktrdr_pipelines.domain.coverage import REFUTABLE, VOIDABLE, Coverage, Emptiness, ProofKind
from ktrdr_pipelines.domain.instruments import Identity, Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import ForeignIdentityError
from ktrdr_pipelines.store.bars.bar_file import read_bars, read_footer
from ktrdr_pipelines.store.bars.filing import BarFiles, FilePart, file_intervals, filed_parts
from ktrdr_pipelines.store.bars.footer import FileBasis, Footer, Presumed, presuming
from ktrdr_pipelines.store.bars.price_bases import PriceBases
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.file_index import IndexedFile
from ktrdr_pipelines.store.ledger.ledger import Ledger, series_key
from ktrdr_pipelines.store.maintenance.rename_journal import saving, saving_bars

__all__ = ["BarStore", "Footer", "SaveResult", "read_bars", "read_footer"]


_DAY = timedelta(days=1)

_MOST_KNOWN = 64
"""Series whose coverage is kept: more than a run loads at once."""


@dataclass(frozen=True, slots=True)
class SaveResult:
    """What one save changed: the number of new and of changed bars, and the files rewritten."""

    added: int
    revised: int
    files: tuple[Path, ...]


class BarStore:
    """Bars, coverage and identity of every series of a store.

    Args:
        layout: where the files lie.
        ledger: indexes them and keeps the old values of revised bars.
        clock: returns the time at which a bar is replaced or damage is found.
    """

    def __init__(
        self, layout: StoreLayout, ledger: Ledger, *, clock: Callable[[], datetime] = system_now
    ) -> None:
        self.layout = layout
        self.ledger = ledger
        self.files = BarFiles(layout, ledger, clock)
        self.bases = PriceBases(layout, ledger)
        self._clock = clock
        self._coverages: dict[Series, tuple[Hashable, Coverage]] = {}

    def __repr__(self) -> str:
        return f"BarStore({self.layout.root})"

    def save(
        self,
        series: Series,
        identity: Identity,
        bars: pa.Table,
        coverage: Coverage,
        *,
        presumed: Sequence[Presumed] = (),
    ) -> SaveResult:
        """Merge bars and coverage into the files of a series; newer bars win.

        Returns once everything survives a power cut. A crash between two files leaves both true.

        Args:
            series: the series.
            identity: of its bars.
            bars: bars as returned. Without a column ``basis`` they are on the newest one.
            coverage: what is covered with them.
            presumed: those of the bars whose basis was not shown by a comparison. If the symbol
                was re-based before they were requested, as is known by now, their basis is
                unconfirmed and they cover nothing. Such bars never replace others.

        Raises:
            ForeignIdentityError: the series or the store holds another instrument or origin.
            CorruptFileError: a file of the series cannot be read.
            DiskError: the system refused; the files are unchanged.
            StoreReplacedError: the store is not the one that was opened.
            StoreError: another process kept the series locked, or its symbol is being moved, or
                has left the universe and has no bars.
        """
        _refuse_other(series, identity)
        with saving_bars(self.layout, series.symbol, series.timeframe, identity.origin):
            adjustments = self.bases.all_of(series.symbol)
            ordered = with_basis(sorted_unique(bars), len(adjustments))
            self.bases.require(series.symbol, int(basis_of(ordered).max(initial=0)), adjustments)
            doubtful = _doubtful(presumed, ordered, adjustments)
            keys = timestamps(ordered)
            ordered = unconfirmed_where(ordered, doubtful.covers_each(keys, keys + 1))
            coverage = replace(coverage, bars=coverage.bars - doubtful)
            presumed = [one for one in presumed if not doubtful.clip(one.interval)]
            files = self.files.of(series)
            for path, row in files.items():
                _refuse_foreign(path, row.identity, identity)
            held = _joined(files).bars
            self._keep_fresh(series, held)
            parts = filed_parts(series, ordered, coverage)
            saved = [self._save_part(series, identity, part, presumed=presumed) for part in parts]
            if not held:
                self._keep_fresh(series, coverage.bars)
        self._retract_refuted(series, ordered)
        return SaveResult(
            added=sum(result.added for result in saved),
            revised=sum(result.revised for result in saved),
            files=tuple(path for result in saved for path in result.files),
        )

    def acknowledge_empty(self, series: Series, identity: Identity, proof: Emptiness) -> bool:
        """Write a user's confirmation that an interval has no bars.

        It replaces any coverage of the interval.

        Returns: whether it was written; False where the interval has bars by now.

        Raises: as ``save``.
        """
        with saving(self.layout, series.symbol, series.timeframe, identity.origin):
            for path, row in self.files.of(series).items():
                _refuse_foreign(path, row.identity, identity)
            if self.rows(series, proof.interval):
                return False
            for part in filed_parts(series, empty_bars(), Coverage(empty=(proof,))):
                self._save_part(series, identity, part, uncovered=proof.interval)
        return True

    def retract_proofs(
        self,
        symbol: str,
        timeframe: Timeframe,
        taken: IntervalSet,
        kinds: Container[ProofKind],
    ) -> IntervalSet:
        """Remove confirmed empty ranges of some kinds within intervals of bar timestamps.

        The ranges they explained are missing again. Bars and their coverage do not change.

        Returns: the intervals of the removed proofs.
        """
        found = IntervalSet()
        if not taken or not self._may_have_proofs(symbol, timeframe, kinds):
            return found
        with saving(self.layout, symbol, timeframe):
            for path, row in self.files.of_symbol(symbol, timeframe).items():
                coverage = row.coverage.without_proofs(taken, kinds)
                if coverage == row.coverage:
                    continue
                before = IntervalSet(proof.interval for proof in row.coverage.empty)
                found |= before - IntervalSet(proof.interval for proof in coverage.empty)
                held = self.files.read(path, row)
                footer = replace(held.footer, coverage=coverage)
                self.files.write(path, held.bars, footer, is_as_written=held.is_as_written)
        return found

    def retract_voidable(
        self, symbol: str, timeframe: Timeframe, intervals: Sequence[Interval]
    ) -> IntervalSet:
        """Remove proofs that rest on responses without bars, for intervals of real time."""
        taken = IntervalSet(_whole_bars(timeframe, one) for one in intervals)
        return self.retract_proofs(symbol, timeframe, taken, VOIDABLE)

    def traded_days(self, series: Series, days: Collection[date]) -> set[date]:
        """Return those of the given session dates that have bars with volume.

        Gateways fill quiet time with flat bars without volume. A weekly bar has its own date.
        """
        held = self.rows_per_session(series).keys() & set(days)
        if not held:
            return held
        bars = _traded(self.read_raw(series, _weeks_of(series, held)))
        return held & set(pc.unique(bars["session_date"]).to_pylist())

    def _may_have_proofs(
        self, symbol: str, timeframe: Timeframe, kinds: Container[ProofKind]
    ) -> bool:
        """Return whether files have proofs of some kinds, or are not in the ledger and may have."""
        rows = self.files.recorded(symbol, timeframe)
        if any(proof.kind in kinds for row in rows.values() for proof in row.coverage.empty):
            return True
        paths = self.layout.bar_files(symbol, timeframe)
        return any(self.layout.relative(path) not in rows for path in paths)

    def _retract_refuted(self, series: Series, bars: pa.Table) -> None:
        """Remove proofs of other timeframes that bars of this one refute.

        A bar without volume refutes nothing: gateways fill quiet time with flat bars.
        """
        others = [
            timeframe
            for timeframe in self.layout.timeframes_of(series.symbol)
            if timeframe is not series.timeframe
            and self._may_have_proofs(series.symbol, timeframe, REFUTABLE)
        ]
        if others and (days := pc.unique(_traded(bars)["session_date"]).to_pylist()):
            for timeframe in others:
                other = Series(series.instrument, timeframe)
                refuted = _refuted(series, days, other, self.rows_per_session(other).keys())
                self.retract_proofs(series.symbol, timeframe, refuted, REFUTABLE)

    def coverage(self, series: Series) -> Coverage:
        """Return the coverage of a series."""
        return _joined(self.files.of(series))

    def known_coverage(self, series: Series) -> Coverage:
        """Return the coverage of a series from memory, while none of its files has changed.

        For what a run needs with every response. The ledger is not read, so that its damage shows
        elsewhere.

        Raises: as ``coverage``, when a file has changed.
        """
        version = self.files.version(series.symbol, series.timeframe)
        known = self._coverages.get(series)
        if known is not None and version is not None and known[0] == version:
            return known[1]
        found = self.coverage(series)
        if len(self._coverages) >= _MOST_KNOWN:
            self._coverages.clear()
        self._coverages[series] = version, found
        return found

    def coverage_of(self, symbol: str, timeframe: Timeframe) -> Coverage:
        """Return the coverage of a series that may have left the universe."""
        return _joined(self.files.of_symbol(symbol, timeframe))

    def identity(self, series: Series) -> Identity | None:
        """Return the identity of a series, or None where it has no files."""
        return next((row.identity for row in self.files.of(series).values()), None)

    def read(self, series: Series, interval: Interval | None = None) -> pa.Table:
        """Return bars on one price basis, today's, in the columns of ``BAR_SCHEMA``.

        Bars whose basis is unconfirmed are left out.

        Args:
            series: the series.
            interval: only bars with a timestamp in it; None for all.

        Raises:
            CorruptFileError: the adjustments of the symbol, or its bars, cannot be read.
            StoreError: adjustments of the symbol have been lost.
        """
        while True:
            # Read before the bars: what was presumed to be on an older basis is unconfirmed by the
            # time an adjustment is recorded. So bars read later are on these bases, or on one that
            # was added since.
            adjustments = self.bases.of(series.symbol)
            bars = self.read_raw(series, interval)
            is_newer = int(basis_of(bars).max(initial=0)) > len(adjustments)
            if is_newer and len(self.bases.of(series.symbol)) > len(adjustments):
                continue
            return self.bases.on_todays(series.symbol, bars, adjustments)

    def read_raw(self, series: Series, interval: Interval | None = None) -> pa.Table:
        """Return bars as stored, in the columns of ``STORED_SCHEMA``, sorted by timestamp."""
        files = self.files.of(series)
        paths = files if interval is None else self._existing_files(series, interval)
        tables = [self.files.bars(path, files.get(path), interval) for path in paths]
        return pa.concat_tables([STORED_SCHEMA.empty_table(), *tables])

    def rows(self, series: Series, interval: Interval | None = None) -> int:
        """Return the number of bars, all or those with a timestamp in ``interval``.

        Files that lie wholly in the interval are counted without opening them.
        """
        files = self.files.of(series)
        if interval is None:
            return sum(row.rows for row in files.values())
        return sum(
            row.rows if interval.covers(part) else self.files.count(path, row, interval)
            for path, part in self._existing_files(series, interval).items()
            if (row := files.get(path)) is not None
        )

    def bounds(self, symbol: str, timeframe: Timeframe) -> tuple[datetime, datetime, int] | None:
        """Return the timestamps of the first and the last bar held, and the number of bars.

        Of a series that may have left the universe; None where it has no bar. Only the timestamps
        of two files are read.

        Raises:
            CorruptFileError: a file of the series cannot be read.
        """
        held = [one for one in self.files.of_symbol(symbol, timeframe).items() if one[1].rows]
        if not held:
            return None
        ends = [self.files.bounds(*one) for one in (held[0], held[-1])]
        return ends[0][0], ends[1][1], sum(row.rows for _, row in held)

    def rows_per_session(self, series: Series) -> dict[date, int]:
        """Return the number of bars of each session date, oldest first."""
        total: Counter[date] = Counter()
        for row in self.files.of(series).values():
            total.update(row.rows_per_session)
        return dict(sorted(total.items()))

    def session_arrays(self, series: Series) -> tuple[np.ndarray, np.ndarray]:
        """Return the session dates (``datetime64[D]``), oldest first, and the bars of each."""
        parts = [row.session_arrays for row in self.files.of(series).values()]
        if not parts:
            return np.empty(0, "datetime64[D]"), np.empty(0, np.int64)
        days, position = np.unique(np.concatenate([one for one, _ in parts]), return_inverse=True)
        rows = np.zeros(len(days), np.int64)
        np.add.at(rows, position, np.concatenate([one for _, one in parts]))
        return days, rows

    def unconfirmed(self, symbol: str, timeframe: Timeframe) -> tuple[IntervalSet, int]:
        """Return where bars on an unconfirmed basis lie, by timestamp, and how many they are."""
        found, count = IntervalSet(), 0
        for path, row in self.files.of_symbol(symbol, timeframe).items():
            if unconfirmed := row.basis.unconfirmed:
                found |= unconfirmed
                bars = self.files.bars(path, row)
                count += int(np.count_nonzero(basis_of(bars) == UNCONFIRMED))
        return found, count

    def traded_per_session(self, series: Series) -> dict[date, int]:
        """Return the number of bars that are not flat by session date; 0 where all are flat.

        Flat bars (``domain.bars.is_flat``) are counted once for each version of a file.
        """
        total: Counter[date] = Counter()
        for path, row in self.files.of(series).items():
            days, traded = self.files.with_flat(path, row).traded_arrays
            total.update(dict(zip(days.astype(object).tolist(), traded.tolist(), strict=True)))
        return dict(sorted(total.items()))

    def series_on_disk(self) -> list[tuple[str, Timeframe]]:
        """Return symbol and timeframe of every series that has a file."""
        return [key for key in self.layout.series_folders() if self.layout.has_bar_files(*key)]

    def _keep_fresh(self, series: Series, covered: IntervalSet) -> None:
        """Record, once, where the newest bar was before older parts were loaded."""
        if covered.bounds is not None:
            self.ledger.kept_fresh.record(series_key(series), covered.bounds.end)

    def _save_part(
        self,
        series: Series,
        identity: Identity,
        part: FilePart,
        *,
        uncovered: Interval | None = None,
        presumed: Sequence[Presumed] = (),
    ) -> SaveResult:
        """Merge into one file; coverage with bars is first removed from ``uncovered``."""
        folder = self.layout.series_folder(series.symbol, series.timeframe)
        path = folder / f"{part.stem}.parquet"
        old, old_bars = self.files.read_to_merge(series, path)
        if old is not None:
            _refuse_foreign(path, old.identity, identity)
        adjustments = self.bases.of(series.symbol)
        new = with_basis(part.bars, len(adjustments))
        is_worse = basis_of(new) == UNCONFIRMED
        if is_worse.any():
            is_known = basis_of(old_bars) != UNCONFIRMED
            is_worse &= np.isin(timestamps(new), timestamps(old_bars)[is_known])
            new = new.filter(pa.array(~is_worse))
        merge = merge_bars(old_bars, new, partial(_on_one_basis, adjustments=adjustments))
        before = old.coverage if old else Coverage()
        if uncovered is not None:
            before = replace(before, bars=before.bars - IntervalSet([uncovered]))
        coverage = before.merged(part.coverage)
        is_same = old is not None and coverage == old.coverage
        if is_same and not (merge.added or merge.revised.num_rows or merge.rebased):
            return SaveResult(0, 0, ())
        if merge.revised.num_rows:
            self.ledger.revisions.record(series_key(series), merge.revised, self._clock())
        check = self.ledger.basis_checks.of(series.symbol)
        keys = timestamps(part.bars)
        basis = presuming(
            old.basis if old else FileBasis(),
            (one for one in presumed if _has_any(keys, one.interval)),
            timestamps(merge.bars),
            confirmed_at=check.confirmed_at if check.basis == len(adjustments) else None,
        )
        footer = Footer(
            identity,
            coverage,
            merge.bars.num_rows,
            rows_per_session(merge.bars),
            basis=basis,
        )
        self.files.write(path, merge.bars, footer, with_flat=True)
        return SaveResult(merge.added, merge.revised.num_rows, (path,))

    def _existing_files(self, series: Series, interval: Interval) -> dict[Path, Interval]:
        """Return the existing files that overlap an interval, and the interval of each."""
        folder = self.layout.series_folder(series.symbol, series.timeframe)
        parts = {
            folder / f"{stem}.parquet": part for stem, part in file_intervals(series, interval)
        }
        return {path: part for path, part in parts.items() if path.exists()}


def _timestamps_between(series: Series, first: date, end: date) -> Interval:
    """Return the interval of bar timestamps of session dates ``[first, end)``."""
    calendar = calendar_named(series.instrument.calendar)
    return interval_between(calendar, series.timeframe, first, end)


def _weeks_of(series: Series, days: Collection[date]) -> Interval:
    """Return an interval of bar timestamps that holds the bars of session dates and weeks."""
    return _timestamps_between(series, monday_of(min(days)), max(days) + 7 * _DAY)


def _refuted(
    series: Series, days: Sequence[date], other: Series, held: Collection[date]
) -> IntervalSet:
    """Return the intervals of another timeframe that bars of some session dates refute.

    The bars do not say at which time of day they traded, so they refute nothing in a session that
    has bars in the other timeframe too (``held``). A weekly bar refutes only a whole empty week.
    """
    if Timeframe.W1 not in {series.timeframe, other.timeframe}:
        return IntervalSet(
            _timestamps_between(other, day, day + _DAY) for day in days if day not in held
        )
    weeks = sorted({monday_of(day) for day in days})
    if other.timeframe is not Timeframe.W1:
        with_bars = {monday_of(day) for day in held}
        weeks = [monday for monday in weeks if monday not in with_bars]
    return IntervalSet(_timestamps_between(other, monday, monday + 7 * _DAY) for monday in weeks)


def _whole_bars(timeframe: Timeframe, interval: Interval) -> Interval:
    """Return the bar timestamps of an interval of real time, extended to whole days or weeks.

    The day of a session overlaps the UTC day of its date in every zone. A part of a day or week
    that lost its proof could never be proved again.
    """
    if timeframe.is_intraday:
        return interval
    first, last = interval.start.date(), (interval.end - timedelta(microseconds=1)).date()
    if timeframe is Timeframe.W1:
        first, last = monday_of(first), monday_of(last)
    return Interval(midnight(first), midnight(last) + timeframe.length)


def _traded(bars: pa.Table) -> pa.Table:
    """Return the bars without those that state that nothing was traded."""
    return bars.filter(pa.array(~is_untraded(bars)))


def _on_one_basis(bars: pa.Table, adjustments: Sequence[Adjustment]) -> pa.Table:
    """Return bars on today's basis; an unconfirmed one counts as the oldest."""
    return on_todays_basis(
        bars.select(BAR_SCHEMA.names), np.maximum(basis_of(bars), 0), adjustments
    )


def _doubtful(
    presumed: Iterable[Presumed], bars: pa.Table, adjustments: Sequence[Adjustment]
) -> IntervalSet:
    """Return what is presumed of bars although it may not be so, as is known by now."""
    if not adjustments:
        return IntervalSet()
    return IntervalSet(one.interval for one in presumed if _is_doubtful(one, bars, adjustments))


def _is_doubtful(one: Presumed, bars: pa.Table, adjustments: Sequence[Adjustment]) -> bool:
    """Return whether presumed bars may have been requested after a re-basing they do not state."""
    basis = basis_of(bars_between(bars, one.interval.start, one.interval.end))
    least = int(basis.min(initial=len(adjustments)))
    return any(
        later.kind is AdjustmentKind.SPLIT and one.fetched_at > later.old_until
        for later in adjustments[max(least, 0) :]
    )


def _has_any(keys: np.ndarray, interval: Interval) -> bool:
    """Return whether any of ascending timestamps lies in an interval."""
    low, high = keys.searchsorted((micros(interval.start), micros(interval.end)))
    return bool(low < high)


def _joined(files: Mapping[Path, IndexedFile]) -> Coverage:
    return reduce(Coverage.merged, (row.coverage for row in files.values()), Coverage())


def _refuse_other(series: Series, identity: Identity) -> None:
    if (identity.symbol, identity.timeframe) != (series.symbol, series.timeframe):
        raise ForeignIdentityError(f"cannot save {series}", reason=f"bars are of {identity}")


def _refuse_foreign(path: Path, held: Identity, offered: Identity) -> None:
    if held != offered:
        raise ForeignIdentityError(
            f"cannot save bars of {offered}",
            reason=f"{path} holds {held}",
            hint="Give the other instrument its own symbol in universe.yaml, or retire this one "
            "with `ktrdr universe retire`",
        )
