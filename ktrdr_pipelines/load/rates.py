"""How fast a gateway has answered and how much room bars take: measured where that was possible.

Not here: what is to be asked (``load.estimates``).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.store.ledger import Ledger, RequestRecord

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
        """Give how long so many requests take, as many at a time as the gateway gets."""
        if self.conservative:
            return requests * IbLimitsRegistry.SAFE_DELAY_S.value
        measured = self.now_request_s if ends_now else self.request_s
        if timeframe in measured:
            return requests * measured[timeframe]
        work_s = requests * (ASSUMED_NOW_S if ends_now else ASSUMED_REQUEST_S)
        return (work_s + bars * ASSUMED_BAR_S) / IbLimitsRegistry.IN_FLIGHT.value

    def latency_s(self, timeframe: Timeframe, *, ends_now: bool) -> tuple[float, bool]:
        """Return the seconds of one request, without its bars, and whether they are measured."""
        measured = self.now_request_s if ends_now else self.request_s
        return self.seconds(timeframe, 1, 0, ends_now=ends_now), timeframe in measured

    def size(self, timeframe: Timeframe, bars: int) -> int:
        """Give how many bytes on disk so many bars take."""
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
                f"{ASSUMED_BAR_S * 1000:.0f} ms a bar, {IbLimitsRegistry.IN_FLIGHT.value} at once"
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
    """Give the seconds that the requests of each kind took.

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
    """Give the beginning and the end of a request: when, and by how many more are under way."""
    kind = _kind(record)
    took = max(timedelta(seconds=record.took_s), _INSTANT)
    yield record.sent_at, 1, kind
    yield record.sent_at + took, -1, kind


def _kind(record: RequestRecord) -> _Kind:
    return Timeframe(record.series.rpartition("|")[2]), record.asked_end is None


def _names(timeframes: Iterable[Timeframe]) -> str:
    wanted = set(timeframes)
    return " ".join(one for one in Timeframe if one in wanted)
