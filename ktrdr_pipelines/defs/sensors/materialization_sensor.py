"""The report sensor: windows that are complete on disk and that Dagster does not know.

Bars also come by the command line, from a store that was moved here, by a rename; and a window
that was told of while it was open is finished one day. Some series a tick are looked at, in turn,
and what Dagster ought to know is told by events that belong to no run.

Not here: what may be said of a window (``gaps.windows``), what is told (``defs.runs.outcome``).
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
from ktrdr_pipelines.defs.runs.outcome import materialization, told_states
from ktrdr_pipelines.defs.sensors.universe_sensor import held_symbols
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.universe import Windows
from ktrdr_pipelines.errors import KtrdrError, StoreError
from ktrdr_pipelines.gaps.index import open_gap_index
from ktrdr_pipelines.gaps.windows import WindowIndex, WindowState, WindowStatus
from ktrdr_pipelines.ib.config import GatewayConfig

_EVERY_S: Final = 60
_SERIES: Final = 60
"""Series that a tick looks at: 4,000 are through in little more than an hour."""

_WINDOWS: Final = 300
"""Windows that a tick tells of, but for those of one series."""

_MOST_S: Final = 25.0
"""Seconds from which on a tick begins nothing more: Dagster ends one that takes a minute."""

_LATEST: Final = 3
"""Newest windows of a series whose telling is compared: they may have been told of while open."""

Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class Unknown:
    """A window that Dagster ought to be told of."""

    timeframe: Timeframe
    partition: BarPartition
    status: WindowStatus


def report_sensor(
    windows: Windows, clock: Clock = system_now, stopwatch: Callable[[], float] = time.monotonic
) -> dg.SensorDefinition:
    """Make the sensor that tells Dagster of complete windows that it does not know."""

    @dg.sensor(
        name="report_sensor",
        minimum_interval_seconds=_EVERY_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Marks windows as materialized that are complete on disk and that Dagster "
        "does not know, or knows as open although they are finished.",
    )
    def sensor(
        context: dg.SensorEvaluationContext, ib: IbResource, store: StoreResource
    ) -> dg.SensorResult:
        position = int(json.loads(context.cursor)["place"]) if context.cursor else 0
        try:
            listed = store.universe().series()
            gateway = GatewayConfig.from_settings(ib.settings()).gateway
            index = WindowIndex(open_gap_index(store.layout(), gateway))
        except KtrdrError as error:
            return dg.SensorResult(skip_reason=str(error), cursor=context.cursor)
        teller = Teller(context.instance, index, windows, ib.clock(clock).market_now())
        until_s = stopwatch() + _MOST_S
        told, looked_at = teller.tell(listed, position, is_late=lambda: stopwatch() > until_s)
        following = (position + looked_at) % max(len(listed), 1)
        text = (
            f"looked at {looked_at} of {len(listed)} series: told of {told} windows that were "
            "complete and not known so"
        )
        if told:
            context.log.info(text)
        return dg.SensorResult(skip_reason=text, cursor=json.dumps({"place": following}))

    return sensor


class Teller:
    """Finds windows that Dagster ought to know, and tells it of them."""

    def __init__(
        self, instance: dg.DagsterInstance, index: WindowIndex, windows: Windows, now: datetime
    ) -> None:
        self._instance, self._index, self._now = instance, index, now
        self._names: Mapping[Timeframe, Sequence[str]] = {
            one: windows_partitions(one, windows).get_partition_keys(now) for one in Timeframe
        }
        self._known: dict[Timeframe, set[str]] = {}
        self._symbols: dict[Timeframe, set[str]] = {}

    def tell(
        self, listed: Sequence[Series], position: int, is_late: Callable[[], bool]
    ) -> tuple[int, int]:
        """Tell of unknown windows, series after series from a place on, while there is time.

        Returns: how many windows were told of, and how many series were looked at.
        """
        told = looked_at = 0
        for step in range(min(_SERIES, len(listed))):
            if told >= _WINDOWS or is_late():
                break
            for one in self._unknown(listed[(position + step) % len(listed)]):
                if is_late():
                    return told, looked_at
                event = materialization(one.timeframe, one.partition, one.status)
                self._instance.report_runless_asset_event(event)
                told += 1
            looked_at += 1
        return told, looked_at

    def _unknown(self, series: Series) -> Iterator[Unknown]:
        """Give the windows of a series that Dagster ought to be told of."""
        timeframe = series.timeframe
        if series.symbol not in self._symbols_of(timeframe):
            return
        names = self._names[timeframe]
        try:
            status = self._index.status(series, {n: window_dates(n) for n in names}, self._now)
        except StoreError:
            return  # the gap sensor and `ktrdr status` say what cannot be read
        partitions = {name: BarPartition(series.symbol, name) for name in names}
        known = self._known_of(timeframe)
        stale = set(self._stale(timeframe, status, partitions))
        for name, partition in partitions.items():
            if not _may_be_told(status[name]):
                continue
            if str(partition.key) not in known or name in stale:
                yield Unknown(timeframe, partition, status[name])

    def _stale(
        self,
        timeframe: Timeframe,
        status: Mapping[str, WindowStatus],
        partitions: Mapping[str, BarPartition],
    ) -> Iterable[str]:
        """Name the newest windows that are finished and were told of as open."""
        latest = list(partitions)[-_LATEST:]
        told = told_states(self._instance, timeframe, [partitions[name] for name in latest])
        for name in latest:
            is_open = told.get(partitions[name]) is WindowState.OPEN
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


def _may_be_told(status: WindowStatus) -> bool:
    """Say whether a window counts as materialized; one that is open needs bars for that."""
    return status.is_explained and (status.state is not WindowState.OPEN or status.rows > 0)
