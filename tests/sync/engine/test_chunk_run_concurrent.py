"""A chunk of which another request covers a part while it is requested."""

from dataclasses import replace
from datetime import date, datetime
from typing import Any

from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.chunks import Chunk, Need, across_boundary, plan
from ktrdr_pipelines.domain.planning.jobs import interval_between
from ktrdr_pipelines.domain.planning.responses import BarRequest, Response
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.sync.engine.chunk_run import ChunkRun
from tests.support.fake_gateway import bars_at, instrument_of, series_of, true_keys, utc

CALENDAR = calendar_named("XNYS.RTH")
MONDAY, TUESDAY = date(2023, 10, 9), date(2023, 10, 10)
OPENS, CLOSES = utc(2023, 10, 10, 13, 30), utc(2023, 10, 10, 20)
AFTER_OPENING = utc(2023, 10, 10, 19)


def need_of(covered_from: datetime) -> Need:
    """Return the need of two days, of which the second one is covered from some time on."""
    return Need(
        CALENDAR,
        Timeframe.H1,
        wanted=IntervalSet([interval_between(CALENDAR, Timeframe.H1, MONDAY, date(2023, 10, 11))]),
        covered=IntervalSet([Interval(covered_from, CLOSES)]),
        now=utc(2024, 1, 9),
        most_days=20,
    )


def after_bars_of_tuesday_alone(need: Need, need_then: Need) -> tuple[ChunkRun, Chunk, IntervalSet]:
    """Return the run of a chunk for Monday, its first part, and what is left to another run.

    Args:
        need: the need when it was requested.
        need_then: the need when a response with bars of Tuesday alone has been applied.
    """
    taken = plan(replace(need, most_sessions=1))[-1]
    chunk = across_boundary(need, taken)
    series = series_of(instrument_of("XNYS.RTH"), Timeframe.H1)
    state: Any = None
    run = ChunkRun(state, chunk, need, taken=taken)
    keys = true_keys(CALENDAR, Timeframe.H1, TUESDAY, date(2023, 10, 11))
    request = BarRequest(series, chunk.ends_at, chunk.duration)
    response = Response(request, bars_at(keys, CALENDAR), None)
    found = run.evaluate(chunk, need_then, response)
    before = need_then.gaps(chunk.interval)
    traded = [Interval(utc(2023, 10, 9, 13, 30), utc(2023, 10, 9, 20))]  # by daily bars
    change = run.left_open(chunk, found, response, before=before, need=need_then, traded=traded)
    return run, chunk, change.deferred


def test_the_rest_is_requested_if_another_response_covered_a_part_meanwhile() -> None:
    """That a response brought nothing new says nothing about what is left then."""
    need_then = need_of(OPENS)
    run, chunk, deferred = after_bars_of_tuesday_alone(need_of(AFTER_OPENING), need_then)
    assert (chunk.sessions, chunk.duration) == (2, "2 D")
    assert not deferred
    assert run.take_next_part(need_then)
    assert (run.part.sessions, run.part.duration, run.part.ends_at) == (1, "1 D", OPENS)


def test_a_response_that_covers_nothing_leaves_the_rest_to_another_run() -> None:
    """The gateway would return the same again."""
    _, chunk, deferred = after_bars_of_tuesday_alone(need_of(OPENS), need_of(OPENS))
    assert (chunk.sessions, chunk.duration) == (1, "1 D")
    assert deferred == IntervalSet([chunk.interval])
