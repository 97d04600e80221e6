"""What answers have settled of a series: as bars, or as proved empty. Nothing else settles.

Not here: how an answer comes to prove something (``core.settle``), files (``store.parquet``).
All intervals are on the stamp axis of the series (``core.sessions``).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ktrdr_pipelines.core.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.limits import IbLimitsRegistry

_RECENT = timedelta(days=IbLimitsRegistry.EMPTY_RECENT_DAYS.value)
_OLD = timedelta(days=IbLimitsRegistry.EMPTY_OLD_DAYS.value)


@dataclass(frozen=True, slots=True, order=True)
class Emptiness:
    """A stretch that was proved to hold no bars, and when; the proof ages.

    What was recent when it was proved must be proved again soon, what was old much later. Each
    week ages by itself, so a proof that is cut or joined lasts neither longer nor shorter.
    """

    interval: Interval
    proved_at: datetime

    @property
    def expires_at(self) -> datetime:
        """When the first part of it must be proved again."""
        return self.proved_at + (_RECENT if self.interval.end > self._recent_from else _OLD)

    @property
    def expiries(self) -> tuple[datetime, ...]:
        """When parts of it come to be too old: the recent part first, then the rest."""
        last = self.proved_at + _OLD
        return (
            (self.proved_at + _RECENT, last) if self.interval.end > self._recent_from else (last,)
        )

    def valid_part(self, now: datetime) -> Interval | None:
        """Give the stretch whose proof still counts, or None."""
        if now < self.expires_at:
            return self.interval
        still_old = now < self.proved_at + _OLD
        return between(self.interval.start, self._recent_from) if still_old else None

    @property
    def _recent_from(self) -> datetime:
        """The Monday from which on the stretch was recent, at midnight so that no day is cut."""
        day = (self.proved_at - _RECENT).replace(hour=0, minute=0, second=0, microsecond=0)
        return day - timedelta(days=day.weekday())


@dataclass(frozen=True, slots=True)
class Coverage:
    """The settled stretches of a series: ``bars`` for good, ``empty`` until the proof expires."""

    bars: IntervalSet = field(default_factory=IntervalSet)
    empty: tuple[Emptiness, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.bars) or bool(self.empty)

    def settled(self, now: datetime) -> IntervalSet:
        """Give all that needs no asking at ``now``."""
        valid = (proof.valid_part(now) for proof in self.empty)
        return self.bars | IntervalSet(part for part in valid if part)

    def merged(self, newer: "Coverage") -> "Coverage":
        """Add what a newer answer settled; bars beat emptiness, newer proofs beat older ones."""
        bars = self.bars | newer.bars
        fresh = IntervalSet(proof.interval for proof in newer.empty)
        older = _without(self.empty, fresh)
        return Coverage(bars, tuple(sorted(_without((*older, *newer.empty), bars))))

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
