"""Partitions: keys, windows, dates."""

from datetime import UTC, date, datetime

import pytest

from ktrdr_pipelines.app.setup import UNIVERSE_EXAMPLE, committed
from ktrdr_pipelines.defs.partitions import (
    MOST_WINDOWS,
    BarPartition,
    bars_partitions,
    window_dates,
    window_of,
    windows_partitions,
    windows_per_run,
)
from ktrdr_pipelines.domain.planning.width_learning import LearnedWidth, Trial, WidthSample
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.universe import Windows, parse_universe
from ktrdr_pipelines.gaps.estimates import Rates


def learned(bars_per_s: float) -> LearnedWidth:
    """Return a learned width of ten sessions, with its rate."""
    trial = Trial((WidthSample(round(bars_per_s), 1.0),) * 3)
    return LearnedWidth(10, 0.0, 0.0, {10: trial})


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
    """A run takes at most so long if its windows hold nothing, whatever its timeframe."""
    assumed = {one: windows_per_run(one, Rates()) for one in Timeframe}
    assert 50 < assumed[Timeframe.M1] < assumed[Timeframe.M5] <= MOST_WINDOWS
    assert assumed[Timeframe.D1] == assumed[Timeframe.W1] == MOST_WINDOWS


@pytest.mark.parametrize(
    ("rates", "windows"),
    [
        (Rates(request_s={Timeframe.M1: 1.0}), 21),  # 252 requests a year
        (Rates(request_s={Timeframe.M1: 0.001}), MOST_WINDOWS),
        (Rates(request_s={Timeframe.M1: 10_000.0}), 1),
        (Rates(request_s={Timeframe.H1: 1.0}), windows_per_run(Timeframe.M1, Rates())),
        (Rates(conservative=True), 2),
        (Rates(widths={"1m STK 6.5h TRADES": learned(1_000.0)}), 54),  # 98,280 bars a year
        (Rates(widths={"1m STK 6.5h TRADES": learned(1_000.0), "1m FUT 23h": learned(100.0)}), 5),
        (
            Rates(widths={"5m STK 6.5h TRADES": learned(1.0)}),
            windows_per_run(Timeframe.M1, Rates()),
        ),
    ],
)
def test_runs_of_minutes_follow_what_the_gateway_has_shown(rates: Rates, windows: int) -> None:
    """Measured seconds and learned widths of its timeframe count; of several kinds the slowest."""
    assert windows_per_run(Timeframe.M1, rates) == windows


def test_each_timeframe_has_its_own_set_of_symbols() -> None:
    """A symbol without a timeframe is not a missing partition of that timeframe."""
    names = {
        bars_partitions(timeframe, WINDOWS).get_partitions_def_for_dimension("symbol").name
        for timeframe in Timeframe
    }
    assert len(names) == len(Timeframe)
