"""Planning over random wants, holdings, limits and calendars: exactly what lacks, each once."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.session_grid import session_grid
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.chunks import Need, plan
from ktrdr_pipelines.domain.timeframes import Timeframe
from tests.support.examples import examples

BEGIN = datetime(2023, 10, 2, tzinfo=UTC)
MINUTES = 400 * 1440


def moments() -> st.SearchStrategy[datetime]:
    """Generate moments of fourteen months, to the minute."""
    return st.integers(0, MINUTES).map(lambda minutes: BEGIN + timedelta(minutes=minutes))


def intervals(most: int) -> st.SearchStrategy[IntervalSet]:
    """Generate intervals of hours to months."""
    lengths = st.sampled_from([60, 390, 1440, 5 * 1440, 40 * 1440])
    one = st.builds(lambda at, m: Interval(at, at + timedelta(minutes=m)), moments(), lengths)
    return st.lists(one, max_size=most).map(IntervalSet)


@st.composite
def needs(draw: st.DrawFn) -> Need:
    """Make a need as a load has it: wanted and covered as whole sessions."""
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


@given(need=needs())
@examples(300)
def test_chunks_cover_exactly_what_lacks_and_nothing_twice(need: Need) -> None:
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


@given(need=needs())
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


@given(need=needs())
@examples(150)
def test_what_a_plan_asks_for_leaves_nothing_to_plan(need: Need) -> None:
    """Once all chunks are covered the plan is empty: no chunk asks for less than it must."""
    chunks = plan(need)
    done = need.covered | IntervalSet(chunk.interval for chunk in chunks)
    assert plan(replace(need, covered=done)) == []
