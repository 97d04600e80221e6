"""Run a simulated gateway, Dagster and the REST API as processes, and end them all.

Each process gets a process group of its own, so that Ctrl-C reaches only the command, which then
ends its children in order. If the command is killed (``kill -9``, out of memory), a watchdog ends
the group: this module, run as a process that reads a pipe which only the command holds open.

A thread reaps each process, and the main thread only reads its exit code: the handler of a signal
that arrives inside ``Popen.wait`` or ``poll`` could raise just after they took their lock, which
would then stay locked for ever. Handlers run in the main thread alone.

Not here: what the processes run (``cli.commands.simulate``,
``cli.dagster_services``, ``cli.commands.up``).
"""

import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Final

from ktrdr_pipelines.app.services.dagster_lock import SERVED
from ktrdr_pipelines.cli.entry_point import Stopped
from ktrdr_pipelines.errors import KtrdrError, SimulatorError
from ktrdr_pipelines.store.files import disk_errors, require_file

HOST: Final = "127.0.0.1"
TOKEN_VARIABLE: Final = "KTRDR_API_TOKEN"  # noqa: S105  (a name)

GRACE_S: Final = 20.0
"""How long a group may take to clean up: a load saves what is covered, Dagster ends its runs."""

WATCHDOG_GRACE_S: Final = 6.0
"""How long a group may take whose command was killed: loads save what they have and return their
permits, which takes seconds. A group that takes longer is killed."""

START_S: Final = 120.0
"""How long a simulated gateway may take to report its port, or Dagster's UI to respond: a few
seconds on an idle machine, far more on a busy one."""

_POLL_S: Final = 0.05
_WEB_POLL_S: Final = 0.25
_LOG_LINES: Final = 15
_GROUP: Final = 2
_THREADS: Final = 17
"""Indexes of the process group and the number of threads in /proc/PID/stat, after the name."""

_EXITED: Final = "ZX"
"""States in /proc/PID/stat of a process that has exited: a zombie, and one being reaped.

Source: proc_pid_stat(5), Linux man-pages 6.9.
"""

_ENDED_IN_ORDER: Final = b"."


def start(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    output: IO[bytes] | int = subprocess.DEVNULL,
    keeping: Sequence[int] = (),
) -> "subprocess.Popen[bytes]":
    """Start a process in a group of its own, with the descriptors ``keeping`` left open.

    Without ``env`` it has the environment that ``child_environment`` returns.

    Its ``returncode`` is set soon after it has exited. Do not call ``wait`` or ``poll`` in the main
    thread while a handler of signals may raise.
    """
    with _accepting_interrupts():
        process = subprocess.Popen(  # noqa: S603  (the command is the project's own)
            command,
            cwd=cwd,
            env=child_environment() if env is None else env,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT if output != subprocess.PIPE else subprocess.DEVNULL,
            process_group=0,
            pass_fds=keeping,
        )
    reap(process)
    return process


def child_environment() -> dict[str, str]:
    """Return the environment of this process without the token that only the REST service needs."""
    return {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}


def end(process: "subprocess.Popen[bytes]", *, grace_s: float = GRACE_S) -> None:
    """End a process as Ctrl-C would, and the rest of its group; may be repeated, in any thread.

    A signal that arrives meanwhile ends the wait: the next, harder signal is sent immediately.
    """
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with suppress(Stopped):
            if signum is not signal.SIGINT:
                _signal_group(process.pid, signum)
            elif process.returncode is None:  # else another process may have its id
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signum)  # the process ends its own children
            reap(process)  # in each round, as a signal may have kept the thread from starting
            deadline_s = time.monotonic() + grace_s
            if wait_reaped(process, deadline_s) and _is_gone(process.pid, deadline_s):
                break
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


def end_reaped(process: "subprocess.Popen[bytes]", *, grace_s: float) -> None:
    """Interrupt a process of this process's group and wait; kill it if it does not end in time.

    It was given to ``reap``. A signal that arrives meanwhile ends the wait, and the process is
    killed and waited for all the same, before the signal is raised again.
    """
    try:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGINT)
        is_over = wait_reaped(process, time.monotonic() + grace_s)
    except BaseException:
        _kill(process)
        raise
    if not is_over:
        _kill(process)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    wait_reaped(process)


