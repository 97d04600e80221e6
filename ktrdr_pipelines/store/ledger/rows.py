"""Rows of the ledger's tables as values of dataclasses.

``Rows`` derives the columns of a table, and how each is converted, from the fields of a dataclass.

Not here: the definitions of the tables (``store.ledger.schema``).
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Any, Generic, TypeVar, get_args, get_type_hints

from ktrdr_pipelines.domain.bars import micros, moment
from ktrdr_pipelines.domain.intervals import Interval

T = TypeVar("T")

_Convert = Callable[[Any], Any]

_BOUNDS = {"start": "starts", "end": "ends"}
"""The columns of an ``Interval``: START and END are keywords of SQL."""


def bounds(interval: Interval) -> tuple[int, int]:
    """Return the start and end of an interval in microseconds since 1970 UTC."""
    return micros(interval.start), micros(interval.end)


class Rows(Generic[T]):
    """The rows of one table, converted between SQLite's values and a dataclass or named tuple.

    A column has the name of a field. A field that is one of these itself, such as an ``Interval``,
    has a column for each of its fields. Moments are stored as microseconds since 1970 UTC, dates
    as ISO text, choices as their value, booleans as 0 and 1; other values, and None, as they are.

    The conversions are compiled once, here, into one expression each way: reading thousands of rows
    costs no more than code written by hand for the class.

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
        code = _Conversion(kind, {**_BOUNDS, **(names or {})})
        own, every = ", ".join(code.columns), ", ".join((*keys, *code.columns))
        key = "".join(f"{name}, " for name in keys)
        marks = ", ".join("?" * (len(keys) + len(code.columns)))
        self._select = f"SELECT {own} FROM {table} "  # noqa: S608  (names of the schema)
        self._select_keyed = f"SELECT {every} FROM {table} "  # noqa: S608
        self._insert = f"INSERT OR REPLACE INTO {table} ({every}) VALUES ({marks})"  # noqa: S608
        self._read: Callable[[Iterable[Any]], list[T]] = code.compiled(
            f"lambda rows: [{code.reading} for ({own},) in rows]"
        )
        self._read_keyed: Callable[[Iterable[Any]], Iterator[tuple[tuple[Any, ...], T]]]
        self._read_keyed = code.compiled(
            f"lambda rows: ((({key}), {code.reading}) for ({every},) in rows)"
        )
        self._write: Callable[[T], tuple[Any, ...]] = code.compiled(
            f"lambda value: ({', '.join(code.writing)},)"
        )

    def select(
        self, connection: sqlite3.Connection, clauses: str, values: Sequence[object] = ()
    ) -> list[T]:
        """Return the values of rows.

        Args:
            connection: an open connection.
            clauses: what follows ``FROM``, such as ``WHERE series = ? ORDER BY starts``.
            values: those of its question marks.
        """
        return self._read(connection.execute(self._select + clauses, values))

    def select_keyed(
        self, connection: sqlite3.Connection, clauses: str = "", values: Sequence[object] = ()
    ) -> Iterator[tuple[tuple[Any, ...], T]]:
        """Return pairs of the keys, as SQLite has them, and the value of a row; see ``select``."""
        return self._read_keyed(connection.execute(self._select_keyed + clauses, values))

    def insert(self, connection: sqlite3.Connection, values: Iterable[T], *keys: object) -> None:
        """Insert rows with the same keys, replacing those with the same primary key."""
        write = self._write
        connection.executemany(self._insert, [(*keys, *write(value)) for value in values])


class _Conversion:
    """The source of what converts a class from and to the values of a row.

    ``reading`` builds a value from variables that are named as the columns; ``writing`` has an
    expression of ``value`` for each column.
    """

    def __init__(self, kind: type, names: Mapping[str, str]) -> None:
        self.columns: list[str] = []
        self.writing: list[str] = []
        self._names = names
        self._used: dict[str, object] = {}
        self.reading = self._fields(kind, "value")

    def compiled(self, source: str) -> Any:
        """Return the function with a source of columns and of this object's expressions."""
        return eval(source, dict(self._used))  # noqa: S307  (field names of our own classes)

    def _fields(self, kind: type, value: str) -> str:
        """Add the fields of a class, whose value is ``value``; return what builds it."""
        arguments = []
        for field, annotation in get_type_hints(kind).items():
            types = [one for one in get_args(annotation) or (annotation,) if one is not type(None)]
            known, part = types[0] if len(types) == 1 else object, f"{value}.{field}"
            if is_dataclass(known) or hasattr(known, "_fields"):
                arguments.append(self._fields(known, part))
                continue
            column = self._names.get(field, field)
            read, write = column, part
            if (both := _conversions(known)) is not None:
                decode, encode = map(self._name, both)
                read, write = f"{decode}({column})", f"{encode}({part})"
                if known is not annotation:
                    read = f"None if {column} is None else {read}"
                    write = f"None if {part} is None else {write}"
            self.columns.append(column)
            self.writing.append(write)
            arguments.append(read)
        return f"{self._name(kind)}({', '.join(arguments)})"

    def _name(self, used: object) -> str:
        name = f"_{len(self._used)}"
        self._used[name] = used
        return name


def _conversions(kind: type) -> tuple[_Convert, _Convert] | None:
    """Return what reads a value of a class from SQLite's and what writes it, where they differ."""
    if kind is datetime:
        return moment, micros
    if kind is date:
        return date.fromisoformat, date.isoformat
    if kind is bool:
        return bool, int
    return (kind, str) if issubclass(kind, StrEnum) else None
