"""What all runs that load bars do: load in a thread, report windows, and record how they ended.

A run that cannot reach the gateway records that for all processes, so that no other run starts
until the gateway is reachable. All runs and sensors build the materialization of a window here.

Not here: what a run loads (``defs.runs.bars_run``, ``defs.runs.tail_run``), the state of a window
(``gaps.windows``), whether it needs an event (``defs.runs.reported_windows``).
"""

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from typing import Final

import dagster as dg
from dagster._core.events import DagsterEvent, DagsterEventBatchMetadata

from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.defs.partitions import BarPartition
from ktrdr_pipelines.defs.resources import IbResource, StoreResource
from ktrdr_pipelines.defs.runs.active_runs import is_last_to_load
from ktrdr_pipelines.defs.runs.loader_thread import LoaderThread
from ktrdr_pipelines.defs.runs.reported_windows import AS_OF, ROWS, STATE
from ktrdr_pipelines.defs.runs.tags import CAUSE, KILLED, QUIET, REQUESTS, YES
from ktrdr_pipelines.defs.sensors.alert_sensor import GATEWAY, outage_of
from ktrdr_pipelines.domain.adjustments import Adjustment
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import GatewayError, IncompleteError, KtrdrError, StoreError
from ktrdr_pipelines.gaps.windows import WindowStatus
from ktrdr_pipelines.settings import settings_sources
from ktrdr_pipelines.sync.runner import Job

WITHOUT_EVENTS: Final = {"__source_asset_observation__": True}
"""Metadata of a result for which Dagster records no materialization: the run has recorded one for
each window as soon as it was finished, and the events of a result come only at the end of the step.
Source: ``_log_materialization_or_observation_events_for_asset`` of Dagster 1.13.28. A Dagster
without it would record a second event of each window."""

_NAMED_AT_MOST: Final = 20
_CATALOG_S: Final = 600.0

ExplainedWindow = tuple[BarPartition, WindowStatus, datetime]
"""A window that is explained, its status, and the market time of the status."""


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

    def materialize(self, timeframe: Timeframe, windows: Iterable[ExplainedWindow]) -> None:
        """Report windows that are explained, in one commit where Dagster's storage can.

        Args:
            timeframe: that of the windows.
            windows: each with its status, and the market time of that.
        """
        listed = list(windows)
        adjustments = self.workspace.ledger.adjustments
        known = {one: adjustments.of(one) for one in {part.symbol for part, _, _ in listed}}
        self._materialized += len(listed)
        self._report(
            materialization(timeframe, partition, status, known[partition.symbol], now=now)
            for partition, status, now in listed
        )

    def report_growth(self, timeframe: Timeframe, windows: Iterable[ExplainedWindow]) -> None:
        """Report open windows that have grown, as ``materialize`` does; the run stays quiet."""
        self._report(growth(timeframe, *one) for one in windows)

    def _report(self, events: Iterable[dg.AssetMaterialization]) -> None:
        """Log events as ``context.log_event`` does, but as one batch."""
        listed, batch = list(events), uuid.uuid4().hex
        step = self._context.get_step_execution_context()
        for number, one in enumerate(listed, start=1):
            part_of = DagsterEventBatchMetadata(batch, is_end=number == len(listed))
            DagsterEvent.asset_materialization(step, one, part_of)

    def log_summaries(self, reports: Iterable[SeriesReport]) -> None:
        """Log how the load of each series ended, as one entry."""
        if lines := [report.summary for report in reports]:
            self._log.info("\n".join(lines))

    @property
    def has_materialized(self) -> bool:
        """Whether the run has materialized a window that is new or finished."""
        return self._materialized > 0

    @property
    def is_catalog_old(self) -> bool:
        """Whether the tables of the catalog are ten minutes old, or there is none."""
        catalog = self.workspace.layout.catalog
        return not catalog.exists() or time.time() - catalog.stat().st_mtime > _CATALOG_S

    def renew_catalog(self) -> None:
        """Refresh the catalog; log an error if that fails.

        One unreadable file of any symbol prevents the refresh, but the bars of this run are saved.
        The hourly run of the catalog asset fails in that case, not the runs of all symbols.
        """
        try:
            self.workspace.renew_catalog()
        except StoreError as error:
            self._log.error("The bars are saved, the catalog is not up to date: %s", error)

    def renew_catalog_if_last(self, reports: Iterable[SeriesReport] | None) -> None:
        """Refresh the catalog if no other run of the backfill follows, and any sent requests.

        Other runs refresh one that has grown old: the last may be killed or canceled. ``reports``
        is None if the load ended with an error.
        """
        is_new = reports is None or any(one.requests for one in reports)
        is_last = is_last_to_load(self._context.instance, self._context.run, is_new=is_new)
        if is_last or self.is_catalog_old:
            self.renew_catalog()

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
        """Tag a successful run with its number of requests, or as quiet if it had no windows.

        Events of windows that have merely grown do not count: later ones replace them.
        """
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
    *,
    now: datetime,
) -> dg.AssetMaterialization:
    """Return the materialization of an explained window, with its rows, state and interval.

    It also has how many of the symbol's adjustments are in force, and the last of them. ``now`` is
    the market time of the status.
    """
    return dg.AssetMaterialization(
        asset_key=["bars", timeframe.value],
        partition=str(partition.key),
        metadata={
            ROWS: status.rows,
            STATE: status.state.value,
            AS_OF: _seconds(now),
            "from": status.interval.start.isoformat(),
            "to": status.interval.end.isoformat(),
            **_adjustment_metadata(adjustments),
        },
    )


def growth(
    timeframe: Timeframe, partition: BarPartition, status: WindowStatus, now: datetime
) -> dg.AssetMaterialization:
    """Return the event of an open window that has grown: short, as there are many of them."""
    return dg.AssetMaterialization(
        asset_key=["bars", timeframe.value],
        partition=str(partition.key),
        metadata={ROWS: status.rows, STATE: status.state.value, AS_OF: _seconds(now)},
    )


def _seconds(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")


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
