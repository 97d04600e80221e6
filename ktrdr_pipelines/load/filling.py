"""Which gaps are worth to be asked for now, by work that nobody waits for, and in what order.

Not here: finding gaps (``load.gapbook``), how they become runs (``defs.gap_sensor``), the tails
of open sessions (``load.tails``).
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from ktrdr_pipelines.core.completeness import Gap
from ktrdr_pipelines.core.instruments import Backfill, Series
from ktrdr_pipelines.core.intervals import IntervalSet
from ktrdr_pipelines.load.gapbook import SeriesGaps
from ktrdr_pipelines.load.tails import is_behind, newer_gaps


@dataclass(frozen=True, slots=True)
class Due:
    """What of one series is to be asked for now: stretches of stamps, and bars at most."""

    series: Series
    stamps: IntervalSet
    bars: int

    @property
    def newest(self) -> datetime:
        """The end of the newest stretch."""
        hull = self.stamps.hull
        assert hull is not None  # noqa: S101  (what is due is not empty)
        return hull.end

    @property
    def print(self) -> str:
        """A short print of the stretches, to see whether anything has changed."""
        return hashlib.sha256(repr(self.stamps).encode()).hexdigest()[:12]


def due_to_fill(found: Iterable[SeriesGaps], now: datetime) -> list[Due]:
    """Give what is due, long timeframes first, and of one timeframe the newest gaps first.

    Left out is what was tried in vain until its next try, what a tail brings, and the history of
    series that a person loads: of those only what came after the newest bar is due.
    """
    due = (_due(one, now) for one in found)
    return sorted((one for one in due if one), key=_rank)


def backlog_of(found: Iterable[SeriesGaps]) -> list[tuple[Series, IntervalSet]]:
    """Give all that the sensors will ask for in the end, with what is put off for now."""
    kept = ((one.series, IntervalSet(gap.stamps for gap in _wanted(one))) for one in found)
    return [(series, stamps) for series, stamps in kept if stamps]


def _due(found: SeriesGaps, now: datetime) -> Due | None:
    gaps = [gap for gap in _wanted(found) if gap.next_try_at is None or gap.next_try_at <= now]
    if not gaps:
        return None
    stamps = IntervalSet(gap.stamps for gap in gaps)
    return Due(found.series, stamps, sum(gap.bars for gap in gaps))


def _wanted(found: SeriesGaps) -> list[Gap]:
    """Leave out what tails bring, and the history of what a person loads."""
    newer = newer_gaps(found)
    mine = newer if is_behind(found) else []
    if found.series.instrument.backfill is Backfill.MANUAL:
        return mine
    return [gap for gap in found.gaps if gap not in newer] + mine


def _rank(due: Due) -> tuple[int, float]:
    return -due.series.timeframe.seconds, -due.newest.timestamp()
