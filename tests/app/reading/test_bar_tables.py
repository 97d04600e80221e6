"""Closes of bars as the catalog has them, and timeframes joined on them without looking ahead."""

from datetime import date, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import UsageError
from ktrdr_pipelines.store.catalog.catalog import connect_catalog, rebuild_catalog
from tests.support.readable import ReadableStore

MARKETS = [
    ("AAPL", "2023-11-20", "2023-11-29"),  # a half day
    ("AAPL.ETH", "2024-03-07", "2024-03-13"),  # a change of the clocks
    ("EURUSD", "2024-03-07", "2024-03-13"),
    ("ESH24", "2023-11-20", "2023-11-29"),
    ("7203", "2024-01-04", "2024-01-12"),
]


@pytest.mark.parametrize(("symbol", "first", "end"), MARKETS)
def test_bars_close_when_the_catalog_says(
    readable: ReadableStore, symbol: str, first: str, end: str
) -> None:
    """For all timeframes, in SQL and in Python."""
    for timeframe in Timeframe:
        readable.fill(symbol, timeframe, first, end)
    layout = readable.bar_store.layout
    rebuild_catalog(layout, [readable.instrument(symbol)], readable.now)
    store = readable.open()
    with connect_catalog(layout) as catalog:
        for timeframe in Timeframe:
            expected = catalog.sql(
                f"SELECT ts, closes_at FROM series('{symbol}', '{timeframe}') ORDER BY ts"  # noqa: S608
            ).to_arrow_table()
            found = store.read_bars(symbol, timeframe, columns=["closes_at"], engine="arrow")
            assert found.num_rows > 0
            for name in ("ts", "closes_at"):
                assert found[name].to_pylist() == expected[name].to_pylist()


def test_closes_do_not_depend_on_the_end_of_a_read(readable: ReadableStore) -> None:
    """The last bar that is read is as long as it is within all bars."""
    readable.fill("AAPL", "4h", "2024-01-02", "2024-01-05")
    store = readable.open()
    every = store.read_bars("AAPL", "4h", columns=["closes_at"])
    part = store.read_bars("AAPL", "4h", end=every.index[1], columns=["closes_at"])
    pd.testing.assert_frame_equal(part, every.iloc[:1])
    last = store.read_bars("AAPL", "4h", end=every.index[3], last=2, columns=["closes_at"])
    pd.testing.assert_frame_equal(last, every.iloc[1:3])


@pytest.mark.parametrize(
    ("base", "symbol", "first", "end"),
    [(base, *market) for base, market in zip(["5m", "1h"] * 3, MARKETS, strict=False)],
)
def test_nothing_looks_ahead(
    readable: ReadableStore, base: str, symbol: str, first: str, end: str
) -> None:
    """Each row has the newest bars that were complete when its base bar was, by a plain loop."""
    others = [one for one in ("15m", "1h", "4h", "1d", "1w") if one != base]
    before = str(date.fromisoformat(first) - timedelta(days=12))
    for timeframe in (base, *others):
        readable.fill(symbol, timeframe, before, end)
    store = readable.open()
    joined = store.join_timeframes(symbol, base, others, start=first, end=end, columns=["close"])
    assert list(joined.columns[:2]) == ["close", "closes_at"]
    own = store.read_bars(symbol, base, first, end, columns=["close", "closes_at"])
    pd.testing.assert_frame_equal(joined[["close", "closes_at"]], own)
    for name in others:
        other = store.read_bars(symbol, name, columns=["close", "closes_at"])
        true_closes = _true_closes(readable, symbol, Timeframe(name), other.index)
        is_late = symbol == "7203" and name in {"1h", "4h"}
        for at in np.linspace(0, len(joined) - 1, 60).astype(int):
            row = joined.iloc[at]
            known = other[true_closes <= row["closes_at"]]["close"]
            # A bar that ends in a lunch break counts as complete when the next one begins.
            assert row[f"close_{name}"] in {*known.iloc[-2 if is_late else -1 :]}
            assert row[f"closes_at_{name}"] <= row["closes_at"]


def _true_closes(
    readable: ReadableStore, symbol: str, timeframe: Timeframe, index: pd.DatetimeIndex
) -> pd.DatetimeIndex:
    """Return when bars are over: at the next full multiple by the local clock, or the close."""
    calendar = readable.calendar(symbol)
    closes: list[datetime] = []
    for at in index:
        if not timeframe.is_intraday:
            until = at.date() + timeframe.length
            closes.append(calendar.sessions(at.date(), until)[-1].closes_at)
            continue
        (session,) = [
            one
            for one in calendar.sessions(
                at.date() - timedelta(days=1), at.date() + timedelta(days=3)
            )
            if one.opens_at <= at < one.closes_at
        ]
        wall = at.tz_convert(calendar.zone).tz_localize(None)
        following = (wall.floor(f"{timeframe.seconds}s") + timeframe.length).tz_localize(
            calendar.zone, ambiguous=False, nonexistent="shift_forward"
        )
        closes.append(min(following, pd.Timestamp(session.closes_at)))
    return pd.to_datetime(closes, utc=True)


def test_before_the_first_bar_nothing_is_joined(readable: ReadableStore) -> None:
    """Missing, not a later bar; and an empty base has all columns."""
    readable.fill("AAPL", "1h", "2024-01-02", "2024-01-04")
    readable.fill("AAPL", "1d", "2024-01-03", "2024-01-04")
    store = readable.open()
    joined = store.join_timeframes("AAPL", "1h", "1d", columns=["close", "bar_count"])
    assert joined["close_1d"].notna().sum() == 1
    assert joined["closes_at_1d"].notna().sum() == 1
    empty = store.join_timeframes(
        "AAPL", "1h", "1d", start="2024-05-01", columns=["close", "bar_count"]
    )
    assert len(empty) == 0
    assert empty.dtypes.equals(joined.dtypes)


def test_a_gap_leaves_the_bar_before_it(readable: ReadableStore) -> None:
    """However old it is; its close says so."""
    readable.fill("AAPL", "1h", "2024-01-02", "2024-03-01")
    readable.fill("AAPL", "1d", "2024-01-02", "2024-01-04")
    joined = readable.open().join_timeframes("AAPL", "1h", "1d", start="2024-02-28")
    assert {str(one) for one in joined["closes_at_1d"]} == {"2024-01-03 21:00:00+00:00"}


def test_timeframes_are_joined_on_one_price_basis(readable: ReadableStore) -> None:
    """Also where they were requested on different sides of a split."""
    readable.fill("AAPL", "1d", "2024-01-02", "2024-01-04")
    readable.split("AAPL", 0.25, "2024-01-04")
    readable.fill("AAPL", "1h", "2024-01-02", "2024-01-04")
    joined = readable.open().join_timeframes("AAPL", "1h", ["1d"])
    assert joined["close"].iloc[-1] > 90
    assert joined["close_1d"].iloc[-1] < 30


@pytest.mark.parametrize(
    ("base", "others", "text"),
    [
        ("5m", ["5m"], "named twice"),
        ("5m", ["1h", "1h"], "named twice"),
        ("5m", ["2h"], "timeframe '2h'"),
        ("3m", ["1h"], "timeframe '3m'"),
    ],
)
def test_bad_timeframes_are_refused(
    readable: ReadableStore, base: str, others: list[str], text: str
) -> None:
    """By an error that names them."""
    readable.fill("AAPL", "5m", "2024-01-02", "2024-01-04")
    with pytest.raises(UsageError, match=text):
        readable.open().join_timeframes("AAPL", base, others)