def end_group(group: int, *, grace_s: float = WATCHDOG_GRACE_S) -> None:
    """Terminate a group of which no process is a child, and kill it if it does not end in time."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        _signal_group(group, signum)
        if _is_gone(group, time.monotonic() + grace_s):
            return


@contextmanager
def watched(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """End the group of a process if this process is killed while the context lasts."""
    watchdog = start([sys.executable, "-m", __name__, str(process.pid)])
    assert watchdog.stdin is not None  # noqa: S101  (started with a pipe)
    try:
        yield
    finally:
        with suppress(OSError):
            watchdog.stdin.write(_ENDED_IN_ORDER)
            watchdog.stdin.close()
        wait_reaped(watchdog)


@dataclass(frozen=True, slots=True)
class SimulatorProcess:
    """A simulated gateway: its process, and the port on which it listens."""

    process: "subprocess.Popen[bytes]"
    port: int

    def exit_error(self) -> KtrdrError:
        """Return the error that it has exited by itself."""
        return SimulatorError(
            f"the simulated gateway at {HOST}:{self.port} exited by itself",
            reason=_exit_text(self.process.returncode),
            hint="Start this command again; what was saved is kept",
        )


@contextmanager
def simulator_process(
    *, port: int = 0, within_s: float = START_S, now: datetime | None = None
) -> Iterator[SimulatorProcess]:
    """Run a simulated gateway in a process of its own while the context lasts.

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
        yield SimulatorProcess(process, _port_of(process, within_s))
    finally:
        end(process)


@dataclass(frozen=True, slots=True)
class WebProcess:
    """A running server: what it is, its process, its address, and its log file.

    Attributes:
        name: what messages call it.
        process: the process.
        url: the address of its root.
        log: the file of its output.
        probe: the path that responds as soon as it is ready.
    """

    name: str
    process: "subprocess.Popen[bytes]"
    url: str
    log: Path
    probe: str

    def wait_until_ready(self) -> None:
        """Wait until it responds.

        Raises:
            KtrdrError: it exited, or did not respond in time.
        """
        deadline_s = time.monotonic() + START_S
        while not _responds(f"{self.url}{self.probe}"):
            if self.process.returncode is not None:
                raise self.exit_error()
            if time.monotonic() > deadline_s:
                raise KtrdrError(
                    f"cannot reach {self.name} at {self.url}",
                    reason=f"no response in {START_S:g} s",
                    hint=f"See its log {self.log}",
                )
            time.sleep(_WEB_POLL_S)

    def wait(
        self,
        beside: Sequence["WebProcess"] = (),
        tell: Callable[[KtrdrError], object] = lambda _: None,
        *,
        needed: Sequence[SimulatorProcess] = (),
    ) -> None:
        """Wait until it exits, or one that it needs; a signal ends the wait.

        Args:
            beside: others that run beside it, and may exit earlier.
            tell: is called with the error of each of those that does.
            needed: others without which it is of no use.

        Raises:
            KtrdrError: it exited by itself, or one that it needs.
        """
        others = list(beside)
        while self.process.returncode is None:
            for required in needed:
                if required.process.returncode is not None:
                    raise required.exit_error()
            for one in [one for one in others if one.process.returncode is not None]:
                others.remove(one)
                tell(one.exit_error())
            time.sleep(_WEB_POLL_S)
        raise self.exit_error()

    def exit_error(self) -> KtrdrError:
        """Return the error that it has exited by itself, with the end of its log."""
        text = self.log.read_text(encoding="utf-8", errors="replace").strip()
        last = "\n  ".join(text.splitlines()[-_LOG_LINES:])
        return KtrdrError(
            f"{self.name} exited by itself",
            reason=f"{_exit_text(self.process.returncode)}, and its last output was\n  {last}\n",
            hint=f"See its log {self.log}",
        )


