"""Every expected span of a calendar and timeframe as arrays, for looking at years at once.

The same spans as ``core.sessions.expected_spans`` gives one by one. Not here: what is settled of
them (``core.completeness``).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from ktrdr_pipelines.core.sessions import SessionCalendar
from ktrdr_pipelines.core.stretches import Stretches, shared
from ktrdr_pipelines.core.timeframes import Timeframe

_DAY_US = 86_400_000_000
_MOST_KEPT = 64


@dataclass(frozen=True, slots=True)
class Trading:
    """The parts of sessions in which trading goes on: sessions less their breaks.

    ``offsets`` is what local clocks are ahead of UTC; ``length`` is that of a bar; all in
    microseconds.
    """

    parts: Stretches
    offsets: np.ndarray
    length: int

    def bars(self, pieces: Stretches) -> np.ndarray:
        """Count the bars that begin in each piece: at a part's start, then by the local clock."""
        meet = shared(pieces, self.parts)
        first = self.parts.starts[meet.right]
        counts = self._before(meet.right, first, meet.ends) - self._before(
            meet.right, first, meet.starts
        )
        found: np.ndarray = np.bincount(meet.left, weights=counts, minlength=len(pieces.starts))
        return np.asarray(found.astype(np.int64))

    def _before(self, place: np.ndarray, first: np.ndarray, until: np.ndarray) -> np.ndarray:
        """Count the bars of parts that begin before a moment."""
        offset = self.offsets[place]
        marks = -(-(until + offset) // self.length) - (first + offset) // self.length
        return np.asarray(np.where(until > first, marks, 0))


@dataclass(frozen=True, slots=True)
class SpanArrays:
    """Expected spans, oldest first, one place each; times in microseconds since 1970 UTC.

    ``spans`` lie on the stamp axis, ``closes`` is when they are over; ``days`` is the session date
    (1w: the Monday); ``bars`` the number of bars expected in each. ``trading`` is None for days
    and weeks, whose spans hold one bar each.
    """

    timeframe: Timeframe
    spans: Stretches
    closes: np.ndarray
    days: np.ndarray
    bars: np.ndarray
    trading: Trading | None

    def __len__(self) -> int:
        return len(self.closes)

    def bars_in(self, pieces: Stretches) -> np.ndarray:
        """Count the expected bars of pieces of spans; each piece is a part of one bar at least."""
        if self.trading is None:
            return np.ones(len(pieces.starts), dtype=np.int64)
        return np.asarray(np.maximum(self.trading.bars(pieces), 1))

    def places_of(self, days: np.ndarray) -> np.ndarray:
        """Give the place of the span of each session date (``datetime64[D]``), -1 where none is."""
        if not len(self.days):
            return np.full(len(days), -1)
        keys = _mondays(days) if self.timeframe is Timeframe.W1 else days
        place = np.minimum(np.searchsorted(self.days, keys), len(self.days) - 1)
        return np.asarray(np.where(self.days[place] == keys, place, -1))

    def slice(self, low: int, high: int) -> "SpanArrays":
        """Give the spans of some places; nothing is copied."""
        spans = Stretches(self.spans.starts[low:high], self.spans.ends[low:high])
        days, bars = self.days[low:high], self.bars[low:high]
        return SpanArrays(self.timeframe, spans, self.closes[low:high], days, bars, self.trading)


@lru_cache(maxsize=_MOST_KEPT)
def span_arrays(calendar: SessionCalendar, timeframe: Timeframe) -> SpanArrays:
    """Give all spans that a calendar knows; the last calendars asked for are kept."""
    if timeframe.is_intraday:
        return _intraday(calendar, timeframe)
    days = calendar.days.astype("datetime64[D]")
    if timeframe is Timeframe.D1:
        return _dated(calendar, timeframe, days, calendar.closes)
    mondays, first = np.unique(_mondays(days), return_index=True)
    last = np.append(first[1:], len(days)) - 1
    return _dated(calendar, timeframe, mondays, calendar.closes[last])


def _intraday(calendar: SessionCalendar, timeframe: Timeframe) -> SpanArrays:
    spans = Stretches(calendar.opens, calendar.closes)
    parts = _less_breaks(spans, calendar.breaks)
    offsets = _offsets(parts.starts, calendar.zone)
    trading = Trading(parts, offsets, timeframe.seconds * 1_000_000)
    days = calendar.days.astype("datetime64[D]")
    return SpanArrays(timeframe, spans, calendar.closes, days, trading.bars(spans), trading)


def _dated(
    calendar: SessionCalendar, timeframe: Timeframe, first: np.ndarray, closes: np.ndarray
) -> SpanArrays:
    starts = first.astype(np.int64) * _DAY_US
    spans = Stretches(starts, starts + (1 if timeframe is Timeframe.D1 else 7) * _DAY_US)
    if calendar.days_may_differ:
        closes = np.maximum(closes, spans.ends)
    return SpanArrays(timeframe, spans, closes, first, np.ones(len(first), np.int64), None)


def _less_breaks(spans: Stretches, breaks: np.ndarray) -> Stretches:
    """Give the stretches of sessions in which trading goes on."""
    if not len(breaks):
        return spans
    starts = np.sort(np.append(spans.starts, breaks[:, 1]))
    ends = np.sort(np.append(spans.ends, breaks[:, 0]))
    return Stretches(starts, ends)


def _offsets(moments: np.ndarray, zone: str) -> np.ndarray:
    utc = pd.DatetimeIndex(moments.astype("datetime64[us]")).tz_localize("UTC")
    wall = utc.tz_convert(zone).tz_localize(None).to_numpy().astype("datetime64[us]")
    return np.asarray(wall.astype(np.int64) - moments)


def _mondays(days: np.ndarray) -> np.ndarray:
    """Give the Mondays of the weeks that dates lie in; 1970-01-01 was a Thursday."""
    return np.asarray(days - (days.astype(np.int64) + 3) % 7)
