"""The gap index: what every series holds and lacks, and why, from files and ledger alone.

It needs no gateway, and opens only files that the file index does not have. The entry of a series
is kept in the process and is valid while the files' fingerprints, the calendar and the ledger's
records of the series stay the same and no session closes, so that a repeated call costs one stat a
file.

Not here: what a gap is (``domain.planning.gaps``), which gaps are requested next
(``gaps.due_chunks``).
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from functools import lru_cache
from pathlib import Path

import numpy as np

from ktrdr_pipelines.domain.bars import moment
from ktrdr_pipelines.domain.calendars.registry import Calendars
from ktrdr_pipelines.domain.calendars.session_grid import session_grid
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from ktrdr_pipelines.domain.coverage import REFUTABLE, Emptiness, ProofKind
from ktrdr_pipelines.domain.instruments import Instrument, Series
from ktrdr_pipelines.domain.intervals import IntervalSet, between
from ktrdr_pipelines.domain.planning.gaps import (
    Completeness,
    Gap,
    GapReason,
    completeness,
    due_positions,
    find_gaps,
    next_close,
)
from ktrdr_pipelines.domain.planning.jobs import first_timestamp
from ktrdr_pipelines.domain.planning.sparse_sessions import have_bars
from ktrdr_pipelines.domain.plausibility import Disagreement, DisagreementKind
from ktrdr_pipelines.errors import StoreError
from ktrdr_pipelines.gaps.series_files import AllSeriesFiles, SeriesFiles
from ktrdr_pipelines.gaps.series_status import (
    LedgerRecords,
    SeriesRecords,
    claims_of,
    last_timestamp,
    status_of,
    waiting_of,
)
from ktrdr_pipelines.gaps.windows import Dates, WindowStatus, window_status
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.ledger.attempts import Attempt, AttemptKind
from ktrdr_pipelines.store.ledger.ledger import series_key

__all__ = ["GapIndex", "Memory", "SeriesGaps", "memory_of"]


_FOR_EVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class SeriesGaps:
    """What one series holds and lacks; all intervals are by bar timestamp.

    ``gaps`` are neither covered nor explained; ``waiting`` is the uncovered part of sessions that
    are still open. ``covered_until`` is the end of ``covered``; ``first`` and ``last`` are session
    dates of bars held; ``attempts`` are the failed attempts. Before ``expected_from`` nothing is
    expected. ``fresh_from`` is the bar timestamp from which the series is kept fresh, None until a
    save has recorded it. ``disputed`` are ranges that are explained in spite of held data, or that
    the user acknowledged, as far as that has not expired; ``disagreements`` held bars that were
    returned again at other prices, ``volume_jumps`` bars with volumes in another unit.
    ``unconfirmed_bars`` are held on an unconfirmed price basis, in ``unconfirmed_basis``, and
    queries leave them out. ``error`` is why the series could not be read; nothing else is set then.
    """

    series: Series
    gaps: tuple[Gap, ...] = ()
    waiting: IntervalSet = field(default_factory=IntervalSet)
    rows: int = 0
    covered: IntervalSet = field(default_factory=IntervalSet, compare=False, repr=False)
    covered_until: datetime | None = None
    first: date | None = None
    last: date | None = None
    attempts: tuple[Attempt, ...] = ()
    expected_from: datetime | None = None
    disputed: tuple[Emptiness, ...] = ()
    disagreements: tuple[Disagreement, ...] = ()
    volume_jumps: tuple[Disagreement, ...] = ()
    fresh_from: datetime | None = None
    unconfirmed_basis: IntervalSet = field(default_factory=IntervalSet)
    unconfirmed_bars: int = 0
    error: StoreError | None = None

    @property
    def unit_changes(self) -> tuple[Disagreement, ...]:
        """Those of ``disagreements`` that look like a change of unit."""
        return tuple(one for one in self.disagreements if one.kind is DisagreementKind.UNIT)

    @property
    def is_blocked(self) -> bool:
        """Whether the gateway has refused a part of it for lack of a permission."""
        return bool(self.blocks)

    def explained_as(self, kind: ProofKind) -> tuple[Emptiness, ...]:
        """Return the ranges explained by one kind of proof, disputed or acknowledged."""
        return tuple(one for one in self.disputed if one.kind is kind)

    @property
    def blocks(self) -> tuple[Attempt, ...]:
        """The attempts that were refused for lack of a permission, the newest last."""
        found = [one for one in self.attempts if one.kind is AttemptKind.BLOCKED]
        return tuple(sorted(found, key=lambda attempt: attempt.last_at))

    @property
    def missing(self) -> IntervalSet:
        """The intervals of all gaps."""
        return IntervalSet(gap.interval for gap in self.gaps)


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """The gaps of a series, what they were computed from, and until when they are valid."""

    series: Series
    files: SeriesFiles
    known: SeriesRecords
    made_at: datetime
    good_until: datetime
    found: SeriesGaps

    def holds(
        self, series: Series, files: SeriesFiles, known: SeriesRecords, *, now: datetime
    ) -> bool:
        """Return whether the entry is still what would be computed now."""
        return (
            self.files is files
            and self.series == series
            and self.known == known
            and self.made_at <= now < self.good_until
        )


_Alike = dict[Hashable, tuple[Gap, ...]]


def make_entry(
    series: Series,
    calendar: SessionCalendar,
    files: SeriesFiles,
    known: SeriesRecords,
    *,
    now: datetime,
    alike: _Alike,
) -> IndexEntry:
    """Compute the gaps of a series, and until when the result is valid.

    ``alike`` has the gaps of series of which the same is known at ``now``, and gets those of this.
    """
    spans = session_grid(calendar, series.timeframe)
    status = status_of(series, calendar, files, known, now=now)
    claims = claims_of(files, known, now)
    key = (calendar, series.timeframe, *status.key, tuple(claims))
    gaps = alike.get(key)
    if gaps is None:
        gaps = alike[key] = find_gaps(spans, status, now, claims)
    ends = status.covered.ends
    found = SeriesGaps(
        series,
        gaps,
        rows=files.rows,
        covered=status.covered,
        covered_until=moment(int(ends[-1])) if len(ends) else None,
        first=files.first,
        last=files.last,
        attempts=known.attempts,
        expected_from=moment(status.explained_to),
        disputed=tuple(
            replace(one, interval=part)
            for one in sorted(files.proofs)
            if one.kind not in REFUTABLE and (part := one.valid_part(now)) is not None
        ),
        disagreements=known.disagreements,
        volume_jumps=known.volume_jumps,
        fresh_from=known.fresh_from,
        unconfirmed_basis=files.unconfirmed_basis,
        unconfirmed_bars=files.unconfirmed_bars,
    )
    changes = (next_close(spans, now), files.next_expiry(now))
    good_until = min((at for at in changes if at is not None), default=_FOR_EVER)
    return IndexEntry(series, files, known, now, good_until, found)


def of_unknown_sessions(
    series: Series,
    calendar: SessionCalendar,
    files: SeriesFiles,
    known: SeriesRecords,
    *,
    now: datetime,
) -> SeriesGaps:
    """Return all of a series as one gap: the gateway has not stated its sessions yet."""
    end = last_timestamp(series, calendar)
    until = now if end is None else min(now, moment(end))
    wanted = between(first_timestamp(series, calendar), until)
    due_times = [one.next_try_at for one in known.attempts if one.next_try_at is not None]
    gap = wanted and Gap(
        wanted,
        sessions=0,
        bars=0,
        reason=GapReason.MISSING,
        detail="its sessions are not known until the gateway states them: a load requests them",
        next_try_at=max(due_times, default=None),
    )
    return SeriesGaps(
        series,
        (gap,) if gap else (),
        rows=files.rows,
        first=files.first,
        last=files.last,
        attempts=known.attempts,
        disagreements=known.disagreements,
        volume_jumps=known.volume_jumps,
        fresh_from=known.fresh_from,
        unconfirmed_basis=files.unconfirmed_basis,
        unconfirmed_bars=files.unconfirmed_bars,
    )


@dataclass(slots=True)
class Memory:
    """What a process keeps of one store between calls."""

    entries: dict[str, IndexEntry] = field(default_factory=dict)
    series_files: dict[str, SeriesFiles] = field(default_factory=dict)
    calendars: dict[str, SessionCalendar] = field(default_factory=dict)


@lru_cache(maxsize=8)
def memory_of(root: Path) -> Memory:
    """Return the memory that all gap indexes of a store share in this process."""
    _ = root
    return Memory()


class GapIndex:
    """The gaps of every series of one store.

    Args:
        store: files and ledger.
        calendars: which sessions are expected.
        gateway: the gateway whose oldest data count.
        memory: what is kept between calls; its own if not given.
    """

    def __init__(
        self, store: BarStore, calendars: Calendars, gateway: str, *, memory: Memory | None = None
    ) -> None:
        self.store = store
        self.calendars = calendars
        self._gateway = gateway
        self._memory = memory or Memory()

    def __repr__(self) -> str:
        return f"GapIndex({self.store.layout.root}, {len(self._memory.entries)} series known)"

    def series_gaps(self, series: Iterable[Series], now: datetime) -> list[SeriesGaps]:
        """Return what each series holds and lacks, in the order given.

        A file that cannot be read is an error of its series alone.

        Raises:
            StoreError: the ledger cannot be read.
        """
        wanted = list(series)
        calendars = self._calendars(wanted)
        series_files = AllSeriesFiles(self.store, self._memory.series_files)
        known = series_files.of(zip(wanted, calendars, strict=True))
        ledger_records = LedgerRecords(self.store, self._gateway)
        oldest = self._oldest_days(wanted, known, series_files, ledger_records)
        alike: _Alike = {}
        return [
            self._series_gaps(
                one,
                calendar,
                files,
                ledger_records.of(one, calendar, files, oldest.get(one.symbol)),
                now=now,
                alike=alike,
            )
            if isinstance(files, SeriesFiles)
            else SeriesGaps(one, error=files)
            for one, calendar, files in zip(wanted, calendars, known, strict=True)
        ]

    def windows(
        self, series: Series, windows: Mapping[str, Dates], now: datetime
    ) -> dict[str, WindowStatus]:
        """Return for each window of a series what it holds and what is missing in it.

        A window is unexplained exactly if ``series_gaps`` has a gap in it.

        Args:
            series: the series of the windows.
            windows: session dates ``[first, end)`` by name.
            now: sessions that have closed by then are due.

        Raises:
            StoreError: its files or the ledger cannot be read.
        """
        (found,) = self.series_gaps([series], now)
        return self.windows_of(found, windows, now)

    def windows_of(
        self, found: SeriesGaps, windows: Mapping[str, Dates], now: datetime
    ) -> dict[str, WindowStatus]:
        """Return the same as ``windows`` for a series of which ``series_gaps`` was called.

        Args:
            found: what ``series_gaps`` returned of the series for ``now``.
            windows: session dates ``[first, end)`` by name.
            now: the time that was given to ``series_gaps``.

        Raises:
            StoreError: its files cannot be read.
        """
        if found.error is not None:
            raise found.error
        held = self.store.session_arrays(found.series)
        calendar = self.calendars.of(found.series.instrument)
        return window_status(found, calendar, held, windows=windows, now=now)

    def plain_files(self, series: Iterable[Series]) -> dict[Series, SeriesFiles]:
        """Return what the files hold of those series of which nothing else decides what is missing.

        Left out are series with failed attempts, with statements about where their data begin, and
        with files that cannot be read.

        Raises:
            StoreError: the ledger cannot be read.
        """
        ledger_records = LedgerRecords(self.store, self._gateway)
        wanted = [one for one in series if ledger_records.is_plain(one)]
        series_files = AllSeriesFiles(self.store, self._memory.series_files)
        found = series_files.of(zip(wanted, self._calendars(wanted), strict=True))
        return {
            one: files
            for one, files in zip(wanted, found, strict=True)
            if isinstance(files, SeriesFiles)
        }

    def _oldest_days(
        self,
        wanted: Sequence[Series],
        known: "Sequence[SeriesFiles | StoreError]",
        series_files: AllSeriesFiles,
        ledger_records: LedgerRecords,
    ) -> dict[str, date]:
        """Return the oldest session date held of each symbol, over all its timeframes.

        Only for symbols whose beginning was stated: an older bar of any timeframe refutes that.
        """
        instruments = {
            one.symbol: one.instrument for one in wanted if ledger_records.may_begin(one.symbol)
        }
        if not instruments:
            return {}
        is_known = set(wanted)
        others = [
            series
            for symbol, instrument in instruments.items()
            for timeframe in self.store.layout.timeframes_of(symbol)
            if (series := Series(instrument, timeframe)) not in is_known
        ]
        more = series_files.of(zip(others, self._calendars(others), strict=True))
        oldest: dict[str, date] = {}
        for series, files in zip((*wanted, *others), (*known, *more), strict=True):
            if series.symbol in instruments and not isinstance(files, StoreError):
                days = [day for day in (oldest.get(series.symbol), files.first) if day]
                if days:
                    oldest[series.symbol] = min(days)
        return oldest

    def completeness(self, series: Series, now: datetime) -> Completeness:
        """Return the bar counts of each session of a series.

        They include the sessions from the start that the universe gives, or from the oldest bar if
        that is older, to the last one that has closed.

        Raises:
            StoreError: its files or the ledger cannot be read.
        """
        (calendar,) = self._calendars([series])
        series_files = AllSeriesFiles(self.store, self._memory.series_files)
        (files,) = series_files.of([(series, calendar)])
        if isinstance(files, StoreError):
            raise files
        spans = session_grid(calendar, series.timeframe)
        ledger_records = LedgerRecords(self.store, self._gateway)
        oldest_days = self._oldest_days([series], [files], series_files, ledger_records)
        oldest_day = oldest_days.get(series.symbol)
        known = ledger_records.of(series, calendar, files, oldest_day)
        status = status_of(series, calendar, files, known, now=now)
        oldest = status.oldest_bar if status.oldest_bar is not None else status.wanted_from
        low = int(np.searchsorted(spans.ends, min(oldest, status.wanted_from), "right"))
        chosen = spans.slice(low, max(low, due_positions(spans, status, now)[1]))
        held = self.store.rows_per_session(series)
        days = np.array(list(held), "datetime64[D]")
        rows = np.array(list(held.values()), np.int64)
        sparse = status.sparse_sessions
        return completeness(
            chosen,
            replace(status, sparse_sessions=None if sparse is None else sparse - low),
            have=have_bars(chosen, days, rows),
            empty=files.empty(now),
            now=now,
        )

    def _calendars(self, wanted: Iterable[Series]) -> list[SessionCalendar]:
        """Return the calendars of series: objects used before, where those have the same sessions.

        It is not cut at the end of the series, so that all series of one market share its arrays.
        """
        found: list[SessionCalendar] = []
        of_symbols: dict[int, SessionCalendar] = {}
        for series in wanted:
            instrument = series.instrument
            kept = of_symbols.get(id(instrument))
            if kept is None:
                kept = of_symbols[id(instrument)] = self._calendar(instrument)
            found.append(kept)
        return found

    def _calendar(self, instrument: Instrument) -> SessionCalendar:
        calendar = self.calendars.of(
            instrument if instrument.end is None else replace(instrument, end=None)
        )
        key = self.calendars.key_of(instrument)
        kept = self._memory.calendars.setdefault(key, calendar)
        if kept is not calendar and not kept.is_same(calendar):
            self._memory.calendars[key] = kept = calendar
        return kept

    def _series_gaps(
        self,
        series: Series,
        calendar: SessionCalendar,
        files: SeriesFiles,
        known: SeriesRecords,
        *,
        now: datetime,
        alike: _Alike,
    ) -> SeriesGaps:
        if calendar.known is None:
            return of_unknown_sessions(series, calendar, files, known, now=now)
        key = series_key(series)
        entry = self._memory.entries.get(key)
        if entry is None or not entry.holds(series, files, known, now=now):
            entry = make_entry(series, calendar, files, known, now=now, alike=alike)
            self._memory.entries[key] = entry
        spans = session_grid(calendar, series.timeframe)
        until = last_timestamp(series, calendar)
        waiting = waiting_of(spans, files.covered(now), now, until=until)
        return replace(entry.found, waiting=waiting) if waiting else entry.found
