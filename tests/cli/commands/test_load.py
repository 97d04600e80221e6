"""ktrdr load: from a gateway into the store, and how its end is told."""

import signal
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.app.workspace import Workspace

DAYS = ("--start", "2024-01-02", "--end", "2024-01-06")


def one(told: Any) -> dict[str, Any]:
    """Give the only series of a document."""
    (series,) = told.document["series"]
    found: dict[str, Any] = series
    return found


def test_a_load_brings_bars_that_a_query_finds(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Two symbols at two timeframes, a table, exit 0, and the catalog shows them."""
    told = ktrdr("load", "AAPL,MSFT", "1d,1h", *DAYS)
    assert (told.code, told.err) == (0, "")
    rows = [line.split() for line in told.out.splitlines() if "complete" in line]
    assert [row[:3] for row in rows] == [
        ["AAPL", "1d", "complete"],
        ["AAPL", "1h", "complete"],
        ["MSFT", "1d", "complete"],
        ["MSFT", "1h", "complete"],
    ]
    sql = "SELECT timeframe, count(*) AS n FROM bars GROUP BY ALL ORDER BY ALL"
    assert ktrdr("query", sql, "--json").document == [
        {"timeframe": "1d", "n": 8},
        {"timeframe": "1h", "n": 56},
    ]


def test_a_second_load_asks_nothing(ktrdr: Any, store: Path, gateway: Any) -> None:
    """What is covered is never asked for again."""
    ktrdr("load", "AAPL", "1h", *DAYS)
    series = one(ktrdr("load", "AAPL", "1h", *DAYS, "--json"))
    assert (series["requests"], series["added"], series["complete"]) == (0, 0, True)


def test_the_document_tells_every_series(ktrdr: Any, store: Path, gateway: Any) -> None:
    """One JSON document has all that a program may want to know."""
    told = ktrdr("load", "AAPL", "1d", *DAYS, "--json")
    assert told.document["exit_code"] == 0
    assert told.document["complete"] is True
    series = one(told)
    assert series | {"rows": 4} == {
        "symbol": "AAPL",
        "timeframe": "1d",
        "complete": True,
        "requests": 1,
        "rows": 4,
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
        "volume_jumps": [],
        "failures": [],
        "error": None,
        "notes": [],
    }


def test_modes_mean_their_side_of_what_is_there(ktrdr: Any, store: Path, gateway: Any) -> None:
    """A backfill goes before the oldest bar, a tail after the newest."""
    ktrdr("load", "AAPL", "1d", "--start", "2024-01-04", "--end", "2024-01-05")
    bounds = ("--start", "2024-01-02", "--end", "2024-01-09", "--json")
    older = one(ktrdr("load", "AAPL", "1d", "--mode", "backfill", *bounds))
    newer = one(ktrdr("load", "AAPL", "1d", "--mode", "tail", *bounds))
    assert (older["added"], newer["added"]) == (2, 2)


def test_instants_bound_intraday_bars(ktrdr: Any, store: Path, gateway: Any) -> None:
    """An instant with any zone is as good as a date."""
    told = ktrdr(
        *("load", "EURUSD", "1h", "--json"),
        *("--start", "2024-01-03T12:00:00Z", "--end", "2024-01-03T09:00:00-05:00"),
    )
    assert told.code == 0
    assert one(told)["added"] >= 2


def test_a_symbol_and_a_timeframe_count_once(ktrdr: Any, store: Path, gateway: Any) -> None:
    """A name that is given twice is loaded once."""
    told = ktrdr("load", "AAPL,AAPL", "1d,1d", *DAYS, "--json")
    assert len(told.document["series"]) == 1


def test_a_timeframe_that_the_universe_does_not_list_is_noted(
    ktrdr: Any, store: Path, gateway: Any
) -> None:
    """It is loaded all the same, and a person is told that nothing keeps it fresh."""
    told = ktrdr("load", "EURUSD", "1d", *DAYS)
    assert told.code == 0
    assert "EURUSD 1d" in told.err
    assert "does not list" in told.err


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
def test_what_makes_no_sense_is_refused_before_anything_is_asked(
    ktrdr: Any, store: Path, gateway: Any, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    """Bad usage exits with 2, naming the value and what is allowed, at no request."""
    before = len(gateway.requests)
    ktrdr("load", *arguments).is_error(2, *[part.replace("+02:00", "-05:00") for part in parts])
    assert len(gateway.requests) == before


def test_what_a_load_lacks_is_reported_with_the_failure(
    ktrdr: Any, store: Path, half_answering_gateway: Any, monkeypatch: pytest.MonkeyPatch
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
    symbols = ktrdr("query", "SELECT DISTINCT symbol FROM bars", "--json").document
    assert symbols == [{"symbol": "AAPL"}]
    attempts = {
        (one["symbol"], one["timeframe"]): one["attempts"]
        for one in ktrdr("status", "--json").document["series"]
    }
    assert attempts["AAPL", "1d"] == []
    assert all("no answer in 2 s" in one["error"] for one in attempts["MSFT", "1d"])
    assert attempts["MSFT", "1d"]


def test_a_load_that_is_stopped_keeps_what_it_has(
    ktrdr: Any, store: Path, half_answering_gateway: Any, hands: Any
) -> None:
    """Ctrl-C ends it in order: the bars received are on disk, and there is no traceback."""
    with hands.started("load", "AAPL,MSFT", "1h", *DAYS) as load:
        hands.wait_for(lambda: list(store.glob("bars/symbol=AAPL/*/*.parquet")))
        hands.wait_for(lambda: [one for one in half_answering_gateway.requests if one.is_open])
        load.send_signal(signal.SIGINT)
        out, err = load.communicate(timeout=180)
    assert load.returncode == 130, err
    assert err == "stopped; what was saved is kept\n"
    assert out == ""
    sql = "SELECT DISTINCT symbol FROM bars"
    assert ktrdr("query", sql, "--json").document == [{"symbol": "AAPL"}]


def test_a_program_loads_on_the_path_of_the_command(ktrdr: Any, store: Path, gateway: Any) -> None:
    """What a loader of the workspace has loaded, the command finds complete, with the same bars."""
    loader = Workspace.open().data_loader()
    frame = loader.load_data_range("AAPL", "1d", DAYS[1], DAYS[3])
    assert frame.attrs["missing"] == []
    series = one(ktrdr("load", "AAPL", "1d", *DAYS, "--json"))
    assert (series["requests"], series["complete"]) == (0, True)
    sql = "SELECT close FROM bars WHERE timeframe = '1d' ORDER BY ts"
    closes = [row["close"] for row in ktrdr("query", sql, "--json").document]
    assert closes == frame["close"].tolist()
    assert len(closes) == 4
