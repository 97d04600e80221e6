"""Detect that prices were re-based: compare bars that were returned again with the held ones.

IB serves trades adjusted for the splits known on the day of the request. So bars that were fetched
before a split differ from the same bars fetched after it: their prices by a constant ratio, their
volumes by its inverse. Both fetches rounded to a tick, which hides small ratios of small prices and
lets a ratio be known only as an interval.

Not here: what follows for bars of an older basis (``domain.adjustments``), volumes in another unit
at the same prices (``domain.volume_units``), when bars are compared (``sync.engine.basis_check``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple, Self

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.domain.bars import is_untraded, moment, timestamps

FEWEST_BARS: Final = 3
"""Fewest bars that must agree on a ratio other than 1, and fewest whose volumes must show it: one
or two are corrected together at times."""

_MOST_ALIKE: Final = 0.8
"""Share of the compared bars that must agree: single bars are corrected after the close."""

LEAST_CHANGE: Final = 0.009
"""Change of price from which a basis is another one: the smallest stock dividends are 1 %,
corrections of single prices are smaller."""

_UNITS: Final = (100.0, 0.01)
_MOST_UNIT_WIDTH: Final = 0.2
"""Relative width up to which an interval with a unit's ratio in it is a change of unit; a wider one
says too little (a price of one or two ticks)."""

_NOISE: Final = 1e-9
"""Relative error of a price that was calculated: far above that of floats, far below any tick."""

_USUAL_DECIMALS, _LOW_PRICE, _LOW_DECIMALS = 2, 1.0, 4
"""Prices have two decimals; below 1 exchanges use four."""

_MOST_DECIMALS: Final = 8
"""Decimals beyond which a value counts as not rounded at all."""

_CHANCE: Final = 1e-4
"""Greatest probability of chance: that values lie on a step coarser than their decimals, and that
corrections by differing amounts look like a constant ratio."""

_MOST_COMPLEX: Final = 11_000
"""Greatest product of the numbers of a fraction: 107 for 100 and 1 for 1,000 are allowed."""

_MOST_CROWDED: Final = 0.3
"""Greatest relative width of an interval, times the numbers of the fraction found in it: about one
interval in ten holds a fraction as simple by chance, and there it fits the compared bars, too."""

_VOLUME_ERROR: Final = 0.05
"""Relative change of a volume by corrections after the close that still counts as none; near 1, a
third of the ratio's distance from 1, so that the two stay apart."""

_PRICES: Final = ("open", "high", "low", "close")
_CLOSE: Final = 3


class BasisVerdict(StrEnum):
    """What bars that were returned again say of the price basis of the held ones."""

    UNKNOWN = "unknown"
    """No bar in common says anything."""
    SAME = "same"
    """The basis is the same; single bars may be corrected."""
    UNCLEAR = "unclear"
    """Too few bars, or no constant ratio: neither the same basis nor a re-basing."""
    REBASED = "rebased"
    """The prices differ by a constant ratio and the volumes by its inverse: another basis."""
    UNIT = "unit"
    """The prices differ by 100 or 1/100, whatever the volumes do: a change of unit."""
    OTHER = "other"
    """The prices differ by a constant ratio, but the volumes not by its inverse."""


@dataclass(frozen=True, slots=True)
class BasisComparison:
    """The result of comparing bars that were returned again with the held ones.

    ``ratio`` is the new price over the held one: 1 for SAME and UNKNOWN, the median for UNCLEAR.
    ``bars`` were compared, the first and the last of them at ``first`` and ``last``.
    ``is_constant``: at least 80 % of them, and 3, allow one ratio; where they do not, and the
    verdict is UNCLEAR, the bars were corrected by differing amounts. ``precision`` is by how much,
    as a share, the ratio may differ from the true one, because prices are rounded.
    """

    verdict: BasisVerdict
    ratio: float = 1.0
    bars: int = 0
    first: datetime | None = None
    last: datetime | None = None
    is_constant: bool = False
    precision: float = 0.0


