"""The report sensor: materializes windows that are complete on disk but not in Dagster's history.

Bars also arrive through the command line, in a store that was moved here, or by a rename; and a
window that was materialized while open is finished later. Each tick examines some series in turn,
and reports windows by events that belong to no run.

Not here: the state of a window (``gaps.windows``), its event (``defs.runs.outcome``).
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import dagster as dg

from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.defs.assets import bars_key
from ktrdr_pipelines.defs.partitions import BarPartition, window_dates, windows_partitions
from ktrdr_pipelines.defs.resources import IbResource, StoreResource
from ktrdr_pipelines.defs.runs.outcome import materialization, reported_states
from ktrdr_pipelines.defs.sensors.universe_sensor import held_symbols
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.universe import Windows
from ktrdr_pipelines.errors import KtrdrError, StoreError
from ktrdr_pipelines.gaps.index import GapIndex
from ktrdr_pipelines.gaps.windows import WindowState, WindowStatus

_EVERY_S: Final = 60
_SERIES: Final = 60
"""Series that a tick examines: a round over 4,000 takes little more than an hour."""

_WINDOWS: Final = 300
"""Reported windows after which a tick examines no further series."""

_MOST_S: Final = 25.0
"""Seconds after which a tick starts no further work: Dagster ends a tick that takes a minute."""

_LATEST: Final = 3
"""Newest windows of a series whose events are compared: they may have been reported while open."""

Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class UnreportedWindow:
    """A window that has to be reported to Dagster."""

    timeframe: Timeframe
    partition: BarPartition
    status: WindowStatus


def report_sensor(
    windows: Windows, clock: Clock = system_now, stopwatch: Callable[[], float] = time.monotonic
) -> dg.SensorDefinition:
    """Return the sensor that reports complete windows which Dagster does not know."""

    @dg.sensor(
        name="report_sensor",
        minimum_interval_seconds=_EVERY_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Materializes windows that are complete on disk but not materialized in "
        "Dagster, or materialized as open although they are finished.",
    )
    def sensor(
        context: dg.SensorEvaluationContext, ib: IbResource, store: StoreResource
    ) -> dg.SensorResult:
        position = int(json.loads(context.cursor)["place"]) if context.cursor else 0
        try:
            workspace = ib.workspace(store, clock)
            listed, index = workspace.universe.series(), workspace.gap_index()
        except KtrdrError as error:
            return dg.SensorResult(skip_reason=str(error), cursor=context.cursor)
        reporter = WindowReporter(context.instance, index, windows, workspace.now)
        until_s = stopwatch() + _MOST_S
        reported, checked = reporter.report(listed, position, is_late=lambda: stopwatch() > until_s)
        following = (position + checked) % max(len(listed), 1)
        text = f"examined {checked} of {len(listed)} series; reported {reported} windows"
        if reported:
            context.log.info(text)
        return dg.SensorResult(skip_reason=text, cursor=json.dumps({"place": following}))

    return sensor


class WindowReporter:
    """Finds windows that have to be reported to Dagster, and reports them."""

    def __init__(
        self, instance: dg.DagsterInstance, index: GapIndex, windows: Windows, now: datetime
    ) -> None:
        self._instance, self._index, self._now = instance, index, now
        self._names: Mapping[Timeframe, Sequence[str]] = {
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
        for step in range(min(_SERIES, len(listed))):
            if reported >= _WINDOWS or is_late():
                break
            for one in self._unreported(listed[(position + step) % len(listed)]):
                if is_late():
                    return reported, checked
                known = self._adjustments.get(one.partition.symbol, ())
                event = materialization(one.timeframe, one.partition, one.status, known)
                self._instance.report_runless_asset_event(event)
                reported += 1
            checked += 1
        return reported, checked

    def _unreported(self, series: Series) -> Iterator[UnreportedWindow]:
        """Yield the windows of a series that have to be reported."""
        timeframe = series.timeframe
        if series.symbol not in self._symbols_of(timeframe):
            return
        names = self._names[timeframe]
        try:
            status = self._index.windows(series, {n: window_dates(n) for n in names}, self._now)
        except StoreError:
            return  # the gap sensor and `ktrdr status` report unreadable files
        partitions = {name: BarPartition(series.symbol, name) for name in names}
        known = self._known_of(timeframe)
        stale = set(self._stale(timeframe, status, partitions))
        for name, partition in partitions.items():
            one = status[name]
            # An open window counts as materialized only once it has bars.
            if not one.is_explained or (one.state is WindowState.OPEN and not one.rows):
                continue
            if str(partition.key) not in known or name in stale:
                yield UnreportedWindow(timeframe, partition, one)

    def _stale(
        self,
        timeframe: Timeframe,
        status: Mapping[str, WindowStatus],
        partitions: Mapping[str, BarPartition],
    ) -> Iterable[str]:
        """Yield the newest windows that are finished but were reported as open."""
        latest = list(partitions)[-_LATEST:]
        reported = reported_states(self._instance, timeframe, [partitions[n] for n in latest])
        for name in latest:
            is_open = reported.get(partitions[name]) is WindowState.OPEN
            if is_open and status[name].state is not WindowState.OPEN:
                yield name

    def _known_of(self, timeframe: Timeframe) -> set[str]:
        if timeframe not in self._known:
            found = self._instance.get_materialized_partitions(bars_key(timeframe))
            self._known[timeframe] = set(found)
        return self._known[timeframe]

    def _symbols_of(self, timeframe: Timeframe) -> set[str]:
        if timeframe not in self._symbols:
            self._symbols[timeframe] = set(held_symbols(self._instance, timeframe))
        return self._symbols[timeframe]
