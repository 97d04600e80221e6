"""DataManager: the bars of a series from the store, and from the gateway what the store lacks.

A load first reads what the store holds and what is missing of it. If nothing of the range is
missing, no connection is opened. Trouble with the gateway is no exception: the bars held are
returned, and the result says what is missing and why. What was saved is kept however a load ends.

Not here: loads in the background (``app.operations``), the run itself (``sync.runner``), reading
alone, without a universe or a gateway (``ktrdr_pipelines.open_store``).
"""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from ktrdr_pipelines.app.views.documents import ErrorDocument, IntervalDocument
from ktrdr_pipelines.app.views.load_documents import (
    DataLoadResult,
    LoadStatus,
    MissingInterval,
    OperationProgress,
)
from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.domain.bars import empty_bars, moment, timestamps
from ktrdr_pipelines.domain.calendars.sessions import midnight
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.domain.planning.gaps import GapReason
from ktrdr_pipelines.domain.planning.jobs import Bounds, Job, Mode
from ktrdr_pipelines.domain.planning.reports import Progress, Quiet, SeriesReport
from ktrdr_pipelines.errors import GatewayError, KtrdrError, UsageError
from ktrdr_pipelines.gaps.index import SeriesGaps
from ktrdr_pipelines.settings import effective_settings
from ktrdr_pipelines.store.bars.bar_store import BarStore

if TYPE_CHECKING:
    import pandas as pd

    from ktrdr_pipelines.sync.loader import When

LOCAL: Final = "local"
"""The mode that reads the store alone."""

MODES: Final = (LOCAL, *Mode)
"""All modes of a load."""

_EVER: Final = datetime(1800, 1, 1, tzinfo=UTC)
_FOR_EVER: Final = datetime(9000, 1, 1, tzinfo=UTC)
_WEEKS: Final = timedelta(days=14)


class LoadProgress:
    """Counts what a load reports of its progress, by series, and passes it on. Thread-safe.

    Args:
        clock: this machine's time.
        listener: is called with everything that is reported, after it is counted.
        changed: is called after each count.
    """

    def __init__(
        self,
        clock: Callable[[], datetime],
        listener: Progress | None = None,
        changed: Callable[[], object] = lambda: None,
    ) -> None:
        self._clock, self._listener, self._changed = clock, listener or Quiet(), changed
        self._lock = threading.Lock()
        self._planned = 0
        self._requests: Counter[Series] = Counter()
        self._bars: Counter[Series] = Counter()
        self._saved_at: datetime | None = None
        self._waiting: tuple[str, datetime] | None = None

    def planned(self, series: Series, requests: int) -> None:
        """Count planned requests."""
        with self._lock:
            self._planned += requests
        self._listener.planned(series, requests)
        self._changed()

    def answered(self, series: Series, rows: int) -> None:
        """Count a request that is done, and its bars."""
        with self._lock:
            self._requests[series] += 1
            self._bars[series] += rows
            self._waiting = None
        self._listener.answered(series, rows)
        self._changed()

    def saved(self, series: Series) -> None:
        """Record when everything received was saved."""
        with self._lock:
            self._saved_at = self._clock()
        self._listener.saved(series)
        self._changed()

    def noted(self, series: Series, text: str) -> None:
        """Pass it on."""
        self._listener.noted(series, text)

    def noticed(self, text: str) -> None:
        """Pass it on."""
        self._listener.noticed(text)

    def waiting(self, text: str, until: datetime) -> None:
        """Record what the load waits for."""
        with self._lock:
            self._waiting = text, until
        self._listener.waiting(text, until)
        self._changed()

    def ended(self, report: SeriesReport) -> None:
        """Pass it on."""
        self._listener.ended(report)

    def counts_of(self, series: Series) -> tuple[int, int]:
        """Return the requests that are done for a series, and the bars that they returned."""
        with self._lock:
            return self._requests[series], self._bars[series]

    @property
    def has_saved(self) -> bool:
        """Whether anything was saved."""
        with self._lock:
            return self._saved_at is not None

    def document(self) -> OperationProgress:
        """Return how far the load is."""
        with self._lock:
            text = None
            if self._waiting is not None and self._waiting[1] > self._clock():
                text = f"until {self._waiting[1]:%Y-%m-%dT%H:%M:%SZ}: {self._waiting[0]}"
            return OperationProgress(
                requests_planned=self._planned,
                requests_done=self._requests.total(),
                bars=self._bars.total(),
                saved_at=self._saved_at,
                waiting=text,
            )


