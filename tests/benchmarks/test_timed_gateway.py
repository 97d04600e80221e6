"""The gateway of the benchmarks: independent clients read it, and it keeps to its law."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from ib_async import IB, StartupFetchNONE, Stock

from tests.benchmarks.loads import Load, Manner, run_loads
from tests.support.timed_gateway import Law, PreparedBars, Served, TimedGateway, running_gateway

BARS = PreparedBars("2023-01-03", "2023-02-01")


@asynccontextmanager
async def connected(law: Law) -> AsyncIterator[tuple[IB, TimedGateway]]:
    """Yield ib_async's client, connected to a gateway in this event loop."""
    gateway, client = TimedGateway(law, BARS), IB()
    server = await asyncio.start_server(gateway.connected, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        await client.connectAsync("127.0.0.1", port, clientId=7, fetchFields=StartupFetchNONE)
        yield client, gateway
        client.disconnect()
        await asyncio.sleep(0)


def minutes(client: IB, end: str, days: int) -> Coroutine[Any, Any, Any]:
    """Return a request for minutes of a stock."""
    return client.reqHistoricalDataAsync(
        Stock("AAPL", "SMART", "USD"), end, f"{days} D", "1 min", "TRADES", True, 2
    )


def test_another_client_reads_its_bars() -> None:
    """ib_async gets the details, and minutes and days of as many sessions as it asks for."""

    async def main() -> None:
        async with connected(Law()) as (client, _):
            [details] = await client.reqContractDetailsAsync(Stock("AAPL", "SMART", "USD"))
            bars = await minutes(client, "20230110-21:00:00", 3)
            half = await minutes(client, "20230110-14:35:00", 1)
            days = await client.reqHistoricalDataAsync(
                details.contract, "20230110-21:00:00", "3 D", "1 day", "TRADES", True
            )
        assert details.contract.conId > 0
        assert len(bars) == 3 * 390
        assert [f"{bar.date:%d %H:%M}" for bar in half] == [f"10 14:{at}" for at in range(30, 35)]
        assert [bar.date.day for bar in days] == [6, 9, 10]
        assert days[-1].high == max(bar.high for bar in bars[-390:])
        assert days[-1].close == bars[-1].close
        assert days[-1].volume == sum(bar.volume for bar in bars[-390:])

    asyncio.run(main())


def test_a_queue_slows_its_service() -> None:
    """One worker serves three requests one after the other, slower while others wait."""
    law = Law(workers=1, service_s=((10, 0.01),), penalty=0.5)

    async def main() -> list[Served]:
        async with connected(law) as (client, gateway):
            ends = ("20230110-21:00:00", "20230111-21:00:00", "20230112-21:00:00")
            await asyncio.gather(*(minutes(client, end, 1) for end in ends))
            return gateway.report()

    first, second, third = asyncio.run(main())
    assert second.waiting == 1
    assert third.waiting == 0
    assert third.begun_s - second.begun_s == pytest.approx(0.015)
    assert first.service_s == second.service_s == 0.01


@pytest.mark.slow
def test_loads_request_from_it_in_a_process_of_their_own() -> None:
    """Every session is requested once: one a request, until two are tried, or as many as told."""
    loads = [Load([symbol], "2023-01-03", "2023-01-20") for symbol in ("AAPL", "MSFT", "NVDA")]
    with running_gateway(Law(first="2023-01-03", end="2023-02-01")) as gateway:
        narrow = run_loads(gateway.port, loads)
        requested = [one.sessions for one in gateway.report()]
        wide = run_loads(gateway.port, loads, Manner(days=42))
        requested_wide = [one.sessions for one in gateway.report()]
    assert {one.bars for one in (*narrow, *wide)} == {12 * 390}
    assert (narrow[0].requests, requested[:12]) == (12, [1] * 12)
    assert (len(requested), sum(requested)) == (sum(one.requests for one in narrow), 36)
    assert ([one.requests for one in wide], requested_wide) == ([1] * 3, [12] * 3)
    # About 0.6 of the work, by the least disturbed load of each kind.
    assert 0 < min(one.cpu_s for one in wide) < min(one.cpu_s for one in narrow)


@pytest.mark.slow
def test_a_load_from_a_gateway_that_never_responds_is_ended() -> None:
    """A law whose widest request has no sessions serves none; the error names the bound."""
    load = Load(["AAPL"], "2023-01-03", "2023-01-20")
    law = Law(service_s=((0, 1.0),), first="2023-01-03", end="2023-02-01")
    with (
        running_gateway(law) as gateway,
        pytest.raises(TimeoutError, match="a load did not end in 5 s"),
    ):
        run_loads(gateway.port, [load], Manner(longest_s=5))
