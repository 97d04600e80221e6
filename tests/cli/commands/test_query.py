"""ktrdr query: tables, CSV and JSON from the catalog."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.cli.output import PIPED_WIDTH


def test_an_empty_store_can_be_queried(ktrdr: Any, store: Path) -> None:
    """Every view exists before the first bar."""
    assert ktrdr("query", "SELECT count(*) AS n FROM bars_1m", "--csv").out == "n\n0\n"


def test_bars_can_be_queried(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Instants are in UTC, dates are dates, and numbers are numbers."""
    ktrdr("load", "AAPL", "1d", "--start", "2024-01-02", "--end", "2024-01-06")
    sql = "SELECT ts, session_date, bar_count FROM series('AAPL', '1d') ORDER BY ts LIMIT 1"
    (row,) = ktrdr("query", sql, "--json").rows
    assert row["ts"] == "2024-01-02T00:00:00Z"
    assert row["session_date"] == "2024-01-02"
    assert isinstance(row["bar_count"], int)
    assert "2024-01-02T00:00:00Z" in ktrdr("query", sql).out


def test_json_has_every_kind_of_value(ktrdr: Any, store: Path) -> None:
    """Values without a JSON form become null or text, and equal column names stay apart."""
    sql = (
        "SELECT 'nan'::DOUBLE AS x, NULL AS y, [1.5, 'inf'::DOUBLE] AS z, {'a': 1} AS s, 1 AS n, "
        "2 AS n, 1.25::DECIMAL(9, 2) AS d"
    )
    assert ktrdr("query", sql, "--json").rows == [
        {
            "x": None,
            "y": None,
            "z": [1.5, None],
            "s": {"a": 1},
            "n": 1,
            "n_2": 2,
            "d": "1.25",
        }
    ]


def test_instants_are_exact_and_in_utc(ktrdr: Any, store: Path) -> None:
    """They are, whatever zone the query uses, and to the microsecond."""
    sql = (
        "SET TimeZone = 'America/New_York'; "
        "SELECT '2024-01-02T10:00:00.000001-05:00'::TIMESTAMPTZ AS t, '2024-01-02'::TIMESTAMP AS p"
    )
    (row,) = ktrdr("query", sql, "--json").rows
    assert row == {"t": "2024-01-02T15:00:00.000001Z", "p": "2024-01-02T00:00:00"}


def test_csv_is_quoted(ktrdr: Any, store: Path) -> None:
    """A reader of CSV gets the values back."""
    result = ktrdr("query", "SELECT 'a,\"b\"' AS text, NULL AS nothing", "--csv")
    assert list(csv.reader(io.StringIO(result.out))) == [["text", "nothing"], ['a,"b"', ""]]


def test_a_long_table_is_truncated_with_a_note(ktrdr: Any, store: Path) -> None:
    """A table has a hundred rows; CSV has all of them."""
    result = ktrdr("query", "SELECT * FROM range(12345)")
    assert "100 of 12,345 rows; --csv and --json print all" in result.err
    assert len(ktrdr("query", "SELECT * FROM range(12345)", "--csv").out.splitlines()) == 12346


def test_a_wide_table_is_truncated_at_whole_columns(ktrdr: Any, store: Path) -> None:
    """Columns that do not fit are named in a note."""
    wide = ", ".join(f"'{'x' * 30}' AS column_{at}" for at in range(9))
    result = ktrdr("query", f"SELECT {wide}")
    assert "column_8" in result.err
    assert "column_8" not in result.out
    assert max(map(len, result.out.splitlines())) <= PIPED_WIDTH


def test_text_is_printed_unchanged(ktrdr: Any, store: Path) -> None:
    """Markup and names of emojis are not interpreted."""
    assert "[bold]x[/] :smile:" in ktrdr("query", "SELECT '[bold]x[/] :smile:' AS text").out


def test_sql_may_come_from_stdin(process: Any, store: Path) -> None:
    """A query of ``-`` is read from stdin."""
    assert process("query", "-", "--csv", input="SELECT 7 AS n").out == "n\n7\n"


