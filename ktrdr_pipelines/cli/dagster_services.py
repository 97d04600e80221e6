"""Dagster as the process of ``ktrdr up``: web server, code server and daemon, on loopback only.

It does what ``dagster dev`` does. In addition, its web server accepts requests of this machine's
own pages only (``LoopbackGuard``), runs whose process is gone are ended before the daemon starts
and every half minute, the definitions are reloaded when the universe has got a timeframe, and the
web server stops as soon as the daemon ends.

Not here: starting and ending this process (``cli.processes``), ending dead runs
(``defs.runs.dead_runs``).
"""

import argparse
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import uvicorn
from dagster import DagsterInstance, __version__
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
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ktrdr_pipelines.app.setup import setting_overrides
from ktrdr_pipelines.cli.processes import HOST, end_reaped, reap, wait_reaped
from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.defs.asset_specs import HEATMAP_PATH
from ktrdr_pipelines.defs.partitions import readable_grid
from ktrdr_pipelines.defs.runs.dead_runs import end_dead_runs
from ktrdr_pipelines.defs.runs.monthly_runs import replace_monthly_runs
from ktrdr_pipelines.store.layout import StoreLayout

_LOOPBACK: Final = rb"(?:localhost|127\.0\.0\.1|\[::1\])(?::[0-9]{1,5})?"
_HOST: Final = re.compile(_LOOPBACK)
_ORIGIN: Final = re.compile(rb"https?://" + _LOOPBACK)

Headers = Iterable[tuple[bytes, bytes]]


class LoopbackGuard:
    """ASGI middleware that refuses HTTP and websocket requests of other sites with status 400.

    A browser lets any page send requests to ``http://localhost:3000``. Same-origin rules do not
    help against a name that its owner points at 127.0.0.1 (DNS rebinding), nor for websockets,
    forms and images. So the headers are checked before any application code runs:

    * there is one ``Host`` header, and it names this machine by a loopback name;
    * ``Origin``, if there is one, is a page of this machine;
    * ``Sec-Fetch-Site`` is not ``cross-site``, unless the user follows a link. GraphQL over GET
      executes mutations, and a browser sends no ``Origin`` with an image.

    Names are compared byte by byte. Other spellings of a loopback address (``127.1``,
    ``LOCALHOST``, ``localhost.``) are refused: a browser sends them only if the user types them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        reason = refusal(scope["headers"]) if scope["type"] in {"http", "websocket"} else None
        if reason is None:
            await self._app(scope, receive, send)
        else:
            await PlainTextResponse(f"{reason}\n", status_code=400)(scope, receive, send)


def refusal(headers: Headers) -> str | None:
    """Return why a request with these headers is refused, or None if it is accepted."""
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        found.setdefault(name.lower(), []).append(value)
    hosts, origins = found.get(b"host", []), found.get(b"origin", [])
    if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
        return "Host is not localhost, 127.0.0.1 or [::1]"
    if len(origins) > 1 or not all(map(_ORIGIN.fullmatch, origins)):
        return "Origin is another site"
    sites = found.get(b"sec-fetch-site", [])
    # Following a link opens a page in a tab of its own, not in a frame.
    mode, target = found.get(b"sec-fetch-mode"), found.get(b"sec-fetch-dest")
    follows_link = mode == [b"navigate"] and target == [b"document"]
    if b"cross-site" in sites and not follows_link:
        return "Sent by a page of another site"
    return None


DEFINITIONS: Final = "ktrdr_pipelines.definitions"

LOCATION: Final = DEFINITIONS
"""The name of the code location, in ``workspace.yaml`` and ``pyproject.toml`` too. Switches and
cursors of sensors hang on it, so it stays what earlier versions of ``ktrdr up`` called it."""

_CHECK_EVERY_S: Final = 30.0
_RELOAD_EVERY_S: Final = 10.0
_DAEMON_GRACE_S: Final = 60.0
_CONNECTIONS_GRACE_S: Final = 3
"""How long open pages may delay the end of the web server; their websockets never close."""

_STATEMENT_TIMEOUT_MS, _POOL_RECYCLE_S, _POOL_OVERFLOW = 15_000, 3600, 20
"""The defaults of the ``dagster-webserver`` command."""

_NO_HEATMAP: Final = """\
<svg xmlns="http://www.w3.org/2000/svg" width="640" height="60">
<rect width="640" height="60" fill="#f2f3f5"/>
<text x="16" y="35" font-family="sans-serif" font-size="14" fill="#5c6370">The coverage heatmap \
is drawn when this asset is materialized: hourly, or by Materialize.</text>
</svg>
"""

_logger = logging.getLogger("dagster.ktrdr_up")


class GuardedWebserver(DagsterWebserver[WorkspaceProcessContext, BaseWorkspaceRequestContext]):
    """Dagster's web server, restricted to pages of this machine, with the coverage heatmap.

    Args:
        context: the workspace that it shows.
        image: the file of the heatmap, if there is one.
        options: those of Dagster's web server.
    """

    def __init__(
        self, context: WorkspaceProcessContext, image: Path | None = None, **options: Any
    ) -> None:
        super().__init__(context, **options)
        self._image = image

    def build_routes(self) -> list[BaseRoute]:
        """Return Dagster's routes, after that of the coverage heatmap."""
        return [Route(HEATMAP_PATH, self._heatmap), *super().build_routes()]  # type: ignore[no-untyped-call]

    async def _heatmap(self, _: Request) -> Response:
        """Return the heatmap of the catalog's last materialization, or an image that says why not.

        A browser shows the image of a response with status 404, too; without one, the page of the
        catalog would look broken until it is materialized.
        """
        headers = {"Cache-Control": "no-cache"}
        if self._image is None or not self._image.is_file() or not self._image.stat().st_size:
            return Response(
                _NO_HEATMAP, status_code=404, media_type="image/svg+xml", headers=headers
            )
        return FileResponse(self._image, media_type="image/png", headers=headers)

    def build_middleware(self) -> list[Middleware]:
        """Return Dagster's middleware, with the guard in front of it."""
        return [Middleware(LoopbackGuard), *super().build_middleware()]


