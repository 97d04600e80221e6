"""``ktrdr up`` after SIGKILL: how soon the gateway gets a request again.

By default it is killed twice, as soon as it has sent a request.
``UP_KILLS=30 pytest -n0 -s tests/integration/test_killed_up.py`` kills it thirty times at random
moments, also while it starts, and prints how long each restart took, beside a clean one.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ktrdr_pipelines.simulator.server import SimulatorServer, running_simulator
from ktrdr_pipelines.store.layout import create_store

pytestmark = pytest.mark.on_disk

KILLS = int(os.environ.get("UP_KILLS", "0"))
"""How often it is killed at random moments; 0 is the short test."""

KINDS = ("everything", "command", "everything", "command", "services", "daemon")
KINDS_WITHOUT_RESTART = ("workers", "code server")
"""What can be killed: after these `ktrdr up` goes on, after the others it is started again."""

LATEST_S = 25.0
"""The latest moment of a kill, in seconds from the start: loads begin after about ten."""

LIMIT_S = 90.0
"""A request is made after 10 to 30 s on an idle machine, and may take longer on a busy one.

Without the ending of dead runs it is three minutes and more.
"""

UNIVERSE = """\
defaults: {timeframes: [1m, 1h, 1d], start: 2024-01-02}
symbols:
  AAPL: {}
  MSFT: {}
  NVDA: {}
  AMZN: {}
  TSLA: {}
  GOOG: {}
"""
PARTS = {
    "services": "ktrdr_pipelines.cli.dagster_services",
    "daemon": "dagster._daemon",
    "workers": "multiprocessing.spawn",
    "code server": "code-server start",
}


@dataclass(frozen=True)
class Killed:
    """A kill: what was killed, when, and how long it took until the next request."""

    kind: str
    moment_s: float
    next_s: float

    def __str__(self) -> str:
        return f"{self.kind:12} {self.moment_s:6.1f} s  {self.next_s:6.1f} s"


class Up:
    """Runs ``ktrdr up`` over one store, repeatedly, and counts the requests to its gateway."""

    def __init__(self, folder: Path, gateway: SimulatorServer) -> None:
        self._gateway = gateway
        data = folder / "data"
        create_store(data)
        (data / "universe.yaml").write_text(UNIVERSE)
        self._environment = {
            **os.environ,
            "IB_PORT": str(gateway.port),
            "IB_TIMEOUT": "5",  # a killed process keeps its places in the budget for this long
            "KTRDR_DATA": str(data),
            "KTRDR_STATE": str(folder / "state"),
        }
        self._log = folder / "up.log"
        self.log = data / "state" / "dagster.log"
        self.process = self._start()
        self.started_at = time.monotonic()

    def _start(self) -> "subprocess.Popen[bytes]":
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "ktrdr_pipelines.cli.main", "up", "--port", str(port)]
        with self._log.open("ab") as log:
            return subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)

    def start(self) -> None:
        """Start it again, after it has ended."""
        self.process.wait(timeout=90)
        self.started_at = time.monotonic()
        self.process = self._start()

    def stop(self) -> None:
        """Stop it as Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(timeout=90)

    def kill(self, kind: str) -> set[int]:
        """Send SIGKILL to some of its processes; return all that may still send requests."""
        had = descendants(self.process.pid)
        if kind == "command":
            killed = {self.process.pid}
        elif kind == "everything":
            killed = {self.process.pid, *had}
        else:
            while not (killed := {pid for pid in had if PARTS[kind] in command_of(pid)}):
                assert self.process.poll() is None, self._output()
                had = descendants(self.process.pid)
        for pid in killed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return killed if kind in KINDS_WITHOUT_RESTART else had

    def wait_for_request(self, earlier: set[int], *, within_s: float = 150.0) -> float:
        """Wait for a request by none of the earlier processes; return the time of it."""
        request_count = self._request_count()
        ends_at = time.monotonic() + within_s
        while True:
            earlier = {pid for pid in earlier if command_of(pid)}
            if earlier:
                request_count = self._request_count()
            elif self._request_count() > request_count:
                return time.monotonic()
            assert time.monotonic() < ends_at, self._output()
            assert self.process.poll() is None, self._output()
            time.sleep(0.05)

    def _request_count(self) -> int:
        return sum(one.kind == "history" for one in self._gateway.requests)

    def _output(self) -> str:
        return "\n".join(one.read_text()[-4000:] for one in (self._log, self.log) if one.exists())


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """Run it with a simulated gateway that is slow enough for a kill during requests."""
    with running_simulator(now=datetime.now(UTC), latency_s=1.0) as gateway:
        up = Up(tmp_path, gateway)
        try:
            yield up
        finally:
            if up.process.poll() is None:
                up.stop()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_requests_resume_after_a_kill(up: Up) -> None:
    """Neither dead runs nor processes left behind hold up the new ones."""
    up.wait_for_request(set())
    for kind in ("everything", "command"):
        earlier = up.kill(kind)
        up.start()
        assert up.wait_for_request(earlier) - up.started_at < LIMIT_S


@pytest.mark.slow
@pytest.mark.skipif(not KILLS, reason="UP_KILLS says how many")
@pytest.mark.timeout(240 + 90 * KILLS)
def test_requests_resume_after_kills_at_random_moments(up: Up) -> None:
    """They do, whichever process is killed, also while it starts."""
    first_s = up.wait_for_request(set()) - up.started_at
    up.stop()
    up.start()
    clean_s = up.wait_for_request(set()) - up.started_at
    print_line(f"first start {first_s:.1f} s, after a clean stop {clean_s:.1f} s")
    killed = []
    chance = random.Random(KILLS)
    kinds = [*KINDS, *KINDS_WITHOUT_RESTART]
    for number in range(KILLS):
        kind = kinds[number % len(kinds)]
        moment_s = chance.uniform(0.5, LATEST_S)
        if time.monotonic() > up.started_at + moment_s:
            up.stop()
            up.start()
        time.sleep(up.started_at + moment_s - time.monotonic())
        began_at = time.monotonic()
        earlier = up.kill(kind)
        if kind not in KINDS_WITHOUT_RESTART:
            up.start()
            began_at = up.started_at
        killed.append(Killed(kind, moment_s, up.wait_for_request(earlier) - began_at))
        print_line(killed[-1])
    assert all(one.next_s < LIMIT_S for one in killed), "\n".join(map(str, killed))


def print_line(what: object) -> None:
    """Print a line immediately."""
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def descendants(pid: int) -> set[int]:
    """Return the running processes that a process has started, and theirs."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                parents[int(path.parent.name)] = int(fields[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def command_of(pid: int) -> str:
    """Return the command line of a running process; empty if there is none."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""
