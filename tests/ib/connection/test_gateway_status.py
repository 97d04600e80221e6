"""Outages of the gateway's own connections: open requests pause, and are repeated by themselves."""

import asyncio
import shutil
from dataclasses import replace
from typing import Any

import pytest

from ktrdr_pipelines.domain.instruments import Instrument, Series
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.errors import OutageError
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.connection.gateway_status import FarmState, GatewayStatus
from ktrdr_pipelines.ib.connection.pending_requests import PendingRequest, PendingRequests, Topic
from ktrdr_pipelines.ib.connection.strategy import IbConnectionStrategy
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.ib.pacing.rules import pacing_of
from ktrdr_pipelines.ib.protocol.error_codes import ErrorFrame
from ktrdr_pipelines.ib.source import Requester, open_source

WAITED_S = 1.0
"""A deadline that tests wait for; calls that do not wait take a small part of it."""

LOST = (1100, "Connectivity between IBKR and Trader Workstation has been lost.")
BROKEN = (2105, "HMDS data farm connection is broken:ushmds")
MENDED = (2106, "HMDS data farm connection is OK:ushmds")
DATA_LOST = (1101, "Connectivity between IBKR and TWS has been restored - data lost.")
MAINTAINED = (1102, "Connectivity between IBKR and TWS has been restored - data maintained.")


@pytest.mark.parametrize(
    ("trouble", "end"), [(LOST, DATA_LOST), (LOST, MAINTAINED), (BROKEN, MENDED)]
)
def test_open_requests_are_repeated_after_an_outage(
    harness: Any, minute_request: BarRequest, replies: Any, *, trouble: Any, end: Any
) -> None:
    """The caller gets its bars on the same connection, and the old request is cancelled."""

    def lose_once(client: Any, fields: list[str]) -> None:
        if len(harness.gateway.frames(20)) == 1:
            client.error(-1, *trouble)
            client.later(0.05, lambda: client.error(-1, *end))
        else:
            replies.send_bars(client, fields)

    assert harness(lambda source: source.bars(minute_request), bars=lose_once).bars.num_rows == 2
    first, second = harness.gateway.frames(20)
    assert first[1] != second[1]
    assert first[2:] == second[2:]
    assert harness.gateway.wait_for_frames(25) == [["25", "1", first[1]]]
    assert harness.gateway.connects == 1


def test_all_open_requests_are_repeated(
    harness: Any, minute_request: BarRequest, replies: Any
) -> None:
    """Every request that was open in an outage gets a response after it."""
    requests = [replace(minute_request, duration=f"{days} D") for days in range(1, 6)]

    def lose_at_fifth(client: Any, fields: list[str]) -> None:
        requests = len(harness.gateway.frames(20))
        if requests == 5:
            client.error(-1, *LOST)
            client.later(0.05, lambda: client.error(-1, *MAINTAINED))
        elif requests > 5:
            replies.send_bars(client, fields)

    async def ask(source: Any) -> Any:
        return await asyncio.gather(*(source.bars(request) for request in requests))

    answers = harness(ask, bars=lose_at_fifth)
    assert [answer.request for answer in answers] == requests
    assert len(harness.gateway.frames(20)) == 10


def test_requests_wait_for_a_broken_farm_for_one_deadline(
    harness: Any, minute_request: BarRequest, replies: Any
) -> None:
    """After one deadline a request is sent: it may need another farm than the broken one."""

    def start(client: Any, fields: list[str]) -> None:
        replies.start(client, fields)
        client.error(-1, 2105, "HMDS data farm connection is broken:euhmds")

    async def ask(source: Any) -> Any:
        loop = asyncio.get_running_loop()
        moments = [loop.time()]
        for days in (1, 2):
            await source.bars(replace(minute_request, duration=f"{days} D"))
            moments.append(loop.time())
        return moments[1] - moments[0], moments[2] - moments[1]

    first_s, second_s = harness(ask, timeout_s=WAITED_S, start=start)
    assert first_s >= WAITED_S > second_s


