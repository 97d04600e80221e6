"""Detect volumes that changed their unit between shares and lots of 100.

The unit depends on a setting and the version of the gateway. A change is reported and bars are kept
as they were returned. Bars that are returned again show it directly; where new bars only adjoin
held ones it takes a jump of the volume of whole sessions. A lot more trading looks like that too,
except for the number of trades, which no unit changes.

Not here: when bars are compared (``sync.engine.comparison``), the record
(``store.ledger.bar_findings``).
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.domain.bars import moment, timestamps
from ktrdr_pipelines.domain.plausibility import Disagreement, DisagreementKind

SESSIONS: Final = 5
"""Number of sessions on either side over which a jump must hold."""

_LOT: Final = 100.0
_NEAR: Final = 0.05
"""Distance from a ratio of 100, as a share, within which bars that were returned again are in lots:
corrections after the close change volumes a little."""

_FEWEST_LOTS: Final = 100.0
"""Fewest lots of the compared bars together: with fewer, rounding hides the ratio."""

_MOST_ALIKE: Final = 0.8
_SAME_PRICE: Final = 0.002

_LEAST_JUMP, _MOST_JUMP = 50.0, 200.0
"""Least and greatest ratio of the medians of both sides: sessions differ."""

_APART: Final = 4.0
"""Least ratio of the smallest session of one side to the greatest of the other."""

_SAME_LEVEL: Final = 1.25
_SAME_COUNT: Final = 5.0
"""Greatest ratio of the median prices, and of the median numbers of trades, of both sides."""


def compare_volume(held: pa.Table, again: pa.Table) -> Disagreement | None:
    """Return how the volumes of bars that were returned again at the same prices jump, or None.

    Args:
        held: bars of the store, sorted and unique by timestamp.
        again: bars of a response, sorted and unique; a first one that may be cut is left out.
    """
    keys, mine, its = np.intersect1d(
        timestamps(held), timestamps(again), assume_unique=True, return_indices=True
    )
    old, new = _column(held, "volume")[mine], _column(again, "volume")[its]
    prices = _column(held, "close")[mine], _column(again, "close")[its]
    with np.errstate(divide="ignore", invalid="ignore"):
        usable = (old > 0) & (new > 0) & (np.abs(prices[1] / prices[0] - 1) <= _SAME_PRICE)
    if not usable.any():
        return None
    keys, old, new = keys[usable], old[usable], new[usable]
    ratio = float(new.sum() / old.sum())
    lots, shares = (new, old) if ratio < 1 else (old, new)
    if lots.sum() < _FEWEST_LOTS or abs(shares.sum() / lots.sum() / _LOT - 1) > _NEAR:
        return None
    alike = np.abs(lots * _LOT - shares) <= _NEAR * shares + _LOT
    if np.mean(usable) < _MOST_ALIKE or np.mean(alike) < _MOST_ALIKE:
        return None
    return _jump(keys, ratio)


def between_sessions(bars: pa.Table) -> Disagreement | None:
    """Return from which session, and by how much, the volumes of later sessions jump, or None.

    Args:
        bars: bars of whole sessions, sorted and unique by timestamp. Sessions without volume do not
            count.
    """
    days = _Days.of(bars)
    found: tuple[float, Disagreement] | None = None
    for position in range(SESSIONS, len(days.volume) - SESSIONS + 1):
        sides = slice(position - SESSIONS, position), slice(position, position + SESSIONS)
        before, after = (days.volume[one] for one in sides)
        jump = float(np.median(after) / np.median(before))
        low, high = (before, after) if jump > 1 else (after, before)
        apart = float(low.max() and high.min() / low.max())
        size = max(jump, 1 / jump)
        if not _LEAST_JUMP <= size <= _MOST_JUMP or apart < _APART:
            continue
        if not _is_same(days.close, sides, _SAME_LEVEL):
            continue
        if not _is_same(days.trades, sides, _SAME_COUNT):
            continue
        if found is None or apart > found[0]:
            first, end = days.first[position], days.first[position + SESSIONS :][:1]
            keys = timestamps(bars)
            low_position = int(np.searchsorted(keys, first))
            high_position = int(np.searchsorted(keys, end[0])) if len(end) else len(keys)
            found = apart, _jump(keys[low_position:high_position], jump)
    return found[1] if found else None


def is_known(found: Disagreement, known: Iterable[Disagreement]) -> bool:
    """Return whether a jump is recorded already.

    Between two jumps in one direction lies one in the other: a jump is known if a recorded jump
    beside it has the same direction.

    Args:
        found: a jump.
        known: the jumps of its series that are recorded.
    """
    before = [one for one in known if one.first <= found.last]
    after = [one for one in known if one.first > found.last]
    beside = (
        *sorted(before, key=lambda one: one.first)[-1:],
        *sorted(after, key=lambda one: one.first)[:1],
    )
    return any((one.ratio > 1) == (found.ratio > 1) for one in beside)


class _Days(NamedTuple):
    """Sessions with volume, oldest first: timestamp of the first bar, sums, and last close."""

    first: np.ndarray
    volume: np.ndarray
    trades: np.ndarray
    close: np.ndarray

    @classmethod
    def of(cls, bars: pa.Table) -> "_Days":
        """Aggregate bars by session."""
        keys, days = timestamps(bars), bars["session_date"].to_numpy().astype("datetime64[D]")
        _, starts = np.unique(days, return_index=True)
        if not len(starts):
            return cls(*(np.empty(0) for _ in range(4)))
        volume = np.add.reduceat(np.nan_to_num(_column(bars, "volume")), starts)
        trades = np.add.reduceat(_column(bars, "bar_count"), starts)
        ends = np.append(starts[1:], len(keys)) - 1
        close = _column(bars, "close")[ends]
        traded = volume > 0
        return cls(keys[starts][traded], volume[traded], trades[traded], close[traded])


def _is_same(values: np.ndarray, sides: tuple[slice, slice], most: float) -> bool:
    """Return whether the medians of two sides are about the same, or one is not known."""
    before, after = (float(np.median(values[one])) for one in sides)
    if not before > 0 or not after > 0:
        return True
    return max(before / after, after / before) <= most


def _jump(keys: np.ndarray, ratio: float) -> Disagreement:
    first, last = moment(int(keys[0])), moment(int(keys[-1]))
    return Disagreement(first, last, len(keys), ratio, DisagreementKind.VOLUME)


def _column(bars: pa.Table, name: str) -> np.ndarray:
    """Return a column as float64, NaN where it is null."""
    values = bars[name].to_numpy(zero_copy_only=False)
    return np.asarray(values, dtype=np.float64)
