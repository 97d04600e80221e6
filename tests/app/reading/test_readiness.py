"""Whether data are complete, and what is missing of them and why."""

import os
from contextlib import closing
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.domain.bars import empty_bars
from ktrdr_pipelines.domain.coverage import Coverage, Emptiness
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import CorruptFileError, IncompleteError
from tests.support.readable import ReadableStore, random_bars


@pytest.mark.parametrize(
    ("start", "end", "reasons", "bars"),
    [
        ("2024-01-02", "2024-01-10", [], 0),
        ("2024-01-08", "2024-01-12", ["missing"], 390),
        ("2024-01-10", "2024-01-11", ["missing"], 390),
        ("2024-01-13", "2024-01-15", [], 0),  # a weekend
        (
            datetime(2024, 1, 10, 15, tzinfo=UTC),
            datetime(2024, 1, 10, 16, tzinfo=UTC),
            ["missing"],
            60,
        ),
        ("2022-12-30", "2023-01-01", ["before_start"], 390),
        ("2024-07-08", "2024-07-09", ["missing", "not_closed"], None),
    ],
)
def test_a_period_is_complete_or_says_what_is_missing(
    readable: ReadableStore,
    start: str | datetime,
    end: str | datetime,
    reasons: list[str],
    bars: int | None,
) -> None:
    """By sessions and instants, in the past and in the future."""
    readable.fill("AAPL", "1m", "2024-01-02", "2024-01-17", without=["2024-01-10"])
    found = readable.open().is_ready("AAPL", "1m", start, end)
    assert bool(found) == (not reasons)
    if bars is None:
        assert [one.reason for one in found.missing] == ["not_closed"]
        return
    assert [one.reason for one in found.missing] == reasons
    assert found.missing_bars == bars
    assert len(found.to_frame()) == len(found.missing)
    if reasons:
        assert str(bars) in str(found)


def test_confirmed_empty_is_complete(readable: ReadableStore) -> None:
    """A session that is confirmed not to have bars lacks none."""
    readable.fill("AAPL", "1d", "2024-01-02", "2024-01-12", without=["2024-01-10"])
    assert not readable.open().is_ready("AAPL", "1d", "2024-01-02", "2024-01-12")
    day = Interval(datetime(2024, 1, 10, tzinfo=UTC), datetime(2024, 1, 11, tzinfo=UTC))
    proof = Emptiness(day, datetime(2024, 7, 1, tzinfo=UTC))
    readable.save("AAPL", "1d", empty_bars(), Coverage(empty=(proof,)))
    store = readable.open()
    assert store.is_ready("AAPL", "1d", "2024-01-02", "2024-01-12")
    covered = store.coverage("AAPL", "1d")
    assert covered["verdict"].tolist() == ["bars", "empty", "bars"]
    assert str(covered["proved_at"].dtype) == "datetime64[us, UTC]"


def test_open_bounds_are_those_of_the_universe_and_of_closed_sessions(
    readable: ReadableStore,
) -> None:
    """From its start to the newest session that is over."""
    readable.fill("AAPL", "1d", "2023-01-02", "2024-07-05")
    found = readable.open().is_ready("AAPL", "1d")
    assert (str(found.start.date()), str(found.end.date())) == ("2023-01-02", "2024-07-06")
    assert [(one.reason, one.bars) for one in found.missing] == [("missing", 1)]
    readable.fill("AAPL", "1d", "2024-07-05", "2024-07-06")
    assert readable.open().is_ready("AAPL", "1d")
    assert readable.open().is_ready("AAPL", "1w").missing_bars > 70


def test_an_ended_instrument_lacks_nothing_after_its_end(readable: ReadableStore) -> None:
    """A future after its last trade date."""
    readable.fill("ESH24", "1d", "2024-01-02", "2024-03-16")
    assert readable.open().is_ready("ESH24", "1d", "2024-01-02", "2024-06-01")


def test_incomplete_bars_are_not_read_where_complete_ones_are_required(
    readable: ReadableStore,
) -> None:
    """The error names series, ranges and reasons; complete parts are read."""
    readable.fill("AAPL", "1m", "2024-01-02", "2024-01-12", without=["2024-01-10"])
    readable.fill("MSFT", "1m", "2024-01-02", "2024-01-12")
    store = readable.open()
    both = ["AAPL", "MSFT"]
    assert len(store.read_bars(both, "1m", "2024-01-02", "2024-01-10", require_complete=True)) == (
        2 * 6 * 390
    )
    with pytest.raises(IncompleteError) as refused:
        store.read_bars(both, "1m", "2024-01-02", "2024-01-12", require_complete=True)
    text = str(refused.value)
    assert "AAPL 1m" in text
    assert "390 bars from 2024-01-10T14:30:00Z to 2024-01-10T21:00:00Z (missing: " in text
    assert "MSFT" not in text
    assert "Hint: `ktrdr load AAPL 1m`" in text
    with pytest.raises(IncompleteError):
        store.read_bars("AAPL", "1m", "2024-01-11", "2024-01-12", warmup=1, require_complete=True)
    assert len(store.read_bars("AAPL", "1m", end="2024-01-12", last=390, require_complete=True))
    with pytest.raises(IncompleteError):
        store.read_bars("AAPL", "1m", end="2024-01-12", last=391, require_complete=True)
    with pytest.raises(IncompleteError):
        store.read_bars("AAPL", "1m", last=390, require_complete=True)


