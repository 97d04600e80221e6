"""Evaluating a response: which bars are kept, what they cover, and what follows for the rest."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ktrdr_pipelines.domain.bars import BAR_SCHEMA, micros, timestamps
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.session_grid import Span, session_grid
from ktrdr_pipelines.domain.calendars.sessions import interval_between, midnight, monday_of
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.domain.planning.chunks import Chunk, Need, across_boundary, plan
from ktrdr_pipelines.domain.planning.evaluation import Evaluation, EvaluationContext, evaluate
from ktrdr_pipelines.domain.planning.gaps import LAST_INSTANT, is_closed
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.bars.filing import EVER
from tests.support.costs import LINEAR_IN_EIGHT, growth
from tests.support.examples import examples
from tests.support.fake_gateway import bars_at, dense_keys

RTH = calendar_named("XNYS.RTH")

LATER = datetime(2025, 1, 1, tzinfo=UTC)

HOUR, DAY, MINUTE = timedelta(hours=1), timedelta(days=1), timedelta(minutes=1)

OPEN, CLOSE = datetime(2024, 6, 4, 13, 30, tzinfo=UTC), datetime(2024, 6, 4, 20, tzinfo=UTC)

HOURS = [OPEN, *(OPEN.replace(hour=hour, minute=0) for hour in range(14, 20))]

DAY_END = datetime(2024, 6, 5, 4, tzinfo=UTC)


def table(moments: Iterable[datetime]) -> pa.Table:
    """Return bars at these times."""
    keys = [micros(moment) for moment in moments]
    columns: dict[str, object] = {name: [1.0] * len(keys) for name in BAR_SCHEMA.names}
    columns["ts"] = pa.array(keys, pa.int64()).cast(BAR_SCHEMA.field("ts").type)
    columns["session_date"] = [date(2024, 6, 4)] * len(keys)
    columns["bar_count"] = pa.array([1] * len(keys), pa.int32())
    return pa.table(columns, schema=BAR_SCHEMA)


def evaluated(
    *moments: datetime,
    requested: Interval | None = None,
    ends_at: datetime | None = None,
    timeframe: Timeframe = Timeframe.H1,
    now: datetime = LATER,
    reach: Interval | None = None,
    holds_back: bool = False,
) -> Evaluation:
    """Evaluate a response to a request for one session or for an interval."""
    interval = requested or Interval(OPEN, DAY_END)
    chunk = Chunk(interval, ends_at or interval.end, "1 D", 1)
    context = EvaluationContext(chunk, RTH, timeframe, now, holds_back)
    return evaluate(context, table(moments), reach)


def kept(found: Evaluation) -> list[datetime]:
    """Return the timestamps of kept bars."""
    moments: list[datetime] = found.bars["ts"].to_pylist()
    return moments


def test_a_whole_session_is_kept_and_covered() -> None:
    """Bars from open to close cover the session and the closed time after it."""
    found = evaluated(*HOURS)
    assert kept(found) == HOURS
    assert found.covered == IntervalSet([Interval(OPEN, DAY_END)])
    assert not found.around
    assert found.begins_at is None
    assert not found.earlier_only


def test_older_bars_cover_the_requested_start_and_are_not_kept() -> None:
    """A response that reaches further back covers the quiet opening before its first bar."""
    found = evaluated(OPEN - DAY, *HOURS[2:])
    assert kept(found) == HOURS[2:]
    assert found.covered == IntervalSet([Interval(OPEN, DAY_END)])


def test_a_late_first_bar_covers_nothing_before_it() -> None:
    """Without an older bar the left edge is covered from the first bar."""
    assert evaluated(*HOURS[2:]).covered == IntervalSet([Interval(HOURS[2], DAY_END)])


def test_a_quiet_end_is_not_covered_by_a_response_without_pauses() -> None:
    """A response that may be cut short covers to the end of its last bar."""
    found = evaluated(*HOURS[:-2])
    assert found.covered == IntervalSet([Interval(OPEN, HOURS[-2])])


def test_a_quiet_end_no_longer_than_a_pause_inside_is_covered() -> None:
    """A session with a pause of two minutes may end two minutes early."""
    minutes = [OPEN + n * MINUTE for n in range(390)]
    paused = [*minutes[:100], *minutes[102:]]
    found = evaluated(*paused[:-2], timeframe=Timeframe.M1)
    assert found.covered == IntervalSet([Interval(OPEN, DAY_END)])
    found = evaluated(*paused[:-3], timeframe=Timeframe.M1)
    assert found.covered == IntervalSet([Interval(OPEN, CLOSE - 3 * MINUTE)])


def test_a_night_is_no_pause() -> None:
    """Only pauses between bars of one session show how quiet its end may be."""
    minutes = [OPEN - DAY + n * MINUTE for n in range(390)]
    minutes += [OPEN + n * MINUTE for n in range(380)]
    requested = Interval(OPEN - DAY, DAY_END)
    found = evaluated(*minutes, requested=requested, timeframe=Timeframe.M1)
    assert found.covered == IntervalSet([Interval(OPEN - DAY, CLOSE - 10 * MINUTE)])


def test_a_quiet_end_is_not_covered_before_another_requested_session() -> None:
    """Where bars of a later requested session are missing too, the response was cut short."""
    minutes = [OPEN + n * MINUTE for n in range(390) if n not in {100, 101}][:-2]
    requested = Interval(OPEN, DAY_END + DAY)
    found = evaluated(*minutes, requested=requested, timeframe=Timeframe.M1)
    assert found.covered == IntervalSet([Interval(OPEN, CLOSE - 2 * MINUTE)])


@pytest.mark.parametrize("seconds", [5, 29 * 60, 30 * 60 - 1])
def test_the_last_instant_stays_open_until_half_an_hour_after_the_close(seconds: int) -> None:
    """Delayed data and closing auctions arrive after the close."""
    now = CLOSE + timedelta(seconds=seconds)
    found = evaluated(*HOURS, now=now, ends_at=now)
    assert kept(found) == HOURS
    assert found.covered == IntervalSet([Interval(OPEN, CLOSE - LAST_INSTANT)])


def test_the_end_is_covered_from_half_an_hour_after_the_close() -> None:
    """The same bars received then cover the session up to the next one."""
    found = evaluated(*HOURS, now=CLOSE + 30 * MINUTE, ends_at=CLOSE + 30 * MINUTE)
    assert found.covered == IntervalSet([Interval(OPEN, DAY_END)])


def test_the_end_is_not_covered_by_a_request_that_ends_before_the_close() -> None:
    """The gateway clips at the requested end, so the response shows nothing after it."""
    requested = Interval(OPEN, CLOSE)
    found = evaluated(*HOURS, requested=requested, ends_at=CLOSE - MINUTE)
    assert found.covered == IntervalSet([Interval(OPEN, CLOSE - LAST_INSTANT)])
    beyond = evaluated(*HOURS, requested=requested, ends_at=CLOSE + MINUTE)
    assert beyond.covered == IntervalSet([requested])


def test_a_quiet_end_is_not_covered_before_the_session_has_ended_for_good() -> None:
    """Pauses inside the response excuse nothing while more bars may come."""
    minutes = [OPEN + n * MINUTE for n in range(390) if n not in {100, 101}][:-1]
    early = CLOSE + 29 * MINUTE
    found = evaluated(*minutes, timeframe=Timeframe.M1, now=early, ends_at=early)
    assert found.covered == IntervalSet([Interval(OPEN, CLOSE - MINUTE)])


def test_a_gateway_that_holds_back_the_newest_bars_covers_no_end() -> None:
    """Quiet after its last bar proves nothing."""
    minutes = [OPEN + n * MINUTE for n in range(390) if n not in {100, 101}][:-1]
    found = evaluated(*minutes, timeframe=Timeframe.M1, holds_back=True)
    assert found.covered == IntervalSet([Interval(OPEN, CLOSE - MINUTE)])
    assert evaluated(*HOURS, holds_back=True).covered == IntervalSet([Interval(OPEN, CLOSE)])


def test_bars_after_the_known_close_are_kept_and_cover_its_end() -> None:
    """The calendar decides what is expected, never what is kept: VIX has bars to 16:15."""
    late = [*HOURS, CLOSE]
    found = evaluated(*late, now=CLOSE + 2 * HOUR, ends_at=CLOSE + 2 * HOUR)
    assert kept(found) == late
    assert found.covered.covers(Interval(OPEN, CLOSE + HOUR))


@pytest.mark.parametrize("holds_back", [False, True])
@pytest.mark.parametrize("seconds", [30, 65, 10 * 60, 30 * 60 - 1])
def test_bars_after_the_known_close_do_not_cover_its_end_sooner(
    seconds: int, holds_back: bool
) -> None:
    """The end is open for half an hour after the close; all whole bars are kept."""
    now = CLOSE + timedelta(seconds=seconds)
    minutes = [OPEN + n * MINUTE for n in range(390 + seconds // 60 + 1)]
    requested = Interval(OPEN, now)
    found = evaluated(
        *minutes, requested=requested, timeframe=Timeframe.M1, now=now, holds_back=holds_back
    )
    last = Interval(CLOSE - LAST_INSTANT, CLOSE)
    assert not found.covered.clip(last)
    assert found.covered.covers(Interval(OPEN, last.start))
    whole = [bar for bar in minutes if bar + MINUTE + timedelta(seconds=5) <= now]
    assert kept(found) == whole
    assert all(bar in found.covered for bar in whole)


def test_a_gateway_that_holds_back_the_newest_bars_leaves_the_last_instant_open() -> None:
    """A last bar at the close does not replace a response half an hour later."""
    now = CLOSE + 20 * MINUTE
    found = evaluated(*HOURS, now=now, ends_at=now, holds_back=True)
    assert found.covered == IntervalSet([Interval(OPEN, CLOSE - LAST_INSTANT)])


def test_quiet_between_bars_is_covered() -> None:
    """Hours without a trade between two bars are covered."""
    found = evaluated(HOURS[0], HOURS[3], *HOURS[6:])
    assert found.covered == IntervalSet([Interval(OPEN, DAY_END)])


def test_a_session_between_bars_is_stated_and_not_covered() -> None:
    """A whole session that a response passes over is left open; one response is no proof."""
    next_days = [moment + 2 * DAY for moment in HOURS]
    found = evaluated(*HOURS, *next_days, requested=Interval(OPEN, DAY_END + 2 * DAY))
    empty = Interval(OPEN + DAY, CLOSE + DAY)
    assert not found.covered.clip(empty)
    assert found.covered.covers(Interval(OPEN, CLOSE))
    assert found.covered.covers(Interval(OPEN + 2 * DAY, DAY_END + 2 * DAY))
    assert found.around == IntervalSet([empty])


def test_bars_outside_what_was_requested_count_as_bars_around_a_session() -> None:
    """All bars of the response count."""
    day = Interval(OPEN + DAY, DAY_END + DAY)
    next_bar = HOURS[0] + 2 * DAY
    found = evaluated(HOURS[-1], next_bar, requested=Interval(OPEN + DAY, next_bar + HOUR / 2))
    assert found.around == IntervalSet([Interval(OPEN + DAY, CLOSE + DAY)])
    assert not evaluated(HOURS[-1], requested=day).around


def test_sessions_with_bars_on_one_side_only_are_not_around() -> None:
    """Sessions before the first bar and after the last are not stated to be empty."""
    middle = [moment + DAY for moment in HOURS]
    found = evaluated(*middle, requested=Interval(OPEN, DAY_END + 2 * DAY))
    assert not found.around
    assert found.covered == IntervalSet([Interval(OPEN + DAY, OPEN + 2 * DAY)])


def test_a_session_that_was_requested_in_part_is_not_around() -> None:
    """A request from noon on does not show whether the morning is empty."""
    noon = OPEN + DAY + 2 * HOUR
    found = evaluated(OPEN, HOURS[0] + 2 * DAY, requested=Interval(noon, DAY_END + 2 * DAY))
    assert not found.around


def test_a_response_from_before_the_first_bar_shows_where_data_begin() -> None:
    """Sessions before the first bar were requested and have none."""
    requested = Interval(OPEN, DAY_END + 2 * DAY)
    found = evaluated(*(moment + 2 * DAY for moment in HOURS), requested=requested)
    assert found.begins_at == OPEN + 2 * DAY
    assert not found.covered.clip(Interval(OPEN, CLOSE + DAY))


def test_data_begin_only_after_a_whole_empty_session() -> None:
    """A quiet opening is no beginning, nor is a session after older bars."""
    assert evaluated(*HOURS[2:]).begins_at is None
    both = evaluated(OPEN - DAY, *(m + DAY for m in HOURS), requested=Interval(OPEN, DAY_END + DAY))
    assert both.begins_at is None


def test_a_quiet_opening_is_covered_by_bars_on_both_sides() -> None:
    """A chunk across the boundary covers the minutes before the first bar of a session."""
    first = OPEN + 7 * MINUTE
    wanted = IntervalSet([Interval(OPEN - DAY, DAY_END)])
    held = IntervalSet([Interval(first, DAY_END)])
    need = Need(RTH, Timeframe.M1, wanted, held, LATER, 1)
    (older,) = plan(replace(need, wanted=IntervalSet([Interval(OPEN - DAY, DAY_END - DAY)])))
    chunk = across_boundary(need, older)
    assert chunk.interval.covers(Interval(OPEN - DAY, first))
    minutes = [OPEN - DAY + n * MINUTE for n in range(390)]
    context = EvaluationContext(chunk, RTH, Timeframe.M1, LATER)
    both = evaluate(context, table([*minutes, first]), None)
    assert both.covered.covers(Interval(OPEN, first))
    assert kept(both) == minutes
    one = evaluate(context, table(minutes), None)
    assert not one.covered.clip(Interval(OPEN, first))


def test_a_quiet_opening_alone_is_covered_by_a_request_over_two_sessions() -> None:
    """The response has the last bars of the session before and the first held bar."""
    first = OPEN + 7 * MINUTE
    wanted = IntervalSet([Interval(OPEN, DAY_END)])
    need = Need(RTH, Timeframe.M1, wanted, IntervalSet([Interval(first, DAY_END)]), LATER, 1)
    (chunk,) = plan(need)
    before = [CLOSE - DAY - n * MINUTE for n in range(5, 0, -1)]
    context = EvaluationContext(chunk, RTH, Timeframe.M1, LATER)
    both = evaluate(context, table([*before, first]), None)
    assert both.covered == IntervalSet([Interval(OPEN, first)])
    assert kept(both) == []
    newer = evaluate(context, table([first]), None)
    assert not newer.covered
    older = evaluate(context, table(before), None)
    assert older.earlier_only
    assert not older.covered


def test_the_newest_bar_of_an_open_session_waits_until_it_is_over() -> None:
    """A bar is kept from a few seconds after its end."""
    until = HOURS[2] + timedelta(seconds=4)
    found = evaluated(*HOURS[:3], requested=Interval(OPEN, until), now=until)
    assert kept(found) == HOURS[:1]
    later = until + timedelta(seconds=1)
    found = evaluated(*HOURS[:3], requested=Interval(OPEN, later), now=later)
    assert kept(found) == HOURS[:2]
    assert found.covered == IntervalSet([Interval(OPEN, HOURS[2])])


def test_a_bar_that_the_requested_end_cuts_is_not_kept() -> None:
    """A bar across the end of what was requested is not whole."""
    found = evaluated(*HOURS[:3], requested=Interval(OPEN, HOURS[2] + HOUR / 2))
    assert kept(found) == HOURS[:2]


def test_bars_that_the_reach_cuts_are_not_kept() -> None:
    """The first and the last bar may be cut by the edges of what the gateway answered."""
    reach = Interval(OPEN + 10 * MINUTE, HOURS[-1] + 10 * MINUTE)
    found = evaluated(*HOURS, reach=reach)
    assert kept(found) == HOURS[1:-1]
    assert found.covered == IntervalSet([Interval(HOURS[1], HOURS[-1])])


def test_a_bar_outside_known_sessions_stays() -> None:
    """The calendar decides what is expected, never what is kept."""
    evening = CLOSE + HOUR
    found = evaluated(*HOURS, evening)
    assert kept(found) == [*HOURS, evening]


def test_a_response_of_older_bars_alone_is_distinguished() -> None:
    """It covers nothing, and states nothing by itself."""
    found = evaluated(OPEN - DAY)
    assert found.earlier_only
    assert not found.covered
    assert not found.around
    assert found.begins_at is None
    assert not evaluated(*HOURS, now=OPEN).earlier_only


@pytest.mark.parametrize("timeframe", [Timeframe.D1, Timeframe.W1])
def test_days_and_weeks_are_kept_half_an_hour_after_their_close(timeframe: Timeframe) -> None:
    """A daily or weekly bar is final some time after its last close."""
    requested = interval_between(RTH, timeframe, date(2024, 6, 3), date(2024, 6, 10))
    days = 1 if timeframe is Timeframe.D1 else 7
    bars = [requested.start + timedelta(days=n) for n in range(0, 5, days)]
    close = datetime(2024, 6, 7, 20, tzinfo=UTC)
    early = evaluated(
        *bars, requested=requested, timeframe=timeframe, now=close + timedelta(minutes=29)
    )
    assert kept(early) == bars[:-1]
    late = evaluated(
        *bars, requested=requested, timeframe=timeframe, now=close + timedelta(minutes=30)
    )
    assert kept(late) == bars


@pytest.mark.parametrize(
    ("calendar", "timeframe", "closed", "closes_at"),
    [
        ("XNYS.RTH", Timeframe.D1, date(2024, 6, 19), datetime(2024, 6, 20, 20, tzinfo=UTC)),
        ("XSHG.RTH", Timeframe.W1, date(2024, 2, 12), datetime(2024, 2, 23, 7, tzinfo=UTC)),
    ],
)
def test_a_bar_of_a_closed_date_is_final_when_a_later_one_is(
    calendar: str, timeframe: Timeframe, closed: date, closes_at: datetime
) -> None:
    """A bar of a date without a known session is kept with a final later bar."""
    hours = calendar_named(calendar)
    length = timeframe.length
    requested = interval_between(hours, timeframe, closed - length, closed + 2 * length)
    chunk = Chunk(requested, closes_at, "3 D", 2)
    bars = [requested.start + n * length for n in range(3)]
    context = EvaluationContext(chunk, hours, timeframe, closes_at + timedelta(minutes=30))
    found = evaluate(context, table(bars), None)
    assert kept(found) == bars
    assert found.covered == IntervalSet([requested])
    alone = evaluate(context, table(bars[:-1]), None)
    assert kept(alone) == bars[:1]
    assert not alone.covered.clip(Interval(bars[1], bars[2]))


def test_a_half_day_is_whole_at_its_early_close() -> None:
    """The last bar of a half day may be short, and the session is covered to its close."""
    opens = datetime(2024, 7, 3, 13, 30, tzinfo=UTC)
    bars = [opens, *(opens.replace(hour=hour, minute=0) for hour in range(14, 17))]
    requested = Interval(opens, datetime(2024, 7, 4, 4, tzinfo=UTC))
    found = evaluated(*bars, requested=requested)
    assert kept(found) == bars
    assert found.covered == IntervalSet([requested])


def _evaluate_years(years: int) -> None:
    wanted = interval_between(RTH, Timeframe.M1, date(2025 - years, 1, 2), date(2025, 1, 2))
    now = datetime(2026, 1, 1, tzinfo=UTC)
    need = Need(RTH, Timeframe.M1, IntervalSet([wanted]), IntervalSet(), now, 1)
    chunks = plan(need)
    covered = IntervalSet()
    minute = 60_000_000
    for chunk in chunks:
        (session,) = RTH.sessions_meeting(chunk.interval)
        keys = np.arange(micros(session.opens_at), micros(session.closes_at), minute)
        bars = _minutes(keys)
        found = evaluate(EvaluationContext(chunk, RTH, Timeframe.M1, now), bars, None)
        covered |= found.covered
        assert not replace(need, wanted=need.wanted.clip(chunk.interval), covered=covered).gaps()
    assert not replace(need, covered=covered).gaps()


def _minutes(keys: np.ndarray) -> pa.Table:
    ts = pa.array(keys, pa.int64()).cast(BAR_SCHEMA.field("ts").type)
    return pa.table({"ts": ts})


def test_evaluation_time_is_linear() -> None:
    """Eight times the responses take about eight times as long, not the square."""
    assert timestamps(_minutes(np.arange(3)))[2] == 2
    assert growth(_evaluate_years, 1, 8, rounds=2) < LINEAR_IN_EIGHT


def test_a_delayed_last_bar_is_kept_twenty_minutes_after_its_end() -> None:
    """Fifteen minutes after its end, a delayed bar may still lack trades."""
    ends = HOURS[3] + timedelta(hours=1)
    for minutes, count in ((15, 3), (20, 4)):
        now = ends + minutes * MINUTE
        found = evaluated(*HOURS[:4], now=now, ends_at=now, holds_back=True)
        assert len(kept(found)) == count
        assert found.covered == IntervalSet([Interval(OPEN, HOURS[3] if count == 3 else ends)])


FIRST, END = date(2024, 3, 11), date(2024, 3, 23)

NOW = datetime(2024, 6, 1, tzinfo=UTC)


def evaluated_days(*missing: date, impossible: IntervalSet) -> Evaluation:
    """Evaluate two weeks of daily bars that lack some."""
    keys = dense_keys("XNYS.RTH", Timeframe.D1, FIRST, END)
    keys = keys[~np.isin(keys, [micros(midnight(day)) for day in missing])]
    chunk = Chunk(Interval(midnight(FIRST), midnight(END)), RTH.day_starts_at(END), "10 D", 10)
    context = EvaluationContext(chunk, RTH, Timeframe.D1, NOW, impossible=impossible)
    return evaluate(context, bars_at(keys, RTH, daily=True), None)


def days(first: date, end: date) -> IntervalSet:
    """Return the interval of some daily bars."""
    return IntervalSet([Interval(midnight(first), midnight(end))])


def test_a_day_without_its_row_has_bars_on_both_sides() -> None:
    """A response without impossible rows states that the missing days are empty."""
    missing = date(2024, 3, 13), date(2024, 3, 15)
    found = evaluated_days(*missing, impossible=IntervalSet())
    assert found.around == IntervalSet(
        Interval(midnight(day), midnight(day) + DAY) for day in missing
    )


@pytest.mark.parametrize("number", [0, 1])
def test_an_impossible_row_is_not_stated_to_be_empty(number: int) -> None:
    """The other missing day of the same response is."""
    missing = date(2024, 3, 13), date(2024, 3, 15)
    position = days(missing[number], missing[number] + DAY)
    found = evaluated_days(*missing, impossible=position)
    other = missing[1 - number]
    assert found.around == days(other, other + DAY)
    assert not found.covered & position


def test_data_do_not_begin_after_an_impossible_row() -> None:
    """With an unreadable first row, the response begins before its first bar."""
    assert evaluated_days(FIRST, impossible=IntervalSet()).begins_at == midnight(FIRST + DAY)
    before = IntervalSet([Interval(EVER.start, midnight(FIRST + DAY))])
    found = evaluated_days(FIRST, impossible=before)
    assert found.begins_at is None
    assert not found.covered & before


def test_nothing_is_covered_after_the_last_bar_if_an_impossible_row_followed() -> None:
    """Up to the last bar everything is covered, the weekend included."""
    last = date(2024, 3, 22)
    after = IntervalSet([Interval(midnight(last), EVER.end)])
    found = evaluated_days(last, impossible=after)
    assert found.covered == days(FIRST, last)


def test_bars_in_an_impossible_interval_are_kept() -> None:
    """Of two rows with one timestamp, the bar is kept, and its interval is not covered."""
    position = days(date(2024, 3, 13), date(2024, 3, 14))
    found = evaluated_days(impossible=position)
    assert found.bars.num_rows == 10
    assert isinstance(found.bars, pa.Table)
    assert micros(midnight(date(2024, 3, 13))) in timestamps(found.bars)
    assert midnight(date(2024, 3, 13)) not in found.covered


BEGIN = datetime(2024, 2, 5, tzinfo=UTC)

CLOSED = ["XNYS.RTH", "XSHG.RTH"]
"""Calendars with closed dates in those weeks, XSHG with a whole week of them."""


@dataclass(frozen=True)
class Response:
    """A response, and what was requested."""

    context: EvaluationContext
    bars: list[datetime]
    reach: Interval | None

    def evaluated(self) -> Evaluation:
        """Return the evaluation of the response."""
        keys = pa.array([micros(bar) for bar in self.bars], pa.int64())
        table = pa.table({"ts": keys.cast(BAR_SCHEMA.field("ts").type)})
        return evaluate(self.context, table, self.reach)

    def spans(self) -> list[Span]:
        """Return the sessions of what was requested."""
        context = self.context
        return session_grid(context.calendar, context.timeframe).spans_in(context.chunk.interval)


@st.composite
def responses(draw: st.DrawFn) -> Response:
    """Generate ascending timestamps, inside and outside of sessions and requests, at any time."""
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
    """Its last instant needs later bars, or a response that reaches past the close, late enough."""
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
def test_data_begin_only_after_a_whole_session_that_was_requested(response: Response) -> None:
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
