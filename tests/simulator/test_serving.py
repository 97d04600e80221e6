"""Starting, closing, and clients that disconnect in any way."""

import asyncio
import socket
import struct
from contextlib import ExitStack, closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from ib_async import IB, StartupFetchNONE
from ib_async.wrapper import RequestError

from ktrdr_pipelines.errors import SimulatorError
from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.protocol.messages import ContractFields, HeadRequest, HistoryRequest
from ktrdr_pipelines.simulator.request_log import RequestLog, record_of
from ktrdr_pipelines.simulator.requests.pacing_rules import SimulatedPacing
from ktrdr_pipelines.simulator.requests.request_limits import Kind
from ktrdr_pipelines.simulator.server import ServerThread, SimulatorServer, running_simulator
from ktrdr_pipelines.simulator.serving import OpenRequest, follow
from ktrdr_pipelines.simulator.simulated_gateway import Behaviour, SimClock
from tests.simulator.conftest import NOW
from tests.simulator.ib_async_session import AAPL, client, history, run_session
from tests.simulator.rawclient import raw_client, wait_until


def test_an_id_in_use_is_326_and_freed_with_its_socket(gateway: SimulatorServer) -> None:
    """A listener added before connecting gets 326; the id is free after its client left."""

    async def run() -> None:
        async with client(gateway, 9):
            second, refused = IB(), asyncio.Event()
            second.errorEvent += lambda _, code, *__: refused.set() if code == 326 else None
            connect = second.connectAsync("127.0.0.1", gateway.port, clientId=9, timeout=60.0)
            connecting = asyncio.ensure_future(connect)
            await asyncio.wait_for(refused.wait(), 60)
            connecting.cancel()
        async with client(gateway, 9) as third:
            assert third.isConnected()

    asyncio.run(run())


def raw(server: SimulatorServer, data: bytes) -> bytes:
    """Send bytes on a plain socket and read until the gateway closes it."""
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=60)) as plain:
        plain.sendall(data)
        answer = b""
        while piece := plain.recv(65_536):
            answer += piece
        return answer


def test_a_malformed_client_is_closed_and_others_go_on(
    gateway: SimulatorServer, split_frames: Any
) -> None:
    """Invalid bytes end their own connection only."""

    async def run() -> None:
        async with client(gateway, 11) as ib:
            started = b"API\0\0\0\0\tv157..178\0\0\0\x0971\x002\x0012\0\0"
            answer = await asyncio.to_thread(raw, gateway, started + b"\xff\xff\xff\xff")
            assert split_frames(answer)[-1][2:4] == ["-1", "507"]
            assert await asyncio.to_thread(raw, gateway, b"GET / HTTP/1.1\r\n\r\n") == b""
            assert await asyncio.to_thread(raw, gateway, b"API\0\0\0\0\x03v99") == b""
            assert len(await history(ib, AAPL, "1 day", "1 D")) == 1

    asyncio.run(run())


def test_a_client_that_vanishes_frees_its_id_and_requests(slow_gateway: SimulatorServer) -> None:
    """A socket that is cut with open requests leaves nothing behind."""

    async def run() -> None:
        async with client(slow_gateway, 3) as ib:
            request = asyncio.ensure_future(history(ib, AAPL, "1 day", "1 D"))
            await ib.reqCurrentTimeAsync()
            ib.client.conn.transport.abort()
            request.cancel()

    for _ in range(3):
        asyncio.run(run())
        wait_until(lambda: not slow_gateway._connections)
    assert not slow_gateway._gateway.rules.clients
    assert not slow_gateway._gateway.rules.open_requests


def test_a_taken_port_is_named_with_a_hint(gateway: SimulatorServer) -> None:
    """The error names the address, the reason and the option."""
    with (
        pytest.raises(SimulatorError, match=rf"127\.0\.0\.1:{gateway.port}.*--port"),
        running_simulator(port=gateway.port),
    ):
        pass


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.1", "example.org"])  # noqa: S104
def test_only_loopback_is_served(synthetic: SyntheticMarket, host: str) -> None:
    """A gateway without a login must not be reachable from other machines."""
    with pytest.raises(SimulatorError, match="not a loopback address"):
        asyncio.run(SimulatorServer(synthetic, host=host).start())


def test_localhost_is_one_address_and_port(synthetic: SyntheticMarket) -> None:
    """The name has one port, whatever it resolves to."""

    async def run() -> None:
        server = await SimulatorServer(synthetic, host="localhost").start()
        async with client(server) as ib:
            assert ib.isConnected()
        await server.close()
        assert "closed" in repr(server)

    asyncio.run(run())


