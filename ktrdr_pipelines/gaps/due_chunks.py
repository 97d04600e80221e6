"""What automatic work requests next: tails that are due, gaps worth it, the backlog.

The backlog: all that sensors will ask for, and what that costs, before it is loaded.

How stale a tail is: the open time that has passed since its newest covered bar.

Closed time does not count: a Friday evening bar is fresh on Sunday.

Tails: what has come to be due behind the newest bar of a series, a session at most.

A series that lacks more than a session behind its newest bar is *behind*: a gap run brings it up,
oldest first, and no tail jumps ahead of it.

Which gaps are worth to be asked for now, by work that nobody waits for, and in what order.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from ktrdr_pipelines.domain.calendars.registry import Calendars
from ktrdr_pipelines.domain.instruments import Backfill, Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.domain.planning.gaps import Gap, bar_lag, final_lag
from ktrdr_pipelines.gaps.estimates import estimate, measured_rates
from ktrdr_pipelines.gaps.index import GapIndex, SeriesGaps
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.limits import IbLimitsRegistry

_LOOKBACK = timedelta(days=60)


def stale_s(found: SeriesGaps, calendars: Calendars, now: datetime) -> float:
    """Return the seconds of open session without a covered bar, 0 where nothing was ever covered.

    Sessions that are not final yet count for days and weeks only once they are; what lies more
    than two months back is not counted out.
    """
    if found.covered_until is None:
        return 0.0
    calendar = calendars.of(found.series.instrument)
    timeframe = found.series.timeframe
    since = max(found.covered_until, now - _LOOKBACK)
    until = now - (bar_lag() if timeframe.is_intraday else final_lag())
    if timeframe.is_intraday:
        open_time = between(since, until)
        if open_time is None:
            return 0.0
        spans = calendar.sessions_meeting(open_time)
        parts = (between(max(s.opens_at, since), min(s.closes_at, until)) for s in spans)
    else:
        first = since.date()
        spans = calendar.sessions(first, now.date() + timedelta(days=1))
        parts = (between(s.opens_at, s.closes_at) for s in spans if s.closes_at <= until)
    return sum((part.length.total_seconds() for part in parts if part), 0.0)


def is_stale(found: SeriesGaps, calendars: Calendars, now: datetime) -> bool:
    """Return whether a tail is older than the registry allows."""
    threshold_s = IbLimitsRegistry.GAP_THRESHOLDS_S.value[found.series.timeframe.value]
    return stale_s(found, calendars, now) > threshold_s


MOST_SESSIONS = 1
"""Closed sessions that a tail may lack; the open one comes on top."""


_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Tail:
    """What of one series is to be asked for at once."""

    series: Series
    intervals: IntervalSet


def newer_gaps(found: SeriesGaps) -> list[Gap]:
    """Return the gaps behind the newest covered interval; none where nothing is covered yet."""
    until = found.covered_until
    return [] if until is None else [gap for gap in found.gaps if gap.interval.start >= until]


def is_behind(found: SeriesGaps) -> bool:
    """Return whether a series lacks more behind its newest bar than a tail brings."""
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
    if found.error is not None or found.covered_until is None or is_behind(found):
        return None
    gaps = newer_gaps(found)
    if _is_deferred(found, retry_now):
        return None
    waiting = IntervalSet(
        part
        for part in found.waiting
        if part.start >= found.covered_until and _is_worth_requesting(part, now)
    )
    intervals = waiting | IntervalSet(gap.interval for gap in gaps)
    return Tail(found.series, intervals) if intervals else None


def _is_worth_requesting(waiting: Interval, now: datetime) -> bool:
    """Return whether to ask now for the end of a session that is waited for.

    Up to the moment all is asked for. Behind a close it is asked for after 1, 2, 4, ... minutes:
    bars that are late come, and a stock that was quiet at the end is not asked for every minute.
    """
    minutes = (now - waiting.end) // _MINUTE
    return minutes < 1 or minutes & (minutes - 1) == 0


def _is_deferred(found: SeriesGaps, now: datetime) -> bool:
    """Return whether what is newest was tried in vain and is not yet to be tried again."""
    until = found.covered_until
    return any(
        (attempt.is_series_wide or (until is not None and attempt.interval.end > until))
        and not attempt.is_due(now)
        for attempt in found.attempts
    )


@dataclass(frozen=True, slots=True)
class Due:
    """What of one series is to be asked for now: intervals of timestamps, and bars at most."""

    series: Series
    intervals: IntervalSet
    bars: int

    @property
    def newest(self) -> datetime:
        """The end of the newest interval."""
        bounds = self.intervals.bounds
        assert bounds is not None  # noqa: S101  (what is due is not empty)
        return bounds.end

    @property
    def print(self) -> str:
        """A short print of the intervals, to see whether anything has changed."""
        return hashlib.sha256(repr(self.intervals).encode()).hexdigest()[:12]


def due_to_fill(found: Iterable[SeriesGaps], now: datetime) -> list[Due]:
    """Return what is due, long timeframes first, and of one timeframe the newest gaps first.

    Left out are ranges whose attempts failed, until their next try at ``now`` in real time, what a
    tail brings, and the history of series that a person loads (``wanted_gaps``).
    """
    due = (_due(one, now) for one in found)
    return sorted((one for one in due if one), key=_rank)


def backlog_of(found: Iterable[SeriesGaps]) -> list[tuple[Series, IntervalSet]]:
    """Return all that the sensors will ask for in the end, with what is deferred for now."""
    kept = ((one.series, IntervalSet(gap.interval for gap in wanted_gaps(one))) for one in found)
    return [(series, intervals) for series, intervals in kept if intervals]


def _due(found: SeriesGaps, now: datetime) -> Due | None:
    gaps = [gap for gap in wanted_gaps(found) if gap.next_try_at is None or gap.next_try_at <= now]
    if not gaps:
        return None
    intervals = IntervalSet(gap.interval for gap in gaps)
    return Due(found.series, intervals, sum(gap.bars for gap in gaps))


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
        since = found.fresh_from or found.covered_until
        if since is None or found.covered_until is None:
            return []
        older = [part for gap in older if (part := _since(gap, since))]
    return older + mine


def _since(gap: Gap, since: datetime) -> Gap | None:
    """Return the part of a gap from a bar timestamp on; its bars are then those at most."""
    if gap.interval.end <= since:
        return None
    start = max(gap.interval.start, since)
    return replace(gap, interval=Interval(start, gap.interval.end))


def _rank(due: Due) -> tuple[int, float]:
    return -due.series.timeframe.seconds, -due.newest.timestamp()


BIG_BARS = 500_000
"""Missing bars from which on a backlog is announced: more than a day of many symbols."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What sensors will ask for: series, and bars at most."""

    series: int
    bars: int

    @property
    def is_big(self) -> bool:
        """Return whether a person should know before it is loaded."""
        return self.bars >= BIG_BARS


def measured_backlog(found: Sequence[SeriesGaps]) -> Backlog:
    """Count the backlog; cheap, as the gaps know their bars."""
    wanted = [gaps for one in found if (gaps := wanted_gaps(one))]
    return Backlog(len(wanted), sum(gap.bars for gaps in wanted for gap in gaps))


def backlog_plan(
    index: GapIndex, found: Sequence[SeriesGaps], config: GatewayConfig, now: datetime
) -> str:
    """Say in one line what loading the backlog takes: requests, bars, bytes, time."""
    rates = measured_rates(index.store.ledger, config.gateway, conservative=config.conservative)
    plan = estimate(backlog_of(found), index.calendars, rates=rates, now=now)
    return (
        f"a backlog of {len(plan.parts)} series is loaded from now on: {plan.summary} "
        f"({plan.basis}); `backfill: manual` in universe.yaml leaves it to you"
    )
