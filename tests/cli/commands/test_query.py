"""ktrdr query: tables, CSV and JSON out of the catalog."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.cli.output import PIPED_WIDTH


def test_an_empty_store_answers(ktrdr: Any, store: Path) -> None:
    """Every view is there before the first bar."""
    assert ktrdr("query", "SELECT count(*) AS n FROM bars_1m", "--csv").out == "n\n0\n"


def test_bars_are_answered(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Instants are told in UTC, dates as dates, numbers as numbers."""
    ktrdr("load", "AAPL", "1d", "--start", "2024-01-02", "--end", "2024-01-06")
    sql = "SELECT ts, session_date, bar_count FROM series('AAPL', '1d') ORDER BY ts LIMIT 1"
    (row,) = ktrdr("query", sql, "--json").document
    assert row["ts"] == "2024-01-02T00:00:00Z"
    assert row["session_date"] == "2024-01-02"
    assert isinstance(row["bar_count"], int)
    assert "2024-01-02T00:00:00Z" in ktrdr("query", sql).out


def test_json_has_every_kind_of_value(ktrdr: Any, store: Path) -> None:
    """What JSON has no word for is null or text, and no column hides another."""
    sql = (
        "SELECT 'nan'::DOUBLE AS x, NULL AS y, [1.5, 'inf'::DOUBLE] AS z, {'a': 1} AS s, 1 AS n, "
        "2 AS n, 1.25::DECIMAL(9, 2) AS d"
    )
    assert ktrdr("query", sql, "--json").document == [
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
    """Whatever zone a query tells them in, and to the microsecond."""
    sql = (
        "SET TimeZone = 'America/New_York'; "
        "SELECT '2024-01-02T10:00:00.000001-05:00'::TIMESTAMPTZ AS t, '2024-01-02'::TIMESTAMP AS p"
    )
    (row,) = ktrdr("query", sql, "--json").document
    assert row == {"t": "2024-01-02T15:00:00.000001Z", "p": "2024-01-02T00:00:00"}


def test_csv_is_quoted_where_it_must_be(ktrdr: Any, store: Path) -> None:
    """Any reader of CSV gets the values back."""
    told = ktrdr("query", "SELECT 'a,\"b\"' AS text, NULL AS nothing", "--csv")
    assert list(csv.reader(io.StringIO(told.out))) == [["text", "nothing"], ['a,"b"', ""]]


def test_a_long_answer_is_cut_and_says_so(ktrdr: Any, store: Path) -> None:
    """A table shows a hundred rows; CSV has all of them."""
    told = ktrdr("query", "SELECT * FROM range(12345)")
    assert "100 of 12,345 rows; --csv and --json print all" in told.err
    assert len(ktrdr("query", "SELECT * FROM range(12345)", "--csv").out.splitlines()) == 12346


def test_a_wide_answer_is_cut_at_whole_columns(ktrdr: Any, store: Path) -> None:
    """Columns that have no room are named instead of shown in pieces."""
    wide = ", ".join(f"'{'x' * 30}' AS column_{at}" for at in range(9))
    told = ktrdr("query", f"SELECT {wide}")
    assert "column_8" in told.err
    assert "column_8" not in told.out
    assert max(map(len, told.out.splitlines())) <= PIPED_WIDTH


def test_text_is_shown_as_it_is(ktrdr: Any, store: Path) -> None:
    """What looks like markup or an emoji stays what it is."""
    assert "[bold]x[/] :smile:" in ktrdr("query", "SELECT '[bold]x[/] :smile:' AS text").out


def test_sql_may_come_from_stdin(process: Any, store: Path) -> None:
    """A long query is piped in."""
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
    """What DuckDB does not accept exits with 2 and says what; nothing can be changed."""
    ktrdr("query", sql).is_error(2, part)


def test_bad_queries_are_json_too(ktrdr: Any, store: Path) -> None:
    """A program finds the error on stdout."""
    told = ktrdr("query", "SELEC 1", "--json")
    assert (told.code, told.err) == (2, "")
    assert json.loads(told.out)["error"]["kind"] == "UsageError"


def test_one_output_has_one_form(ktrdr: Any, store: Path) -> None:
    """CSV and JSON at once make no sense."""
    told = ktrdr("query", "SELECT 1", "--csv", "--json")
    assert told.code == 2


def test_a_missing_catalog_is_built_by_the_query(ktrdr: Any, store: Path) -> None:
    """A catalog that was deleted, as a migration does with an outdated one, is made again."""
    (store / "ktrdr.duckdb").unlink()
    assert ktrdr("query", "SELECT 1 AS n", "--json").document == [{"n": 1}]


@pytest.mark.parametrize(
    "sql",
    [
        "COPY (SELECT 1) TO '{file}'",
        "ATTACH '{file}' AS other",
        "SELECT 1; EXPORT DATABASE '{file}'",
        "/* SELECT */ COPY (PIVOT bars ON symbol USING count(*)) TO '{file}'",
    ],
)
def test_a_query_writes_nothing_beside_the_catalog_either(
    ktrdr: Any, store: Path, tmp_path: Path, sql: str
) -> None:
    """The catalog is open for reading, and so is everything else."""
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
    """What reads beyond the store or could write exits with 2 and says why."""
    ktrdr("query", sql).is_error(2, "cannot run this query", *parts)
    assert ktrdr("query", sql, "--json").document["error"]["kind"] == "UsageError"


@pytest.mark.parametrize("sql", ["", "  ", "/* ; */ ;; -- nothing"])
def test_an_empty_query_is_bad_usage(ktrdr: Any, store: Path, sql: str) -> None:
    """Nothing was asked, and that is said."""
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
def test_whatever_reads_is_answered(ktrdr: Any, store: Path, sql: str) -> None:
    """Looking around is no writing."""
    assert ktrdr("query", sql).code == 0
