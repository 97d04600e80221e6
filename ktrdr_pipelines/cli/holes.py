"""Holes: unexplained stretches as a person counts them, joined over nights and weekends.

Not here: what is unexplained (``core.gaps``).
"""

from ktrdr_pipelines.core.instruments import Series
from ktrdr_pipelines.core.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.core.sessions import SessionCalendar, expected_stamps


def holes(series: Series, gaps: IntervalSet, calendar: SessionCalendar) -> list[Interval]:
    """Join gaps between which no other bar is expected; oldest first."""
    hull = gaps.hull
    if hull is None:
        return []
    others = expected_stamps(calendar, series.timeframe, hull) - gaps
    joined: list[Interval] = []
    for gap in gaps:
        apart = between(joined[-1].end, gap.start) if joined else None
        if apart is None or others.clip(apart):
            joined.append(gap)
        else:
            joined[-1] = Interval(joined[-1].start, gap.end)
    return joined
