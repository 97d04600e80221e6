"""Compare what Dagster shows of windows with what the gap index finds in them now.

A window is *lost* if Dagster shows it as materialized although bars are missing in it that it had,
or that were confirmed to be empty, when it was reported. It is *filled* if Dagster shows it as
failed although nothing is missing in it any more. The bars that an open window has not received yet
are not lost.

Not here: the record that marks a window as failed (``defs.runs.recorded_runs``), the events of
windows that are filled (``defs.sensors.materialization_sensor``).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import dagster as dg
import numpy as np
from dagster._core.storage.partition_status_cache import AssetPartitionStatus

from ktrdr_pipelines.defs.assets import bars_key
from ktrdr_pipelines.defs.partitions import BarPartition, bars_partitions, window_dates
from ktrdr_pipelines.defs.runs.active_runs import held_symbols
from ktrdr_pipelines.defs.runs.reported_windows import ReportedWindow, reported_windows
from ktrdr_pipelines.domain.bars import moment
from ktrdr_pipelines.domain.calendars.session_grid import session_grid
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, between
from ktrdr_pipelines.domain.planning.gaps import GapReason, closed_count
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.universe import Windows
from ktrdr_pipelines.errors import StoreError
from ktrdr_pipelines.gaps.index import GapIndex, SeriesGaps
from ktrdr_pipelines.gaps.windows import Dates, WindowState, WindowStatus

GRACE: Final = timedelta(minutes=3)
"""How long a window is lost before it is marked: most are due at once, and a gap run fills them."""

CONFIRMING: Final = timedelta(hours=1)
"""The same where bars are only confirmed to be empty once more, which takes two statements."""

_NEW: Final = timedelta(hours=1)
"""Bars of sessions that have become complete more recently are being loaded."""

_CONFIRMED_LATER: Final = frozenset({GapReason.EXPIRED, GapReason.UNCONFIRMED})


@dataclass(frozen=True, slots=True)
class LostWindow:
    """A window that is shown as materialized, what it lacks, and how long to wait for a run."""

    timeframe: Timeframe
    partition: BarPartition
    why: str
    grace: timedelta

    @property
    def name(self) -> str:
        """The name of the window among those of all timeframes."""
        return f"{self.timeframe} {self.partition.key}"

    @staticmethod
    def series_of(name: str) -> str:
        """Return the name of the series of a window's name."""
        return name.rpartition("|")[0]


@dataclass(frozen=True, slots=True)
class FilledWindow:
    """A window that is shown as failed, and its status now."""

    timeframe: Timeframe
    partition: BarPartition
    status: WindowStatus


@dataclass(frozen=True, slots=True)
class ChangedStatuses:
    """The lost and the filled windows of the series that were compared, ``compared`` in number.

    ``left`` names the series of the universe that were not: ``1d AAPL``.
    """

    lost: Sequence[LostWindow]
    filled: Sequence[FilledWindow]
    compared: int
    left: frozenset[str]


ShownWindows = Mapping[str, Mapping[str, AssetPartitionStatus]]
"""What Dagster shows of the windows that it knows, by symbol and window."""


def shown_windows(
    instance: dg.DagsterInstance,
    listed: Iterable[Series],
    names: Mapping[Timeframe, Sequence[str]],
    windows: Windows,
) -> dict[Timeframe, ShownWindows]:
    """Return what Dagster shows of windows, as its UI does, by timeframe.

    Args:
        instance: the Dagster instance with the history.
        listed: the series of the universe.
        names: the window keys of each timeframe.
        windows: where windows begin.
    """
    shown: dict[Timeframe, ShownWindows] = {}
    for timeframe in dict.fromkeys(one.timeframe for one in listed):
        symbols = held_symbols(instance, timeframe)
        keys = {
            f"{symbol}|{name}": (symbol, name) for symbol in symbols for name in names[timeframe]
        }
        statuses = instance.get_status_by_partition(
            bars_key(timeframe), list(keys), bars_partitions(timeframe, windows)
        )
        by_symbol: dict[str, dict[str, AssetPartitionStatus]] = {}
        for key, status in (statuses or {}).items():
            if status is not None:
                symbol, name = keys[key]
                by_symbol.setdefault(symbol, {})[name] = status
        shown[timeframe] = by_symbol
    return shown


class ShownHistory:
    """What Dagster shows of windows, kept until an event or a run is added or deleted.

    Reading it of 80,000 windows takes seconds. A process that serves a sensor keeps one.
    """

    def __init__(self) -> None:
        self._state: object = None
        self._asked: object = None
        self._materialized: dict[Timeframe, set[str]] = {}
        self._shown: dict[Timeframe, ShownWindows] = {}

    def materialized(self, instance: dg.DagsterInstance, timeframe: Timeframe) -> set[str]:
        """Return the keys of all partitions of a timeframe that were ever materialized."""
        self._forget_if_changed(instance)
        if timeframe not in self._materialized:
            found = instance.get_materialized_partitions(bars_key(timeframe))
            self._materialized[timeframe] = set(found)
        return self._materialized[timeframe]

    def shown(
        self,
        instance: dg.DagsterInstance,
        listed: Sequence[Series],
        names: Mapping[Timeframe, Sequence[str]],
        windows: Windows,
    ) -> dict[Timeframe, ShownWindows]:
        """Return the same as ``shown_windows``."""
        asked = {
            one: (tuple(names[one]), held_symbols(instance, one), windows)
            for one in {series.timeframe for series in listed}
        }
        self._forget_if_changed(instance)
        if self._asked != asked:
            self._asked, self._shown = asked, shown_windows(instance, listed, names, windows)
        return self._shown

    def _forget_if_changed(self, instance: dg.DagsterInstance) -> None:
        # Events of windows, and those that end runs, are in the index of all runs.
        newest = instance.event_log_storage.get_maximum_record_id()
        state = (instance.root_directory, newest, instance.get_runs_count())
        if state != self._state:
            self._state, self._asked, self._materialized = state, None, {}


