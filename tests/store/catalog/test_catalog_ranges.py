"""A catalog of many files: queries list those of a range of symbols, and answer as of few files."""

# ruff: noqa: S608  (queries are made of the names that are tested)

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from itertools import cycle
from pathlib import Path
from threading import Event
from typing import Any

import duckdb
import pytest

from ktrdr_pipelines.domain.instruments import Instrument
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import CorruptFileError
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.catalog.catalog import query_catalog, rebuild_catalog, refresh_views
from ktrdr_pipelines.store.catalog.sql import placeholder_files
from ktrdr_pipelines.store.layout import StoreLayout, create_store
from ktrdr_pipelines.store.ledger.ledger import Ledger
from tests.store.conftest import Make

NOW = datetime(2024, 6, 7, 20, tzinfo=UTC)
DAY = datetime(2024, 6, 3, tzinfo=UTC)
ODD = ["ON", "0700", "1E5", "nan", "AAPL.ETH", "BRK-B", "a_b", "null", "S", "S1", "_x", "zz"]
SYMBOLS = [*ODD, *(f"S{number:03}" for number in range(200))]

pytestmark = pytest.mark.skipif(
    int(duckdb.__version__.partition(".")[0]) < 2, reason="needs allow_empty of read_parquet"
)
make = Make()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> StoreLayout:
    """Return a store of many symbols with days, and hours of some; one is adjusted."""
    layout = create_store(tmp_path_factory.mktemp("ranges"))
    with closing(Ledger(layout.ledger)) as ledger:
        store = BarStore(layout, ledger)
        for number, symbol in enumerate(SYMBOLS):
            days = make.series(Timeframe.D1, symbol)
            make.save(store, days, make.run(days, DAY, 2, float(number + 1)))
        for symbol in SYMBOLS[:3]:
            hours = make.series(Timeframe.H1, symbol)
            make.save(store, hours, make.run(hours, DAY + timedelta(hours=14), 3))
        store.bases.history.write("S150", [make.split(1, 0.25)])
    return layout


@pytest.fixture
def layout(filled: StoreLayout, tmp_path: Path) -> StoreLayout:
    """Return a copy of the store with a catalog."""
    shutil.copytree(filled.root, tmp_path / "data", copy_function=shutil.copy2)
    layout = create_store(tmp_path / "data")
    rebuild_catalog(layout, universe(), NOW)
    return layout


def universe() -> list[Instrument]:
    """Return the instruments of all symbols."""
    return [make.series(Timeframe.D1, symbol).instrument for symbol in SYMBOLS]


def shell(layout: StoreLayout) -> Any:
    """Return a connection of DuckDB alone to the catalog."""
    return closing(duckdb.connect(str(layout.catalog), read_only=True))


def scans(connection: duckdb.DuckDBPyConnection, sql: str) -> list[str]:
    """Return the names of operators, and how many files each scan reads, of a query's plan."""
    found = connection.execute(f"EXPLAIN (FORMAT json) {sql}").fetchone()
    assert found is not None
    names: list[str] = []

    def walk(node: dict[str, Any]) -> None:
        names.append(node["name"].strip())
        names.extend(
            str(value) for key, value in node["extra_info"].items() if key == "Scanning Files"
        )
        for child in node["children"]:
            walk(child)

    for node in json.loads(found[1]):
        walk(node)
    return names


def test_all_ways_to_read_a_symbol_agree(layout: StoreLayout) -> None:
    """Odd names and adjusted ones; and all symbols are read once."""
    with shell(layout) as connection:
        for number, symbol in enumerate(SYMBOLS):
            if symbol not in {*ODD, "S000", "S149", "S150", "S199"}:
                continue
            by_path = connection.execute(f"FROM series('{symbol}', '1d') ORDER BY ts").fetchall()
            assert [row[7] for row in by_path] == [
                (number + 1) / (4 if symbol == "S150" else 1)
            ] * 2
            for view in ("bars_1d", "bars"):
                where = f"symbol = '{symbol}' AND timeframe = '1d'"
                found = connection.execute(f"FROM {view} WHERE {where} ORDER BY ts").fetchall()
                assert found == by_path
        for condition, count in (
            ("true", 2 * len(SYMBOLS)),
            ("symbol IN ('ON', 'S150', 'zz')", 6),
            ("symbol >= 'S100' AND symbol < 'S110'", 20),
            ("symbol LIKE 'S1%'", 202),
            ("symbol = 'S150' OR symbol = 'a_b'", 4),
            ("symbol IN (SELECT symbol FROM bars_1h)", 6),
            ("close > 150", 2 * 62 - 2),
        ):
            found = connection.execute(f"SELECT count(*) FROM bars_1d WHERE {condition}").fetchone()
            assert found == (count,), condition
        symbols = connection.execute("SELECT DISTINCT symbol FROM bars_1d").fetchall()
        assert sorted(symbol for (symbol,) in symbols) == sorted(SYMBOLS)


