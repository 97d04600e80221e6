"""Planning: from what is missing to the fewest requests that the limits allow.

Not here: sending them (``ib.source``), what a response covers (``domain.planning.evaluation``).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta

from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar, Span, expected_spans
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.gaps import bar_lag, due_gaps
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.limits import IbLimitsRegistry

_MOST_SESSIONS_IN_DAYS = 60
_MOST_WEEKS = 4
_INSTANT = timedelta(microseconds=1)

_LATE = timedelta(minutes=5)
"""How long after its planning a request whose duration is told in seconds may be answered if it
ends now: so many seconds more it reaches back."""

BY_THE_YEAR = 400
"""As the most sessions (1w: weeks) of a request for bars of a day or week: the gateway refuses to
count several of them, as IB's conservative table of durations does, and takes a year."""

ALWAYS_COUNTED = {Timeframe.D1: 2, Timeframe.W1: 1}
"""Days and weeks that even that table lets be counted."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one request asks for.

    ``timestamps`` is what its answer may cover; ``ends_at`` and ``duration`` are the request's
    own; ``sessions`` counts the spans inside. ``meets_covered`` says that it ends inside a session
    where covered bars begin, so that its last bar ends there too, however short that makes it.
    ``now_until`` says that nothing is expected behind the chunk by now: a request that the gateway
    answers before that moment may leave its end empty, which means now. None: it may not.
    """

    interval: Interval
    ends_at: datetime
    duration: str
    sessions: int
    meets_covered: bool = False
    now_until: datetime | None = None

    def __str__(self) -> str:
        return f"{self.duration} to {self.ends_at:%Y-%m-%dT%H:%M:%SZ}"


@dataclass(frozen=True, slots=True)
class Need:
    """Everything that planning depends on: one series' wants, facts and limits.

    ``known_from`` is the oldest stamp from which the gateway is known to have bars, if any is.
    ``most_sessions`` is the most that one request may reach over, where fewer work than
    ``most_days`` allow; ``is_by_the_year`` says that the gateway lets no more than
    ``ALWAYS_COUNTED`` days or weeks be counted. ``without_bars`` came without bars before; of
    it ``unconfirmed`` does not lie before all bars that are known. ``ends_now`` says that a chunk
    that reaches to now may be requested with an empty end.
    """

    calendar: SessionCalendar
    timeframe: Timeframe
    wanted: IntervalSet
    covered: IntervalSet
    now: datetime
    most_days: int
    known_from: datetime | None = None
    most_sessions: int | None = None
    is_by_the_year: bool = False
    unconfirmed: IntervalSet = IntervalSet()  # noqa: RUF009  (immutable)
    without_bars: IntervalSet = IntervalSet()  # noqa: RUF009  (immutable)
    ends_now: bool = False

    def gaps(self, within: Interval | None = None) -> IntervalSet:
        """Give what is due and not covered, of everything or of one interval."""
        return due_gaps(
            self.calendar,
            self.timeframe,
            wanted=self.wanted.clip(within) if within else self.wanted,
            covered=self.covered,
            now=self.now,
        )


def plan(need: Need) -> list[Chunk]:
    """Cut what is missing into chunks, newest first.

    Chunks end where a gap ends, or at the next session's open where a session is missing to its
    close; they reach back over as many sessions as ``most_days`` allows and hold at least one; gaps
    that one request serves are joined.
    """
    return _cut(need, need.gaps())


def across_boundary(need: Need, chunk: Chunk) -> Chunk:
    """Return a chunk that also asks for the quiet opening of the session after it, if any.

    Minutes before the first bar of a session are covered by a response with bars on both sides of
    them. The older chunk beside them is requested anyway, so that costs no request of its own.
    """
    if not need.timeframe.is_intraday or chunk.sessions == need.most_sessions:
        return chunk
    spans = expected_spans(need.calendar, need.timeframe, chunk.interval)
    after = Interval(chunk.interval.end, chunk.interval.end + timedelta(days=10))
    sessions = chunk.sessions
    for newer in expected_spans(need.calendar, need.timeframe, after):
        if newer.interval.start < spans[-1].interval.end:
            continue
        sessions += 1
        piece = next(iter(need.gaps(newer.interval)), None)
        if piece is not None and _is_opening(piece, newer) and piece.end in need.covered:
            ends_at = min(piece.end + need.timeframe.length, need.now)
            return Chunk(
                Interval(chunk.interval.start, piece.end), ends_at, f"{sessions} D", sessions
            )
        if need.covered.clip(newer.interval) or sessions == need.most_sessions:
            break
    return chunk


