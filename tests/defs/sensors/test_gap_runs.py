"""From what is due to runs: which windows, how many, and who had better wait."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from ktrdr_pipelines.defs.sensors.gap_runs import (
    PastRun,
    gap_runs,
    waits_until,
    window_caps,
    windows_of,
)
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.universe import parse_universe
from ktrdr_pipelines.gaps.due_chunks import Due

AT = datetime(2024, 6, 3, 14, tzinfo=UTC)
UNIVERSE = parse_universe("symbols: {AAPL: {}, EURUSD: {}}", "here")
MONTHS = [f"{year}-{month:02d}" for year in (2022, 2023, 2024) for month in range(1, 13)]


def due(symbol: str, timeframe: str, *days: str) -> Due:
    """Say that sessions of some dates are due."""
    series = Series(UNIVERSE.instrument(symbol), Timeframe(timeframe))
    calendar = calendar_named(series.instrument.calendar)
    parts = (
        interval_between(calendar, series.timeframe, day, day + timedelta(days=1))
        for day in map(date.fromisoformat, days)
    )
    return Due(series, IntervalSet(parts), bars=len(days))


def run_of(one: Due, windows: list[str], cap: int = 24) -> Any:
    """Give the one run that comes of what is due."""
    calendar = calendar_named(one.series.instrument.calendar)
    timeframe = one.series.timeframe
    [run] = gap_runs(
        [one], {timeframe: windows}, {one.series: calendar}, window_cap={timeframe: cap}
    )
    return run


def test_run_takes_the_newest_windows_that_follow_each_other() -> None:
    """Windows that lack nothing are not in the run; older holes come with the next one."""
    one = due("AAPL", "1m", "2022-03-01", "2023-11-15", "2023-12-04", "2024-01-10")
    run = run_of(one, MONTHS)
    assert (run.first, run.last, run.windows) == ("2023-11", "2024-01", 3)
    assert str(run) == "AAPL 1m 2023-11 to 2024-01"


def test_run_has_at_most_so_many_windows() -> None:
    """The newest of them are first."""
    one = due("AAPL", "1m", *(f"{month}-15" for month in MONTHS))
    run = run_of(one, MONTHS, cap=5)
    assert (run.first, run.last, run.windows) == ("2024-08", "2024-12", 5)


def test_run_is_short_where_a_window_takes_many_requests() -> None:
    """Half a year of minutes, some years of hours, and all days: about 200 requests each."""
    caps = {timeframe.value: number for timeframe, number in window_caps().items()}
    assert caps == {
        "1m": 6,
        "5m": 3,
        "15m": 3,
        "30m": 16,
        "1h": 16,
        "4h": 16,
        "1d": 60,
        "1w": 60,
    }


def test_windows_that_dagster_does_not_have_are_left_out() -> None:
    """A start before the first window can't be run, nor can a session of next month."""
    one = due("AAPL", "1m", "2021-05-03", "2022-02-01")
    assert run_of(one, MONTHS).first == "2022-02"
    series = one.series
    calendar = calendar_named(series.instrument.calendar)
    none = due("AAPL", "1m", "2021-05-03")
    args = ({Timeframe.M1: MONTHS}, {series: calendar})
    assert gap_runs([none], *args, window_cap={Timeframe.M1: 24}) == []


@pytest.mark.parametrize(
    ("symbol", "timeframe", "day", "window"),
    [
        ("EURUSD", "1m", "2024-04-01", "2024-04"),  # opens on Sunday evening, 31 March
        ("EURUSD", "1h", "2024-01-02", "2024"),
        ("AAPL", "1d", "2023-12-29", "2023"),
        ("AAPL", "1d", "2024-01-02", "2024"),
    ],
)
def test_session_belongs_to_the_window_of_its_date(
    symbol: str, timeframe: str, day: str, window: str
) -> None:
    """The evening before it belongs there too, whatever the date is in UTC then."""
    one = due(symbol, timeframe, day)
    assert windows_of(one, calendar_named(one.series.instrument.calendar)) == {window}


def test_series_whose_runs_change_nothing_waits_longer_each_time() -> None:
    """Five minutes, twenty, and so on to six hours; any change ends the waiting."""
    assert waits_until("a", []) is None
    assert waits_until("a", [PastRun("b", AT)]) is None
    waits = [
        waits_until("a", [PastRun("a", AT)] * number + [PastRun("b", AT)]) for number in range(1, 9)
    ]
    assert waits[0] == AT + timedelta(minutes=5)
    assert waits[1] == AT + 4 * timedelta(minutes=5)
    assert waits[-1] == AT + timedelta(hours=6)
    assert waits == sorted(waits)  # type: ignore[type-var]
