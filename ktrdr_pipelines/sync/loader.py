"""IbDataLoader: bars by symbol as DataFrames, with the signatures of the original.

A frame has one row a bar. Its index ``ts`` is the start of the bar in UTC (1d: midnight of the
session date, 1w: of its Monday); its columns are ``session_date``, ``open``, ``high``, ``low``,
``close``, ``volume``, ``average`` and ``bar_count``. Its ``attrs`` have ``bars``, the identity of
the bars as text, ``adjustments``, the ratios of the re-bases that prices and volumes include, and
``missing``, a list of intervals of bar timestamps in which expected bars are missing.

Not here: the run behind it, which commands and assets use (``sync.runner``).
"""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any, Final, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa

from ktrdr_pipelines.domain.bars import (
    BAR_SCHEMA,
    basis_of,
    empty_bars,
    merge_bars,
    sorted_unique,
    timestamps,
)
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, between
from ktrdr_pipelines.domain.planning.date_bounds import parse_date_range
from ktrdr_pipelines.domain.planning.jobs import Bounds, Job, Mode
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.plausibility import implausible_rows
from ktrdr_pipelines.domain.timeframes import timeframe_named
from ktrdr_pipelines.domain.universe.universe import Universe
from ktrdr_pipelines.errors import UsageError
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.sync.runner import LoadManager

T = TypeVar("T")
When = str | date | datetime
"""A session date, or an instant with a zone; as text in ISO format."""

_BARS: Final = "bars"
_MISSING: Final = "missing"
_ADJUSTMENTS: Final = "adjustments"
_INTERVALS: Final = (
    "unexplained",
    "waiting",
    "before_listing",
    "deferred",
    "not_refreshed",
    "sparse",
    "unconfirmed",
)
"""The intervals of a report, which those of reports on other years add to."""


class IbDataLoader:
    """Loads bars of one store by symbol and timeframe, and returns them as DataFrames.

    A start is included, an end is not; dates are session dates. Calls return when the load has
    ended, also inside a running event loop. If a load is stopped, what it saved is kept.

    Args:
        manager: loads from the gateway into the store.
        store: the store.
        universe: what the symbols mean.
    """

    def __init__(self, manager: LoadManager, store: BarStore, universe: Universe) -> None:
        self._manager, self._store, self._universe = manager, store, universe

    def load_data_range(self, symbol: str, timeframe: str, start: When, end: When) -> pd.DataFrame:
        """Load what is missing of an interval, and return its bars.

        Raises:
            UnknownSymbolError: the symbol is not in the universe.
            UsageError: the timeframe is unknown, or a bound is invalid or in the future.
            GatewayError: the gateway cannot be reached, or refused the series as a whole.
            StoreError: bars could not be saved or read.
        """
        job = self._job(symbol, timeframe, start, end)
        return self._frame(job, self._run([job]))

    def load_progressive(self, symbol: str, timeframe: str, start: When, end: When) -> pd.DataFrame:
        """Load an interval year by year, newest first, and return its bars.

        Each year is on disk before the next is requested. Raises as ``load_data_range``.
        """
        job = self._job(symbol, timeframe, start, end)
        return self._frame(job, self._run(_by_year(job)))

    def load_report(self, symbol: str, timeframe: str, start: When, end: When) -> SeriesReport:
        """Load what is missing of an interval, and return the full report of the load.

        The report says what was requested, what is missing and why; its ``error`` is not raised.
        Raises as ``load_data_range`` otherwise.
        """
        job = self._job(symbol, timeframe, start, end)
        return self._run([job])

    def merge_and_save_data(
        self,
        symbol: str,
        timeframe: str,
        existing_data: pd.DataFrame | None,
        new_data: pd.DataFrame,
    ) -> pd.DataFrame:
        """Merge newer bars over older ones, save the newer ones, and return all.

        Of two bars with one timestamp the newer one counts; where the store held other values, they
        are kept as a revision. Saving covers nothing: a later load requests what no response of the
        gateway has covered. Bars that are as the store returns them are not saved again: their
        prices may be multiplied.

        Args:
            symbol: the symbol of the bars.
            timeframe: the timeframe of the bars.
            existing_data: older bars, or None.
            new_data: newer bars. Both are frames that other calls of this class returned; bars of
                another source are refused: they never mix with the gateway's.

        Raises:
            UsageError: a frame is not of this series and store, or holds rows that are no bars;
                nothing is saved then.
            UnknownSymbolError, StoreError: as for ``load_data_range``.
        """
        series = self._series(symbol, timeframe)
        what, identity = f"merging bars of {series}", self._store.identity(series)
        frames = [one for one in (existing_data, new_data) if one is not None]
        for frame in frames:
            if identity is None or frame.attrs.get(_BARS) != str(identity):
                raise UsageError(
                    what,
                    reason=f"the frame holds {frame.attrs.get(_BARS) or 'bars of unknown source'}, "
                    f"the store holds {identity or 'none'}",
                    hint="Merge only frames that IbDataLoader returned for this series and store",
                )
            if frame.attrs.get(_ADJUSTMENTS, []) != self._adjustments(symbol):
                raise UsageError(
                    what,
                    reason="the prices of the frame are not on today's basis: the symbol was "
                    "re-based since",
                    hint="Load the frame again, which requests nothing that is held",
                )
        assert identity is not None  # noqa: S101  (new_data is of it)
        held = self._store.read(series)
        *older, new = (_table(what, frame, series, held) for frame in frames)
        self._store.save(series, identity, self._changed(what, series, held, new), Coverage())
        missing = {tuple(one) for frame in frames for one in frame.attrs.get(_MISSING, ())}
        merged = merge_bars(older[0] if older else empty_bars(), new).bars
        attrs = {_BARS: str(identity), _ADJUSTMENTS: self._adjustments(symbol)}
        return _frame_of(merged, {**attrs, _MISSING: sorted(missing)})

    def _adjustments(self, symbol: str) -> list[tuple[float, float, bool]]:
        return _adjustments(self._store, symbol)

    def _changed(self, what: str, series: Series, held: pa.Table, new: pa.Table) -> pa.Table:
        """Return the bars of a frame that the store does not return as they are.

        Raises:
            UsageError: some of them would replace bars that are multiplied when they are read.
        """
        keys = timestamps(new)
        is_held = np.isin(keys, timestamps(held))
        revised = timestamps(merge_bars(held, new).revised)
        is_revised = np.isin(keys, revised)
        raw = self._store.read_raw(series)
        older = timestamps(raw)[basis_of(raw) != len(self._store.bases.of(series.symbol))]
        if (multiplied := int(np.isin(revised, older).sum())) > 0:
            raise UsageError(
                what,
                reason=f"{multiplied} bars differ from held ones on an older price basis, whose "
                "prices are multiplied when they are read",
                hint=f"`ktrdr load {series} --refresh` requests these again; merge then",
            )
        return new.filter(pa.array(~is_held | is_revised))

    def _series(self, symbol: str, timeframe: str) -> Series:
        return series_named(self._universe, symbol, timeframe)

    def _job(self, symbol: str, timeframe: str, start: When, end: When) -> Job:
        """Return the job for what a user named."""
        now = self._manager.retry_policy.market_clock()
        return job_of(self._series(symbol, timeframe), start, end, now=now)

    def _run(self, jobs: Sequence[Job]) -> SeriesReport:
        """Load jobs that share no bar of one series, and return one report of all."""
        whole, *others = run_to_end(self._manager.run(jobs))
        for report in others:
            of_both = {name: getattr(whole, name) | getattr(report, name) for name in _INTERVALS}
            whole = replace(whole.then(report), **of_both)
        return whole

    def _frame(self, job: Job, report: SeriesReport) -> pd.DataFrame:
        """Return the bars that a job wanted, and what the load left missing of them."""
        if report.error is not None:
            raise report.error
        wanted = _interval(job)
        missing = (report.unexplained | report.deferred | report.waiting).clip(wanted)
        attrs = {_MISSING: [(part.start.isoformat(), part.end.isoformat()) for part in missing]}
        return held_frame(self._store, job.series, self._store.read(job.series, wanted), attrs)


