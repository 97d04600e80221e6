"""The DuckDB catalog: one small file through which every bar of the store can be queried.

It holds views, a macro and small tables, no bars. It is built beside the old one and renamed over
it, so a reader has the old one or the new one. Bar files are renamed over under running queries
too: such a query may fail, so the readers here retry.

Not here: the SQL of its objects (``store.catalog.sql``), the rows of its tables
(``store.catalog.tables``), which queries are allowed (``store.catalog.query_policy``).
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from ktrdr_pipelines.domain.bars import STORED_SCHEMA
from ktrdr_pipelines.domain.instruments import Instrument, Origin
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import (
    CorruptFileError,
    DiskError,
    KtrdrError,
    NoCatalogError,
    StoreError,
    UsageError,
)
from ktrdr_pipelines.store.bars.adjustment_history import HINT
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.catalog.query_policy import CheckedSql, check_statements
from ktrdr_pipelines.store.catalog.sql import (
    IS_OUTDATED,
    MIXED,
    NAMES_FILE,
    NAMES_OTHER_FILES,
    PARAMETERS,
    PLACEHOLDER_ROWS,
    REFUSED,
    TABLES,
    BarFilesSql,
    files_of,
    literal_glob,
    placeholder_files,
    refusing_source,
)
from ktrdr_pipelines.store.catalog.tables import (
    SMALL_TABLES,
    Gaps,
    basis_tables,
    catalog_tables,
)
from ktrdr_pipelines.store.files import (
    disk_errors,
    locked,
    make_folder,
    replace_file,
    require_file,
    temp_beside,
    write_atomically,
)
from ktrdr_pipelines.store.layout import StoreLayout, imported_store, store_origin
from ktrdr_pipelines.store.ledger.file_index import fingerprint
from ktrdr_pipelines.store.ledger.ledger import open_ledger
from ktrdr_pipelines.store.maintenance.file_checks import QueriedFiles, queried_files

STORAGE_VERSION = "v1.0.0"
"""DuckDB's storage format of the file, which shells from 1.0 on can read.

Source: https://duckdb.org/docs/stable/internals/storage.html
"""

QUERY_ATTEMPTS = 5
"""How often a query is attempted while bar files are renamed over under it."""

_HAS_ALLOW_EMPTY: Final = int(duckdb.__version__.partition(".")[0]) >= 2
"""Whether ``read_parquet`` takes ``allow_empty``.

Source: https://duckdb.org/docs/stable/data/parquet/overview
"""

_BUILDING = {"memory_limit": "512MB", "threads": "1"}
_READING = {"python_enable_replacements": "false"}
_CONFINED = """
    SET autoinstall_known_extensions = false;
    SET autoload_known_extensions = false;
    SET allow_community_extensions = false;
    SET allow_persistent_secrets = false;
    SET temp_directory = '{spill}';
    SET allowed_directories = [{allowed}];
    SET enable_external_access = false;
"""
"""The order matters: once external access is off, no folder can be named.

Source: https://duckdb.org/docs/stable/operations_manual/securing_duckdb/overview
"""

_OF_VIEWS: Final = frozenset({"bars", "raw"})
"""The views of all timeframes, which may read others."""

_NAMES_AND_COMMENTS: Final = """
    SELECT view_name, comment FROM duckdb_views()
    WHERE database_name = 'ktrdr' AND comment IS NOT NULL
    UNION ALL
    SELECT function_name, comment FROM duckdb_functions()
    WHERE database_name = 'ktrdr' AND comment IS NOT NULL
    UNION ALL
    SELECT table_name, comment FROM duckdb_tables()
    WHERE database_name = 'ktrdr' AND comment IS NOT NULL
"""
"""Each object with the digest of what it was made of; views have a second one, of their ranges."""

_SPARE_BLOCKS: Final = """
    SELECT free_blocks > 4 * used_blocks + 64 FROM pragma_database_size()
    WHERE database_name = 'ktrdr'
