"""Counts of a plan, made without its chunks, against the chunks and a planner of single spans."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktrdr_pipelines.domain.bars import micros, moment
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.session_grid import Span, session_grid
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.chunks import Need, PlannedCounts, plan, planned_counts
from ktrdr_pipelines.domain.planning.gaps import missing
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.limits import IbLimitsRegistry

NEWEST = date(2024, 7, 3)


def _by_spans(need: Need) -> int:
    """Return the number of requests of a planner that adds one older session after the other."""
    found = missing(need.grid, need.wanted, need.covered, need.now)
    everything = list(need.grid)
    spans = [(index, everything[index]) for index in np.unique(found.spans).tolist()]
    count, end = 0, len(spans)
    while end > 0:
        position, newest = spans[end - 1]
        earliest = newest.closes_at - timedelta(days=need.most_days)
        if not need.timeframe.is_intraday and need.most_days >= 365:
            earliest = _year_before(need, newest)
        most = min(need.most_sessions or position + 1, need.width or position + 1)
        first = end - 1
        while first > 0 and spans[first - 1][0] > position - most:
            is_beside = need.width is not None and spans[first - 1][0] == spans[first][0] - 1
            if not is_beside and spans[first - 1][1].opens_at < earliest:
                break
            first -= 1
        count, end = count + 1, first
    return count


def _year_before(need: Need, newest: Span) -> datetime:
    day = need.calendar.day_of(newest.closes_at - timedelta(microseconds=1))
    day += timedelta(days=newest.over_at > newest.closes_at)
    is_leap_day = (day.month, day.day) == (2, 29)
    before = day.replace(year=day.year - 1, day=28 if is_leap_day else day.day)
    return need.calendar.day_starts_at(before + timedelta(days=1))


def _counted(need: Need) -> PlannedCounts:
    """Return the counts of the chunks themselves."""
    due, chunks = need.gaps(), plan(need)
    newest = [chunk.interval for chunk in chunks if chunk.now_until is not None]

    def bars(part: IntervalSet) -> int:
        pieces = part.within(need.grid.starts, need.grid.ends)
        return int(need.grid.bars_in(pieces.starts, pieces.ends).sum())

    return PlannedCounts(len(chunks), bars(due), len(newest), bars(due & IntervalSet(newest)))


@pytest.mark.parametrize(
    ("calendar", "timeframe"),
    [
        ("XNYS.RTH", Timeframe.M1),
        ("XNYS.ETH", Timeframe.M5),
        ("XHKG.RTH", Timeframe.M15),
        ("FX", Timeframe.H1),
        ("CRYPTO", Timeframe.H4),
        ("XNYS.RTH", Timeframe.D1),
        ("FX", Timeframe.D1),
        ("CRYPTO", Timeframe.D1),
        ("XTKS.RTH", Timeframe.W1),
        ("FX", Timeframe.W1),
    ],
)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_counts_are_those_of_the_chunks(
    calendar: str, timeframe: Timeframe, data: st.DataObject
) -> None:
    """Of any coverage, width, refused length and moment, in an open session too."""
    sessions = calendar_named(calendar)
    years = 6 if timeframe in {Timeframe.D1, Timeframe.W1} else 1
    end = NEWEST + timedelta(days=7)
    wanted = interval_between(sessions, timeframe, date(NEWEST.year - years, 2, 27), end)
    now = datetime(NEWEST.year, 7, 1, tzinfo=UTC) + timedelta(
        minutes=data.draw(st.integers(0, 3 * 1440))
    )
    bar_us = timeframe.seconds * 1_000_000
    bars = int((micros(wanted.end) - micros(wanted.start)) // bar_us)
    marks = sorted(data.draw(st.sets(st.integers(0, bars), max_size=24)))
    covered = IntervalSet(
        Interval(*(moment(micros(wanted.start) + mark * bar_us) for mark in pair))
        for pair in zip(marks[::2], marks[1::2], strict=False)
    )
    grid = session_grid(sessions, timeframe)
    need = Need(
        calendar=sessions,
        timeframe=timeframe,
        wanted=grid.widened(IntervalSet([wanted])),
        covered=covered,
        now=now,
        most_days=IbLimitsRegistry.SAFE_DAYS.value[timeframe.value],
        most_sessions=data.draw(st.sampled_from([None, None, 1, 7])),
        width=data.draw(st.sampled_from([None, 1, 2, 10, 100])),
        ends_now=data.draw(st.booleans()),
    )
    counts = planned_counts(need)
    assert counts == _counted(need)
    assert counts.requests == _by_spans(need)
