"""A run over partitions of one timeframe: loads their bars and materializes finished windows.

Not here: what all runs share (``defs.runs.outcome``), the loader thread
(``defs.runs.loader_thread``), the state of a window (``gaps.windows``).
"""

import traceback
from collections import defaultdict
from collections.abc import Iterable, Sequence

import dagster as dg

from ktrdr_pipelines.defs.partitions import BarPartition, window_dates
from ktrdr_pipelines.defs.resources import IbResource, StoreResource
from ktrdr_pipelines.defs.runs.loader_thread import drive
from ktrdr_pipelines.defs.runs.outcome import ExplainedWindow, LoadRun, first_lines
from ktrdr_pipelines.defs.runs.tags import KIND, RunKind
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.planning.jobs import RequestedBy
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import StoreError
from ktrdr_pipelines.gaps.windows import Dates, WindowState, WindowStatus, after_load, wanted_in
from ktrdr_pipelines.sync.runner import Job


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
        self._run = LoadRun(context, ib, store)
        self._workspace = self._run.workspace
        self._universe = self._workspace.universe
        self._calendars = self._workspace.gap_index().calendars
        self._open: dict[Series, list[BarPartition]] = {}
        self._failed: list[str] = []
        self._is_automatic = context.run.tags.get(KIND) == RunKind.GAP

    def load(self, partitions: Sequence[BarPartition]) -> None:
        """Load the partitions.

        Raises:
            dg.Failure: the load failed, or windows stayed unexplained; the text names them and why.
        """
        try:
            with self._run.failures():
                reports = None
                try:
                    reports, failed = self._load(partitions)
                finally:
                    self._refresh_catalog(reports)
        except dg.DagsterExecutionInterruptedError as error:
            # A query that the signal interrupted may be open in a frame, and lock Dagster's runs.
            traceback.clear_frames(error.__traceback__)
            self._run.interrupted()
            raise
        if failed:
            raise self._run.incomplete(_failure_text(failed), reports)
        self._run.succeeded(reports)

    def _load(self, partitions: Sequence[BarPartition]) -> tuple[list[SeriesReport], list[str]]:
        """Return the reports of the load, and a line for each window that stays unexplained."""
        known = [one for one in partitions if one.symbol in self._universe.instruments]
        # Grouped by series: chunks are planned over everything that a run wants of one.
        self._open = defaultdict(list)
        for partition in known:
            series = Series(self._universe.instrument(partition.symbol), self._timeframe)
            self._open[series].append(partition)
        self._report_complete(self._open)
        reports = self._drive()
        self._run.log_summaries(reports)
        by_series = {one.series: one for one in reports}
        self._finish([by_series.get(one, SeriesReport(one)) for one in list(self._open)])
        return reports, [*self._left(set(partitions) - set(known)), *self._failed]

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
        self._run.succeeded()

    def _drive(self) -> list[SeriesReport]:
        """Run the loader, materializing windows as they are finished, and return its reports.

        A series that wants nothing any more, or nothing since the universe gives it a later start,
        has no report.
        """
        requested_by = RequestedBy.SENSOR if self._is_automatic else RequestedBy.PERSON
        jobs = []
        for series, windows in self._open.items():
            calendar = self._calendars.of(series.instrument)
            if wanted := wanted_in(series, calendar, _dates(windows).values()):
                jobs.append(Job(series, wanted=wanted, requested_by=requested_by))
        if not jobs:
            return []
        operation = "gap_filler" if self._is_automatic else "batch"
        loader = self._run.loader(jobs, operation)
        return drive(loader, self._context, self._report_complete, self._finish)

    def _report_complete(self, listed: Iterable[Series]) -> None:
        """Materialize the windows that are complete, before and during the load."""
        index, now = self._workspace.gap_index(), self._workspace.now
        complete: list[ExplainedWindow] = []
        for found in index.series_gaps([one for one in listed if self._open.get(one)], now):
            if found.error is not None:
                continue  # the load reports it
            windows = self._open[found.series]
            status = index.windows_of(found, _dates(windows), now)
            for partition in list(windows):
                one = status[partition.window]
                if one.rows and one.state is WindowState.COMPLETE:
                    complete.append((partition, one, now))
                    windows.remove(partition)
        self._run.materialize(self._timeframe, complete)

    def _finish(self, reports: Iterable[SeriesReport]) -> None:
        """Materialize what is left of series that have ended, and remember what is unexplained.

        That is done as each ends: a run that is killed keeps the windows of those before.
        """
        index = self._workspace.gap_index()
        explained: list[ExplainedWindow] = []
        for report in reports:
            series, windows = report.series, self._open.pop(report.series, [])
            now = report.now or self._workspace.now
            try:
                status = after_load(index.windows(series, _dates(windows), now), report)
            except StoreError as error:
                self._failed += (f"{one.symbol} {one.window}: {error}" for one in windows)
                continue
            for partition in windows:
                one = status[partition.window]
                if one.is_explained:
                    explained.append((partition, one, now))
                else:
                    why = _reason(report, one)
                    self._failed.append(f"{partition.symbol} {partition.window}: {why}")
        self._run.materialize(self._timeframe, explained)

    def _refresh_catalog(self, reports: Iterable[SeriesReport] | None) -> None:
        """Refresh the catalog, which shows new bars without that, after the last run of a backfill.

        In runs of the gap sensor, only as often as its size allows. ``reports`` is None if the load
        ended with an error.
        """
        if not self._is_automatic:
            self._run.renew_catalog_if_last(reports)
        elif self._workspace.is_catalog_due():
            self._run.renew_catalog()


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
    what = "1 window remains" if len(failed) == 1 else f"{len(failed)} windows remain"
    return (
        f"{what} unexplained; all others are materialized:\n{first_lines(failed)}\n"
        "The bars received so far are saved. Hint: Launch the failed windows again to request the "
        "rest."
    )
