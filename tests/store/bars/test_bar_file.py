"""How the bars of a file are encoded: small, readable by any program, and never half rewritten."""

from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ktrdr_pipelines.domain.bars import BAR_SCHEMA, STORED_SCHEMA, rows_per_session, with_basis
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Identity, Origin, WhatToShow
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.universe import parse_universe
from ktrdr_pipelines.store.bars.bar_file import has_true_digest, read_bars, write_file
from ktrdr_pipelines.store.bars.footer import Footer
from tests.support.readable import random_bars

MOST_BYTES = 13.8
"""Bytes of a stored bar of a year of minutes, checksums, digests and footer included."""

AAPL = Identity("AAPL", Timeframe.M1, WhatToShow.TRADES, True, 1, Origin.IB)


@pytest.fixture(scope="module")
def year() -> pa.Table:
    """Return a year of minutes of a stock."""
    calendar = parse_universe("symbols: {AAPL: {}}", "universe.yaml").instrument("AAPL").calendar
    start, end = date(2023, 1, 2), date(2024, 1, 1)
    return with_basis(random_bars(calendar_named(calendar), Timeframe.M1, start, end), 0)


def write(path: Path, bars: pa.Table) -> None:
    """Write bars to a file."""
    write_file(path, bars, Footer(AAPL, Coverage(), bars.num_rows, rows_per_session(bars)))


def test_a_year_of_minutes_takes_little_room(year: pa.Table, tmp_path: Path) -> None:
    """Each column in the encoding that was measured to be fast and small for its values."""
    path = tmp_path / "2023.parquet"
    write(path, year)
    assert path.stat().st_size / year.num_rows <= MOST_BYTES
    assert has_true_digest(path)
    assert read_bars(path).equals(year)
    group = pq.read_metadata(path).row_group(0)
    found = {
        one.path_in_schema: (one.compression, *(set(one.encodings) - {"RLE"}))
        for one in (group.column(at) for at in range(group.num_columns))
    }
    assert found["ts"] == ("LZ4", "DELTA_BINARY_PACKED")
    assert found["volume"] == ("LZ4", "BYTE_STREAM_SPLIT")
    assert found["average"] == ("ZSTD", "PLAIN")
    assert "RLE_DICTIONARY" in group.column(5).encodings


@pytest.mark.parametrize("nulls", ["none", "some", "all"])
def test_any_program_reads_the_same_values(year: pa.Table, tmp_path: Path, nulls: str) -> None:
    """Columns without nulls are not nullable in a file, and are in what is read of it."""
    bars = year.slice(0, 1000)
    if nulls != "none":
        is_null = pa.array(np.arange(1000) % 3 == 0 if nulls == "some" else np.ones(1000, bool))
        for name in ("volume", "average", "bar_count"):
            at = STORED_SCHEMA.get_field_index(name)
            field = STORED_SCHEMA.field(name)
            empty = pa.nulls(1000, field.type)
            column = pa.compute.if_else(is_null, empty, bars[name])
            bars = bars.set_column(at, field, column)
    path = tmp_path / "2023.parquet"
    write(path, bars)
    found = read_bars(path)
    assert found.schema.equals(STORED_SCHEMA)
    assert found.equals(bars)
    with pq.ParquetFile(path) as file:
        assert file.schema_arrow.field("volume").nullable == (nulls != "none")
        assert not file.schema_arrow.field("close").nullable
    assert pl.read_parquet(path).equals(pl.DataFrame(pl.from_arrow(bars)))
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        rows = connection.execute("FROM read_parquet(?)", [str(path)]).fetchall()
    assert rows == list(zip(*(column.to_pylist() for column in bars.columns), strict=True))


def test_values_that_do_not_repeat_are_kept_too(tmp_path: Path) -> None:
    """Prices of many decimals outgrow a dictionary, and the columns of no bars are written."""
    rows = 140_000
    noise = np.random.default_rng(1)
    start = int(datetime(2023, 1, 2, tzinfo=UTC).timestamp()) * 1_000_000
    keys = pa.array(start + np.arange(rows) * 60_000_000, BAR_SCHEMA.field("ts").type)
    prices = [pa.array(noise.uniform(1, 2, rows)) for _ in range(6)]
    counts = pa.array(noise.integers(0, 2**31, rows), pa.int32())
    table = pa.Table.from_arrays([keys, keys.cast(pa.date32()), *prices, counts], schema=BAR_SCHEMA)
    path = tmp_path / "2023.parquet"
    for bars in (with_basis(table, 0), STORED_SCHEMA.empty_table()):
        write(path, bars)
        assert read_bars(path).equals(bars)
        assert has_true_digest(path)


def _rewritten(path: Path, bars: pa.Table) -> pq.FileMetaData:
    """Write bars over a file, and return the footer that it had before."""
    earlier = pq.read_metadata(path)
    write(path, bars)
    return earlier


def _readable(path: Path, footer: pq.FileMetaData) -> list[str]:
    """Return the columns that a reader with a footer reads in a file without an error."""
    found = []
    for column in STORED_SCHEMA.names:
        with pq.ParquetFile(path, metadata=footer) as file, suppress(pa.ArrowException, OSError):
            file.read([column])
            found.append(column)
    return found


@pytest.mark.parametrize("added", [1, 0, -1], ids=["longer", "restated", "shorter"])
def test_an_earlier_footer_reads_no_page(year: pa.Table, tmp_path: Path, added: int) -> None:
    """However often a file is rewritten with bars that take the same bytes, or almost."""
    path = tmp_path / "2023.parquet"
    begins = 300
    write(path, year.slice(0, begins))
    assert _readable(path, pq.read_metadata(path)) == STORED_SCHEMA.names
    for turn in range(1, 100):
        bars = year.slice(0, begins + turn * added)
        place = bars.schema.get_field_index("close")
        bars = bars.set_column(place, "close", pa.array(np.full(bars.num_rows, float(turn))))
        assert _readable(path, _rewritten(path, bars)) == []
        assert read_bars(path).equals(bars)


def test_the_bytes_before_the_first_page_are_few(year: pa.Table, tmp_path: Path) -> None:
    """They are in the digest of the file, and no program minds them."""
    path = tmp_path / "2023.parquet"
    write(path, year.slice(0, 300))
    least = path.stat().st_size
    for _ in range(70):
        write(path, year.slice(0, 300))
        assert least <= path.stat().st_size <= least + 64
        assert has_true_digest(path)
    with duckdb.connect() as connection:
        rows = connection.read_parquet(path.as_posix()).aggregate("count(*), sum(close)").fetchall()
    assert rows == [(300, pytest.approx(sum(year["close"].to_pylist()[:300])))]
    assert pl.read_parquet(path)["ts"].to_list() == year["ts"].to_pylist()[:300]
