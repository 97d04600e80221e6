"""Find which expected bars of a series are missing and why, and count them by session.

*Explained* is what lies before the start that the universe gives, before the gateway's oldest data
(unless an older bar is held), or after the end; holidays and closed time are never expected.
*Covered* is what a response has covered with bars, or what is confirmed empty by a proof that has
not expired. Everything else is a gap: a failed attempt gives the reason of a gap, it excuses
nothing.

``missing`` alone decides what is missing, also of a session that is still open. ``due_gaps`` is
what loads and plans request of it; ``find_gaps`` adds causes and ``completeness`` counts.

Not here: reading what is covered (``gaps.index``), which sessions are sparse
(``domain.planning.sparse_sessions``), how a gap is requested (``domain.planning.chunks``).
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from functools import cache
from typing import NamedTuple

import numpy as np

from ktrdr_pipelines.domain.bars import micros, moment
from ktrdr_pipelines.domain.calendars.session_grid import SessionGrid, Span, session_grid
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar, midnight, monday_of
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.limits import IbLimitsRegistry

_DAY = timedelta(days=1)

LAST_INSTANT = timedelta(microseconds=1)
"""Left uncovered at a session's end until a response is received ``final_lag`` after the close."""

_SHORTER_THAN_ANY_BAR_US = 1_000_000


@cache
def final_lag() -> timedelta:
    """Return how long after a session's close its bars are complete.

    From then on an empty response is a statement, and the bar of the day is final.
    """
    return timedelta(seconds=IbLimitsRegistry.FINAL_LAG_S.value)


@cache
def bar_lag() -> timedelta:
    """Return how long after its end an intraday bar of an open session counts as final."""
    return timedelta(seconds=IbLimitsRegistry.BAR_LAG_S.value)


def is_closed(span: Span, now: datetime) -> bool:
    """Return whether a span closed long enough ago for its bars to be complete."""
    return span.over_at + final_lag() <= now


def closed_count(grid: SessionGrid, now: datetime) -> int:
    """Return the number of spans that closed long enough ago for their bars to be complete."""
    return int(grid.over.searchsorted(micros(now - final_lag()), side="right"))


def next_close(grid: SessionGrid, now: datetime) -> datetime | None:
    """Return the moment at which the next span counts as closed, or None after the last one."""
    position = closed_count(grid, now)
    return moment(grid.over.item(position)) + final_lag() if position < len(grid) else None


class Pieces(NamedTuple):
    """Parts of spans, oldest first: the index of the span that each lies in, and its bounds.

    The bounds are bar timestamps in microseconds since 1970 UTC.
    """

    spans: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    @property
    def intervals(self) -> IntervalSet:
        """The pieces as a set; those that touch are one interval."""
        return IntervalSet.from_arrays(self.starts, self.ends)


_NOTHING = Pieces(*(np.empty(0, np.int64) for _ in range(3)))


def missing(grid: SessionGrid, wanted: IntervalSet, covered: IntervalSet, now: datetime) -> Pieces:
    """Return the parts of ``wanted`` whose bars should exist by now and that are not covered.

    Of a closed span that is all of it. Of an open session it is what lies before now, less the lag
    of the newest bar; of days and weeks nothing. ``wanted`` must not cut a span
    (``SessionGrid.widened``): the bar across such a cut could never be whole.
    """
    if not wanted or covered.holds(wanted.starts.item(0), wanted.ends.item(-1)):
        return _NOTHING
    low = int(grid.ends.searchsorted(wanted.starts[0], side="right"))
    high = int(grid.starts.searchsorted(wanted.ends[-1], side="left"))
    closed, until = closed_count(grid, now), micros(now - bar_lag())
    has_open = closed < high and grid.timeframe.is_intraday
    begun = int(grid.starts.searchsorted(until, side="left")) if has_open else 0
    high = min(high, max(closed, begun))
    if low >= high:
        return _NOTHING
    starts, ends = grid.starts[low:high], grid.ends[low:high]
    due = np.minimum(ends, until) if has_open else ends
    if covered.holds(starts.item(0), due.item(-1)):
        return _NOTHING
    spans = np.flatnonzero(~covered.covers_each(starts, due))
    if not len(spans):
        return _NOTHING
    uncovered = covered.outside(starts[spans], due[spans])
    parts = wanted.within(uncovered.starts, uncovered.ends)
    spans = spans[uncovered.left][parts.left]
    found = Pieces(spans + low, parts.starts, parts.ends)
    if not has_open:
        return found
    # The last piece of an open session: where now cuts the session, the bar that a piece shorter
    # than one bar belongs to is not whole yet; where it does not, the session's last instant is
    # left uncovered until its bars are complete.
    is_last = (found.spans >= closed) & (found.ends == due[spans])
    bar_us = grid.timeframe.seconds * 1_000_000
    shortest = np.where(due[spans] < ends[spans], bar_us, _SHORTER_THAN_ANY_BAR_US)
    kept = ~is_last | (found.ends - found.starts >= shortest)
    return Pieces(*(column[kept] for column in found))


