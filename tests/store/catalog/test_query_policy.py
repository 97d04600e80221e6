"""What SQL a query may contain: a table of statements, each with its rows or refused.

No statement changes, adds or removes a file of the store or beside it.
"""

# ruff: noqa: E501, ISC004  (a statement stands on one line)

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest

from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import UsageError
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.catalog.catalog import (
    _confine,
    connect_catalog,
    query_catalog,
    rebuild_catalog,
)
from ktrdr_pipelines.store.catalog.query_policy import check_statements
from ktrdr_pipelines.store.layout import StoreLayout, create_store
from ktrdr_pipelines.store.ledger.ledger import Ledger

OPEN = datetime(2024, 6, 3, 13, 30, tzinfo=UTC)
NOW = datetime(2024, 6, 3, 20, tzinfo=UTC)

PLACES = ("{bar_file}", "{bars}", "{root}", "{outside}")


class SharedStore:
    """A store with a few bars, beside it other files and a home, all below one folder."""

    def __init__(self, root: Path, make: Any) -> None:
        self.root = root
        self.outside, self.home, self.temp = root / "outside", root / "home", root / "temp"
        for folder in (self.outside, self.home, self.temp):
            folder.mkdir()
        self.layout: StoreLayout = create_store(root / "it's [my] data")
        with closing(Ledger(self.layout.ledger)) as ledger:
            store = BarStore(self.layout, ledger)
            for symbol, count in (("AAPL", 3), ("MSFT", 2)):
                series = make.series(symbol=symbol)
                make.save(store, series, make.run(series, OPEN, count))
        rebuild_catalog(self.layout, [series.instrument], NOW)
        (self.bar_file,) = self.layout.bar_files("AAPL", Timeframe.M1)
        (self.outside / "data.csv").write_text("a,b\n1,2\n")
        (self.outside / "data.json").write_text('{"a": 1}\n')
        (self.outside / "data.parquet").write_bytes(self.bar_file.read_bytes())
        with duckdb.connect(str(self.outside / "other.duckdb")) as other:
            other.execute("CREATE TABLE t AS SELECT 1 AS a")
        with duckdb.connect() as other:
            other.execute(f"EXPORT DATABASE '{self.outside}/exported'")

    def sql(self, text: str) -> str:
        """Insert paths into a statement, escaped for use within quotes."""
        paths = (self.bar_file, self.layout.bars, self.layout.root, self.outside)
        for position, path in zip(PLACES, paths, strict=True):
            text = text.replace(position, str(path).replace("'", "''"))
        return text

    def files(self) -> dict[str, tuple[int, int, str] | None]:
        """Return size, time of change and digest of every file, and None for every folder."""
        return {str(path): _contents(path) for path in self.root.rglob("*")}


def _contents(path: Path) -> tuple[int, int, str] | None:
    if not path.is_file():
        return None
    info = path.stat()
    return info.st_size, info.st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def shared(make: Any, tmp_path_factory: pytest.TempPathFactory) -> SharedStore:
    """Create the store and what is beside it once; nothing may change it."""
    return SharedStore(tmp_path_factory.mktemp("shared"), make)


