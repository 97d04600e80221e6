"""What a response says of places in which a row stood that is no bar: nothing."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from ktrdr_pipelines.domain.bars import micros, timestamps
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import midnight
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.chunks import Chunk
from ktrdr_pipelines.domain.planning.evaluation import Evaluation, EvaluationContext, evaluate
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.bars.filing import EVER
from tests.support.fake_gateway import bars_at, dense_keys

RTH = calendar_named("XNYS.RTH")
FIRST, END = date(2024, 3, 11), date(2024, 3, 23)
NOW = datetime(2024, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def evaluated(*missing: date, impossible: IntervalSet) -> Evaluation:
    """Evaluate two weeks of daily bars that lack some."""
    keys = dense_keys("XNYS.RTH", Timeframe.D1, FIRST, END)
    keys = keys[~np.isin(keys, [micros(midnight(day)) for day in missing])]
    chunk = Chunk(Interval(midnight(FIRST), midnight(END)), RTH.day_starts_at(END), "10 D", 10)
    context = EvaluationContext(chunk, RTH, Timeframe.D1, NOW, impossible=impossible)
    return evaluate(context, bars_at(keys, RTH, daily=True), None)


def days(first: date, end: date) -> IntervalSet:
    """Return the place of some daily bars."""
    return IntervalSet([Interval(midnight(first), midnight(end))])


def test_a_day_without_its_row_has_bars_on_both_sides() -> None:
    """Nothing is odd about the response: it says that the days are empty."""
    missing = date(2024, 3, 13), date(2024, 3, 15)
    found = evaluated(*missing, impossible=IntervalSet())
    assert found.around == IntervalSet(
        Interval(midnight(day), midnight(day) + DAY) for day in missing
    )


@pytest.mark.parametrize("number", [0, 1])
def test_a_place_of_a_row_that_is_no_bar_is_not_empty(number: int) -> None:
    """The other day is, in the same response."""
    missing = date(2024, 3, 13), date(2024, 3, 15)
    position = days(missing[number], missing[number] + DAY)
    found = evaluated(*missing, impossible=position)
    other = missing[1 - number]
    assert found.around == days(other, other + DAY)
    assert not found.covered & position


def test_data_do_not_begin_behind_a_row_that_is_no_bar() -> None:
    """Where the first row was unreadable the response begins earlier than its first bar."""
    assert evaluated(FIRST, impossible=IntervalSet()).begins_at == midnight(FIRST + DAY)
    before = IntervalSet([Interval(EVER.start, midnight(FIRST + DAY))])
    found = evaluated(FIRST, impossible=before)
    assert found.begins_at is None
    assert not found.covered & before


def test_behind_the_last_bar_nothing_is_covered_if_a_row_stood_there() -> None:
    """Up to the last bar everything is, the weekend too."""
    last = date(2024, 3, 22)
    after = IntervalSet([Interval(midnight(last), EVER.end)])
    found = evaluated(last, impossible=after)
    assert found.covered == days(FIRST, last)


def test_bars_in_an_impossible_place_are_kept_all_the_same() -> None:
    """Two rows with one place: what is a bar stays, only the place is not covered."""
    position = days(date(2024, 3, 13), date(2024, 3, 14))
    found = evaluated(impossible=position)
    assert found.bars.num_rows == 10
    assert isinstance(found.bars, pa.Table)
    assert micros(midnight(date(2024, 3, 13))) in timestamps(found.bars)
    assert midnight(date(2024, 3, 13)) not in found.covered
