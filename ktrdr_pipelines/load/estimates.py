"""What a load would cost: requests, bars, bytes on disk and seconds, asking nobody.

Not here: what is missing (``load.outlook``, ``load.gapbook``), how fast things go
(``load.rates``).
"""

from collections.abc import Collection, Iterable
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
    that is not known yet; ``up_to_now`` of them are requested with an empty end. ``bars`` is what
    the calendar expects: a thin market has fewer.
    """

    series: Series
    gaps: IntervalSet
    requests: int
    bars: int
    size_bytes: int
    seconds: float
    up_to_now: int = 0


@dataclass(frozen=True, slots=True)
class Latency:
    """The seconds of one request of a timeframe, as many at a time as the gateway gets.

    ``ends_now`` says that its end is empty, ``is_measured`` that this gateway took so long.
    """

    timeframe: Timeframe
    ends_now: bool
    seconds: float
    is_measured: bool


@dataclass(frozen=True, slots=True)
class Estimate:
    """What filling the gaps of many series costs, and what the seconds rest on.

    ``latencies`` are those of the timeframes that are asked for, with an end and with an empty one.
    """

    parts: tuple[SeriesEstimate, ...] = ()
    basis: str = ""
    latencies: tuple[Latency, ...] = ()

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
    up_to_now: int = 0
    newest_bars: int = 0


@dataclass(frozen=True, slots=True)
class _Costs:
    """Costs of gaps; series that lack the same are planned once."""

    now: datetime
    known: dict[tuple[SessionCalendar, Timeframe, IntervalSet, bool], _Cost] = field(
        default_factory=dict
    )

    def of(
        self, calendar: SessionCalendar, timeframe: Timeframe, gaps: IntervalSet, *, is_tail: bool
    ) -> _Cost:
        key = (calendar, timeframe, gaps, is_tail)
        if key not in self.known:
            self.known[key] = _cost(calendar, timeframe, gaps, self.now, is_tail=is_tail)
        return self.known[key]


def estimate(
    missing: Iterable[tuple[Series, IntervalSet]],
    calendars: Calendars,
    *,
    rates: Rates,
    now: datetime,
    tails: Collection[Series] = (),
) -> Estimate:
    """Say what it costs to ask for what is missing.

    Args:
        missing: series and their gaps, on the stamp axis; a series without any costs nothing.
        calendars: which sessions are expected.
        rates: how fast the gateway answers and how much room bars take.
        now: what is due is due by then.
        tails: the series whose newest gaps a tail brings, with an empty end where that is possible.
    """
    costs = _Costs(now)
    parts = []
    for series, gaps in missing:
        timeframe = series.timeframe
        calendar, is_tail = calendars.of(series.instrument), series in tails
        cost = costs.of(calendar, timeframe, gaps, is_tail=is_tail)
        others, other_bars = cost.requests - cost.up_to_now, cost.bars - cost.newest_bars
        parts.append(
            SeriesEstimate(
                series=series,
                gaps=gaps,
                requests=cost.requests,
                bars=cost.bars,
                size_bytes=rates.size(timeframe, cost.bars),
                seconds=rates.seconds(timeframe, others, other_bars)
                + rates.seconds(timeframe, cost.up_to_now, cost.newest_bars, ends_now=True),
                up_to_now=cost.up_to_now,
            )
        )
    asked = {
        ends_now: {one.series.timeframe for one in parts if _asks(one, ends_now=ends_now)}
        for ends_now in (False, True)
    }
    basis = (rates.basis(kinds, ends_now=ends_now) for ends_now, kinds in asked.items() if kinds)
    latencies = tuple(
        Latency(one, ends_now, *rates.latency_s(one, ends_now=ends_now))
        for one in Timeframe
        if one in asked[False] | asked[True]
        for ends_now in (False, True)
    )
    return Estimate(tuple(parts), "; ".join(dict.fromkeys(basis)), latencies)


def _asks(part: SeriesEstimate, *, ends_now: bool) -> bool:
    return bool(part.up_to_now if ends_now else part.requests - part.up_to_now)


def _cost(
    calendar: SessionCalendar,
    timeframe: Timeframe,
    gaps: IntervalSet,
    now: datetime,
    *,
    is_tail: bool,
) -> _Cost:
    need = Need(
        calendar=calendar,
        timeframe=timeframe,
        wanted=gaps,
        settled=IntervalSet(),
        now=now,
        most_days=IbLimitsRegistry.SAFE_DAYS.value[timeframe.value],
        ends_now=is_tail,
    )
    due = need.gaps()
    if not due:
        return _Cost(0, 0)
    spans = span_arrays(calendar, timeframe)

    def bars_in(part: IntervalSet) -> int:
        pieces = shared(stretches_of(part), spans.spans)
        return int(np.sum(spans.bars_in(Stretches(pieces.starts, pieces.ends))))

    chunks = plan(need)
    newest = [chunk.stamps for chunk in chunks if chunk.now_until is not None]
    return _Cost(len(chunks), bars_in(due), len(newest), bars_in(due & IntervalSet(newest)))


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
