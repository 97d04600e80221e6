"""The load modes: which interval of a series a person or a sensor means.

Not here: what of that interval is missing (``domain.planning.gaps``), how it is asked for
(``domain.planning.chunks``).
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar, interval_between
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet, between


class Mode(StrEnum):
    """What to load.

    ``tail``: from the last covered bar, whatever its age, to now, and what was tried in vain.
    ``backfill``: from the start to the oldest covered bar. ``full``: all of it, inner holes
    included.
    """

    TAIL = "tail"
    BACKFILL = "backfill"
    FULL = "full"


class RequestedBy(StrEnum):
    """Who wants a load.

    ``person``: all that is missing is asked for, whatever was tried before. ``sensor``: work that
    nobody waits for leaves alone what was tried in vain until its next try is due.
    """

    PERSON = "person"
    SENSOR = "sensor"


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How an interval is asked for.

    ``tail``: before backfills in the gateway's budget, and oldest first. ``requested_by``: who
    wants it. ``refresh``: also what is covered, once.
    """

    tail: bool = False
    requested_by: RequestedBy = RequestedBy.PERSON
    refresh: bool = False


@dataclass(frozen=True, slots=True)
class Bounds:
    """The interval that a person named, as timestamps; None where they did not."""

    start: datetime | None = None
    end: datetime | None = None


def wanted_by(
    mode: Mode,
    series: Series,
    *,
    bounds: Bounds,
    coverage: Coverage,
    failed: IntervalSet | None = None,
    calendar: SessionCalendar,
    now: datetime,
) -> IntervalSet:
    """Give the interval of timestamps that a mode means for a series.

    With nothing covered yet, every mode means everything from the start. ``failed`` is what
    attempts are recorded for: a tail asks again for what earlier ones could not have.
    """
    everything = _everything(series, bounds, calendar, now)
    covered = coverage.bars.bounds
    if everything is None:
        return IntervalSet()
    if covered is None or mode is Mode.FULL:
        return IntervalSet([everything])
    if mode is Mode.TAIL:
        part = between(max(everything.start, covered.end), everything.end)
        again = failed.clip(everything) if failed else IntervalSet()
        return again | IntervalSet([part] if part else [])
    part = between(everything.start, min(everything.end, covered.start))
    return IntervalSet([part] if part else [])


def _everything(
    series: Series, bounds: Bounds, calendar: SessionCalendar, now: datetime
) -> Interval | None:
    """Give all from the asked start, or the universe's, to the end of what can exist by now."""
    start = bounds.start or first_timestamp(series, calendar)
    today = calendar.day_of(now)
    ends = interval_between(calendar, series.timeframe, today, today + timedelta(days=7)).end
    return between(start, min(bounds.end, ends) if bounds.end else ends)


def first_timestamp(series: Series, calendar: SessionCalendar) -> datetime:
    """Give the first stamp that the universe wants of a series."""
    start = series.instrument.start
    return interval_between(calendar, series.timeframe, start, start + timedelta(days=7)).start
