"""How fast a gateway has answered and how much room bars take: measured where that was possible.

Not here: what is to be asked (``load.estimates``).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from ktrdr_pipelines.core.intervals import Interval, IntervalSet
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

ASSUMED_BAR_BYTES: Final = 24.0
"""Bytes of a stored bar until the store holds some: recorded stock bars take 15 to 35."""

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
        return round(bars * self.bar_bytes.get(timeframe, self._usual_bytes))

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

    @property
    def _usual_bytes(self) -> float:
        known = self.bar_bytes.values()
        return sum(known) / len(known) if known else ASSUMED_BAR_BYTES


def measured_rates(ledger: Ledger, gateway: str, *, conservative: bool = False) -> Rates:
    """Measure what the ledger knows of a gateway and of the store."""
    answered = [
        record
        for record in ledger.requests(NEWEST_LOOKED_AT)
        if record.gateway == gateway and record.rows
    ]
    by_timeframe: dict[Timeframe, list[RequestRecord]] = {}
    for record in answered:
        by_timeframe.setdefault(_timeframe(record.series), []).append(record)
    enough = {one: many for one, many in by_timeframe.items() if len(many) >= FEWEST_MEASURED}
    return Rates(
        request_s={one: _busy_s(many) / len(many) for one, many in enough.items()},
        bar_bytes={
            Timeframe(name): size / rows for name, (size, rows) in ledger.sizes().items() if rows
        },
        answers=sum(map(len, enough.values())),
        conservative=conservative,
    )


def _busy_s(records: Iterable[RequestRecord]) -> float:
    """Give the seconds in which any of the requests was under way."""
    spans = (
        Interval(one.sent_at, one.sent_at + max(timedelta(seconds=one.took_s), _INSTANT))
        for one in records
    )
    return IntervalSet(spans).length.total_seconds()


def _timeframe(key: str) -> Timeframe:
    return Timeframe(key.rpartition("|")[2])


def _names(timeframes: Iterable[Timeframe]) -> str:
    wanted = set(timeframes)
    return " ".join(one for one in Timeframe if one in wanted)
