"""When bars show another price basis."""

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ktrdr_pipelines.domain.bars import BAR_SCHEMA, empty_bars
from ktrdr_pipelines.domain.price_basis import BasisComparison, BasisVerdict, compare_basis
from tests.support.price_series import (
    EXCHANGE,
    FIRST,
    UNROUNDED,
    Prices,
    random_prices,
    rounded,
)

MINUTE = timedelta(minutes=1)

FRACTIONS = (
    *((2, 1), (3, 1), (4, 1), (7, 1), (10, 1), (20, 1), (50, 1)),
    *((3, 2), (4, 3), (5, 4), (6, 5), (8, 7), (11, 10), (21, 20)),
)


def flat(closes: list[float], volumes: list[float | None]) -> pa.Table:
    """Return bars of one price each, with a count of trades where the volume is above 0."""
    rows = [
        {
            "ts": FIRST + number * MINUTE,
            "session_date": FIRST.date(),
            **dict.fromkeys(("open", "high", "low", "close"), close),
            "volume": volume,
            "bar_count": None if volume is None else int(volume > 0),
        }
        for number, (close, volume) in enumerate(zip(closes, volumes, strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=BAR_SCHEMA)


def compared(held: Prices, again: Prices) -> BasisComparison:
    """Compare two series."""
    return compare_basis(held.table(), again.table())


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """Return a random number whose logarithm is uniform."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def daily(rng: np.random.Generator, level: float, **other: Any) -> Prices:
    """Return five daily bars."""
    return random_prices(rng, 5, level=level, step_minutes=1440, change=0.02, **other)


def intraday(rng: np.random.Generator, level: float, **other: Any) -> Prices:
    """Return 10 to 60 bars of a minute, at least 5 of them traded."""
    count = int(rng.integers(10, 60))
    traded = float(rng.choice([1.0, 0.6, 0.2]))
    return random_prices(rng, count, level=level, change=0.001, traded=traded, **other)


def anything(rng: np.random.Generator, **other: Any) -> Prices:
    """Return up to 60 bars of any price, volume and liquidity."""
    values: dict[str, Any] = {
        "level": between(rng, 0.05, 5000),
        "change": between(rng, 0.0003, 0.05),
        "volume": between(rng, 1, 1e7),
        "traded": float(rng.choice([1.0, 0.6, 0.2])),
    }
    return random_prices(rng, int(rng.integers(1, 60)), **(values | other))


# Verdicts of a few bars


@pytest.mark.parametrize(
    ("closes", "volumes", "verdict"),
    [
        ([1.0], [1.0], BasisVerdict.SAME),
        ([1.005], [1.0], BasisVerdict.SAME),
        ([0.25], [4.0], BasisVerdict.UNCLEAR),
        ([0.25] * 2, [4.0] * 2, BasisVerdict.UNCLEAR),
        ([0.25] * 3, [4.0] * 3, BasisVerdict.REBASED),
        ([20.0] * 3, [0.05] * 3, BasisVerdict.REBASED),
        ([0.25] * 3, [1.0] * 3, BasisVerdict.OTHER),
        ([0.25] * 3, [0.25] * 3, BasisVerdict.OTHER),
        ([0.25] * 4, [4.0, 4.0, 1.0, 1.0], BasisVerdict.OTHER),
        ([0.25] * 5, [4.0, 4.0, 4.0, 4.0, 1.0], BasisVerdict.REBASED),
        ([0.25] * 4 + [0.3], [4.0] * 5, BasisVerdict.REBASED),
        ([0.25] * 3 + [0.3], [4.0] * 4, BasisVerdict.UNCLEAR),
        ([0.25] * 2 + [1.0] * 2, [4.0] * 2 + [1.0] * 2, BasisVerdict.UNCLEAR),
        ([1.0] * 4 + [0.25], [1.0] * 5, BasisVerdict.SAME),
        ([1.0] * 3 + [1.3, 0.8], [1.0] * 5, BasisVerdict.SAME),
        ([1.0, 1.3], [1.0] * 2, BasisVerdict.UNCLEAR),
        ([1.008] * 5, [1 / 1.008] * 5, BasisVerdict.SAME),
        ([1.01] * 5, [1 / 1.01] * 5, BasisVerdict.REBASED),
        ([1.2, 0.8, 1.1, 0.9, 1.3], [1.0] * 5, BasisVerdict.UNCLEAR),
        ([100.0] * 3, [1.0] * 3, BasisVerdict.UNIT),
        ([100.0] * 3, [0.01] * 3, BasisVerdict.UNIT),
        ([0.01] * 3, [1.0] * 3, BasisVerdict.UNIT),
        ([0.01] * 3, [7.0] * 3, BasisVerdict.UNIT),
        ([100.0] * 2, [1.0] * 2, BasisVerdict.UNCLEAR),
        ([99.0] * 3, [1 / 99] * 3, BasisVerdict.REBASED),
    ],
)
def test_ratios_of_prices_and_volumes_give_a_verdict(
    closes: list[float], volumes: list[float], verdict: BasisVerdict
) -> None:
    """Prices around 200, volumes around a million."""
    prices = [200.0 + 3.01 * number for number in range(len(closes))]
    sizes = [1e6 + 7e4 * number for number in range(len(closes))]
    held = flat(prices, list(sizes))
    new = np.round(np.multiply(prices, closes), 2), np.round(np.multiply(sizes, volumes))
    assert compare_basis(held, flat(*(one.tolist() for one in new))).verdict is verdict


def test_nothing_in_common_is_unknown() -> None:
    """The same holds where no price in common is positive."""
    bars = flat([10.0, 11.0], [100.0, 100.0])
    unknown = BasisComparison(BasisVerdict.UNKNOWN)
    assert compare_basis(empty_bars(), empty_bars()) == unknown
    assert compare_basis(bars, empty_bars()) == unknown
    assert compare_basis(bars.slice(0, 1), bars.slice(1)) == unknown
    oil = flat([-37.0, 0.0, float("nan")], [100.0] * 3)
    assert compare_basis(oil, oil) == unknown


def test_a_comparison_states_its_bars_and_its_ratio() -> None:
    """Only bars in common and traded are compared; a further column changes nothing."""
    held = flat([100.0, 104.0, 108.0, 108.0, 112.0], [1e5, 2e5, 3e5, 0.0, 4e5])
    again = flat([25.0, 26.0, 27.0, 27.0, 28.0], [4e5, 8e5, 12e5, 0.0, 16e5])
    expected = BasisComparison(
        BasisVerdict.REBASED, 0.25, 3, FIRST + MINUTE, FIRST + 4 * MINUTE, is_constant=True
    )
    found = compare_basis(held.slice(1), again)
    assert replace(found, precision=0.0) == expected
    # Half a cent on either side of the highest prices.
    assert found.precision == pytest.approx(2 * (0.005 / 28 + 0.005 / 112))
    other = again.append_column("basis", pa.array([1] * 5))
    assert compare_basis(held.slice(1), other) == found
    unclear = compare_basis(held.slice(0, 2), again)
    assert (unclear.verdict, unclear.ratio) == (BasisVerdict.UNCLEAR, 0.25)
    reversed_ = compare_basis(again, held)
    assert (reversed_.verdict, reversed_.ratio, reversed_.bars) == (BasisVerdict.REBASED, 4.0, 4)
    same = compare_basis(held, held)
    assert (same.verdict, same.ratio, same.bars) == (BasisVerdict.SAME, 1.0, 4)


def test_a_unit_has_a_ratio_of_exactly_100() -> None:
    """Rounding of either side does not matter."""
    pounds = [1.234, 1.2555, 1.3111]
    pence = flat([123.4, 125.6, 131.1], [100.0] * 3)
    assert compare_basis(flat(pounds, [100.0] * 3), pence).ratio == 100.0
    assert compare_basis(pence, flat(pounds, [100.0] * 3)).ratio == 0.01


def test_bars_without_a_trade_never_give_a_rebasing() -> None:
    """They repeat an older price; but they speak against what one or two traded bars say."""
    held, again = [100.0] * 9, [25.0] * 9
    untraded = compare_basis(flat(held, [0.0] * 9), flat(again, [0.0] * 9))
    assert (untraded.verdict, untraded.bars) == (BasisVerdict.UNCLEAR, 9)
    sizes: list[float | None] = [0.0] * 7 + [400.0] * 2
    assert compare_basis(flat(held, sizes), flat(again, sizes)).verdict is BasisVerdict.UNCLEAR
    mixed = compare_basis(flat(held, sizes), flat([25.0] * 7 + [100.0] * 2, sizes))
    assert mixed.verdict is BasisVerdict.UNCLEAR
    same = compare_basis(flat(held, [0.0] * 9), flat(held, [0.0] * 9))
    assert same.verdict is BasisVerdict.SAME


def test_volumes_that_round_to_zero_still_show_a_reverse_split() -> None:
    """The count of trades tells such bars from those without a trade."""
    held = flat([10.0, 10.5, 11.0, 12.0], [20.0, 10.0, 24.0, 500.0])
    again = flat([500.0, 525.0, 550.0, 600.0], [0.0, 0.0, 0.0, 10.0])
    counted = again.set_column(8, BAR_SCHEMA.field("bar_count"), pa.array([1] * 4, pa.int32()))
    found = compare_basis(held, counted)
    assert (found.verdict, found.ratio, found.bars) == (BasisVerdict.REBASED, 50.0, 4)


def test_prices_alone_decide_where_there_are_no_volumes() -> None:
    """A few bars of a low price may agree by chance; more of them do not."""
    nothing: list[float | None] = [None] * 6
    high = [60.0, 61.5, 62.1, 63.0, 61.2, 60.9]
    found = compare_basis(flat(high, nothing), flat([one / 3 for one in high], nothing))
    assert (found.verdict, found.ratio) == (BasisVerdict.REBASED, 1 / 3)
    low = compare_basis(
        flat([0.31, 0.30, 0.32], nothing[:3]), flat([0.34, 0.33, 0.35], nothing[:3])
    )
    assert low.verdict is BasisVerdict.UNCLEAR


# No split is missed


def true_split(rng: np.random.Generator) -> tuple[float, bool]:
    """Return a ratio from 1.05 to 50 or its inverse, and whether it is a simple fraction."""
    is_simple = rng.random() < 0.6
    p, q = FRACTIONS[rng.integers(len(FRACTIONS))]
    ratio = p / q if is_simple else between(rng, 1.05, 50)
    return (ratio if rng.random() < 0.5 else 1 / ratio), is_simple


def half_ticks(prices: np.ndarray) -> np.ndarray:
    """Return half a tick of each price."""
    return np.where(prices < 1, 0.0001, 0.01) / 2


@pytest.mark.parametrize("series", [daily, intraday])
@pytest.mark.parametrize("tick", [EXCHANGE, UNROUNDED])
def test_no_split_is_missed(series: Callable[..., Prices], tick: float | None) -> None:
    """The ratio gives each price within half a tick of what the gateway returned."""
    rng = np.random.default_rng(20)
    for _ in range(500):
        ratio, is_simple = true_split(rng)
        held = series(rng, between(rng, 0.5, 5000), volume=between(rng, 200, 1e7))
        again = held.rebased(ratio, tick)
        found = compared(held, again)
        traded = held.volume > 0
        assert (found.verdict, found.bars) == (BasisVerdict.REBASED, traded.sum()), (ratio, held)
        distance = np.abs(found.ratio * held.prices - again.prices)[:, traded]
        allowed = half_ticks(again.prices[:, traded]) if tick is EXCHANGE else 0.0
        assert np.all(distance <= allowed + again.prices[:, traded] * 2e-9), (ratio, found)
        if tick == UNROUNDED and is_simple and len(np.unique(held.prices[:, traded])) > 2:
            assert found.ratio == pytest.approx(ratio, rel=1e-15)


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_a_simple_ratio_is_found_exactly(fraction: tuple[int, int]) -> None:
    """Both ways, from five daily bars around 200."""
    rng = np.random.default_rng(21)
    p, q = fraction
    for ratio in (p / q, q / p) * 10:
        held = daily(rng, between(rng, 150, 300))
        assert compared(held, held.rebased(ratio)).ratio == ratio


@pytest.mark.parametrize("ratio", [150.0, 1 / 150, 1000.0, 1 / 1000, 103 / 100, 100 / 103])
def test_rare_ratios_are_found_exactly(ratio: float) -> None:
    """Reverse splits of penny stocks, and stock dividends."""
    held = daily(np.random.default_rng(22), 250_000.0, volume=1e7)
    found = compared(held, held.rebased(ratio))
    assert (found.verdict, found.ratio) == (BasisVerdict.REBASED, ratio)


def test_no_split_is_missed_where_some_bars_are_corrected() -> None:
    """Up to a fifth of the bars, by prices and volumes."""
    rng = np.random.default_rng(23)
    for _ in range(300):
        ratio, _ = true_split(rng)
        held = random_prices(rng, 20, level=between(rng, 1, 5000), volume=between(rng, 1e4, 1e7))
        corrected = rng.permutation(20) < rng.integers(1, 5)
        found = compared(held, held.rebased(ratio).corrected(rng, corrected))
        assert found.verdict is BasisVerdict.REBASED, (ratio, held)
        assert found.ratio == pytest.approx(ratio, rel=0.02)


def test_no_split_is_missed_where_volumes_changed_a_little() -> None:
    """By less than a third of the ratio's distance from 1, and 4 %."""
    rng = np.random.default_rng(24)
    for _ in range(300):
        ratio, _ = true_split(rng)
        held = daily(rng, between(rng, 5, 5000), volume=1e6)
        again = held.rebased(ratio)
        size = min(0.04, abs(math.log(ratio)) / 4)
        changed = np.round(again.volume * (1 + rng.uniform(-size, size, 5)))
        assert compared(held, replace(again, volume=changed)).verdict is BasisVerdict.REBASED


def test_no_split_is_missed_without_volumes() -> None:
    """Midpoints from 5 on."""
    rng = np.random.default_rng(25)
    for _ in range(300):
        ratio, _ = true_split(rng)
        held = replace(daily(rng, between(rng, 5, 5000)), volume=None, bar_count=None)
        assert compared(held, held.rebased(ratio)).verdict is BasisVerdict.REBASED, (ratio, held)


@pytest.mark.parametrize(
    ("held_tick", "new_tick", "level"),
    [(1.0, 1.0, 3000.0), (5.0, 1.0, 20_000.0), (0.05, 0.05, 30.0), (0.01, 0.05, 30.0)],
)
@pytest.mark.parametrize("ratio", [0.2, 2 / 3, 3.0])
def test_coarser_ticks_are_recognised(
    held_tick: float, new_tick: float, level: float, ratio: float
) -> None:
    """Yen without decimals, and prices in steps of 0.05."""
    rng = np.random.default_rng(26)
    for _ in range(50):
        held = daily(rng, level, tick=held_tick)
        found = compared(held, held.rebased(ratio, new_tick))
        assert found.verdict is BasisVerdict.REBASED
        assert found.ratio == pytest.approx(ratio, rel=0.001)


@pytest.mark.parametrize("factor", [0.25, 1 / 7, 1 / 1.05, 1.31, 20.0])
@pytest.mark.parametrize("is_exact", [True, False])
def test_products_are_compared_by_the_tick_of_their_older_basis(
    factor: float, is_exact: bool
) -> None:
    """Whether the stored prices were exact, or already rounded after a split."""
    rng = np.random.default_rng(27)
    for _ in range(100):
        raw = daily(rng, between(rng, 2, 1000), tick=EXCHANGE if is_exact else UNROUNDED)
        stored = rounded(raw.prices, EXCHANGE)
        served = replace(raw, prices=stored * factor, volume=raw.volume / factor)
        unchanged = compared(served, raw.rebased(factor))
        assert (unchanged.verdict, unchanged.ratio) == (BasisVerdict.SAME, 1.0)
        found = compared(served, raw.rebased(factor * 0.5))
        assert found.verdict is BasisVerdict.REBASED
        assert found.ratio == pytest.approx(0.5, rel=0.01)


# The limit: rounding hides small ratios of small prices, and of small volumes


@pytest.mark.parametrize("ratio", [1.05, 1 / 1.05])
@pytest.mark.parametrize("tick", [0.01, 0.0001])
def test_a_ratio_hides_in_prices_that_move_by_less_than_a_tick_and_a_half(
    ratio: float, tick: float
) -> None:
    """At 1.05 that is a price of 30 ticks: $0.30 at a tick of 0.01, $0.003 at 0.0001."""
    rng = np.random.default_rng(28)
    limit = 1.5 / abs(ratio - 1)  # in ticks
    nothing = np.full(5, 1.0)
    for _ in range(200):
        for low, high, verdict in (
            (limit / 2, limit * 0.999, BasisVerdict.SAME),
            (limit * 1.001 + 1, limit * 2, BasisVerdict.REBASED),
        ):
            steps = rng.integers(math.ceil(low), math.floor(high) + 1, (4, 5))
            prices = np.sort(steps, axis=0)[[1, 3, 0, 2]] * tick
            volume = np.round(1e6 * rng.uniform(0.5, 2, 5))
            held = Prices(np.arange(5), np.round(prices, 10), volume, nothing)
            found = compared(held, held.rebased(ratio, tick))
            assert found.verdict is verdict, (held, found)


@pytest.mark.parametrize("volume", [5.0, 20.0])
@pytest.mark.parametrize("ratio", [1.05, 1 / 1.05])
@pytest.mark.parametrize(
    ("price", "verdict"), [(100.0, BasisVerdict.REBASED), (1.3, BasisVerdict.UNCLEAR)]
)
def test_prices_decide_where_volumes_say_little(
    price: float, verdict: BasisVerdict, ratio: float, volume: float
) -> None:
    """If they are exact enough for a constant ratio to be no chance."""
    held = daily(np.random.default_rng(29), price)
    held = replace(held, volume=np.full(5, volume))
    found = compared(held, held.rebased(ratio))
    assert (found.verdict, found.bars) == (verdict, 5)


# No split is found where there is none


def test_unchanged_series_are_the_same() -> None:
    """Any price, volume and liquidity, with gaps and jumps on either side."""
    rng = np.random.default_rng(30)
    for number in range(1000):
        bars = anything(rng, change=0.4) if number % 4 == 0 else anything(rng)
        parts = [bars.take(rng.random(len(bars.minutes)) < 0.7) for _ in range(2)]
        has_common = len(np.intersect1d(parts[0].minutes, parts[1].minutes)) > 0
        expected = BasisVerdict.SAME if has_common else BasisVerdict.UNKNOWN
        assert compared(*parts).verdict is expected
        assert compared(bars, bars).verdict is BasisVerdict.SAME


def some_restated(rng: np.random.Generator) -> tuple[Prices, Prices]:
    """Correct a share of the bars."""
    bars = anything(rng)
    rows = rng.random(len(bars.minutes)) < rng.choice([0.1, 0.3, 0.5, 0.8])
    return bars, bars.corrected(rng, rows, float(rng.choice([0.005, 0.03, 0.2])))


def all_restated(rng: np.random.Generator) -> tuple[Prices, Prices]:
    """Correct each price and volume by another amount."""
    bars = anything(rng)
    rows = np.ones(len(bars.minutes), dtype=bool)
    return bars, bars.corrected(rng, rows, float(rng.choice([0.002, 0.01, 0.03, 0.1, 0.3])))


def bars_restated(rng: np.random.Generator) -> tuple[Prices, Prices]:
    """Multiply the prices of each bar by another factor, and the volumes, if there are any."""
    count = int(rng.integers(3, 8))
    tick = float(rng.choice([0.01, 0.0001]))
    volume, level = between(rng, 1, 1e7), between(rng, 0.1, 100)
    bars = random_prices(rng, count, level=level, volume=volume, tick=tick)
    size = rng.choice([0.01, 0.03, 0.1, 0.3])
    factors = 1 + rng.uniform(-size, size, (2, count))
    prices = rounded(bars.prices * factors[0], tick)
    again = replace(bars, prices=prices, volume=np.round(bars.volume * factors[1]))
    if rng.random() < 0.5:
        return replace(bars, volume=None), replace(again, volume=None)
    return bars, again


def currency(rng: np.random.Generator) -> tuple[Prices, Prices]:
    """Correct a share of midpoints with five decimals."""
    bars = anything(rng, level=between(rng, 0.5, 150), tick=1e-5, change=0.0005)
    rows = rng.random(len(bars.minutes)) < 0.3
    again = bars.corrected(rng, rows, float(rng.choice([0.001, 0.02])))
    return replace(bars, volume=None), replace(again, volume=None)


def future_roll(rng: np.random.Generator) -> tuple[Prices, Prices]:
    """Return the next contract, at a spread or a nearly constant ratio."""
    bars = anything(rng, level=between(rng, 20, 5000), tick=0.25, change=0.003)
    prices = bars.prices * rng.choice([0.97, 1.01, 1.02, 1.05, 1.2])
    if rng.random() < 0.5:
        prices = bars.prices + bars.prices.mean() * rng.choice([-0.03, 0.02, 0.1])
    count = len(bars.minutes)
    volume = np.maximum(np.round(between(rng, 1, 1e6) * np.exp(rng.normal(0, 0.7, count))), 1)
    other = replace(bars, prices=rounded(prices, 0.25), volume=volume)
    return bars, replace(other, bar_count=np.ceil(volume / 50))


def lots(rng: np.random.Generator) -> tuple[Prices, Prices]:
    """Return volumes in lots at the same prices."""
    bars = anything(rng)
    return bars, replace(bars, volume=np.round(bars.volume / 100))


@pytest.mark.parametrize(
    "case",
    [some_restated, all_restated, bars_restated, currency, future_roll, lots],
)
def test_no_split_is_found_where_there_is_none(
    case: Callable[[np.random.Generator], tuple[Prices, Prices]],
) -> None:
    """Whatever else the verdict is."""
    rng = np.random.default_rng(31)
    for _ in range(400):
        held, again = case(rng)
        assert compared(held, again).verdict is not BasisVerdict.REBASED, (held, again)


def test_corrections_of_some_bars_stay_the_same_basis() -> None:
    """As do corrections of all bars that are smaller than the least dividend."""
    rng = np.random.default_rng(32)
    for _ in range(300):
        bars = random_prices(rng, 20, level=between(rng, 1, 5000))
        rows = rng.permutation(20) < 6
        assert compared(bars, bars.corrected(rng, rows, 0.2)).verdict is BasisVerdict.SAME
        everything = np.ones(20, dtype=bool)
        slight = bars.corrected(rng, everything, 0.005)
        assert compared(bars, slight).verdict is BasisVerdict.SAME


def test_corrections_that_look_like_a_small_ratio_are_no_split() -> None:
    """Prices of few ticks and volumes, each within what is tolerated of 1/1.0237."""
    sizes = [151_114.0, 254_124.0, 262_462.0, 241_178.0, 828_316.0]
    larger = [153_255.0, 260_796.0, 269_852.0, 247_533.0, 844_754.0]
    held = flat([0.63, 0.64, 0.65, 0.64, 0.64], list(sizes))
    again = flat([0.62, 0.63, 0.64, 0.62, 0.63], list(larger))
    assert compare_basis(held, again).verdict is not BasisVerdict.REBASED
