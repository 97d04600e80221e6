"""The job ``load_bars``: loads several timeframes at once, as ``ktrdr load`` does.

Assets with different partitions offer no ranges when they are materialized together. The job is an
op with a configuration, not a job over the assets: Dagster loses the range of partitions there
(``defs.assets.refuse_lost_range``). It materializes the windows of all timeframes itself.

Not here: which series and intervals a configuration means (``app.selection``,
``domain.planning.date_bounds``).
"""

import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Final, Literal

import dagster as dg
from pydantic import Field

from ktrdr_pipelines.app.selection import named_jobs
from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.defs.assets import bars_key
from ktrdr_pipelines.defs.partitions import BarPartition, window_dates, windows_partitions
from ktrdr_pipelines.defs.resources import IbResource, StoreResource
from ktrdr_pipelines.defs.runs.active_runs import held_symbols
from ktrdr_pipelines.defs.runs.loader_thread import drive
from ktrdr_pipelines.defs.runs.outcome import ExplainedWindow, LoadRun, first_lines
from ktrdr_pipelines.defs.runs.tags import POOL, SHOWN_SYMBOLS, SHOWN_WINDOWS, TIMEFRAME
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.planning.date_bounds import parse_date_range
from ktrdr_pipelines.domain.planning.jobs import Mode
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import StoreError
from ktrdr_pipelines.gaps.index import GapIndex, SeriesGaps
from ktrdr_pipelines.gaps.windows import WindowState, WindowStatus
from ktrdr_pipelines.sync.runner import Job

LOAD_JOB: Final = "load_bars"
LOAD_OP: Final = "load"
_SHOWN_AT_MOST: Final = 8


class LoadBarsConfig(dg.Config):
    """What to load; without any value, all that the universe lists."""

    symbols: list[str] = Field(
        default_factory=list,
        description="Symbols of the universe, such as [AAPL, MSFT]. Without any: all.",
    )
    timeframes: list[str] = Field(
        default_factory=list,
        description="Timeframes, out of 1m 5m 15m 30m 1h 4h 1d 1w. Without any: those that the "
        "universe lists for each symbol.",
    )
    start: str | None = Field(
        default=None,
        description="First session date to load, such as 2024-01-05, or an instant with a zone. "
        "Without it: the start that the universe gives.",
    )
    end: str | None = Field(
        default=None,
        description="First session date not to load, or an instant. Without it: now.",
    )
    mode: Literal["full", "tail", "backfill"] = Field(
        default="full",
        description="full: everything in the range that is missing; tail: from the newest bar on; "
        "backfill: up to the oldest bar.",
    )


@dg.op(
    name=LOAD_OP,
    pool=POOL,
    description="Loads missing bars of several symbols and timeframes, long timeframes first. "
    "Ranges that failed earlier are requested at once.",
)
def load(
    context: dg.OpExecutionContext, config: LoadBarsConfig, ib: IbResource, store: StoreResource
) -> None:
    """Load what the configuration names."""
    LoadBarsRun(context, ib=ib, store=store).load(config)


@dg.job(
    name=LOAD_JOB,
    description="Loads several symbols and timeframes in one run. Set symbols, timeframes, start, "
    "end and mode in the Launchpad; without any, the run loads all that the universe lists. "
    "Finished windows of all timeframes are materialized.",
)
def load_bars() -> None:
    """Load bars."""
    load()


class LoadBarsRun:
    """One run of the job: loads, and materializes the windows that are explained.

    Args:
        context: that of the run.
        ib: the gateway.
        store: the store.
        clock: returns real time.
    """

    def __init__(
        self,
        context: dg.OpExecutionContext,
        *,
        ib: IbResource,
        store: StoreResource,
        clock: Callable[[], datetime] = system_now,
    ) -> None:
        self._context = context
        self._run = LoadRun(context, ib, store, clock)
        self._workspace = self._run.workspace

    def load(self, config: LoadBarsConfig) -> None:
        """Load what a configuration names.

        Raises:
            dg.Failure: the configuration is invalid, the load failed, or something is still
                unexplained; the text says which and why.
        """
        try:
            with self._run.failures():
                jobs = jobs_of(config, self._workspace)
                tags = tags_of(config, jobs)
                self._context.instance.add_run_tags(self._context.run.run_id, tags)
                try:
                    reports = self._drive(jobs)
                finally:
                    self._run.renew_catalog()
        except dg.DagsterExecutionInterruptedError as error:
            # A query that the signal interrupted may be open in a frame, and lock Dagster's runs.
            traceback.clear_frames(error.__traceback__)
            self._run.interrupted()
            raise
        failed = [_failure_of(report) for report in reports if not report.is_complete]
        if failed:
            text = f"{len(failed)} of {len(reports)} series are not complete:\n"
            hint = (
                "\nThe bars received so far are saved. Hint: Launch it again to request the rest."
            )
            raise self._run.incomplete(text + first_lines(failed) + hint, reports)
        self._run.succeeded(reports)

    def _drive(self, jobs: Sequence[Job]) -> list[SeriesReport]:
        """Run the loader, materializing windows as they are finished, and return its reports."""
        instance, workspace = self._context.instance, self._workspace
        windows = ChangedWindows(instance, workspace, [one.series for one in jobs])

        def report_finished(ended: Iterable[tuple[Series, datetime]]) -> None:
            found: defaultdict[Timeframe, list[ExplainedWindow]] = defaultdict(list)
            for series, now in ended:
                listed = found[series.timeframe]
                listed += ((*window, now) for window in windows.of(series, now))
            for timeframe, listed in found.items():
                self._run.materialize(timeframe, listed)

        reports = drive(
            self._run.loader(jobs, "batch"),
            self._context,
            lambda changed: report_finished((series, workspace.now) for series in changed),
        )
        self._run.log_summaries(reports)
        report_finished((report.series, report.now or workspace.now) for report in reports)
        return reports


