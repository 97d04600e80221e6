"""Chunks: they cover what is missing, in the fewest requests that the limits allow."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import cache
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktrdr_pipelines.core.calendars import calendar_named
from ktrdr_pipelines.core.intervals import Interval, IntervalSet
from ktrdr_pipelines.core.plan import Chunk, Doubt, Need, halved, plan
from ktrdr_pipelines.core.sessions import (
    SessionCalendar,
    Span,
    expected_spans,
    expected_stamps,
    stamps_between,
)
from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.limits import IbLimitsRegistry
from tests.growth import LINEAR_IN_EIGHT, growth

SAFE = IbLimitsRegistry.SAFE_DAYS.value
WIDE = dict.fromkeys(SAFE, 365) | {"1d": 68 * 365, "1w": 68 * 365}
FIRST = date(2024, 9, 30)


@st.composite
def needs(draw: st.DrawFn, most_days: int = 130) -> Need:
    """Make what may be missing of any series, with settled stretches and an open session."""
    calendar = calendar_named(draw(st.sampled_from(["XNYS.RTH", "XNYS.ETH", "FX"])))
    timeframe = draw(st.sampled_from(list(Timeframe)))
    end = FIRST + timedelta(days=draw(st.integers(7, most_days)))
    wanted = stamps_between(calendar, timeframe, FIRST, end)
    spans = expected_spans(calendar, timeframe, wanted)
    settled = draw(st.frozensets(st.integers(0, len(spans) - 1)))
    table = draw(st.sampled_from([SAFE, WIDE]))
    minutes = draw(st.integers(0, (end - FIRST).days * 1440 + 9000))
    return Need(
        calendar=calendar,
        timeframe=timeframe,
        wanted=IntervalSet([wanted]),
        settled=IntervalSet(spans[number].stamps for number in settled),
        now=datetime(2024, 9, 30, tzinfo=UTC) + timedelta(minutes=minutes),
        most_days=table[timeframe.value],
    )


def spans_of(need: Need) -> list[Span]:
    """Give the spans that hold a gap."""
    gaps = need.gaps()
    hull = gaps.hull
    spans = expected_spans(need.calendar, need.timeframe, hull) if hull else []
    return [span for span in spans if gaps.clip(span.stamps)]


def starts_at(need: Need, chunk: Chunk) -> datetime:
    """Say how far back a request reaches in real time; ``N D`` counts sessions."""
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
    def from_place(place: int) -> int:
        if place == len(spans):
            return 0
        ends = [
            end
            for end in range(place + 1, len(spans) + 1)
            if end == place + 1 or spans[end - 1].closes_at - spans[place].opens_at <= most
        ]
        return 1 + min(from_place(end) for end in ends)

    return from_place(0)


@given(needs())
def test_chunks_cover_every_gap_and_nothing_beyond_what_is_wanted(need: Need) -> None:
    """All that is due lies in a chunk; no chunk asks for what is not wanted or not over."""
    chunks = plan(need)
    covered = IntervalSet(chunk.stamps for chunk in chunks)
    assert not need.gaps() - covered
    assert all(chunk.ends_at <= need.now for chunk in chunks)
    assert need.wanted.hull is not None
    assert not covered - need.wanted


@given(needs())
def test_no_chunk_is_longer_than_the_limit_unless_it_is_one_session(need: Need) -> None:
    """From open to close a chunk fits the limit; a session alone may be longer."""
    for chunk in plan(need):
        inside = expected_spans(need.calendar, need.timeframe, chunk.stamps)
        assert len(inside) == chunk.sessions
        length = inside[-1].closes_at - inside[0].opens_at
        assert len(inside) == 1 or length <= timedelta(days=need.most_days)


@given(needs())
def test_chunks_come_newest_first_and_do_not_share_sessions(need: Need) -> None:
    """Ends fall from chunk to chunk; each session with a gap is in exactly one chunk."""
    chunks = plan(need)
    assert [chunk.ends_at for chunk in chunks] == sorted(
        (chunk.ends_at for chunk in chunks), reverse=True
    )
    for span in spans_of(need):
        assert sum(chunk.stamps.overlaps(span.stamps) for chunk in chunks) == 1


@settings(max_examples=60)
@given(needs(60))
def test_there_are_as_few_chunks_as_can_be(need: Need) -> None:
    """No other way of cutting needs fewer requests."""
    assert len(plan(need)) == fewest(tuple(spans_of(need)), need.most_days)


@given(needs())
def test_a_chunk_ends_where_no_session_is_cut(need: Need) -> None:
    """An end lies in closed time or at a close, but for what is over of an open session."""
    for chunk in plan(need):
        moment = Interval(chunk.ends_at - timedelta(microseconds=1), chunk.ends_at)
        for session in need.calendar.sessions_meeting(moment):
            is_open = session.closes_at + timedelta(minutes=30) > need.now
            assert chunk.ends_at == session.closes_at or is_open


@given(needs())
def test_a_duration_reaches_back_to_the_chunks_first_session(need: Need) -> None:
    """In IB's words the request reaches back to everything that the chunk may settle."""
    for chunk in plan(need):
        inside = expected_spans(need.calendar, need.timeframe, chunk.stamps)
        gap = need.gaps(chunk.stamps).hull
        assert gap is not None
        first = inside[0].opens_at
        if need.timeframe.is_intraday:
            first = max(first, gap.start)
        assert starts_at(need, chunk) <= first


