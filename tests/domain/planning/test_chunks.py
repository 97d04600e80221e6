"""Chunks: they cover what is missing, in the fewest requests that the limits allow."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.session_grid import Span, session_grid
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar, interval_between
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.chunks import (
    Chunk,
    Need,
    across_boundary,
    is_opening,
    narrower,
    newest_run,
    plan,
)
from ktrdr_pipelines.domain.planning.gaps import LAST_INSTANT
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.simulator.market.hours import Venue
from ktrdr_pipelines.simulator.market.market_calendars import calendar_of
from ktrdr_pipelines.simulator.requests.durations import parse_duration, window_of
from tests.support.costs import LINEAR_IN_EIGHT, growth
from tests.support.examples import examples

SAFE = IbLimitsRegistry.SAFE_DAYS.value

WIDE = dict.fromkeys(SAFE, 365) | {"1d": 68 * 365, "1w": 68 * 365}

FIRST = date(2024, 9, 30)

LATER = datetime(2026, 1, 1, tzinfo=UTC)

RTH = calendar_named("XNYS.RTH")

TUESDAY, WEDNESDAY = date(2024, 6, 4), date(2024, 6, 5)

MINUTE = timedelta(minutes=1)


def _part(draw: st.DrawFn, span: Span, timeframe: Timeframe) -> Interval:
    """Return what is covered of a session: all, all but an edge, or all but its last instant.

    The edges are where bars begin, as they are in what responses cover.
    """
    start, end, length = span.interval.start, span.interval.end, timeframe.length
    most = (span.interval.length - timedelta(seconds=1)) // length
    kind = draw(st.sampled_from(["whole", "whole", "opening", "ending", "last instant"]))
    if not timeframe.is_intraday or kind == "whole":
        return span.interval
    if kind == "last instant":
        return Interval(start, end - LAST_INSTANT)
    if most < 1:
        return span.interval
    lacking = draw(st.integers(1, most)) * length
    return Interval(start + lacking, end) if kind == "opening" else Interval(start, end - lacking)


@st.composite
def needs(draw: st.DrawFn, most_days: int = 130) -> Need:
    """Generate needs of any series, with covered intervals and an open session."""
    calendar = calendar_named(draw(st.sampled_from(["XNYS.RTH", "XNYS.ETH", "FX"])))
    timeframe = draw(st.sampled_from(list(Timeframe)))
    end = FIRST + timedelta(days=draw(st.integers(7, most_days)))
    wanted = interval_between(calendar, timeframe, FIRST, end)
    spans = session_grid(calendar, timeframe).spans_in(wanted)
    covered = draw(st.frozensets(st.integers(0, len(spans) - 1)))
    table = draw(st.sampled_from([SAFE, WIDE]))
    minutes = draw(st.integers(0, (end - FIRST).days * 1440 + 9000))
    late = draw(st.booleans())
    return Need(
        calendar=calendar,
        timeframe=timeframe,
        wanted=IntervalSet([wanted]),
        covered=IntervalSet(_part(draw, spans[number], timeframe) for number in covered),
        now=LATER if late else datetime(2024, 9, 30, tzinfo=UTC) + timedelta(minutes=minutes),
        most_days=table[timeframe.value],
    )


def spans_of(need: Need) -> list[Span]:
    """Return the spans that hold a gap."""
    gaps = need.gaps()
    bounds = gaps.bounds
    spans = need.grid.spans_in(bounds) if bounds else []
    return [span for span in spans if gaps.clip(span.interval)]


def starts_at(need: Need, chunk: Chunk) -> datetime:
    """Return how far back a request reaches in real time; ``N D`` counts sessions."""
    count, unit = chunk.duration.split()
    number = int(count)
    if unit == "D":
        ends = Interval(chunk.ends_at - timedelta(days=4 * number + 20), chunk.ends_at)
        return need.calendar.sessions_meeting(ends)[-number].opens_at
    lengths = {"S": timedelta(seconds=1), "W": timedelta(days=7), "Y": timedelta(days=365)}
    return chunk.ends_at - number * lengths[unit]


def fewest(spans: Sequence[Span], most_days: int) -> int:
    """Count the fewest requests by trying every cut."""
    most = timedelta(days=most_days)

    @cache
    def from_position(position: int) -> int:
        if position == len(spans):
            return 0
        ends = [
            end
            for end in range(position + 1, len(spans) + 1)
            if end == position + 1 or spans[end - 1].closes_at - spans[position].opens_at <= most
        ]
        return 1 + min(from_position(end) for end in ends)

    return from_position(0)


@given(needs())
def test_chunks_cover_every_gap_and_no_session_that_is_not_wanted(need: Need) -> None:
    """All that is due lies in a chunk; beyond what is wanted a chunk reaches over closed time."""
    chunks = plan(need)
    covered = IntervalSet(chunk.interval for chunk in chunks)
    assert not need.gaps() - covered
    assert all(chunk.ends_at <= need.now for chunk in chunks)
    for part in covered - need.wanted:
        assert not need.grid.spans_in(part)


@given(needs())
def test_no_chunk_is_longer_than_the_limit_unless_it_is_one_session(need: Need) -> None:
    """From open to close a chunk fits the limit; a session alone may be longer.

    The opening of a session is requested together with the session before it, its end together
    with the session after it.
    """
    for chunk in plan(need):
        inside = need.grid.spans_in(chunk.interval)
        is_past = need.timeframe.is_intraday and chunk.ends_at > chunk.interval.end
        over = is_opening(need, chunk) or (is_past and not chunk.meets_covered)
        assert chunk.sessions == (2 if over and len(inside) == 1 else len(inside))
        length = inside[-1].closes_at - inside[0].opens_at
        fits = length <= timedelta(days=need.most_days)
        assert len(inside) == 1 or fits or chunk.duration == "1 Y"


@given(needs())
def test_chunks_come_newest_first_and_do_not_share_sessions(need: Need) -> None:
    """They fall from chunk to chunk; each session with a gap is in exactly one chunk."""
    chunks = plan(need)
    assert [chunk.interval.end for chunk in chunks] == sorted(
        (chunk.interval.end for chunk in chunks), reverse=True
    )
    for span in spans_of(need):
        assert sum(chunk.interval.overlaps(span.interval) for chunk in chunks) == 1


@examples(60)
@given(needs(60))
def test_there_are_as_few_chunks_as_possible(need: Need) -> None:
    """No other way of cutting needs fewer requests."""
    assert len(plan(need)) == fewest(tuple(spans_of(need)), need.most_days)


@given(needs())
def test_a_chunk_ends_where_no_session_is_cut(need: Need) -> None:
    """An end lies in closed time, except in an open session and at held bars."""
    for chunk in plan(need):
        moment = Interval(chunk.ends_at - timedelta(microseconds=1), chunk.ends_at)
        for session in need.calendar.sessions_meeting(moment):
            is_open = session.closes_at + timedelta(minutes=30) > need.now
            bounds = need.gaps(chunk.interval).bounds
            assert bounds is not None
            meets_held = bounds.end in need.covered
            assert chunk.ends_at == session.closes_at or is_open or meets_held


@given(needs())
def test_a_missing_end_of_a_session_is_requested_up_to_the_next_open(need: Need) -> None:
    """The gateway may have bars after the close that the calendar knows.

    The end of a session is requested over the next one: bars on both sides cover a quiet end.
    """
    for chunk in plan(need):
        bounds = need.gaps(chunk.interval).bounds
        assert bounds is not None
        last = need.grid.spans_in(bounds)[-1]
        if not need.timeframe.is_intraday or bounds.end < last.interval.end:
            continue
        after = Interval(last.closes_at, last.closes_at + timedelta(days=10))
        following = need.calendar.sessions_meeting(after)[0]
        is_rest = len(need.grid.spans_in(bounds)) == 1
        has_bar = following.opens_at + need.timeframe.length <= need.now
        if is_rest and bounds.start > last.interval.start and has_bar:
            assert chunk.ends_at == min(following.closes_at, need.now)
            assert chunk.interval.end == following.opens_at
        else:
            assert chunk.ends_at == min(following.opens_at, need.now)
            assert chunk.interval.end == chunk.ends_at


@given(needs())
def test_a_duration_reaches_back_to_the_chunks_first_session(need: Need) -> None:
    """In IB's notation the request reaches back to everything that the chunk may cover."""
    for chunk in plan(need):
        inside = need.grid.spans_in(chunk.interval)
        gap = need.gaps(chunk.interval).bounds
        assert gap is not None
        first = inside[0].opens_at
        if need.timeframe.is_intraday:
            first = max(first, gap.start)
        assert starts_at(need, chunk) <= first


