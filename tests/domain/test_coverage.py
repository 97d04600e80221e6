"""Coverage: merging, clipping, and how proofs expire and become void."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.domain.coverage import REFUTABLE, VOIDABLE, Coverage, Emptiness, ProofKind
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet

ORIGIN = datetime(2023, 1, 2, tzinfo=UTC)
DAY = timedelta(days=1)
MOST = 120
"""Intervals lie on days 0 to 120, proofs are made on days 120 to 160."""


def day(number: float) -> datetime:
    """Return the time that lies so many days after the origin."""
    return ORIGIN + number * DAY


def span(start: float, end: float) -> Interval:
    """Return the interval between two days."""
    return Interval(day(start), day(end))


def intervals() -> st.SearchStrategy[Interval]:
    """Generate intervals of whole days."""
    pairs = st.tuples(st.integers(0, MOST - 1), st.integers(1, MOST))
    return pairs.filter(lambda pair: pair[0] < pair[1]).map(lambda pair: span(*pair))


def moments(first: int, last: int) -> st.SearchStrategy[datetime]:
    """Generate full hours between two days."""
    return st.integers(first * 24, last * 24).map(lambda hours: day(hours / 24))


def coverages(first: int = MOST, last: int = MOST + 40) -> st.SearchStrategy[Coverage]:
    """Generate coverage whose proofs were made between two days."""
    kinds = st.sampled_from(ProofKind)
    proofs = st.builds(Emptiness, intervals(), moments(first, last), kinds)
    return st.builds(
        lambda bars, proofs: Coverage(IntervalSet(bars), tuple(proofs)),
        st.lists(intervals(), max_size=3),
        st.lists(proofs, max_size=3),
    )


times = moments(MOST, MOST + 450)


@given(coverages(), coverages())
def test_merging_never_loses_an_interval_with_bars(old: Coverage, new: Coverage) -> None:
    """What either side covered with bars stays covered with bars."""
    assert old.merged(new).bars == old.bars | new.bars


@given(coverages(), coverages())
def test_no_interval_is_both_bars_and_empty(old: Coverage, new: Coverage) -> None:
    """Bars replace proofs, whichever came first."""
    merged = old.merged(new)
    empty = IntervalSet(proof.interval for proof in merged.empty)
    assert not empty & merged.bars


@given(coverages(), coverages(), times)
def test_merging_covers_nothing_that_no_side_covered(
    old: Coverage, new: Coverage, now: datetime
) -> None:
    """At any time, what a merge covers was covered by either side."""
    merged = old.merged(new).covered(now)
    assert not merged - (old.covered(now) | new.covered(now))


@given(coverages(MOST, MOST + 20), coverages(MOST + 20, MOST + 40), times)
def test_a_newer_proof_never_shortens_what_is_covered(
    old: Coverage, new: Coverage, now: datetime
) -> None:
    """After a merge with later proofs all is covered that either side covered."""
    assert old.merged(new).covered(now) == old.covered(now) | new.covered(now)


@given(coverages(), intervals(), times)
def test_clipping_keeps_what_is_covered_inside_and_nothing_else(
    coverage: Coverage, part: Interval, now: datetime
) -> None:
    """A clipped proof lasts exactly as long as it did before."""
    assert coverage.clip(part).covered(now) == coverage.covered(now).clip(part)


@given(coverages(), st.integers(1, MOST - 1), times)
def test_cutting_a_coverage_in_two_and_joining_it_changes_nothing(
    coverage: Coverage, at: int, now: datetime
) -> None:
    """Files by year hold parts of one coverage, which together equal the whole."""
    left, right = coverage.clip(span(0, at)), coverage.clip(span(at, MOST))
    assert left.covered(now) | right.covered(now) == coverage.covered(now)
    assert left.merged(right).bars == coverage.bars


@given(coverages(), times, times)
def test_emptiness_only_ever_expires(coverage: Coverage, one: datetime, other: datetime) -> None:
    """Proofs expire with time and are never added; bars stay covered."""
    earlier, later = sorted((one, other))
    assert not coverage.covered(later) - coverage.covered(earlier)
    assert not coverage.bars - coverage.covered(day(MOST + 10_000))
    assert coverage.covered(day(MOST + 10_000)) == coverage.bars


@given(coverages(), intervals(), st.sampled_from([REFUTABLE, VOIDABLE]), times)
def test_only_void_proofs_of_the_named_kinds_are_removed(
    coverage: Coverage, part: Interval, kinds: frozenset[ProofKind], now: datetime
) -> None:
    """Bars, other kinds and other ranges are unchanged, to the time of their proof."""
    left = coverage.without_proofs(IntervalSet([part]), kinds)
    assert left.bars == coverage.bars
    for kind in ProofKind:
        before = Coverage(empty=tuple(one for one in coverage.empty if one.kind is kind))
        after = Coverage(empty=tuple(one for one in left.empty if one.kind is kind))
        void = IntervalSet([part]) if kind in kinds else IntervalSet()
        assert after.covered(now) == before.covered(now) - void


@pytest.mark.parametrize("kind", ProofKind)
def test_a_proof_keeps_its_kind_and_note_when_it_is_cut_and_joined(kind: ProofKind) -> None:
    """Proofs of two kinds stay separate, though they were made at one time."""
    proof = Emptiness(span(0, 10), day(50), kind, "halted")
    cut = Coverage(empty=(proof,)).merged(Coverage(IntervalSet([span(3, 5)])))
    assert {(one.kind, one.note) for one in cut.empty} == {(kind, "halted")}
    assert [one.interval for one in cut.empty] == [span(0, 3), span(5, 10)]
    for other in ProofKind:
        beside = Coverage(empty=(Emptiness(span(10, 12), day(50), other, "halted"),))
        merged = Coverage(empty=(proof,)).merged(beside)
        assert len(merged.empty) == (1 if other is kind else 2)


def test_a_newer_proof_of_another_kind_replaces_an_older_one() -> None:
    """A disputed range that is acknowledged now is acknowledged."""
    older = Coverage(empty=(Emptiness(span(0, 9), day(50), ProofKind.DISPUTED),))
    newer = Coverage(empty=(Emptiness(span(4, 9), day(60), ProofKind.ACKNOWLEDGED, "halted"),))
    assert older.merged(newer).empty == (
        Emptiness(span(0, 4), day(50), ProofKind.DISPUTED),
        Emptiness(span(4, 9), day(60), ProofKind.ACKNOWLEDGED, "halted"),
    )


def test_recent_emptiness_lasts_thirty_days() -> None:
    """A range that was recent when it was proved must be proved again soon."""
    coverage = Coverage(empty=(Emptiness(span(0, 1), day(2)),))
    assert coverage.covered(day(31.9)).covers(span(0, 1))
    assert not coverage.covered(day(32))


def test_old_emptiness_lasts_a_year() -> None:
    """A range that was old when it was proved must be proved again after 365 days."""
    coverage = Coverage(empty=(Emptiness(span(0, 1), day(100)),))
    assert coverage.covered(day(464.9)).covers(span(0, 1))
    assert not coverage.covered(day(465))


def test_a_long_proof_ages_week_by_week() -> None:
    """Its old weeks outlive the recent ones, from a Monday's midnight on."""
    proof = Emptiness(span(0, 70), day(73.5))
    assert proof.expires_at == day(103.5)
    assert proof.valid_part(day(103)) == span(0, 70)
    assert proof.valid_part(day(104)) == span(0, 42)
    assert proof.valid_part(day(439)) is None


