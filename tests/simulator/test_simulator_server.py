"""The gateway over a real socket, asked by the unmodified ib_async client."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from datetime import UTC, date, datetime, timedelta
from typing import Any

import ib_async
import pytest
from ib_async import IB, Forex, StartupFetchNONE, Stock
from ib_async.wrapper import RequestError

from ktrdr_pipelines.errors import SimulatorError
from ktrdr_pipelines.simulator import wire
from ktrdr_pipelines.simulator.clock import SimClock
from ktrdr_pipelines.simulator.main import serve
from ktrdr_pipelines.simulator.server import SimulatorServer, running_simulator
from ktrdr_pipelines.simulator.synthetic import SyntheticMarket

AAPL = Stock("AAPL", "SMART", "USD")
EURUSD = Forex("EURUSD")
END = datetime(2024, 1, 9, 21, tzinfo=UTC)


def talk(
    server: SimulatorServer, conversation: Callable[[IB], Awaitable[Any]], **connect: Any
) -> Any:
    """Connect, hold a conversation and disconnect, in an event loop of its own."""

    async def run() -> Any:
        async with client(server, **connect) as ib:
            return await asyncio.wait_for(conversation(ib), 20)

    return asyncio.run(run())


@asynccontextmanager
async def client(server: SimulatorServer, client_id: int = 5, **connect: Any) -> AsyncIterator[IB]:
    """Connect an ib_async client that raises the errors of its requests."""
    ib = IB()
    ib.RaiseRequestErrors = True
    await ib.connectAsync("127.0.0.1", server.port, clientId=client_id, **connect)
    try:
        yield ib
    finally:
        ib.disconnect()


def history(ib: IB, contract: Any, size: str, duration: str, **other: Any) -> Awaitable[Any]:
    """Ask for bars with epoch dates."""
    what = "MIDPOINT" if contract.secType == "CASH" else "TRADES"
    asked = {"endDateTime": END, "whatToShow": what, "useRTH": True, "formatDate": 2}
    return ib.reqHistoricalDataAsync(
        contract, durationStr=duration, barSizeSetting=size, **(asked | other)
    )


@pytest.mark.parametrize(
    "connect",
    [{}, {"readonly": True}, {"fetchFields": StartupFetchNONE}, {"clientId": 0}],
)
def test_ib_async_connects_promptly(gateway: SimulatorServer, connect: dict[str, Any]) -> None:
    """Every way of connecting completes: an unanswered start-up request would raise."""
    options = {"client_id": connect.pop("clientId", 5), "raiseSyncErrors": True} | connect

    async def conversation(ib: IB) -> tuple[list[str], int]:
        return ib.managedAccounts(), ib.client.serverVersion()

    assert talk(gateway, conversation, **options) == (["SIM000001"], 178)


def test_contract_details_describe_stocks_and_pairs(gateway: SimulatorServer) -> None:
    """Details decode into ib_async's own fields, hours and half pips included."""

    async def conversation(ib: IB) -> None:
        (stock,) = await ib.reqContractDetailsAsync(AAPL)
        (pair,) = await ib.reqContractDetailsAsync(EURUSD)
        assert (stock.contract.primaryExchange, stock.longName) == ("NASDAQ", "APPLE INC")
        assert stock.liquidHours.startswith("20240110:0930-20240110:1600;")
        assert "20240115:CLOSED" in stock.tradingHours
        assert (pair.contract.localSymbol, pair.minTick) == ("EUR.USD", 0.00005)
        assert pair.tradingHours.startswith("20240109:1715-20240110:1700")
        assert await ib.qualifyContractsAsync(Stock("BRK B", "SMART", "USD")) != [None]

    talk(gateway, conversation)


@pytest.mark.parametrize(
    ("size", "duration", "stock_bars", "pair_bars"),
    [
        ("1 min", "1 D", 390, 1_365),
        ("5 mins", "1 D", 78, 273),
        ("15 mins", "1 D", 26, 91),
        ("30 mins", "1 D", 13, 46),
        ("1 hour", "5 D", 35, 4 * 24 + 23),
        ("4 hours", "5 D", 10, 4 * 7 + 6),
        ("1 day", "5 D", 5, 5),
        ("1 week", "5 D", 2, 2),
    ],
)
def test_all_eight_sizes_are_served(
    gateway: SimulatorServer, *, size: str, duration: str, stock_bars: int, pair_bars: int
) -> None:
    """Each size of the project comes with the number of bars that its sessions have.

    The end is the close of stocks, 16:00: the pair's last session is an hour from its end.
    """

    async def conversation(ib: IB) -> list[int]:
        return [len(await history(ib, each, size, duration)) for each in (AAPL, EURUSD)]

    assert talk(gateway, conversation) == [stock_bars, pair_bars]