def test_a_client_that_does_not_read_does_not_block_closing(synthetic: SyntheticMarket) -> None:
    """Closing cuts a socket whose buffers are full."""
    with running_simulator(synthetic, now=NOW) as server:
        with raw_client(server) as client:
            client.bars(1, size="1 min", duration="1 Y", end="", rth="0")
            wait_until(lambda: server.requests and not server.requests[0].is_open)
        assert server.requests[0].bars > 200_000


def test_a_client_that_half_closes_and_does_not_read_is_cut_off(
    synthetic: SyntheticMarket,
) -> None:
    """Its unsent responses, id and socket are released."""
    behaviour = Behaviour(linger_s=0.05)
    with running_simulator(synthetic, now=NOW, behaviour=behaviour) as server:
        with raw_client(server) as client:
            client.bars(1, size="1 min", duration="1 Y", end="", rth="0")
            wait_until(lambda: server.requests and not server.requests[0].is_open)
            client.sock.shutdown(socket.SHUT_WR)
            wait_until(lambda: not server._connections)
        assert not server._gateway.rules.clients


def test_a_client_that_sends_nothing_blocks_no_other(synthetic: SyntheticMarket) -> None:
    """Half a greeting or half a frame blocks no other client, and closing ends them."""
    with running_simulator(synthetic, now=NOW) as server, ExitStack() as stack:
        address = ("127.0.0.1", server.port)
        empty = [
            stack.enter_context(socket.create_connection(address, timeout=60)) for _ in range(3)
        ]
        empty[1].sendall(b"AP")
        empty[2].sendall(b"API\0\0\0\0\tv157")
        with raw_client(server) as client:
            client.bars(1)
            assert client.until(17)[1] == "1"
        assert len(server._connections) >= len(empty)
    assert not server._connections


def open_files() -> int:
    """Return the number of open files and sockets of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_connections_of_every_end_leave_nothing_behind(synthetic: SyntheticMarket) -> None:
    """However a connection ends, no socket, id or open request is left."""
    off = Behaviour(pacing=SimulatedPacing.OFF)
    with running_simulator(synthetic, now=NOW, latency_s=3_600.0, behaviour=off) as server:
        before = open_files()
        for number in range(120):
            with raw_client(server, client_id=number) as client:
                if number % 4:
                    client.until(2158)
                if number % 4 == 2:
                    client.bars(1)
                if number % 4 == 3:
                    linger = struct.pack("ii", 1, 0)
                    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        wait_until(lambda: not server._connections)
        assert open_files() == before
        assert not server._gateway.rules.clients
        assert not server._gateway.rules.open_requests


def test_few_responses_are_computed_for_a_client_that_does_not_read(
    synthetic: SyntheticMarket,
) -> None:
    """Unread responses use memory, so only a few are computed in advance."""
    count = 12
    unpaced = Behaviour(pacing=SimulatedPacing.OFF)
    half_year = {"size": "1 min", "duration": "6 M", "end": "20240101-00:00:00"}
    with (
        running_simulator(synthetic, now=NOW, behaviour=unpaced) as server,
        raw_client(server, 1) as idle,
        raw_client(server, 2) as reading,
    ):
        for number in range(count):
            idle.bars(number, **half_year)
        for number in range(3):
            reading.bars(number, **half_year)
            assert int(reading.until(17, number)[4]) > 45_000
            reading.seen.clear()
        made = [record for record in server.requests if record.client_id == 1 and record.bars]
        assert len(made) < count
        answered = set()
        for _ in range(count):
            answered.add(idle.until(17)[1])
            idle.seen.clear()
        assert answered == {str(number) for number in range(count)}


def test_live_bars_wait_for_a_client_that_does_not_read() -> None:
    """No update is computed before the last one could be sent."""
    market = SyntheticMarket(seed=1)
    gateway = SimulatorServer(market, behaviour=Behaviour(update_s=0.0))._gateway
    fields = (0, "AAPL", "STK", "", "", "", "", "SMART", "", "USD", "", "")
    texts = ("", "1 min", "1 D", True, "TRADES", 2, True)
    call = OpenRequest(HistoryRequest(1, ContractFields(*fields), *texts), 1, 0, 178, None, 0)
    call.answered_at = gateway.setting(178)

    class Full:
        """An outbox whose client does not read."""

        waits = 0

        async def drained(self) -> None:
            self.waits += 1
            call.cancelled.set()
            if self.waits > 1:
                raise AssertionError("an update was made")

        def send(self, _: bytes) -> None:
            pass

    outbox = Full()
    asyncio.run(asyncio.wait_for(follow(gateway, outbox, call), 60))  # type: ignore[arg-type]
    assert outbox.waits == 1


def test_the_log_drops_the_oldest_requests() -> None:
    """The log keeps the newest requests only."""
    request = HeadRequest(1, ContractFields(0, "AAPL", *[""] * 10), True, "TRADES", 2)
    changed: list[int] = []
    log = RequestLog(lambda place, _: changed.append(place), most_kept=3)
    now = datetime(2024, 1, 10, tzinfo=UTC)
    for number in range(5):
        log.add(record_of(request, client_id=number, kind=Kind.HEAD, received=now))
    assert [record.client_id for record in log.snapshot()] == [2, 3, 4]
    log.finish(0, count=1, error_code=None)
    log.finish(4, count=1, error_code=None)
    assert [log.is_open(place) for place in (0, 3, 4)] == [False, True, False]
    assert changed == [0, 1, 2, 3, 4, 4]


def test_a_failing_market_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    """An exception of a market is logged, and the client's connection ends."""

    class Broken(SyntheticMarket):
        def bars(self, *_: Any) -> Any:
            raise RuntimeError("broken market")

    async def session(ib: IB) -> None:
        with pytest.raises((ConnectionError, RequestError)):
            await history(ib, AAPL, "1 day", "1 D")

    with running_simulator(Broken()) as server:
        run_session(server, session)
    assert "broken market" in caplog.text


