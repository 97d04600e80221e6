"""Timeframes: names, lengths and IB's bar sizes."""

from datetime import timedelta

import pytest

from ktrdr_pipelines.domain.timeframes import Timeframe

NAMES = ["1m", "5m", "15m", "30m", "1h", "4h", "1d", "1w"]
SECONDS = [60, 300, 900, 1800, 3600, 14400, 86400, 604800]
BAR_SIZES = [
    "1 min",
    "5 mins",
    "15 mins",
    "30 mins",
    "1 hour",
    "4 hours",
    "1 day",
    "1 week",
]


@pytest.mark.parametrize(
    ("name", "seconds", "bar_size"), list(zip(NAMES, SECONDS, BAR_SIZES, strict=True))
)
def test_each_timeframe_has_its_length_and_ib_name(name: str, seconds: int, bar_size: str) -> None:
    """Seconds, duration and IB's name of each timeframe."""
    timeframe = Timeframe(name)
    assert timeframe.seconds == seconds
    assert timeframe.length == timedelta(seconds=seconds)
    assert timeframe.ib_bar_size == bar_size


def test_only_days_and_weeks_have_dates_as_timestamps() -> None:
    """Timestamps of shorter bars are times."""
    assert [str(one) for one in Timeframe if not one.is_intraday] == ["1d", "1w"]


def test_only_the_shortest_are_filed_by_year() -> None:
    """1m and 5m have too many bars for one file."""
    assert [str(one) for one in Timeframe if one.is_yearly_filed] == ["1m", "5m"]


def test_there_are_eight_timeframes_shortest_first() -> None:
    """The order of the names is the order of the lengths, and there are no others."""
    assert [str(timeframe) for timeframe in Timeframe] == NAMES


@pytest.mark.parametrize("name", ["1 min", "1M", "60", "", "2h"])
def test_other_names_are_no_timeframes(name: str) -> None:
    """Names are exact: no bar sizes, no capitals, no other lengths."""
    with pytest.raises(ValueError, match="not a valid Timeframe"):
        Timeframe(name)
