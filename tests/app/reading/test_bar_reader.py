"""Reading bars as frames: what ``BarStore.read`` returns, in the shape that was asked for."""

import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ktrdr_pipelines
from ktrdr_pipelines import Store, open_store
from ktrdr_pipelines.domain.bars import BAR_SCHEMA, STORED_SCHEMA, unconfirmed_where
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.errors import (
    CorruptFileError,
    NoStoreError,
    SettingsError,
    StoreError,
    StoreReplacedError,
    UnknownSymbolError,
    UsageError,
)
from ktrdr_pipelines.settings import settings_file
from ktrdr_pipelines.store.bars.bar_file import read_file
from ktrdr_pipelines.store.maintenance.rename_journal import (
    Move,
    MoveKind,
    remove_journal,
    write_journal,
)
from tests.support.older_files import within_data
from tests.support.readable import ReadableStore
from tests.support.rewriting import by_arrow, by_pandas

ROOT = Path(__file__).parents[3]
VALUES = [name for name in BAR_SCHEMA.names if name != "ts"]

SERIES = [
    ("AAPL", "1m", "2023-12-28", "2024-01-05"),
    ("AAPL.ETH", "5m", "2023-12-28", "2024-01-05"),
    ("EURUSD", "5m", "2023-12-28", "2024-01-05"),
    ("ESH24", "1h", "2023-10-30", "2023-11-10"),
    ("7203", "30m", "2023-12-28", "2024-01-10"),
    ("AAPL", "4h", "2023-11-20", "2024-01-05"),
    ("MSFT", "1d", "2023-03-01", "2024-03-01"),
    ("EURUSD", "1w", "2023-03-06", "2024-03-04"),
]
"""Pairs of markets and timeframes over the turn of a year, half days and changes of the clocks."""


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> ReadableStore:
    """Return a store with all series, of which some were re-based after half of their bars."""
    store = ReadableStore(tmp_path_factory.mktemp("filled") / "data")
    for symbol, timeframe, first, end in SERIES:
        middle = str(
            date.fromisoformat(first) + (date.fromisoformat(end) - date.fromisoformat(first)) / 2
        )
        store.fill(symbol, timeframe, first, middle)
        if symbol == "AAPL" and timeframe == "1m":
            store.split(symbol, 0.25, "2024-01-02")
        if symbol == "MSFT":
            store.split(symbol, 2.0, middle)
            store.split(symbol, 0.5, "2023-06-01", is_manual=True)
        store.fill(symbol, timeframe, middle, end)
    return store


@pytest.mark.parametrize(("symbol", "timeframe", "first", "end"), SERIES)
def test_bars_are_those_of_the_bar_store(
    filled: ReadableStore, symbol: str, timeframe: str, first: str, end: str
) -> None:
    """All of them, and those of session dates, on today's basis and raw."""
    store, series = filled.open(), filled.series(symbol, timeframe)
    table = store.read_bars(symbol, timeframe, columns=VALUES, engine="arrow")
    expected = filled.bar_store.read(series)
    assert expected.num_rows > 30
    assert table.select(BAR_SCHEMA.names).equals(expected)
    raw = store.read_bars(symbol, timeframe, columns=[*VALUES, "basis"], engine="arrow", raw=True)
    assert raw.select(STORED_SCHEMA.names).equals(filled.bar_store.read_raw(series))
    days = [date.fromisoformat(one) for one in (first, end)]
    middle = days[0] + (days[1] - days[0]) / 3
    wanted = interval_between(
        filled.calendar(symbol), series.timeframe, middle, days[1] - timedelta(days=2)
    )
    part = store.read_bars(
        symbol,
        timeframe,
        middle,
        str(days[1] - timedelta(days=2)),
        columns=VALUES,
        engine="arrow",
    )
    assert part.select(BAR_SCHEMA.names).equals(filled.bar_store.read(series, wanted))


