"""Footers: every kind of proof is read back, and earlier versions are compatible."""

import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.domain.bars import UNCONFIRMED, micros
from ktrdr_pipelines.domain.coverage import Coverage, Emptiness, ProofKind
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.bars.bar_store import BarStore, read_footer
from ktrdr_pipelines.store.bars.footer import (
    ChangedFooterError,
    FileBasis,
    Footer,
    NewerSchemaError,
    Presumed,
    basis_from_json,
    basis_to_json,
    coverage_from_json,
    coverage_to_json,
    footer_from_json,
    footer_to_json,
)

DAY = timedelta(days=1)
FIRST = datetime(2024, 6, 3, 13, 30, tzinfo=UTC)
PROVED = datetime(2024, 6, 20, 9, 30, 15, 123456, tzinfo=UTC)


def span(first: int, end: int) -> Interval:
    """Return an interval of days."""
    return Interval(FIRST + first * DAY, FIRST + end * DAY)


def empty(first: int, end: int, kind: ProofKind = ProofKind.PLAIN, note: str = "") -> Emptiness:
    """Return a proof about an interval of days."""
    return Emptiness(span(first, end), PROVED + first * DAY, kind, note)


def every_kind() -> Coverage:
    """Return coverage with a proof of every kind between bars."""
    proofs = [empty(2 * n + 1, 2 * n + 2, kind) for n, kind in enumerate(ProofKind)]
    noted = empty(20, 21, ProofKind.ACKNOWLEDGED, 'halted: "news" of 3.6.\n\u2014 see § 4')
    return Coverage(IntervalSet([span(0, 1), span(30, 40)]), (*proofs, noted))


def test_every_kind_of_proof_comes_back() -> None:
    """With its time, to the microsecond, and the user's note."""
    coverage = every_kind()
    assert coverage_from_json(coverage_to_json(coverage)) == coverage


def test_a_footer_comes_back_with_every_kind_of_proof(make: Any) -> None:
    """As a whole: identity, coverage, counts."""
    footer = Footer(make.identity(make.series()), every_kind(), 390, {date(2024, 6, 3): 390})
    assert footer_from_json(footer_to_json(footer)) == footer


def test_a_file_keeps_every_kind_of_proof(store: BarStore, make: Any) -> None:
    """Saved, recorded in the file index, read from the file and kept by a later save."""
    series = make.series(Timeframe.H1)
    bars = make.run(series, FIRST, 6)
    coverage = make.covering(series, bars).merged(Coverage(empty=every_kind().empty))
    (path,) = store.save(series, make.identity(series), bars, coverage).files
    assert read_footer(path).coverage == coverage
    assert store.coverage(series) == coverage
    store.ledger.files.remove([store.layout.relative(path)])
    assert store.coverage(series) == coverage
    more = make.run(series, FIRST + 50 * DAY, 6)
    make.save(store, series, more)
    assert store.coverage(series) == coverage.merged(make.covering(series, more))


def test_an_earlier_versions_footer_is_read() -> None:
    """Its proofs have no kind: they are plain."""
    earlier = {
        "bars": [[micros(FIRST), micros(FIRST + DAY)]],
        "empty": [[micros(FIRST + DAY), micros(FIRST + 2 * DAY), micros(PROVED)]],
    }
    found = coverage_from_json(json.dumps(earlier))
    assert found == Coverage(
        IntervalSet([span(0, 1)]), (Emptiness(span(1, 2), PROVED, ProofKind.PLAIN, ""),)
    )


def test_plain_proofs_are_written_as_earlier_versions_write_them() -> None:
    """Earlier versions read those, and take other proofs for nothing at all."""
    plain = Coverage(IntervalSet([span(0, 1)]), (empty(1, 2),))
    fields = json.loads(coverage_to_json(plain))
    assert fields.keys() == {"bars", "empty"}
    (proof,) = fields["empty"]
    assert proof == [micros(FIRST + DAY), micros(FIRST + 2 * DAY), micros(PROVED + DAY)]
    fields = json.loads(coverage_to_json(every_kind()))
    assert len(fields["empty"]) == 1
    assert len(fields["bars"]) == 2
    assert [kind for *_, kind, _ in fields["proofs"]] == [
        "voidable",
        "disputed",
        "acknowledged",
        "acknowledged",
    ]


@pytest.mark.parametrize("kind", ["", "sure", None, 3])
def test_a_proof_of_an_unknown_kind_is_refused(kind: object) -> None:
    """It is no footer of this version."""
    fields = json.loads(coverage_to_json(every_kind()))
    fields["proofs"][0][3] = kind
    with pytest.raises(ValueError, match="ProofKind"):
        coverage_from_json(json.dumps(fields))


@given(
    st.lists(
        st.tuples(
            st.integers(0, 60), st.integers(1, 9), st.sampled_from(ProofKind), st.text(max_size=20)
        ),
        max_size=8,
    )
)
def test_any_coverage_comes_back(parts: list[tuple[int, int, ProofKind, str]]) -> None:
    """Whatever notes say, and however proofs lie beside each other."""
    coverage = Coverage(IntervalSet([span(0, 3)]))
    for first, length, kind, note in parts:
        proof = Coverage(empty=(empty(first, first + length, kind, note),))
        coverage = coverage.merged(proof)
    assert coverage_from_json(coverage_to_json(coverage)) == coverage


# --- price bases --------------------------------------------------------------------------------


def some_basis() -> FileBasis:
    """Return what a file states of bars on several bases."""
    return FileBasis(
        ((span(0, 1), 0), (span(1, 2), UNCONFIRMED), (span(2, 3), 12)),
        (Presumed(span(0, 1), PROVED + DAY, PROVED), Presumed(span(2, 3), PROVED, PROVED)),
        PROVED,
    )


@pytest.mark.parametrize("basis", [some_basis(), FileBasis()])
def test_the_price_basis_comes_back(make: Any, basis: FileBasis) -> None:
    """From a footer, and from the file index, to the microsecond."""
    footer = Footer(make.identity(make.series()), every_kind(), 3, {FIRST.date(): 3}, basis=basis)
    assert footer_from_json(footer_to_json(footer)) == footer
    assert basis_from_json(basis_to_json(basis)) == basis
    assert basis.unconfirmed == IntervalSet(span(1, 2) for _ in basis.intervals)


def test_a_footer_of_version_1_has_no_price_basis(make: Any) -> None:
    """One of version 2 must have it, and a later version is refused."""
    footer = Footer(make.identity(make.series()), every_kind(), 3, {FIRST.date(): 3})
    fields = json.loads(footer_to_json(replace(footer, basis=some_basis())))
    with pytest.raises(NewerSchemaError, match="3"):
        footer_from_json(json.dumps(fields | {"schema_version": 3}))
    del fields["basis"]
    with pytest.raises(KeyError):
        footer_from_json(json.dumps(fields))
    found = footer_from_json(json.dumps(fields | {"schema_version": 1}))
    assert found == replace(footer, schema_version=1)
    assert basis_from_json("") == found.basis == FileBasis()


def test_the_digest_of_a_footer_covers_the_price_basis(store: BarStore, make: Any) -> None:
    """A changed basis is a changed footer."""
    series = make.series()
    (path,) = make.save(store, series, make.run(series, FIRST, 3)).files
    text = footer_to_json(read_footer(path))
    fields = json.loads(text)
    fields["basis"]["intervals"][0][2] = 1
    assert footer_from_json(text) == read_footer(path)
    with pytest.raises(ChangedFooterError):
        footer_from_json(json.dumps(fields, separators=(",", ":")))
