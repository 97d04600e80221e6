"""One run over tails: bars that have just closed, of many symbols, as soon as they are final.

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
"""How old the catalog's tables of coverage and gaps may be while only tails run."""


class TailConfig(dg.Config):
    """Which tails to load, and from when on their newest bars are final."""

    timeframes: list[str] = Field(description="timeframes, such as 1m")
    not_before: str | None = Field(default=None, description="an instant; asks nothing before")


@dg.op(name=TAIL_OP, pool=POOL)
def load_tails(
    context: dg.OpExecutionContext, config: TailConfig, ib: IbResource, store: StoreResource
) -> None:
    """Load what has come to be due of some timeframes, of all symbols."""
    wanted = tuple(Timeframe(name) for name in config.timeframes)
    TailRun(context, wanted, ib=ib, store=store).load(_pause_s(config.not_before))


@dg.job(name="tails", description="Bars that have just closed, of all symbols.")
def tail_job() -> None:
    """Load tails."""
    load_tails()


class TailRun:
    """Loads tails and tells of windows that have their first bars, or are finished."""

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
        self._outcome = RunOutcome(context, self._layout, self._clock)

    def load(self, pause_s: float) -> None:
        """Load the tails.

        Args:
            pause_s: seconds until the newest bars are final; the book is read meanwhile.

        Raises:
            dg.Failure: something could not be had; the text names it.
        """
        try:
            reports, told = self._load(pause_s)
        except KtrdrError as error:
            raise self._outcome.failed(error) from error
        self._end(reports, told)

    def _load(self, pause_s: float) -> tuple[list[SeriesReport], int]:
        """Load what is due after the pause; give the reports, and of how many windows was told."""
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
        told = self._tell([report for report in reports if report.rows])
        self._renew_catalog(is_new=bool(told))
        self._context.log.info(_summary(reports))
        return reports, told

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

    def _renew_catalog(self, *, is_new: bool) -> None:
        """Renew the catalog's tables where they are old; its views show new bars by themselves."""
        catalog = self._layout.catalog
        age_s = time.time() - catalog.stat().st_mtime if catalog.exists() else math.inf
        if is_new or age_s > _CATALOG_S:
            instruments = list(self._universe.instruments.values())
            self._outcome.renew_catalog(self._index, instruments)

    def _tell(self, reports: Iterable[SeriesReport]) -> int:
        """Tell of the windows that Dagster does not know yet, and of those that are finished."""
        told = 0
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
                told += 1
        return told

    def _end(self, reports: Sequence[SeriesReport], told: int) -> None:
        failed = [
            f"{report.series}: {report.error or '; '.join(map(str, report.failures))}"
            for report in reports
            if report.error is not None or report.failures
        ]
        if failed:
            more = len(failed) - _NAMED_AT_MOST
            named = "\n".join(failed[:_NAMED_AT_MOST]) + (f"\nand {more} more" if more > 0 else "")
            text = f"{len(failed)} tails could not be had, all others are there:\n{named}"
            raise self._outcome.incomplete(text, reports)
        self._outcome.succeeded(requests=sum(report.requests for report in reports), windows=told)


def _summary(reports: Sequence[SeriesReport]) -> str:
    """Say in one line what all tails came to; one event a window would drown the history."""
    requests = sum(report.requests for report in reports)
    added = sum(report.added for report in reports)
    return f"{len(reports)} tails: {requests} requests, {added} new bars"


def _pause_s(not_before: str | None) -> float:
    if not_before is None:
        return 0.0
    left_s = (datetime.fromisoformat(not_before) - system_now()).total_seconds()
    return min(max(left_s, 0.0), _LONGEST_WAIT_S)
