"""A simulation of the number of requests in flight, event by event and without waiting.

A gateway serves a few requests at a time, in the order in which they arrive; a client sends as many
as its limit allows, and so keeps the gateway as busy as that limit can. A picture in the docs shows
such runs, and tests measure how near they are to the best.
"""

import bisect
import heapq
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from ktrdr_pipelines.ib.pacing.concurrency import Concurrency, Sample, answered

CACHE_S = 0.004
"""Seconds that a response from the gateway's cache takes."""


class Limiter(Protocol):
    """What decides how many requests may be in flight."""

    def limit(self, now: float) -> int:
        """Return how many requests may be in flight."""
        ...

    def take(self, size: str, sample: Sample) -> None:
        """Learn from a response."""
        ...


@dataclass(slots=True)
class Adaptive:
    """The limit that ktrdr learns."""

    concurrency: Concurrency = field(default_factory=Concurrency)

    def limit(self, now: float) -> int:
        """Return how many requests may be in flight."""
        return self.concurrency.limit(now)

    def take(self, size: str, sample: Sample) -> None:
        """Learn from a response."""
        self.concurrency = answered(self.concurrency, size, sample)


@dataclass(frozen=True, slots=True)
class Fixed:
    """A limit that never changes."""

    width: int

    def limit(self, now: float) -> int:
        """Return the width."""
        _ = now
        return self.width

    def take(self, size: str, sample: Sample) -> None:
        """Learn nothing."""


@dataclass(frozen=True, slots=True)
class LoadedGateway:
    """A gateway whose latency grows with load.

    Attributes:
        workers: requests that it serves at a time.
        noise: relative standard deviation of service times (log-normal, the mean stays).
        load: share by which each request that waits slows the one whose service begins.
        sizes: mean service times in seconds, one for each size of request.
        batch: how many requests in a row are of one size; 0 for sizes at random.
        cached: share of requests that it answers at once.
        changes: later numbers of workers, and the seconds from which they hold.
        seed: of noise and sizes.
    """

    workers: int
    noise: float = 0.0
    load: float = 0.0
    sizes: tuple[float, ...] = (1.0,)
    batch: int = 0
    cached: float = 0.0
    changes: tuple[tuple[float, int], ...] = ()
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Arrival:
    """One response: when it arrived, the limit then, and seconds of service of it and earlier."""

    at: float
    limit: int
    served_s: float


def simulate(
    gateway: LoadedGateway,
    limiter: Limiter,
    *,
    begin: float = 0.0,
    seconds: float,
    demand: float = math.inf,
) -> Sequence[Arrival]:
    """Return what happened.

    Args:
        gateway: the gateway, idle at first.
        limiter: how many requests may be in flight.
        begin: the moment at which it begins.
        seconds: how long it lasts.
        demand: requests that the client has at most at a time, whatever the limit.
    """
    source = random.Random(gateway.seed)  # noqa: S311 - noise, not a secret
    spread = math.sqrt(math.log1p(gateway.noise**2))
    changes, workers = deque(gateway.changes), gateway.workers
    queue: deque[tuple[int, float]] = deque()
    order = count()
    ends: list[tuple[float, int, int, float, bool]] = []
    now, served_s, busy, open_now, sent = begin, 0.0, 0, 0, 0
    progress: list[Arrival] = []
    changed_at, were_open = [begin], [0]

    def set_open(number: int) -> None:
        nonlocal open_now
        open_now = number
        changed_at.append(now)
        were_open.append(number)

    def start_waiting() -> None:
        nonlocal busy
        while queue and busy < workers:
            started, sent_at = queue.popleft()
            factor = 1.0 + gateway.load * len(queue)
            noise = math.exp(source.gauss(-spread * spread / 2, spread))
            # The number keeps responses of one moment in the order of their service.
            end = now + gateway.sizes[started] * factor * noise
            heapq.heappush(ends, (end, next(order), started, sent_at, True))
            busy += 1

    while True:
        while changes and now >= changes[0][0]:
            workers = changes.popleft()[1]
        while open_now < min(limiter.limit(now), demand):
            number = len(gateway.sizes)
            size = sent // gateway.batch % number if gateway.batch else source.randrange(number)
            sent += 1
            set_open(open_now + 1)
            if source.random() < gateway.cached:
                heapq.heappush(ends, (now + CACHE_S, next(order), size, now, False))
            else:
                queue.append((size, now))
            start_waiting()
        if ends[0][0] > begin + seconds:
            return progress
        now, _, size, sent_at, is_served = heapq.heappop(ends)
        if is_served:
            busy -= 1
            served_s += gateway.sizes[size]
        start_waiting()
        halfway = bisect.bisect_right(changed_at, (sent_at + now) / 2)
        limiter.take(f"size {size}", Sample(sent_at, now, were_open[halfway - 1]))
        set_open(open_now - 1)
        progress.append(Arrival(now, limiter.limit(now), served_s))


def throughput(progress: Sequence[Arrival], begin: float = 0.0, end: float = math.inf) -> float:
    """Return the seconds of service a second between two moments."""
    within = [each for each in progress if begin <= each.at < end]
    before = max((each.served_s for each in progress if each.at < begin), default=0.0)
    return (within[-1].served_s - before) / (within[-1].at - begin)