@given(data=st.data())
def test_any_selection_is_a_part_of_all_bars(filled: ReadableStore, data: st.DataObject) -> None:
    """Instants, the newest bars and warm-up bars select rows of what the bar store reads."""
    symbol, timeframe, first, end = data.draw(st.sampled_from(SERIES))
    series = filled.series(symbol, timeframe)
    every = filled.bar_store.read(series)
    span = (date.fromisoformat(end) - date.fromisoformat(first)) // timedelta(minutes=1)
    low = datetime.combine(date.fromisoformat(first), datetime.min.time(), UTC)
    moments = st.integers(-1000, span + 1000).map(lambda n: low + timedelta(minutes=n))
    start, until = sorted(data.draw(st.lists(moments, min_size=2, max_size=2, unique=True)))
    names = data.draw(st.lists(st.sampled_from(VALUES), unique=True, min_size=1))
    count = data.draw(st.integers(0, 400))
    store = filled.open()
    within = filled.bar_store.read(series, Interval(start, until))
    before = filled.bar_store.read(series, Interval(datetime(1990, 1, 1, tzinfo=UTC), start))
    kinds = {
        "plain": ({"start": start, "end": until}, within),
        "last": (
            {"end": until, "last": count},
            pa.concat_tables([before, within]).slice(
                max(0, before.num_rows + within.num_rows - count)
            ),
        ),
        "warmup": (
            {"start": start, "end": until, "warmup": count},
            pa.concat_tables([before.slice(max(0, before.num_rows - count)), within]),
        ),
    }
    kind = data.draw(st.sampled_from(sorted(kinds)))
    arguments, expected = kinds[kind]
    found = store.read_bars(symbol, timeframe, columns=names, engine="arrow", **arguments)
    assert found.combine_chunks().equals(expected.select(["ts", *names]).combine_chunks())
    assert within.num_rows <= every.num_rows


def test_a_frame_of_one_symbol(readable: ReadableStore) -> None:
    """Pandas by default: ``ts`` in UTC is the index, the values are the caller's to change."""
    bars = readable.fill("AAPL", "1m", "2024-01-02", "2024-01-04")
    frame = readable.open().read_bars("AAPL", "1m")
    assert list(frame.columns) == ["open", "high", "low", "close", "volume"]
    assert (frame.index.name, str(frame.index.dtype)) == ("ts", "datetime64[us, UTC]")
    assert set(frame.dtypes.astype(str)) == {"float64"}
    expected = bars.to_pandas().set_index("ts")
    pd.testing.assert_frame_equal(frame, expected[list(frame.columns)], check_column_type=False)
    frame.iloc[0, 0] = 5.0
    frame["close"] *= 2
    assert readable.open().read_bars("AAPL", "1m").iloc[0, 0] != 5.0


def test_the_time_zone_moves_instants_but_not_dates(readable: ReadableStore) -> None:
    """Intraday instants are shown in it; a daily bar stays on its date."""
    readable.fill("AAPL", "1h", "2024-03-08", "2024-03-12")
    readable.fill("AAPL", "1d", "2024-03-08", "2024-03-12")
    store = readable.open()
    for engine in ("pandas", "arrow", "polars"):
        hours = store.read_bars("AAPL", "1h", tz="America/New_York", engine=engine)  # type: ignore[call-overload]
        ts = (
            hours.index
            if engine == "pandas"
            else hours["ts"].to_pylist()
            if engine == "arrow"
            else hours["ts"].to_list()
        )
        assert {(one.hour, one.minute) for one in ts} == {
            (9, 30),
            *((hour, 0) for hour in range(10, 16)),
        }
    days = store.read_bars("AAPL", "1d", tz="America/New_York", columns=["close", "closes_at"])
    assert [str(one) for one in days.index] == [
        "2024-03-08 00:00:00+00:00",
        "2024-03-11 00:00:00+00:00",
    ]
    assert [str(one) for one in days["closes_at"]] == [
        "2024-03-08 16:00:00-05:00",
        "2024-03-11 16:00:00-04:00",
    ]


def test_the_values_of_a_frame_are_its_own(readable: ReadableStore) -> None:
    """They can be changed, and no other column, frame or later read sees that."""
    readable.fill("AAPL", "1d", "2023-01-03", "2023-03-01")
    readable.split("AAPL", 0.5, "2023-03-01")
    store = readable.open()
    first, second = (store.read_bars("AAPL", "1d") for _ in range(2))
    expected = second.copy(deep=True)
    first.loc[first.index[0], "open"] = -1.0
    first["close"] *= 2
    first.iloc[:, 1] = 0.0
    assert first["open"].iloc[0] == -1.0
    assert first["close"].equals(expected["close"] * 2)
    assert first["low"].equals(expected["low"])
    for frame in (second, store.read_bars("AAPL", "1d")):
        assert frame.equals(expected)


