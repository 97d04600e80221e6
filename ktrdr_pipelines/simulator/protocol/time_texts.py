"""Moments as clients write them and as the gateway writes them.

Source: the three forms of ``endDateTime`` and warning 2174 are official (grade O); the texts of
10314 and 2174 are those of live gateways (grade L).
"""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import numpy as np

from ktrdr_pipelines.simulator.market.hours import DAY_S, ZONE, Ints

BAD_END = (
    "End Date/Time: The date, time, or time-zone entered is invalid. The correct format is "
    "yyyymmdd hh:mm:ss xx/xxxx where yyyymmdd and xx/xxxx are optional. E.g.: 20031126 15:59:00 "
    "US/Eastern  Note that there is a space between the date and time, and between the time and "
    "time-zone.  If no date is specified, current date is assumed. If no time-zone is specified, "
    "local time-zone is assumed(deprecated).  You can also provide yyyymmddd-hh:mm:ss time is in "
    "UTC. Note that there is a dash between the date and time in UTC notation."
)
NO_ZONE = (
    "Warning: You submitted request with date-time attributes without explicit time zone. Please "
    "switch to use yyyymmdd-hh:mm:ss in UTC or use instrument time zone, like US/Eastern. Implied "
    "time zone functionality will be removed in the next API release"
)

_END = re.compile(r"(?:([0-9]{8})(-| {1,2}))?([0-9]{2}:[0-9]{2}:[0-9]{2})(?: (\S+))?")
_EPOCH = date(1970, 1, 1)
_HOUR_S = 3_600
_EARLIEST_S, _LATEST_S = 0, 4_102_444_800
"""1970 and 2100: what lies outside is a typing mistake."""


class EndTimeError(ValueError):
    """An end that is no date and time, or names an unknown zone."""


@dataclass(frozen=True, slots=True)
class EndTime:
    """An asked end in seconds since 1970, and whether its zone had to be assumed."""

    seconds: int
    zone_assumed: bool = False


def parse_end(text: str, now_s: int, own_zone: str = ZONE) -> EndTime:
    """Read an ``endDateTime``; an empty one is now.

    One with a dash is UTC; without a zone it is in ``own_zone``, the gateway's, without a date
    today's there.

    Raises:
        EndTimeError: the text has another form.
    """
    if not text:
        return EndTime(now_s)
    found = _END.fullmatch(text)
    if found is None or (found[2] == "-" and found[4]):
        raise EndTimeError(text)
    zone = UTC if found[2] == "-" else _zone(found[4] or own_zone)
    day = found[1] or f"{datetime.fromtimestamp(now_s, zone):%Y%m%d}"
    try:
        moment = datetime.strptime(day + found[3], "%Y%m%d%H:%M:%S").replace(tzinfo=zone)
        seconds = int(moment.timestamp())
    except (ValueError, OverflowError):
        raise EndTimeError(text) from None
    if not _EARLIEST_S <= seconds < _LATEST_S:
        raise EndTimeError(text)
    return EndTime(seconds, zone_assumed=found[2] != "-" and not found[4])


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise EndTimeError(name) from None


def zoned(moment_s: int, zone: str = ZONE) -> str:
    """Write a moment as ``yyyymmdd HH:MM:SS ZONE`` in a zone, by the name that it is given."""
    local = datetime.fromtimestamp(moment_s, ZoneInfo(zone))
    return f"{local:%Y%m%d %H:%M:%S} {zone}"


def local_text(moment_s: int, zone: str) -> str:
    """Write a moment as ``yyyymmdd-HH:MM:SS`` in an exchange's zone, in spite of the dash."""
    return f"{datetime.fromtimestamp(moment_s, ZoneInfo(zone)):%Y%m%d-%H:%M:%S}"


def utc_text(moment_s: int) -> str:
    """Write a moment as ``yyyymmdd-HH:MM:SS``, which is UTC."""
    return f"{datetime.fromtimestamp(moment_s, UTC):%Y%m%d-%H:%M:%S}"


def server_text(now: datetime, zone: str = ZONE, zone_name: str = "") -> str:
    """Write the connection time of the handshake, ``yyyymmdd HH:MM:SS ZONE``.

    Its zone is the short name (``EST``), or that given; ``GMT-03:00`` where there is no short one,
    as Java writes it (grade P).
    """
    local = now.astimezone(ZoneInfo(zone))
    short = f"{local:%Z}"
    if short[:1] in {"+", "-"}:
        offset = f"{local:%z}"
        short = f"GMT{offset[:3]}:{offset[3:]}"
    return f"{local:%Y%m%d %H:%M:%S} {zone_name or short}"


def offset_s(moment_s: int, zone: str) -> int:
    """Return by how many seconds a zone's time is ahead of UTC at a moment."""
    delta = datetime.fromtimestamp(moment_s, ZoneInfo(zone)).utcoffset()
    return int((delta or timedelta()).total_seconds())


def date_text(day: int) -> str:
    """Write a day, counted from 1970, as ``yyyymmdd``."""
    return f"{_EPOCH + timedelta(days=day):%Y%m%d}"


def zoned_texts(times: Ints, zone: str) -> list[str]:
    """Write many moments with an exchange's zone, looking that up once an hour of them."""
    hours, where = np.unique(times // _HOUR_S, return_inverse=True)
    offsets = np.array([offset_s(int(hour) * _HOUR_S, zone) for hour in hours], dtype=np.int64)
    local = times + offsets[where]
    days, day_of = np.unique(local // DAY_S, return_inverse=True)
    dates = [date_text(int(day)) for day in days]
    return [
        f"{dates[day]} {second // 3600:02}:{second // 60 % 60:02}:{second % 60:02} {zone}"
        for day, second in zip(day_of.tolist(), (local % DAY_S).tolist(), strict=True)
    ]
