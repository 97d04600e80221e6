"""Rows of the ledger's tables as values of dataclasses.

``Rows`` derives the columns of a table, and how each is converted, from the fields of a dataclass.

Not here: the definitions of the tables (``store.ledger.schema``).
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from datetime import date, datetime
from enum import StrEnum
from operator import attrgetter
from typing import Any, Generic, TypeVar, get_args, get_type_hints

from ktrdr_pipelines.domain.bars import micros, moment
from ktrdr_pipelines.domain.intervals import Interval

T = TypeVar("T")

_Convert = Callable[[Any], Any]

_BOUNDS = {"start": "starts", "end": "ends"}
"""The columns of an ``Interval``: START and END are words of SQL."""


def bounds(interval: Interval) -> tuple[int, int]:
    """Return the start and end of an interval in microseconds since 1970 UTC."""
    return micros(interval.start), micros(interval.end)


class Rows(Generic[T]):
    """The rows of one table, converted between SQLite's values and a dataclass or named tuple.

    A column has the name and the place of a field. A field that is a dataclass itself, such as an
    ``Interval``, has a column for each of its fields. Moments are stored as microseconds since 1970
    UTC, dates as ISO text, choices as their value, booleans as 0 and 1; other values, and None, as
    they are. How to convert is worked out once, here, so that reading thousands of rows costs no
    more than the conversions.

    Args:
        table: the name of the table.
        kind: the class of the values.
        keys: columns of the table that are not fields of the class.
        names: the columns of fields whose names differ.
    """

    def __init__(
        self,
        table: str,
        kind: type[T],
        *,
        keys: tuple[str, ...] = (),
        names: Mapping[str, str] | None = None,
    ) -> None:
        self._kind = kind
        self._keys = len(keys)
        self._columns: list[str] = []
        self._getters: list[_Convert] = []
        self._encoders: list[tuple[int, _Convert]] = []
        self._decoders: list[tuple[int, _Convert]] = []
        self._nested: list[tuple[slice, Callable[..., Any]]] = []
        self._add_fields(kind, "", {**_BOUNDS, **(names or {})})
        own, every = ", ".join(self._columns), ", ".join((*keys, *self._columns))
        marks = ", ".join("?" * (self._keys + len(self._columns)))
        self._select = f"SELECT {own} FROM {table} "  # noqa: S608  (names of the schema)
        self._select_keyed = f"SELECT {every} FROM {table} "  # noqa: S608
        self._insert = f"INSERT OR REPLACE INTO {table} ({every}) VALUES ({marks})"  # noqa: S608

    def select(
        self, connection: sqlite3.Connection, clauses: str, values: Sequence[object] = ()
    ) -> list[T]:
        """Return the values of rows.

        Args:
            connection: an open connection.
            clauses: what follows ``FROM``, such as ``WHERE series = ? ORDER BY starts``.
            values: those of its question marks.
        """
        decoded = self._decoded
        return [decoded(list(row)) for row in connection.execute(self._select + clauses, values)]

    def select_keyed(
        self, connection: sqlite3.Connection, clauses: str = "", values: Sequence[object] = ()
    ) -> Iterator[tuple[list[Any], T]]:
        """Yield the keys, as SQLite has them, and the value of each row; see ``select``."""
        for row in connection.execute(self._select_keyed + clauses, values):
            held = list(row)
            yield held[: self._keys], self._decoded(held[self._keys :])

    def insert(self, connection: sqlite3.Connection, values: Iterable[T], *keys: object) -> None:
        """Insert rows with the same keys, replacing those with the same primary key."""
        connection.executemany(self._insert, [(*keys, *self._encoded(one)) for one in values])

    def _decoded(self, row: list[Any]) -> T:
        for at, convert in self._decoders:
            row[at] = convert(row[at])
        for part, make in self._nested:
            row[part] = [make(*row[part])]
        return self._kind(*row)

    def _encoded(self, value: T) -> list[Any]:
        row = [get(value) for get in self._getters]
        for at, convert in self._encoders:
            row[at] = convert(row[at])
        return row

    def _add_fields(self, kind: type, path: str, names: Mapping[str, str]) -> None:
        """Append the columns of a class's fields; ``path`` leads to it, such as ``interval.``."""
        for field, annotation in get_type_hints(kind).items():
            types = [one for one in get_args(annotation) or (annotation,) if one is not type(None)]
            known = types[0] if len(types) == 1 else object
            first = len(self._columns)
            if is_dataclass(known):
                self._add_fields(known, f"{path}{field}.", names)
                # A later part is joined first, so that the places of earlier ones stay.
                self._nested.insert(0, (slice(first, len(self._columns)), known))
                continue
            self._columns.append(names.get(field, field))
            self._getters.append(attrgetter(path + field))
            decode, encode = _conversions(known)
            if decode is not None and encode is not None:
                is_optional = known is not annotation
                self._decoders.append((first, _optional(decode) if is_optional else decode))
                self._encoders.append((first, _optional(encode) if is_optional else encode))


def _conversions(kind: type) -> tuple[_Convert | None, _Convert | None]:
    """Return what reads a value of a class from SQLite's, and what writes it, where they differ."""
    if kind is datetime:
        return moment, micros
    if kind is date:
        return date.fromisoformat, date.isoformat
    if kind is bool:
        return bool, int
    if issubclass(kind, StrEnum):
        return kind, attrgetter("value")
    return None, None


def _optional(convert: _Convert) -> _Convert:
    return lambda value: None if value is None else convert(value)
