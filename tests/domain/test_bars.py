"""Tables of bars: merging, sorting, timestamps and the schema."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.domain.bars import (
    BAR_SCHEMA,
    VALUES,
    bars_between,
    empty_bars,
    merge_bars,
    micros,
    rows_per_session,
    sorted_unique,
    timestamps,
)

ORIGIN = datetime(2024, 1, 2, 14, 30, tzinfo=UTC)

Row = tuple[float | int | None, ...]
"""Values of one bar in the order of VALUES."""


def at(minute: int) -> datetime:
    """Return the time of a minute."""
    return ORIGIN + timedelta(minutes=minute)


def row(price: float | None = 1.0, volume: float | None = 5.0, count: int | None = 2) -> Row:
    """Return the values of a bar of one price."""
    return (price, price, price, price, volume, price, count)


def table(rows: dict[int, Row], chunked: bool = False) -> pa.Table:
    """Return a table of bars by minute, in the given order."""
    made = pa.Table.from_pylist(
        [
            {
                "ts": at(minute),
                "session_date": at(minute).date(),
                **dict(zip(VALUES, values, strict=True)),
            }
            for minute, values in rows.items()
        ],
        schema=BAR_SCHEMA,
    )
    return pa.concat_tables([made.slice(0, 1), made.slice(1)]) if chunked else made


def model(bars: pa.Table) -> dict[int, Row]:
    """Return the values of a table by minute."""
    return {
        (item["ts"] - ORIGIN) // timedelta(minutes=1): tuple(item[name] for name in VALUES)
        for item in bars.to_pylist()
    }


def rows() -> st.SearchStrategy[dict[int, Row]]:
    """Generate sorted bars by minute, of few values, so that equal ones are common."""
    price = st.sampled_from([None, 1.0, 2.0])
    values = st.builds(row, price, st.sampled_from([None, 0.0, 5.0]), st.sampled_from([None, 0, 2]))
    made = st.dictionaries(st.integers(0, 12), values, max_size=9)
    return made.map(lambda found: dict(sorted(found.items())))


@given(rows(), rows(), st.booleans())
def test_merging_is_what_a_dictionary_does(
    old: dict[int, Row], new: dict[int, Row], chunked: bool
) -> None:
    """The newer bar wins, no other is lost, and what changed is kept exactly as it was."""
    merge = merge_bars(table(old, chunked), table(new))
    assert model(merge.bars) == old | new
    assert list(model(merge.bars)) == sorted(old | new)
    assert model(merge.revised) == {m: v for m, v in old.items() if m in new and v != new[m]}
    assert merge.added == len(new.keys() - old.keys())
    assert merge.bars.schema == merge.revised.schema == BAR_SCHEMA
    assert merge.bars.num_rows == len(old | new)


@given(rows())
def test_merging_the_same_bars_again_changes_nothing(old: dict[int, Row]) -> None:
    """A response that repeats what is stored adds nothing and revises nothing, nulls included."""
    merge = merge_bars(table(old), table(old))
    assert model(merge.bars) == old
    assert merge.revised.num_rows == 0
    assert merge.added == 0


@given(rows(), rows(), rows())
def test_merging_does_not_depend_on_how_a_response_was_split(
    old: dict[int, Row], one: dict[int, Row], other: dict[int, Row]
) -> None:
    """Saving two responses one after the other is saving both at once."""
    both = dict(sorted((one | other).items()))
    stepwise = merge_bars(merge_bars(table(old), table(one)).bars, table(other)).bars
    assert model(stepwise) == model(merge_bars(table(old), table(both)).bars)


def test_bars_of_equal_values_are_two_bars() -> None:
    """Only the timestamp identifies a bar: a quiet minute that repeats its neighbour is kept."""
    merge = merge_bars(table({0: row(), 1: row()}), table({2: row(), 3: row()}))
    assert model(merge.bars) == {0: row(), 1: row(), 2: row(), 3: row()}


@pytest.mark.parametrize("position", range(len(VALUES)), ids=VALUES)
def test_a_change_in_any_value_is_a_revision(position: int) -> None:
    """Each value counts, and so does a value in place of "not available"."""
    before = list(row())
    for change in (9, None):
        after = [*before[:position], change, *before[position + 1 :]]
        merge = merge_bars(table({0: tuple(before)}), table({0: tuple(after)}))
        assert model(merge.revised) == {0: tuple(before)}
        back = merge_bars(table({0: tuple(after)}), table({0: tuple(before)}))
        assert model(back.revised) == {0: tuple(after)}


def test_a_session_date_that_moved_is_no_revision() -> None:
    """The date of a week is that of its last session so far; the newer one counts."""
    old = table({0: row()})
    position = BAR_SCHEMA.get_field_index("session_date")
    new = old.set_column(position, BAR_SCHEMA.field(position), pa.array([date(2024, 1, 5)]))
    merge = merge_bars(old, new)
    assert merge.revised.num_rows == 0
    assert merge.bars["session_date"].to_pylist() == [date(2024, 1, 5)]


@given(rows(), st.integers(-1, 13), st.integers(-1, 13))
def test_bars_between_takes_the_first_and_not_the_end(
    some: dict[int, Row], start: int, end: int
) -> None:
    """A bar belongs to an interval when its timestamp does; the end is excluded."""
    found = bars_between(table(some), at(start), at(max(start, end)))
    assert model(found) == {m: v for m, v in some.items() if start <= m < end}


def test_sorting_keeps_the_last_given_of_one_timestamp() -> None:
    """Of a repeated timestamp in a response the later row counts."""
    given_ = pa.concat_tables(
        [table({3: row(1.0), 1: row(1.0)}), table({3: row(2.0), 2: row(1.0)})]
    )
    found = sorted_unique(given_)
    assert model(found) == {1: row(1.0), 2: row(1.0), 3: row(2.0)}
    assert found.num_rows == 3


def test_sorting_sorted_bars_returns_the_same_table() -> None:
    """The usual case makes no copy."""
    bars = table({0: row(), 1: row()})
    assert sorted_unique(bars) is bars
    assert sorted_unique(empty_bars()).num_rows == 0


def test_timestamps_are_whole_microseconds_in_utc() -> None:
    """The array of timestamps agrees with single moments, across chunks."""
    bars = table({0: row(), 1: row(), 5: row()}, chunked=True)
    assert timestamps(bars).dtype == np.int64
    assert timestamps(bars).tolist() == [micros(at(m)) for m in (0, 1, 5)]
    assert micros(datetime(1970, 1, 1, tzinfo=UTC)) == 0
    assert micros(datetime(2049, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)) == 2_524_607_999_999_999
    assert micros(datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)) == -1


def test_rows_are_counted_by_session_date() -> None:
    """Each session date has its number of bars; no bars, no dates."""
    bars = table({0: row(), 1: row(), 1440: row()})
    assert rows_per_session(bars) == {date(2024, 1, 2): 2, date(2024, 1, 3): 1}
    assert rows_per_session(empty_bars()) == {}


def test_the_schema_is_what_files_hold() -> None:
    """Readers of the files rely on names, types and order of the columns."""
    assert [(field.name, str(field.type), field.nullable) for field in BAR_SCHEMA] == [
        ("ts", "timestamp[us, tz=UTC]", False),
        ("session_date", "date32[day]", False),
        ("open", "double", True),
        ("high", "double", True),
        ("low", "double", True),
        ("close", "double", True),
        ("volume", "double", True),
        ("average", "double", True),
        ("bar_count", "int32", True),
    ]
    assert empty_bars().num_rows == 0
    assert empty_bars().schema == BAR_SCHEMA