"""
"""Whether a catalog has been renewed so often that a new one is smaller."""

_NO_PARQUET = re.compile(r"too small to be a Parquet file|No magic bytes found|Invalid unicode")
"""DuckDB's messages for invalid Parquet files, and for files in folders with invalid names."""

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
    layout: StoreLayout,
    universe: Sequence[Instrument],
    now: datetime,
    *,
    gaps: Gaps = (),
    is_anew: bool = False,
) -> None:
    """Make the catalog that of the present files, ledger and universe.

    Of an earlier catalog, tables and views that are the same stay; where all are, the file is only
    marked as new. ``gaps.catalog_refresh`` rebuilds it with gaps. Series with a file that no query
    may read have no rows in the table of coverage.

    Args:
        layout: where the store is; views name its files by absolute path.
        universe: instruments; bars of other symbols have no session closes.
        now: the table of sessions ends a year after it.
        gaps: the rows of the table of gaps.
        is_anew: whether nothing of an earlier catalog is kept, which may be damaged or changed by
            another program.

    Raises:
        StoreError: the ledger cannot be read, or DuckDB cannot open files in the folder.
        StoreReplacedError: the store is not the one that was opened.
        DiskError: the catalog cannot be written; the earlier one is unchanged.
    """
    _refuse_folder(layout)
    layout.require_same()
    _write_placeholders(layout)
    with locked(layout.lock("catalog"), f"the catalog {layout.catalog}"):
        with closing(open_ledger(layout)) as ledger:
            store = BarStore(layout, ledger)
            ledger.adjustments.record(store.bases.history.all()[0])
            objects = _Objects.of(layout, store)
            folders = {path.parent for path in objects.refused}
            held = {
                key: number
                for key, number in objects.files.series.items()
                if layout.series_folder(*key) not in folders
            }
            tables = catalog_tables(
                store, universe, now, held=held, known=objects.files.known, gaps=gaps
            )
        with TemporaryDirectory(prefix="ktrdr-") as folder:
            # DuckDB misplaces its log where the path has a question mark.
            built = Path(folder) / "catalog.duckdb"
            is_renewed = None if is_anew else _renew(built, layout, tables, objects)
            if is_renewed is None:
                _build(built, layout, tables, objects)
            if is_renewed is False:
                layout.require_same()
                with disk_errors(layout.catalog):
                    os.utime(layout.catalog)
            else:
                _replace_catalog(built, layout)


def refresh_views(layout: StoreLayout) -> None:
    """Make the catalog, where there is one, know the present bar files and price factors.

    Its other tables stay as they are, and so does the time at which it was built
    (``files_after_catalog``). After this no query returns bars on the basis of before.

    Raises: as ``rebuild_catalog``.
    """
    with locked(layout.lock("catalog"), f"the catalog {layout.catalog}"):
        if not require_file(layout.catalog):
            return
        _write_placeholders(layout)
        built_ns = layout.catalog.stat().st_mtime_ns
        with TemporaryDirectory(prefix="ktrdr-") as folder:
            try:
                with closing(connect_catalog(layout)) as connection:
                    known = _known_digests(connection)
            except KtrdrError:
                # An older catalog, or one of another folder, is of no use to any query.
                layout.remove_catalog()
                return
            with closing(open_ledger(layout)) as ledger:
                objects = _Objects.of(layout, BarStore(layout, ledger))
            if known == objects.digests:
                return
            built = Path(folder) / "catalog.duckdb"
            with disk_errors(built):
                shutil.copyfile(layout.catalog, built)
            with (
                _duckdb_errors(layout.catalog),
                closing(duckdb.connect(config=dict(_BUILDING))) as c,
            ):
                c.execute(f"ATTACH '{_escaped(built)}' AS ktrdr; USE ktrdr")
                objects.create(c)
                c.execute("USE memory; DETACH ktrdr")
            _replace_catalog(built, layout, built_ns)


def _replace_catalog(built: Path, layout: StoreLayout, built_ns: int | None = None) -> None:
    """Rename a finished catalog over the old one; the caller holds the lock of the catalog.

    ``built_ns`` is when its tables were built, in ns since 1970; None for now.
    """
    temp = temp_beside(layout.catalog)
    try:
        with disk_errors(layout.catalog):
            shutil.copyfile(built, temp)
            if built_ns is not None:
                os.utime(temp, ns=(built_ns, built_ns))
            with temp.open("rb") as file:
                os.fsync(file.fileno())
            layout.require_same()
            layout.catalog_log.unlink(missing_ok=True)
            replace_file(temp, layout.catalog)
    finally:
        temp.unlink(missing_ok=True)


