"""How many sessions one request to a gateway may reach over, as runs have learned it.

A refusal for length states a rule: it is remembered at once, for a month. A request that times out
may have met a short fault of the gateway: what one run learns from it holds for that run only, and
for other runs, for a day, once a second run learns it again. A response to a wider request ends it.

Not here: how requests are cut (``domain.planning.chunks``), the table
(``store.ledger.gateway_records``).
"""

from collections.abc import Callable
from datetime import datetime, timedelta

from ktrdr_pipelines.domain.planning.chunks import ALWAYS_COUNTED, BY_THE_YEAR, narrower
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.store.ledger.gateway_records import WidthRecord
from ktrdr_pipelines.store.ledger.ledger import Ledger

REFUSED = 1_000
"""Number of runs that marks a refusal in the table: more than timeouts can ever reach."""

_REFUSED_FOR = timedelta(seconds=IbLimitsRegistry.REFUSED_WIDTH_S.value)
_ENOUGH_RUNS = 2
_VALID_FOR = timedelta(seconds=IbLimitsRegistry.WIDTH_CACHE_S.value)


class Widths:
    """The most sessions (1w: weeks) of a request that works, by timeframe.

    Args:
        ledger: where widths are remembered.
        gateway: the gateway that they hold for.
        clock: this machine's time.
    """

    def __init__(self, ledger: Ledger, gateway: str, clock: Callable[[], datetime]) -> None:
        self._ledger, self._gateway, self._clock = ledger, gateway, clock
        self._before = ledger.widths.of(gateway)
        self._most = {
            timeframe: record.most
            for timeframe, record in self._before.items()
            if record.runs >= _ENOUGH_RUNS and clock() - record.learned_at < _valid_for(record)
        }
        self._unrecorded: set[Timeframe] = set()

    def __repr__(self) -> str:
        known = ", ".join(f"{timeframe} {most}" for timeframe, most in self._most.items())
        return f"Widths({known or 'as planned'})"

    def most(self, timeframe: Timeframe) -> int | None:
        """Return the most sessions of one request, or None if no limit is known."""
        return self._most.get(timeframe)

    def narrow(self, timeframe: Timeframe, sessions: int, *, refused: str = "") -> bool:
        """Record that a request for so many sessions failed; return whether a narrower one exists.

        Several requests that were open at once narrow the width once. ``refused`` is the duration
        that the gateway called too long, empty after a timeout. After a refusal, days and weeks are
        requested by the year before fewer of them are: a gateway whose table of durations refuses
        more than a few days allows a year, and two days at a time 20 years take 2,500 requests.
        """
        fewer = narrower(timeframe, sessions)
        if fewer is None:
            return False
        known = self._most.get(timeframe)
        if known in {None, BY_THE_YEAR} and _is_counted(timeframe, sessions, refused):
            most = BY_THE_YEAR
        elif known is None or sessions <= known:
            most = fewer
        else:
            most = known
        self._most[timeframe] = most
        if refused:
            record = WidthRecord(most, REFUSED, self._clock())
            self._ledger.widths.record(self._gateway, timeframe, record)
            self._before[timeframe] = record
        else:
            self._unrecorded.add(timeframe)
        return True

    def answered(self, timeframe: Timeframe, sessions: int) -> None:
        """Record a response to so many sessions at once, which confirms or refutes a width."""
        before, most = self._before.get(timeframe), self._most.get(timeframe)
        if timeframe in self._unrecorded and most is not None and sessions <= most:
            self._unrecorded.discard(timeframe)
            runs = 1 if before is None else before.runs + 1
            record = WidthRecord(most, runs, self._clock())
            self._ledger.widths.record(self._gateway, timeframe, record)
        elif most is None and before is not None and sessions > before.most:
            del self._before[timeframe]
            self._ledger.widths.remove(self._gateway, timeframe)


def _is_counted(timeframe: Timeframe, sessions: int, duration: str) -> bool:
    """Return whether a duration counts more days or weeks than every table of durations allows."""
    counted = ALWAYS_COUNTED.get(timeframe)
    return counted is not None and sessions > counted and duration.endswith((" D", " W"))


def _valid_for(record: WidthRecord) -> timedelta:
    return _REFUSED_FOR if record.runs >= REFUSED else _VALID_FOR
