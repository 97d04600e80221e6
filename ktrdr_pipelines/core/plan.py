"""Planning: from what is missing to the fewest requests that the limits allow.

Not here: sending them (``ib.source``), what an answer proves (``core.settle``).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from ktrdr_pipelines.core.gaps import due_gaps
from ktrdr_pipelines.core.intervals import Interval, IntervalSet
from ktrdr_pipelines.core.sessions import SessionCalendar, Span, expected_spans
from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.limits import IbLimitsRegistry

_MOST_SESSIONS_IN_DAYS = 60
_MOST_WEEKS = 52
_HOUR_S = 3_600
"""Whoever asks for longer bars asks for few: nothing cuts an answer of a day's off."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one request asks for.

    ``stamps`` is what its answer may settle; ``ends_at`` and ``duration`` are the request's own;
    ``sessions`` counts the spans inside. ``meets_settled`` says that it ends inside a session
    where settled bars begin, so that its last bar ends there too, however short that makes it.
    """

    stamps: Interval
    ends_at: datetime
    duration: str
    sessions: int
    meets_settled: bool = False

    def __str__(self) -> str:
        return f"{self.duration} to {self.ends_at:%Y-%m-%dT%H:%M:%SZ}"


@dataclass(frozen=True, slots=True)
class Doubt:
    """A stretch that an answer left without bars, and that a narrower request must confirm.

    ``probes`` says how many of its newest sessions must be silent alone before "no data" for the
    whole of it is believed: the gateway may answer so because a request reaches past its oldest
    bar (grade C). ``rounds`` counts how often the stretch was left without proof.
    """

    interval: Interval
    probes: int = 0
    rounds: int = 1


@dataclass(frozen=True, slots=True)
class Need:
    """Everything that planning depends on: one series' wants, facts and limits.

    ``known_from`` is the oldest stamp from which the gateway is known to have bars, if any is.
    ``most_sessions`` is the most that one request may reach over, where fewer work than
    ``most_days`` allow.
    """

    calendar: SessionCalendar
    timeframe: Timeframe
    wanted: IntervalSet
    settled: IntervalSet
    now: datetime
    most_days: int
    known_from: datetime | None = None
    most_sessions: int | None = None

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

    Chunks end where a gap ends, or with the day of a session that is missing to its close; they
    reach back over as many sessions as ``most_days`` allows and hold at least one; gaps that one
    request serves are joined. A doubt is asked for by itself, by a request no wider than it is.
    """
    gaps = need.gaps()
    doubted = IntervalSet(doubt.interval for doubt in doubts)
    chunks = _cut(need, gaps - doubted)
    for doubt in doubts:
        narrow = _newest_by_seconds(need, gaps.clip(doubt.interval))
        asked_again = _cut(need, narrow, one_span=doubt.probes > 0)
        chunks.extend(_unlike_the_first(need, chunk) for chunk in asked_again)
    return sorted(chunks, key=lambda chunk: chunk.ends_at, reverse=True)


def _unlike_the_first(need: Need, chunk: Chunk) -> Chunk:
    """End a chunk that is asked again a minute earlier, where that minute is closed time.

    An identical request would have to wait for a quarter of a minute.
    """
    ends_at = chunk.ends_at - timedelta(minutes=1)
    spans = expected_spans(need.calendar, need.timeframe, chunk.stamps)
    if ends_at < max(span.closes_at for span in spans):
        return chunk
    end = min(chunk.stamps.end, ends_at) if need.timeframe.is_intraday else chunk.stamps.end
    return replace(chunk, stamps=Interval(chunk.stamps.start, end), ends_at=ends_at)


def _newest_by_seconds(need: Need, gaps: IntervalSet) -> IntervalSet:
    """Give the newest part that a duration in seconds reaches over, of a long part of a session.

    Asked by the day, the gateway may begin with the bars before the doubted part, and cut off
    behind them what it is asked for. The part begins where a bar does.
    """
    hull, timeframe = gaps.hull, need.timeframe
    if hull is None or not timeframe.is_intraday or timeframe.seconds > _HOUR_S:
        return gaps
    spans = expected_spans(need.calendar, timeframe, hull)
    most = timedelta(seconds=_most_seconds(timeframe)) - timeframe.length
    if len(spans) != 1 or hull == spans[0].stamps or hull.length <= most:
        return gaps
    zone = ZoneInfo(need.calendar.zone)
    wall = (hull.end - most).astimezone(zone).replace(tzinfo=UTC)
    past = (wall - datetime(1970, 1, 1, tzinfo=UTC)) % timeframe.length
    begins = hull.end - most + (timeframe.length - past if past else past)
    return gaps.clip(Interval(begins, hull.end))


