"""Choose what automatic work requests next: due tails, due gaps, and the backlog of both.

A *tail* is what has become due after the newest bar of a series, one closed session at most. A
series that lacks more than that is *behind*: a gap run fills it, oldest first, and no tail is
requested ahead of it. A tail is *stale* by the open time that has passed since its newest covered
bar: closed time does not count, so a Friday evening bar is fresh on Sunday. The *backlog* is
everything that the sensors will request in the end.

Not here: what is missing (``gaps.index``), what a request costs (``gaps.estimates``).
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from ktrdr_pipelines.domain.calendars.registry import Calendars
from ktrdr_pipelines.domain.instruments import Backfill, Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.domain.planning.gaps import Gap, bar_lag, final_lag
from ktrdr_pipelines.gaps.estimates import Estimate, estimate, measured_rates
from ktrdr_pipelines.gaps.index import GapIndex, SeriesGaps
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.pacing.learned_widths import learned_widths
from ktrdr_pipelines.limits import IbLimitsRegistry

_LOOKBACK = timedelta(days=60)


def stale_s(found: SeriesGaps, calendars: Calendars, now: datetime) -> float:
    """Return the seconds of open session without a covered bar, 0 where nothing was ever covered.

    For daily and weekly bars a session counts once its bar is final; time more than two months ago
    is not counted.
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
"""Closed sessions that a tail may lack, in addition to the open one."""


_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Tail:
    """What is to be requested of one series at once."""

    series: Series
    intervals: IntervalSet


def newer_gaps(found: SeriesGaps) -> list[Gap]:
    """Return the gaps after the newest covered interval; none where nothing is covered yet."""
    until = found.covered_until
    return [] if until is None else [gap for gap in found.gaps if gap.interval.start >= until]


def is_behind(found: SeriesGaps) -> bool:
    """Return whether a series lacks more after its newest bar than a tail requests."""
    return sum(gap.sessions for gap in newer_gaps(found)) > MOST_SESSIONS


def due_tails(
    found: Iterable[SeriesGaps], now: datetime, *, real_now: datetime | None = None
) -> list[Tail]:
    """Return the tails that are due, long timeframes first.

    Args:
        found: what each series holds and lacks.
        now: market time.
        real_now: real time, by which failed attempts become due again; ``now`` if not given.
    """
    retry_now = real_now or now
    tails = (tail for one in found if (tail := _tail(one, now, retry_now)))
    return sorted(tails, key=lambda tail: -tail.series.timeframe.seconds)


def _tail(found: SeriesGaps, now: datetime, retry_now: datetime) -> Tail | None:
    if found.error is not None or found.covered_until is None or is_behind(found):
        return None
    for attempt in found.attempts:
        is_newest = attempt.is_series_wide or attempt.interval.end > found.covered_until
        if is_newest and not attempt.is_due(retry_now):
            return None  # deferred after failed attempts
    waiting = IntervalSet(
        part
        for part in found.waiting
        if part.start >= found.covered_until and _is_worth_requesting(part, now)
    )
    intervals = waiting | IntervalSet(gap.interval for gap in newer_gaps(found))
    return Tail(found.series, intervals) if intervals else None


def _is_worth_requesting(waiting: Interval, now: datetime) -> bool:
    """Return whether to request the uncovered end of a session now.

    Within a minute of its end always; later after 1, 2, 4, ... minutes: late bars are still
    requested, and a stock that was quiet before the close is not requested every minute.
    """
    minutes = (now - waiting.end) // _MINUTE
    return minutes < 1 or minutes & (minutes - 1) == 0


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be requested of one series now: intervals of timestamps, and bars at most."""

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
    def fingerprint(self) -> str:
        """A short fingerprint of the intervals, to detect whether anything has changed."""
        return hashlib.sha256(repr(self.intervals).encode()).hexdigest()[:12]


def due_to_fill(found: Iterable[SeriesGaps], now: datetime) -> list[Due]:
    """Return what is due, long timeframes first, and of one timeframe the newest gaps first.

    Left out are ranges that are deferred after failed attempts, by ``now`` in real time, what a
    tail requests, and the history of series that the user loads (``wanted_gaps``).
    """
    due = []
    for one in found:
        gaps = [
            gap for gap in wanted_gaps(one) if gap.next_try_at is None or gap.next_try_at <= now
        ]
        if gaps:
            intervals = IntervalSet(gap.interval for gap in gaps)
            due.append(Due(one.series, intervals, sum(gap.bars for gap in gaps)))
    return sorted(due, key=lambda one: (-one.series.timeframe.seconds, -one.newest.timestamp()))


def backlog_of(found: Iterable[SeriesGaps]) -> list[tuple[Series, IntervalSet]]:
    """Return everything that the sensors will request, including what is deferred for now."""
    kept = ((one.series, IntervalSet(gap.interval for gap in wanted_gaps(one))) for one in found)
    return [(series, intervals) for series, intervals in kept if intervals]


def wanted_gaps(found: SeriesGaps) -> list[Gap]:
    """Return the gaps that automatic work fills: all except those that tails request.

    The history of a series that the user loads is left out: everything before the timestamp from
    which it is kept fresh. That does not move with the newest bar: gaps are filled newest first,
    which leaves older ones for a while, or for long if a run fails.
    """
    newer = newer_gaps(found)
    behind = newer if is_behind(found) else []
    older = [gap for gap in found.gaps if gap not in newer]
    if found.series.instrument.backfill is Backfill.MANUAL:
        since = found.fresh_from or found.covered_until
        if since is None or found.covered_until is None:
            return []
        # The bars of a gap that is cut here are an upper bound then.
        older = [
            replace(gap, interval=Interval(max(gap.interval.start, since), gap.interval.end))
            for gap in older
            if gap.interval.end > since
        ]
    return older + behind


BIG_BARS = 500_000
"""Number of missing bars from which a backlog is announced: more than a day of many symbols."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What the sensors will request: the number of series, and of bars at most."""

    series: int
    bars: int

    @property
    def is_big(self) -> bool:
        """Whether it is announced before it is loaded."""
        return self.bars >= BIG_BARS


def measured_backlog(found: Sequence[SeriesGaps]) -> Backlog:
    """Return the size of the backlog; this is cheap, as gaps know their bars."""
    wanted = [gaps for one in found if (gaps := wanted_gaps(one))]
    return Backlog(len(wanted), sum(gap.bars for gaps in wanted for gap in gaps))


def backlog_estimate(
    index: GapIndex, found: Sequence[SeriesGaps], config: GatewayConfig, now: datetime
) -> Estimate:
    """Return what loading the backlog takes: requests, bars, bytes, time."""
    rates = measured_rates(
        index.store.ledger,
        config.gateway,
        conservative=config.conservative,
        widths=learned_widths(config, now),
    )
    return estimate(backlog_of(found), index.calendars, rates=rates, now=now)


def backlog_text(plan: Estimate, *, waits: bool = False) -> str:
    """Return one line on what loading a backlog takes; ``waits``: it is not loaded yet."""
    begins = "is not loaded yet" if waits else "is loaded from now on"
    return (
        f"a backlog of {len(plan.parts)} series {begins}: {plan.summary} "
        f"({plan.basis}); with `backfill: manual` in universe.yaml only you load it"
    )
