"""Windows of whole series, told from the gap book: what may be said of each, and how many bars.

Not here: what a finished load left of its windows (``load.windows``), how windows are named
(``defs.partitions``).
"""

from collections.abc import Mapping
from datetime import date, datetime

import numpy as np

from ktrdr_pipelines.core.bars import micros
from ktrdr_pipelines.core.completeness import Completeness, closed_count
from ktrdr_pipelines.core.instruments import Series
from ktrdr_pipelines.core.intervals import IntervalSet
from ktrdr_pipelines.core.sessions import SessionCalendar, stamps_between
from ktrdr_pipelines.core.spanarrays import SpanArrays, span_arrays
from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.load.gapbook import GapBook
from ktrdr_pipelines.load.modes import first_stamp
from ktrdr_pipelines.load.windows import WindowFacts, WindowState, has_ended

Dates = tuple[date, date]


class WindowBook:
    """Says of windows of a series what is known of them, asking no gateway."""

    def __init__(self, book: GapBook) -> None:
        self._book = book

    def facts(
        self, series: Series, windows: Mapping[str, Dates], now: datetime
    ) -> dict[str, WindowFacts]:
        """Say of each window what it holds and whether anything of it is unexplained.

        Args:
            series: whose windows.
            windows: session dates ``[first, end)`` by name.
            now: what has closed by then is due.

        Raises:
            StoreError: its files or the ledger cannot be read.
        """
        calendar = self._book.calendars.of(series.instrument)
        told = self._book.completeness(series, now)
        rows = self._rows(series, told)
        (found,) = self._book.look([series], now)
        facts: dict[str, WindowFacts] = {}
        for name, (first, end) in windows.items():
            stamps = stamps_between(calendar, series.timeframe, first, end)
            low, high = np.searchsorted(rows[0], [np.datetime64(first), np.datetime64(end)])
            count = int(rows[1][low:high].sum())
            state = _state(series, calendar, told, (first, end), rows=count, now=now)
            if state is WindowState.NO_SESSION and has_ended(series, calendar, stamps):
                state = WindowState.ENDED
            missing = IntervalSet()
            if state is WindowState.UNEXPLAINED:
                missing = found.missing.clip(stamps)
            facts[name] = WindowFacts(stamps, state, count, missing)
        return facts

    def _rows(self, series: Series, told: Completeness) -> tuple[np.ndarray, np.ndarray]:
        """Give dates, rising, and the bars of each; a week belongs to its Monday."""
        if series.timeframe is Timeframe.W1:
            return told.spans.days, told.have
        counts = self._book.store.rows_per_session(series)
        return np.array(list(counts), "datetime64[D]"), np.array(list(counts.values()), np.int64)


def _state(
    series: Series,
    calendar: SessionCalendar,
    told: Completeness,
    dates: Dates,
    *,
    rows: int,
    now: datetime,
) -> WindowState:
    everything = span_arrays(calendar, series.timeframe)
    low, high = _places(everything, dates)
    part = slice(*_places(told.spans, dates))
    starts = everything.spans.starts[low:high]
    states = (
        (bool(told.unexplained[part].any()), WindowState.UNEXPLAINED),
        (closed_count(everything, now) < high, WindowState.OPEN),
        (bool(rows), WindowState.COMPLETE),
        (low == high, WindowState.NO_SESSION),
        (bool((starts < micros(first_stamp(series, calendar))).all()), WindowState.BEFORE_START),
        (bool(told.explained[part].any()), WindowState.BEFORE_LISTING),
    )
    return next((state for holds, state in states if holds), WindowState.EMPTY)


def _places(spans: SpanArrays, dates: Dates) -> tuple[int, int]:
    """Give the first and the end place of the spans whose dates lie in a window."""
    low, high = np.searchsorted(spans.days, [np.datetime64(day) for day in dates])
    return int(low), int(high)
