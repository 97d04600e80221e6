"""A load that is killed, and the next one."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.simulator.server import SimulatorServer, running_simulator
from ktrdr_pipelines.store.layout import StoreLayout, create_store

pytestmark = pytest.mark.on_disk

NOW = datetime(2026, 6, 12, 12, tzinfo=UTC)
UNIVERSE = "symbols:\n  AAPL: {timeframes: [1m], start: 2026-01-01}\n"
SESSIONS = 61  # New York, 2026-01-02 to 2026-03-31


def command(*arguments: str) -> list[str]:
    """Return the command line of the entry point."""
    return [sys.executable, "-m", "ktrdr_pipelines.cli.main", *arguments]


def load_command() -> list[str]:
    """Return the command of the load under test."""
    return command("load", "AAPL", "1m", "--start", "2026-01-01", "--end", "2026-04-01")


def environment_of(layout: StoreLayout, gateway: SimulatorServer, state: Path) -> dict[str, str]:
    """Return the environment of a process that uses a gateway and a store."""
    return {
        **os.environ,
        "IB_PORT": str(gateway.port),
        "KTRDR_DATA": str(layout.root),
        "KTRDR_STATE": str(state),
        "IB_TIMEOUT": "5",  # a killed process keeps its places in the budget for this long
    }


def requests_of(gateway: SimulatorServer) -> list[tuple[str, str]]:
    """Return the end and the duration of every request for bars."""
    return [(one.end, one.duration) for one in gateway.requests if one.kind == "history"]


@pytest.mark.slow
def test_a_load_after_a_kill_requests_only_the_rest(
    tmp_path: Path, read_store: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    """The store then equals that of an undisturbed load."""
    killed, whole = create_store(tmp_path / "killed"), create_store(tmp_path / "whole")
    for layout in (killed, whole):
        layout.universe.write_text(UNIVERSE, encoding="utf-8")
    with running_simulator(now=NOW, latency_s=1.0) as gateway:
        environment = environment_of(killed, gateway, tmp_path / "state")
        process = subprocess.Popen(
            load_command(), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

        def on_the_way() -> bool:
            return any(killed.bars.rglob("*.parquet"))

        try:
            wait_for(lambda: on_the_way() or process.poll() is not None, "some bars", pause_s=0.02)
            # Later requests get no response, however slow this machine is.
            gateway.latency_s = 3600.0
            assert process.poll() is None, "the load ended before it could be killed"
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=30)
        asked_before = requests_of(gateway)
        saved = read_store(killed, "AAPL", "1m", date(2026, 1, 1), date(2026, 4, 1))
        assert 0 < saved.num_rows < SESSIONS * 390

        gateway.latency_s = 0.0
        resumed = subprocess.run(
            load_command(), env=environment, capture_output=True, text=True, check=False
        )
        assert resumed.returncode == 0, resumed.stderr
        asked_again = requests_of(gateway)[len(asked_before) :]

        other = environment_of(whole, gateway, tmp_path / "state")
        undisturbed = subprocess.run(
            load_command(), env=other, capture_output=True, text=True, check=False
        )
        assert undisturbed.returncode == 0, undisturbed.stderr

    rest = SESSIONS - saved.num_rows // 390
    sessions = [int(duration.removesuffix(" D")) for _, duration in asked_again]
    assert sum(sessions) == rest
    assert len(sessions) <= rest
    both = [
        read_store(layout, "AAPL", "1m", date(2026, 1, 1), date(2026, 4, 1))
        for layout in (killed, whole)
    ]
    assert both[0].num_rows == SESSIONS * 390
    assert both[0].equals(both[1])
