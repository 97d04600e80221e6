"""What a load would cost, by the rates that were measured.

What a load would cost: requests, bars, bytes on disk and seconds, asking nobody.

How fast a gateway has answered and how much room bars take: measured where that was possible.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

import numpy as np

from ktrdr_pipelines.domain.calendars.registry import Calendars
from ktrdr_pipelines.domain.calendars.session_grid import (
    IntervalArrays,
    interval_arrays,
    shared,
    span_arrays,
)
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.planning.chunks import Need, plan
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.store.ledger.ledger import Ledger, RequestRecord

FEWEST_MEASURED: Final = 5
"""Answers of a timeframe below which its rate is taken from elsewhere."""

NEWEST_LOOKED_AT: Final = 5_000
"""Audited requests that a rate is taken from."""

ASSUMED_REQUEST_S, ASSUMED_BAR_S = 0.6, 0.001
"""Seconds of one request and of each bar in it, until they are measured.

Source: observed by others, grade C: 390 bars in 0.6 s, 1,950 in 8 s (ib_insync #268), 17,970 in
5.4 s (LEAN IB PR #62).
"""

ASSUMED_NOW_S: Final = 0.2
"""The same of a request whose end is empty, which means now.

Source: observed by others, grade L: 50 stocks at once in 1.4 s with an empty end, and some 30 times
that with an end (ib_insync #327).
"""

FEWEST_BARS: Final = 500
"""Stored bars of a timeframe below which a file's own weight hides what a bar takes."""

ASSUMED_BAR_BYTES: Final = 24.0
"""Bytes of a stored bar until enough are held: recorded stock bars take 15 to 35."""

_INSTANT = timedelta(microseconds=1)

_Kind = tuple[Timeframe, bool]
"""Of a request: its timeframe, and whether its end was empty."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds a request and bytes a bar, by timeframe; a timeframe that is absent is not measured.

    ``now_request_s`` is for requests whose end is empty, which means now, ``request_s`` for those
    with an end. ``answers`` is how many answers the seconds were measured from. ``conservative``
    puts every request under the safe delay.
    """

    request_s: Mapping[Timeframe, float] = field(default_factory=dict)
    bar_bytes: Mapping[Timeframe, float] = field(default_factory=dict)
    answers: int = 0
    conservative: bool = False
    now_request_s: Mapping[Timeframe, float] = field(default_factory=dict)

    def seconds(
        self, timeframe: Timeframe, requests: int, bars: int, *, ends_now: bool = False
    ) -> float:
        """Return how long so many requests take, as many at a time as the gateway gets."""
        if self.conservative:
            return requests * IbLimitsRegistry.SAFE_DELAY_S.value
        measured = self.now_request_s if ends_now else self.request_s
        if timeframe in measured:
            return requests * measured[timeframe]
        requests_s = requests * (ASSUMED_NOW_S if ends_now else ASSUMED_REQUEST_S)
        return (requests_s + bars * ASSUMED_BAR_S) / IbLimitsRegistry.CONCURRENCY.value

    def latency_s(self, timeframe: Timeframe, *, ends_now: bool) -> tuple[float, bool]:
        """Return the seconds of one request, without its bars, and whether they are measured."""
        measured = self.now_request_s if ends_now else self.request_s
        return self.seconds(timeframe, 1, 0, ends_now=ends_now), timeframe in measured

    def size(self, timeframe: Timeframe, bars: int) -> int:
        """Return how many bytes on disk so many bars take."""
        return round(bars * self.bar_bytes.get(timeframe, ASSUMED_BAR_BYTES))

    def basis(self, timeframes: Iterable[Timeframe], *, ends_now: bool = False) -> str:
        """Say what the seconds rest on.

        Args:
            timeframes: of the requests.
            ends_now: whether their end is empty.
        """
        if self.conservative:
            delay_s = IbLimitsRegistry.SAFE_DELAY_S.value
            return f"IB_PACING=conservative: a request every {delay_s:.0f} s"
        wanted = set(timeframes)
        known = set(self.now_request_s if ends_now else self.request_s)
        measured, others = wanted & known, wanted - known
        what = " up to now" if ends_now else ""
        assumed_s = ASSUMED_NOW_S if ends_now else ASSUMED_REQUEST_S
        parts = []
        if measured:
            names = _names(measured)
            count = f"{self.answers:,} answers of this gateway"
            parts.append(f"measured for {names}{what} from {count}")
        if others:
            parts.append(
                f"assumed for {_names(others)}{what}: {assumed_s} s a request and "
                f"{ASSUMED_BAR_S * 1000:.0f} ms a bar, {IbLimitsRegistry.CONCURRENCY.value} at once"
            )
        return "; ".join(parts)


def measured_rates(ledger: Ledger, gateway: str, *, conservative: bool = False) -> Rates:
    """Measure what the ledger knows of a gateway and of the store."""
    answered = [
        record
        for record in ledger.requests(NEWEST_LOOKED_AT)
        if record.gateway == gateway and record.rows
    ]
    many = Counter(_kind(record) for record in answered)
    enough = {one: number for one, number in many.items() if number >= FEWEST_MEASURED}
    busy_s = _busy_s(answered)
    measured_s = {one: busy_s[one] / number for one, number in enough.items()}
    return Rates(
        request_s={one: s for (one, ends_now), s in measured_s.items() if not ends_now},
        now_request_s={one: s for (one, ends_now), s in measured_s.items() if ends_now},
        bar_bytes={
            Timeframe(name): size / rows
            for name, (size, rows) in ledger.sizes().items()
            if rows >= FEWEST_BARS
        },
        answers=sum(enough.values()),
        conservative=conservative,
    )


def _busy_s(records: Iterable[RequestRecord]) -> dict[_Kind, float]:
    """Return the seconds that the requests of each kind took.

    All that were under way at a moment share it, so that the times of kinds add up to what went
    by, however they were mixed.
    """
    events = sorted(event for record in records for event in _ends(record))
    busy_s: defaultdict[_Kind, float] = defaultdict(float)
    under_way: Counter[_Kind] = Counter()
    for (at, change, kind), (until, _, _) in pairwise(events):
        under_way[kind] += change
        for one, number in under_way.items():
            busy_s[one] += (until - at).total_seconds() * number / max(under_way.total(), 1)
    return busy_s


def _ends(record: RequestRecord) -> Iterator[tuple[datetime, int, _Kind]]:
    """Return the beginning and the end of a request: when, and by how many more are under way."""
    kind = _kind(record)
    took = max(timedelta(seconds=record.took_s), _INSTANT)
    yield record.sent_at, 1, kind
    yield record.sent_at + took, -1, kind


def _kind(record: RequestRecord) -> _Kind:
    return Timeframe(record.series.rpartition("|")[2]), record.asked_end is None


def _names(timeframes: Iterable[Timeframe]) -> str:
    wanted = set(timeframes)
    return " ".join(one for one in Timeframe if one in wanted)


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
        missing: series and their gaps, on the axis of bar timestamps; a series without any costs nothing.
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
    requested = {
        ends_now: {one.series.timeframe for one in parts if _needs_request(one, ends_now=ends_now)}
        for ends_now in (False, True)
    }
    basis = (
        rates.basis(kinds, ends_now=ends_now) for ends_now, kinds in requested.items() if kinds
    )
    latencies = tuple(
        Latency(one, ends_now, *rates.latency_s(one, ends_now=ends_now))
        for one in Timeframe
        if one in requested[False] | requested[True]
        for ends_now in (False, True)
    )
    return Estimate(tuple(parts), "; ".join(dict.fromkeys(basis)), latencies)


def _needs_request(part: SeriesEstimate, *, ends_now: bool) -> bool:
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
        covered=IntervalSet(),
        now=now,
        most_days=IbLimitsRegistry.SAFE_DAYS.value[timeframe.value],
        ends_now=is_tail,
    )
    due = need.gaps()
    if not due:
        return _Cost(0, 0)
    spans = span_arrays(calendar, timeframe)

    def bars_in(part: IntervalSet) -> int:
        pieces = shared(interval_arrays(part), spans.spans)
        return int(np.sum(spans.bars_in(IntervalArrays(pieces.starts, pieces.ends))))

    chunks = plan(need)
    newest = [chunk.interval for chunk in chunks if chunk.now_until is not None]
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
