"""How long a gateway takes over longer bars when it is under load: a few workers and a queue.

Decide, then act: a request books a worker and is told how long it takes; the caller waits. A
request that is cancelled keeps its booking, as a gateway works on what nobody waits for.

Source: one day of minutes in 0.6 s (ib_insync #268), 17,970 minutes in 5.4 s (LEAN IB #62): about
0.3 s and 0.3 ms a bar (grade C). That too much ends in a disconnect is grade O; workers and the
length of the queue are this simulator's own (grade P).
"""

from collections.abc import Callable
from dataclasses import dataclass

END_FACTOR = 30.0
"""How many times as long a request with an end takes as one without: 50 stocks took 1.4 s, and some
30 times that with an end (grade C, https://github.com/erdewit/ib_insync/issues/327)."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What a gateway can do: workers, seconds a request and a bar, requests that may wait.

    The seconds are those of a request with an end; one without takes ``end_factor`` times less.
    """

    workers: int = 4
    request_s: float = 0.3
    bar_s: float = 0.0003
    most_waiting: int = 30
    end_factor: float = END_FACTOR


class Workers:
    """The workers of one gateway and what they have promised."""

    def __init__(self, speed: Speed, now_s: Callable[[], float]) -> None:
        self.speed = speed
        self._now_s = now_s
        self._free_at = [0.0] * speed.workers
        self._begins: list[float] = []

    def __repr__(self) -> str:
        return f"Workers({self.speed.workers}, {self.waiting} waiting)"

    @property
    def waiting(self) -> int:
        """How many requests wait for a worker now."""
        now_s = self._now_s()
        self._begins = [begin for begin in self._begins if begin > now_s]
        return len(self._begins)

    def book(self, bars: int, *, has_end: bool = True) -> float | None:
        """Return the seconds until an answer of so many bars is ready; None beyond the queue."""
        if self.waiting >= self.speed.most_waiting:
            return None
        now_s = self._now_s()
        place = min(range(len(self._free_at)), key=self._free_at.__getitem__)
        begin = max(now_s, self._free_at[place])
        seconds = self.speed.request_s + bars * self.speed.bar_s
        self._free_at[place] = begin + seconds / (1.0 if has_end else self.speed.end_factor)
        if begin > now_s:
            self._begins.append(begin)
        return self._free_at[place] - now_s
