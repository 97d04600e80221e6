"""ktrdr status and ktrdr health: what is there, with and without a gateway."""

import re
import shutil
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.domain.calendars.gateway_schedules import LearnedDay
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.connection.client_ids import ClientIdLeases
from ktrdr_pipelines.settings import load_settings
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.ledger import Ledger

DAYS = ("--start", "2024-01-02", "--end", "2024-01-06")


def test_an_empty_store_has_a_status(ktrdr: Any, store: Path) -> None:
    """Without bars and a gateway, it shows what is wanted, and which fields are derived."""
    result = ktrdr("status")
    assert (result.code, result.err) == (0, "")
    assert str(store) in result.out
    assert "origin open" in result.out
    assert "STK* SMART* USD*" in result.out
    assert "empty" in result.out
    assert "ktrdr load AAPL 1h fills the first" in result.out


def test_the_document_has_what_the_table_has(ktrdr: Any, store: Path, gateway: Any) -> None:
    """It has the bars, dates, coverage and gaps of each series, and the origin of each field."""
    ktrdr("load", "AAPL", "1d", *DAYS)
    document = ktrdr("status", "--json").document
    assert document["origin"] == "simulated"
    assert document["format"] == 2
    assert 0 <= document["catalog"]["age_s"] < 3600
    assert document["universe"]["symbols"]["AAPL"]["use_rth"] == {
        "value": True,
        "derived": True,
        "origin": "derived",
    }
    series = {(one["symbol"], one["timeframe"]): one for one in document["series"]}
    assert len(series) == 5
    daily = series["AAPL", "1d"]
    assert (daily["bars"], daily["first"], daily["last"]) == (4, "2024-01-02", "2024-01-05")
    assert daily["covered_until"] >= "2024-01-06T00:00:00Z"
    assert daily["gaps"][0]["start"] >= "2024-01-06T00:00:00Z"
    assert series["MSFT", "1d"]["gaps"][0]["start"] == "2024-01-02T00:00:00Z"


def test_a_gap_goes_over_nights_and_weekends(ktrdr: Any, store: Path, gateway: Any) -> None:
    """A missing range between stored bars, and the rest up to now, are two gaps."""
    ktrdr("load", "AAPL", "1h", "--start", "2024-01-02", "--end", "2024-01-04")
    ktrdr("load", "AAPL", "1h", "--start", "2024-01-09", "--end", "2024-01-10")
    (row,) = (
        line for line in ktrdr("status").out.splitlines() if line.strip().startswith("AAPL 1h")
    )
    assert row.split()[-1] == "2"


def test_failed_attempts_are_counted(ktrdr: Any, store: Path) -> None:
    """The remark of a series has their number, the document each with its error."""
    first, second, end = (datetime(2024, 1, day, tzinfo=UTC) for day in (2, 3, 4))
    ledger = Ledger(StoreLayout(store).ledger)
    for interval in (Interval(first, second), Interval(second, end)):
        ledger.attempts.record(
            *("MSFT|1d", interval, "error"),
            error="no answer in 2 s",
            code=None,
            next_try_at=end,
            at=first,
        )
    ledger.close()
    (row,) = (line for line in ktrdr("status").out.splitlines() if "failed attempt" in line)
    assert row.split() == ["MSFT", "1d", "0", "2", "2", "failed", "attempts"]
    (series,) = (one for one in ktrdr("status", "--json").document["series"] if one["attempts"])
    assert (series["symbol"], series["timeframe"]) == ("MSFT", "1d")
    assert series["attempts"][0] == {
        "kind": "error",
        "start": "2024-01-02T00:00:00Z",
        "end": "2024-01-03T00:00:00Z",
        "error": "no answer in 2 s",
        "code": None,
        "failures": 1,
        "next_try_at": "2024-01-04T00:00:00Z",
    }


def test_bars_of_symbols_outside_the_universe_are_listed(
    ktrdr: Any, store: Path, gateway: Any
) -> None:
    """Removing a symbol from the file keeps its bars on disk."""
    ktrdr("load", "MSFT", "1d", *DAYS)
    (store / "universe.yaml").write_text("symbols: {AAPL: {}}\n")
    assert "MSFT 1d: 4 bars on disk" in ktrdr("status").out
    assert ktrdr("status", "--json").document["not_in_universe"] == [
        {"symbol": "MSFT", "timeframe": "1d", "bars": 4}
    ]


