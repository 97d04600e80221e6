"""Which runs the gap sensor starts for due gaps: which windows, how many, and which series wait.

Pure functions of values.

Not here: reading Dagster's runs (``defs.sensors.gap_sensor``), which gaps are due
(``gaps.due_chunks``).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from ktrdr_pipelines.defs.partitions import MOST_WINDOWS, window_dates
from ktrdr_pipelines.defs.runs.active_runs import SeriesName
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar, interval_between
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.gaps.due_chunks import Due
from ktrdr_pipelines.limits import IbLimitsRegistry

REQUESTS_PER_RUN: Final = 200
"""Approximate maximum of requests of a run. With shorter runs, the newest years of all symbols are
loaded before older ones of any symbol; longer runs have less start-up overhead."""

_DAY_US: Final = 86_400_000_000


@dataclass(frozen=True, slots=True)
class PastRun:
    """An ended run over a series: the fingerprint of what was due when it began, and its end."""

    fingerprint: str
    ended_at: datetime


@dataclass(frozen=True, slots=True)
class GapRun:
    """A run to start: consecutive windows of one series, ``first`` and ``last`` included.

    It may load several series of one timeframe, neighbours in Dagster's order of symbols: a run
    covers every symbol from the first to the last, in all of its windows.
    """

    series: tuple[Series, ...]
    first: str
    last: str
    fingerprints: tuple[str, ...]

    @property
    def timeframe(self) -> Timeframe:
        """The timeframe of all its series."""
        return self.series[0].timeframe

    @property
    def ends(self) -> tuple[str, str]:
        """The first and the last window."""
        return self.first, self.last

    @property
    def symbols(self) -> list[str]:
        """The symbols, in Dagster's order."""
        return [one.symbol for one in self.series]

    def __str__(self) -> str:
        span = self.first if self.first == self.last else f"{self.first} to {self.last}"
        more = f" and {len(self.series) - 1} more {self.timeframe}" if len(self.series) > 1 else ""
        return f"{self.series[0]}{more} {span}"


@dataclass(frozen=True, slots=True)
class SeriesWindows:
    """The windows of one series that a run would load now, and about how many requests they take.

    ``windows`` are consecutive, oldest first.
    """

    due: Due
    windows: tuple[str, ...]
    requests: int


def newest_windows(
    due: Due, known: Sequence[str], calendar: SessionCalendar
) -> SeriesWindows | None:
    """Return the newest consecutive windows with due gaps, as many as a run loads.

    Args:
        due: what is due of a series.
        known: the window keys that Dagster has of its timeframe, oldest first.
        calendar: that of the series.

    Returns:
        None if what is due lies in no window of Dagster.
    """
    timeframe = due.series.timeframe
    windows: list[str] = []
    requests = 0
    for name in reversed(known):
        lacking = due.intervals.clip(interval_between(calendar, timeframe, *window_dates(name)))
        if not lacking and windows:
            break
        if not lacking:
            continue
        more = _requests_for(lacking, timeframe)
        if windows and requests + more > REQUESTS_PER_RUN:
            break
        windows.insert(0, name)
        requests += more
    return SeriesWindows(due, tuple(windows), requests) if windows else None


def gap_runs(
    wanted: Sequence[SeriesWindows],
    orders: Mapping[Timeframe, Sequence[str]],
    *,
    alone: Collection[SeriesName] = (),
    most: int,
) -> list[GapRun]:
    """Return at most ``most`` runs, in the order of what is wanted.

    Neighbours that want the same windows share a run, up to its maximum of requests and windows.

    Args:
        wanted: what each series would load, the most urgent first.
        orders: Dagster's order of symbols of each timeframe.
        alone: series that get runs of their own: one that fails must not hinder others.
        most: the maximum number of runs.
    """
    left = {(one.due.series.symbol, one.due.series.timeframe): one for one in wanted}
    positions = {
        timeframe: {symbol: position for position, symbol in enumerate(order)}
        for timeframe, order in orders.items()
    }
    runs: list[GapRun] = []
    for one in wanted:
        name = one.due.series.symbol, one.due.series.timeframe
        if len(runs) == most:
            break
        if name not in left:
            continue
        joined = [left.pop(name)]
        if name not in alone:
            order, position = orders[name[1]], positions[name[1]][name[0]]
            beside = {key: value for key, value in left.items() if key not in alone}
            after = [(symbol, name[1]) for symbol in order[position + 1 :]]
            before = [(symbol, name[1]) for symbol in reversed(order[:position])]
            joined += _neighbours(joined, after, beside)
            joined[:0] = reversed(_neighbours(joined, before, beside))
            for part in joined:
                left.pop((part.due.series.symbol, part.due.series.timeframe), None)
        runs.append(
            GapRun(
                tuple(part.due.series for part in joined),
                one.windows[0],
                one.windows[-1],
                tuple(part.due.fingerprint for part in joined),
            )
        )
    return runs


def _neighbours(
    joined: Sequence[SeriesWindows],
    names: Iterable[SeriesName],
    beside: Mapping[SeriesName, SeriesWindows],
) -> list[SeriesWindows]:
    """Return those of consecutive series that may share a run with the ones joined already."""
    windows, requests = joined[0].windows, sum(one.requests for one in joined)
    found: list[SeriesWindows] = []
    for name in names:
        one = beside.get(name)
        if one is None or one.windows != windows:
            break
        requests += one.requests
        count = len(joined) + len(found) + 1
        if requests > REQUESTS_PER_RUN or count * len(windows) > MOST_WINDOWS:
            break
        found.append(one)
    return found


def _requests_for(lacking: IntervalSet, timeframe: Timeframe) -> int:
    """Return about how many requests intervals take, each of the safe width."""
    width = IbLimitsRegistry.SAFE_DAYS.value[timeframe.value] * _DAY_US
    first, last = lacking.starts // width, (lacking.ends - 1) // width
    shared = int((first[1:] == last[:-1]).sum())
    return int((last - first + 1).sum()) - shared


def waits_until(fingerprint: str, past: Sequence[PastRun]) -> datetime | None:
    """Return until when a series should wait, or None if it need not.

    If the same is due after a run, that run changed nothing. A run that failed before its first
    request leaves no attempt in the ledger that would defer the next one; this wait does.

    Args:
        fingerprint: that of what is due now.
        past: the ended runs of the series, newest first.
    """
    failures = 0
    for run in past:
        if run.fingerprint != fingerprint:
            break
        failures += 1
    if not failures:
        return None
    wait_s = IbLimitsRegistry.RERUN_PAUSE_S.value.delay_s(failures)
    return past[0].ended_at + timedelta(seconds=wait_s)