def test_a_query_of_a_symbol_lists_its_range_alone(layout: StoreLayout) -> None:
    """Whichever view it names; the others leave the plan before files are looked for."""
    with shell(layout) as connection:
        for view in ("bars_1d", "bars", "raw"):
            where = "symbol = 'S150' AND timeframe = '1d'"
            found = scans(connection, f"SELECT max(close) FROM {view} WHERE {where}")
            (files,) = [one for one in found if "/" in one]
            read, listed = map(int, files.split("/"))
            assert (read, listed < len(SYMBOLS)) == (1, True)


def test_new_symbols_appear_and_deleted_ones_do_not_break_an_open_shell(
    layout: StoreLayout,
) -> None:
    """Without a new catalog."""
    with shell(layout) as connection, closing(Ledger(layout.ledger)) as ledger:
        store = BarStore(layout, ledger)
        for symbol in ("NEW", "S0155", "T", "z"):
            days = make.series(Timeframe.D1, symbol)
            make.save(store, days, make.run(days, DAY, 1, 7.0))
            found = connection.execute(f"SELECT close FROM bars WHERE symbol = '{symbol}'")
            assert found.fetchall() == [(7.0,)]
        for symbol in SYMBOLS[-120:]:
            shutil.rmtree(layout.symbol_folder(symbol))
        found = connection.execute("SELECT count(*) FROM bars_1d")
        assert found.fetchall() == [(2 * (len(SYMBOLS) - 120) + 4,)]
        assert connection.execute("FROM bars WHERE symbol = 'S150'").fetchall() == []
    assert query_catalog(layout, "FROM bars WHERE symbol = 'S150'").num_rows == 0


@pytest.mark.parametrize("name", ["S150 copy", "", "Ä"])
def test_folders_that_are_no_symbols_are_refused(layout: StoreLayout, name: str) -> None:
    """As in a store of few files."""
    shutil.copytree(layout.symbol_folder("S150"), layout.symbol_folder(name))
    rebuild_catalog(layout, universe(), NOW)
    with pytest.raises(CorruptFileError, match="no file of the store"):
        query_catalog(layout, "SELECT count(*) FROM bars_1d")
    assert query_catalog(layout, "FROM bars_1d WHERE symbol = 'S149'").num_rows == 2


@pytest.mark.parametrize("name", ["~S150", "S150 copy", "Ä"])
def test_folders_that_are_no_symbols_are_refused_without_a_new_catalog(
    layout: StoreLayout, name: str
) -> None:
    """No range lists them, so a query must not take the ranges for all files."""
    shutil.copytree(layout.symbol_folder("S150"), layout.symbol_folder(name))
    with pytest.raises(CorruptFileError, match="no file of the store"):
        query_catalog(layout, "SELECT count(*) FROM bars_1d")
    shutil.rmtree(layout.symbol_folder(name))
    assert query_catalog(layout, "FROM bars_1d").num_rows == 2 * len(SYMBOLS)


def test_the_placeholders_can_be_lost(layout: StoreLayout) -> None:
    """Queries do without them, and the next catalog has them again."""
    shutil.rmtree(placeholder_files(layout)[0].parent)
    assert query_catalog(layout, "FROM bars WHERE symbol = 'S149'").num_rows == 2
    assert query_catalog(layout, "FROM bars_1d").num_rows == 2 * len(SYMBOLS)
    refresh_views(layout)
    with shell(layout) as connection:
        assert len(connection.execute("FROM bars_1d").fetchall()) == 2 * len(SYMBOLS)


def test_placeholders_have_no_rows_for_a_query(layout: StoreLayout) -> None:
    """Neither by their symbol, which is empty, nor by a value that is missing."""
    for condition in (
        "symbol = ''",
        "symbol < '-'",
        "ts IS NULL",
        "close IS NULL",
        "symbol IS NULL",
    ):
        for view in ("bars_1d", "raw_1d", "bars", "raw"):
            assert query_catalog(layout, f"FROM {view} WHERE {condition}").num_rows == 0


