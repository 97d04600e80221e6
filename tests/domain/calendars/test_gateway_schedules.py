"""Which stated sessions are accepted, and how they change a calendar."""

from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.domain.bars import micros
from ktrdr_pipelines.domain.calendars.gateway_schedules import (
    LearnedDay,
    SharedDay,
    agreed,
    agreed_days,
    closed_against,
    days_by_close,
    every_day,
    extending,
    hours_of,
    judged,
    learned_days,
    overlaid,
    speaks_for_others,
    with_own_hours,
)
from ktrdr_pipelines.domain.calendars.registry import Calendars, calendar_named, learned_key
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar, midnight
from ktrdr_pipelines.domain.instruments import Instrument, SecType, WhatToShow
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.timeframes import Timeframe

DAY = timedelta(days=1)
NEW_YORK = calendar_named("XNYS.RTH")
TOKYO = calendar_named("XTKS.RTH")
UNKNOWN = calendar_named("GATEWAY:America/New_York")


def at(text: str) -> datetime:
    """Return a time."""
    return datetime.fromisoformat(text)


def open_day(day: str, opens: str = "14:30", closes: str = "21:00") -> LearnedDay:
    """Return a session by its UTC hours."""
    return LearnedDay(date.fromisoformat(day), (part(day, opens, closes),))


def part(day: str, opens: str, closes: str) -> Interval:
    """Return an interval of UTC hours."""
    return Interval(*(datetime.fromisoformat(f"{day}T{clock}Z") for clock in (opens, closes)))


def closed(day: str) -> LearnedDay:
    """Return a date without a session."""
    return LearnedDay(date.fromisoformat(day), ())


def as_known(calendar: SessionCalendar, first: date, end: date) -> list[LearnedDay]:
    """Return the sessions of the library, with the closed dates."""
    days = learned_days(
        calendar, (Interval(s.opens_at, s.closes_at) for s in calendar.sessions(first, end))
    )
    return every_day(days)


def instrument(calendar: str, symbol: str = "X", end: date | None = None) -> Instrument:
    """Return an instrument with a calendar."""
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


def test_a_schedule_that_agrees_changes_nothing() -> None:
    """The calendar stays the same object, with its breaks."""
    for calendar in (NEW_YORK, TOKYO):
        stated = as_known(calendar, date(2024, 1, 2), date(2025, 1, 1))
        judgement = judged(calendar, stated)
        assert judgement.refused == ""
        assert overlaid(calendar, judgement.days) is calendar


def test_a_stated_session_is_expected_and_a_closed_date_is_not() -> None:
    """A date that closes early, a session on a Saturday, and a closed date."""
    stated = as_known(NEW_YORK, date(2024, 1, 2), date(2024, 6, 1))
    new = {one.day: one for one in (open_day("2024-01-13"), closed("2024-02-01"))}
    new[date(2024, 2, 2)] = open_day("2024-02-02", "14:30", "18:00")
    stated = [new.get(one.day, one) for one in stated]
    judgement = judged(NEW_YORK, stated)
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


def test_stated_pauses_are_breaks() -> None:
    """Two intervals of one date are a session with a break; other breaks are kept."""
    intervals = (part("2024-05-08", "00:00", "03:00"), part("2024-05-08", "04:00", "05:00"))
    day = LearnedDay(date(2024, 5, 8), intervals)
    made = overlaid(TOKYO, [day])
    position = int(np.searchsorted(made.days, np.datetime64(day.day)))
    inside = (made.breaks[:, 0] >= made.opens[position]) & (
        made.breaks[:, 1] <= made.closes[position]
    )
    assert made.breaks[inside].shape == (1, 2)
    assert len(made.breaks) == len(TOKYO.breaks)
    assert (made.breaks[1:, 0] > made.breaks[:-1, 1]).all()