def test_few_bars_of_a_file_do_not_keep_the_memory_of_all(readable: ReadableStore) -> None:
    """The newest bars are copied out of what was read."""
    readable.fill("AAPL", "1m", "2023-01-03", "2023-04-01")
    store = readable.open()
    held = pa.total_allocated_bytes()
    names = ["open", "close"]
    frames = [store.read_bars("AAPL", "1m", last=10, columns=names) for _ in range(20)]
    kept = pa.total_allocated_bytes() - held
    every = store.read_bars("AAPL", "1m", columns=names)
    # Threads that decoded the last file may hold its memory for a moment longer.
    assert kept < 5 * len(every) * 8
    assert all(frame.equals(every[-10:]) for frame in frames)


def test_a_frame_of_many_symbols(readable: ReadableStore) -> None:
    """``symbol`` is a category in the order asked for; symbols without bars have no rows."""
    readable.fill("AAPL", "1d", "2024-01-02", "2024-01-05")
    readable.fill("7203", "1d", "2024-01-04", "2024-01-06")
    store, names = readable.open(), ["AAPL", "MSFT", "7203"]
    frame = store.read_bars(names, "1d", columns=["close", "session_date", "bar_count"])
    assert list(frame.columns) == ["symbol", "close", "session_date", "bar_count"]
    assert [*frame["symbol"]] == ["AAPL"] * 3 + ["7203"] * 2
    assert [*frame["symbol"].cat.categories] == names
    assert str(frame["session_date"].dtype) == "datetime64[ms]"
    assert str(frame["bar_count"].dtype) == "Int32"
    table = store.read_bars(names, "1d", engine="arrow")
    assert table.schema.names[:2] == ["ts", "symbol"]
    assert table.schema.field("symbol").type == pa.dictionary(pa.int32(), pa.string())
    polars = store.read_bars(names, "1d", engine="polars")
    assert polars["symbol"].dtype == pl.Categorical
    assert polars["symbol"].to_list() == ["AAPL"] * 3 + ["7203"] * 2
    assert store.read_bars(["AAPL"], "1d", last=1)["symbol"].to_list() == ["AAPL"]


def test_an_empty_result_has_the_types_of_a_full_one(readable: ReadableStore) -> None:
    """For each engine, one symbol and several, and all columns."""
    readable.fill("AAPL", "1m", "2024-01-02", "2024-01-03")
    store = readable.open()
    columns = ["session_date", "close", "bar_count", "closes_at"]
    for symbols in ("AAPL", ["AAPL", "MSFT"]):
        full = store.read_bars(symbols, "1m", columns=columns)
        for empty in (
            store.read_bars(symbols, "1m", "2024-05-01", columns=columns),
            store.read_bars(symbols, "1m", last=0, columns=columns),
        ):
            assert len(empty) == 0
            assert dict(empty.dtypes) == dict(full.dtypes)
            assert empty.index.dtype == full.index.dtype
        for engine in ("arrow", "polars"):
            one, other = (
                store.read_bars(symbols, "1m", start, columns=columns, engine=engine)  # type: ignore[call-overload]
                for start in (None, "2024-05-01")
            )
            assert one.schema == other.schema
            assert len(other) == 0


def test_nulls_do_not_change_a_type(readable: ReadableStore) -> None:
    """IB has neither volume nor counts of a currency pair."""
    bars = readable.fill("EURUSD", "1h", "2024-01-03", "2024-01-04")
    for name in ("volume", "average", "bar_count"):
        at = bars.schema.get_field_index(name)
        bars = bars.set_column(
            at, bars.schema.field(at), pa.nulls(bars.num_rows, bars.schema.field(at).type)
        )
    readable.save("EURUSD", "1h", bars)
    frame = readable.open().read_bars("EURUSD", "1h", columns=["volume", "bar_count"])
    assert [str(one) for one in frame.dtypes] == ["float64", "Int32"]
    assert frame.isna().all().all()


