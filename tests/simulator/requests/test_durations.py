"""What a duration reaches back to: expectations written by hand from the calendar of 2023/24.

Monday 15 January 2024 was a holiday, Friday 29 March 2024 Good Friday; 23 November 2023 was
Thanksgiving and the 24th a half day; clocks went forward on Sunday 10 March 2024.
"""

from datetime import UTC, date, datetime
from typing import Any

import pytest

from ktrdr_pipelines.limits import CodeClass, IbLimitsRegistry
from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.requests.durations import (
    LEGAL_SIZES,
    SIZE_BY_TEXT,
    SIZES,
    DurationTable,
    parse_duration,
    step_refusal,
)

NEW_YORK = " US/Eastern"

LATER = "2024-12-31T00:00:00+00:00"


@pytest.fixture
def requester(new_requester: Any, synthetic: SyntheticMarket) -> Any:
    """Return a requester on the last day of 2024, so that no end is in the future."""
    return new_requester(synthetic, now=LATER)


@pytest.mark.parametrize(
    ("end", "duration", "days"),
    [
        # on a holiday and on the weekend before it: the session before
        ("20240115 15:00:00", "1 D", ["20240112"]),
        ("20240113 12:00:00", "1 D", ["20240112"]),
        # before the open, and at it to the second: the session before
        ("20240116 08:00:00", "1 D", ["20240112"]),
        ("20240116 09:30:00", "1 D", ["20240112"]),
        # inside a session and at its close: that session
        ("20240116 09:30:01", "1 D", ["20240116"]),
        ("20240116 16:00:00", "1 D", ["20240116"]),
        ("20240116 23:00:00", "1 D", ["20240116"]),
        ("20240116 12:00:00", "2 D", ["20240112", "20240116"]),
        # eight sessions back from a Sunday
        (
            "20240121 12:00:00",
            "8 D",
            [f"202401{day:02}" for day in (9, 10, 11, 12, 16, 17, 18, 19)],
        ),
        # weeks, months and years are calendar time
        ("20240119 16:00:00", "1 W", [f"202401{day}" for day in (16, 17, 18, 19)]),
        ("20240117 12:00:00", "1 W", ["20240111", "20240112", "20240116", "20240117"]),
    ],
)
def test_durations_of_a_stock_count_sessions(
    requester: Any, end: str, duration: str, days: list[str]
) -> None:
    """``N D`` is N sessions back; weeks end where the same weekday began."""
    assert requester.bars("AAPL", "1 hour", duration, end + NEW_YORK).days == days


@pytest.mark.parametrize(
    ("end", "duration", "first", "last"),
    [
        ("20240331 12:00:00", "1 M", "20240229", "20240328"),
        ("20240229 16:00:00", "1 Y", "20230301", "20240229"),
        ("20240105 16:00:00", "52 W", "20230109", "20240105"),
        ("20240105 16:00:00", "12 M", "20230106", "20240105"),
    ],
)
def test_months_and_years_reach_to_the_same_day(
    requester: Any, *, end: str, duration: str, first: str, last: str
) -> None:
    """The first session is after the same day a month or year before."""
    days = requester.bars("SPY", "1 day", duration, end + NEW_YORK).days
    assert (days[0], days[-1]) == (first, last)


@pytest.mark.parametrize(
    ("end", "seconds", "first", "bars"),
    [
        # inside a session, which 1800 s of the one before it fill up
        ("20240116 10:40:00", 4200, "20240116 09:30", 3),
        ("20240116 10:40:00", 6000, "20240112 15:30", 4),
        # in closed hours, over a weekend with a holiday behind it
        ("20240116 08:00:00", 3600, "20240112 15:00", 2),
        ("20240115 12:00:00", 3601, "20240112 14:30", 3),
        # a whole session, and one second more
        ("20240116 16:00:00", 23_400, "20240116 09:30", 13),
        ("20240116 16:00:00", 23_401, "20240112 15:30", 14),
        # over the half day after Thanksgiving
        ("20231127 09:40:00", 600 + 12_600 + 60, "20231122 15:30", 9),
    ],
)
def test_seconds_are_those_of_trading(
    requester: Any, *, end: str, seconds: int, first: str, bars: int
) -> None:
    """S skips closed hours, and cuts the first bar at its start."""
    response = requester.bars("AAPL", "30 mins", f"{seconds} S", end + NEW_YORK)
    assert (response.dates[0][:14], len(response.bars)) == (first, bars)


