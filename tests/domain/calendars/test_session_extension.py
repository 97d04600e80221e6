"""Sessions that bars after the close extend, and what does not."""

from datetime import date, datetime, timedelta

import numpy as np

from ktrdr_pipelines.domain.bars import micros
from ktrdr_pipelines.domain.calendars.registry import Calendars, calendar_named
from ktrdr_pipelines.domain.calendars.session_extension import (
    LateBar,
    extended,
    extensions,
    late_bars_of,
)
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from tests.support.fake_gateway import stock

NEW_YORK = calendar_named("XNYS.RTH")
DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)
MONDAY, TUESDAY, WEDNESDAY = date(2024, 6, 3), date(2024, 6, 4), date(2024, 6, 5)
BLACK_FRIDAY = date(2023, 11, 24)
HALF_DAYS = (date(2021, 11, 26), date(2022, 11, 25), BLACK_FRIDAY)


def close_of(day: date, calendar: SessionCalendar = NEW_YORK) -> datetime:
    """Return the close of a session."""
    [session] = calendar.sessions(day, day + DAY)
    return session.closes_at


def bars(*moments: datetime) -> np.ndarray:
    """Return timestamps of bars."""
    return np.array(sorted(map(micros, moments)), dtype=np.int64)


def late(minutes: int, *days: date, length: int = 1) -> dict[date, LateBar]:
    """Return last bars that end so many minutes after the close."""
    return {
        day: LateBar(
            micros(close_of(day) + (minutes - length) * MINUTE),
            micros(close_of(day) + minutes * MINUTE),
        )
        for day in days
    }


def test_the_newest_bar_after_the_close_is_found() -> None:
    """Bars inside a session, before its open and of the next morning are not late."""
    close = close_of(MONDAY)
    keys = bars(
        close - MINUTE,
        close,
        close + 14 * MINUTE,
        close_of(TUESDAY) - 7 * timedelta(hours=1),  # half an hour before the open of Tuesday
        close_of(TUESDAY) - MINUTE,
        close_of(WEDNESDAY) + 5 * MINUTE,
    )
    found = late_bars_of(NEW_YORK, keys, 60_000_000)
    assert {
        day: (bar.ends - micros(close_of(day))) // 60_000_000 for day, bar in found.items()
    } == {
        MONDAY: 15,
        WEDNESDAY: 6,
    }
    assert late_bars_of(NEW_YORK, bars(close - MINUTE), 60_000_000) == {}
    assert late_bars_of(NEW_YORK, bars(), 60_000_000) == {}


def test_bars_without_a_next_open_or_a_session_are_not_late() -> None:
    """After the last known session, on weekends and before the first session."""
    last = NEW_YORK.days[-1].item()
    assert late_bars_of(NEW_YORK, bars(close_of(last) + MINUTE), 60_000_000) == {}
    saturday = close_of(date(2024, 6, 7)) + 20 * timedelta(hours=1)
    assert late_bars_of(NEW_YORK, bars(saturday), 60_000_000) == {}
    before_all = datetime.fromisoformat("1900-01-01T00:00Z")
    assert late_bars_of(NEW_YORK, bars(before_all), 60_000_000) == {}


def test_three_sessions_extend_all_of_usual_length() -> None:
    """By the third-latest close, in years before and after; half days are unchanged."""
    bars_found = {**late(15, MONDAY, TUESDAY), **late(20, WEDNESDAY), **late(90, date(2024, 6, 6))}
    [found] = extensions(NEW_YORK, bars_found)
    assert (found.length_us, found.by_us) == (None, 15 * 60_000_000)
    assert found.sessions[-1] == date(2024, 6, 6)
    made = extended(NEW_YORK, (found,))
    for day in (MONDAY, date(2005, 3, 1), date(2025, 3, 3)):
        assert close_of(day, made) == close_of(day) + 15 * MINUTE
    assert close_of(BLACK_FRIDAY, made) == close_of(BLACK_FRIDAY)
    assert (made.opens is NEW_YORK.opens) or np.array_equal(made.opens, NEW_YORK.opens)


def test_one_or_two_stray_bars_extend_nothing() -> None:
    """However late they are. Sessions without late bars do not count against three with some."""
    assert extensions(NEW_YORK, late(300, MONDAY)) == ()
    assert extensions(NEW_YORK, late(300, MONDAY, TUESDAY)) == ()
    assert extended(NEW_YORK, ()) is NEW_YORK
    far = (date(2010, 3, 1), date(2016, 3, 1), date(2024, 3, 1))
    assert len(extensions(NEW_YORK, late(15, *far))) == 1