def connect_catalog(layout: StoreLayout) -> duckdb.DuckDBPyConnection:
    """Open the catalog for reading; times are in UTC.

    Raises:
        NoCatalogError: there is no catalog, or an earlier version built it.
        StoreError: the catalog cannot be read, or was built for another folder.
    """
    _refuse_folder(layout)
    if not require_file(layout.catalog):
        raise NoCatalogError(f"there is no catalog {layout.catalog}", hint="Run `ktrdr repair`")
    # DuckDB shares an instance between connections by path, an older catalog included: attach.
    connection = duckdb.connect(config=dict(_READING))
    try:
        connection.execute(f"ATTACH '{_escaped(layout.catalog)}' AS ktrdr (READ_ONLY)")
        connection.execute("USE ktrdr; SET TimeZone = 'UTC'")
        own = [files_of(layout), files_of(StoreLayout(layout.imported))]
        names_others = connection.execute(NAMES_OTHER_FILES, own).fetchone()
        is_outdated = connection.execute(IS_OUTDATED).fetchone()
    except duckdb.Error as error:
        connection.close()
        raise StoreError(
            f"cannot read the catalog {layout.catalog}",
            reason=str(error),
            hint="Close shells that have it open for writing; `ktrdr repair` rebuilds it",
        ) from error
    if is_outdated:
        connection.close()
        raise NoCatalogError(
            f"cannot use the catalog {layout.catalog}",
            reason="an earlier version of ktrdr built it",
            hint="Run `ktrdr repair`, which rebuilds it",
        )
    if names_others:
        connection.close()
        raise StoreError(
            f"cannot use the catalog {layout.catalog}",
            reason="it names the bars of another folder: this store was moved or copied",
            hint="Run `ktrdr repair`, which rebuilds it",
        )
    return connection


def files_after_catalog(layout: StoreLayout) -> int:
    """Return how many bar files were written after the catalog was built.

    Queries see their bars; the tables of coverage, gaps, sessions and instruments are older.
    """
    if not layout.catalog.is_file():
        return 0
    built_ns = layout.catalog.stat().st_mtime_ns
    return sum(
        fingerprint(path).mtime_ns > built_ns
        for key in layout.series_folders()
        for path in layout.bar_files(*key)
    )


def _refuse_folder(layout: StoreLayout) -> None:
    """Refuse a folder whose files DuckDB cannot open: it reads a backslash as a separator."""
    if "\\" in layout.root.as_posix():
        raise StoreError(
            f"cannot use a catalog in {layout.root}",
            reason="DuckDB cannot open files below a folder with a backslash in its name",
            hint="Move the data folder to a path without a backslash, and name it in KTRDR_DATA",
        )


def query_catalog(layout: StoreLayout, sql: str) -> pa.Table:
    """Run a query and return its rows; a table without columns where it has none, as with SET.

    The query sees the bar files as they are now, even if the catalog was built before them.
    Nothing is written, and only the catalog and its bars are read:
    ``store.catalog.query_policy`` decides what may run, and DuckDB is barred from other files,
    from extensions and from changing its settings. Data that does not fit into memory goes to a
    temporary folder used by this query alone.

    Raises:
        UsageError: DuckDB does not accept the query, or it could write or read something else.
        CorruptFileError: it would read a file that is damaged or does not belong to the store.
        OddPathError: something else lies where bars should be.
        NoCatalogError: there is no catalog, or an earlier version built it.
        StoreError: the catalog or the files cannot be read.
    """
    for attempts_left in reversed(range(QUERY_ATTEMPTS)):
        with closing(open_ledger(layout)) as ledger:
            objects = _Objects.of(layout, BarStore(layout, ledger), is_strict=True)
        try:
            with (
                TemporaryDirectory(prefix="ktrdr-query-") as spill,
                closing(connect_catalog(layout)) as connection,
            ):
                _show_present_files(connection, layout, objects, Path(spill))
                _confine(connection, layout, objects.linked, Path(spill))
                return _run(connection, check_statements(connection, sql))
        except duckdb.Error as error:
            is_refused = _is_of_refused(error, objects.refused)
            if is_refused or not attempts_left or isinstance(error, _BAD_SQL):
                if MIXED in str(error):
                    raise _mixed(str(error), objects, layout) from error
                raise _refused(error, is_refused=is_refused) from error
    raise AssertionError("the last attempt returns or raises")


