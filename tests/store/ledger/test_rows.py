"""Rows of a table as values of a dataclass."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

import pytest

from ktrdr_pipelines.domain.bars import micros
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.store.ledger.rows import Rows

NOW = datetime(2024, 6, 3, 14, 30, 0, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Colour(StrEnum):
    """A choice."""

    RED = "red"
    BLUE = "blue"


class Size(NamedTuple):
    """A value that is not a dataclass."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Mark:
    """A dataclass within another."""

    first: date
    size: int


@dataclass(frozen=True, slots=True)
class Note:
    """A value with a field of every type that has a conversion."""

    name: str
    interval: Interval
    colour: Colour
    mark: Mark
    is_old: bool
    at: datetime
    until: datetime | None
    other: Colour | None
    raw: str | bytes
    ratio: float | None = None


NOTES = Rows("notes", Note, keys=("owner", "number"), names={"ratio": "factor", "size": "most"})
COLUMNS = (
    "owner, number, name, starts, ends, colour, first, most, is_old, at, until, other, raw, factor"
)


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    """Open a database with a table of notes, whose columns are in another order than the fields."""
    with closing(sqlite3.connect(":memory:")) as opened:
        columns = ", ".join(reversed(COLUMNS.split(", ")))
        opened.execute(f"CREATE TABLE notes ({columns}, PRIMARY KEY (owner, name))")
        yield opened


def note(name: str = "a", until: datetime | None = None, other: Colour | None = None) -> Note:
    """Return a note."""
    return Note(
        name=name,
        interval=Interval(NOW, NOW + HOUR),
        colour=Colour.BLUE,
        mark=Mark(date(2024, 6, 3), 7),
        is_old=True,
        at=NOW,
        until=until,
        other=other,
        raw=b"\x00" if until else "text",
    )


def test_values_are_read_as_they_were_written(connection: sqlite3.Connection) -> None:
    """With and without optional values; keys are returned beside the values."""
    written = [note("a"), note("b", NOW + HOUR, Colour.RED)]
    NOTES.insert(connection, written, "me", 5)
    assert NOTES.select(connection, "ORDER BY name") == written
    assert list(NOTES.select_keyed(connection, "ORDER BY name DESC")) == [
        (("me", 5), written[1]),
        (("me", 5), written[0]),
    ]
    [read] = NOTES.select(connection, "WHERE name = ?", ("a",))
    assert isinstance(read.is_old, bool)
    assert isinstance(read.colour, Colour)


def test_rows_hold_plain_values_of_sqlite(connection: sqlite3.Connection) -> None:
    """As other programs and earlier versions read and write them."""
    NOTES.insert(connection, [note()], "me", 5)
    start, end = micros(NOW), micros(NOW + HOUR)
    rows = connection.execute(f"SELECT {COLUMNS} FROM notes").fetchall()  # noqa: S608
    assert rows == [
        (
            *("me", 5, "a", start, end, "blue", "2024-06-03", 7, 1, start),
            *(None, None, "text", None),
        )
    ]


def test_a_row_with_the_same_primary_key_is_replaced(connection: sqlite3.Connection) -> None:
    """Whatever the other columns hold."""
    NOTES.insert(connection, [note()], "me", 5)
    NOTES.insert(connection, [note(until=NOW + HOUR)], "me", 6)
    assert list(NOTES.select_keyed(connection)) == [(("me", 6), note(until=NOW + HOUR))]


def test_named_tuples_are_values_too(connection: sqlite3.Connection) -> None:
    """With and without keys."""
    connection.execute("CREATE TABLE sizes (width, height)")
    Rows("sizes", Size).insert(connection, [Size(1, 2), Size(3, 4)])
    assert Rows("sizes", Size).select(connection, "ORDER BY width") == [Size(1, 2), Size(3, 4)]
    assert list(Rows("sizes", Size).select_keyed(connection, "WHERE width = 3")) == [
        ((), Size(3, 4))
    ]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("colour = 'green'", "green"),
        ("first = 'June'", "June"),
        ("ends = 0", "must end after its start"),
        ("at = 'noon'", "noon"),
    ],
)
def test_a_value_that_its_class_refuses_raises(
    connection: sqlite3.Connection, damage: str, message: str
) -> None:
    """A damaged row is an error, not another value."""
    NOTES.insert(connection, [note()], "me", 5)
    connection.execute(f"UPDATE notes SET {damage}")  # noqa: S608
    with pytest.raises(ValueError, match=message):
        NOTES.select(connection, "")