def test_bars_replace_a_part_of_a_proof() -> None:
    """The rest of the proof keeps its date."""
    proved = Coverage(empty=(Emptiness(span(0, 10), day(50)),))
    merged = proved.merged(Coverage(IntervalSet([span(3, 5)])))
    assert merged.empty == (Emptiness(span(0, 3), day(50)), Emptiness(span(5, 10), day(50)))


def test_adjoining_proofs_of_one_time_are_joined() -> None:
    """Several empty chunks of a run make one proof."""
    first = Coverage(empty=(Emptiness(span(0, 5), day(50)),))
    second = Coverage(empty=(Emptiness(span(5, 9), day(50)),))
    assert first.merged(second).empty == (Emptiness(span(0, 9), day(50)),)


def test_a_newer_proof_replaces_an_older_one() -> None:
    """The later date counts where both proved the range."""
    older = Coverage(empty=(Emptiness(span(0, 9), day(50)),))
    newer = Coverage(empty=(Emptiness(span(4, 9), day(80)),))
    assert older.merged(newer).empty == (
        Emptiness(span(0, 4), day(50)),
        Emptiness(span(4, 9), day(80)),
    )


def test_coverage_of_nothing_is_false() -> None:
    """Coverage with bars or proofs is true."""
    assert not Coverage()
    assert Coverage(IntervalSet([span(0, 1)]))
    assert Coverage(empty=(Emptiness(span(0, 1), day(2)),))
