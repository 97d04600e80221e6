"""The gaps of a series and their causes, against an oracle that counts bar by bar."""

from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from itertools import groupby
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.domain.bars import micros, moment
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.session_grid import session_grid
from ktrdr_pipelines.domain.calendars.sessions import (
    SessionCalendar,
    interval_between,
    midnight,
    monday_of,
)
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.gaps import (
    Cause,
    Claimed,
    Gap,
    GapReason,
    SeriesStatus,
    beginning_timestamp,
    completeness,
    due_gaps,
    find_gaps,
    missing,
)
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.gaps.series_status import waiting_of
from tests.support.examples import examples

RTH = calendar_named("XNYS.RTH")

LATER = datetime(2025, 1, 1, tzinfo=UTC)

keys = st.sampled_from(["XNYS.RTH", "XNYS.ETH", "FX"])

timeframes = st.sampled_from(list(Timeframe))


def utc(*parts: int) -> datetime:
    """Return a time in UTC."""
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


def test_nights_weekends_and_holidays_are_no_gaps() -> None:
    """Only session time is a gap: a long weekend is none, a half day ends early."""
    found = gaps(Timeframe.H1, dates(date(2023, 11, 22), date(2023, 11, 28)))
    assert found == [
        Interval(utc(2023, 11, 22, 14, 30), utc(2023, 11, 22, 21)),
        Interval(utc(2023, 11, 24, 14, 30), utc(2023, 11, 24, 18)),
        Interval(utc(2023, 11, 27, 14, 30), utc(2023, 11, 27, 21)),
    ]


def test_nothing_wanted_is_no_gap() -> None:
    """An empty interval has no gaps."""
    nothing = IntervalSet()
    assert not due_gaps(RTH, Timeframe.H1, wanted=nothing, covered=nothing, now=LATER)


def test_what_is_covered_is_no_gap() -> None:
    """Of a session that is covered in part, only the rest is a gap."""
    day = dates(date(2024, 6, 4), date(2024, 6, 5))
    known = Interval(utc(2024, 6, 4, 13, 30), utc(2024, 6, 4, 15))
    assert gaps(Timeframe.H1, day, known) == [Interval(utc(2024, 6, 4, 15), utc(2024, 6, 4, 20))]


def test_a_missing_interval_shorter_than_a_bar_is_a_gap() -> None:
    """A short first bar may be missing alone."""
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
    """A bar of an open session is due a few seconds after its end."""
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
    part = Interval(start, start + timedelta(hours=hours))
    (wide,) = session_grid(calendar, timeframe).widened(IntervalSet([part]))
    met = session_grid(calendar, timeframe).spans_in(part)
    assert wide.covers(part)
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
    """Coverage from after that session excuses nothing of it: the session is a gap."""
    covered = [Interval(covered_from, utc(2024, 1, 19, 21))] if covered_from else []
    found = beginning_timestamp(RTH, Timeframe.M5, date(2024, 1, 16), IntervalSet(covered))
    assert found == expected


FIRST, LAST = datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 5, 1, tzinfo=UTC)

HOURS = int((LAST - FIRST) / timedelta(hours=1))

FAR_BEFORE, FAR_AFTER = datetime(1960, 1, 1, tzinfo=UTC), datetime(2055, 1, 1, tzinfo=UTC)

INSTANT = timedelta(microseconds=1)

KEYS = ("XNYS.RTH", "XNYS.ETH", "FX")


def _interval(pair: tuple[int, int]) -> Interval:
    low, high = sorted(pair)
    return Interval(FIRST + timedelta(hours=low), FIRST + timedelta(hours=high, minutes=7))


intervals = st.tuples(st.integers(0, HOURS), st.integers(0, HOURS)).map(_interval)

sets = st.lists(intervals, max_size=6).map(IntervalSet)


class State(StrEnum):
    """What is covered of one bar; the last instant of a session stays open until it is final."""

    COVERED = "covered"
    MISSING = "missing"
    LAST_INSTANT = "last instant"


class Bar(NamedTuple):
    """One bar that a session should have, or a day or week, and what is covered of it."""

    session: int
    interval: Interval
    over_at: datetime
    state: State = State.COVERED


def _bars(calendar: SessionCalendar, timeframe: Timeframe, first: date, end: date) -> list[Bar]:
    """List the bars of session dates, one by one, by the local clock."""
    if not timeframe.is_intraday:
        return _dated_bars(calendar, timeframe, first, end)
    bars: list[Bar] = []
    for number, session in enumerate(calendar.sessions(first, end)):
        offset = session.opens_at.astimezone(ZoneInfo(calendar.zone)).utcoffset() or timedelta(0)
        start = session.opens_at
        while start < session.closes_at:
            beyond = (start + offset - FIRST) % timeframe.length
            stop = min(start + timeframe.length - beyond, session.closes_at)
            bars.append(Bar(number, Interval(start, stop), session.closes_at))
            start = stop
    return bars


