"""Plan chunks: cut what is missing into the fewest requests that the limits allow.

Not here: sending them (``ib.source``), what a response covers (``domain.planning.evaluation``).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import NamedTuple

import numpy as np

from ktrdr_pipelines.domain.bars import micros, moment
from ktrdr_pipelines.domain.calendars.session_grid import SessionGrid, Span, session_grid
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.gaps import (
    Pieces,
    bar_lag,
    due_gaps,
    final_lag,
    first_interval_of,
    missing,
)
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.limits import IbLimitsRegistry

_MOST_SESSIONS_IN_DAYS = 60
_MOST_WEEKS = 4
_INSTANT = timedelta(microseconds=1)
_DAY_US = 86_400_000_000
_NEVER = (1 << 63) - 1

_LONGEST_CLOSED = timedelta(days=10)
"""How far around a chunk the next or the last session is looked for."""

_LATE = timedelta(minutes=5)
"""How long after planning a request that ends now and has a duration in seconds may be answered.
Its duration is longer by as much."""

_OVERLAP = {Timeframe.D1: 4, Timeframe.W1: 3, Timeframe.H4: 3}
"""How many held sessions (1w: weeks) a tail is requested with, by timeframe; of shorter timeframes
one has bars enough. One bar alone does not show that a symbol was re-based."""

_OVERLAP_BARS = 4
"""How many more held bars of an open session a tail is requested with."""

BY_THE_YEAR = 400
"""Value for the most sessions (1w: weeks) of a request for daily or weekly bars of a gateway that
refuses durations of several days or weeks, as IB's conservative table of durations does, but
accepts a year."""

ALWAYS_COUNTED = {Timeframe.D1: 2, Timeframe.W1: 1}
"""The most days and weeks that even the conservative table allows as a duration."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one request is for.

    ``interval`` is what its response may cover, by bar timestamp; ``ends_at`` and ``duration`` are
    those of the request; ``sessions`` counts the spans inside. ``meets_covered``: the chunk ends
    inside a session where covered bars begin, so that its last bar ends there too, however short
    that makes it. ``now_until``: no bar is expected after the chunk yet, so that a request which
    the gateway answers before that moment may leave its end empty, which means now; None where it
    may not.
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
    """Everything that planning depends on: what is wanted of one series, its facts and its limits.

    ``width`` is how many sessions beside each other a request should have, in place of as many as
    ``most_days`` allow, which still bound what it has of covered sessions between missing ones.
    ``most_sessions`` is the most that one request may reach over, where that is fewer than
    ``most_days`` allow; ``is_by_the_year``: the gateway accepts durations of no more than
    ``ALWAYS_COUNTED`` days or weeks. Responses for ``without_bars`` had no bars before; its part
    ``unconfirmed`` does not lie before all bars that are known. ``ends_now``: a chunk that reaches
    to now may be requested with an empty end.
    """

    calendar: SessionCalendar
    timeframe: Timeframe
    wanted: IntervalSet
    covered: IntervalSet
    now: datetime
    most_days: int
    most_sessions: int | None = None
    is_by_the_year: bool = False
    unconfirmed: IntervalSet = IntervalSet()  # noqa: RUF009  (immutable)
    without_bars: IntervalSet = IntervalSet()  # noqa: RUF009  (immutable)
    ends_now: bool = False
    width: int | None = None
    _gaps: dict[Interval | None, IntervalSet] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    @property
    def grid(self) -> SessionGrid:
        """The spans that the series is expected to have."""
        return session_grid(self.calendar, self.timeframe)

    def gaps(self, within: Interval | None = None) -> IntervalSet:
        """Return what is due and not covered, in all that is wanted or in one interval."""
        if within not in self._gaps:
            self._gaps[within] = due_gaps(
                self.calendar,
                self.timeframe,
                wanted=self.wanted.clip(within) if within else self.wanted,
                covered=self.covered,
                now=self.now,
            )
        return self._gaps[within]

    def is_met_by(self, covered: IntervalSet) -> bool:
        """Return whether an interval set alone covers all that is wanted and due."""
        return not due_gaps(
            self.calendar, self.timeframe, wanted=self.wanted, covered=covered, now=self.now
        )


