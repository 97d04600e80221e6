"""Bars that came again at another price: the sign that history was put on another basis.

IB serves trades adjusted for the splits known on the day of the request, so bars that were fetched
before a split differ from the same bars fetched after it by a constant ratio. Not here: what is
done about it.
"""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.core.bars import moment, stamps

_LEAST_CHANGE = 0.009
"""Change of price from which on bars disagree: the smallest stock dividends are 1 %, corrections
of single prices are smaller."""

_SAME_RATIO = 0.002
"""Distance from the median ratio within which a bar tells of the same change."""

_MOST_ALIKE = 0.8
"""Share of the bars that must tell of the same change: one corrected price is no new basis."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Held bars that came again at other prices; ``ratio`` is the new close over the held one."""

    first: datetime
    last: datetime
    bars: int
    ratio: float

    def __str__(self) -> str:
        return (
            f"{self.bars} held bars from {self.first:%Y-%m-%d %H:%MZ} to "
            f"{self.last:%Y-%m-%d %H:%MZ} came again at {self.ratio:.4g} times their price: older "
            "and newer bars may be on different price bases (a split). Hint: `ktrdr load SYMBOL "
            "TIMEFRAME --refresh` requests all of it again"
        )


def disagreement(held: pa.Table, again: pa.Table) -> Disagreement | None:
    """Return in what way bars that came again disagree with those that are held, or None.

    Args:
        held: bars of the store, sorted and unique by stamp.
        again: bars of a response, sorted and unique by stamp.
    """
    keys, mine, its = np.intersect1d(
        stamps(held), stamps(again), assume_unique=True, return_indices=True
    )
    old = held["close"].to_numpy()[mine]
    new = again["close"].to_numpy()[its]
    usable = (old > 0) & (new > 0)
    if not usable.any():
        return None
    ratios = new[usable] / old[usable]
    ratio = float(np.median(ratios))
    alike = np.abs(ratios / ratio - 1) <= _SAME_RATIO
    if abs(ratio - 1) < _LEAST_CHANGE or float(np.mean(alike)) < _MOST_ALIKE:
        return None
    kept = keys[usable]
    return Disagreement(moment(int(kept[0])), moment(int(kept[-1])), len(kept), ratio)
