"""Windows: what may be said of a stretch of a series, for Dagster's partitions and for people.

Not here: how windows are named (``defs.partitions``), asking (``load.work``).
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from ktrdr_pipelines.core.gaps import due_gaps, is_closed
from ktrdr_pipelines.core.instruments import Series
from ktrdr_pipelines.core.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.core.sessions import (
    SessionCalendar,
    expected_spans,
    expected_stamps,
    stamps_between,
)
from ktrdr_pipelines.load.modes import first_stamp
from ktrdr_pipelines.load.reports import SeriesReport
from ktrdr_pipelines.store.parquet import BarStore

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
    """One window of one series: its stretch of stamps, its bars, and what is missing."""

    stamps: Interval
    state: WindowState
    rows: int
    unexplained: IntervalSet

    @property
    def is_explained(self) -> bool:
        """Say whether nothing of it is unexplained."""
        return self.state is not WindowState.UNEXPLAINED


def from_start(series: Series, calendar: SessionCalendar, stamps: Interval) -> IntervalSet:
    """Give the part of a stretch that the universe wants: what lies before its start is excused."""
    part = between(max(stamps.start, first_stamp(series, calendar)), stamps.end)
    return IntervalSet([part] if part else [])


def is_finished(
    store: BarStore,
    series: Series,
    stamps: Interval,
    *,
    calendar: SessionCalendar,
    proof_now: datetime,
) -> bool:
    """Say whether every session of a window is settled, whatever the time is now.

    Where no session is known yet, nothing is finished.
    """
    if calendar.known is None and series.instrument.end is None:
        return False
    gaps = due_gaps(
        calendar,
        series.timeframe,
        wanted=from_start(series, calendar, stamps),
        settled=store.coverage(series).settled(proof_now),
        now=stamps.end + _ALL_DUE,
    )
    return not gaps


def window_facts(
    store: BarStore, stamps: Interval, report: SeriesReport, calendar: SessionCalendar
) -> WindowFacts:
    """Say what a finished load left of a window."""
    series = report.series
    rows = store.rows(series, stamps)
    unexplained = report.unexplained.clip(stamps)
    state = _state(report, stamps, calendar, rows=rows)
    return WindowFacts(stamps, state, rows, unexplained)


def has_ended(series: Series, calendar: SessionCalendar, stamps: Interval) -> bool:
    """Say whether a window lies after the last session of its instrument."""
    end = series.instrument.end
    if end is None:
        return False
    return stamps_between(calendar, series.timeframe, end, end + _ALL_DUE).start <= stamps.start


def _is_open(report: SeriesReport, stamps: Interval, calendar: SessionCalendar) -> bool:
    """Say whether a session of the window had not closed when the load ended."""
    timeframe = report.series.timeframe
    spans = expected_spans(calendar, timeframe, stamps)
    return bool(spans) and report.now is not None and not is_closed(spans[-1], report.now)


def _state(
    report: SeriesReport, stamps: Interval, calendar: SessionCalendar, *, rows: int
) -> WindowState:
    expected = expected_stamps(calendar, report.series.timeframe, stamps)
    wanted = expected & from_start(report.series, calendar, stamps)
    states = (
        (report.error is not None or report.unexplained.clip(stamps), WindowState.UNEXPLAINED),
        (_is_open(report, stamps, calendar), WindowState.OPEN),
        (rows, WindowState.COMPLETE),
        (not expected and has_ended(report.series, calendar, stamps), WindowState.ENDED),
        (not expected, WindowState.NO_SESSION),
        (not wanted, WindowState.BEFORE_START),
        (not wanted - report.before_listing, WindowState.BEFORE_LISTING),
    )
    return next((state for holds, state in states if holds), WindowState.EMPTY)
