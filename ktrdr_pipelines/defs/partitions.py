"""Partitions of the bars assets: symbol by window, one definition per timeframe.

A window is a calendar year. Windows of 1m were calendar months in earlier versions, whose keys
(``2024-03``) are still found in Dagster's history.

Not here: the bar timestamps of a window (``domain.calendars.sessions``).
"""

import math
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final

import dagster as dg

from ktrdr_pipelines.app.workspace import universe_file
from ktrdr_pipelines.domain.planning.width_learning import LearnedWidth, timeframe_of
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.universe import Windows
from ktrdr_pipelines.errors import NoStoreError, StoreError, UniverseError
from ktrdr_pipelines.gaps.estimates import Rates
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.store.layout import open_store

SYMBOL, WINDOW = "symbol", "window"

MOST_WINDOWS: Final = 500
"""Maximum of windows, over all symbols, of a run: each adds about 12 KB to Dagster's history."""

RUN_S: Final = 5_400.0
"""Most seconds of requests of a backfill's run. Longer runs share the start of a process, which is
that of hundreds of complete windows; shorter ones show more of a backfill's progress as runs."""

_YEARLY: Final = "%Y"
_WINDOW_DAYS: Final = 365
_YEAR_SESSIONS: Final = 252
_SESSION_S: Final = 23_400
"""Seconds of a regular session of US stocks."""


@dataclass(frozen=True, slots=True)
class BarPartition:
    """One Dagster partition: a symbol and a window of one timeframe."""

    symbol: str
    window: str

    @property
    def key(self) -> dg.MultiPartitionKey:
        """The Dagster key of this partition."""
        return dg.MultiPartitionKey({SYMBOL: self.symbol, WINDOW: self.window})

    @property
    def is_monthly(self) -> bool:
        """Whether it is a month of an earlier version."""
        return "-" in self.window

    @property
    def of_year(self) -> "BarPartition":
        """The partition that contains it: that of its year."""
        return BarPartition(self.symbol, self.window.partition("-")[0])

    @classmethod
    def of(cls, key: str) -> "BarPartition":
        """Return the partition of a key, which Dagster passes as a string or as a multi key."""
        symbol, window = str(key).rsplit("|", maxsplit=1)
        return cls(symbol, window)


def symbols_partitions(timeframe: Timeframe) -> dg.DynamicPartitionsDefinition:
    """Return the dynamic partitions that hold the symbols of one timeframe."""
    return dg.DynamicPartitionsDefinition(name=f"symbols_{timeframe.value}")


def bars_partitions(timeframe: Timeframe, windows: Windows) -> dg.MultiPartitionsDefinition:
    """Return the partitions of a timeframe's bars: symbol by window."""
    return dg.MultiPartitionsDefinition(
        {SYMBOL: symbols_partitions(timeframe), WINDOW: windows_partitions(timeframe, windows)}
    )


def window_of(day: date) -> str:
    """Return the key of the window that contains a session date."""
    return day.strftime(_YEARLY)


def window_dates(window: str) -> tuple[date, date]:
    """Return the session dates ``[first, end)`` of a window key, such as ``2024``."""
    year = int(window)
    return date(year, 1, 1), date(year + 1, 1, 1)


def windows_partitions(timeframe: Timeframe, windows: Windows) -> dg.TimeWindowPartitionsDefinition:
    """Return the windows of a timeframe, including the current one."""
    return dg.TimeWindowPartitionsDefinition(
        start=f"{windows.year_of(timeframe):04d}",
        fmt=_YEARLY,
        cron_schedule="0 0 1 1 *",
        timezone="UTC",
        end_offset=1,
    )


Grid = tuple[tuple[Timeframe, ...], Windows]
"""The timeframes that symbols have, and where their windows begin."""


def readable_grid(folder: Path) -> Grid | None:
    """Return what the universe of a store says of partitions, or None if it cannot be read now.

    The ledger is read, too, for the end of instruments with ``ended: true``.
    """
    try:
        file = universe_file(open_store(folder))
        universe = file.read()[0]
        windows = file.use_windows()
    except (NoStoreError, UniverseError, StoreError):
        return None
    used = {series.timeframe for series in universe.series()}
    return tuple(one for one in Timeframe if one in used) or tuple(Timeframe), windows


def windows_per_run(timeframe: Timeframe, rates: Rates) -> int:
    """Return how many windows a run of a backfill loads: at least one.

    They take at most ``RUN_S`` if all of them lack all bars of a stock, as ``ktrdr plan`` estimates
    it. A window that is complete takes milliseconds, so that a run of many passes them quickly.

    Args:
        timeframe: that of the windows.
        rates: how fast the gateway responds, and the widths of requests that it serves best.
    """
    sessions = _YEAR_SESSIONS / (5 if timeframe is Timeframe.W1 else 1)
    bars = sessions * (_SESSION_S / timeframe.seconds if timeframe.is_intraday else 1)
    safe = IbLimitsRegistry.SAFE_DAYS.value[timeframe.value]
    learned: list[LearnedWidth | None] = [
        one for kind, one in rates.widths.items() if timeframe_of(kind) is timeframe
    ]
    seconds = max(
        rates.seconds(
            timeframe,
            math.ceil(
                min(sessions, _WINDOW_DAYS / safe) if width is None else sessions / width.width
            ),
            math.ceil(bars),
            width=width,
        )
        for width in (learned or [None])
    )
    return min(max(int(RUN_S / seconds), 1), MOST_WINDOWS)
