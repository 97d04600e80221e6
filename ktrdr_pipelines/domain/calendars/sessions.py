"""Trading sessions, and the calendar of one market that holds them.

Not here: the sources of calendars (``domain.calendars.registry``), the spans of bar timestamps that
a timeframe is expected to have (``domain.calendars.session_grid``).
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import numpy as np

from ktrdr_pipelines.domain.bars import micros, moment
from ktrdr_pipelines.domain.calendars.arrays import wall_micros
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.timeframes import Timeframe

_DAY = timedelta(days=1)
_DAY_MICROS = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Session:
    """One trading session: its date and the real times of its open and close."""

    day: date
    opens_at: datetime
    closes_at: datetime


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
        self._whole = self
        self._days = _frozen(days)
        self._opens = _frozen(opens)
        self._closes = _frozen(closes)
        self._breaks = _frozen(np.empty((0, 2), np.int64) if breaks is None else breaks)

    def __repr__(self) -> str:
        known = f"{self._days[0]} to {self._days[-1]}" if len(self._days) else "no session"
        return f"SessionCalendar({self.key}, {known})"

    @property
    def whole(self) -> "SessionCalendar":
        """The calendar that ``until`` cut this one from; itself where it is not cut."""
        return self._whole

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
        cut = SessionCalendar(
            key=self.key,
            zone=self.zone,
            days=self._days[:count],
            opens=self._opens[:count],
            closes=self._closes[:count],
            breaks=self._breaks[: int(np.searchsorted(self._breaks[:, 0], last))],
            roll=self.roll,
            days_may_differ=self.days_may_differ,
        )
        cut._whole = self._whole
        return cut

    def sessions(self, first: date, end: date) -> list[Session]:
        """Return the sessions dated in ``[first, end)``."""
        low, high = np.searchsorted(self._days, [np.datetime64(first), np.datetime64(end)])
        return self._sessions(int(low), int(high))

    def sessions_meeting(self, interval: Interval) -> list[Session]:
        """Return the sessions that share real time with an interval."""
        low = np.searchsorted(self._closes, micros(interval.start), side="right")
        high = np.searchsorted(self._opens, micros(interval.end), side="left")
        return self._sessions(int(low), int(high))

    def days_meeting(self, interval: Interval) -> set[date]:
        """Return the dates of the sessions that share real time with an interval."""
        return {one.day for one in self.sessions_meeting(interval)}

    def closes_of(self, first: date, end: date) -> np.ndarray:
        """Return the part of ``closes`` for the sessions dated in ``[first, end)``."""
        low, high = np.searchsorted(self._days, [np.datetime64(first), np.datetime64(end)])
        return self._closes[int(low) : int(high)]

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
        following = int(np.searchsorted(self._opens, micros(closes_at)))
        if following < len(self._opens):
            next_open = moment(self._opens[following]) - timedelta(seconds=1)
            day_end = min(day_end, max(next_open, closes_at))
        return day_end

    def day_of(self, moment: datetime) -> date:
        """Return the session date of a moment, whether or not a session is open then."""
        wall = moment.astimezone(ZoneInfo(self.zone)).replace(tzinfo=None)
        return (wall + self.roll).date()

    def days_of(self, micros: np.ndarray) -> np.ndarray:
        """Return the session dates (``datetime64[D]``) of int64 microseconds since 1970 UTC."""
        wall = wall_micros(micros, self.zone) + self.roll // timedelta(microseconds=1)
        return np.asarray((wall // _DAY_MICROS).astype("datetime64[D]"))

    def _sessions(self, low: int, high: int) -> list[Session]:
        part = slice(low, high)
        columns = (self._days[part], self._opens[part], self._closes[part])
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [Session(day, moment(opens), moment(closes)) for day, opens, closes in rows]


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


def _monday_from(day: date) -> date:
    """Return the first Monday that is not before a date."""
    return monday_of(day + timedelta(days=6))


def _frozen(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view
