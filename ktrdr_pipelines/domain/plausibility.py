"""Detect bars that can hardly be right, and the record of bars that differ from held ones.

One response does not distinguish an error of the gateway from its data. So bars with implausible
values are requested once more, and values that are returned twice are kept, with a *finding* that
records it.

Not here: prices on another basis (``domain.price_basis``), volumes in another unit
(``domain.volume_units``).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.domain.bars import VALUES, micros, moment, timestamps
from ktrdr_pipelines.domain.instruments import SecType
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.responses import Response


class DisagreementKind(StrEnum):
    """What differs by a constant ratio.

    ``price``: held bars were returned again at other prices, and it is no re-basing. ``unit``: the
    same, at 100 times their prices or a hundredth of them. ``volume``: the volumes
    (``domain.volume_units``).
    """

    PRICE = "price"
    UNIT = "unit"
    VOLUME = "volume"


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Bars that disagree with others by a constant ratio.

    For prices, held bars were returned again and ``ratio`` is the new close over the held one; for
    a unit, ``first`` is the first bar in the new one. For volumes it is the same, or the bars
    follow others, and ``ratio`` is their volume over that of the others.
    """

    first: datetime
    last: datetime
    bars: int
    ratio: float
    kind: DisagreementKind = DisagreementKind.PRICE

    def text_for(self, series: object) -> str:
        """Return the extent, the ratio, and the command that requests the series again."""
        symbol = str(series).split(maxsplit=1)[0]
        if self.kind is DisagreementKind.VOLUME:
            unit, other = ("shares", "lots of 100") if self.ratio > 1 else ("lots of 100", "shares")
            factor = "100" if self.ratio > 1 else "0.01"
            return (
                f"the volumes of {self.bars} bars from {self.first:%Y-%m-%d %H:%MZ} to "
                f"{self.last:%Y-%m-%d %H:%MZ} are {self.ratio:.4g} times what they were before, or "
                f"what those of the sessions before are, at the same prices: they seem to be in "
                f"{unit}, the others in {other}. All bars are kept as returned. Hint: set the "
                f"gateway to report volumes in one unit; `ktrdr load {series} --refresh` "
                f"requests all of it again, or `ktrdr adjust {symbol} --ratio 1 --volume-ratio "
                f"{factor} --from {self.first:%Y-%m-%d} --note TEXT` multiplies those before"
            )
        if self.kind is DisagreementKind.UNIT:
            ratio = f"{self.ratio:.6g}"
            return (
                f"{self.bars} held bars were returned again at {ratio} times their price: from "
                f"{self.first:%Y-%m-%d %H:%MZ} on the prices seem to be in another unit. All bars "
                "are kept as returned, and nothing is multiplied. Hint: if it is so, `ktrdr adjust "
                f"{symbol} --ratio {ratio} --from {self.first:%Y-%m-%d} --note TEXT` puts the bars "
                "before on the new unit (with `--volume-ratio 1` if their volumes are right)"
            )
        return (
            f"{self.bars} held bars from {self.first:%Y-%m-%d %H:%MZ} to "
            f"{self.last:%Y-%m-%d %H:%MZ} were returned again at {self.ratio:.4g} times their "
            "price, but not at inverse volumes as after a split: older and newer bars may be on "
            f"different price bases. Hint: `ktrdr load {series} --refresh` requests all of it again"
        )


_PRICES: Final = ("open", "high", "low", "close")
_MOST_PRICE: Final = 1e12
"""A price that no instrument has: the largest index levels and share prices are below 1e7."""

_MOST_VOLUME: Final = 1e18
"""A volume that no instrument has: of the cheapest cryptocurrencies some 1e14 are traded a day."""

_MAY_BE_NEGATIVE: Final = frozenset({SecType.FUT})
"""Kinds of instruments whose prices may be zero or below (crude oil in April 2020)."""


class FindingKind(StrEnum):
    """What is implausible about a bar; of several reasons the first in this order."""

    PRICE_SIZE = "price_size"
    """A price, the average included, is not finite or 1e12 and more."""
    PRICE_SIGN = "price_sign"
    """A price is zero or below, of an instrument that has no such prices."""
    PRICE_RANGE = "price_range"
    """The high is below the low, or open or close outside them."""
    VOLUME = "volume"
    """The volume is below zero, not finite, or 1e18 and more."""
    BAR_COUNT = "bar_count"
    """The count is below zero, or was too large to be kept: it is null."""


class Finding(NamedTuple):
    """A bar that is kept although its values are implausible; ``detail`` is all its values.

    ``ts`` is its timestamp in microseconds since 1970 UTC.
    """

    ts: int
    kind: FindingKind
    detail: str


def implausible_rows(bars: pa.Table, sec_type: SecType | None) -> np.ndarray:
    """Return for each bar whether its values are implausible.

    Args:
        bars: any bars.
        sec_type: the kind of the instrument; None if it is not known: then any sign is plausible.
    """
    found = np.zeros(bars.num_rows, dtype=bool)
    for rows in _implausible(bars, sec_type).values():
        found |= rows
    return found