class WindowComparison:
    """Compares windows of all series with what Dagster shows of them.

    Args:
        instance: the Dagster instance with the history.
        index: what is missing.
        now: market time.
    """

    def __init__(self, instance: dg.DagsterInstance, index: GapIndex, now: datetime) -> None:
        self._instance, self._index, self._now = instance, index, now

    def changed(
        self,
        listed: Sequence[Series],
        position: int,
        shown: Mapping[Timeframe, ShownWindows],
        is_late: Callable[[], bool],
    ) -> ChangedStatuses:
        """Return the lost and the filled windows of those series that were compared in time.

        At least one series is compared, so that each has its turn however little time there is.

        Args:
            listed: the series of the universe.
            position: that of the series to begin with; those before it come last.
            shown: what Dagster shows of the windows of each timeframe.
            is_late: tells that the time is over.

        Raises:
            StoreError: the ledger cannot be read.
        """
        lost: list[LostWindow] = []
        filled: list[FilledWindow] = []
        order = [*listed[position:], *listed[:position]]
        compared = 0
        for found in self._index.series_gaps(order, self._now):
            if compared and is_late():
                break
            compared += 1
            by_window = shown[found.series.timeframe].get(found.series.symbol, {})
            if by_window:
                lost += self._lost(found, by_window)
                filled += self._filled(found, by_window)
        left = frozenset(f"{one.timeframe} {one.symbol}" for one in order[compared:])
        return ChangedStatuses(lost, filled, compared, left)

    def _lost(
        self, found: SeriesGaps, shown: Mapping[str, AssetPartitionStatus]
    ) -> Iterator[LostWindow]:
        timeframe = found.series.timeframe
        green = [one for one, how in shown.items() if how is AssetPartitionStatus.MATERIALIZED]
        lacking = self._lacking(found, green)
        statuses = self._statuses(found, lacking)
        for name in lacking:
            partition = BarPartition(found.series.symbol, name)
            if found.error is not None:
                known = self._reported(timeframe, partition)
                if known is not None and known.rows:  # others do not depend on the file
                    yield LostWindow(timeframe, partition, str(found.error), GRACE)
                continue
            status = statuses.get(name)
            if status is None or status.is_explained:
                continue
            at = self._now - _NEW
            if status.interval.end > self._now:
                known = self._reported(timeframe, partition)
                at = at if known is None else min(at, known.as_of)
            before = _complete_at(found.series, self._index, status.interval, at)
            if before is None or not status.unexplained.clip(before):
                continue
            reasons = {one.reason for one in found.gaps if one.interval.overlaps(before)}
            grace = CONFIRMING if reasons <= _CONFIRMED_LATER else GRACE
            why = f"missing {status.unexplained.bounds} ({status.why})"
            yield LostWindow(timeframe, partition, why, grace)

    def _filled(
        self, found: SeriesGaps, shown: Mapping[str, AssetPartitionStatus]
    ) -> Iterator[FilledWindow]:
        red = [one for one, how in shown.items() if how is AssetPartitionStatus.FAILED]
        if not red or found.error is not None:
            return
        lacking = set(self._lacking(found, red))
        candidates = [one for one in red if one not in lacking]
        for name, status in self._statuses(found, candidates).items():
            # An open window counts as materialized only once it has bars.
            is_empty = status.state is WindowState.OPEN and not status.rows
            if status.is_explained and not is_empty:
                partition = BarPartition(found.series.symbol, name)
                yield FilledWindow(found.series.timeframe, partition, status)

    def _lacking(self, found: SeriesGaps, names: Iterable[str]) -> list[str]:
        """Return those windows in which a gap may lie; all, if the series cannot be read."""
        if found.error is not None:
            return list(names)
        if not found.gaps:
            return []
        missing = found.missing
        first, last = missing.starts, missing.ends - 1
        if found.series.timeframe.is_intraday:
            calendar = self._index.calendars.of(found.series.instrument)
            days = calendar.days_of(first), calendar.days_of(last)
        else:
            days = first.astype("datetime64[us]"), last.astype("datetime64[us]")
        return [one for one in names if _meets(window_dates(one), *days)]

    def _reported(self, timeframe: Timeframe, partition: BarPartition) -> ReportedWindow | None:
        return reported_windows(self._instance, timeframe, [partition]).get(partition)

    def _statuses(self, found: SeriesGaps, names: Iterable[str]) -> dict[str, WindowStatus]:
        """Return the status of windows of a series; none if its files cannot be read."""
        dates = {name: window_dates(name) for name in names}
        try:
            return self._index.windows_of(found, dates, self._now) if dates else {}
        except StoreError:
            return {}


def _complete_at(
    series: Series, index: GapIndex, window: Interval, at: datetime
) -> Interval | None:
    """Return the part of a window up to the last session that was complete at a time."""
    grid = session_grid(index.calendars.of(series.instrument), series.timeframe)
    count = closed_count(grid, at)
    return between(window.start, moment(grid.ends.item(count - 1))) if count else None


def _meets(window: Dates, first: np.ndarray, last: np.ndarray) -> bool:
    """Return whether a span of days, ``last`` included, lies partly in a window."""
    start, end = (np.datetime64(day) for day in window)
    return bool(((first < end) & (last >= start)).any())