@given(needs())
def test_durations_are_words_that_the_gateway_knows(need: Need) -> None:
    """Days are at most 365, weeks 52, and seconds no more than the safe table's longest."""
    most = {"S": 28_800, "D": 365, "W": 52, "Y": 68}
    for chunk in plan(need):
        count, unit = chunk.duration.split()
        assert 1 <= int(count) <= most[unit]


def need_of(
    calendar: str, timeframe: Timeframe, first: date, end: date, *settled: Interval
) -> Need:
    """Make a need of session dates that are long over."""
    sessions = calendar_named(calendar)
    wanted = stamps_between(sessions, timeframe, first, end)
    return Need(
        calendar=sessions,
        timeframe=timeframe,
        wanted=IntervalSet([wanted]),
        settled=IntervalSet(settled),
        now=datetime(2026, 1, 1, tzinfo=UTC),
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
def test_a_short_week_is_asked_for_in_sessions(timeframe: Timeframe, durations: list[str]) -> None:
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
    assert not need.gaps() - IntervalSet(chunk.stamps for chunk in chunks)


def test_a_session_longer_than_the_limit_is_one_chunk() -> None:
    """Where a limit is shorter than a session, each session is still asked for, as one."""
    need = need_of("FX", Timeframe.M1, date(2024, 11, 1), date(2024, 11, 6))
    chunks = plan(replace(need, most_days=0))
    assert [chunk.duration for chunk in chunks] == ["1 D"] * 3


def test_a_small_hole_is_asked_for_in_seconds_with_a_bar_to_spare() -> None:
    """A hole in a session is asked for alone, and one bar more, which proves its left edge."""
    day = datetime(2024, 6, 4, tzinfo=UTC)
    before = Interval(day + timedelta(hours=13), day + timedelta(hours=15))
    after = Interval(day + timedelta(hours=15, minutes=10), day + timedelta(hours=21))
    need = need_of("XNYS.RTH", Timeframe.M1, date(2024, 6, 4), date(2024, 6, 5), before, after)
    (chunk,) = plan(need)
    assert (chunk.duration, chunk.ends_at) == ("660 S", after.start)


def test_a_doubt_is_asked_for_by_itself() -> None:
    """A doubted stretch is no part of another chunk; with probes only its newest session is."""
    need = need_of("XNYS.RTH", Timeframe.H1, date(2024, 6, 3), date(2024, 6, 15))
    doubt = Interval(datetime(2024, 6, 5, tzinfo=UTC), datetime(2024, 6, 8, tzinfo=UTC))
    assert [chunk.duration for chunk in plan(need, [Doubt(doubt)])] == ["10 D", "3 D"]
    assert [chunk.duration for chunk in plan(need, [Doubt(doubt, probes=1)])] == ["10 D", "1 D"]


def test_a_doubt_whose_newest_session_has_bars_is_halved() -> None:
    """The older half stays in doubt; of a single session nothing does."""
    need = need_of("XNYS.RTH", Timeframe.H1, date(2024, 6, 3), date(2024, 6, 8))
    (week,) = need.wanted
    half = halved(need, Doubt(week, probes=1))
    assert half is not None
    assert half.interval.end == datetime(2024, 6, 4, 20, tzinfo=UTC)
    assert halved(need, Doubt(Interval(week.start, week.start + timedelta(days=1)))) is None


def _seconds_to_plan(calendar: SessionCalendar, years: int) -> float:
    wanted = stamps_between(calendar, Timeframe.M1, date(2025 - years, 1, 2), date(2025, 1, 2))
    need = Need(
        calendar=calendar,
        timeframe=Timeframe.M1,
        wanted=IntervalSet([wanted]),
        settled=IntervalSet(),
        now=datetime(2026, 1, 1, tzinfo=UTC),
        most_days=1,
    )
    started = process_time()
    chunks = plan(need)
    took = process_time() - started
    assert len(chunks) == len(expected_stamps(calendar, Timeframe.M1, wanted))
    return took


def test_planning_takes_time_in_proportion() -> None:
    """Eight times the years of minutes take about eight times as long to plan, not the square."""
    calendar = calendar_named("XNYS.RTH")
    _seconds_to_plan(calendar, 1)
    assert growth(lambda years: _seconds_to_plan(calendar, years), 2, 16) < LINEAR_IN_EIGHT