def test_both_date_formats_mean_the_same(gateway: SimulatorServer) -> None:
    """Format 1 carries the exchange's zone, format 2 UTC; days are dates in both."""

    async def conversation(ib: IB) -> None:
        for size in ("1 min", "1 hour"):
            zoned = await history(ib, AAPL, size, "1 D", formatDate=1)
            epochs = await history(ib, AAPL, size, "1 D", formatDate=2)
            assert [bar.date for bar in zoned] == [bar.date for bar in epochs]
            assert str(zoned[0].date.tzinfo) == "US/Eastern"
            assert [bar.close for bar in zoned] == [bar.close for bar in epochs]
        for format_date in (1, 2):
            (day,) = await history(ib, AAPL, "1 day", "1 D", formatDate=format_date)
            assert day.date == date(2024, 1, 9)

    talk(gateway, conversation)


def test_head_timestamp_and_time(gateway: SimulatorServer) -> None:
    """Both moments arrive aware, and the time is the simulator's."""

    async def conversation(ib: IB) -> None:
        head = await ib.reqHeadTimeStampAsync(AAPL, "TRADES", useRTH=True, formatDate=2)
        assert head == datetime(1980, 12, 12, 14, 30, tzinfo=UTC)
        now = await ib.reqCurrentTimeAsync()
        assert timedelta(0) <= now - datetime(2024, 1, 10, 20, 0, 30, tzinfo=UTC)
        assert abs(now - gateway.clock.now()) < timedelta(seconds=5)

    talk(gateway, conversation)


def test_errors_reach_the_client(gateway: SimulatorServer) -> None:
    """Refusals raise in ib_async with code and text, and nothing else is disturbed."""

    async def conversation(ib: IB) -> None:
        with pytest.raises(RequestError, match="HMDS query returned no data") as empty:
            await history(ib, AAPL, "1 day", "1 D", endDateTime="19800102-21:00:00")
        assert empty.value.code == 162
        with pytest.raises(RequestError) as unknown:
            await history(ib, Stock("NOSUCH", "SMART", "USD"), "1 day", "1 D")
        assert unknown.value.code == 200
        assert len(await history(ib, AAPL, "1 day", "1 D")) == 1

    talk(gateway, conversation)


def test_321_counts_as_a_warning_in_ib_async(gateway: SimulatorServer) -> None:
    """A bad bar size reaches errorEvent alone: the request itself is never answered."""

    async def conversation(ib: IB) -> tuple[int, str]:
        told: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        ib.errorEvent += lambda _, code, text, __: told.set_result((code, text))
        request = asyncio.ensure_future(history(ib, AAPL, "1 mins", "1 D"))
        answer = await told
        request.cancel()
        return answer

    code, text = talk(gateway, conversation)
    assert code == 321
    assert text.startswith("Error validating request.-'bM' : cause - ")


def test_requests_in_flight_can_be_cancelled(slow_gateway: SimulatorServer) -> None:
    """A cancelled request is echoed by 162, a second cancel finds nothing."""

    async def conversation(ib: IB) -> list[int]:
        codes: asyncio.Queue[int] = asyncio.Queue()
        ib.errorEvent += lambda _, code, *__: codes.put_nowait(code)
        request = asyncio.ensure_future(history(ib, AAPL, "1 day", "1 D"))
        await asyncio.sleep(0)
        request_id = ib.client.getReqId() - 1
        ib.client.cancelHistoricalData(request_id)
        ib.client.cancelHistoricalData(request_id)
        with pytest.raises(RequestError, match="query cancelled"):
            await request
        return [await codes.get(), await codes.get()]

    assert talk(slow_gateway, conversation) == [162, 366]
    assert [record.error_code for record in slow_gateway.requests] == [162]


def test_fifty_requests_may_be_open(slow_gateway: SimulatorServer) -> None:
    """The 51st open request of a gateway is refused with 322, whichever client asks."""

    async def run() -> None:
        async with client(slow_gateway, 1) as one, client(slow_gateway, 2) as other:
            waiting = [
                asyncio.ensure_future(history(ib, AAPL, "1 day", f"{number} D"))
                for ib in (one, other)
                for number in range(1, 26)
            ]
            await one.reqCurrentTimeAsync()
            await other.reqCurrentTimeAsync()
            with pytest.raises(RequestError, match="Only 50 simultaneous") as refused:
                await history(other, AAPL, "1 day", "99 D")
            assert refused.value.code == 322
            for request in waiting:
                request.cancel()

    asyncio.run(run())
    assert [record.error_code for record in slow_gateway.requests] == [None] * 50 + [322]