def test_the_newest_bars_are_read_over_files(readable: ReadableStore) -> None:
    """The newest of a year, and those before it, in their order; of each symbol."""
    readable.fill("AAPL", "5m", "2023-12-27", "2024-01-04")
    readable.fill("MSFT", "5m", "2024-01-02", "2024-01-03")
    store = readable.open()
    frame = store.read_bars(["AAPL", "MSFT"], "5m", last=200)
    counts = frame["symbol"].value_counts()
    assert (counts["AAPL"], counts["MSFT"]) == (200, 78)
    assert frame.loc[frame["symbol"] == "AAPL"].index.is_monotonic_increasing
    assert store.read_bars("AAPL", "5m", end="2024-01-02", last=1).index[0].isoformat() == (
        "2023-12-29T20:55:00+00:00"
    )


def test_bars_on_an_unconfirmed_basis_are_left_out_before_counting(
    readable: ReadableStore,
) -> None:
    """As queries do; raw bars have them, with the basis -1."""
    readable.fill("AAPL", "1m", "2024-01-02", "2024-01-04")
    path = readable.root / "bars/symbol=AAPL/timeframe=1m/2024.parquet"
    footer, bars = read_file(path)
    chosen = np.zeros(bars.num_rows, bool)
    chosen[-50:] = True
    readable.bar_store.files.write(path, unconfirmed_where(bars, chosen), footer)
    store = readable.open()
    kept = store.read_bars("AAPL", "1m", last=10, columns=["close"])
    assert kept.index[-1] == pd.Timestamp(bars["ts"][-51].as_py())
    assert len(kept) == 10
    raw = store.read_bars("AAPL", "1m", last=60, raw=True)
    assert raw["basis"].tolist() == [0] * 10 + [-1] * 50
    ready = store.is_ready("AAPL", "1m", "2024-01-02", "2024-01-04")
    assert [one.reason for one in ready.missing] == ["basis"]
    assert ready.missing_bars == 50


BAD: list[tuple[dict[str, Any], type[UsageError], list[str]]] = [
    ({"symbols": "AAPPL"}, UnknownSymbolError, ["symbol 'AAPPL'", "AAPL"]),
    ({"symbols": "../../etc"}, UnknownSymbolError, ["'../../etc'"]),
    ({"symbols": ["AAPL", "AAPL"]}, UsageError, ["named twice"]),
    ({"symbols": []}, UsageError, ["no symbol"]),
    ({"symbols": [1]}, UsageError, ["text, not int"]),
    ({"symbols": 7203}, UsageError, ["text, not int"]),
    ({"timeframe": "2m"}, UsageError, ["timeframe '2m'", "1m, 5m"]),
    ({"columns": ["clse"]}, UsageError, ["column 'clse'", "Did you mean close"]),
    ({"columns": ["basis"]}, UsageError, ["raw=True"]),
    ({"columns": 5}, UsageError, ["column 5"]),
    ({"columns": ["close", "close"]}, UsageError, ["named twice"]),
    ({"engine": "panda"}, UsageError, ["engine 'panda'", "pandas, polars, arrow"]),
    ({"tz": "New York"}, UsageError, ["tz 'New York'", "America/New_York"]),
    ({"start": "2024-02-01", "end": "2024-01-01"}, UsageError, ["reversed"]),
    ({"start": "2024-01-02", "end": "2024-01-02"}, UsageError, ["reversed, or nothing"]),
    ({"start": datetime(2024, 1, 2, tzinfo=UTC), "end": "2023-12-30"}, UsageError, ["reversed"]),
    ({"start": datetime(2024, 1, 2)}, UsageError, ["without a zone"]),  # noqa: DTZ001
    ({"start": "2024-01-02T10:00"}, UsageError, ["without a zone"]),
    ({"end": pd.Timestamp("2024-01-02")}, UsageError, ["without a zone"]),
    ({"end": pd.NaT}, UsageError, ["without a zone"]),
    ({"tz": "localtime", "engine": "polars"}, UsageError, ["tz 'localtime'"]),
    ({"start": datetime.min.replace(tzinfo=timezone(timedelta(hours=5)))}, UsageError, ["outside"]),
    ({"end": datetime.max.replace(tzinfo=UTC)}, UsageError, ["outside the known calendars"]),
    ({"start": "last week"}, UsageError, ["neither a date nor an instant"]),
    ({"start": 20240102}, UsageError, ["a int, not a date"]),
    ({"start": "1812-01-01"}, UsageError, ["outside the known calendars"]),
    ({"last": -1}, UsageError, ["last=-1"]),
    ({"last": 2.5}, UsageError, ["last=2.5"]),
    ({"last": True}, UsageError, ["last=True"]),
    ({"warmup": -1, "start": "2024-01-02"}, UsageError, ["warmup=-1"]),
    ({"warmup": 5}, UsageError, ["warmup=5 without start"]),
    ({"last": 5, "start": "2024-01-02"}, UsageError, ["last=5 with start=2024-01-02"]),
]