def plan(need: Need) -> list[Chunk]:
    """Cut what is missing into chunks, newest first.

    Chunks end where a gap ends, or at the next session's open where a session is missing to its
    close; they reach back over as many sessions as ``most_days`` allows and hold at least one; gaps
    that one request serves are joined.
    """
    pieces = missing(need.grid, need.wanted, need.covered, need.now)
    if not len(pieces.spans):
        return []
    gaps, indexes = pieces.intervals, _distinct(pieces.spans)
    chunks: list[Chunk] = []
    end = len(indexes)
    for start in _cuts(need, indexes):
        chunk = _chunk(need, gaps, _spans(need, indexes[start:end]))
        is_newest = need.ends_now and not chunks
        chunks.append(_up_to_now(need, chunk) if is_newest else chunk)
        end = start
    return chunks


class PlannedCounts(NamedTuple):
    """What a plan consists of: its requests and the bars that the calendar expects of them.

    ``up_to_now`` requests, with ``newest_bars``, may be sent with an empty end.
    """

    requests: int = 0
    bars: int = 0
    up_to_now: int = 0
    newest_bars: int = 0


def planned_counts(need: Need) -> PlannedCounts:
    """Count what ``plan`` returns, without making its chunks: decades take a millisecond."""
    grid = need.grid
    pieces = missing(grid, need.wanted, need.covered, need.now)
    if not len(pieces.spans):
        return PlannedCounts()
    bars = _bars_of(grid, pieces)
    indexes = _distinct(pieces.spans)
    cuts = _cuts(need, indexes)
    requests, total = len(cuts), int(bars.sum())
    if not need.ends_now:
        return PlannedCounts(requests, total)
    chunk = _chunk(need, pieces.intervals, _spans(need, indexes[cuts[0] :]))
    chunk = _up_to_now(need, chunk)
    if chunk.now_until is None:
        return PlannedCounts(requests, total)
    start, end = micros(chunk.interval.start), micros(chunk.interval.end)
    starts, ends = np.maximum(pieces.starts, start), np.minimum(pieces.ends, end)
    inside = starts < ends
    newest = _bars_of(grid, Pieces(pieces.spans[inside], starts[inside], ends[inside]))
    return PlannedCounts(requests, total, 1, int(newest.sum()))


def _bars_of(grid: SessionGrid, pieces: Pieces) -> np.ndarray:
    """Return how many bars are expected in each piece; those of whole spans are known."""
    bars = np.maximum(grid.bars[pieces.spans], 1)
    starts, ends = grid.starts[pieces.spans], grid.ends[pieces.spans]
    is_part = (pieces.starts != starts) | (pieces.ends != ends)
    if is_part.any():
        bars[is_part] = grid.bars_in(pieces.starts[is_part], pieces.ends[is_part])
    return np.asarray(bars)


def _distinct(ascending: np.ndarray) -> np.ndarray:
    """Return the values of an ascending array, each once; not empty."""
    return np.asarray(ascending[np.append(True, ascending[1:] != ascending[:-1])])


def _spans(need: Need, indexes: np.ndarray) -> list[Span]:
    """Return the spans of ascending indexes of the grid."""
    first = indexes.item(0)
    everything = list(need.grid.slice(first, indexes.item(-1) + 1))
    return [everything[index - first] for index in indexes.tolist()]


def session_chunk(
    calendar: SessionCalendar, timeframe: Timeframe, day: date, now: datetime
) -> Chunk | None:
    """Return the chunk of one whole session, given by its date; None if it has none by now."""
    wanted = IntervalSet([first_interval_of(calendar, timeframe, day)])
    chunks = plan(Need(calendar, timeframe, wanted, IntervalSet(), now, most_days=1))
    return chunks[0] if chunks else None


def newest_closed_day(calendar: SessionCalendar, now: datetime) -> date | None:
    """Return the date of the newest session whose bars are complete; None without any lately."""
    today = calendar.day_of(now)
    lately = calendar.sessions(today - timedelta(days=14), today + timedelta(days=1))
    closed = [one.day for one in lately if one.closes_at + final_lag() <= now]
    return closed[-1] if closed else None


