"""Gap runs: which windows a run takes, how many, and which series wait."""

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
    """Return the sessions of some dates as due."""
    series = Series(UNIVERSE.instrument(symbol), Timeframe(timeframe))
    calendar = calendar_named(series.instrument.calendar)
    parts = (
        interval_between(calendar, series.timeframe, day, day + timedelta(days=1))
        for day in map(date.fromisoformat, days)
    )
    return Due(series, IntervalSet(parts), bars=len(days))


def run_of(one: Due, windows: list[str], cap: int = 24) -> Any:
    """Return the one run for what is due."""
    calendar = calendar_named(one.series.instrument.calendar)
    timeframe = one.series.timeframe
    [run] = gap_runs(
        [one], {timeframe: windows}, {one.series: calendar}, window_cap={timeframe: cap}
    )
    return run


def test_run_takes_the_newest_windows_that_follow_each_other() -> None:
    """A complete window ends the run; older gaps are left to the next one."""
    one = due("AAPL", "1m", "2022-03-01", "2023-11-15", "2023-12-04", "2024-01-10")
    run = run_of(one, MONTHS)
    assert (run.first, run.last, run.windows) == ("2023-11", "2024-01", 3)
    assert str(run) == "AAPL 1m 2023-11 to 2024-01"


def test_run_takes_no_more_windows_than_the_limit() -> None:
    """The newest windows are taken first."""
    one = due("AAPL", "1m", *(f"{month}-15" for month in MONTHS))
    run = run_of(one, MONTHS, cap=5)
    assert (run.first, run.last, run.windows) == ("2024-08", "2024-12", 5)


def test_window_limits_follow_from_the_requests_of_a_window() -> None:
    """About 200 requests: half a year of 1m, some years of 1h, all years of 1d."""
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


def test_gaps_outside_dagsters_windows_get_no_run() -> None:
    """What lies before the first window is left out; alone it makes no run."""
    one = due("AAPL", "1m", "2021-05-03", "2022-02-01")
    assert run_of(one, MONTHS).first == "2022-02"
    series = one.series
    calendar = calendar_named(series.instrument.calendar)
    before = due("AAPL", "1m", "2021-05-03")
    args = ({Timeframe.M1: MONTHS}, {series: calendar})
    assert gap_runs([before], *args, window_cap={Timeframe.M1: 24}) == []


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
    """The session date decides, whatever the UTC date of the open is."""
    one = due(symbol, timeframe, day)
    assert windows_of(one, calendar_named(one.series.instrument.calendar)) == {window}


def test_series_whose_runs_change_nothing_waits_longer_each_time() -> None:
    """Five minutes, twenty, and so on to six hours; a change of what is due ends the wait."""
    assert waits_until("a", []) is None
    assert waits_until("a", [PastRun("b", AT)]) is None
    waits = [
        waits_until("a", [PastRun("a", AT)] * number + [PastRun("b", AT)]) for number in range(1, 9)
    ]
    assert waits[0] == AT + timedelta(minutes=5)
    assert waits[1] == AT + 4 * timedelta(minutes=5)
    assert waits[-1] == AT + timedelta(hours=6)
    assert waits == sorted(waits)  # type: ignore[type-var]
