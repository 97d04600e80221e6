"""Find which expected bars of a series are missing and why, and count them by session.

*Explained* is what lies before the start that the universe gives, before the gateway's oldest data
(unless an older bar is held), or after the end; holidays and closed time are never expected.
*Covered* is what a response has covered with bars, or what is confirmed empty by a proof that has
not expired. Everything else is a gap: a failed attempt gives the reason of a gap, it excuses
nothing.

``due_gaps`` decides for a load, whose session may still be open, over a calendar's spans;
``find_gaps`` and ``completeness`` work over arrays of spans, so that decades of a series take a
millisecond.

Not here: reading what is covered (``gaps.index``), which sessions are sparse
(``domain.planning.sparse_sessions``), how a gap is requested (``domain.planning.chunks``).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from ktrdr_pipelines.domain.bars import micros, moment
from ktrdr_pipelines.domain.calendars.session_grid import (
    IntervalArrays,
    SpanArrays,
    is_covered,
    without,
)
from ktrdr_pipelines.domain.calendars.sessions import (
    SessionCalendar,
    Span,
    expected_spans,
    midnight,
    monday_of,
)
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet, Overlaps, between
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.limits import IbLimitsRegistry

_DAY, _INSTANT = timedelta(days=1), timedelta(microseconds=1)

LAST_INSTANT = _INSTANT
"""Left uncovered at a session's end until a response is received ``final_lag`` after the close."""

_SHORTER_THAN_ANY_BAR = timedelta(seconds=1)


def final_lag() -> timedelta:
    """Return how long after a session's close its bars are complete.

    From then on an empty response is a statement, and the bar of the day is final.
    """
    return timedelta(seconds=IbLimitsRegistry.FINAL_LAG_S.value)


def bar_lag() -> timedelta:
    """Return how long after its end an intraday bar of an open session counts as final."""
    return timedelta(seconds=IbLimitsRegistry.BAR_LAG_S.value)


def is_closed(span: Span, now: datetime) -> bool:
    """Return whether a span closed long enough ago for its bars to be complete."""
    return span.over_at + final_lag() <= now


def due_part(span: Span, timeframe: Timeframe, now: datetime) -> Interval | None:
    """Return the interval of a span whose bars should exist by now, or None."""
    if is_closed(span, now):
        return span.interval
    if not timeframe.is_intraday:
        return None
    return between(span.interval.start, min(span.interval.end, now - bar_lag()))


def due_gaps(
    calendar: SessionCalendar,
    timeframe: Timeframe,
    *,
    wanted: IntervalSet,
    covered: IntervalSet,
    now: datetime,
) -> IntervalSet:
    """Return the part of ``wanted`` that is expected by now and not covered.

    Where ``now`` cuts a session, a last piece shorter than one bar is not due: the bar that it
    belongs to is not whole yet. ``wanted`` must not cut a session (see ``whole_sessions``): the
    bar across such a cut could never be whole.
    """
    if not wanted:
        return IntervalSet()
    bounds = wanted.bounds
    assert bounds is not None  # noqa: S101  (a set that is not empty has bounds)
    gaps: list[Interval] = []
    for span in expected_spans(calendar, timeframe, bounds):
        due = due_part(span, timeframe, now)
        if due is None or covered.covers(due):
            continue
        open_parts = wanted.clip(due) - covered.clip(due)
        is_final = is_closed(span, now)
        gaps.extend(
            part for part in open_parts if _is_due(part, due, span, timeframe, is_final=is_final)
        )
    return IntervalSet(gaps)


def whole_sessions(
    calendar: SessionCalendar, timeframe: Timeframe, wanted: IntervalSet
) -> IntervalSet:
    """Return a set of timestamps, widened to whole sessions: a bar lies on one side of any cut."""
    return IntervalSet(_widened(calendar, timeframe, part) for part in wanted)


def first_interval_of(calendar: SessionCalendar, timeframe: Timeframe, day: date) -> Interval:
    """Return the interval of timestamps that bars of a session date, or of its week, can have."""
    if timeframe.is_intraday:
        return Interval(calendar.day_starts_at(day), calendar.day_starts_at(day + _DAY))
    first = monday_of(day) if timeframe is Timeframe.W1 else day
    return Interval(midnight(first), midnight(first) + timeframe.length)