def test_a_lasting_outage_fails_the_request(harness: Any, minute_request: BarRequest) -> None:
    """A link that is lost and restored repeatedly fails a request after the longest outage."""

    def flap(client: Any, fields: list[str]) -> None:
        client.error(-1, *LOST)
        client.later(0.05, lambda: client.error(-1, *MAINTAINED))

    with pytest.raises(OutageError) as caught:
        harness(lambda source: source.bars(minute_request), outage_s=WAITED_S, bars=flap)
    assert caught.value.code == 1102
    assert caught.value.retry
    assert len(harness.gateway.frames(20)) > 2


def test_a_broken_contract_farm_delays_contract_requests(
    harness: Any, aapl: Instrument, replies: Any
) -> None:
    """Contract requests wait from 2157 until 2158."""

    def start(client: Any, fields: list[str]) -> None:
        replies.start(client, fields)
        client.error(-1, 2157, "Sec-def data farm connection is broken:secdefnj")
        fixed = (2158, "Sec-def data farm connection is OK:secdefnj")
        client.later(0.1, lambda: client.error(-1, *fixed))

    async def ask(source: Any) -> Any:
        before = asyncio.get_running_loop().time()
        await source.contract_id(aapl)
        return asyncio.get_running_loop().time() - before

    assert harness(ask, start=start) >= 0.05


def test_a_broken_market_data_farm_blocks_no_request() -> None:
    """2103 is a trouble for the health, and blocks no request."""
    status = GatewayStatus()
    status.take(ErrorFrame(-1, 2103, "Market data farm connection is broken:usfarm"))
    assert status.troubles
    assert not any(status.obstacle(topic, "STK SMART USD") for topic in Topic)


def test_health_lists_every_farm(harness: Any, replies: Any) -> None:
    """Each farm has its last reported state."""

    def start(client: Any, fields: list[str]) -> None:
        replies.start(client, fields)
        client.error(-1, 2107, "HMDS data farm connection is inactive but available:cashhmds")
        client.error(-1, *BROKEN)

    health = harness(lambda source: source.health(), start=start)
    assert {(farm.name, farm.state) for farm in health.farms} == {
        ("usfarm", FarmState.OK),
        ("ushmds", FarmState.BROKEN),
        ("cashhmds", FarmState.IDLE),
    }


def in_euros(request: BarRequest) -> BarRequest:
    """Return the same request for another stock, which another farm may serve."""
    instrument = replace(
        request.series.instrument, symbol="SAP", ib_symbol="SAP", currency="EUR", exchange="IBIS"
    )
    return replace(request, series=Series(instrument, request.series.timeframe))


def test_only_affected_requests_are_repeated_when_a_farm_is_fixed(
    harness: Any, minute_request: BarRequest, replies: Any
) -> None:
    """A route that got a response during the outage of a farm is not affected by its end."""
    held: dict[str, Any] = {}

    def bars(client: Any, fields: list[str]) -> None:
        requests = sorted((one[11], one[17]) for one in harness.gateway.frames(20))
        if (fields[11], fields[17]) == ("USD", "1 D"):
            replies.send_bars(client, fields)
        elif requests.count(("EUR", "1 D")) == 2:
            replies.send_bars(client, fields)
            replies.send_bars(*held["USD"])
        else:
            held[fields[11]] = client, fields
            if len(held) == 2:
                client.error(-1, 2106, "HMDS data farm connection is OK:euhmds")

    def start(client: Any, fields: list[str]) -> None:
        replies.start(client, fields)
        client.error(-1, 2105, "HMDS data farm connection is broken:euhmds")

    async def ask(source: Any) -> None:
        euros = asyncio.create_task(source.bars(in_euros(minute_request)))
        await source.bars(minute_request)
        await source.bars(replace(minute_request, duration="2 D"))
        await euros

    harness(ask, timeout_s=WAITED_S, start=start, bars=bars)
    durations = [(fields[11], fields[17]) for fields in harness.gateway.frames(20)]
    assert sorted(durations) == [("EUR", "1 D"), ("EUR", "1 D"), ("USD", "1 D"), ("USD", "2 D")]