def narrower(timeframe: Timeframe, sessions: int) -> int | None:
    """Return how many sessions (1w: weeks) to request where so many were too many; None for none.

    Half of them; for days fewer than a year at once, since more are requested by the year.
    """
    if sessions <= 1:
        return None
    half = sessions // 2
    return min(half, _MOST_SESSIONS_IN_DAYS) if timeframe is Timeframe.D1 else half


def _cut(need: Need, gaps: IntervalSet) -> list[Chunk]:
    """Cut gaps into chunks, newest first."""
    chunks: list[Chunk] = []
    spans = _spans(need, gaps)
    end = len(spans)
    while end > 0:
        start = _oldest_fitting(need, spans, end)
        chunk = _chunk(need, gaps, [span for _, span in spans[start:end]])
        is_newest = need.ends_now and not chunks
        chunks.append(_up_to_now(need, chunk) if is_newest else chunk)
        end = start
    return chunks


def _up_to_now(need: Need, chunk: Chunk) -> Chunk:
    """Return a chunk whose end may be sent as now, where that means the same.

    The gateway counts sessions, days and years back from the moment at which it answers. So none
    may be expected behind the chunk until then: the next open ends it, and where the duration is
    told in seconds, which are some more for that, a few minutes do.
    """
    spans = expected_spans(need.calendar, need.timeframe, chunk.interval)
    last = spans[-1]
    is_open = chunk.interval.end < last.interval.end
    if is_open and chunk.interval.end != need.now - bar_lag():
        return chunk  # it ends at covered bars, or at what this run has deferred
    until = _next_open(need, last)
    if until is None or until <= need.now or chunk.ends_at > need.now:
        return chunk
    if need.timeframe is Timeframe.W1:
        until = min(until, need.calendar.day_starts_at(last.interval.end.date()))
    duration = chunk.duration
    if duration.endswith("S"):
        length = need.timeframe.length
        more = _ceil(need.now - chunk.ends_at + _LATE, length) * length
        seconds = round(float(duration.split()[0]) + more.total_seconds())
        duration = f"{seconds} S" if seconds <= _most_seconds(need.timeframe) else "1 D"
        until = min(until, need.now + _LATE)
    elif duration.endswith("Y"):
        day = need.calendar.day_of(until - _INSTANT)
        if spans[0].opens_at < _year_before_day(need, day):
            return chunk
    return replace(chunk, duration=duration, now_until=until) if until > need.now else chunk


def _next_open(need: Need, last: Span) -> datetime | None:
    """Return when the session after a span opens; None where the calendar knows of none."""
    after = Interval(last.closes_at, last.closes_at + timedelta(days=10))
    opens = (one.opens_at for one in need.calendar.sessions_meeting(after))
    return next((at for at in opens if at >= last.closes_at), None)


def _spans(need: Need, gaps: IntervalSet) -> list[tuple[int, Span]]:
    """Give the spans, oldest first, that hold a part of any gap, with their places among all."""
    bounds = gaps.bounds
    if bounds is None:
        return []
    spans = expected_spans(need.calendar, need.timeframe, bounds)
    return [(position, span) for position, span in enumerate(spans) if gaps.clip(span.interval)]


def _oldest_fitting(need: Need, spans: Sequence[tuple[int, Span]], end: int) -> int:
    """Give the place of the oldest span that fits into one request with ``spans[end - 1]``."""
    newest_position, newest = spans[end - 1]
    earliest = newest.closes_at - timedelta(days=need.most_days)
    if not need.timeframe.is_intraday and need.most_days >= _YEAR.days:
        earliest = _year_before(need, newest)
    lowest = newest_position - (need.most_sessions or newest_position + 1) + 1
    first = end - 1
    while first > 0 and spans[first - 1][0] >= lowest and spans[first - 1][1].opens_at >= earliest:
        first -= 1
    return first


def _year_before(need: Need, newest: Span) -> datetime:
    """Return where the year begins that a request for ``1 Y`` up to a session reaches over.

    The gateway returns the sessions dated after the end's date minus a calendar year; the end of
    a chunk lies on the date of its newest session (``_ends_at``).
    """
    day = need.calendar.day_of(newest.closes_at - _INSTANT)
    is_behind = newest.over_at > newest.closes_at
    return _year_before_day(need, day + timedelta(days=1) if is_behind else day)


