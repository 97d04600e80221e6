"""Half-open intervals of UTC time, and sets of them as arrays.

Not here: which intervals a calendar expects to have bars (``domain.calendars.session_grid``).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np

from ktrdr_pipelines.domain.bars import micros, moment

_PAST, _FUTURE = -(1 << 62), 1 << 62
"""Farther away from 1970, in microseconds, than any moment that occurs."""

_FEW = 64
"""Number of intervals up to which a loop over them is faster than operations on whole arrays."""


@dataclass(frozen=True, slots=True, order=True)
class Interval:
    """``[start, end)`` in UTC; never empty, never reversed, never naive."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        if self.start.tzinfo is not UTC or self.end.tzinfo is not UTC:
            for name, value in (("start", self.start), ("end", self.end)):
                if value.tzname() != "UTC":
                    raise ValueError(f"{name} of an interval must be in UTC, got {value!r}")
        if self.start >= self.end:
            raise ValueError(f"an interval must end after its start, got {self}")

    def __contains__(self, moment: datetime) -> bool:
        return self.start <= moment < self.end

    def __str__(self) -> str:
        return f"[{self.start:%Y-%m-%dT%H:%M:%SZ}, {self.end:%Y-%m-%dT%H:%M:%SZ})"

    @property
    def length(self) -> timedelta:
        """The duration of the interval."""
        return self.end - self.start

    def overlaps(self, other: "Interval") -> bool:
        """Return whether two intervals share any moment."""
        return self.start < other.end and other.start < self.end

    def covers(self, other: "Interval") -> bool:
        """Return whether another interval lies wholly inside."""
        return self.start <= other.start and other.end <= self.end

    def intersection(self, other: "Interval") -> "Interval | None":
        """Return the part shared with another interval, or None."""
        return between(max(self.start, other.start), min(self.end, other.end))


def between(start: datetime, end: datetime) -> Interval | None:
    """Return an interval, or None where it would be empty or reversed."""
    return Interval(start, end) if start < end else None


def utc(moment: datetime) -> datetime:
    """Return an aware moment in UTC.

    Raises:
        ValueError: the moment has no time zone.
    """
    if moment.tzinfo is None:
        raise ValueError(f"a moment needs a time zone, got {moment!r}")
    return moment.astimezone(UTC)


class Overlaps(NamedTuple):
    """Where intervals of two sequences overlap: indexes in each, and the shared part."""

    left: np.ndarray
    right: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


def overlaps(
    starts: np.ndarray, ends: np.ndarray, other_starts: np.ndarray, other_ends: np.ndarray
) -> Overlaps:
    """Return where the intervals of two sequences overlap, ascending.

    Both are int64 arrays in microseconds since 1970 UTC, ascending and disjoint; neighbours may
    touch.
    """
    if len(other_starts) == 1:
        only, until = other_starts.item(0), other_ends.item(0)
        first = int(ends.searchsorted(only, side="right"))
        last = max(first, int(starts.searchsorted(until, side="left")))
        return Overlaps(
            np.arange(first, last),
            np.zeros(last - first, np.int64),
            np.maximum(starts[first:last], only),
            np.minimum(ends[first:last], until),
        )
    low = other_ends.searchsorted(starts, side="right")
    high = other_starts.searchsorted(ends, side="left")
    counts = np.maximum(high - low, 0)
    left = np.arange(len(counts)).repeat(counts)
    before = (counts.cumsum() - counts).repeat(counts)
    right = low.repeat(counts) + np.arange(len(left)) - before
    return Overlaps(
        left,
        right,
        np.maximum(starts[left], other_starts[right]),
        np.minimum(ends[left], other_ends[right]),
    )


