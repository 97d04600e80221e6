"""Decide the state of windows of a series: complete, explained in another way, or unexplained.

Runs, tails and the sensor that reports materializations all decide here whether a window, a Dagster
time partition, is complete. A window with a session that is unconfirmed, contradicted or sparse is
not: the gap index lists these as gaps.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from enum import StrEnum

import numpy as np

from ktrdr_pipelines.domain.bars import micros
from ktrdr_pipelines.domain.calendars.session_grid import SessionGrid, session_grid
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar, interval_between
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.domain.planning.gaps import Completeness, Gap, closed_count
from ktrdr_pipelines.domain.planning.jobs import first_timestamp
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.gaps.index import GapIndex

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


def from_start(series: Series, calendar: SessionCalendar, interval: Interval) -> IntervalSet:
    """Return the part of an interval from the start that the universe gives."""
    part = between(max(interval.start, first_timestamp(series, calendar)), interval.end)
    return IntervalSet([part] if part else [])


def has_ended(series: Series, calendar: SessionCalendar, interval: Interval) -> bool:
    """Return whether a window lies after the last session of its instrument."""
    end = series.instrument.end
    if end is None:
        return False
    return interval_between(calendar, series.timeframe, end, end + _ALL_DUE).start <= interval.start


Dates = tuple[date, date]


class WindowIndex:
    """The state of windows of series, from the gap index."""

    def __init__(self, index: GapIndex) -> None:
        self._index = index

    def status(
        self, series: Series, windows: Mapping[str, Dates], now: datetime
    ) -> dict[str, WindowStatus]:
        """Return for each window what it holds and what is unexplained in it.

        Args:
            series: the series of the windows.
            windows: session dates ``[first, end)`` by name.
            now: sessions that have closed by then are due.

        Raises:
            StoreError: its files or the ledger cannot be read.
        """
        calendar = self._index.calendars.of(series.instrument)
        completeness = self._index.completeness(series, now)
        rows = self._rows(series, completeness)
        (found,) = self._index.series_gaps([series], now)
        status: dict[str, WindowStatus] = {}
        for name, (first, end) in windows.items():
            interval = interval_between(calendar, series.timeframe, first, end)
            low, high = np.searchsorted(rows[0], [np.datetime64(first), np.datetime64(end)])
            count = int(rows[1][low:high].sum())
            state = _state(series, calendar, completeness, (first, end), rows=count, now=now)
            if state is WindowState.NO_SESSION and has_ended(series, calendar, interval):
                state = WindowState.ENDED
            elif calendar.known is None and found.missing.clip(interval):
                state = WindowState.UNEXPLAINED  # its sessions are not known yet
            missing, why = IntervalSet(), ""
            if state is WindowState.UNEXPLAINED:
                missing = found.missing.clip(interval)
                why = _why(gap for gap in found.gaps if gap.interval.overlaps(interval))
            status[name] = WindowStatus(interval, state, count, missing, why)
        return status

    def status_after(
        self, report: SeriesReport, windows: Mapping[str, Dates], now: datetime
    ) -> dict[str, WindowStatus]:
        """Return for each window its status after a load.

        What the load itself reports as unexplained counts in addition to what the index finds.

        Args:
            report: how the load ended.
            windows: session dates ``[first, end)`` by name.
            now: market time, where the report names no time of the gateway.

        Raises:
            StoreError: its files or the ledger cannot be read.
        """
        status = self.status(report.series, windows, report.now or now)
        for name, one in status.items():
            left = report.unexplained.clip(one.interval)
            if left or report.error is not None:
                missing = one.unexplained | left
                status[name] = replace(one, state=WindowState.UNEXPLAINED, unexplained=missing)
        return status

    def _rows(self, series: Series, completeness: Completeness) -> tuple[np.ndarray, np.ndarray]:
        """Return session dates, ascending, and the bars of each; a week is dated by its Monday."""
        if series.timeframe is Timeframe.W1:
            return completeness.spans.days, completeness.have
        counts = self._index.store.rows_per_session(series)
        return np.array(list(counts), "datetime64[D]"), np.array(list(counts.values()), np.int64)


def _state(
    series: Series,
    calendar: SessionCalendar,
    completeness: Completeness,
    dates: Dates,
    *,
    rows: int,
    now: datetime,
) -> WindowState:
    everything = session_grid(calendar, series.timeframe)
    low, high = _positions(everything, dates)
    part = slice(*_positions(completeness.spans, dates))
    starts = everything.starts[low:high]
    states = (
        (bool(completeness.unexplained[part].any()), WindowState.UNEXPLAINED),
        (closed_count(everything, now) < high, WindowState.OPEN),
        (bool(rows), WindowState.COMPLETE),
        (low == high, WindowState.NO_SESSION),
        (
            bool((starts < micros(first_timestamp(series, calendar))).all()),
            WindowState.BEFORE_START,
        ),
        (bool(completeness.explained[part].any()), WindowState.BEFORE_LISTING),
    )
    return next((state for holds, state in states if holds), WindowState.EMPTY)


def _why(gaps: Iterable[Gap]) -> str:
    """Return the number of gaps by reason, and when the first of them is requested again."""
    found = list(gaps)
    counts = Counter(str(gap.reason) for gap in found)
    text = ", ".join(f"{number} {reason}" for reason, number in counts.most_common())
    due = min((gap.next_try_at for gap in found if gap.next_try_at), default=None)
    return f"{text}, next request at {due:%Y-%m-%d %H:%MZ}" if due else text


def _positions(spans: SessionGrid, dates: Dates) -> tuple[int, int]:
    """Return the first and the end index of the spans whose dates lie in a window."""
    low, high = np.searchsorted(spans.days, [np.datetime64(day) for day in dates])
    return int(low), int(high)