def test_a_calendar_of_the_gateway_has_only_stated_sessions() -> None:
    """Of hours that no library knows, every stated date counts."""
    made = overlaid(UNKNOWN, judged(UNKNOWN, [open_day("2024-01-02"), closed("2024-01-03")]).days)
    assert made.known == (date(2024, 1, 2), date(2024, 1, 2))
    assert made.key == UNKNOWN.key


@pytest.mark.parametrize(
    ("differing", "is_accepted"), [(0, True), (1, True), (10, True), (11, False)]
)
def test_a_schedule_with_more_than_a_tenth_of_contradictions_is_refused(
    differing: int, is_accepted: bool
) -> None:
    """Ten of a hundred sessions may differ; more are the schedule of another market."""
    days = NEW_YORK.sessions(date(2024, 1, 2), date(2024, 12, 1))[:100]
    stated = as_known(NEW_YORK, days[0].day, days[-1].day + DAY)
    drop = {one.day for one in days[5:-5][:differing]}
    stated = [LearnedDay(one.day, ()) if one.day in drop else one for one in stated]
    judgement = judged(NEW_YORK, stated)
    assert bool(judgement.days) is is_accepted
    assert bool(judgement.refused) is not is_accepted
    if not is_accepted:
        assert "11 of 100 known sessions" in judgement.refused


def test_a_single_date_may_always_differ() -> None:
    """The few days of contract details can state an early close."""
    stated = as_known(NEW_YORK, date(2024, 7, 1), date(2024, 7, 6))
    stated[0] = open_day("2024-07-01", "13:30", "16:00")
    assert judged(NEW_YORK, stated).refused == ""
    stated[1] = closed("2024-07-02")
    assert "2 of 4" in judged(NEW_YORK, stated).refused


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
def test_impossible_schedules_are_refused(days: list[LearnedDay], why: str) -> None:
    """A schedule with overlaps, or with sessions outside their date, is refused as a whole."""
    for calendar in (NEW_YORK, UNKNOWN):
        judgement = judged(calendar, days)
        assert judgement.days == ()
        assert why in judgement.refused


def test_a_date_with_bars_does_not_become_a_closed_one() -> None:
    """Held bars contradict the schedule."""
    stated = [closed("2024-02-01"), open_day("2024-02-02", "14:30", "18:00")]
    held = frozenset({date(2024, 2, 1), date(2024, 2, 2)})
    assert [one.day for one in judged(NEW_YORK, stated, held).days] == [date(2024, 2, 2)]


def test_dates_between_stated_ones_are_closed() -> None:
    """A date that a schedule leaves out has no session; after its last date nothing is known."""
    filled = every_day([open_day("2024-01-05"), open_day("2024-01-08")])
    assert [(one.day.day, bool(one.parts)) for one in filled] == [
        (5, True),
        (6, False),
        (7, False),
        (8, True),
    ]
    assert every_day([]) == []


def test_intervals_belong_to_the_session_day_they_open_in() -> None:
    """A Sunday evening of currencies belongs to Monday."""
    evening = part("2024-01-07", "22:15", "23:00")
    [found] = learned_days(calendar_named("FX"), [evening])
    assert found == LearnedDay(date(2024, 1, 8), (evening,))


def test_each_instrument_has_its_calendar() -> None:
    """What one contract states never closes a day of another one, nor of itself.

    Where only the gateway knows the sessions, a contract has those that it stated.
    """
    key = "GATEWAY:America/New_York"
    calendars = Calendars(
        {
            f"{key} A": [open_day("2024-01-02"), closed("2024-01-03")],
            "XNYS.RTH A": [closed("2024-02-01"), closed("2024-02-03")],
            "XNYS.RTH": [closed("2024-02-02")],
        }
    )
    assert learned_key(instrument(key, "A")) == f"{key} A"
    assert calendars.of(instrument(key, "A")).known == (date(2024, 1, 2), date(2024, 1, 2))
    assert calendars.of(instrument(key, "B")).known is None
    first, second = (calendars.of(instrument("XNYS.RTH", symbol)) for symbol in "AB")
    assert first is second is NEW_YORK
    assert calendars.stated_closed(instrument("XNYS.RTH", "A")) == {date(2024, 2, 1)}
    assert calendars.stated_closed(instrument("XNYS.RTH", "B")) == frozenset()
    assert calendars.stated_closed(instrument(key, "A")) == frozenset()
    assert Calendars().of(instrument("XNYS.RTH")) is NEW_YORK
    assert set(calendars.each([instrument("FX"), instrument(key, "A")])) == {"FX", f"{key} A"}
    assert repr(calendars) == "Calendars(5 days learned of 3 contracts)"


