"""Queries serve one price basis, today's, or fail; raw views serve bars as stored."""

# ruff: noqa: S608  (queries are made of the names that are tested)

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ktrdr_pipelines.domain.adjustments import AdjustmentKind
from ktrdr_pipelines.domain.bars import UNCONFIRMED, with_basis
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import CorruptFileError, StoreError
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.catalog.catalog import query_catalog, rebuild_catalog, refresh_views
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.maintenance.repair import repair
from tests.store.catalog import rebasing_processes
from tests.support.older_files import make_older

NOW = datetime(2024, 6, 7, 20, tzinfo=UTC)
OPEN = datetime(2024, 6, 3, 13, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)
VALUES = ("open", "high", "low", "close", "volume", "average")
RAW = ["raw_1m", "raw", "raw_series('AAPL', '1m')"]
TODAYS = ["bars_1m", "bars", "series('AAPL', '1m')"]


def rows(layout: StoreLayout, source: str, what: str = "*", where: str = "true") -> pa.Table:
    """Return the minutes of AAPL in a source, oldest first."""
    condition = f"symbol = 'AAPL' AND timeframe = '1m' AND {where}"
    return query_catalog(layout, f"SELECT {what} FROM {source} WHERE {condition} ORDER BY ts")


def shell(layout: StoreLayout) -> Any:
    """Return a connection of DuckDB alone to the catalog."""
    return closing(duckdb.connect(str(layout.catalog), read_only=True))


@pytest.fixture
def rebased(layout: StoreLayout, store: BarStore, make: Any) -> BarStore:
    """Return a store with bars of three bases and of an unconfirmed one in files of two years.

    MSFT has bars and no adjustment.
    """
    series, other = make.series(), make.series(symbol="MSFT")
    for number, ratio in enumerate((None, 1 / 7, 20.0)):
        if ratio is not None:
            known = store.bases.history.of("AAPL")
            store.bases.history.write("AAPL", [*known, make.split(number, ratio)])
        for first in (OPEN, OPEN - timedelta(days=364)):
            make.save(store, series, make.run(series, first + number * HOUR, 3, 101.37))
    new = with_basis(make.run(series, OPEN + 4 * HOUR, 3, 55.0), UNCONFIRMED)
    store.save(series, make.identity(series), new, Coverage())
    make.save(store, other, make.run(other, OPEN, 3, 77.7))
    rebuild_catalog(layout, [series.instrument, other.instrument], NOW)
    return store


def test_bars_are_multiplied_bit_for_bit(rebased: BarStore, make: Any) -> None:
    """As the store reads them: by value times factor, in every view and in the macro."""
    read = rebased.read(make.series())
    factors = [101.37 * (1 / 7 * 20.0), 101.37 * 20.0, 101.37]
    assert set(read["close"].to_pylist()) == set(factors)
    volumes = {101.37 * (1 / (1 / 7) * (1 / 20.0)), 101.37 * (1 / 20.0), 101.37}
    assert set(read["volume"].to_pylist()) == volumes
    for source in TODAYS:
        found = rows(rebased.layout, source)
        assert found.num_rows == 18
        for name in (*VALUES, "ts", "session_date", "bar_count"):
            assert found[name].to_pylist() == read[name].to_pylist(), name
        assert "basis" not in found.column_names
    others = query_catalog(rebased.layout, "SELECT close FROM series('MSFT', '1m')")
    assert others["close"].to_pylist() == [77.7] * 3
    others = query_catalog(rebased.layout, "SELECT close FROM bars_1m WHERE symbol = 'MSFT'")
    assert others["close"].to_pylist() == [77.7] * 3


def test_raw_views_have_all_bars_as_stored_with_their_basis(rebased: BarStore, make: Any) -> None:
    """Those on an unconfirmed basis too."""
    raw = rebased.read_raw(make.series())
    for source in RAW:
        found = rows(rebased.layout, source)
        assert found.num_rows == 21
        for name in raw.column_names:
            assert found[name].to_pylist() == raw[name].to_pylist(), name
    counted = query_catalog(rebased.layout, "SELECT basis, count(*) AS n FROM raw GROUP BY ALL")
    assert dict(zip(*counted.to_pydict().values(), strict=True)) == {-1: 3, 0: 9, 1: 6, 2: 6}


