from datetime import timedelta

import pytest

from ktrdr_pipelines.core.timeframes import Timeframe

FACTS = [
    ("1m", 60, True, True, "1 min"),
    ("5m", 300, True, True, "5 mins"),
    ("15m", 900, True, False, "15 mins"),
    ("30m", 1800, True, False, "30 mins"),
    ("1h", 3600, True, False, "1 hour"),
    ("4h", 14400, True, False, "4 hours"),
    ("1d", 86400, False, False, "1 day"),
    ("1w", 604800, False, False, "1 week"),
]


@pytest.mark.parametrize(("name", "seconds", "intraday", "yearly_filed", "bar_size"), FACTS)
def test_each_timeframe_has_its_length_and_ib_name(
    name: str, seconds: int, intraday: bool, yearly_filed: bool, bar_size: str
) -> None:
    """A timeframe knows its length, its axis, how it is filed and what IB calls it."""
    timeframe = Timeframe(name)
    assert timeframe.seconds == seconds
    assert timeframe.length == timedelta(seconds=seconds)
    assert timeframe.is_intraday is intraday
    assert timeframe.is_yearly_filed is yearly_filed
    assert timeframe.ib_bar_size == bar_size


def test_there_are_eight_timeframes_shortest_first() -> None:
    """The order of the names is the order of the lengths, and there are no others."""
    assert [str(timeframe) for timeframe in Timeframe] == [name for name, *_ in FACTS]


@pytest.mark.parametrize("name", ["1 min", "1M", "60", "", "2h"])
def test_other_names_are_no_timeframes(name: str) -> None:
    """Names are exact: no bar sizes, no capitals, no other lengths."""
    with pytest.raises(ValueError, match="not a valid Timeframe"):
        Timeframe(name)
