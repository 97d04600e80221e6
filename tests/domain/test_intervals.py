"""Intervals and sets of them, against sets of minutes and tuples of intervals."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from random import Random
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.domain.bars import micros
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet, between, overlaps, utc

ORIGIN = datetime(2024, 3, 10, tzinfo=UTC)
MOST = 40
MINUTE = timedelta(minutes=1)


def at(minute: int) -> datetime:
    """Return the time of a minute."""
    return ORIGIN + minute * MINUTE


def span(start: int, end: int) -> Interval:
    """Return the interval between two minutes."""
    return Interval(at(start), at(end))


def intervals() -> st.SearchStrategy[Interval]:
    """Generate intervals of whole minutes."""
    pairs = st.tuples(st.integers(0, MOST - 1), st.integers(1, MOST))
    return pairs.filter(lambda pair: pair[0] < pair[1]).map(lambda pair: span(*pair))


def lists() -> st.SearchStrategy[list[Interval]]:
    """Generate a few intervals, overlapping or not."""
    return st.lists(intervals(), max_size=6)


def minutes(parts: list[Interval] | IntervalSet) -> set[int]:
    """Return the model of a set: every minute that any part holds."""
    return {m for m in range(MOST) if any(p.start <= at(m) < p.end for p in parts)}


def is_normal(found: IntervalSet) -> bool:
    """Return whether parts are sorted and none touches the next."""
    parts = list(found)
    return all(a.end < b.start for a, b in pairwise(parts))


@given(lists())
def test_a_set_holds_exactly_the_moments_of_its_parts(parts: list[Interval]) -> None:
    """Joining parts neither loses nor invents a moment, and leaves no two parts touching."""
    found = IntervalSet(parts)
    assert minutes(found) == minutes(parts)
    assert {m for m in range(MOST) if at(m) in found} == minutes(parts)
    assert is_normal(found)
    assert found.length == len(minutes(parts)) * MINUTE
    assert bool(found) is bool(parts)
    assert len(found) == len(list(found))


@given(lists(), lists())
def test_set_operations_agree_with_sets_of_minutes(a: list[Interval], b: list[Interval]) -> None:
    """Union, intersection and difference are those of sets, in normal form."""
    left, right = IntervalSet(a), IntervalSet(b)
    for found, wanted in (
        (left | right, minutes(a) | minutes(b)),
        (left & right, minutes(a) & minutes(b)),
        (left - right, minutes(a) - minutes(b)),
    ):
        assert minutes(found) == wanted
        assert is_normal(found)


@given(lists(), intervals())
def test_clip_and_covers_agree_with_sets_of_minutes(parts: list[Interval], part: Interval) -> None:
    """Clipping is an intersection with one interval, covering is holding all its minutes."""
    found = IntervalSet(parts)
    assert minutes(found.clip(part)) == minutes(parts) & minutes([part])
    assert is_normal(found.clip(part))
    assert found.covers(part) is (minutes([part]) <= minutes(parts))


@given(lists(), st.randoms())
def test_equal_sets_are_equal_however_they_were_written(parts: list[Interval], rng: Random) -> None:
    """Order and cuts do not matter to equality or to hashes."""
    cut = [span(m, m + 1) for m in sorted(minutes(parts))]
    rng.shuffle(cut)
    assert IntervalSet(cut) == IntervalSet(parts)
    assert hash(IntervalSet(cut)) == hash(IntervalSet(parts))


@given(lists())
def test_the_bounds_reach_from_the_first_to_the_last_moment(parts: list[Interval]) -> None:
    """The bounds are the smallest interval around all; an empty set has none."""
    bounds = IntervalSet(parts).bounds
    if not parts:
        assert bounds is None
    else:
        held = minutes(parts)
        assert bounds == span(min(held), max(held) + 1)


@given(intervals(), intervals())
def test_two_intervals_compare_as_their_minutes_do(a: Interval, b: Interval) -> None:
    """Overlap, cover and intersection follow from the minutes of both."""
    shared = minutes([a]) & minutes([b])
    assert a.overlaps(b) is bool(shared)
    assert a.covers(b) is (minutes([b]) <= minutes([a]))
    common = a.intersection(b)
    assert (minutes([common]) if common else set()) == shared


def test_an_interval_holds_its_start_and_not_its_end() -> None:
    """Intervals are half-open."""
    assert at(5) in span(5, 6)
    assert at(6) not in span(5, 6)
    assert span(5, 8).length == 3 * MINUTE


def test_touching_intervals_do_not_overlap_and_join_in_a_set() -> None:
    """Neighbours share no moment, and as a set they are one."""
    assert not span(0, 5).overlaps(span(5, 9))
    assert list(IntervalSet([span(5, 9), span(0, 5)])) == [span(0, 9)]


@pytest.mark.parametrize("length", [0, -1])
def test_an_empty_or_reversed_interval_cannot_be_made(length: int) -> None:
    """``between`` returns None for an interval that would be empty or reversed."""
    with pytest.raises(ValueError, match="must end after its start"):
        span(10, 10 + length)
    assert between(at(10), at(10 + length)) is None
    assert between(at(10), at(11)) == span(10, 11)


@pytest.mark.parametrize(
    "zone", [None, timezone(timedelta(hours=1)), ZoneInfo("Europe/London")], ids=str
)
def test_an_interval_is_in_utc_only(zone: ZoneInfo | None) -> None:
    """Another zone is an error, even one that equals UTC on that day."""
    start = datetime(2024, 1, 10, tzinfo=zone)
    with pytest.raises(ValueError, match=r"start of an interval must be in UTC, got datetime"):
        Interval(start, datetime(2024, 1, 11, tzinfo=UTC))
    with pytest.raises(ValueError, match="end of an interval must be in UTC"):
        Interval(datetime(2024, 1, 9, tzinfo=UTC), start)


def test_utc_of_the_zone_database_is_utc() -> None:
    """It makes the same intervals."""
    zone = ZoneInfo("UTC")
    start, end = (moment.replace(tzinfo=zone) for moment in (at(0), at(1)))
    assert Interval(start, end) == span(0, 1)


def test_utc_converts_aware_moments_and_refuses_naive_ones() -> None:
    """The zone of a naive time is never guessed."""
    moment = datetime(2024, 7, 1, 9, 30, tzinfo=ZoneInfo("America/New_York"))
    assert utc(moment) == datetime(2024, 7, 1, 13, 30, tzinfo=UTC)
    assert utc(moment).tzinfo is UTC
    with pytest.raises(ValueError, match="needs a time zone"):
        utc(moment.replace(tzinfo=None))


def test_intervals_read_as_half_open_text() -> None:
    """The text shows both ends and which of them is included."""
    shown = "[2024-03-10T00:00:00Z, 2024-03-10T00:01:00Z)"
    assert str(span(0, 1)) == shown
    assert repr(IntervalSet([span(0, 1)])) == f"IntervalSet({shown})"


def test_a_set_differs_from_other_things() -> None:
    """Comparing it with something else is no error."""
    assert IntervalSet() != ()


# --- the same as a tuple of intervals, for few and for many -------------------------------------


class TupleSet:
    """The model: a set of times as a tuple of intervals, with each operation one by one."""

    def __init__(self, parts: Iterable[Interval] = ()) -> None:
        self._parts = _joined(parts)

    def __iter__(self) -> Iterator[Interval]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __bool__(self) -> bool:
        return bool(self._parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TupleSet) and self._parts == other._parts

    def __hash__(self) -> int:
        return hash(self._parts)

    def __repr__(self) -> str:
        return f"TupleSet({', '.join(map(str, self._parts))})"

    def __or__(self, other: "TupleSet") -> "TupleSet":
        large, small = (self, other) if len(self) >= len(other) else (other, self)
        if small.bounds is None:
            return large
        low = bisect_left(large._parts, small.bounds.start, key=lambda part: part.end)
        high = bisect_right(large._parts, small.bounds.end, key=lambda part: part.start)
        joined = _joined((*large._parts[low:high], *small._parts))
        # These parts are sorted and disjoint already: they need no second look.
        made = TupleSet()
        made._parts = (*large._parts[:low], *joined, *large._parts[high:])
        return made

    def __and__(self, other: "TupleSet") -> "TupleSet":
        return TupleSet(_shared(_near(self, other), _near(other, self)))

    def __sub__(self, other: "TupleSet") -> "TupleSet":
        return TupleSet(_remaining(self._parts, _near(other, self)))

    def __contains__(self, moment: datetime) -> bool:
        position = bisect_right(self._parts, moment, key=lambda part: part.start)
        return position > 0 and moment in self._parts[position - 1]

    def covers(self, interval: Interval) -> bool:
        """Return whether an interval lies wholly inside the set."""
        position = bisect_right(self._parts, interval.start, key=lambda part: part.start)
        return position > 0 and self._parts[position - 1].covers(interval)

    def clip(self, interval: Interval) -> "TupleSet":
        """Return the part inside an interval."""
        return TupleSet(_shared(_meeting(self._parts, interval), (interval,)))

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


def _near(parts: TupleSet, other: TupleSet) -> tuple[Interval, ...]:
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


YEAR = 4 * 365


@st.composite
def many(draw: st.DrawFn) -> list[Interval]:
    """Generate up to two hundred intervals over a year, some overlapping, some touching."""
    rng = draw(st.randoms(use_true_random=False))
    count, longest = draw(st.sampled_from([0, 1, 2, 3, 30, 70, 200])), draw(st.integers(1, 40))
    starts = [rng.randrange(YEAR) for _ in range(count)]
    return [span(start, start + rng.randint(1, longest)) for start in starts]


@given(many(), many(), st.integers(0, YEAR), st.integers(1, YEAR))
def test_arrays_do_what_a_tuple_does(
    a: list[Interval], b: list[Interval], start: int, length: int
) -> None:
    """Every operation has the model's result, however many intervals there are."""
    left, right, model, other = IntervalSet(a), IntervalSet(b), TupleSet(a), TupleSet(b)
    part = span(start, start + length)
    assert list(left) == list(model)
    assert list(left | right) == list(model | other)
    assert list(left & right) == list(model & other)
    assert list(left - right) == list(model - other)
    assert list(left.clip(part)) == list(model.clip(part))
    assert left.covers(part) is model.covers(part)
    assert (part.start in left) is (part.start in model)
    assert left.bounds == model.bounds
    assert left.length == model.length
    assert len(left) == len(model)
    assert (left == right) is (model == other)
    assert repr(left) == repr(model).replace("TupleSet", "IntervalSet")