def test_what_a_contract_states_adds_to_its_own_sessions_only() -> None:
    """A Saturday, a later close and an earlier open are added; shorter hours change nothing."""
    stated = [
        open_day("2024-01-13"),
        open_day("2024-01-16", "14:00", "20:00"),
        open_day("2024-01-17", "15:30", "21:15"),
        open_day("2024-01-18", "15:00", "18:00"),
    ]
    calendars = Calendars({"XNYS.RTH A": stated, "XNYS.RTH C": stated})
    own = calendars.of(instrument("XNYS.RTH", "A"))
    assert hours_of(own, date(2024, 1, 13)) == stated[0]
    assert hours_of(own, date(2024, 1, 16)) == open_day("2024-01-16", "14:00", "21:00")
    assert hours_of(own, date(2024, 1, 17)) == open_day("2024-01-17", "14:30", "21:15")
    assert hours_of(own, date(2024, 1, 18)) == open_day("2024-01-18")
    assert calendars.of(instrument("XNYS.RTH", "B")) is NEW_YORK
    assert calendars.of(instrument("XNYS.RTH", "C")) is own
    assert calendars.key_of(instrument("XNYS.RTH", "A")) == "XNYS.RTH A"
    assert calendars.key_of(instrument("XNYS.RTH", "B")) == "XNYS.RTH"


def test_longer_hours_keep_the_breaks() -> None:
    """The lunch break of Tokyo is kept, whether or not a schedule states it."""
    day = date(2024, 5, 8)
    known = hours_of(TOKYO, day)
    stated = LearnedDay(day, (Interval(known.parts[0].start, known.parts[-1].end + DAY / 48),))
    [added] = extending(TOKYO, [stated]).days
    assert added.parts == (
        known.parts[0],
        Interval(known.parts[1].start, known.parts[1].end + DAY / 48),
    )
    own = Calendars({"XTKS.RTH A": [stated]}).of(instrument("XTKS.RTH", "A"))
    assert len(own.breaks) == len(TOKYO.breaks)
    assert hours_of(own, day) == added


@pytest.mark.parametrize(
    "stated",
    [
        LearnedDay(
            date(2024, 1, 16), (Interval(at("2024-01-16T14:30Z"), at("2024-01-17T15:00Z")),)
        ),
        LearnedDay(
            date(2024, 1, 17), (Interval(at("2024-01-16T20:00Z"), at("2024-01-17T21:00Z")),)
        ),
        open_day("2024-01-16", "05:00", "21:00"),
        LearnedDay(
            date(2024, 1, 13), (Interval(at("2024-01-13T05:00Z"), at("2024-01-14T04:00Z")),)
        ),
    ],
)
def test_implausibly_long_hours_are_refused(stated: LearnedDay) -> None:
    """Hours that reach into another session, or are more than eight hours longer, add nothing."""
    found = extending(NEW_YORK, [stated])
    assert found.days == ()
    assert found.refused == (stated,)


def test_two_stated_days_never_overlap() -> None:
    """Each is possible by itself; together the later one is refused."""
    late = LearnedDay(
        date(2024, 1, 16), (Interval(at("2024-01-16T14:30Z"), at("2024-01-17T03:00Z")),)
    )
    early = LearnedDay(
        date(2024, 1, 17), (Interval(at("2024-01-17T02:00Z"), at("2024-01-17T21:00Z")),)
    )
    found = extending(calendar_named("XNYS.RTH"), [late, early])
    assert (found.days, found.refused) == ((late,), (early,))


