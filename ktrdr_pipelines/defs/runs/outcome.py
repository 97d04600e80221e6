"""What all runs that load bars do: load in a thread, report windows, and record how they ended.

A run that cannot reach the gateway records that for all processes, so that no other run starts
until the gateway is reachable. All runs and sensors build the materialization of a window here.

Not here: what a run loads (``defs.runs.bars_run``, ``defs.runs.tail_run``), the state of a window
(``gaps.windows``).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from typing import Final

import dagster as dg

from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.defs.partitions import BarPartition
from ktrdr_pipelines.defs.resources import IbResource, StoreResource
from ktrdr_pipelines.defs.runs.loader_thread import LoaderThread
from ktrdr_pipelines.defs.runs.tags import CAUSE, KILLED, QUIET, REQUESTS, YES
from ktrdr_pipelines.defs.sensors.alert_sensor import GATEWAY, outage_of
from ktrdr_pipelines.domain.adjustments import Adjustment
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import GatewayError, IncompleteError, KtrdrError, StoreError
from ktrdr_pipelines.gaps.windows import WindowState, WindowStatus
from ktrdr_pipelines.settings import settings_sources
from ktrdr_pipelines.sync.runner import Job

STATE = "state"
"""Metadata key of a window's state."""

WITHOUT_EVENTS: Final = {"__source_asset_observation__": True}
"""Metadata of a result for which Dagster records no materialization: the run has recorded one for
each window as soon as it was finished, and the events of a result come only at the end of the step.
Source: ``_log_materialization_or_observation_events_for_asset`` of Dagster 1.13.28. A Dagster
without it would record a second event of each window."""

_NAMED_AT_MOST: Final = 20

_SATISFIES: Final = {
    state: set(WindowState) if state is WindowState.OPEN else {state} for state in WindowState
}
"""By state of a window, the reported states that need no new event: an open window changes all
the time."""


class LoadRun:
    """One Dagster run that loads bars: its workspace, its load, its reports, and how it ends.

    Args:
        context: that of the run.
        ib: the gateway.
        store: the store.
        real: returns real time.
    """

    def __init__(
        self,
        context: dg.AssetExecutionContext | dg.OpExecutionContext,
        ib: IbResource,
        store: StoreResource,
        real: Callable[[], datetime] = system_now,
    ) -> None:
        self.workspace = ib.workspace(store, real)
        self._context, self._ib = context, ib
        self._log = context.log
        self._materialized = 0

    def loader(self, jobs: Sequence[Job], operation: str) -> LoaderThread:
        """Return the thread that loads jobs with the client ids of an operation."""
        sources = settings_sources(self.workspace.settings)
        self._log.info(
            "gateway %s (host: %s, port: %s)",
            self.workspace.gateway_config.gateway,
            sources["ib_host"],
            sources["ib_port"],
        )
        return LoaderThread(
            lambda progress: self._ib.manager(
                self.workspace, operation=operation, progress=progress
            ),
            jobs,
        )

    def materialize(
        self, timeframe: Timeframe, partition: BarPartition, status: WindowStatus
    ) -> None:
        """Report a window that is explained to Dagster."""
        self._materialized += 1
        known = self.workspace.ledger.adjustments.of(partition.symbol)
        self._context.log_event(materialization(timeframe, partition, status, known))

    @property
    def has_materialized(self) -> bool:
        """Whether the run has materialized a window."""
        return self._materialized > 0

    def renew_catalog(self) -> None:
        """Refresh the catalog; log an error if that fails.

        One unreadable file of any symbol prevents the refresh, but the bars of this run are saved.
        The hourly run of the catalog asset fails in that case, not the runs of all symbols.
        """
        try:
            self.workspace.renew_catalog()
        except StoreError as error:
            self._log.error("The bars are saved, the catalog is not up to date: %s", error)

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Tag the run with the error that ends its load, and fail it.

        If the error means that the gateway is unreachable, record that for all runs.

        Raises:
            dg.Failure: in place of the project's own error.
        """
        try:
            yield
        except KtrdrError as error:
            self._tag({CAUSE: type(error).__name__})
            if isinstance(error, GatewayError) and outage_of(type(error).__name__) == GATEWAY:
                with closing(self._ib.rate_limiter(self.workspace)) as gateway:
                    gateway.note_absence(self.workspace.clock.real_now(), str(error))
            raise dg.Failure(str(error), allow_retries=False) from error

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
        run = self._context.instance.get_run_by_id(self._context.run.run_id)
        if run is not None and run.status is dg.DagsterRunStatus.STARTED:
            self._tag({CAUSE: KILLED})

    def succeeded(self, reports: Iterable[SeriesReport] = ()) -> None:
        """Tag a successful run with its number of requests, or as quiet if it had no windows."""
        requests = sum(report.requests for report in reports)
        tags = {REQUESTS: str(requests)} if requests else {}
        self._tag(tags | ({} if self._materialized else {QUIET: YES}))

    def _tag(self, tags: dict[str, str]) -> None:
        if tags:
            self._context.instance.add_run_tags(self._context.run.run_id, tags)


def first_lines(lines: Sequence[str]) -> str:
    """Return the first lines, and how many more there are."""
    more = len(lines) - _NAMED_AT_MOST
    return "\n".join(lines[:_NAMED_AT_MOST]) + (f"\nand {more} more" if more > 0 else "")


def materialization(
    timeframe: Timeframe,
    partition: BarPartition,
    status: WindowStatus,
    adjustments: Sequence[Adjustment] = (),
) -> dg.AssetMaterialization:
    """Return the materialization of an explained window, with its rows, state and interval.

    It also has how many of the symbol's adjustments are in force, and the last of them.
    """
    return dg.AssetMaterialization(
        asset_key=["bars", timeframe.value],
        partition=str(partition.key),
        metadata={
            "dagster/partition_row_count": status.rows,
            STATE: status.state.value,
            "from": status.interval.start.isoformat(),
            "to": status.interval.end.isoformat(),
            **_adjustment_metadata(adjustments),
        },
    )


def _adjustment_metadata(adjustments: Sequence[Adjustment]) -> dict[str, int | float | str]:
    in_force = [one for one in adjustments if one.removed_at is None]
    last = {
        name: value
        for one in in_force[-1:]
        for name, value in (
            ("last_adjustment_ratio", one.ratio),
            ("last_adjustment_effective", one.effective.isoformat()),
        )
    }
    return {"adjustments": len(in_force), **last}


def is_reported(
    instance: dg.DagsterInstance, timeframe: Timeframe, partition: BarPartition, state: WindowState
) -> bool:
    """Return whether Dagster's latest event of a window agrees with its present state."""
    return reported_states(instance, timeframe, [partition]).get(partition) in _SATISFIES[state]


def reported_states(
    instance: dg.DagsterInstance, timeframe: Timeframe, partitions: Sequence[BarPartition]
) -> dict[BarPartition, WindowState | None]:
    """Return the state that the latest materialization of each window has, if there is one.

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