@given(needs())
def test_durations_are_valid_for_the_gateway(need: Need) -> None:
    """Days are at most 365, weeks 52, and seconds no more than the safe table's longest."""
    most = {"S": 28_800, "D": 365, "W": 52, "Y": 68}
    for chunk in plan(need):
        count, unit = chunk.duration.split()
        assert 1 <= int(count) <= most[unit]


def need_of(
    calendar: str, timeframe: Timeframe, first: date, end: date, *covered: Interval
) -> Need:
    """Return a need for session dates that are long over."""
    sessions = calendar_named(calendar)
    wanted = interval_between(sessions, timeframe, first, end)
    return Need(
        calendar=sessions,
        timeframe=timeframe,
        wanted=IntervalSet([wanted]),
        covered=IntervalSet(covered),
        now=LATER,
        most_days=SAFE[timeframe.value],
    )


@pytest.mark.parametrize(
    ("timeframe", "durations"),
    [
        (Timeframe.M1, ["1 D"] * 4),
        (Timeframe.M5, ["4 D"]),
        (Timeframe.H1, ["4 D"]),
        (Timeframe.D1, ["4 D"]),
        (Timeframe.W1, ["1 W"]),
    ],
)
def test_a_short_week_is_requested_in_sessions(timeframe: Timeframe, durations: list[str]) -> None:
    """The week of Memorial Day has four sessions."""
    need = need_of("XNYS.RTH", timeframe, date(2024, 5, 27), date(2024, 6, 3))
    assert [chunk.duration for chunk in plan(need)] == durations