def test_an_id_in_use_is_told_and_freed_with_its_socket(gateway: SimulatorServer) -> None:
    """326 reaches a listener added before connecting; once the holder left the id is free."""

    async def run() -> None:
        async with client(gateway, 9):
            second, codes = IB(), []
            second.errorEvent += lambda _, code, *__: codes.append(code)
            with pytest.raises((TimeoutError, ConnectionError)):
                await second.connectAsync("127.0.0.1", gateway.port, clientId=9, timeout=1.0)
            assert 326 in codes
        async with client(gateway, 9) as third:
            assert third.isConnected()

    asyncio.run(run())


def test_requests_of_one_client_are_served_side_by_side(gateway: SimulatorServer) -> None:
    """A long answer does not hold up a short one that was asked later."""

    async def conversation(ib: IB) -> list[str]:
        done: list[str] = []

        async def ask(name: str, contract: Any, size: str, duration: str) -> None:
            await history(ib, contract, size, duration)
            done.append(name)

        await asyncio.gather(
            ask("long", EURUSD, "1 min", "60 D"), ask("short", AAPL, "1 day", "1 D")
        )
        return done

    assert talk(gateway, conversation) == ["short", "long"]


def test_every_request_is_recorded(synthetic: SyntheticMarket) -> None:
    """The record says who asked what and what became of it; other messages leave none."""

    async def conversation(ib: IB) -> None:
        await ib.reqContractDetailsAsync(AAPL)
        await history(ib, AAPL, "1 hour", "2 D")
        await ib.reqHeadTimeStampAsync(EURUSD, "MIDPOINT", useRTH=False, formatDate=2)
        with pytest.raises(RequestError):
            await history(ib, EURUSD, "1 day", "3 D", whatToShow="TRADES")

    with running_simulator(synthetic, now="2024-01-10T20:00:30+00:00") as server:
        talk(server, conversation, client_id=77)
        details, bars, head, refused = server.requests
    assert {record.client_id for record in server.requests} == {77}
    assert (details.kind, details.symbol, details.count) == ("contract", "AAPL", 1)
    assert (bars.kind, bars.bar_size, bars.duration, bars.bars) == ("history", "1 hour", "2 D", 14)
    assert (bars.end, bars.what, bars.use_rth) == ("20240109 21:00:00 UTC", "TRADES", True)
    assert (head.kind, head.sec_type, head.use_rth) == ("head", "CASH", False)
    assert (refused.bars, refused.error_code) == (0, 162)
    assert not any(record.is_open for record in server.requests)
    assert bars.received.date() == date(2024, 1, 10)


def raw(server: SimulatorServer, data: bytes) -> bytes:
    """Send bytes on a plain socket and read until the gateway closes it."""
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=5)) as plain:
        plain.sendall(data)
        answer = b""
        while piece := plain.recv(65_536):
            answer += piece
        return answer


def test_a_malformed_client_is_closed_and_others_go_on(
    gateway: SimulatorServer, unframe: Any
) -> None:
    """Garbage ends the connection it came on and no other."""

    async def run() -> None:
        async with client(gateway, 11) as ib:
            started = b"API\0\0\0\0\tv157..178\0\0\0\x0971\x002\x0012\0\0"
            answer = await asyncio.to_thread(raw, gateway, started + b"\xff\xff\xff\xff")
            assert unframe(answer)[-1][2:4] == ["-1", "507"]
            assert await asyncio.to_thread(raw, gateway, b"GET / HTTP/1.1\r\n\r\n") == b""
            assert await asyncio.to_thread(raw, gateway, b"API\0\0\0\0\x03v99") == b""
            assert len(await history(ib, AAPL, "1 day", "1 D")) == 1

    asyncio.run(run())


def test_a_client_that_vanishes_frees_its_id_and_requests(slow_gateway: SimulatorServer) -> None:
    """A socket that is cut with requests in flight leaves nothing behind."""

    async def run() -> None:
        for _ in range(3):
            async with client(slow_gateway, 3) as ib:
                request = asyncio.ensure_future(history(ib, AAPL, "1 day", "1 D"))
                await ib.reqCurrentTimeAsync()
                ib.client.conn.transport.abort()
                request.cancel()
            await asyncio.sleep(0.02)
        async with client(slow_gateway, 3) as ib:
            assert ib.isConnected()

    asyncio.run(run())


