"""The pacing rules of a simulated gateway, and its speed under load.

``PacingRules`` and ``MessageRate`` count requests and messages, and decide which rule one of them
breaks. Source: https://interactivebrokers.github.io/tws-api/historical_limitations.html (grade O).
That a refused request does not count towards the next windows is this simulator's choice (grade P).

``Workers`` computes how long a request for longer bars takes; the caller waits. A cancelled request
keeps its worker, as a gateway continues requests whose client is gone. Source: one day of
minutes in 0.6 s (ib_insync #268), 17,970 minutes in 5.4 s (LEAN IB #62): about 0.3 s and 0.3 ms a
bar (grade C). That too many requests end in a disconnect is grade O; workers, the length of the
queue, noise and the slow-down under load are this simulator's choice (grade P).

Not here: client ids and open requests (``request_limits``).
"""

import math
import random
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import islice

from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.simulator.protocol.messages import HeadRequest, HistoryRequest

VIOLATION = "Historical Market Data Service error message:Historical data request pacing violation"
TOO_MANY_MESSAGES = "Max rate of messages per second has been exceeded."

TimedRequest = HeadRequest | HistoryRequest


class SimulatedPacing(StrEnum):
    """The requests to which the pacing rules apply.

    ``documented``: the small-bar rules for bars of 30 s or less and head timestamps, none for
    longer bars. ``hard``: the small-bar rules for every request for data. ``soft``: as documented,
    and longer bars share a few workers. ``off``: no pacing rules.
    """

    DOCUMENTED = "documented"
    HARD = "hard"
    SOFT = "soft"
    OFF = "off"


class PacingRule(StrEnum):
    """The rules that can be broken, by their names in violations."""

    IDENTICAL = "identical"
    SAME_CONTRACT = "same contract"
    WINDOW = "window"
    MESSAGES = "messages"
    OVERLOAD = "overload"


@dataclass(slots=True)
class _Recent:
    """The requests of the last ``window_s`` seconds: moments and weights, oldest first."""

    window_s: float
    sent: deque[tuple[float, int]] = field(default_factory=deque)
    weight: int = 0

    def room(self, now_s: float, most: int, weight: int) -> bool:
        """Return whether a request of a weight fits; drop those that left the window."""
        while self.sent and now_s - self.sent[0][0] >= self.window_s:
            self.weight -= self.sent.popleft()[1]
        return self.weight + weight <= most

    def add(self, now_s: float, weight: int) -> None:
        """Count a request."""
        self.sent.append((now_s, weight))
        self.weight += weight


class PacingRules:
    """The three pacing windows over all connections of one gateway.

    Args:
        mode: the requests to which they apply.
        now_s: returns the time in seconds.
    """

    def __init__(self, mode: SimulatedPacing, now_s: Callable[[], float]) -> None:
        limits = IbLimitsRegistry
        self.mode = mode
        self._now_s = now_s
        self._window = _Recent(limits.WINDOW_S.value)
        self._contracts: defaultdict[object, _Recent] = defaultdict(
            lambda: _Recent(limits.SAME_CONTRACT_S.value)
        )
        self._identical: dict[object, float] = {}

    def __repr__(self) -> str:
        return f"PacingRules({self.mode}, {self._window.weight} in the window)"

    def broken_by(self, request: TimedRequest) -> PacingRule | None:
        """Count a request and return None, or return the rule that it would break."""
        if not self._binds(request):
            return None
        now_s = self._now_s()
        weight = IbLimitsRegistry.BID_ASK_WEIGHT.value if request.what == "BID_ASK" else 1
        contract = self._contracts[_contract_key(request)]
        identical = replace(request, request_id=0)
        if now_s - self._identical.get(identical, -1e12) < IbLimitsRegistry.IDENTICAL_S.value:
            return PacingRule.IDENTICAL
        if not contract.room(now_s, IbLimitsRegistry.SAME_CONTRACT_MOST.value, 1):
            return PacingRule.SAME_CONTRACT
        if not self._window.room(now_s, IbLimitsRegistry.WINDOW_MOST.value, weight):
            return PacingRule.WINDOW
        contract.add(now_s, 1)
        self._window.add(now_s, weight)
        self._remember(identical, now_s)
        return None

    def message_rate(self) -> "MessageRate | None":
        """Return the message counter of a new connection; None if pacing is off."""
        return None if self.mode is SimulatedPacing.OFF else MessageRate(self._now_s)

    def _remember(self, identical: object, now_s: float) -> None:
        """Note the time of a request, and drop those that are too old to matter."""
        self._identical.pop(identical, None)
        self._identical[identical] = now_s
        for key in list(islice(self._identical, 2)):
            if now_s - self._identical[key] >= IbLimitsRegistry.IDENTICAL_S.value:
                del self._identical[key]

    def _binds(self, request: TimedRequest) -> bool:
        if self.mode is SimulatedPacing.OFF:
            return False
        is_small = isinstance(request, HeadRequest) or is_small_bar(request.bar_size)
        return is_small or self.mode is SimulatedPacing.HARD


