"""Commands over a store with something odd at one of its paths, and over one that is replaced."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.simulator.server import running_simulator
from tests.support.oddities import PRECIOUS, put

DAYS = ("--start", "2024-01-02", "--end", "2024-01-06")
AAPL = "bars/symbol=AAPL/timeframe=1d"
COMMANDS = {
    "query": ("query", "SELECT count(*) FROM bars"),
    "status": ("status",),
    "gaps": ("gaps",),
    "plan": ("plan", "AAPL", "1d", *DAYS),
    "load": ("load", "AAPL", "1d", *DAYS),
    "verify": ("verify",),
    "check": ("universe", "check"),
}
BARS = ("status", "gaps", "plan", "load", "verify", "query")
NAMED = {
    (f"{AAPL}/all.parquet", "link to nothing"): BARS,
    (f"{AAPL}/all.parquet", "link to file"): BARS,
    (f"{AAPL}/all.parquet", "pipe"): BARS,
    (AAPL, "file"): BARS,
    (AAPL, "loop"): BARS,
    ("bars/symbol=AAPL", "pipe"): BARS,
    ("bars", "loop"): BARS,
    ("state", "file"): ("status", "gaps", "plan", "load", "verify", "check"),
    ("state/ledger.sqlite", "pipe"): ("status", "gaps", "plan", "load", "verify", "check"),
    ("state/ledger.sqlite", "link to nothing"): ("status", "load", "check"),
    ("state/locks", "file"): ("load",),
    ("state/locks/catalog.lock", "folder"): (),
    ("ktrdr.duckdb", "folder"): ("query",),
    ("ktrdr.duckdb", "pipe"): ("query",),
    ("universe.yaml", "pipe"): ("check",),
    ("state/universe.good.yaml", "folder"): ("status",),
    ("state/move.json", "pipe"): (),
    ("state/settings.json", "pipe"): tuple(COMMANDS),
}
"""Odd paths, and the commands that cannot do without what should stand there.

Every path has an entry, and every kind; ``tests/store/maintenance`` crosses them.
"""


@pytest.fixture
def loaded(store: Path, ktrdr: Any, gateway: Any) -> Path:
    """Return a store with bars."""
    assert ktrdr("load", "AAPL,MSFT", "1d", *DAYS).code == 0
    return store


@pytest.mark.parametrize(("name", "kind"), NAMED)
def test_an_odd_path_is_named_and_a_repair_quarantines_it(
    loaded: Path, ktrdr: Any, new_budget: Any, name: str, kind: str
) -> None:
    """No command hangs or shows a traceback; those that need the path name it and ktrdr repair."""
    path = loaded / name
    put(path, kind)
    for command, arguments in COMMANDS.items():
        result = ktrdr(*arguments)
        assert "Traceback" not in result.all
        assert "unexpected" not in result.all
        if command in NAMED[name, kind]:
            assert result.code in {1, 2}, (command, result.all)
            assert "ktrdr repair" in result.all.replace("\n", " "), command
            assert path.name in result.all.replace("\n", ""), command
        if not path.is_file():
            assert path.lstat(), command
    if (name, kind) == ("ktrdr.duckdb", "pipe"):
        path.unlink()  # the load has built the catalog anew
        put(path, kind)
    result = ktrdr("repair", "--json")
    assert result.code == 0, result.all
    assert str(path) in [one["was"] for one in result.document["quarantined"]]
    new_budget()
    for arguments in COMMANDS.values():
        assert ktrdr(*arguments).code in {0, 3}, arguments
    assert ktrdr("repair", "--json").document["quarantined"] == []
    for kept in loaded.parent.rglob("inside"):
        assert kept.read_text() == PRECIOUS


def test_a_repair_reports_what_it_quarantined(loaded: Path, ktrdr: Any) -> None:
    """The line has the old path, the new one, and the reason."""
    put(loaded / AAPL / "all.parquet", "loop")
    result = ktrdr("repair")
    assert result.code == 0
    (line,) = [one for one in result.out.splitlines() if one.startswith("quarantined")]
    assert f"{loaded / AAPL}/all.parquet is now {loaded / 'quarantine' / AAPL}/all" in line
    assert "leads nowhere" in line
    assert "To be loaded again: AAPL 1d, all dates" in line


def test_a_quarantined_universe_is_restored_from_its_last_good_copy(
    loaded: Path, ktrdr: Any
) -> None:
    """The user's text is not lost; without a copy the repair completes all the same."""
    text = (loaded / "universe.yaml").read_text()
    put(loaded / "universe.yaml", "folder")
    assert ktrdr("repair").code == 0
    assert (loaded / "universe.yaml").read_text() == text
    (loaded / "universe.yaml").unlink()
    (loaded / "state" / "universe.good.yaml").unlink()
    put(loaded / "universe.yaml", "loop")
    result = ktrdr("repair", "--json")
    assert result.code == 0
    assert result.document["files"] == 2
    assert ktrdr("init").code == 0


def test_every_command_reports_an_odd_marker(loaded: Path, ktrdr: Any) -> None:
    """Only the user knows what the store is, so the error says what to write."""
    put(loaded / "store.json", "folder")
    for arguments in (*COMMANDS.values(), ("repair",), ("init",)):
        ktrdr(*arguments).is_error(1, "store.json", "a folder", "by hand", "format_version")


def test_a_load_fails_if_its_store_is_replaced(
    store: Path, ktrdr: Any, helpers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The document is an error, the exit code 1, and the other store is unchanged."""
    market = helpers.HeldMarket("MSFT")
    with running_simulator(market, now=helpers.NOW) as server:
        monkeypatch.setenv("IB_PORT", str(server.port))
        with helpers.started("load", "AAPL,MSFT", "1h", *DAYS, "--json") as process:
            helpers.wait_for(lambda: list(store.glob("bars/*/*/*.parquet")))
            moved = store.rename(store.with_name("moved"))
            store.mkdir()
            shutil.copy(moved / "universe.yaml", store)
            assert ktrdr("init").code == 0
            before = _rows(store)
            market.let_go.set()
            out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    error = json.loads(out)["error"]
    assert error["kind"] == "StoreReplacedError"
    assert f"the store at {store} is not the one that was opened" in error["message"]
    assert list(store.glob("bars/**/*.parquet")) == []
    assert _rows(store) == before
    assert list(moved.glob("bars/symbol=AAPL/*/*.parquet"))


def _rows(store: Path) -> list[str]:
    with closing(sqlite3.connect(store / "state" / "ledger.sqlite")) as connection:
        return list(connection.iterdump())
