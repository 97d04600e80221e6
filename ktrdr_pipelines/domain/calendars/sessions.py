"""Trading sessions, and the spans of bar timestamps that a timeframe is expected to have.

There are two axes of time. Real time tells when a session opens and closes. *Bar timestamps* are
real time for intraday bars; for 1d a session is ``[midnight UTC of its date, next midnight)``, for
1w a week is ``[Monday, next Monday)``. Coverage, gaps and chunks are intervals of bar timestamps; a
span connects such an interval to the real open and close.

Not here: the sources of calendars (``domain.calendars.registry``).
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import groupby
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe

_DAY = timedelta(days=1)
_WEEK = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Session:
    """One trading session: its date and the real times of its open and close."""

    day: date
    opens_at: datetime
    closes_at: datetime


@dataclass(frozen=True, slots=True)
class Span:
    """An interval of timestamps in which bars are expected, and its open and close in real time.

    ``sessions`` is the number of sessions inside: 1, or for a week the sessions of that week.
    ``ends_late`` is when its bars are whole at the latest, where that may be after the close.
    """

    interval: Interval
    opens_at: datetime
    closes_at: datetime
    sessions: int = 1
    ends_late: datetime | None = None

    @property
    def over_at(self) -> datetime:
        """When its bars are whole: at the close, or later where bars may be of UTC days."""
        return self.ends_late or self.closes_at


class SessionCalendar:
    """The sessions of one market, from arrays sorted by date.

    Args:
        key: name, such as ``XNYS.RTH``.
        zone: IANA time zone of the session dates.
        days: session dates, ``datetime64[D]``.
        opens, closes: real times, int64 microseconds since 1970 UTC.
        breaks: real times at which trading pauses inside sessions (lunch, daily halts), ascending
            and disjoint, int64 microseconds, shape ``(n, 2)``.
        roll: how long before local midnight a session day begins (FX: seven hours).
        days_may_differ: whether daily and weekly bars may be of UTC days instead of sessions.
    """

    def __init__(
        self,
        *,
        key: str,
        zone: str,
        days: np.ndarray,
        opens: np.ndarray,
        closes: np.ndarray,
        breaks: np.ndarray | None = None,
        roll: timedelta = timedelta(0),
        days_may_differ: bool = False,
    ) -> None:
        self.key = key
        self.days_may_differ = days_may_differ
        self.zone = zone
        self.roll = roll
        self._days = _frozen(days)
        self._opens = _frozen(opens)
        self._closes = _frozen(closes)
        self._breaks = _frozen(np.empty((0, 2), np.int64) if breaks is None else breaks)

    def __repr__(self) -> str:
        known = f"{self._days[0]} to {self._days[-1]}" if len(self._days) else "no session"
        return f"SessionCalendar({self.key}, {known})"

    @property
    def days(self) -> np.ndarray:
        """Session dates, ascending; ``datetime64[D]``, read-only."""
        return self._days

    @property
    def opens(self) -> np.ndarray:
        """Real times of the opens, int64 microseconds since 1970 UTC, one a session."""
        return self._opens

    @property
    def closes(self) -> np.ndarray:
        """Real times of the closes, int64 microseconds since 1970 UTC, one a session."""
        return self._closes

    @property
    def breaks(self) -> np.ndarray:
        """Pauses inside sessions, ascending; int64 microseconds since 1970 UTC, shape ``(n, 2)``.

        Breaks are part of the span of their session, but no bar is expected in them.
        """
        return self._breaks

    @property
    def known(self) -> tuple[date, date] | None:
        """First and last session date of the calendar, or None where it has no session."""
        return (self._days[0].item(), self._days[-1].item()) if len(self._days) else None

    def is_same(self, other: "SessionCalendar") -> bool:
        """Return whether another calendar expects the same sessions."""
        return self is other or (
            (self.zone, self.roll) == (other.zone, other.roll)
            and all(
                np.array_equal(a, b)
                for a, b in (
                    (self.days, other.days),
                    (self.opens, other.opens),
                    (self.closes, other.closes),
                    (self.breaks, other.breaks),
                )
            )
        )

    def until(self, end: date) -> "SessionCalendar":
        """Return the calendar without the sessions from a date on; days and zone stay."""
        count = int(np.searchsorted(self._days, np.datetime64(end)))
        if count == len(self._days):
            return self
        last = self._closes[count - 1] if count else 0
        return SessionCalendar(
            key=self.key,
            zone=self.zone,
            days=self._days[:count],
            opens=self._opens[:count],
            closes=self._closes[:count],
            breaks=self._breaks[: int(np.searchsorted(self._breaks[:, 0], last))],
            roll=self.roll,
            days_may_differ=self.days_may_differ,
        )

    def sessions(self, first: date, end: date) -> list[Session]:
        """Return the sessions dated in ``[first, end)``."""
        low, high = np.searchsorted(self._days, [np.datetime64(first), np.datetime64(end)])
        return [self._session(position) for position in range(int(low), int(high))]

    def sessions_meeting(self, interval: Interval) -> list[Session]:
        """Return the sessions that share real time with an interval."""
        low = np.searchsorted(self._closes, _micros(interval.start), side="right")
        high = np.searchsorted(self._opens, _micros(interval.end), side="left")
        return [self._session(position) for position in range(int(low), int(high))]

    def day_starts_at(self, day: date) -> datetime:
        """Return the real time at which a session day begins (local midnight less the roll)."""
        wall = datetime.combine(day, time()) - self.roll
        return wall.replace(tzinfo=ZoneInfo(self.zone)).astimezone(UTC)

    def last_second_of(self, closes_at: datetime) -> datetime:
        """Return the last second of the session day of a close that is not of a later session.

        A session that is dated by its close may begin on the date before.
        """
        day = self.day_of(closes_at - timedelta(microseconds=1))
        day_end = self.day_starts_at(day + _DAY) - timedelta(seconds=1)
        following = int(np.searchsorted(self._opens, _micros(closes_at)))
        if following < len(self._opens):
            next_open = _moment(self._opens[following]) - timedelta(seconds=1)
            day_end = min(day_end, max(next_open, closes_at))
        return day_end

    def day_of(self, moment: datetime) -> date:
        """Return the session date of a moment, whether or not a session is open then."""
        day: date = self.days_of(np.array([_micros(moment)]))[0].item()
        return day

    def days_of(self, micros: np.ndarray) -> np.ndarray:
        """Return the session dates (``datetime64[D]``) of int64 microseconds since 1970 UTC."""
        moments = pd.DatetimeIndex(micros.astype("datetime64[us]")).tz_localize("UTC")
        wall = moments.tz_convert(self.zone).tz_localize(None) + pd.Timedelta(self.roll)
        return np.asarray(wall.to_numpy().astype("datetime64[D]"))

    def _session(self, position: int) -> Session:
        return Session(
            self._days[position].item(),
            _moment(self._opens[position]),
            _moment(self._closes[position]),
        )


def monday_of(day: date) -> date:
    """Return the Monday of the week that a date lies in."""
    return day - timedelta(days=day.weekday())


def midnight(day: date) -> datetime:
    """Return midnight UTC at the start of a date."""
    return datetime.combine(day, time(), tzinfo=UTC)


def interval_between(
    calendar: SessionCalendar, timeframe: Timeframe, first: date, end: date
) -> Interval:
    """Return the interval of timestamps for session dates ``[first, end)``.

    A weekly bar belongs to the date of its Monday, so for 1w both ends move forward to a Monday.
    """
    if timeframe.is_intraday:
        return Interval(calendar.day_starts_at(first), calendar.day_starts_at(end))
    if timeframe is Timeframe.W1:
        first, end = _monday_from(first), _monday_from(end)
    return Interval(midnight(first), midnight(end))


def expected_spans(calendar: SessionCalendar, timeframe: Timeframe, wanted: Interval) -> list[Span]:
    """Return the spans, oldest first, that overlap an interval of timestamps; none is cut."""
    if timeframe.is_intraday:
        return [
            Span(Interval(s.opens_at, s.closes_at), s.opens_at, s.closes_at)
            for s in calendar.sessions_meeting(wanted)
        ]
    first, last = wanted.start.date(), (wanted.end - timedelta(microseconds=1)).date()
    if timeframe is Timeframe.D1:
        sessions = calendar.sessions(first, last + _DAY)
        return [_span(calendar, _days(s.day, _DAY), [s]) for s in sessions]
    sessions = calendar.sessions(monday_of(first), monday_of(last) + _WEEK)
    grouped = groupby(sessions, lambda session: monday_of(session.day))
    weeks = ((monday, list(week)) for monday, week in grouped)
    return [_span(calendar, _days(monday, _WEEK), week) for monday, week in weeks]


def days_inside(calendar: SessionCalendar, span: Span) -> set[date]:
    """Return the session dates of the sessions inside a span."""
    inside = Interval(span.opens_at, span.closes_at)
    return {one.day for one in calendar.sessions_meeting(inside)}


def expected_timestamps(
    calendar: SessionCalendar, timeframe: Timeframe, wanted: Interval
) -> IntervalSet:
    """Return the expected spans inside an interval of timestamps as one set."""
    spans = expected_spans(calendar, timeframe, wanted)
    return IntervalSet(span.interval for span in spans).clip(wanted)


def _monday_from(day: date) -> date:
    """Return the first Monday that is not before a date."""
    return monday_of(day + timedelta(days=6))


def _span(calendar: SessionCalendar, interval: Interval, sessions: list[Session]) -> Span:
    closes_at = sessions[-1].closes_at
    ends_late = max(closes_at, interval.end) if calendar.days_may_differ else None
    return Span(interval, sessions[0].opens_at, closes_at, len(sessions), ends_late)


def _days(first: date, length: timedelta) -> Interval:
    start = midnight(first)
    return Interval(start, start + length)


def _frozen(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


def _micros(moment: datetime) -> int:
    return round(moment.timestamp() * 1_000_000)


def _moment(micros: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(micros))
