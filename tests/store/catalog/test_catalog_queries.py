"""Queries return the bars that belong to the store: all of them, and no others."""

# ruff: noqa: S608  (queries are made of the names that are tested)

import shutil
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import CorruptFileError, StoreError
from ktrdr_pipelines.store.bars.bar_file import read_file, write_file
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.catalog.catalog import query_catalog, rebuild_catalog
from ktrdr_pipelines.store.layout import StoreLayout, create_store
from ktrdr_pipelines.store.ledger.ledger import Ledger
from ktrdr_pipelines.store.maintenance.file_checks import check_files
from ktrdr_pipelines.store.maintenance.repair import repair

NOW = datetime(2024, 6, 3, 20, tzinfo=UTC)
OPEN = datetime(2024, 6, 3, 13, 30, tzinfo=UTC)
SOURCES = ("bars", "bars_1m", "series('AAPL', '1m')")


def count(layout: StoreLayout, source: str, where: str = "true") -> int:
    """Return the number of bars that a query sees."""
    found = query_catalog(layout, f"SELECT count(*) AS bars FROM {source} WHERE {where}")
    return int(found["bars"][0].as_py())


def saved(store: BarStore, make: Any, symbol: str = "AAPL", bars: int = 10) -> Series:
    """Save minutes of 2024 and of 2023."""
    series: Series = make.series(symbol=symbol)
    for first in (OPEN, OPEN - timedelta(days=364)):
        make.save(store, series, make.run(series, first, bars))
    return series


def path_of(layout: StoreLayout, symbol: str = "AAPL", year: int = 2024) -> Path:
    """Return the file of a year."""
    return layout.series_folder(symbol, Timeframe.M1) / f"{year}.parquet"


@pytest.fixture
def queried(layout: StoreLayout, store: BarStore, make: Any) -> StoreLayout:
    """Return a store of two symbols with a current catalog."""
    universe = [saved(store, make, symbol).instrument for symbol in ("AAPL", "MSFT")]
    rebuild_catalog(layout, universe, NOW)
    return layout


def copied_series(layout: StoreLayout) -> Path:
    """Put a copy of another series' file in the place of a year that has none."""
    target = path_of(layout, year=2022)
    shutil.copy(path_of(layout, "MSFT"), target)
    return target


def copied_over(layout: StoreLayout) -> Path:
    """Put a copy of another series' file over one."""
    shutil.copy(path_of(layout, "MSFT"), path_of(layout))
    return path_of(layout)


def copied_beside(layout: StoreLayout) -> Path:
    """Put a copy of a file beside it."""
    target = path_of(layout).with_stem("x")
    shutil.copy(path_of(layout), target)
    return target


def copied_year(layout: StoreLayout) -> Path:
    """Put a copy of a file under the name of another year."""
    target = path_of(layout, year=2021)
    shutil.copy(path_of(layout), target)
    return target


def copied_timeframe(layout: StoreLayout) -> Path:
    """Put a copy of a file into the folder of another timeframe."""
    target = layout.series_folder("AAPL", Timeframe.M5) / "2024.parquet"
    target.parent.mkdir()
    shutil.copy(path_of(layout), target)
    return target


def no_parquet(layout: StoreLayout) -> Path:
    """Put something else over a file."""
    path_of(layout).write_bytes(b"no Parquet")
    return path_of(layout)


FOREIGN = [copied_series, copied_over, copied_beside, copied_year, copied_timeframe, no_parquet]


@pytest.mark.parametrize(
    ("put", "is_rebuilt"),
    [*((put, False) for put in FOREIGN), (copied_beside, True), (no_parquet, True)],
)
def test_files_that_a_load_refuses_are_refused(
    queried: StoreLayout, make: Any, put: Any, *, is_rebuilt: bool
) -> None:
    """Each way of reading them fails and names the file; other symbols can be queried."""
    path = put(queried)
    if is_rebuilt:
        rebuild_catalog(queried, [make.instrument()], NOW)
    sources = ("bars", "bars_5m", "series('AAPL', '5m')") if "5m" in str(path) else SOURCES
    for source in sources:
        with pytest.raises(CorruptFileError, match=rf"{path.name}.*ktrdr repair"):
            count(queried, source)
    for source in ("bars", "bars_1m") if put is not no_parquet else ():
        assert count(queried, source, "symbol = 'MSFT'") == 20
    assert count(queried, "series('MSFT', '1m')") == 20
    assert count(queried, "instruments") > 0
    repair(queried, [make.instrument()], NOW)
    assert count(queried, "bars") in {30, 40}


