"""The session grid: the spans of time in which a calendar and timeframe are expected to have bars.

There are two axes of time. Real time tells when a session opens and closes. *Bar timestamps* are
real time for intraday bars; for 1d a session is ``[midnight UTC of its date, next midnight)``, for
1w a week is ``[Monday, next Monday)``. Coverage, gaps and chunks are intervals of bar timestamps; a
span connects such an interval to the real open and close.

A grid holds all spans of a calendar as arrays, so that decades of a series take a millisecond, and
gives single ones as ``Span``. All array times are int64 microseconds since 1970 UTC.

Not here: sessions and their calendars (``domain.calendars.sessions``), which of the expected bars
are missing (``domain.planning.gaps``).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache

import numpy as np

from ktrdr_pipelines.domain.bars import micros, moment
from ktrdr_pipelines.domain.calendars.arrays import wall_micros
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet, overlaps
from ktrdr_pipelines.domain.timeframes import Timeframe

_DAY_US = 86_400_000_000
_MOST_KEPT = 64


@dataclass(frozen=True, slots=True)
class Span:
    """An interval of timestamps in which bars are expected, and its open and close in real time.

    ``sessions`` is the number of sessions inside: 1, or for a week the sessions of that week.
    ``ends_late`` is when its bars are whole at the latest, where that is after the close.
    """

    interval: Interval
    opens_at: datetime
    closes_at: datetime
    sessions: int = 1
    ends_late: datetime | None = None

    @property
    def open_interval(self) -> Interval:
        """From its open to its close, in real time."""
        return Interval(self.opens_at, self.closes_at)

    @property
    def over_at(self) -> datetime:
        """When its bars are whole: at the close, or later where bars may be of UTC days."""
        return self.ends_late or self.closes_at


@dataclass(frozen=True, slots=True)
class Trading:
    """The parts of sessions in which trading takes place: sessions without their breaks.

    ``offsets`` is how far local clocks are ahead of UTC; ``length`` is that of a bar; both in
    microseconds.
    """

    starts: np.ndarray
    ends: np.ndarray
    offsets: np.ndarray
    length: int

    def bars(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Return how many bars begin in each piece: at a part's start, then by the local clock."""
        meet = overlaps(starts, ends, self.starts, self.ends)
        first, offset = self.starts[meet.right], self.offsets[meet.right]

        def before(until: np.ndarray) -> np.ndarray:
            """Return how many bars of parts begin before a moment."""
            marks = -(-(until + offset) // self.length) - (first + offset) // self.length
            return np.asarray(np.where(until > first, marks, 0))

        counts = before(meet.ends) - before(meet.starts)
        found: np.ndarray = np.bincount(meet.left, weights=counts, minlength=len(starts))
        return np.asarray(found.astype(np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class SessionGrid:
    """Expected spans, oldest first, one element each; neighbours may touch.

    ``starts`` and ``ends`` are by bar timestamp. In real time, ``opens`` and ``closes`` are those
    of the sessions inside, and at ``over`` the bars are whole. ``days`` is the session date (1w:
    the Monday), ``datetime64[D]``; ``sessions`` and ``bars`` the number of sessions and of bars
    expected in each. ``trading`` is None for days and weeks, whose spans hold one bar each.
    """

    timeframe: Timeframe
    starts: np.ndarray
    ends: np.ndarray
    opens: np.ndarray
    closes: np.ndarray
    over: np.ndarray
    days: np.ndarray
    sessions: np.ndarray
    bars: np.ndarray
    trading: Trading | None

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[Span]:
        columns = (self.starts, self.ends, self.opens, self.closes, self.over, self.sessions)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for start, end, opens, closes, over, sessions in rows:
            interval = Interval(moment(start), moment(end))
            opens_at = interval.start if opens == start else moment(opens)
            closes_at = interval.end if closes == end else moment(closes)
            ends_late = moment(over) if over > closes else None
            yield Span(interval, opens_at, closes_at, sessions, ends_late)

    def slice(self, low: int, high: int) -> "SessionGrid":
        """Return the spans of a range of indexes; nothing is copied."""
        part = slice(low, high)
        return SessionGrid(
            self.timeframe,
            self.starts[part],
            self.ends[part],
            self.opens[part],
            self.closes[part],
            self.over[part],
            self.days[part],
            self.sessions[part],
            self.bars[part],
            self.trading,
        )

    def meeting(self, interval: Interval) -> "SessionGrid":
        """Return the spans that overlap an interval of timestamps; none is cut."""
        return self.between(micros(interval.start), micros(interval.end))

    def between(self, start: int, end: int) -> "SessionGrid":
        """Return the spans that overlap an interval of timestamps, given by its bounds."""
        low = int(self.ends.searchsorted(start, side="right"))
        high = int(self.starts.searchsorted(end, side="left"))
        return self.slice(low, max(low, high))

    def spans_in(self, interval: Interval) -> list[Span]:
        """Return the spans, oldest first, that overlap an interval of timestamps; none is cut."""
        return list(self.meeting(interval))

    def widened(self, intervals: IntervalSet) -> IntervalSet:
        """Return intervals of timestamps, widened so that none of them cuts a span."""
        if not intervals or not len(self):
            return intervals
        starts, ends = intervals.starts, intervals.ends
        first = np.minimum(self.ends.searchsorted(starts, side="right"), len(self) - 1)
        last = np.maximum(self.starts.searchsorted(ends, side="left") - 1, 0)
        inside = (self.starts[first] <= starts) & (starts < self.ends[first])
        starts = np.where(inside, self.starts[first], starts)
        inside = (self.starts[last] < ends) & (ends <= self.ends[last])
        return IntervalSet.from_arrays(starts, np.where(inside, self.ends[last], ends))

    def follow(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Return for each interval but the first whether it follows the one before.

        It does where no bar is expected between them: over a night, a weekend or a holiday.
        """
        after = self.ends.searchsorted(ends[:-1], side="right")
        until = self.starts.searchsorted(starts[1:], side="left")
        return np.asarray((until <= after) | (starts[1:] == ends[:-1]))

    def bars_in(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Return the number of bars expected in pieces of spans, at least one in each piece."""
        if self.trading is None:
            return np.ones(len(starts), dtype=np.int64)
        return np.asarray(np.maximum(self.trading.bars(starts, ends), 1))

    def bars_of(self, spans: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Return the same as ``bars_in`` for pieces whose spans are known, which takes less.

        Args:
            spans: the index of the span that each piece lies in.
            starts, ends: the bounds of the pieces.
        """
        bars = np.maximum(self.bars[spans], 1)
        is_part = (starts != self.starts[spans]) | (ends != self.ends[spans])
        if is_part.any():
            bars[is_part] = self.bars_in(starts[is_part], ends[is_part])
        return np.asarray(bars)

    def positions_of(self, days: np.ndarray) -> np.ndarray:
        """Return the index of the span of each session date (``datetime64[D]``), or -1 for none."""
        if not len(self.days):
            return np.full(len(days), -1)
        keys = _mondays(days) if self.timeframe is Timeframe.W1 else days
        position = np.minimum(np.searchsorted(self.days, keys), len(self.days) - 1)
        return np.asarray(np.where(self.days[position] == keys, position, -1))


def session_grid(calendar: SessionCalendar, timeframe: Timeframe) -> SessionGrid:
    """Return all spans of a calendar; the grids used most recently are cached.

    A calendar that was cut at a date has a part of the grid of the whole one.
    """
    whole = _grid(calendar.whole, timeframe)
    return whole if calendar is calendar.whole else _cut(whole, calendar)


@lru_cache(maxsize=_MOST_KEPT)
def _grid(calendar: SessionCalendar, timeframe: Timeframe) -> SessionGrid:
    days, opens, closes = calendar.days.astype("datetime64[D]"), calendar.opens, calendar.closes
    sessions = np.ones(len(days), np.int64)
    if timeframe.is_intraday:
        trading = _trading(calendar, timeframe)
        bars = trading.bars(opens, closes)
        return SessionGrid(
            timeframe, opens, closes, opens, closes, closes, days, sessions, bars, trading
        )
    length = _DAY_US
    if timeframe is Timeframe.W1:
        days, first, sessions = np.unique(_mondays(days), return_index=True, return_counts=True)
        opens, closes, length = opens[first], closes[first + sessions - 1], 7 * _DAY_US
    starts = days.astype(np.int64) * _DAY_US
    ends = starts + length
    over = np.maximum(closes, ends) if calendar.days_may_differ else closes
    bars = np.ones(len(days), np.int64)
    return SessionGrid(timeframe, starts, ends, opens, closes, over, days, sessions, bars, None)


def _trading(calendar: SessionCalendar, timeframe: Timeframe) -> Trading:
    starts, ends, breaks = calendar.opens, calendar.closes, calendar.breaks
    if len(breaks):
        starts = np.sort(np.append(starts, breaks[:, 1]))
        ends = np.sort(np.append(ends, breaks[:, 0]))
    offsets = wall_micros(starts, calendar.zone) - starts
    return Trading(starts, ends, offsets, timeframe.seconds * 1_000_000)


def _cut(whole: SessionGrid, calendar: SessionCalendar) -> SessionGrid:
    """Return the spans of the first sessions of a whole calendar; its last week may be shorter."""
    count = len(calendar.days)
    if whole.timeframe is not Timeframe.W1 or not count:
        return whole.slice(0, count)
    monday = _mondays(calendar.days[-1:].astype("datetime64[D]"))
    weeks = int(whole.days.searchsorted(monday[0])) + 1
    cut = whole.slice(0, weeks)
    left = count - int(cut.sessions[:-1].sum())
    if left == cut.sessions[-1]:
        return cut
    closes, over, sessions = (column.copy() for column in (cut.closes, cut.over, cut.sessions))
    closes[-1], sessions[-1] = calendar.closes[-1], left
    over[-1] = max(closes[-1], cut.ends[-1]) if calendar.days_may_differ else closes[-1]
    return replace(cut, closes=closes, over=over, sessions=sessions)


def _mondays(days: np.ndarray) -> np.ndarray:
    """Return the Mondays of the weeks that dates lie in; 1970-01-01 was a Thursday."""
    return np.asarray(days - (days.astype(np.int64) + 3) % 7)