def jobs_of(
    workspace: Workspace,
    symbol: str,
    timeframe: str,
    *,
    start: "When | None",
    end: "When | None",
    mode: str,
) -> list[Job]:
    """Return the job that a user named, as a list; one of mode ``local`` has mode full.

    Raises:
        UnknownSymbolError: the symbol is not in the universe.
        UsageError: timeframe, mode or a bound is invalid, or the bounds are reversed.
    """
    from ktrdr_pipelines.sync.loader import job_of, series_named

    if mode not in MODES:
        raise UsageError(
            f"mode {mode!r}", reason="no such mode", hint=f"Allowed are {', '.join(MODES)}"
        )
    series = series_named(workspace.universe, symbol, timeframe)
    of_job = Mode.FULL if mode == LOCAL else Mode(mode)
    return [job_of(series, start, end, now=workspace.now, mode=of_job)]


class SeriesLoads:
    """The loads of some jobs in one run: what the store held before, the run, and the results.

    Args:
        workspace: the store and the gateway.
        jobs: the jobs; several of one series have one result.
        mode: the mode that results name; with ``local``, no gateway is contacted.
        operation: the operation whose client ids are used.
        wait_s: how many seconds to wait for the gateway to accept the connection.
        progress: is told how far the run is.

    Raises:
        StoreError: the ledger cannot be read.
    """

    def __init__(
        self,
        workspace: Workspace,
        jobs: Sequence[Job],
        *,
        mode: str,
        progress: LoadProgress,
        operation: str = "api",
        wait_s: float = 0.0,
    ) -> None:
        self._workspace, self._jobs, self._mode = workspace, jobs, mode
        self._operation, self._wait_s = operation, wait_s
        self.progress = progress
        self._started_at = workspace.clock.real_now()
        self._by_series = {job.series: job for job in jobs}
        self._before = self._states()
        self._reports: dict[Series, SeriesReport] = {}
        self._error: GatewayError | None = None

    async def run(self) -> None:
        """Load the jobs; trouble with the gateway becomes an error of their results.

        Raises:
            StoreError: bars could not be saved.
            UsageError: a setting is wrong.
        """
        if self._mode == LOCAL:
            return
        manager = self._workspace.load_manager(
            operation=self._operation, progress=self.progress, wait_s=self._wait_s
        )
        try:
            reports = await manager.run(self._jobs)
        except GatewayError as error:
            self._error = error
            return
        for report in reports:
            before = self._reports.get(report.series)
            self._reports[report.series] = report if before is None else before.then(report)

    def results(self, error: KtrdrError | None = None) -> "list[tuple[DataLoadResult, SeriesGaps]]":
        """Return the result of each series, and what the store now holds of it.

        Args:
            error: why the run did not end, if it did not.

        Raises:
            StoreError: a series cannot be read.
        """
        after = self._states()
        seconds = (self._workspace.clock.real_now() - self._started_at).total_seconds()
        return [
            (self._result(job, after[series], seconds, error or self._error), after[series])
            for series, job in self._by_series.items()
        ]

    def is_untouched(self, result: DataLoadResult) -> bool:
        """Return whether a series was complete before, and needed no request."""
        return result.status is LoadStatus.SUCCESS and not result.requests_made

    def bars_held(self) -> int:
        """Return how many bars the store holds of the series."""
        return sum(one.rows for one in self._states().values())

    def _states(self) -> dict[Series, SeriesGaps]:
        index = self._workspace.gap_index()
        found = index.series_gaps(self._by_series, self._workspace.now)
        return {one.series: one for one in found}

    def _result(
        self, job: Job, after: SeriesGaps, seconds: float, error: KtrdrError | None
    ) -> DataLoadResult:
        if after.error is not None:
            raise after.error
        series, before = job.series, self._before[job.series]
        report = self._reports.get(series) or self._unfinished(after, job, error)
        held = bounds_of_bars(self._workspace.store, series, interval_held(after, job.bounds))
        missing = _missing_of(report, after, job.bounds)
        status, problem = LoadStatus.SUCCESS, report.error or next(iter(report.failures), None)
        if not report.is_complete:
            is_failed = problem is not None and held is None
            status = LoadStatus.FAILED if is_failed else LoadStatus.PARTIAL
        files = self._workspace.layout.bar_files(series.symbol, series.timeframe)
        analyzed = _in_range(before.missing, job.bounds)
        due = (*(one.next_try_at for one in missing), report.next_try_at, report.confirmed_at)
        is_whole = status is LoadStatus.SUCCESS
        return DataLoadResult(
            symbol=series.symbol,
            timeframe=str(series.timeframe),
            mode=self._mode,
            status=status,
            fetched_bars=report.rows,
            cached_before=before.rows > 0,
            merged_file=self._workspace.layout.relative(files[-1]) if files else "",
            start_time=held and held[0],
            end_time=held and held[1],
            requests_made=report.requests,
            execution_time_seconds=round(seconds, 3),
            error_message=None if is_whole else _message(report, missing),
            new_bars=report.added,
            revised_bars=report.revised,
            missing=tuple(missing),
            waiting=tuple(IntervalDocument.all_of(_in_range(report.waiting, job.bounds))),
            error=None if is_whole or problem is None else ErrorDocument.of(problem),
            next_try_at=None if is_whole else min(filter(None, due), default=None),
            gaps_analyzed=len(analyzed),
            segments_fetched=sum(not after.missing.clip(gap) for gap in analyzed),
            ib_requests_made=report.requests,
        )

    def _unfinished(self, after: SeriesGaps, job: Job, error: KtrdrError | None) -> SeriesReport:
        """Return a report of what the store holds, of a load without one of its own.

        ``error`` is not one of a series of which nothing is missing.
        """
        requests, rows = self.progress.counts_of(job.series)
        missing = _in_range(after.missing, job.bounds)
        waiting = _in_range(after.waiting, job.bounds)
        is_affected = self._mode == LOCAL or missing or waiting or after.unconfirmed_bars
        basis = _in_range(after.unconfirmed_basis, job.bounds)
        return SeriesReport(
            job.series,
            requests=requests,
            rows=rows,
            added=max(0, after.rows - self._before[job.series].rows),
            unexplained=missing,
            waiting=waiting,
            error=error if is_affected else None,
            disagreements=after.disagreements,
            unconfirmed_bars=after.unconfirmed_bars if basis else 0,
            unconfirmed_basis=basis,
        )


