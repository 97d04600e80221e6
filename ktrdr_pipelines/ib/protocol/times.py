"""Times and time zones as gateways write them: one reader and one table for all messages.

A gateway names zones as Java does: in message 17 the zone of its login or machine, in messages 10
and 106 that of the exchange. Names seen (grade L): ``US/Eastern``, ``US/Central``,
``Europe/Zurich``, ``Asia/Shanghai``, ``GB``, and since 2026 ``America/New_York`` as well.
``java.util.TimeZone`` may also return the old names of the tz database without a slash, and
``GMT+08:00``.

Not here: what a message means (``ib.protocol.bar_messages``, ``ib.protocol.schedule_messages``,
``ib.protocol.contract_messages``), notices of unknown names (``ib.connection.notices``).

Source: https://github.com/pst-group/pysystemtrade/issues/1244 (``20250915 10:00:00 GB``),
https://github.com/ib-api-reloaded/ib_async/issues/128 (``20260320 14:30:00 Europe/Zurich``),
https://docs.oracle.com/javase/8/docs/api/java/util/TimeZone.html (custom ids).
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import cache
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_UTC_NAMES: Final = frozenset(
    {"UTC", "GMT", "Z", "UCT", "GMT0", "GREENWICH", "UNIVERSAL", "ZULU", "GMT+0", "GMT-0"}
)
_SINGLE_ZONE: Final = frozenset(
    {"CET", "EET", "MET", "WET", "GB", "GB-Eire", "Eire", "Iceland", "Poland", "Portugal"}
    | {"Turkey", "W-SU", "Egypt", "Israel", "Iran", "Libya", "Cuba", "Jamaica", "Navajo"}
    | {"Hongkong", "Japan", "PRC", "ROC", "ROK", "Singapore", "Kwajalein", "NZ", "NZ-CHAT"}
    | {"EST5EDT", "CST6CDT", "MST7MDT", "PST8PDT", "HST"}
)
"""Names of the tz database without a slash that mean one place only."""

_TWO_READINGS: Final = {
    "EST": ("America/New_York", timezone(timedelta(hours=-5))),
    "MST": ("America/Denver", timezone(timedelta(hours=-7))),
}
"""Names that mean an exchange's place in contract details, and a fixed offset in Java and the tz
database: in winter both are the same. Others (``CST``, ``IST``) may mean places on two continents
and count as unknown."""

# ASCII: other scripts have digits too, which Python's int and strptime would read.
_WALL: Final = re.compile(r"(\d{8})(-| {1,2})(\d\d:\d\d)(:\d\d)?(?: +(\S.*))?", re.ASCII)
_OFFSET: Final = re.compile(r"(?:GMT|UTC)([+-])([01]?\d)(?::?([0-5]\d))?", re.ASCII)
_YEARS: Final = (1900, 2100)  # of anything that a gateway has


class UnknownZone(ValueError):  # noqa: N818  (not an error of the tree: callers translate it)
    """A time is stated in a zone whose name is unknown, or without a zone."""

    def __init__(self, name: str) -> None:
        super().__init__(f"unknown time zone {name!r}" if name else "no time zone")
        self.name = name


@cache
def readings_of(name: str) -> tuple[tzinfo, ...]:
    """Return every zone that a name may mean, that of an exchange first; none if it is unknown."""
    if name.upper() in _UTC_NAMES:
        return (UTC,)
    if (two := _TWO_READINGS.get(name)) is not None:
        return (ZoneInfo(two[0]), two[1])
    if (offset := _OFFSET.fullmatch(name)) is not None:
        distance = timedelta(hours=int(offset[2]), minutes=int(offset[3] or 0))
        return (timezone(-distance if offset[1] == "-" else distance),)
    if "/" in name or name in _SINGLE_ZONE:
        with suppress(ZoneInfoNotFoundError, ValueError, OSError):
            return (ZoneInfo(name),)
    return ()


def zone_named(name: str) -> tzinfo:
    """Return the zone of a name, as an exchange uses it.

    Raises:
        UnknownZone: the name is unknown.
    """
    readings = readings_of(name)
    if not readings:
        raise UnknownZone(name)
    return readings[0]


@dataclass(frozen=True, slots=True)
class WrittenMoment:
    """A time as written in a message: date and time of day, and the name of its zone.

    ``zone`` is empty if none is named. A date without a time is not a moment.
    """

    wall: datetime
    zone: str

    @property
    def is_known(self) -> bool:
        """Return whether the zone is named, and known."""
        return bool(readings_of(self.zone))

    def earliest(self) -> datetime | None:
        """Return the earliest time in UTC that it may mean; None if the zone is unknown."""
        return min(self._meanings(), default=None)

    def latest(self) -> datetime | None:
        """Return the latest time in UTC that it may mean; None if the zone is unknown."""
        return max(self._meanings(), default=None)

    def _meanings(self) -> list[datetime]:
        """Return every time that it may mean, of two equal wall times and of two readings."""
        return [
            in_utc(self.wall, zone, fold=fold) for zone in readings_of(self.zone) for fold in (0, 1)
        ]


def written_moment(text: str) -> WrittenMoment | None:
    """Read ``20260105 16:00:00 US/Eastern``, or ``20260105-21:00:00``, which is UTC.

    Return None if the text has another form, or is a date without a time.
    """
    if (found := _WALL.fullmatch(text.strip())) is None:
        return None
    day, separator, clock, seconds, zone = found.groups()
    try:
        wall = datetime(  # noqa: DTZ001  (its zone is beside it)
            *(int(day[:4]), int(day[4:6]), int(day[6:])),
            *(int(clock[:2]), int(clock[3:]), int((seconds or ":00")[1:])),
        )
    except ValueError:
        return None
    if not _YEARS[0] <= wall.year <= _YEARS[1]:
        return None
    return WrittenMoment(wall, zone or ("UTC" if separator == "-" else ""))


def in_utc(wall: datetime, zone: tzinfo, *, fold: int = 0) -> datetime:
    """Return a wall time of a zone in UTC; ``fold`` 1 is the second of two equal wall times."""
    return wall.replace(tzinfo=zone, fold=fold).astimezone(UTC)
