"""The DuckDB catalog: one small file through which every bar of the store can be queried.

It holds views, a macro and small tables, no bars. It is built beside and renamed over, so a reader
has the old one or the new one. Bar files are renamed over under running queries too: such a query
may fail, so the readers here try again.

Not here: the SQL of its objects (``store.catalog_sql``), the rows of its tables
(``store.catalog_tables``).
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow as pa

from ktrdr_pipelines.core.instruments import Instrument
from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.errors import DiskError, KtrdrError, StoreError, UsageError
from ktrdr_pipelines.store.atomic import disk_errors, locked, put_in_place, temp_beside
from ktrdr_pipelines.store.catalog_sql import (
    NAMES_OTHER_FILES,
    TABLES,
    files_of,
    series_sql,
    views_sql,
)
from ktrdr_pipelines.store.catalog_tables import Gaps, catalog_tables
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger import open_ledger
from ktrdr_pipelines.store.parquet import BarStore
from ktrdr_pipelines.store.path_kinds import require_file

STORAGE_VERSION = "v1.0.0"
"""DuckDB's storage format of the file: what shells from 1.0 on can read.

Source: https://duckdb.org/docs/stable/internals/storage.html
"""

QUERY_TRIES = 5
"""How often a query is tried while bar files are renamed over under it."""

_BUILDING = {"memory_limit": "512MB", "threads": "1"}
_READING = {"python_enable_replacements": "false"}

_READS = frozenset(
    {
        duckdb.StatementType.SELECT,
        duckdb.StatementType.EXPLAIN,
        duckdb.StatementType.PRAGMA,
        duckdb.StatementType.SET,
        duckdb.StatementType.VARIABLE_SET,
    }
)

_COMMENTS = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_QUERY = re.compile(r"(PIVOT|PIVOT_WIDER|SELECT|FROM|WITH)\b", re.IGNORECASE)

_NO_PARQUET = re.compile(r"too small to be a Parquet file|No magic bytes found|Invalid unicode")
"""What DuckDB says of files that are no Parquet files, or lie in folders with impossible names."""

_BAD_SQL = (
    duckdb.ParserException,
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.DataError,
    duckdb.NotSupportedError,
)


def rebuild_catalog(
    layout: StoreLayout, universe: Sequence[Instrument], now: datetime, *, gaps: Gaps = ()
) -> None:
    """Write the catalog anew from the files, the ledger and the universe.

    What renews it where the gaps are known is ``load.catalog``.

    Args:
        layout: where the store is; views name its files by absolute path.
        universe: instruments; bars of symbols that are not among them have no session closes.
        now: sessions are told until a year after.
        gaps: the rows of the table of gaps.

    Raises:
        StoreError: a bar file or the ledger cannot be read.
        StoreReplacedError: the store is not the one that was opened.
        DiskError: the catalog cannot be written; the older one still stands.
    """
    layout.require_same()
    with locked(layout.lock("catalog"), f"the catalog {layout.catalog}"):
        temp = temp_beside(layout.catalog)
        try:
            with closing(open_ledger(layout)) as ledger:
                store = BarStore(layout, ledger)
                held = store.series_on_disk()
                tables = catalog_tables(store, universe, now, held=held, gaps=gaps)
            _build(temp, layout, tables, frozenset(timeframe for _symbol, timeframe in held))
            with disk_errors(layout.catalog):
                _sync(temp)
                layout.require_same()
                layout.catalog_log.unlink(missing_ok=True)
                put_in_place(temp, layout.catalog)
        finally:
            temp.unlink(missing_ok=True)
            _write_ahead(temp).unlink(missing_ok=True)


def connect_catalog(layout: StoreLayout) -> duckdb.DuckDBPyConnection:
    """Open the newest catalog for reading; instants are told in UTC.

    Raises:
        StoreError: there is none, it cannot be read, or it was built for another folder.
    """
    if not require_file(layout.catalog):
        raise StoreError(f"there is no catalog {layout.catalog}", remedy="Run `ktrdr repair`")
    # DuckDB shares an instance between connections by path, an older catalog included: attach.
    connection = duckdb.connect(config=dict(_READING))
    try:
        connection.execute(f"ATTACH '{_escaped(layout.catalog)}' AS ktrdr (READ_ONLY)")
        connection.execute("USE ktrdr; SET TimeZone = 'UTC'")
        names_others = connection.execute(NAMES_OTHER_FILES, [files_of(layout)]).fetchone()
    except duckdb.Error as error:
        connection.close()
        raise StoreError(
            f"cannot read the catalog {layout.catalog}",
            came=str(error),
            remedy="Close shells that have it open for writing; `ktrdr repair` builds it anew",
        ) from error
    if names_others:
        connection.close()
        raise StoreError(
            f"cannot use the catalog {layout.catalog}",
            came="it names the bars of another folder: this store was moved or copied",
            remedy="Run `ktrdr repair`, which builds it anew",
        )
    return connection


def query_catalog(layout: StoreLayout, sql: str) -> pa.Table:
    """Answer a query; what gives no rows, such as SET, answers with a table of no columns.

    Raises:
        UsageError: DuckDB does not accept the query, or it wants to write.
        StoreError: the catalog or the files cannot be read.
    """
    for tries_left in reversed(range(QUERY_TRIES)):
        try:
            with closing(connect_catalog(layout)) as connection:
                _refuse_writing(connection.extract_statements(sql))
                relation = connection.sql(sql)
                return pa.table({}) if relation is None else relation.to_arrow_table()
        except duckdb.Error as error:
            if not tries_left or isinstance(error, _BAD_SQL):
                raise _refused(error) from error
    raise AssertionError("the last try returns or raises")


def _build(
    temp: Path,
    layout: StoreLayout,
    tables: Mapping[str, pa.Table],
    filled: frozenset[Timeframe],
) -> None:
    with _duckdb_errors(layout.catalog), closing(duckdb.connect(config=dict(_BUILDING))) as build:
        build.execute(
            f"ATTACH '{_escaped(temp)}' AS ktrdr (STORAGE_VERSION '{STORAGE_VERSION}'); USE ktrdr"
        )
        build.execute(TABLES)
        for name, rows in tables.items():
            build.register("rows", rows)
            build.execute(f"INSERT INTO {name} SELECT * FROM rows")  # noqa: S608  (our own names)
        build.execute(views_sql(layout, filled))
        build.execute(series_sql(layout, filled=bool(filled)))
        build.execute("USE memory; DETACH ktrdr")


@contextmanager
def _duckdb_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        raise DiskError(
            f"cannot write the catalog {path}",
            came=str(error),
            remedy="Make room, or make the folder writable, and run it again",
        ) from error


def _refuse_writing(statements: Sequence[duckdb.Statement]) -> None:
    """Refuse what writes past the catalog, which is open for reading alone: COPY TO, ATTACH."""
    for one in statements:
        if one.type not in _READS and not _is_pivot(one):
            raise UsageError(
                "cannot run this query",
                came=f"{one.type.name} could write, and all of it is read-only",
                remedy="To write something else, open the catalog in a DuckDB shell",
            )


def _is_pivot(statement: duckdb.Statement) -> bool:
    """Say whether it is a query with a PIVOT whose columns follow from the data.

    DuckDB makes several statements of it, as it does where a COPY TO holds such a query.
    """
    text = _COMMENTS.sub(" ", statement.query).lstrip(" \t\r\n(")
    return statement.type is duckdb.StatementType.MULTI and bool(_QUERY.match(text))


def _refused(error: duckdb.Error) -> KtrdrError:
    text = str(error)
    if "No files found that match the pattern" in text:
        return UsageError(
            "there are no bars for this query",
            came=text,
            remedy="`ktrdr status` names the series that have bars, `ktrdr load` loads others",
        )
    if _NO_PARQUET.search(text):
        return StoreError(
            "cannot read a bar file for this query",
            came=text,
            remedy="Run `ktrdr repair`: it sets aside files that cannot be read",
        )
    if isinstance(error, (duckdb.ProgrammingError, *_BAD_SQL)):
        return UsageError("cannot run this query", came=text)
    return StoreError(
        "cannot run this query", came=text, remedy="Run it again; if it stays, `ktrdr repair`"
    )


def _escaped(path: Path) -> str:
    return path.as_posix().replace("'", "''")


def _write_ahead(path: Path) -> Path:
    """Name the log that DuckDB keeps beside a file that it writes."""
    return path.with_name(f"{path.name}.wal")


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