def interval_held(found: SeriesGaps, bounds: Bounds) -> Interval | None:
    """Return the part of the bounds in which a series holds bars; None where it holds none."""
    if found.first is None or found.last is None:
        return None
    # Bars lie within days of the session dates that they have.
    start, end = midnight(found.first) - _WEEKS, midnight(found.last) + _WEEKS
    return between(max(bounds.start or start, start), min(bounds.end or end, end))


def bounds_of_bars(
    store: BarStore, series: Series, interval: Interval | None
) -> tuple[datetime, datetime] | None:
    """Return the timestamps of the first and the last bar held of an interval; None without bars.

    Of series with a file a year, only the files of the first and the last year are read.

    Raises:
        StoreError: bars cannot be read.
    """
    if interval is None:
        return None
    parts = [interval]
    if series.timeframe.is_yearly_filed:
        years = range(interval.start.year, interval.end.year + 1)
        whole = (
            Interval(datetime(year, 1, 1, tzinfo=UTC), datetime(year + 1, 1, 1, tzinfo=UTC))
            for year in years
        )
        parts = [part for year in whole if (part := year.intersection(interval)) is not None]
    first = _first_with_bars(store, series, parts)
    if first is None:
        return None
    last = first if len(parts) == 1 else _first_with_bars(store, series, parts[::-1])
    assert last is not None  # noqa: S101  (one of the parts has bars)
    return moment(int(first[0])), moment(int(last[-1]))


def _first_with_bars(
    store: BarStore, series: Series, parts: Sequence[Interval]
) -> np.ndarray | None:
    """Return the bar timestamps of the first part that has any."""
    found = (timestamps(store.read(series, part)) for part in parts)
    return next((keys for keys in found if len(keys)), None)


def _in_range(intervals: IntervalSet, bounds: Bounds) -> IntervalSet:
    return intervals.clip(Interval(bounds.start or _EVER, bounds.end or _FOR_EVER))


