"""Sessions against published facts.

The golden files are written by hand from the exchanges' notices, never from the code.
Source: https://www.nyse.com/markets/hours-calendars (holidays, half days, late trading),
https://www.interactivebrokers.com/en/trading/products-spot-currencies.php (spot currencies).
"""

import csv
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.domain.bars import micros
from ktrdr_pipelines.domain.calendars.cme_futures import FAMILIES
from ktrdr_pipelines.domain.calendars.eurex_futures import EUREX_FAMILIES
from ktrdr_pipelines.domain.calendars.registry import calendar_keys, calendar_named, is_calendar
from ktrdr_pipelines.domain.calendars.session_grid import Span, session_grid
from ktrdr_pipelines.domain.calendars.sessions import (
    Session,
    SessionCalendar,
    interval_between,
    midnight,
    monday_of,
)
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.timeframes import Timeframe

GOLDEN = Path(__file__).parent / "golden"
DAY = timedelta(days=1)
WEEK = timedelta(days=7)
INTRADAY = [Timeframe.M1, Timeframe.M5, Timeframe.M15, Timeframe.M30, Timeframe.H1, Timeframe.H4]

keys = st.sampled_from(["XNYS.RTH", "XNYS.ETH", "FX"])
days = st.dates(date(1971, 1, 1), date(2049, 1, 1))


