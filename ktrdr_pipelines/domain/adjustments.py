"""Adjustments: what changed the price basis of a symbol, and putting bars onto today's basis.

The *basis* of a bar is the number of the last adjustment known when it was fetched; 0 is before the
first. It follows the fetch, not the session: a gap filled today lies on today's basis between bars
of an older one.

Not here: how a re-basing is detected (``domain.price_basis``), where adjustments are kept
(``store.bars.adjustment_history``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from itertools import pairwise
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_PRICES: Final = ("open", "high", "low", "close")

_MOST_RUNS: Final = 64
"""Runs of bars with one factor up to which each is multiplied by itself."""


class AdjustmentKind(StrEnum):
    """Who found an adjustment, which decides what it applies to."""

    SPLIT = "split"
    """Found in responses: applies to all bars of an older basis."""
    MANUAL = "manual"
    """Stated by the user: applies to bars of an older basis before the effective session."""


@dataclass(frozen=True, slots=True)
class Adjustment:
    """A change of a symbol's price basis, as it was found.

    Attributes:
        number: 1, 2, ... in the order found, per symbol: the basis of bars fetched after it.
        ratio: the factor of the prices of bars of an older basis.
        volume_ratio: the factor of their volumes; ``1 / ratio`` for splits.
        kind: whether responses showed it, or the user stated it.
        effective: the first session on the new basis.
        is_estimated: whether ``effective`` is the first session that it can be.
        found_at: when it was found.
        old_until: when the last request was sent that is proven to be on the old basis.
        evidence: what showed it, in words: series, bars, requests.
        note: the reason that the user gave, for MANUAL.
        removed_at: when the user undid it, for MANUAL; it then applies to no bar.
    """

    number: int
    ratio: float
    volume_ratio: float
    kind: AdjustmentKind
    effective: date
    is_estimated: bool
    found_at: datetime
    old_until: datetime
    evidence: str
    note: str = ""
    removed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Factor:
    """What bars of one basis and of session dates in ``[since, until)`` are multiplied by.

    ``since`` and ``until`` are None where unbounded; ``price`` is for prices, ``volume`` for
    volumes.
    """

    basis: int
    since: date | None
    until: date | None
    price: float
    volume: float


def factors_of(adjustments: Sequence[Adjustment]) -> tuple[Factor, ...]:
    """Return the factors that put bars of every basis onto today's, by basis and date.

    The factors of one basis partition all session dates; neighbours differ.

    Args:
        adjustments: all adjustments of one symbol, in any order, the removed ones included.

    Raises:
        ValueError: the numbers are not 1, 2, ... without a gap.
    """
    ordered = sorted(adjustments, key=lambda one: one.number)
    numbers = [one.number for one in ordered]
    if numbers != list(range(1, len(ordered) + 1)):
        raise ValueError(f"multiply bars by adjustments: their numbers {numbers} have a gap")
    factors: list[Factor] = []
    for basis in range(len(ordered) + 1):
        applied = [one for one in ordered[basis:] if one.removed_at is None]
        dates = {one.effective for one in applied if one.kind is AdjustmentKind.MANUAL}
        bounds = [None, *sorted(dates), None]
        for since, until in pairwise(bounds):
            price = volume = 1.0
            for one in applied:
                is_before = until is not None and until <= one.effective
                if one.kind is AdjustmentKind.SPLIT or is_before:
                    price, volume = price * one.ratio, volume * one.volume_ratio
            last = factors[-1] if factors else None
            if last and (last.basis, last.price, last.volume) == (basis, price, volume):
                since = factors.pop().since  # noqa: PLW2901  (the two become one)
            factors.append(Factor(basis, since, until, price, volume))
    return tuple(factors)


def depend_on_dates(adjustments: Sequence[Adjustment]) -> bool:
    """Return whether bars of one basis may have several factors, by their session dates."""
    return any(one.kind is AdjustmentKind.MANUAL for one in adjustments)


def on_todays_basis(
    bars: pa.Table,
    basis: np.ndarray,
    adjustments: Sequence[Adjustment],
    *,
    may_overwrite: bool = False,
) -> pa.Table:
    """Return bars multiplied onto today's basis; the same table if all factors are 1.

    ``open``, ``high``, ``low``, ``close`` and ``average`` are multiplied by the price factor of
    their basis and session date, ``volume`` by the volume factor; nulls stay null.

    Args:
        bars: stored bars with some of the columns of ``BAR_SCHEMA``; with ``session_date`` if the
            factors depend on dates (``depend_on_dates``).
        basis: the basis of each bar, whole numbers of shape (n,).
        adjustments: all adjustments of the symbol.
        may_overwrite: whether the products may replace the values in the memory of ``bars``, which
            nothing else uses then; new memory costs more than the multiplication.

    Raises:
        ValueError: there is no such basis, the number of bases is not that of the bars, or the
            numbers of the adjustments have a gap.
    """
    if basis.shape != (bars.num_rows,):
        raise ValueError(
            f"multiply bars by adjustments: {bars.num_rows} bars, bases of shape {basis.shape}"
        )
    factors = factors_of(adjustments)
    if not len(basis):
        return bars
    lowest, highest = int(basis.min()), int(basis.max())
    if lowest < 0 or highest > len(adjustments):
        raise ValueError(
            f"multiply bars by adjustments: bases {lowest} to {highest}, but only 0 to "
            f"{len(adjustments)} are known"
        )
    candidates = [one for one in factors if lowest <= one.basis <= highest]
    rows, starts = np.zeros(1, np.int16), [0]
    if len(candidates) > 1:
        rows = _factor_rows(bars, basis, candidates)
        starts = [0, *(np.flatnonzero(rows[1:] != rows[:-1]) + 1).tolist()]
    used = [candidates[int(rows[start])] for start in starts]
    if all((one.price, one.volume) == (1, 1) for one in used):
        return bars
    if len(starts) > _MOST_RUNS:
        price, volume = (
            pa.array(np.array([getattr(one, name) for one in candidates])[rows])
            for name in ("price", "volume")
        )
        return _multiplied(bars, price, volume)
    # One number a run costs less than one a row, and a run whose factor is 1 is not copied.
    runs = [
        (one, bars.slice(start, end - start))
        for one, (start, end) in zip(used, pairwise([*starts, len(basis)]), strict=True)
    ]
    if may_overwrite and _can_overwrite(bars):
        for one, run in runs:
            _overwrite(run, one)
        return bars
    return pa.concat_tables(_multiplied(run, one.price, one.volume) for one, run in runs)


def _can_overwrite(bars: pa.Table) -> bool:
    """Return whether all values that are multiplied lie in memory that can be written to.

    Columns with nulls are not written to: their memory holds any bits where there is no value.
    """
    for name in (*_PRICES, "average", "volume"):
        if name not in bars.schema.names:
            continue
        column = bars[name]
        memory = [chunk.buffers()[1] for chunk in column.chunks]
        if column.null_count or not all(one is not None and one.is_mutable for one in memory):
            return False
    return True


def _overwrite(bars: pa.Table, factor: Factor) -> None:
    """Multiply bars in their memory."""
    for names, number in (((*_PRICES, "average"), factor.price), (("volume",), factor.volume)):
        if number == 1:
            continue
        for chunk in (
            one for name in names if name in bars.schema.names for one in bars[name].chunks
        ):
            values = np.frombuffer(chunk.buffers()[1], np.float64, len(chunk), chunk.offset * 8)
            np.multiply(values, number, out=values)


def _multiplied(bars: pa.Table, price: float | pa.Array, volume: float | pa.Array) -> pa.Table:
    """Return bars multiplied by one number, or by one number a row."""
    columns = dict(zip(bars.schema.names, bars.columns, strict=True))
    for names, factor in (((*_PRICES, "average"), price), (("volume",), volume)):
        if isinstance(factor, pa.Array) or factor != 1:
            held = (name for name in names if name in columns)
            columns |= {name: pc.multiply(columns[name], factor) for name in held}
    return pa.Table.from_arrays([*columns.values()], schema=bars.schema)


def _factor_rows(bars: pa.Table, basis: np.ndarray, factors: Sequence[Factor]) -> np.ndarray:
    """Return for each bar the position of its factor."""
    lowest, highest = factors[0].basis, factors[-1].basis
    firsts = np.searchsorted([one.basis for one in factors], np.arange(lowest, highest + 1))
    if len(factors) == len(firsts):
        return basis - lowest
    rows = firsts[basis - lowest]
    days = bars["session_date"].to_numpy()
    for position, one in enumerate(factors):
        if one.since is not None:
            rows[(basis == one.basis) & (days >= np.datetime64(one.since))] = position
    return np.asarray(rows)
