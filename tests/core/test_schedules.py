"""What is believed of sessions that the gateway told, and what they make of a calendar."""

from datetime import date, datetime, timedelta

import numpy as np
import pytest

from ktrdr_pipelines.core.calendars import Calendars, calendar_named, learned_key
from ktrdr_pipelines.core.instruments import Instrument, SecType, WhatToShow
from ktrdr_pipelines.core.intervals import Interval
from ktrdr_pipelines.core.schedules import LearnedDay, every_day, judged, learned_days, overlaid
from ktrdr_pipelines.core.sessions import SessionCalendar
from ktrdr_pipelines.core.timeframes import Timeframe

DAY = timedelta(days=1)
NEW_YORK = calendar_named("XNYS.RTH")
TOKYO = calendar_named("XTKS.RTH")
UNKNOWN = calendar_named("GATEWAY:America/New_York")


def open_day(day: str, opens: str = "14:30", closes: str = "21:00") -> LearnedDay:
    """Tell a session by UTC hours."""
    return LearnedDay(date.fromisoformat(day), (part(day, opens, closes),))


def part(day: str, opens: str, closes: str) -> Interval:
    """Make a stretch of UTC hours."""
    return Interval(*(datetime.fromisoformat(f"{day}T{clock}Z") for clock in (opens, closes)))


def closed(day: str) -> LearnedDay:
    """Tell a date without a session."""
    return LearnedDay(date.fromisoformat(day), ())


def as_known(calendar: SessionCalendar, first: date, end: date) -> list[LearnedDay]:
    """Tell exactly what the library knows, closed dates included."""
    days = learned_days(
        calendar, (Interval(s.opens_at, s.closes_at) for s in calendar.sessions(first, end))
    )
    return every_day(days)


def instrument(calendar: str, symbol: str = "X", end: date | None = None) -> Instrument:
    """Make an instrument of a calendar."""
    return Instrument(
        symbol=symbol,
        ib_symbol=symbol,
        sec_type=SecType.STK,
        exchange="SMART",
        currency="USD",
        what_to_show=WhatToShow.TRADES,
        use_rth=True,
        calendar=calendar,
        timeframes=(Timeframe.D1,),
        start=date(2020, 1, 1),
        end=end,
    )


def test_what_agrees_changes_nothing() -> None:
    """A schedule that tells what is known leaves the calendar as it was, breaks included."""
    for calendar in (NEW_YORK, TOKYO):
        told = as_known(calendar, date(2024, 1, 2), date(2025, 1, 1))
        judgement = judged(calendar, told)
        assert judgement.refused == ""
        assert overlaid(calendar, judgement.days) is calendar


def test_a_told_session_is_expected_and_a_missing_one_is_not() -> None:
    """A date that closes early, one that opens on a Saturday, one that does not open at all."""
    told = as_known(NEW_YORK, date(2024, 1, 2), date(2024, 6, 1))
    new = {one.day: one for one in (open_day("2024-01-13"), closed("2024-02-01"))}
    new[date(2024, 2, 2)] = open_day("2024-02-02", "14:30", "18:00")
    told = [new.get(one.day, one) for one in told]
    judgement = judged(NEW_YORK, told)
    assert judgement.refused == ""
    made = overlaid(NEW_YORK, judgement.days)
    assert [s.day for s in made.sessions(date(2024, 1, 12), date(2024, 1, 15))] == [
        date(2024, 1, 12),
        date(2024, 1, 13),
    ]
    assert made.sessions(date(2024, 2, 1), date(2024, 2, 2)) == []
    [short] = made.sessions(date(2024, 2, 2), date(2024, 2, 3))
    assert short.closes_at == datetime.fromisoformat("2024-02-02T18:00Z")
    assert made.day_starts_at(date(2024, 2, 1)) == NEW_YORK.day_starts_at(date(2024, 2, 1))
    assert len(made.days) == len(NEW_YORK.days)
    assert (made.closes[:-1] <= made.opens[1:]).all()


def test_told_pauses_are_breaks() -> None:
    """Two stretches of one date are a session with a break, beside the breaks that stay."""
    stretches = (part("2024-05-08", "00:00", "03:00"), part("2024-05-08", "04:00", "05:00"))
    day = LearnedDay(date(2024, 5, 8), stretches)
    made = overlaid(TOKYO, [day])
    place = int(np.searchsorted(made.days, np.datetime64(day.day)))
    inside = (made.breaks[:, 0] >= made.opens[place]) & (made.breaks[:, 1] <= made.closes[place])
    assert made.breaks[inside].shape == (1, 2)
    assert len(made.breaks) == len(TOKYO.breaks)
    assert (made.breaks[1:, 0] > made.breaks[:-1, 1]).all()


def test_a_gateways_calendar_has_what_was_told_and_nothing_else() -> None:
    """Of hours that no library knows, every told date counts."""
    made = overlaid(UNKNOWN, judged(UNKNOWN, [open_day("2024-01-02"), closed("2024-01-03")]).days)
    assert made.known == (date(2024, 1, 2), date(2024, 1, 2))
    assert made.key == UNKNOWN.key