def test_days_of_many_years_take_a_request_a_year() -> None:
    """From 1998 to 2021 daily bars take at most 24 requests."""
    chunks = plan(need_of("XNYS.RTH", Timeframe.D1, date(1998, 1, 2), date(2021, 6, 1)))
    assert len(chunks) <= 24
    assert {chunk.duration for chunk in chunks[:-1]} == {"1 Y"}


@pytest.mark.parametrize(("days", "requests"), [(31, 2), (44, 2), (45, 2), (70, 3), (100, 4)])
def test_hours_of_any_span_are_cut_without_loss(days: int, requests: int) -> None:
    """Spans that are no multiple of a request's length are covered to the last session."""
    first = date(2024, 2, 5)
    need = need_of("XNYS.RTH", Timeframe.H1, first, first + timedelta(days=days))
    chunks = plan(need)
    assert len(chunks) <= requests
    assert not need.gaps() - IntervalSet(chunk.interval for chunk in chunks)


def test_a_session_longer_than_the_limit_is_one_chunk() -> None:
    """Where a limit is shorter than a session, each session is still requested, as one."""
    need = need_of("FX", Timeframe.M1, date(2024, 11, 1), date(2024, 11, 6))
    chunks = plan(replace(need, most_days=0))
    assert [chunk.duration for chunk in chunks] == ["1 D"] * 3


def test_a_small_gap_is_requested_in_seconds_with_a_bar_to_spare() -> None:
    """A gap in a session is requested alone, with a bar on either side, which prove its edges."""
    day = datetime(2024, 6, 4, tzinfo=UTC)
    before = Interval(day + timedelta(hours=13), day + timedelta(hours=15))
    after = Interval(day + timedelta(hours=15, minutes=10), day + timedelta(hours=21))
    need = need_of("XNYS.RTH", Timeframe.M1, date(2024, 6, 4), date(2024, 6, 5), before, after)
    (chunk,) = plan(need)
    assert (chunk.duration, chunk.ends_at) == ("720 S", after.start + MINUTE)


def utc(text: str) -> datetime:
    """Return a time in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("last", "ends_at"),
    [
        (date(2024, 6, 4), "2024-06-05T13:30"),  # a Tuesday
        (date(2024, 6, 7), "2024-06-10T13:30"),  # a Friday
        (date(2024, 7, 3), "2024-07-05T13:30"),  # a half day before a holiday
    ],
)
def test_minutes_are_requested_up_to_the_next_sessions_open(last: date, ends_at: str) -> None:
    """The chunk covers the closed time too, where bars after the close may lie."""
    (chunk,) = plan(need_of("XNYS.RTH", Timeframe.M1, last, last + timedelta(days=1)))
    assert chunk.ends_at == chunk.interval.end == utc(ends_at)
    assert (chunk.duration, chunk.sessions, chunk.meets_covered) == ("1 D", 1, False)


@pytest.mark.parametrize(
    ("calendar", "ends_at"), [("FX", "2024-06-04T21:15"), ("CRYPTO", "2024-06-05T00:00")]
)
def test_round_the_clock_sessions_end_where_the_next_one_begins(
    calendar: str, ends_at: str
) -> None:
    """No chunk reaches into the next session."""
    (chunk,) = plan(need_of(calendar, Timeframe.M5, TUESDAY, WEDNESDAY))
    assert chunk.ends_at == chunk.interval.end == utc(ends_at)


@pytest.mark.parametrize("timeframe", [Timeframe.M1, Timeframe.D1])
def test_no_request_ends_in_the_future(timeframe: Timeframe) -> None:
    """In the evening the requested end is now, for minutes as for days."""
    need = need_of("XNYS.RTH", timeframe, date(2024, 6, 4), date(2024, 6, 5))
    now = utc("2024-06-04T20:45")
    (chunk,) = plan(replace(need, now=now))
    assert chunk.ends_at == now


def test_days_are_requested_up_to_the_end_of_their_date() -> None:
    """IB counts years back from the date of the requested end: it stays the session's own."""
    (chunk,) = plan(need_of("XNYS.RTH", Timeframe.D1, date(2024, 6, 3), date(2024, 6, 8)))
    assert chunk.ends_at == utc("2024-06-08T03:59:59")
    assert chunk.interval == Interval(utc("2024-06-03"), utc("2024-06-08"))