def _confine(
    connection: duckdb.DuckDBPyConnection, layout: StoreLayout, linked: Iterable[Path], spill: Path
) -> None:
    """Bar a connection from all files but the open catalog, the bars and a folder for spilling.

    DuckDB also compares the text of a glob with the allowed folders, so both spellings are
    allowed; and it follows links, such as the folders of bars that are ``linked``.
    """
    folders = []
    for one in (layout, StoreLayout(layout.imported)):
        folders += [_escaped(one.bars), files_of(one).rpartition("/")[0]]
    folders += [_escaped(folder.resolve()) for folder in linked]
    folders.append(_escaped(placeholder_files(layout)[0].parent))
    folders.append(literal_glob(placeholder_files(layout)[0].parent).replace("'", "''"))
    allowed = ", ".join(f"'{folder}'" for folder in dict.fromkeys(folders))
    connection.execute(_CONFINED.format(spill=_escaped(spill), allowed=allowed))


def _run(connection: duckdb.DuckDBPyConnection, checked: CheckedSql) -> pa.Table:
    """Run checked SQL and return the rows of its last statement."""
    for setting in checked.settings:
        connection.execute(setting)
    connection.execute("SET lock_configuration = true")
    for statement in checked.statements:
        connection.execute(statement)
        while connection.fetchmany(10_000):
            pass  # DuckDB 2 starts the next statement only after the last row of this one
    relation = None if checked.query is None else connection.sql(checked.query)
    return pa.table({}) if relation is None else relation.to_arrow_table()