def status_after(*messages: tuple[int, str]) -> GatewayStatus:
    """Return a status that has taken these messages of a gateway."""
    status = GatewayStatus()
    for code, text in messages:
        status.take(ErrorFrame(-1, code, text))
    return status


SERVER = (
    2110,
    "Connectivity between TWS and server is broken. It will be restored automatically.",
)


def test_a_lost_server_blocks_everything() -> None:
    """2110, with or without 1100, blocks every request."""
    status = status_after(SERVER)
    assert all(status.obstacle(topic, "STK SMART USD") for topic in Topic)
    assert not status.lost_link


@pytest.mark.parametrize(
    ("message", "is_over"),
    [
        (DATA_LOST, True),
        (MAINTAINED, True),
        ((2104, "Market data farm connection is OK:usfarm"), True),
        (MENDED, True),
        ((2158, "Sec-def data farm connection is OK:secdefnj"), True),
        ((2108, "Market data farm connection is inactive but should be available upon demand."), 0),
        (BROKEN, False),
    ],
)
def test_a_restored_link_or_connected_farm_ends_a_lost_server(message: Any, is_over: bool) -> None:
    """No message of its own ends 2110; a restored link or a connected farm does."""
    status = status_after(SERVER)
    status.take(ErrorFrame(-1, *message))
    assert any("2110" in text for text in status.troubles) != is_over


def test_a_response_ends_a_lost_server_for_its_route() -> None:
    """Bars requested after 2110 unblock their route; contracts may come from memory."""
    status = GatewayStatus()
    status.take(ErrorFrame(-1, *SERVER), after=1)
    status.answered(pending(1))
    status.answered(replace(pending(2), topic=Topic.CONTRACT))
    assert status.obstacle(Topic.BARS, "STK SMART USD")
    status.answered(pending(2))
    assert not status.obstacle(Topic.BARS, "STK SMART USD")


def test_open_requests_are_repeated_after_a_lost_server(
    harness: Any, minute_request: BarRequest, replies: Any
) -> None:
    """A request that 2110 may have lost does not wait for its deadline."""

    def lose_once(client: Any, fields: list[str]) -> None:
        if len(harness.gateway.frames(20)) == 1:
            client.error(-1, *SERVER)
            client.error(-1, *MENDED)
        else:
            replies.send_bars(client, fields)

    assert harness(lambda source: source.bars(minute_request), bars=lose_once).bars.num_rows == 2


def pending(number: int, route: str = "STK SMART USD") -> PendingRequest:
    """Return an open request for bars."""
    pending = PendingRequests(number)

    async def opened() -> PendingRequest:
        return pending.add(Topic.BARS, "bars", route)

    return asyncio.run(opened())


def test_a_fixed_farm_ends_only_its_own_trouble() -> None:
    """If one of two broken farms is fixed, the other still blocks the route."""
    status = status_after(BROKEN, (2105, "HMDS data farm connection is broken:euhmds"))
    over = status.take(ErrorFrame(-1, *MENDED))
    assert over == ((2105, "ushmds"),)
    assert status.was_affected(pending(1), over)
    assert status.obstacle(Topic.BARS, "STK SMART USD").endswith("euhmds")


def test_a_connected_farm_that_was_not_broken_ends_nothing() -> None:
    """2106 for a farm that was not broken ends no trouble."""
    status = status_after(BROKEN)
    assert status.take(ErrorFrame(-1, 2106, "HMDS data farm connection is OK:cashhmds")) == ()
    assert status.obstacle(Topic.BARS, "STK SMART USD")


