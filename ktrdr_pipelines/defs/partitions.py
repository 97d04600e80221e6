"""Partitions: symbol by window, one definition a timeframe.

Not here: what a window is in timestamps of a series beyond its dates
(``domain.calendars.sessions``).
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
        """Dagster's key of it."""
        return dg.MultiPartitionKey({SYMBOL: self.symbol, WINDOW: self.window})

    @classmethod
    def of(cls, key: str) -> "BarPartition":
        """Read a key, whether Dagster gives it as a plain string or in parts."""
        symbol, window = str(key).rsplit("|", maxsplit=1)
        return cls(symbol, window)


def symbols_partitions(timeframe: Timeframe) -> dg.DynamicPartitionsDefinition:
    """Give the dynamic set of the symbols that keep a timeframe; each timeframe has its own."""
    return dg.DynamicPartitionsDefinition(name=f"symbols_{timeframe.value}")


def bars_partitions(timeframe: Timeframe, windows: Windows) -> dg.MultiPartitionsDefinition:
    """Give the partitions of a timeframe's bars."""
    return dg.MultiPartitionsDefinition(
        {SYMBOL: symbols_partitions(timeframe), WINDOW: windows_partitions(timeframe, windows)}
    )


def window_of(timeframe: Timeframe, day: date) -> str:
    """Name the window that a session date lies in."""
    return day.strftime(_MONTHLY if timeframe is Timeframe.M1 else _YEARLY)


def window_dates(window: str) -> tuple[date, date]:
    """Give the session dates ``[first, end)`` of a window: a month or a year by its key."""
    year, _, month = window.partition("-")
    if not month:
        return date(int(year), 1, 1), date(int(year) + 1, 1, 1)
    first = date(int(year), int(month), 1)
    return first, date(first.year + first.month // 12, first.month % 12 + 1, 1)


def windows_partitions(timeframe: Timeframe, windows: Windows) -> dg.TimeWindowPartitionsDefinition:
    """Give the windows of a timeframe, the current one included.

    Each size has a key format of its own: with one format a key would mean another interval after
    a change of size.
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