@given(many(), many())
def test_intervals_given_as_arrays_are_the_same_set(a: list[Interval], b: list[Interval]) -> None:
    """In any order, overlapping or not; a set's own arrays make an equal set."""
    found = IntervalSet(a)
    bounds = np.array([(micros(one.start), micros(one.end)) for one in a], np.int64).reshape(-1, 2)
    assert IntervalSet.from_arrays(bounds[:, 0], bounds[:, 1]) == found
    assert IntervalSet.from_arrays(found.starts, found.ends) == found
    assert hash(found | IntervalSet(b)) == hash(IntervalSet([*b, *a]))


@given(many(), st.lists(st.integers(0, YEAR), min_size=2, unique=True))
def test_many_intervals_meet_a_set_as_each_does(a: list[Interval], limits: list[int]) -> None:
    """The parts inside and outside of a set are found piece by piece; pieces may touch."""
    found, model = IntervalSet(a), TupleSet(a)
    pieces = [span(low, high) for low, high in pairwise(sorted(limits))][:: len(a) % 2 + 1]
    starts, ends = (
        np.array([micros(moment) for moment in side], np.int64)
        for side in ([one.start for one in pieces], [one.end for one in pieces])
    )
    assert found.covers_each(starts, ends).tolist() == [model.covers(one) for one in pieces]
    for overlap, each in (
        (found.within(starts, ends), [model.clip(one) for one in pieces]),
        (found.outside(starts, ends), [TupleSet([one]) - model for one in pieces]),
        (overlaps(starts, ends, found.starts, found.ends), [model.clip(one) for one in pieces]),
    ):
        wanted = [
            (position, micros(part.start), micros(part.end))
            for position, parts in enumerate(each)
            for part in parts
        ]
        arrays = (overlap.left, overlap.starts, overlap.ends)
        assert list(zip(*(one.tolist() for one in arrays), strict=True)) == wanted


def test_a_set_cannot_be_changed_through_its_arrays() -> None:
    """They are read-only, and so are those of sets made from them."""
    found = IntervalSet([span(0, 5), span(9, 12)])
    for made in (found, found | IntervalSet([span(20, 21)]), found.clip(span(1, 10))):
        with pytest.raises(ValueError, match="read-only"):
            made.starts[0] = 0
        with pytest.raises(ValueError, match="read-only"):
            made.ends[0] = 0


def test_the_first_and_the_last_moment_are_exact() -> None:
    """No microsecond is rounded away, however far from 1970."""
    ever = Interval(datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
    assert list(IntervalSet([ever])) == [ever]
