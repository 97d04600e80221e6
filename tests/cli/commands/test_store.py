"""ktrdr init and ktrdr repair."""

import json
from pathlib import Path
from typing import Any

import pytest


def test_init_makes_a_store_that_can_be_queried(ktrdr: Any, data: Path) -> None:
    """It has the example universe and an empty catalog."""
    result = ktrdr("init")
    assert result.code == 0
    assert str(data) in result.out
    assert "ktrdr health" in result.out
    assert (data / "universe.yaml").read_bytes() == (
        Path(__file__).parents[3] / "data" / "universe.example.yaml"
    ).read_bytes()
    assert ktrdr("query", "SELECT count(*) AS n FROM bars", "--json").rows == [{"n": 0}]


def test_init_keeps_an_existing_universe(ktrdr: Any, store: Path) -> None:
    """A second init changes nothing."""
    before = (store / "universe.yaml").read_bytes()
    result = ktrdr("init", "--json")
    assert result.document["universe_made"] is False
    assert result.document["symbols"] == ["AAPL", "MSFT", "EURUSD"]
    assert (store / "universe.yaml").read_bytes() == before


def test_init_takes_another_folder(ktrdr: Any, tmp_path: Path) -> None:
    """The output names the variable that makes every command use it."""
    other = tmp_path / "other"
    result = ktrdr("init", "--data", str(other), "--origin", "simulated")
    assert result.code == 0
    assert f"KTRDR_DATA={other}" in result.out
    assert json.loads((other / "store.json").read_text())["origin"] == "simulated"


def test_init_refuses_another_origin(ktrdr: Any, store: Path) -> None:
    """The origin of a store never changes."""
    assert ktrdr("init", "--origin", "ib").code == 0
    ktrdr("init", "--origin", "simulated").is_error(1, str(store), "ib", "one origin")


def test_init_refuses_an_unknown_origin(ktrdr: Any) -> None:
    """The error names what is allowed."""
    ktrdr("init", "--origin", "moon").is_error(2, "--origin moon", "ib, simulated")


def test_init_of_an_unwritable_folder_fails(
    ktrdr: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the folder and what to do."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KTRDR_DATA", str(tmp_path / "file" / "data"))
    ktrdr("init").is_error(1, str(tmp_path / "file"), "writable")


def test_repair_of_an_intact_store(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Every file is counted as intact."""
    ktrdr("load", "AAPL", "1d", "--start", "2024-01-02", "--end", "2024-01-06")
    result = ktrdr("repair")
    assert (result.code, result.err) == (0, "")
    assert "1 file intact" in result.out
    assert ktrdr("repair", "--json").document["files"] == 1


def test_repair_quarantines_a_damaged_file(
    ktrdr: Any, store: Path, gateway: Any, new_budget: Any
) -> None:
    """It says where the file is now, why, and what is to be loaded again."""
    ktrdr("load", "AAPL,MSFT", "1d", "--start", "2024-01-02", "--end", "2024-01-06")
    path = store / "bars" / "symbol=AAPL" / "timeframe=1d" / "all.parquet"
    path.write_bytes(b"no bars")
    result = ktrdr("repair")
    assert result.code == 0
    assert f"quarantined: {path} is now" in result.out
    assert "loaded again" in result.out
    new_budget()
    again = ktrdr("load", "AAPL", "1d", "--start", "2024-01-02", "--end", "2024-01-06")
    assert again.code == 0


def test_repair_rebuilds_a_damaged_ledger(ktrdr: Any, store: Path, gateway: Any) -> None:
    """The damaged one is quarantined, and no bar is requested again."""
    interval = ("AAPL", "1d", "--start", "2024-01-02", "--end", "2024-01-06")
    ktrdr("load", *interval)
    for path in (store / "state").glob("ledger.sqlite*"):
        path.unlink()
    (store / "state" / "ledger.sqlite").write_bytes(b"x" * 5000)
    ktrdr("status").is_error(1, "ledger", "ktrdr repair")
    assert "it was moved to" in ktrdr("repair").out
    assert ktrdr("load", *interval, "--json").document["series"][0]["requests"] == 0
