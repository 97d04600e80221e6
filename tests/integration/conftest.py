"""A running `dagster dev` with its daemon, and its GraphQL API as a browser uses it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ktrdr_pipelines.app.workspace import universe_file
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.ledger import Ledger

ROOT = Path(__file__).parents[2]

# A shell may start us with SIGINT ignored; dagster dev stops cleanly on SIGINT alone.
_DAGSTER = (
    "import runpy, signal, sys;"
    "signal.signal(signal.SIGINT, signal.default_int_handler);"
    "sys.argv[0] = 'dagster';"
    "runpy.run_module('dagster', run_name='__main__')"
)


def wait_until(
    holds: Callable[[], Any], what: str, *, seconds: float = 150.0, pause_s: float = 0.25
) -> Any:
    """Poll until something holds and return it; a failure names what was waited for."""
    ends_at = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < ends_at, f"waited {seconds:.0f} s for {what}"
        time.sleep(pause_s)
    return value


@dataclass(frozen=True)
class DagsterDev:
    """A running Dagster: its web server, its home, and its log."""

    url: str
    home: Path
    log: Path

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """Send a GraphQL request as the UI does."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(  # noqa: S310  (a loopback address)
            f"{self.url}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            found: dict[str, Any] = json.load(response)
        assert "errors" not in found, found
        data: dict[str, Any] = found["data"]
        return data

    def is_up(self) -> bool:
        """Return whether the web server responds."""
        try:
            return bool(self.ask("{ version }"))
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


@contextmanager
def running_dagster(folder: Path, environment: Mapping[str, str]) -> Iterator[DagsterDev]:
    """Run `dagster dev` over the project's code location, and end all its processes."""
    home = folder / "home"
    home.mkdir(parents=True)
    shutil.copy(ROOT / "data" / "dagster" / "dagster.yaml", home)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", _DAGSTER, "dev", "-m", "ktrdr_pipelines.definitions"]
    dev = DagsterDev(f"http://127.0.0.1:{port}", home, folder / "dagster.log")
    with dev.log.open("wb") as log:
        process = subprocess.Popen(
            [*command, "-h", "127.0.0.1", "-p", str(port)],
            cwd=folder,
            env={**os.environ, **environment, "DAGSTER_HOME": str(home)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_until(lambda: process.poll() is not None or dev.is_up(), "dagster dev to start")
            assert process.poll() is None, dev.log.read_text()
            yield dev
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(timeout=10)


@pytest.fixture
def dagster_dev(
    tmp_path: Path,
) -> Callable[[Mapping[str, str]], Any]:
    """Return a function that runs `dagster dev` in a folder of its own."""
    return lambda environment: running_dagster(tmp_path / "dagster", environment)


@pytest.fixture
def wait_for() -> Callable[..., Any]:
    """Return a function that waits for something to hold."""
    return wait_until


@pytest.fixture
def read_store() -> Callable[..., pa.Table]:
    """Return a function that reads stored bars of a symbol by session dates."""

    def read(layout: StoreLayout, symbol: str, timeframe: str, first: date, end: date) -> pa.Table:
        universe, _ = universe_file(layout).read()
        series = Series(universe.instrument(symbol), Timeframe(timeframe))
        calendar = calendar_named(series.instrument.calendar)
        interval = interval_between(calendar, series.timeframe, first, end)
        return BarStore(layout, Ledger(layout.ledger)).read(series, interval)

    return read
