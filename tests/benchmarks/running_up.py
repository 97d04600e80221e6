"""``ktrdr up`` as a user runs it: started, watched from outside, and ended."""

# ruff: noqa: S310  (loopback addresses)

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.measuring import as_installed

POLL_S = 0.5
READY_S = 300.0
_END_S = 120.0
_PROC = Path("/proc")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")

ASSETS = """
{ workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError {
  ... on RepositoryLocation { repositories { assetNodes { id assetKey { path } } } }
  ... on PythonError { message }
} } } } }
"""
"""What the page of the catalog of assets waits for."""


@dataclass(frozen=True, slots=True)
class Up:
    """A running command: its process, the port of its UI, and its output."""

    process: "subprocess.Popen[bytes]"
    port: int
    log: Path

    def query(self, query: str, **variables: Any) -> dict[str, Any]:
        """Send a GraphQL request as the UI does, and return its data."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            found: dict[str, Any] = json.load(response)["data"]
        return found

    def wait_until(self, holds: Callable[[], Any], what: str, *, longest_s: float = READY_S) -> Any:
        """Return the first true value of a function that may fail to reach the UI.

        Raises:
            RuntimeError: the command exited.
            TimeoutError: there was none in time.
        """
        ends_s = time.monotonic() + longest_s
        while True:
            try:
                if value := holds():
                    return value
            except (OSError, urllib.error.URLError):
                pass
            if self.process.poll() is not None:
                raise RuntimeError(f"`ktrdr up` exited: {self.log.read_text()[-2000:]}")
            if time.monotonic() > ends_s:
                raise TimeoutError(f"waited {longest_s:.0f} s for {what}")
            time.sleep(POLL_S / 5)

    def wait_until_painted(self) -> None:
        """Return once the UI serves its page, and lists the assets."""

        def is_painted() -> bool:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=60) as page:
                return b"<html" in page.read().lower() and '"bars"' in json.dumps(
                    self.query(ASSETS)
                )

        self.wait_until(is_painted, "the UI")

    def pss_mb(self) -> float:
        """Return the memory of all its processes, in millions of bytes; shared pages by shares."""
        return sum(map(_pss_kb, self._processes())) * 1024 / 1e6

    def cpu_s(self) -> float:
        """Return the processor seconds of all its processes, and of those that have ended."""
        return sum(map(_cpu_s, self._processes()))

    def _processes(self) -> list[int]:
        """Return the ids of the command and of all its descendants."""
        children: dict[int, list[int]] = {}
        for folder in _PROC.iterdir():
            if folder.name.isdigit() and (fields := _stat(int(folder.name))):
                children.setdefault(int(fields[1]), []).append(int(folder.name))
        found = [self.process.pid]
        for one in found:
            found += children.get(one, [])
        return found


@contextmanager
def running_up(
    folder: Path, environment: Mapping[str, str], port: int, *arguments: str
) -> Iterator[Up]:
    """Run the command, its output in a folder, and end it as Ctrl-C does."""
    # A shell may start this program with SIGINT ignored; the command would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    log_path = folder / "up.log"
    try:
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ktrdr_pipelines.cli.main", "up"),
                    *("--port", str(port), *arguments),
                ],
                env=as_installed(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
    finally:
        signal.signal(signal.SIGINT, before)
    up = Up(process, port, log_path)
    try:
        yield up
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _stat(pid: int) -> list[str]:
    """Return the fields of a process after its name, none of one that has ended."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _cpu_s(pid: int) -> float:
    """Return the processor seconds of a process and of its children that have ended."""
    return sum(map(int, _stat(pid)[11:15])) * _TICK_S


def _pss_kb(pid: int) -> int:
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