@pytest.mark.parametrize(("arguments", "kind", "texts"), BAD)
def test_a_bad_argument_is_refused(
    readable: ReadableStore, arguments: dict[str, Any], kind: type[UsageError], texts: list[str]
) -> None:
    """By an error that names it, and says what is allowed."""
    readable.fill("AAPL", "1d", "2024-01-02", "2024-01-05")
    with pytest.raises(kind) as refused:
        readable.open().read_bars(**{"symbols": "AAPL", "timeframe": "1d", **arguments})
    for text in texts:
        assert text in str(refused.value)


def test_a_symbol_is_text(readable: ReadableStore) -> None:
    """Where one symbol is meant, a list is an oversight."""
    readable.fill("AAPL", "1d", "2024-01-02", "2024-01-05")
    store: Any = readable.open()
    for call in (
        lambda one: store.is_ready(one, "1d"),
        lambda one: store.coverage(one, "1d"),
        store.gaps,
        store.join_timeframes,
        lambda one: store.resample(one, "1w", from_="1d"),
    ):
        with pytest.raises(UsageError, match="a symbol is text, not list"):
            call(["AAPL"])
    with pytest.raises(UsageError, match="timeframe 5"):
        store.join_timeframes("AAPL", "1d", 5)


def test_a_store_goes_to_another_process(readable: ReadableStore) -> None:
    """Also when it has been used; connections to the ledger stay behind."""
    readable.fill("AAPL", "1d", "2024-01-02", "2024-01-05")
    store = open_store(readable.root)
    assert len(store.read_bars("AAPL", "1d")) == 3
    assert store.is_ready("AAPL", "1d", "2024-01-02", "2024-01-05")
    again: Store = pickle.loads(pickle.dumps(store))  # noqa: S301  (of this test)
    assert again.path == store.path
    assert len(again.read_bars("AAPL", "1d")) == 3


