"""The gateway's socket: the only I/O of the simulator.

It performs what conversations want (``session``) and computes answers (``answers``) in threads,
the requests of one client side by side. It binds to loopback addresses only.
"""

import asyncio
import ipaddress
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Self

from ktrdr_pipelines.errors import SimulatorError
from ktrdr_pipelines.simulator.clock import SimClock
from ktrdr_pipelines.simulator.connection import Connection, Gateway
from ktrdr_pipelines.simulator.market import Market
from ktrdr_pipelines.simulator.record import RequestLog, RequestRecord
from ktrdr_pipelines.simulator.rules import GatewayRules
from ktrdr_pipelines.simulator.steps import DurationTable
from ktrdr_pipelines.simulator.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.updates import EVERY_S

ACCOUNT = "SIM000001"
"""Account of every simulated gateway; its beginning marks bars as simulated."""


class SimulatorServer:
    """A gateway that listens on a loopback port.

    Args:
        market: what it answers from.
        clock: its now; None takes the market's own.
        host: a loopback address, or ``localhost``.
        port: 0 takes any free one; read ``port`` once started.
        latency_s: seconds that every contract, head and historical request waits.
        account: the account it announces.
        durations: which bar sizes a duration may be asked with.
        update_s: seconds between updates of bars that are kept up to date.
    """

    def __init__(
        self,
        market: Market,
        *,
        clock: SimClock | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        latency_s: float = 0.0,
        account: str = ACCOUNT,
        durations: DurationTable = DurationTable.WIDE,
        update_s: float = EVERY_S,
    ) -> None:
        self.clock = clock if clock is not None else SimClock(market.default_now())
        self.host = host
        self.port = port
        self._gateway = Gateway(
            market=market,
            clock=self.clock,
            rules=GatewayRules(),
            log=RequestLog(),
            account=account,
            latency_s=latency_s,
            durations=durations,
            update_s=update_s,
        )
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    def __repr__(self) -> str:
        state = "closed" if self._server is None else f"{len(self._connections)} connections"
        return f"SimulatorServer({self.host}:{self.port}, {self._gateway.market!r}, {state})"

    @property
    def requests(self) -> tuple[RequestRecord, ...]:
        """Every contract, head and historical request so far, oldest first; thread-safe."""
        return self._gateway.log.snapshot()

    @property
    def latency_s(self) -> float:
        """Seconds that every request waits; it may be set while the gateway runs."""
        return self._gateway.latency_s

    @latency_s.setter
    def latency_s(self, seconds: float) -> None:
        self._gateway.latency_s = seconds

    async def start(self) -> Self:
        """Begin to listen.

        Raises:
            SimulatorError: the host is not a loopback address, or the port is taken.
        """
        address = _loopback_address(self.host)
        try:
            self._server = await asyncio.start_server(self._talk, address, self.port)
        except OSError as error:
            raise SimulatorError(
                f"listen on {self.host}:{self.port}",
                came=error.strerror or str(error),
                remedy="Stop what uses the port, or choose another with --port",
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def close(self) -> None:
        """Stop listening, end every connection and wait for them."""
        if self._server is None:
            return
        self._server.close()
        await asyncio.gather(*(connection.end() for connection in list(self._connections)))
        await self._server.wait_closed()
        self._server = None

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self._gateway, reader, writer)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)


def _loopback_address(host: str) -> str:
    """Return the one address to bind; ``localhost`` alone could be two, with two ports."""
    address = "127.0.0.1" if host == "localhost" else host
    try:
        is_loopback = ipaddress.ip_address(address).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise SimulatorError(
            f"listen on {host}",
            came="not a loopback address",
            remedy="The simulated gateway has no login and serves this machine only: use 127.0.0.1",
        )
    return address


@contextmanager
def running_simulator(
    market: Market | None = None,
    now: datetime | str | None = None,
    latency_s: float = 0.0,
    port: int = 0,
    *,
    durations: DurationTable = DurationTable.WIDE,
    update_s: float = EVERY_S,
) -> Iterator[SimulatorServer]:
    """Run a gateway in a thread and event loop of its own while the context lasts.

    Args:
        market: None is the synthetic market of seed 1.
        now: where its clock starts, also as an ISO text; None takes the market's own.
        latency_s: seconds that every request waits.
        port: 0 takes any free one.
        durations: which bar sizes a duration may be asked with.
        update_s: seconds between updates of bars that are kept up to date.
    """
    served = market if market is not None else SyntheticMarket(seed=1)
    start = datetime.fromisoformat(now) if isinstance(now, str) else now
    clock = SimClock(start if start is not None else served.default_now())
    server = SimulatorServer(
        served,
        clock=clock,
        latency_s=latency_s,
        port=port,
        durations=durations,
        update_s=update_s,
    )
    thread = _ServerThread(server)
    thread.start_and_wait()
    try:
        yield server
    finally:
        thread.stop()


class _ServerThread(threading.Thread):
    """A thread that runs a server until told to stop."""

    def __init__(self, server: SimulatorServer) -> None:
        super().__init__(name="simulator", daemon=True)
        self._server = server
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()

    def start_and_wait(self) -> None:
        """Start, and return once the port listens; an error of starting is raised here."""
        self.start()
        self._ready.wait()
        if self._failed is not None:
            self.join()
            raise self._failed

    def stop(self) -> None:
        """Close the server and wait for the thread to end."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self.join()

    def run(self) -> None:
        """Serve until stopped."""
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        try:
            await self._server.start()
        except SimulatorError as error:
            self._failed = error
            return
        finally:
            self._ready.set()
        await self._stopping.wait()
        await self._server.close()
