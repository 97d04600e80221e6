"""Settling whatever a gateway may answer: nothing is settled around a bar that is not kept."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow as pa
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ktrdr_pipelines.core.settle import Question, Settlement, settle

from ktrdr_pipelines.core.bars import BAR_SCHEMA, micros
from ktrdr_pipelines.core.calendars import calendar_named
from ktrdr_pipelines.core.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.core.plan import Need, plan
from ktrdr_pipelines.core.sessions import expected_spans, midnight, monday_of, stamps_between
from ktrdr_pipelines.core.timeframes import Timeframe

BEGIN = datetime(2024, 2, 5, tzinfo=UTC)
CLOSED = ["XNYS.RTH", "XSHG.RTH"]
"""Calendars with closed dates in those weeks, XSHG a whole week of them."""
DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)


@dataclass(frozen=True)
class Answered:
    """An answer, in whatever state it came, and what was asked."""

    question: Question
    bars: list[datetime]
    reach: Interval | None

    def settled(self) -> Settlement:
        """Settle it."""
        keys = pa.array([micros(bar) for bar in self.bars], pa.int64())
        table = pa.table({"ts": keys.cast(BAR_SCHEMA.field("ts").type)})
        return settle(self.question, table, self.reach)


@st.composite
def answers(draw: st.DrawFn) -> Answered:
    """Make any rising stamps, inside and outside sessions and what was asked, at any moment."""
    calendar = calendar_named(draw(st.sampled_from(CLOSED)))
    timeframe = draw(st.sampled_from([Timeframe.M30, Timeframe.H4, Timeframe.D1, Timeframe.W1]))
    first = (BEGIN + draw(st.integers(0, 9)) * DAY).date()
    end = first + draw(st.integers(14, 28)) * DAY
    wanted = stamps_between(calendar, timeframe, first, end)
    spans = expected_spans(calendar, timeframe, wanted)
    now = draw(st.sampled_from(spans)).closes_at + draw(st.sampled_from([-60, 0, 31, 90])) * MINUTE
    days = draw(st.sampled_from([7, 30]))
    need = Need(calendar, timeframe, IntervalSet([wanted]), IntervalSet(), now, days)
    chunks = plan(need)
    assume(chunks)
    chunk = draw(st.sampled_from(chunks))
    step = timeframe.length if not timeframe.is_intraday else 30 * MINUTE
    around = max(3 * DAY, step)
    low, high = chunk.stamps.start - around, chunk.stamps.end + around
    if not timeframe.is_intraday:
        low = midnight(monday_of(low.date()) if timeframe is Timeframe.W1 else low.date())
    count = (high - low) // step
    gone = draw(st.sets(st.integers(0, count), max_size=count // 2))
    bars = [low + place * step for place in range(count) if place not in gone]
    edges = sorted(low + draw(st.integers(0, (high - low) // MINUTE)) * MINUTE for _ in range(2))
    reach = draw(st.sampled_from([None, between(*edges)]))
    return Answered(Question(chunk, calendar, timeframe, now), bars, reach)


@given(answered=answers())
@settings(max_examples=400, derandomize=True, database=None)
def test_nothing_is_settled_around_a_bar_that_is_not_kept(answered: Answered) -> None:
    """What lies in the settled stretch is kept, whether or not the calendar expects it."""
    settlement = answered.settled()
    kept = set(settlement.bars["ts"].to_pylist())
    assert [bar for bar in answered.bars if bar in settlement.proved and bar not in kept] == []


@given(answered=answers())
@settings(max_examples=400, derandomize=True, database=None)
def test_only_what_was_asked_for_and_is_over_is_kept_and_settled(answered: Answered) -> None:
    """No bar and no proof lies outside the chunk, none of them in the future."""
    settlement, chunk = answered.settled(), answered.question.chunk
    assert all(chunk.stamps.covers(part) for part in settlement.proved)
    for bar in settlement.bars["ts"].to_pylist():
        assert bar in chunk.stamps
        assert bar < answered.question.now


@given(answered=answers())
@settings(max_examples=400, derandomize=True, database=None)
def test_no_session_is_settled_without_a_bar(answered: Answered) -> None:
    """A session that an answer passed over, or did not reach, stays open."""
    settlement, question = answered.settled(), answered.question
    for span in expected_spans(question.calendar, question.timeframe, question.chunk.stamps):
        if not any(bar in span.stamps for bar in answered.bars):
            assert not settlement.proved.clip(span.stamps)