def compare_basis(
    held: pa.Table, again: pa.Table, times: np.ndarray | None = None
) -> BasisComparison:
    """Return whether bars that were returned again are on the price basis of the held ones.

    Bars with the same ``ts`` and positive prices are compared; of them only the traded ones, or if
    there is none those without a volume on either side. Each price allows an interval of ratios, as
    both sides may be rounded by half a tick; a bar allows what its four prices allow.

    A ratio other than 1 that at least 3 bars and 80 % of them allow is a change. It is REBASED if
    at least 3 volumes show its inverse rather than 1, and at most 20 % contradict it, or if there
    are no volumes; and if corrections by differing amounts can hardly look like it.

    ``ratio`` is then a point that every agreeing bar allows: a simple fraction, exactly ``p / q``,
    where its being there is no chance, else the middle. Times the held prices of these bars it is
    within half a tick of the new ones, or half a tick of either side where held prices were
    rounded, too.

    Limit: with one tick on both sides, bars whose prices all move by less than 1.5 ticks are SAME
    (a ratio of 1/1.05 up to a price of 31 ticks: $0.31 at a tick of 0.01, $0.0031 at 0.0001), and a
    volume that moves by less than about 2 shares says nothing: prices alone are then UNCLEAR.

    Args:
        held: stored bars on the basis that the store serves, sorted and unique by timestamp, with
            the columns of ``BAR_SCHEMA``; prices and volumes may be products.
        again: bars of a response, likewise, without bars that may be clipped.
        times: the factor of the prices of each held bar, of shape (n,), by whose multiples they
            were rounded; None for 1.
    """
    pairs = _Pairs.of(held, again, np.ones(held.num_rows) if times is None else times)
    if not len(pairs.keys):
        return BasisComparison(BasisVerdict.UNKNOWN)
    counted = pairs.counted()
    bars = pairs.take(counted)
    ticks = _tick_hypotheses(pairs, counted)
    narrow, wide = _fits(bars, [one.take(counted) for one in ticks])
    ratio = narrow.ratio
    verdict = _verdict(bars, narrow, wide)
    near = _is_near(pairs, ticks[-1])
    if verdict is BasisVerdict.UNCLEAR and np.mean(near[counted]) > 1 / 2:
        verdict = BasisVerdict.SAME  # most bars are the same, too many are corrected to agree
    if verdict is BasisVerdict.SAME and len(bars.keys) < FEWEST_BARS and np.mean(near) <= 1 / 2:
        verdict = BasisVerdict.UNCLEAR  # bars that are not counted speak against it
    if verdict is BasisVerdict.UNCLEAR:
        ratio = float(np.median(bars.again[_CLOSE] / bars.held[_CLOSE]))
    elif verdict is BasisVerdict.SAME:
        ratio = 1.0
    elif verdict is BasisVerdict.UNIT:
        ratio = next(one for one in _UNITS if narrow.allows(one))
    first, last = moment(int(bars.keys[0])), moment(int(bars.keys[-1]))
    agreeing = max(FEWEST_BARS, _MOST_ALIKE * len(bars.keys))
    is_constant = narrow.agreeing >= agreeing
    return BasisComparison(
        verdict, ratio, len(bars.keys), first, last, is_constant, _precision(bars)
    )


def _precision(bars: "_Pairs") -> float:
    """Return the relative width of the ratios that the dearest bar allows at usual ticks."""
    halves = [
        np.where(prices[_CLOSE] < _LOW_PRICE, 10.0**-_LOW_DECIMALS, 10.0**-_USUAL_DECIMALS)
        / prices[_CLOSE]
        for prices in (bars.held, bars.again)
    ]
    return float(np.min(halves[0] + halves[1]))


class _Pairs(NamedTuple):
    """Bars in common: timestamps (n), prices (4, n) and volumes (n, NaN where null) of both.

    ``times`` (n) is the factor by which the held prices were multiplied.
    """

    keys: np.ndarray
    held: np.ndarray
    again: np.ndarray
    old_volume: np.ndarray
    new_volume: np.ndarray
    untraded: np.ndarray
    times: np.ndarray

    @classmethod
    def of(cls, held: pa.Table, again: pa.Table, times: np.ndarray) -> Self:
        """Match bars by timestamp; those with a price that is not positive are left out."""
        keys, mine, its = np.intersect1d(
            timestamps(held), timestamps(again), assume_unique=True, return_indices=True
        )
        old, new = (
            np.array([_column(bars, name)[rows] for name in _PRICES])
            for bars, rows in ((held, mine), (again, its))
        )
        usable = ((old > 0) & (new > 0) & np.isfinite(old) & np.isfinite(new)).all(axis=0)
        volumes = _column(held, "volume")[mine], _column(again, "volume")[its]
        untraded = is_untraded(held)[mine] | is_untraded(again)[its]
        return cls(keys, old, new, *volumes, untraded, times[mine]).take(usable)

    def take(self, mask: np.ndarray) -> Self:
        """Return some of the bars."""
        return type(self)(*(one[..., mask] for one in self))

    def counted(self) -> np.ndarray:
        """Return which bars decide: the traded ones, else those without volumes, else all."""
        unknown = np.isnan(self.old_volume), np.isnan(self.new_volume)
        traded = ~(unknown[0] | unknown[1] | self.untraded)
        if traded.any():
            return np.asarray(traded)
        quoted = unknown[0] & unknown[1]
        return np.asarray(quoted if quoted.any() else ~traded)


