"""The gap book: what every series holds and lacks, and why, from files and ledger alone.

It asks no gateway, and opens only files that changed unseen. What it found out of a series is kept
in the process and counts as long as the files' fingerprints, the calendar and all that is known of
the series stay the same and no session closes, so looking again costs a stat of each file.

Not here: the decisions (``core.completeness``, ``core.suspects``), what is read of a series
(``load.holdings``), how gaps are shown or filled.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from functools import lru_cache
from pathlib import Path

import numpy as np

from ktrdr_pipelines.core.bars import micros, moment
from ktrdr_pipelines.core.calendars import Calendars, learned_key
from ktrdr_pipelines.core.completeness import (
    Cause,
    Claimed,
    Completeness,
    Gap,
    GapReason,
    Standing,
    closed_count,
    completeness,
    find_gaps,
    next_close,
)
from ktrdr_pipelines.core.gaps import bar_lag, first_stamp_of
from ktrdr_pipelines.core.instruments import Series
from ktrdr_pipelines.core.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.core.sessions import SessionCalendar
from ktrdr_pipelines.core.spanarrays import SpanArrays, span_arrays
from ktrdr_pipelines.core.stretches import Stretches, joined, stretches_of, without
from ktrdr_pipelines.core.suspects import have_bars
from ktrdr_pipelines.errors import StoreError
from ktrdr_pipelines.load.calendars import open_calendars
from ktrdr_pipelines.load.facts import silent_stamps
from ktrdr_pipelines.load.holdings import Holding, Holdings
from ktrdr_pipelines.load.modes import first_stamp
from ktrdr_pipelines.store.attempts import Attempt, AttemptKind
from ktrdr_pipelines.store.layout import StoreLayout, store_origin
from ktrdr_pipelines.store.ledger import Ledger, SilenceRecord, series_key
from ktrdr_pipelines.store.parquet import BarStore

_REASONS = {
    AttemptKind.ERROR: GapReason.FAILED,
    AttemptKind.PROBED: GapReason.UNPROVED,
    AttemptKind.NO_DATA: GapReason.NO_DATA,
    AttemptKind.BLOCKED: GapReason.BLOCKED,
    AttemptKind.UNKNOWN: GapReason.FAILED,
}
_EVER = datetime(1900, 1, 1, tzinfo=UTC)
_FOR_EVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class SeriesGaps:
    """One series as it stands; all intervals are on the stamp axis.

    ``gaps`` are neither settled nor explained; ``waiting`` is due of sessions that are still open.
    ``settled_until`` is the end of the newest settled stretch; ``first`` and ``last`` are session
    dates of bars held; ``attempts`` are the tries that settled nothing. Before ``expected_from``
    nothing is expected. ``error`` says why nothing else could be learned.
    """

    series: Series
    gaps: tuple[Gap, ...] = ()
    waiting: IntervalSet = field(default_factory=IntervalSet)
    rows: int = 0
    settled_until: datetime | None = None
    first: date | None = None
    last: date | None = None
    attempts: tuple[Attempt, ...] = ()
    expected_from: datetime | None = None
    error: StoreError | None = None

    @property
    def is_blocked(self) -> bool:
        """Say whether the gateway has refused some of it for want of a permission."""
        return bool(self.blocks)

    @property
    def blocks(self) -> tuple[Attempt, ...]:
        """The tries that were refused for want of a permission, the newest last."""
        found = [one for one in self.attempts if one.kind is AttemptKind.BLOCKED]
        return tuple(sorted(found, key=lambda attempt: attempt.last_at))

    @property
    def missing(self) -> IntervalSet:
        """The stretches of all gaps."""
        return IntervalSet(gap.stamps for gap in self.gaps)


@dataclass(frozen=True, slots=True)
class _Known:
    """What the ledger knows of a series beside its files."""

    attempts: tuple[Attempt, ...]
    head: datetime | None
    silences: tuple[SilenceRecord, ...]
    confirmed: Mapping[date, int]


@dataclass(frozen=True, slots=True)
class _Page:
    """What was found out of a series, from what, and until when it holds."""

    series: Series
    holding: Holding
    known: _Known
    made_at: datetime
    good_until: datetime
    found: SeriesGaps


@dataclass(slots=True)
class Memory:
    """What a process keeps of one store between looks."""

    pages: dict[str, _Page] = field(default_factory=dict)
    holdings: dict[str, Holding] = field(default_factory=dict)
    calendars: dict[str, SessionCalendar] = field(default_factory=dict)


@lru_cache(maxsize=8)
def memory_of(root: Path) -> Memory:
    """Give the memory that all gap books of a store share in this process."""
    _ = root
    return Memory()


def open_gapbook(layout: StoreLayout, gateway: str) -> "GapBook":
    """Open the gap book of a store as its ledger stands now.

    Args:
        layout: the store.
        gateway: whose oldest data count, as ``host:port``.
    """
    ledger = Ledger(layout.ledger)
    return GapBook(
        BarStore(layout, ledger), open_calendars(ledger), gateway, memory=memory_of(layout.root)
    )


class GapBook:
    """Looks through one store.

    Args:
        store: files and ledger.
        calendars: which sessions are expected.
        gateway: whose oldest data count.
        memory: what is kept between looks; its own if not given.
    """

    def __init__(
        self, store: BarStore, calendars: Calendars, gateway: str, *, memory: Memory | None = None
    ) -> None:
        self.store = store
        self.calendars = calendars
        self._gateway = gateway
        self._memory = memory or Memory()

    def __repr__(self) -> str:
        return f"GapBook({self.store.layout.root}, {len(self._memory.pages)} series known)"

    def look(self, series: Iterable[Series], now: datetime) -> list[SeriesGaps]:
        """Say how each series stands.

        A file that cannot be read is an error of its series alone.

        Raises:
            StoreError: the ledger cannot be read.
        """
        wanted = list(series)
        calendars = {one: self._calendar(one) for one in wanted}
        holdings = Holdings(self.store, self._memory.holdings).of(calendars)
        facts = _Ledgered(self.store, self._gateway)
        return [self._look(one, calendars[one], holdings[one], facts, now=now) for one in wanted]

    def completeness(self, series: Series, now: datetime) -> Completeness:
        """Count have, expected, settled, explained and unexplained bars, session by session.

        Told are the sessions from the wanted start, or from the oldest bar if that is older, to
        the last that has closed.

        Raises:
            StoreError: its files or the ledger cannot be read.
        """
        calendar = self._calendar(series)
        (holding,) = Holdings(self.store, self._memory.holdings).of({series: calendar}).values()
        if isinstance(holding, StoreError):
            raise holding
        spans = span_arrays(calendar, series.timeframe)
        known = _Ledgered(self.store, self._gateway).of(series, holding)
        standing = _standing(series, calendar, holding, known, now=now)
        oldest = standing.oldest_bar if standing.oldest_bar is not None else standing.wanted_from
        low = int(np.searchsorted(spans.spans.ends, min(oldest, standing.wanted_from), "right"))
        chosen = spans.slice(low, max(low, closed_count(spans, now)))
        days, rows = self._sessions(series)
        return completeness(
            chosen,
            replace(standing, suspects=_moved(standing.suspects, low)),
            have=have_bars(chosen, days, rows),
            empty=holding.empty(now),
            now=now,
        )

    def _sessions(self, series: Series) -> tuple[np.ndarray, np.ndarray]:
        found = self.store.rows_per_session(series)
        return np.array(list(found), "datetime64[D]"), np.array(list(found.values()), np.int64)

    def _calendar(self, series: Series) -> SessionCalendar:
        """Give the calendar of a series: the object that was used before, where it is the same."""
        calendar = self.calendars.of(series.instrument)
        key = f"{learned_key(series.instrument)} {series.instrument.end}"
        kept = self._memory.calendars.setdefault(key, calendar)
        if kept is not calendar and not _same(kept, calendar):
            self._memory.calendars[key] = kept = calendar
        return kept

    def _look(
        self,
        series: Series,
        calendar: SessionCalendar,
        holding: "Holding | StoreError",
        facts: "_Ledgered",
        *,
        now: datetime,
    ) -> SeriesGaps:
        if isinstance(holding, StoreError):
            return SeriesGaps(series, error=holding)
        key, known = series_key(series), facts.of(series, holding)
        if calendar.known is None:
            return _unknown_sessions(series, calendar, holding, known, now=now)
        page = self._memory.pages.get(key)
        if page is None or not _holds(page, series, holding, known, now=now):
            page = _written(series, calendar, holding, known, now=now)
            self._memory.pages[key] = page
        waiting = _waiting(span_arrays(calendar, series.timeframe), holding.settled(now), now)
        return replace(page.found, waiting=waiting) if waiting else page.found


class _Ledgered:
    """What the ledger knows of all series, each table read once."""

    def __init__(self, store: BarStore, gateway: str) -> None:
        ledger, origin = store.ledger, store_origin(store.layout)
        self._attempts = ledger.all_attempts()
        self._heads = ledger.heads(gateway)
        self._silences = ledger.silences(gateway)
        self._confirmed = ledger.all_confirmed()
        self._pinned = ledger.pinned_contracts(origin) if origin else {}

    def of(self, series: Series, holding: Holding) -> _Known:
        key = series_key(series)
        contract = holding.contract_id or self._pinned.get(series.symbol)
        what = series.instrument.what_to_show.value
        return _Known(
            tuple(self._attempts.get(key, ())),
            self._heads.get((contract, what)) if contract else None,
            self._silences.get((contract, what), ()) if contract else (),
            self._confirmed.get(key, {}),
        )


def _unknown_sessions(
    series: Series, calendar: SessionCalendar, holding: Holding, known: _Known, *, now: datetime
) -> SeriesGaps:
    """Say that all of a series is open whose sessions the gateway has not told yet."""
    wanted = between(first_stamp(series, calendar), now)
    tries = [one.next_try_at for one in known.attempts if one.next_try_at is not None]
    gap = wanted and Gap(
        wanted,
        sessions=0,
        bars=0,
        reason=GapReason.MISSING,
        detail="its sessions are not known until the gateway tells them: a load asks first",
        next_try_at=max(tries, default=None),
    )
    return SeriesGaps(
        series,
        (gap,) if gap else (),
        rows=holding.rows,
        first=holding.first,
        last=holding.last,
        attempts=known.attempts,
    )


def _holds(page: _Page, series: Series, holding: Holding, known: _Known, *, now: datetime) -> bool:
    """Say whether what was found out before is what would be found out now."""
    return (
        page.holding is holding
        and page.series == series
        and page.known == known
        and page.made_at <= now < page.good_until
    )


def _written(
    series: Series, calendar: SessionCalendar, holding: Holding, known: _Known, *, now: datetime
) -> _Page:
    spans = span_arrays(calendar, series.timeframe)
    standing = _standing(series, calendar, holding, known, now=now)
    gaps = find_gaps(spans, standing, now, _claimed(holding, known, now))
    ends = standing.settled.ends
    found = SeriesGaps(
        series,
        gaps,
        rows=holding.rows,
        settled_until=moment(int(ends[-1])) if len(ends) else None,
        first=holding.first,
        last=holding.last,
        attempts=known.attempts,
        expected_from=moment(standing.explained_to),
    )
    changes = (next_close(spans, now), holding.next_expiry(now))
    good_until = min((at for at in changes if at is not None), default=_FOR_EVER)
    return _Page(series, holding, known, now, good_until, found)


def _standing(
    series: Series, calendar: SessionCalendar, holding: Holding, known: _Known, *, now: datetime
) -> Standing:
    listed = first_stamp_of(calendar, series.timeframe, known.head) if known.head else None
    return Standing(
        settled=_with_silences(series, calendar, holding, known, now=now),
        wanted_from=micros(first_stamp(series, calendar)),
        listed_from=micros(listed) if listed else None,
        oldest_bar=holding.oldest_bar,
        suspects=np.array(
            [place for place, day, rows in holding.suspects if known.confirmed.get(day) != rows],
            dtype=np.int64,
        ),
    )


def _with_silences(
    series: Series, calendar: SessionCalendar, holding: Holding, known: _Known, *, now: datetime
) -> Stretches:
    """Give what needs no asking: settled, or found silent before the oldest bar that is held."""
    settled = holding.settled(now)
    if holding.oldest_bar is None or not known.silences:
        return settled
    silent = stretches_of(
        part
        for one in known.silences
        if one.is_valid(now)
        for part in silent_stamps(calendar, series.timeframe, one.first, one.end)
        if micros(part.end) <= holding.oldest_bar
    )
    both = (np.concatenate(pair) for pair in zip(settled, silent, strict=True))
    return joined(np.stack(list(both), axis=1))


def _claimed(holding: Holding, known: _Known, now: datetime) -> Sequence[Claimed]:
    """Say what is known of stretches, should they be gaps; the last said weighs most."""
    expired = [
        Claimed(part, Cause(GapReason.EXPIRED, f"proved empty at {at:%Y-%m-%d}, too long ago"))
        for part, at in holding.expired(now)
    ]
    tried = sorted(known.attempts, key=_weight)
    return [*expired, *(Claimed(_stretch(one), _cause(one)) for one in tried)]


def _stretch(attempt: Attempt) -> Interval:
    """Give what a try says something about: all of the series where it concerns the series."""
    return Interval(_EVER, _FOR_EVER) if attempt.is_series_wide else attempt.interval


def _weight(attempt: Attempt) -> tuple[bool, datetime]:
    return attempt.kind is AttemptKind.BLOCKED, attempt.last_at


def _cause(attempt: Attempt) -> Cause:
    return Cause(_REASONS[attempt.kind], attempt.error, attempt.next_try_at)


def _waiting(spans: SpanArrays, settled: Stretches, now: datetime) -> IntervalSet:
    """Give what is due of open sessions and not settled."""
    if spans.trading is None:
        return IntervalSet()
    until = micros(now - bar_lag())
    low = closed_count(spans, now)
    high = int(np.searchsorted(spans.spans.starts, until, side="left"))
    if low >= high or (len(settled.ends) and settled.ends[-1] >= until):
        return IntervalSet()
    ends = np.minimum(spans.spans.ends[low:high], until)
    pieces = without(Stretches(spans.spans.starts[low:high], ends), settled)
    length = spans.timeframe.seconds * 1_000_000
    parts = (
        between(moment(int(start)), moment(int(end)))
        for start, end in zip(pieces.starts, pieces.ends, strict=True)
        if end < until or end - start >= length
    )
    return IntervalSet(part for part in parts if isinstance(part, Interval))


def _moved(places: np.ndarray | None, low: int) -> np.ndarray | None:
    return None if places is None else places - low


def _same(left: SessionCalendar, right: SessionCalendar) -> bool:
    """Say whether two calendars expect the same sessions."""
    return (left.zone, left.roll) == (right.zone, right.roll) and all(
        np.array_equal(a, b)
        for a, b in (
            (left.days, right.days),
            (left.opens, right.opens),
            (left.closes, right.closes),
            (left.breaks, right.breaks),
        )
    )
