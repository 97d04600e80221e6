"""The replay market: recorded bars bit for bit, and the treatment of missing ones."""

import logging
import math
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ktrdr_pipelines.errors import SimulatorError
from ktrdr_pipelines.simulator.market.recorded import ReplayMarket
from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.protocol.messages import ContractFields
from ktrdr_pipelines.simulator.server import open_market
from tests.support.recordings import RECORDED, Row, write

LATER = "2024-12-31T00:00:00+00:00"


def future_of(local_symbol: str) -> ContractFields:
    """Return the fields of an expired future, by its local symbol."""
    texts = ["", "FUT", "", "", "", "", "CME", "", "USD", local_symbol, ""]
    return ContractFields(0, *texts, include_expired=True)


def minutes(start: str, count: int, level: float = 100.0) -> list[Row]:
    """Return minutes whose prices have no short decimals."""
    first = datetime.fromisoformat(start)
    rows: list[Row] = []
    for at in range(count):
        price = level + math.sin(at) / 3
        moment = first + timedelta(minutes=at)
        rows.append((moment, price, price + 1 / 7, price - 1 / 7, price + 1 / 11, 100.0 + at))
    return rows


def values(rows: list[Row]) -> list[list[float]]:
    """Return prices and volume of recorded rows."""
    return [list(row[1:]) for row in rows]


def shown(response: Any) -> list[list[float]]:
    """Return prices and volume as a client reads them."""
    return [[float(text) for text in bar[1:6]] for bar in response.bars]


@pytest.fixture
def replay(new_requester: Any, tmp_path: Path) -> Any:
    """Return a function that opens the folder and returns a requester."""
    return lambda now=LATER: new_requester(ReplayMarket(tmp_path), now=now)


def test_recorded_bars_are_returned_bit_for_bit(replay: Any, tmp_path: Path) -> None:
    """Every float64 is returned as recorded, ordered by time."""
    rows = minutes("2024-01-09T14:30:00+00:00", 390)
    write(tmp_path, "AAPL", "1m", rows[::-1])
    response = replay().bars("AAPL", "1 min", "1 D", "20240109-21:00:00", format_date=2)
    assert shown(response) == values(rows)
    assert [int(text) for text in response.dates] == [int(row[0].timestamp()) for row in rows]  # type: ignore[union-attr]
    assert {tuple(bar[6:]) for bar in response.bars} == {("-1", "-1")}


def test_the_file_of_a_size_comes_before_aggregates(replay: Any, tmp_path: Path) -> None:
    """A recorded hour is returned even if the minutes differ."""
    hour = datetime(2024, 1, 9, 15, tzinfo=UTC)
    write(tmp_path, "AAPL", "1h", [(hour, 1.0, 2.0, 0.5, 1.5, 7.0)])
    write(tmp_path, "AAPL", "1m", minutes("2024-01-09T14:30:00+00:00", 390))
    response = replay().bars("AAPL", "1 hour", "1 D", "20240109-21:00:00")
    assert shown(response) == [[1.0, 2.0, 0.5, 1.5, 7.0]]


def test_a_size_without_a_file_is_built_of_the_longest_shorter_one(
    replay: Any, tmp_path: Path
) -> None:
    """Four hours are built from the recorded hours, not from the minutes."""
    hours = [datetime(2024, 1, 9, hour, tzinfo=UTC) for hour in (15, 16)]
    rows: list[Row] = [(hour, 1.0, 2.0, 0.5, 1.5, 7.0) for hour in hours]
    write(tmp_path, "AAPL", "1h", rows)
    write(tmp_path, "AAPL", "1m", minutes("2024-01-09T14:30:00+00:00", 390))
    response = replay().bars("AAPL", "4 hours", "1 D", "20240109-21:00:00")
    assert shown(response) == [[1.0, 2.0, 0.5, 1.5, 14.0]]
    assert response.dates == ["20240109 09:30:00 US/Eastern"]
    five = replay().bars("AAPL", "5 mins", "1 D", "20240109-21:00:00")
    assert len(five.bars) == 78


def test_regular_hours_leave_out_the_rest(replay: Any, tmp_path: Path) -> None:
    """useRTH=1 returns the regular session only, useRTH=0 everything."""
    write(tmp_path, "AAPL", "1m", minutes("2024-01-09T13:00:00+00:00", 10 * 60))
    arguments = ("AAPL", "1 min", "1 D", "20240109-23:30:00")
    assert len(replay().bars(*arguments, use_rth=True).bars) == 390
    assert len(replay().bars(*arguments, use_rth=False).bars) == 600


