"""Exported files read back equal to what ``read_bars`` returns."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import feather

from ktrdr_pipelines.app.reading.store_parts import StoreParts
from ktrdr_pipelines.app.transfer import export
from ktrdr_pipelines.app.transfer.export import ExportOptions, export_options, export_series
from ktrdr_pipelines.domain.bars import unconfirmed_where, with_basis
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import UsageError
from tests.support.readable import NOW, ReadableStore

SERIES = [
    ("AAPL", "1m", "2023-12-28", "2024-01-05"),
    ("EURUSD", "5m", "2023-10-26", "2023-10-31"),
    ("AAPL", "4h", "2023-11-20", "2023-12-05"),
    ("MSFT", "1d", "2023-03-01", "2024-03-01"),
    ("EURUSD", "1w", "2023-03-06", "2024-03-04"),
]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> ReadableStore:
    """Return a store with some series, of which one was split and one has no volume."""
    store = ReadableStore(tmp_path_factory.mktemp("filled") / "data")
    for symbol, timeframe, first, end in SERIES:
        bars = store.fill(symbol, timeframe, first, end)
        if symbol == "EURUSD":
            for name in ("volume", "average", "bar_count"):
                at = bars.schema.get_field_index(name)
                nothing = pa.nulls(bars.num_rows, bars.schema.field(name).type)
                bars = bars.set_column(at, bars.schema.field(name), nothing)
            store.save(symbol, timeframe, bars)
    store.split("MSFT", 0.3, "2023-06-01")
    return store


def _export(store: ReadableStore, key: tuple[str, str], options: ExportOptions) -> Any:
    parts = StoreParts(store.open()._layout, lambda: NOW)
    (found,) = export_series(parts, [(key[0], Timeframe(key[1]))], options)
    assert found.error is None
    return found


@pytest.mark.parametrize(
    ("at", "kind", "zone", "columns", "raw"),
    [
        (0, "csv", "UTC", None, False),
        (1, "csv", "America/New_York", ["volume", "close", "bar_count", "closes_at"], False),
        (2, "csv", "Asia/Kolkata", ["session_date", "close"], True),
        (3, "csv", "Europe/London", None, True),
        (4, "csv", "UTC", ["average", "volume"], False),
        (0, "parquet", "America/New_York", ["close", "closes_at", "basis"], True),
        (1, "parquet", "UTC", None, False),
        (3, "parquet", "Asia/Tokyo", ["session_date", "open", "volume"], False),
        (4, "parquet", "UTC", None, True),
        (0, "arrow", "Europe/London", None, False),
        (1, "arrow", "Asia/Tokyo", ["bar_count"], True),
        (2, "arrow", "UTC", ["closes_at"], False),
        (3, "arrow", "UTC", ["average"], False),
    ],
)
def test_a_file_reads_back_equal(
    filled: ReadableStore,
    tmp_path: Path,
    *,
    at: int,
    kind: str,
    zone: str,
    columns: list[str] | None,
    raw: bool,
) -> None:
    """In all formats: values to the last digit, types, nulls, instants and their zone."""
    symbol, timeframe = SERIES[at][:2]
    options = export_options(tmp_path, kind, zone=zone, columns=columns, raw=raw)
    found = _export(filled, (symbol, timeframe), options)
    wanted = filled.open().read_bars(
        symbol, timeframe, columns=columns, engine="arrow", tz=zone, raw=raw
    )
    assert (found.path, found.bars) == (tmp_path / f"{symbol}_{timeframe}.{kind}", len(wanted))
    assert found.is_complete
    if kind == "parquet":
        assert pq.read_table(found.path).equals(wanted)
    elif kind == "arrow":
        read = feather.read_table(found.path)
        assert read.schema == wanted.schema
        assert read.equals(wanted)
    else:
        _assert_same_csv(found.path, wanted, is_intraday=Timeframe(timeframe).is_intraday)
    assert [one.name for one in tmp_path.iterdir()] == [found.path.name]


def _assert_same_csv(path: Path, wanted: pa.Table, *, is_intraday: bool) -> None:
    """Compare with ISO texts and ``repr``; then read it back by pandas."""
    with path.open(newline="") as file:
        header, *rows = list(csv.reader(file))
    assert header == wanted.column_names
    for name, texts in zip(header, zip(*rows, strict=True), strict=True):
        values = wanted[name].to_pylist()
        if name == "ts" and not is_intraday:
            values = [one.date() for one in values]
        kind = wanted.schema.field(name).type
        if pa.types.is_floating(kind):
            assert [None if one == "" else float(one) for one in texts] == values
        elif pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            assert [one.replace("Z", "+00:00") for one in texts] == [
                one.isoformat() for one in values
            ]
        else:
            assert [None if one == "" else int(one) for one in texts] == values
    frame = pd.read_csv(path)
    read = pd.to_datetime(frame["ts"], utc=True).astype("datetime64[us, UTC]")
    assert read.tolist() == [
        pd.Timestamp(one).tz_convert("UTC") for one in wanted["ts"].to_pylist()
    ]


@given(st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), max_size=20))
def test_floats_are_written_as_python_and_pandas_write_them(values: list[float | None]) -> None:
    """So each reads back as the same float; nulls stay empty."""
    texts = export._float_texts(pa.chunked_array([pa.array(values, pa.float64())])).to_pylist()
    assert texts == [None if one is None else repr(one) for one in values]


def test_a_period_is_cut_as_reads_cut_it(filled: ReadableStore, tmp_path: Path) -> None:
    """By session dates, also over the turn of a year, and by instants."""
    store = filled.open()
    for start, end in (("2023-12-29", "2024-01-03"), ("2023-12-29T15:00:00Z", None)):
        options = export_options(tmp_path, "parquet", start=start, end=end, overwrite=True)
        found = _export(filled, ("AAPL", "1m"), options)
        wanted = store.read_bars("AAPL", "1m", start, end, engine="arrow")
        assert pq.read_table(found.path).equals(wanted)
        assert (found.first, found.last) == (wanted["ts"][0].as_py(), wanted["ts"][-1].as_py())
    options = export_options(tmp_path / "none", "csv", start="2024-03-01")
    found = _export(filled, ("AAPL", "1m"), options)
    assert (found.path, found.bars, found.is_complete) == (None, 0, False)
    assert list((tmp_path / "none").iterdir()) == []


def test_the_layout_of_the_original_is_what_pandas_wrote(
    filled: ReadableStore, tmp_path: Path
) -> None:
    """As ``to_csv`` of the original: UTC with Z, floats, -1 for a volume that is not available."""
    options = export_options(tmp_path, layout="ktrdr")
    for symbol, timeframe, *_ in SERIES:
        found = _export(filled, (symbol, timeframe), options)
        frame = filled.open().read_bars(
            symbol, timeframe, columns=["session_date", "open", "high", "low", "close", "volume"]
        )
        days = pd.DatetimeIndex(frame.pop("session_date")).tz_localize("UTC")
        frame.index = frame.index if Timeframe(timeframe).is_intraday else days
        frame["volume"] = frame["volume"].fillna(-1.0)
        frame.index.name = "date"
        assert found.path.read_text() == frame.to_csv(date_format="%Y-%m-%dT%H:%M:%SZ")


def test_bars_on_an_unconfirmed_basis_are_counted(readable: ReadableStore, tmp_path: Path) -> None:
    """They are left out as reads leave them out, and that is told."""
    bars = with_basis(readable.fill("AAPL", "1h", "2024-03-01", "2024-03-06"), 0)
    chosen = np.arange(len(bars)) < 3
    readable.save("AAPL", "1h", unconfirmed_where(bars, chosen).slice(0, 3))
    readable.fill("MSFT", "1h", "2024-03-01", "2024-03-06")
    doubtful = with_basis(readable.fill("AAPL", "1d", "2024-03-01", "2024-03-06"), 0)
    readable.fill("AAPL", "4h", "2024-03-01", "2024-03-06")
    unknown = unconfirmed_where(doubtful, np.ones(len(doubtful), dtype=bool))
    readable.save("MSFT", "1d", unknown)
    found = _export(readable, ("MSFT", "1d"), export_options(tmp_path))
    assert (found.path, found.left_out, found.is_complete) == (None, len(unknown), False)
    raw = _export(readable, ("MSFT", "1d"), export_options(tmp_path, raw=True))
    assert (raw.bars, raw.left_out, raw.is_complete) == (len(unknown), 0, True)


def test_files_and_folders_of_others_are_safe(filled: ReadableStore, tmp_path: Path) -> None:
    """Nothing is overwritten unasked, and nothing is put among the files of the store."""
    parts = StoreParts(filled.open()._layout, lambda: NOW)
    keys = [("MSFT", Timeframe.D1), ("AAPL", Timeframe.H4)]
    (tmp_path / "AAPL_4h.csv").write_text("mine")
    with pytest.raises(UsageError, match=r"AAPL_4h\.csv exist already.*--overwrite"):
        export_series(parts, keys, export_options(tmp_path))
    assert [one.name for one in tmp_path.iterdir()] == ["AAPL_4h.csv"]
    assert all(
        one.is_complete
        for one in export_series(parts, keys, export_options(tmp_path, overwrite=True))
    )
    for name in ("bars", "imported/x", "state", ""):
        with pytest.raises(UsageError, match="the store keeps its own files there"):
            export_series(parts, keys, export_options(filled.root / name))
    assert all(
        one.is_complete
        for one in export_series(parts, keys, export_options(filled.root / "export"))
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"kind": "xls"}, "no such format"),
        ({"zone": "Mars"}, "no such time zone"),
        ({"columns": ["adj"]}, "no such column"),
        ({"start": "2024-02-01", "end": "2024-01-01"}, "reversed"),
        ({"layout": "mt5"}, "no such layout"),
        ({"layout": "ktrdr", "kind": "arrow"}, "Leave out --format"),
        ({"layout": "ktrdr", "zone": "Asia/Tokyo"}, "Leave out --timezone"),
        ({"layout": "ktrdr", "columns": ["close"]}, "Leave out --columns"),
    ],
)
def test_wrong_options_say_what_is_allowed(tmp_path: Path, wrong: Any, said: str) -> None:
    """Before anything is read."""
    with pytest.raises(UsageError, match=said):
        export_options(tmp_path, **wrong)
