"""What a duration reaches back to: expectations written by hand from the calendar of 2023/24.

Monday 15 January 2024 was a holiday, Friday 29 March 2024 Good Friday; 23 November 2023 was
Thanksgiving and the 24th a half day; clocks went forward on Sunday 10 March 2024.
"""

from datetime import date
from typing import Any

import pytest

from ktrdr_pipelines.simulator.synthetic import SyntheticMarket

NEW_YORK = " US/Eastern"
LATER = "2024-12-31T00:00:00+00:00"


@pytest.fixture
def ask(asker: Any, synthetic: SyntheticMarket) -> Any:
    """Ask on the last day of 2024, so that no end of these tests is in the future."""
    return asker(synthetic, now=LATER)


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
    ask: Any, end: str, duration: str, days: list[str]
) -> None:
    """``N D`` is N sessions back; weeks end where the same weekday began."""
    assert ask.bars("AAPL", "1 hour", duration, end + NEW_YORK).days == days


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
    ask: Any, *, end: str, duration: str, first: str, last: str
) -> None:
    """The first session is the one after the same day a month or year before."""
    days = ask.bars("SPY", "1 day", duration, end + NEW_YORK).days
    assert (days[0], days[-1]) == (first, last)


def test_seconds_are_wall_clock(ask: Any) -> None:
    """S reaches back over closed hours and cuts the first bar at its start."""
    told = ask.bars("AAPL", "30 mins", "5400 S", "20240116 10:40:00" + NEW_YORK)
    assert [text[9:14] for text in told.dates] == ["09:30", "10:00", "10:30"]
    closed = ask.bars("AAPL", "30 mins", "3600 S", "20240116 08:00:00" + NEW_YORK)
    assert closed.errors[0][0] == 162


def test_a_half_day_has_four_hourly_bars(ask: Any) -> None:
    """The day after Thanksgiving ends at 13:00; the holiday before it does not count."""
    told = ask.bars("AAPL", "1 hour", "2 D", "20231124 16:00:00" + NEW_YORK)
    assert told.days == ["20231122", "20231124"]
    on_friday = [text[9:14] for text in told.dates if text.startswith("20231124")]
    assert on_friday == ["09:30", "10:00", "11:00", "12:00"]


def test_extended_hours_of_a_half_day_end_at_17(ask: Any) -> None:
    """With all hours a day goes from 04:00 to 20:00, and to 17:00 on a half day."""
    told = ask.bars("AAPL", "1 min", "2 D", "20231124 23:00:00" + NEW_YORK, use_rth=False)
    times = {day: [d[9:14] for d in told.dates if d.startswith(day)] for day in told.days}
    assert (times["20231122"][0], times["20231122"][-1]) == ("04:00", "19:59")
    assert (times["20231124"][0], times["20231124"][-1]) == ("04:00", "16:59")
    assert (len(times["20231122"]), len(times["20231124"])) == (960, 780)


def test_sessions_keep_local_time_over_the_change_of_clocks(ask: Any) -> None:
    """The open moves from 14:30 to 13:30 UTC and stays 09:30 in New York."""
    end = "20240311 16:00:00" + NEW_YORK
    local = ask.bars("AAPL", "4 hours", "2 D", end)
    assert [text[:14] for text in local.dates] == [
        "20240308 09:30",
        "20240308 12:00",
        "20240311 09:30",
        "20240311 12:00",
    ]
    epochs = ask.bars("AAPL", "4 hours", "2 D", end, format_date=2).dates
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
    ask: Any, end: str, duration: str, days: list[str]
) -> None:
    """FX sessions run from 17:15 to 17:00 New York and are dated by their close."""
    assert ask.bars("EURUSD", "1 day", duration, end + NEW_YORK).days == days


def test_an_fx_session_starts_at_1715(ask: Any) -> None:
    """The first hour of a pair's session is cut by the break before it."""
    told = ask.bars("EURUSD", "1 hour", "1 D", "20240117 17:00:00" + NEW_YORK)
    assert [text[:14] for text in told.dates[:2]] == ["20240116 17:15", "20240116 18:00"]
    assert len(told.bars) == 24
    four = ask.bars("EURUSD", "4 hours", "1 D", "20240117 17:00:00" + NEW_YORK)
    assert [text[9:14] for text in four.dates] == [
        "17:15",
        "20:00",
        "00:00",
        "04:00",
        "08:00",
        "12:00",
        "16:00",
    ]


def test_weeks_are_dated_by_their_last_session(ask: Any) -> None:
    """A week before Good Friday is dated Thursday; one that lasts by its latest session."""
    told = ask.bars("AAPL", "1 week", "3 W", "20240403 16:00:00" + NEW_YORK)
    assert told.dates == ["20240315", "20240322", "20240328", "20240403"]


def test_message_17_states_calendar_time(ask: Any) -> None:
    """The stated reach is the asked end and that minus the duration, whatever the sessions."""
    told = ask.bars("AAPL", "1 day", "3 D", "20240116-21:00:00")
    assert told.end == "20240116 16:00:00 US/Eastern"
    assert told.start == "20240113 16:00:00 US/Eastern"
    assert told.days == ["20240111", "20240112", "20240116"]
    hour = ask.bars("AAPL", "1 min", "3600 S", "20240116-21:00:00")
    assert hour.start == "20240116 15:00:00 US/Eastern"
    spring = ask.bars("AAPL", "1 day", "2 D", "20240311-20:00:00")
    assert spring.start == "20240309 16:00:00 US/Eastern"


def test_every_session_of_a_year_is_found(ask: Any) -> None:
    """2023 had 250 sessions of stocks and 259 of FX."""
    stocks = ask.bars("AAPL", "1 day", "1 Y", "20231231 23:00:00" + NEW_YORK).days
    pairs = ask.bars("EURUSD", "1 day", "1 Y", "20231231 12:00:00" + NEW_YORK).days
    assert len([day for day in stocks if day.startswith("2023")]) == 250
    weekdays = sum(date.fromordinal(n).weekday() < 5 for n in range(738_521, 738_886))
    assert weekdays == 260
    assert len([day for day in pairs if day.startswith("2023")]) == 259
