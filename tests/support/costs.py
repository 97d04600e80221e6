"""Costs of work as ratios within one run, which hardly depend on the machine or its load."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

LINEAR_IN_EIGHT = 24
"""The most that eight times the work may cost: linear is 8 times, quadratic 64 times."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The least time and the least processor time of an action, in milliseconds."""

    wall_ms: float
    cpu_ms: float

    def over(self, other: "Cost") -> float:
        """Return the cost as a multiple of another: the lesser of time and processor time.

        What else the machine does may double either for a while, but not halve it.
        """
        return min(self.wall_ms / other.wall_ms, self.cpu_ms / other.cpu_ms)


def costs(actions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Cost]:
    """Return the cost of each action; they take turns, and the least disturbed ones count.

    Processor time is that of this process with all its threads.
    """
    walls: dict[str, list[float]] = {name: [] for name in actions}
    cpus: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, act in actions.items():
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            act()
            walls[name].append(time.perf_counter() - wall_s)
            cpus[name].append(time.process_time() - cpu_s)
    return {name: Cost(min(walls[name]) * 1000, min(cpus[name]) * 1000) for name in actions}


def cost_of(act: Callable[[], object], rounds: int = 3) -> Cost:
    """Return the cost of one action, of which the least disturbed round counts."""
    return costs({"": act}, rounds)[""]


def growth(act: Callable[[int], object], small: int, large: int, rounds: int = 4) -> float:
    """Return the cost of large work over that of small work, which take turns."""
    found = costs({"small": lambda: act(small), "large": lambda: act(large)}, rounds)
    return found["large"].over(found["small"])