@pytest.mark.parametrize("timeframe", [Timeframe.M1, Timeframe.M15, Timeframe.H4])
def test_an_open_last_instant_is_one_request_half_an_hour_after_the_close(
    timeframe: Timeframe,
) -> None:
    """It is not due before, and its request reaches beyond the close."""
    opens, closes = utc("2024-06-04T13:30"), utc("2024-06-04T20:00")
    known = Interval(opens, closes - LAST_INSTANT)
    need = need_of("XNYS.RTH", timeframe, date(2024, 6, 4), date(2024, 6, 5), known)
    early, late = closes + 30 * MINUTE - timedelta(seconds=1), closes + 30 * MINUTE
    assert plan(replace(need, now=early)) == []
    (chunk,) = plan(replace(need, now=late))
    assert chunk.interval == Interval(known.end, late)
    assert chunk.ends_at == late
    assert starts_at(need, chunk) <= closes - timeframe.length
    assert not plan(replace(need, now=late, covered=need.covered | IntervalSet([chunk.interval])))


OPENS, CLOSES = utc("2024-06-05T13:30"), utc("2024-06-05T20:00")
"""Open and close of Wednesday."""

FIRST_BAR = OPENS + 7 * MINUTE


def quiet_opening(timeframe: Timeframe = Timeframe.M1, first: date = WEDNESDAY) -> Need:
    """Return a need where the first minutes of Wednesday have no bar, from a date on."""
    held = Interval(FIRST_BAR, utc("2024-06-06T13:30"))
    return need_of("XNYS.RTH", timeframe, first, date(2024, 6, 6), held)


def test_a_quiet_opening_alone_is_requested_over_two_sessions() -> None:
    """Up to the first bar that is held, so that bars lie on both sides."""
    need = quiet_opening()
    (chunk,) = plan(need)
    assert chunk.interval.end == FIRST_BAR
    assert chunk.interval.start <= OPENS
    assert (chunk.ends_at, chunk.duration, chunk.sessions) == (FIRST_BAR + MINUTE, "2 D", 2)
    assert is_opening(need, chunk)
    assert starts_at(need, chunk) == OPENS - timedelta(days=1)


def test_a_quiet_opening_is_requested_alone_where_one_session_is_the_limit() -> None:
    """It then ends where held bars begin."""
    need = replace(quiet_opening(), most_sessions=1)
    (chunk,) = plan(need)
    assert (chunk.ends_at, chunk.sessions, chunk.meets_covered) == (FIRST_BAR, 1, True)
    assert chunk.duration == "480 S"


def test_a_missing_end_or_middle_is_no_opening() -> None:
    """An opening begins with its session and ends where bars are covered."""
    need = quiet_opening()
    early = replace(need, covered=IntervalSet([Interval(OPENS, FIRST_BAR)]))
    (chunk,) = plan(early)
    assert not is_opening(early, chunk)
    whole = replace(need, covered=IntervalSet())
    (chunk,) = plan(whole)
    assert not is_opening(whole, chunk)
    middle = replace(
        need,
        covered=IntervalSet(
            [Interval(OPENS, OPENS + MINUTE), Interval(FIRST_BAR, CLOSES + timedelta(hours=8))]
        ),
    )
    (chunk,) = plan(middle)
    assert not is_opening(middle, chunk)
    done = replace(need, covered=need.wanted)
    assert not is_opening(done, chunk)