def test_a_query_returns_one_version_of_a_file_that_is_replaced(
    layout: StoreLayout, tmp_path: Path
) -> None:
    """Or fails, and can be run again; which it reads changes with each rename."""
    path = layout.bar_files("S150", Timeframe.D1)[0]
    versions = [tmp_path / "first.parquet", tmp_path / "second.parquet"]
    shutil.copy2(path, versions[0])
    with closing(Ledger(layout.ledger)) as ledger:
        days = make.series(Timeframe.D1, "S150")
        make.save(BarStore(layout, ledger), days, make.run(days, DAY, 4, 5.0))
    shutil.copy2(path, versions[1])
    is_over = Event()

    def replace_until_over() -> None:
        for version in cycle(versions):
            shutil.copy2(version, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)
            if is_over.is_set():
                return

    sql = "SELECT count(*), count(DISTINCT ts), count(close) FROM {} WHERE symbol = 'S150'"
    found = set()
    with shell(layout) as connection, ThreadPoolExecutor(1) as pool:
        replacing = pool.submit(replace_until_over)
        for view in ("bars_1d", "bars", "series('S150', '1d')") * 12:
            with suppress(duckdb.Error):
                found |= set(connection.execute(sql.format(view)).fetchall())
        is_over.set()
        replacing.result()
    assert found
    assert found <= {(2, 2, 2), (4, 4, 4)}


# --- renewals -----------------------------------------------------------------------------------


def comments(layout: StoreLayout) -> dict[str, str]:
    """Return the digests of the tables and views in the catalog."""
    sql = """SELECT view_name, comment FROM duckdb_views() WHERE comment IS NOT NULL
        UNION ALL SELECT table_name, comment FROM duckdb_tables()"""
    with shell(layout) as connection:
        return dict(connection.execute(sql).fetchall())


def test_a_renewal_without_changes_keeps_the_file(layout: StoreLayout) -> None:
    """It is marked as new, as its tables are those of now."""
    before = layout.catalog.stat()
    rebuild_catalog(layout, universe(), NOW)
    after = layout.catalog.stat()
    assert after.st_ino == before.st_ino
    assert after.st_mtime_ns > before.st_mtime_ns


def test_a_renewal_changes_the_tables_that_changed(layout: StoreLayout) -> None:
    """It gives what a catalog gives that is built without an earlier one."""
    before = comments(layout)
    with closing(Ledger(layout.ledger)) as ledger:
        store = BarStore(layout, ledger)
        days = make.series(Timeframe.D1, "S150")
        make.save(store, days, make.run(days, DAY + timedelta(days=2), 2, 3.0))
        minutes = make.series(Timeframe.M1, "S150")
        make.save(store, minutes, make.run(minutes, DAY + timedelta(hours=14), 2, 3.0))
    rebuild_catalog(layout, universe(), NOW)
    after = comments(layout)
    changed = {name for name in after if after[name] != before.get(name)}
    assert {"coverage", "bars_1m", "raw_1m"} <= changed
    assert not changed & {"sessions", "instruments", "gaps", "bars_1h", "price_factors"}
    tables = ("coverage", "sessions", "instruments", "price_factors", "bars", "raw")
    renewed = {one: query_catalog(layout, f"FROM {one} ORDER BY ALL") for one in tables}
    layout.remove_catalog()
    rebuild_catalog(layout, universe(), NOW)
    assert comments(layout) == after
    for one in tables:
        assert query_catalog(layout, f"FROM {one} ORDER BY ALL").equals(renewed[one])


def test_a_catalog_that_cannot_be_renewed_is_built_anew(layout: StoreLayout) -> None:
    """A damaged one, and one that another program has changed."""
    layout.catalog.write_bytes(b"x" * 5000)
    rebuild_catalog(layout, universe(), NOW)
    assert query_catalog(layout, "FROM bars_1d").num_rows == 2 * len(SYMBOLS)
    with closing(duckdb.connect(str(layout.catalog))) as connection:
        connection.execute("DROP TABLE gaps")
    rebuild_catalog(layout, universe(), NOW)
    assert query_catalog(layout, "FROM gaps").num_rows == 0