class ChangedWindows:
    """Finds windows that lack nothing, and are new to Dagster or have changed since the start.

    An open window counts only if it is new: it changes with every bar.
    """

    def __init__(
        self, instance: dg.DagsterInstance, workspace: Workspace, listed: Iterable[Series]
    ) -> None:
        self._instance, self._workspace = instance, workspace
        every = list(listed)
        self._known = {
            one: instance.get_materialized_partitions(bars_key(one))
            for one in {series.timeframe for series in every}
        }
        held = {one: set(held_symbols(instance, one)) for one in self._known}
        chosen = [series for series in every if series.symbol in held[series.timeframe]]
        index, now = workspace.gap_index(), workspace.now
        self._before: dict[Series, dict[str, WindowStatus]] = {series: {} for series in every}
        for found in index.series_gaps(chosen, now):
            self._before[found.series] = self._status(index, found, now)

    def of(self, series: Series, now: datetime) -> Iterator[tuple[BarPartition, WindowStatus]]:
        """Yield the windows of a series that have to be reported, each once."""
        before, known = self._before[series], self._known[series.timeframe]
        # There is no window while the symbol has no partition.
        if series.symbol not in held_symbols(self._instance, series.timeframe):
            return
        try:
            index = self._workspace.gap_index()
            (found,) = index.series_gaps([series], now)
        except StoreError:
            return  # the load reports a ledger that cannot be read
        for name, one in self._status(index, found, now).items():
            partition = BarPartition(series.symbol, name)
            is_new = str(partition.key) not in known
            is_changed = one.state is not WindowState.OPEN and before.get(name) != one
            if one.rows and one.is_explained and (is_new or is_changed):
                yield partition, one
                known.add(str(partition.key))
                before[name] = one

    def _status(self, index: GapIndex, found: SeriesGaps, now: datetime) -> dict[str, WindowStatus]:
        """Return the status of all windows of a series; none if its files cannot be read."""
        windows = windows_partitions(found.series.timeframe, self._workspace.universe.windows)
        dates = {one: window_dates(one) for one in windows.get_partition_keys(now)}
        try:
            return index.windows_of(found, dates, now)
        except StoreError:
            return {}  # the load reports a file that cannot be read


def jobs_of(config: LoadBarsConfig, workspace: Workspace) -> list[Job]:
    """Return a job for each series that a configuration names.

    Raises:
        UsageError: a name or a date is invalid.
    """
    date_range = parse_date_range(config.start, config.end, names=("start", "end"))
    symbols = ",".join(config.symbols or workspace.universe.instruments)
    timeframes = ",".join(config.timeframes) or None
    return named_jobs(workspace, symbols, timeframes, date_range, mode=Mode(config.mode))


def tags_of(config: LoadBarsConfig, jobs: Sequence[Job]) -> dict[str, str]:
    """Return the tags that tell people what a run loads."""
    return {
        SHOWN_SYMBOLS: _few([one.series.symbol for one in jobs]),
        SHOWN_WINDOWS: f"{config.start or 'start'} to {config.end or 'now'}",
        TIMEFRAME: _few([one.series.timeframe.value for one in jobs]),
    }


def _failure_of(report: SeriesReport) -> str:
    failures = "; ".join(dict.fromkeys(str(failure) for failure in report.failures))
    why = str(report.error or failures)
    return f"{report.summary} ({why})" if why else report.summary


def _few(names: Sequence[str]) -> str:
    different = list(dict.fromkeys(names))
    more = len(different) - _SHOWN_AT_MOST
    return ", ".join(different[:_SHOWN_AT_MOST]) + (f" and {more} more" if more > 0 else "")
