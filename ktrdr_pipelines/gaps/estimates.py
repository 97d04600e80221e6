"""Estimate what a load costs without a gateway: requests, bars, bytes on disk and seconds.

The rates, how fast a gateway has answered and how much room bars take, are measured where the
ledger has enough records, and assumed elsewhere.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

import numpy as np

from ktrdr_pipelines.domain.calendars.registry import Calendars
from ktrdr_pipelines.domain.calendars.session_grid import session_grid
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.planning.chunks import Need, PlannedCounts, planned_counts
from ktrdr_pipelines.domain.planning.width_learning import LearnedWidth, kind_of
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.store.ledger.ledger import Ledger, RequestRecord

FEWEST_MEASURED: Final = 5
"""Fewest responses of a timeframe from which its rate is measured."""

NEWEST_REQUESTS: Final = 5_000
"""Number of the newest audited requests that rates are measured from."""

ASSUMED_REQUEST_S, ASSUMED_BAR_S = 0.6, 0.001
"""Seconds of one request and of each bar in it, until they are measured.

Source: community reports, grade C as in ``limits``: 390 bars in 0.6 s and 1,950 in 8 s (ib_insync
#268), 17,970 in 5.4 s (LEAN IB PR #62).
"""

ASSUMED_NOW_S: Final = 0.2
"""Seconds of one request whose end is empty, which means now.

Source: a published log, grade L as in ``limits``: 50 stocks at once in 1.4 s with an empty end, and
about 30 times that with an end (ib_insync #327).
"""

FEWEST_BARS: Final = 500
"""Fewest stored bars of a timeframe from which bytes a bar are measured: files have an overhead."""

ASSUMED_BAR_BYTES: Final = 16.0
"""Bytes of a stored bar until they are measured: minutes take 5 to 18, hours up to 30."""

_INSTANT = timedelta(microseconds=1)

_Kind = tuple[Timeframe, bool]
"""Kind of a request: its timeframe, and whether its end was empty."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds a request and bytes a bar, by timeframe; a timeframe that is absent is not measured.

    ``now_request_s`` is for requests whose end is empty, which means now, ``request_s`` for those
    with an end. ``widths`` are the learned widths of requests, by kind of series, and ``answers``
    is the number of responses that the seconds were measured from.
    ``conservative``: every request counts in IB's window of ten minutes.
    """

    request_s: Mapping[Timeframe, float] = field(default_factory=dict)
    bar_bytes: Mapping[Timeframe, float] = field(default_factory=dict)
    answers: int = 0
    conservative: bool = False
    now_request_s: Mapping[Timeframe, float] = field(default_factory=dict)
    widths: Mapping[str, LearnedWidth] = field(default_factory=dict)

    def width(self, series: Series, calendar: SessionCalendar) -> LearnedWidth | None:
        """Return what was learned of the width of a series' requests; None if nothing was."""
        return self.widths.get(kind_of(series, calendar)) if series.timeframe.is_intraday else None

    def seconds(
        self,
        timeframe: Timeframe,
        requests: int,
        bars: int,
        *,
        ends_now: bool = False,
        width: LearnedWidth | None = None,
    ) -> float:
        """Return the seconds that so many requests take, sent with the usual concurrency.

        With a learned width, they are those that its bars took.
        """
        if width is not None and width.best.bars_per_s:
            return bars / width.best.bars_per_s / max(width.best.at_once, 1.0)
        return max(
            self.window_s(requests), self._busy_s(timeframe, requests, bars, ends_now=ends_now)
        )

    def window_s(self, requests: int) -> float:
        """Return the seconds until the last of so many requests is in a window of the budget."""
        if not self.conservative or requests < 1:
            return 0.0
        # What fits into a window is sent at once.
        return (requests - 1) // _window_most() * IbLimitsRegistry.WINDOW_S.value

    def _busy_s(self, timeframe: Timeframe, requests: int, bars: int, *, ends_now: bool) -> float:
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
        """Return what the seconds of requests are based on.

        Args:
            timeframes: the timeframes of the requests.
            ends_now: whether their end is empty.
        """
        if self.conservative:
            window = f"{IbLimitsRegistry.WINDOW_S.value / 60:.0f} min"
            return f"IB_PACING=conservative: {_window_most()} requests in {window}"
        wanted = set(timeframes)
        known = set(self.now_request_s if ends_now else self.request_s)
        measured, others = wanted & known, wanted - known
        what = " up to now" if ends_now else ""
        assumed_s = ASSUMED_NOW_S if ends_now else ASSUMED_REQUEST_S
        parts = []
        if measured:
            names = _names(measured)
            count = f"{self.answers:,} responses of this gateway"
            parts.append(f"measured for {names}{what} from {count}")
        if others:
            parts.append(
                f"assumed for {_names(others)}{what}: {assumed_s} s a request and "
                f"{ASSUMED_BAR_S * 1000:.0f} ms a bar, {IbLimitsRegistry.CONCURRENCY.value} at once"
            )
        return "; ".join(parts)


def _window_most() -> int:
    """Return how many requests of the window rule loads may use; the rest is for tails."""
    limits = IbLimitsRegistry
    return limits.WINDOW_MOST.value - limits.WINDOW_RESERVE.value + limits.WINDOW_LENT.value


def measured_rates(
    ledger: Ledger,
    gateway: str,
    *,
    conservative: bool = False,
    widths: Mapping[str, LearnedWidth] | None = None,
) -> Rates:
    """Return the rates of a gateway and of the store, measured from the ledger.

    ``widths`` are the learned widths of requests to that gateway.
    """
    answered = [
        record
        for record in ledger.requests.newest(NEWEST_REQUESTS)
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
            for name, (size, rows) in ledger.files.sizes().items()
            if rows >= FEWEST_BARS
        },
        answers=sum(enough.values()),
        conservative=conservative,
        widths=dict(widths or {}),
    )


def _busy_s(records: Iterable[RequestRecord]) -> dict[_Kind, float]:
    """Return the seconds that the requests of each kind took.

    All requests that were open at a moment share it, so that the times of the kinds add up to the
    time that passed, however they were mixed.
    """
    # Start and end of each request: when, and by how many more are open from then on.
    events: list[tuple[datetime, int, _Kind]] = []
    for record in records:
        kind = _kind(record)
        took = max(timedelta(seconds=record.took_s), _INSTANT)
        events += [(record.sent_at, 1, kind), (record.sent_at + took, -1, kind)]
    events.sort()
    busy_s: defaultdict[_Kind, float] = defaultdict(float)
    open_requests: Counter[_Kind] = Counter()
    for (at, change, kind), (until, _, _) in pairwise(events):
        open_requests[kind] += change
        for one, number in open_requests.items():
            busy_s[one] += (until - at).total_seconds() * number / max(open_requests.total(), 1)
    return busy_s


def _kind(record: RequestRecord) -> _Kind:
    return Timeframe(record.series.rpartition("|")[2]), record.asked_end is None


def _names(timeframes: Iterable[Timeframe]) -> str:
    wanted = set(timeframes)
    return " ".join(one for one in Timeframe if one in wanted)


@dataclass(frozen=True, slots=True)
class SeriesEstimate:
    """What filling the gaps of one series costs.

    ``requests`` is the number in the first plan: ranges without bars take more, and so do years
    before a listing that is not known yet; ``up_to_now`` of them are requested with an empty end.
    ``bars`` is what the calendar expects: a thin market has fewer.
    """

    series: Series
    gaps: IntervalSet
    requests: int
    bars: int
    size_bytes: int
    seconds: float
    up_to_now: int = 0
    calendar: SessionCalendar | None = field(default=None, repr=False, compare=False)

    @property
    def ranges(self) -> IntervalSet:
        """The gaps, joined where no bar is expected between two: over nights and weekends."""
        gaps = self.gaps
        if self.calendar is None or len(gaps) < 2:
            return gaps
        grid = session_grid(self.calendar, self.series.timeframe)
        begins = np.append(True, ~grid.follow(gaps.starts, gaps.ends))
        return IntervalSet.from_arrays(gaps.starts[begins], gaps.ends[np.append(begins[1:], True)])


@dataclass(frozen=True, slots=True)
class Latency:
    """The seconds of one request of a timeframe, sent with the usual concurrency.

    ``ends_now``: its end is empty. ``is_measured``: measured at this gateway, not assumed.
    """

    timeframe: Timeframe
    ends_now: bool
    seconds: float
    is_measured: bool


@dataclass(frozen=True, slots=True)
class PlannedWidth:
    """The width of the requests for one kind of series, and what it was learned from."""

    kind: str
    learned: LearnedWidth

    def __str__(self) -> str:
        learned = self.learned
        sessions = f"{learned.width} session{'s' * (learned.width != 1)}"
        text = f"{self.kind}: width {sessions}, learned {learned.learned_on.date()}"
        rates = learned.rates
        if learned.width not in rates:
            return text
        others = [
            f"{width}: {rate:,.0f}{' (undecided)' * (width in learned.undecided)}"
            for width, rate in rates.items()
            if width != learned.width
        ]
        text += f": {rates[learned.width]:,.0f} bars/s each in flight"
        return f"{text}; {', '.join(others)}" if others else text


@dataclass(frozen=True, slots=True)
class Estimate:
    """What filling the gaps of many series costs, and what the seconds are based on.

    ``latencies`` are those of the timeframes that are requested, with an end and with an empty one.
    ``window_s`` is how long the budget makes all requests together wait; ``widths`` are the learned
    widths of the requests.
    """

    parts: tuple[SeriesEstimate, ...] = ()
    basis: str = ""
    latencies: tuple[Latency, ...] = ()
    window_s: float = 0.0
    widths: tuple[PlannedWidth, ...] = ()

    @property
    def requests(self) -> int:
        """Number of requests for bars."""
        return sum(part.requests for part in self.parts)

    @property
    def bars(self) -> int:
        """Number of bars, at most."""
        return sum(part.bars for part in self.parts)

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return sum(part.size_bytes for part in self.parts)

    @property
    def seconds(self) -> float:
        """Seconds at the gateway's rate; series share its concurrency, so their times add up."""
        return max(sum(part.seconds for part in self.parts), self.window_s)

    @property
    def summary(self) -> str:
        """One line for the user."""
        return (
            f"{self.requests:,} requests, up to {self.bars:,} bars, "
            f"{size_text(self.size_bytes)}, about {time_text(self.seconds)}"
        )


_CostKey = tuple[SessionCalendar, Timeframe, IntervalSet, bool, int | None]


@dataclass(frozen=True, slots=True)
class _Costs:
    """Costs of gaps; series that lack the same are planned once."""

    now: datetime
    known: dict[_CostKey, PlannedCounts] = field(default_factory=dict)

    def of(
        self,
        calendar: SessionCalendar,
        timeframe: Timeframe,
        gaps: IntervalSet,
        *,
        is_tail: bool,
        width: int | None = None,
    ) -> PlannedCounts:
        key = (calendar, timeframe, gaps, is_tail, width)
        if key not in self.known:
            self.known[key] = _cost(
                calendar, timeframe, gaps, self.now, is_tail=is_tail, width=width
            )
        return self.known[key]


def estimate(
    missing: Iterable[tuple[Series, IntervalSet]],
    calendars: Calendars,
    *,
    rates: Rates,
    now: datetime,
    tails: Collection[Series] = (),
) -> Estimate:
    """Return what it costs to request what is missing.

    Args:
        missing: series and their gaps by bar timestamp; a series without any costs nothing.
        calendars: which sessions are expected.
        rates: how fast the gateway answers and how much room bars take.
        now: the moment up to which bars are due.
        tails: series whose newest gaps are requested as tails, with an empty end where possible.
    """
    costs = _Costs(now)
    parts: list[SeriesEstimate] = []
    widths: dict[str, PlannedWidth] = {}
    for series, gaps in missing:
        timeframe = series.timeframe
        calendar, is_tail = calendars.of(series.instrument), series in tails
        learned = None if is_tail else rates.width(series, calendar)
        width = None if learned is None else learned.planned(timeframe)
        cost = costs.of(calendar, timeframe, gaps, is_tail=is_tail, width=width)
        if learned is not None and cost.requests:
            kind = kind_of(series, calendar)
            widths[kind] = PlannedWidth(kind, learned)
        others, other_bars = cost.requests - cost.up_to_now, cost.bars - cost.newest_bars
        parts.append(
            SeriesEstimate(
                series=series,
                gaps=gaps,
                requests=cost.requests,
                bars=cost.bars,
                size_bytes=rates.size(timeframe, cost.bars),
                seconds=rates.seconds(timeframe, others, other_bars, width=learned)
                + rates.seconds(timeframe, cost.up_to_now, cost.newest_bars, ends_now=True),
                up_to_now=cost.up_to_now,
                calendar=calendar,
            )
        )
    # Timeframes with requests that have an end, and with requests whose end is empty.
    requested = {
        False: {one.series.timeframe for one in parts if one.requests > one.up_to_now},
        True: {one.series.timeframe for one in parts if one.up_to_now},
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
    window_s = rates.window_s(sum(part.requests for part in parts))
    return Estimate(
        tuple(parts),
        "; ".join(dict.fromkeys(basis)),
        latencies,
        window_s,
        tuple(widths.values()),
    )


def _cost(
    calendar: SessionCalendar,
    timeframe: Timeframe,
    gaps: IntervalSet,
    now: datetime,
    *,
    is_tail: bool,
    width: int | None,
) -> PlannedCounts:
    need = Need(
        calendar=calendar,
        timeframe=timeframe,
        wanted=gaps,
        covered=IntervalSet(),
        now=now,
        most_days=IbLimitsRegistry.SAFE_DAYS.value[timeframe.value],
        ends_now=is_tail,
        width=width,
    )
    return planned_counts(need)


def size_text(size_bytes: float) -> str:
    """Return a number of bytes in a readable unit."""
    for unit in ("B", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:,.0f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:,.1f} GB"


def time_text(seconds: float) -> str:
    """Return a duration in a readable unit."""
    for most, unit, length_s in ((90, "s", 1), (5_400, "min", 60), (172_800, "h", 3_600)):
        if seconds < most:
            return f"{seconds / length_s:,.0f} {unit}"
    return f"{seconds / 86_400:,.1f} days"
