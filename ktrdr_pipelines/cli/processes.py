"""Start processes in groups of their own, and end them without leaving any behind.

Each process gets a process group of its own, so that Ctrl-C reaches only the command, which then
ends its children in order.

Not here: what they run (``cli.commands.simulate``, ``cli.dagster_services``).
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Final

from ktrdr_pipelines.cli.entry_point import Stopped
from ktrdr_pipelines.errors import KtrdrError, SimulatorError

GRACE_S: Final = 20.0
"""How long a group may take to clean up: a load saves what is covered, Dagster ends its runs."""

START_S: Final = 120.0
"""How long a simulated gateway may take to report its port, on a busy machine."""

_POLL_S: Final = 0.05


def start(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    output: IO[bytes] | int = subprocess.DEVNULL,
    keeping: Sequence[int] = (),
) -> "subprocess.Popen[bytes]":
    """Start a process in a group of its own, with the descriptors ``keeping`` left open."""
    with _heeding_interrupts():
        return subprocess.Popen(  # noqa: S603  (the command is the project's own)
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT if output != subprocess.PIPE else subprocess.DEVNULL,
            process_group=0,
            pass_fds=keeping,
        )


def end(process: "subprocess.Popen[bytes]", *, grace_s: float = GRACE_S) -> None:
    """End a process as Ctrl-C would, and the rest of its group; may be repeated.

    A signal that arrives meanwhile ends the wait: the next, harder signal is sent immediately.
    """
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        try:
            if signum is signal.SIGINT:
                process.send_signal(signum)  # the process ends its own children
            else:
                _signal_group(process.pid, signum)
            if _is_gone(process, grace_s):
                break
        except Stopped:
            continue
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


@contextmanager
def simulator_process(
    *, port: int = 0, within_s: float = START_S, now: datetime | None = None
) -> Iterator[int]:
    """Run a simulated gateway in a process of its own while the context lasts; yield its port.

    It ends with this process, however this process ends: it watches its stdin.

    Args:
        port: port to listen on; 0 takes a free one.
        within_s: how long it may take to report its port.
        now: start of its clock; this machine's time if not given.

    Raises:
        SimulatorError: the gateway could not start.
    """
    command = [sys.executable, "-m", "ktrdr_pipelines.cli.main", "simulate", "--json"]
    command += ["--port", str(port), "--until-stdin-closes"]
    if now is not None:
        command += ["--now", now.isoformat()]
    process = start(command, output=subprocess.PIPE)
    try:
        yield _port_of(process, within_s)
    finally:
        end(process)


def lives(group: int) -> bool:
    """Return whether any process of a group is running.

    Zombies do not count: orphans are never reaped where a container's first process is no init.
    """
    if not _signal_group(group, 0):
        return False
    states = set()
    for path in Path("/proc").glob("[0-9]*/stat"):  # empty on systems without /proc
        with suppress(OSError):
            state, _parent, of = path.read_text().rpartition(")")[2].split()[:3]
            if int(of) == group:
                states.add(state)
    return states != {"Z"}


def is_free(port: int) -> bool:
    """Return whether a process can listen on a port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def require_free(option: str, port: int) -> None:
    """Refuse a port that another program listens on.

    Raises:
        KtrdrError: the port is taken.
    """
    if not is_free(port):
        raise KtrdrError(
            f"{option} {port}",
            reason="another program uses this port",
            hint="Stop that program, or choose another port",
        )


@contextmanager
def _heeding_interrupts() -> Iterator[None]:
    """Let a child receive SIGINT even if this process, started in the background, ignores it."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _port_of(process: "subprocess.Popen[bytes]", within_s: float) -> int:
    assert process.stdout is not None  # noqa: S101  (started with a pipe)
    if not select.select([process.stdout], [], [], within_s)[0]:
        reason = f"it did not report its port within {within_s:g} s"
        raise SimulatorError("cannot start a simulated gateway", reason=reason)
    line = process.stdout.readline()
    document: dict[str, Any] = json.loads(line) if line.startswith(b"{") else {}
    if "port" not in document:
        reason = document.get("error", {}).get("message", "it exited without a message")
        raise SimulatorError("cannot start a simulated gateway", reason=reason)
    return int(document["port"])


def _is_gone(process: "subprocess.Popen[bytes]", within_s: float) -> bool:
    """Wait for a process and then for the rest of its group; return whether all have ended."""
    deadline_s = time.monotonic() + within_s
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=within_s)
        while lives(process.pid):
            if time.monotonic() > deadline_s:
                return False
            time.sleep(_POLL_S)
        return True
    return False


def _signal_group(group: int, signum: int) -> bool:
    """Send a signal to a group; return whether it has a process that can be signalled."""
    try:
        os.killpg(group, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True
