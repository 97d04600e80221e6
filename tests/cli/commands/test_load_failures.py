"""What goes wrong outside: gateways, files, disks. Each is one clear message and an exit code."""

import re
import resource
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

DAYS = ("--start", "2024-01-02", "--end", "2024-01-06")


def test_no_gateway(ktrdr: Any, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing listens, the text names the port and how to get a gateway."""
    monkeypatch.setenv("IB_PORT", "1")
    told = ktrdr("load", "AAPL", "1d", *DAYS)
    told.is_error(1, "127.0.0.1:1", "nothing listens", "start IB Gateway", "ktrdr simulate")


def test_a_silent_gateway(
    ktrdr: Any, store: Path, unanswering_gateway: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that accepts and stays silent costs the deadline and is told as it is."""
    monkeypatch.setenv("IB_TIMEOUT", "0.2")
    told = ktrdr("load", "AAPL", "1d", *DAYS)
    assert told.code == 1
    assert "Traceback" not in told.all
    assert f"127.0.0.1:{unanswering_gateway}" in told.all
    assert "did not answer" in told.all
    assert "look at its window" in told.all


def test_a_client_id_in_use(
    ktrdr: Any, store: Path, gateway: Any, hands: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another program has the only id, the text names ids and the setting."""
    monkeypatch.setenv("IB_CLIENT_ID_CLI", "201-201")
    with hands.client_id_taken(gateway.port, 201):
        told = ktrdr("load", "AAPL", "1d", *DAYS)
    told.is_error(1, "client id 201 is in use", "IB_CLIENT_ID_", "--wait", "restarted")


def test_client_ids_that_are_held_are_waited_for(
    ktrdr: Any, store: Path, gateway: Any, hands: Any
) -> None:
    """The load says what it waits for, and goes on when the gateway takes an id."""
    with ExitStack() as held:
        for number in (201, 202, 203):
            held.enter_context(hands.client_id_taken(gateway.port, number))
        told = ktrdr("load", "AAPL", "1d", "--wait", "60", *DAYS)
    assert told.code == 0, told.all
    assert "client ids 201, 202, 203 are in use; the gateway may still hold the old" in told.err
    assert re.search(r"trying again for \d\d s", told.err)


def test_a_wait_of_less_than_nothing_is_bad_usage(ktrdr: Any, store: Path) -> None:
    """As any other number that makes no sense."""
    for command in (["load", "AAPL", "1d"], ["update"]):
        ktrdr(*command, "--wait", "-1").is_error(2, "--wait")


def test_an_unknown_contract(ktrdr: Any, store: Path, gateway: Any) -> None:
    """A symbol that the gateway does not know fails alone; the others are loaded."""
    (store / "universe.yaml").write_text("symbols: {AAPL: {}, NOSUCH: {}}\n")
    told = ktrdr("load", "NOSUCH,AAPL", "1d", *DAYS)
    assert told.code == 1
    assert "Traceback" not in told.all
    assert "NOSUCH 1d could not be loaded" in told.out
    assert "200 No security definition" in told.out
    assert "Check symbol, sec_type" in told.out
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
    """A universe that was never good stops everything, naming file, line and key."""
    data.mkdir()
    (data / "universe.yaml").write_text(text)
    ktrdr("init").is_error(2, str(data / "universe.yaml"), *parts)
    ktrdr("load", "AAPL", "1d").is_error(2, str(data / "universe.yaml"), *parts)
    ktrdr("status").is_error(2, str(data / "universe.yaml"), *parts)


def test_a_bad_edit_of_the_universe(ktrdr: Any, store: Path, gateway: Any) -> None:
    """The last good universe stands in, and where the edit is bad is told by every command."""
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
    """A file that is no Parquet is named, nothing is written over it, the others are loaded."""
    path = store / "bars" / "symbol=AAPL" / "timeframe=1d" / "all.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PAR1 and nothing of the kind")
    told = ktrdr("load", "AAPL,MSFT", "1d", *DAYS)
    assert told.code == 1
    assert "Traceback" not in told.all
    assert str(path) in told.all
    assert "ktrdr repair" in told.all
    assert "MSFT 1d  complete" in told.out
    assert path.read_bytes() == b"PAR1 and nothing of the kind"
    shown = ktrdr("status")
    shown.is_error(1, str(path), "ktrdr repair")
    assert "unreadable" in shown.out


def test_a_foreign_file(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Bars of another instrument under a symbol are refused, naming both, and stay as they are."""
    ktrdr("load", "MSFT", "1d", *DAYS)
    theirs = store / "bars" / "symbol=MSFT"
    ours = store / "bars" / "symbol=AAPL"
    shutil.copytree(theirs, ours)
    before = (ours / "timeframe=1d" / "all.parquet").read_bytes()
    told = ktrdr("load", "AAPL", "1d", "--start", "2024-01-02", "--end", "2024-01-10")
    assert told.code == 1
    assert "Traceback" not in told.all
    assert "MSFT" in told.all
    assert "AAPL" in told.all
    assert (ours / "timeframe=1d" / "all.parquet").read_bytes() == before


def test_a_store_of_another_origin(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Simulated bars never come into a store of real ones."""
    assert ktrdr("init", "--origin", "ib").code == 0
    told = ktrdr("load", "AAPL", "1d", *DAYS)
    assert told.code == 1
    assert "Traceback" not in told.all
    assert "one origin" in told.all
    assert list(store.glob("bars/*/*/*.parquet")) == []


def test_an_unwritable_folder(ktrdr: Any, store: Path, gateway: Any) -> None:
    """A place that cannot be written is named with the hint."""
    (store / "bars" / "symbol=AAPL").write_text("a file where a folder must be")
    told = ktrdr("load", "AAPL", "1d", *DAYS)
    assert told.code == 1
    assert "Traceback" not in told.all
    assert str(store / "bars" / "symbol=AAPL") in told.all
    assert "writable" in told.all


def test_a_full_disk(process: Any, ktrdr: Any, store: Path, gateway: Any, tmp_path: Path) -> None:
    """Where no file can grow, one message names the first that did not; bars stay as they are."""
    ktrdr("load", "EURUSD", "1h", "--start", "2024-01-02", "--end", "2024-01-03")
    path = next(store.glob("bars/symbol=EURUSD/*/*.parquet"))
    before = path.read_bytes()

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, 6_000))

    told = process("load", "EURUSD", "1h", *DAYS, preexec_fn=small_files)
    told.is_error(1, str(tmp_path))
    assert "Make room" in told.err or "writable folder" in told.err
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_state_folder_that_cannot_be_used(
    ktrdr: Any, store: Path, gateway: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Budget and client ids need a folder; the text names it and the setting."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KTRDR_STATE", str(tmp_path / "file" / "state"))
    told = ktrdr("load", "AAPL", "1d", *DAYS)
    told.is_error(1, str(tmp_path / "file"), "writ")
