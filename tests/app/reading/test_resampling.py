"""Longer bars within sessions, against a plain loop over the shorter ones."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ktrdr_pipelines.domain.bars import BAR_SCHEMA
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.errors import UnknownSymbolError, UsageError
from tests.support.readable import ReadableStore

COLUMNS = ["open", "high", "low", "close", "volume", "average", "bar_count", "session_date",
           "closes_at", "complete"]  # fmt: skip


def _parts(readable: ReadableStore, symbol: str, day: date) -> list[tuple[datetime, datetime]]:
    """Return the parts of a session between its open, its breaks and its close."""
    calendar = readable.calendar(symbol)
    (session,) = calendar.sessions(day, day + timedelta(days=1))
    marks = [session.opens_at]
    for pause, resumed in calendar.breaks.tolist():
        both = [datetime.fromtimestamp(one / 1e6, UTC) for one in (pause, resumed)]
        if session.opens_at < both[0] < session.closes_at:
            marks += both
    marks.append(session.closes_at)
    return list(zip(marks[::2], marks[1::2], strict=True))


def _expected(
    readable: ReadableStore, symbol: str, bars: pa.Table, length: timedelta
) -> list[dict[str, Any]]:
    """Return longer bars, made one by one."""
    frame = bars.to_pandas()
    rows = []
    for day in sorted(set(frame["session_date"])):
        for start, end in _parts(readable, symbol, day):
            begins = start
            while begins < end:
                until = min(begins + length, end)
                group = frame[(frame["ts"] >= begins) & (frame["ts"] < until)]
                if len(group):
                    volume = group["volume"].sum()
                    rows.append(
                        {
                            "ts": begins,
                            "open": group["open"].iloc[0],
                            "high": group["high"].max(),
                            "low": group["low"].min(),
                            "close": group["close"].iloc[-1],
                            "volume": volume,
                            "average": (group["average"] * group["volume"]).sum() / volume,
                            "bar_count": group["bar_count"].sum(),
                            "closes_at": until,
                        }
                    )
                begins += length
    return rows


@pytest.mark.parametrize(
    ("symbol", "source", "target", "first", "end"),
    [
        ("AAPL", "1m", "10m", "2023-11-22", "2023-11-28"),  # a half day
        ("AAPL", "1m", "7m", "2024-03-08", "2024-03-12"),  # a change of the clocks
        ("AAPL", "5m", "2h", "2023-11-22", "2023-11-28"),
        ("AAPL.ETH", "5m", "4h", "2024-03-08", "2024-03-12"),
        ("7203", "1m", "1h", "2024-01-04", "2024-01-10"),  # a lunch break
        ("ESH24", "15m", "4h", "2024-03-08", "2024-03-13"),  # overnight
        ("EURUSD", "15m", "2h", "2023-11-02", "2023-11-08"),
        ("EURUSD", "15m", "15m", "2024-03-08", "2024-03-13"),
    ],
)
def test_groups_begin_at_the_open_of_each_session(
    readable: ReadableStore, symbol: str, source: str, target: str, first: str, end: str
) -> None:
    """And after each break; all values are those of a loop."""
    bars = readable.fill(symbol, source, first, end)
    found = readable.open().resample(symbol, target, from_=source, columns=COLUMNS)
    minutes = int(target[:-1]) * {"m": 1, "h": 60}[target[-1]]
    expected = pd.DataFrame(_expected(readable, symbol, bars, timedelta(minutes=minutes)))
    expected = expected.set_index("ts")
    assert len(found) > 5
    assert [*found.index] == [*expected.index]
    for name in expected.columns:
        if name == "closes_at":
            assert [*found[name]] == [*expected[name]]
        else:
            np.testing.assert_allclose(found[name].astype(float), expected[name], rtol=1e-12)
    assert found["complete"].all()


def test_a_day_is_a_session_and_a_week_its_sessions(readable: ReadableStore) -> None:
    """Dated as stored daily and weekly bars are, and closed with the last session."""
    bars = readable.fill("AAPL", "30m", "2023-11-20", "2023-12-02").to_pandas()
    store = readable.open()
    days = store.resample("AAPL", "1d", from_="30m", columns=COLUMNS, tz="America/New_York")
    groups = bars.groupby("session_date")
    assert [one.date() for one in days.index] == [*groups.groups]
    assert [*days["close"]] == [*groups["close"].last()]
    assert [*days["volume"]] == [*groups["volume"].sum()]
    assert str(days["closes_at"].iloc[3]) == "2023-11-24 13:00:00-05:00"
    weeks = store.resample("AAPL", "1w", from_="30m", columns=COLUMNS)
    assert [str(one.date()) for one in weeks.index] == ["2023-11-20", "2023-11-27"]
    assert weeks["volume"].sum() == bars["volume"].sum()
    assert weeks["complete"].all()
    assert store.resample("AAPL", "24h", from_="30m").equals(
        store.resample("AAPL", "1d", from_="30m")
    )


def test_a_group_that_lacks_bars_says_so(readable: ReadableStore) -> None:
    """It is made of the bars that exist; where there are none there is no group."""
    readable.fill("AAPL", "1m", "2024-01-02", "2024-01-05", without=["2024-01-03"])
    store = readable.open()
    hours = store.resample("AAPL", "30m")
    assert hours["complete"].all()
    assert {str(one.date()) for one in hours.index} == {"2024-01-02", "2024-01-04"}
    days = store.resample("AAPL", "1w")
    assert days["complete"].tolist() == [False]
    assert days["volume"].iloc[0] == hours["volume"].sum()


def test_a_group_in_progress_is_not_complete(readable: ReadableStore) -> None:
    """Of an open session there are the bars until now."""
    bars = readable.fill("AAPL", "1m", "2024-07-02", "2024-07-03")
    readable.now = datetime(2024, 7, 2, 14, 35, 30, tzinfo=UTC)
    path = readable.root / "bars/symbol=AAPL/timeframe=1m/2024.parquet"
    path.unlink()
    opens = datetime(2024, 7, 2, 13, 30, tzinfo=UTC)
    until = datetime(2024, 7, 2, 14, 35, tzinfo=UTC)
    readable.bar_store.ledger.files.remove(["bars/symbol=AAPL/timeframe=1m/2024.parquet"])
    readable.save("AAPL", "1m", bars.slice(0, 65), Coverage(IntervalSet([Interval(opens, until)])))
    store = readable.open()
    assert store.resample("AAPL", "10m")["complete"].tolist() == [True] * 6 + [False]
    assert store.resample("AAPL", "1d")["complete"].tolist() == [False]
    ready = store.is_ready("AAPL", "1m", "2024-07-02", "2024-07-03")
    assert [one.reason for one in ready.missing] == ["not_closed"]
    assert ready.missing_bars == 325
    assert ready.missing[0].start == until


def test_bars_outside_of_sessions_have_groups_of_their_own(readable: ReadableStore) -> None:
    """No bar is lost, and none gets into a group that was over when it began."""
    bars = readable.fill("AAPL", "1m", "2024-01-02", "2024-01-03")
    late = datetime(2024, 1, 2, 21, 5, tzinfo=UTC)
    early = datetime(2024, 1, 2, 14, 3, tzinfo=UTC)
    odd = pa.Table.from_pylist(
        [
            {**bars.slice(0, 1).to_pylist()[0], "ts": at, "volume": 7.0, "close": 1.0}
            for at in (early, late)
        ],
        schema=BAR_SCHEMA,
    )
    readable.save("AAPL", "1m", odd)
    found = readable.open().resample("AAPL", "2h", columns=["close", "volume", "closes_at"])
    times = [
        (str(one.time()), str(end.time()))
        for one, end in zip(found.index, found["closes_at"], strict=True)
    ]
    assert times == [
        ("12:30:00", "14:30:00"),
        ("14:30:00", "16:30:00"),
        ("16:30:00", "18:30:00"),
        ("18:30:00", "20:30:00"),
        ("20:30:00", "21:00:00"),
        ("21:00:00", "23:00:00"),
    ]
    assert found["volume"].iloc[[0, 5]].tolist() == [7, 7]
    assert found["volume"].sum() == sum(bars["volume"].to_pylist()) + 14


def test_unknown_values_stay_unknown(readable: ReadableStore) -> None:
    """A sum of which a part is not known is not known; without volume there is no average."""
    bars = readable.fill("AAPL", "1m", "2024-01-02", "2024-01-03").to_pylist()
    for at, bar in enumerate(bars):
        if at < 10:
            bar["volume"] = 0.0
        elif at == 12:
            bar["volume"] = None
        elif at == 22:
            bar["average"] = None
    readable.save("AAPL", "1m", pa.Table.from_pylist(bars, schema=BAR_SCHEMA))
    found = readable.open().resample("AAPL", "10m", columns=["volume", "average"]).iloc[:4]
    assert found["volume"].isna().tolist() == [False, True, False, False]
    assert found["average"].isna().tolist() == [True, True, True, False]


def test_no_group_is_cut_by_the_period(readable: ReadableStore) -> None:
    """Start and end choose groups by their start."""
    readable.fill("AAPL", "1m", "2024-01-02", "2024-01-05")
    store = readable.open()
    every = store.resample("AAPL", "10m")
    part = store.resample(
        "AAPL",
        "10m",
        datetime(2024, 1, 3, 15, 3, tzinfo=UTC),
        datetime(2024, 1, 4, 15, 0, tzinfo=UTC),
    )
    low, high = every.index.searchsorted([part.index[0], part.index[-1]])
    assert str(part.index[0]) == "2024-01-03 15:10:00+00:00"
    assert str(part.index[-1]) == "2024-01-04 14:50:00+00:00"
    pd.testing.assert_frame_equal(part, every.iloc[low : high + 1])
    dates = store.resample("AAPL", "10m", "2024-01-03", "2024-01-04")
    assert len(dates) == 39
    assert store.resample("AAPL", "10m", "2024-02-03").dtypes.equals(every.dtypes)


@pytest.mark.parametrize(
    ("symbol", "target", "source", "text"),
    [
        ("AAPL", "7m", "5m", "7m is not a multiple of 5m"),
        ("AAPL", "1m", "5m", "1m is not a multiple of 5m"),
        ("AAPL", "2d", "1m", "no such length"),
        ("AAPL", "0m", "1m", "no such length"),
        ("AAPL", "soon", "1m", "no such length"),
        ("AAPL", "10m", "2m", "timeframe '2m'"),
        ("AAPL", "2h", "1h", "do not fit into groups"),
    ],
)
def test_a_target_that_cannot_be_is_refused(
    readable: ReadableStore, symbol: str, target: str, source: str, text: str
) -> None:
    """By an error that says why."""
    readable.fill("AAPL", "1h", "2024-01-02", "2024-01-05")
    with pytest.raises(UsageError, match=text):
        readable.open().resample(symbol, target, from_=source)


def test_a_symbol_without_sessions_is_refused(readable: ReadableStore) -> None:
    """Groups begin at opens, which only the universe knows."""
    readable.fill("AAPL", "1m", "2024-01-02", "2024-01-05")
    (readable.root / "universe.yaml").write_text("symbols: {MSFT: {}}\n")
    with pytest.raises(UnknownSymbolError, match="not in the universe"):
        readable.open().resample("AAPL", "10m")