def test_a_response_to_an_earlier_request_shows_nothing_about_a_farm() -> None:
    """Only a request sent after the farm broke shows that its route does not need the farm."""
    status = GatewayStatus()
    status.take(ErrorFrame(-1, *BROKEN), after=7)
    status.answered(pending(7))
    assert status.obstacle(Topic.BARS, "STK SMART USD")
    status.answered(pending(8))
    assert not status.obstacle(Topic.BARS, "STK SMART USD")
    assert status.obstacle(Topic.BARS, "CASH IDEALPRO USD")


def test_contract_requests_are_unblocked_by_route(
    harness: Any, aapl: Instrument, replies: Any
) -> None:
    """A contract response during an outage of a farm unblocks its own route only."""

    def start(client: Any, fields: list[str]) -> None:
        replies.start(client, fields)
        client.error(-1, 2157, "Sec-def data farm connection is broken:secdefeu")

    async def ask(source: Any) -> tuple[float, ...]:
        loop, took_s = asyncio.get_running_loop(), []
        euros = replace(aapl, symbol="SAP", ib_symbol="SAP", exchange="IBIS", currency="EUR")
        for instrument in (aapl, replace(aapl, symbol="MSFT", ib_symbol="MSFT"), euros):
            begun = loop.time()
            await source.contract_id(instrument)
            took_s.append(loop.time() - begun)
        return tuple(took_s)

    first_s, same_s, other_s = harness(ask, timeout_s=WAITED_S, start=start)
    assert min(first_s, other_s) >= WAITED_S > same_s


def test_a_farm_that_breaks_again_blocks_again() -> None:
    """What one outage showed of a route does not count for the next."""
    status = status_after(BROKEN)
    status.answered(pending(1))
    status.take(ErrorFrame(-1, *MENDED))
    status.take(ErrorFrame(-1, *BROKEN))
    assert status.obstacle(Topic.BARS, "STK SMART USD")


def test_an_idle_farm_is_named_behind_a_full_stop() -> None:
    """2107 and 2108 name their farm after a full stop, and end the trouble of that farm only."""
    idle = "HMDS data farm connection is inactive but should be available upon demand."
    status = status_after(BROKEN, (2107, f"{idle}euhmds"))
    assert status.obstacle(Topic.BARS, "STK SMART USD")
    status.take(ErrorFrame(-1, 2107, f"{idle}ushmds"))
    assert not status.troubles
    assert {farm.state for farm in status.farms} == {FarmState.IDLE}


@pytest.mark.parametrize(
    ("message", "left"),
    [
        ("All data farms are connected: usfarm; ushmds; secdefnj.", 0),
        ("All data farms are connected: usfarm.nj; euhmds.", 1),
        (
            "The following farms are connected: ushmds. The following farms are not connected: a.",
            0,
        ),
        (
            "The following farms are connected: a. The following farms are not connected: ushmds.",
            1,
        ),
        ("", 1),
    ],
)
def test_a_restored_link_lists_the_connected_farms(message: str, left: int) -> None:
    """1101 and 1102 may list the connected farms, for which no 2106 follows."""
    status = status_after(BROKEN, LOST)
    status.take(ErrorFrame(-1, 1102, f"{MAINTAINED[1]} {message}"))
    assert len(status.troubles) == left
    assert not status.lost_link


