"""Which bars are expected by now and not covered.

Not here: how a gap is requested (``core.plan``), what excuses a gap (``core.evidence``).
"""

from datetime import date, datetime, timedelta

from ktrdr_pipelines.core.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.core.sessions import (
    SessionCalendar,
    Span,
    expected_spans,
    midnight,
    monday_of,
)
from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.limits import IbLimitsRegistry

_DAY, _INSTANT = timedelta(days=1), timedelta(microseconds=1)

LAST_INSTANT = _INSTANT
"""Left uncovered at a session's end until a response is received ``final_lag`` after the close."""

_SHORTER_THAN_ANY_BAR = timedelta(seconds=1)


def final_lag() -> timedelta:
    """Give how long after a session's close all is there: silence is proof, a day's bar final."""
    return timedelta(seconds=IbLimitsRegistry.FINAL_LAG_S.value)


def bar_lag() -> timedelta:
    """Give how long after its end an intraday bar of an open session is taken to be final."""
    return timedelta(seconds=IbLimitsRegistry.BAR_LAG_S.value)


def is_closed(span: Span, now: datetime) -> bool:
    """Say whether a span's close lies far enough back for silence to be proof."""
    return span.over_at + final_lag() <= now


def due_part(span: Span, timeframe: Timeframe, now: datetime) -> Interval | None:
    """Give the stretch of a span whose bars should exist by now, or None."""
    if is_closed(span, now):
        return span.stamps
    if not timeframe.is_intraday:
        return None
    return between(span.stamps.start, min(span.stamps.end, now - bar_lag()))


def due_gaps(
    calendar: SessionCalendar,
    timeframe: Timeframe,
    *,
    wanted: IntervalSet,
    settled: IntervalSet,
    now: datetime,
) -> IntervalSet:
    """Give what of ``wanted`` is expected by now and not settled.

    Where ``now`` cuts a session, a last piece shorter than one bar is not due: the bar that it
    belongs to is not whole yet. ``wanted`` may cut no session (see ``whole_sessions``): the bar
    across such a cut could never be whole.
    """
    if not wanted:
        return IntervalSet()
    hull = wanted.hull
    assert hull is not None  # noqa: S101  (a set that is not empty has a hull)
    gaps: list[Interval] = []
    for span in expected_spans(calendar, timeframe, hull):
        due = due_part(span, timeframe, now)
        if due is None or settled.covers(due):
            continue
        open_parts = wanted.clip(due) - settled.clip(due)
        is_final = is_closed(span, now)
        gaps.extend(
            part for part in open_parts if _is_due(part, due, span, timeframe, is_final=is_final)
        )
    return IntervalSet(gaps)


def whole_sessions(
    calendar: SessionCalendar, timeframe: Timeframe, wanted: IntervalSet
) -> IntervalSet:
    """Widen a set of stamps so that it cuts no session: a bar lies on one side of any cut."""
    return IntervalSet(_widened(calendar, timeframe, part) for part in wanted)


def first_stamps_of(calendar: SessionCalendar, timeframe: Timeframe, day: date) -> Interval:
    """Return the stamps that bars of a session date, or of its week, can have."""
    if timeframe.is_intraday:
        return Interval(calendar.day_starts_at(day), calendar.day_starts_at(day + _DAY))
    first = monday_of(day) if timeframe is Timeframe.W1 else day
    return Interval(midnight(first), midnight(first) + timeframe.length)


def first_stamp_of(calendar: SessionCalendar, timeframe: Timeframe, moment: datetime) -> datetime:
    """Give the earliest stamp that a bar holding a moment of real time can have.

    A bar begins before the first trade in it, and so does its session.
    """
    if timeframe.is_intraday:
        return _widened(calendar, timeframe, Interval(moment, moment + _INSTANT)).start
    day = calendar.day_of(moment)
    return midnight(monday_of(day) if timeframe is Timeframe.W1 else day)


def _widened(calendar: SessionCalendar, timeframe: Timeframe, part: Interval) -> Interval:
    first = expected_spans(calendar, timeframe, Interval(part.start, part.start + _INSTANT))
    last = expected_spans(calendar, timeframe, Interval(part.end - _INSTANT, part.end))
    return Interval(
        min((part.start, *(span.stamps.start for span in first))),
        max((part.end, *(span.stamps.end for span in last))),
    )


def _is_due(
    part: Interval, due: Interval, span: Span, timeframe: Timeframe, *, is_final: bool
) -> bool:
    """Whether a piece of a span is due: ``now`` does not cut it, or a bar fits in.

    The last instant of a session is due once the session has closed for good.
    """
    if due != span.stamps or not timeframe.is_intraday:
        cut_by_now = part.end == due.end < span.stamps.end
        return not cut_by_now or part.length >= timeframe.length
    return is_final or part.length >= _SHORTER_THAN_ANY_BAR
