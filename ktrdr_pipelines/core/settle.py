"""Settling: what of an answer is kept, and what it proves.

Not here: asking (``ib.source``), writing (``store.parquet``), which proof of emptiness is enough
(``core.doubts``).

The rules, and why:

- A bar is kept when it lies wholly inside what was asked and answered and has ended: IB clips
  bars at the asked end, and may clip one at the start of the duration (grade L).
- The left edge is proved from the first bar, or wholly where the answer reaches further back.
- The right edge is proved to the end of the last bar, and over closed time behind it: a silence
  before a close may be an answer cut short, so it is asked once more by itself.
- Between them minutes without a trade are settled; a session without a single bar is not.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.core.bars import micros, stamps
from ktrdr_pipelines.core.gaps import bar_lag, final_lag, is_closed
from ktrdr_pipelines.core.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.core.plan import Chunk
from ktrdr_pipelines.core.sessions import SessionCalendar, Span, expected_spans
from ktrdr_pipelines.core.timeframes import Timeframe

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked, of which series, and when: what an answer is judged by."""

    chunk: Chunk
    calendar: SessionCalendar
    timeframe: Timeframe
    now: datetime


@dataclass(frozen=True, slots=True)
class Settlement:
    """The bars to keep, and the stretch of stamps that they settle.

    ``earlier_only`` says that the answer held bars, all of them before what was asked: the
    gateway looked for what was asked and found only older bars.
    """

    bars: pa.Table
    proved: IntervalSet
    earlier_only: bool = False


@dataclass(frozen=True, slots=True)
class _Reading:
    """An answer as arrays: microseconds since 1970 UTC, one place a bar.

    ``keys`` and ``ends`` are on the stamp axis; ``low`` is the first place inside the chunk;
    ``kept`` says which bars stay.
    """

    keys: np.ndarray
    ends: np.ndarray
    low: int
    kept: np.ndarray
    spans: Sequence[Span]


def settle(question: Question, bars: pa.Table, reach: Interval | None) -> Settlement:
    """Decide what an answer gives.

    Args:
        question: what was asked.
        bars: what came, sorted and unique by stamp, not empty.
        reach: the stretch of real time that the gateway says it answered, or None.
    """
    reading = _read(question, bars, reach)
    if not reading.kept.any():
        only_earlier = reading.low == len(reading.keys)
        return Settlement(bars.slice(0, 0), IntervalSet(), earlier_only=only_earlier)
    return Settlement(bars.filter(pa.array(reading.kept)), _proved(question, reading))


def _read(question: Question, bars: pa.Table, reach: Interval | None) -> _Reading:
    """Find each bar's end, and which bars are whole, asked for and final."""
    chunk, timeframe = question.chunk, question.timeframe
    keys = stamps(bars)
    around = Interval(
        min(_moment(keys[0]), chunk.stamps.start),
        max(_moment(keys[-1]) + timeframe.length, chunk.stamps.end),
    )
    spans = expected_spans(question.calendar, timeframe, around)
    ends, final_at = _ends(keys, spans, timeframe)
    if chunk.meets_settled:
        chunk_end = micros(chunk.stamps.end)
        ends[keys < chunk_end] = np.minimum(ends[keys < chunk_end], chunk_end)
    low = int(np.searchsorted(keys, micros(chunk.stamps.start)))
    kept = (ends <= micros(chunk.stamps.end)) & (final_at <= micros(question.now))
    kept[:low] = False
    if reach is not None and timeframe.is_intraday:
        kept &= ~_cut(keys, ends, reach)
    return _Reading(keys, ends, low, kept, spans)


