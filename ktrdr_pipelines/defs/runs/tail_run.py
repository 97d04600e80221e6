"""A run over tails: loads bars that have just closed, of many symbols, once they are final.

A process takes seconds to start. A run therefore goes on while the next minute has tails for it, so
that they are requested as soon as they are final; the schedule requests no other run meanwhile.

Not here: when it runs (``defs.schedules``), which tails are due (``gaps.due_chunks``).
"""

import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from typing import Final

import dagster as dg
from pydantic import Field

from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.defs.partitions import BarPartition, window_dates, window_of
from ktrdr_pipelines.defs.resources import IbResource, StoreResource
from ktrdr_pipelines.defs.runs.outcome import ExplainedWindow, LoadRun, first_lines
from ktrdr_pipelines.defs.runs.reported_windows import EventKind, needed_event, reported_windows
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.planning.gaps import bar_lag
from ktrdr_pipelines.domain.planning.jobs import Mode, RequestedBy
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import KtrdrError, StoreError
from ktrdr_pipelines.gaps.due_chunks import due_tails
from ktrdr_pipelines.gaps.windows import WindowStatus
from ktrdr_pipelines.sync.runner import Job

_MINUTE: Final = timedelta(minutes=1)
TAIL_OP: Final = "load_tails"
POOL: Final = "ib_tails"
_LONGEST_WAIT_S: Final = 60.0

MARGIN: Final = timedelta(seconds=1)
"""How much later than a bar is final it is requested."""

_LONGEST_S: Final = 600.0
"""Seconds after which a run begins no further round: edits of settings and new code become
effective, and its log is not endless."""

_GROWTH_S: Final = 20.0
_GROWTH_AT_ONCE: Final = 100
"""Seconds after which no further windows that have grown are reported, so many at once: where each
event is a commit of its own, those of all symbols would delay the next minute. The report sensor
reports the others."""

_StatusOfSeries = dict[BarPartition, tuple[Series, WindowStatus]]


class TailConfig(dg.Config):
    """Which tails to load, and when their newest bars are final."""

    timeframes: list[str] = Field(description="timeframes, such as 1m")
    not_before: str | None = Field(
        default=None, description="instant (ISO 8601) before which no request is sent"
    )


@dg.op(name=TAIL_OP, pool=POOL)
def load_tails(
    context: dg.OpExecutionContext, config: TailConfig, ib: IbResource, store: StoreResource
) -> None:
    """Load the due tails of some timeframes, of all symbols."""
    wanted = tuple(Timeframe(name) for name in config.timeframes)
    pause_s = 0.0
    if config.not_before is not None:
        left_s = (datetime.fromisoformat(config.not_before) - system_now()).total_seconds()
        pause_s = min(max(left_s, 0.0), _LONGEST_WAIT_S)
    TailRun(context, wanted, ib=ib, store=store).load(pause_s, longest_s=_LONGEST_S)


@dg.job(name="tails", description="Loads bars that have just closed, of all symbols.")
def tail_job() -> None:
    """Load tails."""
    load_tails()


