"""Sessions that the gateway told: how far they are believed, and what they make of a calendar.

For dates that it told, the gateway wins over the libraries: a session that they lack is expected,
one that it does not have is not expected any more. Its answers may be wrong, so they are guarded
(``judged``). Not here: asking (``ib.source``, ``load.schedules``), remembering (``store``).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum
from itertools import pairwise

import numpy as np

from ktrdr_pipelines.core.bars import micros
from ktrdr_pipelines.core.intervals import Interval, IntervalSet
from ktrdr_pipelines.core.sessions import SessionCalendar

_DAY, _INSTANT = timedelta(days=1), timedelta(microseconds=1)
_MOST_CONTRADICTING = 10
"""One session in so many may differ from what is known; a single one always may."""


class ScheduleSource(StrEnum):
    """Where a date was told: in contract details (a forecast), or in a schedule asked for."""

    DETAILS = "details"
    SCHEDULE = "schedule"


@dataclass(frozen=True, slots=True)
class LearnedDay:
    """What the gateway told of one session date: its stretches of trading, none if closed."""

    day: date
    parts: tuple[Interval, ...]

    def __str__(self) -> str:
        hours = ", ".join(map(str, self.parts)) or "closed"
        return f"{self.day} {hours}"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What of a schedule is believed, and why the rest is not, in words for a person."""

    days: tuple[LearnedDay, ...]
    refused: str = ""


def learned_days(
    calendar: SessionCalendar, parts: Iterable[Interval], closed: Iterable[date] = ()
) -> list[LearnedDay]:
    """Gather stretches of trading by session date, oldest first.

    Args:
        calendar: its zone and roll say of which date a stretch is.
        parts: stretches of real time, in any order.
        closed: dates that are told to have none.
    """
    found: dict[date, list[Interval]] = {day: [] for day in closed}
    for part in parts:
        found.setdefault(calendar.day_of(part.start), []).append(part)
    return [LearnedDay(day, tuple(sorted(found[day]))) for day in sorted(found)]


def every_day(days: Sequence[LearnedDay]) -> list[LearnedDay]:
    """Fill a schedule: a date between its sessions that it does not name is closed.

    Behind the last one nothing is said: an answer that ends early must not close what it lacks.

    Args:
        days: what was told, oldest first.
    """
    if not days:
        return []
    told = {one.day: one for one in days}
    count = (days[-1].day - days[0].day).days + 1
    dates = (days[0].day + place * _DAY for place in range(count))
    return [told.get(day, LearnedDay(day, ())) for day in dates]


def judged(
    known: SessionCalendar, days: Sequence[LearnedDay], held: frozenset[date] = frozenset()
) -> Judgement:
    """Say what of a schedule is believed.

    Refused as a whole is one that cannot be (stretches that overlap or lie outside their date),
    and one that contradicts more than a tenth of the known sessions in its stretch, though a
    single session may always differ. A date is not believed to be closed where bars of it are
    held.

    Args:
        known: what the libraries know; a calendar of the gateway's knows nothing and agrees.
        days: what was told, one a date, oldest first.
        held: dates of which bars are held.
    """
    if wrong := _impossible(known, days):
        return Judgement((), wrong)
    believed = tuple(one for one in days if one.parts or one.day not in held)
    if not believed or known.known is None:
        return Judgement(believed)
    differing = [one for one in believed if differs(known, one)]
    count = len(known.sessions(believed[0].day, believed[-1].day + _DAY))
    if len(differing) > max(1, count / _MOST_CONTRADICTING):
        return Judgement(
            (), f"it contradicts {len(differing)} of {count} known sessions, first {differing[0]}"
        )
    return Judgement(believed)


def _impossible(known: SessionCalendar, days: Sequence[LearnedDay]) -> str:
    """Say why a schedule cannot be, or nothing."""
    parts = [part for one in days for part in one.parts]
    for left, right in pairwise(parts):
        if right.start < left.end:
            return f"{left} and {right} overlap"
    for one in days:
        edges = [(part.start, part.end - _INSTANT) for part in one.parts]
        if any(known.day_of(moment) != one.day for edge in edges for moment in edge):
            return f"{one} lies outside its date"
    return ""


def differs(known: SessionCalendar, told: LearnedDay) -> bool:
    """Say whether a date opens or closes at other times than is known, or not at all."""
    sessions = known.sessions(told.day, told.day + _DAY)
    hours = [(session.opens_at, session.closes_at) for session in sessions]
    return hours != ([(told.parts[0].start, told.parts[-1].end)] if told.parts else [])


def overlaid(base: SessionCalendar, days: Sequence[LearnedDay]) -> SessionCalendar:
    """Give a calendar with the told dates in place of its own; zone and session days stay.

    A date that opens and closes as is known keeps its breaks: not every schedule tells of them.
    """
    days = [one for one in days if differs(base, one)]
    if not days:
        return base
    dates = np.array([one.day for one in days], dtype="datetime64[D]")
    kept = ~np.isin(base.days, dates)
    opened = [one for one in days if one.parts]
    told = np.array([one.day for one in opened], dtype="datetime64[D]")
    opens = np.array([micros(one.parts[0].start) for one in opened], dtype=np.int64)
    closes = np.array([micros(one.parts[-1].end) for one in opened], dtype=np.int64)
    joined = np.concatenate([base.days[kept], told])
    order = np.argsort(joined, kind="stable")
    return SessionCalendar(
        key=base.key,
        zone=base.zone,
        days=joined[order],
        opens=np.concatenate([base.opens[kept], opens])[order],
        closes=np.concatenate([base.closes[kept], closes])[order],
        breaks=_breaks(base, kept, opened),
        roll=base.roll,
    )


def _breaks(base: SessionCalendar, kept: np.ndarray, opened: Sequence[LearnedDay]) -> np.ndarray:
    owner = np.searchsorted(base.opens, base.breaks[:, 0], side="right") - 1
    own = base.breaks[kept[owner]] if len(base.breaks) else base.breaks
    pauses = [
        (micros(gap.start), micros(gap.end))
        for one in opened
        for gap in IntervalSet([Interval(one.parts[0].start, one.parts[-1].end)])
        - IntervalSet(one.parts)
    ]
    told = np.array(pauses, dtype=np.int64).reshape(-1, 2)
    joined = np.concatenate([own, told])
    return np.asarray(joined[np.argsort(joined[:, 0], kind="stable")])