def test_gaps_are_those_of_the_universe(readable: ReadableStore) -> None:
    """Of one series, of one timeframe, of all; a damaged file is a row of its own."""
    readable.fill("AAPL", "1d", "2023-01-02", "2024-07-06", without=["2024-01-10"])
    store = readable.open()
    (gap,) = store.gaps("AAPL", "1d").to_dict("records")
    assert (gap["reason"], gap["bars"], str(gap["starts"])) == (
        "missing",
        1,
        "2024-01-10 00:00:00+00:00",
    )
    assert set(store.gaps(timeframe="1d")["symbol"]) == {
        "7203", "AAPL", "AAPL.ETH", "ESH24", "EURUSD", "MSFT"
    }  # fmt: skip
    assert set(store.gaps("MSFT")["timeframe"]) == {
        "1m",
        "5m",
        "15m",
        "30m",
        "1h",
        "4h",
        "1d",
        "1w",
    }
    path = readable.root / "bars/symbol=AAPL/timeframe=1d/all.parquet"
    path.write_bytes(b"not Parquet")
    (row,) = store.gaps("AAPL", "1d").to_dict("records")
    assert row["reason"] == "error"
    assert str(path) in row["detail"]
    with pytest.raises(CorruptFileError):
        store.is_ready("AAPL", "1d")


FAR: list[tuple[str, str | None, str | None, str]] = [
    ("AAPL", "2024-07-08", None, "not_closed"),  # the next session: nothing of it is there
    ("AAPL", "2031-01-06", "2031-01-11", "not_closed"),
    ("600519", "2024-07-01", "2031-01-11", "unknown_sessions"),
    ("600519", "1985-01-07", "1985-01-12", "unknown_sessions"),
    ("MYST", "2031-01-06", "2031-01-11", "unknown_sessions"),
    ("MYST", "2031-01-06", None, "unknown_sessions"),
]


@pytest.mark.parametrize(("symbol", "start", "end", "reason"), FAR)
def test_a_period_of_which_nothing_can_be_known_is_not_complete(
    tmp_path: Path, symbol: str, start: str, end: str | None, reason: str
) -> None:
    """In the future, and outside of what the calendar knows."""
    universe = (
        "defaults: {timeframes: [1h], start: 2024-07-01}\nsymbols:\n  AAPL: {}\n"
        '  "600519": {exchange: SEHKNTL, currency: CNH, calendar: XSHG.RTH}\n'
        "  MYST: {calendar: GATEWAY:Europe/London}\n"
    )
    with closing(ReadableStore(tmp_path / "data", universe=universe)) as store:
        store.fill("AAPL", "1h", "2024-07-01", "2024-07-06")
        assert store.open().is_ready("AAPL", "1h")
        found = store.open().is_ready(symbol, "1h", start, end)
    assert not found
    assert reason in {one.reason for one in found.missing}


def test_bars_of_an_open_session_are_complete_up_to_the_newest(readable: ReadableStore) -> None:
    """A hole among them is one, although their session is not over."""
    readable.now = datetime(2024, 7, 5, 15, tzinfo=UTC)
    readable.fill("AAPL", "1h", "2024-07-01", "2024-07-05")
    day = random_bars(readable.calendar("AAPL"), Timeframe.H1, date(2024, 7, 5), date(2024, 7, 6))
    opens, closes = day["ts"][0].as_py(), datetime(2024, 7, 5, 15, tzinfo=UTC)
    covered = IntervalSet([Interval(opens, closes)])
    store = readable.open()
    readable.save("AAPL", "1h", day.slice(0, 2), Coverage(covered))
    assert len(store.read_bars("AAPL", "1h", "2024-07-01", require_complete=True)) == 2 * 7 + 4 + 2
    assert len(store.read_bars("AAPL", "1h", last=1, require_complete=True)) == 1
    readable.now = datetime(2024, 7, 5, 18, tzinfo=UTC)
    later = Interval(day["ts"][4].as_py(), datetime(2024, 7, 5, 18, tzinfo=UTC))
    readable.save("AAPL", "1h", day.slice(4, 1), Coverage(IntervalSet([later])))
    assert len(store.read_bars("AAPL", "1h", last=1, require_complete=True)) == 1
    incomplete: list[dict[str, Any]] = [{"last": 2}, {"start": "2024-07-01"}]
    for options in incomplete:
        with pytest.raises(IncompleteError, match="not_closed"):
            store.read_bars("AAPL", "1h", **options, require_complete=True)


def test_a_file_that_is_known_to_be_damaged_is_not_complete(readable: ReadableStore) -> None:
    """Its size and time are as recorded: a read found that bytes of it have changed."""
    readable.fill("AAPL", "1d", "2024-01-02", "2024-03-01")
    readable.fill("MSFT", "1d", "2024-01-02", "2024-03-01")
    store = readable.open()
    assert store.is_ready("AAPL", "1d", "2024-01-02", "2024-03-01")
    path = readable.root / "bars/symbol=AAPL/timeframe=1d/all.parquet"
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"damaged")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(CorruptFileError):
        store.read_bars("AAPL", "1d")
    with pytest.raises(CorruptFileError, match=r"ktrdr repair"):
        store.is_ready("AAPL", "1d", "2024-01-02", "2024-03-01")
    assert store.gaps("AAPL", "1d")["reason"].tolist() == ["error"]
    assert store.is_ready("MSFT", "1d", "2024-01-02", "2024-03-01")
