"""Evaluate a response: which bars are kept, what is covered, and what follows for the rest.

The rules, and why:

- A bar is kept when it lies wholly inside what was requested and answered and has ended: IB clips
  bars at the requested end, and may clip one at the start of the duration (grade L). Where the
  gateway withholds the newest bars, the last bar of an open session may still be forming.
- Between two bars of a response everything inside sessions that have bars is covered: a response
  with bars on both sides of quiet minutes needs no second one.
- The left edge is covered from the first bar, or wholly where the response reaches further back.
- The end of a session is covered by a response that was received half an hour after the close
  (delayed data, closing auctions) and whose requested end lies beyond the close. Until then its
  last instant stays open. A quiet end that is longer than any pause inside the response may be a
  response cut short: it is requested once more by itself.
- A session without a single bar is never covered here: it is reported, and needs proof.
- Where the response has a row that is no bar, nothing is covered and nothing counts as empty.

Not here: requests (``ib.source``), writing (``store.bars.bar_store``), which statements prove that
a range is empty (``domain.planning.empty_ranges``).
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.domain.bars import micros, moment, timestamps
from ktrdr_pipelines.domain.calendars.session_grid import SessionGrid, Span, session_grid
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.domain.planning.chunks import Chunk
from ktrdr_pipelines.domain.planning.gaps import LAST_INSTANT, bar_lag, final_lag, is_closed
from ktrdr_pipelines.domain.timeframes import Timeframe

_LONGEST_DELAY = timedelta(minutes=20)
"""How far behind a gateway that withholds the newest bars is at most: exchanges delay data by 15 or
20 minutes."""


@dataclass(frozen=True, slots=True)
class EvaluationContext:
    """What a response is evaluated by: what was requested, of which series, and when.

    ``holds_back``: the gateway withholds the newest bars, so that their absence after the last bar
    proves nothing. ``impossible`` are the intervals in which the response had a row that is no
    bar: nothing follows for them.
    """

    chunk: Chunk
    calendar: SessionCalendar
    timeframe: Timeframe
    now: datetime
    holds_back: bool = False
    impossible: IntervalSet = IntervalSet()  # noqa: RUF009  (immutable)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What follows from one response with bars; intervals are by bar timestamp.

    ``bars`` are kept, ``covered`` is covered permanently. ``around`` are sessions without a bar
    that have bars on both sides. ``begins_at`` is the timestamp of the first bar where at least
    one whole session before it was requested too and has none. ``earlier_only``: all bars are
    older than what was requested.
    """

    bars: pa.Table
    covered: IntervalSet
    around: IntervalSet = IntervalSet()  # noqa: RUF009  (immutable)
    begins_at: datetime | None = None
    earlier_only: bool = False


@dataclass(frozen=True, slots=True)
class _Reading:
    """A response as arrays: microseconds since 1970 UTC, one element a bar.

    ``keys`` are the bar timestamps and ``ends`` the bars' ends; ``low`` is the index of the first
    bar inside the chunk; ``kept`` tells which bars are kept. ``start`` and ``end`` are the bounds
    of the chunk. ``grid`` are the spans that the response or the chunk meets, and ``is_empty``
    tells which of them hold no bar.
    """

    keys: np.ndarray
    ends: np.ndarray
    low: int
    kept: np.ndarray
    start: int
    end: int
    grid: SessionGrid
    is_empty: np.ndarray

    def empty_spans(self, chosen: np.ndarray | None = None) -> IntervalSet:
        """Return the spans that hold no bar, or those of them that a mask chooses."""
        mask = self.is_empty if chosen is None else self.is_empty & chosen
        if not mask.any():
            return IntervalSet()
        return IntervalSet.from_arrays(self.grid.starts[mask], self.grid.ends[mask])


def evaluate(context: EvaluationContext, bars: pa.Table, reach: Interval | None) -> Evaluation:
    """Return what follows from a response with bars.

    Args:
        context: what was requested.
        bars: the bars of the response, sorted and unique by timestamp, not empty.
        reach: the interval of real time that the gateway states to have answered, or None.
    """
    reading = _read(context, bars, reach)
    kept = _chosen(bars, reading.kept)
    earlier_only = reading.low == len(reading.keys)
    if earlier_only:
        return Evaluation(kept, IntervalSet(), earlier_only=True)
    unread = reading.empty_spans() | context.impossible
    covered = _spanned_by(context, reading) - unread - _open_end(context, reading)
    return Evaluation(kept, covered, _around(context, reading), _begins_at(context, reading))


