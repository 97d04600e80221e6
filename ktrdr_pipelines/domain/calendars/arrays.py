"""Convert tables of the calendar libraries to the arrays that calendars are made of.

Not here: the calendars themselves (``domain.calendars.exchanges``,
``domain.calendars.cme_futures``, ``domain.calendars.fx_crypto``).
"""

from typing import Final

import numpy as np
import pandas as pd

KNOWN_FROM: Final = "1970-01-01"
KNOWN_TO: Final = "2049-12-31"
NEW_YORK: Final = "America/New_York"


def dates_of(index: pd.Index) -> np.ndarray:
    """Return the dates of an index as ``datetime64[D]``."""
    return np.asarray(pd.DatetimeIndex(index).to_numpy().astype("datetime64[D]"))


def micros_of(moments: pd.DatetimeIndex) -> np.ndarray:
    """Return aware moments as int64 microseconds since 1970 UTC."""
    plain = moments.tz_convert("UTC").tz_localize(None).to_numpy()
    return np.asarray(plain.astype("datetime64[us]").astype(np.int64))


def at_clock(days: pd.DatetimeIndex, minutes: np.ndarray | int, zone: str) -> np.ndarray:
    """Return the moments so many minutes of wall clock after (or before) each local midnight.

    A wall time that a change of the clocks skips is moved an hour later, of one that occurs twice
    the first is returned: no exchange opens or closes then.
    """
    wall = days + pd.to_timedelta(minutes, unit="m")
    ambiguous = np.ones(len(days), dtype=bool)
    moments = wall.tz_localize(zone, nonexistent="shift_forward", ambiguous=ambiguous)
    return micros_of(moments)


def breaks_of(starts: pd.Series, ends: pd.Series) -> np.ndarray:
    """Return the breaks of a table, shape ``(n, 2)``; rows without one are left out."""
    there = np.asarray(starts.notna() & (starts < ends))
    pairs = (micros_of(pd.DatetimeIndex(side[there])) for side in (starts, ends))
    return np.column_stack(list(pairs))