class TailRun:
    """Loads tails, and materializes windows that have their first bars, grow or are finished."""

    def __init__(
        self,
        context: dg.OpExecutionContext,
        timeframes: Sequence[Timeframe],
        *,
        ib: IbResource,
        store: StoreResource,
        clock: Callable[[], datetime] = system_now,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._context = context
        self._timeframes, self._ib, self._store = timeframes, ib, store
        self._clock, self._sleep = clock, sleep
        self._run = LoadRun(context, ib, store, clock)
        self._open()

    def _open(self) -> None:
        """Read the universe, and what is stored, as they are now."""
        self._workspace = self._run.workspace = self._ib.workspace(self._store, self._clock)
        listed = self._workspace.universe.series()
        self._series = [one for one in listed if one.timeframe in self._timeframes]
        self._index = self._workspace.gap_index()

    def load(self, pause_s: float, *, longest_s: float = 0.0) -> None:
        """Load the tails, and those of the next minutes, until a minute has none.

        Args:
            pause_s: seconds until the newest bars are final; the gap index is read meanwhile.
            longest_s: seconds after which no further minute is loaded.

        Raises:
            dg.Failure: the load or some tails failed; the text names them.
        """
        until = self._clock() + timedelta(seconds=longest_s)
        reports: list[SeriesReport] = []
        wait_s: float | None = pause_s
        try:
            while wait_s is not None:
                with self._run.failures():
                    found, loaded_at = self._load(wait_s)
                    reports += found
                    self._refuse_failed(found, reports)
                    wait_s = self._next_wait_s(loaded_at) if self._clock() < until else None
        except dg.DagsterExecutionInterruptedError as error:
            # A query that the signal interrupted may be open in a frame, and lock Dagster's runs.
            traceback.clear_frames(error.__traceback__)
            self._run.interrupted()
            raise
        self._run.succeeded(reports)

    def _refuse_failed(self, found: Sequence[SeriesReport], reports: list[SeriesReport]) -> None:
        """End the run if a round failed: later runs see what is deferred then.

        Raises:
            dg.Failure: tails of the round failed; the text names them.
        """
        failed = [
            f"{report.series}: {report.error or '; '.join(map(str, report.failures))}"
            for report in found
            if report.error is not None or report.failures
        ]
        if failed:
            text = f"{len(failed)} tails could not be loaded; all others are loaded:\n"
            raise self._run.incomplete(text + first_lines(failed), reports)

    def _next_wait_s(self, loaded_at: datetime) -> float | None:
        """Return the seconds until further bars are final, None if the next ones are not due.

        Args:
            loaded_at: market time at which the last load began; what closed since then is next.
        """
        try:
            self._open()
            with closing(self._ib.rate_limiter()) as gateway:
                if not gateway.availability(self._clock()).may_try:
                    return None
        except KtrdrError:
            return None  # what is loaded is loaded; the next tick of the schedule says why
        clock = self._workspace.clock
        now = clock.market_now()
        closed_at = max(_final_close(loaded_at) + _MINUTE, _final_close(now))
        if self._is_ended:
            return None
        wait = max(closed_at + bar_lag() + MARGIN - now, timedelta())
        found = self._index.series_gaps(self._series, now + wait)
        is_due = due_tails(found, now + wait, real_now=clock.real_now() + wait)
        return wait.total_seconds() if is_due else None

    def _load(self, pause_s: float) -> tuple[list[SeriesReport], datetime]:
        """Load what is due after the pause; return the reports, and market time after the pause."""
        began, clock = self._clock(), self._workspace.clock
        self._index.series_gaps(self._series, clock.market_now())
        self._sleep(max(0.0, pause_s - (self._clock() - began).total_seconds()))
        loaded_at = clock.market_now()
        if self._is_ended:
            return [], loaded_at
        found = self._index.series_gaps(self._series, loaded_at)
        tails = due_tails(found, loaded_at, real_now=clock.real_now())
        jobs = [
            Job(tail.series, Mode.TAIL, wanted=tail.intervals, requested_by=RequestedBy.SENSOR)
            for tail in tails
        ]
        reports = self._drive(jobs) if jobs else []
        is_new = self._materialize([report for report in reports if report.rows])
        # The catalog's views show new bars by themselves; its tables may be somewhat older.
        if is_new or self._run.is_catalog_old:
            self._run.renew_catalog()
        # One line for all tails: an event per window and run would swamp Dagster's history.
        requests = sum(report.requests for report in reports)
        added = sum(report.added for report in reports)
        text = f"{len(reports)} tails: {requests} requests, {added} new bars"
        self._context.log.info(text)
        return reports, loaded_at

    @property
    def _is_ended(self) -> bool:
        """Whether Dagster has ended this run, and may have started another one."""
        run = self._context.instance.get_run_by_id(self._context.run.run_id)
        return run is not None and run.is_finished

    def _drive(self, jobs: Sequence[Job]) -> list[SeriesReport]:
        with self._run.loader(jobs, "api") as thread:
            for _changed, messages in thread.changes():
                told = [one for one in messages if not one.endswith(" planned")]
                if told:
                    self._context.log.info("\n".join(told))
            return thread.reports()

    def _materialize(self, reports: Iterable[SeriesReport]) -> bool:
        """Materialize windows that are new or finished, or have grown since they were reported.

        Returns: whether any is new or finished.
        """
        now, until_s, is_new = self._workspace.now, time.monotonic() + _GROWTH_S, False
        explained: defaultdict[Timeframe, _StatusOfSeries] = defaultdict(dict)
        for found in self._index.series_gaps([one.series for one in reports], now):
            series = found.series
            calendar = self._index.calendars.of(series.instrument)
            partition = BarPartition(series.symbol, window_of(calendar.day_of(now)))
            dates = {partition.window: window_dates(partition.window)}
            try:
                status = self._index.windows_of(found, dates, now)[partition.window]
            except StoreError as error:
                self._context.log.warning("%s: %s", series, error)
                continue
            if status.is_explained and status.rows:
                explained[series.timeframe][partition] = series, status
        for timeframe, windows in explained.items():
            reported = reported_windows(self._context.instance, timeframe, list(windows))
            whole: list[ExplainedWindow] = []
            grown: list[ExplainedWindow] = []
            for partition, (series, status) in windows.items():
                kind = needed_event(
                    reported.get(partition),
                    status,
                    series,
                    calendar=self._index.calendars.of(series.instrument),
                    now=now,
                )
                if kind is not None:
                    chosen = whole if kind is EventKind.WHOLE else grown
                    chosen.append((partition, status, now))
            is_new |= bool(whole)
            self._run.materialize(timeframe, whole)
            for first in range(0, len(grown), _GROWTH_AT_ONCE):
                if time.monotonic() < until_s:
                    self._run.report_growth(timeframe, grown[first : first + _GROWTH_AT_ONCE])
        return is_new


def _final_close(now: datetime) -> datetime:
    """Return the last full minute whose bars are final at a time."""
    return (now - bar_lag() - MARGIN).replace(second=0, microsecond=0)