class _Halves(NamedTuple):
    """By how much held and new prices may be rounded, each of shape (4, n)."""

    held: np.ndarray
    again: np.ndarray

    def take(self, mask: np.ndarray) -> "_Halves":
        return _Halves(self.held[:, mask], self.again[:, mask])


class _Fit(NamedTuple):
    """The ratios that the greatest number of bars allow.

    An interval and its best point; how many bars allow it, and how many allow 1; and the least and
    the greatest ratio that each bar allows, of shape (n).
    """

    low: float
    high: float
    ratio: float
    agreeing: int
    allow_one: int
    lows: np.ndarray
    highs: np.ndarray

    def allows(self, ratio: float) -> bool:
        return self.low <= ratio <= self.high


def _verdict(bars: _Pairs, narrow: _Fit, wide: _Fit) -> BasisVerdict:
    """Return what the bars that count say, by themselves."""
    least = _MOST_ALIKE * len(bars.keys)
    is_constant = narrow.agreeing >= least
    is_change = (
        is_constant
        and narrow.agreeing >= FEWEST_BARS
        and narrow.allow_one < narrow.agreeing
        and abs(narrow.ratio - 1) >= LEAST_CHANGE
    )
    volumes = _volumes(bars, narrow) if is_change else None
    # Inverse volumes decide where rounding leaves it open whether the ratio is 1.
    if volumes is not BasisVerdict.REBASED and (
        wide.allow_one >= least or (is_constant and abs(narrow.ratio - 1) < LEAST_CHANGE)
    ):
        return BasisVerdict.SAME
    if volumes is None or np.sum(~bars.untraded) < FEWEST_BARS:
        return BasisVerdict.UNCLEAR
    is_narrow = narrow.high <= narrow.low * (1 + _MOST_UNIT_WIDTH)
    if is_narrow and any(narrow.allows(one) for one in _UNITS):
        return BasisVerdict.UNIT
    if volumes is BasisVerdict.UNCLEAR or (
        np.isnan(bars.old_volume).all() and np.isnan(bars.new_volume).all()
    ):
        is_chance = _chance(wide.lows, wide.highs, narrow.ratio) > _CHANCE
        return BasisVerdict.UNCLEAR if is_chance else BasisVerdict.REBASED
    return volumes


def _is_near(pairs: _Pairs, halves: _Halves) -> np.ndarray:
    """Return for each bar whether the ratio of its closes is 1, except for what is tolerated."""
    low, high = _allowed(pairs, halves)
    return np.asarray((low[_CLOSE] < 1 + LEAST_CHANGE) & (high[_CLOSE] > 1 - LEAST_CHANGE))


# Intervals of ratios


def _allowed(pairs: _Pairs, halves: _Halves) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the greatest ratio that each price allows, both of shape (4, n)."""
    return _quotients(pairs.held, pairs.again, halves.held, halves.again)


def _quotients(
    old: np.ndarray, new: np.ndarray, old_half: np.ndarray, new_half: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the greatest quotient of values that were rounded; inf for over 0."""
    above, below = old + old_half, old - old_half
    low, high = np.zeros_like(old), np.full_like(old, np.inf)
    np.divide(np.maximum(new - new_half, 0), above, out=low, where=above > 0)
    np.divide(new + new_half, below, out=high, where=below > 0)
    return low, high


