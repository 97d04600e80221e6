"""How a run that loads bars ends: its tags, its failure, and the materializations of its windows.

A run that cannot reach the gateway records that for all processes, so that no other run starts
until the gateway is reachable. All runs and sensors build the materialization of a window here.

Not here: the state of a window (``gaps.windows``).
"""

from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Final

import dagster as dg

from ktrdr_pipelines.clock import Clock
from ktrdr_pipelines.defs.partitions import BarPartition
from ktrdr_pipelines.defs.resources import IbResource
from ktrdr_pipelines.defs.runs.tags import CAUSE, KILLED, QUIET, REQUESTS, YES
from ktrdr_pipelines.defs.sensors.alert_sensor import GATEWAY, outage_of
from ktrdr_pipelines.domain.instruments import Instrument
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import GatewayError, IncompleteError, KtrdrError, StoreError
from ktrdr_pipelines.gaps.catalog_refresh import renew_catalog
from ktrdr_pipelines.gaps.index import GapIndex
from ktrdr_pipelines.gaps.windows import WindowState, WindowStatus

STATE = "state"
"""Metadata key of a window's state."""

_SATISFIES: Final = {
    state: set(WindowState) if state is WindowState.OPEN else {state} for state in WindowState
}
"""By state of a window, the reported states that need no new event: an open window changes all
the time."""


class RunOutcome:
    """Records how one run ended: in its tags, and what it shows of the gateway."""

    def __init__(
        self,
        context: dg.AssetExecutionContext | dg.OpExecutionContext,
        ib: IbResource,
        clock: Clock,
    ) -> None:
        self._instance, self._run_id = context.instance, context.run.run_id
        self._log = context.log
        self._ib, self._clock = ib, clock

    def renew_catalog(self, index: GapIndex, instruments: Sequence[Instrument]) -> None:
        """Refresh the catalog; log an error if that fails.

        One unreadable file of any symbol prevents the refresh, but the bars of this run are saved.
        The hourly run of the catalog asset fails in that case, not the runs of all symbols.
        """
        try:
            renew_catalog(index, instruments, self._clock.market_now())
        except StoreError as error:
            self._log.error("The bars are saved, the catalog is not up to date: %s", error)

    def failed(self, error: KtrdrError) -> dg.Failure:
        """Tag the run with the error that ended its load, and return its failure.

        If the error means that the gateway is unreachable, record that for all runs.
        """
        self._tag({CAUSE: type(error).__name__})
        if isinstance(error, GatewayError) and outage_of(type(error).__name__) == GATEWAY:
            with closing(self._ib.rate_limiter()) as gateway:
                gateway.note_absence(self._clock.real_now(), str(error))
        return dg.Failure(str(error), allow_retries=False)

    def incomplete(self, text: str, reports: Iterable[SeriesReport]) -> dg.Failure:
        """Tag the run as incomplete, and return its failure."""
        causes = [type(failure).__name__ for report in reports for failure in report.failures]
        shared = (cause for cause in causes if outage_of(cause) == GATEWAY)
        self._tag({CAUSE: next(shared, IncompleteError.__name__)})
        return dg.Failure(text, allow_retries=False)

    def interrupted(self) -> None:
        """Tag the run as killed if a signal ended it together with Dagster.

        Its series is not at fault and may be loaded again at once. A run that a user terminates
        has the status CANCELING instead, and its series waits.
        """
        run = self._instance.get_run_by_id(self._run_id)
        if run is not None and run.status is dg.DagsterRunStatus.STARTED:
            self._tag({CAUSE: KILLED})

    def succeeded(self, *, requests: int, windows: int) -> None:
        """Tag a successful run with its number of requests, or as quiet if it had no windows."""
        tags = {REQUESTS: str(requests)} if requests else {}
        self._tag(tags | ({} if windows else {QUIET: YES}))

    def _tag(self, tags: dict[str, str]) -> None:
        if tags:
            self._instance.add_run_tags(self._run_id, tags)


def materialization(
    timeframe: Timeframe, partition: BarPartition, status: WindowStatus
) -> dg.AssetMaterialization:
    """Return the materialization of an explained window, with its rows, state and interval."""
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
    """Return whether Dagster's latest event of a window agrees with its present state."""
    return told_states(instance, timeframe, [partition]).get(partition) in _SATISFIES[state]


def told_states(
    instance: dg.DagsterInstance, timeframe: Timeframe, partitions: Sequence[BarPartition]
) -> dict[BarPartition, WindowState | None]:
    """Return the state in the latest materialization of each window that has one.

    The value is None if that event has no state.
    """
    by_value = {state.value: state for state in WindowState}
    states: dict[BarPartition, WindowState | None] = {}
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
            value = event.metadata.get(STATE)
            states[partition] = by_value.get(str(value.value)) if value is not None else None
    return states