def older_chunk(need: Need) -> Chunk:
    """Plan Tuesday alone."""
    tuesday = interval_between(RTH, need.timeframe, TUESDAY, WEDNESDAY)
    (chunk,) = plan(replace(need, wanted=IntervalSet([tuesday])))
    return chunk


def test_a_chunk_reaches_over_the_quiet_opening_after_it() -> None:
    """The older session is requested anyway: the opening needs no request of its own."""
    need = quiet_opening(first=TUESDAY)
    older = older_chunk(need)
    chunk = across_boundary(need, older)
    assert chunk.interval == Interval(older.interval.start, FIRST_BAR)
    assert (chunk.ends_at, chunk.duration, chunk.sessions) == (FIRST_BAR + MINUTE, "2 D", 2)


def test_a_chunk_reaches_over_an_empty_session_to_the_quiet_opening_after_it() -> None:
    """Bars on both sides cover both."""
    need = quiet_opening(first=date(2024, 6, 3))
    monday = interval_between(RTH, Timeframe.M1, date(2024, 6, 3), TUESDAY)
    (older,) = plan(replace(need, wanted=IntervalSet([monday])))
    chunk = across_boundary(need, older)
    assert (chunk.interval.end, chunk.duration, chunk.sessions) == (FIRST_BAR, "3 D", 3)
    limited = replace(need, most_sessions=2)
    assert across_boundary(limited, older) == older


def test_a_chunk_is_unchanged_without_a_quiet_opening_after_it() -> None:
    """The opening is covered, wholly missing or beyond the limit, or the bars are daily."""
    need = quiet_opening(first=TUESDAY)
    older = older_chunk(need)
    covered = replace(need, covered=need.covered | IntervalSet([Interval(OPENS, FIRST_BAR)]))
    assert across_boundary(covered, older) == older
    missing = replace(need, covered=IntervalSet())
    assert across_boundary(missing, older) == older
    end = replace(need, covered=IntervalSet([Interval(OPENS, CLOSES - LAST_INSTANT)]))
    assert across_boundary(end, older) == older
    assert across_boundary(replace(need, most_sessions=1), older) == older
    days = need_of("XNYS.RTH", Timeframe.D1, TUESDAY, date(2024, 6, 6))
    (daily,) = plan(days)
    assert across_boundary(days, daily) == daily


@given(needs())
def test_chunks_across_boundaries_cover_no_less_and_end_no_later_than_now(need: Need) -> None:
    """What is added is the opening of one session that was missing."""
    for chunk in plan(need):
        wider = across_boundary(need, chunk)
        assert wider.interval.covers(chunk.interval)
        assert wider.ends_at <= need.now
        if wider == chunk:
            continue
        (added,) = (IntervalSet([wider.interval]) - IntervalSet([chunk.interval])).clip(
            wider.interval
        )
        gaps = need.gaps(added)
        assert gaps
        assert wider.interval.end in need.covered
        missing = need.gaps(chunk.interval).bounds
        assert missing is not None
        first = need.grid.spans_in(missing)[0]
        assert starts_at(need, wider) <= max(first.opens_at, missing.start)


@pytest.mark.parametrize(
    ("timeframe", "duration"),
    [(Timeframe.M1, "2 D"), (Timeframe.H1, "2 D"), (Timeframe.D1, "5 D"), (Timeframe.W1, "4 W")],
)
def test_a_tail_reaches_back_to_held_bars(timeframe: Timeframe, duration: str) -> None:
    """Bars returned again show whether history has changed, without another request.

    Of long bars more sessions are: one bar shows little.
    """
    first = date(2024, 6, 10) if timeframe is Timeframe.W1 else WEDNESDAY
    end = first + (timedelta(days=7) if timeframe is Timeframe.W1 else timedelta(days=1))
    held = interval_between(RTH, timeframe, date(2024, 5, 27), first)
    (chunk,) = plan(need_of("XNYS.RTH", timeframe, first, end, held))
    assert chunk.duration == duration
    assert chunk.sessions == 1
    assert not chunk.interval.overlaps(Interval(held.start, held.end - timedelta(hours=9)))
    (alone,) = plan(need_of("XNYS.RTH", timeframe, first, end))
    assert alone.duration == f"1 {duration[-1]}"
    limited = replace(need_of("XNYS.RTH", timeframe, first, end, held), most_sessions=1)
    assert [one.duration for one in plan(limited)] == [f"1 {duration[-1]}"]


