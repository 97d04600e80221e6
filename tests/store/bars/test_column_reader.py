"""Columns of bars by path: row groups are skipped, and files that are not as recorded checked."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import date
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ktrdr_pipelines.domain.bars import BAR_SCHEMA, timestamps
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import CorruptFileError, StoreError
from ktrdr_pipelines.store.bars import bar_file
from ktrdr_pipelines.store.bars.bar_file import BarBounds, opened
from ktrdr_pipelines.store.bars.column_reader import BarSelection, ColumnReader
from tests.support.readable import ReadableStore
from tests.support.rewriting import by_arrow, by_pandas, where

ALL = tuple(BAR_SCHEMA.names)


@pytest.fixture
def readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReadableStore]:
    """Yield a store whose files have many small row groups."""
    monkeypatch.setattr(bar_file, "ROW_GROUP_ROWS", 100)
    with closing(ReadableStore(tmp_path / "data")) as store:
        yield store


def _reader(readable: ReadableStore) -> ColumnReader:
    store = readable.bar_store
    return ColumnReader(store.layout, store.ledger, store.files, store.bases)


def test_bars_within_bounds_are_those_of_all_row_groups(readable: ReadableStore) -> None:
    """Bounds between, at and beyond the bounds of row groups; those without bars are skipped."""
    bars = readable.fill("AAPL", "1m", "2024-01-02", "2024-01-06")
    keys, reader = timestamps(bars), _reader(readable)
    path = readable.root / "bars/symbol=AAPL/timeframe=1m/2024.parquet"
    assert pq.ParquetFile(path).num_row_groups == 16
    marks = [0, 1, 99, 100, 101, 777, 1559]
    bounds = [BarBounds(int(keys[a]), int(keys[b])) for a in marks for b in marks if a < b]
    bounds += [BarBounds(first=date(2024, 1, 3)), BarBounds(until=date(2024, 1, 4))]
    bounds += [BarBounds(start=int(keys[-1]) + 1), BarBounds(end=int(keys[0]))]
    with opened(path) as file:
        for one in bounds:
            (found,) = reader.read(["AAPL"], Timeframe.M1, BarSelection(ALL, one))
            low, high = one.select(bars)
            assert found.equals(bars.slice(low, high - low))
            groups = [file.file.metadata.row_group(at) for at in range(16)]
            needed = sum(map(one.may_include, groups))
            assert (high - low) / 100 <= needed <= (high - low) / 100 + 2


def test_a_file_that_another_program_shortened_is_read_as_it_is(readable: ReadableStore) -> None:
    """With its footer and without, where the ledger knows what it held."""
    readable.fill("AAPL", "1d", "2024-01-02", "2024-01-12")
    reader, path = _reader(readable), readable.root / "bars/symbol=AAPL/timeframe=1d/all.parquet"
    for rewrite in (by_arrow, by_pandas):
        rewrite(path, where("ts < TIMESTAMPTZ '2024-01-06 00:00:00+00'"))
        (found,) = reader.read(["AAPL"], Timeframe.D1, BarSelection(("ts", "close")))
        assert found.num_rows == 4


def test_a_file_of_another_instrument_is_refused(readable: ReadableStore) -> None:
    """Also beside files of the series, and where the symbol is the same."""
    readable.fill("AAPL", "5m", "2023-12-27", "2024-01-05")
    folder = readable.root / "bars/symbol=AAPL/timeframe=5m"
    row = readable.bar_store.files.one(folder / "2024.parquet", "AAPL", Timeframe.M5)
    footer, bars = bar_file.read_file(folder / "2024.parquet")
    other = replace(footer, identity=replace(row.identity, contract_id=9))
    bar_file.write_file(folder / "2024.parquet", bars, other)
    with pytest.raises(CorruptFileError, match="contract id 9"):
        _reader(readable).read(
            ["AAPL"], Timeframe.M5, BarSelection(ALL, BarBounds(first=date(2024, 1, 1)))
        )


def test_each_symbol_is_on_its_own_basis(readable: ReadableStore) -> None:
    """Several symbols by one query; lost adjustments of one are an error that names it."""
    for symbol in ("AAPL", "MSFT"):
        readable.fill(symbol, "1d", "2024-01-02", "2024-01-05")
    readable.split("MSFT", 0.5, "2024-01-05")
    wanted = BarSelection(("ts", "close", "volume"))
    tables = _reader(readable).read(["AAPL", "MSFT"], Timeframe.D1, wanted)
    for symbol, table in zip(("AAPL", "MSFT"), tables, strict=True):
        expected = readable.bar_store.read(readable.series(symbol, "1d"))
        assert table.equals(expected.select(["ts", "close", "volume"]))
    (readable.root / "history/adjustments/MSFT.json").unlink()
    with pytest.raises(StoreError, match="bars of MSFT on one price basis"):
        _reader(readable).read(["AAPL", "MSFT"], Timeframe.D1, wanted)


def test_a_symbol_that_moves_away_is_listed_anew(readable: ReadableStore) -> None:
    """Files that vanish between listing and opening leave no error, and no bar of them."""
    readable.fill("AAPL", "1d", "2024-01-02", "2024-01-05")
    reader = _reader(readable)
    versions = readable.bar_store.ledger.files.recorded_versions(["AAPL|1d"])
    assert len(versions) == 1
    (readable.root / "bars/symbol=AAPL").rename(readable.root / "elsewhere")
    (found,) = reader.read(["AAPL"], Timeframe.D1, BarSelection(("ts", "close")))
    assert found.num_rows == 0