def test_missing_bars_stay_missing(replay: Any, tmp_path: Path) -> None:
    """Gaps are not filled, and a day without bars counts as a session."""
    first, last = minutes("2024-01-08T14:30:00+00:00", 5), minutes("2024-01-10T14:32:00+00:00", 3)
    write(tmp_path, "AAPL", "1m", first + last)
    requester = replay()
    assert shown(requester.bars("AAPL", "1 min", "3 D", "20240110-21:00:00")) == values(
        first + last
    )
    assert shown(requester.bars("AAPL", "1 min", "2 D", "20240110-21:00:00")) == values(last)
    nothing = requester.bars("AAPL", "1 min", "1 D", "20240109-21:00:00")
    assert nothing.errors[0][1].endswith("HMDS query returned no data: AAPL@SMART Trades")


def test_a_bar_cut_by_the_end_is_left_out(replay: Any, tmp_path: Path) -> None:
    """A recorded hour cannot be split."""
    hours = [datetime(2024, 1, 9, hour, tzinfo=UTC) for hour in (15, 16)]
    write(tmp_path, "AAPL", "1h", [(hour, 1.0, 2.0, 0.5, 1.5, 7.0) for hour in hours])
    requester = replay()
    assert len(requester.bars("AAPL", "1 hour", "1 D", "20240109-16:59:00").bars) == 1
    assert len(requester.bars("AAPL", "1 hour", "1 D", "20240109-17:00:00").bars) == 2


def test_a_bar_cut_by_the_end_is_built_of_recorded_minutes(replay: Any, tmp_path: Path) -> None:
    """If there are recorded minutes, the last hour holds those before the end."""
    hours = [datetime(2024, 1, 9, hour, tzinfo=UTC) for hour in (15, 16)]
    write(tmp_path, "AAPL", "1h", [(hour, 1.0, 2.0, 0.5, 1.5, 7.0) for hour in hours])
    rows = minutes("2024-01-09T16:00:00+00:00", 60)
    write(tmp_path, "AAPL", "1m", rows)
    response = replay().bars("AAPL", "1 hour", "1 D", "20240109-16:20:30")
    assert response.dates[-1] == "20240109 11:00:00 US/Eastern"
    assert shown(response)[-1][3] == rows[19][4]
    assert shown(response)[-1][4] == sum(row[5] for row in rows[:20])


def test_a_recorded_day_is_not_known_before_its_close(replay: Any, tmp_path: Path) -> None:
    """A daily bar needs the close of its session, also if the end is now."""
    days = [date(2024, 1, 8), date(2024, 1, 9)]
    write(tmp_path, "AAPL", "1d", [(day, 1.0, 2.0, 0.5, 1.5, 7.0) for day in days])
    arguments = ("AAPL", "1 day", "5 D")
    assert replay("2024-01-09T20:59:59+00:00").bars(*arguments).dates == ["20240108"]
    assert replay("2024-01-09T21:00:00+00:00").bars(*arguments).dates == ["20240108", "20240109"]


def test_weeks_are_built_of_recorded_days(replay: Any, tmp_path: Path) -> None:
    """A week has the date of its last recorded day, and the sum of the volumes."""
    days = [date(2024, 1, day) for day in (2, 3, 4, 5, 8, 9)]
    write(tmp_path, "AAPL", "1d", [(day, 1.0, 2.0, 0.5, 1.5, 7.0) for day in days])
    response = replay().bars("AAPL", "1 week", "2 W", "20240109-21:00:00")
    assert response.dates == ["20240105", "20240109"]
    assert [bar[5] for bar in response.bars] == ["28", "14"]


def test_a_volume_that_was_not_recorded_is_not_available(replay: Any, tmp_path: Path) -> None:
    """Null is sent as -1, also for bars built from it."""
    rows: list[Any] = minutes("2021-01-05T14:30:00+00:00", 10)
    rows[3] = (*rows[3][:5], None)
    write(tmp_path, "AAPL", "1m", rows)
    requester = replay()
    response = requester.bars("AAPL", "1 min", "1 D", "20210105-21:00:00")
    assert [bar[5] for bar in response.bars] == [
        "-1" if at == 3 else str(100 + at) for at in range(10)
    ]
    longer = requester.bars("AAPL", "5 mins", "1 D", "20210105-21:00:00")
    assert [bar[5] for bar in longer.bars] == ["-1", str(sum(range(105, 110)))]


