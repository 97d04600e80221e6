"""Windows: what may be said of an interval of a series, for Dagster's partitions and for people.

Not here: what is said of a window (``load.window_book``), how windows are named
(``defs.partitions``), requests (``load.work``).
"""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from ktrdr_pipelines.core.instruments import Series
from ktrdr_pipelines.core.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.core.sessions import SessionCalendar, stamps_between
from ktrdr_pipelines.load.modes import first_stamp

_ALL_DUE = timedelta(days=14)


class WindowState(StrEnum):
    """What is known of a window."""

    COMPLETE = "complete"
    OPEN = "open"
    EMPTY = "proved empty"
    BEFORE_START = "before the start that the universe gives"
    BEFORE_LISTING = "before the gateway's oldest data"
    ENDED = "after the end of the instrument"
    NO_SESSION = "no session in it"
    UNEXPLAINED = "unexplained"


@dataclass(frozen=True, slots=True)
class WindowFacts:
    """One window of one series: its bar timestamps, its bars, and what is missing.

    ``why`` says for what reasons bars are missing, and when they are requested next.
    """

    stamps: Interval
    state: WindowState
    rows: int
    unexplained: IntervalSet
    why: str = ""

    @property
    def is_explained(self) -> bool:
        """Say whether nothing of it is unexplained."""
        return self.state is not WindowState.UNEXPLAINED


def from_start(series: Series, calendar: SessionCalendar, stamps: Interval) -> IntervalSet:
    """Give the part of a stretch that the universe wants: what lies before its start is excused."""
    part = between(max(stamps.start, first_stamp(series, calendar)), stamps.end)
    return IntervalSet([part] if part else [])


def has_ended(series: Series, calendar: SessionCalendar, stamps: Interval) -> bool:
    """Say whether a window lies after the last session of its instrument."""
    end = series.instrument.end
    if end is None:
        return False
    return stamps_between(calendar, series.timeframe, end, end + _ALL_DUE).start <= stamps.start
