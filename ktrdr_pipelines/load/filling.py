"""Which gaps are worth to be asked for now, by work that nobody waits for, and in what order.

Not here: finding gaps (``load.gapbook``), how they become runs (``defs.gap_sensor``), the tails
of open sessions (``load.tails``).
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from ktrdr_pipelines.core.completeness import Gap
from ktrdr_pipelines.core.instruments import Backfill, Series
from ktrdr_pipelines.core.intervals import Interval, IntervalSet
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

    Left out are ranges whose attempts failed, until their next try at ``now`` in real time, what a
    tail brings, and the history of series that a person loads (``wanted_gaps``).
    """
    due = (_due(one, now) for one in found)
    return sorted((one for one in due if one), key=_rank)


def backlog_of(found: Iterable[SeriesGaps]) -> list[tuple[Series, IntervalSet]]:
    """Give all that the sensors will ask for in the end, with what is put off for now."""
    kept = ((one.series, IntervalSet(gap.stamps for gap in wanted_gaps(one))) for one in found)
    return [(series, stamps) for series, stamps in kept if stamps]


def _due(found: SeriesGaps, now: datetime) -> Due | None:
    gaps = [gap for gap in wanted_gaps(found) if gap.next_try_at is None or gap.next_try_at <= now]
    if not gaps:
        return None
    stamps = IntervalSet(gap.stamps for gap in gaps)
    return Due(found.series, stamps, sum(gap.bars for gap in gaps))


def wanted_gaps(found: SeriesGaps) -> list[Gap]:
    """Return the gaps that automatic work fills: all but what tails bring.

    Of a series that a person loads, its history is left out: all before the place from which on it
    is kept fresh. That place does not move with the newest bar, since filling goes newest first
    and leaves holes behind it for a while, or for long where a run fails.
    """
    newer = newer_gaps(found)
    mine = newer if is_behind(found) else []
    older = [gap for gap in found.gaps if gap not in newer]
    if found.series.instrument.backfill is Backfill.MANUAL:
        since = found.fresh_from or found.settled_until
        if since is None or found.settled_until is None:
            return []
        older = [part for gap in older if (part := _since(gap, since))]
    return older + mine


def _since(gap: Gap, since: datetime) -> Gap | None:
    """Return the part of a gap from a bar timestamp on; its bars are then those at most."""
    if gap.stamps.end <= since:
        return None
    start = max(gap.stamps.start, since)
    return replace(gap, stamps=Interval(start, gap.stamps.end))


def _rank(due: Due) -> tuple[int, float]:
    return -due.series.timeframe.seconds, -due.newest.timestamp()