def series_named(universe: Universe, symbol: str, timeframe: str) -> Series:
    """Return the series of a symbol of the universe and the name of a timeframe.

    Raises:
        UnknownSymbolError: the symbol is not in the universe.
        UsageError: there is no such timeframe.
    """
    kind = timeframe_named(timeframe)
    return Series(universe.instrument(symbol), kind)


def job_of(
    series: Series,
    start: When | None,
    end: When | None,
    *,
    now: datetime,
    mode: Mode = Mode.FULL,
) -> Job:
    """Return the job for what a user named; ``now`` is market time.

    Raises:
        UsageError: a bound is invalid, naive or in the future, or they are reversed.
    """
    texts = (
        one if one is None or isinstance(one, str) else one.isoformat() for one in (start, end)
    )
    bounds = parse_date_range(*texts, names=("start", "end")).bounds(series, now)
    if bounds.start and bounds.end and between(bounds.start, bounds.end) is None:
        raise UsageError(
            f"loading {series} from {start} to {end}",
            reason="no bar of this timeframe begins in it",
            hint="A weekly bar begins on a Monday, a daily bar with its session date",
        )
    return Job(series, mode, bounds)


def held_frame(
    store: BarStore, series: Series, bars: pa.Table, attrs: Mapping[str, Any]
) -> pd.DataFrame:
    """Return bars that a store returned for a series as a frame.

    ``attrs`` are added to those that tell what the bars are of and on which basis.

    Raises:
        StoreError: the adjustments of the symbol cannot be read.
    """
    known = {
        _BARS: str(store.identity(series) or ""),
        _ADJUSTMENTS: _adjustments(store, series.symbol),
    }
    return _frame_of(bars, {**known, **attrs})