class MessageRate:
    """The message rate of one connection, and how often it was exceeded.

    Exceeding it resets the count, so that one burst is one strike. Source: the gateway sends error
    100 above the limit, and the third strike ends the session (grade O); the message is lost (grade
    P).
    """

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._recent = _Recent(1.0)
        self._strikes = 0

    @property
    def is_out(self) -> bool:
        """Whether the connection has exceeded the rate too often."""
        return self._strikes >= IbLimitsRegistry.MESSAGE_STRIKES.value

    def broken(self) -> bool:
        """Count a message and return whether it exceeds the rate."""
        now_s = self._now_s()
        if self._recent.room(now_s, IbLimitsRegistry.MESSAGES_PER_S.value, 1):
            self._recent.add(now_s, 1)
            return False
        self._recent = _Recent(1.0)
        self._strikes += 1
        return True


def is_small_bar(size: str) -> bool:
    """Return whether bars of a size are small bars, of 30 s or less."""
    count, _, unit = size.partition(" ")
    if unit != "secs" or not count.isdigit():
        return False
    return int(count) <= IbLimitsRegistry.SMALL_BAR_MAX_S.value


def _contract_key(request: TimedRequest) -> object:
    contract = request.contract
    known = contract.con_id or replace(contract, exchange="", primary_exchange="")
    return known, contract.exchange, request.what


END_FACTOR = 30.0
"""The factor by which a request with an end takes longer than one without: 50 stocks took 1.4 s,
and about 30 times as long with an end (grade C,
https://github.com/erdewit/ib_insync/issues/327)."""


@dataclass(frozen=True, slots=True)
class WorkersFrom:
    """A number of workers that holds from some seconds after the first request on."""

    workers: int
    after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Speed:
    """The speed of a gateway under soft pacing.

    Attributes:
        workers: how many requests it serves at a time.
        request_s: seconds a request takes, if it has an end; one without is ``end_factor`` times
            as fast.
        bar_s: seconds that each bar adds.
        most_waiting: requests that may wait for a worker; one more ends the connection.
        end_factor: how many times as long a request with an end takes.
        load: share by which each waiting request slows the one that arrives; 0 does not.
        noise: relative standard deviation of the seconds (log-normal, the mean stays).
        seed: of the noise.
        changes: later numbers of workers, earliest first.
        wide_bars: bars of a response from which on each costs more; 0 for none.
        wide_factor: how many times as much those cost. Published: 390 bars in 0.6 s and 1,950 in
            8.3 s (ib_insync #268, grade C).
    """

    workers: int = 4
    request_s: float = 0.3
    bar_s: float = 0.0003
    most_waiting: int = 30
    end_factor: float = END_FACTOR
    load: float = 0.0
    noise: float = 0.0
    seed: int = 1
    changes: tuple[WorkersFrom, ...] = ()
    wide_bars: int = 0
    wide_factor: float = 1.0


class Workers:
    """The workers of one gateway, and the requests that occupy them or wait for one.

    Requests are served in the order in which they arrive. A worker that is taken away finishes the
    requests that it was assigned, and a new one takes none of those that wait already.
    """

    def __init__(self, speed: Speed, now_s: Callable[[], float]) -> None:
        self.speed = speed
        self._now_s = now_s
        self._free_at = [0.0] * speed.workers
        self._begins: list[float] = []
        self._first_s: float | None = None
        self._random = random.Random(speed.seed)  # noqa: S311 - noise, not a secret

    def __repr__(self) -> str:
        return f"Workers({len(self._free_at)}, {self.waiting} waiting)"

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a worker now."""
        now_s = self._now_s()
        self._begins = [begin for begin in self._begins if begin > now_s]
        return len(self._begins)

    def reserve(self, bars: int, *, has_end: bool = True) -> float | None:
        """Return the seconds until a response is ready; None if the queue is full."""
        now_s = self._now_s()
        self._change(now_s)
        waiting = self.waiting
        if waiting >= self.speed.most_waiting:
            return None
        position = min(range(len(self._free_at)), key=self._free_at.__getitem__)
        begin = max(now_s, self._free_at[position])
        self._free_at[position] = begin + self._seconds(bars, waiting, has_end=has_end)
        if begin > now_s:
            self._begins.append(begin)
        return self._free_at[position] - now_s

    def _seconds(self, bars: int, waiting: int, *, has_end: bool) -> float:
        """Return how long a worker takes for a request behind so many that wait."""
        speed = self.speed
        beyond = max(bars - speed.wide_bars, 0) if speed.wide_bars else 0
        costs = bars + beyond * (speed.wide_factor - 1.0)
        seconds = (speed.request_s + costs * speed.bar_s) * (1.0 + speed.load * waiting)
        if speed.noise:
            spread = math.sqrt(math.log1p(speed.noise**2))
            seconds *= math.exp(self._random.gauss(-spread * spread / 2, spread))
        return seconds / (1.0 if has_end else speed.end_factor)

    def _change(self, now_s: float) -> None:
        """Follow the changes of the number of workers."""
        if self._first_s is None:
            self._first_s = now_s
        since_s = now_s - self._first_s
        due = [each.workers for each in self.speed.changes if each.after_s <= since_s]
        workers = due[-1] if due else self.speed.workers
        if workers != len(self._free_at):
            # The ones that are free soonest stay: the others finish what they have.
            kept = sorted(self._free_at)[:workers]
            self._free_at = kept + [now_s] * (workers - len(kept))
