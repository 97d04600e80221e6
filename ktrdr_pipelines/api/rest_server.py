"""Run the REST API: open the services of a store, listen, and end in order.

At the end the server accepts nothing more, cancels its discoveries and its loads, which save what
they have, answers the requests that wait for them, and closes the services.

Not here: the command (``cli.commands.up``), the application (``api.rest_app``).
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final

import uvicorn

from ktrdr_pipelines.api.access import AccessRules, is_loopback
from ktrdr_pipelines.api.api_context import ApiContext
from ktrdr_pipelines.api.rest_app import build_app
from ktrdr_pipelines.app.operations import Operations
from ktrdr_pipelines.app.reading.bar_reader import open_store
from ktrdr_pipelines.app.services.gap_filler import GapFillerService
from ktrdr_pipelines.app.services.gateway_monitor import GatewayMonitor
from ktrdr_pipelines.app.services.ib_service import IbService
from ktrdr_pipelines.app.services.system_status import SystemService
from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.errors import KtrdrError, UsageError
from ktrdr_pipelines.store.store_summary import StoreSummary

_CONNECTIONS_GRACE_S: Final = 20
"""How long requests that wait for a load may take to be answered after it was cancelled."""

_BACKLOG: Final = 128


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """The address of its root."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{name}:{self.port}"


def require_safe(rules: AccessRules) -> None:
    """Refuse to listen on an address that other machines reach, unless a token is set.

    Raises:
        UsageError: there is no token, or an allowed host is no name that a client could send.
    """
    if unusable := rules.unusable_names:
        raise UsageError(
            f"--allow-host {unusable[0]!r}",
            reason="not the name or address of a host",
            hint="Write a name alone, such as bars.example.com: no scheme, port, pattern or space",
        )
    if not is_loopback(rules.host) and rules.token is None:
        raise UsageError(
            f"--host {rules.host}",
            reason="other machines can reach this address, and no token is set",
            hint="Set KTRDR_API_TOKEN to a secret of 16 characters or more, or leave out --host",
        )


def listening_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 takes a free one.

    Raises:
        KtrdrError: the port is taken, or the address is not one of this machine.
    """
    listener: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # asyncio switches Nagle's algorithm off only for sockets that name TCP; with it, a client
        # waits 40 ms for the second part of each short answer.
        listener = socket.socket(family, kind, protocol or socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address[:2])
        listener.listen(_BACKLOG)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise KtrdrError(
            f"cannot listen on {host} port {port}",
            reason=error.strerror or str(error),
            hint="Stop the program that uses the port, or choose another with --port",
        ) from error
    return listener


@contextmanager
def open_services(
    open_workspace: Callable[[], Workspace] = Workspace.open,
) -> Iterator[ApiContext]:
    """Open the services of a store, and close them in order.

    While another store is at its path, every use of the store is refused: bars, loads and the
    records of operations would otherwise be of two stores.

    Raises:
        NoStoreError: there is no store.
        SettingsError: a setting is wrong.
    """
    layout = open_workspace().layout  # refused here, not by the first request
    store = open_store(layout.root)

    def same_store() -> Workspace:
        workspace = open_workspace()
        layout.require_same()
        return workspace

    with ExitStack() as stack:
        monitor = stack.enter_context(GatewayMonitor(lambda: same_store().settings))
        operations = stack.enter_context(Operations(same_store))
        summary = StoreSummary()
        ib = IbService(same_store, monitor=monitor, summary=summary)
        gap_filler = GapFillerService(same_store, operations=operations, summary=summary)
        stack.callback(gap_filler.close)
        system = SystemService(same_store, ib=ib, gap_filler=gap_filler, summary=summary)
        stack.callback(system.close)
        context = ApiContext(ib, gap_filler, system, operations, store, same_store)
        stack.callback(context.pools.close)
        stack.callback(operations.close)  # first, both: what waits for the gateway ends then
        stack.callback(ib.close)
        yield context


class _Server(uvicorn.Server):
    """A server of uvicorn that tells when it listens and leaves signals to its caller."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()


async def serve(
    context: ApiContext,
    rules: AccessRules,
    listener: socket.socket,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until cancelled; then end in order.

    Args:
        context: the services; their loads are cancelled at the end, the services stay open.
        rules: which requests are let in.
        listener: a socket that listens; it is closed.
        ready: called when requests are answered.
    """
    config = uvicorn.Config(
        build_app(context, rules),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=_CONNECTIONS_GRACE_S,
    )
    server = _Server(config, ready)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        context.ib.close()
        await asyncio.to_thread(context.operations.close)
        await serving
        raise


@contextmanager
def serving_in_thread(
    context: ApiContext, rules: AccessRules, listener: socket.socket
) -> Iterator[None]:
    """Serve in a thread of its own while the context lasts, as a program beside others.

    The services of ``context`` stay open.
    """
    ready = threading.Event()
    started: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = []

    async def main() -> None:
        task = asyncio.create_task(serve(context, rules, listener, ready.set))
        started.append((asyncio.get_running_loop(), task))
        try:
            await task
        except asyncio.CancelledError:
            return
        finally:
            ready.set()

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="rest-server")
    thread.start()
    try:
        ready.wait()
        yield
    finally:
        loop, task = started[0]
        if thread.is_alive():
            loop.call_soon_threadsafe(task.cancel)
        thread.join()
