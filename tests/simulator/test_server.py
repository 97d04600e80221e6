"""The gateway over a real socket, with the unmodified ib_async client."""

import asyncio
import threading
from datetime import UTC, date, datetime, timedelta
from typing import Any

import ib_async
import pytest
from ib_async import IB, StartupFetchNONE, Stock
from ib_async.wrapper import RequestError

from ktrdr_pipelines.simulator.market.market import BarQuery, PricedBars
from ktrdr_pipelines.simulator.market.simulated_instruments import SimulatedInstrument
from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.server import SimulatorServer, running_simulator
from tests.simulator.conftest import NOW
from tests.simulator.ib_async_session import AAPL, EURUSD, client, history, run_session


@pytest.mark.parametrize(
    "connect",
    [{}, {"readonly": True}, {"fetchFields": StartupFetchNONE}, {"clientId": 0}],
)
def test_ib_async_connects_promptly(gateway: SimulatorServer, connect: dict[str, Any]) -> None:
    """Every way of connecting completes: a start-up request without a response would raise."""
    options = {"client_id": connect.pop("clientId", 5), "raiseSyncErrors": True} | connect

    async def session(ib: IB) -> tuple[list[str], int]:
        return ib.managedAccounts(), ib.client.serverVersion()

    assert run_session(gateway, session, **options) == (["SIM000001"], 178)


def test_contract_details_describe_stocks_and_pairs(gateway: SimulatorServer) -> None:
    """Details decode into ib_async's own fields, hours and half pips included."""

    async def session(ib: IB) -> None:
        (stock,) = await ib.reqContractDetailsAsync(AAPL)
        (pair,) = await ib.reqContractDetailsAsync(EURUSD)
        assert (stock.contract.primaryExchange, stock.longName) == ("NASDAQ", "APPLE INC")
        assert stock.liquidHours.startswith("20240110:0930-20240110:1600;")
        assert "20240115:CLOSED" in stock.tradingHours
        assert (pair.contract.localSymbol, pair.minTick) == ("EUR.USD", 0.00005)
        assert pair.tradingHours.startswith("20240109:1715-20240110:1700")
        assert await ib.qualifyContractsAsync(Stock("BRK B", "SMART", "USD")) != [None]

    run_session(gateway, session)


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

    async def session(ib: IB) -> list[int]:
        return [len(await history(ib, each, size, duration)) for each in (AAPL, EURUSD)]

    assert run_session(gateway, session) == [stock_bars, pair_bars]


def test_both_date_formats_mean_the_same(gateway: SimulatorServer) -> None:
    """Format 1 has the exchange's zone, format 2 UTC; days are dates in both."""

    async def session(ib: IB) -> None:
        for size in ("1 min", "1 hour"):
            zoned = await history(ib, AAPL, size, "1 D", formatDate=1)
            epochs = await history(ib, AAPL, size, "1 D", formatDate=2)
            assert [bar.date for bar in zoned] == [bar.date for bar in epochs]
            assert str(zoned[0].date.tzinfo) == "US/Eastern"
            assert [bar.close for bar in zoned] == [bar.close for bar in epochs]
        for format_date in (1, 2):
            (day,) = await history(ib, AAPL, "1 day", "1 D", formatDate=format_date)
            assert day.date == date(2024, 1, 9)

    run_session(gateway, session)


def test_head_timestamp_and_time(gateway: SimulatorServer) -> None:
    """Both are aware moments, and the time is the simulator's."""

    async def session(ib: IB) -> None:
        head = await ib.reqHeadTimeStampAsync(AAPL, "TRADES", useRTH=True, formatDate=2)
        assert head == datetime(1980, 12, 12, 14, 30, tzinfo=UTC)
        now = await ib.reqCurrentTimeAsync()
        assert timedelta(0) <= now - datetime(2024, 1, 10, 20, 0, 30, tzinfo=UTC)
        assert abs(now - gateway.clock.now()) < timedelta(seconds=5)

    run_session(gateway, session)


