"""Imported bars are read where the gateway's store has none, and say so."""

from collections.abc import Iterator
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktrdr_pipelines.domain.bars import timestamps
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Origin, identity_of
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import ForeignIdentityError, UnknownSymbolError, UsageError
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.catalog.catalog import (
    connect_catalog,
    query_catalog,
    rebuild_catalog,
    refresh_views,
)
from ktrdr_pipelines.store.layout import create_store, open_store, store_origin
from ktrdr_pipelines.store.ledger.ledger import Ledger
from tests.support.readable import NOW, ReadableStore, random_bars

VALUES = ["open", "high", "low", "close", "volume"]


def save_imported(store: ReadableStore, symbol: str, timeframe: str, bars: pa.Table) -> None:
    """Save bars in the store of imported bars."""
    layout = create_store(open_store(store.root).imported, Origin.IMPORT)
    series = store.series(symbol, timeframe)
    with closing(Ledger(layout.ledger)) as ledger:
        identity = identity_of(series, contract_id=0, origin=Origin.IMPORT)
        BarStore(layout, ledger).save(series, identity, bars, Coverage())


def imported(
    store: ReadableStore, symbol: str, timeframe: str, first: str, end: str, *, seed: int = 9
) -> pa.Table:
    """Save random imported bars, and return them."""
    kind, calendar = Timeframe(timeframe), store.calendar(symbol)
    bars = random_bars(
        calendar, kind, date.fromisoformat(first), date.fromisoformat(end), seed=seed
    )
    save_imported(store, symbol, timeframe, bars)
    return bars


def preferring(own: pa.Table, others: pa.Table) -> list[tuple[Any, ...]]:
    """Return timestamp, close and origin of all bars, the gateway's first."""
    rows = {at: (at, close, "import") for at, close in _pairs(others)}
    rows |= {at: (at, close, "ib") for at, close in _pairs(own)}
    return [rows[at] for at in sorted(rows)]


def _pairs(bars: pa.Table) -> Iterator[tuple[int, float]]:
    return zip(timestamps(bars).tolist(), bars["close"].to_pylist(), strict=True)


def rows_of(frame: pa.Table) -> list[tuple[Any, ...]]:
    """Return timestamp, close and origin of the rows of a read."""
    return [
        (*pair, one) for pair, one in zip(_pairs(frame), frame["origin"].to_pylist(), strict=True)
    ]


@pytest.mark.parametrize(
    ("symbol", "timeframe"),
    [
        ("AAPL", "1m"),
        ("EURUSD", "5m"),
        ("ESH24", "1h"),
        ("AAPL", "4h"),
        ("MSFT", "1d"),
        ("MSFT", "1w"),
    ],
)
def test_the_gateway_s_bars_come_first(
    readable: ReadableStore, symbol: str, timeframe: str
) -> None:
    """By timestamp, in Python and SQL, in each view and macro; ``origin`` is the last column."""
    without = [] if timeframe == "1w" else ["2023-12-19"]
    own = readable.fill(symbol, timeframe, "2023-12-11", "2023-12-29", without=without)
    others = imported(readable, symbol, timeframe, "2023-12-04", "2024-01-10")
    wanted = preferring(own, others)
    store = readable.open()
    frame = store.read_bars(symbol, timeframe, engine="arrow")
    assert frame.column_names == ["ts", *VALUES, "origin"]
    assert rows_of(frame) == wanted
    assert {one[2] for one in wanted} == {"ib", "import"}
    layout = open_store(readable.root)
    rebuild_catalog(layout, [readable.instrument(symbol)], NOW)
    for source in (f"series('{symbol}', '{timeframe}')", f"bars_{timeframe}", "bars", "raw"):
        found = query_catalog(layout, f"SELECT * FROM {source} ORDER BY ts")  # noqa: S608
        assert found.column_names[-1] == "origin"
        assert rows_of(found) == wanted
    closes = query_catalog(layout, f"SELECT ts, closes_at FROM bars_{timeframe} ORDER BY ts")  # noqa: S608
    read = store.read_bars(symbol, timeframe, columns=["closes_at"], engine="arrow")
    assert read["closes_at"].to_pylist() == closes["closes_at"].to_pylist()