def due_gaps(
    calendar: SessionCalendar,
    timeframe: Timeframe,
    *,
    wanted: IntervalSet,
    covered: IntervalSet,
    now: datetime,
) -> IntervalSet:
    """Return what ``missing`` finds, as one set."""
    found = missing(session_grid(calendar, timeframe), wanted, covered, now)
    return IntervalSet() if found is _NOTHING else found.intervals


def first_interval_of(calendar: SessionCalendar, timeframe: Timeframe, day: date) -> Interval:
    """Return the interval of timestamps that bars of a session date, or of its week, can have."""
    if timeframe.is_intraday:
        return Interval(calendar.day_starts_at(day), calendar.day_starts_at(day + _DAY))
    first = monday_of(day) if timeframe is Timeframe.W1 else day
    return Interval(midnight(first), midnight(first) + timeframe.length)


def beginning_timestamp(
    calendar: SessionCalendar, timeframe: Timeframe, begins: date, bars: IntervalSet
) -> datetime:
    """Return the timestamp before which data that begin on a session date are not expected.

    In the first session, what lies before its first bar is excused too. Coverage that begins after
    the close of that session shows nothing of it.

    Args:
        calendar: the sessions.
        timeframe: the timeframe of the bars.
        begins: the session date.
        bars: what is covered with bars.
    """
    first, bounds = first_interval_of(calendar, timeframe, begins), bars.bounds
    if bounds is None or bounds.start not in first:
        return first.start
    spans = session_grid(calendar, timeframe).spans_in(first)
    is_inside = bool(spans) and bounds.start < spans[-1].interval.end
    return bounds.start if is_inside else first.start


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
    BASIS = "basis"


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

    covered: IntervalSet
    wanted_from: int
    listed_from: int | None = None
    oldest_bar: int | None = None
    wanted_to: int | None = None
    sparse_sessions: np.ndarray | None = None

    @property
    def key(self) -> tuple[Hashable, ...]:
        """What compares equal for equal statuses."""
        sparse = self.sparse_sessions
        return (
            self.covered,
            self.wanted_from,
            self.listed_from,
            self.oldest_bar,
            self.wanted_to,
            None if sparse is None else sparse.tobytes(),
        )

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

    spans: SessionGrid
    have: np.ndarray
    expected: np.ndarray
    covered: np.ndarray
    empty: np.ndarray
    explained: np.ndarray
    unexplained: np.ndarray


def find_gaps(
    grid: SessionGrid, status: SeriesStatus, now: datetime, claimed: Sequence[Claimed] = ()
) -> tuple[Gap, ...]:
    """Return the gaps among closed sessions, oldest first.

    Args:
        grid: all spans of the calendar.
        status: what is covered and explained.
        now: sessions that are not closed by then have no gaps.
        claimed: causes of gaps by interval; of several that overlap, the last counts.
    """
    pieces, sparse = _closed_pieces(grid, status, _expected(grid, status, now), now)
    if not len(pieces.starts):
        return ()
    causes, known = sparse.astype(np.int64), [NEVER_COVERED, FAR_FEWER_BARS]
    if claimed:
        pieces, causes, known = _with_causes(pieces, sparse, claimed)
    return _grouped(grid, pieces, causes, known)


def due_positions(grid: SessionGrid, status: SeriesStatus, now: datetime) -> tuple[int, int]:
    """Return the first and the end index of the spans whose bars should exist by now."""
    low = int(grid.ends.searchsorted(status.explained_to, side="right"))
    high = closed_count(grid, now)
    if status.wanted_to is not None:
        high = min(high, int(grid.starts.searchsorted(status.wanted_to, side="left")))
    return low, max(low, high)