def golden(name: str) -> list[dict[str, str]]:
    """Read a golden file."""
    with (GOLDEN / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def moment(text: str) -> datetime:
    """Return a time as the golden files write it."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M%z").astimezone(UTC)


def moments() -> st.SearchStrategy[datetime]:
    """Generate times of the years that the tests use."""
    return st.datetimes(datetime(2023, 10, 1), datetime(2025, 2, 1), timezones=st.just(UTC))  # noqa: DTZ001


def intervals() -> st.SearchStrategy[Interval]:
    """Generate intervals of up to twenty days."""
    length = st.timedeltas(timedelta(microseconds=1), timedelta(days=20))
    return st.builds(lambda start, length: Interval(start, start + length), moments(), length)


@pytest.mark.parametrize(
    "line", golden("sessions.csv"), ids=lambda x: f"{x['calendar']} {x['day']}"
)
def test_sessions_are_those_that_were_published(line: dict[str, str]) -> None:
    """A day has the hours that the exchange published, or is closed."""
    day = date.fromisoformat(line["day"])
    found = calendar_named(line["calendar"]).sessions(day, day + DAY)
    closed = not line["opens_at"]
    assert found == (
        [] if closed else [Session(day, moment(line["opens_at"]), moment(line["closes_at"]))]
    ), line["why"]


@pytest.mark.parametrize("line", golden("markets.csv"), ids=lambda x: f"{x['calendar']} {x['day']}")
def test_hours_of_other_markets_are_those_that_were_published(line: dict[str, str]) -> None:
    """Hours, breaks and closed days of exchanges and futures are those of their notices."""
    day = date.fromisoformat(line["day"])
    calendar = calendar_named(line["calendar"])
    found = calendar.sessions(day, day + DAY)
    if not line["opens_at"]:
        assert found == [], line["why"]
        return
    assert found == [Session(day, moment(line["opens_at"]), moment(line["closes_at"]))], line["why"]
    low, high = micros(found[0].opens_at), micros(found[0].closes_at)
    inside = (calendar.breaks[:, 0] >= low) & (calendar.breaks[:, 0] < high)
    breaks = [micros(moment(one)) for one in line["break"].split("/") if one]
    assert calendar.breaks[inside].ravel().tolist() == breaks, line["why"]


@pytest.mark.parametrize(
    "line", golden("weeks.csv"), ids=lambda x: f"{x['calendar']} {x['monday']}"
)
def test_weeks_are_dated_by_their_monday(line: dict[str, str]) -> None:
    """A week begins on its Monday and closes with its last session, whatever its holidays."""
    monday = date.fromisoformat(line["monday"])
    interval = Interval(midnight(monday), midnight(monday) + WEEK)
    wanted = Span(
        interval, moment(line["opens_at"]), moment(line["closes_at"]), int(line["sessions"])
    )
    calendar = calendar_named(line["calendar"])
    assert session_grid(calendar, Timeframe.W1).spans_in(interval) == [wanted]
    for day in range(7):
        inside = Interval(interval.start + day * DAY, interval.start + (day + 1) * DAY)
        assert session_grid(calendar, Timeframe.W1).spans_in(inside) == [wanted], line["why"]


@pytest.mark.parametrize("timeframe", INTRADAY)
def test_intraday_spans_are_the_sessions_in_real_time(timeframe: Timeframe) -> None:
    """A half day is a shorter span; a span that an interval only touches is returned whole."""
    calendar = calendar_named("XNYS.RTH")
    touched = Interval(moment("2024-12-23T20:59Z"), moment("2024-12-26T14:31Z"))
    assert session_grid(calendar, timeframe).spans_in(touched) == [
        Span(Interval(opens, closes), opens, closes)
        for opens, closes in (
            (moment("2024-12-23T14:30Z"), moment("2024-12-23T21:00Z")),
            (moment("2024-12-24T14:30Z"), moment("2024-12-24T18:00Z")),
            (moment("2024-12-26T14:30Z"), moment("2024-12-26T21:00Z")),
        )
    ]


def test_daily_spans_begin_at_midnight_utc_of_the_session_date() -> None:
    """A currency day that opens on the evening before begins at its own date."""
    year_end = Interval(midnight(date(2024, 12, 31)), midnight(date(2025, 1, 3)))
    assert session_grid(calendar_named("FX"), Timeframe.D1).spans_in(year_end) == [
        Span(
            Interval(midnight(date(2024, 12, 31)), midnight(date(2025, 1, 1))),
            moment("2024-12-30T22:15Z"),
            moment("2024-12-31T22:00Z"),
        ),
        Span(
            Interval(midnight(date(2025, 1, 2)), midnight(date(2025, 1, 3))),
            moment("2025-01-01T22:15Z"),
            moment("2025-01-02T22:00Z"),
        ),
    ]


@given(keys, st.sampled_from(Timeframe), intervals())
def test_spans_are_all_that_meet_an_interval_and_no_others(
    key: str, timeframe: Timeframe, wanted: Interval
) -> None:
    """The spans of an interval are all spans filtered by it."""
    calendar = calendar_named(key)
    wide = Interval(wanted.start - 30 * DAY, wanted.end + 30 * DAY)
    everything = session_grid(calendar, timeframe).spans_in(wide)
    meeting = [span for span in everything if span.interval.overlaps(wanted)]
    assert session_grid(calendar, timeframe).spans_in(wanted) == meeting


def _one_by_one(calendar: SessionCalendar, timeframe: Timeframe, wanted: Interval) -> list[Span]:
    """Return the spans of an interval, made from sessions one by one: the model of the grid."""
    sessions = calendar.sessions(wanted.start.date() - 30 * DAY, wanted.end.date() + 30 * DAY)
    if timeframe.is_intraday:
        spans = [Span(Interval(s.opens_at, s.closes_at), s.opens_at, s.closes_at) for s in sessions]
        return [span for span in spans if span.interval.overlaps(wanted)]
    is_week = timeframe is Timeframe.W1
    groups: dict[date, list[Session]] = {}
    for session in sessions:
        groups.setdefault(monday_of(session.day) if is_week else session.day, []).append(session)
    spans = []
    for day, inside in groups.items():
        interval = Interval(midnight(day), midnight(day) + timeframe.length)
        closes_at = inside[-1].closes_at
        ends_late = calendar.days_may_differ and interval.end > closes_at
        late = interval.end if ends_late else None
        spans.append(Span(interval, inside[0].opens_at, closes_at, len(inside), late))
    return [span for span in spans if span.interval.overlaps(wanted)]


@given(
    st.sampled_from(["XNYS.RTH", "XNYS.ETH", "FX", "XTKS.RTH", "CRYPTO"]),
    st.sampled_from(Timeframe),
    intervals(),
    st.none() | st.dates(date(2023, 9, 25), date(2025, 2, 10)),
)
def test_the_grid_has_the_spans_that_sessions_make(
    key: str, timeframe: Timeframe, wanted: Interval, end: date | None
) -> None:
    """A calendar that is cut in mid-week has spans with as many bars as the whole one."""
    whole = calendar_named(key)
    calendar = whole if end is None else whole.until(end)
    spans = _one_by_one(calendar, timeframe, wanted)
    found = session_grid(calendar, timeframe)
    assert found.spans_in(wanted) == spans
    part = found.meeting(wanted)
    assert part.sessions.tolist() == [span.sessions for span in spans]
    assert part.over.tolist() == [micros(span.over_at) for span in spans]
    expected = session_grid(whole, timeframe).meeting(wanted)
    assert part.bars.tolist() == expected.bars.tolist()[: len(spans)]
    assert found.bars_in(part.starts, part.ends).tolist() == part.bars.tolist()


def test_a_calendar_cut_before_its_first_session_expects_nothing() -> None:
    """No timeframe has a span."""
    calendar = calendar_named("XNYS.RTH").until(date(1960, 1, 1))
    for timeframe in Timeframe:
        assert len(session_grid(calendar, timeframe)) == 0


@given(keys, intervals())
def test_every_timeframe_counts_the_same_sessions(key: str, wanted: Interval) -> None:
    """Weeks, days and intraday spans have the same sessions."""
    calendar = calendar_named(key)
    first = monday_of(wanted.start.date())
    whole = Interval(midnight(first), midnight(monday_of(wanted.end.date())) + WEEK)
    sessions = calendar.sessions(first, whole.end.date())
    daily = session_grid(calendar, Timeframe.D1).spans_in(whole)
    weekly = session_grid(calendar, Timeframe.W1).spans_in(whole)
    assert [span.opens_at for span in daily] == [session.opens_at for session in sessions]
    assert sum(span.sessions for span in weekly) == len(sessions)
    assert {span.closes_at for span in weekly} <= {span.closes_at for span in daily}


@given(keys, intervals())
def test_sessions_meeting_an_interval_share_real_time_with_it(key: str, wanted: Interval) -> None:
    """A session that only touches the interval is left out."""
    calendar = calendar_named(key)
    near = calendar.sessions(wanted.start.date() - 3 * DAY, wanted.end.date() + 4 * DAY)
    meeting = [s for s in near if s.opens_at < wanted.end and wanted.start < s.closes_at]
    assert calendar.sessions_meeting(wanted) == meeting


@pytest.mark.parametrize(
    ("key", "timeframe", "start", "end"),
    [
        ("XNYS.RTH", Timeframe.M1, "2024-03-08T05:00Z", "2024-03-11T04:00Z"),
        ("XNYS.ETH", Timeframe.H4, "2024-03-08T05:00Z", "2024-03-11T04:00Z"),
        ("FX", Timeframe.M1, "2024-03-07T22:00Z", "2024-03-10T21:00Z"),
        ("FX", Timeframe.D1, "2024-03-08T00:00Z", "2024-03-11T00:00Z"),
        ("XNYS.RTH", Timeframe.D1, "2024-03-08T00:00Z", "2024-03-11T00:00Z"),
    ],
)
def test_dates_are_an_interval_of_timestamps(
    key: str, timeframe: Timeframe, start: str, end: str
) -> None:
    """Dates from 8 to 10 March 2024 begin and end with session days, across a clock change."""
    found = interval_between(calendar_named(key), timeframe, date(2024, 3, 8), date(2024, 3, 11))
    assert found == Interval(moment(start), moment(end))


def test_a_week_belongs_to_the_date_of_its_monday() -> None:
    """The week of 30 December 2024 belongs to 2024, although it ends in 2025."""
    calendar = calendar_named("XNYS.RTH")
    year = interval_between(calendar, Timeframe.W1, date(2024, 1, 1), date(2025, 1, 1))
    assert year == Interval(midnight(date(2024, 1, 1)), midnight(date(2025, 1, 6)))
    following = interval_between(calendar, Timeframe.W1, date(2025, 1, 1), date(2026, 1, 1))
    assert following.start == year.end


@given(keys, st.sampled_from(Timeframe), days, st.tuples(st.integers(7, 400), st.integers(7, 400)))
def test_windows_that_follow_each_other_leave_nothing_between(
    key: str, timeframe: Timeframe, first: date, lengths: tuple[int, int]
) -> None:
    """Where one interval of dates ends the next begins."""
    calendar = calendar_named(key)
    middle, end = first + lengths[0] * DAY, first + sum(lengths) * DAY
    left = interval_between(calendar, timeframe, first, middle)
    right = interval_between(calendar, timeframe, middle, end)
    assert left.end == right.start
    assert interval_between(calendar, timeframe, first, end) == Interval(left.start, right.end)


@given(keys, days)
def test_a_session_day_begins_where_the_day_before_ends(key: str, day: date) -> None:
    """The first instant of a session day has that date, the instant before has not."""
    calendar = calendar_named(key)
    begin = calendar.day_starts_at(day)
    assert calendar.day_of(begin) == day
    assert calendar.day_of(begin - timedelta(microseconds=1)) == day - DAY


@given(keys, days)
def test_a_session_lies_inside_its_day(key: str, day: date) -> None:
    """Every instant of a session has the session's date."""
    calendar = calendar_named(key)
    for session in calendar.sessions(day, day + 14 * DAY):
        last = session.closes_at - timedelta(microseconds=1)
        assert calendar.day_of(session.opens_at) == session.day == calendar.day_of(last)


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2024-01-05T21:59Z", "2024-01-05"),  # Friday, a minute before the close
        ("2024-01-05T22:00Z", "2024-01-06"),  # closed: Saturday, which has no session
        ("2024-01-07T21:59Z", "2024-01-07"),
        ("2024-01-07T22:00Z", "2024-01-08"),  # Sunday 17:00 New York is Monday
        ("2024-01-08T22:05Z", "2024-01-09"),  # in the break of a quarter of an hour
        ("2024-03-10T20:59Z", "2024-03-10"),
        ("2024-03-10T21:00Z", "2024-03-11"),  # the clocks went forward that morning
        ("2024-11-03T21:59Z", "2024-11-03"),
        ("2024-11-03T22:00Z", "2024-11-04"),  # the clocks went back that morning
    ],
)
def test_a_currency_day_begins_at_17_00_in_new_york(text: str, day: str) -> None:
    """The evening belongs to the next date, across weekends and clock changes."""
    assert calendar_named("FX").day_of(moment(text)) == date.fromisoformat(day)


