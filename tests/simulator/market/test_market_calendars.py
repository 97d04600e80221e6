"""The simulator's own calendar against days written by hand, without the project's calendars."""

from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from ktrdr_pipelines.simulator.market.hours import DAY_S, Hours, Venue
from ktrdr_pipelines.simulator.market.market_calendars import calendar_of, crypto_sessions

CHICAGO = ZoneInfo("America/Chicago")
EPOCH = date(1970, 1, 1)


def session(hours: Hours, day: str, zone: ZoneInfo) -> str:
    """Return open and close of a day's session in local time; empty without a session."""
    label = (date.fromisoformat(day) - EPOCH).days
    at = int(np.searchsorted(hours.labels, label))
    if hours.labels[at] != label:
        return ""
    ends = (int(side[at]) for side in (hours.opens, hours.closes))
    local = (datetime.fromtimestamp(moment, UTC).astimezone(zone) for moment in ends)
    return " to ".join(f"{moment:%d %H:%M}" for moment in local)


@pytest.mark.parametrize(
    ("venue", "day", "expected"),
    [
        # MES at a live gateway, https://github.com/ib-api-reloaded/ib_async/issues/128
        (Venue.CME, "2025-12-23", "22 17:00 to 23 16:00"),
        (Venue.CME, "2025-12-24", "23 17:00 to 24 12:15"),
        (Venue.CME, "2025-12-25", ""),
        (Venue.CME, "2025-12-26", "25 17:00 to 26 16:00"),
        (Venue.CME, "2025-12-29", "28 17:00 to 29 16:00"),
        # half days of stocks, and days on which these are closed
        (Venue.CME, "2024-07-03", "02 17:00 to 03 12:15"),
        (Venue.CME, "2024-11-29", "28 17:00 to 29 12:15"),
        (Venue.CME, "2024-11-28", "27 17:00 to 28 12:00"),
        (Venue.CME, "2024-01-15", "14 17:00 to 15 12:00"),
        (Venue.CME, "2024-01-16", "15 17:00 to 16 16:00"),
    ],
)
def test_hours_of_equity_futures(venue: Venue, day: str, expected: str) -> None:
    """They close at 12:15 on half days of stocks, at 12:00 on some holidays."""
    assert session(calendar_of(venue).all_hours, day, CHICAGO) == expected


def test_regular_hours_end_with_an_early_close() -> None:
    """On the day before Christmas they are 08:30 to 12:15."""
    hours = calendar_of(Venue.CME).regular
    assert session(hours, "2025-12-24", CHICAGO) == "24 08:30 to 24 12:15"
    assert session(hours, "2025-12-23", CHICAGO) == "23 08:30 to 23 16:00"


@pytest.mark.parametrize(
    ("zone", "day", "expected"),
    [
        ("US/Eastern", "2026-05-08", "07 16:01 to 08 16:00"),
        ("US/Eastern", "2026-05-09", ""),
        ("US/Eastern", "2026-05-10", ""),
        ("US/Eastern", "2026-05-11", "10 16:01 to 11 16:00"),
        ("US/Eastern", "2026-03-09", "08 16:01 to 09 16:00"),
        ("Europe/Zurich", "2026-05-08", "07 16:01 to 08 16:00"),
    ],
)
def test_sessions_of_crypto(zone: str, day: str, expected: str) -> None:
    """From 16:01 of the date before to 16:00 in the given zone; none at weekends."""
    assert session(crypto_sessions(zone).all_hours, day, ZoneInfo(zone)) == expected


@pytest.mark.parametrize("zone", ["US/Eastern", "Europe/Zurich", "Australia/Sydney"])
def test_offsets_of_crypto_give_the_date_of_the_close(zone: str) -> None:
    """The offset of a session gives the local date of its close."""
    hours = crypto_sessions(zone).all_hours
    local = (hours.closes + hours.offsets) // DAY_S
    assert np.array_equal(local, hours.labels)
    assert np.all(hours.opens[1:] > hours.closes[:-1])