def test_all_ways_agree_on_when_a_bar_closes(rebased: BarStore) -> None:
    """So does a join on it."""
    views = [rows(rebased.layout, one, "ts, closes_at, close") for one in TODAYS]
    assert views[0].equals(views[1])
    assert views[0].equals(views[2])
    raw = rows(rebased.layout, "raw_1m", "ts, closes_at", "basis >= 0")
    assert raw.equals(views[0].select(["ts", "closes_at"]))
    joined = query_catalog(
        rebased.layout,
        "SELECT a.close / b.close AS one FROM series('AAPL', '1m') AS a "
        "ASOF JOIN bars_1m AS b ON b.symbol = a.symbol AND b.closes_at <= a.closes_at",
    )
    assert joined["one"].to_pylist() == [1.0] * 18


@pytest.mark.parametrize("timeframe", list(Timeframe))
def test_every_timeframe_is_on_one_basis(
    layout: StoreLayout, store: BarStore, make: Any, timeframe: Timeframe
) -> None:
    """By glob and by path, and as the store reads it."""
    series = make.series(timeframe)
    first = OPEN if timeframe.is_intraday else datetime(2024, 6, 3, tzinfo=UTC)
    make.save(store, series, make.run(series, first, 2, 8.0))
    store.bases.history.write("AAPL", [make.split(1, 0.25)])
    later = first + 3 * series.timeframe.length
    make.save(store, series, make.run(series, later, 2, 2.0))
    rebuild_catalog(layout, [series.instrument], NOW)
    assert store.read(series)["close"].to_pylist() == [2.0] * 4
    for source in (f"series('AAPL', '{timeframe}')", f"bars_{timeframe}", "bars"):
        found = query_catalog(layout, f"SELECT close, volume FROM {source} ORDER BY ts")
        assert found["close"].to_pylist() == [2.0] * 4
        assert found["volume"].to_pylist() == [32.0] * 2 + [2.0] * 2
    for source in (f"raw_series('AAPL', '{timeframe}')", f"raw_{timeframe}", "raw"):
        found = query_catalog(layout, f"SELECT close FROM {source} ORDER BY ts")
        assert found["close"].to_pylist() == [8.0] * 2 + [2.0] * 2


def test_manual_adjustments_end_at_their_dates(
    layout: StoreLayout, store: BarStore, make: Any
) -> None:
    """Each at its own, over splits; a removed one applies to no bar."""
    days = make.series(Timeframe.D1)
    first = datetime(2024, 6, 3, tzinfo=UTC)
    make.save(store, days, make.run(days, first, 5, 2.0))
    manual = [
        replace(make.split(number, ratio, date(2024, 6, day)), kind=AdjustmentKind.MANUAL)
        for number, ratio, day in ((1, 100.0, 4), (3, 10.0, 6), (4, 1000.0, 7))
    ]
    manual[2] = replace(manual[2], removed_at=NOW)
    store.bases.history.write("AAPL", [manual[0], make.split(2, 0.5), *manual[1:]])
    rebuild_catalog(layout, [days.instrument], NOW)
    expected = [2.0 * (100.0 * 0.5 * 10.0), *[2.0 * (0.5 * 10.0)] * 2, *[2.0 * 0.5] * 2]
    assert store.read(days)["close"].to_pylist() == expected
    for source in ("series('AAPL', '1d')", "bars_1d"):
        found = query_catalog(layout, f"SELECT close FROM {source} ORDER BY ts")
        assert found["close"].to_pylist() == expected
    made = query_catalog(layout, "FROM adjustments ORDER BY number").to_pylist()
    assert [one["kind"] for one in made] == ["manual", "split", "manual", "manual"]
    assert [one["removed_at"] for one in made] == [None, None, None, NOW]


# --- catalogs that are older than the bars ------------------------------------------------------

FILTERED = [
    *(f"SELECT count(*) FROM {one}" for one in TODAYS),
    *(f"SELECT ts FROM {one} WHERE close > 1000" for one in TODAYS),
    *(f"SELECT ts FROM {one} WHERE volume < 10" for one in TODAYS),
    *(f"SELECT max(close) FROM {one} WHERE symbol = 'AAPL'" for one in TODAYS),
    "SELECT a.ts FROM bars_1m AS a JOIN bars_1m AS b ON a.ts = b.ts AND a.close <> b.close",
]