def _missing_of(report: SeriesReport, after: SeriesGaps, bounds: Bounds) -> list[MissingInterval]:
    """Return what a load left missing, oldest first; gaps are joined over nights and weekends."""
    left = _in_range(
        report.unexplained | report.deferred | report.not_refreshed | report.sparse, bounds
    )
    found = [
        MissingInterval(
            start=part.start,
            end=part.end,
            reason=str(gap.reason),
            detail=gap.detail,
            next_try_at=gap.next_try_at,
        )
        for gap in after.gaps
        if (part := left.clip(gap.interval).bounds) is not None
    ]
    # The gap index knows closed sessions alone; requests for an open one may have failed, too.
    detail = next(iter(map(str, report.failures)), "")
    found += [
        MissingInterval(
            start=part.start,
            end=part.end,
            reason=str(GapReason.FAILED),
            detail=detail,
            next_try_at=report.next_try_at,
        )
        for part in left - after.missing
    ]
    return sorted(found, key=lambda one: one.start)


def _message(report: SeriesReport, missing: Sequence[MissingInterval]) -> str:
    """Return why a load is not a success."""
    if report.error is not None:
        return str(report.error)
    parts = []
    if missing:
        reasons = Counter(one.reason for one in missing)
        of = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
        intervals = f"{len(missing):,} interval{'' if len(missing) == 1 else 's'}"
        parts.append(f"bars are missing in {intervals} ({of})")
    if report.unconfirmed_bars:
        parts.append(f"{report.unconfirmed_bars:,} bars are on an unconfirmed price basis")
    if report.disagreements:
        parts.append("held bars were returned again at other prices")
    for reason, _ in Counter(map(str, report.failures)).most_common(1):
        parts.append(reason)
    return "; ".join(parts)


@dataclass(frozen=True)
class Loaded:
    """The outcome of a load: its result, and the bars of its range, read when they are first used.

    Attributes:
        result: how the load ended.
        missing: what is missing of the range as a whole, whatever part of it the mode loads.
        waiting: the uncovered part of sessions that are still open.
        is_complete: whether nothing that is due of the whole range is missing.
    """

    result: DataLoadResult
    missing: tuple[MissingInterval, ...]
    waiting: tuple[Interval, ...]
    is_complete: bool
    _store: BarStore
    _series: Series
    _interval: Interval | None

    @cached_property
    def frame(self) -> "pd.DataFrame":
        """The bars that the store holds of the range, on today's price basis.

        One row a bar, in the index and columns of ``sync.loader``; without bars, an empty frame of
        the same types. Its ``attrs`` have ``missing``, a list of ``(start, end, reason)`` with
        instants as text, ``waiting``, a list of ``(start, end)``, ``complete``, ``status`` and
        ``error``, a text or None.

        Raises:
            StoreError: bars cannot be read.
        """
        from ktrdr_pipelines.sync.loader import held_frame

        interval = self._interval
        bars = empty_bars() if interval is None else self._store.read(self._series, interval)
        attrs = {
            "missing": [
                (one.start.isoformat(), one.end.isoformat(), one.reason) for one in self.missing
            ],
            "waiting": [(one.start.isoformat(), one.end.isoformat()) for one in self.waiting],
            "complete": self.is_complete,
            "status": str(self.result.status),
            "error": self.result.error_message,
        }
        return held_frame(self._store, self._series, bars, attrs)


