"""Operations over a simulated gateway: one that is killed with its process, and several at once."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.app.data_manager import DataManager
from ktrdr_pipelines.app.operations import Operations
from ktrdr_pipelines.app.views.load_documents import LoadStatus, OperationState
from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.settings import load_settings
from ktrdr_pipelines.simulator.server import SimulatorServer, running_simulator
from ktrdr_pipelines.store.layout import StoreLayout, create_store

NOW = datetime(2026, 6, 12, 12, tzinfo=UTC)
UNIVERSE = """\
defaults: {start: 2026-01-02, timeframes: [1m]}
symbols: {AAPL: {}, MSFT: {}, EURUSD: {}, SPY: {}}
"""
SCRIPT = """\
import threading
from ktrdr_pipelines.app.operations import Operations
running = Operations()
print(running.start_load("AAPL", "1m", mode="full", end="2026-04-01").id, flush=True)
threading.Event().wait()
"""


def wait_until(holds: Callable[[], Any], what: str) -> Any:
    """Poll until something holds and return it."""
    ends_at = time.monotonic() + 120
    while not (value := holds()):
        assert time.monotonic() < ends_at, f"waited for {what}"
        time.sleep(0.02)
    return value


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoreLayout:
    """Make a store, and name it in the environment."""
    made = create_store(tmp_path / "data")
    made.universe.write_text(UNIVERSE)
    monkeypatch.setenv("KTRDR_DATA", str(made.root))
    monkeypatch.setenv("KTRDR_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("IB_TIMEOUT", "5")
    monkeypatch.setenv("IB_MAX_RETRIES", "0")
    return made


@pytest.fixture
def gateway(layout: StoreLayout, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatorServer]:
    """Run a simulated gateway, and name it in the environment."""
    with running_simulator(now=NOW) as server:
        monkeypatch.setenv("IB_PORT", str(server.port))
        yield server


def opened() -> Workspace:
    """Open the store of the environment as of the gateway's time."""
    return Workspace(load_settings(), Workspace.open().layout, real=lambda: NOW)


@contextmanager
def killed_process() -> "Iterator[subprocess.Popen[str]]":
    """Run the script in a process of its own; kill it at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], env=os.environ, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)


@pytest.mark.slow
@pytest.mark.on_disk
def test_a_killed_process_leaves_an_interrupted_operation(
    layout: StoreLayout, gateway: SimulatorServer
) -> None:
    """While it lives another process sees it running; after the kill, with what was saved."""
    gateway.latency_s = 1.0
    with killed_process() as process, Operations(opened) as here:
        assert process.stdout is not None
        started = process.stdout.readline().strip()
        wait_until(lambda: any(layout.bars.rglob("*.parquet")), "some bars")
        gateway.latency_s = 3600.0
        record = layout.operations / f"{started}.json"
        wait_until(lambda: '"saved_at": "' in record.read_text(), "its record")
        assert here.get(started).state is OperationState.RUNNING
        assert process.poll() is None
    with Operations(opened) as here:
        found = here.get(started)
        assert found.state is OperationState.INTERRUPTED
        assert found.progress.requests_done > 0
        assert found.progress.bars > 0
        assert found.progress.saved_at is not None
        assert found.ended_at is not None
        held = DataManager(opened()).load_with_result("AAPL", "1m", end="2026-04-01")
        assert found.bars_held == len(held.frame) > 0
        assert held.result.status is LoadStatus.PARTIAL
        assert json.loads(record.read_text())["operation"]["state"] == "interrupted"
        gateway.latency_s = 0.0
        again = here.start_load("AAPL", "1m", mode="full", end="2026-04-01")
        assert here.wait(again.id).results[0].status is LoadStatus.SUCCESS


def test_several_loads_and_an_update_run_at_once(
    layout: StoreLayout, gateway: SimulatorServer
) -> None:
    """Each has a connection of its own, none is left, and the catalog has the bars."""
    with Operations(opened) as running:
        symbols = ("AAPL", "MSFT", "EURUSD", "SPY")
        loads = [running.start_load(one, "1m", mode="full", start="2026-06-08") for one in symbols]
        ended = [running.wait(one.id, 120) for one in loads]
        assert {one.results[0].status for one in ended} == {LoadStatus.SUCCESS}
        tail = running.wait(running.start_update("AAPL").id, 120)
        assert tail.state is OperationState.COMPLETED
    assert len({one.id for one in ended}) == 4
    wait_until(lambda: "0 connections" in repr(gateway), "the connections to be closed")
    names = {one.name for one in threading.enumerate()}
    assert not [name for name in names if name.startswith("ktrdr-")]
    assert layout.catalog.exists()


def test_a_gateway_that_dies_during_a_load_leaves_what_was_saved(
    layout: StoreLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frame has the bars that are held, and says what is missing."""
    with running_simulator(now=NOW) as server:
        monkeypatch.setenv("IB_PORT", str(server.port))
        manager = DataManager(opened(), operation="api")
        first = manager.load("AAPL", "1m", "2026-06-08", "2026-06-10", mode="full")
        assert first.attrs["status"] == "success"
    found = manager.load_with_result("AAPL", "1m", "2026-06-08", mode="full")
    assert found.result.status is LoadStatus.PARTIAL
    assert found.result.error is not None
    assert found.result.error.kind == "GatewayUnreachableError"
    assert len(found.frame) == len(first) == 780
    assert found.missing
    assert not found.is_complete
