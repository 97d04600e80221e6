"""Partitions of the bars assets: symbol by window, one definition per timeframe.

A window is a calendar month for 1m and a calendar year for the other timeframes.

Not here: the bar timestamps of a window (``domain.calendars.sessions``).
"""

from dataclasses import dataclass
from datetime import date

import dagster as dg

from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.universe import Windows

SYMBOL, WINDOW = "symbol", "window"
_MONTHLY, _YEARLY = "%Y-%m", "%Y"


@dataclass(frozen=True, slots=True)
class BarPartition:
    """One Dagster partition: a symbol and a window of one timeframe."""

    symbol: str
    window: str

    @property
    def key(self) -> dg.MultiPartitionKey:
        """The Dagster key of this partition."""
        return dg.MultiPartitionKey({SYMBOL: self.symbol, WINDOW: self.window})

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


def window_of(timeframe: Timeframe, day: date) -> str:
    """Return the key of the window that contains a session date."""
    return day.strftime(_MONTHLY if timeframe is Timeframe.M1 else _YEARLY)


def window_dates(window: str) -> tuple[date, date]:
    """Return the session dates ``[first, end)`` of a window key (``2024-03`` or ``2024``)."""
    year, _, month = window.partition("-")
    if not month:
        return date(int(year), 1, 1), date(int(year) + 1, 1, 1)
    first = date(int(year), int(month), 1)
    return first, date(first.year + first.month // 12, first.month % 12 + 1, 1)


def windows_partitions(timeframe: Timeframe, windows: Windows) -> dg.TimeWindowPartitionsDefinition:
    """Return the windows of a timeframe, including the current one.

    Months and years have different key formats: with a shared format, a key would denote another
    interval after a change of window size.
    """
    monthly = timeframe is Timeframe.M1
    start = windows.first_month.strftime(_MONTHLY) if monthly else f"{windows.first_year:04d}"
    return dg.TimeWindowPartitionsDefinition(
        start=start,
        fmt=_MONTHLY if monthly else _YEARLY,
        cron_schedule="0 0 1 * *" if monthly else "0 0 1 1 *",
        timezone="UTC",
        end_offset=1,
    )