@pytest.mark.parametrize("put", FOREIGN[:-1])
def test_a_shell_refuses_files_that_the_catalog_refuses(
    queried: StoreLayout, make: Any, put: Any
) -> None:
    """The views of the catalog file fail by themselves, and for the file alone."""
    path = put(queried)
    rebuild_catalog(queried, [make.instrument()], NOW)
    with closing(duckdb.connect(str(queried.catalog), read_only=True)) as shell:
        with pytest.raises(duckdb.Error, match=path.name):
            shell.execute("SELECT * FROM bars").fetchall()
        found = shell.execute("SELECT count(*) FROM bars_1m WHERE symbol = 'MSFT'").fetchone()
        assert found == (20,)


def test_a_file_known_to_be_damaged_is_refused(
    queried: StoreLayout, store: BarStore, make: Any
) -> None:
    """From the check that found the damage until the file changes."""
    path = path_of(queried)
    content = path.read_bytes()
    data = bytearray(content)
    data[200] ^= 4
    path.write_bytes(data)
    found = check_files(store, "AAPL", Timeframe.M1, [path], calendar=None, at=NOW)
    assert [bool(one.damage) for _, one in found] == [True]
    with pytest.raises(CorruptFileError, match=r"2024\.parquet"):
        count(queried, "bars")
    assert count(queried, "bars", "symbol = 'MSFT'") == 20
    path.write_bytes(content)
    assert count(queried, "bars") == 40


def test_bars_saved_after_the_catalog_are_queried(
    queried: StoreLayout, store: BarStore, make: Any
) -> None:
    """A new year, a new symbol and a new timeframe."""
    series: Series = make.series()
    make.save(store, series, make.run(series, datetime(2022, 6, 3, 13, 30, tzinfo=UTC), 5))
    saved(store, make, "NEW")
    hours = make.series(Timeframe.H1, "NEW")
    make.save(store, hours, make.run(hours, OPEN, 3))
    assert count(queried, "bars_1m") == 40 + 5 + 20
    assert count(queried, "bars_1h") == 3
    assert count(queried, "bars") == 40 + 5 + 20 + 3
    assert count(queried, "series('NEW', '1h')") == 3


def test_the_first_bars_of_a_store_are_queried(
    layout: StoreLayout, store: BarStore, make: Any
) -> None:
    """While the catalog still is that of an empty store."""
    rebuild_catalog(layout, [], NOW)
    saved(store, make)
    for source in SOURCES:
        assert count(layout, source) == 20


def test_a_file_that_the_ledger_does_not_have_is_queried(
    queried: StoreLayout, store: BarStore, make: Any
) -> None:
    """A killed writer leaves one: it is checked, then read."""
    store.ledger.files.remove([queried.relative(path_of(queried))])
    assert count(queried, "bars") == 40
    queried.ledger.unlink()
    assert count(queried, "bars") == 40


FOLDERS = [
    "symbol=OLD/timeframe=1d",
    "symbol=OLD/timeframe=1m/x",
    "ts=7/close=1/session_date=x/filename=1",
    "a=b=c/year=2024/all.parquet",
    "what?/a*b/[ab]/[!a]/{a,b}",
    'it\'s/say "so"/a;b/--x/..x',
    "per%20cent/a#b/a b/$HOME/~",
    "käse/数据/s3:x/file:x",
]


