"""Comparing the volumes of received bars with those of held ones: another unit.

Not here: what counts as a jump (``domain.volume_units``), prices (``sync.engine.basis_check``).
"""

from bisect import bisect_left
from datetime import date, datetime, timedelta

import pyarrow as pa

from ktrdr_pipelines.domain.bars import micros, moment, session_bounds, timestamps
from ktrdr_pipelines.domain.calendars.sessions import (
    SessionCalendar,
    interval_between,
    monday_of,
)
from ktrdr_pipelines.domain.instruments import SecType, Series, WhatToShow
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.gaps import final_lag
from ktrdr_pipelines.domain.planning.reports import Progress
from ktrdr_pipelines.domain.plausibility import Disagreement
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.volume_units import SESSIONS, between_sessions, compare_volume, is_known
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.ledger.ledger import series_key
from ktrdr_pipelines.sync.engine.source_session import RetryPolicy

_DAY, _INSTANT = timedelta(days=1), timedelta(microseconds=1)


class Comparison:
    """Compares the volumes that one run receives of a series with what is held.

    Args:
        store: the held bars, and the ledger that records disagreements.
        series: the series.
        clocks: real time, at which disagreements are recorded.
        progress: receives a note about each disagreement.
    """

    def __init__(
        self, store: BarStore, series: Series, clocks: RetryPolicy, progress: Progress
    ) -> None:
        self._store, self._series = store, series
        self._clocks, self._progress = clocks, progress
        self._gained: tuple[date, date] | None = None
        instrument = series.instrument
        # The gateway may give the volume of stocks in shares or in lots.
        self._has_lots = (
            instrument.sec_type is SecType.STK and instrument.what_to_show is WhatToShow.TRADES
        )

    def received(self, bars: pa.Table, held: IntervalSet) -> None:
        """Check whether volumes received again are in the unit of those that are held.

        Args:
            bars: all bars of a response.
            held: what was covered with bars before the run.
        """
        if not self._has_lots or not held:
            return
        keys = timestamps(bars)
        around = Interval(moment(int(keys[0])), moment(int(keys[-1])) + _INSTANT)
        if held.clip(around):
            known = self._store.read(self._series, around)
            whole = bars.slice(1) if self._series.timeframe.is_intraday else bars
            self._report_volume(compare_volume(known, whole))

    def kept(self, bars: pa.Table) -> None:
        """Note which session dates the run has gained bars of."""
        if bars.num_rows:
            first, last = session_bounds(bars)
            before = self._gained or (first, last)
            self._gained = min(first, before[0]), max(last, before[1])

    def compare_volumes(self, calendar: SessionCalendar, now: datetime, *, is_tail: bool) -> None:
        """Check whether volumes jump by a lot where bars of this run adjoin those of other runs.

        The comparison needs some sessions on either side. An intraday tail is compared only once
        its last session has closed.

        Args:
            calendar: the sessions of the series.
            now: the gateway's time.
            is_tail: whether the run loads the newest bars only.
        """
        if self._gained is None or not self._has_lots:
            return
        first, last = self._gained
        timeframe, today = self._series.timeframe, calendar.day_of(now - final_lag())
        if is_tail and timeframe.is_intraday:
            closes = calendar.closes_of(last, today)
            if last > today or (closes > micros(now - final_lag())).any():
                return
        days = [day for day in self._store.rows_per_session(self._series) if day <= today]
        for boundary in sorted({first, last}):
            position = bisect_left(days, boundary)
            around = days[max(0, position - 2 * SESSIONS) : position + 2 * SESSIONS]
            if all(first <= day <= last for day in around):
                continue
            start, end = around[0], around[-1] + _DAY
            if timeframe is Timeframe.W1:
                start, end = monday_of(start), monday_of(around[-1]) + 7 * _DAY
            part = interval_between(calendar, timeframe, start, end)
            self._report_volume(between_sessions(self._store.read(self._series, part)))

    def _report_volume(self, found: Disagreement | None) -> None:
        """Record a jump of volumes and report it once."""
        key = series_key(self._series)
        known = self._store.ledger.disagreements.jumps_of(key)
        if found is not None and not is_known(found, known):
            self._record(found)

    def _record(self, found: Disagreement) -> None:
        key = series_key(self._series)
        self._store.ledger.disagreements.record(key, found, self._clocks.clock())
        self._progress.noted(self._series, found.text_for(self._series))