def first_timestamp_of(
    calendar: SessionCalendar, timeframe: Timeframe, moment: datetime
) -> datetime:
    """Return the earliest timestamp that a bar holding a moment of real time can have.

    A bar begins before the first trade in it, and so does its session.
    """
    if timeframe.is_intraday:
        return _widened(calendar, timeframe, Interval(moment, moment + _INSTANT)).start
    day = calendar.day_of(moment)
    return midnight(monday_of(day) if timeframe is Timeframe.W1 else day)


def _widened(calendar: SessionCalendar, timeframe: Timeframe, part: Interval) -> Interval:
    first = expected_spans(calendar, timeframe, Interval(part.start, part.start + _INSTANT))
    last = expected_spans(calendar, timeframe, Interval(part.end - _INSTANT, part.end))
    return Interval(
        min((part.start, *(span.interval.start for span in first))),
        max((part.end, *(span.interval.end for span in last))),
    )


def _is_due(
    part: Interval, due: Interval, span: Span, timeframe: Timeframe, *, is_final: bool
) -> bool:
    """Return whether a piece of a span is due: ``now`` does not cut it, or a bar fits in.

    The last instant of a session is due once the session's bars are complete.
    """
    if due != span.interval or not timeframe.is_intraday:
        cut_by_now = part.end == due.end < span.interval.end
        return not cut_by_now or part.length >= timeframe.length
    return is_final or part.length >= _SHORTER_THAN_ANY_BAR


class GapReason(StrEnum):
    """Why bars are missing."""

    MISSING = "missing"
    SPARSE = "sparse"
    EXPIRED = "expired"
    FAILED = "failed"
    UNCONFIRMED = "unconfirmed"
    CONTRADICTED = "contradicted"
    NO_DATA = "no_data"
    BLOCKED = "blocked"


class Cause(NamedTuple):
    """The reason of a gap, in a word and in a sentence, and when the next request for it is due."""

    reason: GapReason
    detail: str = ""
    next_try_at: datetime | None = None


NEVER_COVERED = Cause(GapReason.MISSING, "no response has covered it yet")
FAR_FEWER_BARS = Cause(GapReason.SPARSE, "far fewer bars than the sessions around it")


@dataclass(frozen=True, slots=True)
class Gap:
    """Missing bars that follow each other, over nights and weekends, with one cause.

    ``interval`` is by bar timestamp; ``sessions`` and ``bars`` count what is expected in it.
    """

    interval: Interval
    sessions: int
    bars: int
    reason: GapReason
    detail: str = ""
    next_try_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Claimed:
    """An interval of timestamps, and the cause of the gaps that lie in it."""

    interval: Interval
    cause: Cause


@dataclass(frozen=True, slots=True)
class SeriesStatus:
    """What is covered and expected of a series.

    All times are bar timestamps in microseconds since 1970 UTC.

    Args:
        covered: covered with bars, or confirmed empty by a valid proof.
        wanted_from: the start that the universe gives.
        listed_from: the timestamp of the gateway's oldest data, or None.
        oldest_bar: the timestamp of the oldest span with a bar held, or None.
        wanted_to: where the series ends, or None.
        sparse_sessions: indexes of the spans that are to be requested once more.
    """

    covered: IntervalArrays
    wanted_from: int
    listed_from: int | None = None
    oldest_bar: int | None = None
    wanted_to: int | None = None
    sparse_sessions: np.ndarray | None = None

    @property
    def explained_to(self) -> int:
        """The timestamp before which everything is explained.

        A stated start of the gateway's data that is later than a bar held is ignored. The loader
        ignores it too, and requests what lies before it.
        """
        if self.listed_from is None:
            return self.wanted_from
        if self.oldest_bar is not None and self.oldest_bar < self.listed_from:
            return self.wanted_from
        return max(self.wanted_from, self.listed_from)


@dataclass(frozen=True, slots=True)
class Completeness:
    """Bar counts of each span, one element a span, oldest first.

    Each of the ``expected`` bars is ``covered`` (with bars or without), ``explained`` or
    ``unexplained``; ``empty`` are the covered ones that are confirmed empty; ``have`` are bars
    held.
    """

    spans: SpanArrays
    have: np.ndarray
    expected: np.ndarray
    covered: np.ndarray
    empty: np.ndarray
    explained: np.ndarray
    unexplained: np.ndarray