def completeness(
    grid: SessionGrid,
    status: SeriesStatus,
    *,
    have: np.ndarray,
    empty: IntervalSet,
    now: datetime,
) -> Completeness:
    """Return the bar counts of each of the given spans.

    Args:
        grid: the spans to count.
        status: as for ``find_gaps``; its sparse sessions are indexes among ``grid``.
        have: bars held, one element a span.
        empty: what is confirmed empty by a valid proof.
        now: in spans that are not closed by then no bars are expected.
    """
    closed = closed_count(grid, now)
    expected = np.where(np.arange(len(grid)) < closed, grid.bars, 0)

    def bars(spans: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Return the number of bars of pieces in each span, no more than expected."""
        counts = np.bincount(spans, weights=grid.bars_in(starts, ends), minlength=len(grid))
        return np.asarray(np.minimum(counts.astype(np.int64), grid.bars))

    everything = IntervalSet.from_arrays(grid.starts[:closed], grid.ends[:closed])
    lacking = bars(*_closed_pieces(grid, status, everything, now)[0])
    unexplained = bars(*_closed_pieces(grid, status, _expected(grid, status, now), now)[0])
    # Bars within ``empty``: all of a span's less those that lie outside of it.
    outside = empty.outside(grid.starts, grid.ends)
    within_empty = grid.bars - bars(outside.left, outside.starts, outside.ends)
    return Completeness(
        spans=grid,
        have=have,
        expected=expected,
        covered=expected - lacking,
        empty=np.minimum(within_empty, expected - lacking),
        explained=lacking - unexplained,
        unexplained=unexplained,
    )


def _expected(grid: SessionGrid, status: SeriesStatus, now: datetime) -> IntervalSet:
    """Return all due spans as one interval: whole, but for the one in which the data begin."""
    low, high = due_positions(grid, status, now)
    if low == high:
        return IntervalSet()
    starts = grid.starts[low : low + 1]
    if status.explained_to > status.wanted_from:
        starts = np.maximum(starts, status.explained_to)
    return IntervalSet.from_arrays(starts, grid.ends[high - 1 : high])


def _closed_pieces(
    grid: SessionGrid, status: SeriesStatus, wanted: IntervalSet, now: datetime
) -> tuple[Pieces, np.ndarray]:
    """Return what is missing of closed spans, and which of it are sparse sessions.

    A sparse session is covered, and missing as a whole.
    """
    pieces = missing(grid, wanted, status.covered, now)
    chosen = status.sparse_sessions
    if chosen is None or not len(chosen):
        return pieces, np.zeros(len(pieces.spans), dtype=bool)
    chosen = chosen[(chosen >= 0) & (chosen < len(grid))]  # of a part of the grid, only its own
    inside = wanted.covers_each(grid.starts[chosen], grid.ends[chosen])
    again = np.setdiff1d(chosen[inside], pieces.spans)
    columns = zip(pieces, (again, grid.starts[again], grid.ends[again]), strict=True)
    pieces = Pieces(*(np.concatenate(pair) for pair in columns))
    order = np.argsort(pieces.starts, kind="stable")
    return Pieces(*(column[order] for column in pieces)), order >= len(order) - len(again)


def _with_causes(
    pieces: Pieces, sparse: np.ndarray, claimed: Sequence[Claimed]
) -> tuple[Pieces, np.ndarray, list[Cause]]:
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


def _cut(pieces: Pieces, claimed: Iterable[Claimed]) -> tuple[Pieces, np.ndarray]:
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
    return Pieces(pieces.spans[origin], starts, ends), origin


def _grouped(
    grid: SessionGrid, pieces: Pieces, causes: np.ndarray, known: Sequence[Cause]
) -> tuple[Gap, ...]:
    """Join pieces of one cause between which no other bar is expected."""
    bars = grid.bars_of(*pieces)
    follows = grid.follow(pieces.starts, pieces.ends) & (causes[:-1] == causes[1:])
    first = np.flatnonzero(np.append(True, ~follows))
    last = np.append(first[1:], len(pieces.spans)) - 1
    total = np.add.reduceat(bars, first)
    sessions = pieces.spans[last] - pieces.spans[first] + 1
    return tuple(
        Gap(
            Interval(moment(int(pieces.starts[a])), moment(int(pieces.ends[b]))),
            int(count),
            int(number),
            *known[int(causes[a])],
        )
        for a, b, count, number in zip(first, last, sessions, total, strict=True)
    )