def answered_now(
    context: EvaluationContext, bars: pa.Table | None, reach: Interval | None
) -> Chunk | None:
    """Return the chunk that a response without a requested end can cover; None where unclear.

    It ends no later than the moment at which the request was sent, which is the context's ``now``,
    and no later than the stated reach. It may hold some bars more than were due at planning.

    How far back such a request reaches is counted from a moment that the gateway chooses. So its
    response does not show that a closed session is empty, nor where data begin: that takes the
    same request with an end. Bars of a later session than any known one make the reach unclear
    too.

    Args:
        context: what was requested; its ``now`` is when the request was sent.
        bars: as for ``evaluate``; None for a response without bars.
        reach: as for ``evaluate``.
    """
    chunk, timeframe = context.chunk, context.timeframe
    until = context.now if reach is None else min(context.now, reach.end)
    spans = session_grid(context.calendar, timeframe).spans_in(chunk.interval)
    keys = np.empty(0, np.int64) if bars is None else timestamps(bars)
    older = int(np.searchsorted(keys, micros(chunk.interval.start)))
    if older == len(keys) and not context.holds_back:
        if any(is_closed(span, until) for span in spans):
            return None
    elif older < len(keys):
        if _is_of_later_session(context, spans[-1], moment(keys[-1])):
            return None
        if older == 0 and any(span.interval.end <= moment(keys[0]) for span in spans):
            return None
    end = chunk.interval.end
    if timeframe.is_intraday:
        if end < spans[-1].interval.end:
            end = max(end, min(spans[-1].interval.end, until - bar_lag()))
        end = min(end, until)
    else:
        over = [span.interval.end for span in spans if span.over_at <= until]
        end = min(end, max(over, default=chunk.interval.start))
    stated = between(chunk.interval.start, end)
    return replace(chunk, interval=stated, ends_at=until) if stated else None


def _is_of_later_session(context: EvaluationContext, last: Span, newest: datetime) -> bool:
    """Return whether a bar is of a later session date (1w: week) than a span."""
    if not context.timeframe.is_intraday:
        return newest >= last.interval.end
    calendar = context.calendar
    return calendar.day_of(newest) > calendar.day_of(last.closes_at - LAST_INSTANT)


def _read(context: EvaluationContext, bars: pa.Table, reach: Interval | None) -> _Reading:
    """Return each bar's end, and which bars are whole, requested and final."""
    chunk, timeframe = context.chunk, context.timeframe
    keys = timestamps(bars)
    start, end = micros(chunk.interval.start), micros(chunk.interval.end)
    newest = keys.item(-1) + timeframe.seconds * 1_000_000
    grid = session_grid(context.calendar, timeframe)
    grid = grid.between(min(keys.item(0), start), max(newest, end))
    ends, final_at = _ends(keys, grid)
    if chunk.meets_covered:
        ends[keys < end] = np.minimum(ends[keys < end], end)
    low = int(keys.searchsorted(start))
    kept = (ends <= end) & (final_at <= micros(context.now))
    kept[:low] = False
    if reach is not None and timeframe.is_intraday:
        kept &= ~_cut(keys, ends, reach)
    if context.holds_back and timeframe.is_intraday:
        kept[-1] &= bool(ends[-1] <= micros(context.now - _LONGEST_DELAY))
    is_empty = keys.searchsorted(grid.ends) == keys.searchsorted(grid.starts)
    return _Reading(keys, ends, low, kept, start, end, grid, is_empty)


def _ends(keys: np.ndarray, grid: SessionGrid) -> tuple[np.ndarray, np.ndarray]:
    """Return each bar's end by bar timestamp, and when it is final in real time.

    An intraday bar ends a timeframe's length after its start, or earlier where the next bar
    starts or its session closes: a session's first and last bars may be shorter. A bar of a date
    without a known session is final a length after its end, or with any later bar: whatever covers
    later time covers it too.
    """
    length = grid.timeframe.seconds * 1_000_000
    ends = keys + length
    position, known = _positions(keys, grid)
    if not grid.timeframe.is_intraday:
        final_at = ends + length
        final_at[known] = grid.over[position[known]] + _to_micros(final_lag())
        return ends, np.minimum.accumulate(final_at[::-1])[::-1]
    ends[:-1] = np.minimum(ends[:-1], keys[1:])
    ends[known] = np.minimum(ends[known], grid.ends[position[known]])
    return ends, ends + _to_micros(bar_lag())


def _positions(keys: np.ndarray, grid: SessionGrid) -> tuple[np.ndarray, np.ndarray]:
    """Return for each bar the index of the span it may lie in, and whether it does."""
    position = grid.starts.searchsorted(keys, side="right") - 1
    known = position >= 0
    known[known] = keys[known] < grid.ends[position[known]]
    return position, known


def _cut(keys: np.ndarray, ends: np.ndarray, reach: Interval) -> np.ndarray:
    """Return whether the response's first and last bars are cut by the edges of its stated reach.

    Only those two: the stated interval counts calendar days where the response counts sessions, so
    its edges may lie anywhere among the others (grade L).
    """
    cut = np.zeros(len(keys), dtype=bool)
    cut[0] = keys[0] < micros(reach.start) < ends[0]
    cut[-1] |= keys[-1] < micros(reach.end) < ends[-1]
    return cut