@pytest.mark.parametrize(
    "asked",
    [
        {"last": 3},
        {"last": 40},
        {"last": 4, "end": "2023-12-20"},
        {"start": "2023-12-19", "end": "2023-12-21"},
        {"start": "2023-12-20", "end": "2023-12-22", "warmup": 30},
        {"start": "2023-12-20T16:00:00Z", "warmup": 500, "columns": ["close", "closes_at"]},
        {"start": "2024-02-01", "warmup": 2},
        {"last": 0},
        {"columns": ["bar_count", "session_date", "close"], "start": "2023-12-27"},
    ],
)
def test_selections_count_the_bars_of_both(readable: ReadableStore, asked: dict[str, Any]) -> None:
    """Each selection is that of a store with all of these bars."""
    own = readable.fill("AAPL", "1h", "2023-12-11", "2023-12-29", without=["2023-12-19"])
    others = imported(readable, "AAPL", "1h", "2023-12-04", "2024-01-10")
    is_new = ~np.isin(timestamps(others), timestamps(own))
    readable.save("MSFT", "1h", own)
    readable.save("MSFT", "1h", others.filter(pa.array(is_new)))
    store = readable.open()
    found = store.read_bars("AAPL", "1h", engine="arrow", **asked)
    wanted = store.read_bars("MSFT", "1h", engine="arrow", **asked)
    assert found.column_names == [*wanted.column_names, "origin"]
    assert found.drop_columns("origin").equals(wanted)


@settings(max_examples=30, deadline=None)
@given(
    own=st.sets(st.integers(0, 40), max_size=20),
    others=st.sets(st.integers(0, 40), max_size=20),
    last=st.none() | st.integers(0, 30),
)
def test_any_two_sets_of_bars_are_joined(
    tmp_path_factory: pytest.TempPathFactory, own: set[int], others: set[int], last: int | None
) -> None:
    """No bar is lost, none is there twice, and each is of the right store."""
    with closing(ReadableStore(tmp_path_factory.mktemp("joined") / "data")) as readable:
        calendar = readable.calendar("MSFT")
        bars = random_bars(calendar, Timeframe.D1, date(2023, 1, 3), date(2023, 3, 6))
        mine, theirs = (bars.take(pa.array(sorted(one), pa.int64())) for one in (own, others))
        readable.save("MSFT", "1d", mine)
        save_imported(readable, "MSFT", "1d", theirs)
        frame = readable.open().read_bars(
            "MSFT", "1d", columns=["close", "origin"], engine="arrow", last=last
        )
        wanted = preferring(mine, theirs)
        assert rows_of(frame) == wanted[0 if last is None else max(0, len(wanted) - last) :]


def test_frames_of_all_engines_have_the_origin(readable: ReadableStore) -> None:
    """As a category, and for all of several symbols if one of them has imported bars."""
    readable.fill("MSFT", "1d", "2024-01-02", "2024-01-06")
    readable.fill("AAPL", "1d", "2024-01-02", "2024-01-06")
    imported(readable, "AAPL", "1d", "2024-01-04", "2024-01-10")
    store = readable.open()
    frame = store.read_bars(["MSFT", "AAPL"], "1d")
    assert list(frame.columns) == ["symbol", *VALUES, "origin"]
    assert frame["origin"].tolist() == ["ib"] * 8 + ["import"] * 2
    assert isinstance(frame["origin"].dtype, pd.CategoricalDtype)
    other = store.read_bars(["MSFT", "AAPL"], "1d", engine="polars")
    assert other["origin"].to_list() == frame["origin"].tolist()
    assert other.schema["origin"] == pl.Categorical
    assert "origin" not in store.read_bars("MSFT", "1d").columns
    assert store.read_bars("MSFT", "1d", columns=["close", "origin"])["origin"].unique() == ["ib"]
    empty = store.read_bars("AAPL", "1d", "2025-01-01")
    assert list(empty.columns) == [*VALUES, "origin"]


def test_one_origin_alone_can_be_read(readable: ReadableStore) -> None:
    """Without the column, unless it is named."""
    own = readable.fill("AAPL", "1d", "2024-01-02", "2024-01-06")
    others = imported(readable, "AAPL", "1d", "2024-01-04", "2024-01-10")
    store = readable.open()
    for origin, bars in (("gateway", own), ("import", others)):
        frame = store.read_bars("AAPL", "1d", origin=origin, engine="arrow")
        assert frame.select(VALUES).equals(bars.select(VALUES))
        assert frame.column_names == ["ts", *VALUES]
    assert store.read_bars("MSFT", "1d", origin="import").empty
    named = store.read_bars("AAPL", "1d", origin="import", columns=["origin"])
    assert named["origin"].tolist() == ["import"] * 4
    with pytest.raises(UsageError, match="no such origin"):
        store.read_bars("AAPL", "1d", origin="ib")  # type: ignore[call-overload]


