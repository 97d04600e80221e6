"""Evaluating whatever a gateway may return: nothing is covered around a bar that is not kept."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow as pa
from hypothesis import assume, given
from hypothesis import strategies as st

from ktrdr_pipelines.domain.bars import BAR_SCHEMA, micros
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.session_grid import Span, session_grid
from ktrdr_pipelines.domain.calendars.sessions import interval_between, midnight, monday_of
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.domain.planning.chunks import Need, plan
from ktrdr_pipelines.domain.planning.evaluation import Evaluation, EvaluationContext, evaluate
from ktrdr_pipelines.domain.planning.gaps import is_closed
from ktrdr_pipelines.domain.timeframes import Timeframe
from tests.support.examples import examples

BEGIN = datetime(2024, 2, 5, tzinfo=UTC)
CLOSED = ["XNYS.RTH", "XSHG.RTH"]
"""Calendars with closed dates in those weeks, XSHG a whole week of them."""
DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)


@dataclass(frozen=True)
class Response:
    """A response, in whatever state it came, and what was requested."""

    context: EvaluationContext
    bars: list[datetime]
    reach: Interval | None

    def evaluated(self) -> Evaluation:
        """Evaluate it."""
        keys = pa.array([micros(bar) for bar in self.bars], pa.int64())
        table = pa.table({"ts": keys.cast(BAR_SCHEMA.field("ts").type)})
        return evaluate(self.context, table, self.reach)

    def spans(self) -> list[Span]:
        """Return the sessions of what was requested."""
        context = self.context
        return session_grid(context.calendar, context.timeframe).spans_in(context.chunk.interval)


@st.composite
def responses(draw: st.DrawFn) -> Response:
    """Make any rising timestamps, inside and outside sessions and the request, at any moment."""
    calendar = calendar_named(draw(st.sampled_from(CLOSED)))
    timeframe = draw(st.sampled_from([Timeframe.M30, Timeframe.H4, Timeframe.D1, Timeframe.W1]))
    first = (BEGIN + draw(st.integers(0, 9)) * DAY).date()
    end = first + draw(st.integers(14, 28)) * DAY
    wanted = interval_between(calendar, timeframe, first, end)
    spans = session_grid(calendar, timeframe).spans_in(wanted)
    now = draw(st.sampled_from(spans)).closes_at + draw(st.sampled_from([-60, 0, 31, 90])) * MINUTE
    days = draw(st.sampled_from([7, 30]))
    need = Need(calendar, timeframe, IntervalSet([wanted]), IntervalSet(), now, days)
    chunks = plan(need)
    assume(chunks)
    chunk = draw(st.sampled_from(chunks))
    step = timeframe.length if not timeframe.is_intraday else 30 * MINUTE
    around = max(3 * DAY, step)
    low, high = chunk.interval.start - around, chunk.interval.end + around
    if not timeframe.is_intraday:
        low = midnight(monday_of(low.date()) if timeframe is Timeframe.W1 else low.date())
    count = (high - low) // step
    gone = draw(st.sets(st.integers(0, count), max_size=count // 2))
    bars = [low + position * step for position in range(count) if position not in gone]
    edges = sorted(low + draw(st.integers(0, (high - low) // MINUTE)) * MINUTE for _ in range(2))
    reach = draw(st.sampled_from([None, between(*edges)]))
    assume(bars)
    holds_back = draw(st.sampled_from([False, False, True]))
    return Response(EvaluationContext(chunk, calendar, timeframe, now, holds_back), bars, reach)


@given(response=responses())
@examples(400)
def test_nothing_is_covered_around_a_bar_that_is_not_kept(response: Response) -> None:
    """What lies in the covered range is kept, whether or not the calendar expects it."""
    found = response.evaluated()
    kept = set(found.bars["ts"].to_pylist())
    assert [bar for bar in response.bars if bar in found.covered and bar not in kept] == []


@given(response=responses())
@examples(400)
def test_only_what_was_requested_and_is_over_is_kept_and_covered(response: Response) -> None:
    """No bar and no coverage lies outside the chunk, none of them in the future."""
    found, chunk = response.evaluated(), response.context.chunk
    assert all(chunk.interval.covers(part) for part in found.covered)
    for bar in found.bars["ts"].to_pylist():
        assert bar in chunk.interval
        assert bar < response.context.now


@given(response=responses())
@examples(400)
def test_no_session_is_covered_without_a_bar(response: Response) -> None:
    """A session that a response passed over, or did not reach, stays open."""
    found = response.evaluated()
    for span in response.spans():
        if not any(bar in span.interval for bar in response.bars):
            assert not found.covered.clip(span.interval)


@given(response=responses())
@examples(400)
def test_no_end_of_a_session_is_covered_too_early(response: Response) -> None:
    """Its last instant needs later bars, or a response behind its close, received late enough."""
    found, context = response.evaluated(), response.context
    if not context.timeframe.is_intraday:
        return
    spans = response.spans()
    for span, newer in zip(spans, [*spans[1:], None], strict=True):
        end = Interval(span.interval.end - timedelta(microseconds=1), span.interval.end)
        if found.covered.clip(end) and (newer is None or response.bars[-1] < newer.interval.start):
            assert is_closed(span, context.now)
            assert context.chunk.ends_at >= span.closes_at


@given(response=responses())
@examples(400)
def test_only_sessions_between_bars_are_stated_to_be_empty(response: Response) -> None:
    """They were requested as a whole, hold no bar, have bars on both sides and are not covered."""
    found, requested = response.evaluated(), response.context.chunk.interval
    inside = [span.interval for span in response.spans() if requested.covers(span.interval)]
    expected = [
        part
        for part in inside
        if response.bars[0] < part.start
        and response.bars[-1] >= part.end
        and not any(bar in part for bar in response.bars)
    ]
    if found.earlier_only:
        expected = []
    assert found.around == IntervalSet(expected)
    assert not found.around & found.covered


@given(response=responses())
@examples(400)
def test_data_begin_only_behind_a_whole_session_that_was_requested(response: Response) -> None:
    """A beginning is the first bar of all, and a whole requested session lies before it."""
    found, requested = response.evaluated(), response.context.chunk.interval
    if found.begins_at is None:
        return
    assert found.begins_at == response.bars[0]
    assert found.begins_at >= requested.start
    assert any(
        requested.covers(span.interval) and span.interval.end <= found.begins_at
        for span in response.spans()
    )