def _dated_bars(
    calendar: SessionCalendar, timeframe: Timeframe, first: date, end: date
) -> list[Bar]:
    """List days, or whole weeks, that have a session; UTC days are over when they end."""
    is_week = timeframe is Timeframe.W1
    if is_week:
        first, end = monday_of(first), monday_of(end) + timedelta(days=7)
    closes: dict[date, datetime] = {}
    for session in calendar.sessions(first, end):
        closes[monday_of(session.day) if is_week else session.day] = session.closes_at
    bars = []
    for number, (day, closes_at) in enumerate(closes.items()):
        interval = Interval(midnight(day), midnight(day) + timeframe.length)
        over_at = max(closes_at, interval.end) if calendar.days_may_differ else closes_at
        bars.append(Bar(number, interval, over_at))
    return bars


def _missing(
    bars: list[Bar], timeframe: Timeframe, now: datetime
) -> tuple[list[Interval], list[Interval]]:
    """List what is missing of closed and of open sessions, session by session, bar by bar."""
    closed: list[Interval] = []
    still_open: list[Interval] = []
    for _, group in groupby(bars, key=lambda bar: bar.session):
        session = list(group)
        end = session[-1].interval.end
        if session[0].over_at + timedelta(minutes=30) <= now:
            closed += _uncovered(session, end)
        elif timeframe.is_intraday:
            until = min(end, now - timedelta(seconds=5))
            pieces = _uncovered(session, until)
            shortest = timeframe.length if until < end else timedelta(seconds=1)
            if pieces and pieces[-1].end == until and pieces[-1].length < shortest:
                pieces.pop()
            still_open += pieces
    return closed, still_open


def _uncovered(session: list[Bar], until: datetime) -> list[Interval]:
    pieces: list[Interval] = []
    for bar in session:
        start, end = bar.interval.start, min(bar.interval.end, until)
        if bar.state is State.LAST_INSTANT:
            start = bar.interval.end - INSTANT
        if bar.state is State.COVERED or start >= end:
            continue
        if pieces and pieces[-1].end == start:
            start = pieces.pop().start
        pieces.append(Interval(start, end))
    return pieces


@st.composite
def _sessions(draw: st.DrawFn) -> tuple[SessionCalendar, Timeframe, list[Bar], datetime]:
    """Generate sessions with bars that are covered or not, and a time in or around them."""
    key, timeframe = draw(st.sampled_from([*KEYS, "CRYPTO"])), draw(st.sampled_from(Timeframe))
    calendar = calendar_named(key)
    days = draw(st.integers(1, 4 if timeframe.is_intraday else 40))
    first = date(2024, 3, 4) + timedelta(days=draw(st.integers(0, 60)))
    if draw(st.booleans()):
        calendar = calendar.until(first + timedelta(days=draw(st.integers(1, 70))))
    bars = _bars(calendar, timeframe, first, first + timedelta(days=days))
    rng = draw(st.randoms(use_true_random=False))
    share = draw(st.sampled_from([0.0, 0.02, 0.5, 1.0]))
    for position, bar in enumerate(bars):
        is_last = position + 1 == len(bars) or bars[position + 1].session != bar.session
        state = State.MISSING if rng.random() < share else State.COVERED
        if is_last and timeframe.is_intraday and rng.random() < 0.5:
            state = State.LAST_INSTANT
        bars[position] = bar._replace(state=state)
    near = rng.choice(bars).over_at if bars else midnight(first)
    seconds = st.one_of(st.sampled_from([0, 4, 5, 6, 65, 1799, 1800]), st.integers(-90_000, 90_000))
    return calendar, timeframe, bars, near + timedelta(seconds=draw(seconds))


@examples(300)
@given(_sessions())
def test_what_is_missing_is_what_each_bar_lacks(
    case: tuple[SessionCalendar, Timeframe, list[Bar], datetime],
) -> None:
    """Loads, the index and its counts find what counting bar by bar finds.

    Every bar that should exist and is not covered is missing; nothing that is covered is, nor what
    is not over yet.
    """
    calendar, timeframe, bars, now = case
    closed, still_open = _missing(bars, timeframe, now)
    grid = session_grid(calendar, timeframe)
    wanted = IntervalSet(bar.interval for bar in bars)
    lacking = {State.MISSING: lambda one: one, State.LAST_INSTANT: _last_instant}
    covered = wanted - IntervalSet(
        lacking[bar.state](bar.interval) for bar in bars if bar.state in lacking
    )
    everything = IntervalSet([*closed, *still_open])
    assert due_gaps(calendar, timeframe, wanted=wanted, covered=covered, now=now) == everything
    pieces = missing(grid, wanted, covered, now)
    assert [moment(int(at)) for at in pieces.starts] == [
        one.start for one in (*closed, *still_open)
    ]
    if not bars:
        return
    first, end = bars[0].interval.start, bars[-1].interval.end
    outside = IntervalSet([Interval(FAR_BEFORE, first), Interval(end, FAR_AFTER)])
    status = SeriesStatus(covered | outside, micros(first), wanted_to=micros(end))
    gaps = find_gaps(grid, status, now)
    assert IntervalSet(gap.interval for gap in gaps) & wanted == IntervalSet(closed)
    whole = [bar for bar in bars if bar.over_at + timedelta(minutes=30) <= now]
    lacks = [bar for bar in whole if bar.state is not State.COVERED]
    assert sum(gap.bars for gap in gaps) == len(lacks)
    counts = completeness(grid, status, have=np.zeros(len(grid)), empty=IntervalSet(), now=now)
    assert int(counts.unexplained.sum()) == len(lacks)
    met = (grid.starts >= micros(first)) & (grid.starts < micros(end))
    assert int(counts.expected[met].sum()) == len(whole)
    if now >= first:
        assert waiting_of(grid, covered | outside, now) == IntervalSet(still_open)