class IntervalSet:
    """An immutable set of moments, kept as two arrays of sorted, disjoint, non-touching intervals.

    Args:
        parts: intervals in any order; those that overlap or touch are joined.
    """

    __slots__ = ("_ends", "_starts")

    _starts: np.ndarray
    _ends: np.ndarray

    def __init__(self, parts: Iterable[Interval] = ()) -> None:
        pairs = [(micros(part.start), micros(part.end)) for part in parts]
        if len(pairs) > 1:
            pairs = _joined_pairs(pairs)
        self._starts = self._ends = _NONE
        if pairs:
            columns = np.ascontiguousarray(np.array(pairs, np.int64).T)
            self._starts, self._ends = _read_only(columns[0]), _read_only(columns[1])

    @classmethod
    def from_arrays(cls, starts: np.ndarray, ends: np.ndarray) -> "IntervalSet":
        """Return the set of intervals in any order, given by their bounds.

        Args:
            starts, ends: int64, microseconds since 1970 UTC. No interval is empty; those that
                overlap or touch are joined. The arrays are kept and must not change.
        """
        if len(starts) > 1:
            starts, ends = _joined(starts, ends)
        return cls._made(starts.view(), ends.view())

    @property
    def starts(self) -> np.ndarray:
        """The starts, ascending; int64 microseconds since 1970 UTC, read-only."""
        return self._starts

    @property
    def ends(self) -> np.ndarray:
        """The ends, ascending; int64 microseconds since 1970 UTC, read-only."""
        return self._ends

    def __iter__(self) -> Iterator[Interval]:
        for start, end in self._pairs():
            yield Interval(moment(start), moment(end))

    def __len__(self) -> int:
        return len(self._starts)

    def __bool__(self) -> bool:
        return len(self._starts) > 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IntervalSet):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"IntervalSet({', '.join(map(str, self))})"

    def __or__(self, other: "IntervalSet") -> "IntervalSet":
        large, small = self, other
        if len(large._starts) < len(small._starts):
            large, small = other, self
        if not len(small._starts) or large is small:
            return large
        if len(small._starts) == 1:
            return large._with(small._starts.item(0), small._ends.item(0))
        if len(large) + len(small) <= _FEW:
            return self._of_pairs(_joined_pairs([*large._pairs(), *small._pairs()]))
        starts, ends = small._starts, small._ends
        # Only these parts of the large set meet or touch the small one.
        low = large._ends.searchsorted(starts[0], side="left")
        high = large._starts.searchsorted(ends[-1], side="right")
        starts, ends = _joined(
            np.concatenate((large._starts[low:high], starts)),
            np.concatenate((large._ends[low:high], ends)),
        )
        return self._made(
            np.concatenate((large._starts[:low], starts, large._starts[high:])),
            np.concatenate((large._ends[:low], ends, large._ends[high:])),
        )

    def __and__(self, other: "IntervalSet") -> "IntervalSet":
        many, few = (self, other) if len(self) >= len(other) else (other, self)
        if len(few) < 2:
            return many._clip(few._starts.item(0), few._ends.item(0)) if few else few
        if len(many) + len(few) <= _FEW:
            return self._of_pairs(_common_pairs(many._pairs(), few._pairs()))
        found = many.within(few._starts, few._ends)
        return self._made(found.starts, found.ends)

    def __sub__(self, other: "IntervalSet") -> "IntervalSet":
        if not len(self._starts) or not len(other._starts):
            return self
        if len(other._starts) == 1:
            return self._without(other._starts.item(0), other._ends.item(0))
        if len(self) + len(other) <= _FEW:
            starts, ends = other._starts.tolist(), other._ends.tolist()
            rest = list(zip((_PAST, *ends), (*starts, _FUTURE), strict=True))
            return self._of_pairs(_common_pairs(self._pairs(), rest))
        found = other.outside(self._starts, self._ends)
        return self._made(found.starts, found.ends)

    def __contains__(self, moment: datetime) -> bool:
        at = micros(moment)
        position = int(self._starts.searchsorted(at, side="right"))
        return position > 0 and at < self._ends.item(position - 1)

    def covers(self, interval: Interval) -> bool:
        """Return whether an interval lies wholly inside the set."""
        return self.holds(micros(interval.start), micros(interval.end))

    def clip(self, interval: Interval) -> "IntervalSet":
        """Return the part inside an interval."""
        return self._clip(micros(interval.start), micros(interval.end))

    @property
    def bounds(self) -> Interval | None:
        """The smallest interval around the set, or None if it is empty."""
        if not len(self._starts):
            return None
        return Interval(moment(self._starts.item(0)), moment(self._ends.item(-1)))

    @property
    def length(self) -> timedelta:
        """The sum of all durations."""
        return timedelta(microseconds=int((self._ends - self._starts).sum()))

    def within(self, starts: np.ndarray, ends: np.ndarray) -> Overlaps:
        """Return the parts of ascending, disjoint intervals inside the set.

        ``left`` of the result tells which of the given intervals each part lies in.
        """
        return overlaps(starts, ends, self._starts, self._ends)

    def outside(self, starts: np.ndarray, ends: np.ndarray) -> Overlaps:
        """Return the parts of ascending, disjoint intervals outside the set, as ``within`` does."""
        rest_starts = np.concatenate(((_PAST,), self._ends))
        rest_ends = np.concatenate((self._starts, (_FUTURE,)))
        return overlaps(starts, ends, rest_starts, rest_ends)

    def holds(self, start: int, end: int) -> bool:
        """Return whether an interval in microseconds since 1970 UTC lies wholly inside the set."""
        position = int(self._starts.searchsorted(start, side="right"))
        return position > 0 and end <= self._ends.item(position - 1)

    def covers_each(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Return for each of ascending, disjoint intervals whether it lies wholly inside."""
        if len(self._starts) < _FEW:
            inside = np.zeros(len(starts), dtype=bool)
            low = starts.searchsorted(self._starts, side="left")
            high = ends.searchsorted(self._ends, side="right")
            for first, end in zip(low.tolist(), high.tolist(), strict=True):
                inside[first:end] = True
            return inside
        position = self._starts.searchsorted(starts, side="right") - 1
        return np.asarray((position >= 0) & (self._ends[np.maximum(position, 0)] >= ends))

    @classmethod
    def _made(cls, starts: np.ndarray, ends: np.ndarray) -> "IntervalSet":
        """Return the set of arrays that are sorted, disjoint and non-touching already."""
        made = cls.__new__(cls)
        made._starts = _read_only(starts)  # noqa: SLF001  (its own)
        made._ends = _read_only(ends)  # noqa: SLF001  (its own)
        return made

    @classmethod
    def _of_one(cls, start: int, end: int) -> "IntervalSet":
        """Return the set of one interval."""
        pair = np.array((start, end), np.int64)
        return cls._made(pair[:1], pair[1:])

    @classmethod
    def _of_pairs(cls, pairs: Sequence[tuple[int, int]]) -> "IntervalSet":
        """Return the set of pairs that are sorted, disjoint and non-touching already."""
        starts = np.array([start for start, _ in pairs], np.int64)
        return cls._made(starts, np.array([end for _, end in pairs], np.int64))

    def _clip(self, start: int, end: int) -> "IntervalSet":
        low = int(self._ends.searchsorted(start, side="right"))
        high = int(self._starts.searchsorted(end, side="left"))
        if low >= high:
            return _EMPTY
        starts, ends = self._starts[low:high], self._ends[low:high]
        first, last = starts.item(0), ends.item(-1)
        if first >= start and last <= end:
            return self if high - low == len(self._starts) else self._made(starts, ends)
        if high - low == 1:
            return self._of_one(max(first, start), min(last, end))
        starts, ends = starts.copy(), ends.copy()
        starts[0], ends[-1] = max(first, start), min(last, end)
        return self._made(starts, ends)

    def _with(self, start: int, end: int) -> "IntervalSet":
        """Return the set with one more interval."""
        low = int(self._ends.searchsorted(start, side="left"))
        high = int(self._starts.searchsorted(end, side="right"))
        if low < high:
            start = min(start, self._starts.item(low))
            end = max(end, self._ends.item(high - 1))
            if high - low == 1 and (start, end) == (self._starts.item(low), self._ends.item(low)):
                return self
        return self._replaced(low, high, [(start, end)])

    def _without(self, start: int, end: int) -> "IntervalSet":
        """Return the set without an interval."""
        low = int(self._ends.searchsorted(start, side="right"))
        high = int(self._starts.searchsorted(end, side="left"))
        if low >= high:
            return self
        first, last = self._starts.item(low), self._ends.item(high - 1)
        before = [(first, start)] if first < start else []
        after = [(end, last)] if end < last else []
        return self._replaced(low, high, [*before, *after])

    def _replaced(self, low: int, high: int, pairs: Sequence[tuple[int, int]]) -> "IntervalSet":
        """Return the set with other intervals in place of those of a range of indexes."""
        until, length = low + len(pairs), len(self._starts) - high + low + len(pairs)
        starts, ends = np.empty(length, np.int64), np.empty(length, np.int64)
        starts[:low], ends[:low] = self._starts[:low], self._ends[:low]
        starts[until:], ends[until:] = self._starts[high:], self._ends[high:]
        for position, (start, end) in enumerate(pairs, low):
            starts[position], ends[position] = start, end
        return self._made(starts, ends)

    def _pairs(self) -> list[tuple[int, int]]:
        return list(zip(self._starts.tolist(), self._ends.tolist(), strict=True))

    def _key(self) -> tuple[bytes, bytes]:
        return self._starts.tobytes(), self._ends.tobytes()


def _read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


_NONE = _read_only(np.empty(0, np.int64))
_EMPTY = IntervalSet()


def _joined(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort at least one interval by start, and join those that overlap or touch."""
    if (starts[1:] < starts[:-1]).any():
        order = starts.argsort(kind="stable")
        starts, ends = starts[order], ends[order]
    reach = np.maximum.accumulate(ends)
    begins = np.ones(len(starts) + 1, dtype=bool)
    begins[1:-1] = starts[1:] > reach[:-1]
    return starts[begins[:-1]], reach[begins[1:]]


# Of a few intervals loops over pairs are several times faster than operations on whole arrays.


def _joined_pairs(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, end in sorted(pairs):
        if not joined or start > joined[-1][1]:
            joined.append((start, end))
        elif end > joined[-1][1]:
            joined[-1] = (joined[-1][0], end)
    return joined


def _common_pairs(
    left: Sequence[tuple[int, int]], right: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    common = []
    i = j = 0
    while i < len(left) and j < len(right):
        start, end = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if start < end:
            common.append((start, end))
        if left[i][1] <= right[j][1]:
            i += 1
        else:
            j += 1
    return common