def run_services(home: Path, port: int, *, keeping: int) -> int:
    """Run Dagster's services until a signal arrives; return the exit code.

    Args:
        home: DAGSTER_HOME.
        port: port of the web UI.
        keeping: descriptor of an open file that the daemon keeps open too.
    """
    began_at = time.time()
    ref = InstanceRef.from_dir(str(home), overrides=setting_overrides(home))
    with DagsterInstance.from_ref(ref) as instance:
        for replaced in replace_monthly_runs(instance, system_now(), is_dagster_down=True):
            _logger.warning("Unfinished: %s", replaced)
        _end_dead_runs(instance, began_at)
        # Before the definitions are loaded: an edit in between must not be overlooked.
        reloader = UniverseReloader(home.parent)
        with (
            _code_server(instance) as workspace,
            _daemon(ref, workspace, keeping) as daemon,
            _web_server(instance, workspace, port, home) as (web, context),
            _repeated(_CHECK_EVERY_S, lambda: _end_dead_runs(instance, began_at)),
            _repeated(_RELOAD_EVERY_S, lambda: reloader.check(context)),
        ):
            threading.Thread(target=_stop_with, args=(daemon, web), daemon=True).start()
            try:
                web.run()
            finally:
                # A second signal must not break the orderly end of the others.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            if daemon.returncode is None:
                return 0
            _logger.error("The Dagster daemon ended by itself: exit code %s", daemon.returncode)
            return 1


def _end_dead_runs(instance: DagsterInstance, began_at: float) -> None:
    for dead in end_dead_runs(instance, launched_before=began_at):
        _logger.warning("Ended %s", dead)