def test_a_first_bar_that_seconds_cut_holds_only_its_rest(
    new_requester: Any, synthetic: SyntheticMarket
) -> None:
    """One second of the half hour is left."""
    requester = new_requester(synthetic, now="2024-01-17T00:00:00+00:00")
    response = requester.bars("AAPL", "30 mins", "23401 S", "20240116 16:00:00" + NEW_YORK)
    second = requester.bars("AAPL", "1 secs", "1 S", "20240112 16:00:00" + NEW_YORK)
    assert response.bars[0][1:6] == second.bars[0][1:6]


def test_a_day_of_seconds_reaches_back_almost_four_sessions(
    new_requester: Any, synthetic: SyntheticMarket
) -> None:
    """86400 s are 3.69 sessions of 23,400 s, as at a live gateway.

    Source: https://github.com/wboayue/rust-ibapi/issues/835 (grade L).
    """
    requester = new_requester(synthetic, now="2026-09-18T12:00:00+00:00")
    response = requester.bars("AAPL", "1 hour", "86400 S", "20260918-00:00:00", format_date=2)
    first = datetime.fromtimestamp(int(response.dates[0]), UTC)
    assert first == datetime(2026, 9, 14, 15, tzinfo=UTC)
    assert response.start == "20260916 20:00:00 US/Eastern"


@pytest.mark.parametrize(
    ("duration", "cause"),
    [
        ("86401 S", "Historical data request for greater than 86400 seconds rejected."),
        (
            "366 D",
            "Historical data requests for durations longer than 365 days must be made in years.",
        ),
    ],
)
def test_a_duration_too_long_for_its_unit_is_refused(
    requester: Any, duration: str, cause: str
) -> None:
    """A client classifies the refusal as too long."""
    response = requester.bars("AAPL", "1 hour", duration)
    (error,) = response.errors
    assert error == (321, f"Error validating request.-'bK' : cause - {cause}")
    assert IbLimitsRegistry.class_of(*error) is CodeClass.TOO_LONG


def test_a_half_day_has_four_hourly_bars(requester: Any) -> None:
    """The day after Thanksgiving ends at 13:00; the holiday does not count."""
    response = requester.bars("AAPL", "1 hour", "2 D", "20231124 16:00:00" + NEW_YORK)
    assert response.days == ["20231122", "20231124"]
    on_friday = [text[9:14] for text in response.dates if text.startswith("20231124")]
    assert on_friday == ["09:30", "10:00", "11:00", "12:00"]


def test_extended_hours_of_a_half_day_end_at_17(requester: Any) -> None:
    """All hours are 04:00 to 20:00, and to 17:00 on a half day."""
    response = requester.bars("AAPL", "1 min", "2 D", "20231124 23:00:00" + NEW_YORK, use_rth=False)
    times = {day: [d[9:14] for d in response.dates if d.startswith(day)] for day in response.days}
    assert (times["20231122"][0], times["20231122"][-1]) == ("04:00", "19:59")
    assert (times["20231124"][0], times["20231124"][-1]) == ("04:00", "16:59")
    assert (len(times["20231122"]), len(times["20231124"])) == (960, 780)


def test_sessions_keep_local_time_over_the_change_of_clocks(requester: Any) -> None:
    """The open moves from 14:30 to 13:30 UTC and stays 09:30 in New York."""
    end = "20240311 16:00:00" + NEW_YORK
    local = requester.bars("AAPL", "4 hours", "2 D", end)
    assert [text[:14] for text in local.dates] == [
        "20240308 09:30",
        "20240308 12:00",
        "20240311 09:30",
        "20240311 12:00",
    ]
    epochs = requester.bars("AAPL", "4 hours", "2 D", end, format_date=2).dates
    assert [int(text) % 86_400 / 3_600 for text in epochs] == [14.5, 17.0, 13.5, 16.0]