@pytest.mark.parametrize(
    ("code", "text", "farm"),
    [
        # https://github.com/wrighter/ib-scripts/issues/13 (2023-03-27)
        (2104, "Market data farm connection is OK:usfuture.nj", "usfuture.nj"),
        (2103, "Market data farm connection is broken:usfarm", "usfarm"),
        (2103, "La conexión con la granja de datos de mercado está rota: usfarm.nj.", "usfarm.nj"),
        (2105, "HMDS-Datenfarm: Verbindung unterbrochen:ushmds", "ushmds"),
        (2106, "La connexion HMDS est correcte : euhmds", "euhmds"),
        (2106, "HMDS 数据中心连接正常\uff1aushmds", "ushmds"),
        (2107, "HMDS inactiva, pero debería estar disponible a petición.ushmds", "ushmds"),
        (2107, "HMDS 已断开\u3002需要时可用\u3002ushmds.nj", "ushmds.nj"),
        (2108, "Verbindung inaktiv. Sie steht bei Bedarf zur Verfügung.usfarm.nj", "usfarm.nj"),
        (2157, "Sec-def data farm connection is broken:secdefnj", "secdefnj"),
        (2158, "Die Verbindung steht:secdefnj", "secdefnj"),
        (2105, "HMDS data farm connection is broken:", ""),
        (2108, "Market data farm connection is inactive but should be available upon demand.", ""),
    ],
)
def test_the_farm_is_named_at_the_end_in_any_language(code: int, text: str, farm: str) -> None:
    """The name stands after the last colon, or else after a full stop."""
    assert [one.name for one in status_after((code, text)).farms] == [farm]


RESTORED = "Connectivity between IBKR and Trader Workstation has been restored"
FARMS = "All data farms are connected: eufarmnj; usfarm; ushmds; secdefnj."
CONNECTED_AGAIN = (1102, f"{RESTORED} - data maintained. {FARMS}")
"""https://github.com/QuantConnect/Lean.Brokerages.InteractiveBrokers/issues/169 (2025-05-18)."""


def test_a_nightly_reset_ends_without_trouble() -> None:
    """A farm flaps, the link is lost repeatedly, farms break, and all are restored.

    Codes and order as in https://github.com/IbcAlpha/IBC/issues/143 (2021-10-01), the end from
    CONNECTED_AGAIN.
    """
    status = status_after(
        (2103, "Market data farm connection is broken:usfarm"),
        (2104, "Market data farm connection is OK:usfarm"),
        *[LOST] * 40,
        (2103, "Market data farm connection is broken:usfarm"),
        (2103, "Market data farm connection is broken:cashfarm"),
        BROKEN,
        CONNECTED_AGAIN,
    )
    assert not status.troubles
    assert not status.obstacle(Topic.BARS, "STK SMART USD")
    states = {farm.name: farm.state for farm in status.farms}
    assert states == {
        "usfarm": FarmState.OK,
        "cashfarm": FarmState.BROKEN,
        "ushmds": FarmState.OK,
    }


@pytest.mark.parametrize("last", [BROKEN, MENDED])
def test_a_flapping_farm_has_its_last_reported_state(last: Any) -> None:
    """The last message counts (https://github.com/nautechsystems/nautilus_trader/pull/4412)."""
    status = status_after(*[BROKEN, MENDED] * 300, last)
    assert bool(status.obstacle(Topic.BARS, "STK SMART USD")) == (last == BROKEN)
    assert [farm.state for farm in status.farms] == [
        FarmState.BROKEN if last == BROKEN else FarmState.OK
    ]


@pytest.mark.parametrize(
    ("text", "is_over"),
    [
        ("Verbindung wiederhergestellt - Daten erhalten. Alle Farmen: eufarm; usfarm; ushmds.", 1),
        ("Hinweis: Die Verbindung steht. Verbunden: usfarm; ushmds", 1),
        ("连接已恢复\u3002所有数据中心已连接\uff1ausfarm; ushmds; secdefnj\u3002", 1),
        ("Conectadas: usfarm; ushmds. No conectadas: euhmds.", 1),
        ("Conectadas: usfarm. No conectadas: euhmds; ushmds.", 0),
        ("... restored. The following farms are not connected: euhmds; ushmds", 0),
    ],
)
def test_the_list_of_farms_is_read_in_any_language(text: str, is_over: bool) -> None:
    """Names follow a colon, separated by semicolons; a second list is of the missing ones."""
    status = status_after(BROKEN, LOST, (1102, text))
    assert bool(status.obstacle(Topic.BARS, "STK SMART USD")) != is_over


