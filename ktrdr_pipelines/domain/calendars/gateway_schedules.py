"""Apply sessions that the gateway states of contracts to calendars, and check them first.

What the gateway states of a contract holds for that contract. It adds to what is expected at once:
a session that the library lacks, an earlier open, a later close (``extending``). It removes
nothing: a closed date or shorter hours are one statement of one contract. The calendar that symbols
share changes where ``CONTRACTS_AGREEING`` representative contracts state the same (``agreed``).
Where only the gateway knows the sessions, they are taken from it (``overlaid``); where the library
only assumes round-the-clock trading, a contract's own hours replace it, except where held bars
contradict them (``with_own_hours``). Schedules may be wrong, so they are checked (``judged``).

Not here: requests (``ib.source``, ``sync.discovery.trading_hours``), storage
(``store.ledger.gateway_records``).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from enum import StrEnum
from itertools import pairwise
from typing import Final

import numpy as np

from ktrdr_pipelines.domain.bars import micros, moment
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from ktrdr_pipelines.domain.instruments import Instrument
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet

_LONGEST_DAY: Final = timedelta(hours=25)  # the day on which clocks are put back
_ONE_DATE: Final = np.timedelta64(1, "D")
_DAY, _INSTANT = timedelta(days=1), timedelta(microseconds=1)
_MOST_CONTRADICTING = 10
"""One session in so many may differ from the known ones; a single one always may."""

CONTRACTS_AGREEING: Final = 3
"""Number of contracts that must state the same of a date before their shared calendar changes."""

MOST_EXTENDED: Final = timedelta(hours=8)
"""How far a stated open or close may be from the known one and is still accepted."""

_EXPIRING: Final = timedelta(days=10)
_LISTED_FOR: Final = timedelta(days=30)
_RECENT_SESSIONS: Final = 5


class ScheduleSource(StrEnum):
    """Where a date was stated: in contract details (a forecast), or in a requested schedule."""

    DETAILS = "details"
    SCHEDULE = "schedule"


@dataclass(frozen=True, slots=True)
class LearnedDay:
    """One session date as the gateway stated it: its intervals of trading, none if closed."""

    day: date
    parts: tuple[Interval, ...]

    def __str__(self) -> str:
        hours = ", ".join(map(str, self.parts)) or "closed"
        return f"{self.day} {hours}"


@dataclass(frozen=True, slots=True)
class SharedDay:
    """A session date of a calendar that symbols share, as several contracts state it."""

    stated: LearnedDay
    symbols: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Judgement:
    """The accepted dates of a schedule, and why it was refused, as text for the user."""

    days: tuple[LearnedDay, ...]
    refused: str = ""


def learned_days(
    calendar: SessionCalendar, parts: Iterable[Interval], closed: Iterable[date] = ()
) -> list[LearnedDay]:
    """Return intervals of trading by session date, oldest first.

    Args:
        calendar: its zone and roll determine the date of an interval.
        parts: intervals of real time, in any order.
        closed: dates that are stated to have none.
    """
    found: dict[date, list[Interval]] = {day: [] for day in closed}
    for part in parts:
        found.setdefault(calendar.day_of(part.start), []).append(part)
    return [LearnedDay(day, tuple(sorted(found[day]))) for day in sorted(found)]


def days_by_close(
    parts: Iterable[Interval], closed: Iterable[date], zone: tzinfo
) -> list[LearnedDay]:
    """Return intervals of trading by the date on which they close in a time zone, oldest first.

    One that is longer than a day (orders of some coins are routed from Sunday to Friday) is cut at
    the midnights of the zone.

    Args:
        parts: intervals of real time, in any order.
        closed: dates that are stated to have none.
        zone: the time zone of the hours.
    """
    found: dict[date, list[Interval]] = {day: [] for day in closed}
    for part in parts:
        for piece in _daily_pieces(part, zone):
            found.setdefault((piece.end - _INSTANT).astimezone(zone).date(), []).append(piece)
    return [LearnedDay(day, tuple(sorted(found[day]))) for day in sorted(found)]


def _daily_pieces(part: Interval, zone: tzinfo) -> Iterator[Interval]:
    """Cut an interval at the midnights of a zone if it is longer than any session of one day."""
    start = part.start
    while part.end - part.start > _LONGEST_DAY:
        midnight = datetime.combine(start.astimezone(zone).date() + _DAY, time(), tzinfo=zone)
        if midnight.astimezone(UTC) >= part.end:
            break
        yield Interval(start, midnight.astimezone(UTC))
        start = midnight.astimezone(UTC)
    yield Interval(start, part.end)


def every_day(days: Sequence[LearnedDay]) -> list[LearnedDay]:
    """Return a schedule with its closed dates: those between its sessions that it does not name.

    Nothing is added after the last session: a response that ends early must not close what it
    lacks.

    Args:
        days: the stated dates, oldest first.
    """
    if not days:
        return []
    by_day = {one.day: one for one in days}
    count = (days[-1].day - days[0].day).days + 1
    dates = (days[0].day + position * _DAY for position in range(count))
    return [by_day.get(day, LearnedDay(day, ())) for day in dates]


def judged(
    known: SessionCalendar,
    days: Sequence[LearnedDay],
    held: frozenset[date] = frozenset(),
    *,
    assumed: bool = False,
) -> Judgement:
    """Return what of a schedule is accepted.

    A schedule is refused as a whole if it is impossible (intervals that overlap or lie outside
    their date), or if it contradicts more than a tenth of the known sessions in its interval; a
    single session may always differ. A closed date is not accepted where bars of it are held.

    Args:
        known: the library's calendar; one without sessions (``GATEWAY``) contradicts nothing.
        days: the stated dates, one element a date, oldest first.
        held: dates of which bars are held.
        assumed: whether ``known`` is an assumption, which the schedule need not agree with;
            sessions may then begin before the midnight of their date and be dated by their close.
    """
    if wrong := _overlapping(days) or ("" if assumed else _misdated(known, days)):
        return Judgement((), wrong)
    accepted = tuple(one for one in days if one.parts or one.day not in held)
    if not accepted or known.known is None or assumed:
        return Judgement(accepted)
    differing = [one for one in accepted if differs(known, one)]
    count = len(known.sessions(accepted[0].day, accepted[-1].day + _DAY))
    if len(differing) > max(1, count / _MOST_CONTRADICTING):
        return Judgement(
            (), f"it contradicts {len(differing)} of {count} known sessions, first {differing[0]}"
        )
    return Judgement(accepted)


def _overlapping(days: Sequence[LearnedDay]) -> str:
    """Return which intervals of a schedule overlap, as text; empty if none do."""
    parts = [part for one in days for part in one.parts]
    for left, right in pairwise(parts):
        if right.start < left.end:
            return f"{left} and {right} overlap"
    return ""


def _misdated(known: SessionCalendar, days: Sequence[LearnedDay]) -> str:
    """Return which date of a schedule has hours outside it, as text; empty if none has."""
    for one in days:
        bounds = [(part.start, part.end - _INSTANT) for part in one.parts]
        if any(known.day_of(moment) != one.day for moment_at in bounds for moment in moment_at):
            return f"{one} lies outside its date"
    return ""


def differs(known: SessionCalendar, stated: LearnedDay) -> bool:
    """Return whether a stated date opens or closes at other times than a calendar has it."""
    sessions = known.sessions(stated.day, stated.day + _DAY)
    hours = [(session.opens_at, session.closes_at) for session in sessions]
    return hours != ([(stated.parts[0].start, stated.parts[-1].end)] if stated.parts else [])


def hours_of(calendar: SessionCalendar, day: date) -> LearnedDay:
    """Return the hours of a date in a calendar, without its breaks."""
    sessions = calendar.sessions(day, day + _DAY)
    if not sessions:
        return LearnedDay(day, ())
    (session,) = sessions
    opens, closes = micros(session.opens_at), micros(session.closes_at)
    low = np.searchsorted(calendar.breaks[:, 0], opens)
    high = np.searchsorted(calendar.breaks[:, 0], closes)
    breaks = IntervalSet(
        Interval(moment(start), moment(end)) for start, end in calendar.breaks[low:high].tolist()
    )
    return LearnedDay(
        day, tuple(IntervalSet([Interval(session.opens_at, session.closes_at)]) - breaks)
    )


def speaks_for_others(
    calendar: SessionCalendar,
    instrument: Instrument,
    day: date,
    *,
    today: date,
    held: Collection[date],
) -> bool:
    """Return whether what a contract states of a date counts for the calendar that symbols share.

    Expiring, ended, newly listed and halted contracts have hours of their own. A contract counts as
    newly listed while its held bars reach back less than 30 days, or if it has none, and as halted
    without a held bar in the newest five sessions before today. A store that was not loaded
    recently has such contracts too: they do not count before they have been loaded.

    Args:
        calendar: the calendar that symbols share.
        instrument: the contract.
        day: the session date.
        today: the session date of now.
        held: session dates of which bars of the contract are in the store.
    """
    if instrument.end is not None or not held:
        return False
    last = instrument.last_trade_date
    if last is not None and max(day, today) >= last - _EXPIRING:
        return False
    if min(held) > today - _LISTED_FOR:
        return False
    position = int(np.searchsorted(calendar.days, np.datetime64(today)))
    recent = calendar.days[max(0, position - _RECENT_SESSIONS) : position].tolist()
    return any(day in held for day in recent)


def agreed(votes: Mapping[str, LearnedDay]) -> SharedDay | None:
    """Return what enough contracts state alike of one date, or None; a tie is no agreement.

    Args:
        votes: what representative contracts (``speaks_for_others``) state of one date, by symbol.
    """
    counts = Counter(votes.values()).most_common(2)
    if not counts or counts[0][1] < CONTRACTS_AGREEING:
        return None
    if len(counts) > 1 and counts[1][1] == counts[0][1]:
        return None
    day = counts[0][0]
    return SharedDay(day, tuple(sorted(symbol for symbol in votes if votes[symbol] == day)))


def agreed_days(
    base: SessionCalendar, votes: Mapping[date, Mapping[str, LearnedDay]]
) -> list[SharedDay]:
    """Return the dates on which enough contracts agree that a calendar is wrong, oldest first."""
    found = [agreed(votes[day]) for day in sorted(votes)]
    return [one for one in found if one is not None and differs(base, one.stated)]


def lacks(base: SessionCalendar, stated: LearnedDay) -> bool:
    """Return whether a stated date lacks hours, or the session, that a calendar has."""
    sessions = base.sessions(stated.day, stated.day + _DAY)
    if not sessions or not stated.parts:
        return bool(sessions)
    opens, closes = stated.parts[0].start, stated.parts[-1].end
    return opens > sessions[0].opens_at or closes < sessions[0].closes_at


@dataclass(frozen=True, slots=True)
class Added:
    """What stated dates add to a calendar, and which of them are refused."""

    days: tuple[LearnedDay, ...]
    refused: tuple[LearnedDay, ...] = ()


def extending(base: SessionCalendar, days: Iterable[LearnedDay]) -> Added:
    """Return what stated dates add to a calendar, as dates that replace its own.

    Sessions that it lacks, earlier opens and later closes are added; nothing is removed, and breaks
    are kept. A date is refused if it reaches into a neighbouring session, or is more than eight
    hours longer than what is known.

    Args:
        base: the calendar.
        days: the stated dates, one element a date, oldest first.
    """
    longest = int((base.closes - base.opens).max(initial=0)) + MOST_EXTENDED // _INSTANT
    added: list[LearnedDay] = []
    refused: list[LearnedDay] = []
    last_close: int | None = None
    for one in days:
        if not one.parts or not differs(base, one):
            continue
        position = int(np.searchsorted(base.days, np.datetime64(one.day)))
        is_known = position < len(base.days) and base.days[position].item() == one.day
        following = position + 1 if is_known else position
        parts = one.parts
        if is_known:
            opens, closes = int(base.opens[position]), int(base.closes[position])
            # Inside the known hours the calendar's own breaks count.
            own = IntervalSet([Interval(moment(opens), moment(closes))])
            outside = IntervalSet(parts) - own
            if not outside:
                continue
            parts = tuple(IntervalSet((*hours_of(base, one.day).parts, *outside)))
        starts, ends = micros(parts[0].start), micros(parts[-1].end)
        before = int(base.closes[position - 1]) if position else starts
        if last_close is not None:
            before = max(before, last_close)
        after = int(base.opens[following]) if following < len(base.opens) else ends
        is_long = len(base.days) > 0 and ends - starts > longest
        if is_known:
            most = MOST_EXTENDED // _INSTANT
            is_long = opens - starts > most or ends - closes > most
        if starts < before or ends > after or is_long:
            refused.append(one)
            continue
        added.append(LearnedDay(one.day, parts))
        last_close = ends
    return Added(tuple(added), tuple(refused))


def overlaid(base: SessionCalendar, days: Sequence[LearnedDay]) -> SessionCalendar:
    """Return a calendar with stated dates in place of its own; zone and session days are kept.

    A date that opens and closes as known keeps its breaks: not every schedule states them.
    """
    days = [one for one in days if differs(base, one)]
    if not days:
        return base
    dates = np.array([one.day for one in days], dtype="datetime64[D]")
    kept = ~np.isin(base.days, dates)
    opened = [one for one in days if one.parts]
    opened_dates = np.array([one.day for one in opened], dtype="datetime64[D]")
    opens = np.array([micros(one.parts[0].start) for one in opened], dtype=np.int64)
    closes = np.array([micros(one.parts[-1].end) for one in opened], dtype=np.int64)
    joined = np.concatenate([base.days[kept], opened_dates])
    order = np.argsort(joined, kind="stable")
    return SessionCalendar(
        key=base.key,
        zone=base.zone,
        days=joined[order],
        opens=np.concatenate([base.opens[kept], opens])[order],
        closes=np.concatenate([base.closes[kept], closes])[order],
        breaks=_breaks(base, kept, opened),
        roll=base.roll,
        days_may_differ=base.days_may_differ,
    )


def with_own_hours(base: SessionCalendar, days: Sequence[LearnedDay]) -> SessionCalendar:
    """Return an assumed round-the-clock calendar with a contract's own hours in place of its own.

    A stated session is dated by its close and may begin on the date before. Where stated dates
    adjoin other dates, the sessions of the latter are cut or lengthened to meet them, so that no
    hour is lost in between and none is expected twice.

    Args:
        base: sessions of every date, each of which begins where the one before ends.
        days: the contract's dates, one element a date, oldest first.
    """
    stated = overlaid(base, days)
    if stated is base:
        return base
    opens, closes = stated.opens.copy(), stated.closes.copy()
    own = np.array([one.day for one in days], dtype="datetime64[D]")
    for run in np.split(own, np.flatnonzero(np.diff(own) > _ONE_DATE) + 1):
        low, high = np.searchsorted(stated.days, [run[0], run[-1] + _ONE_DATE])
        if low == high:
            continue  # only closed dates, whose hours are the calendar's own
        # A closed date at the edge of a run lasts as long as the open one beside it.
        if low > 0 and stated.days[low - 1] == run[0] - _ONE_DATE:
            closes[low - 1] = opens[low] - _days_us(stated.days[low] - run[0])
        if high < len(opens) and stated.days[high] == run[-1] + _ONE_DATE:
            opens[high] = closes[high - 1] + _days_us(run[-1] - stated.days[high - 1])
    _keep_apart(opens, closes, np.isin(stated.days, own))
    stays = opens < closes
    return SessionCalendar(
        key=stated.key,
        zone=stated.zone,
        days=stated.days[stays],
        opens=opens[stays],
        closes=closes[stays],
        breaks=stated.breaks,
        roll=stated.roll,
        days_may_differ=stated.days_may_differ,
    )


def _keep_apart(opens: np.ndarray, closes: np.ndarray, is_stated: np.ndarray) -> None:
    """Cut sessions that overlap, in place: stated ones before others, then earlier dates first.

    Stated hours may overlap where they changed between two statements.
    """
    closed_by = np.where(is_stated, closes, np.iinfo(np.int64).min)
    opens[1:] = np.maximum(opens[1:], np.maximum.accumulate(closed_by)[:-1])
    opened_by = np.where(is_stated & (opens < closes), opens, np.iinfo(np.int64).max)
    earliest = np.minimum.accumulate(opened_by[::-1])[::-1]
    closes[:-1] = np.where(is_stated[:-1], closes[:-1], np.minimum(closes[:-1], earliest[1:]))


def _days_us(length: np.timedelta64) -> int:
    """Return a number of dates in microseconds."""
    return int(length.astype(np.int64)) * (_DAY // _INSTANT)


def closed_against(
    days: Sequence[LearnedDay], bars: np.ndarray, calendar: SessionCalendar
) -> frozenset[date]:
    """Return the dates stated to be closed on which bars lie outside all stated sessions.

    Args:
        days: the contract's dates, one element a date, oldest first.
        bars: timestamps of intraday bars, ascending, int64 microseconds since 1970 UTC.
        calendar: the calendar with the contract's own hours (``with_own_hours``).
    """
    closed = np.array([one.day for one in days if not one.parts], dtype="datetime64[D]")
    if not len(closed) or not len(bars):
        return frozenset()
    position = np.searchsorted(calendar.opens, bars, side="right") - 1
    inside = (position >= 0) & (bars < calendar.closes[position])
    dates = calendar.days_of(bars[~inside])
    return frozenset(closed[np.isin(closed, dates)].tolist())


def _breaks(base: SessionCalendar, kept: np.ndarray, opened: Sequence[LearnedDay]) -> np.ndarray:
    owner = np.searchsorted(base.opens, base.breaks[:, 0], side="right") - 1
    own = base.breaks[kept[owner]] if len(base.breaks) else base.breaks
    pauses = [
        (micros(gap.start), micros(gap.end))
        for one in opened
        for gap in IntervalSet([Interval(one.parts[0].start, one.parts[-1].end)])
        - IntervalSet(one.parts)
    ]
    stated = np.array(pauses, dtype=np.int64).reshape(-1, 2)
    joined = np.concatenate([own, stated])
    return np.asarray(joined[np.argsort(joined[:, 0], kind="stable")])
