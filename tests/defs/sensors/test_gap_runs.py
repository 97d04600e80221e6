"""Gap runs: which windows a run takes, how many, and which series wait."""

from collections.abc import Collection
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from ktrdr_pipelines.defs.sensors.gap_runs import (
    PastRun,
    gap_runs,
    newest_windows,
    waits_until,
)
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.universe import parse_universe
from ktrdr_pipelines.gaps.due_chunks import Due

AT = datetime(2024, 6, 3, 14, tzinfo=UTC)
UNIVERSE = parse_universe("symbols: {AAPL: {}, MSFT: {}, SPY: {}, IBM: {}, EURUSD: {}}", "here")
YEARS = [str(year) for year in range(2015, 2025)]


def due(symbol: str, timeframe: str, *days: str) -> Due:
    """Return the sessions of some dates as due."""
    series = Series(UNIVERSE.instrument(symbol), Timeframe(timeframe))
    calendar = calendar_named(series.instrument.calendar)
    parts = (
        interval_between(calendar, series.timeframe, day, day + timedelta(days=1))
        for day in map(date.fromisoformat, days)
    )
    return Due(series, IntervalSet(parts), bars=len(days))


def wanted(one: Due) -> Any:
    """Return the windows that a run for what is due would take."""
    return newest_windows(one, YEARS, calendar_named(one.series.instrument.calendar))


ORDER = {Timeframe.D1: ("AAPL", "MSFT", "SPY", "IBM"), Timeframe.M1: ("AAPL", "MSFT")}


def runs_of(*dues: Due, most: int = 24, alone: Collection[Any] = ()) -> list[tuple[str, str, str]]:
    """Return symbols and ends of each run."""
    runs = gap_runs([wanted(one) for one in dues], ORDER, alone=alone, most=most)
    return [("+".join(run.symbols), run.first, run.last) for run in runs]


def every_day(symbol: str, timeframe: str, year: int) -> Due:
    """Return the sessions of January to November of a year as due."""
    days = [date(year, 1, 1) + timedelta(days=number) for number in range(330)]
    return due(symbol, timeframe, *(str(day) for day in days if day.weekday() < 5))


def test_run_takes_the_newest_windows_that_follow_each_other() -> None:
    """A complete window ends the run; older gaps are left to the next one."""
    one = wanted(due("AAPL", "1m", "2019-03-01", "2022-11-15", "2023-12-04", "2024-01-10"))
    assert one.windows == ("2022", "2023", "2024")


@pytest.mark.parametrize(
    ("timeframe", "windows"),
    [("1m", ["2024"]), ("5m", ["2021", "2022", "2023", "2024"]), ("1d", YEARS)],
)
def test_run_takes_windows_by_the_requests_of_what_is_due(
    timeframe: str, windows: list[str]
) -> None:
    """About 200: less than a year of 1m, but at least one window; all years of 1d."""
    parts = [every_day("AAPL", timeframe, int(year)) for year in YEARS]
    series, intervals = parts[0].series, IntervalSet(i for one in parts for i in one.intervals)
    assert list(wanted(Due(series, intervals, bars=1)).windows) == windows


def test_gaps_outside_dagsters_windows_get_no_run() -> None:
    """What lies before the first window is left out; alone it makes no run."""
    assert wanted(due("AAPL", "1m", "2013-05-03", "2015-02-02")).windows == ("2015",)
    assert wanted(due("AAPL", "1m", "2013-05-03")) is None


def test_neighbours_with_the_same_windows_share_a_run() -> None:
    """A symbol between them that lacks nothing, or something else, divides them."""
    days = ("2023-05-03", "2024-05-03")
    aapl, msft, spy, ibm = (due(one, "1d", *days) for one in ORDER[Timeframe.D1])
    assert runs_of(ibm, aapl, spy, msft) == [("AAPL+MSFT+SPY+IBM", "2023", "2024")]
    assert runs_of(aapl, spy, ibm) == [("AAPL", "2023", "2024"), ("SPY+IBM", "2023", "2024")]
    other = due("MSFT", "1d", "2024-05-03")
    assert runs_of(aapl, other, spy) == [
        ("AAPL", "2023", "2024"),
        ("MSFT", "2024", "2024"),
        ("SPY", "2023", "2024"),
    ]
    assert runs_of(due("AAPL", "1m", *days), msft, aapl, most=2) == [
        ("AAPL", "2023", "2024"),
        ("AAPL+MSFT", "2023", "2024"),
    ]


def test_series_that_failed_before_get_runs_of_their_own() -> None:
    """They do not hinder their neighbours."""
    dues = [due(one, "1d", "2024-05-03") for one in ORDER[Timeframe.D1]]
    runs = runs_of(*dues, alone={("MSFT", Timeframe.D1)})
    assert [symbols for symbols, _, _ in runs] == ["AAPL", "MSFT", "SPY+IBM"]


def test_large_work_is_not_shared() -> None:
    """A year of minutes fills a run."""
    dues = [every_day(symbol, "1m", 2024) for symbol in ORDER[Timeframe.M1]]
    assert [symbols for symbols, _, _ in runs_of(*dues)] == ["AAPL", "MSFT"]


def test_the_text_of_a_run_names_its_windows_and_how_many_series() -> None:
    """One line of a tick lists several runs."""
    dues = [wanted(due(one, "1d", "2023-05-03", "2024-05-03")) for one in ORDER[Timeframe.D1]]
    texts = [str(run) for run in gap_runs(dues, ORDER, most=1)]
    assert texts == ["AAPL 1d and 3 more 1d 2023 to 2024"]
    assert str(gap_runs(dues[:1], ORDER, most=1)[0]) == "AAPL 1d 2023 to 2024"


@pytest.mark.parametrize(
    ("symbol", "timeframe", "day", "window"),
    [
        ("EURUSD", "1m", "2023-01-02", "2023"),  # opens on Sunday evening, 1 January
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
    assert wanted(one).windows == (window,)


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