@contextmanager
def dagster_process(
    home: Path, log: Path, port: int, variables: Mapping[str, str], *, keeping: int
) -> Iterator[WebProcess]:
    """Run Dagster while the context lasts; its whole process group is gone afterwards.

    It ends with this process, however this process ends.

    Args:
        home: DAGSTER_HOME, and the working folder: an .env file of the user would override it.
        log: the file for its output.
        port: port of the web UI, on loopback only.
        variables: further environment variables.
        keeping: descriptor of a locked file that Dagster keeps open as long as it lives, and in
            which it writes its process group.
    """
    command = [sys.executable, "-m", "ktrdr_pipelines.cli.dagster_services"]
    command += ["--port", str(port), "--keep-open", str(keeping)]
    env = {
        **child_environment(),
        **variables,
        SERVED: str(home.parent),
        "DAGSTER_HOME": str(home),
        "PYTHONUNBUFFERED": "1",
    }
    require_file(log)
    with disk_errors(log), log.open("wb") as file:
        process = start(command, cwd=home, env=env, output=file.fileno(), keeping=[keeping])
    try:
        with watched(process):
            yield WebProcess("Dagster", process, f"http://{HOST}:{port}", log, "/server_info")
    finally:
        end(process)


@contextmanager
def rest_process(log: Path, port: int, variables: Mapping[str, str]) -> Iterator[WebProcess]:
    """Serve the REST API while the context lasts; its process is gone afterwards.

    It ends with this process, however this process ends.

    Args:
        log: the file for its output.
        port: the port, on loopback only.
        variables: further environment variables.
    """
    command = [sys.executable, "-m", "ktrdr_pipelines.cli.main", "serve", "--port", str(port)]
    env = {**os.environ, **variables, "PYTHONUNBUFFERED": "1"}
    require_file(log)
    with disk_errors(log), log.open("wb") as file:
        process = start(command, env=env, output=file.fileno())
    try:
        with watched(process):
            yield WebProcess(
                "the REST API", process, f"http://{HOST}:{port}", log, "/api/v1/health"
            )
    finally:
        end(process)


def _exit_text(returncode: int | None) -> str:
    """Return how a process ended: its exit code, or the signal that killed it."""
    if returncode is None or returncode >= 0:
        return f"exit code {returncode}"
    try:
        return f"exit code {returncode} ({signal.Signals(-returncode).name})"
    except ValueError:
        return f"exit code {returncode}"


def _responds(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:  # noqa: S310  (our own loopback URL)
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def lives(group: int) -> bool:
    """Return whether any process of a group is running.

    Zombies do not count: in a container without an init process, orphans are never reaped. A
    process whose first thread is a zombie still runs, and keeps its files open, until its last
    thread ends.
    """
    if not _signal_group(group, 0):
        return False
    are_zombies: set[bool] = set()
    for path in Path("/proc").glob("[0-9]*/stat"):  # empty on systems without /proc
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[_GROUP]) == group:
                are_zombies.add(fields[0] in _EXITED and int(fields[_THREADS]) <= 1)
    if are_zombies:
        return False in are_zombies
    return _signal_group(group, 0)  # its last zombie may just have been reaped


def is_free(port: int) -> bool:
    """Return whether a process can listen on a port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
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
def _accepting_interrupts() -> Iterator[None]:
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


def reap(process: "subprocess.Popen[bytes]") -> None:
    """Let a thread wait for a process and set its ``returncode``."""
    if process.returncode is None:
        threading.Thread(target=process.wait, name=f"reap {process.pid}", daemon=True).start()


def wait_reaped(
    process: "subprocess.Popen[bytes]", deadline_s: float = math.inf, *, poll_s: float = _POLL_S
) -> bool:
    """Wait until the thread of ``reap`` has reaped a process; return whether it was by then."""
    while process.returncode is None:
        if time.monotonic() > deadline_s:
            return False
        time.sleep(poll_s)
    return True


def _is_gone(group: int, deadline_s: float) -> bool:
    """Wait for the processes of a group; return whether all have ended by then."""
    while lives(group):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(_POLL_S)
    return True


def _signal_group(group: int, signum: int) -> bool:
    """Send a signal to a group; return whether it has a process that can be signalled."""
    try:
        os.killpg(group, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def main() -> None:
    """Wait until the command ends; end the group unless the command ended in order."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    if not sys.stdin.buffer.read():
        end_group(int(sys.argv[1]))


if __name__ == "__main__":
    main()
