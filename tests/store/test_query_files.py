"""Queries answer with the bars that the store stands for: all of them, and no others."""

# ruff: noqa: S608  (queries are made of the names that are tested)

import shutil
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from ktrdr_pipelines.core.instruments import Series
from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.errors import CorruptFileError, StoreError
from ktrdr_pipelines.store.catalog import query_catalog, rebuild_catalog
from ktrdr_pipelines.store.integrity import check_files
from ktrdr_pipelines.store.layout import StoreLayout, create_store
from ktrdr_pipelines.store.ledger import Ledger
from ktrdr_pipelines.store.parquet import BarStore
from ktrdr_pipelines.store.repair import repair

NOW = datetime(2024, 6, 3, 20, tzinfo=UTC)
OPEN = datetime(2024, 6, 3, 13, 30, tzinfo=UTC)
SOURCES = ("bars", "bars_1m", "series('AAPL', '1m')")


def count(layout: StoreLayout, source: str, where: str = "true") -> int:
    """Count the bars that a query sees."""
    found = query_catalog(layout, f"SELECT count(*) AS bars FROM {source} WHERE {where}")
    return int(found["bars"][0].as_py())


def saved(store: BarStore, make: Any, symbol: str = "AAPL", bars: int = 10) -> Series:
    """Save minutes of 2024 and of 2023."""
    series: Series = make.series(symbol=symbol)
    for first in (OPEN, OPEN - timedelta(days=364)):
        make.save(store, series, make.run(series, first, bars))
    return series


def path_of(layout: StoreLayout, symbol: str = "AAPL", year: int = 2024) -> Path:
    """Give the file of a year."""
    return layout.series_folder(symbol, Timeframe.M1) / f"{year}.parquet"


@pytest.fixture
def queried(layout: StoreLayout, store: BarStore, make: Any) -> StoreLayout:
    """Make a store of two symbols with a catalog that knows all of it."""
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


@pytest.mark.parametrize("is_rebuilt", [False, True])
@pytest.mark.parametrize("put", FOREIGN)
def test_files_that_a_load_refuses_are_refused(
    queried: StoreLayout, make: Any, put: Any, *, is_rebuilt: bool
) -> None:
    """Each way of reading them fails and names the file; other symbols are answered."""
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
def test_a_shell_refuses_what_the_catalog_knows(queried: StoreLayout, make: Any, put: Any) -> None:
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
    """From the check on that found it, until it is another."""
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


def test_what_the_catalog_does_not_know_is_answered(
    queried: StoreLayout, store: BarStore, make: Any
) -> None:
    """A year, a symbol and a timeframe that were saved after it was built."""
    series: Series = make.series()
    make.save(store, series, make.run(series, datetime(2022, 6, 3, 13, 30, tzinfo=UTC), 5))
    saved(store, make, "NEW")
    hours = make.series(Timeframe.H1, "NEW")
    make.save(store, hours, make.run(hours, OPEN, 3))
    assert count(queried, "bars_1m") == 40 + 5 + 20
    assert count(queried, "bars_1h") == 3
    assert count(queried, "bars") == 40 + 5 + 20 + 3
    assert count(queried, "series('NEW', '1h')") == 3


def test_the_first_bars_of_a_store_are_answered(
    layout: StoreLayout, store: BarStore, make: Any
) -> None:
    """While the catalog still is that of an empty store."""
    rebuild_catalog(layout, [], NOW)
    saved(store, make)
    for source in SOURCES:
        assert count(layout, source) == 20


def test_a_file_that_a_killed_writer_left_is_answered(
    queried: StoreLayout, store: BarStore, make: Any
) -> None:
    """It stands in its place and the ledger does not know it yet: it is judged, then read."""
    store.ledger.forget_mirror([queried.relative(path_of(queried))])
    assert count(queried, "bars") == 40
    queried.ledger.unlink()
    assert count(queried, "bars") == 40


PARTS = [
    "symbol=OLD/timeframe=1d",
    "symbol=OLD/timeframe=1m/x",
    "ts=7",
    "close=1/open=2/session_date=x",
    "filename=1",
    "what?",
    "a*b",
    "[ab]",
    "[!a]",
    "{a,b}",
    "it's",
    'say "so"',
    "per%20cent",
    "a#b",
    "a b",
    "käse",
    "数据",
    "$HOME",
    "~",
    "a;b",
    "--x",
    "s3:x",
    "file:x",
    "a=b=c",
    "..x",
    "year=2024/all.parquet",
]


def test_a_folder_with_a_backslash_is_refused(tmp_path: Path) -> None:
    """DuckDB cannot open what is in it, and the error says so."""
    layout = create_store(tmp_path / "a\\b")
    with pytest.raises(StoreError, match="backslash"):
        rebuild_catalog(layout, [], NOW)
    with pytest.raises(StoreError, match="backslash"):
        query_catalog(layout, "FROM bars")


@pytest.mark.parametrize("part", PARTS)
def test_a_store_may_lie_in_any_folder(tmp_path: Path, make: Any, part: str) -> None:
    """Whatever the folders above it are named, its bars are named by its own."""
    layout = create_store(tmp_path / part / "data")
    with closing(Ledger(layout.ledger)) as ledger:
        store = BarStore(layout, ledger)
        universe = [saved(store, make, symbol).instrument for symbol in ("AAPL", "NULL")]
    rebuild_catalog(layout, universe, NOW)
    for source in ("bars", "bars_1m"):
        found = query_catalog(
            layout, f"SELECT symbol, timeframe, count(*) AS n FROM {source} GROUP BY ALL ORDER BY 1"
        ).to_pylist()
        assert [tuple(one.values()) for one in found] == [("AAPL", "1m", 20), ("NULL", "1m", 20)]
        assert count(layout, source, "symbol = 'NULL'") == 20
        assert count(layout, source, "ts >= '2024-01-01'") == 20
    assert count(layout, "series('NULL', '1m')") == 20
    copied_beside(layout)
    with pytest.raises(CorruptFileError, match=r"x\.parquet"):
        count(layout, "bars")
    assert repair(layout, universe, NOW).quarantined
    assert count(layout, "bars") == 40