ROUTE = "STK SMART USD"


def test_one_request_of_a_route_probes_a_broken_farm() -> None:
    """A probe is due after a time without news, and after each failure the pause grows."""
    status, now, pauses = status_after(BROKEN), 100.0, []
    for _ in range(9):
        probe = status.probe(Topic.BARS, ROUTE, now, first_s=30.0)
        assert status.probe(Topic.HEAD, ROUTE, now, first_s=30.0) is probe
        pauses.append(probe.due_at - now)
        now, probe.is_out = probe.due_at + 30.0, True
        status.probed(probe, now, failed=True)
        assert not probe.is_out
    assert pauses == [30, 30, 60, 120, 240, 300, 300, 300, 300]


def test_a_refused_probe_is_followed_by_the_next_at_once() -> None:
    """A refusal shows nothing about the farm, so the next probe may follow."""
    status = status_after(BROKEN)
    probe = status.probe(Topic.BARS, ROUTE, 100.0, first_s=30.0)
    status.probed(probe, 140.0, failed=False)
    assert status.probe(Topic.BARS, ROUTE, 140.0, first_s=30.0).due_at == 140.0


@pytest.mark.parametrize("end", [DATA_LOST, MAINTAINED])
def test_a_restored_link_resets_the_pause_of_probes(end: Any) -> None:
    """Failures before the link was restored do not delay the next probe."""
    status = status_after(BROKEN, LOST)
    for now in (100.0, 200.0, 300.0):
        status.probed(status.probe(Topic.BARS, ROUTE, now, first_s=30.0), now, failed=True)
    status.take(ErrorFrame(-1, *end))
    assert status.obstacle(Topic.BARS, ROUTE)
    assert status.probe(Topic.BARS, ROUTE, 400.0, first_s=30.0).due_at == 430.0


def test_a_farm_that_no_route_needs_is_no_trouble() -> None:
    """The response to a probe ends the trouble, until another route meets the farm."""
    status = status_after(BROKEN)
    assert status.troubles
    probe = status.probe(Topic.BARS, ROUTE, 100.0, first_s=30.0)
    status.answered(pending(1))
    status.probed(probe, 140.0, failed=False)
    assert not status.troubles
    assert [farm.state for farm in status.farms] == [FarmState.BROKEN]
    status.probe(Topic.BARS, "CASH IDEALPRO USD", 150.0, first_s=30.0)
    assert status.troubles


def test_requests_wait_for_one_probe_of_the_farm(
    harness: Any, minute_request: BarRequest, replies: Any
) -> None:
    """1102 omits the broken farm: one request is sent, and the others after its response."""
    alone: list[int] = []

    def start(client: Any, fields: list[str]) -> None:
        replies.start(client, fields)
        for message in (
            BROKEN,
            LOST,
            (1102, f"{MAINTAINED[1]} All data farms are connected: usfarm"),
        ):
            client.error(-1, *message)

    def bars(client: Any, fields: list[str]) -> None:
        def answer() -> None:
            alone.append(len(harness.gateway.frames(20)))
            replies.send_bars(client, fields)

        if alone:
            replies.send_bars(client, fields)
        else:
            client.later(0.3, answer)

    async def ask(source: Any) -> Any:
        requests = [replace(minute_request, duration=f"{days} D") for days in range(1, 6)]
        answers = await asyncio.gather(*(source.bars(request) for request in requests))
        return answers, await source.health()

    answers, health = harness(ask, timeout_s=WAITED_S, start=start, bars=bars)
    assert [answer.bars.num_rows for answer in answers] == [2] * 5
    assert alone == [1]
    assert len(harness.gateway.frames(20)) == 5
    assert health.is_good


