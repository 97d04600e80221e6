"""Planning: from what is missing to the fewest requests that the limits allow.

Not here: sending them (``ib.source``), what an answer proves (``core.settle``).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import takewhile

from ktrdr_pipelines.core.gaps import due_gaps
from ktrdr_pipelines.core.intervals import Interval, IntervalSet
from ktrdr_pipelines.core.sessions import SessionCalendar, Span, expected_spans
from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.limits import IbLimitsRegistry

_MOST_SESSIONS_IN_DAYS = 60
_MOST_WEEKS = 52


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one request asks for.

    ``stamps`` is what its answer may settle; ``ends_at`` and ``duration`` are the request's own;
    ``sessions`` counts the spans inside.
    """

    stamps: Interval
    ends_at: datetime
    duration: str
    sessions: int

    def __str__(self) -> str:
        return f"{self.duration} to {self.ends_at:%Y-%m-%dT%H:%M:%SZ}"


@dataclass(frozen=True, slots=True)
class Doubt:
    """A stretch that an answer left without bars, and that a narrower request must confirm.

    ``probed`` is False after "no data" for several sessions: the gateway may have answered so
    because the request reached past its oldest bar (grade C), so the newest session is asked
    alone first. ``rounds`` counts how often the stretch was left without proof.
    """

    interval: Interval
    probed: bool
    rounds: int = 1


@dataclass(frozen=True, slots=True)
class Need:
    """Everything that planning depends on: one series' wants, facts and limits."""

    calendar: SessionCalendar
    timeframe: Timeframe
    wanted: IntervalSet
    settled: IntervalSet
    now: datetime
    most_days: int

    def gaps(self, within: Interval | None = None) -> IntervalSet:
        """Give what is due and not settled, of everything or of one stretch."""
        return due_gaps(
            self.calendar,
            self.timeframe,
            wanted=self.wanted.clip(within) if within else self.wanted,
            settled=self.settled,
            now=self.now,
        )


def plan(need: Need, doubts: Sequence[Doubt] = ()) -> list[Chunk]:
    """Cut what is missing into chunks, newest first.

    Chunks end where a gap ends, so at session ends wherever a session is missing as a whole; they
    reach back over as many sessions as ``most_days`` allows and hold at least one; gaps that one
    request serves are joined. A doubt is asked for by itself.
    """
    gaps = need.gaps()
    doubted = IntervalSet(doubt.interval for doubt in doubts)
    chunks = _cut(need, gaps - doubted)
    for doubt in doubts:
        chunks.extend(_cut(need, gaps.clip(doubt.interval), one_span=not doubt.probed))
    return sorted(chunks, key=lambda chunk: chunk.ends_at, reverse=True)


def halved(need: Need, doubt: Doubt) -> Doubt | None:
    """Give the older half of a doubt whose newest session turned out to have bars."""
    spans = _spans(need, need.gaps(doubt.interval))
    older = spans[: len(spans) // 2]
    if not older:
        return None
    end = min(older[-1].stamps.end, doubt.interval.end)
    return replace(doubt, interval=Interval(doubt.interval.start, end))


def _cut(need: Need, gaps: IntervalSet, *, one_span: bool = False) -> list[Chunk]:
    """Cut gaps into chunks, newest first; with ``one_span`` only the newest session's."""
    chunks: list[Chunk] = []
    spans = _spans(need, gaps)
    while spans:
        taken = 1 if one_span else _fitting(need, spans)
        chunks.append(_chunk(need, gaps, spans[-taken:]))
        if one_span:
            break
        spans = spans[:-taken]
    return chunks


def _spans(need: Need, gaps: IntervalSet) -> list[Span]:
    """Give the spans, oldest first, that hold a part of any gap."""
    hull = gaps.hull
    if hull is None:
        return []
    spans = expected_spans(need.calendar, need.timeframe, hull)
    return [span for span in spans if gaps.clip(span.stamps)]


def _fitting(need: Need, spans: Sequence[Span]) -> int:
    """Count how many of the newest spans fit into one request; at least one."""
    earliest = spans[-1].closes_at - timedelta(days=need.most_days)
    fitting = takewhile(lambda span: span.opens_at >= earliest, reversed(spans))
    return max(1, sum(1 for _ in fitting))


def _chunk(need: Need, gaps: IntervalSet, spans: Sequence[Span]) -> Chunk:
    first, last = spans[0], spans[-1]
    hull = gaps.clip(Interval(first.stamps.start, last.stamps.end)).hull
    assert hull is not None  # noqa: S101  (every span given holds a part of a gap)
    stamps = Interval(_left_edge(need, hull.start, first), hull.end)
    inside = expected_spans(need.calendar, need.timeframe, stamps)
    ends_at = hull.end if need.timeframe.is_intraday else last.closes_at
    duration = _duration(need, Interval(hull.start, hull.end), inside, ends_at)
    return Chunk(stamps, ends_at, duration, len(inside))


def _left_edge(need: Need, start: datetime, first: Span) -> datetime:
    """Reach back over closed time, where bars outside the known sessions may stand."""
    if not need.timeframe.is_intraday or start > first.stamps.start:
        return start
    day_before = Interval(start - timedelta(days=7), start)
    earlier = expected_spans(need.calendar, need.timeframe, day_before)
    edge = earlier[-1].stamps.end if earlier else day_before.start
    wanted = need.wanted.hull
    return max(edge, wanted.start) if wanted else edge


def _duration(need: Need, gap: Interval, inside: Sequence[Span], ends_at: datetime) -> str:
    """Say in IB's words how far back from its end a chunk reaches.

    ``N D`` means N sessions (grade L), so sessions are counted, not days.
    """
    timeframe = need.timeframe
    if timeframe is Timeframe.W1:
        weeks = _ceil(gap.length, timedelta(days=7))
        return f"{weeks} W" if weeks <= _MOST_WEEKS else f"{_ceil(gap.length, _YEAR)} Y"
    if timeframe is Timeframe.D1:
        short = len(inside) <= _MOST_SESSIONS_IN_DAYS
        return f"{len(inside)} D" if short else f"{_ceil(ends_at - inside[0].opens_at, _YEAR)} Y"
    seconds = _seconds(timeframe, gap)
    if len(inside) == 1 and gap != inside[0].stamps and seconds <= _most_seconds(timeframe):
        return f"{seconds} S"
    return f"{len(inside)} D"


_YEAR = timedelta(days=365)


def _seconds(timeframe: Timeframe, gap: Interval) -> int:
    """Give a gap's length in whole bars and one bar more, whose overlap proves the left edge."""
    return (_ceil(gap.length, timeframe.length) + 1) * timeframe.seconds


def _most_seconds(timeframe: Timeframe) -> int:
    steps: Iterable[int] = (
        step.most
        for step in IbLimitsRegistry.SAFE_STEPS.value
        if step.unit == "S" and step.smallest_bar_s <= timeframe.seconds <= step.largest_bar_s
    )
    return max(steps)


def _ceil(length: timedelta, unit: timedelta) -> int:
    return -(-length // unit)
