"""Which runs the gap sensor starts for due gaps: which windows, how many, and which series wait.

Pure functions of values.

Not here: reading Dagster's runs (``defs.sensors.gap_sensor``), which gaps are due
(``gaps.due_chunks``).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final

from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.gaps.due_chunks import Due
from ktrdr_pipelines.limits import IbLimitsRegistry

REQUESTS_PER_RUN: Final = 200
"""Approximate maximum of requests of a run. With shorter runs, the newest months of all symbols are
loaded before older ones of any symbol; longer runs have less start-up overhead."""

_WINDOW_DAYS: Final = {one: 30 if one is Timeframe.M1 else 365 for one in Timeframe}
_MOST_WINDOWS: Final = 60
_INSTANT: Final = timedelta(microseconds=1)
SeriesName = tuple[str, Timeframe]


@dataclass(frozen=True, slots=True)
class PastRun:
    """An ended run over a series: the fingerprint of what was due when it began, and its end."""

    fingerprint: str
    ended_at: datetime


@dataclass(frozen=True, slots=True)
class GapRun:
    """A run to start: consecutive windows of one series, ``first`` and ``last`` included."""

    series: Series
    first: str
    last: str
    windows: int
    fingerprint: str

    def __str__(self) -> str:
        span = self.first if self.first == self.last else f"{self.first} to {self.last}"
        return f"{self.series} {span}"


def gap_runs(
    due: Iterable[Due],
    windows: Mapping[Timeframe, Sequence[str]],
    calendars: Mapping[Series, SessionCalendar],
    *,
    window_cap: Mapping[Timeframe, int],
) -> list[GapRun]:
    """Return one run per series, over its newest consecutive windows with due gaps.

    A series whose due gaps lie in no window of Dagster gets no run.

    Args:
        due: what is due, in order.
        windows: the window keys that Dagster has of each timeframe, oldest first.
        calendars: the calendar of each series.
        window_cap: maximum number of windows of one run.
    """
    runs = []
    for one in due:
        known = windows[one.series.timeframe]
        touched = windows_of(one, calendars[one.series])
        indexes = [index for index, window in enumerate(known) if window in touched]
        if not indexes:
            continue
        last = first = indexes.pop()
        cap = window_cap[one.series.timeframe]
        while indexes and indexes[-1] == first - 1 and last - first + 1 < cap:
            first = indexes.pop()
        runs.append(
            GapRun(one.series, known[first], known[last], last - first + 1, one.fingerprint)
        )
    return runs


def window_caps() -> dict[Timeframe, int]:
    """Return the maximum number of windows of one run, from the requests that a window takes."""
    days = IbLimitsRegistry.SAFE_DAYS.value
    fitting = {one: REQUESTS_PER_RUN * days[one.value] // _WINDOW_DAYS[one] for one in Timeframe}
    return {one: min(max(number, 1), _MOST_WINDOWS) for one, number in fitting.items()}


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


def windows_of(due: Due, calendar: SessionCalendar) -> set[str]:
    """Return the keys of the windows that the due intervals touch."""
    timeframe = due.series.timeframe
    found: set[str] = set()
    for part in due.intervals:
        first, last = part.start, part.end - _INSTANT
        if timeframe.is_intraday:
            found |= _windows_between(timeframe, calendar.day_of(first), calendar.day_of(last))
        else:
            found |= _windows_between(timeframe, first.date(), last.date())
    return found


def _windows_between(timeframe: Timeframe, first: date, last: date) -> set[str]:
    years = range(first.year, last.year + 1)
    if timeframe is not Timeframe.M1:
        return {f"{year:04d}" for year in years}
    months = ((year, month) for year in years for month in range(1, 13))
    ends = (first.year, first.month), (last.year, last.month)
    return {f"{y:04d}-{m:02d}" for y, m in months if ends[0] <= (y, m) <= ends[1]}