class DataManager:
    """Bars of single series: local first, the gateway only for what is incomplete.

    Modes: ``local`` never contacts a gateway; ``tail`` loads what follows the newest covered bar,
    ``backfill`` what precedes the oldest one, ``full`` everything missing of the range. A start is
    included, an end is not; dates are session dates, instants need a zone. Without them the whole
    series is meant, from the start in the universe to now.

    Args:
        workspace: the store and its gateway. None opens those of the environment for each call,
            so that changed settings and universes count; a path does so with this data folder.
        operation: the operation whose client ids are used (``ib.connection.strategy.Operation``).
        wait_s: how many seconds to wait for a gateway that accepts no connection.
    """

    def __init__(
        self,
        workspace: Workspace | str | Path | None = None,
        *,
        operation: str = "data_manager",
        wait_s: float = 0.0,
    ) -> None:
        self._workspace, self._operation, self._wait_s = workspace, operation, wait_s

    def __repr__(self) -> str:
        return f"DataManager({self._workspace or 'the store of the environment'})"

    def load(  # noqa: PLR0917  (the signature of the original)
        self,
        symbol: str,
        timeframe: str,
        start: "When | None" = None,
        end: "When | None" = None,
        mode: str = LOCAL,
    ) -> "pd.DataFrame":
        """Load what the mode says, and return the bars held of the range (``Loaded.frame``).

        Trouble with the gateway is in ``attrs["error"]`` and ``attrs["missing"]``. Works also
        inside a running event loop, and returns when the load has ended.

        Raises:
            UnknownSymbolError: the symbol is not in the universe.
            UsageError: timeframe, mode or a bound is invalid, or the bounds are reversed.
            NoStoreError: there is no store.
            StoreError: bars cannot be saved or read.
        """
        return self.load_with_result(symbol, timeframe, start, end, mode=mode).frame

    def load_with_result(
        self,
        symbol: str,
        timeframe: str,
        start: "When | None" = None,
        end: "When | None" = None,
        *,
        mode: str = LOCAL,
        progress: Progress | None = None,
    ) -> Loaded:
        """Load as ``load`` does, and return the result with the bars.

        ``progress`` is called from the thread of the load.
        """
        from ktrdr_pipelines.sync.loader import run_to_end

        return run_to_end(
            self.load_async(symbol, timeframe, start, end, mode=mode, progress=progress)
        )

    async def load_async(
        self,
        symbol: str,
        timeframe: str,
        start: "When | None" = None,
        end: "When | None" = None,
        *,
        mode: str = LOCAL,
        progress: Progress | None = None,
    ) -> Loaded:
        """Load as ``load_with_result`` does, in an event loop of the caller's.

        Files are read and written in its thread: give it a loop of its own. If the task is
        cancelled, what was received is saved first.
        """
        workspace = self._opened()
        jobs = jobs_of(workspace, symbol, timeframe, start=start, end=end, mode=mode)
        loads = SeriesLoads(
            workspace,
            jobs,
            mode=mode,
            operation=self._operation,
            wait_s=self._wait_s,
            progress=LoadProgress(workspace.clock.real_now, progress),
        )
        try:
            await loads.run()
        finally:
            if loads.progress.has_saved and workspace.is_catalog_due():
                workspace.try_renew_catalog()
        ((result, held),) = loads.results()
        return _loaded(workspace, jobs[0], result, held)

    def _opened(self) -> Workspace:
        if isinstance(self._workspace, Workspace):
            return self._workspace
        if self._workspace is None:
            return Workspace.open()
        folder = Path(self._workspace).expanduser()
        return Workspace.open(effective_settings(flags={"ktrdr_data": folder}))


def _loaded(workspace: Workspace, job: Job, result: DataLoadResult, held: SeriesGaps) -> Loaded:
    as_held = SeriesReport(job.series, unexplained=_in_range(held.missing, job.bounds))
    of_range = _missing_of(as_held, held, job.bounds)
    of_range += _never_wanted(workspace, job, held)
    known = IntervalSet(Interval(one.start, one.end) for one in of_range)
    of_range += [one for one in result.missing if not known.clip(Interval(one.start, one.end))]
    is_success = result.status is LoadStatus.SUCCESS
    return Loaded(
        result=result,
        missing=tuple(sorted(of_range, key=lambda one: one.start)),
        waiting=tuple(_in_range(held.waiting, job.bounds)),
        is_complete=is_success and not of_range,
        _store=workspace.store,
        _series=job.series,
        _interval=interval_held(held, job.bounds),
    )


def _never_wanted(workspace: Workspace, job: Job, held: SeriesGaps) -> list[MissingInterval]:
    """Return what a range lacks although the gap index, which knows the universe, misses nothing.

    It lies before the start of the universe, or where no session is known.
    """
    from ktrdr_pipelines.app.reading.readiness import BEFORE_START, UNKNOWN_SESSIONS, readiness

    start, end = job.bounds.start, job.bounds.end
    whole = replace(job.series.instrument, end=None)
    found = readiness(
        held,
        workspace.gap_index().calendars.of(whole),
        between(start or _EVER, end or _FOR_EVER),
        now=workspace.now,
        asked=(start is not None, end is not None),
    )
    return [
        MissingInterval(start=one.start, end=one.end, reason=one.reason, detail=one.detail)
        for one in found.missing
        if one.reason in {BEFORE_START, UNKNOWN_SESSIONS}
    ]
