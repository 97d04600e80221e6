"""How a run that loads ends, and what Dagster is told of its windows.

How a run that loads ends: a new catalog, tags that say to sensors how it went.

A gateway that is away is noted for all runs.

What Dagster is told of a window: the same whoever tells it.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import dagster as dg

from ktrdr_pipelines.clock import Clock
from ktrdr_pipelines.defs.partitions import BarPartition
from ktrdr_pipelines.defs.runs.tags import CAUSE, KILLED, QUIET, REQUESTS, YES
from ktrdr_pipelines.defs.sensors.alert_sensor import GATEWAY, outage_of
from ktrdr_pipelines.domain.instruments import Instrument
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import GatewayError, IncompleteError, KtrdrError, StoreError
from ktrdr_pipelines.gaps.catalog_refresh import renew_catalog
from ktrdr_pipelines.gaps.index import GapIndex
from ktrdr_pipelines.gaps.windows import WindowState, WindowStatus
from ktrdr_pipelines.store.gateway_absence import AbsenceFile
from ktrdr_pipelines.store.layout import StoreLayout


class RunOutcome:
    """Says how one run ended."""

    def __init__(
        self,
        context: dg.AssetExecutionContext | dg.OpExecutionContext,
        layout: StoreLayout,
        clock: Clock,
    ) -> None:
        self._instance, self._run_id = context.instance, context.run.run_id
        self._log = context.log
        self._layout, self._clock = layout, clock

    def renew_catalog(self, index: GapIndex, instruments: Sequence[Instrument]) -> None:
        """Renew the catalog, and say where it cannot be.

        One unreadable file of any symbol speaks against that, and the run's bars are saved all the
        same: what fails by it is the catalog's own asset, hourly, not the runs of all symbols.
        """
        try:
            renew_catalog(index, instruments, self._clock.market_now())
        except StoreError as error:
            self._log.error("The bars are saved, the catalog is not up to date: %s", error)

    def failed(self, error: KtrdrError) -> dg.Failure:
        """Take note of what ended a load, and give the failure of the run."""
        self._tag({CAUSE: type(error).__name__})
        if isinstance(error, GatewayError) and outage_of(type(error).__name__) == GATEWAY:
            AbsenceFile(self._layout).note(self._clock.real_now(), str(error))
        return dg.Failure(str(error), allow_retries=False)

    def incomplete(self, text: str, reports: Iterable[SeriesReport]) -> dg.Failure:
        """Take note that something could not be had, and give the failure of the run."""
        causes = [type(failure).__name__ for report in reports for failure in report.failures]
        shared = (cause for cause in causes if outage_of(cause) == GATEWAY)
        self._tag({CAUSE: next(shared, IncompleteError.__name__)})
        return dg.Failure(text, allow_retries=False)

    def interrupted(self) -> None:
        """Take note that a signal ended the run with all of Dagster.

        It is no fault of the series, which may go on at once. A run that a person terminates is
        canceled, and its series waits.
        """
        run = self._instance.get_run_by_id(self._run_id)
        if run is not None and run.status is dg.DagsterRunStatus.STARTED:
            self._tag({CAUSE: KILLED})

    def succeeded(self, *, requests: int, windows: int) -> None:
        """Take note of a good end: what was asked, and of how many windows was told."""
        tags = {REQUESTS: str(requests)} if requests else {}
        self._tag(tags | ({} if windows else {QUIET: YES}))

    def _tag(self, tags: dict[str, str]) -> None:
        if tags:
            self._instance.add_run_tags(self._run_id, tags)


STATE = "state"


def materialization(
    timeframe: Timeframe, partition: BarPartition, status: WindowStatus
) -> dg.AssetMaterialization:
    """Tell of a window of which nothing is unexplained: its rows, its state, its interval."""
    return dg.AssetMaterialization(
        asset_key=["bars", timeframe.value],
        partition=str(partition.key),
        metadata={
            "dagster/partition_row_count": status.rows,
            STATE: status.state.value,
            "from": status.interval.start.isoformat(),
            "to": status.interval.end.isoformat(),
        },
    )


def is_told(
    instance: dg.DagsterInstance, timeframe: Timeframe, partition: BarPartition, state: WindowState
) -> bool:
    """Say whether Dagster has been told of a window as it is now: open, or finished."""
    return told_states(instance, timeframe, [partition]).get(partition) in _AS_GOOD_AS[state]


def told_states(
    instance: dg.DagsterInstance, timeframe: Timeframe, partitions: Sequence[BarPartition]
) -> dict[BarPartition, WindowState | None]:
    """Give what Dagster was told last of each window; None where that says no state."""
    told: dict[BarPartition, WindowState | None] = {}
    for partition in partitions:
        newest = instance.fetch_materializations(
            dg.AssetRecordsFilter(
                asset_key=dg.AssetKey(["bars", timeframe.value]),
                asset_partitions=[str(partition.key)],
            ),
            limit=1,
        ).records
        event = newest[0].asset_materialization if newest else None
        if event is not None:
            told[partition] = _state_of(event)
    return told


def _state_of(event: dg.AssetMaterialization) -> WindowState | None:
    told = event.metadata.get(STATE)
    values = {state.value: state for state in WindowState}
    return values.get(str(told.value)) if told is not None else None


_AS_GOOD_AS: Final = {
    state: set(WindowState) if state is WindowState.OPEN else {state} for state in WindowState
}
"""What may have been told where a window is in a state; an open one changes all the time."""