def find_gaps(
    spans: SpanArrays, status: SeriesStatus, now: datetime, claimed: Sequence[Claimed] = ()
) -> tuple[Gap, ...]:
    """Return the gaps among closed sessions, oldest first.

    Args:
        spans: all spans of the calendar.
        status: what is covered and explained.
        now: sessions that are not closed by then have no gaps.
        claimed: causes of gaps by interval; of several that overlap, the last counts.
    """
    low, high = due_positions(spans, status, now)
    pieces, sparse = _open_pieces(spans, status, low, high)
    if not len(pieces.left):
        return ()
    pieces, causes, known = _with_causes(pieces, sparse, claimed)
    return _grouped(spans, pieces, causes, known)


def due_positions(spans: SpanArrays, status: SeriesStatus, now: datetime) -> tuple[int, int]:
    """Return the first and the end index of the spans whose bars should exist by now."""
    low = int(np.searchsorted(spans.spans.ends, status.explained_to, side="right"))
    high = closed_count(spans, now)
    if status.wanted_to is not None:
        wanted = int(np.searchsorted(spans.spans.starts, status.wanted_to, side="left"))
        high = min(high, wanted)
    return low, max(low, high)


def closed_count(spans: SpanArrays, now: datetime) -> int:
    """Return the number of spans that closed long enough ago for their bars to be final."""
    final = micros(now - final_lag())
    return int(np.searchsorted(spans.closes, final, side="right"))


def next_close(spans: SpanArrays, now: datetime) -> datetime | None:
    """Return the moment at which the next span counts as closed, or None after the last one."""
    position = closed_count(spans, now)
    if position >= len(spans):
        return None
    return moment(int(spans.closes[position])) + final_lag()


def completeness(
    spans: SpanArrays,
    status: SeriesStatus,
    *,
    have: np.ndarray,
    empty: IntervalArrays,
    now: datetime,
) -> Completeness:
    """Return the bar counts of each of the given spans.

    Args:
        spans: the spans to count.
        status: as for ``find_gaps``; its sparse sessions are indexes among ``spans``.
        have: bars held, one element a span.
        empty: what is confirmed empty by a valid proof.
        now: in spans that are not closed by then no bars are expected.
    """
    expected = np.where(np.arange(len(spans)) < closed_count(spans, now), spans.bars, 0)
    low, high = due_positions(spans, status, now)
    everything = SeriesStatus(
        status.covered, status.wanted_from, sparse_sessions=status.sparse_sessions
    )
    pieces, _is_sparse = _open_pieces(spans, everything, 0, len(spans))
    counts = spans.bars_in(IntervalArrays(pieces.starts, pieces.ends))
    missing = np.bincount(pieces.left, weights=counts, minlength=len(spans)).astype(np.int64)
    missing = np.minimum(missing, expected)
    is_due = np.zeros(len(spans), dtype=bool)
    is_due[low:high] = True
    # Bars within ``empty``: all of a span's less those that lie outside of it.
    outside = without(spans.spans, empty)
    counts = spans.bars_in(IntervalArrays(outside.starts, outside.ends))
    left = np.bincount(outside.left, weights=counts, minlength=len(spans)).astype(np.int64)
    within_empty = np.asarray(spans.bars - np.minimum(left, spans.bars))
    return Completeness(
        spans=spans,
        have=have,
        expected=expected,
        covered=expected - missing,
        empty=np.minimum(within_empty, expected - missing),
        explained=np.where(is_due, 0, missing),
        unexplained=np.where(is_due, missing, 0),
    )


_NOTHING = Overlaps(*(np.empty(0, dtype=np.int64) for _ in range(4)))