def narrower(timeframe: Timeframe, sessions: int) -> int | None:
    """Give how many sessions (1w: weeks) to ask for where so many got no answer; None for none.

    Half of them; for days fewer than a year at once, since more are asked for by the year.
    """
    if sessions <= 1:
        return None
    half = sessions // 2
    return min(half, _MOST_SESSIONS_IN_DAYS) if timeframe is Timeframe.D1 else half


def halved(need: Need, doubt: Doubt) -> Doubt | None:
    """Give the older half of a doubt whose newest session turned out to have bars."""
    spans = [span for _, span in _spans(need, need.gaps(doubt.interval))]
    older = spans[: len(spans) // 2]
    if not older:
        return None
    end = min(older[-1].stamps.end, doubt.interval.end)
    return replace(doubt, interval=Interval(doubt.interval.start, end))


def _cut(need: Need, gaps: IntervalSet, *, one_span: bool = False) -> list[Chunk]:
    """Cut gaps into chunks, newest first; with ``one_span`` only the newest session's."""
    chunks: list[Chunk] = []
    spans = _spans(need, gaps)
    end = len(spans)
    while end > 0:
        start = end - 1 if one_span else _oldest_fitting(need, spans, end)
        chunks.append(_chunk(need, gaps, [span for _, span in spans[start:end]]))
        end = 0 if one_span else start
    return chunks


def _spans(need: Need, gaps: IntervalSet) -> list[tuple[int, Span]]:
    """Give the spans, oldest first, that hold a part of any gap, with their places among all."""
    hull = gaps.hull
    if hull is None:
        return []
    spans = expected_spans(need.calendar, need.timeframe, hull)
    return [(place, span) for place, span in enumerate(spans) if gaps.clip(span.stamps)]


def _oldest_fitting(need: Need, spans: Sequence[tuple[int, Span]], end: int) -> int:
    """Give the place of the oldest span that fits into one request with ``spans[end - 1]``."""
    newest_place, newest = spans[end - 1]
    earliest = newest.closes_at - timedelta(days=need.most_days)
    lowest = newest_place - (need.most_sessions or newest_place + 1) + 1
    first = end - 1
    while first > 0 and spans[first - 1][0] >= lowest and spans[first - 1][1].opens_at >= earliest:
        first -= 1
    return first


def _chunk(need: Need, gaps: IntervalSet, spans: Sequence[Span]) -> Chunk:
    first, last = spans[0], spans[-1]
    hull = gaps.clip(Interval(first.stamps.start, last.stamps.end)).hull
    assert hull is not None  # noqa: S101  (every span given holds a part of a gap)
    start = _left_edge(need, hull.start, first)
    inside = expected_spans(need.calendar, need.timeframe, Interval(start, hull.end))
    duration = _duration(need, hull, inside)
    if hull.end < last.stamps.end or duration.endswith("S"):
        meets = hull.end < last.stamps.end and hull.end in need.settled
        return Chunk(Interval(start, hull.end), hull.end, duration, len(inside), meets)
    ends_at = _day_end(need, last)
    end = max(hull.end, ends_at) if need.timeframe.is_intraday else hull.end
    return Chunk(Interval(start, end), ends_at, duration, len(inside))


def _day_end(need: Need, last: Span) -> datetime:
    """Give the end of the session's day, or its close while that day is not over.

    The gateway clips at the asked end, and may know a later close than the calendar does: an end
    in closed time clips nothing.
    """
    day = need.calendar.day_of(last.closes_at - timedelta(microseconds=1))
    ends_at = need.calendar.day_starts_at(day + timedelta(days=1))
    return ends_at if last.closes_at <= ends_at <= need.now else last.closes_at


def _left_edge(need: Need, start: datetime, first: Span) -> datetime:
    """Reach back over closed time, where bars outside the known sessions may stand."""
    if not need.timeframe.is_intraday or start > first.stamps.start:
        return start
    day_before = Interval(start - timedelta(days=7), start)
    earlier = expected_spans(need.calendar, need.timeframe, day_before)
    edge = earlier[-1].stamps.end if earlier else day_before.start
    wanted = need.wanted.hull
    return max(edge, wanted.start) if wanted else edge


def _duration(need: Need, gap: Interval, inside: Sequence[Span]) -> str:
    """Say in IB's words how far back from its end a chunk reaches.

    ``N D`` means N sessions (grade L), so sessions are counted, not days.
    """
    timeframe = need.timeframe
    if timeframe is Timeframe.W1:
        weeks = _ceil(gap.length, timedelta(days=7))
        return f"{weeks} W" if weeks <= _MOST_WEEKS else f"{_ceil(gap.length, _YEAR)} Y"
    if timeframe is Timeframe.D1:
        if len(inside) <= _MOST_SESSIONS_IN_DAYS:
            return f"{len(inside)} D"
        return f"{_ceil(inside[-1].closes_at - inside[0].opens_at, _YEAR)} Y"
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
