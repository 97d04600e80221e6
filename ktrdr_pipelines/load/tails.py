"""Tails: what has come to be due behind the newest bar of a series, a session at most.

A series that lacks more than a session behind its newest bar is *behind*: a gap run brings it up,
oldest first, and no tail jumps ahead of it. Not here: all other gaps (``load.filling``), how tails
become runs (``defs.tail_schedule``).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from ktrdr_pipelines.core.completeness import Gap
from ktrdr_pipelines.core.instruments import Series
from ktrdr_pipelines.core.intervals import Interval, IntervalSet
from ktrdr_pipelines.load.gapbook import SeriesGaps

MOST_SESSIONS = 1
"""Closed sessions that a tail may lack; the open one comes on top."""


_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Tail:
    """What of one series is to be asked for at once."""

    series: Series
    stamps: IntervalSet


def newer_gaps(found: SeriesGaps) -> list[Gap]:
    """Give the gaps behind the newest settled stretch; none where nothing is settled yet."""
    until = found.settled_until
    return [] if until is None else [gap for gap in found.gaps if gap.stamps.start >= until]


def is_behind(found: SeriesGaps) -> bool:
    """Say whether a series lacks more behind its newest bar than a tail brings."""
    return sum(gap.sessions for gap in newer_gaps(found)) > MOST_SESSIONS


def due_tails(
    found: Iterable[SeriesGaps], now: datetime, *, real_now: datetime | None = None
) -> list[Tail]:
    """Return the tails that are due, long timeframes first.

    Args:
        found: how each series stands.
        now: market time.
        real_now: real time, by which failed attempts become due again; ``now`` if not given.
    """
    retry_now = real_now or now
    tails = (tail for one in found if (tail := _tail(one, now, retry_now)))
    return sorted(tails, key=lambda tail: -tail.series.timeframe.seconds)


def _tail(found: SeriesGaps, now: datetime, retry_now: datetime) -> Tail | None:
    if found.error is not None or found.settled_until is None or is_behind(found):
        return None
    gaps = newer_gaps(found)
    if _is_put_off(found, retry_now):
        return None
    waiting = IntervalSet(
        part
        for part in found.waiting
        if part.start >= found.settled_until and _is_worth_asking(part, now)
    )
    stamps = waiting | IntervalSet(gap.stamps for gap in gaps)
    return Tail(found.series, stamps) if stamps else None


def _is_worth_asking(waiting: Interval, now: datetime) -> bool:
    """Say whether to ask now for the end of a session that is waited for.

    Up to the moment all is asked for. Behind a close it is asked for after 1, 2, 4, ... minutes:
    bars that are late come, and a stock that was quiet at the end is not asked for every minute.
    """
    minutes = (now - waiting.end) // _MINUTE
    return minutes < 1 or minutes & (minutes - 1) == 0


def _is_put_off(found: SeriesGaps, now: datetime) -> bool:
    """Say whether what is newest was tried in vain and is not yet to be tried again."""
    until = found.settled_until
    return any(
        (attempt.is_series_wide or (until is not None and attempt.interval.end > until))
        and not attempt.is_due(now)
        for attempt in found.attempts
    )