def _year_before_day(need: Need, day: date) -> datetime:
    """Return where the year begins that a request for ``1 Y`` up to a date reaches over."""
    is_leap_day = (day.month, day.day) == (2, 29)
    before = day.replace(year=day.year - 1, day=28 if is_leap_day else day.day)
    return need.calendar.day_starts_at(before + timedelta(days=1))


def _chunk(need: Need, gaps: IntervalSet, spans: Sequence[Span]) -> Chunk:
    first, last = spans[0], spans[-1]
    bounds = gaps.clip(Interval(first.interval.start, last.interval.end)).bounds
    assert bounds is not None  # noqa: S101  (every span given holds a part of a gap)
    start = _left_bound(need, bounds.start, first)
    inside = expected_spans(need.calendar, need.timeframe, Interval(start, bounds.end))
    if bounds.end < last.interval.end:
        return _inside_session(need, bounds, start, inside)
    if need.timeframe.is_intraday:
        over = _over_close(need, bounds, inside)
        if over is not None:
            return over
    is_rest = need.timeframe.is_intraday and bounds.start > first.interval.start
    ends_at = _ends_at(need, last)
    end = max(bounds.end, ends_at) if need.timeframe.is_intraday else bounds.end
    reach = Interval(bounds.start, end) if is_rest else bounds
    if need.calendar.days_may_differ and not need.timeframe.is_intraday:
        # Any date may count, and what has begun by the end does; one more holds bars again.
        count = _ceil(bounds.end - start, need.timeframe.length) + 2
        return Chunk(Interval(start, end), ends_at, _counted_or_year(need, count), len(inside))
    duration = _from_held_bars(need, bounds.start, inside, _duration(need, reach, inside))
    return Chunk(Interval(start, end), ends_at, duration, len(inside))


def _inside_session(need: Need, bounds: Interval, start: datetime, inside: Sequence[Span]) -> Chunk:
    """Return a chunk that ends inside a session: where covered bars begin, or now.

    What ends at covered bars is requested with the first of them, and the opening of a session
    together with the session before it: bars on both sides cover it.
    """
    if bounds.end not in need.covered:
        duration = _from_held_bars(need, bounds.start, inside, _duration(need, bounds, inside))
        return Chunk(Interval(start, bounds.end), bounds.end, duration, len(inside))
    ends_at = min(bounds.end + need.timeframe.length, need.now)
    if len(inside) == 1 and _is_opening(bounds, inside[0]):
        if need.most_sessions != 1:
            return Chunk(Interval(start, bounds.end), ends_at, "2 D", 2)
        ends_at = bounds.end  # there is no bar on its other side
    requested = Interval(bounds.start, ends_at)
    duration = _from_held_bars(need, bounds.start, inside, _duration(need, requested, inside))
    return Chunk(Interval(start, bounds.end), ends_at, duration, len(inside), meets_covered=True)


def _over_close(need: Need, gap: Interval, inside: Sequence[Span]) -> Chunk | None:
    """Return a chunk that reaches over the session behind a gap too, if that has begun.

    Bars on both sides of a quiet end cover it; at the newest edge there are none yet. Sessions
    that came without bars before are requested with a session on either side for that.
    """
    is_rest = len(inside) == 1 and gap.start > inside[0].interval.start
    is_unconfirmed = all(one.interval.start in need.unconfirmed for one in inside)
    if not is_rest and not is_unconfirmed:
        return None
    count = len(inside) + (1 if is_rest else 2)
    after = Interval(gap.end, gap.end + timedelta(days=10))
    newer = next((one for one in expected_spans(need.calendar, need.timeframe, after)), None)
    if newer is None or newer.opens_at + need.timeframe.length > need.now:
        return None
    if (need.most_sessions or count) < count:
        return None
    start = _left_bound(need, gap.start, inside[0])
    interval = Interval(start, max(gap.end, newer.interval.start))
    return Chunk(interval, min(newer.closes_at, need.now), f"{count} D", count)


def newest_run(need: Need) -> Interval | None:
    """Return the newest gaps between which no covered part of a session lies, as one interval."""
    gaps = need.gaps()
    bounds = gaps.bounds
    if bounds is None:
        return None
    start = bounds.end
    for span in reversed(expected_spans(need.calendar, need.timeframe, bounds)):
        parts = list(gaps.clip(span.interval))
        if not parts or parts[-1].end < min(span.interval.end, bounds.end):
            break
        start = parts[-1].start
        if len(parts) > 1 or start > span.interval.start:
            break
    return Interval(start, bounds.end)


