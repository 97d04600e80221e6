"""Run the command line in this process, or in a process of its own where that is tested."""

import io
import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.cli.entry_point import LogFile, run
from ktrdr_pipelines.cli.main import command_line
from ktrdr_pipelines.simulator.market.splits import Split, SplitMarket
from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.server import SimulatorServer, running_simulator
from tests.support.command_line import CommandResult, Ktrdr, ktrdr_in_process
from tests.support.held_market import HeldMarket

NOW = "2024-01-10T20:00:30+00:00"
"""A Wednesday, 15:00:30 in New York: an open session."""

UNIVERSE = """\
defaults: {timeframes: [1h, 1d], start: 2024-01-02}
symbols:
  AAPL: {}
  MSFT: {}
  EURUSD: {timeframes: [1h]}
"""

MODULE = (sys.executable, "-m", "ktrdr_pipelines.cli.main")


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test a data and a state folder of its own, and a port without a gateway."""
    for name in [one for one in os.environ if one.startswith(("KTRDR_", "IB_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KTRDR_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("KTRDR_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("IB_PORT", str(free_port()))
    monkeypatch.setenv("IB_TIMEOUT", "10")
    monkeypatch.setenv("IB_MAX_RETRIES", "0")
    monkeypatch.setenv("IB_RETRY_DELAY", "0")
    monkeypatch.setenv("KTRDR_WAIT", "0")


@pytest.fixture
def new_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function that gives the commands after it a request budget of their own.

    IB accepts an identical request every 15 seconds; a load that repeats one would wait for that.
    """
    numbers = itertools.count(1)

    def renew() -> None:
        monkeypatch.setenv("KTRDR_STATE", str(tmp_path / f"state {next(numbers)}"))

    return renew


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return the data folder of the test."""
    return tmp_path / "data"


@pytest.fixture
def ktrdr(capsys: pytest.CaptureFixture[str]) -> Ktrdr:
    """Return a function that runs a command line in this process, as the entry point does."""
    return ktrdr_in_process(capsys)


@pytest.fixture
def process() -> Ktrdr:
    """Return a function that runs a command line in a process of its own."""

    def command(*arguments: str, **other: Any) -> CommandResult:
        done = subprocess.run(
            [*MODULE, *arguments], capture_output=True, text=True, timeout=180, check=False, **other
        )
        return CommandResult(done.returncode, done.stdout, done.stderr)

    return command


class TerminalScreen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Ktrdr:
    """Return a function that runs a command line on a terminal of 80 columns without colours."""
    monkeypatch.setenv("TERM", "dumb")  # rich takes such a terminal to be of 80 columns

    def command(*arguments: str) -> CommandResult:
        out, err = TerminalScreen(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = run(command_line, list(arguments), LogFile())
        return CommandResult(code, out.getvalue(), err.getvalue())

    return command


@pytest.fixture
def store(data: Path, ktrdr: Ktrdr) -> Path:
    """Make a store with a small universe."""
    data.mkdir()
    (data / "universe.yaml").write_text(UNIVERSE)
    assert ktrdr("init").code == 0
    return data


@pytest.fixture(scope="session")
def shared_gateway() -> Iterator[SimulatorServer]:
    """Run one simulated gateway for all tests."""
    with running_simulator(SyntheticMarket(seed=1), now=NOW) as server:
        yield server


@pytest.fixture
def gateway(shared_gateway: SimulatorServer, monkeypatch: pytest.MonkeyPatch) -> SimulatorServer:
    """Make the settings name the gateway that all tests share."""
    monkeypatch.setenv("IB_PORT", str(shared_gateway.port))
    return shared_gateway


@contextmanager
def held_gateway(symbol: str) -> Iterator[SimulatorServer]:
    """Run a gateway that does not respond to requests for the bars of one symbol."""
    market = HeldMarket(symbol)
    with running_simulator(market, now=NOW) as server:
        try:
            yield server
        finally:
            market.let_go.set()


@pytest.fixture
def half_responding_gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatorServer]:
    """Make the settings name a gateway that does not respond for bars of MSFT."""
    with held_gateway("MSFT") as server:
        monkeypatch.setenv("IB_PORT", str(server.port))
        yield server


@pytest.fixture
def silent_gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Make the settings name a port that accepts connections and never sends a byte."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("IB_PORT", str(port))
        yield port


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def client_id_taken(port: int, client_id: int) -> Iterator[None]:
    """Hold a client id of a gateway, without any code under test."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"API\0" + _frame("v157..178"))
        client.recv(1024)
        client.sendall(_frame(f"71\0002\000{client_id}\000\000"))
        client.recv(1024)
        yield


def _frame(text: str) -> bytes:
    return struct.pack(">I", len(text)) + text.encode()


@contextmanager
def started(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """Start a long-running command that accepts SIGINT; end it if it still runs at the end."""
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from ktrdr_pipelines.cli.main import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)


def wait_for(holds: Callable[[], Any]) -> None:
    """Return once something holds; fail after two minutes."""
    pause = threading.Event()
    for _ in range(12000):
        if holds():
            return
        pause.wait(0.01)
    raise AssertionError("waited for two minutes")


def group_members(group: int) -> list[int]:
    """Return the running processes of a process group."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (OSError, NotADirectoryError):
            continue
        if fields and int(fields[2]) == group and fields[0] != "Z":
            found.append(int(folder.name))
    return found


def children_groups(parent: int) -> set[int]:
    """Return the process groups of the children of a process."""
    groups = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            groups.add(int(fields[2]))
    return groups


@pytest.fixture(scope="session")
def helpers() -> Any:
    """Return the helpers of this file, as test files cannot import each other."""
    return sys.modules[__name__]


EX_DATE = date(2024, 1, 10)
BEFORE_EX_DATE, AFTER_EX_DATE = (datetime(2024, 1, day, 1, tzinfo=UTC) for day in (10, 11))
"""After the close of the last session on the old price basis, and of the first on the new."""


@pytest.fixture
def splitting(
    monkeypatch: pytest.MonkeyPatch, new_budget: Callable[[], None]
) -> Iterator[Callable[[float], Callable[[], None]]]:
    """Return a function that runs a gateway which splits AAPL, and returns what ends the session.

    The gateway's clock is before the date of the split; the returned function moves it to after the
    first session on the new price basis.
    """
    with ExitStack() as stack:

        def run(ratio: float) -> Callable[[], None]:
            market = SplitMarket(SyntheticMarket(seed=1), [Split("AAPL", EX_DATE, ratio)])
            server = stack.enter_context(running_simulator(market, now=BEFORE_EX_DATE))
            monkeypatch.setenv("IB_PORT", str(server.port))

            def pass_ex_date() -> None:
                server.clock.set(AFTER_EX_DATE)
                new_budget()

            return pass_ex_date

        yield run
