"""Which format a request accepts, and bars that are equal when read back from each."""

import io
import json
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from ktrdr_pipelines.api.bar_formats import VALUES, BarFormat, accepted_format, written
from ktrdr_pipelines.api.envelopes import RequestError
from ktrdr_pipelines.domain.bars import BAR_SCHEMA

START = datetime(2024, 1, 2, 14, 30, tzinfo=UTC)


def bars(count: int) -> pa.Table:
    """Return bars a minute apart; every third has no volume, the first has an awkward price."""
    ts = [int(START.timestamp() + 60 * n) * 1_000_000 for n in range(count)]
    price = [0.1 + 0.2 + n for n in range(count)]
    return pa.table(
        {
            "ts": pa.array(ts, pa.int64()).cast(pa.timestamp("us", tz="UTC")),
            "session_date": pa.array([START.date()] * count, pa.date32()),
            **dict.fromkeys(("open", "high", "low", "close"), pa.array(price, pa.float64())),
            "volume": pa.array([None if n % 3 == 0 else float(n) for n in range(count)]).cast(
                pa.float64()
            ),
            "average": pa.array(price, pa.float64()),
            "bar_count": pa.array(range(count), pa.int32()),
        },
        schema=BAR_SCHEMA,
    )


def whole(table: pa.Table, kind: BarFormat, **options: Any) -> bytes:
    """Return bars in a format, as a whole."""
    return b"".join(written(table, kind, {"symbol": "AAPL", "start": START}, **options))


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, BarFormat.JSON),
        ("", BarFormat.JSON),
        ("*/*", BarFormat.JSON),
        ("text/*", BarFormat.CSV),
        ("application/*", BarFormat.JSON),
        ("application/vnd.apache.parquet", BarFormat.PARQUET),
        ("Application/VND.apache.arrow.stream; q=0.5, text/csv;q=0.4", BarFormat.ARROW),
        ("text/html, */*;q=0.1", BarFormat.JSON),
        ("application/json;q=0, */*", BarFormat.ARROW),
        ("application/*;q=0.2, text/csv;q=0.3, application/json;q=0.1", BarFormat.CSV),
        ("text/csv; header=present", BarFormat.CSV),
        ("text/csv;q=2", None),
        ("text/html", None),
        ("*/*;q=0", None),
        ("nonsense", None),
    ],
)
def test_the_preferred_format_is_chosen(accept: str | None, expected: BarFormat | None) -> None:
    """By quality, then by how specific a range is, then JSON first; 406 lists what is offered."""
    if expected is not None:
        assert accepted_format(accept) is expected
        return
    with pytest.raises(RequestError, match="text/csv") as error:
        accepted_format(accept)
    assert error.value.status == 406
    assert len(error.value.details["offered"]) == 4


@pytest.mark.parametrize("count", [0, 1, 1000, 20_001])
def test_bars_are_equal_when_read_back(count: int) -> None:
    """From every format, to the last bit; a null volume stays null."""
    table = bars(count)
    with pa.ipc.open_stream(whole(table, BarFormat.ARROW)) as stream:
        arrow = stream.read_all()
    parquet = pq.read_table(io.BytesIO(whole(table, BarFormat.PARQUET)))
    for one in (arrow, parquet):
        assert one.equals(table)
        assert json.loads(one.schema.metadata[b"ktrdr"])["start"] == "2024-01-02T14:30:00Z"
    document = json.loads(whole(table, BarFormat.JSON, points=True))
    rows = list(zip(*(table[name].to_pylist() for name in VALUES), strict=True))
    assert [tuple(row) for row in document["data"]["ohlcv"]] == rows
    assert (
        pd.DatetimeIndex(document["data"]["dates"]).equals(
            pd.DatetimeIndex(table["ts"].to_pandas())
        )
        or count == 0
    )
    assert [tuple(one.values())[1:] for one in document["data"]["points"]] == rows
    lines = whole(table, BarFormat.CSV)
    assert lines.startswith(b"date,open,high,low,close,volume\n")
    if count:
        read = pa_csv.read_csv(io.BytesIO(lines))
        for name in VALUES:
            assert read[name].cast(pa.float64()).to_pylist() == table[name].to_pylist()


def test_json_has_no_number_that_json_lacks() -> None:
    """A value that is no number is null."""
    table = bars(2).set_column(2, BAR_SCHEMA.field("open"), pa.array([float("nan"), 1.0]))
    assert json.loads(whole(table, BarFormat.JSON))["data"]["ohlcv"][0][0] is None
    assert json.loads(whole(table, BarFormat.JSON))["data"]["points"] is None
