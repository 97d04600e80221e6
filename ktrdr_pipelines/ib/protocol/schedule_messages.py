"""Sessions as the gateway reports them: message 106, and the hours in contract details.

Not here: sending requests (``ib.source``), which sessions are accepted
(``domain.calendars.gateway_schedules``).

Source: formats of both from section 8 of the wire protocol as ib_async 2.1.0 and ibapi decode it;
times are in the exchange's zone although message 106 writes them with a dash (grade L).
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, date, datetime, tzinfo

from ktrdr_pipelines.domain.calendars.gateway_schedules import (
    LearnedDay,
    days_by_close,
    learned_days,
)
from ktrdr_pipelines.domain.calendars.registry import calendar_named, is_assumed
from ktrdr_pipelines.domain.instruments import Instrument
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.ib.protocol.contract_messages import Candidate
from ktrdr_pipelines.ib.protocol.times import in_utc, zone_named

_HEADER, _PER_SESSION = 6, 3
# ASCII: other scripts have digits too, which Python's int and strptime would accept.
_SEGMENT = re.compile(r"(\d{8}):(\d{4})-(?:(\d{8}):)?(\d{4})", re.ASCII)
_CLOSED = re.compile(r"(\d{8}):CLOSED", re.ASCII)
_WALL = re.compile(r"\d{8}[- ]\d\d:\d\d:\d\d", re.ASCII)
_DATE = re.compile(r"\d{8}", re.ASCII)


def schedule_days(fields: list[str]) -> list[LearnedDay]:
    """Read message 106: the sessions of a contract by their dates, oldest first.

    Raises:
        UnknownZone: the zone is unknown.
        ValueError: another message, or an invalid session.
    """
    if fields[0] != "106":
        raise ValueError(f"message {fields[0]} instead of a schedule")
    zone, count, texts = zone_named(fields[4]), int(fields[5]), fields[_HEADER:]
    if len(texts) != count * _PER_SESSION:
        raise ValueError(f"{len(texts)} values for {count} sessions")
    found: dict[date, list[Interval]] = defaultdict(list)
    for position in range(0, len(texts), _PER_SESSION):
        start, end, day = texts[position : position + _PER_SESSION]
        part = Interval(_moment(start, zone), _moment(end, zone))
        found[_date(day)].append(part)
    return [LearnedDay(day, tuple(sorted(found[day]))) for day in sorted(found)]


def details_days(instrument: Instrument, contract: Candidate) -> list[LearnedDay]:
    """Read the hours in a contract's details: regular or all, as the instrument is defined.

    If the calendar is an assumption, as that of cryptocurrencies is, a session is dated by its
    close in the zone of the hours: ``20260507:1601-20260508:1600`` is the session of 2026-05-08
    (seen by one author, who did not show the zone).

    Raises:
        UnknownZone: the zone is unknown.
        ValueError: invalid hours.
    """
    text = contract.liquid_hours if instrument.use_rth else contract.trading_hours
    if not text:
        return []
    zone = zone_named(contract.zone)
    parts: list[Interval] = []
    closed: list[date] = []
    for segment in filter(None, text.split(";")):
        if found := _CLOSED.fullmatch(segment):
            closed.append(_date(found[1]))
        else:
            parts.extend(_segment_parts(segment, zone))
    if is_assumed(instrument.calendar):
        return days_by_close(parts, closed, zone)
    return learned_days(calendar_named(instrument.calendar), parts, closed)


def _segment_parts(segment: str, zone: tzinfo) -> Iterator[Interval]:
    """Read ``20260105:0930-20260105:1600``, or the older ``20260105:0930-1130,1230-1600``."""
    day, _, hours = segment.partition(":")
    for piece in hours.split(","):
        text = piece if piece.count(":") > 1 or re.match(r"\d{8}:", piece) else f"{day}:{piece}"
        if (found := _SEGMENT.fullmatch(text)) is None:
            raise ValueError(f"{segment!r} are not trading hours")
        first, opens, last, closes = found.groups()
        yield Interval(
            _moment(f"{first}-{opens[:2]}:{opens[2:]}:00", zone),
            _moment(f"{last or first}-{closes[:2]}:{closes[2:]}:00", zone),
        )


def _moment(text: str, zone: tzinfo) -> datetime:
    if _WALL.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not a time of a session")
    wall = datetime.strptime(text.replace(" ", "-"), "%Y%m%d-%H:%M:%S")  # noqa: DTZ007
    return in_utc(wall, zone)


def _date(text: str) -> date:
    if _DATE.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not the date of a session")
    return datetime.strptime(text, "%Y%m%d").replace(tzinfo=UTC).date()