def test_a_tail_does_not_reach_back_over_a_session_that_is_not_covered_to_its_end() -> None:
    """Where the last instant is open, the same chunk requests it."""
    held = interval_between(RTH, Timeframe.H1, date(2024, 5, 27), TUESDAY)
    tuesday = Interval(utc("2024-06-04T13:30"), utc("2024-06-04T19:00"))
    need = need_of("XNYS.RTH", Timeframe.H1, TUESDAY, date(2024, 6, 6), held, tuesday)
    (chunk,) = plan(need)
    assert (chunk.duration, chunk.sessions) == ("2 D", 2)
    assert starts_at(need, chunk) == utc("2024-06-04T13:30")


def test_a_gap_between_held_bars_is_no_tail() -> None:
    """No further session is requested."""
    before = interval_between(RTH, Timeframe.H1, date(2024, 5, 27), TUESDAY)
    after = interval_between(RTH, Timeframe.H1, WEDNESDAY, date(2024, 6, 8))
    need = need_of("XNYS.RTH", Timeframe.H1, date(2024, 5, 27), date(2024, 6, 8), before, after)
    assert [chunk.duration for chunk in plan(need)] == ["1 D"]


@pytest.mark.parametrize(
    ("timeframe", "sessions", "half"),
    [
        (Timeframe.M1, 1, None),
        (Timeframe.M1, 2, 1),
        (Timeframe.H1, 21, 10),
        (Timeframe.D1, 252, 60),
        (Timeframe.D1, 60, 30),
        (Timeframe.W1, 52, 26),
        (Timeframe.W1, 1, None),
    ],
)
def test_a_request_without_a_response_is_halved(
    timeframe: Timeframe, sessions: int, half: int | None
) -> None:
    """Days are requested by the year or by up to 60 sessions; one session cannot be halved."""
    assert narrower(timeframe, sessions) == half


def test_the_newest_run_ends_at_the_newest_covered_part() -> None:
    """Adjoining missing sessions are one run, over nights and weekends."""
    monday, friday = date(2024, 6, 3), date(2024, 6, 14)
    whole = need_of("XNYS.RTH", Timeframe.H1, monday, friday)
    bounds = whole.gaps().bounds
    assert newest_run(whole) == bounds
    held = interval_between(RTH, Timeframe.H1, date(2024, 6, 6), date(2024, 6, 7))
    split = replace(whole, covered=IntervalSet([held]))
    assert bounds is not None
    assert newest_run(split) == Interval(utc("2024-06-07T13:30"), bounds.end)
    noon = Interval(utc("2024-06-06T15:00"), utc("2024-06-06T16:00"))
    cut = replace(whole, covered=IntervalSet([noon]))
    assert newest_run(cut) == Interval(noon.end, bounds.end)
    assert newest_run(replace(whole, covered=whole.wanted)) is None


@given(needs())
def test_the_newest_run_holds_the_newest_gap_and_nothing_covered(need: Need) -> None:
    """Of each session that it meets everything in it is missing."""
    gaps, run = need.gaps(), newest_run(need)
    assert (run is None) == (not gaps)
    if run is None:
        return
    assert gaps.bounds is not None
    assert run.end == gaps.bounds.end
    for span in need.grid.spans_in(run):
        part = span.interval.intersection(run)
        assert part is not None
        assert gaps.covers(part)


def _plan_years(calendar: SessionCalendar, years: int) -> None:
    wanted = interval_between(calendar, Timeframe.M1, date(2025 - years, 1, 2), date(2025, 1, 2))
    need = Need(
        calendar=calendar,
        timeframe=Timeframe.M1,
        wanted=IntervalSet([wanted]),
        covered=IntervalSet(),
        now=LATER,
        most_days=1,
    )
    assert len(plan(need)) == len(session_grid(calendar, Timeframe.M1).spans_in(wanted))


def test_planning_time_is_linear() -> None:
    """Eight times the years of 1m take about eight times as long to plan, not the square."""
    calendar = calendar_named("XNYS.RTH")
    assert growth(lambda years: _plan_years(calendar, years), 2, 16) < LINEAR_IN_EIGHT


def test_a_session_returned_without_bars_is_requested_to_the_end_of_its_day() -> None:
    """It is not certain that ``1 D`` to the next open means the session before it."""
    session = RTH.sessions(date(2024, 5, 21), date(2024, 5, 22))[0]
    gap = Interval(session.opens_at, session.closes_at)
    need = Need(
        calendar=RTH,
        timeframe=Timeframe.M1,
        wanted=IntervalSet([gap]),
        covered=IntervalSet(),
        now=LATER,
        most_days=1,
        most_sessions=1,
    )
    [first] = plan(need)
    assert (first.duration, first.ends_at) == ("1 D", datetime(2024, 5, 22, 13, 30, tzinfo=UTC))
    [again] = plan(replace(need, without_bars=IntervalSet([gap])))
    assert (again.duration, again.ends_at) == (
        "1 D",
        datetime(2024, 5, 22, 3, 59, 59, tzinfo=UTC),
    )


