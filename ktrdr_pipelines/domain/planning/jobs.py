"""Load modes and options: which interval of a series a load covers, and how it is requested.

Not here: what of that interval is missing (``domain.planning.gaps``), how it is cut into requests
(``domain.planning.chunks``).
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar, interval_between
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import IntervalSet, between


class Mode(StrEnum):
    """What to load.

    ``tail``: from the last covered bar, whatever its age, to now, and ranges that failed earlier.
    ``backfill``: from the start to the oldest covered bar. ``full``: all of it, including gaps
    between covered bars.
    """

    TAIL = "tail"
    BACKFILL = "backfill"
    FULL = "full"


class RequestedBy(StrEnum):
    """Who requests a load.

    ``person``: everything missing is requested, ignoring backoff after failed attempts. ``sensor``:
    ranges that failed earlier are deferred until their next attempt is due.
    """

    PERSON = "person"
    SENSOR = "sensor"


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How an interval is requested.

    ``tail``: before backfills in the gateway's request budget, and oldest first. ``requested_by``:
    who requests the load. ``refresh``: covered ranges are requested again too, once.
    """

    tail: bool = False
    requested_by: RequestedBy = RequestedBy.PERSON
    refresh: bool = False


@dataclass(frozen=True, slots=True)
class Bounds:
    """The interval that the user named, as timestamps; None for a bound that was not given."""

    start: datetime | None = None
    end: datetime | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One series to load: by mode and bounds, or by an interval of bar timestamps.

    ``requested_by`` decides whether ranges of failed attempts are deferred; with ``refresh``, what
    is covered is requested once more too.
    """

    series: Series
    mode: Mode = Mode.FULL
    bounds: Bounds = field(default_factory=Bounds)
    wanted: IntervalSet | None = None
    requested_by: RequestedBy = RequestedBy.PERSON
    refresh: bool = False

    @property
    def options(self) -> LoadOptions:
        """The load options of the job."""
        return LoadOptions(self.mode is Mode.TAIL, self.requested_by, self.refresh)


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
    """Return the intervals of timestamps that a mode covers for a series.

    With nothing covered yet, every mode means everything from the start. ``failed`` is what failed
    attempts are recorded for: a tail requests these ranges again.
    """
    # From the start given, or the universe's, to the end of the bars that can exist by now.
    start = bounds.start or first_timestamp(series, calendar)
    today = calendar.day_of(now)
    end = interval_between(calendar, series.timeframe, today, today + timedelta(days=7)).end
    everything = between(start, min(bounds.end, end) if bounds.end else end)
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


def first_timestamp(series: Series, calendar: SessionCalendar) -> datetime:
    """Return the first timestamp of a series from the start that the universe gives."""
    start = series.instrument.start
    return interval_between(calendar, series.timeframe, start, start + timedelta(days=7)).start
