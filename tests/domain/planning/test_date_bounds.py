"""Dates and instants on the command line."""

import re
from datetime import UTC, date, datetime

import pytest

from ktrdr_pipelines.domain.instruments import Instrument, SecType, Series, WhatToShow
from ktrdr_pipelines.domain.planning.date_bounds import parse_bound, parse_date_range, parse_instant
from ktrdr_pipelines.domain.planning.jobs import Bounds
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import UsageError

NOW = datetime(2024, 1, 10, 20, 0, tzinfo=UTC)


def series(timeframe: Timeframe, calendar: str = "XNYS.RTH") -> Series:
    """Return a series with a calendar."""
    cash = calendar == "FX"
    return Series(
        Instrument(
            symbol="EURUSD" if cash else "AAPL",
            ib_symbol="EUR" if cash else "AAPL",
            sec_type=SecType.CASH if cash else SecType.STK,
            exchange="SMART",
            currency="USD",
            what_to_show=WhatToShow.TRADES,
            use_rth=not cash,
            calendar=calendar,
            timeframes=(timeframe,),
            start=date(2020, 1, 1),
        ),
        timeframe,
    )


def bounds(timeframe: Timeframe, start: str, end: str, calendar: str = "XNYS.RTH") -> Bounds:
    """Return the bounds that both options give."""
    return parse_date_range(start, end).bounds(series(timeframe, calendar), NOW)


def at(text: str) -> datetime:
    """Return an instant."""
    return datetime.fromisoformat(text)


def test_dates_are_session_dates_of_the_exchange() -> None:
    """A date begins at midnight in New York; the start is included, the end is not."""
    found = bounds(Timeframe.H1, "2024-01-03", "2024-01-05")
    assert found == Bounds(at("2024-01-03T05:00Z"), at("2024-01-05T05:00Z"))


def test_dates_of_currencies_begin_the_evening_before() -> None:
    """A session date of spot FX begins at 17:00 New York of the day before."""
    found = bounds(Timeframe.H1, "2024-01-03", "2024-01-05", "FX")
    assert found == Bounds(at("2024-01-02T22:00Z"), at("2024-01-04T22:00Z"))


def test_instants_are_bounds_of_intraday_bars() -> None:
    """An instant in any zone is converted to UTC."""
    found = bounds(Timeframe.M5, "2024-01-03T10:00:00-05:00", "2024-01-03T17:00:00+01:00")
    assert found == Bounds(at("2024-01-03T15:00Z"), at("2024-01-03T16:00Z"))


def test_instants_stand_for_their_session_date_for_daily_bars() -> None:
    """For 1d an instant means its session date."""
    found = bounds(Timeframe.D1, "2024-01-03T02:00:00Z", "2024-01-05T15:00:00Z")
    assert found == Bounds(at("2024-01-02T00:00Z"), at("2024-01-05T00:00Z"))


def test_weeks_belong_to_the_date_of_their_monday() -> None:
    """For 1w both ends move to the next Monday."""
    found = bounds(Timeframe.W1, "2024-01-02", "2024-01-09")
    assert found == Bounds(at("2024-01-08T00:00Z"), at("2024-01-15T00:00Z"))


def test_without_options_there_are_no_bounds() -> None:
    """Without options the universe and the clock decide."""
    assert parse_date_range(None, None).bounds(series(Timeframe.D1), NOW) == Bounds()


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2024-01-10", "2024-01-11"),
        ("2024-01-10T20:00:00Z", None),
        (None, "2024-01-10T20:00:00Z"),
        (None, "2024-01-11"),
    ],
)
def test_the_latest_allowed_is_allowed(start: str | None, end: str | None) -> None:
    """Today may be the start, and tomorrow the end."""
    parse_date_range(start, end).bounds(series(Timeframe.H1), NOW)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ("2024-01-11", None, "2024-01-11: in the future. Hint: The latest allowed is 2024-01-10"),
        (None, "2024-01-12", "2024-01-12: in the future. Hint: The latest allowed is 2024-01-11"),
        ("2024-01-10T20:00:01Z", None, "allowed is 2024-01-10T20:00:00Z"),
        (None, "2024-01-10T20:00:01Z", "allowed is 2024-01-10T20:00:00Z"),
        ("2024-01-05", "2024-01-04", "reversed"),
        ("2024-01-05", "2024-01-05", "reversed"),
        ("2024-01-05T15:00:00Z", "2024-01-05T10:00:00-05:00", "reversed"),
        ("2024-01-05T06:00:00Z", "2024-01-05", "reversed"),
    ],
)
def test_a_future_or_reversed_range_is_refused(
    start: str | None, end: str | None, expected: str
) -> None:
    """The text names the option, the value and the latest that is allowed."""
    with pytest.raises(UsageError, match="--") as refused:
        parse_date_range(start, end).bounds(series(Timeframe.D1), NOW)
    assert expected in str(refused.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-01-05T14:30:00", "without a zone"),
        ("20240105", "without a zone"),
        ("yesterday", "neither a date nor an instant"),
        ("2024-02-30", "neither a date nor an instant"),
        ("", "neither a date nor an instant"),
        ("1969-12-31", "outside the known calendars"),
        ("0001-01-01T00:00:00+14:00", "outside the known calendars"),
        ("2051-01-01", "outside the known calendars"),
    ],
)
def test_an_invalid_bound_is_refused(text: str, expected: str) -> None:
    """The text names the option, the value and what is wrong with it."""
    with pytest.raises(UsageError, match=f"--start {re.escape(text)}.*{expected}"):
        parse_bound("--start", text)


def test_a_date_is_refused_where_an_instant_is_needed() -> None:
    """A clock starts at an instant."""
    with pytest.raises(UsageError, match=r"not an instant.*the time and the zone"):
        parse_instant("--now", "2024-01-05")
