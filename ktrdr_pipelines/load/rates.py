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

FEWEST_BARS: Final = 500
"""Stored bars of a timeframe below which a file's own weight hides what a bar takes."""

ASSUMED_BAR_BYTES: Final = 24.0
"""Bytes of a stored bar until enough are held: recorded stock bars take 15 to 35."""

_INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds a request and bytes a bar, by timeframe; a timeframe that is absent is not measured.

    ``answers`` is how many answers the seconds were measured from. ``conservative`` puts every
    request under the safe delay.
    """

    request_s: Mapping[Timeframe, float] = field(default_factory=dict)
    bar_bytes: Mapping[Timeframe, float] = field(default_factory=dict)
    answers: int = 0
    conservative: bool = False

    def seconds(self, timeframe: Timeframe, requests: int, bars: int) -> float:
        """Give how long so many requests take, as many at a time as the gateway gets."""
        if self.conservative:
            return requests * IbLimitsRegistry.SAFE_DELAY_S.value
        if timeframe in self.request_s:
            return requests * self.request_s[timeframe]
        work_s = requests * ASSUMED_REQUEST_S + bars * ASSUMED_BAR_S
        return work_s / IbLimitsRegistry.IN_FLIGHT.value

    def size(self, timeframe: Timeframe, bars: int) -> int:
        """Give how many bytes on disk so many bars take."""
        return round(bars * self.bar_bytes.get(timeframe, ASSUMED_BAR_BYTES))

    def basis(self, timeframes: Iterable[Timeframe]) -> str:
        """Say what the seconds rest on."""
        if self.conservative:
            delay_s = IbLimitsRegistry.SAFE_DELAY_S.value
            return f"IB_PACING=conservative: a request every {delay_s:.0f} s"
        wanted = set(timeframes)
        measured, others = wanted & set(self.request_s), wanted - set(self.request_s)
        parts = []
        if measured:
            names = _names(measured)
            parts.append(f"measured for {names} from {self.answers:,} answers of this gateway")
        if others:
            parts.append(
                f"assumed for {_names(others)}: {ASSUMED_REQUEST_S} s a request and "
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
    many = Counter(_timeframe(record.series) for record in answered)
    enough = {one: number for one, number in many.items() if number >= FEWEST_MEASURED}
    busy_s = _busy_s(answered)
    return Rates(
        request_s={one: busy_s[one] / number for one, number in enough.items()},
        bar_bytes={
            Timeframe(name): size / rows
            for name, (size, rows) in ledger.sizes().items()
            if rows >= FEWEST_BARS
        },
        answers=sum(enough.values()),
        conservative=conservative,
    )


def _busy_s(records: Iterable[RequestRecord]) -> dict[Timeframe, float]:
    """Give the seconds that the requests of each timeframe took.

    All that were under way at a moment share it, so that the times of timeframes add up to what
    went by, however they were mixed.
    """
    events = sorted(event for record in records for event in _ends(record))
    busy_s: defaultdict[Timeframe, float] = defaultdict(float)
    under_way: Counter[Timeframe] = Counter()
    for (at, change, timeframe), (until, _, _) in pairwise(events):
        under_way[timeframe] += change
        for one, number in under_way.items():
            busy_s[one] += (until - at).total_seconds() * number / max(under_way.total(), 1)
    return busy_s


def _ends(record: RequestRecord) -> Iterator[tuple[datetime, int, Timeframe]]:
    """Give the beginning and the end of a request: when, and by how many more are under way."""
    timeframe = _timeframe(record.series)
    took = max(timedelta(seconds=record.took_s), _INSTANT)
    yield record.sent_at, 1, timeframe
    yield record.sent_at + took, -1, timeframe


def _timeframe(key: str) -> Timeframe:
    return Timeframe(key.rpartition("|")[2])


def _names(timeframes: Iterable[Timeframe]) -> str:
    wanted = set(timeframes)
    return " ".join(one for one in Timeframe if one in wanted)