def _open_pieces(
    spans: SpanArrays, status: SeriesStatus, low: int, high: int
) -> tuple[Overlaps, np.ndarray]:
    """Return the uncovered parts of some spans, and which of them are sparse sessions."""
    inside = IntervalArrays(spans.spans.starts[low:high], spans.spans.ends[low:high])
    is_open = ~is_covered(inside, status.covered)
    sparse_sessions = np.zeros(high - low, dtype=bool)
    if status.sparse_sessions is not None and len(status.sparse_sessions):
        chosen = status.sparse_sessions[
            (status.sparse_sessions >= low) & (status.sparse_sessions < high)
        ]
        sparse_sessions[chosen - low] = ~is_open[chosen - low]
    if not is_open.any() and not sparse_sessions.any():
        return _NOTHING, np.empty(0, dtype=bool)
    positions = np.flatnonzero(is_open)
    open_spans = IntervalArrays(inside.starts[positions], inside.ends[positions])
    pieces = without(open_spans, status.covered)
    again = np.flatnonzero(sparse_sessions)
    left = np.concatenate([positions[pieces.left], again]) + low
    starts = np.concatenate([pieces.starts, inside.starts[again]])
    ends = np.concatenate([pieces.ends, inside.ends[again]])
    order = np.argsort(starts, kind="stable")
    is_sparse = np.append(np.zeros(len(pieces.left), dtype=bool), np.ones(len(again), dtype=bool))
    ordered = Overlaps(left[order], left[order], starts[order], ends[order])
    return ordered, is_sparse[order]


def _with_causes(
    pieces: Overlaps, sparse: np.ndarray, claimed: Sequence[Claimed]
) -> tuple[Overlaps, np.ndarray, list[Cause]]:
    """Cut pieces where their cause changes, and return the cause of each as an index of a list."""
    known = list(dict.fromkeys((NEVER_COVERED, FAR_FEWER_BARS, *(one.cause for one in claimed))))
    number = {cause: position for position, cause in enumerate(known)}
    meeting = []
    for one in claimed:
        first = int(np.searchsorted(pieces.ends, micros(one.interval.start), side="right"))
        if first < len(pieces.starts) and pieces.starts[first] < micros(one.interval.end):
            meeting.append(one)
    pieces, origin = _cut(pieces, meeting)
    causes = sparse[origin].astype(np.int64)
    for one in meeting:
        low = np.searchsorted(pieces.starts, micros(one.interval.start), side="left")
        high = np.searchsorted(pieces.ends, micros(one.interval.end), side="right")
        causes[low:high] = number[one.cause]
    return pieces, causes, known


def _cut(pieces: Overlaps, claimed: Iterable[Claimed]) -> tuple[Overlaps, np.ndarray]:
    """Cut pieces at the bounds of claimed intervals, and return which piece each part came from."""
    limits = {micros(limit) for one in claimed for limit in (one.interval.start, one.interval.end)}
    cuts = np.array(sorted(limits), dtype=np.int64)
    position = np.searchsorted(pieces.starts, cuts, side="left") - 1
    inner = (position >= 0) & (cuts < pieces.ends[np.maximum(position, 0)])
    cuts, position = cuts[inner], position[inner]
    starts = np.append(pieces.starts, cuts)
    origin = np.append(np.arange(len(pieces.starts)), position)
    order = np.argsort(starts, kind="stable")
    starts, origin = starts[order], origin[order]
    last = np.append(origin[1:] != origin[:-1], True)
    ends = np.where(last, pieces.ends[origin], np.append(starts[1:], 0))
    return Overlaps(pieces.left[origin], pieces.left[origin], starts, ends), origin


def _grouped(
    spans: SpanArrays, pieces: Overlaps, causes: np.ndarray, known: Sequence[Cause]
) -> tuple[Gap, ...]:
    """Join pieces of one cause between which no other bar is expected."""
    bars = spans.bars_in(IntervalArrays(pieces.starts, pieces.ends))
    reaches_end = pieces.ends == spans.spans.ends[pieces.left]
    from_start = pieces.starts == spans.spans.starts[pieces.left]
    next_span = np.diff(pieces.left) == 1
    follows = (pieces.ends[:-1] == pieces.starts[1:]) | (
        next_span & reaches_end[:-1] & from_start[1:]
    )
    follows &= causes[:-1] == causes[1:]
    first = np.flatnonzero(np.append(True, ~follows))
    last = np.append(first[1:], len(pieces.left)) - 1
    total = np.add.reduceat(bars, first)
    sessions = pieces.left[last] - pieces.left[first] + 1
    return tuple(
        Gap(
            Interval(moment(int(pieces.starts[a])), moment(int(pieces.ends[b]))),
            int(count),
            int(number),
            *known[int(causes[a])],
        )
        for a, b, count, number in zip(first, last, sessions, total, strict=True)
    )
