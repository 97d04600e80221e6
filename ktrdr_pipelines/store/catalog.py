"""The DuckDB catalog: one small file through which every bar of the store can be queried.

It holds views, a macro and small tables, no bars. It is built beside and renamed over, so a reader
has the old one or the new one. Bar files are renamed over under running queries too: such a query
may fail, so the readers here try again.

Not here: the SQL of its objects (``store.catalog_sql``), the rows of its tables
(``store.catalog_tables``).
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

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
from ktrdr_pipelines.store.ledger import Ledger
from ktrdr_pipelines.store.parquet import BarStore
from ktrdr_pipelines.store.query_policy import CheckedSql, check_statements

STORAGE_VERSION = "v1.0.0"
"""DuckDB's storage format of the file: what shells from 1.0 on can read.

Source: https://duckdb.org/docs/stable/internals/storage.html
"""

QUERY_TRIES = 5
"""How often a query is tried while bar files are renamed over under it."""

_BUILDING = {"memory_limit": "512MB", "threads": "1"}
_READING = {"python_enable_replacements": "false"}
_CONFINED = """
    SET autoinstall_known_extensions = false;
    SET autoload_known_extensions = false;
    SET allow_community_extensions = false;
    SET allow_persistent_secrets = false;
    SET temp_directory = '{spill}';
    SET allowed_directories = ['{bars}', '{glob}'];
    SET enable_external_access = false;
"""
"""The order matters: without external access no folder can be named any more.

Source: https://duckdb.org/docs/stable/operations_manual/securing_duckdb/overview
"""

_BAD_SQL = (
    duckdb.ParserException,
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.DataError,
    duckdb.NotSupportedError,
    duckdb.PermissionException,
    duckdb.InternalException,
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
        DiskError: the catalog cannot be written; the older one still stands.
    """
    with locked(layout.lock("catalog"), f"the catalog {layout.catalog}"):
        temp = temp_beside(layout.catalog)
        try:
            with closing(Ledger(layout.ledger)) as ledger:
                store = BarStore(layout, ledger)
                held = store.series_on_disk()
                tables = catalog_tables(store, universe, now, held=held, gaps=gaps)
            _build(temp, layout, tables, frozenset(timeframe for _symbol, timeframe in held))
            with disk_errors(layout.catalog):
                _sync(temp)
                _write_ahead(layout.catalog).unlink(missing_ok=True)
                put_in_place(temp, layout.catalog)
        finally:
            temp.unlink(missing_ok=True)
            _write_ahead(temp).unlink(missing_ok=True)


def connect_catalog(layout: StoreLayout) -> duckdb.DuckDBPyConnection:
    """Open the newest catalog for reading; instants are told in UTC.

    Raises:
        StoreError: there is none, it cannot be read, or it was built for another folder.
    """
    if not layout.catalog.is_file():
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

    Nothing is written, and nothing is read but the catalog and its bars: ``store.query_policy``
    decides what may run, and DuckDB is barred from other files, from extensions and from changes
    of its settings. What does not fit into memory goes to a temporary folder of this query alone.

    Raises:
        UsageError: DuckDB does not accept the query, or it could write or read something else.
        StoreError: the catalog or the files cannot be read.
    """
    for tries_left in reversed(range(QUERY_TRIES)):
        try:
            with (
                TemporaryDirectory(prefix="ktrdr-query-") as spill,
                closing(connect_catalog(layout)) as connection,
            ):
                _confine(connection, layout, Path(spill))
                return _run(connection, check_statements(connection, sql))
        except duckdb.Error as error:
            if not tries_left or isinstance(error, _BAD_SQL):
                raise _refused(error) from error
    raise AssertionError("the last try returns or raises")


def _confine(connection: duckdb.DuckDBPyConnection, layout: StoreLayout, spill: Path) -> None:
    """Bar a connection from all files but the open catalog, the bars and a folder for spilling.

    DuckDB compares the text of a glob with the folders too, so that both spellings are allowed.
    """
    bars, glob = _escaped(layout.bars), files_of(layout).rpartition("/")[0]
    connection.execute(_CONFINED.format(spill=_escaped(spill), bars=bars, glob=glob))


def _run(connection: duckdb.DuckDBPyConnection, checked: CheckedSql) -> pa.Table:
    """Run checked SQL and return the rows of its last statement."""
    for setting in checked.settings:
        connection.execute(setting)
    connection.execute("SET lock_configuration = true")
    for statement in checked.statements:
        connection.execute(statement)
        while connection.fetchmany(10_000):
            pass  # DuckDB 2 starts no other statement before the last row of this one
    relation = None if checked.query is None else connection.sql(checked.query)
    return pa.table({}) if relation is None else relation.to_arrow_table()


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


def _refused(error: duckdb.Error) -> KtrdrError:
    text = str(error)
    if "No files found that match the pattern" in text:
        return UsageError(
            "there are no bars for this query",
            came=text,
            remedy="`ktrdr status` names the series that have bars, `ktrdr load` loads others",
        )
    if isinstance(error, duckdb.InternalException):
        return UsageError(
            "cannot run this query",
            came=f"DuckDB {duckdb.__version__} fails on it by a defect of its own",
            remedy="Write it in another way, or use another version of DuckDB",
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