def across_boundary(need: Need, chunk: Chunk) -> Chunk:
    """Return a chunk extended over the quiet opening of the session after it, if there is one.

    Minutes before the first bar of a session are covered by a response with bars on both sides of
    them. The older chunk beside them is requested anyway, so this costs no additional request.
    """
    if not need.timeframe.is_intraday or chunk.sessions == need.most_sessions:
        return chunk
    grid, start, end = need.grid, micros(chunk.interval.start), micros(chunk.interval.end)
    inside = int(grid.starts.searchsorted(end))
    if int(grid.ends.searchsorted(start, side="right")) >= inside:
        return chunk
    # The sessions after it, those that are closed for long excepted.
    newer = max(int(grid.ends.searchsorted(end, side="right")), inside)
    until = int(grid.starts.searchsorted(end + _LONGEST_CLOSED // _INSTANT))
    starts, ends = grid.starts[newer:until], grid.ends[newer:until]
    # The first session of which anything is covered: before it there is no bar on the other side.
    first_covered = need.covered.ends.searchsorted(starts, side="right")
    is_covered = first_covered < need.covered.starts.searchsorted(ends, side="left")
    if not is_covered.any():
        return chunk
    position = int(is_covered.argmax())
    sessions = chunk.sessions + position + 1
    is_too_long = need.most_sessions is not None and chunk.sessions < need.most_sessions < sessions
    if is_too_long or need.covered.holds(starts.item(position), ends.item(position)):
        return chunk
    (span,) = grid.slice(newer + position, newer + position + 1)
    piece = next(iter(need.gaps(span.interval)), None)
    if piece is None or not _is_opening(piece, span) or piece.end not in need.covered:
        return chunk
    ends_at = min(piece.end + need.timeframe.length, need.now)
    return Chunk(Interval(chunk.interval.start, piece.end), ends_at, f"{sessions} D", sessions)


def narrower(timeframe: Timeframe, sessions: int) -> int | None:
    """Return how many sessions (1w: weeks) to request after a request for so many was refused.

    Half of them; for daily bars no more than can be counted, since more are requested by the year.
    None where one session was already too many.
    """
    if sessions <= 1:
        return None
    half = sessions // 2
    return min(half, _MOST_SESSIONS_IN_DAYS) if timeframe is Timeframe.D1 else half


def _up_to_now(need: Need, chunk: Chunk) -> Chunk:
    """Return a chunk whose end may be left empty, which means now, where that changes nothing.

    The gateway counts sessions, days and years back from the moment at which it answers, so no
    session may be expected after the chunk until then: this holds until the next open. A duration
    in seconds is made a few minutes longer and holds that long.
    """
    spans = need.grid.spans_in(chunk.interval)
    last = spans[-1]
    is_open = chunk.interval.end < last.interval.end
    if is_open and chunk.interval.end != need.now - bar_lag():
        return chunk  # it ends at covered bars, or at a range that this run has deferred
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
    """Return when the session after a span opens, or None where the calendar has none."""
    opens = need.calendar.opens
    following = int(opens.searchsorted(micros(last.closes_at)))
    if following == len(opens):
        return None
    opens_at = moment(opens.item(following))
    return opens_at if opens_at < last.closes_at + _LONGEST_CLOSED else None


def _cuts(need: Need, indexes: np.ndarray) -> list[int]:
    """Cut spans into requests, and return where each begins, newest first.

    Args:
        need: the limits of a request.
        indexes: the indexes in the grid of the spans that hold a part of any gap, ascending.

    Returns:
        Positions among ``indexes``, strictly descending to 0. A request has all spans that fit into
        one with its newest span.
    """
    opens, newest = need.grid.opens[indexes], np.arange(len(indexes))
    oldest = np.minimum(opens.searchsorted(_earliest(need, indexes)), newest)
    if need.width is not None:
        # Spans beside each other in the grid are not bounded by days, but by the width.
        begins = np.append(True, np.diff(indexes) != 1)
        oldest = np.maximum.accumulate(np.where(begins, newest, 0))[oldest]
    most = min((one for one in (need.most_sessions, need.width) if one), default=None)
    if most is not None:
        oldest = np.maximum(oldest, indexes.searchsorted(indexes - most + 1))
    if (oldest == newest).all():
        return list(range(len(newest) - 1, -1, -1))
    first_fitting, cuts = oldest.tolist(), []
    end = len(first_fitting)
    while end > 0:
        end = first_fitting[end - 1]
        cuts.append(end)
    return cuts


def _earliest(need: Need, indexes: np.ndarray) -> np.ndarray:
    """Return the earliest open of a request's sessions, by the span that is its newest.

    A request for ``1 Y`` reaches over the sessions dated after the end's date minus a calendar
    year; the end of a chunk lies on the date of its newest session (``_ends_at``).
    """
    grid, calendar = need.grid, need.calendar
    closes = grid.closes[indexes]
    if need.timeframe.is_intraday or need.most_days < _YEAR.days:
        return np.asarray(closes - need.most_days * _DAY_US)
    days = calendar.days_of(closes - 1)
    days = days + (grid.over[indexes] > closes).astype("timedelta64[D]")
    months = days.astype("datetime64[M]")
    in_month = days - months.astype("datetime64[D]")
    is_leap_day = (months.astype(np.int64) % 12 == 1) & (in_month.astype(np.int64) == 28)
    before = (months - 12).astype("datetime64[D]") + in_month - is_leap_day.astype("timedelta64[D]")
    # The midnights of few dates are needed: those of the years' first sessions.
    first = calendar.days_of(grid.opens[indexes]).searchsorted(before, side="right")
    known = np.append(grid.opens[indexes], _NEVER)
    return np.asarray(known[first])


def _year_before_day(need: Need, day: date) -> datetime:
    is_leap_day = (day.month, day.day) == (2, 29)
    before = day.replace(year=day.year - 1, day=28 if is_leap_day else day.day)
    return need.calendar.day_starts_at(before + timedelta(days=1))


def _chunk(need: Need, gaps: IntervalSet, spans: Sequence[Span]) -> Chunk:
    first, last = spans[0], spans[-1]
    bounds = gaps.clip(Interval(first.interval.start, last.interval.end)).bounds
    assert bounds is not None  # noqa: S101  (every span here holds a part of a gap)
    start = _left_bound(need, bounds.start, first)
    inside = need.grid.spans_in(Interval(start, bounds.end))
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
        # Any date may count as a session, one that has begun by the end too, and one more date
        # overlaps held bars.
        count = _ceil(bounds.end - start, need.timeframe.length) + 2
        return Chunk(Interval(start, end), ends_at, _counted_or_year(need, count), len(inside))
    duration = _from_held_bars(need, bounds.start, inside, _duration(need, reach, inside))
    return Chunk(Interval(start, end), ends_at, duration, len(inside))


def _inside_session(need: Need, bounds: Interval, start: datetime, inside: Sequence[Span]) -> Chunk:
    """Return a chunk that ends inside a session: where covered bars begin, or now.

    A gap that ends at covered bars is requested with the first of them, and the opening of a
    session together with the session before it: bars on both sides cover it.
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
    """Return a chunk that also reaches over the session after a gap, if that has begun.

    Bars on both sides of a quiet end cover it; at the newest edge there are none yet. For the same
    reason sessions that had no bars before are requested with a session on either side.
    """
    is_rest = len(inside) == 1 and gap.start > inside[0].interval.start
    is_unconfirmed = all(one.interval.start in need.unconfirmed for one in inside)
    if not is_rest and not is_unconfirmed:
        return None
    count = len(inside) + (1 if is_rest else 2)
    after = Interval(gap.end, gap.end + _LONGEST_CLOSED)
    newer = next((one for one in need.grid.spans_in(after)), None)
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
    if not gaps:
        return None
    apart = np.flatnonzero(~need.grid.follow(gaps.starts, gaps.ends))
    first = apart.item(-1) + 1 if len(apart) else 0
    return Interval(moment(gaps.starts.item(first)), moment(gaps.ends.item(-1)))


def is_opening(need: Need, chunk: Chunk) -> bool:
    """Return whether a chunk requests nothing but the quiet opening of one session."""
    gaps, grid = need.gaps(chunk.interval), need.grid
    if not gaps:
        return False
    start, end = gaps.starts.item(0), gaps.ends.item(-1)
    position = int(grid.ends.searchsorted(start, side="right"))
    if int(grid.starts.searchsorted(end)) != position + 1 or end >= grid.ends.item(position):
        return False
    return start <= grid.starts.item(position) and need.covered.holds(end, end + 1)


def _is_opening(piece: Interval, span: Span) -> bool:
    """Whether a piece of a session begins with it and ends before it does."""
    return piece.start <= span.interval.start and piece.end < span.interval.end


def _from_held_bars(need: Need, start: datetime, inside: Sequence[Span], duration: str) -> str:
    """Return the duration of a tail, longer by as much as reaches back to some held bars.

    Bars that are returned a second time show whether history has changed, without an additional
    request.
    """
    held = need.covered.bounds
    if held is None or held.end > start:
        return duration
    if start > inside[0].interval.start:
        return _from_held_in_session(need, start, inside[0], duration)
    most = need.most_sessions or _MOST_SESSIONS_IN_DAYS
    count = min(len(inside) + _OVERLAP.get(need.timeframe, 1), max(most, len(inside)))
    before = Interval(start - _LONGEST_CLOSED, start)
    earlier = need.grid.spans_in(before)
    is_held = earlier and earlier[-1].interval.end - timedelta(seconds=1) in need.covered
    if count == len(inside) or not is_held:
        return duration
    if need.is_by_the_year and not duration.endswith("Y"):
        return _counted_or_year(need, count)
    if need.timeframe is Timeframe.W1:
        return f"{min(count, _MOST_WEEKS)} W" if len(inside) < _MOST_WEEKS else duration
    return duration if duration.endswith("Y") else f"{count} D"


def _from_held_in_session(need: Need, start: datetime, span: Span, duration: str) -> str:
    """Return the duration of a tail that starts at a held bar of the same session."""
    more = _OVERLAP_BARS * need.timeframe.length
    is_held = start - _INSTANT in need.covered and start - more >= span.interval.start
    if not is_held or not duration.endswith("S"):
        return duration
    seconds = round(float(duration.split(maxsplit=1)[0]) + more.total_seconds())
    return f"{seconds} S" if seconds <= _most_seconds(need.timeframe) else duration


def _ends_at(need: Need, last: Span) -> datetime:
    """Return the requested end of a chunk that reaches over the close of its last session.

    The gateway clips at the requested end and may know a later close than the calendar: intraday
    bars are requested up to the next session's open, longer ones up to the end of the session's
    day (IB counts years back from the date of the end). It is not certain that ``1 D`` to an open
    means the session before it (a request that ended before a first trade returned the session
    before three times, and error 162 once, grade L): a session for which no bars were returned is
    requested up to the end of its day.
    """
    closes_at = last.closes_at if need.timeframe.is_intraday else last.over_at
    until = None
    if need.timeframe.is_intraday and last.interval.start not in need.without_bars:
        until = _next_open(need, last)
    return max(closes_at, min(until or need.calendar.last_second_of(last.closes_at), need.now))


def _left_bound(need: Need, start: datetime, first: Span) -> datetime:
    """Return the start of a chunk, moved back over closed time: bars may lie outside sessions."""
    has_outside = need.timeframe.is_intraday or need.calendar.days_may_differ
    if not has_outside or start > first.interval.start:
        return start
    before = Interval(start - timedelta(days=7), start)
    earlier = need.grid.meeting(before)
    limit = moment(earlier.ends.item(-1)) if len(earlier) else before.start
    wanted = need.wanted.bounds
    return max(limit, wanted.start) if wanted else limit


def _duration(need: Need, gap: Interval, inside: Sequence[Span]) -> str:
    """Return a chunk's duration in IB's notation.

    ``N D`` means N sessions (grade L), so sessions are counted, not days.
    """
    timeframe = need.timeframe
    if timeframe is Timeframe.W1:
        return _counted_or_year(need, _ceil(gap.length, timedelta(days=7)))
    if timeframe is Timeframe.D1:
        return _counted_or_year(need, len(inside))
    # One bar more than the gap holds: the overlap proves the left edge.
    seconds = (_ceil(gap.length, timeframe.length) + 1) * timeframe.seconds
    if len(inside) == 1 and gap != inside[0].interval and seconds <= _most_seconds(timeframe):
        return f"{seconds} S"
    return f"{len(inside)} D"


def _counted_or_year(need: Need, count: int) -> str:
    """Return the duration of so many days or weeks: a year where that many cannot be counted."""
    is_week = need.timeframe is Timeframe.W1
    if need.is_by_the_year:
        counted = ALWAYS_COUNTED[need.timeframe]
    elif is_week:
        counted = _MOST_WEEKS if need.most_sessions is None else count
    else:
        counted = _MOST_SESSIONS_IN_DAYS
    return f"{count} {'W' if is_week else 'D'}" if count <= counted else "1 Y"


_YEAR = timedelta(days=365)


def _most_seconds(timeframe: Timeframe) -> int:
    steps: Iterable[int] = (
        step.most
        for step in IbLimitsRegistry.SAFE_STEPS.value
        if step.unit == "S" and step.smallest_bar_s <= timeframe.seconds <= step.largest_bar_s
    )
    return max(steps)


def _ceil(length: timedelta, unit: timedelta) -> int:
    return -(-length // unit)
