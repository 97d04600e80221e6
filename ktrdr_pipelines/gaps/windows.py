"""Decide the state of windows of a series: complete, explained in another way, or unexplained.

A window, a Dagster time partition, is unexplained exactly if the gap index has a gap in it: the
gaps that ``ktrdr gaps`` shows, those of unconfirmed, contradicted and sparse sessions included.
Runs, sensors and commands call ``GapIndex.windows``.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from ktrdr_pipelines.domain.bars import micros
from ktrdr_pipelines.domain.calendars.session_grid import SessionGrid, session_grid
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar, interval_between
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.domain.planning.gaps import Gap, closed_count
from ktrdr_pipelines.domain.planning.jobs import first_timestamp
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.planning.sparse_sessions import have_bars
from ktrdr_pipelines.domain.timeframes import Timeframe

if TYPE_CHECKING:
    from ktrdr_pipelines.gaps.index import SeriesGaps

_ALL_DUE = timedelta(days=14)


class WindowState(StrEnum):
    """The state of a window; the values are stored in Dagster's event log and read again."""

    COMPLETE = "complete"
    OPEN = "open"
    EMPTY = "proved empty"
    BEFORE_START = "before the start that the universe gives"
    BEFORE_LISTING = "before the gateway's oldest data"
    ENDED = "after the end of the instrument"
    NO_SESSION = "no session in it"
    UNEXPLAINED = "unexplained"


_BY_RESPONSES = frozenset({WindowState.COMPLETE, WindowState.EMPTY})
"""States of closed windows that responses for the window itself prove."""


@dataclass(frozen=True, slots=True)
class WindowStatus:
    """One window of one series: its bar timestamps, its bars, and what is missing.

    ``why`` gives the reasons why bars are missing, and when they are requested next.
    """

    interval: Interval
    state: WindowState
    rows: int
    unexplained: IntervalSet
    why: str = ""

    @property
    def is_explained(self) -> bool:
        """Whether nothing in it is unexplained."""
        return self.state is not WindowState.UNEXPLAINED

    def is_reportable(self, *, has_bars: bool) -> bool:
        """Return whether it is materialized without a run that was launched for it.

        An open window is once it has bars. One that is explained by the universe, the calendar or
        where data begin, such as those before the start, is once its series has bars: a store in
        which nothing is loaded would otherwise look nearly full.

        Args:
            has_bars: whether the series has any bar.
        """
        if self.state is WindowState.OPEN:
            return self.rows > 0
        return self.is_explained and (has_bars or self.state in _BY_RESPONSES)


Dates = tuple[date, date]
"""Session dates ``[first, end)``."""


def wanted_in(series: Series, calendar: SessionCalendar, windows: Iterable[Dates]) -> IntervalSet:
    """Return the bar timestamps of windows, from the start that the universe gives."""
    start = first_timestamp(series, calendar)
    intervals = (interval_between(calendar, series.timeframe, first, end) for first, end in windows)
    parts = (between(max(one.start, start), one.end) for one in intervals)
    return IntervalSet(part for part in parts if part)


def window_status(
    found: "SeriesGaps",
    calendar: SessionCalendar,
    held: tuple[np.ndarray, np.ndarray],
    *,
    windows: Mapping[str, Dates],
    now: datetime,
) -> dict[str, WindowStatus]:
    """Return for each window of a series what it holds and what is missing in it.

    Args:
        found: what the gap index found at ``now``.
        calendar: that of the series.
        held: session dates, oldest first, and the number of bars held of each.
        windows: session dates ``[first, end)`` by name.
        now: sessions that have closed by then are due.
    """
    series, spans = found.series, session_grid(calendar, found.series.timeframe)
    days, rows = _rows(spans, *held)
    closed, missing = closed_count(spans, now), found.missing
    started = micros(first_timestamp(series, calendar))
    status: dict[str, WindowStatus] = {}
    for name, dates in windows.items():
        interval = interval_between(calendar, series.timeframe, *dates)
        low, high = _positions(days, dates)
        count = int(rows[low:high].sum())
        low, high = _positions(spans.days, dates)
        # A gap also spans windows in which there is no session.
        may_lack = low < high or calendar.known is None
        lacking = missing.clip(interval) if may_lack else IntervalSet()
        if lacking:
            why = _why(gap for gap in found.gaps if gap.interval.overlaps(interval))
            state = WindowState.UNEXPLAINED
            status[name] = WindowStatus(interval, state, count, lacking, why)
            continue
        if closed < high:
            state = WindowState.OPEN
        elif count:
            state = WindowState.COMPLETE
        elif low == high:
            is_over = _has_ended(series, calendar, interval)
            state = WindowState.ENDED if is_over else WindowState.NO_SESSION
        elif int(spans.starts[high - 1]) < started:
            state = WindowState.BEFORE_START
        else:
            state = _without_bars(found, spans.slice(low, high), started)
        status[name] = WindowStatus(interval, state, count, IntervalSet())
    return status


def after_load(status: Mapping[str, WindowStatus], report: SeriesReport) -> dict[str, WindowStatus]:
    """Return the status of windows after a load of their series.

    What the load itself reports as unexplained counts in addition to what the index finds, and
    after an error nothing is explained.
    """
    after = dict(status)
    for name, one in status.items():
        left = report.unexplained.clip(one.interval)
        if left or report.error is not None:
            after[name] = replace(
                one, state=WindowState.UNEXPLAINED, unexplained=one.unexplained | left
            )
    return after


def _rows(spans: SessionGrid, days: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return session dates, ascending, and the bars of each; a week is dated by its Monday."""
    if spans.timeframe is Timeframe.W1:
        return spans.days, have_bars(spans, days, rows)
    return days, rows


def _without_bars(found: "SeriesGaps", spans: SessionGrid, started: int) -> WindowState:
    """Return why a window lacks nothing and has no bars: it is covered, or its data begin later."""
    until = micros(found.expected_from) if found.expected_from is not None else started
    early = (spans.ends > started) & (spans.ends <= until)
    is_open = early & ~found.covered.covers_each(spans.starts, spans.ends)
    return WindowState.BEFORE_LISTING if is_open.any() else WindowState.EMPTY


def _has_ended(series: Series, calendar: SessionCalendar, interval: Interval) -> bool:
    """Return whether a window lies after the last session of its instrument."""
    end = series.instrument.end
    if end is None:
        return False
    return interval_between(calendar, series.timeframe, end, end + _ALL_DUE).start <= interval.start


def _why(gaps: Iterable[Gap]) -> str:
    """Return the number of gaps by reason, and when the first of them is requested again."""
    found = list(gaps)
    counts = Counter(str(gap.reason) for gap in found)
    text = ", ".join(f"{number} {reason}" for reason, number in counts.most_common())
    due = min((gap.next_try_at for gap in found if gap.next_try_at), default=None)
    return f"{text}, next request at {due:%Y-%m-%d %H:%MZ}" if due else text


def _positions(days: np.ndarray, dates: Dates) -> tuple[int, int]:
    """Return the first and the end index of the days that lie in a window."""
    low, high = np.searchsorted(days, [np.datetime64(day) for day in dates])
    return int(low), int(high)