# --- what several contracts agree on ---------------------------------------------------------


def votes(**stated: LearnedDay) -> dict[str, LearnedDay]:
    """Return what contracts state of one date, by symbol."""
    return stated


def test_three_contracts_that_agree_change_the_calendar_that_they_share() -> None:
    """Two do not, nor does a tie between two different statements."""
    early, shut = open_day("2024-02-01", "14:30", "18:00"), closed("2024-02-01")
    three = votes(A=early, B=early, C=early)
    assert agreed(votes(A=early, B=early)) is None
    assert agreed(three) == SharedDay(early, ("A", "B", "C"))
    assert agreed({**three, **votes(D=shut, E=shut)}) == SharedDay(early, ("A", "B", "C"))
    assert agreed({**three, **votes(D=shut, E=shut, F=shut)}) is None
    days = agreed_days(NEW_YORK, {early.day: three})
    calendars = Calendars({"XNYS.RTH A": [early]}, shared={"XNYS.RTH": days})
    first, other = (calendars.of(instrument("XNYS.RTH", symbol)) for symbol in "AZ")
    assert first is other
    assert hours_of(other, early.day) == early
    assert calendars.changed() == {"XNYS.RTH": tuple(days)}
    # One contract that trades longer than the others agree on keeps its own hours.
    longer = open_day("2024-02-01", "14:30", "19:00")
    calendars = Calendars({"XNYS.RTH A": [longer]}, shared={"XNYS.RTH": days})
    assert hours_of(calendars.of(instrument("XNYS.RTH", "A")), early.day) == longer
    assert hours_of(calendars.of(instrument("XNYS.RTH", "Z")), early.day) == early


def test_contracts_that_agree_with_the_library_change_nothing() -> None:
    """Their votes only count against others."""
    same = open_day("2024-02-01")
    assert agreed_days(NEW_YORK, {same.day: votes(A=same, B=same, C=same)}) == []


TODAY = date(2024, 6, 21)
TRADED = frozenset(one.day for one in NEW_YORK.sessions(date(2024, 1, 2), TODAY))


@pytest.mark.parametrize(
    ("change", "held", "counts"),
    [
        ({}, TRADED, True),
        ({"end": date(2025, 1, 1)}, TRADED, False),
        ({"last_trade_date": date(2024, 7, 5)}, TRADED, True),
        ({"last_trade_date": date(2024, 7, 1)}, TRADED, False),
        ({"last_trade_date": date(2024, 6, 1)}, TRADED, False),
        ({}, frozenset(), False),
        ({}, frozenset(sorted(TRADED)[-15:]), False),
        ({}, frozenset(sorted(TRADED)[:-4]), True),
        ({}, frozenset(sorted(TRADED)[:-5]), False),
    ],
    ids=[
        "trades",
        "ends",
        "expires in two weeks",
        "expires in ten days",
        "expired",
        "holds nothing",
        "newly listed",
        "traded five sessions ago",
        "halted",
    ],
)
def test_only_representative_contracts_count_for_others(
    change: dict[str, date], held: frozenset[date], *, counts: bool
) -> None:
    """Expiring, ended, newly listed and halted contracts have hours of their own."""
    contract = replace(instrument("XNYS.RTH"), **change)  # type: ignore[arg-type]
    assert (
        speaks_for_others(NEW_YORK, contract, date(2024, 6, 20), today=TODAY, held=held) is counts
    )


def test_a_date_shortly_before_expiry_is_no_vote() -> None:
    """The contract itself still trades for weeks from today."""
    contract = replace(instrument("XNYS.RTH"), last_trade_date=date(2024, 9, 20))
    for day, counts in ((date(2024, 9, 9), True), (date(2024, 9, 10), False)):
        assert speaks_for_others(NEW_YORK, contract, day, today=TODAY, held=TRADED) is counts