NOW = datetime(2026, 11, 28, tzinfo=UTC)


def planned(key: str, timeframe: Timeframe, first: date, end: date) -> tuple[Need, list[Chunk]]:
    """Plan everything between two session dates."""
    calendar = calendar_named(key)
    need = Need(
        calendar=calendar,
        timeframe=timeframe,
        wanted=IntervalSet([interval_between(calendar, timeframe, first, end)]),
        covered=IntervalSet(),
        now=NOW,
        most_days=IbLimitsRegistry.SAFE_DAYS.value[timeframe.value],
    )
    return need, plan(need)


def returned(need: Need, chunk: Chunk) -> tuple[date, date]:
    """Return the dates after which, and up to which, a gateway returns bars for a chunk."""
    zone_day = need.calendar.day_of(chunk.ends_at - timedelta(microseconds=1))
    count, unit = chunk.duration.split()
    if unit == "Y":
        day = min(zone_day.day, 28) if zone_day.month == 2 else zone_day.day
        return zone_day.replace(year=zone_day.year - int(count), day=day), zone_day
    days = int(count) * 7 if unit == "W" else None
    if days is not None:
        return zone_day - timedelta(days=days), zone_day
    sessions = need.calendar.sessions(zone_day - timedelta(days=2 * int(count) + 10), zone_day)
    newest = need.calendar.sessions(zone_day, zone_day + timedelta(days=1))
    chosen = [*sessions, *newest][-int(count) :]
    return chosen[0].day - timedelta(days=1), zone_day


@given(
    key=st.sampled_from(["XNYS.RTH", "XLON.RTH", "FX", "XTKS.RTH"]),
    timeframe=st.sampled_from([Timeframe.D1, Timeframe.W1]),
    first=st.dates(date(1999, 1, 4), date(2020, 1, 1)),
    days=st.integers(10, 2500),
)
@examples(120)
def test_no_session_is_lost_between_two_chunks(
    key: str, timeframe: Timeframe, first: date, days: int
) -> None:
    """Every session lies in what a gateway returns for the chunk that is to cover it."""
    need, chunks = planned(key, timeframe, first, first + timedelta(days=days))
    for chunk in chunks:
        after, until = returned(need, chunk)
        for span in session_grid(need.calendar, timeframe).spans_in(chunk.interval):
            dates = (
                need.calendar.day_of(span.opens_at),
                need.calendar.day_of(span.closes_at - timedelta(microseconds=1)),
            )
            assert after < dates[0], (chunk, span)
            assert dates[1] <= until, (chunk, span)


EPOCH = date(1970, 1, 1)

VENUES = {
    "XNYS.RTH": Venue.US_STOCKS,
    "XLON.RTH": Venue.LONDON,
    "FX": Venue.FX,
    "CRYPTO": Venue.CRYPTO,
}


def simulated(key: str, chunk: Chunk) -> set[date]:
    """Return the dates of the sessions that the simulator returns for a chunk."""
    hours = calendar_of(VENUES[key]).hours(use_rth=True)
    window = window_of(parse_duration(chunk.duration), int(chunk.ends_at.timestamp()), hours)
    inside = (hours.opens >= window.start_s) & (hours.opens < window.end_s)
    return {EPOCH + timedelta(days=int(day)) for day in np.asarray(hours.labels)[inside]}


@given(
    key=st.sampled_from(sorted(VENUES)),
    first=st.dates(date(1999, 1, 4), date(2020, 1, 1)),
    days=st.integers(10, 2500),
)
@examples(80)
def test_the_simulator_returns_every_day_that_a_chunk_is_for(
    key: str, first: date, days: int
) -> None:
    """By the simulator's own arithmetic and hours, no session is lost between two chunks."""
    end = first + timedelta(days=days)
    need, chunks = planned(key, Timeframe.D1, first, end)
    everything: set[date] = set()
    for chunk in chunks:
        found = simulated(key, chunk)
        spans = session_grid(need.calendar, Timeframe.D1).spans_in(chunk.interval)
        missing = {span.interval.start.date() for span in spans} - found
        assert not missing, (chunk, missing)
        everything |= found
    hours = calendar_of(VENUES[key]).hours(use_rth=True)
    labels = {EPOCH + timedelta(days=int(day)) for day in hours.labels}
    assert {day for day in labels if first <= day < end} <= everything


