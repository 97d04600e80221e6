"""Recorded bars: the sample beside the checkout, and small ones that tests write."""

from datetime import date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

RECORDED = Path(__file__).parents[3] / "shared" / "bars"
"""Recorded bars of real markets; they lie beside the checkout on some machines only."""

Row = tuple[datetime | date, float, float, float, float, float]


def write(folder: Path, key: str, size: str, rows: list[Row]) -> None:
    """Record bars in the format of the project's sample data."""
    names = ("ts", "open", "high", "low", "close", "volume")
    columns = list(zip(*rows, strict=True))
    ts = pa.timestamp("us", tz="UTC") if isinstance(rows[0][0], datetime) else pa.date32()
    types = (ts, *(pa.float64(),) * 5)
    arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
    (folder / key).mkdir(exist_ok=True)
    pq.write_table(
        pa.table(dict(zip(names, arrays, strict=True))), folder / key / f"{size}.parquet"
    )