@given(keys, st.lists(moments(), max_size=20))
def test_dates_of_many_moments_are_the_dates_of_each(key: str, some: list[datetime]) -> None:
    """The dates of an array are those of its single times."""
    calendar = calendar_named(key)
    found = calendar.days_of(np.array([micros(one) for one in some], dtype=np.int64))
    assert found.tolist() == [calendar.day_of(one) for one in some]


@given(
    st.sampled_from(["Australia/Lord_Howe", "Africa/Casablanca", "Asia/Kathmandu", "Pacific/Apia"]),
    st.lists(st.datetimes(datetime(1960, 1, 1), datetime(2110, 1, 1), timezones=st.just(UTC))),  # noqa: DTZ001
)
def test_dates_follow_the_clocks_of_any_zone(zone: str, some: list[datetime]) -> None:
    """Clocks moved by half an hour, twice within a month, by a day; before 1970 and after 2100."""
    calendar = calendar_named(f"GATEWAY:{zone}")
    found = calendar.days_of(np.array([micros(one) for one in some], dtype=np.int64))
    assert found.tolist() == [calendar.day_of(one) for one in some]


@pytest.mark.parametrize("key", ["XNYS.RTH", "XNYS.ETH", "FX"])
def test_sessions_are_known_from_1970_to_2049(key: str) -> None:
    """Eighty years of sessions are built once."""
    calendar = calendar_named(key)
    assert calendar.known == (date(1970, 1, 2), date(2049, 12, 31))
    assert len(calendar.days) > 20_000
    assert calendar_named(key) is calendar


