"""How bars of several price bases are put onto today's."""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ktrdr_pipelines.domain.adjustments import (
    Adjustment,
    AdjustmentKind,
    Factor,
    factors_of,
    on_todays_basis,
)
from ktrdr_pipelines.domain.bars import BAR_SCHEMA

MINUTE = timedelta(minutes=1)

FOUND = datetime(2024, 6, 10, 20, tzinfo=UTC)


def split(number: int, ratio: float, **other: Any) -> Adjustment:
    """Return a split."""
    values: dict[str, Any] = {
        "volume_ratio": 1 / ratio,
        "kind": AdjustmentKind.SPLIT,
        "effective": date(2024, 6, 10),
        "is_estimated": True,
        "found_at": FOUND,
        "old_until": FOUND - timedelta(days=1),
        "evidence": "5 bars of AAPL 1d",
    }
    return Adjustment(number, ratio, **(values | other))


def manual(number: int, ratio: float, effective: date, **other: Any) -> Adjustment:
    """Return what a user stated."""
    kind = AdjustmentKind.MANUAL
    return split(number, ratio, kind=kind, effective=effective, note="pence", **other)


def stored(days: list[date]) -> pa.Table:
    """Return a bar of each session date."""
    rows = [
        {
            "ts": datetime(day.year, day.month, day.day, tzinfo=UTC) + number * MINUTE,
            "session_date": day,
            "open": 10.1,
            "high": 11.3 + number,
            "low": 9.7,
            "close": 10.9,
            "volume": None if number == 1 else 701.0 + number,
            "average": None if number == 1 else 10.123456,
            "bar_count": 7,
        }
        for number, day in enumerate(days)
    ]
    return pa.Table.from_pylist(rows, schema=BAR_SCHEMA)


JUNE, JULY = date(2024, 6, 10), date(2024, 7, 1)


def test_without_adjustments_there_is_one_factor() -> None:
    """It is 1 for all dates."""
    assert factors_of([]) == (Factor(0, None, None, 1.0, 1.0),)


def test_splits_apply_to_older_bases_whatever_the_session() -> None:
    """The factor is the product of all later ratios, in the order of their numbers."""
    first, second, third = split(1, 1 / 7), split(2, 20.0), split(3, 1 / 3)
    assert factors_of([third, first, second]) == (
        Factor(0, None, None, 1 / 7 * 20.0 * (1 / 3), 1 / (1 / 7) * (1 / 20.0) * (1 / (1 / 3))),
        Factor(1, None, None, 20.0 * (1 / 3), 1 / 20.0 * (1 / (1 / 3))),
        Factor(2, None, None, 1 / 3, 1 / (1 / 3)),
        Factor(3, None, None, 1.0, 1.0),
    )


def test_manual_adjustments_apply_before_their_session() -> None:
    """Dates of one basis are cut at each session from which another factor holds."""
    found = factors_of([split(1, 0.25), manual(2, 100.0, JULY), manual(3, 2.0, JUNE)])
    assert found == (
        Factor(0, None, JUNE, 0.25 * 100.0 * 2.0, 4.0 * 0.01 * 0.5),
        Factor(0, JUNE, JULY, 0.25 * 100.0, 4.0 * 0.01),
        Factor(0, JULY, None, 0.25, 4.0),
        Factor(1, None, JUNE, 200.0, 0.01 * 0.5),
        Factor(1, JUNE, JULY, 100.0, 0.01),
        Factor(1, JULY, None, 1.0, 1.0),
        Factor(2, None, JUNE, 2.0, 0.5),
        Factor(2, JUNE, None, 1.0, 1.0),
        Factor(3, None, None, 1.0, 1.0),
    )


def test_removed_adjustments_keep_their_number() -> None:
    """They apply to no bar, and cut no dates."""
    removed = manual(1, 100.0, JUNE, removed_at=FOUND)
    assert factors_of([removed, split(2, 0.5)]) == (
        Factor(0, None, None, 0.5, 2.0),
        Factor(1, None, None, 0.5, 2.0),
        Factor(2, None, None, 1.0, 1.0),
    )


def test_neighbours_with_equal_factors_are_one() -> None:
    """Two adjustments of one session, and a later one that undoes an earlier one."""
    assert factors_of([manual(1, 2.0, JUNE), manual(2, 4.0, JUNE)])[:2] == (
        Factor(0, None, JUNE, 8.0, 0.125),
        Factor(0, JUNE, None, 1.0, 1.0),
    )
    neutral = manual(2, 1.0, JULY)
    assert factors_of([manual(1, 2.0, JUNE), neutral])[:2] == (
        Factor(0, None, JUNE, 2.0, 0.5),
        Factor(0, JUNE, None, 1.0, 1.0),
    )


def test_the_factors_of_a_basis_partition_all_dates() -> None:
    """For any adjustments."""
    rng = np.random.default_rng(40)
    for _ in range(100):
        adjustments = [
            manual(number, 2.0, JUNE + timedelta(days=int(rng.integers(5))))
            if rng.random() < 0.6
            else split(number, 0.5)
            for number in range(1, int(rng.integers(1, 7)))
        ]
        factors = factors_of(adjustments)
        for basis in range(len(adjustments) + 1):
            own = [one for one in factors if one.basis == basis]
            assert (own[0].since, own[-1].until) == (None, None)
            for one, following in pairwise(own):
                assert one.until is not None
                assert one.until == following.since
                assert (one.price, one.volume) != (following.price, following.volume)


