"""Half-open intervals of UTC time, and sets of them.

Not here: sets of many intervals as arrays (``domain.calendars.session_grid``).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta


@dataclass(frozen=True, slots=True, order=True)
class Interval:
    """``[start, end)`` in UTC; never empty, never reversed, never naive."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        for name, value in (("start", self.start), ("end", self.end)):
            if value.tzinfo is not UTC and value.tzname() != "UTC":
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


class IntervalSet:
    """An immutable set of moments, kept as sorted, disjoint, non-touching intervals."""

    __slots__ = ("_parts",)

    def __init__(self, parts: Iterable[Interval] = ()) -> None:
        self._parts = _joined(parts)

    def __iter__(self) -> Iterator[Interval]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __bool__(self) -> bool:
        return bool(self._parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IntervalSet) and self._parts == other._parts

    def __hash__(self) -> int:
        return hash(self._parts)

    def __repr__(self) -> str:
        return f"IntervalSet({', '.join(map(str, self._parts))})"

    def __or__(self, other: "IntervalSet") -> "IntervalSet":
        large, small = (self, other) if len(self) >= len(other) else (other, self)
        if small.bounds is None:
            return large
        low = bisect_left(large._parts, small.bounds.start, key=lambda part: part.end)
        high = bisect_right(large._parts, small.bounds.end, key=lambda part: part.start)
        joined = _joined((*large._parts[low:high], *small._parts))
        # These parts are sorted and disjoint already: they need no second look.
        made = IntervalSet()
        made._parts = (*large._parts[:low], *joined, *large._parts[high:])
        return made

    def __and__(self, other: "IntervalSet") -> "IntervalSet":
        return IntervalSet(_shared(_near(self, other), _near(other, self)))

    def __sub__(self, other: "IntervalSet") -> "IntervalSet":
        return IntervalSet(_remaining(self._parts, _near(other, self)))

    def __contains__(self, moment: datetime) -> bool:
        position = bisect_right(self._parts, moment, key=lambda part: part.start)
        return position > 0 and moment in self._parts[position - 1]

    def covers(self, interval: Interval) -> bool:
        """Return whether an interval lies wholly inside the set."""
        position = bisect_right(self._parts, interval.start, key=lambda part: part.start)
        return position > 0 and self._parts[position - 1].covers(interval)

    def clip(self, interval: Interval) -> "IntervalSet":
        """Return the part inside an interval."""
        return IntervalSet(_shared(_meeting(self._parts, interval), (interval,)))

    @property
    def bounds(self) -> Interval | None:
        """The smallest interval around the set, or None if it is empty."""
        return Interval(self._parts[0].start, self._parts[-1].end) if self._parts else None

    @property
    def length(self) -> timedelta:
        """The sum of all durations."""
        return sum((part.length for part in self._parts), timedelta(0))


def _joined(parts: Iterable[Interval]) -> tuple[Interval, ...]:
    joined: list[Interval] = []
    for part in sorted(parts):
        if joined and part.start <= joined[-1].end:
            if part.end > joined[-1].end:
                joined[-1] = Interval(joined[-1].start, part.end)
        else:
            joined.append(part)
    return tuple(joined)


def _meeting(parts: tuple[Interval, ...], interval: Interval) -> tuple[Interval, ...]:
    """Return the parts that share a moment with an interval, found by bisection."""
    low = bisect_right(parts, interval.start, key=lambda part: part.end)
    high = bisect_left(parts, interval.end, key=lambda part: part.start)
    return parts[low:high]


def _near(parts: IntervalSet, other: IntervalSet) -> tuple[Interval, ...]:
    """Return the parts of one set that may share a moment with another."""
    return _meeting(tuple(parts), other.bounds) if other.bounds else ()


def _shared(left: tuple[Interval, ...], right: tuple[Interval, ...]) -> Iterator[Interval]:
    i = j = 0
    while i < len(left) and j < len(right):
        if shared := left[i].intersection(right[j]):
            yield shared
        if left[i].end <= right[j].end:
            i += 1
        else:
            j += 1


def _remaining(left: tuple[Interval, ...], right: tuple[Interval, ...]) -> Iterator[Interval]:
    j = 0
    for part in left:
        start = part.start
        while j < len(right) and right[j].end <= start:
            j += 1
        k = j
        while k < len(right) and right[k].start < part.end:
            if before := between(start, right[k].start):
                yield before
            start = max(start, right[k].end)
            k += 1
        if rest := between(start, part.end):
            yield rest
