"""Which bar sizes may be asked with which durations, restated by hand from IB's tables."""

from typing import Any

import pytest

from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.requests.durations import (
    LEGAL_SIZES,
    SIZE_BY_TEXT,
    SIZES,
    DurationTable,
    parse_duration,
    step_refusal,
)

TOO_LONG = "Time length exceed max."


@pytest.mark.parametrize(
    ("table", "duration", "size", "refusal"),
    [
        ("safe", "60 S", "1 secs", None),
        ("safe", "1800 S", "1 secs", None),
        ("safe", "3600 S", "1 secs", "invalid step: 1"),
        ("safe", "28800 S", "30 secs", None),
        ("safe", "28801 S", "8 hours", TOO_LONG),
        ("safe", "1 D", "1 min", None),
        ("safe", "1 D", "30 secs", "invalid step: 30"),
        ("safe", "2 D", "1 min", "invalid step: 60"),
        ("safe", "2 D", "2 mins", None),
        ("safe", "3 D", "1 hour", TOO_LONG),
        ("safe", "1 W", "3 mins", None),
        ("safe", "1 M", "30 mins", None),
        ("safe", "1 M", "20 mins", "invalid step: 1200"),
        ("safe", "1 Y", "1 day", None),
        ("safe", "1 Y", "1 hour", "invalid step: 3600"),
        ("safe", "2 Y", "1 month", TOO_LONG),
        ("wide", "86400 S", "1 secs", None),
        ("wide", "1 D", "1 secs", "invalid step: 1"),
        ("wide", "1 D", "5 secs", None),
        ("wide", "5 D", "1 day", None),
        ("wide", "365 D", "1 min", None),
        ("wide", "1 W", "5 secs", "invalid step: 5"),
        ("wide", "1 M", "15 secs", "invalid step: 15"),
        ("wide", "1 Y", "30 secs", "invalid step: 30"),
        ("wide", "68 Y", "1 month", None),
        ("any", "68 Y", "1 secs", None),
    ],
)
def test_tables_allow_and_refuse(table: str, duration: str, size: str, refusal: str | None) -> None:
    """A bar too small for its duration is an invalid step, a duration in no row is too long."""
    read = parse_duration(duration)
    assert step_refusal(DurationTable(table), read, SIZE_BY_TEXT[size]) == refusal


def test_every_legal_size_is_served() -> None:
    """The sizes are those that IB documents, and the gateway's list of them is IB's own text."""
    minutes = {f"{count} mins" for count in (2, 3, 5, 10, 15, 20, 30)}
    hours = {f"{count} hours" for count in (2, 3, 4, 8)}
    seconds = {f"{count} secs" for count in (1, 5, 10, 15, 30)}
    whole = {"1 min", "1 hour", "1 day", "1 week", "1 month"}
    assert {size.text for size in SIZES} == seconds | minutes | hours | whole
    assert list(SIZES) == sorted(SIZES)
    assert LEGAL_SIZES == (
        "1 secs, 5 secs, 10 secs, 15 secs, 30 secs, 1 min, 2 mins, 3 mins, 5 mins, 10 mins, "
        "15 mins, 20 mins, 30 mins, 1 hour, 2 hours, 3 hours, 4 hours, 8 hours, 1 day, 1W, 1M"
    )


def test_small_bars_end_six_months_ago(asker: Any, synthetic: SyntheticMarket) -> None:
    """Bars of 30 s are there for 180 days, of a minute for ever."""
    ask = asker(synthetic)
    old, newer = "20230712-15:00:00", "20230717-21:00:00"
    assert ask.bars("AAPL", "30 secs", "600 S", old).errors[0][1].endswith("AAPL@SMART Trades")
    assert len(ask.bars("AAPL", "30 secs", "1 D", newer).bars) == 780
    assert len(ask.bars("AAPL", "1 min", "600 S", old).bars) == 10