@pytest.mark.parametrize("is_adjusted", [True, False])
@pytest.mark.parametrize("sql", FILTERED)
def test_a_catalog_older_than_a_basis_fails_and_never_mixes(
    layout: StoreLayout, store: BarStore, make: Any, sql: str, *, is_adjusted: bool
) -> None:
    """Whatever the query filters by; a refreshed one serves the bars."""
    series = make.series()
    make.save(store, series, make.run(series, OPEN, 3, 800.0))
    known = [make.split(1, 0.5)] if is_adjusted else []
    if known:
        store.bases.history.write("AAPL", known)
    rebuild_catalog(layout, [series.instrument], NOW)
    store.bases.history.write("AAPL", [*known, make.split(len(known) + 1, 0.25)])
    make.save(store, series, make.run(series, OPEN + HOUR, 3, 200.0))
    with shell(layout) as connection, pytest.raises(duckdb.Error, match="mix the price bases"):
        connection.execute(sql).fetchall()
    query_catalog(layout, sql)
    refresh_views(layout)
    with shell(layout) as connection:
        connection.execute(sql).fetchall()


def test_other_symbols_and_raw_bars_are_served_meanwhile(rebased: BarStore, make: Any) -> None:
    """Only a query that needs the new factor fails."""
    series = make.series()
    known = rebased.bases.history.of("AAPL")
    rebased.bases.history.write("AAPL", [*known, make.split(3, 0.25)])
    make.save(rebased, series, make.run(series, OPEN + 5 * HOUR, 3, 200.0))
    with shell(rebased.layout) as connection:
        for sql, count in (
            ("SELECT close FROM series('MSFT', '1m')", 3),
            ("SELECT close FROM bars_1m WHERE symbol = 'MSFT'", 3),
            ("SELECT close FROM raw_1m WHERE symbol = 'AAPL'", 24),
            ("SELECT close FROM raw_series('AAPL', '1m')", 24),
            ("SELECT close FROM series('AAPL', '1m') WHERE ts < '2024-01-01'", 9),
        ):
            assert len(connection.execute(sql).fetchall()) == count, sql


@pytest.mark.parametrize(
    ("is_damaged", "is_rebuilt"),
    [
        (True, False),
        (False, True),
        pytest.param(True, True, marks=pytest.mark.slow),
        pytest.param(False, False, marks=pytest.mark.slow),
    ],
)
def test_a_symbol_whose_adjustments_are_lost_is_refused_alone(
    rebased: BarStore, make: Any, *, is_damaged: bool, is_rebuilt: bool
) -> None:
    """With the reason; its raw bars and other symbols are served. A repair restores them."""
    layout = rebased.layout
    before = rebased.read(make.series())
    path = layout.adjustments_file("AAPL")
    if is_damaged:
        path.write_bytes(b"{")
    else:
        path.unlink()
    if is_rebuilt:
        rebuild_catalog(layout, [make.instrument()], NOW)
    for sql in FILTERED[:-1]:
        with pytest.raises(StoreError, match=r"AAPL\.json.*ktrdr repair"):
            query_catalog(layout, sql)
    if is_rebuilt:
        with shell(layout) as connection, pytest.raises(duckdb.Error, match=r"AAPL.*ktrdr repair"):
            connection.execute("SELECT close FROM series('AAPL', '1m')").fetchall()
    for sql, count in (
        ("SELECT close FROM series('MSFT', '1m')", 3),
        ("SELECT close FROM bars_1m WHERE symbol = 'MSFT'", 3),
        ("SELECT close FROM raw_series('AAPL', '1m')", 21),
        ("SELECT symbol FROM adjustments", 0),
    ):
        assert query_catalog(layout, sql).num_rows == count, sql
    repair(layout, [make.instrument()], NOW)
    assert rows(layout, "bars")["close"].to_pylist() == before["close"].to_pylist()


# --- files of two versions, and of other programs ----------------------------------------------


@pytest.mark.parametrize("older", [(2023,), (2024,), (2023, 2024)])
def test_files_of_both_versions_are_served_together(
    layout: StoreLayout, store: BarStore, make: Any, older: tuple[int, ...]
) -> None:
    """Those of version 1 are on basis 0, whether or not the ledger knows them."""
    series = make.series()
    for first in (OPEN, OPEN - timedelta(days=364)):
        make.save(store, series, make.run(series, first, 3, 8.0))
    paths = {int(path.stem): path for path in layout.bar_files("AAPL", Timeframe.M1)}
    for year in older:
        make_older(layout, paths[year])
    for is_known in (True, False):
        if not is_known:
            store.ledger.files.remove([layout.relative(path) for path in paths.values()])
        rebuild_catalog(layout, [series.instrument], NOW)
        for source in TODAYS:
            assert rows(layout, source)["close"].to_pylist() == [8.0] * 6
        assert rows(layout, "raw_1m")["basis"].to_pylist() == [0] * 6
        with shell(layout) as connection:
            found = connection.execute("SELECT basis FROM raw_series('AAPL', '1m')").fetchall()
        assert found == [(0,)] * 6
    store.bases.history.write("AAPL", [make.split(1, 0.25)])
    for source in TODAYS:
        assert rows(layout, source)["close"].to_pylist() == [2.0] * 6