def test_errors_reach_the_client(gateway: SimulatorServer) -> None:
    """Refusals raise in ib_async with code and text, and do not affect other requests."""

    async def session(ib: IB) -> None:
        with pytest.raises(RequestError, match="HMDS query returned no data") as empty:
            await history(ib, AAPL, "1 day", "1 D", endDateTime="19800102-21:00:00")
        assert empty.value.code == 162
        with pytest.raises(RequestError) as unknown:
            await history(ib, Stock("NOSUCH", "SMART", "USD"), "1 day", "1 D")
        assert unknown.value.code == 200
        assert len(await history(ib, AAPL, "1 day", "1 D")) == 1

    run_session(gateway, session)


def test_321_counts_as_a_warning_in_ib_async(gateway: SimulatorServer) -> None:
    """A bad bar size reaches errorEvent only: the request itself gets no response."""

    async def session(ib: IB) -> tuple[int, str]:
        refusal: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        ib.errorEvent += lambda _, code, text, __: refusal.set_result((code, text))
        request = asyncio.ensure_future(history(ib, AAPL, "1 mins", "1 D"))
        answer = await refusal
        request.cancel()
        return answer

    code, text = run_session(gateway, session)
    assert code == 321
    assert text.startswith("Error validating request.-'bK' : cause - ")


def test_requests_in_flight_can_be_cancelled(slow_gateway: SimulatorServer) -> None:
    """162 confirms a cancel, and a second cancel finds no request."""

    async def session(ib: IB) -> list[int]:
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

    assert run_session(slow_gateway, session) == [162, 366]
    assert [record.error_code for record in slow_gateway.requests] == [162]


def test_fifty_requests_may_be_open(slow_gateway: SimulatorServer) -> None:
    """The 51st open request over all clients is refused with 322."""

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


def test_requests_of_one_client_are_served_concurrently() -> None:
    """A slow response does not delay a later request."""
    goes_on = threading.Event()

    class SlowPairs(SyntheticMarket):
        def bars(self, instrument: SimulatedInstrument, query: BarQuery) -> PricedBars:
            if instrument.key == "EURUSD":
                assert goes_on.wait(60)
            return super().bars(instrument, query)

    async def session(ib: IB) -> tuple[int, int]:
        long = asyncio.ensure_future(history(ib, EURUSD, "1 day", "2 D"))
        short = await history(ib, AAPL, "1 day", "1 D")
        assert not long.done()
        goes_on.set()
        return len(short), len(await long)

    with running_simulator(SlowPairs(), now=NOW) as server:
        try:
            assert run_session(server, session) == (1, 2)
        finally:
            goes_on.set()


def test_every_request_is_recorded(synthetic: SyntheticMarket) -> None:
    """The log holds client, request and outcome; other messages are not logged."""

    async def session(ib: IB) -> None:
        await ib.reqContractDetailsAsync(AAPL)
        await history(ib, AAPL, "1 hour", "2 D")
        await ib.reqHeadTimeStampAsync(EURUSD, "MIDPOINT", useRTH=False, formatDate=2)
        with pytest.raises(RequestError):
            await history(ib, EURUSD, "1 day", "3 D", whatToShow="TRADES")

    with running_simulator(synthetic, now=NOW) as server:
        run_session(server, session, client_id=77)
        details, bars, head, refused = server.requests
    assert {record.client_id for record in server.requests} == {77}
    assert (details.kind, details.symbol, details.count) == ("contract", "AAPL", 1)
    assert (bars.kind, bars.bar_size, bars.duration, bars.bars) == ("history", "1 hour", "2 D", 14)
    assert (bars.end, bars.what, bars.use_rth) == ("20240109 21:00:00 UTC", "TRADES", True)
    assert (head.kind, head.sec_type, head.use_rth) == ("head", "CASH", False)
    assert (refused.bars, refused.error_code) == (0, 162)
    assert not any(record.is_open for record in server.requests)
    assert bars.received.date() == date(2024, 1, 10)


def test_the_client_is_the_one_of_the_project() -> None:
    """These tests apply to ib_async 2."""
    assert ib_async.__version_info__[0] == 2
