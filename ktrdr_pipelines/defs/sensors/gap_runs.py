"""From what is due to runs: which windows of which series, how many, and which had better wait.

Decisions over values; not here: reading Dagster's runs (``defs.sensors.gap_sensor``), which gaps
are due (``gaps.due_chunks``).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final

from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.gaps.due_chunks import Due
from ktrdr_pipelines.limits import IbLimitsRegistry

FIRST_WAIT, LONGEST_WAIT = timedelta(minutes=5), timedelta(hours=6)
"""How long a series waits after a run that changed nothing; each such run makes it four times."""

REQUESTS_PER_RUN: Final = 200
"""About how many requests a run makes at most. Shorter runs let the newest months of all symbols
come before the older ones of any; longer ones waste less on starting."""

_WINDOW_DAYS: Final = {one: 30 if one is Timeframe.M1 else 365 for one in Timeframe}
_MOST_WINDOWS: Final = 60
_INSTANT: Final = timedelta(microseconds=1)
SeriesName = tuple[str, Timeframe]


@dataclass(frozen=True, slots=True)
class PastRun:
    """An ended run over a series: what was due when it began, and when it ended."""

    print: str
    ended_at: datetime


@dataclass(frozen=True, slots=True)
class GapRun:
    """A run to start: windows of one series that follow each other, both ends in."""

    series: Series
    first: str
    last: str
    windows: int
    print: str

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
    """Give one run a series, over its newest windows that lack something and follow each other.

    Args:
        due: what is due, in order.
        windows: the windows that Dagster has of each timeframe, oldest first.
        calendars: the calendar of each series.
        window_cap: most windows of one run.
    """
    runs = (
        _run(one, windows[timeframe], calendars[one.series], window_cap[timeframe])
        for one in due
        for timeframe in (one.series.timeframe,)
    )
    return [run for run in runs if run]


def window_caps() -> dict[Timeframe, int]:
    """Give the most windows of one run, by how many requests a window takes."""
    days = IbLimitsRegistry.SAFE_DAYS.value
    fitting = {one: REQUESTS_PER_RUN * days[one.value] // _WINDOW_DAYS[one] for one in Timeframe}
    return {one: min(max(number, 1), _MOST_WINDOWS) for one, number in fitting.items()}


def waits_until(due_print: str, past: Sequence[PastRun]) -> datetime | None:
    """Say until when a series had better wait, or None where it need not.

    Args:
        due_print: what is due now.
        past: the ended runs of the series, newest first.

    A run after which the same is due has changed nothing; one that failed before it could ask
    leaves no attempt behind that would hold it back.
    """
    failures = 0
    for run in past:
        if run.print != due_print:
            break
        failures += 1
    if not failures:
        return None
    factor: int = 4 ** min(failures - 1, 6)
    return past[0].ended_at + min(FIRST_WAIT * factor, LONGEST_WAIT)


def windows_of(due: Due, calendar: SessionCalendar) -> set[str]:
    """Name the windows that the due intervals touch."""
    found: set[str] = set()
    for part in due.intervals:
        found |= _windows_between(due.series.timeframe, *_dates(due.series, part, calendar))
    return found


def _run(due: Due, known: Sequence[str], calendar: SessionCalendar, cap: int) -> GapRun | None:
    touched = windows_of(due, calendar)
    indexes = [index for index, window in enumerate(known) if window in touched]
    if not indexes:
        return None
    last = first = indexes.pop()
    while indexes and indexes[-1] == first - 1 and last - first + 1 < cap:
        first = indexes.pop()
    return GapRun(due.series, known[first], known[last], last - first + 1, due.print)


def _dates(series: Series, part: Interval, calendar: SessionCalendar) -> tuple[date, date]:
    """Give the session dates of the first and the last stamp."""
    first, last = part.start, part.end - _INSTANT
    if series.timeframe.is_intraday:
        return calendar.day_of(first), calendar.day_of(last)
    return first.date(), last.date()


def _windows_between(timeframe: Timeframe, first: date, last: date) -> set[str]:
    years = range(first.year, last.year + 1)
    if timeframe is not Timeframe.M1:
        return {f"{year:04d}" for year in years}
    months = ((year, month) for year in years for month in range(1, 13))
    ends = (first.year, first.month), (last.year, last.month)
    return {f"{y:04d}-{m:02d}" for y, m in months if ends[0] <= (y, m) <= ends[1]}