def test_a_file_of_version_1_put_back_from_a_backup_is_on_basis_0(
    rebased: BarStore, make: Any
) -> None:
    """Although the ledger has one of version 2 there; the catalog was built for that, too."""
    path = rebased.layout.bar_files("AAPL", Timeframe.M1)[0]
    content, row = path.read_bytes(), rebased.files.one(path, "AAPL", Timeframe.M1)
    make_older(rebased.layout, path)
    older = path.read_bytes()
    path.write_bytes(content)
    rebased.ledger.files.record("AAPL|1m", {rebased.layout.relative(path): row})
    rebased.ledger.files.remove([rebased.layout.relative(path)])
    path.write_bytes(older)
    found = rows(rebased.layout, "raw_1m", "basis", "ts < '2024-01-01'")
    assert found["basis"].to_pylist() == [0] * 9


@pytest.mark.parametrize(("keeps_footer", "has_older"), [(True, False), (False, True)])
def test_a_file_that_lost_its_basis_is_refused_until_it_is_repaired(
    rebased: BarStore, make: Any, *, keeps_footer: bool, has_older: bool
) -> None:
    """A query would take its bars for bars on basis 0."""
    layout, series = rebased.layout, make.series()
    before = rebased.read(series)
    if has_older:
        make_older(layout, layout.bar_files("MSFT", Timeframe.M1)[0])
    path = layout.bar_files("AAPL", Timeframe.M1)[1]
    with pq.ParquetFile(path) as file:
        metadata, table = file.metadata.metadata, file.read().drop_columns(["basis"])
    pq.write_table(table.replace_schema_metadata(metadata if keeps_footer else None), path)
    for _ in range(2):
        for source in (*TODAYS, *RAW):
            with pytest.raises(CorruptFileError, match=r"2024\.parquet.*price basis.*repair"):
                rows(layout, source)
        assert rebased.read(series).equals(before)
        rebased.coverage(series)  # which counts the file again
    assert query_catalog(layout, "FROM series('MSFT', '1m')").num_rows == 3
    report = repair(layout, [series.instrument], NOW)
    assert (report.fixed, report.quarantined) == ((path,), ())
    assert rows(layout, "bars")["close"].to_pylist() == before["close"].to_pylist()
    assert rebased.read_raw(series).num_rows == 21


# --- other processes ---------------------------------------------------------------------------


def started(layout: StoreLayout, mode: str, number: int) -> subprocess.Popen[str]:
    """Start a process that re-bases or queries."""
    command = [sys.executable, "-m", rebasing_processes.__name__, mode, str(layout.root)]
    return subprocess.Popen(
        [*command, str(number)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def readers(
    layout: StoreLayout, store: BarStore, make: Any
) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Start processes that read a symbol in all ways, until it is re-based for the last time."""
    series = rebasing_processes.SERIES
    for first in rebasing_processes.YEARS:
        make.save(store, series, make.run(series, first, rebasing_processes.BARS, 1024.0))
    rebuild_catalog(layout, [series.instrument], NOW)
    processes = {mode: started(layout, mode, 0) for mode in ("query", "read", "shell")}
    yield processes
    for process in processes.values():
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.on_disk
def test_no_answer_mixes_bases_while_another_process_rebases(
    layout: StoreLayout, readers: dict[str, subprocess.Popen[str]]
) -> None:
    """Every answer is on one basis, and never on an older one than the answer before."""
    splits = rebasing_processes.SPLITS
    writer = started(layout, "rebase", splits)
    _, errors = writer.communicate(timeout=300)
    assert writer.returncode == 0, errors
    answers = {}
    for mode, process in readers.items():
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, (mode, errors)
        answers[mode] = [float(one) for one in out.split()]
    assert answers["query"][1] == answers["read"][1] == 1024.0 / 2**splits
    assert min(count for count, _ in answers.values()) > 10
