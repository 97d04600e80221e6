"""The server of a simulated gateway: a listening socket, and a thread to run it in.

The server binds to loopback addresses only. Responses are computed in worker threads, several
requests of one client concurrently. ``running_simulator`` runs a server in a thread with an event
loop of its own, beside the caller's code.

Not here: the socket of one client (``client_connection``), and the state that all connections
share (``simulated_gateway``).
"""

import asyncio
import ipaddress
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Self

from ktrdr_pipelines.errors import SimulatorError
from ktrdr_pipelines.simulator.client_connection import Connection
from ktrdr_pipelines.simulator.faults.effects import Outages
from ktrdr_pipelines.simulator.faults.faults import FaultPlan
from ktrdr_pipelines.simulator.market.market import Market
from ktrdr_pipelines.simulator.market.recorded import ReplayMarket
from ktrdr_pipelines.simulator.market.splits import SplitMarket, read_splits, stock_keys
from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.protocol.replies import ApiError
from ktrdr_pipelines.simulator.request_log import LoggedRequest
from ktrdr_pipelines.simulator.requests.durations import DurationTable
from ktrdr_pipelines.simulator.requests.pacing_rules import PacingRule
from ktrdr_pipelines.simulator.simulated_gateway import Behaviour, SimClock, gateway_of
from ktrdr_pipelines.simulator.variants import MarketVariants