def _fits(bars: _Pairs, hypotheses: Sequence[_Halves]) -> tuple[_Fit, _Fit]:
    """Return the narrowest fit on which as many bars agree as on the widest one, and the widest.

    The widest allows for all rounding there may be; prices that were rounded less say more.
    """
    wide = _fit(bars, hypotheses[-1])
    for halves in hypotheses[:-1]:
        fit = _fit(bars, halves)
        if fit.agreeing == wide.agreeing:
            return fit, wide
    return wide, wide


def _fit(bars: _Pairs, halves: _Halves) -> _Fit:
    """Return the interval of ratios that the greatest number of bars allow."""
    lows, highs = _allowed(bars, halves)
    low, high = lows.max(axis=0), highs.min(axis=0)
    median = float(np.median(bars.again[_CLOSE] / bars.held[_CLOSE]))
    allow_one = int(np.sum((low <= 1) & (high >= 1)))
    agree = _agreeing(low, high, median)
    if not agree.any():  # each bar contradicts itself
        return _Fit(median, median, median, 0, allow_one, low, high)
    interval = float(low[agree].max()), float(high[agree].min())
    # Stored prices of an exchange are exact: only the response was rounded, which says more. It is
    # not so, and the interval is empty, where held prices were adjusted, too.
    old = bars.held[:, agree]
    exact = _quotients(old, bars.again[:, agree], old * _NOISE, halves.again[:, agree])
    tight = float(exact[0].max()), float(exact[1].min())
    ratio = _best_ratio(*(tight if tight[0] <= tight[1] else interval))
    return _Fit(*interval, ratio, int(agree.sum()), allow_one, low, high)


def _agreeing(low: np.ndarray, high: np.ndarray, near: float) -> np.ndarray:
    """Return the greatest set of bars that allow one ratio; of several the one nearest to a ratio.

    Args:
        low: the least ratio that each bar allows.
        high: the greatest one; below ``low`` if a bar allows none.
        near: a ratio.
    """
    valid = low <= high
    if not valid.any():
        return valid
    # The greatest number is reached at the low end of a bar's interval, among others.
    points = np.sort(low[valid])
    numbers = np.arange(1, len(points) + 1) - np.searchsorted(np.sort(high[valid]), points)
    best = points[numbers == numbers.max()]
    point = best[np.argmin(np.abs(best - near))]
    return np.asarray(valid & (low <= point) & (high >= point))


def _chance(low: np.ndarray, high: np.ndarray, ratio: float) -> float:
    """Return the probability that corrections by about as much as a ratio agree on it by chance.

    One bar, the least certain, sets the ratio; each other one meets it with a probability of the
    width of what it allows, as a share of the ratio's distance from 1.
    """
    agree = _agreeing(low, high, ratio)
    change = abs(ratio - 1) * min(1, ratio)
    shares = np.sort(np.minimum(1, (high - low)[agree] / change))
    return float(np.prod(shares[:-1]))


def _best_ratio(low: float, high: float) -> float:
    """Return the simplest fraction in an interval if it is no chance, else the middle.

    The distance from ``p / q`` to the next fraction as simple is about ``1 / (p * q)`` of it.
    """
    if not 0 < low <= high < np.inf:
        return low
    below = np.arange(1, _MOST_COMPLEX + 1)
    above = np.ceil(low * below)
    found = np.flatnonzero(above <= high * below)
    if len(found):
        p, q = int(above[found[0]]), int(below[found[0]])
        if p * q <= _MOST_COMPLEX and p * q * (high / low - 1) <= _MOST_CROWDED:
            return p / q
    return (low + high) / 2


# Ticks


def _tick_hypotheses(pairs: _Pairs, counted: np.ndarray) -> list[_Halves]:
    """Return by how much prices may be rounded, from the narrowest hypothesis to the widest."""
    stored = _price_ticks(pairs.held / pairs.times)
    sides = [
        (pairs.held, [ticks * pairs.times for ticks in stored]),
        (pairs.again, _price_ticks(pairs.again)),
    ]
    found = [
        _Halves(*(prices * _NOISE + ticks[width] / 2 for prices, ticks in sides))
        for width in (0, 1)
    ]
    # A few equal ratios happen by chance, as when one price repeats.
    if min(len(np.unique(prices[:, counted])) for prices, _ in sides) >= FEWEST_BARS:
        found.insert(0, _Halves(*(prices * _NOISE for prices, _ in sides)))
    return found


