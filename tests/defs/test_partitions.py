"""Partitions: keys, windows, dates."""

from datetime import date

import pytest

from ktrdr_pipelines.defs.partitions import BarPartition, bars_partitions, window_dates
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.universe import Windows

WINDOWS = Windows(first_month=date(2024, 11, 1), first_year=2024)


@pytest.mark.parametrize(
    ("window", "first", "end"),
    [
        ("2024-02", date(2024, 2, 1), date(2024, 3, 1)),
        ("2024-12", date(2024, 12, 1), date(2025, 1, 1)),
        ("2024", date(2024, 1, 1), date(2025, 1, 1)),
    ],
)
def test_window_is_a_month_or_a_year_of_session_dates(window: str, first: date, end: date) -> None:
    """A key with a month is that month, a key without is that year."""
    assert window_dates(window) == (first, end)


@pytest.mark.parametrize("symbol", ["AAPL", "BRK.B", "EURUSD.BID", "0700", "A_B-C"])
def test_partition_key_reads_back(symbol: str) -> None:
    """A symbol with any allowed character is read back from Dagster's key."""
    partition = BarPartition(symbol, "2024-01")
    assert str(partition.key) == f"{symbol}|2024-01"
    assert BarPartition.of(str(partition.key)) == partition


def test_minutes_have_monthly_windows_and_the_others_yearly_ones() -> None:
    """Windows are months for 1m and years for others, up to the current one."""
    for timeframe in Timeframe:
        keys = bars_partitions(timeframe, WINDOWS).get_partitions_def_for_dimension("window")
        first, last = keys.get_partition_keys()[0], keys.get_partition_keys()[-1]
        today = date.today()  # noqa: DTZ011  (Dagster's today, in UTC on both sides)
        if timeframe is Timeframe.M1:
            assert (first, last) == ("2024-11", f"{today:%Y-%m}")
        else:
            assert (first, last) == ("2024", f"{today:%Y}")


def test_each_timeframe_has_its_own_set_of_symbols() -> None:
    """A symbol without a timeframe is not a missing partition of that timeframe."""
    names = {
        bars_partitions(timeframe, WINDOWS).get_partitions_def_for_dimension("symbol").name
        for timeframe in Timeframe
    }
    assert len(names) == len(Timeframe)