@dataclass(frozen=True, slots=True)
class _Objects:
    """The SQL of the views and macros for the present bar files, and the tables of price bases.

    ``views`` and ``macros`` identify them. ``sql`` has the views as they are created: they return
    the same rows, and list the files by the ranges of the present symbols, which any other ranges
    serve as well. ``lost`` are symbols of which adjustments are lost, with the reason. ``linked``
    are the folders of bars that are links, those of imported bars too.
    """

    views: Mapping[str, str]
    macros: Mapping[str, str]
    tables: Mapping[str, pa.Table]
    files: QueriedFiles
    refused: Mapping[Path, str]
    lost: Mapping[str, str]
    sql: BarFilesSql
    linked: Sequence[Path]

    @classmethod
    def of(cls, layout: StoreLayout, store: BarStore, *, is_strict: bool = False) -> "_Objects":
        """Return the SQL for the files that exist now; ``is_strict`` is of ``queried_files``.

        Raises:
            OddPathError, CorruptFileError: as ``queried_files``.
            StoreError: a newer version wrote a file, or the ledger cannot be used.
        """
        known, lost = store.bases.all()
        files = queried_files(store, is_strict=is_strict)
        tables = basis_tables(known, lost)
        own = files.series.keys()
        others = _imported_files(layout, is_strict=is_strict)
        refused = {**files.refused, **others.refused}
        sql = BarFilesSql(
            layout,
            frozenset(timeframe for _symbol, timeframe in own),
            refused,
            has_older=files.has_older,
            is_adjusted=bool(tables["price_factors"].num_rows),
            imported={key: key in own for key in others.series},
            origin=store_origin(layout) or Origin.IB,
        )
        linked = [*files.linked, *others.linked]
        return cls(sql.views, sql.macros, tables, files, refused, lost, sql, linked)

    @property
    def digests(self) -> set[str]:
        """The digests of all these texts and tables."""
        texts = map(_digest, (*self.views.values(), *self.macros.values()))
        return {*texts, *map(_table_digest, self.tables.values())}

    def create(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Create the views and macros in a connection's catalog, and fill the tables.

        Older ones are replaced, where they differ. DuckDB opens a file for each view. Where no
        query may read that file, the view fails for all symbols of its timeframe.
        """
        known = dict(connection.execute(_NAMES_AND_COMMENTS).fetchall())
        _fill(connection, self.tables, known)
        sql = replace(self.sql, files=_files_to_range(self.sql.layout, self.files))
        created = sql.views
        unreadable: dict[Timeframe, str] = {}
        has_changed = False
        for name, source in self.views.items():
            comment = f"{_digest(source)} {_digest(created[name])}"
            # The views of all timeframes come last, and have the columns of the others.
            has_changed |= known.get(name) != comment
            if known.get(name) == comment and not (
                self.refused or (has_changed and name in _OF_VIEWS)
            ):
                continue
            try:
                connection.execute(f"CREATE OR REPLACE VIEW {name} AS {created[name]}")
            except duckdb.Error as error:
                if not _is_of_refused(error, self.refused):
                    raise
                refusing = refusing_source(
                    str(error), is_raw=name.startswith("raw"), has_origin=bool(self.sql.imported)
                )
                connection.execute(f"CREATE OR REPLACE VIEW {name} AS {refusing}")
                if name not in _OF_VIEWS:
                    unreadable[Timeframe(name.rpartition("_")[2])] = str(error)
                    failing = replace(sql, unreadable=unreadable).views
                    created |= {one: failing[one] for one in _OF_VIEWS}
            connection.execute(f"COMMENT ON VIEW {name} IS '{comment}'")
        for name, source in self.macros.items():
            if known.get(name) == _digest(source):
                continue
            connection.execute(f"CREATE OR REPLACE MACRO {name}{PARAMETERS} AS TABLE {source}")
            connection.execute(f"COMMENT ON MACRO TABLE {name} IS '{_digest(source)}'")


def _fill(
    connection: duckdb.DuckDBPyConnection,
    tables: Mapping[str, pa.Table],
    known: Mapping[str, str],
) -> None:
    """Replace the rows of the tables whose known comments are not the digests of these rows."""
    for name, rows in tables.items():
        digest = _table_digest(rows)
        if known.get(name) == digest:
            continue
        connection.register("rows", rows)
        connection.execute(f"DELETE FROM {name}; INSERT INTO {name} SELECT * FROM rows")  # noqa: S608
        connection.unregister("rows")
        connection.execute(f"COMMENT ON TABLE {name} IS '{digest}'")


def _files_to_range(layout: StoreLayout, files: QueriedFiles) -> dict[Timeframe, dict[str, int]]:
    """Return how many files the symbols have; none where one glob must list them.

    A folder whose name is no symbol is in no range, and queries must refuse it.
    """
    if not _HAS_ALLOW_EMPTY or not _has_placeholders(layout) or files.unnamed:
        return {}
    found: dict[Timeframe, dict[str, int]] = {}
    for (symbol, timeframe), number in files.series.items():
        found.setdefault(timeframe, {})[symbol] = number
    return found


def _has_placeholders(layout: StoreLayout) -> bool:
    return all(path.is_file() for path in placeholder_files(layout))


def _write_placeholders(layout: StoreLayout) -> None:
    columns = {one.name: pa.nulls(PLACEHOLDER_ROWS, one.type) for one in STORED_SCHEMA}
    empty_rows = pa.table(columns)
    for path in placeholder_files(layout):
        if not path.is_file():
            with disk_errors(path):
                make_folder(path.parent)
            write_atomically(
                path,
                lambda file: pq.write_table(empty_rows, file),
                before_renaming=layout.require_same,
            )


def _imported_files(layout: StoreLayout, *, is_strict: bool) -> QueriedFiles:
    """Return the imported files, of a store that may have none."""
    imported = imported_store(layout)
    if imported is None:
        return QueriedFiles({}, has_older=False, series={}, known=frozenset())
    with closing(open_ledger(imported)) as ledger:
        return queried_files(BarStore(imported, ledger), is_strict=is_strict)


def _build(
    temp: Path, layout: StoreLayout, tables: Mapping[str, pa.Table], objects: _Objects
) -> None:
    """Build a catalog in a new file."""
    with _duckdb_errors(layout.catalog), closing(duckdb.connect(config=dict(_BUILDING))) as build:
        build.execute(
            f"ATTACH '{_escaped(temp)}' AS ktrdr (STORAGE_VERSION '{STORAGE_VERSION}'); USE ktrdr"
        )
        build.execute(TABLES)
        _fill(build, tables, {})
        objects.create(build)
        build.execute("USE memory; DETACH ktrdr")


def _renew(
    temp: Path, layout: StoreLayout, tables: Mapping[str, pa.Table], objects: _Objects
) -> bool | None:
    """Make a copy of the catalog the present one, and return whether anything in it changed.

    Returns: None where there is no catalog that can be renewed.
    """
    if layout.catalog_log.exists():  # what it says would be part of the copy
        return None
    try:
        with closing(connect_catalog(layout)) as connection:
            known = dict(connection.execute(_NAMES_AND_COMMENTS).fetchall())
            size = connection.execute(_SPARE_BLOCKS).fetchone()
        own = {*tables, *objects.tables, *objects.views, *objects.macros}
        if known.keys() != own or size is None or size[0]:
            return None
        with disk_errors(temp):
            shutil.copyfile(layout.catalog, temp)
        with closing(duckdb.connect(config=dict(_BUILDING))) as renewed:
            renewed.execute(f"ATTACH '{_escaped(temp)}' AS ktrdr; USE ktrdr; BEGIN")
            _fill(renewed, tables, known)
            objects.create(renewed)
            now_known = dict(renewed.execute(_NAMES_AND_COMMENTS).fetchall())
            renewed.execute("COMMIT; USE memory; DETACH ktrdr")
    except (StoreError, duckdb.Error):
        # Whatever is wrong with the older catalog, a new one does not have it.
        temp.unlink(missing_ok=True)
        return None
    return now_known != known or bool(objects.refused)


def _show_present_files(
    connection: duckdb.DuckDBPyConnection, layout: StoreLayout, objects: _Objects, folder: Path
) -> None:
    """Make a connection see the present files, where the catalog was built for others.

    The connection then uses a copy of the catalog in a private folder, so that every name keeps
    its meaning.
    """
    # Views of ranges find no folder whose name is no symbol, and need the placeholders.
    is_whole = _has_placeholders(layout) and not objects.files.unnamed
    if _known_digests(connection) == objects.digests and (
        is_whole or not _names_placeholders(connection)
    ):
        return
    copy = folder / "catalog.duckdb"
    with disk_errors(copy):
        shutil.copyfile(layout.catalog, copy)
    connection.execute(f"USE memory; DETACH ktrdr; ATTACH '{_escaped(copy)}' AS ktrdr; USE ktrdr")
    objects.create(connection)
    connection.execute(
        f"USE memory; DETACH ktrdr; ATTACH '{_escaped(copy)}' AS ktrdr (READ_ONLY); USE ktrdr"
    )


def _names_placeholders(connection: duckdb.DuckDBPyConnection) -> bool:
    """Return whether a view of an attached catalog reads the placeholders."""
    name = placeholder_files(StoreLayout(Path()))[0].name
    return bool(connection.execute(NAMES_FILE, [name]).fetchone())


def _known_digests(connection: duckdb.DuckDBPyConnection) -> set[str]:
    """Return the digests of what follows from the bar files in an attached catalog."""
    known = connection.execute(_NAMES_AND_COMMENTS).fetchall()
    return {text.partition(" ")[0] for name, text in known if name not in SMALL_TABLES}


@contextmanager
def _duckdb_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        raise DiskError(
            f"cannot write the catalog {path}",
            reason=str(error),
            hint="Make room on the disk or make the folder writable, and run this again",
        ) from error


def _is_of_refused(error: duckdb.Error, refused: Iterable[Path]) -> bool:
    """Return whether a query failed because it met a file that no query may read."""
    text = str(error)
    return REFUSED in text or any(path.as_posix() in text for path in refused)


def _mixed(text: str, objects: _Objects, layout: StoreLayout) -> StoreError:
    """Return the error for bars of a symbol that cannot be put on today's basis."""
    symbol = text[text.find(MIXED) :].removeprefix(MIXED).partition(":")[0]
    path = layout.adjustments_file(symbol)
    unknown = f"bars of {symbol} include an adjustment that {path} does not have"
    reason = objects.lost.get(symbol, unknown).partition(". Hint:")[0]
    return StoreError("cannot run this query", reason=reason, hint=HINT)


def _refused(error: duckdb.Error, *, is_refused: bool) -> KtrdrError:
    text = str(error)
    if is_refused:
        return CorruptFileError(
            "cannot run this query",
            reason=text[max(text.find(REFUSED), 0) :],
            hint="Run `ktrdr repair`: it quarantines the file and says what to load again",
        )
    if "No files found that match the pattern" in text:
        return UsageError(
            "cannot run this query",
            reason=f"there are no bars for it: {text}",
            hint="`ktrdr status` lists the series that have bars, `ktrdr load` loads others",
        )
    if _NO_PARQUET.search(text):
        return StoreError(
            "cannot read a bar file for this query",
            reason=text,
            hint="Run `ktrdr repair`: it quarantines files that cannot be read",
        )
    if isinstance(error, duckdb.InternalException):
        return UsageError(
            "cannot run this query",
            reason=f"it triggers an internal error of DuckDB {duckdb.__version__}",
            hint="Rewrite the query, or use another version of DuckDB",
        )
    if isinstance(error, (duckdb.ProgrammingError, *_BAD_SQL)):
        return UsageError("cannot run this query", reason=text)
    return StoreError(
        "cannot run this query",
        reason=text,
        hint="Run it again; if it fails again, run `ktrdr repair`",
    )


def _table_digest(rows: pa.Table) -> str:
    """Return a digest of a table's columns and rows, in their order."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows.combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _escaped(path: Path) -> str:
    return path.as_posix().replace("'", "''")