@pytest.mark.parametrize(
    ("number", "value", "reason"),
    [
        (0, None, "ts is missing in 1 bars"),
        (4, None, "close is missing in 1"),
        (2, math.inf, "no number"),
    ],
)
def test_bars_without_a_time_or_price_are_refused(
    tmp_path: Path, number: int, value: Any, reason: str
) -> None:
    """The error names the file and the column."""
    rows: list[Any] = minutes("2021-01-05T14:30:00+00:00", 3)
    rows[1] = (*rows[1][:number], value, *rows[1][number + 1 :])
    write(tmp_path, "AAPL", "1m", rows)
    with pytest.raises(SimulatorError, match=reason):
        ReplayMarket(tmp_path).default_now()


def test_a_pair_has_midpoints_without_volume(replay: Any, tmp_path: Path) -> None:
    """Volume 0 in the file of a pair is sent as -1; there are no other quotes."""
    rows: list[Row] = [(*row[:5], 0.0) for row in minutes("2024-01-09T15:00:00+00:00", 60, 1.1)]
    write(tmp_path, "EURUSD", "1m", rows)
    requester = replay()
    response = requester.bars("EURUSD", "1 min", "1 D", "20240109-16:00:00")
    assert [bar[5:] for bar in response.bars] == [["-1", "-1", "-1"]] * 60
    assert [bar[:4] for bar in shown(response)] == [row[:4] for row in values(rows)]
    bid = requester.bars("EURUSD", "1 min", "1 D", "20240109-16:00:00", what="BID")
    assert bid.errors[0][1].endswith("HMDS query returned no data: EUR.USD@IDEALPRO Bid")


def test_bars_outside_known_sessions_belong_to_the_next_one(replay: Any, tmp_path: Path) -> None:
    """An hour recorded in the break from 17:00 belongs to the session after it."""
    hours = [datetime(2024, 1, 9, hour, tzinfo=UTC) for hour in (21, 22, 23)]
    write(tmp_path, "EURUSD", "1h", [(hour, 1.0, 2.0, 0.5, 1.5, 0.0) for hour in hours])
    requester = replay()
    before = requester.bars("EURUSD", "1 hour", "1 D", "20240109-22:00:00")
    after = requester.bars("EURUSD", "1 hour", "1 D", "20240110-22:00:00")
    assert [text[9:14] for text in before.dates + after.dates] == ["16:00", "17:00", "18:00"]


def test_heads_are_the_oldest_recorded_bars(replay: Any, tmp_path: Path) -> None:
    """The head is the oldest bar of any size; a day starts at its open."""
    write(tmp_path, "AAPL", "1m", minutes("2024-01-09T13:00:00+00:00", 10 * 60))
    requester = replay()
    assert requester.head("AAPL", "TRADES").head == "20240109-14:30:00"
    assert requester.head("AAPL", "TRADES", use_rth=False).head == "20240109-13:00:00"
    assert requester.head("AAPL", "MIDPOINT").errors[0][0] == 162
    write(tmp_path, "AAPL", "1d", [(date(2024, 1, 5), 1.0, 2.0, 0.5, 1.5, 7.0)])
    assert replay().head("AAPL", "TRADES").head == "20240105-14:30:00"


def test_unknown_symbols_are_200(replay: Any, tmp_path: Path) -> None:
    """An instrument that was not recorded is unknown."""
    write(tmp_path, "AAPL", "1m", minutes("2024-01-09T14:30:00+00:00", 5))
    assert replay().bars("MSFT", "1 min", "1 D").errors[0][0] == 200


def test_now_is_a_midnight_after_the_newest_bar(tmp_path: Path) -> None:
    """The default clock starts at a midnight, a day after the newest bar."""
    write(tmp_path, "AAPL", "1m", minutes("2024-01-09T14:30:00+00:00", 5))
    write(tmp_path, "SPY", "1d", [(date(2024, 1, 10), 1.0, 2.0, 0.5, 1.5, 7.0)])
    assert ReplayMarket(tmp_path).default_now() == datetime(2024, 1, 12, tzinfo=UTC)


