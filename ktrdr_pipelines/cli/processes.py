"""Processes that a command starts and never leaves behind: by their own ids, group by group.

Each gets a process group of its own, so that Ctrl-C reaches the command alone, which then ends
its children in order. Not here: what they do (``cli.commands.simulate``, ``cli.dagster_services``).
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
"""How long a group may take to tidy up: a load writes what is covered, Dagster ends its runs."""

START_S: Final = 120.0
"""How long a simulated gateway may take to say where it listens, on a busy machine."""

_POLL_S: Final = 0.05


def start(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    output: IO[bytes] | int = subprocess.DEVNULL,
    keeping: Sequence[int] = (),
) -> "subprocess.Popen[bytes]":
    """Start a process in a group of its own; ``keeping`` are files that it too keeps open."""
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
    """End a process as Ctrl-C would, and whatever of its group outlives it; may be repeated.

    A signal that comes meanwhile makes it go on harder instead of waiting.
    """
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        try:
            _send(process, signum)
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
    """Run a simulated gateway in a process of its own while the context lasts; gives its port.

    It ends with this process, however that ends: it watches its stdin.

    Args:
        port: where it listens; 0 takes a free one.
        within_s: how long it may take to say where that is.
        now: where its clock starts; this machine's time if not given.

    Raises:
        SimulatorError: it could not start.
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
    """Say whether anything of a group runs; what is dead and only waits to be reaped does not.

    Nobody reaps orphans where the first process of a container is no init.
    """
    if not _signal_group(group, 0):
        return False
    states = {state for state, of in _processes() if of == group}
    return states != {"Z"}


def is_free(port: int) -> bool:
    """Say whether a port of this machine can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def require_free(option: str, port: int) -> None:
    """Refuse a port that something listens on.

    Raises:
        KtrdrError: it is taken.
    """
    if not is_free(port):
        raise KtrdrError(
            f"{option} {port}",
            reason="something else uses this port",
            hint="End it, or choose another port",
        )


@contextmanager
def _heeding_interrupts() -> Iterator[None]:
    """Let a child heed SIGINT where this process, started in the background, ignores it."""
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
        raise SimulatorError("start a simulated gateway", reason=f"no word of it in {within_s:g} s")
    line = process.stdout.readline()
    told: dict[str, Any] = json.loads(line) if line.startswith(b"{") else {}
    if "port" not in told:
        reason = told.get("error", {}).get("message", "it ended without a word")
        raise SimulatorError("start a simulated gateway", reason=reason)
    return int(told["port"])


def _send(process: "subprocess.Popen[bytes]", signum: signal.Signals) -> None:
    """Send SIGINT to the process, which tells its children; anything harder to all of them."""
    if signum is signal.SIGINT:
        process.send_signal(signum)
    else:
        _signal_group(process.pid, signum)


def _is_gone(process: "subprocess.Popen[bytes]", within_s: float) -> bool:
    """Wait for a process and then for the rest of its group."""
    deadline_s = time.monotonic() + within_s
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=within_s)
        while lives(process.pid):
            if time.monotonic() > deadline_s:
                return False
            time.sleep(_POLL_S)
        return True
    return False


def _processes() -> Iterator[tuple[str, int]]:
    """Give state and group of every process, where the system tells."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _parent, group = path.read_text().rpartition(")")[2].split()[:3]
            yield state, int(group)


def _signal_group(group: int, signum: int) -> bool:
    """Send a signal to a group, and say whether anything of it is left."""
    try:
        os.killpg(group, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True