def is_opening(need: Need, chunk: Chunk) -> bool:
    """Whether all that a chunk asks for is the quiet opening of one session."""
    bounds = need.gaps(chunk.interval).bounds
    if bounds is None:
        return False
    spans = expected_spans(need.calendar, need.timeframe, bounds)
    return len(spans) == 1 and _is_opening(bounds, spans[0]) and bounds.end in need.covered


def _is_opening(piece: Interval, span: Span) -> bool:
    """Whether a piece of a session begins with it and ends before it does."""
    return piece.start <= span.interval.start and piece.end < span.interval.end


def _from_held_bars(need: Need, start: datetime, inside: Sequence[Span], duration: str) -> str:
    """Let the duration of a tail reach back to held bars: the session before it is covered.

    Bars that come a second time tell whether history has changed, at no request of their own.
    """
    count = len(inside) + 1
    held = need.covered.bounds
    is_beside = held is not None and held.end <= start <= inside[0].interval.start
    if not is_beside or (need.most_sessions or count) < count:
        return duration
    before = Interval(start - timedelta(days=10), start)
    earlier = expected_spans(need.calendar, need.timeframe, before)
    if not earlier or earlier[-1].interval.end - timedelta(seconds=1) not in need.covered:
        return duration
    if need.is_by_the_year and not duration.endswith("Y"):
        return _counted_or_year(need, count)
    if need.timeframe is Timeframe.W1:
        return f"{count} W" if count <= _MOST_WEEKS else duration
    return duration if duration.endswith("Y") else f"{count} D"


def _ends_at(need: Need, last: Span) -> datetime:
    """Return the requested end of a chunk that reaches over the close of its last session.

    The gateway clips at the requested end and may know a later close than the calendar: intraday
    bars are requested up to the next session's open, longer ones up to the end of the session's
    day (IB counts years back from the date of the end). Whether ``1 D`` to an open means the
    session before it is not covered (an end before a first trade gave the session before three
    times, and 162 once, grade L): a session that came without bars is requested up to the end of
    its day.
    """
    day_end = need.calendar.last_second_of(last.closes_at)
    if not need.timeframe.is_intraday:
        return max(last.over_at, min(day_end, need.now))
    if last.interval.start in need.without_bars:
        return max(last.closes_at, min(day_end, need.now))
    return max(last.closes_at, min(_next_open(need, last) or day_end, need.now))


def _left_bound(need: Need, start: datetime, first: Span) -> datetime:
    """Reach back over closed time, where bars outside the known sessions may stand."""
    has_outside = need.timeframe.is_intraday or need.calendar.days_may_differ
    if not has_outside or start > first.interval.start:
        return start
    day_before = Interval(start - timedelta(days=7), start)
    earlier = expected_spans(need.calendar, need.timeframe, day_before)
    limit = earlier[-1].interval.end if earlier else day_before.start
    wanted = need.wanted.bounds
    return max(limit, wanted.start) if wanted else limit


def _duration(need: Need, gap: Interval, inside: Sequence[Span]) -> str:
    """Say in IB's words how far back from its end a chunk reaches.

    ``N D`` means N sessions (grade L), so sessions are counted, not days.
    """
    timeframe = need.timeframe
    if timeframe is Timeframe.W1:
        return _counted_or_year(need, _ceil(gap.length, timedelta(days=7)))
    if timeframe is Timeframe.D1:
        return _counted_or_year(need, len(inside))
    seconds = _seconds(timeframe, gap)
    if len(inside) == 1 and gap != inside[0].interval and seconds <= _most_seconds(timeframe):
        return f"{seconds} S"
    return f"{len(inside)} D"


def _counted_or_year(need: Need, count: int) -> str:
    """Return the duration of so many days or weeks: a year where that many are not counted."""
    is_week = need.timeframe is Timeframe.W1
    if need.is_by_the_year:
        counted = ALWAYS_COUNTED[need.timeframe]
    elif is_week:
        counted = _MOST_WEEKS if need.most_sessions is None else count
    else:
        counted = _MOST_SESSIONS_IN_DAYS
    return f"{count} {'W' if is_week else 'D'}" if count <= counted else "1 Y"


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
