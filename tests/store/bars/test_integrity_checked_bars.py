"""Counts of odd bars in a file: order, duplicates and implausible values."""

from datetime import date

import pyarrow as pa

from ktrdr_pipelines.domain.bars import BAR_SCHEMA, moment, timestamps
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.instruments import SecType
from ktrdr_pipelines.domain.plausibility import findings_of
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.bars.integrity import CheckedBars, check_bars
from tests.support.fake_gateway import bars_at, dense_keys

CALENDAR = calendar_named("XNYS.RTH")


def daily_bars() -> pa.Table:
    """Return ten good daily bars."""
    keys = dense_keys("XNYS.RTH", Timeframe.D1, date(2024, 3, 11), date(2024, 3, 23))
    return bars_at(keys, CALENDAR, daily=True)


def with_high(bars: pa.Table, position: int, high: float) -> pa.Table:
    """Return bars with another high of one of them."""
    highs = bars["high"].to_pylist()
    highs[position] = high
    index = BAR_SCHEMA.get_field_index("high")
    return bars.set_column(index, BAR_SCHEMA.field(index), pa.array(highs))


def test_good_bars_have_nothing_odd() -> None:
    """All counts but that of the rows are zero."""
    assert check_bars(daily_bars(), SecType.STK) == CheckedBars(rows=10)


def test_duplicates_and_disorder_are_counted_with_the_first_misplaced_bar() -> None:
    """A repeated last bar is a duplicate; in reversed bars all steps but none are misplaced."""
    bars = daily_bars()
    keys = timestamps(bars)
    twice = check_bars(pa.concat_tables([bars, bars.slice(9)]))
    assert (twice.out_of_order, twice.duplicates) == (0, 1)
    assert twice.first_misplaced == moment(int(keys[9]))
    backwards = check_bars(bars.take(list(range(9, -1, -1))))
    assert (backwards.out_of_order, backwards.duplicates) == (9, 0)
    assert backwards.first_misplaced == moment(int(keys[8]))


def test_implausible_bars_are_damage_unless_a_finding_explains_them() -> None:
    """The first one without a finding is named."""
    bars = with_high(with_high(daily_bars(), 2, -1.0), 5, -1.0)
    keys = timestamps(bars).tolist()
    damaged = check_bars(bars, SecType.STK)
    assert (damaged.implausible, damaged.findings) == (2, 0)
    assert damaged.first_implausible == moment(keys[2])
    known = findings_of(bars, keys[2:3], SecType.STK)
    partly = check_bars(bars, SecType.STK, known)
    assert (partly.implausible, partly.findings) == (1, 1)
    assert partly.first_implausible == moment(keys[5])
