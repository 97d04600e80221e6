"""Years of daily and weekly bars take a request each, and no seam leaves a session out."""

from datetime import date, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.session_grid import session_grid
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.planning.chunks import Chunk, Need, plan
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.simulator.market.hours import Venue
from ktrdr_pipelines.simulator.market.market_calendars import calendar_of
from ktrdr_pipelines.simulator.requests.durations import parse_duration, window_of
from tests.support.examples import examples

NOW = datetime(2026, 11, 28, tzinfo=calendar_named("CRYPTO").day_starts_at(date(2020, 1, 1)).tzinfo)


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
def test_no_seam_leaves_a_session_out(
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
    """By the simulator's own arithmetic and hours, no seam between chunks leaves a session out."""
    end = first + timedelta(days=days)
    need, chunks = planned(key, Timeframe.D1, first, end)
    reason: set[date] = set()
    for chunk in chunks:
        given_back = simulated(key, chunk)
        spans = session_grid(need.calendar, Timeframe.D1).spans_in(chunk.interval)
        missing = {span.interval.start.date() for span in spans} - given_back
        assert not missing, (chunk, missing)
        reason |= given_back
    hours = calendar_of(VENUES[key]).hours(use_rth=True)
    labels = {EPOCH + timedelta(days=int(day)) for day in hours.labels}
    assert {day for day in labels if first <= day < end} <= reason


@pytest.mark.parametrize("key", ["XNYS.RTH", "XLON.RTH", "FX", "CRYPTO"])
@pytest.mark.parametrize(
    "first", [date(2006, 1, 3), date(2006, 3, 1), date(2006, 7, 17), date(2006, 11, 28)]
)
def test_twenty_years_of_days_are_twenty_requests(key: str, first: date) -> None:
    """A year each: none for a seam.

    Twenty years from any date are twenty; one session more is the twenty-first.
    """
    end = date(first.year + 20, first.month, first.day)
    _, chunks = planned(key, Timeframe.D1, first, end)
    assert len(chunks) == 20
    assert {chunk.duration for chunk in chunks} == {"1 Y"}


def test_a_session_more_than_twenty_years_is_one_request_more() -> None:
    """Where the newest session lies on the date at which the oldest does, both need a request."""
    first, end = date(2004, 3, 1), date(2024, 3, 1)
    assert len(planned("CRYPTO", Timeframe.D1, first, end)[1]) == 20
    _, chunks = planned("CRYPTO", Timeframe.D1, first, end + timedelta(days=1))
    # Bars of a coin's days may be of others than these: a date more on either side is counted.
    assert [chunk.duration for chunk in chunks] == ["1 Y"] * 20 + ["3 D"]
