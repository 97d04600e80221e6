"""Sets of stretches as arrays: what ``IntervalSet`` is for one series, for many sessions at once.

A set is two int64 arrays of one length, starts and ends, rising and apart, in microseconds since
1970 UTC. Not here: what a stretch means (``core.completeness``).
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ktrdr_pipelines.core.bars import micros
from ktrdr_pipelines.core.intervals import Interval

EVER_US = 1 << 62
"""Farther away from 1970, in microseconds, than any moment that is met."""

_FEW = 64
"""Stretches up to which marking one by one is cheaper than looking each span up."""


class Stretches(NamedTuple):
    """Rising, disjoint stretches ``[start, end)``."""

    starts: np.ndarray
    ends: np.ndarray


class Overlaps(NamedTuple):
    """Where the stretches of two sets meet: places in each, and the shared part."""

    left: np.ndarray
    right: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


def no_stretches() -> Stretches:
    """Make a set of nothing."""
    return Stretches(np.empty(0, np.int64), np.empty(0, np.int64))


def stretches_of(intervals: Iterable[Interval]) -> Stretches:
    """Make a set of intervals, in any order."""
    bounds = [(micros(one.start), micros(one.end)) for one in intervals]
    return joined(np.array(bounds, dtype=np.int64).reshape(-1, 2))


def joined(bounds: np.ndarray) -> Stretches:
    """Make a set of pairs in any order, shape ``(n, 2)``; what overlaps or touches is one."""
    if len(bounds) < 2:
        return Stretches(bounds[:, 0], bounds[:, 1])
    bounds = bounds[np.argsort(bounds[:, 0], kind="stable")]
    reach = np.maximum.accumulate(bounds[:, 1])
    begins = np.append(True, bounds[1:, 0] > reach[:-1])
    ends = np.append(begins[1:], True)
    return Stretches(bounds[begins, 0], reach[ends])


def without(whole: Stretches, taken: Stretches) -> Overlaps:
    """Take one set away from another; ``left`` says of which stretch each rest is a part."""
    rest = Stretches(np.append(-EVER_US, taken.ends), np.append(taken.starts, EVER_US))
    return shared(whole, rest)


def shared(left: Stretches, right: Stretches) -> Overlaps:
    """Find where two sets meet, rising."""
    low = np.searchsorted(right.ends, left.starts, side="right")
    high = np.searchsorted(right.starts, left.ends, side="left")
    counts = np.maximum(high - low, 0)
    a = np.repeat(np.arange(len(counts)), counts)
    before = np.repeat(np.cumsum(counts) - counts, counts)
    b = np.repeat(low, counts) + np.arange(len(a)) - before
    starts = np.maximum(left.starts[a], right.starts[b])
    ends = np.minimum(left.ends[a], right.ends[b])
    real = starts < ends
    return Overlaps(a[real], b[real], starts[real], ends[real])


def covered(spans: Stretches, by: Stretches) -> np.ndarray:
    """Say of each span whether it lies wholly inside one stretch."""
    inside = np.zeros(len(spans.starts), dtype=bool)
    if len(by.starts) < _FEW:
        low = spans.starts.searchsorted(by.starts, side="left")
        high = spans.ends.searchsorted(by.ends, side="right")
        for first, end in zip(low.tolist(), high.tolist(), strict=True):
            inside[first:end] = True
        return inside
    place = by.starts.searchsorted(spans.starts, side="right") - 1
    return np.asarray((place >= 0) & (by.ends[np.maximum(place, 0)] >= spans.ends))
