"""Convert tables of the calendar libraries to the arrays that calendars are made of.

Not here: the calendars themselves (``domain.calendars.exchanges``,
``domain.calendars.cme_futures``, ``domain.calendars.fx_crypto``).
"""

from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np

from ktrdr_pipelines.domain.calendars.kept_arrays import Arrays, kept_arrays

if TYPE_CHECKING:  # imported where it is needed: kept arrays are read without it
    import pandas as pd

KNOWN_FROM: Final = "1970-01-01"
KNOWN_TO: Final = "2049-12-31"
NEW_YORK: Final = "America/New_York"

_DAY_S: Final = 86_400
_CLOCKS_FROM: Final = np.datetime64("1970-01-01", "s").astype(np.int64)
_CLOCKS_TO: Final = np.datetime64("2101-01-01", "s").astype(np.int64)


def dates_of(index: "pd.Index") -> np.ndarray:
    """Return the dates of an index as ``datetime64[D]``."""
    import pandas as pd

    return np.asarray(pd.DatetimeIndex(index).to_numpy().astype("datetime64[D]"))


def micros_of(moments: "pd.DatetimeIndex") -> np.ndarray:
    """Return aware moments as int64 microseconds since 1970 UTC."""
    plain = moments.tz_convert("UTC").tz_localize(None).to_numpy()
    return np.asarray(plain.astype("datetime64[us]").astype(np.int64))


def at_clock(days: "pd.DatetimeIndex", minutes: np.ndarray | int, zone: str) -> np.ndarray:
    """Return the moments so many minutes of wall clock after (or before) each local midnight.

    A wall time that a change of the clocks skips is moved an hour later, of one that occurs twice
    the first is returned: no exchange opens or closes then.
    """
    import pandas as pd

    wall = days + pd.to_timedelta(minutes, unit="m")
    ambiguous = np.ones(len(days), dtype=bool)
    moments = wall.tz_localize(zone, nonexistent="shift_forward", ambiguous=ambiguous)
    return micros_of(moments)


def wall_micros(micros: np.ndarray, zone: str) -> np.ndarray:
    """Return the wall times of a zone as microseconds since 1970-01-01 00:00 of its clocks.

    Args:
        micros: moments, int64 microseconds since 1970 UTC.
        zone: the zone.
    """
    changes, ahead = _clock_changes(zone)
    if not len(micros):
        return micros
    low, high = changes.searchsorted([micros.min(), micros.max()], side="right") - 1
    if low < 0 or high == len(changes) - 1:  # before 1970 or after 2100
        return _by_pandas(micros, zone)
    if low == high:
        return np.asarray(micros + ahead[low])
    return np.asarray(micros + ahead[changes.searchsorted(micros, side="right") - 1])


@cache
def _clock_changes(zone: str) -> tuple[np.ndarray, np.ndarray]:
    """Return when the clocks of a zone change, and how far they are ahead of UTC from then on.

    Both are int64 microseconds; the first is 1970, the last 2101. Finding them takes some
    milliseconds, which is what pandas needs to convert the bars of a few dozen responses.
    """
    found = kept_arrays(f"clocks of {zone}", lambda: _found_changes(zone))
    return found["changes"], found["ahead"]


def _found_changes(zone: str) -> Arrays:
    grid = np.arange(_CLOCKS_FROM, _CLOCKS_TO + 1, _DAY_S // 4)
    ahead = _ahead_s(grid, zone)
    (before,) = np.nonzero(np.diff(ahead))
    low, high = grid[before], grid[before + 1]
    was = ahead[before]
    while (high - low > 1).any():
        middle = (low + high) // 2
        is_same = _ahead_s(middle, zone) == was
        low, high = np.where(is_same, middle, low), np.where(is_same, high, middle)
    changes = np.concatenate((grid[:1], high, grid[-1:]))
    return {
        "zone": np.array(zone),
        "changes": changes * 1_000_000,
        "ahead": _ahead_s(changes, zone) * 1_000_000,
    }


def _ahead_s(seconds: np.ndarray, zone: str) -> np.ndarray:
    """Return how many seconds a zone's clocks are ahead of UTC at epoch seconds."""
    return np.asarray(_by_pandas(seconds * 1_000_000, zone) // 1_000_000 - seconds)


def _by_pandas(micros: np.ndarray, zone: str) -> np.ndarray:
    import pandas as pd

    moments = pd.DatetimeIndex(micros.astype("datetime64[us]")).tz_localize("UTC")
    wall = moments.tz_convert(zone).tz_localize(None).to_numpy()
    return np.asarray(wall.astype("datetime64[us]").astype(np.int64))


def breaks_of(starts: "pd.Series", ends: "pd.Series") -> np.ndarray:
    """Return the breaks of a table, shape ``(n, 2)``; rows without one are left out."""
    import pandas as pd

    there = np.asarray(starts.notna() & (starts < ends))
    pairs = (micros_of(pd.DatetimeIndex(side[there])) for side in (starts, ends))
    return np.column_stack(list(pairs))
