"""Partitions: keys, windows, dates."""

from datetime import UTC, date, datetime

import pytest

from ktrdr_pipelines.app.setup import UNIVERSE_EXAMPLE, committed
from ktrdr_pipelines.defs.partitions import (
    BarPartition,
    bars_partitions,
    window_dates,
    window_of,
    windows_partitions,
    windows_per_run,
)
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.universe import Windows, parse_universe

WINDOWS = Windows(first_year_1m=2024, first_year=2023)


def test_window_is_a_year_of_session_dates() -> None:
    """The end is the first date of the next year."""
    assert window_dates("2024") == (date(2024, 1, 1), date(2025, 1, 1))
    assert window_of(date(2024, 12, 31)) == "2024"


def test_month_of_an_earlier_version_lies_in_its_year() -> None:
    """Keys of months are still in Dagster's history."""
    month = BarPartition.of("BRK.B|2024-03")
    assert (month.is_monthly, month.of_year) == (True, BarPartition("BRK.B", "2024"))
    assert not month.of_year.is_monthly


@pytest.mark.parametrize("symbol", ["AAPL", "BRK.B", "EURUSD.BID", "0700", "A_B-C"])
def test_partition_key_reads_back(symbol: str) -> None:
    """A symbol with any allowed character is read back from Dagster's key."""
    partition = BarPartition(symbol, "2024-01")
    assert str(partition.key) == f"{symbol}|2024-01"
    assert BarPartition.of(str(partition.key)) == partition


def test_windows_are_years_up_to_the_current_one() -> None:
    """Those of 1m begin in a year of their own."""
    for timeframe in Timeframe:
        keys = bars_partitions(timeframe, WINDOWS).get_partitions_def_for_dimension("window")
        first, last = keys.get_partition_keys()[0], keys.get_partition_keys()[-1]
        start = "2024" if timeframe is Timeframe.M1 else "2023"
        assert (first, last) == (start, f"{datetime.now(tz=UTC):%Y}")


def test_the_grid_stays_below_what_dagster_advises() -> None:
    """100,000 keys an asset, with 2,000 symbols and the windows that a new store has."""
    text = committed(UNIVERSE_EXAMPLE).decode()
    windows = parse_universe(text, "universe.yaml").windows
    for timeframe in Timeframe:
        keys = windows_partitions(timeframe, windows).get_partition_keys(
            datetime(2038, 1, 1, tzinfo=UTC)
        )
        assert 2_000 * len(keys) <= 100_000


def test_runs_take_windows_by_their_work() -> None:
    """One request serves a year of days, and a day of minutes."""
    sizes = {one.value: windows_per_run(one, 1_000, most=300) for one in Timeframe}
    assert (sizes["1m"], sizes["1h"], sizes["1d"]) == (2, 82, 300)
    assert windows_per_run(Timeframe.M1, 200, most=300) == 1


def test_each_timeframe_has_its_own_set_of_symbols() -> None:
    """A symbol without a timeframe is not a missing partition of that timeframe."""
    names = {
        bars_partitions(timeframe, WINDOWS).get_partitions_def_for_dimension("symbol").name
        for timeframe in Timeframe
    }
    assert len(names) == len(Timeframe)
