"""The speed of the macro and of ranges against the glob, as ratios within one run."""

# ruff: noqa: S608  (queries are made of constants here)

import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from ktrdr_pipelines.domain.bars import BAR_SCHEMA, micros
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import (
    Instrument,
    Origin,
    SecType,
    Series,
    WhatToShow,
    identity_of,
)
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.bars.footer import identity_to_json
from ktrdr_pipelines.store.catalog.catalog import connect_catalog, rebuild_catalog
from ktrdr_pipelines.store.catalog.sql import BarFilesSql
from ktrdr_pipelines.store.layout import StoreLayout, create_store
from ktrdr_pipelines.store.ledger.ledger import Ledger
from tests.support.costs import Cost, costs

ROUNDS = 7
SYMBOLS = 40
FIRST, LAST = 2020, 2024
NOW = datetime(2025, 1, 2, tzinfo=UTC)
DAY = "ts >= '2023-03-06 00:00:00Z' AND ts < '2023-03-07 00:00:00Z'"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> StoreLayout:
    """Return a store of many symbols with some years of 5m bars each."""
    layout = create_store(tmp_path_factory.mktemp("speed"))
    universe = [_stock(f"S{number:03d}") for number in range(SYMBOLS)]
    years = [_year(year) for year in range(FIRST, LAST + 1)]
    with closing(Ledger(layout.ledger)) as ledger:
        store = BarStore(layout, ledger)
        for instrument in universe:
            series = Series(instrument, Timeframe.M5)
            identity = identity_of(series, contract_id=1, origin=Origin.IB)
            for bars, coverage in years:
                store.save(series, identity, bars, coverage)
    rebuild_catalog(layout, universe, NOW)
    return layout


def _stock(symbol: str) -> Instrument:
    return Instrument(
        symbol=symbol,
        ib_symbol=symbol,
        sec_type=SecType.STK,
        exchange="SMART",
        currency="USD",
        what_to_show=WhatToShow.TRADES,
        use_rth=True,
        calendar="XNYS.RTH",
        timeframes=(Timeframe.M5,),
        start=date(FIRST, 1, 1),
    )


def _year(year: int) -> tuple[pa.Table, Coverage]:
    calendar = calendar_named("XNYS.RTH")
    first, end = date(year, 1, 1), date(year + 1, 1, 1)
    runs = [
        np.arange(micros(session.opens_at), micros(session.closes_at), 300_000_000)
        for session in calendar.sessions(first, end)
    ]
    keys = np.concatenate(runs)
    noise = np.random.default_rng(year)
    prices = [pa.array(np.round(noise.normal(100, 5, len(keys)), 2)) for _ in range(6)]
    days = pa.array(calendar.days_of(keys), pa.date32())
    counts = pa.array(noise.integers(1, 999, len(keys)), pa.int32())
    interval = pa.array(keys, BAR_SCHEMA.field("ts").type)
    bars = pa.Table.from_arrays([interval, days, *prices, counts], schema=BAR_SCHEMA)
    return bars, Coverage(IntervalSet([interval_between(calendar, Timeframe.M5, first, end)]))