def _adjustments(store: BarStore, symbol: str) -> list[tuple[float, float, bool]]:
    """Return what tells one basis of a symbol from another."""
    known = store.bases.of(symbol)
    return [(one.ratio, one.volume_ratio, one.removed_at is None) for one in known]


def _required(bound: datetime | None) -> datetime:
    assert bound is not None  # noqa: S101  (both bounds are required here)
    return bound


def _interval(job: Job) -> Interval:
    return Interval(_required(job.bounds.start), _required(job.bounds.end))


def _by_year(job: Job) -> list[Job]:
    """Return a job for each calendar year of a job, newest first."""
    wanted, calendar = _interval(job), calendar_named(job.series.instrument.calendar)
    jobs = []
    for year in range(wanted.end.year + 1, wanted.start.year - 2, -1):
        first, end = date(year, 1, 1), date(year + 1, 1, 1)
        part = interval_between(calendar, job.series.timeframe, first, end).intersection(wanted)
        if part is not None:
            jobs.append(Job(job.series, bounds=Bounds(part.start, part.end)))
    return jobs


def run_to_end(running: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, in a thread of its own where an event loop is running here.

    An interrupt cancels it, and is raised once it has saved what it has.
    """
    if not _has_loop():  # not in a handler: every error would be shown with one of asyncio's before
        return asyncio.run(running)
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[T]]] = Future()

    async def run() -> T:
        task = asyncio.ensure_future(running)
        started.set_result((asyncio.get_running_loop(), task))
        return await task

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="load") as thread:
        result = thread.submit(asyncio.run, run())
        try:
            return result.result()
        except BaseException:  # an interrupt must cancel the load in its thread, too
            if not result.done():
                loop, task = started.result()
                with suppress(RuntimeError):  # the loop has ended meanwhile
                    loop.call_soon_threadsafe(task.cancel)
            raise


def _has_loop() -> bool:
    """Return whether an event loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _frame_of(bars: pa.Table, attrs: Mapping[Any, Any]) -> pd.DataFrame:
    frame: pd.DataFrame = bars.to_pandas().set_index("ts")
    frame.attrs = dict(attrs)
    return frame


def _table(what: str, frame: pd.DataFrame, series: Series, held: pa.Table) -> pa.Table:
    """Return the bars of a frame, sorted and unique; of two with one timestamp the later row.

    Raises:
        UsageError: the frame has other columns, or rows that no bar of the series can be, unless
            they are ``held`` as they are.
    """
    try:
        table = pa.Table.from_pandas(frame.reset_index(), preserve_index=False)
        has_zone = table.schema.field("ts").type.tz is not None
        bars = sorted_unique(table.select(BAR_SCHEMA.names).cast(BAR_SCHEMA))
    except (KeyError, ValueError, TypeError, AttributeError, pa.ArrowException) as error:
        raise UsageError(
            what,
            reason=f"the frame is not one of bars: {error}",
            hint="Keep the index `ts` and the columns of the frames that IbDataLoader returns",
        ) from error
    keys = timestamps(bars)
    changed = timestamps(merge_bars(held, bars).revised)
    is_new = ~np.isin(keys, timestamps(held)) | np.isin(keys, changed)
    odd = implausible_rows(bars, series.instrument.sec_type) | _is_misplaced(bars, series)
    odd &= is_new
    if not has_zone:
        raise UsageError(
            what,
            reason="the timestamps of the frame have no zone",
            hint="Keep the index `ts` in UTC, as in the frames that IbDataLoader returns",
        )
    if odd.any():
        raise UsageError(
            what,
            reason=f"{int(odd.sum())} rows have a timestamp, a date or values that no bar has",
            hint="Leave them out: the gateway's own odd bars are kept by a load",
        )
    return bars


def _is_misplaced(bars: pa.Table, series: Series) -> np.ndarray:
    """Return for each bar whether no bar of the series can have its timestamp and session date."""
    calendar, timeframe = calendar_named(series.instrument.calendar), series.timeframe
    keys = timestamps(bars)
    days = bars["session_date"].to_numpy().astype("datetime64[D]")
    if not timeframe.is_intraday:
        first = keys.astype("datetime64[us]").astype("datetime64[D]")
        is_midnight = first.astype("datetime64[us]").astype(np.int64) == keys
        length = timeframe.length // timedelta(days=1)
        is_monday = (first.astype(np.int64) + 3) % 7 == 0  # 1970-01-01 was a Thursday
        lasts = (days >= first) & (days < first + length)
        return np.asarray(~(is_midnight & lasts & (is_monday | (length == 1))))
    moments = pd.DatetimeIndex(keys.astype("datetime64[us]")).tz_localize("UTC")
    wall = moments.tz_convert(calendar.zone).tz_localize(None).to_numpy().astype("datetime64[us]")
    is_aligned = wall.astype(np.int64) % (timeframe.seconds * 1_000_000) == 0
    known = np.concatenate([calendar.opens, calendar.breaks[:, 1]])
    return np.asarray((calendar.days_of(keys) != days) | ~(is_aligned | np.isin(keys, known)))
