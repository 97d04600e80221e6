"""What answers have settled of a series: as bars, or as proved empty. Nothing else settles.

Not here: how an answer comes to prove something (``core.settle``), files (``store.parquet``).
All intervals are on the stamp axis of the series (``core.sessions``).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ktrdr_pipelines.core.intervals import Interval, IntervalSet
from ktrdr_pipelines.limits import IbLimitsRegistry


@dataclass(frozen=True, slots=True, order=True)
class Emptiness:
    """A stretch that was proved to hold no bars, and when; the proof ages."""

    interval: Interval
    proved_at: datetime

    @property
    def expires_at(self) -> datetime:
        """When it must be proved again: soon where it was recent news, late where it was old."""
        recent = timedelta(days=IbLimitsRegistry.EMPTY_RECENT_DAYS.value)
        was_recent = self.proved_at - self.interval.end < recent
        old = timedelta(days=IbLimitsRegistry.EMPTY_OLD_DAYS.value)
        return self.proved_at + (recent if was_recent else old)


@dataclass(frozen=True, slots=True)
class Coverage:
    """The settled stretches of a series: ``bars`` for good, ``empty`` until the proof expires."""

    bars: IntervalSet = field(default_factory=IntervalSet)
    empty: tuple[Emptiness, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.bars) or bool(self.empty)

    def settled(self, now: datetime) -> IntervalSet:
        """Give all that needs no asking at ``now``."""
        valid = (proof.interval for proof in self.empty if proof.expires_at > now)
        return self.bars | IntervalSet(valid)

    def merged(self, newer: "Coverage") -> "Coverage":
        """Add what a newer answer settled; bars beat emptiness, newer proofs beat older ones."""
        bars = self.bars | newer.bars
        fresh = IntervalSet(proof.interval for proof in newer.empty)
        older = _without(self.empty, bars | fresh)
        return Coverage(bars, tuple(sorted((*older, *_without(newer.empty, bars)))))

    def clip(self, interval: Interval) -> "Coverage":
        """Give the part inside an interval."""
        parts = ((proof.interval.intersection(interval), proof.proved_at) for proof in self.empty)
        empty = tuple(Emptiness(part, at) for part, at in parts if part)
        return Coverage(self.bars.clip(interval), empty)


def _without(proofs: Iterable[Emptiness], taken: IntervalSet) -> list[Emptiness]:
    """Give proofs less what is taken; neighbours proved at the same moment are joined."""
    moments: dict[datetime, list[Interval]] = {}
    for proof in proofs:
        moments.setdefault(proof.proved_at, []).append(proof.interval)
    return [
        Emptiness(part, moment)
        for moment, parts in moments.items()
        for part in IntervalSet(parts) - taken
    ]