@pytest.mark.slow
def test_a_series_by_path_beats_the_glob(
    filled: StoreLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    """A day of one symbol costs less by path than by glob, and both less than a full scan."""
    where = f"symbol = 'S007' AND timeframe = '5m' AND {DAY}"
    sources = {
        "series": f"series('S007', '5m') WHERE {DAY}",
        "bars_5m": f"bars_5m WHERE {where}",
        "bars": f"bars WHERE {where}",
        "all": "bars",
    }
    with connect_catalog(filled) as catalog:
        found = _costs(
            catalog,
            {name: f"SELECT count(*), max(closes_at) FROM {one}" for name, one in sources.items()},
        )
    with capsys.disabled():
        times = ", ".join(f"{name} {cost.wall_ms:.1f} ms" for name, cost in found.items())
        print(f"\n{times} ({_size(filled):.0f} MB)")  # noqa: T201  (a benchmark reports)
    assert found["series"].over(found["bars"]) < 1
    assert found["bars"].over(found["all"]) < 1


@pytest.mark.slow
def test_closes_at_costs_little(filled: StoreLayout) -> None:
    """closes_at of a whole series costs no more than some passes over its bars."""
    with connect_catalog(filled) as catalog:
        columns = {"plain": "sum(volume)", "ends": "max(closes_at)"}
        found = _costs(
            catalog,
            {name: f"SELECT {one} FROM series('S007', '5m')" for name, one in columns.items()},
        )
    assert found["ends"].over(found["plain"]) < 10


def _costs(catalog: duckdb.DuckDBPyConnection, queries: Mapping[str, str]) -> dict[str, Cost]:
    """Return the cost of each query of a catalog."""
    return costs(
        {
            name: lambda query=query: catalog.execute(query).fetchall()
            for name, query in queries.items()
        },
        ROUNDS,
    )


# --- many files ---------------------------------------------------------------------------------

MANY, YEARS = 300, range(2005, 2025)
MOST_OF_A_GLOB = 0.5
"""A query of one symbol over the same query of a view that lists the files of all symbols."""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> StoreLayout:
    """Return a store of 6,000 files of 5m: those of one symbol, linked for all others."""
    layout = create_store(tmp_path_factory.mktemp("wide"))
    bars, coverage = _year(FIRST)
    first = Series(_stock("S000"), Timeframe.M5)
    with closing(Ledger(layout.ledger)) as ledger:
        store = BarStore(layout, ledger)
        store.save(first, identity_of(first, contract_id=1, origin=Origin.IB), bars, coverage)
        ((path, row),) = store.files.of(first).items()
        for number in range(MANY):
            series = Series(_stock(f"S{number:03d}"), Timeframe.M5)
            identity = identity_of(series, contract_id=1, origin=Origin.IB)
            folder = layout.series_folder(series.symbol, Timeframe.M5)
            folder.mkdir(parents=True, exist_ok=True)
            paths = [folder / f"{year}.parquet" for year in YEARS]
            for one in paths:
                if one != path:
                    one.hardlink_to(path)
            known = replace(row, identity_json=identity_to_json(identity))
            ledger.files.record(
                f"{series.symbol}|5m", {layout.relative(one): known for one in paths}
            )
    return layout


@pytest.mark.slow
def test_a_symbol_costs_less_than_the_files_of_all(
    wide: StoreLayout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through a view over ranges of symbols, and over one glob."""
    universe = [_stock(f"S{number:03d}") for number in range(MANY)]
    rebuild_catalog(wide, universe, NOW)
    sql = "SELECT count(*), max(close) FROM bars_5m WHERE symbol = 'S170'"
    shutil.copy(wide.catalog, tmp_path / "globbed.duckdb")
    plain = BarFilesSql(wide, frozenset({Timeframe.M5}), {}).views["bars_5m"]
    with (
        connect_catalog(wide) as catalog,
        closing(duckdb.connect(str(tmp_path / "globbed.duckdb"))) as other,
    ):
        other.execute(f"CREATE OR REPLACE VIEW bars_5m AS {plain}")
        assert other.execute(sql).fetchall() == catalog.execute(sql).fetchall()
        found = costs(
            {
                "ranged": lambda: catalog.execute(sql).fetchall(),
                "globbed": lambda: other.execute(sql).fetchall(),
            },
            ROUNDS,
        )
    ranged_ms, globbed_ms = found["ranged"].cpu_ms, found["globbed"].cpu_ms
    with capsys.disabled():
        print(f"\nof {globbed_ms:.1f} ms of a glob: {ranged_ms / globbed_ms:.2f}")  # noqa: T201
    assert ranged_ms < MOST_OF_A_GLOB * globbed_ms


def _size(layout: StoreLayout) -> float:
    files: list[Path] = list(layout.bars.rglob("*.parquet"))
    return sum(path.stat().st_size for path in files) / 1e6
