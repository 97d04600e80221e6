"""Expected spans and bars of a calendar and timeframe as arrays, for years at once.

The spans are those that ``domain.calendars.sessions.expected_spans`` returns one by one. Sets of
intervals are arrays too: two int64 arrays of one length, starts and ends, ascending and disjoint,
in microseconds since 1970 UTC.

Not here: sets of a few intervals (``domain.intervals``).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from ktrdr_pipelines.domain.bars import micros
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from ktrdr_pipelines.domain.intervals import Interval, Overlaps, overlaps
from ktrdr_pipelines.domain.timeframes import Timeframe

EVER_US = 1 << 62
"""Farther away from 1970, in microseconds, than any moment that occurs."""

_FEW = 64
"""Number of intervals up to which marking one by one is cheaper than looking up each span."""


class IntervalArrays(NamedTuple):
    """Disjoint intervals ``[start, end)``, ascending."""

    starts: np.ndarray
    ends: np.ndarray


def no_intervals() -> IntervalArrays:
    """Return an empty set."""
    return IntervalArrays(np.empty(0, np.int64), np.empty(0, np.int64))


def interval_arrays(intervals: Iterable[Interval]) -> IntervalArrays:
    """Return the set of some intervals, given in any order."""
    bounds = [(micros(one.start), micros(one.end)) for one in intervals]
    return joined(np.array(bounds, dtype=np.int64).reshape(-1, 2))


def joined(bounds: np.ndarray) -> IntervalArrays:
    """Return the set of pairs in any order, shape ``(n, 2)``; those that overlap or touch merge."""
    if len(bounds) < 2:
        return IntervalArrays(bounds[:, 0], bounds[:, 1])
    bounds = bounds[np.argsort(bounds[:, 0], kind="stable")]
    reach = np.maximum.accumulate(bounds[:, 1])
    begins = np.append(True, bounds[1:, 0] > reach[:-1])
    ends = np.append(begins[1:], True)
    return IntervalArrays(bounds[begins, 0], reach[ends])


def without(whole: IntervalArrays, taken: IntervalArrays) -> Overlaps:
    """Return the difference of two sets; ``left`` tells which interval each rest is a part of."""
    rest = IntervalArrays(np.append(-EVER_US, taken.ends), np.append(taken.starts, EVER_US))
    return shared(whole, rest)


def shared(left: IntervalArrays, right: IntervalArrays) -> Overlaps:
    """Return where two sets overlap, ascending."""
    return overlaps(*left, *right)


def is_covered(spans: IntervalArrays, by: IntervalArrays) -> np.ndarray:
    """Return for each span whether it lies wholly inside one interval."""
    inside = np.zeros(len(spans.starts), dtype=bool)
    if len(by.starts) < _FEW:
        low = spans.starts.searchsorted(by.starts, side="left")
        high = spans.ends.searchsorted(by.ends, side="right")
        for first, end in zip(low.tolist(), high.tolist(), strict=True):
            inside[first:end] = True
        return inside
    position = by.starts.searchsorted(spans.starts, side="right") - 1
    return np.asarray((position >= 0) & (by.ends[np.maximum(position, 0)] >= spans.ends))


_DAY_US = 86_400_000_000
_MOST_KEPT = 64


@dataclass(frozen=True, slots=True)
class Trading:
    """The parts of sessions in which trading takes place: sessions without their breaks.

    ``offsets`` is how far local clocks are ahead of UTC; ``length`` is that of a bar; all in
    microseconds.
    """

    parts: IntervalArrays
    offsets: np.ndarray
    length: int

    def bars(self, pieces: IntervalArrays) -> np.ndarray:
        """Return how many bars begin in each piece: at a part's start, then by the local clock."""
        meet = shared(pieces, self.parts)
        first = self.parts.starts[meet.right]
        counts = self._before(meet.right, first, meet.ends) - self._before(
            meet.right, first, meet.starts
        )
        found: np.ndarray = np.bincount(meet.left, weights=counts, minlength=len(pieces.starts))
        return np.asarray(found.astype(np.int64))

    def _before(self, position: np.ndarray, first: np.ndarray, until: np.ndarray) -> np.ndarray:
        """Return how many bars of parts begin before a moment."""
        offset = self.offsets[position]
        marks = -(-(until + offset) // self.length) - (first + offset) // self.length
        return np.asarray(np.where(until > first, marks, 0))


@dataclass(frozen=True, slots=True)
class SpanArrays:
    """Expected spans, oldest first, one element each; times in microseconds since 1970 UTC.

    ``spans`` are by bar timestamp, ``closes`` is when they are over in real time; ``days`` is the
    session date (1w: the Monday); ``bars`` the number of bars expected in each. ``trading`` is None
    for days and weeks, whose spans hold one bar each.
    """

    timeframe: Timeframe
    spans: IntervalArrays
    closes: np.ndarray
    days: np.ndarray
    bars: np.ndarray
    trading: Trading | None

    def __len__(self) -> int:
        return len(self.closes)

    def bars_in(self, pieces: IntervalArrays) -> np.ndarray:
        """Return the number of bars expected in pieces of spans, at least one in each piece."""
        if self.trading is None:
            return np.ones(len(pieces.starts), dtype=np.int64)
        return np.asarray(np.maximum(self.trading.bars(pieces), 1))

    def positions_of(self, days: np.ndarray) -> np.ndarray:
        """Return the index of the span of each session date (``datetime64[D]``), or -1 for none."""
        if not len(self.days):
            return np.full(len(days), -1)
        keys = _mondays(days) if self.timeframe is Timeframe.W1 else days
        position = np.minimum(np.searchsorted(self.days, keys), len(self.days) - 1)
        return np.asarray(np.where(self.days[position] == keys, position, -1))

    def slice(self, low: int, high: int) -> "SpanArrays":
        """Return the spans of a range of indexes; nothing is copied."""
        spans = IntervalArrays(self.spans.starts[low:high], self.spans.ends[low:high])
        days, bars = self.days[low:high], self.bars[low:high]
        return SpanArrays(self.timeframe, spans, self.closes[low:high], days, bars, self.trading)


@lru_cache(maxsize=_MOST_KEPT)
def span_arrays(calendar: SessionCalendar, timeframe: Timeframe) -> SpanArrays:
    """Return all spans of a calendar; the most recently used results are cached."""
    days = calendar.days.astype("datetime64[D]")
    if timeframe.is_intraday:
        return _intraday(calendar, timeframe, days)
    if timeframe is Timeframe.D1:
        return _dated(calendar, timeframe, days, calendar.closes)
    mondays, first = np.unique(_mondays(days), return_index=True)
    last = np.append(first[1:], len(days)) - 1
    return _dated(calendar, timeframe, mondays, calendar.closes[last])


def _intraday(calendar: SessionCalendar, timeframe: Timeframe, days: np.ndarray) -> SpanArrays:
    spans, breaks = IntervalArrays(calendar.opens, calendar.closes), calendar.breaks
    parts = spans
    if len(breaks):
        starts = np.sort(np.append(spans.starts, breaks[:, 1]))
        parts = IntervalArrays(starts, np.sort(np.append(spans.ends, breaks[:, 0])))
    utc = pd.DatetimeIndex(parts.starts.astype("datetime64[us]")).tz_localize("UTC")
    wall = utc.tz_convert(calendar.zone).tz_localize(None).to_numpy().astype("datetime64[us]")
    offsets = np.asarray(wall.astype(np.int64) - parts.starts)
    trading = Trading(parts, offsets, timeframe.seconds * 1_000_000)
    return SpanArrays(timeframe, spans, calendar.closes, days, trading.bars(spans), trading)


def _dated(
    calendar: SessionCalendar, timeframe: Timeframe, first: np.ndarray, closes: np.ndarray
) -> SpanArrays:
    starts = first.astype(np.int64) * _DAY_US
    spans = IntervalArrays(starts, starts + (1 if timeframe is Timeframe.D1 else 7) * _DAY_US)
    if calendar.days_may_differ:
        closes = np.maximum(closes, spans.ends)
    return SpanArrays(timeframe, spans, closes, first, np.ones(len(first), np.int64), None)


def _mondays(days: np.ndarray) -> np.ndarray:
    """Return the Mondays of the weeks that dates lie in; 1970-01-01 was a Thursday."""
    return np.asarray(days - (days.astype(np.int64) + 3) % 7)