def test_half_days_are_extended_by_half_days_only() -> None:
    """Bars 15 minutes after three early closes extend all half days, and no usual day."""
    bars_found = late(15, *HALF_DAYS)
    [found] = extensions(NEW_YORK, bars_found)
    assert (found.length_us, found.only) == (3 * 3_600_000_000 + 1_800_000_000, None)
    made = extended(NEW_YORK, (found,))
    assert close_of(date(2019, 11, 29), made) == close_of(date(2019, 11, 29)) + 15 * MINUTE
    assert close_of(MONDAY, made) == close_of(MONDAY)
    # Two half days and one usual session are two kinds with too few each.
    assert extensions(NEW_YORK, {**late(15, MONDAY), **late(15, *HALF_DAYS[:2])}) == ()


def test_half_days_that_are_whole_days_extend_themselves_only() -> None:
    """Bars until the regular close do not extend other half days.

    Hours recorded of AAPL and SPY are such from 1998 to 2008, on two of three half days.
    """
    bars_found = late(180, *HALF_DAYS)
    [found] = extensions(NEW_YORK, bars_found)
    made = extended(NEW_YORK, (found,))
    for day in HALF_DAYS:
        assert close_of(day, made) == close_of(day) + 180 * MINUTE
    for day in (date(2019, 11, 29), MONDAY):
        assert close_of(day, made) == close_of(day)
    # Another such day is found, although its bar is no later than the known ones.
    keys = bars(close_of(date(2019, 11, 29)))
    assert set(late_bars_of(NEW_YORK, keys, 60_000_000, (found,))) == {date(2019, 11, 29)}


def test_an_extension_stops_at_the_next_open() -> None:
    """Sessions that follow each other closely are extended by the pause between them."""
    tokyo = calendar_named("XTKS.RTH")
    days = [one.day for one in tokyo.sessions(MONDAY, MONDAY + 4 * DAY)]
    bars_found = {
        day: LateBar(micros(close_of(day, tokyo)), micros(close_of(day, tokyo) + 30 * DAY / 24))
        for day in days[:3]
    }
    made = extended(tokyo, extensions(tokyo, bars_found))
    assert (made.closes[:-1] <= made.opens[1:]).all()
    assert close_of(days[0], made) == tokyo.sessions(days[1], days[1] + DAY)[0].opens_at


def test_a_shorter_bar_that_starts_later_proves_more() -> None:
    """An hourly bar may end long after its last trade: known minutes replace it."""
    days = [one.day for one in NEW_YORK.sessions(MONDAY, MONDAY + 14 * DAY)]
    hourly = late(60, *days, length=60)
    [rough] = extensions(NEW_YORK, hourly)
    assert rough.by_us == 60 * 60_000_000
    [fine] = extensions(NEW_YORK, {**hourly, **late(15, *days[:3])})
    assert fine.by_us == 15 * 60_000_000


def test_bars_that_add_nothing_are_not_found_again() -> None:
    """Once sessions are extended, only bars after the new close are found."""
    known = extensions(NEW_YORK, late(15, MONDAY, TUESDAY, WEDNESDAY))
    close = close_of(date(2024, 6, 6))
    keys = bars(close, close + 14 * MINUTE)
    assert late_bars_of(NEW_YORK, keys, 60_000_000, known) == {}
    later = bars(close, close + 15 * MINUTE)
    assert set(late_bars_of(NEW_YORK, later, 60_000_000, known)) == {date(2024, 6, 6)}
    half = bars(close_of(BLACK_FRIDAY))
    assert set(late_bars_of(NEW_YORK, half, 60_000_000, known)) == {BLACK_FRIDAY}


def test_calendars_extend_one_instrument_and_share_what_is_equal() -> None:
    """A symbol without late bars keeps the shared object; two equal ones share theirs."""
    bars_found = late(15, MONDAY, TUESDAY, WEDNESDAY)
    calendars = Calendars(
        late_bars={"VIX": bars_found, "VIX9": dict(bars_found), "SPX": late(15, MONDAY)}
    )
    vix, same, spx = (calendars.of(stock(symbol)) for symbol in ("VIX", "VIX9", "SPX"))
    assert vix is same
    assert spx is calendars.of(stock("AAPL")) is NEW_YORK
    assert close_of(MONDAY, vix) == close_of(MONDAY) + 15 * MINUTE
    assert calendars.key_of(stock("VIX")) == "XNYS.RTH VIX"
    assert calendars.before_late_bars(stock("VIX")) is NEW_YORK