@pytest.mark.parametrize(
    ("end", "duration", "days"),
    [
        # Sunday evening belongs to Monday's session, Friday ends at 17:00
        ("20240114 17:30:00", "1 D", ["20240115"]),
        ("20240113 12:00:00", "1 D", ["20240112"]),
        # in the daily break the session that has just ended
        ("20240117 17:10:00", "1 D", ["20240117"]),
        # closed on Christmas and New Year
        ("20231226 17:00:00", "2 D", ["20231222", "20231226"]),
        ("20240102 17:00:00", "2 D", ["20231229", "20240102"]),
    ],
)
def test_durations_of_a_pair_count_its_own_sessions(
    requester: Any, end: str, duration: str, days: list[str]
) -> None:
    """FX sessions run from 17:15 to 17:00 New York and are dated by their close."""
    assert requester.bars("EURUSD", "1 day", duration, end + NEW_YORK).days == days


def test_an_fx_session_starts_at_1715(requester: Any) -> None:
    """The first hour of a pair's session is cut by the break before it."""
    response = requester.bars("EURUSD", "1 hour", "1 D", "20240117 17:00:00" + NEW_YORK)
    assert [text[:14] for text in response.dates[:2]] == ["20240116 17:15", "20240116 18:00"]
    assert len(response.bars) == 24
    four = requester.bars("EURUSD", "4 hours", "1 D", "20240117 17:00:00" + NEW_YORK)
    assert [text[9:14] for text in four.dates] == [
        "17:15",
        "20:00",
        "00:00",
        "04:00",
        "08:00",
        "12:00",
        "16:00",
    ]


def test_weeks_are_dated_by_their_last_session(requester: Any) -> None:
    """The week before Good Friday has the date of Thursday, a current week its latest one."""
    response = requester.bars("AAPL", "1 week", "3 W", "20240403 16:00:00" + NEW_YORK)
    assert response.dates == ["20240315", "20240322", "20240328", "20240403"]


def test_message_17_states_calendar_time(requester: Any) -> None:
    """The stated range is the requested end and the duration in calendar time."""
    response = requester.bars("AAPL", "1 day", "3 D", "20240116-21:00:00")
    assert response.end == "20240116 16:00:00 US/Eastern"
    assert response.start == "20240113 16:00:00 US/Eastern"
    assert response.days == ["20240111", "20240112", "20240116"]
    hour = requester.bars("AAPL", "1 min", "3600 S", "20240116-21:00:00")
    assert hour.start == "20240116 15:00:00 US/Eastern"
    spring = requester.bars("AAPL", "1 day", "2 D", "20240311-20:00:00")
    assert spring.start == "20240309 16:00:00 US/Eastern"


def test_every_session_of_a_year_is_found(requester: Any) -> None:
    """2023 had 250 sessions of stocks and 259 of FX."""
    stocks = requester.bars("AAPL", "1 day", "1 Y", "20231231 23:00:00" + NEW_YORK).days
    pairs = requester.bars("EURUSD", "1 day", "1 Y", "20231231 12:00:00" + NEW_YORK).days
    assert len([day for day in stocks if day.startswith("2023")]) == 250
    weekdays = sum(date.fromordinal(n).weekday() < 5 for n in range(738_521, 738_886))
    assert weekdays == 260
    assert len([day for day in pairs if day.startswith("2023")]) == 259


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
    """A bar too small for its duration is an invalid step; a duration in no row is too long."""
    read = parse_duration(duration)
    assert step_refusal(DurationTable(table), read, SIZE_BY_TEXT[size]) == refusal


def test_every_legal_size_is_served() -> None:
    """The sizes are those that IB documents, and the list of them is IB's own text."""
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


def test_small_bars_end_six_months_ago(new_requester: Any, synthetic: SyntheticMarket) -> None:
    """Bars of 30 s are available for 180 days, minutes without limit."""
    requester = new_requester(synthetic)
    old, newer = "20230712-15:00:00", "20230717-21:00:00"
    assert (
        requester.bars("AAPL", "30 secs", "600 S", old).errors[0][1].endswith("AAPL@SMART Trades")
    )
    assert len(requester.bars("AAPL", "30 secs", "1 D", newer).bars) == 780
    assert len(requester.bars("AAPL", "1 min", "600 S", old).bars) == 10
