"""Failures of gateways, files and disks: one message and an exit code."""

import re
import resource
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

DAYS = ("--start", "2024-01-02", "--end", "2024-01-06")


def test_no_gateway(ktrdr: Any, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing listens, the error names the port and how to get a gateway."""
    monkeypatch.setenv("IB_PORT", "1")
    result = ktrdr("load", "AAPL", "1d", *DAYS)
    result.is_error(1, "127.0.0.1:1", "nothing listens", "start IB Gateway", "ktrdr simulate")


def test_a_silent_gateway(
    ktrdr: Any, store: Path, silent_gateway: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that accepts connections and never responds is reported after the deadline."""
    monkeypatch.setenv("IB_TIMEOUT", "0.2")
    result = ktrdr("load", "AAPL", "1d", *DAYS)
    assert result.code == 1
    assert "Traceback" not in result.all
    assert f"127.0.0.1:{silent_gateway}" in result.all
    assert "did not answer" in result.all
    assert "look at its window" in result.all


def test_a_client_id_in_use(
    ktrdr: Any, store: Path, gateway: Any, helpers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another program uses the only id, the error names the id and the setting."""
    monkeypatch.setenv("IB_CLIENT_ID_CLI", "201-201")
    with helpers.client_id_taken(gateway.port, 201):
        result = ktrdr("load", "AAPL", "1d", *DAYS)
    result.is_error(1, "client id 201 is in use", "IB_CLIENT_ID_", "--wait", "restarted")


def test_a_load_waits_for_held_client_ids(
    ktrdr: Any, store: Path, gateway: Any, helpers: Any
) -> None:
    """The load says what it waits for, and goes on once the gateway accepts an id."""
    with ExitStack() as held:
        for number in (201, 202, 203):
            held.enter_context(helpers.client_id_taken(gateway.port, number))
        result = ktrdr("load", "AAPL", "1d", "--wait", "60", *DAYS)
    assert result.code == 0, result.all
    assert "client ids 201, 202, 203 are in use; the gateway may still hold the old" in result.err
    assert re.search(r"trying again for \d\d s", result.err)


def test_a_negative_wait_is_bad_usage(ktrdr: Any, store: Path) -> None:
    """The error names the option."""
    for command in (["load", "AAPL", "1d"], ["update"]):
        ktrdr(*command, "--wait", "-1").is_error(2, "--wait")


def test_an_unknown_contract(ktrdr: Any, store: Path, gateway: Any) -> None:
    """A symbol that the gateway does not know fails alone; the others are loaded."""
    (store / "universe.yaml").write_text("symbols: {AAPL: {}, NOSUCH: {}}\n")
    result = ktrdr("load", "NOSUCH,AAPL", "1d", *DAYS)
    assert result.code == 1
    assert "Traceback" not in result.all
    assert "NOSUCH 1d could not be loaded" in result.out
    assert "200 No security definition" in result.out
    assert "Check symbol, sec_type" in result.out
    several = ktrdr("load", "NOSUCH", "1h,1d", *DAYS).out
    assert several.count("200 No security definition") == 1
    assert "NOSUCH 1h, NOSUCH 1d could not be loaded" in several
    document = ktrdr("load", "NOSUCH,AAPL", "1d", *DAYS, "--json").document
    assert [one["complete"] for one in document["series"]] == [False, True]
    assert document["series"][0]["error"]["kind"] == "ContractUnknownError"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("symbols:\n  AAPL: {sec_type: STOCK}\n", ("line 2", "AAPL", "sec_type", "STOCK", "STK")),
        ("symbols:\n  AAPL: {}\n  aapl: {}\n", ("line 3", "aapl", "case")),
        ("symbols:\n  AAPL: {timeframe: [1d]}\n", ("line 2", "timeframe", "timeframes")),
        ("symbols: {\n", ("line",)),
        ("symbol: {AAPL: {}}\n", ("line 1", "symbol", "did you mean symbols")),
    ],
)
def test_a_malformed_universe(ktrdr: Any, data: Path, text: str, parts: tuple[str, ...]) -> None:
    """Without a last good universe every command fails, and names file, line and key."""
    data.mkdir()
    (data / "universe.yaml").write_text(text)
    ktrdr("init").is_error(2, str(data / "universe.yaml"), *parts)
    ktrdr("load", "AAPL", "1d").is_error(2, str(data / "universe.yaml"), *parts)
    ktrdr("status").is_error(2, str(data / "universe.yaml"), *parts)


def test_a_bad_edit_of_the_universe(ktrdr: Any, store: Path, gateway: Any) -> None:
    """The last good universe is used, and every command names the line of the bad edit."""
    (store / "universe.yaml").write_text("symbols:\n  AAPL: {}\n  TSLA: {start: tomorrow}\n")
    loaded = ktrdr("load", "MSFT", "1d", *DAYS)
    assert loaded.code == 0
    assert "line 3" in loaded.err
    assert "start" in loaded.err
    assert "last good universe" in loaded.err
    shown = ktrdr("status")
    assert shown.code == 0
    assert "line 3" in shown.out
    assert "line 3" in ktrdr("status", "--json").document["universe"]["problem"]["message"]


def test_a_corrupt_file(ktrdr: Any, store: Path, gateway: Any) -> None:
    """A file that is not Parquet is named and not overwritten; other series are loaded."""
    path = store / "bars" / "symbol=AAPL" / "timeframe=1d" / "all.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PAR1 and nothing of the kind")
    result = ktrdr("load", "AAPL,MSFT", "1d", *DAYS)
    assert result.code == 1
    assert "Traceback" not in result.all
    assert str(path) in result.all
    assert "ktrdr repair" in result.all
    assert "MSFT 1d  complete" in result.out
    assert path.read_bytes() == b"PAR1 and nothing of the kind"
    shown = ktrdr("status")
    shown.is_error(1, str(path), "ktrdr repair")
    assert "unreadable" in shown.out


def test_a_foreign_file(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Bars of another instrument are refused with both names, and are not changed."""
    ktrdr("load", "MSFT", "1d", *DAYS)
    theirs = store / "bars" / "symbol=MSFT"
    ours = store / "bars" / "symbol=AAPL"
    shutil.copytree(theirs, ours)
    before = (ours / "timeframe=1d" / "all.parquet").read_bytes()
    result = ktrdr("load", "AAPL", "1d", "--start", "2024-01-02", "--end", "2024-01-10")
    assert result.code == 1
    assert "Traceback" not in result.all
    assert "MSFT" in result.all
    assert "AAPL" in result.all
    assert (ours / "timeframe=1d" / "all.parquet").read_bytes() == before


def test_a_store_of_another_origin(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Simulated bars are never saved in a store of real ones."""
    assert ktrdr("init", "--origin", "ib").code == 0
    result = ktrdr("load", "AAPL", "1d", *DAYS)
    assert result.code == 1
    assert "Traceback" not in result.all
    assert "one origin" in result.all
    assert list(store.glob("bars/*/*/*.parquet")) == []


def test_an_unwritable_folder(ktrdr: Any, store: Path, gateway: Any) -> None:
    """The error names the folder and what to do."""
    (store / "bars" / "symbol=AAPL").write_text("a file where a folder must be")
    result = ktrdr("load", "AAPL", "1d", *DAYS)
    assert result.code == 1
    assert "Traceback" not in result.all
    assert str(store / "bars" / "symbol=AAPL") in result.all
    assert "writable" in result.all


def test_a_full_disk(process: Any, ktrdr: Any, store: Path, gateway: Any, tmp_path: Path) -> None:
    """One message names the file that could not grow; saved bars are unchanged."""
    ktrdr("load", "EURUSD", "1h", "--start", "2024-01-02", "--end", "2024-01-03")
    path = next(store.glob("bars/symbol=EURUSD/*/*.parquet"))
    before = path.read_bytes()

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, 6_000))

    result = process("load", "EURUSD", "1h", *DAYS, preexec_fn=small_files)
    result.is_error(1, str(tmp_path))
    assert "Make room" in result.err or "writable folder" in result.err
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_state_folder_that_cannot_be_used(
    ktrdr: Any, store: Path, gateway: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the folder of budget and client ids."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KTRDR_STATE", str(tmp_path / "file" / "state"))
    result = ktrdr("load", "AAPL", "1d", *DAYS)
    result.is_error(1, str(tmp_path / "file"), "writ")
