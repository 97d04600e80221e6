"""A run over partitions of one timeframe: loads their bars and materializes finished windows.

Not here: the loader thread (``defs.runs.loader_thread``), the state of a window
(``gaps.windows``).
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import reduce
from operator import or_

import dagster as dg

from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.defs.partitions import BarPartition, window_dates
from ktrdr_pipelines.defs.resources import IbResource, StoreResource
from ktrdr_pipelines.defs.runs.loader_thread import LoaderThread
from ktrdr_pipelines.defs.runs.outcome import RunOutcome, materialization
from ktrdr_pipelines.defs.runs.tags import KIND, RunKind
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.jobs import RequestedBy
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import KtrdrError, StoreError
from ktrdr_pipelines.gaps.catalog_refresh import is_catalog_due
from ktrdr_pipelines.gaps.index import open_gap_index
from ktrdr_pipelines.gaps.windows import Dates, WindowIndex, WindowState, WindowStatus, from_start
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.ledger.ledger import open_calendars, open_ledger
from ktrdr_pipelines.sync.runner import Job

_NAMED_AT_MOST = 20


class BarsRun:
    """Loads partitions of one timeframe, and materializes each window once it is explained."""

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        timeframe: Timeframe,
        *,
        ib: IbResource,
        store: StoreResource,
    ) -> None:
        self._context = context
        self._timeframe = timeframe
        self._ib = ib
        self._layout = store.layout()
        self._universe = store.universe()
        ledger = open_ledger(self._layout)
        self._store = BarStore(self._layout, ledger)
        self._calendars = open_calendars(ledger)
        self._open: dict[Series, dict[BarPartition, Interval]] = {}
        self._is_automatic = context.run.tags.get(KIND) == RunKind.GAP
        self._outcome = RunOutcome(context, ib, ib.clock())
        self._materialized = 0

    def load(self, partitions: Sequence[BarPartition]) -> None:
        """Load the partitions.

        Raises:
            dg.Failure: the load failed, or windows stayed unexplained; the text names them and why.
        """
        try:
            try:
                reports, failed = self._load(partitions)
            finally:
                self._refresh_catalog()
        except KtrdrError as error:
            raise self._outcome.failed(error) from error
        except dg.DagsterExecutionInterruptedError:
            self._outcome.interrupted()
            raise
        if failed:
            raise self._outcome.incomplete(_failure_text(failed), reports)
        requests = sum(report.requests for report in reports)
        self._outcome.succeeded(requests=requests, windows=self._materialized)

    def _load(self, partitions: Sequence[BarPartition]) -> tuple[list[SeriesReport], list[str]]:
        """Return the reports of the load, and a line for each window that stays unexplained."""
        known = [one for one in partitions if one.symbol in self._universe.instruments]
        # Grouped by series: chunks are planned over everything that a run wants of one.
        self._open = defaultdict(dict)
        for partition in known:
            series = Series(self._universe.instrument(partition.symbol), self._timeframe)
            calendar = self._calendars.of(series.instrument)
            first, end = window_dates(partition.window)
            interval = interval_between(calendar, self._timeframe, first, end)
            self._open[series][partition] = interval
        reports = self._drive()
        failed = [line for report in reports for line in self._finish(report)]
        return reports, [*self._left(set(partitions) - set(known)), *failed]

    def _left(self, partitions: Iterable[BarPartition]) -> list[str]:
        """Return a failure line for each partition whose symbol is not in the universe any more.

        In a run of the gap sensor these lines are only logged.
        """
        file = self._universe.name
        lines = sorted(
            f"{one.symbol} {one.window}: the symbol is not in {file}" for one in partitions
        )
        if not self._is_automatic:
            return lines
        for line in lines:
            self._context.log.info(line)
        return []

    def skip(self, reason: str) -> None:
        """End the run without a load.

        A run of the gap sensor succeeds, because the sensor requests again what is missing.

        Raises:
            dg.Failure: a user launched the run.
        """
        if not self._is_automatic:
            raise dg.Failure(reason, allow_retries=False)
        self._context.log.info(reason)
        self._outcome.succeeded(requests=0, windows=0)

    def _drive(self) -> list[SeriesReport]:
        """Run the loader, materializing windows as they are finished, and return its reports."""
        requested_by = RequestedBy.SENSOR if self._is_automatic else RequestedBy.PERSON
        jobs = []
        for series, windows in self._open.items():
            calendar = self._calendars.of(series.instrument)
            parts = (from_start(series, calendar, interval) for interval in windows.values())
            wanted = reduce(or_, parts, IntervalSet())
            jobs.append(Job(series, wanted=wanted, requested_by=requested_by))
        operation = "gap_filler" if self._is_automatic else "batch"
        thread = LoaderThread(
            lambda progress: self._ib.manager(self._layout, operation=operation, progress=progress),
            jobs,
        )
        with thread:
            for changed, messages in thread.changes():
                for message in messages:
                    self._context.log.info(message)
                for series in changed:
                    self._report_finished(series)
                # A retry of a run that Dagster has given up would request everything twice.
                run = self._context.instance.get_run_by_id(self._context.run.run_id)
                if run is not None and run.is_finished:
                    raise dg.Failure("Dagster has already ended this run", allow_retries=False)
            reports = thread.reports()
        self._calendars = open_calendars(self._store.ledger)
        return reports

    def _report_finished(self, series: Series) -> None:
        """Materialize the windows of a series that are complete, during the load."""
        windows = self._open[series]
        now = self._ib.clock().market_now()
        status = self._window_index().status(series, _dates(windows), now)
        for partition in list(windows):
            one = status[partition.window]
            if one.rows and one.state is WindowState.COMPLETE:
                self._materialize(partition, one)
                del windows[partition]

    def _finish(self, report: SeriesReport) -> list[str]:
        """Materialize the explained windows that are left; return a line for each other one."""
        self._context.log.info(report.summary)
        windows = self._open[report.series]
        now = self._ib.clock().market_now()
        try:
            status = self._window_index().status_after(report, _dates(windows), now)
        except StoreError as error:
            return [f"{one.symbol} {one.window}: {error}" for one in windows]
        failed: list[str] = []
        for partition in windows:
            one = status[partition.window]
            if one.is_explained:
                self._materialize(partition, one)
            else:
                failed.append(f"{partition.symbol} {partition.window}: {_reason(report, one)}")
        return failed

    def _window_index(self) -> WindowIndex:
        """Return an index over the present state of the ledger."""
        gateway = GatewayConfig.from_settings(self._ib.settings()).gateway
        return WindowIndex(open_gap_index(self._layout, gateway))

    def _materialize(self, partition: BarPartition, status: WindowStatus) -> None:
        self._materialized += 1
        self._context.log_event(materialization(self._timeframe, partition, status))

    def _refresh_catalog(self) -> None:
        """Refresh the catalog; in runs of the gap sensor only as often as its size allows."""
        instruments, real_now = list(self._universe.instruments.values()), system_now()
        if self._is_automatic and not is_catalog_due(self._layout, instruments, real_now):
            return
        gateway = GatewayConfig.from_settings(self._ib.settings()).gateway
        self._outcome.renew_catalog(open_gap_index(self._layout, gateway), instruments)


def _dates(windows: Iterable[BarPartition]) -> dict[str, Dates]:
    return {one.window: window_dates(one.window) for one in windows}


def _reason(report: SeriesReport, status: WindowStatus) -> str:
    if report.error is not None:
        return str(report.error)
    bounds = status.unexplained.bounds
    parts = len(status.unexplained)
    missing = f"missing {bounds}" if parts == 1 else f"{parts} intervals missing within {bounds}"
    missing += f", {status.why}" if status.why else ""
    failures = "; ".join(dict.fromkeys(str(failure) for failure in report.failures))
    return f"{missing} ({failures})" if failures else missing


def _failure_text(failed: Sequence[str]) -> str:
    named = "\n".join(failed[:_NAMED_AT_MOST])
    more = len(failed) - _NAMED_AT_MOST
    rest = f"\nand {more} more" if more > 0 else ""
    what = "1 window remains" if len(failed) == 1 else f"{len(failed)} windows remain"
    return (
        f"{what} unexplained; all others are materialized:\n{named}{rest}\n"
        "The bars received so far are saved. Hint: Launch the failed windows again to request the "
        "rest."
    )
