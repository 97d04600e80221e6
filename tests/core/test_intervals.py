from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from random import Random
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.domain.intervals import Interval, IntervalSet, between, utc

ORIGIN = datetime(2024, 3, 10, tzinfo=UTC)
MOST = 40
MINUTE = timedelta(minutes=1)


def at(minute: int) -> datetime:
    """Return the moment of a minute."""
    return ORIGIN + minute * MINUTE


def span(start: int, end: int) -> Interval:
    """Return the interval between two minutes."""
    return Interval(at(start), at(end))


def intervals() -> st.SearchStrategy[Interval]:
    """Make any interval of whole minutes."""
    pairs = st.tuples(st.integers(0, MOST - 1), st.integers(1, MOST))
    return pairs.filter(lambda pair: pair[0] < pair[1]).map(lambda pair: span(*pair))


def lists() -> st.SearchStrategy[list[Interval]]:
    """Make a few intervals, overlapping or not."""
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
def test_the_bounds_reaches_from_the_first_to_the_last_moment(parts: list[Interval]) -> None:
    """The bounds is the smallest interval around all, and there is none around nothing."""
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
    """An interval ends after its start; where it may be empty, ``between`` gives None."""
    with pytest.raises(ValueError, match="must end after its start"):
        span(10, 10 + length)
    assert between(at(10), at(10 + length)) is None
    assert between(at(10), at(11)) == span(10, 11)


@pytest.mark.parametrize(
    "zone", [None, timezone(timedelta(hours=1)), ZoneInfo("Europe/London")], ids=str
)
def test_an_interval_is_in_utc_only(zone: ZoneInfo | None) -> None:
    """Another zone is an error, even one that is level with UTC on that day."""
    start = datetime(2024, 1, 10, tzinfo=zone)
    with pytest.raises(ValueError, match=r"start of an interval must be in UTC, got datetime"):
        Interval(start, datetime(2024, 1, 11, tzinfo=UTC))
    with pytest.raises(ValueError, match="end of an interval must be in UTC"):
        Interval(datetime(2024, 1, 9, tzinfo=UTC), start)


def test_utc_by_another_name_is_utc() -> None:
    """The zone database's UTC makes the same intervals."""
    zone = ZoneInfo("UTC")
    start, end = (moment.replace(tzinfo=zone) for moment in (at(0), at(1)))
    assert Interval(start, end) == span(0, 1)


def test_utc_converts_aware_moments_and_refuses_naive_ones() -> None:
    """A moment without a zone is never guessed."""
    moment = datetime(2024, 7, 1, 9, 30, tzinfo=ZoneInfo("America/New_York"))
    assert utc(moment) == datetime(2024, 7, 1, 13, 30, tzinfo=UTC)
    assert utc(moment).tzinfo is UTC
    with pytest.raises(ValueError, match="needs a time zone"):
        utc(moment.replace(tzinfo=None))


def test_intervals_read_as_half_open_text() -> None:
    """Text shows both ends and which one is in."""
    shown = "[2024-03-10T00:00:00Z, 2024-03-10T00:01:00Z)"
    assert str(span(0, 1)) == shown
    assert repr(IntervalSet([span(0, 1)])) == f"IntervalSet({shown})"


def test_a_set_differs_from_other_things() -> None:
    """Comparing with something else is no error and never true."""
    assert IntervalSet() != ()
