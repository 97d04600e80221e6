"""A store, a simulated gateway at its time, and the REST API over both."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from ktrdr_pipelines.api.access import AccessRules
from ktrdr_pipelines.app.setup import UNIVERSE_EXAMPLE, make_workspace
from ktrdr_pipelines.domain.instruments import Origin
from ktrdr_pipelines.settings import load_settings
from ktrdr_pipelines.simulator.market.market import BarQuery, PricedBars
from ktrdr_pipelines.simulator.market.simulated_instruments import SimulatedInstrument
from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.server import SimulatorServer, running_simulator
from tests.support.serving import NOW, UNIVERSE, free_port, served_here, wait_for

__all__ = ["wait_for"]  # of the helpers that test files use

SERVE = (sys.executable, "-m", "ktrdr_pipelines.cli.main", "serve", "--port", "0", "--json")


CLOCK = "KTRDR_CLOCK_OFFSET_S"

Environment = dict[str, str]

FILLED = (("AAPL", "1d"), ("AAPL", "1h"), ("MSFT", "1d"), ("EURUSD", "1h"))


def clean_environment() -> Environment:
    """Return the environment without settings."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("KTRDR_", "IB_"))}


class HeldMarket(SyntheticMarket):
    """A market that does not respond for bars of MSFT until it is let go."""

    def __init__(self) -> None:
        super().__init__(seed=1)
        self.is_reached, self.let_go = threading.Event(), threading.Event()

    def bars(self, instrument: SimulatedInstrument, query: BarQuery) -> PricedBars:
        if instrument.symbol == "MSFT":
            self.is_reached.set()
            self.let_go.wait()
        return super().bars(instrument, query)


@pytest.fixture(autouse=True, scope="module")
def market_time() -> Iterator[None]:
    """Set the market's time, which readers of a store take from the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [one for one in os.environ if one.startswith(("KTRDR_", "IB_"))]:
            patch.delenv(name)
        patch.setenv(CLOCK, repr((NOW - datetime.now(UTC)).total_seconds()))
        yield


def environment_of(folder: Path) -> Environment:
    """Return the variables of a data and a state folder, and of a port without a gateway."""
    return {
        "KTRDR_DATA": str(folder / "data"),
        "KTRDR_STATE": str(folder / "state"),
        CLOCK: os.environ[CLOCK],
        "IB_HOST": "127.0.0.1",
        "IB_PORT": str(free_port()),
        "IB_TIMEOUT": "10",
        "IB_MAX_RETRIES": "0",
        "IB_RETRY_DELAY": "0",
    }


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """Return the variables of the test; what starts later uses what a test has changed."""
    return environment_of(tmp_path)


def make_store(environment: Environment) -> Path:
    """Make a store with a small universe, and return its folder."""
    root = Path(environment["KTRDR_DATA"])
    root.mkdir()
    (root / "universe.yaml").write_text(UNIVERSE)
    make_workspace(load_settings(environment), root, Origin.SIMULATED, example=UNIVERSE_EXAMPLE)
    return root


@pytest.fixture
def store(environment: Environment) -> Path:
    """Make the store of the test."""
    return make_store(environment)


@pytest.fixture(scope="session")
def shared_gateway() -> Iterator[SimulatorServer]:
    """Run one simulated gateway for all tests."""
    with running_simulator(SyntheticMarket(seed=1), now=NOW) as server:
        yield server


@pytest.fixture
def gateway(shared_gateway: SimulatorServer, environment: Environment) -> SimulatorServer:
    """Make the settings name the gateway that all tests share."""
    environment["IB_PORT"] = str(shared_gateway.port)
    shared_gateway.clock.set(NOW)
    return shared_gateway


@pytest.fixture
def held(environment: Environment) -> Iterator[HeldMarket]:
    """Make the settings name a gateway that does not respond for bars of MSFT until let go."""
    market = HeldMarket()
    with running_simulator(market, now=NOW) as server:
        environment["IB_PORT"] = str(server.port)
        try:
            yield market
        finally:
            market.let_go.set()


@contextmanager
def served(environment: Environment, rules: AccessRules | None = None) -> Iterator[httpx.Client]:
    """Serve the store of an environment in a thread; yield a client."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with served_here(rules) as client:
            yield client


@pytest.fixture
def client(environment: Environment, store: Path) -> Iterator[httpx.Client]:
    """Serve the store of the test, and return a client."""
    with served(environment) as found:
        yield found


@pytest.fixture(scope="session")
def helpers() -> Any:
    """Return the helpers of this file, as test files cannot import each other."""
    return sys.modules[__name__]


@pytest.fixture(scope="module")
def filled(
    tmp_path_factory: pytest.TempPathFactory, shared_gateway: SimulatorServer
) -> Iterator[httpx.Client]:
    """Serve a store with bars of some series, which no test of a module changes."""
    environment = environment_of(tmp_path_factory.mktemp("filled"))
    make_store(environment)
    environment["IB_PORT"] = str(shared_gateway.port)
    shared_gateway.clock.set(NOW)
    with served(environment) as client:
        for symbol, timeframe in FILLED:
            body = {"symbol": symbol, "timeframe": timeframe, "mode": "full"}
            assert client.post("/api/v1/data/load", json=body).json()["success"]
        yield client


@dataclass(frozen=True)
class ServeProcess:
    """A running ``ktrdr serve``, the document that it printed, and a client of it."""

    process: "subprocess.Popen[str]"
    document: dict[str, Any]
    client: httpx.Client

    def end(self, signum: int = signal.SIGTERM) -> tuple[int, str]:
        """End it by a signal; return the exit code, and what it printed on stderr."""
        self.process.send_signal(signum)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


@contextmanager
def serve_process(environment: Environment, *arguments: str) -> Iterator[ServeProcess]:
    """Run ``ktrdr serve`` on a free port."""
    process = subprocess.Popen(
        [*SERVE, *arguments],
        env={**clean_environment(), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("{"), process.communicate(timeout=60)
        document = json.loads(line)
        with httpx.Client(base_url=document["url"], timeout=60) as client:
            yield ServeProcess(process, document, client)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=60)
