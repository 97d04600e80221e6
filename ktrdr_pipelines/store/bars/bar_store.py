"""The bar store: reads, merges and saves the bars of every series. No other code writes bars.

1m and 5m have one file a year, other timeframes one file for all. A year begins when the session
day of 1 January begins, so the evening of 31 December in New York is filed with the FX session it
opens. Bars and coverage are cut at the same moments, so no file claims what lies in another, and
they change together: each file is true by itself.

Not here: the format of one file (``store.bars.bar_file``), what the ledger records of files
(``store.ledger.file_index``).
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import reduce
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.domain.bars import (
    BAR_SCHEMA,
    bars_between,
    empty_bars,
    is_flat,
    is_untraded,
    merge_bars,
    moment,
    rows_per_session,
    sorted_unique,
    timestamps,
)
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import (
    SessionCalendar,
    interval_between,
    midnight,
    monday_of,
)
from ktrdr_pipelines.domain.coverage import REFUTABLE, VOIDABLE, Coverage, Emptiness, ProofKind
from ktrdr_pipelines.domain.instruments import Identity, Origin, Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import CorruptFileError, ForeignIdentityError
from ktrdr_pipelines.store.bars.bar_file import (
    Known,
    corrupt,
    count_bars_between,
    has_true_digest,
    is_as_written,
    may_have_flat,
    read_bars,
    read_file,
    read_footer,
    read_keys,
    write_file,
)
from ktrdr_pipelines.store.bars.footer import Footer
from ktrdr_pipelines.store.bars.integrity import less_distrusted, true_footer
from ktrdr_pipelines.store.files import locked
from ktrdr_pipelines.store.layout import StoreLayout, pin_origin, store_origin
from ktrdr_pipelines.store.ledger.file_index import (
    FileCheck,
    IndexedFile,
    encode_sessions,
    fingerprint,
    indexed_file,
    known_by,
)
from ktrdr_pipelines.store.ledger.ledger import Ledger, series_key
from ktrdr_pipelines.store.maintenance.rename_journal import refuse_moving, refuse_unnamed

__all__ = ["BarStore", "Footer", "SaveResult", "read_bars", "read_footer"]


ALL = "all"
"""Stem of the only file of a series that is not filed by year."""

EVER = Interval(datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC))
"""The interval of a file that holds all bars of its series."""

_BAR = timedelta(microseconds=1)
_DAY = timedelta(days=1)


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


def prevailing(
    held: Iterable[tuple[Identity, int]], origin: Origin | None, contract_id: int | None
) -> Identity | None:
    """Return the identity of a series whose files disagree, or None where no file counts.

    Args:
        held: the identity of each file, and its number of bars.
        origin: that of the store; files of another origin do not count.
        contract_id: the contract pinned to the symbol, whose identity prevails; else the identity
            with the most bars does.
    """
    bars: Counter[Identity] = Counter()
    for identity, rows in held:
        if origin in {None, identity.origin}:
            bars[identity] += rows + 1
    return max(bars, key=lambda one: (one.contract_id == contract_id, bars[one]), default=None)


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
        self._clock = clock

    def __repr__(self) -> str:
        return f"BarStore({self.layout.root})"

    def save(
        self, series: Series, identity: Identity, bars: pa.Table, coverage: Coverage
    ) -> SaveResult:
        """Merge bars and coverage into the files of a series; newer bars win.

        Returns once everything survives a power cut. A crash between two files leaves both true.

        Raises:
            ForeignIdentityError: the series or the store holds another instrument, origin, epoch.
            CorruptFileError: a file of the series cannot be read.
            DiskError: the system refused; the files are unchanged.
            StoreReplacedError: the store is not the one that was opened.
            StoreError: another process kept the series locked, or its symbol is being moved, or
                has left the universe and has no bars.
        """
        if (identity.symbol, identity.timeframe) != (series.symbol, series.timeframe):
            raise ForeignIdentityError(f"cannot save {series}", reason=f"bars are of {identity}")
        self.layout.require_same()
        pin_origin(self.layout, identity.origin)
        ordered = sorted_unique(bars.select(BAR_SCHEMA.names).cast(BAR_SCHEMA))
        with locked(self.layout.series_lock(series.symbol, series.timeframe), str(series)):
            refuse_moving(self.layout, series.symbol)
            refuse_unnamed(self.layout, series.symbol)
            files = self.files_of(series)
            for path, row in files.items():
                _refuse_foreign(path, row.identity, identity)
            held = _joined(files).bars
            self._keep_fresh(series, held)
            parts = filed_parts(series, ordered, coverage)
            saved = [self._save_part(series, identity, part) for part in parts]
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
        self.layout.require_same()
        pin_origin(self.layout, identity.origin)
        with locked(self.layout.series_lock(series.symbol, series.timeframe), str(series)):
            refuse_moving(self.layout, series.symbol)
            refuse_unnamed(self.layout, series.symbol)
            for path, row in self.files_of(series).items():
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

        What they excused is missing again. Bars and their coverage do not change.

        Returns: the intervals of the removed proofs.
        """
        found = IntervalSet()
        key = f"{symbol}|{timeframe}"
        if not taken or not self._may_have_proofs(symbol, timeframe, kinds):
            return found
        self.layout.require_same()
        with locked(self.layout.series_lock(symbol, timeframe), key):
            refuse_moving(self.layout, symbol)
            for path, row in self.files(symbol, timeframe).items():
                coverage = row.coverage.without_proofs(taken, kinds)
                if coverage == row.coverage:
                    continue
                before = IntervalSet(proof.interval for proof in row.coverage.empty)
                found |= before - IntervalSet(proof.interval for proof in coverage.empty)
                said, bars = read_file(path, known_by(row))
                footer = replace(true_footer(path, said, bars, None), coverage=coverage)
                is_ours = said.seal is not None or is_as_written(path)
                footer = write_file(
                    path,
                    bars,
                    footer,
                    is_as_written=is_ours,
                    before_renaming=self.layout.require_same,
                )
                written = indexed_file(fingerprint(path), footer)
                self.ledger.files.record(key, {self.layout.relative(path): written})
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
        calendar = calendar_named(series.instrument.calendar)
        around = interval_between(
            calendar, series.timeframe, monday_of(min(held)), max(held) + 7 * _DAY
        )
        bars = _traded(self.read(series, around))
        return held & set(pc.unique(bars["session_date"]).to_pylist())

    def _may_have_proofs(
        self, symbol: str, timeframe: Timeframe, kinds: Container[ProofKind]
    ) -> bool:
        """Return whether files have proofs of some kinds, or are not in the ledger and may have."""
        rows = self.ledger.files.of(f"{symbol}|{timeframe}")
        if any(proof.kind in kinds for row in rows.values() for proof in row.coverage.empty):
            return True
        paths = self.layout.bar_files(symbol, timeframe)
        return any(self.layout.relative(path) not in rows for path in paths)

    def _retract_refuted(self, series: Series, bars: pa.Table) -> None:
        """Remove proofs of other timeframes that bars of this one refute.

        A bar without volume refutes nothing: gateways fill quiet time with flat bars.
        """
        days = pc.unique(_traded(bars)["session_date"]).to_pylist()
        if not days:
            return
        for timeframe in self.layout.timeframes_of(series.symbol):
            other = Series(series.instrument, timeframe)
            if timeframe is series.timeframe:
                continue
            if self._may_have_proofs(series.symbol, timeframe, REFUTABLE):
                refuted = self._refuted(series, other, days)
                self.retract_proofs(series.symbol, timeframe, refuted, REFUTABLE)

    def _refuted(self, series: Series, other: Series, days: Sequence[date]) -> IntervalSet:
        """Return the intervals of another timeframe that bars of some session dates refute.

        The bars do not say at which time of day they traded, so they refute nothing in a session
        that has bars in the other timeframe too. A weekly bar refutes only a whole empty week.
        """
        calendar = calendar_named(series.instrument.calendar)
        held = set(self.rows_per_session(other))
        if Timeframe.W1 not in {series.timeframe, other.timeframe}:
            return IntervalSet(
                interval_between(calendar, other.timeframe, day, day + _DAY)
                for day in days
                if day not in held
            )
        weeks = {monday_of(day) for day in days}
        spans = [
            interval_between(calendar, other.timeframe, monday, monday + 7 * _DAY)
            for monday in sorted(weeks)
        ]
        if other.timeframe is Timeframe.W1:
            return IntervalSet(spans)
        return IntervalSet(
            span
            for monday, span in zip(sorted(weeks), spans, strict=True)
            if not held & {monday + position * _DAY for position in range(7)}
        )

    def coverage(self, series: Series) -> Coverage:
        """Return the coverage of a series."""
        return _joined(self.files_of(series))

    def coverage_of(self, symbol: str, timeframe: Timeframe) -> Coverage:
        """Return the coverage of a series that may have left the universe."""
        return _joined(self.files(symbol, timeframe))

    def identity(self, series: Series) -> Identity | None:
        """Return the identity of a series, or None where it has no files."""
        return next((row.identity for row in self.files_of(series).values()), None)

    def read(self, series: Series, interval: Interval | None = None) -> pa.Table:
        """Return bars sorted by timestamp, all or those with a timestamp in ``interval``."""
        files = self.files_of(series)
        tables = [empty_bars()]
        for path in files if interval is None else self._existing_files(series, interval):
            with self._recording_damage(path):
                bars = read_bars(path, known_by(files.get(path)))
            if interval is not None:
                bars = bars_between(bars, interval.start, interval.end)
            tables.append(bars)
        return pa.concat_tables(tables)

    def rows(self, series: Series, interval: Interval | None = None) -> int:
        """Return the number of bars, all or those with a timestamp in ``interval``.

        Files that lie wholly in the interval are counted without opening them.
        """
        files = self.files_of(series)
        if interval is None:
            return sum(row.rows for row in files.values())
        return sum(
            row.rows if interval.covers(part) else count_bars_between(path, interval, known_by(row))
            for path, part in self._existing_files(series, interval).items()
            if (row := files.get(path)) is not None
        )

    def rows_per_session(self, series: Series) -> dict[date, int]:
        """Return the number of bars of each session date, oldest first."""
        total: Counter[date] = Counter()
        for row in self.files_of(series).values():
            total.update(row.rows_per_session)
        return dict(sorted(total.items()))

    def traded_per_session(self, series: Series) -> dict[date, int]:
        """Return the number of bars that are not flat by session date; 0 where all are flat.

        Flat bars (``domain.bars.is_flat``) are counted once for each version of a file.
        """
        total: Counter[date] = Counter()
        for path, row in self.files_of(series).items():
            days, traded = self.with_flat(path, row).traded_arrays
            total.update(dict(zip(days.astype(object).tolist(), traded.tolist(), strict=True)))
        return dict(sorted(total.items()))

    def with_flat(self, path: Path, row: IndexedFile) -> IndexedFile:
        """Return a file's row with its flat bars; they are counted now if they never were."""
        if row.flat:
            return row
        flat: dict[date, int] = {}
        with self._recording_damage(path):
            if may_have_flat(path):
                bars = read_bars(path, known_by(row))
                flat = rows_per_session(bars.filter(pa.array(is_flat(bars))))
        self.ledger.files.record_flat(self.layout.relative(path), row.fingerprint, flat)
        return replace(row, flat=encode_sessions(flat))

    def series_on_disk(self) -> list[tuple[str, Timeframe]]:
        """Return symbol and timeframe of every series that has a file."""
        return [key for key in self.layout.series_folders() if self.layout.bar_files(*key)]

    def files_of(self, series: Series) -> Mapping[Path, IndexedFile]:
        """Return the row of each file of a series; files that changed are recounted.

        The result of a recount is recorded, so that each version of a file is counted once.

        Raises:
            CorruptFileError: a file cannot be read, does not belong where it lies, or holds
                another instrument than the series.
        """
        calendar = calendar_named(series.instrument.calendar)
        current, recounted = self._current_rows(series.symbol, series.timeframe, calendar)
        if recounted:
            self.ledger.files.record(series_key(series), recounted)
        return current

    def files(self, symbol: str, timeframe: Timeframe) -> Mapping[Path, IndexedFile]:
        """Return the row of each file of a series that may have left the universe.

        Nothing is recorded: without its calendar a recount may find less covered than there is.

        Raises: as ``files_of``.
        """
        return self._current_rows(symbol, timeframe, None)[0]

    def file(self, path: Path, symbol: str, timeframe: Timeframe) -> IndexedFile:
        """Return the row of one file of a series; as ``files``.

        Raises:
            CorruptFileError: the file cannot be read, or does not belong where it lies.
        """
        name, taken = self.layout.relative(path), fingerprint(path)
        row = self.ledger.files.of(f"{symbol}|{timeframe}").get(name)
        if row is not None and row.fingerprint == taken:
            return row
        return indexed_file(taken, self._recounted(path, symbol, timeframe, known_by(row)))

    def _current_rows(
        self, symbol: str, timeframe: Timeframe, calendar: SessionCalendar | None
    ) -> tuple[dict[Path, IndexedFile], dict[str, IndexedFile]]:
        """Return the row of each file, and by name the rows of files that had to be opened."""
        paths = self.layout.bar_files(symbol, timeframe)
        known = self.ledger.files.of(f"{symbol}|{timeframe}") if paths else {}
        current: dict[Path, IndexedFile] = {}
        recounted: dict[str, IndexedFile] = {}
        for path in paths:
            name, taken = self.layout.relative(path), fingerprint(path)
            row = known.get(name)
            if row is None or row.fingerprint != taken:
                footer = self._recounted(path, symbol, timeframe, known_by(row), calendar=calendar)
                row = indexed_file(taken, footer)
                recounted[name] = row
            current[path] = row
        if len({row.identity_json for row in current.values()}) > 1:
            usual = self.prevailing(symbol, current.values())
            for path, row in current.items():
                if row.identity != usual:
                    raise corrupt(path, f"it holds {row.identity}, the series holds {usual}")
        return current, recounted

    def prevailing(self, symbol: str, rows: Iterable[IndexedFile]) -> Identity | None:
        """Return the identity of a series whose files disagree."""
        origin = store_origin(self.layout)
        pinned = None if origin is None else self.ledger.contracts.of(symbol, origin)
        return prevailing(((row.identity, row.rows) for row in rows), origin, pinned)

    def _recounted(
        self,
        path: Path,
        symbol: str,
        timeframe: Timeframe,
        known: Known | None,
        *,
        calendar: SessionCalendar | None = None,
    ) -> Footer:
        """Return the true footer of a file whose fingerprint is not the recorded one.

        A file whose bytes match its digest is believed; of others all bars are read.
        """
        said, bars = read_keys(path, known)
        if said.seal is not None and not has_true_digest(path):
            said, bars = read_file(path, known)
        footer = true_footer(path, said, bars, calendar)
        origin = store_origin(self.layout)
        wrong = misfiled(path, footer, symbol, timeframe, origin=origin)
        if wrong or (wrong := replaced(footer, known)):
            raise corrupt(path, wrong)
        return footer

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
    ) -> SaveResult:
        """Merge into one file; coverage with bars is first removed from ``uncovered``."""
        folder = self.layout.series_folder(series.symbol, series.timeframe)
        path = folder / f"{part.stem}.parquet"
        old, old_bars = self._held(series, path)
        if old is not None:
            _refuse_foreign(path, old.identity, identity)
        merge = merge_bars(old_bars, part.bars)
        before = old.coverage if old else Coverage()
        if uncovered is not None:
            before = replace(before, bars=before.bars - IntervalSet([uncovered]))
        coverage = before.merged(part.coverage)
        if old and coverage == old.coverage and not merge.added and not merge.revised.num_rows:
            return SaveResult(0, 0, ())
        key = series_key(series)
        if merge.revised.num_rows:
            self.ledger.revisions.record(key, merge.revised, self._clock())
        footer = Footer(identity, coverage, merge.bars.num_rows, rows_per_session(merge.bars))
        footer = write_file(path, merge.bars, footer, before_renaming=self.layout.require_same)
        flat = rows_per_session(merge.bars.filter(pa.array(is_flat(merge.bars))))
        row = indexed_file(fingerprint(path), footer, flat)
        self.ledger.files.record(key, {self.layout.relative(path): row})
        return SaveResult(merge.added, merge.revised.num_rows, (path,))

    def _held(self, series: Series, path: Path) -> tuple[Footer | None, pa.Table]:
        """Return true footer and bars of a file that is about to be rewritten."""
        if not path.exists():
            return None, empty_bars()
        row = self.ledger.files.of(series_key(series)).get(self.layout.relative(path))
        with self._recording_damage(path):
            said, bars = read_file(path, known_by(row))
            footer = true_footer(path, said, bars, calendar_named(series.instrument.calendar))
        if said.seal is None and not is_as_written(path):
            known = self.ledger.findings.of(series_key(series))
            footer = less_distrusted(footer, bars, known, series.instrument.sec_type)
        return footer, bars

    @contextmanager
    def _recording_damage(self, path: Path) -> Iterator[None]:
        """Record a file that turns out to be damaged, so that no query reads it."""
        try:
            yield
        except CorruptFileError as error:
            check = FileCheck(fingerprint(path), self._clock(), error.reason)
            self.ledger.checks.record({self.layout.relative(path): check})
            raise

    def _existing_files(self, series: Series, interval: Interval) -> dict[Path, Interval]:
        """Return the existing files that overlap an interval, and the interval of each."""
        folder = self.layout.series_folder(series.symbol, series.timeframe)
        parts = {
            folder / f"{stem}.parquet": part for stem, part in file_intervals(series, interval)
        }
        return {path: part for path, part in parts.items() if path.exists()}


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


def _joined(files: Mapping[Path, IndexedFile]) -> Coverage:
    return reduce(Coverage.merged, (row.coverage for row in files.values()), Coverage())


def _refuse_foreign(path: Path, held: Identity, offered: Identity) -> None:
    if held != offered:
        raise ForeignIdentityError(
            f"cannot save bars of {offered}",
            reason=f"{path} holds {held}",
            hint="Give the other instrument its own symbol in universe.yaml, or retire this one "
            "with `ktrdr universe retire`",
        )
