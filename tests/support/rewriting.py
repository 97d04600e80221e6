"""Bar files rewritten by other programs."""

from collections.abc import Callable
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

Change = Callable[[pa.Table], pa.Table]
Rewrite = Callable[[Path, Change], None]


def unchanged(bars: pa.Table) -> pa.Table:
    """Return bars as they are."""
    return bars


def where(condition: str) -> Change:
    """Return the change that keeps the bars that meet an SQL condition."""

    def change(bars: pa.Table) -> pa.Table:
        kept = duckdb.sql(f"SELECT ts FROM bars WHERE {condition}").to_arrow_table()["ts"]  # noqa: S608
        return bars.filter(pc.is_in(bars["ts"], kept.combine_chunks().cast(bars["ts"].type)))

    return change


def by_arrow(path: Path, change: Change = unchanged) -> None:
    """Rewrite a file as pyarrow does: the footer stays."""
    pq.write_table(change(pq.read_table(path, partitioning=None)), path)


def by_pandas(path: Path, change: Change = unchanged) -> None:
    """Rewrite a file as pandas does: the footer is lost, and the schema has another one."""
    frame: pd.DataFrame = change(pq.read_table(path, partitioning=None)).to_pandas()
    frame.to_parquet(path)


def by_duckdb(path: Path, change: Change = unchanged) -> None:
    """Rewrite a file as DuckDB does: the footer is lost, and every column may be null."""
    bars, copy = change(pq.read_table(path, partitioning=None)), path.with_suffix(".copy")
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("bars", bars)
        connection.execute(f"COPY (FROM bars) TO '{copy}' (FORMAT parquet)")
    copy.replace(path)