def _last_instant(interval: Interval) -> Interval:
    return Interval(interval.end - INSTANT, interval.end)


def test_an_earlier_part_of_an_open_session_is_missing_though_its_newest_bars_are_covered() -> None:
    """A part that a load left uncovered at noon is found, and is no gap while it may wait."""
    calendar, now = calendar_named("XNYS.RTH"), _at("2024-01-09T20:00")
    lost = Interval(_at("2024-01-09T16:00"), _at("2024-01-09T17:00"))
    covered = IntervalSet([Interval(FIRST, now)]) - IntervalSet([lost])
    grid = session_grid(calendar, Timeframe.M1)
    assert waiting_of(grid, covered, now) == IntervalSet([lost])
    assert find_gaps(grid, SeriesStatus(covered, micros(FIRST)), now) == ()


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
    """Friday to Wednesday, with a holiday on Monday, is one gap of three sessions."""
    covered = [Interval(FIRST, _at("2024-01-11T21:00")), Interval(_at("2024-01-17T21:00"), LAST)]
    (gap,) = _gaps(Timeframe.H1, covered)
    assert gap.interval == Interval(_at("2024-01-12T14:30"), _at("2024-01-17T21:00"))
    assert (gap.sessions, gap.bars) == (3, 21)


def test_a_covered_session_separates_two_gaps() -> None:
    """Each gap has its own sessions and bars."""
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
    """A stated start that a held bar contradicts excuses nothing, before that bar or after it."""
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


def test_a_failed_attempt_is_a_cause_and_excuses_nothing() -> None:
    """Its interval is a gap of its own, with the reason and the time of the next attempt."""
    cause = Cause(GapReason.FAILED, "no response in 30 s", _at("2024-05-02T00:00"))
    attempted = Claimed(Interval(_at("2024-02-01T00:00"), _at("2024-03-01T00:00")), cause)
    before, failed, after = _gaps(Timeframe.D1, [], claimed=[attempted])
    assert (failed.reason, failed.detail, failed.next_try_at) == cause
    assert failed.sessions == 20
    assert before.reason is after.reason is GapReason.MISSING
    assert before.interval.end == failed.interval.start
    assert failed.interval.end == after.interval.start == _at("2024-03-01T00:00")


def test_of_two_causes_the_last_given_counts() -> None:
    """The caller passes the more important cause last."""
    everything = Interval(FIRST, LAST)
    causes = [Cause(GapReason.FAILED), Cause(GapReason.BLOCKED, "no subscription")]
    (gap,) = _gaps(Timeframe.D1, [], claimed=[Claimed(everything, cause) for cause in causes])
    assert gap.reason is GapReason.BLOCKED


def test_a_claim_inside_a_session_cuts_it() -> None:
    """A cause of two hours of a session applies to those two hours alone."""
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


@examples(60)
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


def test_weeks_are_found_by_any_of_their_dates() -> None:
    """A week across the turn of the year is one span, dated by its Monday."""
    spans = session_grid(calendar_named("XNYS.RTH"), Timeframe.W1)
    days = np.array(["2024-12-31", "2025-01-03", "2025-01-06"], "datetime64[D]")
    positions = spans.positions_of(days)
    assert spans.days[positions].astype(str).tolist() == ["2024-12-30", "2024-12-30", "2025-01-06"]


def test_a_break_holds_no_bars() -> None:
    """Only the bars outside of a lunch break are expected."""
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


def test_data_that_begin_in_mid_session_explain_the_hours_before_alone() -> None:
    """The rest of that session is missing; a start of the universe cuts no session."""
    begins = micros(_at("2024-01-09T16:00"))
    covered = [Interval(_at("2024-01-10T00:00"), LAST)]
    (gap,) = _gaps(Timeframe.M30, covered, listed_from=begins)
    assert gap.interval == Interval(_at("2024-01-09T16:00"), _at("2024-01-09T21:00"))
    assert gap.bars == 10
    grid = session_grid(calendar_named("XNYS.RTH"), Timeframe.M30)
    no_bars = np.zeros(len(grid))
    for status, unexplained in (
        (SeriesStatus(IntervalSet(covered), micros(FIRST), begins), 10),
        (SeriesStatus(IntervalSet(covered), begins), 13),
    ):
        counts = completeness(grid, status, have=no_bars, empty=IntervalSet(), now=LAST)
        assert int(counts.unexplained.sum()) == unexplained
        (position,) = grid.positions_of(np.array(["2024-01-09"], "datetime64[D]"))
        assert int(counts.explained[position]) == 13 - unexplained
        assert int((counts.explained + counts.unexplained)[position]) == 13
