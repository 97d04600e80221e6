"""Settling: which bars of an answer are kept, and what they prove."""

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from time import process_time

import numpy as np
import pyarrow as pa
import pytest
from ktrdr_pipelines.core.doubts import Doubts, after_answer
from ktrdr_pipelines.core.settle import Question, Settlement, settle

from ktrdr_pipelines.core.bars import BAR_SCHEMA, micros, stamps
from ktrdr_pipelines.core.calendars import calendar_named
from ktrdr_pipelines.core.intervals import Interval, IntervalSet
from ktrdr_pipelines.core.plan import Chunk, Need, plan
from ktrdr_pipelines.core.sessions import stamps_between
from ktrdr_pipelines.core.timeframes import Timeframe
from tests.growth import LINEAR_IN_EIGHT, growth

RTH = calendar_named("XNYS.RTH")
LATER = datetime(2025, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
OPEN, CLOSE = datetime(2024, 6, 4, 13, 30, tzinfo=UTC), datetime(2024, 6, 4, 20, tzinfo=UTC)
HOURS = [OPEN, *(OPEN.replace(hour=hour, minute=0) for hour in range(14, 20))]
DAY_END = datetime(2024, 6, 5, 4, tzinfo=UTC)


def table(moments: Iterable[datetime]) -> pa.Table:
    """Make bars at moments."""
    keys = [micros(moment) for moment in moments]
    columns: dict[str, object] = {name: [1.0] * len(keys) for name in BAR_SCHEMA.names}
    columns["ts"] = pa.array(keys, pa.int64()).cast(BAR_SCHEMA.field("ts").type)
    columns["session_date"] = [date(2024, 6, 4)] * len(keys)
    columns["bar_count"] = pa.array([1] * len(keys), pa.int32())
    return pa.table(columns, schema=BAR_SCHEMA)


def answered(
    *moments: datetime,
    stretch: Interval | None = None,
    timeframe: Timeframe = Timeframe.H1,
    now: datetime = LATER,
    reach: Interval | None = None,
) -> Settlement:
    """Settle an answer to a chunk of one session or of a stretch."""
    asked = stretch or Interval(OPEN, DAY_END)
    chunk = Chunk(asked, asked.end, "1 D", 1)
    return settle(Question(chunk, RTH, timeframe, now), table(moments), reach)


def kept(settlement: Settlement) -> list[datetime]:
    """Give the stamps of kept bars."""
    moments: list[datetime] = settlement.bars["ts"].to_pylist()
    return moments


def test_a_whole_session_is_kept_and_proved() -> None:
    """Bars from open to close prove the session and the closed time behind it."""
    settlement = answered(*HOURS)
    assert kept(settlement) == HOURS
    assert settlement.proved == IntervalSet([Interval(OPEN, DAY_END)])


def test_bars_before_what_was_asked_prove_its_start_and_are_not_kept() -> None:
    """An answer that reaches further back proves silence up to the first bar inside."""
    settlement = answered(OPEN - timedelta(days=1), *HOURS[2:])
    assert kept(settlement) == HOURS[2:]
    assert settlement.proved == IntervalSet([Interval(OPEN, DAY_END)])


def test_a_late_first_bar_proves_nothing_before_it() -> None:
    """Without an older bar the left edge is proved from the first bar."""
    assert answered(*HOURS[2:]).proved == IntervalSet([Interval(HOURS[2], DAY_END)])


def test_silence_before_the_close_proves_nothing() -> None:
    """An answer that may be cut short proves to the end of its last bar."""
    settlement = answered(*HOURS[:-2])
    assert settlement.proved == IntervalSet([Interval(OPEN, HOURS[-2])])


def test_silence_between_bars_is_settled() -> None:
    """Hours without a trade between two bars are known."""
    settlement = answered(HOURS[0], HOURS[3], *HOURS[6:])
    assert settlement.proved == IntervalSet([Interval(OPEN, DAY_END)])


def test_a_session_without_a_bar_is_not_settled_by_its_neighbours() -> None:
    """A whole session that an answer passes over is left open."""
    next_days = [moment + timedelta(days=2) for moment in HOURS]
    stretch = Interval(OPEN, DAY_END + timedelta(days=2))
    settlement = answered(*HOURS, *next_days, stretch=stretch)
    day = timedelta(days=1)
    assert not settlement.proved.clip(Interval(OPEN + day, CLOSE + day))
    assert settlement.proved.covers(Interval(OPEN, CLOSE))
    assert settlement.proved.covers(Interval(OPEN + 2 * day, DAY_END + 2 * day))


def test_the_newest_bar_of_an_open_session_waits_until_it_is_over() -> None:
    """A bar is kept once its end lies a few seconds back."""
    until = HOURS[2] + timedelta(seconds=4)
    settlement = answered(*HOURS[:3], stretch=Interval(OPEN, until), now=until)
    assert kept(settlement) == HOURS[:1]
    later = until + timedelta(seconds=1)
    settlement = answered(*HOURS[:3], stretch=Interval(OPEN, later), now=later)
    assert kept(settlement) == HOURS[:2]
    assert settlement.proved == IntervalSet([Interval(OPEN, HOURS[2])])


def test_a_bar_that_the_asked_end_cuts_is_not_kept() -> None:
    """A bar across the end of what was asked is not whole."""
    settlement = answered(*HOURS[:3], stretch=Interval(OPEN, HOURS[2] + HOUR / 2))
    assert kept(settlement) == HOURS[:2]


def test_bars_that_the_reach_cuts_are_not_kept() -> None:
    """The first and the last bar may be cut by the edges of what was answered."""
    reach = Interval(OPEN + timedelta(minutes=10), HOURS[-1] + timedelta(minutes=10))
    settlement = answered(*HOURS, reach=reach)
    assert kept(settlement) == HOURS[1:-1]
    assert settlement.proved == IntervalSet([Interval(HOURS[1], HOURS[-1])])


def test_a_bar_outside_known_sessions_stays() -> None:
    """The calendar says what is expected, never what is kept."""
    evening = CLOSE + HOUR
    settlement = answered(*HOURS, evening)
    assert kept(settlement) == [*HOURS, evening]


def test_an_answer_of_older_bars_alone_is_told_apart() -> None:
    """The gateway looked for what was asked, and found older bars only."""
    settlement = answered(OPEN - timedelta(days=1))
    assert settlement.earlier_only
    assert not settlement.proved
    assert not answered(*HOURS, now=OPEN).earlier_only


@pytest.mark.parametrize("timeframe", [Timeframe.D1, Timeframe.W1])
def test_days_and_weeks_are_kept_half_an_hour_after_their_close(timeframe: Timeframe) -> None:
    """A daily or weekly bar is final some time after its last close."""
    stretch = stamps_between(RTH, timeframe, date(2024, 6, 3), date(2024, 6, 10))
    days = 1 if timeframe is Timeframe.D1 else 7
    bars = [stretch.start + timedelta(days=n) for n in range(0, 5, days)]
    close = datetime(2024, 6, 7, 20, tzinfo=UTC)
    early = answered(*bars, stretch=stretch, timeframe=timeframe, now=close + timedelta(minutes=29))
    assert kept(early) == bars[:-1]
    late = answered(*bars, stretch=stretch, timeframe=timeframe, now=close + timedelta(minutes=30))
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
    """Where the gateway has a bar that the calendar has not, it is kept with what follows it."""
    hours = calendar_named(calendar)
    length = timeframe.length
    stretch = stamps_between(hours, timeframe, closed - length, closed + 2 * length)
    chunk = Chunk(stretch, closes_at, "3 D", 2)
    bars = [stretch.start + n * length for n in range(3)]
    question = Question(chunk, hours, timeframe, closes_at + timedelta(minutes=30))
    settlement = settle(question, table(bars), None)
    assert kept(settlement) == bars
    assert settlement.proved == IntervalSet([stretch])
    alone = settle(question, table(bars[:-1]), None)
    assert kept(alone) == bars[:1]
    assert not alone.proved.clip(Interval(bars[1], bars[2]))


def test_a_half_day_is_whole_at_its_early_close() -> None:
    """The last bar of a half day may be short, and the session is proved to its close."""
    opens = datetime(2024, 7, 3, 13, 30, tzinfo=UTC)
    bars = [opens, *(opens.replace(hour=hour, minute=0) for hour in range(14, 17))]
    stretch = Interval(opens, datetime(2024, 7, 4, 4, tzinfo=UTC))
    settlement = answered(*bars, stretch=stretch)
    assert kept(settlement) == bars
    assert settlement.proved == IntervalSet([stretch])


def _seconds_to_settle(years: int) -> float:
    wanted = stamps_between(RTH, Timeframe.M1, date(2025 - years, 1, 2), date(2025, 1, 2))
    now = datetime(2026, 1, 1, tzinfo=UTC)
    need = Need(RTH, Timeframe.M1, IntervalSet([wanted]), IntervalSet(), now, 1)
    chunks = plan(need)
    settled = IntervalSet()
    minute = 60_000_000
    started = process_time()
    for chunk in chunks:
        (session,) = RTH.sessions_meeting(chunk.stamps)
        keys = np.arange(micros(session.opens_at), micros(session.closes_at), minute)
        bars = _minutes(keys)
        settlement = settle(Question(chunk, RTH, Timeframe.M1, now), bars, None)
        settled |= settlement.proved
        part = Need(RTH, Timeframe.M1, need.wanted.clip(chunk.stamps), settled, now, 1)
        assert not after_answer(part, Doubts(), chunk).open
    took = process_time() - started
    assert len(settled) == len(chunks)
    return took


def _minutes(keys: np.ndarray) -> pa.Table:
    ts = pa.array(keys, pa.int64()).cast(BAR_SCHEMA.field("ts").type)
    return pa.table({"ts": ts})


def test_settling_takes_time_in_proportion() -> None:
    """Eight times the answers take about eight times as long to settle, not the square."""
    assert stamps(_minutes(np.arange(3)))[2] == 2
    assert growth(_seconds_to_settle, 1, 8) < LINEAR_IN_EIGHT
