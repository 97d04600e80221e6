"""How stale a tail is: the open time that has passed since its newest settled bar.

Closed time does not count: a Friday evening bar is fresh on Sunday. Not here: which tails are due
(``load.tails``).
"""

from datetime import datetime, timedelta

from ktrdr_pipelines.core.calendars import Calendars
from ktrdr_pipelines.core.gaps import bar_lag, final_lag
from ktrdr_pipelines.core.intervals import between
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.load.gapbook import SeriesGaps

_LOOK_BACK = timedelta(days=60)


def stale_s(found: SeriesGaps, calendars: Calendars, now: datetime) -> float:
    """Give the seconds of open session without a settled bar, 0 where nothing was ever settled.

    Sessions that are not final yet count for days and weeks only once they are; what lies more
    than two months back is not counted out.
    """
    if found.settled_until is None:
        return 0.0
    calendar = calendars.of(found.series.instrument)
    timeframe = found.series.timeframe
    since = max(found.settled_until, now - _LOOK_BACK)
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
    """Say whether a tail is older than the registry allows."""
    threshold_s = IbLimitsRegistry.GAP_THRESHOLDS_S.value[found.series.timeframe.value]
    return stale_s(found, calendars, now) > threshold_s