def test_a_probe_without_a_response_blocks_the_others_until_news(
    harness: Any, minute_request: BarRequest, replies: Any
) -> None:
    """The others wait for the probe's deadline, and are sent when the farm is connected."""
    times: list[float] = []

    def start(client: Any, fields: list[str]) -> None:
        replies.start(client, fields)
        client.error(-1, *BROKEN)

    def bars(client: Any, fields: list[str]) -> None:
        times.append(asyncio.get_running_loop().time())
        if len(times) > 1:
            replies.send_bars(client, fields)

    def cancel(client: Any, fields: list[str]) -> None:
        client.later(0.2, lambda: client.error(-1, *MENDED))

    async def ask(source: Any) -> Any:
        requests = [replace(minute_request, duration=f"{days} D") for days in range(1, 4)]
        return await asyncio.gather(*(source.bars(request) for request in requests))

    answers = harness(ask, timeout_s=WAITED_S, start=start, bars=bars, cancel=cancel)
    assert len(answers) == 3
    assert len(times) == 4
    assert times[1] - times[0] >= WAITED_S


def test_a_farm_that_stays_broken_fails_the_requests(
    harness: Any, minute_request: BarRequest, replies: Any
) -> None:
    """A probe, and the requests that wait for it, fail after the longest outage."""

    def start(client: Any, fields: list[str]) -> None:
        replies.start(client, fields)
        client.error(-1, *BROKEN)

    async def ask(source: Any) -> Any:
        requests = [replace(minute_request, duration=f"{days} D") for days in range(1, 4)]
        tasks = (source.bars(request) for request in requests)
        return await asyncio.gather(*tasks, return_exceptions=True)

    errors = harness(ask, timeout_s=0.5, outage_s=0.8, start=start, bars=replies.ignore)
    assert {type(error) for error in errors} == {OutageError}
    assert all(BROKEN[1] in error.reason for error in errors)
    assert len(harness.gateway.frames(20)) <= 3


def test_a_permit_in_an_outage_is_not_used(
    config: GatewayConfig, gateways: Any, minute_request: BarRequest, replies: Any
) -> None:
    """A request that gets its permit in an outage is not sent, and not counted as sent."""
    counts: list[int] = []

    def lose(client: Any) -> None:
        client.error(-1, *LOST)
        counts.append(len(gateway.received))

    def restore(client: Any) -> None:
        counts.append(len(gateway.received))
        client.error(-1, *MAINTAINED)

    def bars(client: Any, fields: list[str]) -> None:
        replies.send_bars(client, fields)
        if len(gateway.frames(20)) == 1:
            client.later(0.1, lambda: lose(client))
            client.later(1.6, lambda: restore(client))

    gateway = gateways(bars=bars)
    gateway_config = replace(config, port=gateway.port)

    async def run() -> None:
        rate_limiter = RateLimiter(gateway_config.folder, pacing=pacing_of().scaled(0.05))
        async with open_source(gateway_config, rate_limiter=rate_limiter) as source:
            await source.bars(minute_request)
            await source.bars(minute_request)
        rate_limiter.close()

    asyncio.run(run())
    assert counts[0] == counts[1]
    assert len(gateway.frames(20)) == 2


def test_a_pacing_error_that_cannot_be_recorded_keeps_the_connection(
    config: GatewayConfig, gateways: Any, replies: Any
) -> None:
    """A pause that cannot be recorded does not end the connection."""

    def complain(client: Any, fields: list[str]) -> None:
        shutil.rmtree(gateway_config.folder)
        gateway_config.folder.write_text("no folder")
        client.error(-1, 100, "Max rate of messages per second has been exceeded")
        replies.send_time(client, fields)

    gateway = gateways()
    gateway_config = replace(config, port=gateway.port)

    async def run() -> Any:
        strategy, rate_limiter = (
            IbConnectionStrategy(gateway_config),
            RateLimiter.of(gateway_config),
        )
        async with strategy.get_connection_for_operation("cli") as connection:
            Requester(connection, rate_limiter, gateway_config)
            gateway.script.time = complain
            health = await connection.health()
            gateway_config.folder.unlink()
            return health

    assert asyncio.run(run()).is_good