@pytest.mark.parametrize(
    ("differing", "is_believed"), [(0, True), (1, True), (10, True), (11, False)]
)
def test_more_than_a_tenth_of_contradiction_is_not_believed(
    differing: int, is_believed: bool
) -> None:
    """Of a hundred sessions ten may differ: an answer about another market is refused."""
    days = NEW_YORK.sessions(date(2024, 1, 2), date(2024, 12, 1))[:100]
    told = as_known(NEW_YORK, days[0].day, days[-1].day + DAY)
    drop = {one.day for one in days[5:-5][:differing]}
    told = [LearnedDay(one.day, ()) if one.day in drop else one for one in told]
    judgement = judged(NEW_YORK, told)
    assert bool(judgement.days) is is_believed
    assert bool(judgement.refused) is not is_believed
    if not is_believed:
        assert "11 of 100 known sessions" in judgement.refused


def test_a_single_date_may_always_differ() -> None:
    """The few days of contract details can tell an early close."""
    told = as_known(NEW_YORK, date(2024, 7, 1), date(2024, 7, 6))
    told[0] = open_day("2024-07-01", "13:30", "16:00")
    assert judged(NEW_YORK, told).refused == ""
    told[1] = closed("2024-07-02")
    assert "2 of 4" in judged(NEW_YORK, told).refused


@pytest.mark.parametrize(
    ("days", "why"),
    [
        (
            [
                LearnedDay(
                    date(2024, 1, 2),
                    (part("2024-01-02", "14:30", "18:00"), part("2024-01-02", "17:00", "21:00")),
                )
            ],
            "overlap",
        ),
        ([LearnedDay(date(2024, 1, 3), (part("2024-01-02", "14:30", "21:00"),))], "outside"),
        ([open_day("2024-01-02", "14:30", "21:00"), open_day("2024-01-02")], "overlap"),
    ],
)
def test_what_cannot_be_is_refused(days: list[LearnedDay], why: str) -> None:
    """Overlaps and sessions outside their date make a whole schedule worthless."""
    for calendar in (NEW_YORK, UNKNOWN):
        judgement = judged(calendar, days)
        assert judgement.days == ()
        assert why in judgement.refused


def test_a_date_with_bars_does_not_become_a_closed_one() -> None:
    """Bars that are held speak louder than a schedule."""
    told = [closed("2024-02-01"), open_day("2024-02-02", "14:30", "18:00")]
    held = frozenset({date(2024, 2, 1), date(2024, 2, 2)})
    assert [one.day for one in judged(NEW_YORK, told, held).days] == [date(2024, 2, 2)]


def test_dates_between_told_ones_are_closed() -> None:
    """A schedule that leaves a date out says that it has no session; behind its last it is mute."""
    filled = every_day([open_day("2024-01-05"), open_day("2024-01-08")])
    assert [(one.day.day, bool(one.parts)) for one in filled] == [
        (5, True),
        (6, False),
        (7, False),
        (8, True),
    ]
    assert every_day([]) == []


def test_stretches_belong_to_the_session_day_they_open_in() -> None:
    """A Sunday evening of currencies is Monday."""
    evening = part("2024-01-07", "22:15", "23:00")
    [found] = learned_days(calendar_named("FX"), [evening])
    assert found == LearnedDay(date(2024, 1, 8), (evening,))


def test_the_book_gives_each_instrument_its_calendar() -> None:
    """Symbols of a known calendar share what was learned; those of the gateway do not."""
    key = "GATEWAY:America/New_York"
    book = Calendars({f"{key} A": [open_day("2024-01-02")], "XNYS.RTH": [closed("2024-02-01")]})
    assert learned_key(instrument(key, "A")) == f"{key} A"
    assert book.of(instrument(key, "A")).known is not None
    assert book.of(instrument(key, "B")).known is None
    first, second = (book.of(instrument("XNYS.RTH", symbol)) for symbol in "AB")
    assert first is second
    assert first.sessions(date(2024, 2, 1), date(2024, 2, 2)) == []
    assert Calendars().of(instrument("XNYS.RTH")) is NEW_YORK
    assert set(book.each([instrument("FX"), instrument(key, "A")])) == {"FX", f"{key} A"}
    assert repr(book) == "Calendars(2 days learned of 2 calendars)"


def test_a_calendar_stops_at_an_instruments_end() -> None:
    """From its end on nothing is expected, breaks included, and days go on."""
    cut = Calendars().of(instrument("XTKS.RTH", end=date(2024, 1, 10)))
    assert cut.known == (date(1997, 1, 6), date(2024, 1, 9))
    assert len(cut.breaks) == len(cut.days)
    assert cut.day_of(datetime.fromisoformat("2024-06-01T00:00Z")) == date(2024, 6, 1)
    assert Calendars().of(instrument("XTKS.RTH", end=date(1990, 1, 1))).known is None