OWN = {
    *("XNYS.RTH", "XNYS.ETH", "XHKG.RTH", "XTKS.RTH", "XNSE.RTH", "FX", "CRYPTO"),
    *FAMILIES,
    *EUREX_FAMILIES,
}
"""Calendars that are made or corrected here; the others are a library's, and slow to build."""


@pytest.mark.parametrize(
    "key",
    [key if key in OWN else pytest.param(key, marks=pytest.mark.slow) for key in calendar_keys()],
)
def test_every_calendar_is_in_order(key: str) -> None:
    """Sessions follow each other, lie inside their own days, and hold their breaks."""
    calendar = calendar_named(key)
    opens, closes, breaks = calendar.opens, calendar.closes, calendar.breaks
    assert len(calendar.days) > 2_000
    assert (opens < closes).all()
    assert (closes[:-1] <= opens[1:]).all()
    assert (calendar.days[:-1] < calendar.days[1:]).all()
    assert np.array_equal(calendar.days_of(opens), calendar.days)
    assert np.array_equal(calendar.days_of(closes - 1), calendar.days)
    owner = np.searchsorted(opens, breaks[:, 0], side="right") - 1
    assert (breaks[:, 0] < breaks[:, 1]).all()
    assert (breaks[:-1, 1] <= breaks[1:, 0]).all()
    assert ((opens[owner] < breaks[:, 0]) & (breaks[:, 1] < closes[owner])).all()