def test_a_calendar_stops_at_an_instruments_end() -> None:
    """From its end on no session or break is expected; session dates are still defined."""
    cut = Calendars().of(instrument("XTKS.RTH", end=date(2024, 1, 10)))
    assert cut.known == (date(1997, 1, 6), date(2024, 1, 9))
    assert len(cut.breaks) == len(cut.days)
    assert cut.day_of(datetime.fromisoformat("2024-06-01T00:00Z")) == date(2024, 6, 1)
    assert Calendars().of(instrument("XTKS.RTH", end=date(1990, 1, 1))).known is None


COINS = calendar_named("CRYPTO")
NY = ZoneInfo("America/New_York")


def coin_hours(text: str) -> list[LearnedDay]:
    """Return hours as the details of a coin state them, in New York's time."""
    parts, closed_days = [], []
    for segment in text.split(";"):
        if segment.endswith("CLOSED"):
            closed_days.append(datetime.strptime(segment[:8], "%Y%m%d").date())  # noqa: DTZ007
            continue
        edges = [
            datetime.strptime(edge, "%Y%m%d:%H%M").replace(tzinfo=NY).astimezone(UTC)
            for edge in segment.split("-")
        ]
        parts.append(Interval(*edges))
    return days_by_close(parts, closed_days, NY)


def test_a_session_across_midnight_is_dated_by_its_close() -> None:
    """So is its daily bar. A closed date stays closed."""
    days = coin_hours("20260507:1601-20260508:1600;20260509:CLOSED")
    assert days == [
        LearnedDay(date(2026, 5, 8), (Interval(at("2026-05-07T20:01Z"), at("2026-05-08T20:00Z")),)),
        closed("2026-05-09"),
    ]


def test_hours_of_several_days_are_cut_at_midnight() -> None:
    """Orders are routed from Sunday 03:00 to Friday 16:00: each date has its part."""
    days = coin_hours("20260510:0300-20260515:1600")
    assert [one.day.isoformat()[8:] for one in days] == ["10", "11", "12", "13", "14", "15"]
    assert days[0].parts[0].start == at("2026-05-10T07:00Z")
    assert days[-1].parts[0].end == at("2026-05-15T20:00Z")
    assert all(left.parts[-1].end == right.parts[0].start for left, right in pairwise(days))


@pytest.mark.parametrize("clock", ["20260308:0000-20260309:0000", "20261101:0000-20261102:0000"])
def test_a_day_of_23_or_25_hours_is_one_date(clock: str) -> None:
    """Nothing is cut on the dates of clock changes."""
    [day] = coin_hours(clock)
    assert len(day.parts) == 1


def hours_between(calendar: SessionCalendar, first: str, end: str) -> list[str]:
    """Return sessions as short texts."""
    found = calendar.sessions(date.fromisoformat(first), date.fromisoformat(end))
    return [f"{one.day:%d} {one.opens_at:%d %H:%M}-{one.closes_at:%d %H:%M}" for one in found]


def test_own_hours_meet_the_assumed_ones() -> None:
    """No hour is lost or expected twice where stated dates meet others."""
    days = coin_hours("20260507:1601-20260508:1600;20260509:CLOSED;20260510:1601-20260511:1600")
    days = every_day(days)
    made = with_own_hours(COINS, days)
    assert hours_between(made, "2026-05-06", "2026-05-14") == [
        "06 06 00:00-07 00:00",
        "07 07 00:00-07 20:01",
        "08 07 20:01-08 20:00",
        "11 10 20:01-11 20:00",
        "12 11 20:00-13 00:00",
        "13 13 00:00-14 00:00",
    ]


def test_closed_dates_at_the_edges_last_as_long_as_sessions() -> None:
    """The hours around them belong to the dates that were not stated."""
    days = coin_hours("20260507:CLOSED;20260507:1601-20260508:1600;20260509:CLOSED")
    made = with_own_hours(COINS, days)
    assert hours_between(made, "2026-05-06", "2026-05-11") == [
        "06 06 00:00-06 20:01",
        "08 07 20:01-08 20:00",
        "10 09 20:00-11 00:00",
    ]


