"""What a load would cost: requests, bars, bytes on disk and seconds, asking nobody.

Not here: what is missing (``load.outlook``, ``load.gapbook``), how fast things go
(``load.rates``).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from ktrdr_pipelines.core.calendars import Calendars
from ktrdr_pipelines.core.instruments import Series
from ktrdr_pipelines.core.intervals import IntervalSet
from ktrdr_pipelines.core.plan import Need, plan
from ktrdr_pipelines.core.sessions import SessionCalendar
from ktrdr_pipelines.core.spanarrays import span_arrays
from ktrdr_pipelines.core.stretches import Stretches, shared, stretches_of
from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.load.rates import Rates


@dataclass(frozen=True, slots=True)
class SeriesEstimate:
    """What filling the gaps of one series costs.

    ``requests`` is what the first plan asks for: silences cost more, and years before a listing
    that is not known yet. ``bars`` is what the calendar expects: a thin market has fewer.
    """

    series: Series
    gaps: IntervalSet
    requests: int
    bars: int
    size_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What filling the gaps of many series costs, and what the seconds rest on."""

    parts: tuple[SeriesEstimate, ...] = ()
    basis: str = ""

    @property
    def requests(self) -> int:
        """Requests for bars."""
        return sum(part.requests for part in self.parts)

    @property
    def bars(self) -> int:
        """Bars, at most."""
        return sum(part.bars for part in self.parts)

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return sum(part.size_bytes for part in self.parts)

    @property
    def seconds(self) -> float:
        """Seconds at the gateway's pace; series share its places, so their times add up."""
        return sum(part.seconds for part in self.parts)

    @property
    def summary(self) -> str:
        """One line for a person."""
        return (
            f"{self.requests:,} requests, up to {self.bars:,} bars, "
            f"{size_text(self.size_bytes)}, about {time_text(self.seconds)}"
        )


@dataclass(frozen=True, slots=True)
class _Cost:
    requests: int
    bars: int


@dataclass(frozen=True, slots=True)
class _Costs:
    """Costs of gaps; series that lack the same are planned once."""

    now: datetime
    known: dict[tuple[SessionCalendar, Timeframe, IntervalSet], _Cost] = field(default_factory=dict)

    def of(self, calendar: SessionCalendar, timeframe: Timeframe, gaps: IntervalSet) -> _Cost:
        key = (calendar, timeframe, gaps)
        if key not in self.known:
            self.known[key] = _cost(calendar, timeframe, gaps, self.now)
        return self.known[key]


def estimate(
    missing: Iterable[tuple[Series, IntervalSet]],
    calendars: Calendars,
    *,
    rates: Rates,
    now: datetime,
) -> Estimate:
    """Say what it costs to ask for what is missing.

    Args:
        missing: series and their gaps, on the stamp axis; a series without any costs nothing.
        calendars: which sessions are expected.
        rates: how fast the gateway answers and how much room bars take.
        now: what is due is due by then.
    """
    costs = _Costs(now)
    parts = []
    for series, gaps in missing:
        timeframe = series.timeframe
        cost = costs.of(calendars.of(series.instrument), timeframe, gaps)
        parts.append(
            SeriesEstimate(
                series=series,
                gaps=gaps,
                requests=cost.requests,
                bars=cost.bars,
                size_bytes=rates.size(timeframe, cost.bars),
                seconds=rates.seconds(timeframe, cost.requests, cost.bars),
            )
        )
    asked = {part.series.timeframe for part in parts if part.requests}
    return Estimate(tuple(parts), rates.basis(asked) if asked else "")


def _cost(
    calendar: SessionCalendar, timeframe: Timeframe, gaps: IntervalSet, now: datetime
) -> _Cost:
    need = Need(
        calendar=calendar,
        timeframe=timeframe,
        wanted=gaps,
        settled=IntervalSet(),
        now=now,
        most_days=IbLimitsRegistry.SAFE_DAYS.value[timeframe.value],
    )
    due = need.gaps()
    if not due:
        return _Cost(0, 0)
    spans = span_arrays(calendar, timeframe)
    pieces = shared(stretches_of(due), spans.spans)
    bars = int(np.sum(spans.bars_in(Stretches(pieces.starts, pieces.ends))))
    return _Cost(len(plan(need)), bars)


def size_text(size_bytes: float) -> str:
    """Write a number of bytes as a person reads it."""
    for unit in ("B", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:,.0f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:,.1f} GB"


def time_text(seconds: float) -> str:
    """Write a length of time as a person reads it."""
    for most, unit, length_s in ((90, "s", 1), (5_400, "min", 60), (172_800, "h", 3_600)):
        if seconds < most:
            return f"{seconds / length_s:,.0f} {unit}"
    return f"{seconds / 86_400:,.1f} days"