@pytest.fixture
def unchanged(shared: SharedStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[SharedStore]:
    """Work in the folder of other files, and assert that no file came, went or changed."""
    monkeypatch.chdir(shared.outside)
    monkeypatch.setenv("HOME", str(shared.home))
    monkeypatch.setattr(tempfile, "tempdir", str(shared.temp))
    before = shared.files()
    yield shared
    assert shared.files() == before


@pytest.fixture(scope="module")
def connection(shared: SharedStore) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open the catalog once, for checks that run nothing."""
    with closing(connect_catalog(shared.layout)) as connection:
        yield connection


@pytest.fixture(scope="module")
def confined(shared: SharedStore) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open the catalog once, barred from other files as for a query."""
    with closing(connect_catalog(shared.layout)) as connection:
        _confine(connection, shared.layout, [], shared.temp)
        connection.execute("SET lock_configuration = true")
        yield connection


ALLOWED: list[tuple[str, list[tuple[Any, ...]]]] = [
    # the queries that the README and the help promise
    ("SELECT count(*) FROM bars", [(5,)]),
    ("FROM bars_1m SELECT count(*)", [(5,)]),
    ("SELECT count(*) FROM series('AAPL', '1m')", [(3,)]),
    ("SELECT count(*) FROM ktrdr.main.series('MSFT', '1m')", [(2,)]),
    ("SELECT symbol FROM ktrdr.bars GROUP BY ALL ORDER BY ALL", [("AAPL",), ("MSFT",)]),
    ("SELECT count(*) > 0 FROM main.sessions", [(True,)]),
    ("VALUES (1, 'a'), (2, 'b')", [(1, "a"), (2, "b")]),
    ("(SELECT 1) UNION ALL (VALUES (2)) ORDER BY 1", [(1,), (2,)]),
    ("TABLE gaps", []),
    ("WITH a AS (SELECT 1 AS x), b AS (FROM a) SELECT x FROM b", [(1,)]),
    (
        "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r WHERE n < 3) FROM r",
        [(1,), (2,), (3,)],
    ),
    ("WITH a AS MATERIALIZED (SELECT max(ts) AS t FROM bars) SELECT t < now() FROM a", [(True,)]),
    (
        "SELECT n, first(symbol) OVER w FROM (SELECT symbol, row_number() OVER (ORDER BY symbol, "
        "ts) AS n FROM bars) WINDOW w AS (PARTITION BY symbol ORDER BY n) QUALIFY n > 4",
        [(5, "MSFT")],
    ),
    ("SELECT count(a.symbol) FROM bars a ASOF JOIN bars_1m b USING (symbol, ts)", [(5,)]),
    ("SELECT x.n FROM range(3) t(a), LATERAL (SELECT t.a * 2 AS n) x", [(0,), (2,), (4,)]),
    ("SELECT unnest([1, 2]), list_transform([1], lambda x: x + 1)", [(1, [2]), (2, [2])]),
    ("SELECT a, b FROM unnest([1]) t(a), generate_series(2, 2) u(b)", [(1, 2)]),
    ("SELECT j->>'$.a', ('{\"a\": 2}'::JSON).a FROM (SELECT '{\"a\": 1}'::JSON AS j)", [("1", "2")]),
    ("SELECT sum(close) FILTER (symbol = 'AAPL'), count(DISTINCT symbol) FROM bars", [(3.0, 2)]),
    ("SELECT 'x' IN (SELECT symbol FROM bars), EXISTS (FROM gaps), 1 + 2 * 3", [(False, False, 7)]),
    ("SELECT min(COLUMNS('^open$|^close$')) FROM bars", [(1.0, 1.0)]),
    ("SELECT * EXCLUDE (b) REPLACE (a + 1 AS a) FROM (SELECT 1 AS a, 2 AS b)", [(2,)]),
    ("SELECT extract(year FROM ts), time_bucket(INTERVAL 1 DAY, ts)::DATE FROM bars LIMIT 1",
     [(2024, date(2024, 6, 3))]),
    ("SELECT setseed(0.5), random() < 2 AND uuid() IS NOT NULL", [(None, True)]),
    ("UNPIVOT (SELECT 1 AS a, 2 AS b) ON a, b INTO NAME n VALUE v", [("a", 1), ("b", 2)]),
    # PIVOT: with given columns it is one statement, with columns from the data it is several
    ("PIVOT bars ON symbol IN ('AAPL') USING count(*) GROUP BY timeframe", [("1m", 3)]),
    ("FROM bars_1m PIVOT (count(*) FOR symbol IN ('MSFT') GROUP BY timeframe)", [("1m", 2)]),
    ("PIVOT bars ON symbol USING count(*) GROUP BY timeframe", [("1m", 3, 2)]),
    ("/* of /* all */ */ PIVOT bars ON symbol USING count(*) GROUP BY timeframe -- ;", [("1m", 3, 2)]),
    ("PIVOT bars ON symbol || 'x', timeframe USING count(*) GROUP BY bar_count", [(7, 3, 2)]),
    ("PIVOT bars ON (symbol, timeframe) USING count(*) GROUP BY bar_count", [(7, 3, 2)]),
    (
        "PIVOT bars ON symbol IN (SELECT max(symbol) FROM bars) USING count(*) GROUP BY timeframe",
        [("1m", 2)],
    ),
    ("WITH p AS (PIVOT bars ON symbol USING count(*) GROUP BY timeframe) SELECT MSFT FROM p", [(2,)]),
    ("SELECT AAPL FROM (PIVOT bars ON symbol USING count(*) GROUP BY timeframe)", [(3,)]),
    ("PIVOT (FROM bars) b JOIN (SELECT 1 AS x) ON x < close + 1 ON symbol USING count(*) GROUP BY x", [(1, 3, 2)]),
    (
        "PIVOT (PIVOT bars ON symbol USING count(*) GROUP BY timeframe) ON timeframe USING sum(AAPL)",
        [(2, Decimal(3))],
    ),
    # descriptions of the catalog
    ("SELECT column_name FROM (DESCRIBE bars) LIMIT 1", [("symbol",)]),
    ("SELECT max FROM (SUMMARIZE SELECT close FROM bars)", [("1.0",)]),
    ("FROM (SHOW TABLES) SELECT count(*) > 5", [(True,)]),
    ("SELECT count(*) > 5 FROM duckdb_views() WHERE database_name = 'ktrdr'", [(True,)]),
    ("SELECT count(*) FROM information_schema.tables WHERE table_name = 'bars'", [(1,)]),
    ("PRAGMA show_databases", [("ktrdr",), ("memory",)]),
    # what only looks like something else
    ("SELECT 'COPY bars TO ''x.csv''' AS text -- DROP VIEW bars; COPY", [("COPY bars TO 'x.csv'",)]),
    ("SELECT $$; ATTACH 'x'; $$ AS text", [("; ATTACH 'x'; ",)]),
    ('SELECT 1 AS "COPY (SELECT 1) TO \'x\';"', [(1,)]),
    ('WITH "read_csv" AS (SELECT 2 AS "é;") SELECT "é;" FROM "read_csv"', [(2,)]),
    ("SELECT 'é;€', '日本'; SELECT '😀' || ';'", [("😀;",)]),
    ("SELECT name FROM (VALUES ('/etc/passwd')) t(name)", [("/etc/passwd",)]),
    ("SELECT 1;; /* ; */ ; SELECT 2; -- ;", [(2,)]),
    # settings and variables
    ("SET TimeZone = 'America/New_York'; SELECT min(ts)::VARCHAR FROM bars",
     [("2024-06-03 09:30:00-04",)]),
    ("SET SESSION TimeZone TO 'Asia/Tokyo'; SET GLOBAL threads = 1; SELECT current_setting('threads')", [(1,)]),
    ("SET VARIABLE x = (SELECT count(*) FROM bars); SELECT getvariable('x')", [(5,)]),
    ("SET VARIABLE x = 1; SET VARIABLE x = getvariable('x') + 1; SELECT getvariable('x')", [(2,)]),
    ("SET threads = 1", []),
    ("SET VARIABLE x = 1", []),
    ("", []),
    ("-- nothing /* at all", []),
]  # fmt: skip

ANSWERED = [
    "DESCRIBE bars",
    "DESCRIBE SELECT 1",
    "SUMMARIZE bars",
    "SHOW TABLES",
    "SHOW ALL TABLES",
    "SHOW DATABASES",
    "SHOW bars",
    "DESCRIBE",
    "EXPLAIN SELECT * FROM bars",
    "EXPLAIN (SELECT 1)",
    "EXPLAIN (FORMAT json) FROM bars",
    "EXPLAIN ANALYZE SELECT * FROM bars",
    "EXPLAIN (ANALYZE, FORMAT json) FROM bars",
    "EXPLAIN /* it */ ANALYZE -- all\n PIVOT bars ON symbol USING count(*)",
    "EXPLAIN DESCRIBE bars",
    "PRAGMA show_tables",
    "PRAGMA table_info('bars')",
    "PRAGMA version",
]

REFUSED = [
    # writes, and writes in disguise
    "COPY bars TO '{bar_file}'",
    "COPY (SELECT 1 AS a) TO '{bar_file}' (FORMAT parquet)",
    "COPY (SELECT 1) TO '{outside}/made.csv'",
    "COPY sessions FROM '{outside}/data.csv'",
    "COPY FROM DATABASE ktrdr TO memory",
    "COPY (PIVOT bars ON symbol USING count(*)) TO '{bar_file}'",
    "/* SELECT */ COPY (PIVOT bars ON symbol USING count(*)) TO '{outside}/made.csv'",
    "EXPLAIN ANALYZE COPY (SELECT 1 AS a) TO '{bar_file}'",
    "EXPLAIN COPY (SELECT 1 AS a) TO '{bar_file}'",
    "EXPLAIN (ANALYZE) COPY (SELECT 1 AS a) TO '{bar_file}'",
    "EXPLAIN (FORMAT json, ANALYZE) COPY (SELECT 1 AS a) TO '{bar_file}'",
    "explain/**/analyze/**/copy (FROM bars) to '{bars}/symbol=AAPL/timeframe=1m/2025.parquet'",
    "EXPLAIN ANALYZE COPY (PIVOT bars ON symbol USING count(*)) TO '{bar_file}'",
    "EXPLAIN ANALYZE CREATE TABLE memory.main.t AS SELECT 1",
    "EXPLAIN ANALYZE INSERT INTO sessions SELECT * FROM sessions",
    "EXPLAIN ANALYZE UPDATE sessions SET calendar = 'x'",
    "EXPLAIN ANALYZE DELETE FROM sessions",
    "EXPLAIN UPDATE EXTENSIONS",
    "EXPLAIN ANALYZE ATTACH '{outside}/made.duckdb'",
    "EXPLAIN SET threads = 1",
    "EXPLAIN PRAGMA version",
    "EXPLAIN EXECUTE p",
    "EXPLAIN",
    "EXPLAIN ANALYZE",
    "EXPLAIN (FORMAT json)",
    "SELECT 1; COPY (SELECT 1) TO '{bar_file}'",
    "WITH a AS (INSERT INTO sessions SELECT * FROM sessions RETURNING *) FROM a",
    "WITH a AS (DELETE FROM sessions RETURNING *) FROM a",
    "WITH a AS (SELECT 1) INSERT INTO sessions SELECT * FROM a",
    "WITH a AS (SELECT 1) DELETE FROM sessions",
    "CREATE TABLE t AS SELECT 1",
    "CREATE TEMP TABLE t AS SELECT 1",
    "CREATE TABLE t AS PIVOT bars ON symbol USING count(*)",
    "CREATE VIEW memory.main.v AS FROM read_text('/etc/passwd')",
    "CREATE MACRO memory.main.m() AS TABLE FROM read_text('/etc/passwd')",
    "CREATE SECRET s (TYPE s3)",
    "CREATE PERSISTENT SECRET s (TYPE http, BEARER_TOKEN 'x')",
    "CREATE SEQUENCE s",
    "INSERT INTO sessions VALUES ('x', NULL, NULL, NULL)",
    "UPDATE sessions SET calendar = 'x'",
    "DELETE FROM sessions",
    "TRUNCATE sessions",
    "MERGE INTO sessions USING sessions s ON true WHEN MATCHED THEN DELETE",
    "ALTER TABLE sessions ADD COLUMN x INTEGER",
    "COMMENT ON TABLE sessions IS 'x'",
    "DROP VIEW bars",
    "EXPORT DATABASE '{outside}/made'",
    "IMPORT DATABASE '{outside}/exported'",
    "ATTACH '{outside}/other.duckdb' AS other",
    "ATTACH '{outside}/made.duckdb'",
    "ATTACH ':memory:' AS other",
    "DETACH ktrdr",
    "USE memory",
    "CHECKPOINT",
    "FORCE CHECKPOINT ktrdr",
    "VACUUM",
    "ANALYZE",
    "BEGIN; SELECT 1; COMMIT",
    "PREPARE p AS SELECT 1; EXECUTE p",
    "EXECUTE p",
    "DEALLOCATE p",
    "CALL pragma_version()",
    "CALL enable_logging(storage = 'file', storage_path = '{outside}/logs')",
    # extensions
    "UPDATE EXTENSIONS",
    "UPDATE EXTENSIONS (httpfs)",
    "SELECT 1; UPDATE EXTENSIONS",
    "INSTALL httpfs",
    "FORCE INSTALL httpfs FROM community",
    "LOAD httpfs",
    "LOAD '{outside}/made.duckdb_extension'",
    # settings
    "SET log_query_path = '{outside}/made.log'",
    "SET GLOBAL log_query_path = '{outside}/made.log'; SELECT 1",
    "SET profiling_output = '{outside}/made.json'",
    "SET enable_profiling = 'json'",
    "SET temp_directory = '{outside}'",
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "SET allowed_directories = ['/']",
    "SET autoload_known_extensions = true",
    "SET search_path = 'memory'",
    "SET schema = 'memory'",
    "SET home_directory = '{outside}'",
    "SET custom_extension_repository = 'http://127.0.0.1:9'",
    "SET threads = 1 + 1",
    "SET threads = 1000000000",
    "SET threads = -1",
    "SELECT pg_sleep(100000)",
    "SET TimeZone = (SELECT 'UTC')",
    "SELECT 1; SET threads = 1",
    "SET",
    "RESET threads",
    "RESET enable_external_access",
    "SET VARIABLE x = (SELECT count(*) FROM '{outside}/data.csv')",
    "SET VARIABLE x = (FROM read_text('/etc/passwd') SELECT content)",
    "SET VARIABLE x",
    "PRAGMA import_database('{outside}/exported')",
    "PRAGMA profiling_output = '{outside}/made.json'",
    "PRAGMA profile_output='{outside}/made.json'",
    "PRAGMA enable_profiling",
    "PRAGMA enable_profiling = 'json'",
    "PRAGMA threads = 1",
    "PRAGMA force_checkpoint",
    "PRAGMA json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "PRAGMA copy_database('ktrdr', 'memory')",
    "PRAGMA add_parquet_key('k', '0123456789112345')",
    "PRAGMA",
    # files, by name
    "FROM '{outside}/data.csv'",
    "FROM 'data.csv'",
    'FROM "data.csv"',
    "FROM data.csv",
    "FROM main.csv",
    "SELECT a FROM data . csv AS t",
    "FROM 'data.json'",
    "FROM 'data.parquet'",
    "FROM '{bar_file}'",
    "FROM '/etc/passwd'",
    "FROM 'https://127.0.0.1:9/x.parquet'",
    "FROM 's3://bucket/x.parquet'",
    "FROM 'file:data.csv'",
    "FROM '{outside}/*.parquet'",
    "TABLE 'data.csv'",
    "DESCRIBE 'data.csv'",
    "DESCRIBE FROM 'data.csv'",
    "SUMMARIZE 'data.csv'",
    "SHOW 'data.csv'",
    "FROM (DESCRIBE 'data.csv')",
    "FROM (SUMMARIZE 'data.parquet')",
    "EXPLAIN FROM 'data.csv'",
    "EXPLAIN ANALYZE FROM 'data.csv'",
    "SELECT 1 UNION ALL (SELECT a FROM 'data.csv')",
    "WITH x AS (FROM 'data.csv') SELECT 1 FROM x",
    'WITH "data.csv" AS (SELECT 1) FROM "data.csv"',
    "SELECT (SELECT a FROM 'data.csv')",
    "SELECT 1 WHERE EXISTS (FROM 'data.csv')",
    "VALUES ((SELECT a FROM 'data.csv'))",
    "SELECT * FROM bars JOIN 'data.csv' ON true",
    "SELECT * FROM bars, LATERAL (SELECT * FROM 'data.csv')",
    "SELECT 1 ORDER BY (SELECT a FROM 'data.csv')",
    "SELECT 1 LIMIT (SELECT a FROM 'data.csv')",
    "SELECT 1 GROUP BY ALL HAVING (SELECT a FROM 'data.csv') > 0",
    "SELECT list_transform([1], lambda x: x + (SELECT a FROM 'data.csv'))",
    "PIVOT 'data.csv' ON a USING sum(b)",
    "PIVOT 'data.csv' ON a IN (1) USING sum(b)",
    "EXPLAIN PIVOT 'data.csv' ON a USING sum(b)",
    "PIVOT bars ON symbol IN (SELECT a FROM 'data.csv') USING count(*)",
    "PIVOT bars ON symbol USING max((SELECT a FROM 'data.csv'))",
    "SELECT * FROM (PIVOT 'data.csv' ON a USING sum(b))",
    "UNPIVOT 'data.csv' ON a, b",
    # files, by function
    "FROM read_csv('{outside}/data.csv')",
    "FROM read_csv_auto('{outside}/data.csv')",
    "FROM read_parquet('{bar_file}')",
    "FROM parquet_scan('{bar_file}')",
    "FROM parquet_metadata('{bar_file}')",
    "FROM parquet_schema('{bar_file}')",
    "FROM parquet_kv_metadata('{bar_file}')",
    "FROM read_json('{outside}/data.json')",
    "FROM read_text('/etc/passwd')",
    "FROM read_blob('{root}/store.json')",
    "FROM sniff_csv('{outside}/data.csv')",
    "FROM glob('/etc/*')",
    "FROM READ_TEXT('/etc/passwd')",
    "FROM \"read_text\"('/etc/passwd')",
    "FROM system.main.read_text('/etc/passwd')",
    "SELECT * FROM bars, read_text('/etc/passwd')",
    "SELECT * FROM bars, LATERAL (FROM glob('/etc/*'))",
    "WITH x AS (WITH y AS (FROM read_text('/etc/passwd')) FROM y) SELECT 1",
    "DESCRIBE FROM read_text('/etc/passwd')",
    "EXPLAIN ANALYZE FROM read_text('/etc/passwd')",
    "PIVOT (FROM read_csv('data.csv')) ON a USING sum(b)",
    "PIVOT bars ON symbol IN (FROM read_text('/etc/passwd') SELECT content) USING count(*)",
    "FROM query('FROM bars')",
    "FROM query('COPY (SELECT 1) TO ''{outside}/made.csv''')",
    "FROM query_table('data.csv')",
    "FROM query_table(['bars'])",
    "FROM histogram('data.csv', a)",
    "FROM json_execute_serialized_sql(json_serialize_sql('FROM bars'))",
    "SELECT json_serialize_plan('FROM read_csv(''data.csv'')')",
    "FROM duckdb_secrets()",
    "FROM duckdb_logs()",
    "FROM which_secret('s3://x', 's3')",
    "FROM force_checkpoint()",
    "FROM enable_logging()",
    "FROM pandas_scan(1)",
    # functions with effects
    "SELECT getenv('HOME')",
    "SELECT * REPLACE (getenv('HOME') AS symbol) FROM bars",
    "SELECT sum(close) OVER (ORDER BY getenv('HOME')) FROM bars",
    "SELECT count(*) FILTER (getenv('HOME') = '') FROM bars",
    "SELECT CASE WHEN true THEN [getenv('HOME')] END",
    "SELECT write_log('x')",
    "SELECT nextval('s')",
    "SELECT __internal_compress_string_hugeint('x')",
    "SELECT no_such_function(1)",
    # texts that are not valid
    "SELECT 1\0; COPY (SELECT 1) TO '{outside}/made.csv'",
    "SELECT '\udcff'",
]  # fmt: skip

FAILING = [
    "SELEC 1",
    "'a'",
    "()",
    "SELECT 'a",
    "SELECT $$a",
    "SELECT 1 /* a",
    "SELECT 1; SELEC 2",
    "SELECT ?",
    "SELECT $name",
    "SELECT error('x')",
    "SELECT " + " + ".join(["1"] * 5000),
]
"""What DuckDB itself refuses: texts that are no statements, and errors of a query."""


def test_the_table_is_long_enough() -> None:
    """Every kind of statement is there, and no statement twice."""
    statements = [*(sql for sql, _ in ALLOWED), *ANSWERED, *REFUSED, *FAILING]
    assert len(statements) == len(set(statements))
    assert len(statements) >= 250


@pytest.mark.parametrize(("sql", "rows"), ALLOWED, ids=[sql[:60] for sql, _ in ALLOWED])
def test_queries_of_the_store_are_answered(
    unchanged: SharedStore, sql: str, rows: list[tuple[Any, ...]]
) -> None:
    """Each statement returns exactly these rows."""
    answer = query_catalog(unchanged.layout, unchanged.sql(sql))
    columns = [column.to_pylist() for column in answer.columns]
    assert list(zip(*columns, strict=True)) == rows


@pytest.mark.parametrize("sql", ANSWERED)
def test_descriptions_and_plans_are_answered(unchanged: SharedStore, sql: str) -> None:
    """They have rows; their text is DuckDB's."""
    assert query_catalog(unchanged.layout, sql).num_rows > 0


@pytest.mark.parametrize("sql", REFUSED, ids=[sql[:60] for sql in REFUSED])
def test_everything_else_is_refused(
    shared: SharedStore, connection: duckdb.DuckDBPyConnection, sql: str
) -> None:
    """The check refuses it as an error of usage, before anything runs."""
    with pytest.raises(UsageError, match="cannot run this query: ") as refused:
        check_statements(connection, shared.sql(sql))
    assert_is_clear(refused.value)


@pytest.mark.parametrize("sql", FAILING, ids=[sql[:60] for sql in FAILING])
def test_what_duckdb_refuses_is_an_error_of_usage(unchanged: SharedStore, sql: str) -> None:
    """In one clear message too."""
    with pytest.raises(UsageError, match="cannot run this query: ") as refused:
        query_catalog(unchanged.layout, sql)
    assert_is_clear(refused.value)


def assert_is_clear(error: UsageError) -> None:
    """Assert that a message has none of DuckDB's internal names."""
    assert "INTERNAL" not in str(error)
    assert "StatementType" not in str(error)


REACHING = [sql for sql in REFUSED if "{outside}/data." in sql or "{outside}/made" in sql]
BARRED = [
    *REACHING,
    "FROM read_text('/etc/passwd')",
    "FROM glob('/etc/*')",
    "FROM read_blob('{root}/store.json')",
    "FROM data.csv",
    "SET enable_external_access = true",
    "SET threads = 1",
    "INSTALL httpfs",
    "LOAD httpfs",
]


@pytest.mark.parametrize(
    "sql",
    [
        sql
        for sql in BARRED
        if not sql.startswith(("CALL", "EXPLAIN", "IMPORT")) and "\0" not in sql
    ],
)
def test_barriers_hold_without_the_check(
    unchanged: SharedStore, confined: duckdb.DuckDBPyConnection, sql: str
) -> None:
    """DuckDB itself refuses what reaches beyond the store, were the check to miss it."""
    with pytest.raises(duckdb.Error):
        confined.sql(unchanged.sql(sql)).fetchall()


def test_spilling_goes_to_a_private_folder_that_is_removed(unchanged: SharedStore) -> None:
    """A query that exceeds its memory limit is answered, and its folder is removed."""
    sql = (
        "SET memory_limit = '60MB'; SET threads = 1; "
        "SELECT count(*), current_setting('temp_directory') FROM (SELECT range, hash(range) AS h "
        "FROM range(3_000_000) ORDER BY h LIMIT 2_999_999) GROUP BY ALL"
    )
    (row,) = query_catalog(unchanged.layout, sql).to_pylist()
    count, folder = row.values()
    assert count == 2_999_999
    assert Path(folder).parent == unchanged.temp
    assert not Path(folder).exists()


def test_the_folder_for_spilling_is_the_users_alone(
    unchanged: SharedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other users cannot enter it while the query runs."""
    modes = []
    confine = _confine

    def recording(connection: Any, layout: StoreLayout, linked: Any, spill: Path) -> None:
        modes.append(os.stat(spill).st_mode & 0o777)  # noqa: PTH116
        confine(connection, layout, linked, spill)

    monkeypatch.setattr("ktrdr_pipelines.store.catalog.catalog._confine", recording)
    query_catalog(unchanged.layout, "SELECT 1")
    assert modes == [0o700]


def test_refusals_have_hints(unchanged: SharedStore) -> None:
    """Each kind of refusal names what it refuses, and a hint."""
    for sql, reason, hint in (
        ("EXPLAIN ANALYZE COPY bars TO 'x'", "COPY could write", "Write SELECT"),
        ("UPDATE EXTENSIONS", "UPDATE could write", "Write SELECT"),
        ("FROM read_csv('x')", r"read_csv\(\)", "DuckDB itself"),
        ("FROM '/etc/passwd'", "/etc/passwd is not a table", "SHOW TABLES"),
        ("SET log_query_path = 'x'", "SET log_query_path", "timezone"),
        ("SELECT 1; SET threads = 1", "SET threads follows", "Put it first"),
        ("PRAGMA import_database('x')", "PRAGMA import_database", "table_info"),
    ):
        with pytest.raises(UsageError, match=rf"{reason}.*{hint}"):
            query_catalog(unchanged.layout, sql)


def test_the_check_runs_nothing(connection: duckdb.DuckDBPyConnection) -> None:
    """A statement that would be expensive or wrong is only parsed."""
    sql = "SET VARIABLE x = 1; SELECT count(*) FROM range(1_000_000_000_000) WHERE error('x')"
    checked = check_statements(connection, sql)
    assert connection.execute("SELECT getvariable('x')").fetchall() == [(None,)]
    assert checked.settings == ()
    assert checked.statements == ("SET VARIABLE x = 1",)
    assert (checked.query or "").strip().startswith("SELECT count(*)")


def test_many_brackets_are_handled(unchanged: SharedStore) -> None:
    """Whether they are too many depends on the version of DuckDB."""
    with contextlib.suppress(UsageError):
        query_catalog(unchanged.layout, "SELECT " + "(" * 5000 + "1" + ")" * 5000)


def test_long_sums_are_read(unchanged: SharedStore) -> None:
    """A tree as deep as DuckDB itself allows is checked to its end."""
    sql = "SELECT " + " + ".join(["1"] * 900)
    assert query_catalog(unchanged.layout, sql).columns[0].to_pylist() == [900]
    with pytest.raises(UsageError, match="getenv"):
        query_catalog(unchanged.layout, sql.replace("1", "length(getenv('HOME'))", 1))
