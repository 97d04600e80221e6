"""Read ``--start`` and ``--end``, session dates or instants, as bounds of bar timestamps.

Not here: which part of the bounds a job requests (``domain.planning.jobs``).
"""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

from ktrdr_pipelines.domain.calendars.registry import KNOWN_FROM, KNOWN_TO, calendar_named
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar, interval_between
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.planning.jobs import Bounds
from ktrdr_pipelines.errors import UsageError

ALLOWED: Final = (
    "Allowed are a session date, such as 2024-01-05, or an instant with a zone, such as "
    "2024-01-05T14:30:00Z or 2024-01-05T09:30:00-05:00"
)
_FIRST, _LAST = date.fromisoformat(KNOWN_FROM), date.fromisoformat(KNOWN_TO)
_DAY, _WEEK = timedelta(days=1), timedelta(days=7)


@dataclass(frozen=True, slots=True)
class DateBound:
    """One end of a range as the user gave it: a session date, or an instant in UTC."""

    option: str
    text: str
    value: date | datetime

    def __str__(self) -> str:
        return f"{self.option} {self.text}"

    def instant(self, calendar: SessionCalendar) -> datetime:
        """Return the instant at which the bound lies."""
        if isinstance(self.value, datetime):
            return self.value
        return calendar.day_starts_at(self.value)

    def day(self, calendar: SessionCalendar) -> date:
        """Return the session date on which the bound lies."""
        return calendar.day_of(self.value) if isinstance(self.value, datetime) else self.value


@dataclass(frozen=True, slots=True)
class DateRange:
    """The values of ``--start`` and ``--end``; None where the option was not given."""

    start: DateBound | None = None
    end: DateBound | None = None

    def bounds(self, series: Series, now: datetime) -> Bounds:
        """Return the bounds of bar timestamps for a series.

        Raises:
            UsageError: an end lies in the future, or the two are reversed.
        """
        calendar = calendar_named(series.instrument.calendar)
        today = calendar.day_of(now)
        if self.start:
            _refuse_future(self.start, today, now)
        if self.end:
            _refuse_future(self.end, today + _DAY, now)
        if self.start and self.end and self.start.instant(calendar) >= self.end.instant(calendar):
            raise UsageError(
                f"{self.start} and {self.end}",
                reason="they are reversed, or nothing lies between them",
                hint=f"{self.start.option} is the first session date to include, {self.end.option} "
                "the first one not to include",
            )
        return Bounds(
            _first_timestamp(self.start, series, calendar) if self.start else None,
            _end_timestamp(self.end, series, calendar) if self.end else None,
        )


def parse_date_range(
    start: str | None, end: str | None, *, names: tuple[str, str] = ("--start", "--end")
) -> DateRange:
    """Return the range that both options give; ``names`` are what messages call them.

    Raises:
        UsageError: an option is neither a date nor an instant with a zone.
    """
    return DateRange(
        None if start is None else parse_bound(names[0], start),
        None if end is None else parse_bound(names[1], end),
    )


def parse_bound(option: str, text: str) -> DateBound:
    """Return the bound for a session date, or for an instant with a zone.

    Raises:
        UsageError: the text is neither, or lies outside the known calendars.
    """
    value: date | datetime
    try:
        is_date = re.fullmatch(r"\d{4}-\d{2}-\d{2}", text)
        value = date.fromisoformat(text) if is_date else datetime.fromisoformat(text)
    except ValueError as error:
        reason = f"neither a date nor an instant ({error})"
        raise UsageError(f"{option} {text}", reason=reason, hint=ALLOWED) from None
    if isinstance(value, datetime) and value.tzinfo is None:
        raise UsageError(f"{option} {text}", reason="an instant without a zone", hint=ALLOWED)
    day = value.date() if isinstance(value, datetime) else value
    if not _FIRST <= day <= _LAST:
        raise UsageError(
            f"{option} {text}",
            reason="outside the known calendars",
            hint=f"Sessions are known from {_FIRST} to {_LAST}",
        )
    return DateBound(option, text, value.astimezone(UTC) if isinstance(value, datetime) else value)


def parse_instant(option: str, text: str) -> datetime:
    """Return an instant with a zone, converted to UTC.

    Raises:
        UsageError: the text is not an instant with a zone.
    """
    value = parse_bound(option, text).value
    if not isinstance(value, datetime):
        raise UsageError(
            f"{option} {text}",
            reason="a date, not an instant",
            hint="Add the time and the zone, such as 2024-01-05T14:30:00Z",
        )
    return value


def _first_timestamp(bound: DateBound, series: Series, calendar: SessionCalendar) -> datetime:
    if isinstance(bound.value, datetime) and series.timeframe.is_intraday:
        return bound.value
    day = bound.day(calendar)
    return interval_between(calendar, series.timeframe, day, day + _WEEK).start


def _end_timestamp(bound: DateBound, series: Series, calendar: SessionCalendar) -> datetime:
    if isinstance(bound.value, datetime) and series.timeframe.is_intraday:
        return bound.value
    day = bound.day(calendar)
    return interval_between(calendar, series.timeframe, day - _WEEK, day).end


def _refuse_future(bound: DateBound, latest: date, now: datetime) -> None:
    if isinstance(bound.value, datetime):
        is_future, most = bound.value > now, f"{now:%Y-%m-%dT%H:%M:%SZ}"
    else:
        is_future, most = bound.value > latest, str(latest)
    if is_future:
        raise UsageError(str(bound), reason="in the future", hint=f"The latest allowed is {most}")
