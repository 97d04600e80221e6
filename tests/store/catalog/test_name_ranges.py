"""Ranges of symbols: together they hold every name once, and their globs match no other name."""

import re
from itertools import pairwise

import duckdb
from hypothesis import given, settings
from hypothesis import strategies as st

from ktrdr_pipelines.domain.universe.fields import KEY_PATTERN
from ktrdr_pipelines.store.catalog.name_ranges import NameRange, name_ranges

NAMES = st.from_regex(KEY_PATTERN, fullmatch=True) | st.from_regex("S[0-9]{3}", fullmatch=True)


def matches(one: NameRange, name: str) -> bool:
    """Return whether DuckDB finds the folder of a symbol by a range's globs."""
    sql = " OR ".join("? GLOB ?" for _ in one.globs)
    values = [text for glob in one.globs for text in (f"symbol={name}", f"symbol={glob}")]
    found = duckdb.execute(f"SELECT {sql}", values).fetchone()
    assert found is not None
    return bool(found[0])


@settings(max_examples=60, deadline=None)
@given(
    held=st.dictionaries(NAMES, st.integers(1, 40), min_size=2, max_size=60),
    others=st.lists(NAMES, max_size=20),
)
def test_every_name_is_in_one_range_and_matches_its_globs_alone(
    held: dict[str, int], others: list[str]
) -> None:
    """Names that exist and names still to come."""
    ranges = name_ranges(held)
    assert not ranges or len(ranges) > 1
    for before, after in pairwise(ranges):
        assert before.first < before.end == after.first
    assert not ranges or ranges[-1].end is None
    for name in [*held, *others, "-x", "."] if ranges else []:
        inside = [one for one in ranges if one.first <= name and (not one.end or name < one.end)]
        assert len(inside) == 1
        assert [one for one in ranges if matches(one, name)] == inside
    assert all(one.files for one in ranges)
    assert not ranges or sum(one.files for one in ranges) == sum(held.values())


def test_many_symbols_with_one_beginning_are_divided() -> None:
    """500 symbols of 20 files make ranges of at most 1,000 files, but for one symbol alone."""
    ranges = name_ranges({f"SYM{number:03}": 20 for number in range(500)})
    assert 10 <= len(ranges) <= 20
    assert max(one.files for one in ranges) <= 1000
    assert all(len(one.globs) <= 12 for one in ranges)


def test_few_files_need_no_ranges() -> None:
    """One glob lists them."""
    assert name_ranges({}) == name_ranges({"AAPL": 20, "MSFT": 20}) == []
    assert re.fullmatch(KEY_PATTERN, "AAPL")
