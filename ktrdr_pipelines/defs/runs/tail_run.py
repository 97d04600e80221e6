"""A run over tails: loads bars that have just closed, of many symbols, once they are final.

Not here: when it runs (``defs.schedules``), which tails are due (``gaps.due_chunks``).
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Final

import dagster as dg
from pydantic import Field

from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.defs.partitions import BarPartition, window_dates, window_of
from ktrdr_pipelines.defs.resources import IbResource, StoreResource
from ktrdr_pipelines.defs.runs.loader_thread import LoaderThread
from ktrdr_pipelines.defs.runs.outcome import RunOutcome, is_told, materialization
from ktrdr_pipelines.domain.planning.jobs import Mode, RequestedBy
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import KtrdrError, StoreError
from ktrdr_pipelines.gaps.due_chunks import due_tails
from ktrdr_pipelines.gaps.index import GapIndex, SeriesGaps, open_gap_index
from ktrdr_pipelines.gaps.windows import WindowIndex
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.sync.runner import Job

TAIL_OP: Final = "load_tails"
POOL: Final = "ib_tails"
_NAMED_AT_MOST: Final = 20
_LONGEST_WAIT_S: Final = 60.0

_CATALOG_S: Final = 600.0
"""Maximum age of the catalog's tables of coverage and gaps while only tails run."""


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
    TailRun(context, wanted, ib=ib, store=store).load(pause_s)


@dg.job(name="tails", description="Loads bars that have just closed, of all symbols.")
def tail_job() -> None:
    """Load tails."""
    load_tails()


class TailRun:
    """Loads tails, and materializes windows that have their first bars or are finished."""

    def __init__(
        self,
        context: dg.OpExecutionContext,
        timeframes: Sequence[Timeframe],
        *,
        ib: IbResource,
        store: StoreResource,
        clock: Callable[[], datetime] = system_now,
    ) -> None:
        self._context, self._ib, self._clock = context, ib, ib.clock(clock)
        self._layout: StoreLayout = store.layout()
        self._universe = store.universe()
        self._series = [one for one in self._universe.series() if one.timeframe in timeframes]
        self._index: GapIndex = open_gap_index(
            self._layout, GatewayConfig.from_settings(ib.settings()).gateway
        )
        self._outcome = RunOutcome(context, ib, self._clock)

    def load(self, pause_s: float) -> None:
        """Load the tails.

        Args:
            pause_s: seconds until the newest bars are final; the gap index is read meanwhile.

        Raises:
            dg.Failure: the load or some tails failed; the text names them.
        """
        try:
            reports, materialized = self._load(pause_s)
        except KtrdrError as error:
            raise self._outcome.failed(error) from error
        failed = [
            f"{report.series}: {report.error or '; '.join(map(str, report.failures))}"
            for report in reports
            if report.error is not None or report.failures
        ]
        if failed:
            more = len(failed) - _NAMED_AT_MOST
            named = "\n".join(failed[:_NAMED_AT_MOST]) + (f"\nand {more} more" if more > 0 else "")
            text = f"{len(failed)} tails could not be loaded; all others are loaded:\n{named}"
            raise self._outcome.incomplete(text, reports)
        requests = sum(report.requests for report in reports)
        self._outcome.succeeded(requests=requests, windows=materialized)

    def _load(self, pause_s: float) -> tuple[list[SeriesReport], int]:
        """Load what is due after the pause; return the reports and the number of new events."""
        began_s = time.monotonic()
        self._series_gaps()
        time.sleep(max(0.0, pause_s - (time.monotonic() - began_s)))
        tails = due_tails(
            self._series_gaps(), self._clock.market_now(), real_now=self._clock.real_now()
        )
        jobs = [
            Job(tail.series, Mode.TAIL, wanted=tail.intervals, requested_by=RequestedBy.SENSOR)
            for tail in tails
        ]
        reports = self._drive(jobs) if jobs else []
        materialized = self._materialize([report for report in reports if report.rows])
        # The catalog's views show new bars by themselves; its tables may be somewhat older.
        catalog = self._layout.catalog
        age_s = time.time() - catalog.stat().st_mtime if catalog.exists() else math.inf
        if materialized or age_s > _CATALOG_S:
            instruments = list(self._universe.instruments.values())
            self._outcome.renew_catalog(self._index, instruments)
        # One line for all tails: an event per window would swamp Dagster's history.
        requests = sum(report.requests for report in reports)
        added = sum(report.added for report in reports)
        text = f"{len(reports)} tails: {requests} requests, {added} new bars"
        self._context.log.info(text)
        return reports, materialized

    def _series_gaps(self) -> list[SeriesGaps]:
        return self._index.series_gaps(self._series, self._clock.market_now())

    def _drive(self, jobs: Sequence[Job]) -> list[SeriesReport]:
        thread = LoaderThread(
            lambda progress: self._ib.manager(self._layout, operation="api", progress=progress),
            jobs,
        )
        with thread:
            for _changed, messages in thread.changes():
                for message in messages:
                    if not message.endswith(" planned"):
                        self._context.log.info(message)
            return thread.reports()

    def _materialize(self, reports: Iterable[SeriesReport]) -> int:
        """Materialize windows that are new or finished; return how many."""
        materialized = 0
        windows = WindowIndex(self._index)
        now = self._clock.market_now()
        for report in reports:
            series = report.series
            calendar = self._index.calendars.of(series.instrument)
            today = calendar.day_of(now)
            partition = BarPartition(series.symbol, window_of(series.timeframe, today))
            dates = {partition.window: window_dates(partition.window)}
            try:
                status = windows.status(series, dates, now)[partition.window]
            except StoreError as error:
                self._context.log.warning("%s: %s", series, error)
                continue
            if not status.is_explained or not status.rows:
                continue
            if not is_told(self._context.instance, series.timeframe, partition, status.state):
                self._context.log_event(materialization(series.timeframe, partition, status))
                materialized += 1
        return materialized
