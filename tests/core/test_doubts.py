"""Doubts: what is asked again after silence, and when silence is believed."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.core.calendars import calendar_named
from ktrdr_pipelines.core.doubts import (
    MOST_ROUNDS,
    PROBES_BEFORE_ALL,
    Doubts,
    after_answer,
    after_no_data,
    quiet_and_empty,
)
from ktrdr_pipelines.core.intervals import Interval, IntervalSet
from ktrdr_pipelines.core.plan import Chunk, Doubt, Need, plan
from ktrdr_pipelines.core.sessions import expected_spans, stamps_between
from ktrdr_pipelines.core.timeframes import Timeframe

RTH = calendar_named("XNYS.RTH")
FIRST, END = date(2024, 6, 3), date(2024, 6, 19)
OLD = datetime(2020, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def need_of(
    *settled: Interval,
    known_from: datetime | None = None,
    now: datetime = datetime(2025, 1, 1, tzinfo=UTC),
) -> Need:
    """Make a need of hours over twelve sessions."""
    wanted = stamps_between(RTH, Timeframe.H1, FIRST, END)
    return Need(
        calendar=RTH,
        timeframe=Timeframe.H1,
        wanted=IntervalSet([wanted]),
        settled=IntervalSet(settled),
        now=now,
        most_days=30,
        known_from=known_from,
    )


def spans(first: int, end: int) -> Interval:
    """Give the stretch of the n-th to the last of some sessions, counted from 0."""
    found = expected_spans(RTH, Timeframe.H1, stamps_between(RTH, Timeframe.H1, FIRST, END))
    return Interval(found[first].stamps.start, found[end - 1].stamps.end)


def sizes(need: Need, doubts: Doubts) -> list[str]:
    """Give the durations of what is asked next."""
    return [chunk.duration for chunk in plan(need, doubts.open)]


def silence(need: Need, *, older_known: bool = False) -> tuple[list[str], IntervalSet]:
    """Answer every request with "no data", and give what was asked and what was believed."""
    doubts, asked, believed = Doubts(), [], IntervalSet()
    chunks = plan(need)
    while chunks:
        asked.append(chunks[0].duration)
        doubts = after_no_data(need, doubts, chunks[0], older_known=older_known)
        believed |= doubts.silent
        need = replace(need, settled=need.settled | doubts.silent)
        chunks = plan(need, doubts.open)
    return asked, believed


def test_silence_with_older_bars_known_needs_two_more_requests() -> None:
    """The newest session is asked alone, then the rest, and all is believed."""
    asked, believed = silence(need_of(known_from=OLD))
    assert asked == ["12 D", "1 D", "11 D"]
    assert believed == need_of().gaps()


def test_silence_before_all_known_bars_needs_a_week_of_probes() -> None:
    """Where a request may reach past the oldest bar, five sessions are asked alone first."""
    asked, believed = silence(need_of())
    assert asked == ["12 D", *["1 D"] * PROBES_BEFORE_ALL, "7 D"]
    assert believed == need_of().gaps()


def test_older_bars_in_the_answer_are_a_probe() -> None:
    """An answer of older bars alone shows that the request did not reach past the oldest."""
    assert silence(need_of(), older_known=True)[0] == ["12 D", "1 D", "11 D"]


def test_one_silence_about_one_session_is_not_believed() -> None:
    """A single session that is silent is asked once more, then believed."""
    need = replace(need_of(), wanted=IntervalSet([spans(3, 4)]))
    (chunk,) = plan(need)
    first = after_no_data(need, Doubts(), chunk)
    assert not first.silent
    second = after_no_data(need, first, chunk)
    assert second.silent == IntervalSet([spans(3, 4)])
    assert not second.open


def test_silence_of_a_wider_request_believes_no_doubt() -> None:
    """A doubt is settled by a request no wider than itself."""
    need = need_of()
    doubted = Doubts((Doubt(spans(4, 6)),))
    (wide,) = plan(need)
    after = after_no_data(need, doubted, wide)
    assert not after.silent
    assert doubted.open[0] in after.open


def test_an_open_session_is_never_doubted() -> None:
    """Silence about a session that has not closed means nothing."""
    noon = spans(0, 1).start + timedelta(hours=3)
    need = need_of(now=noon)
    chunk = plan(need)[0]
    assert after_no_data(need, Doubts(), chunk) == Doubts()
    assert after_answer(need, Doubts(), chunk) == Doubts()


def test_a_newest_session_with_bars_halves_the_doubt() -> None:
    """After a false silence the older half is doubted, the newer one asked as anything else."""
    need = need_of()
    doubts = after_no_data(need, Doubts(), plan(need)[0])
    (probe,) = plan(need, doubts.open)
    need = replace(need, settled=IntervalSet([spans(11, 12)]))
    doubts = after_answer(need, doubts, probe)
    assert [doubt.interval for doubt in doubts.open] == [spans(0, 5)]
    assert sizes(need, doubts) == ["6 D", "1 D"]


def test_sessions_passed_over_are_asked_once_as_one() -> None:
    """Neighbouring sessions without a bar are one doubt, asked for at once."""
    need = need_of(spans(0, 3), spans(6, 12), known_from=spans(0, 1).start)
    doubts = after_answer(need, Doubts(), plan(need_of())[0])
    assert sizes(need, doubts) == ["3 D"]


def test_sessions_behind_all_bars_are_not_believed_by_a_request_as_wide() -> None:
    """An answer may hold only the first bars of what is asked for: the newest is asked alone."""
    need = need_of(spans(0, 3), known_from=spans(0, 1).start)
    doubts = after_answer(need, Doubts(), plan(need_of())[0])
    assert sizes(need, doubts) == ["1 D"]


def test_a_long_part_of_a_session_is_asked_again_by_its_newest_hours() -> None:
    """A day that goes round the clock is doubted by requests that begin inside the doubt."""
    fx = calendar_named("FX")
    session = expected_spans(fx, Timeframe.M1, stamps_between(fx, Timeframe.M1, FIRST, END))[3]
    held = Interval(session.stamps.start, session.stamps.start + timedelta(hours=5))
    need = replace(
        need_of(held, known_from=OLD),
        calendar=fx,
        timeframe=Timeframe.M1,
        wanted=IntervalSet([session.stamps]),
    )
    rest = need.gaps().hull
    assert rest is not None
    (chunk,) = plan(need, [Doubt(rest)])
    assert chunk.duration.endswith(" S")
    assert rest.start < chunk.stamps.start
    assert chunk.stamps.end == rest.end
    asked_from = chunk.ends_at - timedelta(seconds=int(chunk.duration.split()[0]))
    assert rest.start <= asked_from <= chunk.stamps.start


def test_answers_that_prove_nothing_are_not_asked_for_ever() -> None:
    """A stretch that answers leave as it is is given up after some rounds."""
    need = need_of(spans(1, 12))
    doubts = Doubts()
    rounds = 0
    while chunks := plan(need, doubts.open):
        doubts = after_answer(need, doubts, chunks[0])
        rounds += 1
        if not doubts.open:
            break
    assert rounds == MOST_ROUNDS + 1


def test_a_stretch_that_shrinks_is_asked_on() -> None:
    """As long as answers prove something of it, a stretch is not given up."""
    (chunk,) = plan(replace(need_of(), wanted=IntervalSet([spans(0, 1)])))
    start = spans(0, 1).start
    doubts = Doubts()
    for minutes in range(30, 360, 30):
        known = Interval(start, start + timedelta(minutes=minutes))
        doubts = after_answer(need_of(known, known_from=start), doubts, chunk)
        assert doubts.open


def test_quiet_parts_of_traded_sessions_are_told_from_empty_sessions() -> None:
    """A quiet hour of a session with bars is quiet; a session without any is empty."""
    session = spans(2, 3)
    traded = Interval(session.start, session.end - timedelta(hours=2))
    quiet_hours = Interval(traded.end, session.end)
    silent = IntervalSet([quiet_hours, spans(5, 6)])
    quiet, empty = quiet_and_empty(need_of(), silent, IntervalSet([traded]))
    assert quiet == IntervalSet([quiet_hours])
    assert empty == IntervalSet([spans(5, 6)])
    assert quiet_and_empty(need_of(), IntervalSet(), IntervalSet([traded])) == (
        IntervalSet(),
        IntervalSet(),
    )


@given(
    st.lists(st.sampled_from(["silent", "older", "bars"]), max_size=80),
    st.booleans(),
    st.frozensets(st.integers(0, 11)),
)
def test_asking_ends_whatever_comes(
    answers: list[str], older_known: bool, empty: frozenset[int]
) -> None:
    """Any order of silences and answers ends, and believes no session that was asked once."""
    need = need_of(known_from=OLD if older_known else None)
    doubts, count = Doubts(), 0
    times_asked: dict[datetime, int] = {}
    moods = iter(answers)
    chunks: list[Chunk] = plan(need)
    while chunks and count < 200:
        chunk = chunks[0]
        inside = expected_spans(RTH, Timeframe.H1, chunk.stamps)
        for span in inside:
            times_asked[span.stamps.start] = times_asked.get(span.stamps.start, 0) + 1
        mood = next(moods, "bars")
        traded = [
            span for span in inside if (span.stamps.start - spans(0, 1).start).days not in empty
        ]
        if mood == "bars" and traded:
            known = IntervalSet(span.stamps for span in traded)
            need = replace(need, settled=need.settled | known)
            doubts = after_answer(need, doubts, chunk)
        else:
            doubts = after_no_data(need, doubts, chunk, older_known=mood == "older")
            assert all(times_asked[part.start] > 1 for part in doubts.silent)
            need = replace(need, settled=need.settled | doubts.silent)
        chunks = plan(need, doubts.open)
        count += 1
    assert count < 100
    assert not need.gaps()


@pytest.mark.parametrize("sessions", [1, 2, 12])
def test_a_single_session_needs_no_probe(sessions: int) -> None:
    """Probes are counted only where more than one session is left."""
    need = replace(need_of(), wanted=IntervalSet([spans(0, sessions)]))
    asked, _ = silence(need)
    assert len(asked) == {1: 2, 2: 3, 12: 7}[sessions]
