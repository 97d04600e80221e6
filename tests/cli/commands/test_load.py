"""ktrdr load: from a gateway into the store, and its output."""

import re
import signal
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.app.workspace import Workspace

DAYS = ("--start", "2024-01-02", "--end", "2024-01-06")


def only_series(result: Any) -> dict[str, Any]:
    """Return the only series of a document."""
    (series,) = result.document["series"]
    found: dict[str, Any] = series
    return found


def test_loaded_bars_can_be_queried(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Two symbols at two timeframes: a row for each series, and the catalog has their bars."""
    result = ktrdr("load", "AAPL,MSFT", "1d,1h", *DAYS)
    assert (result.code, result.err) == (0, "")
    rows = [line.split() for line in result.out.splitlines() if "complete" in line]
    assert [row[:3] for row in rows] == [
        ["AAPL", "1d", "complete"],
        ["AAPL", "1h", "complete"],
        ["MSFT", "1d", "complete"],
        ["MSFT", "1h", "complete"],
    ]
    sql = "SELECT timeframe, count(*) AS n FROM bars GROUP BY ALL ORDER BY ALL"
    assert ktrdr("query", sql, "--json").rows == [
        {"timeframe": "1d", "n": 8},
        {"timeframe": "1h", "n": 56},
    ]


def test_a_second_load_sends_no_request(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Covered ranges are not requested again."""
    ktrdr("load", "AAPL", "1h", *DAYS)
    series = only_series(ktrdr("load", "AAPL", "1h", *DAYS, "--json"))
    assert (series["requests"], series["added"], series["complete"]) == (0, 0, True)


def test_the_document_describes_every_series(ktrdr: Any, store: Path, gateway: Any) -> None:
    """The keys of a series are a contract with programs."""
    result = ktrdr("load", "AAPL", "1d", *DAYS, "--json")
    assert result.document["exit_code"] == 0
    assert result.document["complete"] is True
    series = only_series(result)
    assert series | {"bars": 4} == {
        "symbol": "AAPL",
        "timeframe": "1d",
        "complete": True,
        "requests": 1,
        "bars": 4,
        "added": 4,
        "revised": 0,
        "unexplained": [],
        "waiting": [],
        "before_listing": [],
        "deferred": [],
        "next_try_at": None,
        "not_refreshed": [],
        "sparse": [],
        "confirmed_at": None,
        "disagreements": [],
        "unit_changes": [],
        "volume_jumps": [],
        "adjustments": [],
        "unconfirmed_bars": 0,
        "unconfirmed_basis": [],
        "basis_due_at": None,
        "failures": [],
        "error": None,
        "notes": [],
    }


def test_modes_extend_the_stored_bars(ktrdr: Any, store: Path, gateway: Any) -> None:
    """A backfill loads before the oldest bar, a tail after the newest."""
    ktrdr("load", "AAPL", "1d", "--start", "2024-01-04", "--end", "2024-01-05")
    bounds = ("--start", "2024-01-02", "--end", "2024-01-09", "--json")
    older = only_series(ktrdr("load", "AAPL", "1d", "--mode", "backfill", *bounds))
    newer = only_series(ktrdr("load", "AAPL", "1d", "--mode", "tail", *bounds))
    assert (older["added"], newer["added"]) == (2, 2)


def test_instants_bound_intraday_bars(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Bounds may be instants of any zone."""
    result = ktrdr(
        *("load", "EURUSD", "1h", "--json"),
        *("--start", "2024-01-03T12:00:00Z", "--end", "2024-01-03T09:00:00-05:00"),
    )
    assert result.code == 0
    assert only_series(result)["added"] >= 2


def test_repeated_names_are_loaded_once(ktrdr: Any, store: Path, gateway: Any) -> None:
    """A symbol or timeframe that is given twice is one series."""
    result = ktrdr("load", "AAPL,AAPL", "1d,1d", *DAYS, "--json")
    assert len(result.document["series"]) == 1


def test_a_timeframe_that_the_universe_does_not_list_is_noted(
    ktrdr: Any, store: Path, gateway: Any
) -> None:
    """It is loaded, and a note says that it is not kept up to date."""
    result = ktrdr("load", "EURUSD", "1d", *DAYS)
    assert result.code == 0
    assert "EURUSD 1d" in result.err
    assert "does not list" in result.err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("APPL", "1d"), ("'APPL'", "not in the universe", "AAPL", "universe.yaml")),
        (("aapl", "1d"), ("'aapl'", "did you mean AAPL")),
        (("AAPL,", "1d"), ("a symbol is empty",)),
        (("AAPL", "2m"), ("'2m'", "1m, 5m, 15m, 30m, 1h, 4h, 1d, 1w")),
        (("AAPL", "1d", "--mode", "fast"), ("--mode fast", "tail, backfill, full")),
        (("AAPL", "1d", "--start", "2024-01-06", "--end", "2024-01-02"), ("reversed",)),
        (("AAPL", "1d", "--start", "2024-01-02T10:00:00"), ("without a zone", "+02:00", "Z")),
        (("AAPL", "1d", "--start", "2049-01-01"), ("2049-01-01", "future", "latest allowed")),
        (("AAPL", "1d", "--end", "2049-01-01"), ("2049-01-01", "future", "latest allowed")),
        (("AAPL", "1d", "--start", "soon"), ("--start soon", "session date", "2024-01-05")),
    ],
)
def test_invalid_arguments_are_refused_before_any_request(
    ktrdr: Any, store: Path, gateway: Any, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    """They are bad usage; the error names the value and what is allowed."""
    before = len(gateway.requests)
    ktrdr("load", *arguments).is_error(2, *[part.replace("+02:00", "-05:00") for part in parts])
    assert len(gateway.requests) == before


def test_what_a_load_lacks_is_reported_with_the_failure(
    ktrdr: Any, store: Path, half_responding_gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It exits with 3; the other series is saved, and status lists the failed attempts."""
    monkeypatch.setenv("IB_TIMEOUT", "2")
    day = ("--start", "2024-01-02", "--end", "2024-01-03")  # a longer range is tried in parts
    result = ktrdr("load", "AAPL,MSFT", "1d", *day, "--json")
    document = result.document
    assert (result.code, document["exit_code"], document["complete"]) == (3, 3, False)
    apple, microsoft = document["series"]
    assert (apple["complete"], apple["added"]) == (True, 1)
    assert microsoft["unexplained"] == [
        {"start": "2024-01-02T00:00:00Z", "end": "2024-01-03T00:00:00Z"}
    ]
    assert {one["kind"] for one in microsoft["failures"]} == {"GatewayTimeoutError"}
    assert "no answer in 2 s" in microsoft["failures"][0]["message"]
    symbols = ktrdr("query", "SELECT DISTINCT symbol FROM bars", "--json").rows
    assert symbols == [{"symbol": "AAPL"}]
    attempts = {
        (one["symbol"], one["timeframe"]): one["attempts"]
        for one in ktrdr("status", "--json").document["series"]
    }
    assert attempts["AAPL", "1d"] == []
    assert all("no answer in 2 s" in one["error"] for one in attempts["MSFT", "1d"])
    assert attempts["MSFT", "1d"]


def test_a_load_that_is_stopped_keeps_what_it_has(
    ktrdr: Any, store: Path, half_responding_gateway: Any, helpers: Any
) -> None:
    """Ctrl-C ends it in order: the bars received are on disk and in the catalog."""
    with helpers.started("load", "AAPL,MSFT", "1h", *DAYS) as load:
        helpers.wait_for(lambda: list(store.glob("bars/symbol=AAPL/*/*.parquet")))
        helpers.wait_for(lambda: [one for one in half_responding_gateway.requests if one.is_open])
        load.send_signal(signal.SIGINT)
        out, err = load.communicate(timeout=180)
    assert load.returncode == 130, err
    assert err == "stopped; what was saved is kept\n"
    assert re.search(r"AAPL 1h +complete +\d+ +28 +28", out), out
    assert re.search(r"MSFT 1h +stopped", out), out
    assert "`ktrdr load AAPL,MSFT 1h" in out
    sql = "SELECT DISTINCT symbol FROM bars"
    assert ktrdr("query", sql, "--json").rows == [{"symbol": "AAPL"}]
    coverage = ktrdr("query", "SELECT DISTINCT symbol FROM coverage", "--json")
    assert (coverage.rows, coverage.err) == ([{"symbol": "AAPL"}], "")


def test_a_loader_of_a_program_fills_the_same_store(ktrdr: Any, store: Path, gateway: Any) -> None:
    """The command finds complete what a loader of the workspace has loaded, with the same bars."""
    loader = Workspace.open().data_loader()
    frame = loader.load_data_range("AAPL", "1d", DAYS[1], DAYS[3])
    assert frame.attrs["missing"] == []
    series = only_series(ktrdr("load", "AAPL", "1d", *DAYS, "--json"))
    assert (series["requests"], series["complete"]) == (0, True)
    sql = "SELECT close FROM bars WHERE timeframe = '1d' ORDER BY ts"
    closes = [row["close"] for row in ktrdr("query", sql, "--json").rows]
    assert closes == frame["close"].tolist()
    assert len(closes) == 4
