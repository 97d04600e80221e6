"""Parse the times that clients send, and format the times that the gateway sends.

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
"""1970 and 2100: a time outside is taken for a mistake."""


class EndTimeError(ValueError):
    """An end that is not a date and time, or names an unknown zone."""


@dataclass(frozen=True, slots=True)
class EndTime:
    """A requested end in seconds since 1970, and whether its zone had to be assumed."""

    seconds: int
    zone_assumed: bool = False


def parse_end(text: str, now_s: int, own_zone: str = ZONE) -> EndTime:
    """Return the moment of an ``endDateTime``; an empty one is now.

    A text with a dash is in UTC, one without a zone in ``own_zone``, the gateway's. A text without
    a date means today in its zone.

    Raises:
        EndTimeError: the text has another form, or names an unknown zone.
    """
    if not text:
        return EndTime(now_s)
    found = _END.fullmatch(text)
    if found is None or (found[2] == "-" and found[4]):
        raise EndTimeError(text)
    zone: tzinfo = UTC
    if found[2] != "-":
        try:
            zone = ZoneInfo(found[4] or own_zone)
        except (KeyError, ValueError, OSError):
            raise EndTimeError(text) from None
    day = found[1] or f"{datetime.fromtimestamp(now_s, zone):%Y%m%d}"
    try:
        moment = datetime.strptime(day + found[3], "%Y%m%d%H:%M:%S").replace(tzinfo=zone)
        seconds = int(moment.timestamp())
    except (ValueError, OverflowError):
        raise EndTimeError(text) from None
    if not _EARLIEST_S <= seconds < _LATEST_S:
        raise EndTimeError(text)
    return EndTime(seconds, zone_assumed=found[2] != "-" and not found[4])


def zoned(moment_s: int, zone: str = ZONE) -> str:
    """Return a moment as ``yyyymmdd HH:MM:SS ZONE``, with the name of the zone as given."""
    local = datetime.fromtimestamp(moment_s, ZoneInfo(zone))
    return f"{local:%Y%m%d %H:%M:%S} {zone}"


def local_text(moment_s: int, zone: str) -> str:
    """Return a moment as ``yyyymmdd-HH:MM:SS`` in the exchange's zone, despite the dash."""
    return f"{datetime.fromtimestamp(moment_s, ZoneInfo(zone)):%Y%m%d-%H:%M:%S}"


def utc_text(moment_s: int) -> str:
    """Return a moment as ``yyyymmdd-HH:MM:SS`` in UTC."""
    return f"{datetime.fromtimestamp(moment_s, UTC):%Y%m%d-%H:%M:%S}"


def server_text(now: datetime, zone: str = ZONE, zone_name: str = "") -> str:
    """Return the connection time of the handshake, ``yyyymmdd HH:MM:SS ZONE``.

    ``ZONE`` is ``zone_name`` if given, or the zone's short name (``EST``); a zone without one is
    ``GMT-03:00``, as Java writes it (grade P).
    """
    local = now.astimezone(ZoneInfo(zone))
    short = f"{local:%Z}"
    if short[:1] in {"+", "-"}:
        offset = f"{local:%z}"
        short = f"GMT{offset[:3]}:{offset[3:]}"
    return f"{local:%Y%m%d %H:%M:%S} {zone_name or short}"


def offset_s(moment_s: int, zone: str) -> int:
    """Return the seconds by which a zone is ahead of UTC at a moment."""
    delta = datetime.fromtimestamp(moment_s, ZoneInfo(zone)).utcoffset()
    return int((delta or timedelta()).total_seconds())


def date_text(day: int) -> str:
    """Return a day, counted from 1970, as ``yyyymmdd``."""
    return f"{_EPOCH + timedelta(days=day):%Y%m%d}"


def zoned_texts(times: Ints, zone: str) -> list[str]:
    """Return many moments as ``zoned`` does, with one look-up of the offset an hour."""
    hours, where = np.unique(times // _HOUR_S, return_inverse=True)
    offsets = np.array([offset_s(int(hour) * _HOUR_S, zone) for hour in hours], dtype=np.int64)
    local = times + offsets[where]
    days, day_of = np.unique(local // DAY_S, return_inverse=True)
    dates = [date_text(int(day)) for day in days]
    return [
        f"{dates[day]} {second // 3600:02}:{second // 60 % 60:02}:{second % 60:02} {zone}"
        for day, second in zip(day_of.tolist(), (local % DAY_S).tolist(), strict=True)
    ]
