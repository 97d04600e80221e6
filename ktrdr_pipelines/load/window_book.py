"""Windows of whole series, told from the gap book: what may be said of each, and how many bars.

Runs, tails and the report sensor all decide here whether a window is complete. One with a session
that is unconfirmed, contradicted or sparse is not: the gap book lists these as gaps. Not here: how
windows are named (``defs.partitions``).
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import date, datetime

import numpy as np

from ktrdr_pipelines.core.bars import micros
from ktrdr_pipelines.core.completeness import Completeness, Gap, closed_count
from ktrdr_pipelines.core.instruments import Series
from ktrdr_pipelines.core.intervals import IntervalSet
from ktrdr_pipelines.core.sessions import SessionCalendar, stamps_between
from ktrdr_pipelines.core.spanarrays import SpanArrays, span_arrays
from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.load.gapbook import GapBook
from ktrdr_pipelines.load.modes import first_stamp
from ktrdr_pipelines.load.reports import SeriesReport
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
            elif calendar.known is None and found.missing.clip(stamps):
                state = WindowState.UNEXPLAINED  # its sessions are not known yet
            missing, why = IntervalSet(), ""
            if state is WindowState.UNEXPLAINED:
                missing = found.missing.clip(stamps)
                why = _why(gap for gap in found.gaps if gap.stamps.overlaps(stamps))
            facts[name] = WindowFacts(stamps, state, count, missing, why)
        return facts

    def facts_after(
        self, report: SeriesReport, windows: Mapping[str, Dates], now: datetime
    ) -> dict[str, WindowFacts]:
        """Say of each window what a finished load left of it.

        What the load itself reports as unexplained counts beside what the gap book finds.

        Args:
            report: how the load ended.
            windows: session dates ``[first, end)`` by name.
            now: market time, where the report names no time of the gateway.

        Raises:
            StoreError: its files or the ledger cannot be read.
        """
        facts = self.facts(report.series, windows, report.now or now)
        for name, one in facts.items():
            left = report.unexplained.clip(one.stamps)
            if left or report.error is not None:
                missing = one.unexplained | left
                facts[name] = replace(one, state=WindowState.UNEXPLAINED, unexplained=missing)
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


def _why(gaps: Iterable[Gap]) -> str:
    """Count gaps by their reasons, and say when the first of them is requested again."""
    found = list(gaps)
    counts = Counter(str(gap.reason) for gap in found)
    text = ", ".join(f"{number} {reason}" for reason, number in counts.most_common())
    due = min((gap.next_try_at for gap in found if gap.next_try_at), default=None)
    return f"{text}, next request at {due:%Y-%m-%d %H:%MZ}" if due else text


def _places(spans: SpanArrays, dates: Dates) -> tuple[int, int]:
    """Give the first and the end place of the spans whose dates lie in a window."""
    low, high = np.searchsorted(spans.days, [np.datetime64(day) for day in dates])
    return int(low), int(high)