def findings_of(
    bars: pa.Table, keys: Iterable[int], sec_type: SecType | None = None
) -> list[Finding]:
    """Return the findings that are recorded of some bars, given by their timestamps.

    A bar whose stored values are plausible had a count that could not be stored.
    """
    chosen = bars.filter(pa.array(np.isin(timestamps(bars), list(keys))))
    odd = _implausible(chosen, sec_type)
    columns = [chosen[name].to_pylist() for name in VALUES]
    return [
        Finding(
            int(key),
            next((kind for kind, rows in odd.items() if rows[position]), FindingKind.BAR_COUNT),
            " ".join(f"{name}={value!r}" for name, value in zip(VALUES, row, strict=True)),
        )
        for position, (key, *row) in enumerate(
            zip(timestamps(chosen).tolist(), *columns, strict=True)
        )
    ]


def explained(
    bars: pa.Table, sec_type: SecType | None, known: Iterable[Finding]
) -> tuple[np.ndarray, list[Finding]]:
    """Separate damage from findings.

    A finding explains only a bar with exactly the values that it recorded.

    Returns:
        Which bars are implausible and explained by no finding, and the findings that explain a
        bar, in their order.
    """
    recorded = {one.ts: one for one in known}
    held = {one.ts: one.detail for one in findings_of(bars, recorded, sec_type)}
    found = [one for one in recorded.values() if held.get(one.ts) == one.detail]
    damaged = implausible_rows(bars, sec_type) & ~np.isin(
        timestamps(bars), [one.ts for one in found]
    )
    return damaged, found


def reconciled(first: Response, second: Response | None, length: timedelta) -> Response | None:
    """Return what two responses to one request have in common; None if no bar is left.

    The bars of the second response count. Two kinds of intervals are not covered: rows that are no
    bars, including those of the first response where the second has no bar; and implausible bars
    that were not returned with the same values twice.

    Args:
        first: a response with impossible or implausible rows.
        second: the response to the same request; None if it had no bars.
        length: the length of a bar.
    """
    if second is None:
        return _without(first, set(first.implausible), IntervalSet(), length)
    same = _values(first) & _values(second)
    once = set(second.implausible) - {key for key, _ in same}
    keys = timestamps(second.bars)
    gone = set(first.implausible) - set(keys.tolist())
    unfilled = []
    for part in first.impossible:
        low, high = np.searchsorted(keys, [micros(part.start), micros(part.end)])
        if low >= high:
            unfilled.append(part)
    return _without(second, once, IntervalSet([*unfilled, *_positions(gone, length)]), length)


def _implausible(bars: pa.Table, sec_type: SecType | None) -> dict[FindingKind, np.ndarray]:
    """Return for each kind of finding which bars it holds for."""
    prices = np.array([bars[name].to_numpy(zero_copy_only=False) for name in _PRICES], float)
    opens, highs, lows, closes = prices
    average, volume, count = (_known(bars, name) for name in ("average", "volume", "bar_count"))
    may_be_negative = sec_type is None or sec_type in _MAY_BE_NEGATIVE
    with np.errstate(invalid="ignore"):
        size = ~((np.abs(prices) < _MOST_PRICE).all(axis=0) & (np.abs(average) < _MOST_PRICE))
        sign = np.zeros_like(size) if may_be_negative else (prices <= 0).any(axis=0)
        within = (lows <= opens) & (opens <= highs) & (lows <= closes) & (closes <= highs)
        return {
            FindingKind.PRICE_SIZE: size,
            FindingKind.PRICE_SIGN: sign,
            FindingKind.PRICE_RANGE: ~within,
            FindingKind.VOLUME: ~((volume >= 0) & (volume < _MOST_VOLUME)),
            FindingKind.BAR_COUNT: count < 0,
        }


def _known(bars: pa.Table, name: str) -> np.ndarray:
    """Return a column's values, 0, which is always plausible, where one is null."""
    column = bars[name]
    if column.null_count:
        column = column.fill_null(0)
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _values(response: Response) -> set[tuple[int, str]]:
    """Return the values of a response's implausible bars."""
    return {(one.ts, one.detail) for one in findings_of(response.bars, response.implausible)}


def _positions(keys: Iterable[int], length: timedelta) -> list[Interval]:
    return [Interval(moment(key), moment(key) + length) for key in keys]


def _without(
    response: Response, dropped: set[int], missing: IntervalSet, length: timedelta
) -> Response | None:
    """Return a response without some bars; their intervals, and ``missing``, are not covered."""
    kept = ~np.isin(timestamps(response.bars), list(dropped))
    if not kept.any():
        return None
    return replace(
        response,
        bars=response.bars.filter(pa.array(kept)),
        impossible=response.impossible | missing | IntervalSet(_positions(dropped, length)),
        implausible=tuple(key for key in response.implausible if key not in dropped),
    )
