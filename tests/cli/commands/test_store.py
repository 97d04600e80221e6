"""Making a store, and making it whole again."""

import json
from pathlib import Path
from typing import Any

import pytest


def test_init_makes_a_store_that_every_command_works_on(ktrdr: Any, data: Path) -> None:
    """The folder, the universe of the example and an empty catalog are there."""
    told = ktrdr("init")
    assert told.code == 0
    assert str(data) in told.out
    assert "ktrdr health" in told.out
    assert (data / "universe.yaml").read_bytes() == (
        Path(__file__).parents[3] / "data" / "universe.example.yaml"
    ).read_bytes()
    assert ktrdr("query", "SELECT count(*) AS n FROM bars", "--json").document == [{"n": 0}]


def test_init_keeps_what_is_there(ktrdr: Any, store: Path) -> None:
    """A second init changes no universe."""
    before = (store / "universe.yaml").read_bytes()
    told = ktrdr("init", "--json")
    assert told.document["universe_made"] is False
    assert told.document["symbols"] == ["AAPL", "MSFT", "EURUSD"]
    assert (store / "universe.yaml").read_bytes() == before


def test_init_takes_another_folder_and_says_how_to_use_it(ktrdr: Any, tmp_path: Path) -> None:
    """--data names the folder; the variable that makes it stay is told."""
    other = tmp_path / "other"
    told = ktrdr("init", "--data", str(other), "--origin", "simulated")
    assert told.code == 0
    assert f"KTRDR_DATA={other}" in told.out
    assert json.loads((other / "store.json").read_text())["origin"] == "simulated"


def test_init_refuses_another_origin(ktrdr: Any, store: Path) -> None:
    """A store of one origin never becomes one of another."""
    assert ktrdr("init", "--origin", "ib").code == 0
    ktrdr("init", "--origin", "simulated").is_error(1, str(store), "ib", "one origin")


def test_init_refuses_an_unknown_origin(ktrdr: Any) -> None:
    """The text names what is allowed."""
    ktrdr("init", "--origin", "moon").is_error(2, "--origin moon", "ib, simulated")


def test_init_says_why_a_folder_cannot_be_made(
    ktrdr: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that cannot be written is named with the hint."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KTRDR_DATA", str(tmp_path / "file" / "data"))
    ktrdr("init").is_error(1, str(tmp_path / "file"), "writable")


def test_repair_of_a_whole_store_finds_nothing_wrong(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Every file is counted as whole."""
    ktrdr("load", "AAPL", "1d", "--start", "2024-01-02", "--end", "2024-01-06")
    told = ktrdr("repair")
    assert (told.code, told.err) == (0, "")
    assert "1 file intact" in told.out
    assert ktrdr("repair", "--json").document["files"] == 1


def test_repair_quarantines_a_damaged_file(
    ktrdr: Any, store: Path, gateway: Any, new_budget: Any
) -> None:
    """It says where the file is now, why, and what is to be loaded again."""
    ktrdr("load", "AAPL,MSFT", "1d", "--start", "2024-01-02", "--end", "2024-01-06")
    path = store / "bars" / "symbol=AAPL" / "timeframe=1d" / "all.parquet"
    path.write_bytes(b"no bars")
    told = ktrdr("repair")
    assert told.code == 0
    assert f"quarantined: {path} is now" in told.out
    assert "loaded again" in told.out
    new_budget()
    again = ktrdr("load", "AAPL", "1d", "--start", "2024-01-02", "--end", "2024-01-06")
    assert again.code == 0


def test_repair_makes_a_lost_ledger_anew(ktrdr: Any, store: Path, gateway: Any) -> None:
    """A ledger that is no database is quarantined, and no bar is asked for again."""
    interval = ("AAPL", "1d", "--start", "2024-01-02", "--end", "2024-01-06")
    ktrdr("load", *interval)
    for path in (store / "state").glob("ledger.sqlite*"):
        path.unlink()
    (store / "state" / "ledger.sqlite").write_bytes(b"x" * 5000)
    ktrdr("status").is_error(1, "ledger", "ktrdr repair")
    assert "it was moved to" in ktrdr("repair").out
    assert ktrdr("load", *interval, "--json").document["series"][0]["requests"] == 0
