"""``ktrdr query``: run read-only SQL over all bars.

Not here: the catalog and how it is read (``store.catalog.catalog``), which statements are allowed
(``store.catalog.query_policy``).
"""

import csv
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ktrdr_pipelines.cli.output import (
    AsJson,
    console,
    counted,
    note,
    plain,
    say_json,
    say_table,
    typed_text,
)
from ktrdr_pipelines.errors import ExitCode, NoCatalogError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from ktrdr_pipelines.app.views.store_documents import QueryDocument
    from ktrdr_pipelines.store.layout import StoreLayout

MOST_ROWS: Final = 100
"""Rows printed as a table; --csv and --json print all."""

_TABLES: Final = re.compile(r"\b(coverage|gaps|sessions|instruments)\b", re.IGNORECASE)
"""Tables of the catalog that are derived from the bar files and the universe."""

WIDEST: Final = 40
"""Terminal columns that one cell may take."""


def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="A query, or - to read it from stdin.")],
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print all rows as CSV.")] = False,
) -> None:
    """Run SQL over all bars. A query changes nothing and reads nothing but the store.

    Views: bars, and bars_1m to bars_1w. The macro series('AAPL', '1m') is the fastest way to read
    one series. Tables: sessions, instruments, coverage, gaps, requests. Instants are in UTC. A
    catalog that is missing, or was built by an earlier version, is built first.

    Allowed statements: SELECT, FROM, WITH, VALUES, DESCRIBE, SUMMARIZE, SHOW, PIVOT, and EXPLAIN
    of these; SET VARIABLE; and, before them, SET of TimeZone, threads, memory_limit and the like.
    To join files of your own, open the catalog in DuckDB itself.

    Example: ktrdr query "SELECT symbol, timeframe, count(*) FROM bars GROUP BY ALL ORDER BY ALL"

    Exit codes: 0 done, 1 the catalog or a file cannot be read, 2 bad usage or invalid SQL.
    """
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.store.catalog.catalog import query_catalog
    from ktrdr_pipelines.store.catalog.query_policy import is_empty

    if as_json and as_csv:
        raise UsageError(
            "--json with --csv", reason="the output has one format", hint="Choose one of them"
        )
    workspace = Workspace.open()
    layout = workspace.layout
    sql_text = typed_text(sys.stdin.read(), sys.stdin.encoding) if sql == "-" else typed_text(sql)
    if is_empty(sql_text):
        raise UsageError("an empty query", hint="Give a query, such as FROM bars LIMIT 5")
    try:
        answer = query_catalog(layout, sql_text)
    except NoCatalogError:
        workspace.renew_catalog()
        answer = query_catalog(layout, sql_text)
    _warn_of_older_tables(layout, sql_text)
    names = _unique(answer.column_names)
    if as_json:
        say_json(_document(answer, names))
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([cell_text(value) for value in row] for row in _rows(answer))
    else:
        _say_table(answer, names)


def _warn_of_older_tables(layout: "StoreLayout", sql_text: str) -> None:
    """Warn that the catalog's tables are older than the bars, if the query names one of them."""
    from ktrdr_pipelines.store.catalog.catalog import files_after_catalog

    if not _TABLES.search(sql_text):
        return
    if newer := files_after_catalog(layout):
        files = f"{counted(newer, 'bar file')} {'is' if newer == 1 else 'are'} newer"
        note(
            f"{files} than the catalog: bars are up to date, tables are not. "
            "Hint: the next load rebuilds the tables when it ends, `ktrdr repair` immediately"
        )


def _document(answer: "pa.Table", names: Sequence[str]) -> "QueryDocument":
    from ktrdr_pipelines.app.views.store_documents import ColumnDocument, QueryDocument

    kinds = zip(names, answer.schema.types, strict=True)
    return QueryDocument(
        complete=True,
        exit_code=int(ExitCode.DONE),
        columns=tuple(ColumnDocument(name=name, type=str(kind)) for name, kind in kinds),
        rows=tuple(dict(zip(names, map(json_value, row), strict=True)) for row in _rows(answer)),
    )


def _rows(answer: "pa.Table") -> Iterator[tuple[Any, ...]]:
    for batch in answer.to_batches(max_chunksize=10_000):
        try:
            columns = [column.to_pylist() for column in batch.columns]
        except OverflowError as error:
            raise UsageError(
                "cannot show the result",
                reason="it contains a date or an instant outside the years 1 to 9999",
                hint="Cast it to VARCHAR in the query",
            ) from error
        yield from zip(*columns, strict=True)


def _say_table(answer: "pa.Table", names: Sequence[str]) -> None:
    """Print the rows and columns that fit, and note which were left out."""
    from pyarrow import types

    if not names:
        note("done, the statement returns no rows")
        return
    shown = [tuple(map(cell_text, row)) for row in _rows(answer.slice(0, MOST_ROWS))]
    room = _columns_that_fit(names, shown, console().width)
    numbers = [types.is_integer(one.type) or types.is_floating(one.type) for one in answer.columns]
    kinds = {names[at]: "right" if numbers[at] else "left" for at in range(room)}
    say_table(kinds, [row[:room] for row in shown])
    if room < len(names):
        note(f"columns that do not fit: {', '.join(names[room:])}")
    if answer.num_rows > MOST_ROWS:
        note(f"{MOST_ROWS} of {counted(answer.num_rows, 'row')}; --csv and --json print all")


def _columns_that_fit(names: Sequence[str], rows: Sequence[tuple[str, ...]], width: int) -> int:
    """Return how many columns, from the left, fit side by side; at least one."""
    left = width
    for at, name in enumerate(names):
        left -= min(WIDEST, max([len(name), *(len(row[at]) for row in rows)])) + 2
        if left < 0:
            return max(1, at)
    return len(names)


def _unique(names: Iterable[str]) -> list[str]:
    """Return the names with a number appended to repeated ones: a JSON object needs unique keys."""
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return unique


def cell_text(value: object) -> str:
    """Return a value of the catalog as text; null is empty."""
    return "" if value is None else str(plain(value))


def json_value(value: Any) -> Any:
    """Return a value of the catalog as JSON can hold it; NaN and infinities become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [json_value(one) for one in value]
    if isinstance(value, dict):
        return {str(name): json_value(one) for name, one in value.items()}
    return value
