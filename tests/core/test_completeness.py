"""The gaps of a series over arrays of spans: the same as one by one, with causes and counts."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktrdr_pipelines.domain.bars import micros, moment
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.session_grid import session_grid
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar, midnight
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.gaps import (
    Cause,
    Claimed,
    Gap,
    GapReason,
    SeriesStatus,
    completeness,
    due_gaps,
    find_gaps,
    is_closed,
)
from ktrdr_pipelines.domain.timeframes import Timeframe

FIRST, LAST = datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 5, 1, tzinfo=UTC)
HOURS = int((LAST - FIRST) / timedelta(hours=1))
KEYS = ("XNYS.RTH", "XNYS.ETH", "FX")


def _stretch(pair: tuple[int, int]) -> Interval:
    low, high = sorted(pair)
    return Interval(FIRST + timedelta(hours=low), FIRST + timedelta(hours=high, minutes=7))


intervals = st.tuples(st.integers(0, HOURS), st.integers(0, HOURS)).map(_stretch)
sets = st.lists(intervals, max_size=6).map(IntervalSet)


@settings(deadline=None, max_examples=80)
@given(st.sampled_from(KEYS), st.sampled_from(Timeframe), sets, st.integers(0, HOURS), st.data())
def test_arrays_find_what_spans_find(
    key: str, timeframe: Timeframe, covered: IntervalSet, hour: int, data: st.DataObject
) -> None:
    """All at once or one by one: the missing intervals of closed sessions are the same."""
    calendar, now = calendar_named(key), FIRST + timedelta(hours=hour)
    spans = session_grid(calendar, timeframe).spans_in(Interval(FIRST, LAST))
    start = data.draw(st.sampled_from(spans)).interval.start
    gaps = find_gaps(
        session_grid(calendar, timeframe), SeriesStatus(IntervalSet(covered), micros(start)), now
    )
    wanted = IntervalSet([Interval(start, LAST)])
    due = due_gaps(calendar, timeframe, wanted=wanted, covered=covered, now=now)
    closed = IntervalSet(s.interval for s in spans if is_closed(s, now))
    expected = IntervalSet(s.interval for s in spans)
    found = IntervalSet(gap.interval for gap in gaps)
    assert found & expected == due & closed
    assert all(gap.bars > 0 and gap.sessions > 0 for gap in gaps)
    assert all(gap.reason is GapReason.MISSING for gap in gaps)


def _gaps(
    timeframe: Timeframe,
    covered: list[Interval],
    *,
    start: date = date(2024, 1, 2),
    now: datetime = LAST,
    claimed: list[Claimed] | None = None,
    key: str = "XNYS.RTH",
    **more: int,
) -> tuple[Gap, ...]:
    calendar = calendar_named(key)
    begins = calendar.day_starts_at(start) if timeframe.is_intraday else midnight(start)
    status = SeriesStatus(IntervalSet(covered), micros(begins), **more)
    return find_gaps(session_grid(calendar, timeframe), status, now, claimed or [])


def _at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_a_gap_goes_on_over_nights_weekends_and_holidays() -> None:
    """Between Friday and Tuesday, with Monday a holiday, nothing parts a gap: three sessions."""
    covered = [Interval(FIRST, _at("2024-01-11T21:00")), Interval(_at("2024-01-17T21:00"), LAST)]
    (gap,) = _gaps(Timeframe.H1, covered)
    assert gap.interval == Interval(_at("2024-01-12T14:30"), _at("2024-01-17T21:00"))
    assert (gap.sessions, gap.bars) == (3, 21)


def test_a_covered_session_parts_two_gaps() -> None:
    """Each hole is told by itself, with its sessions and bars."""
    covered = [
        Interval(FIRST, _at("2024-01-11T21:00")),
        Interval(_at("2024-01-16T14:30"), _at("2024-01-16T21:00")),
        Interval(_at("2024-01-18T00:00"), LAST),
    ]
    gaps = _gaps(Timeframe.M30, covered)
    assert [(gap.sessions, gap.bars) for gap in gaps] == [(1, 13), (1, 13)]


def test_nothing_is_expected_before_start_and_listing() -> None:
    """A gap begins at the later of the universe's start and the gateway's oldest data."""
    listed = micros(_at("2024-02-01T14:30"))
    (gap,) = _gaps(Timeframe.H1, [], listed_from=listed)
    assert gap.interval.start == _at("2024-02-01T14:30")


def test_a_head_later_than_bars_held_explains_nothing() -> None:
    """A start of the data that a held bar contradicts is no fact, before that bar as behind it."""
    oldest = micros(_at("2024-01-16T14:30"))
    covered = [Interval(_at("2024-01-16T14:30"), _at("2024-01-16T21:00"))]
    listed = micros(_at("2024-03-01T14:30"))
    older, newer = _gaps(Timeframe.H1, covered, listed_from=listed, oldest_bar=oldest)
    assert older.interval.end == _at("2024-01-12T21:00")
    assert newer.interval.start == _at("2024-01-17T14:30")
    assert newer.interval.end == _at("2024-04-30T20:00")


def test_nothing_is_expected_after_the_end() -> None:
    """The last session is the one before the end."""
    gaps = _gaps(Timeframe.D1, [], wanted_to=micros(_at("2024-01-05T00:00")))
    assert gaps[0].interval == Interval(_at("2024-01-02T00:00"), _at("2024-01-05T00:00"))


@pytest.mark.parametrize("timeframe", [Timeframe.M1, Timeframe.H4, Timeframe.D1])
def test_an_open_session_has_no_gaps(timeframe: Timeframe) -> None:
    """While a session is open, and until its bars are final, nothing of it is a gap."""
    covered = [Interval(FIRST, _at("2024-01-11T00:00"))]
    assert _gaps(timeframe, covered, now=_at("2024-01-11T21:00")) == ()
    assert len(_gaps(timeframe, covered, now=_at("2024-01-11T21:31"))) == 1


def test_an_attempt_says_why_and_when_again_and_excuses_nothing() -> None:
    """A failed interval stays a gap, parted from what was never tried."""
    cause = Cause(GapReason.FAILED, "no response in 30 s", _at("2024-05-02T00:00"))
    attempted = Claimed(Interval(_at("2024-02-01T00:00"), _at("2024-03-01T00:00")), cause)
    before, failed, after = _gaps(Timeframe.D1, [], claimed=[attempted])
    assert (failed.reason, failed.detail, failed.next_try_at) == cause
    assert failed.sessions == 20
    assert before.reason is after.reason is GapReason.MISSING
    assert before.interval.end == failed.interval.start
    assert failed.interval.end == after.interval.start == _at("2024-03-01T00:00")


def test_of_two_causes_the_last_given_counts() -> None:
    """What weighs more is given later."""
    everything = Interval(FIRST, LAST)
    causes = [Cause(GapReason.FAILED), Cause(GapReason.BLOCKED, "no subscription")]
    (gap,) = _gaps(Timeframe.D1, [], claimed=[Claimed(everything, cause) for cause in causes])
    assert gap.reason is GapReason.BLOCKED


def test_a_claim_inside_a_session_cuts_it() -> None:
    """A cause that concerns two hours of a session is told of those two hours."""
    part = Interval(_at("2024-01-02T16:00"), _at("2024-01-02T18:00"))
    gaps = _gaps(
        Timeframe.H1,
        [Interval(_at("2024-01-03T00:00"), LAST)],
        claimed=[Claimed(part, Cause(GapReason.UNCONFIRMED))],
    )
    assert [(gap.reason.value, gap.bars) for gap in gaps] == [
        ("missing", 2),
        ("unconfirmed", 2),
        ("missing", 3),
    ]


def test_a_sparse_session_is_a_gap_of_its_own() -> None:
    """It is covered, and to be requested once more."""
    calendar = calendar_named("XNYS.RTH")
    spans = session_grid(calendar, Timeframe.M1)
    (position,) = spans.positions_of(np.array(["2024-01-09"], "datetime64[D]"))
    covered = IntervalSet([Interval(FIRST, LAST)])
    status = SeriesStatus(covered, micros(FIRST), sparse_sessions=np.array([position]))
    (gap,) = find_gaps(spans, status, LAST)
    assert gap.reason is GapReason.SPARSE
    assert gap.interval == Interval(_at("2024-01-09T14:30"), _at("2024-01-09T21:00"))
    assert (gap.sessions, gap.bars) == (1, 390)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(KEYS), st.sampled_from(Timeframe), sets, sets, st.integers(0, HOURS))
def test_every_expected_bar_is_covered_explained_or_unexplained(
    key: str, timeframe: Timeframe, covered: IntervalSet, empty: IntervalSet, hour: int
) -> None:
    """Counts of each session add up, and those of gaps are the unexplained ones."""
    spans = session_grid(calendar_named(key), timeframe)
    now = FIRST + timedelta(hours=hour)
    status = SeriesStatus(IntervalSet(covered | empty), micros(FIRST), micros(_at("2024-02-05")))
    low = int(np.searchsorted(spans.starts, micros(FIRST)))
    part = spans.slice(low, int(np.searchsorted(spans.starts, micros(LAST))))
    counts = completeness(part, status, have=np.zeros(len(part)), empty=IntervalSet(empty), now=now)
    assert np.array_equal(counts.expected, counts.covered + counts.explained + counts.unexplained)
    assert (counts.empty <= counts.covered).all()
    gaps = find_gaps(part, status, now)
    missing = {moment(int(s)) for s in part.starts[counts.unexplained > 0]}
    interval = IntervalSet(gap.interval for gap in gaps)
    spots = zip(part.starts, part.ends, strict=True)
    touched = {moment(int(s)) for s, e in spots if interval.clip(Interval(moment(s), moment(e)))}
    assert missing == touched


def test_bars_of_a_session_are_counted_by_the_local_clock() -> None:
    """The first bar may be short: seven hours from 09:30 to 16:00, two of four hours."""
    calendar = calendar_named("XNYS.RTH")
    day = np.array(["2024-01-09", "2024-07-03"], "datetime64[D]")
    for timeframe, whole, half in (
        (Timeframe.M1, 390, 210),
        (Timeframe.M5, 78, 42),
        (Timeframe.M15, 26, 14),
        (Timeframe.M30, 13, 7),
        (Timeframe.H1, 7, 4),
        (Timeframe.H4, 2, 2),
        (Timeframe.D1, 1, 1),
    ):
        spans = session_grid(calendar, timeframe)
        assert spans.bars[spans.positions_of(day)].tolist() == [whole, half], timeframe


def test_weeks_stand_at_their_mondays() -> None:
    """A week of the year's turn is one span, found by any of its dates."""
    spans = session_grid(calendar_named("XNYS.RTH"), Timeframe.W1)
    days = np.array(["2024-12-31", "2025-01-03", "2025-01-06"], "datetime64[D]")
    positions = spans.positions_of(days)
    assert spans.days[positions].astype(str).tolist() == ["2024-12-30", "2024-12-30", "2025-01-06"]


def test_a_break_holds_no_bars() -> None:
    """Of a session with a lunch break the bars outside of it are expected."""
    hour = 3_600_000_000
    day = micros(_at("2024-01-09T00:00"))
    calendar = SessionCalendar(
        key="LUNCH",
        zone="UTC",
        days=np.array(["2024-01-09"], "datetime64[D]"),
        opens=np.array([day + 9 * hour]),
        closes=np.array([day + 15 * hour]),
        breaks=np.array([[day + 11 * hour + hour // 2, day + 12 * hour + hour // 2]]),
    )
    assert session_grid(calendar, Timeframe.M30).bars.tolist() == [10]
    assert session_grid(calendar, Timeframe.H1).bars.tolist() == [6]
    assert session_grid(calendar, Timeframe.M1).bars.tolist() == [300]
    status = SeriesStatus(IntervalSet(), day)
    (gap,) = find_gaps(session_grid(calendar, Timeframe.M30), status, LAST)
    assert gap.bars == 10