def test_own_hours_that_are_equal_change_nothing() -> None:
    """The shared object stays, and with it its grids."""
    days = [hours_of(COINS, date(2026, 5, day)) for day in range(1, 10)]
    assert with_own_hours(COINS, days) is COINS
    assert with_own_hours(COINS, []) is COINS


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(-720, 720))
def test_own_hours_never_overlap(is_open: list[bool], shift_min: int) -> None:
    """Whichever dates are closed, and whenever their day begins."""
    first = date(2026, 5, 4)
    shift = timedelta(minutes=shift_min)
    days = []
    for position, opened in enumerate(is_open):
        day = first + position * DAY
        start = datetime.combine(day, time(), UTC) - shift
        parts = (Interval(start, start + timedelta(hours=23, minutes=59)),) if opened else ()
        days.append(LearnedDay(day, parts))
    made = with_own_hours(COINS, days)
    assert (made.opens < made.closes).all()
    assert (made.closes[:-1] <= made.opens[1:]).all()
    assert (np.diff(made.days.astype(np.int64)) > 0).all()
    stated = {one.day: one.parts for one in days}
    for one in made.sessions(first, first + len(days) * DAY):
        if stated[one.day]:
            assert (one.opens_at, one.closes_at) == (
                stated[one.day][0].start,
                stated[one.day][0].end,
            )


def test_bars_outside_stated_sessions_contradict_closed_dates() -> None:
    """Bars in a session that begins on a closed date do not."""
    days = every_day(
        coin_hours("20260507:1601-20260508:1600;20260509:CLOSED;20260510:1601-20260511:1600")
    )
    made = with_own_hours(COINS, days)

    def against(*texts: str) -> list[str]:
        keys = np.array([micros(at(text)) for text in texts])
        return sorted(map(str, closed_against(days, keys, made)))

    assert against("2026-05-08T19:59Z", "2026-05-10T20:01Z") == []
    assert against("2026-05-09T12:00Z") == ["2026-05-09"]
    assert against("2026-05-09T12:00Z", "2026-05-10T12:00Z") == ["2026-05-09", "2026-05-10"]


def test_an_assumed_calendar_refuses_only_impossible_schedules() -> None:
    """Nothing has to agree with an assumption; overlapping sessions are impossible."""
    days = coin_hours("20260507:1601-20260508:1600;20260509:CLOSED")
    assert judged(COINS, days, assumed=True).days == tuple(days)
    assert judged(COINS, days, frozenset({date(2026, 5, 9)}), assumed=True).days == tuple(days[:1])
    twice = coin_hours("20260507:1601-20260508:1600;20260508:1500-20260509:1600")
    assert "overlap" in judged(COINS, twice, assumed=True).refused


@pytest.mark.parametrize("seed", range(20))
def test_own_hours_that_overlap_are_cut(seed: int) -> None:
    """Hours change from day to day and dates are left out: no hour is expected twice."""
    crypto, chance = calendar_named("CRYPTO"), np.random.default_rng(seed)
    days = []
    for number in range(30):
        day = date(2026, 2, 20) + number * DAY
        if chance.random() < 0.25:
            continue
        opens_at = midnight(day) - timedelta(hours=int(chance.integers(0, 8)))
        closes_at = midnight(day) + timedelta(hours=int(chance.integers(16, 30)))
        is_open = day.weekday() < 5
        days.append(LearnedDay(day, (Interval(opens_at, closes_at),) if is_open else ()))
    made = with_own_hours(crypto, days)
    assert (made.opens < made.closes).all()
    assert (made.closes[:-1] <= made.opens[1:]).all()
    stated = {one.day for one in days}
    assert not {one.day for one in days if not one.parts} & set(made.days.tolist())
    near = made.sessions(date(2026, 2, 20), date(2026, 3, 22))
    assert {one.day for one in days if one.parts} <= {one.day for one in near} & stated
