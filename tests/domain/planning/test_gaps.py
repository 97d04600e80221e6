from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.session_grid import session_grid
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.gaps import beginning_timestamp, due_gaps
from ktrdr_pipelines.domain.timeframes import Timeframe

RTH = calendar_named("XNYS.RTH")
LATER = datetime(2025, 1, 1, tzinfo=UTC)

keys = st.sampled_from(["XNYS.RTH", "XNYS.ETH", "FX"])
timeframes = st.sampled_from(list(Timeframe))


def utc(*parts: int) -> datetime:
    """Make a moment in UTC."""
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


def gaps(
    timeframe: Timeframe, wanted: Interval, *covered: Interval, now: datetime = LATER
) -> list[Interval]:
    """Return the gaps of a stock in regular hours."""
    return list(
        due_gaps(
            RTH, timeframe, wanted=IntervalSet([wanted]), covered=IntervalSet(covered), now=now
        )
    )


def dates(first: date, end: date, timeframe: Timeframe = Timeframe.H1) -> Interval:
    """Return the timestamps of session dates."""
    return interval_between(RTH, timeframe, first, end)


def test_nights_week_ends_and_holidays_are_no_gaps() -> None:
    """Only session time is missed: a long week end is none, a half day ends early."""
    found = gaps(Timeframe.H1, dates(date(2023, 11, 22), date(2023, 11, 28)))
    assert found == [
        Interval(utc(2023, 11, 22, 14, 30), utc(2023, 11, 22, 21)),
        Interval(utc(2023, 11, 24, 14, 30), utc(2023, 11, 24, 18)),
        Interval(utc(2023, 11, 27, 14, 30), utc(2023, 11, 27, 21)),
    ]


def test_nothing_wanted_is_no_gap() -> None:
    """An empty wish has no gaps."""
    nothing = IntervalSet()
    assert not due_gaps(RTH, Timeframe.H1, wanted=nothing, covered=nothing, now=LATER)


def test_what_is_covered_is_no_gap() -> None:
    """A session that is covered in part is missed for the rest alone."""
    day = dates(date(2024, 6, 4), date(2024, 6, 5))
    known = Interval(utc(2024, 6, 4, 13, 30), utc(2024, 6, 4, 15))
    assert gaps(Timeframe.H1, day, known) == [Interval(utc(2024, 6, 4, 15), utc(2024, 6, 4, 20))]


def test_a_hole_shorter_than_a_bar_between_covered_intervals_is_a_gap() -> None:
    """A short first bar that is missing alone is missed."""
    day = dates(date(2024, 6, 4), date(2024, 6, 5))
    known = Interval(utc(2024, 6, 4, 14), utc(2024, 6, 4, 20))
    assert gaps(Timeframe.H1, day, known) == [
        Interval(utc(2024, 6, 4, 13, 30), utc(2024, 6, 4, 14))
    ]


@pytest.mark.parametrize(
    ("now", "due_until"),
    [
        (utc(2024, 6, 4, 13, 45), None),
        (utc(2024, 6, 4, 14, 30, 4), None),
        (utc(2024, 6, 4, 14, 30, 5), utc(2024, 6, 4, 14, 30)),
        (utc(2024, 6, 4, 20, 0, 30), utc(2024, 6, 4, 20)),
    ],
)
def test_an_open_session_is_due_as_far_as_its_bars_are_over(
    now: datetime, due_until: datetime | None
) -> None:
    """Of an open session nothing is due before a bar's length and its lag have passed."""
    day = dates(date(2024, 6, 4), date(2024, 6, 5))
    expected = [Interval(utc(2024, 6, 4, 13, 30), due_until)] if due_until else []
    assert gaps(Timeframe.H1, day, now=now) == expected


@pytest.mark.parametrize(
    ("timeframe", "first", "end"),
    [
        (Timeframe.D1, date(2024, 6, 4), date(2024, 6, 5)),
        (Timeframe.W1, date(2024, 6, 3), date(2024, 6, 10)),
    ],
)
def test_days_and_weeks_are_due_half_an_hour_after_the_close(
    timeframe: Timeframe, first: date, end: date
) -> None:
    """A daily or weekly bar is due as a whole, once its last close and a lag have passed."""
    interval = dates(first, end, timeframe)
    close = utc(2024, 6, 4, 20) if timeframe is Timeframe.D1 else utc(2024, 6, 7, 20)
    assert gaps(timeframe, interval, now=close + timedelta(minutes=29)) == []
    assert gaps(timeframe, interval, now=close + timedelta(minutes=30)) == [interval]


def test_a_week_before_a_friday_holiday_is_due_on_thursday() -> None:
    """The week of Good Friday ends with Thursday's close."""
    week = dates(date(2024, 3, 25), date(2024, 4, 1), Timeframe.W1)
    assert gaps(Timeframe.W1, week, now=utc(2024, 3, 28, 20, 30)) == [week]


@given(keys, timeframes, st.integers(0, 400), st.integers(1, 400))
def test_widening_cuts_no_session_and_wants_no_other(
    key: str, timeframe: Timeframe, start_h: int, hours: int
) -> None:
    """A widened interval holds the given one and exactly the sessions that it met."""
    calendar = calendar_named(key)
    start = utc(2024, 10, 24) + timedelta(hours=start_h)
    given_part = Interval(start, start + timedelta(hours=hours))
    (wide,) = session_grid(calendar, timeframe).widened(IntervalSet([given_part]))
    met = session_grid(calendar, timeframe).spans_in(given_part)
    assert wide.covers(given_part)
    assert session_grid(calendar, timeframe).spans_in(wide) == met
    assert all(wide.covers(span.interval) for span in met)


def test_intervals_follow_each_other_over_closed_time_alone() -> None:
    """Over a night and a weekend they do; where a bar is expected between them they do not."""
    grid = session_grid(RTH, Timeframe.H1)
    first, second, third, fourth = (
        Interval(utc(2024, 6, day, 13, 30), utc(2024, 6, day, 20)) for day in (6, 7, 10, 12)
    )
    cut = IntervalSet([first, second, third, fourth]) - IntervalSet(
        [Interval(utc(2024, 6, 12, 15), utc(2024, 6, 12, 16))]
    )
    assert grid.follow(cut.starts, cut.ends).tolist() == [True, True, False, False]
    noon = cut.starts[0] + 3_600_000_000
    starts, ends = np.array([cut.starts[0], noon]), np.array([noon, cut.ends[0]])
    assert grid.follow(starts, ends).tolist() == [True]


@pytest.mark.parametrize(
    ("covered_from", "expected"),
    [
        (utc(2024, 1, 16, 16), utc(2024, 1, 16, 16)),  # the first bar, in the session
        (utc(2024, 1, 16, 21), utc(2024, 1, 16, 5)),  # from the close: nothing of the session
        (utc(2024, 1, 17, 14, 30), utc(2024, 1, 16, 5)),  # from the next session
        (None, utc(2024, 1, 16, 5)),
    ],
)
def test_data_begin_with_the_first_bar_of_their_session_if_it_is_covered(
    covered_from: datetime | None, expected: datetime
) -> None:
    """Coverage from after that session excuses nothing of it: a session that was lost is a gap."""
    covered = [Interval(covered_from, utc(2024, 1, 19, 21))] if covered_from else []
    found = beginning_timestamp(RTH, Timeframe.M5, date(2024, 1, 16), IntervalSet(covered))
    assert found == expected
