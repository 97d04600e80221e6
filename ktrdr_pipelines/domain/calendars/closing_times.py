"""When bars are complete: ``closes_at``, by which timeframes are joined without looking ahead.

It may be late, never early. The catalog computes the same in SQL (``store.catalog.sql``).

Not here: when a session is over for a load (``domain.calendars.session_grid``).
"""

from typing import Final

import numpy as np

from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from ktrdr_pipelines.domain.timeframes import Timeframe

_DAY_US: Final = 86_400_000_000
_DAY_WITHOUT_CALENDAR_US: Final = 2 * _DAY_US
_WEEK_WITHOUT_CALENDAR_US: Final = 8 * _DAY_US
_NEVER: Final = np.iinfo(np.int64).max


def depends_on_next(timeframe: Timeframe) -> bool:
    """Return whether a bar may be shorter than its timeframe because the next one begins earlier.

    Bars of hours begin at full hours of the local clock, and the first of a session at its open.
    """
    return timeframe in {Timeframe.H1, Timeframe.H4}


def closing_times(
    timeframe: Timeframe,
    keys: np.ndarray,
    days: np.ndarray,
    *,
    calendar: SessionCalendar | None,
    following: np.ndarray | None = None,
) -> np.ndarray:
    """Return when each bar is complete, in microseconds since 1970 UTC.

    Intraday bars are at the earliest of their full length, the next bar and the close of their
    session; days and weeks at the close of the last session, or well after it where no calendar is
    known, or where bars may be of UTC days.

    Args:
        timeframe: the timeframe of the bars.
        keys: timestamps, int64 microseconds since 1970 UTC, ascending.
        days: session dates, ``datetime64[D]``.
        calendar: the sessions of the instrument; None where they are not known.
        following: the timestamp of the next bar of each, int64; 0 where there is none. Only needed
            where ``depends_on_next``.
    """
    if timeframe is Timeframe.W1:
        closes = _week_closes(keys, calendar)
        return _of_days(keys, closes, calendar, (7 * _DAY_US, _WEEK_WITHOUT_CALENDAR_US))
    closes = _session_closes(days, calendar)
    closes = np.where(closes > keys, closes, _NEVER)
    if timeframe is Timeframe.D1:
        return _of_days(keys, closes, calendar, (_DAY_US, _DAY_WITHOUT_CALENDAR_US))
    ends = np.minimum(keys + timeframe.seconds * 1_000_000, closes)
    if following is not None:
        ends = np.where(following > 0, np.minimum(ends, following), ends)
    return np.asarray(ends)


def _of_days(
    keys: np.ndarray,
    closes: np.ndarray,
    calendar: SessionCalendar | None,
    lengths: tuple[int, int],
) -> np.ndarray:
    """Return the closes; after the full length where days may differ, or after a longer one."""
    length, without = lengths
    is_known = closes < _NEVER
    if calendar is not None and calendar.days_may_differ:
        closes = np.maximum(closes, keys + length)
    return np.asarray(np.where(is_known, closes, keys + without))


def _session_closes(days: np.ndarray, calendar: SessionCalendar | None) -> np.ndarray:
    """Return the close of the session of each date, or never where there is none."""
    if calendar is None or not len(calendar.days):
        return np.full(len(days), _NEVER)
    known = calendar.days.astype("datetime64[D]")
    at = np.minimum(np.searchsorted(known, days), len(known) - 1)
    return np.asarray(np.where(known[at] == days, calendar.closes[at], _NEVER))


def _week_closes(keys: np.ndarray, calendar: SessionCalendar | None) -> np.ndarray:
    """Return the close of the last session of the week that begins at each timestamp, or never."""
    if calendar is None or not len(calendar.days):
        return np.full(len(keys), _NEVER)
    known = calendar.days.astype("datetime64[D]")
    mondays = keys.astype("datetime64[us]").astype("datetime64[D]")
    at = np.searchsorted(known, mondays + 7) - 1
    is_in = (at >= 0) & (known[np.maximum(at, 0)] >= mondays)
    is_monday = (mondays.astype(np.int64) + 3) % 7 == 0
    return np.asarray(np.where(is_in & is_monday, calendar.closes[np.maximum(at, 0)], _NEVER))