class UniverseReloader:
    """Reloads the definitions when the universe has got a timeframe, or windows have moved.

    The assets of the code location are those of the timeframes that symbols have. One that no
    symbol has any more stays until the next start, as runs and backfills may still name it.

    Args:
        folder: the folder of the store, whose definitions are loaded later.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded = readable_grid(folder)

    def __repr__(self) -> str:
        return f"UniverseReloader({self._folder})"

    def check(self, context: WorkspaceProcessContext) -> None:
        """Reload the definitions if they lack something that the universe has.

        A universe that cannot be read changes nothing; the sensors report it. ``context`` is that
        of the web server.
        """
        found = readable_grid(self._folder)
        if found is None:
            return
        timeframes, windows = found
        if self._loaded is not None:
            known, since = self._loaded
            if windows == since and set(timeframes) <= set(known):
                return
        _logger.info("Reloading the definitions: universe.yaml has other timeframes or windows")
        context.reload_code_location(LOCATION)
        self._loaded = found


@contextmanager
def _repeated(every_s: float, check: Callable[[], object]) -> Iterator[None]:
    """Call something again and again in a thread while the context lasts."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(every_s):
            try:
                check()
            except Exception:
                # The database may be busy, or a file be edited: the next time will do. Whatever it
                # is, the thread must not end, as these checks would end with it.
                _logger.exception("A check that is repeated")

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _code_server(instance: DagsterInstance) -> Iterator[Path]:
    """Run the code server, restarted if it dies; yield a workspace file that names it."""
    target = ModuleTarget(
        module_name=DEFINITIONS,
        attribute=None,
        working_directory=str(Path.cwd()),
        location_name=LOCATION,
    )
    with (
        ProxyServerManager(instance, target, code_server_log_level="WARNING") as servers,
        tempfile.TemporaryDirectory() as folder,
    ):
        workspace = Path(folder) / "workspace.yaml"
        document = {"load_from": servers.get_code_server_specs()}
        workspace.write_text(json.dumps(document, ensure_ascii=False))  # which is YAML, too
        yield workspace


@contextmanager
def _daemon(ref: InstanceRef, workspace: Path, keeping: int) -> "Iterator[subprocess.Popen[bytes]]":
    """Run the daemon while the context lasts."""
    command = [sys.executable, "-m", "dagster._daemon", "run", "--workspace", str(workspace)]
    command += ["--instance-ref", serialize_value(ref), "--code-server-log-level", "warning"]
    daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[keeping])  # noqa: S603
    reap(daemon)
    try:
        yield daemon
    finally:
        end_reaped(daemon, grace_s=_DAEMON_GRACE_S)


@contextmanager
def _web_server(
    instance: DagsterInstance, workspace: Path, port: int, home: Path
) -> Iterator[tuple[uvicorn.Server, WorkspaceProcessContext]]:
    """Yield the web server, ready to run, and its view of the code location."""
    instance.optimize_for_webserver(_STATEMENT_TIMEOUT_MS, _POOL_RECYCLE_S, _POOL_OVERFLOW)
    target = WorkspaceFileTarget(paths=[str(workspace)])
    with WorkspaceProcessContext(instance, target, version=__version__) as context:
        app: Any = GuardedWebserver(
            context, StoreLayout(home.parent).coverage_image, live_data_poll_rate=2000
        ).create_asgi_app()
        config = uvicorn.Config(
            app,
            host=HOST,
            port=port,
            log_level="warning",
            timeout_graceful_shutdown=_CONNECTIONS_GRACE_S,
        )
        yield uvicorn.Server(config), context


def _stop_with(daemon: "subprocess.Popen[bytes]", web: uvicorn.Server) -> None:
    """Stop the web server when the daemon ends."""
    wait_reaped(daemon)
    web.should_exit = True


def main() -> None:
    """Run the services for the DAGSTER_HOME of the environment."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--keep-open", type=int, required=True, help="a file descriptor")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    configure_loggers(formatter="colored", log_level="INFO")
    # A later `ktrdr up` that finds the lock taken reads this process group from its file.
    os.ftruncate(chosen.keep_open, 0)
    os.write(chosen.keep_open, f"{os.getpgrp()}\n".encode())
    home = Path(os.environ["DAGSTER_HOME"])
    try:
        sys.exit(run_services(home, chosen.port, keeping=chosen.keep_open))
    except KeyboardInterrupt:
        _logger.info("Stopped")


if __name__ == "__main__":
    main()
