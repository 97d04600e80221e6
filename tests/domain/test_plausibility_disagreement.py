"""Disagreements: bars that come again on another price basis, and what is no such thing."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.domain.bars import BAR_SCHEMA, micros
from ktrdr_pipelines.domain.plausibility import Disagreement, disagreement

FIRST = datetime(2024, 6, 3, 13, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
PRICES = (100.0, 101.5, 99.25, 100.75, 102.0, 98.5)


def table(closes: Sequence[float], first: datetime = FIRST, volume: float = 10.0) -> pa.Table:
    """Make bars of each minute with these closes."""
    keys = [micros(first + n * MINUTE) for n in range(len(closes))]
    columns: dict[str, object] = {name: [1.0] * len(keys) for name in BAR_SCHEMA.names}
    columns["ts"] = pa.array(keys, pa.int64()).cast(BAR_SCHEMA.field("ts").type)
    columns["session_date"] = [first.date()] * len(keys)
    columns["close"] = [float(close) for close in closes]
    columns["volume"] = [volume] * len(keys)
    columns["bar_count"] = pa.array([1] * len(keys), pa.int32())
    return pa.table(columns, schema=BAR_SCHEMA)


def times(ratio: float, prices: Sequence[float] = PRICES) -> list[float]:
    """Return prices on another basis, to the cent as gateways round them."""
    return [round(price * ratio, 2) for price in prices]


@pytest.mark.parametrize(
    "ratio", [1 / 2, 2, 1 / 10, 10, 1 / 1.05, 1 / 1.01, 1 / 20, 2 / 3, 1.011], ids="{:.3f}".format
)
def test_another_basis_is_found(ratio: float) -> None:
    """Splits of 2:1 and 1:10, and a stock dividend of 5 % or 1 %, forward and reverse."""
    found = disagreement(table(PRICES), table(times(ratio)))
    assert found is not None
    assert (found.first, found.last) == (FIRST, FIRST + 5 * MINUTE)
    assert found.bars == 6
    assert found.ratio == pytest.approx(ratio, rel=1e-3)


def test_only_bars_that_came_again_are_compared() -> None:
    """Held bars before and new bars behind the overlap say nothing."""
    held = table([1.0] * 10 + list(PRICES))
    again = table([*times(0.5), *[777.0] * 10], FIRST + 10 * MINUTE)
    found = disagreement(held, again)
    assert found is not None
    assert (found.first, found.last) == (FIRST + 10 * MINUTE, FIRST + 15 * MINUTE)
    assert found.bars == 6


def test_one_overlapping_bar_is_enough() -> None:
    """A tail begins at the last held bar."""
    found = disagreement(table(PRICES), table([PRICES[-1] / 2, 50.0], FIRST + 5 * MINUTE))
    assert found == Disagreement(FIRST + 5 * MINUTE, FIRST + 5 * MINUTE, 1, 0.5)


def test_bars_that_do_not_overlap_say_nothing() -> None:
    """Nothing came again."""
    assert disagreement(table(PRICES), table(PRICES, FIRST + timedelta(hours=1))) is None
    assert disagreement(table([]), table(PRICES)) is None
    assert disagreement(table(PRICES), table([])) is None


def test_the_same_bars_agree() -> None:
    """Nor does a revised volume make a basis."""
    assert disagreement(table(PRICES), table(PRICES)) is None
    assert disagreement(table(PRICES), table(PRICES, volume=9_999.0)) is None


@pytest.mark.parametrize("ratio", [1.003, 0.997, 1.008])
def test_small_corrections_are_no_new_basis(ratio: float) -> None:
    """The smallest stock dividends are 1 %."""
    assert disagreement(table(PRICES), table([price * ratio for price in PRICES])) is None


@pytest.mark.parametrize("position", range(6))
def test_one_corrected_price_is_no_new_basis(position: int) -> None:
    """However far it is off."""
    again = list(PRICES)
    again[position] *= 0.5
    assert disagreement(table(PRICES), table(again)) is None
    assert disagreement(table(again), table(PRICES)) is None


def test_prices_that_moved_each_by_its_own_are_no_new_basis() -> None:
    """A basis is one ratio for all bars."""
    dice = np.random.default_rng(1)
    held = dice.uniform(50, 150, 200)
    again = held * dice.uniform(0.5, 1.5, 200)
    assert disagreement(table(held), table(again)) is None


def test_a_corrected_price_does_not_hide_a_new_basis() -> None:
    """Four of five bars and more tell of the split."""
    again = times(0.5, PRICES * 3)
    again[7] = 44.0
    found = disagreement(table(PRICES * 3), table(again))
    assert found is not None
    assert found.ratio == pytest.approx(0.5)
    assert found.bars == 18


def test_prices_that_are_not_positive_have_no_ratio() -> None:
    """Spreads and some futures trade at zero and below; nothing is divided by it."""
    held = [0.0, -2.5, -1.0, 0.0]
    assert disagreement(table(held), table([value * 2 for value in held])) is None
    mixed = disagreement(table([0.0, -1.0, *PRICES]), table([-3.0, 5.0, *times(0.5)]))
    assert mixed is not None
    assert mixed.bars == 6
    assert mixed.first == FIRST + 2 * MINUTE


def test_it_says_which_bars_and_what_to_do() -> None:
    """The text names moments, the ratio and the command."""
    found = disagreement(table(PRICES), table(times(0.5)))
    text = str(found)
    assert "6 held bars from 2024-06-03 13:30Z to 2024-06-03 13:35Z" in text
    assert "0.5 times" in text
    assert "--refresh" in text


@given(
    prices=st.lists(st.floats(20, 2000), min_size=1, max_size=30),
    ratio=st.sampled_from([2, 3, 4, 5, 7, 10, 15, 20, 1.5, 1.05, 1.1, 1.25]),
    is_reverse=st.booleans(),
)
def test_any_split_is_found(prices: list[float], ratio: float, is_reverse: bool) -> None:
    """Whatever the prices are."""
    factor = ratio if is_reverse else 1 / ratio
    found = disagreement(table(prices), table([price * factor for price in prices]))
    assert found is not None
    assert found.bars == len(prices)
    assert found.ratio == pytest.approx(factor)