def test_a_taken_port_is_named_with_its_remedy(gateway: SimulatorServer) -> None:
    """The error says which address, what is wrong and what to do; nothing stays open."""
    with (
        pytest.raises(SimulatorError, match=rf"127\.0\.0\.1:{gateway.port}.*--port"),
        running_simulator(port=gateway.port),
    ):
        pass


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.1", "example.org"])  # noqa: S104
def test_only_loopback_is_served(synthetic: SyntheticMarket, host: str) -> None:
    """A gateway without login must not be reachable from elsewhere."""
    with pytest.raises(SimulatorError, match="not a loopback address"):
        asyncio.run(SimulatorServer(synthetic, host=host).start())


def test_localhost_is_one_address_and_port(synthetic: SyntheticMarket) -> None:
    """Under that name too there is one port, whatever it resolves to."""

    async def run() -> None:
        server = await SimulatorServer(synthetic, host="localhost").start()
        async with client(server) as ib:
            assert ib.isConnected()
        await server.close()
        assert "closed" in repr(server)

    asyncio.run(run())


def test_a_client_that_does_not_read_holds_up_nothing(synthetic: SyntheticMarket) -> None:
    """Closing cuts a socket whose buffers are full."""
    started = b"API\0\0\0\0\tv157..178\0\0\0\x0871\x002\x004\0\0"
    fields = ("20", "1", "0", "AAPL", "STK", *[""] * 4, "SMART", "", "USD", "", "", "0")
    asked = ("", "1 min", "1 Y", "0", "TRADES", "2", "0", "")
    with running_simulator(synthetic, now="2024-01-10T20:00:30+00:00") as server:
        plain = socket.create_connection(("127.0.0.1", server.port))
        plain.sendall(started + wire.message(fields + asked))
        while not server.requests or server.requests[0].is_open:
            time.sleep(0.01)
    plain.close()
    assert server.requests[0].bars > 200_000


def test_an_answer_that_fails_ends_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    """A defect of a market is logged, and no client waits for an answer in vain."""

    class Broken(SyntheticMarket):
        def bars(self, *_: Any) -> Any:
            raise RuntimeError("broken market")

    async def conversation(ib: IB) -> None:
        with pytest.raises((ConnectionError, RequestError)):
            await history(ib, AAPL, "1 day", "1 D")

    with running_simulator(Broken()) as server:
        talk(server, conversation)
    assert "broken market" in caplog.text


def test_serve_runs_until_cancelled() -> None:
    """The port is told once it listens; cancelling closes it."""

    async def run() -> int:
        ports: asyncio.Queue[int] = asyncio.Queue()
        now = datetime(2024, 1, 10, tzinfo=UTC)
        task = asyncio.create_task(
            serve(host="127.0.0.1", port=0, bars=None, now=now, seed=4, ready=ports.put_nowait)
        )
        port = await asyncio.wait_for(ports.get(), 10)
        ib = IB()
        await ib.connectAsync("127.0.0.1", port, clientId=1, fetchFields=StartupFetchNONE)
        assert (await ib.reqCurrentTimeAsync()).date() == date(2024, 1, 10)
        ib.disconnect()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return port

    port = asyncio.run(run())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


def test_a_gateway_closes_with_clients_connected(synthetic: SyntheticMarket) -> None:
    """Closing ends every connection, so a client sees the loss at once."""

    async def run() -> None:
        server = await SimulatorServer(synthetic, latency_s=3_600.0).start()
        ib = IB()
        lost = asyncio.Event()
        ib.disconnectedEvent += lost.set
        await ib.connectAsync("127.0.0.1", server.port, clientId=1)
        request = asyncio.ensure_future(history(ib, AAPL, "1 day", "1 D"))
        await ib.reqCurrentTimeAsync()
        await server.close()
        await asyncio.wait_for(lost.wait(), 5)
        request.cancel()

    asyncio.run(run())


def test_clocks_stand_or_run() -> None:
    """A clock starts where it is set; one without a zone is refused."""
    start = datetime(2024, 1, 10, tzinfo=UTC)
    standing = SimClock(start, runs=False)
    assert standing.now() == start
    standing.set(start + timedelta(hours=1))
    assert standing.now() == start + timedelta(hours=1)
    assert start <= SimClock(start).now() < start + timedelta(minutes=1)
    with pytest.raises(ValueError, match="no zone"):
        SimClock(datetime(2024, 1, 10))  # noqa: DTZ001 - this is what is refused


def test_the_client_is_the_one_of_the_project() -> None:
    """These tests speak for ib_async 2."""
    assert ib_async.__version_info__[0] == 2