def _ends(
    keys: np.ndarray, spans: Sequence[Span], timeframe: Timeframe
) -> tuple[np.ndarray, np.ndarray]:
    """Give each bar's end on the stamp axis, and when it is final in real time.

    An intraday bar ends a timeframe's length after its start, or earlier where the next bar
    starts or its session closes: a session's first and last bars may be shorter. A bar of a date
    without a known session is final a length after its end, or with any later bar: what is settled
    behind it settles it too.
    """
    length = timeframe.seconds * 1_000_000
    ends = keys + length
    place, known = _places(keys, spans)
    if not timeframe.is_intraday:
        final_at = ends + length
        closes = _array(span.closes_at + final_lag() for span in spans)
        final_at[known] = closes[place[known]]
        return ends, np.minimum.accumulate(final_at[::-1])[::-1]
    ends[:-1] = np.minimum(ends[:-1], keys[1:])
    span_ends = _array(span.stamps.end for span in spans)
    ends[known] = np.minimum(ends[known], span_ends[place[known]])
    return ends, ends + _to_micros(bar_lag())


def _places(keys: np.ndarray, spans: Sequence[Span]) -> tuple[np.ndarray, np.ndarray]:
    """Give for each bar the place of the span it may lie in, and whether it does."""
    starts = _array(span.stamps.start for span in spans)
    span_ends = _array(span.stamps.end for span in spans)
    place = np.searchsorted(starts, keys, side="right") - 1
    known = place >= 0
    known[known] = keys[known] < span_ends[place[known]]
    return place, known


def _cut(keys: np.ndarray, ends: np.ndarray, reach: Interval) -> np.ndarray:
    """Say whether the answer's first and last bars are cut by the edges of what was answered.

    Only those two: the stated stretch counts calendar days where the answer counts sessions, so
    its edges may lie anywhere among the others (grade L).
    """
    cut = np.zeros(len(keys), dtype=bool)
    cut[0] = keys[0] < micros(reach.start) < ends[0]
    cut[-1] |= keys[-1] < micros(reach.end) < ends[-1]
    return cut


def _proved(question: Question, reading: _Reading) -> IntervalSet:
    """Give the stretch that an answer proves, less the sessions that it passed over."""
    places = np.flatnonzero(reading.kept)
    edge = between(
        _left_edge(question, reading, int(places[0])),
        _right_edge(question, reading, int(places[-1])),
    )
    return IntervalSet([edge] if edge else []) - _passed_over(reading)


def _left_edge(question: Question, reading: _Reading, first: int) -> datetime:
    """Give the asked start where the answer holds older bars too, else the first bar's."""
    reaches_back = reading.low > 0 and first == reading.low
    return question.chunk.stamps.start if reaches_back else _moment(reading.keys[first])


def _right_edge(question: Question, reading: _Reading, last: int) -> datetime:
    """Give how far to the right the answer proves."""
    asked_end = question.chunk.stamps.end
    if last + 1 < len(reading.keys):
        return min(_moment(reading.keys[last + 1]), asked_end)
    end, stamp = _moment(reading.ends[last]), _moment(reading.keys[last])
    span = next((span for span in reading.spans if stamp in span.stamps), None)
    if span is None or end < span.stamps.end or not is_closed(span, question.now):
        return end
    later = (other.stamps.start for other in reading.spans if other.stamps.start >= end)
    return min(asked_end, next(later, asked_end))


def _passed_over(reading: _Reading) -> IntervalSet:
    """Give the spans that hold no bar at all."""
    starts = _array(span.stamps.start for span in reading.spans)
    ends = _array(span.stamps.end for span in reading.spans)
    counts = np.searchsorted(reading.keys, ends) - np.searchsorted(reading.keys, starts)
    return IntervalSet(
        span.stamps for span, count in zip(reading.spans, counts, strict=True) if count == 0
    )


def _array(moments: Iterable[datetime]) -> np.ndarray:
    return np.array([micros(moment) for moment in moments], dtype=np.int64)


def _moment(value: int) -> datetime:
    return _EPOCH + timedelta(microseconds=int(value))


def _to_micros(length: timedelta) -> int:
    return length // timedelta(microseconds=1)