def test_adjustments_do_not_apply_to_imported_bars(readable: ReadableStore) -> None:
    """They are returned as they were imported; raw ones have no basis."""
    own = readable.fill("AAPL", "1d", "2024-01-02", "2024-01-06")
    readable.split("AAPL", 0.25, "2024-03-01")
    others = imported(readable, "AAPL", "1d", "2023-12-27", "2024-01-10")
    store, layout = readable.open(), open_store(readable.root)
    frame = store.read_bars("AAPL", "1d", columns=["close", "origin"], engine="arrow")
    raw = store.read_bars("AAPL", "1d", columns=["close", "basis"], raw=True)
    assert raw["basis"].isna().tolist() == [one == "import" for one in raw["origin"]]
    wanted = [
        (at, close * (0.25 if origin == "ib" else 1.0), origin)
        for at, close, origin in preferring(own, others)
    ]
    assert rows_of(frame) == wanted
    rebuild_catalog(layout, [readable.instrument("AAPL")], NOW)
    for source in ("series('AAPL', '1d')", "bars_1d"):
        assert rows_of(query_catalog(layout, f"SELECT * FROM {source} ORDER BY ts")) == wanted  # noqa: S608
    basis = query_catalog(layout, "SELECT basis FROM raw_series('AAPL', '1d') ORDER BY ts")
    assert basis["basis"].to_pylist() == [None if one is pd.NA else one for one in raw["basis"]]


def test_imported_bars_satisfy_no_expectation(readable: ReadableStore) -> None:
    """Gaps, coverage and readiness are those of the gateway's bars alone."""
    readable.fill("AAPL", "1d", "2024-06-03", "2024-07-02")
    before = readable.open().gaps("AAPL", "1d")
    imported(readable, "AAPL", "1d", "2023-01-03", "2024-07-06")
    store = readable.open()
    pd.testing.assert_frame_equal(store.gaps("AAPL", "1d"), before)
    assert not store.is_ready("AAPL", "1d", "2024-05-01", "2024-06-01")
    assert store.is_ready("AAPL", "1d", "2024-06-03", "2024-07-02")
    assert set(store.coverage("AAPL", "1d")["verdict"]) == {"bars"}
    frame = store.read_bars("AAPL", "1d", "2024-06-03", "2024-07-02", require_complete=True)
    assert list(frame.columns) == VALUES
    for wrong in ({"origin": "import"}, {"columns": ["origin"]}):
        with pytest.raises(UsageError, match="only bars of the gateway"):
            store.read_bars("AAPL", "1d", "2024-06-03", require_complete=True, **wrong)
    days = store.join_timeframes("AAPL", "1d", ["1w"])
    assert len(days) == len(store.read_bars("AAPL", "1d", origin="gateway"))


def test_a_store_of_imported_bars_alone_can_be_read(
    readable: ReadableStore, tmp_path: Path
) -> None:
    """In Python and SQL, also once its symbol has left the universe; and it stays what it is."""
    others = imported(readable, "AAPL", "5m", "2023-12-27", "2024-01-10")
    store, layout = readable.open(), open_store(readable.root)
    assert store.symbols() == ["AAPL"]
    wanted = preferring(others.slice(0, 0), others)
    rebuild_catalog(layout, [readable.instrument("AAPL")], NOW)
    for source in ("series('AAPL', '5m')", "bars_5m", "bars"):
        assert rows_of(query_catalog(layout, f"SELECT * FROM {source} ORDER BY ts")) == wanted  # noqa: S608
    with pytest.raises(UsageError, match="there are no bars for it"):
        query_catalog(layout, "FROM series('MSFT', '5m')")
    with duckdb.connect(str(layout.catalog), read_only=True) as plain:
        assert plain.execute("SELECT count(*) FROM bars WHERE origin = 'import'").fetchone() == (
            len(others),
        )
    text = layout.universe.read_text().replace("  AAPL: {}\n", "")
    layout.universe.write_text(text)
    assert rows_of(readable.open().read_bars("AAPL", "5m", engine="arrow")) == wanted
    with pytest.raises(UnknownSymbolError):
        readable.open().read_bars("XYZ", "5m")
    assert store_origin(open_store(layout.imported)) is Origin.IMPORT
    with pytest.raises(ForeignIdentityError):
        create_store(layout.imported, Origin.IB)


def test_a_catalog_learns_of_imported_bars(readable: ReadableStore) -> None:
    """A query sees them at once, and ``refresh_views`` makes them visible to other programs."""
    readable.fill("AAPL", "1d", "2024-01-02", "2024-01-06")
    layout = open_store(readable.root)
    rebuild_catalog(layout, [readable.instrument("AAPL")], NOW)
    assert "origin" not in query_catalog(layout, "FROM bars").column_names
    imported(readable, "AAPL", "1d", "2024-01-04", "2024-01-10")
    assert query_catalog(layout, "FROM bars").num_rows == 6
    refresh_views(layout)
    with closing(connect_catalog(layout)) as connection:
        assert connection.execute("SELECT count(*) FROM bars").fetchone() == (6,)
