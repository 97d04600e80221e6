"""The report sensor: keeps Dagster's history of windows in line with what is on disk.

Bars also arrive through the command line, in a store that was moved here, or by a rename; and a
window that was materialized while open is finished later. Each tick examines some series in turn,
and reports windows by events that belong to no run; those of open windows that have grown belong to
a run that is recorded for them, so that they can be deleted.

Bars also disappear: files are deleted or damaged, evidence is refuted. Each tick compares the
windows of all series that Dagster shows as materialized or failed with the gap index. One that
lacks bars for longer than a gap run takes to fill it is marked as failed, once; it is materialized
again when it lacks nothing.

Not here: the state of a window (``gaps.windows``), its event (``defs.runs.outcome``), which windows
are lost (``defs.sensors.lost_windows``).
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import dagster as dg

from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.defs.partitions import BarPartition, window_dates, windows_partitions
from ktrdr_pipelines.defs.resources import IbResource, StoreResource
from ktrdr_pipelines.defs.runs.active_runs import held_symbols
from ktrdr_pipelines.defs.runs.outcome import growth, materialization
from ktrdr_pipelines.defs.runs.recorded_runs import mark_lost, report_grown
from ktrdr_pipelines.defs.runs.reported_windows import (
    ReportedWindow,
    needed_event,
    reported_windows,
)
from ktrdr_pipelines.defs.sensors.lost_windows import (
    ChangedStatuses,
    LostWindow,
    ShownHistory,
    WindowComparison,
)
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.universe import Windows
from ktrdr_pipelines.errors import KtrdrError, StoreError
from ktrdr_pipelines.gaps.index import GapIndex, SeriesGaps
from ktrdr_pipelines.gaps.windows import WindowState, WindowStatus

_EVERY_S: Final = 60
_SERIES: Final = 60
"""Series that a tick examines: a round over 4,000 takes little more than an hour."""

_WINDOWS: Final = 300
"""Reported windows after which a tick examines no further series."""

_REPORTING_S: Final = 15.0
"""Seconds after which a tick examines no further series: the rest is for the comparison."""

_MOST_S: Final = 25.0
"""Seconds after which a tick starts no further work: Dagster ends a tick that takes a minute."""

_MARKS: Final = 100
"""Most windows that a tick marks as lost."""

_REMEMBERED: Final = 2_000
"""Most lost windows whose beginning the cursor has."""

_LATEST: Final = 3
"""Newest windows of a series whose events are compared: they may have been reported while open."""

Clock = Callable[[], datetime]

LatestReported = Mapping[str, ReportedWindow]
"""The latest events of the newest windows of a series, by window."""


@dataclass(frozen=True, slots=True)
class UnreportedWindow:
    """A window that has to be reported to Dagster."""

    timeframe: Timeframe
    partition: BarPartition
    status: WindowStatus
    has_grown: bool


def report_sensor(
    windows: Windows, clock: Clock = system_now, stopwatch: Callable[[], float] = time.monotonic
) -> dg.SensorDefinition:
    """Return the sensor that reports complete windows which Dagster does not know."""
    history = ShownHistory()

    @dg.sensor(
        name="report_sensor",
        minimum_interval_seconds=_EVERY_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Materializes windows that are complete on disk but not materialized in "
        "Dagster, or materialized as open although they are finished or have grown. Marks windows "
        "as failed that are materialized but have lost bars.",
    )
    def sensor(
        context: dg.SensorEvaluationContext, ib: IbResource, store: StoreResource
    ) -> dg.SensorResult:
        cursor = json.loads(context.cursor) if context.cursor else {}
        lost_since = dict(cursor.get("lost", {}))
        try:
            workspace = ib.workspace(store, clock)
            listed, index = workspace.universe.series(), workspace.gap_index()
        except KtrdrError as error:
            return dg.SensorResult(skip_reason=str(error), cursor=context.cursor)
        reporter = WindowReporter(context.instance, index, windows, workspace.now, history=history)
        began_s, count = stopwatch(), max(len(listed), 1)
        first, position = (int(cursor.get(name, 0)) % count for name in ("place", "compared"))
        reported, checked = reporter.report(
            listed, first, is_late=lambda: stopwatch() > began_s + _REPORTING_S
        )
        text = f"examined {checked} of {len(listed)} series; reported {reported} windows"
        try:
            shown = history.shown(context.instance, listed, reporter.names, windows)
            found = WindowComparison(context.instance, index, workspace.now).changed(
                listed, position, shown, is_late=lambda: stopwatch() > began_s + _MOST_S
            )
        except KtrdrError as error:
            return dg.SensorResult(skip_reason=f"{text}; {error}", cursor=context.cursor)
        compared = mark_and_fill(context.instance, reporter, found, lost_since, real_now=clock())
        text = "; ".join(part for part in (text, str(compared)) if part)
        if reported or compared.marked or compared.filled:
            context.log.info(text)
        following = {
            "place": (first + checked) % count,
            "compared": (position + found.compared) % count,
            "lost": dict(compared.lost_since),
        }
        return dg.SensorResult(skip_reason=text, cursor=json.dumps(following))

    return sensor


class WindowReporter:
    """Finds windows that have to be reported to Dagster, and reports them."""

    def __init__(
        self,
        instance: dg.DagsterInstance,
        index: GapIndex,
        windows: Windows,
        now: datetime,
        *,
        history: ShownHistory,
    ) -> None:
        self._instance, self._index, self._now = instance, index, now
        self._history = history
        self.names: Mapping[Timeframe, Sequence[str]] = {
            one: windows_partitions(one, windows).get_partition_keys(now) for one in Timeframe
        }
        self._adjustments = index.store.ledger.adjustments.all()
        self._known: dict[Timeframe, set[str]] = {}
        self._symbols: dict[Timeframe, set[str]] = {}

    def report(
        self, listed: Sequence[Series], position: int, is_late: Callable[[], bool]
    ) -> tuple[int, int]:
        """Report windows, series by series from ``position`` on, until the time is over.

        Returns:
            The number of reported windows and the number of examined series.
        """
        reported = checked = 0
        grown: dict[Timeframe, list[dg.AssetMaterialization]] = {}
        chosen = [*listed[position:], *listed[:position]][:_SERIES]
        latest = self._latest_reported(chosen)
        for found in self._index.series_gaps(chosen, self._now):
            if reported >= _WINDOWS or is_late():
                break
            for one in self._unreported(found, latest):
                if is_late():
                    break
                if one.has_grown:
                    event = growth(one.timeframe, one.partition, one.status, self._now)
                    grown.setdefault(one.timeframe, []).append(event)
                else:
                    self.materialize(one.timeframe, one.partition, one.status)
                reported += 1
            else:
                checked += 1
        for timeframe, events in grown.items():
            report_grown(self._instance, timeframe, events)
        return reported, checked

    def materialize(
        self, timeframe: Timeframe, partition: BarPartition, status: WindowStatus
    ) -> None:
        """Report an explained window by an event that belongs to no run."""
        known = self._adjustments.get(partition.symbol, ())
        event = materialization(timeframe, partition, status, known, now=self._now)
        self._instance.report_runless_asset_event(event)

    def _latest_reported(self, listed: Iterable[Series]) -> dict[Series, LatestReported]:
        """Return the latest events of the newest windows of each series, by window."""
        by_timeframe: dict[Timeframe, list[Series]] = {}
        for series in listed:
            by_timeframe.setdefault(series.timeframe, []).append(series)
        found: dict[Series, LatestReported] = {}
        for timeframe, together in by_timeframe.items():
            names = self.names[timeframe][-_LATEST:]
            wanted = [BarPartition(one.symbol, name) for one in together for name in names]
            reported = reported_windows(self._instance, timeframe, wanted)
            for one in together:
                keys = {name: BarPartition(one.symbol, name) for name in names}
                found[one] = {name: reported[key] for name, key in keys.items() if key in reported}
        return found

    def _unreported(
        self, found: SeriesGaps, latest: Mapping[Series, LatestReported]
    ) -> Iterator[UnreportedWindow]:
        """Yield the windows of a series that have to be reported."""
        series, timeframe = found.series, found.series.timeframe
        if series.symbol not in self._symbols_of(timeframe):
            return
        dates = {name: window_dates(name) for name in self.names[timeframe]}
        try:
            status = self._index.windows_of(found, dates, self._now)
        except StoreError:
            return  # the gap sensor and `ktrdr status` report unreadable files
        known = self._known_of(timeframe)
        stale = set(self._stale(series, status, latest[series]))
        has_bars = any(one.rows for one in status.values())
        for name, one in status.items():
            partition = BarPartition(series.symbol, name)
            if not one.is_reportable(has_bars=has_bars):
                continue
            is_known = str(partition.key) in known
            if not is_known or name in stale:
                has_grown = is_known and one.state is WindowState.OPEN
                yield UnreportedWindow(timeframe, partition, one, has_grown)

    def _stale(
        self, series: Series, status: Mapping[str, WindowStatus], latest: LatestReported
    ) -> Iterable[str]:
        """Yield the newest windows that were reported but need a further event."""
        calendar = self._index.calendars.of(series.instrument)
        for name, known in latest.items():
            kind = needed_event(known, status[name], series, calendar=calendar, now=self._now)
            if kind is not None:
                yield name

    def _known_of(self, timeframe: Timeframe) -> set[str]:
        if timeframe not in self._known:
            self._known[timeframe] = self._history.materialized(self._instance, timeframe)
        return self._known[timeframe]

    def _symbols_of(self, timeframe: Timeframe) -> set[str]:
        if timeframe not in self._symbols:
            self._symbols[timeframe] = set(held_symbols(self._instance, timeframe))
        return self._symbols[timeframe]


@dataclass(frozen=True, slots=True)
class ComparedWindows:
    """What a comparison did: how many windows it marked as lost, and how many were filled again.

    ``lost_since`` has the windows that are waited for, and when each was first found lost.
    """

    marked: int
    filled: int
    lost_since: Mapping[str, str]

    def __str__(self) -> str:
        waiting = len(self.lost_since)
        counts = {
            "marked {} windows as failed that are no longer complete": self.marked,
            "materialized {} windows that are filled again": self.filled,
            "{} windows lack bars and are marked unless they are filled within minutes": waiting,
        }
        return "; ".join(text.format(count) for text, count in counts.items() if count)


def mark_and_fill(
    instance: dg.DagsterInstance,
    reporter: WindowReporter,
    found: ChangedStatuses,
    lost_since: Mapping[str, str],
    *,
    real_now: datetime,
) -> ComparedWindows:
    """Mark windows that have been lost for long enough, and materialize those that are filled.

    Args:
        instance: the Dagster instance with the history.
        reporter: reports the filled windows.
        found: the windows of the series that were compared; of others, what is known stays.
        lost_since: by name of a lost window, when it was first found lost.
        real_now: real time.
    """
    for one in found.filled:
        reporter.materialize(one.timeframe, one.partition, one.status)
    since = {
        name: at for name, at in lost_since.items() if LostWindow.series_of(name) in found.left
    }
    # Those that have been waited for must not be crowded out by others.
    lost = sorted(found.lost, key=lambda one: one.name not in lost_since)
    due: dict[Timeframe, list[LostWindow]] = {}
    for window in lost[: max(_REMEMBERED - len(since), 0)]:
        since[window.name] = lost_since.get(window.name, real_now.isoformat())
        if datetime.fromisoformat(since[window.name]) + window.grace <= real_now:
            due.setdefault(window.timeframe, []).append(window)
    marked = 0
    for timeframe, windows in due.items():
        if now_due := windows[: _MARKS - marked]:
            mark_lost(instance, timeframe, {one.partition: one.why for one in now_due})
            marked += len(now_due)
            for window in now_due:
                del since[window.name]
    return ComparedWindows(marked, len(found.filled), since)