def test_unknown_names_are_skipped_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that is no stock, pair or future is skipped with a warning."""
    write(tmp_path, "1INCH", "1m", minutes("2024-01-09T14:30:00+00:00", 5))
    write(tmp_path, "AAPL", "1m", minutes("2024-01-09T14:30:00+00:00", 5))
    with caplog.at_level(logging.WARNING):
        assert [each.key for each in ReplayMarket(tmp_path).instruments()] == ["AAPL"]
    assert "1INCH" in caplog.text


def test_a_recorded_future_is_never_forgotten(replay: Any, tmp_path: Path, fields_of: Any) -> None:
    """The year of its name is that of the newest bar, and its bars stay available."""
    rows = minutes("2013-12-19T23:00:00+00:00", 90, 1_810.0)
    write(tmp_path, "ESZ3", "1m", rows)
    requester = replay()
    (future,) = requester.market.instruments()
    assert future.expiry.last_trade_date == "20131220"
    named = fields_of("ES", sec_type="FUT", exchange="CME", last_trade_date="201312")
    arguments = ("ES", "1 min", "1 D", "20131220-02:00:00")
    assert requester.bars(*arguments, contract=named).errors[0][0] == 200
    expired = replace(named, include_expired=True)
    response = requester.bars(*arguments, contract=expired, use_rth=False)
    assert shown(response) == values(rows)
    assert response.dates[0] == "20131219 17:00:00 US/Central"


def test_folders_that_hold_no_bars_are_refused(tmp_path: Path) -> None:
    """A missing folder, an empty one and a malformed file are named."""
    with pytest.raises(SimulatorError, match="no such folder"):
        ReplayMarket(tmp_path / "none")
    with pytest.raises(SimulatorError, match="no recorded stock"):
        ReplayMarket(tmp_path)
    (tmp_path / "AAPL").mkdir()
    (tmp_path / "AAPL" / "1m.parquet").write_bytes(b"no parquet")
    with pytest.raises(SimulatorError, match=r"1m\.parquet"):
        ReplayMarket(tmp_path)
    pq.write_table(pa.table({"ts": [1]}), tmp_path / "AAPL" / "1m.parquet")
    with pytest.raises(SimulatorError, match="no column close"):
        ReplayMarket(tmp_path)


def test_a_folder_opens_a_replay_and_none_the_synthetic_market(tmp_path: Path) -> None:
    """The folder decides which market is served."""
    write(tmp_path, "AAPL", "1m", minutes("2024-01-09T14:30:00+00:00", 5))
    assert isinstance(open_market(tmp_path, 1), ReplayMarket)
    market = open_market(None, 3)
    assert isinstance(market, SyntheticMarket)
    assert market.seed == 3


@pytest.mark.skipif(not RECORDED.is_dir(), reason="the sample bars are not beside the checkout")
@pytest.mark.parametrize(
    ("key", "size", "text", "duration", "end"),
    [
        ("AAPL", "1h", "1 hour", "365 D", "20210331-20:00:00"),
        ("AAPL", "1d", "1 day", "30 Y", "20210401-00:00:00"),
        ("AAPL", "1m", "1 min", "5 D", "20140610-00:00:00"),
        ("EURUSD", "1h", "1 hour", "20 Y", "20190101-00:00:00"),
        ("EURUSD", "1m", "1 min", "1 Y", "20190101-00:00:00"),
        ("ESZ3", "1m", "1 min", "120 D", "20131222-00:00:00"),
    ],
)
def test_the_sample_bars_are_returned_unchanged(
    new_requester: Any, *, key: str, size: str, text: str, duration: str, end: str
) -> None:
    """Real recorded bars are returned unchanged."""
    recorded = pq.read_table(RECORDED / key / f"{size}.parquet").to_pydict()
    requester = new_requester(open_market(RECORDED, 1), now=LATER)
    named = {"contract": future_of(key)} if key == "ESZ3" else {}
    response = requester.bars(key, text, duration, end, use_rth=False, format_date=2, **named)
    columns = [recorded[name][-len(response.bars) :] for name in ("open", "high", "low", "close")]
    assert [bar[:4] for bar in shown(response)] == [list(row) for row in zip(*columns, strict=True)]
    assert len(response.bars) > 1_700