def test_a_folder_with_a_backslash_is_refused(tmp_path: Path) -> None:
    """DuckDB cannot open files in it."""
    layout = create_store(tmp_path / "a\\b")
    with pytest.raises(StoreError, match="backslash"):
        rebuild_catalog(layout, [], NOW)
    with pytest.raises(StoreError, match="backslash"):
        query_catalog(layout, "FROM bars")


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_store_may_lie_in_any_folder(tmp_path: Path, make: Any, folder: str) -> None:
    """The names of folders above it do not matter."""
    layout = create_store(tmp_path / folder / "data")
    with closing(Ledger(layout.ledger)) as ledger:
        store = BarStore(layout, ledger)
        universe = [saved(store, make, symbol).instrument for symbol in ("AAPL", "NULL")]
    rebuild_catalog(layout, universe, NOW)
    found = query_catalog(
        layout, "SELECT symbol, timeframe, count(*) AS n FROM bars GROUP BY ALL ORDER BY 1"
    ).to_pylist()
    assert [tuple(one.values()) for one in found] == [("AAPL", "1m", 20), ("NULL", "1m", 20)]
    assert count(layout, "bars", "symbol = 'NULL' AND ts >= '2024-01-01'") == 10
    assert count(layout, "series('NULL', '1m')") == 20
    copied_beside(layout)
    with pytest.raises(CorruptFileError, match=r"x\.parquet"):
        count(layout, "bars")
    assert repair(layout, universe, NOW).quarantined
    assert count(layout, "bars") == 40


# --- names, links and leftovers ----------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["ktrdr.", "ktrdr.main.", "main."])
def test_qualified_names_read_the_present_files(
    queried: StoreLayout, store: BarStore, make: Any, prefix: str
) -> None:
    """They do not read what an older catalog lists."""
    hours = make.series(Timeframe.H1)
    make.save(store, hours, make.run(hours, OPEN, 3))
    assert count(queried, f"{prefix}bars_1h") == 3
    assert count(queried, f"{prefix}bars") == 43
    assert count(queried, f"{prefix}series('AAPL', '1h')") == 3
    copied_over(queried)
    for source in (f"{prefix}bars_1m", f"{prefix}series('AAPL', '1m')", f"{prefix}bars"):
        with pytest.raises(CorruptFileError, match=r"2024\.parquet"):
            count(queried, source)


