"""Reading sessions from message 106 and from contract details."""

from datetime import date
from typing import Any

import pytest

from ktrdr_pipelines.domain.calendars.gateway_schedules import LearnedDay
from ktrdr_pipelines.domain.instruments import Instrument
from ktrdr_pipelines.ib.protocol.contract_messages import Candidate
from ktrdr_pipelines.ib.protocol.schedule_messages import details_days, schedule_days


def message(zone: str, *sessions: tuple[str, str, str]) -> list[str]:
    """Return the fields of message 106."""
    texts = [text for session in sessions for text in session]
    return ["106", "7", "20240101-00:00:00", "20240110-00:00:00", zone, str(len(sessions)), *texts]


def contract(zone: str, hours: str) -> Candidate:
    """Return a contract with trading hours."""
    plain: dict[str, Any] = dict.fromkeys(
        ("symbol", "sec_type", "exchange", "primary_exchange", "currency", "name"), ""
    )
    return Candidate(1, **plain, zone=zone, trading_hours="", liquid_hours=hours)


def utc_sessions(days: list[LearnedDay]) -> list[tuple[date, list[str]]]:
    """Return dates and intervals in UTC, as short texts."""
    return [
        (one.day, [f"{part.start:%d %H:%M}-{part.end:%d %H:%M}" for part in one.parts])
        for one in days
    ]


def test_a_schedule_is_read_in_the_exchanges_zone() -> None:
    """The zone is a field of its own, although the times have a dash as those in UTC do."""
    fields = message(
        "US/Eastern",
        ("20240308-09:30:00", "20240308-16:00:00", "20240308"),
        ("20240311-09:30:00", "20240311-16:00:00", "20240311"),
    )
    assert utc_sessions(schedule_days(fields)) == [
        (date(2024, 3, 8), ["08 14:30-08 21:00"]),
        (date(2024, 3, 11), ["11 13:30-11 20:00"]),
    ]


def test_a_session_of_the_evening_before_has_its_own_date() -> None:
    """The reference date dates a session; its intervals are kept apart."""
    fields = message(
        "Asia/Tokyo",
        ("20240109-12:30:00", "20240109-15:00:00", "20240109"),
        ("20240109-09:00:00", "20240109-11:30:00", "20240109"),
    )
    assert utc_sessions(schedule_days(fields)) == [
        (date(2024, 1, 9), ["09 00:00-09 02:30", "09 03:30-09 06:00"])
    ]
    futures = message("US/Central", ("20240107-17:00:00", "20240108-16:00:00", "20240108"))
    assert utc_sessions(schedule_days(futures)) == [(date(2024, 1, 8), ["07 23:00-08 22:00"])]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (message("CST", ("20240308-09:30:00", "20240308-16:00:00", "20240308")), "zone 'CST'"),
        (message("", ("20240308-09:30:00", "20240308-16:00:00", "20240308")), "no time zone"),
        (message("Mars/Base"), "zone 'Mars/Base'"),
        (message("UTC", ("20240308-16:00:00", "20240308-09:30:00", "20240308")), "2024"),
        (message("UTC", ("20240308", "20240308-09:30:00", "20240308")), "20240308"),
        (
            message("UTC", ("20240308-\u0660\u0669:30:00", "20240308-16:00:00", "20240308")),
            "is not a time",
        ),
        (
            message("UTC", ("20240308-09:30:00", "20240308-16:00:00", "\uff12\uff10240308")),
            "is not the date",
        ),
        ([*message("UTC"), "20240308-09:30:00"], "1 values for 0"),
        (["17", "1", "", "", "0"], "message 17"),
    ],
)
def test_an_invalid_schedule_is_refused(fields: list[str], why: str) -> None:
    """An ambiguous zone, a close before the open, another message."""
    with pytest.raises(ValueError, match=why):
        schedule_days(fields)


@pytest.mark.parametrize("zone", ["US/Eastern", "America/New_York"])
def test_details_list_the_next_days(aapl: Instrument, zone: str) -> None:
    """Open and closed dates, in both forms of the hours."""
    hours = "20260105:0930-20260105:1600;20260106:CLOSED;20260107:0930-1130,1230-1600"
    assert utc_sessions(details_days(aapl, contract(zone, hours))) == [
        (date(2026, 1, 5), ["05 14:30-05 21:00"]),
        (date(2026, 1, 6), []),
        (date(2026, 1, 7), ["07 14:30-07 16:30", "07 17:30-07 21:00"]),
    ]


def test_details_without_hours_are_empty(aapl: Instrument) -> None:
    """An expired contract has no hours."""
    assert details_days(aapl, contract("", "")) == []


@pytest.mark.parametrize("zone", ["MET", "Japan", "Hongkong", "GB-Eire"])
def test_old_names_of_one_place_are_read(aapl: Instrument, zone: str) -> None:
    """Details use some of them."""
    assert len(details_days(aapl, contract(zone, "20260105:0930-20260105:1600"))) == 1


@pytest.mark.parametrize(
    ("zone", "hours"),
    [
        ("CST", "20260105:0930-20260105:1600"),
        ("US/Eastern", "20260105:0930"),
        ("US/Eastern", "20260105:0930-20260105:0900"),
        ("US/Eastern", "20261305:0930-20261305:1600"),
        ("US/Eastern", "all day"),
        ("US/Eastern", "20260105:\u0660\u0669\u0663\u0660-20260105:1600"),
        ("US/Eastern", "\uff12\uff10260105:CLOSED"),
    ],
)
def test_hours_that_cannot_be_read_are_refused(aapl: Instrument, zone: str, hours: str) -> None:
    """A text of another form is refused as a whole."""
    with pytest.raises(ValueError, match=r".+"):
        details_days(aapl, contract(zone, hours))