def _spanned_by(context: EvaluationContext, reading: _Reading) -> IntervalSet:
    """Return the requested interval that the bars of a response span."""
    keys, low = reading.keys, reading.low
    positions = np.flatnonzero(reading.kept)
    if not len(positions):
        is_inside = low > 0 and keys.item(-1) >= reading.end
        newer = keys.item(low) if is_inside else reading.start
        return _interval_set(reading.start, min(newer, reading.end))
    first, last = positions.item(0), positions.item(-1)
    # Older bars in the response prove that nothing lies between the requested start and the first.
    reaches_back = low > 0 and first == low
    start = reading.start if reaches_back else keys.item(first)
    return _interval_set(start, _right_bound(context, reading, last))


def _interval_set(start: int, end: int) -> IntervalSet:
    """Return the set of one interval, or an empty one where it would be empty or reversed."""
    if start >= end:
        return IntervalSet()
    return IntervalSet.from_arrays(np.array([start], np.int64), np.array([end], np.int64))


def _right_bound(context: EvaluationContext, reading: _Reading, last: int) -> int:
    if last + 1 < len(reading.keys):
        return min(int(reading.keys[last + 1]), reading.end)
    end, grid = int(reading.ends[last]), reading.grid
    position = _begun_by(grid, reading.keys.item(last))
    is_inside = position >= 0 and reading.keys.item(last) < grid.ends.item(position)
    if not is_inside or context.holds_back:
        return end
    following = position + 1 < len(grid)
    later = int(grid.starts[position + 1]) if following else reading.end
    if end < grid.ends.item(position):
        is_last_requested = later >= reading.end
        if not (is_last_requested and _is_quiet_end(context, reading, position, end)):
            return end
    elif not _is_final(context, grid, position):
        return end
    return min(reading.end, later)


def _begun_by(grid: SessionGrid, timestamp: int) -> int:
    """Return the index of the newest span that has begun by a timestamp, -1 for none."""
    return int(grid.starts.searchsorted(timestamp, side="right")) - 1


def _open_end(context: EvaluationContext, reading: _Reading) -> IntervalSet:
    """Return the last instant of the newest session with bars, if more bars of it may follow.

    Bars after its close do not make it final: they show that the instrument trades longer than the
    calendar says.
    """
    grid, position = reading.grid, _begun_by(reading.grid, reading.keys.item(-1))
    is_intraday = context.timeframe.is_intraday
    if position < 0 or not is_intraday or _is_final(context, grid, position):
        return IntervalSet()
    end = grid.ends.item(position)
    return _interval_set(end - _to_micros(LAST_INSTANT), end)


def _is_final(context: EvaluationContext, grid: SessionGrid, position: int) -> bool:
    """Return whether no later response can add anything about a session's end."""
    closes = int(grid.closes[position])
    is_over = max(int(grid.over[position]), closes) <= micros(context.now - final_lag())
    return is_over and micros(context.chunk.ends_at) >= closes


def _is_quiet_end(context: EvaluationContext, reading: _Reading, position: int, end: int) -> bool:
    """Return whether the quiet before a close is no longer than any pause in the response."""
    grid = reading.grid
    if not _is_final(context, grid, position) or not context.timeframe.is_intraday:
        return False
    in_span, known = _positions(reading.keys, grid)
    same = known[1:] & known[:-1] & (in_span[1:] == in_span[:-1])
    pauses = np.diff(reading.keys)[same] - context.timeframe.seconds * 1_000_000
    return bool(grid.ends.item(position) - end <= pauses.max(initial=0))


def _around(context: EvaluationContext, reading: _Reading) -> IntervalSet:
    """Return the requested sessions without a bar that have bars on both sides."""
    start = max(reading.start, reading.keys.item(0))
    end = min(reading.end, reading.keys.item(-1))
    found = reading.empty_spans((reading.grid.starts >= start) & (reading.grid.ends <= end))
    if not context.impossible or not found:
        return found
    return IntervalSet(
        span.interval
        for span in reading.grid
        if found.covers(span.interval) and not context.impossible.clip(span.interval)
    )


def _begins_at(context: EvaluationContext, reading: _Reading) -> datetime | None:
    """Return the first bar's timestamp where sessions before it were requested and have none."""
    first = reading.keys.item(0)
    if reading.low > 0 or reading.start >= first:
        return None
    if context.impossible and context.impossible & _interval_set(reading.start, first):
        return None
    grid, until = reading.grid, min(first, reading.end)
    is_before = (grid.ends <= until) & (grid.starts >= reading.start)
    return moment(first) if is_before.any() else None


def _chosen(bars: pa.Table, kept: np.ndarray) -> pa.Table:
    """Return the bars of a mask, which most often are one run: that is not copied."""
    first, count = int(kept.argmax()), int(np.count_nonzero(kept))
    if count == len(kept):
        return bars
    if kept[first : first + count].all():
        return bars.slice(first, count)
    return bars.filter(pa.array(kept))


def _to_micros(length: timedelta) -> int:
    return length // timedelta(microseconds=1)