def test_a_gateway_listens_until_it_is_closed(synthetic: SyntheticMarket) -> None:
    """The port responds with the gateway's time, and is closed afterwards."""

    async def run() -> int:
        clock = SimClock(datetime(2024, 1, 10, tzinfo=UTC))
        server = await SimulatorServer(synthetic, clock=clock).start()
        async with client(server, fetchFields=StartupFetchNONE) as ib:
            assert (await ib.reqCurrentTimeAsync()).date() == date(2024, 1, 10)
        await server.close()
        await server.close()
        return server.port

    port = asyncio.run(run())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1"])
def test_a_gateway_that_cannot_start_closes_its_log(
    gateway: SimulatorServer, synthetic: SyntheticMarket, tmp_path: Path, host: str
) -> None:
    """After a bad address or a taken port no file is open."""
    behaviour = Behaviour(log=tmp_path / "log")
    server = SimulatorServer(synthetic, host=host, port=gateway.port, behaviour=behaviour)
    with pytest.raises(SimulatorError):
        asyncio.run(server.start())
    assert server._gateway.journal._file is not None
    assert server._gateway.journal._file.closed


def test_an_error_of_the_server_thread_is_raised() -> None:
    """An unexpected error ends the wait for the server, too."""

    async def start() -> None:
        raise RuntimeError("unexpected")

    async def close() -> None:
        raise AssertionError("it never began")

    thread = ServerThread(start, close)
    with pytest.raises(RuntimeError, match="unexpected"):
        thread.start_and_wait()
    assert not thread.is_alive()


def test_a_gateway_closes_with_clients_connected(synthetic: SyntheticMarket) -> None:
    """Closing ends every connection, which a client notices at once."""

    async def run() -> None:
        server = await SimulatorServer(synthetic, latency_s=3_600.0).start()
        ib = IB()
        lost = asyncio.Event()
        ib.disconnectedEvent += lost.set
        await ib.connectAsync("127.0.0.1", server.port, clientId=1)
        request = asyncio.ensure_future(history(ib, AAPL, "1 day", "1 D"))
        await ib.reqCurrentTimeAsync()
        await server.close()
        await asyncio.wait_for(lost.wait(), 60)
        request.cancel()

    asyncio.run(run())


def test_clocks_are_fixed_or_run() -> None:
    """A clock begins at its start; one without a zone is refused."""
    start = datetime(2024, 1, 10, tzinfo=UTC)
    fixed = SimClock(start, runs=False)
    assert fixed.now() == start
    fixed.set(start + timedelta(hours=1))
    assert fixed.now() == start + timedelta(hours=1)
    assert start <= SimClock(start).now() < start + timedelta(minutes=1)
    with pytest.raises(ValueError, match="no time zone"):
        SimClock(datetime(2024, 1, 10))  # noqa: DTZ001 - this is what is refused