@pytest.mark.parametrize("numbers", [(2,), (1, 3), (1, 1), (0, 1)])
def test_numbers_without_order_are_an_error(numbers: tuple[int, ...]) -> None:
    """A missing adjustment would leave prices on a basis that is not today's."""
    with pytest.raises(ValueError, match="have a gap"):
        factors_of([split(number, 0.5) for number in numbers])


def test_bars_are_multiplied_by_the_factor_of_their_basis_and_session() -> None:
    """Bit for bit; nulls, counts, dates and a further column are unchanged."""
    days = [JUNE - timedelta(days=1), JUNE, JUNE, JULY, JULY, JULY]
    bars = stored(days).append_column("basis", pa.array([0, 0, 1, 1, 2, 3]))
    basis = np.array([0, 0, 1, 1, 2, 3])
    adjustments = [split(1, 1 / 7), manual(2, 100.0, JUNE), split(3, 1.1)]
    prices = [1 / 7 * 100.0 * 1.1, 1 / 7 * 1.1, 1.1, 1.1, 1.1, 1.0]
    volumes = [1 / (1 / 7) * 0.01 * (1 / 1.1), 1 / (1 / 7) * (1 / 1.1), *[1 / 1.1] * 3, 1.0]
    found = on_todays_basis(bars, basis, adjustments)
    assert found.schema == bars.schema
    for name in bars.column_names:
        factors = volumes if name == "volume" else prices
        if name in {"ts", "session_date", "bar_count", "basis"}:
            factors = None
        old = bars[name].to_pylist()
        expected = (
            old
            if factors is None
            else [
                None if value is None else value * factor
                for value, factor in zip(old, factors, strict=True)
            ]
        )
        assert found[name].to_pylist() == expected


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.int16, np.uint8])
def test_bases_may_be_any_whole_numbers(kind: type[np.integer[Any]]) -> None:
    """As may columns in several pieces."""
    bars = pa.concat_tables([stored([JUNE] * 3), stored([JULY] * 2)])
    found = on_todays_basis(bars, np.array([0, 0, 1, 1, 0], dtype=kind), [split(1, 0.5)])
    assert found["low"].to_pylist() == [4.85, 4.85, 9.7, 9.7, 4.85]


@pytest.mark.parametrize("runs", [2, 500])
def test_any_number_of_runs_on_one_basis_is_multiplied(runs: int) -> None:
    """As one number a run, or as one number a row."""
    bars = stored([JUNE] * 1000)
    basis = np.arange(1000) * runs // 1000 % 2
    found = on_todays_basis(bars, basis, [split(1, 1 / 7)])
    for name, factor in (("close", 1 / 7), ("volume", 1 / (1 / 7))):
        old = bars[name].to_pylist()
        factors = np.where(basis == 0, factor, 1.0).tolist()
        products = [None if one is None else one * by for one, by in zip(old, factors, strict=True)]
        assert found[name].to_pylist() == products
    assert found.select(["ts", "bar_count"]).equals(bars.select(["ts", "bar_count"]))


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("runs", [1, 2, 500])
def test_bars_that_may_be_overwritten_have_the_same_products(runs: int, first: int) -> None:
    """In their memory, but for columns with nulls: the second bar has some."""
    days = [JUNE] * 500 + [JULY] * 500
    bars, copy = (stored(days).slice(first) for _ in range(2))
    basis = (np.arange(1000) * runs // 1000 % 2)[first:]
    adjustments = [split(1, 1 / 7), manual(2, 0.01, JULY)]
    expected = on_todays_basis(copy, basis, adjustments)
    assert copy.equals(stored(days).slice(first))
    found = on_todays_basis(bars, basis, adjustments, may_overwrite=True)
    assert found.equals(expected)
    assert (found is bars) == (first == 2 and runs < 500)


def test_bars_on_todays_basis_are_the_same_table() -> None:
    """So are bars whose adjustments are removed, or have a later session's factor."""
    bars = stored([JULY] * 3)
    new, old = np.ones(3, dtype=np.int64), np.zeros(3, dtype=np.int64)
    assert on_todays_basis(bars, new, [split(1, 0.5)]) is bars
    assert on_todays_basis(bars, old, []) is bars
    assert on_todays_basis(bars, old, [manual(1, 2.0, JUNE)]) is bars
    assert on_todays_basis(bars, old, [manual(1, 2.0, JULY + MINUTE, removed_at=FOUND)]) is bars
    none = bars.slice(0, 0)
    assert on_todays_basis(none, old[:0], [split(1, 0.5)]) is none


def test_a_volume_factor_of_1_leaves_the_column() -> None:
    """A change of unit may concern prices only."""
    bars = stored([JUNE] * 3)
    found = on_todays_basis(bars, np.zeros(3, dtype=np.int64), [split(1, 0.01, volume_ratio=1.0)])
    assert found["volume"].equals(bars["volume"])
    assert found["close"].to_pylist() == [10.9 * 0.01] * 3


@pytest.mark.parametrize("basis", [[-1, 0, 1], [0, 1, 2]])
def test_a_basis_that_does_not_exist_is_an_error(basis: list[int]) -> None:
    """The record of its adjustment is lost, or the file is of another symbol."""
    with pytest.raises(ValueError, match="only 0 to 1 are known"):
        on_todays_basis(stored([JUNE] * 3), np.array(basis), [split(1, 0.5)])


def test_the_number_of_bases_must_be_that_of_the_bars() -> None:
    """It is not stretched."""
    with pytest.raises(ValueError, match="3 bars, bases of shape"):
        on_todays_basis(stored([JUNE] * 3), np.array([0]), [split(1, 0.5)])