def test_polars_is_optional(readable: ReadableStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the error says how to install it."""
    readable.fill("AAPL", "1d", "2024-01-02", "2024-01-05")
    monkeypatch.setitem(sys.modules, "polars", None)
    monkeypatch.setattr("ktrdr_pipelines.app.reading.read_options.find_spec", lambda _name: None)
    with pytest.raises(UsageError, match=r"pip install 'ktrdr-pipelines\[polars\]'"):
        readable.open().read_bars("AAPL", "1d", engine="polars")


def test_symbols_of_the_universe_without_bars_are_empty(readable: ReadableStore) -> None:
    """They are not unknown."""
    readable.fill("AAPL", "1d", "2024-01-02", "2024-01-05")
    assert len(readable.open().read_bars("MSFT", "1d")) == 0
    assert len(readable.open().read_bars("AAPL", "1m")) == 0


def test_a_symbol_that_left_the_universe_is_read(readable: ReadableStore) -> None:
    """Its bars stay; without its calendar they close late, never early."""
    readable.fill("AAPL", "1d", "2024-01-02", "2024-01-05")
    (readable.root / "universe.yaml").write_text("symbols: {MSFT: {}}\n")
    store = readable.open()
    frame = store.read_bars("AAPL", "1d", "2024-01-03", columns=["close", "closes_at"])
    assert [str(one) for one in frame["closes_at"] - frame.index] == ["2 days 00:00:00"] * 2
    assert store.symbols() == ["AAPL"]
    with pytest.raises(UnknownSymbolError, match="not in the universe"):
        store.is_ready("AAPL", "1d")


def test_bars_are_read_whatever_the_settings_of_the_gateway_are(readable: ReadableStore) -> None:
    """What is missing depends on them: the gateway has stated where data begin."""
    readable.fill("AAPL", "1d", "2024-01-02", "2024-01-05")
    settings_file(readable.root).write_text("{")
    store = readable.open()
    assert len(store.read_bars("AAPL", "1d")) == 3
    with pytest.raises(SettingsError, match=r"settings\.json"):
        store.is_ready("AAPL", "1d")


def test_a_symbol_that_is_being_moved_is_not_empty(readable: ReadableStore) -> None:
    """Its bars are somewhere else: an error says so, before the universe is edited and after."""
    readable.fill("AAPL", "1d", "2024-01-02", "2024-01-05")
    readable.fill("MSFT", "1d", "2024-01-02", "2024-01-05")
    store, layout = readable.open(), readable.bar_store.layout
    write_journal(layout, Move(MoveKind.RENAME, "AAPL", "APPL"))
    assert len(store.read_bars("AAPL", "1d")) == 3
    layout.symbol_folder("AAPL").rename(layout.symbol_folder("APPL"))
    for read in (store.read_bars, lambda one, kind: store.join_timeframes(one, kind, [])):
        with pytest.raises(StoreError, match="the rename of AAPL to APPL is not finished"):
            read("AAPL", "1d")
    assert store.read_bars("MSFT", "1m").empty
    remove_journal(layout)
    assert store.read_bars("AAPL", "1d").empty  # of the universe, and without bars
    layout.universe.write_text("symbols: {MSFT: {}, APPL: {}}\n")
    with pytest.raises(UnknownSymbolError):
        store.read_bars("AAPL", "1d")


def _newer(readable: ReadableStore) -> None:
    marker = readable.root / "store.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"format_version": 99}))


def _damaged(readable: ReadableStore) -> None:
    path = readable.root / "bars/symbol=AAPL/timeframe=1d/all.parquet"
    data = bytearray(path.read_bytes())
    data[within_data(path)] ^= 0xFF
    path.write_bytes(data)


def _lost(readable: ReadableStore) -> None:
    readable.split("AAPL", 0.5, "2024-01-03")
    (readable.root / "history/adjustments/AAPL.json").unlink()


def _foreign(readable: ReadableStore) -> None:
    readable.fill("MSFT", "1d", "2024-01-02", "2024-01-05")
    folder = readable.root / "bars"
    (folder / "symbol=MSFT/timeframe=1d/all.parquet").replace(
        folder / "symbol=AAPL/timeframe=1d/all.parquet"
    )


def _moved(readable: ReadableStore) -> None:
    readable.root.rename(readable.root.with_name("elsewhere"))


@pytest.mark.parametrize(
    ("harm", "kind", "text"),
    [
        (_newer, NoStoreError, "newer"),
        (_damaged, CorruptFileError, "ktrdr repair"),
        (_lost, StoreError, "cannot put the bars of AAPL on one price basis"),
        (_foreign, CorruptFileError, "its folder is that of AAPL 1d"),
        (_moved, StoreReplacedError, "not the one that was opened"),
    ],
)
def test_a_harmed_store_is_refused(
    readable: ReadableStore, harm: Callable[[ReadableStore], None], kind: type[Exception], text: str
) -> None:
    """By the errors that all of the product raises."""
    readable.fill("AAPL", "1d", "2024-01-02", "2024-01-05")
    store = readable.open()
    harm(readable)
    with pytest.raises(kind, match=text):
        (readable.open() if harm is _newer else store).read_bars("AAPL", "1d")


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    """And a file of another program is not."""
    with pytest.raises(NoStoreError, match="is not a store"):
        ktrdr_pipelines.open_store(tmp_path)


@pytest.mark.parametrize("rewrite", [by_arrow, by_pandas])
def test_a_file_that_another_program_rewrote_is_read(
    readable: ReadableStore, rewrite: Callable[[Path], None]
) -> None:
    """Its values are those on disk, also where its footer is lost."""
    bars = readable.fill("AAPL", "1d", "2024-01-02", "2024-01-05")
    rewrite(readable.root / "bars/symbol=AAPL/timeframe=1d/all.parquet")
    found = readable.open().read_bars("AAPL", "1d", columns=VALUES, engine="arrow")
    assert found.select(BAR_SCHEMA.names).equals(bars)


def test_reading_imports_little(readable: ReadableStore) -> None:
    """Neither Dagster nor ib_async, DuckDB or the catalog, and calendars only for closes."""
    readable.fill("AAPL", "1m", "2024-01-02", "2024-01-05")
    code = """
import json, sys
import ktrdr_pipelines
top = sorted(one for one in sys.modules if one.startswith("ktrdr_pipelines"))
store = ktrdr_pipelines.open_store(sys.argv[1])
frame = store.read_bars("AAPL", "1m", "2024-01-03", "2024-01-05", tz="America/New_York")
names = {one.partition(".")[0] for one in sys.modules}
read = sorted(names & {"dagster", "ib_async", "duckdb", "polars", "exchange_calendars",
    "pandas_market_calendars"})
catalog = [one for one in sys.modules if "store.catalog" in one]
store.read_bars("AAPL", "1m", columns=["closes_at"])
store.is_ready("AAPL", "1m")
store.resample("AAPL", "10m")
names = {one.partition(".")[0] for one in sys.modules}
later = sorted(names & {"dagster", "ib_async", "duckdb", "polars"})
print(json.dumps([top, len(frame), read, catalog, later]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(readable.root)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
    )
    assert json.loads(done.stdout) == [["ktrdr_pipelines"], 780, [], [], []]


def test_every_name_of_the_package_exists() -> None:
    """Each is found, and an unknown one is an attribute error."""
    for name in ktrdr_pipelines.__all__:
        assert getattr(ktrdr_pipelines, name) is not None
        assert name in dir(ktrdr_pipelines)
    with pytest.raises(AttributeError, match="no attribute 'BarBook'"):
        _ = ktrdr_pipelines.BarBook


def test_the_store_of_the_settings_is_opened(
    readable: ReadableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a path, as all commands find it."""
    monkeypatch.setenv("KTRDR_DATA", str(readable.root))
    assert ktrdr_pipelines.open_store().path == readable.root


def test_threads_share_a_store(readable: ReadableStore) -> None:
    """Each reads the same."""
    readable.fill("AAPL", "1m", "2024-01-02", "2024-01-09")
    store, found = readable.open(), []
    threads = [
        threading.Thread(target=lambda: found.append(store.read_bars("AAPL", "1m", last=500)))
        for _ in range(4)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(found) == 4
    for frame in found[1:]:
        pd.testing.assert_frame_equal(frame, found[0])


WRITER = """
import sys
from pathlib import Path
import pyarrow as pa
from tests.support.readable import ReadableStore
store = ReadableStore(Path(sys.argv[1]))
(bars,) = [store.bar_store.read_raw(store.series("AAPL", "1m")).drop_columns("basis")]
for number in range(1, 10_000):
    value = pa.array([float(number)] * bars.num_rows)
    for name in ("open", "close"):
        at = bars.schema.get_field_index(name)
        bars = bars.set_column(at, bars.schema.field(at), value)
    store.save("AAPL", "1m", bars)
    print(number, flush=True)
"""


@pytest.mark.on_disk
def test_a_reader_sees_one_version_while_a_process_rewrites_files(
    readable: ReadableStore,
) -> None:
    """Each read is of one version of the file, and versions never go back."""
    readable.fill("AAPL", "1m", "2024-01-02", "2024-01-05")
    store, seen = readable.open(), []
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(readable.root)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "1\n"
        try:
            while len(set(seen)) < 6:
                frame = store.read_bars("AAPL", "1m", "2024-01-03", columns=["open", "close"])
                assert len(frame) == 780
                (value,) = {*frame["open"], *frame["close"]}
                seen.append(value)
        finally:
            writer.kill()
    assert seen == sorted(seen)


def test_a_re_basing_between_reads_is_never_mixed(readable: ReadableStore) -> None:
    """A split that is recorded while a store is open is in its next read, for all timeframes."""
    readable.fill("AAPL", "1d", "2024-01-02", "2024-01-05")
    readable.fill("AAPL", "1h", "2024-01-02", "2024-01-05")
    store = readable.open()
    before = {one: store.read_bars("AAPL", one) for one in ("1d", "1h")}
    readable.split("AAPL", 0.5, "2024-01-05")
    for timeframe, frame in before.items():
        after = store.read_bars("AAPL", timeframe)
        pd.testing.assert_series_equal(after["close"], frame["close"] * 0.5)
        pd.testing.assert_series_equal(after["volume"], frame["volume"] * 2)
