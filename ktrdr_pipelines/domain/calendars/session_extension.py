"""Extend sessions that last longer than the calendar has them, as bars after the close show.

Libraries have the close of continuous trading; closing auctions and index calculations continue
after it (VIX until 16:15 in New York, 16:00 in the library). Bars show that, but one stray bar
proves nothing: with ``NEEDED`` sessions that have bars between their close and the end of their
day, the close of all sessions of that kind moves to where the third of them ended, and never
beyond the next open.

Sessions of the usual length, that of most sessions of the surrounding year, are one kind. Other
lengths (half days) are extended by sessions of the same length only. Where they would become as
long as usual ones, they are whole days that a library closes too early, which proves nothing for
other half days: only those with a late bar of their own are extended. Sessions without a late bar
do not count against those that have one: a thin instrument has few.

Not here: where late bars are kept (``store.ledger.gateway_records``), when they are searched for
(``sync.discovery.trading_hours``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final, NamedTuple

import numpy as np

from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar

NEEDED: Final = 3
"""Number of sessions with bars after the close that extend the others."""

LATEST: Final = timedelta(hours=8)
"""How long after the close a bar may start and count for the session; pre-market hours do not."""

_HALF_YEAR: Final = np.timedelta64(182, "D")
_INSTANT: Final = timedelta(microseconds=1)


class LateBar(NamedTuple):
    """Start and end of the newest bar after a session's close, microseconds since 1970 UTC.

    The later start wins; of two with one start the longer one. A long bar may end later than its
    last trade, so a shorter bar that starts later proves more.
    """

    starts: int
    ends: int


@dataclass(frozen=True, slots=True)
class Extension:
    """By how much the sessions of one kind are extended, and which three sessions show it.

    ``length_us`` is None for sessions of the usual length. ``starts_us`` is how long after the
    close the last bar of the third session starts. ``only`` names the sessions that are extended
    where not all of the kind are.
    """

    length_us: int | None
    by_us: int
    starts_us: int
    sessions: tuple[date, ...]
    only: tuple[date, ...] | None = None


def late_bars_of(
    calendar: SessionCalendar,
    starts: np.ndarray,
    length_us: int,
    found: tuple[Extension, ...] = (),
) -> dict[date, LateBar]:
    """Return the newest bar of each session that lies between its close and the end of its day.

    Args:
        calendar: the calendar without extensions.
        starts: timestamps of intraday bars, ascending; int64 microseconds since 1970 UTC.
        length_us: the length of one bar.
        found: the extensions that are known; bars that add nothing to them are left out.
    """
    if not len(starts) or not len(calendar.days):
        return {}
    position = np.searchsorted(calendar.opens, starts, side="right") - 1
    after = starts - calendar.closes[position]
    # After the last session no next open is known, so nothing is decided about it.
    is_late = (position >= 0) & (position < len(calendar.days) - 1) & (after >= 0)
    if not is_late.any():
        return {}
    is_late &= after < LATEST // _INSTANT
    if found:
        # How late a bar of each session must start to add to the known extensions.
        known = np.full(len(calendar.days), -1, dtype=np.int64)
        for one, chosen in _chosen(calendar, found):
            if one.only is None:
                known[chosen] = one.starts_us
        is_late &= after > known[position]
    late, positions = starts[is_late], position[is_late]
    is_own = calendar.days_of(late) == calendar.days[positions]
    late, positions = late[is_own], positions[is_own]
    if not len(late):
        return {}
    last = np.flatnonzero(np.append(positions[1:] != positions[:-1], True))
    return {
        calendar.days[positions[at]].item(): LateBar(int(late[at]), int(late[at]) + length_us)
        for at in last
    }


def extensions(calendar: SessionCalendar, late: Mapping[date, LateBar]) -> tuple[Extension, ...]:
    """Return the extension of each kind of sessions that late bars show.

    Args:
        calendar: the calendar without extensions.
        late: the newest bar after the close, by session date.
    """
    if len(late) < NEEDED or not len(calendar.days):
        return ()
    days = np.array(sorted(late), dtype="datetime64[D]")
    position = np.minimum(np.searchsorted(calendar.days, days), len(calendar.days) - 1)
    position = position[calendar.days[position] == days]
    usual, lengths = _usual_lengths(calendar), calendar.closes - calendar.opens
    groups: dict[int | None, list[tuple[int, int, date]]] = {}
    longest: dict[int | None, int] = {}
    for one in position:
        day, close = calendar.days[one].item(), int(calendar.closes[one])
        if late[day].ends > close:
            kind = None if usual[one] == lengths[one] else int(lengths[one])
            longest[kind] = max(longest.get(kind, 0), int(usual[one]))
            late_bar = (late[day].starts - close, late[day].ends - close, day)
            groups.setdefault(kind, []).append(late_bar)
    found = []
    for kind, late_bars in groups.items():
        latest = sorted(late_bars, reverse=True)[:NEEDED]
        if len(latest) == NEEDED:
            starts_us, by_us, _ = latest[-1]
            sessions = tuple(sorted(day for _, _, day in latest))
            is_whole_day = kind is not None and kind < longest[kind] <= kind + by_us
            only = tuple(sorted(day for _, _, day in late_bars)) if is_whole_day else None
            found.append(Extension(kind, by_us, starts_us, sessions, only))
    return tuple(found)


def extended(calendar: SessionCalendar, found: tuple[Extension, ...]) -> SessionCalendar:
    """Return a calendar with extended sessions, or the same object if there is no extension."""
    if not found:
        return calendar
    closes = calendar.closes.copy()
    for one, chosen in _chosen(calendar, found):
        closes[chosen] += one.by_us
    if len(closes) > 1:
        closes[:-1] = np.minimum(closes[:-1], calendar.opens[1:])
    # A session that already closes at or beyond the next open is unchanged.
    closes = np.maximum(closes, calendar.closes)
    return SessionCalendar(
        key=calendar.key,
        zone=calendar.zone,
        days=calendar.days,
        opens=calendar.opens,
        closes=closes,
        breaks=calendar.breaks,
        roll=calendar.roll,
        days_may_differ=calendar.days_may_differ,
    )


def _chosen(
    calendar: SessionCalendar, found: tuple[Extension, ...]
) -> list[tuple[Extension, np.ndarray]]:
    """Return each extension with a mask of the sessions that it applies to."""
    lengths = calendar.closes - calendar.opens
    usual = _usual_lengths(calendar) == lengths
    masks = []
    for one in found:
        chosen = usual if one.length_us is None else ~usual & (lengths == one.length_us)
        if one.only is not None:
            chosen &= np.isin(calendar.days, np.array(one.only, dtype="datetime64[D]"))
        masks.append((one, chosen))
    return masks


def _usual_lengths(calendar: SessionCalendar) -> np.ndarray:
    """Return for each session the length of most sessions in the year around it."""
    lengths = calendar.closes - calendar.opens
    kinds, kind = np.unique(lengths, return_inverse=True)
    low = np.searchsorted(calendar.days, calendar.days - _HALF_YEAR)
    high = np.searchsorted(calendar.days, calendar.days + _HALF_YEAR, side="right")
    most = np.zeros(len(lengths), dtype=np.int64)
    mode = np.zeros(len(lengths), dtype=np.int64)
    for position in range(len(kinds)):
        counts = np.concatenate([[0], np.cumsum(kind == position)])
        around = counts[high] - counts[low]
        is_more = around > most
        mode[is_more], most[is_more] = position, around[is_more]
    return np.asarray(kinds[mode])