def _price_ticks(prices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the finer and the coarser tick that each price may have."""
    fine, coarse = np.zeros_like(prices), np.zeros_like(prices)
    _, step = _ticks(prices, _LOW_DECIMALS, _LOW_DECIMALS)  # of products, which have no levels
    for rows, decimals in (
        (prices < _LOW_PRICE, _LOW_DECIMALS),
        (prices >= _LOW_PRICE, _USUAL_DECIMALS),
    ):
        fine[rows], coarse[rows] = _ticks(prices[rows], decimals, _USUAL_DECIMALS)
    return fine, np.maximum(coarse, step)


def _ticks(values: np.ndarray, decimals: int, usual: int) -> tuple[float, float]:
    """Return the finer and the coarser tick that values may be rounded to; 0 is not rounded.

    The finer one follows from the decimals of most values. The coarser one is the step that all of
    them have in common: whole yen, five cents, or the tick of an older basis times a factor.

    Args:
        values: numbers above 0.
        decimals: the fewest decimals that the finer tick has, however round the values.
        usual: decimals of a tick that is usual enough to be the coarser one without evidence.
    """
    values = np.unique(values)
    if not len(values):
        return 0.0, 0.0
    fine = 0.0
    for count in range(decimals, _MOST_DECIMALS + 1):
        if np.mean(_is_on_grid(values, count)) >= _MOST_ALIKE:
            fine = 10.0**-count
            break
    coarse = fine
    if fine and _is_on_grid(values, usual).all():
        coarse = max(fine, 10.0**-usual)
    return fine, max(coarse, _common_step(values, fine))


def _is_on_grid(values: np.ndarray, decimals: int) -> np.ndarray:
    scaled = values * 10.0**decimals
    return np.asarray(np.abs(scaled - np.round(scaled)) <= 1e-6 + scaled * 1e-12)


def _common_step(values: np.ndarray, fine: float) -> float:
    """Return the greatest step that sorted values have in common, or 0 if it may be chance."""
    noise = float(values[-1]) * _NOISE
    unit = max(fine, 100 * noise)
    differences = np.diff(values)
    differences = differences[differences > noise]
    step = 0.0
    for difference in differences.tolist():
        rest = difference
        while step > noise:  # Euclid's algorithm; the rest nearest to 0, as products have noise
            rest, step = step, abs(rest - round(rest / step) * step)
        step = difference / round(difference / rest)  # the algorithm multiplies the noise
        if step < 1.5 * unit:
            return 0.0
    is_chance = not step or (step / unit) ** -float(len(differences)) > _CHANCE
    return 0.0 if is_chance else step


# Volumes


def _volumes(bars: _Pairs, fit: _Fit) -> BasisVerdict:
    """Return REBASED if volumes are inverse to prices, OTHER if not, UNCLEAR if they say little."""
    old, new = bars.old_volume, bars.new_volume
    tolerance = 1 + min(_VOLUME_ERROR, abs(np.log(fit.ratio)) / 3)
    stored = old * bars.times
    sides = [_ticks(one[one > 0], 0, 0) for one in (stored, new)]
    for width in (0, 1):
        halves = [
            np.full_like(old, ticks[width] / 2) / factor
            for ticks, factor in zip(sides, (bars.times, 1.0), strict=True)
        ]
        # As ratios of prices: the held volume over the new one.
        low, high = _quotients(new, old, *reversed(halves))
        is_inverse = (low / tolerance <= fit.high) & (high * tolerance >= fit.low)
        if np.mean(is_inverse) < _MOST_ALIKE:
            continue
        is_same = (low / tolerance <= 1) & (high * tolerance >= 1)
        chance = min(
            _chance(np.maximum(low / one, fit.lows), np.minimum(high * one, fit.highs), fit.ratio)
            for one in (1.0, tolerance)
        )
        is_shown = np.sum(is_inverse & ~is_same) >= FEWEST_BARS and chance <= _CHANCE
        return BasisVerdict.REBASED if is_shown else BasisVerdict.UNCLEAR
    return BasisVerdict.OTHER


def _column(bars: pa.Table, name: str) -> np.ndarray:
    """Return a column as float64, NaN where it is null."""
    return np.asarray(bars[name].to_numpy(zero_copy_only=False), dtype=np.float64)
