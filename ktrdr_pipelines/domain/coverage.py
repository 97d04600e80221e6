"""Coverage: what responses have covered of a series, with bars or as confirmed empty.

All intervals are by bar timestamp (``domain.calendars.sessions``).

Not here: what a response covers (``domain.planning.evaluation``), which statements prove that a
range is empty (``domain.planning.empty_ranges``), files (``store.bars.bar_store``).
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from ktrdr_pipelines.domain.calendars.session_grid import SessionGrid
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.limits import IbLimitsRegistry

_RECENT = timedelta(days=IbLimitsRegistry.EMPTY_RECENT_DAYS.value)
_OLD = timedelta(days=IbLimitsRegistry.EMPTY_OLD_DAYS.value)


class ProofKind(StrEnum):
    """What a proof that a range is empty rests on.

    ``plain``: responses with bars around the range, or an earlier version of this project.
    ``voidable``: at least one response without bars, which a later one can refute. ``disputed``:
    three statements on three days although held data contradict them. ``acknowledged``: the user.
    """

    PLAIN = "plain"
    VOIDABLE = "voidable"
    DISPUTED = "disputed"
    ACKNOWLEDGED = "acknowledged"


REFUTABLE = frozenset({ProofKind.PLAIN, ProofKind.VOIDABLE})
"""Kinds of proofs that bars of another timeframe refute; the others were made in spite of them."""

VOIDABLE = frozenset({ProofKind.VOIDABLE, ProofKind.DISPUTED})
"""Kinds of proofs that become void when a response without bars that they rest on is refuted."""


@dataclass(frozen=True, slots=True, order=True)
class Emptiness:
    """A range that was proved to hold no bars, when and by what; the proof expires.

    A range that was recent when it was proved must be proved again soon, an old one much later.
    Each week expires separately, so cutting or joining proofs does not change how long they last.
    ``note`` is the note of the user who acknowledged it.
    """

    interval: Interval
    proved_at: datetime
    kind: ProofKind = ProofKind.PLAIN
    note: str = ""

    @property
    def expires_at(self) -> datetime:
        """When the first part of it must be proved again."""
        return self.proved_at + (_RECENT if self.interval.end > self._recent_from else _OLD)

    @property
    def expiries(self) -> tuple[datetime, ...]:
        """When its parts expire: the recent part first, then the rest."""
        last = self.proved_at + _OLD
        return (
            (self.proved_at + _RECENT, last) if self.interval.end > self._recent_from else (last,)
        )

    def valid_part(self, now: datetime) -> Interval | None:
        """Return the part whose proof has not expired, or None."""
        if now < self.expires_at:
            return self.interval
        still_old = now < self.proved_at + _OLD
        return between(self.interval.start, self._recent_from) if still_old else None

    @property
    def _recent_from(self) -> datetime:
        """The Monday from which the interval was recent, at midnight so that no date is cut."""
        day = (self.proved_at - _RECENT).replace(hour=0, minute=0, second=0, microsecond=0)
        return day - timedelta(days=day.weekday())


@dataclass(frozen=True, slots=True)
class Coverage:
    """The covered intervals of a series: ``bars`` permanently, ``empty`` until proofs expire."""

    bars: IntervalSet = IntervalSet()  # noqa: RUF009  (immutable)
    empty: tuple[Emptiness, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.bars) or bool(self.empty)

    def covered(self, now: datetime, grid: SessionGrid | None = None) -> IntervalSet:
        """Return everything that is covered at ``now``; see ``valid_emptiness``."""
        return self.bars | valid_emptiness(self.empty, now, grid) if self.empty else self.bars

    def merged(self, newer: "Coverage") -> "Coverage":
        """Return it merged with newer coverage: bars replace proofs, newer proofs older ones."""
        bars = self.bars | newer.bars
        if not self.empty and not newer.empty:
            return Coverage(bars)
        fresh = IntervalSet(proof.interval for proof in newer.empty)
        older = _without(self.empty, fresh)
        return Coverage(bars, tuple(sorted(_without((*older, *newer.empty), bars))))

    def clip(self, interval: Interval) -> "Coverage":
        """Return the part inside an interval."""
        parts = ((proof, proof.interval.intersection(interval)) for proof in self.empty)
        empty = tuple(replace(proof, interval=part) for proof, part in parts if part)
        return Coverage(self.bars.clip(interval), empty)

    def without_proofs(self, taken: IntervalSet, kinds: Container[ProofKind]) -> "Coverage":
        """Return this coverage without void proofs: those of some kinds in some intervals."""
        kept = [proof for proof in self.empty if proof.kind not in kinds]
        cut = _without((proof for proof in self.empty if proof.kind in kinds), taken)
        return Coverage(self.bars, tuple(sorted((*kept, *cut))))


def valid_emptiness(
    proofs: Iterable[Emptiness], now: datetime, grid: SessionGrid | None = None
) -> IntervalSet:
    """Return what proofs that are valid at ``now`` show to hold no bars.

    With the sessions of the series, a session of which a part has expired expires as a whole: some
    sessions begin on a Sunday and contain the midnight before which a proof lasts longer.
    """
    known = tuple(proofs)
    parts = ((proof, proof.valid_part(now)) for proof in known)
    valid, expired = IntervalSet(part for _, part in parts if part), IntervalSet()
    if grid is not None and any(now >= proof.expires_at for proof in known):
        expired = grid.widened(IntervalSet(proof.interval for proof in known) - valid)
    return valid - expired


def _without(proofs: Iterable[Emptiness], taken: IntervalSet) -> list[Emptiness]:
    """Return proofs without some intervals; adjoining proofs of one moment and kind are joined."""
    alike: dict[tuple[datetime, ProofKind, str], list[Interval]] = {}
    for proof in proofs:
        alike.setdefault((proof.proved_at, proof.kind, proof.note), []).append(proof.interval)
    return [
        Emptiness(part, *key) for key, parts in alike.items() for part in IntervalSet(parts) - taken
    ]
