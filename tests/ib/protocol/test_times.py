"""Moments and time zones as gateways write them."""

from datetime import UTC, datetime

import pytest

from ktrdr_pipelines.ib.protocol.times import UnknownZone, readings_of, written_moment, zone_named

SUMMER = datetime(2026, 7, 1, 12, tzinfo=UTC)
WINTER = datetime(2026, 1, 5, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "winter_h", "summer_h"),
    [
        ("US/Eastern", -5, -4),
        ("America/New_York", -5, -4),
        ("US/Central", -6, -5),
        ("Europe/Zurich", 1, 2),
        ("Asia/Shanghai", 8, 8),
        # Grade L: https://github.com/pst-group/pysystemtrade/issues/1244
        ("GB", 0, 1),
        ("GB-Eire", 0, 1),
        ("Eire", 0, 1),
        ("MET", 1, 2),
        ("Japan", 9, 9),
        ("Hongkong", 8, 8),
        ("Singapore", 8, 8),
        ("PRC", 8, 8),
        ("ROK", 9, 9),
        ("NZ", 13, 12),
        ("EST", -5, -4),
        ("EST5EDT", -5, -4),
        ("CST6CDT", -6, -5),
        ("MST", -7, -6),
        ("MST7MDT", -7, -6),
        ("PST8PDT", -8, -7),
        ("HST", -10, -10),
        ("UTC", 0, 0),
        ("GMT", 0, 0),
        ("gmt", 0, 0),
        ("Z", 0, 0),
        ("Etc/GMT-8", 8, 8),
        ("GMT+08:00", 8, 8),
        ("GMT+8", 8, 8),
        ("GMT-05:00", -5, -5),
        ("GMT+0530", 5.5, 5.5),
    ],
)
def test_a_zone_is_known_by_every_name_it_has(name: str, winter_h: float, summer_h: float) -> None:
    """Names of places, old names that mean one place, and offsets."""
    zone = zone_named(name)
    for moment, hours in ((WINTER, winter_h), (SUMMER, summer_h)):
        offset = moment.astimezone(zone).utcoffset()
        assert offset is not None
        assert offset.total_seconds() == hours * 3600


@pytest.mark.parametrize(
    "name",
    [
        *("", "CST", "IST", "BST", "China Standard Time", "British Summer Time", "No/Where"),
        *(
            "Factory",
            "../../etc/passwd",
            "/etc/passwd",
            "localtime",
            "GMT+25:00",
            "GMT+08:75",
            "US/",
        ),
        "\0/x",
    ],
)
def test_a_name_of_several_places_or_none_is_unknown(name: str) -> None:
    """CST may be Chicago or Shanghai, so it is not guessed."""
    assert readings_of(name) == ()
    with pytest.raises(UnknownZone):
        zone_named(name)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        # Grade L: ib_async issue 128, ib_insync issue 605, pysystemtrade issue 1244.
        ("20260320 14:30:00 Europe/Zurich", datetime(2026, 3, 20, 13, 30, tzinfo=UTC)),
        ("20230624 04:00:00 Asia/Shanghai", datetime(2023, 6, 23, 20, tzinfo=UTC)),
        ("20250915 10:00:00 GB", datetime(2025, 9, 15, 9, tzinfo=UTC)),
        ("20231110 12:00:00 GB", datetime(2023, 11, 10, 12, tzinfo=UTC)),
        # Without seconds: older gateways.
        ("20231124 12:30 GB", datetime(2023, 11, 24, 12, 30, tzinfo=UTC)),
    ],
)
def test_a_moment_is_read_by_the_zone_that_it_names(text: str, moment: datetime) -> None:
    """The zone of the login does not matter."""
    written = written_moment(text)
    assert written is not None
    assert written.earliest() == written.latest() == moment


def test_a_name_of_two_readings_gives_both() -> None:
    """EST is New York in details, and a fixed offset in Java and the tz database."""
    summer = written_moment("20260701 16:00:00 EST")
    winter = written_moment("20260105 16:00:00 EST")
    assert summer is not None
    assert winter is not None
    assert summer.earliest() == datetime(2026, 7, 1, 20, tzinfo=UTC)
    assert summer.latest() == datetime(2026, 7, 1, 21, tzinfo=UTC)
    assert winter.earliest() == winter.latest() == datetime(2026, 1, 5, 21, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "zone", "is_known"),
    [
        # Grade L, TSLA of the rust-ibapi fixture: two blanks and no zone.
        ("20230413  16:31:22", "", False),
        ("20230413 16:31:22 China Standard Time", "China Standard Time", False),
        ("20230413 16:31:22 CST", "CST", False),
        ("20230413-16:31:22", "UTC", True),
    ],
)
def test_the_zone_of_a_moment_is_kept(text: str, zone: str, *, is_known: bool) -> None:
    """An unknown or missing name can be reported."""
    written = written_moment(text)
    assert written is not None
    assert (written.zone, written.is_known) == (zone, is_known)


@pytest.mark.parametrize("text", ["20251219", "", "soon", "20251319 10:00:00 GB", "2025-12-19"])
def test_a_date_alone_is_no_moment(text: str) -> None:
    """A distant expiry is written as a date (grade L)."""
    assert written_moment(text) is None