@pytest.mark.parametrize(
    ("key", "day", "opens"),
    [
        ("EUREX.INDEX", date(2018, 12, 7), "06:50"),
        ("EUREX.RATES", date(2018, 12, 7), "07:00"),
        ("EUREX.INDEX", date(2018, 12, 10), "00:10"),
        ("EUREX.RATES", date(2018, 12, 10), "00:10"),
    ],
)
def test_eurex_opens_in_the_night_since_december_2018(key: str, day: date, opens: str) -> None:
    """Before, index futures opened ten minutes before interest rate futures."""
    [session] = calendar_named(key).sessions(day, day + DAY)
    assert session.opens_at == moment(f"{day}T{opens}Z")
    assert session.closes_at == moment(f"{day}T21:00Z")


def test_extended_hours_hold_the_regular_ones() -> None:
    """Both calendars have the same dates, and early and late trading surround the regular day."""
    first, end = date(1970, 1, 1), date(2050, 1, 1)
    regular = calendar_named("XNYS.RTH").sessions(first, end)
    extended = calendar_named("XNYS.ETH").sessions(first, end)
    for inner, outer in zip(regular, extended, strict=True):
        assert outer.day == inner.day
        assert outer.opens_at < inner.opens_at < inner.closes_at < outer.closes_at


def test_nothing_is_expected_outside_of_the_known_years() -> None:
    """An interval before 1970 or after 2049 has no spans and is no error."""
    for year in (1960, 2055):
        interval = Interval(midnight(date(year, 1, 1)), midnight(date(year + 1, 1, 1)))
        for timeframe in Timeframe:
            assert session_grid(calendar_named("XNYS.RTH"), timeframe).spans_in(interval) == []


@pytest.mark.parametrize("key", ["XLON", "XLON.ETH", "XXXX.RTH", "GATEWAY", "GATEWAY:Mars/Base"])
def test_an_unknown_calendar_is_an_error(key: str) -> None:
    """Hours that no library knows are never guessed."""
    assert not is_calendar(key)
    with pytest.raises(KeyError, match=key):
        calendar_named(key)


def test_every_key_names_a_calendar() -> None:
    """The keys include exchanges of both libraries."""
    assert all(map(is_calendar, calendar_keys()))
    assert {"XLON.RTH", "XETR.RTH", "XTKS.RTH", "XHKG.RTH", "XNSE.RTH"} < set(calendar_keys())


@pytest.mark.parametrize(
    ("key", "moment_text", "day"),
    [
        ("GATEWAY:Europe/London", "2024-07-01T22:59Z", "2024-07-01"),
        ("GATEWAY:Europe/London", "2024-07-01T23:00Z", "2024-07-02"),
        ("GATEWAY:Asia/Tokyo@16:00", "2024-07-01T06:59Z", "2024-07-01"),
        ("GATEWAY:Asia/Tokyo@16:00", "2024-07-01T07:00Z", "2024-07-02"),
    ],
)
def test_a_calendar_of_the_gateway_has_days_and_no_session(
    key: str, moment_text: str, day: str
) -> None:
    """Zone and start of the day are in its key; nothing is expected before it is learned."""
    calendar = calendar_named(key)
    assert calendar.known is None
    assert calendar.day_of(moment(moment_text)) == date.fromisoformat(day)
    year = Interval(midnight(date(2024, 1, 1)), midnight(date(2025, 1, 1)))
    assert all(session_grid(calendar, timeframe).spans_in(year) == [] for timeframe in Timeframe)
    assert "no session" in repr(calendar)


def test_the_text_of_a_calendar_has_its_name_and_dates() -> None:
    """The dates are the first and the last known one."""
    assert repr(calendar_named("FX")) == "SessionCalendar(FX, 1970-01-02 to 2049-12-31)"


@given(days)
def test_the_monday_of_a_week_is_its_first_day(day: date) -> None:
    """All days from Monday to Sunday have one Monday."""
    monday = monday_of(day)
    assert monday.weekday() == 0
    assert timedelta(0) <= day - monday < WEEK
    assert midnight(monday) == datetime(monday.year, monday.month, monday.day, tzinfo=UTC)


def test_arrays_of_a_calendar_are_read_only() -> None:
    """Days, opens and closes have one element a session."""
    calendar = calendar_named("XNYS.RTH")
    assert len(calendar.days) == len(calendar.opens) == len(calendar.closes)
    assert calendar.breaks.shape == (0, 2)
    for array in (calendar.days, calendar.opens, calendar.closes, calendar.breaks):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = array