@pytest.mark.parametrize("key", ["XNYS.RTH", "XLON.RTH", "FX", "CRYPTO"])
@pytest.mark.parametrize(
    "first", [date(2006, 1, 3), date(2006, 3, 1), date(2006, 7, 17), date(2006, 11, 28)]
)
def test_twenty_years_of_days_are_twenty_requests(key: str, first: date) -> None:
    """One request a year, from any date, and none for the boundaries between them."""
    end = date(first.year + 20, first.month, first.day)
    _, chunks = planned(key, Timeframe.D1, first, end)
    assert len(chunks) == 20
    assert {chunk.duration for chunk in chunks} == {"1 Y"}


def test_a_session_more_than_twenty_years_is_one_request_more() -> None:
    """A newest session on the date of the oldest one needs its own request."""
    first, end = date(2004, 3, 1), date(2024, 3, 1)
    assert len(planned("CRYPTO", Timeframe.D1, first, end)[1]) == 20
    _, chunks = planned("CRYPTO", Timeframe.D1, first, end + timedelta(days=1))
    # Daily bars of a coin may be of other days than these: one date more on either side counts.
    assert [chunk.duration for chunk in chunks] == ["1 Y"] * 20 + ["3 D"]


BEGIN = datetime(2023, 10, 2, tzinfo=UTC)

MINUTES = 400 * 1440


def moments() -> st.SearchStrategy[datetime]:
    """Generate times of fourteen months, to the minute."""
    return st.integers(0, MINUTES).map(lambda minutes: BEGIN + timedelta(minutes=minutes))


def intervals(most: int) -> st.SearchStrategy[IntervalSet]:
    """Generate intervals of hours to months."""
    lengths = st.sampled_from([60, 390, 1440, 5 * 1440, 40 * 1440])
    one = st.builds(lambda at, m: Interval(at, at + timedelta(minutes=m)), moments(), lengths)
    return st.lists(one, max_size=most).map(IntervalSet)


@st.composite
def random_needs(draw: st.DrawFn) -> Need:
    """Generate needs as loads have them, with whole sessions wanted and covered."""
    calendar = calendar_named(draw(st.sampled_from(["XNYS.RTH", "XNYS.ETH", "FX"])))
    timeframe = draw(st.sampled_from(list(Timeframe)))
    wanted = session_grid(calendar, timeframe).widened(draw(intervals(4)))
    covered = session_grid(calendar, timeframe).widened(draw(intervals(8)))
    return Need(
        calendar=calendar,
        timeframe=timeframe,
        wanted=wanted,
        covered=covered,
        now=draw(moments()),
        most_days=draw(st.sampled_from([1, 2, 7, 30, 365])),
        most_sessions=draw(st.sampled_from([None, 1, 2, 5, 20])),
    )


@given(need=random_needs())
@examples(300)
def test_chunks_cover_exactly_what_is_missing_and_nothing_twice(need: Need) -> None:
    """Every gap lies in one chunk, no two chunks share a session, none is without a gap."""
    gaps, chunks = need.gaps(), plan(need)
    covered = IntervalSet(chunk.interval for chunk in chunks)
    assert not gaps - covered
    assert all(gaps.clip(chunk.interval) for chunk in chunks)
    seen: list[Interval] = []
    for chunk in chunks:
        spans = need.grid.spans_in(chunk.interval)
        own = [part for span in spans if (part := span.interval.intersection(chunk.interval))]
        assert not any(one.overlaps(other) for one in own for other in seen)
        seen += own


@given(need=random_needs())
@examples(300)
def test_no_chunk_is_wider_than_its_limits(need: Need) -> None:
    """Days and sessions of a request stay below the limits, unless it is one session alone."""
    for chunk in plan(need):
        spans = need.grid.spans_in(chunk.interval)
        assert chunk.sessions == len(spans) or need.timeframe.is_intraday
        if len(spans) > 1:
            reach = spans[-1].closes_at - spans[0].opens_at
            assert reach <= timedelta(days=need.most_days)
            assert need.most_sessions is None or len(spans) <= need.most_sessions


@given(need=random_needs())
@examples(150)
def test_a_plan_that_is_carried_out_leaves_nothing_to_plan(need: Need) -> None:
    """Once all chunks are covered the plan is empty: no chunk requests less than it must."""
    chunks = plan(need)
    done = need.covered | IntervalSet(chunk.interval for chunk in chunks)
    assert plan(replace(need, covered=done)) == []