class ServerThread(threading.Thread):
    """A thread that runs a server until ``stop`` is called.

    Args:
        start: starts the server; an error that it raises is raised again by ``start_and_wait``.
        close: closes the server.
    """

    def __init__(
        self,
        start: Callable[[], Awaitable[object]],
        close: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(name="simulator", daemon=True)
        self._start_serving, self._close = start, close
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()

    def start_and_wait(self) -> None:
        """Start the thread and return once the server listens, or raise why it cannot start."""
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
            await self._start_serving()
        except Exception as error:  # noqa: BLE001 - raised again in the thread that waits
            self._failed = error
            return
        finally:
            self._ready.set()
        await self._stopping.wait()
        await self._close()


ACCOUNT = "SIM000001"
"""The account of a simulated gateway; its prefix marks bars as simulated."""


class SimulatorServer:
    """A gateway that listens on a loopback port.

    Args:
        market: the source of its responses: a market, or the recording of another gateway.
        clock: the gateway's clock; None starts one at the market's default time.
        host: a loopback address, or ``localhost``.
        port: 0 takes any free port; read ``port`` once started.
        latency_s: seconds that every contract, head timestamp and historical request waits.
        account: the account that it announces.
        behaviour: its rules and faults; None is the documented behaviour, without faults.

    Raises:
        SimulatorError: the log cannot be written.
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
        behaviour: Behaviour | None = None,
    ) -> None:
        self.clock = clock if clock is not None else SimClock(market.default_now())
        self._market = market
        self.host = host
        self.port = port
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._gateway = gateway_of(
            market,
            self.clock,
            behaviour or Behaviour(),
            Outages(notify=self._notify, drop_all=self._drop_all),
            account=account,
            latency_s=latency_s,
        )

    def __repr__(self) -> str:
        state = "closed" if self._server is None else f"{len(self._connections)} connections"
        return f"SimulatorServer({self.host}:{self.port}, {self._market!r}, {state})"

    @property
    def requests(self) -> tuple[LoggedRequest, ...]:
        """The contract, head timestamp and historical requests, oldest first; thread-safe.

        Only the newest ``request_log.MOST_KEPT`` are kept.
        """
        return self._gateway.log.snapshot()

    @property
    def violations(self) -> dict[PacingRule, int]:
        """How often each pacing rule was broken; thread-safe."""
        return dict(self._gateway.rules.violations)

    @property
    def counts(self) -> dict[str, int]:
        """How often each kind of logged event happened; thread-safe."""
        return self._gateway.journal.counts

    @property
    def latency_s(self) -> float:
        """The seconds that every request waits; may be set while the gateway runs."""
        return self._gateway.latency_s

    @latency_s.setter
    def latency_s(self, seconds: float) -> None:
        self._gateway.latency_s = seconds

    @property
    def faults(self) -> FaultPlan:
        """The faults from now on; may be set while the gateway runs."""
        return self._gateway.faults

    @faults.setter
    def faults(self, plan: FaultPlan) -> None:
        self._gateway.faults = plan

    def notify(self, code: int, text: str) -> None:
        """Send every client a notice that concerns no request; thread-safe."""
        if self._server is not None:
            loop = self._server.get_loop()
            loop.call_soon_threadsafe(self._notify, ApiError(code, text))

    def lift_faults(self) -> None:
        """Remove all faults, end a current outage and free held client ids; thread-safe."""
        self._gateway.faults = FaultPlan()
        self._gateway.rules.all_held_until = 0.0
        if self._server is not None:
            self._server.get_loop().call_soon_threadsafe(self._gateway.outages.end)

    def _notify(self, notice: ApiError) -> None:
        for connection in list(self._connections):
            connection.notify(notice)

    def _drop_all(self) -> None:
        for connection in list(self._connections):
            connection.drop()

    async def start(self) -> Self:
        """Start to listen.

        Raises:
            SimulatorError: the host is not a loopback address, or the port is taken.
        """
        try:
            address = _loopback_address(self.host)
            try:
                self._server = await asyncio.start_server(self._serve_client, address, self.port)
            except OSError as error:
                raise SimulatorError(
                    f"listen on {self.host}:{self.port}",
                    reason=error.strerror or str(error),
                    hint="Stop the process that uses the port, or choose another with --port",
                ) from error
        except SimulatorError:
            self._gateway.journal.close()
            raise
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def close(self) -> None:
        """Stop listening, and cut every connection and wait until it has ended."""
        if self._server is None:
            return
        self._server.close()
        self._gateway.outages.stop_timers()
        await asyncio.gather(*(connection.end() for connection in list(self._connections)))
        await self._server.wait_closed()
        self._server = None
        self._gateway.journal.close()

    async def _serve_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        connection = Connection(self._gateway, reader, writer)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)


def _loopback_address(host: str) -> str:
    """Return the address to bind; ``localhost`` may be two, each with a port of its own."""
    address = "127.0.0.1" if host == "localhost" else host
    try:
        is_loopback = ipaddress.ip_address(address).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise SimulatorError(
            f"listen on {host}",
            reason="it is not a loopback address",
            hint="The simulated gateway has no login and serves this machine only: use 127.0.0.1",
        )
    return address


@contextmanager
def running_simulator(
    market: Market | None = None,
    now: datetime | str | None = None,
    latency_s: float = 0.0,
    port: int = 0,
    *,
    account: str = ACCOUNT,
    durations: DurationTable | None = None,
    update_s: float | None = None,
    behaviour: Behaviour | None = None,
) -> Iterator[SimulatorServer]:
    """Run a gateway in a thread and event loop of its own, for the duration of the context.

    Args:
        market: the source of its responses; None is the synthetic market of seed 1.
        now: where its clock starts, a datetime or an ISO text; None takes the market's default.
        latency_s: seconds that every request waits.
        port: 0 takes any free port.
        account: the account that it announces. Bars from an account without the prefix of
            ``ACCOUNT`` are taken for real ones.
        durations: which bar sizes fit a duration; None takes that of ``behaviour``.
        update_s: seconds between updates of live bars; None takes that of ``behaviour``.
        behaviour: its rules and faults; None is the documented behaviour, without faults.

    Raises:
        SimulatorError: the log cannot be written, or the port is taken.
    """
    behaviour = behaviour or Behaviour()
    behaviour = replace(
        behaviour,
        durations=durations or behaviour.durations,
        update_s=behaviour.update_s if update_s is None else update_s,
    )
    served = market if market is not None else SyntheticMarket(seed=1)
    start = datetime.fromisoformat(now) if isinstance(now, str) else now
    clock = SimClock(start if start is not None else served.default_now())
    server = SimulatorServer(
        served,
        clock=clock,
        latency_s=latency_s,
        port=port,
        account=account,
        behaviour=behaviour,
    )
    thread = ServerThread(server.start, server.close)
    thread.start_and_wait()
    try:
        yield server
    finally:
        thread.stop()


def open_market(
    bars_folder: Path | None,
    seed: int,
    variants: MarketVariants = MarketVariants(),  # noqa: B008 - immutable
    *,
    splits: Path | None = None,
) -> Market:
    """Open the recorded bars of a folder, or the synthetic market of a seed and its variants.

    Args:
        bars_folder: the folder; None is the synthetic market.
        seed: decides every price of the synthetic market.
        variants: how the synthetic market differs from others of the same seed.
        splits: a file of splits (``market.splits``); None is none.

    Raises:
        SimulatorError: the folder holds no recorded bars, or one of its files is malformed.
        UsageError: the file of splits cannot be read, or is malformed.
    """
    market: Market = (
        SyntheticMarket(seed, variants) if bars_folder is None else ReplayMarket(bars_folder)
    )
    if splits is None:
        return market
    return SplitMarket(market, read_splits(splits, stock_keys(market)))