def test_a_store_can_be_moved(
    ktrdr: Any, store: Path, gateway: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the catalog has absolute paths, and repair rebuilds it."""
    ktrdr("load", "AAPL", "1d", *DAYS)
    moved = tmp_path / "moved"
    shutil.move(store, moved)
    monkeypatch.setenv("KTRDR_DATA", str(moved))
    rows = {one["symbol"]: one["bars"] for one in ktrdr("status", "--json").document["series"]}
    assert rows["AAPL"] == 4
    assert ktrdr("repair").code == 0
    answer = ktrdr("query", "SELECT count(*) AS n FROM bars", "--json").rows
    assert answer == [{"n": 4}]


def test_health_of_a_responding_gateway(ktrdr: Any, gateway: Any) -> None:
    """It shows round trip, clock, origin and client id, and requests no data."""
    before = len(gateway.requests)
    result = ktrdr("health")
    assert (result.code, result.err) == (0, "")
    for part in (f"127.0.0.1:{gateway.port}", "round trip", "simulated", "client id   201"):
        assert part in result.out
    document = ktrdr("health", "--json").document
    assert document["good"] is True
    assert document["round_trip_ms"] < 10_000
    assert document["clock_offset_s"] < -86_400
    assert len(gateway.requests) == before


def test_health_without_a_gateway(ktrdr: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing listens, there is no connection, and a hint."""
    monkeypatch.setenv("IB_PORT", "1")
    ktrdr("health").is_error(1, "127.0.0.1:1", "nothing listens", "start IB Gateway")
    document = ktrdr("health", "--json").document
    assert (document["tcp"], document["handshake"], document["good"]) == (False, False, False)
    assert document["error"]["kind"] == "GatewayUnreachableError"


def test_health_without_a_client_id(
    ktrdr: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no id is left, no connection was tried."""
    config = GatewayConfig.from_settings(load_settings())
    monkeypatch.setenv("IB_CLIENT_ID_CLI", "201-201")
    config.folder.mkdir(parents=True)
    ClientIdLeases(config.folder).quarantine(201)
    result = ktrdr("health")
    assert result.code == 1
    assert "connection  not tried" in result.out
    document = ktrdr("health", "--json").document
    assert (document["tcp"], document["handshake"], document["good"]) == (None, None, False)


def test_health_of_a_silent_gateway(
    ktrdr: Any, silent_gateway: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that accepts connections and never responds has a connection and no handshake."""
    monkeypatch.setenv("IB_TIMEOUT", "0.2")
    result = ktrdr("health")
    result.is_error(1, "did not answer", "nightly reset")
    assert "connection  made" in result.out
    assert "handshake   not done" in result.out


def test_health_where_the_client_ids_are_taken(
    ktrdr: Any, gateway: Any, helpers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the ids and the setting."""
    monkeypatch.setenv("IB_CLIENT_ID_CLI", "202-202")
    with helpers.client_id_taken(gateway.port, 202):
        ktrdr("health").is_error(1, "202", "IB_CLIENT_ID_")


def test_a_start_before_the_first_window_is_reported(ktrdr: Any, store: Path) -> None:
    """It says that ktrdr load requests these bars, and which setting moves the window."""
    assert "windows begin" not in ktrdr("status").out
    (store / "universe.yaml").write_text(
        "windows: {1m: 2025, yearly: 2024}\n"
        "symbols: {AAPL: {timeframes: [1m, 1d], start: 2024-01-02}}\n"
    )
    for command in (("status",), ("universe", "check")):
        (line,) = [one for one in ktrdr(*command).out.splitlines() if "windows begin" in one]
        assert line.startswith("AAPL: 1m starts before 2025-01-01")
        assert "ktrdr load" in line
    assert ktrdr("status", "--json").document["before_windows"] == {"1m": ["AAPL"]}


def test_dates_on_which_contracts_changed_a_calendar_are_listed(ktrdr: Any, store: Path) -> None:
    """Each has its hours, or is closed, and lists the contracts that agree."""
    ktrdr("status")
    ledger, at = Ledger(store / "state" / "ledger.sqlite"), datetime(2024, 1, 9, tzinfo=UTC)
    hours = Interval(
        datetime(2024, 1, 16, 14, 30, tzinfo=UTC), datetime(2024, 1, 16, 18, tzinfo=UTC)
    )
    result = [LearnedDay(date(2024, 1, 16), (hours,)), LearnedDay(date(2024, 1, 17), ())]
    for symbol in ("AAPL", "KO", "MSFT"):
        ledger.votes.record("XNYS.RTH", symbol, result, at)
    assert ktrdr("status", "--json").document["calendars"] == [
        {
            "key": "XNYS.RTH",
            "date": "2024-01-16",
            "opens": "2024-01-16T14:30:00Z",
            "closes": "2024-01-16T18:00:00Z",
            "closed": False,
            "symbols": ["AAPL", "KO", "MSFT"],
        },
        {
            "key": "XNYS.RTH",
            "date": "2024-01-17",
            "opens": None,
            "closes": None,
            "closed": True,
            "symbols": ["AAPL", "KO", "MSFT"],
        },
    ]
    out = ktrdr("status").out
    assert re.search(r"calendar XNYS.RTH 2024-01-17: closed, according to 3 contracts", out)
