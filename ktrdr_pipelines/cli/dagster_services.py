"""The process that ``ktrdr up`` runs: Dagster's web server, with its code server and its daemon.

It does what ``dagster dev`` does, and beyond that: the web server answers this machine's own pages
only (``cli.loopback_guard``), runs whose process is gone are ended before the daemon starts and
every half minute (``defs.dead_runs``), and the end of the daemon is noticed at once.

Not here: who starts and ends this process (``cli.dagster_web``), Dagster's settings
(``cli.dagster_home``).
"""

import argparse
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import uvicorn
import yaml
from dagster import DagsterError, DagsterInstance, __version__
from dagster._cli.proxy_server_manager import ProxyServerManager
from dagster._core.instance import InstanceRef
from dagster._core.workspace.context import (
    BaseWorkspaceRequestContext,
    WorkspaceProcessContext,
)
from dagster._core.workspace.load_target import ModuleTarget, WorkspaceFileTarget
from dagster._serdes import serialize_value
from dagster._utils.log import configure_loggers
from dagster_webserver.webserver import DagsterWebserver
from sqlalchemy.exc import SQLAlchemyError
from starlette.middleware import Middleware

from ktrdr_pipelines.cli.dagster_home import setting_overrides
from ktrdr_pipelines.cli.dagster_web import HOST
from ktrdr_pipelines.cli.loopback_guard import LoopbackGuard
from ktrdr_pipelines.defs.dead_runs import end_dead_runs

DEFINITIONS: Final = "ktrdr_pipelines.definitions"

_LOOK_EVERY_S: Final = 30.0
_DAEMON_GRACE_S: Final = 60.0
_CONNECTIONS_GRACE_S: Final = 3
"""How long open pages may keep the web server from ending; their websockets stay open for ever."""

_STATEMENT_TIMEOUT_MS, _POOL_RECYCLE_S, _POOL_OVERFLOW = 15_000, 3600, 20
"""The defaults of the ``dagster-webserver`` command."""

_logger = logging.getLogger("dagster.ktrdr_up")


class GuardedWebserver(DagsterWebserver[WorkspaceProcessContext, BaseWorkspaceRequestContext]):
    """Dagster's web server, for pages of this machine only."""

    def build_middleware(self) -> list[Middleware]:
        """Put the guard before everything of Dagster."""
        return [Middleware(LoopbackGuard), *super().build_middleware()]


def run_services(home: Path, port: int, *, keeping: int | None = None) -> int:
    """Serve Dagster over a home until a signal comes; return the exit code.

    Args:
        home: DAGSTER_HOME.
        port: of the web UI.
        keeping: an open file that the daemon keeps open too.
    """
    began_at = time.time()
    ref = InstanceRef.from_dir(str(home), overrides=setting_overrides(home))
    with DagsterInstance.from_ref(ref) as instance:
        _end_dead_runs(instance, began_at)
        with (
            _code_server(instance) as workspace,
            _daemon(ref, workspace, keeping) as daemon,
            _web_server(instance, workspace, port) as web,
            _looks_for_dead_runs(instance, began_at),
        ):
            threading.Thread(target=_stop_with, args=(daemon, web), daemon=True).start()
            try:
                web.run()
            finally:
                # A second signal must not break the orderly end of the others.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            if daemon.poll() is None:
                return 0
            _logger.error("The Dagster daemon ended by itself: exit code %s", daemon.returncode)
            return 1


def _end_dead_runs(instance: DagsterInstance, began_at: float) -> None:
    for dead in end_dead_runs(instance, launched_before=began_at):
        _logger.warning("Ended %s", dead)


@contextmanager
def _looks_for_dead_runs(instance: DagsterInstance, began_at: float) -> Iterator[None]:
    """Look for runs whose process is gone, every half minute while the context lasts."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(_LOOK_EVERY_S):
            try:
                _end_dead_runs(instance, began_at)
            except (SQLAlchemyError, DagsterError):
                # The database may be busy, and the next look finds the same.
                _logger.exception("Looking for runs whose process is gone")

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _code_server(instance: DagsterInstance) -> Iterator[Path]:
    """Run the code server, restarted where it dies; gives a workspace file that names it."""
    target = ModuleTarget(
        module_name=DEFINITIONS,
        attribute=None,
        working_directory=str(Path.cwd()),
        location_name=None,
    )
    with (
        ProxyServerManager(instance, target, code_server_log_level="WARNING") as servers,
        tempfile.TemporaryDirectory() as folder,
    ):
        workspace = Path(folder) / "workspace.yaml"
        workspace.write_text(yaml.dump({"load_from": servers.get_code_server_specs()}))
        yield workspace


@contextmanager
def _daemon(
    ref: InstanceRef, workspace: Path, keeping: int | None
) -> "Iterator[subprocess.Popen[bytes]]":
    """Run the daemon while the context lasts."""
    command = [sys.executable, "-m", "dagster._daemon", "run", "--workspace", str(workspace)]
    command += ["--instance-ref", serialize_value(ref), "--code-server-log-level", "warning"]
    kept = () if keeping is None else (keeping,)
    daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=kept)  # noqa: S603
    try:
        yield daemon
    finally:
        daemon.send_signal(signal.SIGINT)
        try:
            daemon.wait(timeout=_DAEMON_GRACE_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


@contextmanager
def _web_server(instance: DagsterInstance, workspace: Path, port: int) -> Iterator[uvicorn.Server]:
    """Make the web server, ready to run."""
    instance.optimize_for_webserver(_STATEMENT_TIMEOUT_MS, _POOL_RECYCLE_S, _POOL_OVERFLOW)
    target = WorkspaceFileTarget(paths=[str(workspace)])
    with WorkspaceProcessContext(instance, target, version=__version__) as context:
        app: Any = GuardedWebserver(context, live_data_poll_rate=2000).create_asgi_app()
        config = uvicorn.Config(
            app,
            host=HOST,
            port=port,
            log_level="warning",
            timeout_graceful_shutdown=_CONNECTIONS_GRACE_S,
        )
        yield uvicorn.Server(config)


def _stop_with(daemon: "subprocess.Popen[bytes]", web: uvicorn.Server) -> None:
    """Stop the web server when the daemon ends."""
    daemon.wait()
    web.should_exit = True


def main() -> None:
    """Run the services of the home that the environment names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--keep-open", type=int, help="a file descriptor: the lock of the store")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    configure_loggers(formatter="colored", log_level="INFO")
    if chosen.keep_open is not None:
        _say_group(chosen.keep_open)
    try:
        sys.exit(
            run_services(Path(os.environ["DAGSTER_HOME"]), chosen.port, keeping=chosen.keep_open)
        )
    except KeyboardInterrupt:
        _logger.info("Stopped")


def _say_group(lock: int) -> None:
    """Write the own process group into the lock's file, for who finds the lock taken."""
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpgrp()}\n".encode())


if __name__ == "__main__":
    main()