@pytest.mark.parametrize("level", ["symbol", "timeframe", "bars"])
def test_linked_folders_are_read(queried: StoreLayout, tmp_path: Path, level: str) -> None:
    """As loads and verify read them."""
    series = queried.series_folder("MSFT", Timeframe.M1)
    folder = {"timeframe": series, "symbol": series.parent, "bars": series.parents[1]}[level]
    shutil.move(folder, tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    for source in ("bars_1m", "bars"):
        assert count(queried, source) == 40
        assert count(queried, source, "symbol = 'MSFT'") == 20
    assert count(queried, "series('MSFT', '1m')") == 20


@pytest.mark.parametrize("name", ["AAPL copy", "", "Ä", "A\nB"])
def test_folders_whose_names_are_no_symbols_are_refused(
    queried: StoreLayout, make: Any, name: str
) -> None:
    """A copied folder is not another symbol; repair quarantines its files."""
    shutil.copytree(queried.symbol_folder("AAPL"), queried.symbol_folder(name))
    with pytest.raises(CorruptFileError, match="ktrdr repair"):
        count(queried, "bars")
    assert count(queried, "bars", "symbol = 'MSFT'") == 20
    repair(queried, [make.instrument()], NOW)
    assert count(queried, "bars") == 40


def test_a_file_that_duckdb_cannot_open_stops_its_timeframe_alone(
    queried: StoreLayout, store: BarStore, make: Any
) -> None:
    """Tables, other timeframes and other series by path can be queried."""
    hours = make.series(Timeframe.H1)
    make.save(store, hours, make.run(hours, OPEN, 3))
    path_of(queried, year=2023).write_bytes(b"no Parquet")  # the first of the timeframe
    assert query_catalog(queried, "SELECT 1 AS one").to_pylist() == [{"one": 1}]
    assert count(queried, "requests") == 0
    assert count(queried, "bars_1h") == 3
    assert count(queried, "series('MSFT', '1m')") == 20
    for where in ("true", "symbol = 'MSFT'", "ts > '2024-01-01'"):
        with pytest.raises(CorruptFileError, match=r"2023\.parquet"):
            count(queried, "bars_1m", where)
    rebuild_catalog(queried, [make.instrument()], NOW)
    with pytest.raises(CorruptFileError, match=r"2023\.parquet"):
        count(queried, "bars_1m", "symbol = 'MSFT'")


@pytest.mark.parametrize("name", ["Close", "filename", "TS"])
def test_a_column_that_hides_another_is_refused(queried: StoreLayout, name: str) -> None:
    """DuckDB would read it in place of the column of bars."""
    path = path_of(queried)
    table = pq.read_table(path, partitioning=None)
    pq.write_table(table.add_column(0, name, pa.array([1.0] * table.num_rows)), path)
    with pytest.raises(CorruptFileError, match=r"2024\.parquet"):
        count(queried, "bars_1m")


@pytest.mark.parametrize(
    "change",
    [{"contract_id": 7}, {"use_rth": False}],
    ids=lambda one: next(iter(one)),
)
def test_a_file_of_another_instrument_is_refused(
    queried: StoreLayout, store: BarStore, make: Any, change: dict[str, Any]
) -> None:
    """Although its digests match: the ledger has its earlier identity."""
    path = path_of(queried)
    footer, bars = read_file(path)
    write_file(path, bars, replace(footer, identity=replace(footer.identity, **change)))
    with pytest.raises(CorruptFileError, match=r"2024\.parquet"):
        count(queried, "bars")
    found = check_files(store, "AAPL", Timeframe.M1, [path], calendar=None, at=NOW)
    assert ["before" in one.wrong for _, one in found] == [True]
    with pytest.raises(CorruptFileError, match=r"2024\.parquet"):
        count(queried, "bars")
    assert count(queried, "bars", "symbol = 'MSFT'") == 20


@pytest.mark.parametrize("bars", [3, 50])
def test_a_year_of_another_contract_is_refused_and_named(
    queried: StoreLayout, store: BarStore, make: Any, bars: int
) -> None:
    """The pinned contract prevails, however many bars the other has."""
    series: Series = make.series()
    right = make.identity(series)
    store.ledger.contracts.pin("AAPL", right.origin, right.contract_id, "AAPL", NOW)
    wide = make.run(series, datetime(2022, 6, 3, 13, 30, tzinfo=UTC), bars)
    make.save(store, series, wide)
    path = path_of(queried, year=2022)
    said, held = read_file(path)
    write_file(path, held, replace(said, identity=replace(said.identity, contract_id=7)))
    store.ledger.files.remove([queried.relative(path)])
    for _ in range(2):
        with pytest.raises(CorruptFileError, match=r"2022\.parquet.*contract id 7,"):
            count(queried, "bars")
        with pytest.raises(CorruptFileError, match=r"2022\.parquet.*contract id 7,"):
            store.coverage(series)  # as status, verify and loads do
    assert count(queried, "bars", "symbol = 'MSFT'") == 20
    [moved] = repair(queried, [series.instrument], NOW).quarantined
    assert moved.was == path
    assert count(queried, "bars") == 40


@pytest.mark.parametrize("symbol", ["AAPL", "MSFT"])
def test_columns_are_found_in_any_order_and_beside_others(
    layout: StoreLayout, store: BarStore, make: Any, symbol: str
) -> None:
    """Another program may have written a file anew: each view takes its columns by name."""
    universe = [saved(store, make, one).instrument for one in ("AAPL", "MSFT")]
    file = pq.read_table(path_of(layout, symbol))
    others = ["low", "high", "close", "open", "volume", "ts"]
    order = [*others, *(one for one in file.column_names if one not in others)]
    for year in (2023, 2024):
        path = path_of(layout, symbol, year)
        pq.write_table(pq.read_table(path).select(order), path)
    rebuild_catalog(layout, universe, NOW)
    columns = "ts, open, high, low, close, volume, session_date"
    expected = file.select(columns.split(", "))
    for source in ("bars", "raw", "bars_1m", "raw_1m", f"series('{symbol}', '1m')"):
        where = f"symbol = '{symbol}' AND year(ts) = 2024 ORDER BY ts"
        found = query_catalog(layout, f"SELECT {columns} FROM {source} WHERE {where}")
        assert found.to_pylist() == expected.to_pylist(), source
