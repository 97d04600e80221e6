"""Bars that came again at another price: the sign that history was put on another basis.

IB serves trades adjusted for the splits known on the day of the request, so bars that were fetched
before a split differ from the same bars fetched after it by a constant ratio. Not here: what is
done about it.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

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


class DisagreementKind(StrEnum):
    """What differs by a constant ratio: the prices, or the volumes (``core.volume_units``)."""

    PRICE = "price"
    VOLUME = "volume"


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Bars that disagree with others by a constant ratio.

    Of prices, held bars came again and ``ratio`` is the new close over the held one. Of volumes,
    the same, or the bars follow others, and it is their volume over that of the others.
    """

    first: datetime
    last: datetime
    bars: int
    ratio: float
    kind: DisagreementKind = DisagreementKind.PRICE

    def __str__(self) -> str:
        if self.kind is DisagreementKind.VOLUME:
            unit, other = ("shares", "lots of 100") if self.ratio > 1 else ("lots of 100", "shares")
            return (
                f"the volumes of {self.bars} bars from {self.first:%Y-%m-%d %H:%MZ} to "
                f"{self.last:%Y-%m-%d %H:%MZ} are {self.ratio:.4g} times what they were before, or "
                f"what those of the sessions before are, at the same prices: they seem to be in "
                f"{unit}, the others in {other}. All bars stay as they came. Hint: set the gateway "
                "to tell volumes in one unit; `ktrdr load SYMBOL TIMEFRAME --refresh` requests all "
                "of it again"
            )
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
