"""How many bars a session has at most.

Not here: which sessions there are (``core.calendars``), how many bars it has got (``store``).
"""

from datetime import date

import numpy as np
import pandas as pd

from ktrdr_pipelines.core.sessions import SessionCalendar
from ktrdr_pipelines.core.timeframes import Timeframe

_MONDAY = 3  # 1970-01-01 was a Thursday


def expected_bars(
    calendar: SessionCalendar, timeframe: Timeframe, first: date, end: date
) -> np.ndarray:
    """Give the most bars that each session dated in ``[first, end)`` can have, oldest first.

    Bars stand on the local clock (1h on the hour), so that a session's first and last may be
    shorter; none lies inside a break. For 1w the last session of a week has one and the others
    none, as the gateway dates weeks.

    Returns: int64, one a session of ``calendar.days`` in the stretch.
    """
    low, high = np.searchsorted(calendar.days, [np.datetime64(first), np.datetime64(end)])
    if timeframe is Timeframe.W1:
        return np.asarray(_last_of_weeks(calendar.days)[low:high])
    if timeframe is Timeframe.D1:
        return np.ones(high - low, dtype=np.int64)
    return _intraday(calendar, timeframe, int(low), int(high))


def _intraday(calendar: SessionCalendar, timeframe: Timeframe, low: int, high: int) -> np.ndarray:
    size = timeframe.seconds * 1_000_000
    opens, closes = calendar.opens[low:high], calendar.closes[low:high]
    if not len(opens):
        return np.zeros(0, dtype=np.int64)
    ahead = _ahead_of_utc(opens, calendar.zone)
    cells = _cells_until(closes + ahead, size) - (opens + ahead) // size
    first, end = np.searchsorted(calendar.breaks[:, 0], [opens[0], closes[-1]])
    starts, ends = calendar.breaks[first:end].T
    place = np.searchsorted(opens, starts, side="right") - 1
    silent = (ends + ahead[place]) // size - _cells_until(starts + ahead[place], size)
    np.subtract.at(cells, place, np.maximum(silent, 0))
    return np.asarray(cells)


def _cells_until(moments: np.ndarray, size: int) -> np.ndarray:
    """Give the number of cells of the clock that begin before each moment."""
    return np.asarray(-(-moments // size))


def _ahead_of_utc(moments: np.ndarray, zone: str) -> np.ndarray:
    """Give how many microseconds local time is ahead of UTC at each moment."""
    aware = pd.DatetimeIndex(moments.astype("datetime64[us]")).tz_localize("UTC")
    wall = aware.tz_convert(zone).tz_localize(None).to_numpy()
    return np.asarray(wall.astype("datetime64[us]").astype(np.int64) - moments)


def _last_of_weeks(days: np.ndarray) -> np.ndarray:
    weeks = (days.astype(np.int64) + _MONDAY) // 7
    last = np.append(weeks[1:] != weeks[:-1], True)[: len(days)]
    return np.asarray(last.astype(np.int64))