@pytest.mark.parametrize(
    ("sql", "part"),
    [
        ("SELEC 1", "SELEC"),
        ("SELECT nothing FROM bars", "nothing"),
        ("FROM no_such_table", "no_such_table"),
        ("CREATE TABLE t (x INTEGER)", "read-only"),
        ("DROP VIEW bars", "read-only"),
    ],
)
def test_a_bad_query_is_bad_usage(ktrdr: Any, store: Path, sql: str, part: str) -> None:
    """The error has DuckDB's reason, and statements that write are refused."""
    ktrdr("query", sql).is_error(2, part)


def test_an_invalid_query_is_reported_as_json(ktrdr: Any, store: Path) -> None:
    """The error is a document on stdout."""
    result = ktrdr("query", "SELEC 1", "--json")
    assert (result.code, result.err) == (2, "")
    assert json.loads(result.out)["error"]["kind"] == "UsageError"


def test_csv_with_json_is_bad_usage(ktrdr: Any, store: Path) -> None:
    """The output has one format."""
    result = ktrdr("query", "SELECT 1", "--csv", "--json")
    assert result.code == 2


def test_a_missing_catalog_is_built(ktrdr: Any, store: Path) -> None:
    """A migration deletes an outdated catalog, so the query builds it."""
    (store / "ktrdr.duckdb").unlink()
    assert ktrdr("query", "SELECT 1 AS n", "--json").rows == [{"n": 1}]


@pytest.mark.parametrize(
    "sql",
    [
        "COPY (SELECT 1) TO '{file}'",
        "ATTACH '{file}' AS other",
        "SELECT 1; EXPORT DATABASE '{file}'",
        "/* SELECT */ COPY (PIVOT bars ON symbol USING count(*)) TO '{file}'",
    ],
)
def test_a_query_cannot_write_files(ktrdr: Any, store: Path, tmp_path: Path, sql: str) -> None:
    """COPY, ATTACH and EXPORT are refused, also behind other statements."""
    file = tmp_path / "made"
    ktrdr("query", sql.format(file=file)).is_error(2, "could write", "read-only")
    assert not file.exists()


@pytest.mark.parametrize(
    ("sql", "parts"),
    [
        ("EXPLAIN ANALYZE COPY (SELECT 1) TO 'x.csv'", ("COPY could write", "Write SELECT")),
        ("UPDATE EXTENSIONS", ("UPDATE could write",)),
        ("FROM read_csv('/etc/passwd')", ("read_csv()", "DuckDB itself")),
        ("FROM '/etc/passwd'", ("/etc/passwd is not a table or view",)),
        ("SET log_query_path = 'x'", ("SET log_query_path", "timezone")),
        ("SELECT '\udcff'", ("not valid UTF-8",)),
    ],
)
def test_a_refused_statement_is_bad_usage(
    ktrdr: Any, store: Path, sql: str, parts: tuple[str, ...]
) -> None:
    """Statements that could write, or read outside the store, are refused with the reason."""
    ktrdr("query", sql).is_error(2, "cannot run this query", *parts)
    assert ktrdr("query", sql, "--json").document["error"]["kind"] == "UsageError"


@pytest.mark.parametrize("sql", ["", "  ", "/* ; */ ;; -- nothing"])
def test_an_empty_query_is_bad_usage(ktrdr: Any, store: Path, sql: str) -> None:
    """It is, also if it has comments only."""
    ktrdr("query", sql).is_error(2, "an empty query")


@pytest.mark.parametrize(
    "sql",
    [
        "FROM sessions LIMIT 1",
        "DESCRIBE sessions",
        "SHOW TABLES",
        "SUMMARIZE sessions",
        "EXPLAIN SELECT 1",
        "WITH a AS (SELECT 1) SELECT * FROM a",
        "SET threads = 1",
        "PRAGMA show_tables",
        "VALUES (1)",
        "/* a column */ -- of each\nPIVOT bars ON symbol USING sum(volume) GROUP BY ts",
        "SELECT * FROM (PIVOT bars ON timeframe USING count(*))",
    ],
)
def test_statements_that_read_are_allowed(ktrdr: Any, store: Path, sql: str) -> None:
    """Each kind of them succeeds."""
    assert ktrdr("query", sql).code == 0
