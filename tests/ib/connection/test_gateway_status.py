"""Outages of the gateway's own connections: open work pauses, and goes on by itself."""

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

WAITED_S = 2.0
"""A deadline that is waited for: what does not wait for it takes a small part of it."""

LOST = (1100, "Connectivity between IBKR and Trader Workstation has been lost.")
BROKEN = (2105, "HMDS data farm connection is broken:ushmds")
MENDED = (2106, "HMDS data farm connection is OK:ushmds")
DATA_LOST = (1101, "Connectivity between IBKR and TWS has been restored - data lost.")
MAINTAINED = (1102, "Connectivity between IBKR and TWS has been restored - data maintained.")


@pytest.mark.parametrize(
    ("trouble", "end"), [(LOST, DATA_LOST), (LOST, MAINTAINED), (BROKEN, MENDED)]
)
def test_open_requests_are_asked_again_after_an_outage(
    bench: Any, minute_request: BarRequest, words: Any, *, trouble: Any, end: Any
) -> None:
    """The caller gets bars; the connection is the same, and the old request is cancelled."""

    def lose_once(talk: Any, fields: list[str]) -> None:
        if len(bench.gateway.what(20)) == 1:
            talk.error(-1, *trouble)
            talk.later(0.05, lambda: talk.error(-1, *end))
        else:
            words.tell_bars(talk, fields)

    assert bench(lambda source: source.bars(minute_request), bars=lose_once).bars.num_rows == 2
    first, second = bench.gateway.what(20)
    assert first[1] != second[1]
    assert first[2:] == second[2:]
    assert bench.gateway.wait_for(25) == [["25", "1", first[1]]]
    assert bench.gateway.connects == 1


def test_many_open_requests_all_go_on(bench: Any, minute_request: BarRequest, words: Any) -> None:
    """Every request that was open in an outage is answered after it."""
    requests = [replace(minute_request, duration=f"{days} D") for days in range(1, 6)]

    def lose_at_fifth(talk: Any, fields: list[str]) -> None:
        what = len(bench.gateway.what(20))
        if what == 5:
            talk.error(-1, *LOST)
            talk.later(0.05, lambda: talk.error(-1, *MAINTAINED))
        elif what > 5:
            words.tell_bars(talk, fields)

    async def ask(source: Any) -> Any:
        return await asyncio.gather(*(source.bars(request) for request in requests))

    answers = bench(ask, bars=lose_at_fifth)
    assert [answer.request for answer in answers] == requests
    assert len(bench.gateway.what(20)) == 10


def test_requests_wait_for_a_broken_farm_and_for_a_while_only(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """After one deadline it is tried: the farm may be another one than the request needs."""

    def start(talk: Any, fields: list[str]) -> None:
        words.start(talk, fields)
        talk.error(-1, 2105, "HMDS data farm connection is broken:euhmds")

    async def ask(source: Any) -> Any:
        loop = asyncio.get_running_loop()
        moments = [loop.time()]
        for days in (1, 2):
            await source.bars(replace(minute_request, duration=f"{days} D"))
            moments.append(loop.time())
        return moments[1] - moments[0], moments[2] - moments[1]

    first_s, second_s = bench(ask, timeout_s=WAITED_S, start=start)
    assert first_s >= WAITED_S > second_s


def test_an_outage_that_lasts_is_told_in_the_end(bench: Any, minute_request: BarRequest) -> None:
    """A request outlives a link that is lost and restored again and again, and not for ever."""

    def flap(talk: Any, fields: list[str]) -> None:
        talk.error(-1, *LOST)
        talk.later(0.05, lambda: talk.error(-1, *MAINTAINED))

    with pytest.raises(OutageError) as caught:
        bench(lambda source: source.bars(minute_request), outage_s=WAITED_S, bars=flap)
    assert caught.value.code == 1102
    assert caught.value.retry
    assert len(bench.gateway.what(20)) > 2


def test_the_farm_of_contracts_holds_up_contracts(bench: Any, aapl: Instrument, words: Any) -> None:
    """2157 pauses questions about contracts until 2158."""

    def start(talk: Any, fields: list[str]) -> None:
        words.start(talk, fields)
        talk.error(-1, 2157, "Sec-def data farm connection is broken:secdefnj")
        fixed = (2158, "Sec-def data farm connection is OK:secdefnj")
        talk.later(0.1, lambda: talk.error(-1, *fixed))

    async def ask(source: Any) -> Any:
        before = asyncio.get_running_loop().time()
        await source.contract_id(aapl)
        return asyncio.get_running_loop().time() - before

    assert bench(ask, start=start) >= 0.05


def test_a_farm_of_market_data_stands_in_nobodys_way() -> None:
    """2103 is told by health; bars do not come from there."""
    status = GatewayStatus()
    status.take(ErrorFrame(-1, 2103, "Market data farm connection is broken:usfarm"))
    assert status.troubles
    assert not any(status.obstacle(topic, "STK SMART USD") for topic in Topic)


def test_health_tells_of_every_farm(bench: Any, words: Any) -> None:
    """Each farm has the state that was last told of it."""

    def start(talk: Any, fields: list[str]) -> None:
        words.start(talk, fields)
        talk.error(-1, 2107, "HMDS data farm connection is inactive but available:cashhmds")
        talk.error(-1, *BROKEN)

    health = bench(lambda source: source.health(), start=start)
    assert {(farm.name, farm.state) for farm in health.farms} == {
        ("usfarm", FarmState.OK),
        ("ushmds", FarmState.BROKEN),
        ("cashhmds", FarmState.IDLE),
    }


def in_euros(request: BarRequest) -> BarRequest:
    """Make a request for the same of another stock, which another farm may serve."""
    instrument = replace(
        request.series.instrument, symbol="SAP", ib_symbol="SAP", currency="EUR", exchange="IBIS"
    )
    return replace(request, series=Series(instrument, request.series.timeframe))


def test_only_what_needs_a_farm_is_asked_again_when_it_is_fixed(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """A route that was answered while a farm was broken has no part in that farm's outage."""
    held: dict[str, Any] = {}

    def bars(talk: Any, fields: list[str]) -> None:
        what = sorted((one[11], one[17]) for one in bench.gateway.what(20))
        if (fields[11], fields[17]) == ("USD", "1 D"):
            words.tell_bars(talk, fields)
        elif what.count(("EUR", "1 D")) == 2:
            words.tell_bars(talk, fields)
            words.tell_bars(*held["USD"])
        else:
            held[fields[11]] = talk, fields
            if len(held) == 2:
                talk.error(-1, 2106, "HMDS data farm connection is OK:euhmds")

    def start(talk: Any, fields: list[str]) -> None:
        words.start(talk, fields)
        talk.error(-1, 2105, "HMDS data farm connection is broken:euhmds")

    async def ask(source: Any) -> None:
        euros = asyncio.create_task(source.bars(in_euros(minute_request)))
        await source.bars(minute_request)
        await source.bars(replace(minute_request, duration="2 D"))
        await euros

    bench(ask, timeout_s=WAITED_S, start=start, bars=bars)
    durations = [(fields[11], fields[17]) for fields in bench.gateway.what(20)]
    assert sorted(durations) == [("EUR", "1 D"), ("EUR", "1 D"), ("USD", "1 D"), ("USD", "2 D")]


def recorded(*told: tuple[int, str]) -> GatewayStatus:
    """Make notes of what a gateway told."""
    status = GatewayStatus()
    for code, text in told:
        status.take(ErrorFrame(-1, code, text))
    return status


SERVER = (
    2110,
    "Connectivity between TWS and server is broken. It will be restored automatically.",
)


def test_a_server_that_is_lost_holds_up_everything() -> None:
    """2110 is told beside 1100 or alone, and stands in the way of every question."""
    status = recorded(SERVER)
    assert all(status.obstacle(topic, "STK SMART USD") for topic in Topic)
    assert not status.lost_link


@pytest.mark.parametrize(
    ("told", "is_over"),
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
def test_any_sign_of_the_server_ends_its_loss(told: Any, is_over: bool) -> None:
    """No message of its own calls 2110 off, so a restored link or a farm that is well does."""
    status = recorded(SERVER)
    status.take(ErrorFrame(-1, *told))
    assert any("2110" in text for text in status.troubles) != is_over


def test_an_answer_shows_that_the_server_is_there() -> None:
    """Bars that were asked for after 2110 free their route; contracts may come from memory."""
    status = GatewayStatus()
    status.take(ErrorFrame(-1, *SERVER), after=1)
    status.answered(pending(1))
    status.answered(replace(pending(2), topic=Topic.CONTRACT))
    assert status.obstacle(Topic.BARS, "STK SMART USD")
    status.answered(pending(2))
    assert not status.obstacle(Topic.BARS, "STK SMART USD")


def test_what_was_open_when_the_server_was_lost_is_asked_again(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """A question that 2110 may have cost its answer does not wait for its deadline."""

    def lose_once(talk: Any, fields: list[str]) -> None:
        if len(bench.gateway.what(20)) == 1:
            talk.error(-1, *SERVER)
            talk.error(-1, *MENDED)
        else:
            words.tell_bars(talk, fields)

    assert bench(lambda source: source.bars(minute_request), bars=lose_once).bars.num_rows == 2


def pending(number: int, route: str = "STK SMART USD") -> PendingRequest:
    """Make an open question for bars."""
    pending = PendingRequests(number)

    async def opened() -> PendingRequest:
        return pending.add(Topic.BARS, "bars", route)

    return asyncio.run(opened())


def test_a_farm_that_is_fixed_ends_its_own_trouble_alone() -> None:
    """Of two broken farms one is fixed: what may have needed it is asked again, and waits."""
    status = recorded(BROKEN, (2105, "HMDS data farm connection is broken:euhmds"))
    over = status.take(ErrorFrame(-1, *MENDED))
    assert over == ((2105, "ushmds"),)
    assert status.was_affected(pending(1), over)
    assert status.obstacle(Topic.BARS, "STK SMART USD").endswith("euhmds")


def test_a_farm_that_was_well_costs_nothing() -> None:
    """2106 for a farm that nobody called broken asks nothing again."""
    status = recorded(BROKEN)
    assert status.take(ErrorFrame(-1, 2106, "HMDS data farm connection is OK:cashhmds")) == ()
    assert status.obstacle(Topic.BARS, "STK SMART USD")


def test_an_answer_that_was_under_way_shows_nothing_of_a_farm() -> None:
    """Only a question that was asked after the farm broke shows that it does without it."""
    status = GatewayStatus()
    status.take(ErrorFrame(-1, *BROKEN), after=7)
    status.answered(pending(7))
    assert status.obstacle(Topic.BARS, "STK SMART USD")
    status.answered(pending(8))
    assert not status.obstacle(Topic.BARS, "STK SMART USD")
    assert status.obstacle(Topic.BARS, "CASH IDEALPRO USD")


def test_farms_of_contracts_are_told_apart_by_routes_too(
    bench: Any, aapl: Instrument, words: Any
) -> None:
    """A contract that is found while one of their farms is broken frees its own kind alone."""

    def start(talk: Any, fields: list[str]) -> None:
        words.start(talk, fields)
        talk.error(-1, 2157, "Sec-def data farm connection is broken:secdefeu")

    async def ask(source: Any) -> tuple[float, ...]:
        loop, took_s = asyncio.get_running_loop(), []
        euros = replace(aapl, symbol="SAP", ib_symbol="SAP", exchange="IBIS", currency="EUR")
        for instrument in (aapl, replace(aapl, symbol="MSFT", ib_symbol="MSFT"), euros):
            begun = loop.time()
            await source.contract_id(instrument)
            took_s.append(loop.time() - begun)
        return tuple(took_s)

    first_s, same_s, other_s = bench(ask, timeout_s=WAITED_S, start=start)
    assert min(first_s, other_s) >= WAITED_S > same_s


def test_a_farm_that_breaks_again_is_suspected_again() -> None:
    """What one outage showed of a route says nothing of the next."""
    status = recorded(BROKEN)
    status.answered(pending(1))
    status.take(ErrorFrame(-1, *MENDED))
    status.take(ErrorFrame(-1, *BROKEN))
    assert status.obstacle(Topic.BARS, "STK SMART USD")


def test_an_idle_farm_is_named_behind_a_full_stop() -> None:
    """2107 and 2108 name their farm otherwise, and fix that farm alone."""
    idle = "HMDS data farm connection is inactive but should be available upon demand."
    status = recorded(BROKEN, (2107, f"{idle}euhmds"))
    assert status.obstacle(Topic.BARS, "STK SMART USD")
    status.take(ErrorFrame(-1, 2107, f"{idle}ushmds"))
    assert not status.troubles
    assert {farm.state for farm in status.farms} == {FarmState.IDLE}


@pytest.mark.parametrize(
    ("told", "left"),
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
def test_the_end_of_an_outage_names_the_farms_that_are_well(told: str, left: int) -> None:
    """1101 and 1102 may list what is connected again; no 2106 follows for those."""
    status = recorded(BROKEN, LOST)
    status.take(ErrorFrame(-1, 1102, f"{MAINTAINED[1]} {told}"))
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
    """Behind the last colon, or else behind a full stop."""
    assert [one.name for one in recorded((code, text)).farms] == [farm]


RESTORED = "Connectivity between IBKR and Trader Workstation has been restored"
FARMS = "All data farms are connected: eufarmnj; usfarm; ushmds; secdefnj."
CONNECTED_AGAIN = (1102, f"{RESTORED} - data maintained. {FARMS}")
"""https://github.com/QuantConnect/Lean.Brokerages.InteractiveBrokers/issues/169 (2025-05-18)."""


def test_a_nightly_reset_ends_with_everything_well() -> None:
    """A farm that flaps, a link that is lost again and again, farms that break, and the end.

    Codes and order as in https://github.com/IbcAlpha/IBC/issues/143 (2021-10-01), the end from
    CONNECTED_AGAIN.
    """
    status = recorded(
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
def test_a_farm_that_flaps_for_minutes_is_as_it_was_told_last(last: Any) -> None:
    """Only the last word counts (https://github.com/nautechsystems/nautilus_trader/pull/4412)."""
    status = recorded(*[BROKEN, MENDED] * 300, last)
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
    """Names stand behind a colon, parted by semicolons; a second list is of what is missing."""
    status = recorded(BROKEN, LOST, (1102, text))
    assert bool(status.obstacle(Topic.BARS, "STK SMART USD")) != is_over


ROUTE = "STK SMART USD"


def test_one_request_of_a_route_tests_a_farm_that_stays_broken() -> None:
    """It goes when there was no news for a while; each that fails is followed by a longer pause."""
    status, now, pauses = recorded(BROKEN), 100.0, []
    for _ in range(9):
        probe = status.probe(Topic.BARS, ROUTE, now, first_s=30.0)
        assert status.probe(Topic.HEAD, ROUTE, now, first_s=30.0) is probe
        pauses.append(probe.due_at - now)
        now, probe.is_out = probe.due_at + 30.0, True
        status.probed(probe, now, failed=True)
        assert not probe.is_out
    assert pauses == [30, 30, 60, 120, 240, 300, 300, 300, 300]


def test_a_refused_test_request_is_followed_by_the_next_at_once() -> None:
    """It showed nothing of the farm, and nothing speaks against another one."""
    status = recorded(BROKEN)
    probe = status.probe(Topic.BARS, ROUTE, 100.0, first_s=30.0)
    status.probed(probe, 140.0, failed=False)
    assert status.probe(Topic.BARS, ROUTE, 140.0, first_s=30.0).due_at == 140.0


@pytest.mark.parametrize("end", [DATA_LOST, MAINTAINED])
def test_a_restored_link_lets_a_broken_farm_be_tested_soon(end: Any) -> None:
    """What failed before the link came back says nothing of the farm after it."""
    status = recorded(BROKEN, LOST)
    for now in (100.0, 200.0, 300.0):
        status.probed(status.probe(Topic.BARS, ROUTE, now, first_s=30.0), now, failed=True)
    status.take(ErrorFrame(-1, *end))
    assert status.obstacle(Topic.BARS, ROUTE)
    assert status.probe(Topic.BARS, ROUTE, 400.0, first_s=30.0).due_at == 430.0


def test_a_farm_that_no_route_needs_is_told_no_longer() -> None:
    """A response to the test request ends the trouble, until another route meets the farm."""
    status = recorded(BROKEN)
    assert status.troubles
    probe = status.probe(Topic.BARS, ROUTE, 100.0, first_s=30.0)
    status.answered(pending(1))
    status.probed(probe, 140.0, failed=False)
    assert not status.troubles
    assert [farm.state for farm in status.farms] == [FarmState.BROKEN]
    status.probe(Topic.BARS, "CASH IDEALPRO USD", 150.0, first_s=30.0)
    assert status.troubles


def test_many_requests_wait_for_one_that_tests_the_farm(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """1102 omits the broken farm, no news follow: one request goes, and then all at once."""
    alone: list[int] = []

    def start(talk: Any, fields: list[str]) -> None:
        words.start(talk, fields)
        for told in (BROKEN, LOST, (1102, f"{MAINTAINED[1]} All data farms are connected: usfarm")):
            talk.error(-1, *told)

    def bars(talk: Any, fields: list[str]) -> None:
        def answer() -> None:
            alone.append(len(bench.gateway.what(20)))
            words.tell_bars(talk, fields)

        if alone:
            words.tell_bars(talk, fields)
        else:
            talk.later(0.3, answer)

    async def ask(source: Any) -> Any:
        requests = [replace(minute_request, duration=f"{days} D") for days in range(1, 6)]
        answers = await asyncio.gather(*(source.bars(request) for request in requests))
        return answers, await source.health()

    answers, health = bench(ask, timeout_s=WAITED_S, start=start, bars=bars)
    assert [answer.bars.num_rows for answer in answers] == [2] * 5
    assert alone == [1]
    assert len(bench.gateway.what(20)) == 5
    assert health.is_good


def test_a_test_request_without_a_response_holds_the_others_until_news(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """Its deadline is the only one that is waited for; a farm that is well lets all go."""
    times: list[float] = []

    def start(talk: Any, fields: list[str]) -> None:
        words.start(talk, fields)
        talk.error(-1, *BROKEN)

    def bars(talk: Any, fields: list[str]) -> None:
        times.append(asyncio.get_running_loop().time())
        if len(times) > 1:
            words.tell_bars(talk, fields)

    def cancel(talk: Any, fields: list[str]) -> None:
        talk.later(0.2, lambda: talk.error(-1, *MENDED))

    async def ask(source: Any) -> Any:
        requests = [replace(minute_request, duration=f"{days} D") for days in range(1, 4)]
        return await asyncio.gather(*(source.bars(request) for request in requests))

    answers = bench(ask, timeout_s=WAITED_S, start=start, bars=bars, cancel=cancel)
    assert len(answers) == 3
    assert len(times) == 4
    assert times[1] - times[0] >= WAITED_S


def test_a_farm_that_stays_broken_is_told_in_the_end(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """Requests do not wait for ever, whether they test the farm or wait for that."""

    def start(talk: Any, fields: list[str]) -> None:
        words.start(talk, fields)
        talk.error(-1, *BROKEN)

    async def ask(source: Any) -> Any:
        requests = [replace(minute_request, duration=f"{days} D") for days in range(1, 4)]
        tasks = (source.bars(request) for request in requests)
        return await asyncio.gather(*tasks, return_exceptions=True)

    errors = bench(ask, timeout_s=1.0, outage_s=1.5, start=start, bars=words.ignore)
    assert {type(error) for error in errors} == {OutageError}
    assert all(BROKEN[1] in error.reason for error in errors)
    assert len(bench.gateway.what(20)) <= 3


def test_a_turn_that_comes_in_an_outage_is_not_used(
    config: GatewayConfig, gateways: Any, minute_request: BarRequest, words: Any
) -> None:
    """What waited for the budget is not sent while the link is lost, and does not count as sent."""
    told: list[int] = []

    def lose(talk: Any) -> None:
        talk.error(-1, *LOST)
        told.append(len(gateway.received))

    def restore(talk: Any) -> None:
        told.append(len(gateway.received))
        talk.error(-1, *MAINTAINED)

    def bars(talk: Any, fields: list[str]) -> None:
        words.tell_bars(talk, fields)
        if len(gateway.what(20)) == 1:
            talk.later(0.1, lambda: lose(talk))
            talk.later(3.0, lambda: restore(talk))

    gateway = gateways(bars=bars)
    there = replace(config, port=gateway.port)

    async def run() -> None:
        rate_limiter = RateLimiter(there.folder, pacing=pacing_of().scaled(0.1))
        async with open_source(there, rate_limiter=rate_limiter) as source:
            await source.bars(minute_request)
            await source.bars(minute_request)
        rate_limiter.close()

    asyncio.run(run())
    assert told[0] == told[1]
    assert len(gateway.what(20)) == 2


def test_a_complaint_that_cannot_be_noted_costs_no_connection(
    config: GatewayConfig, gateways: Any, words: Any
) -> None:
    """A record that cannot be written is met by the next request, not by the socket."""

    def complain(talk: Any, fields: list[str]) -> None:
        shutil.rmtree(there.folder)
        there.folder.write_text("no folder")
        talk.error(-1, 100, "Max rate of messages per second has been exceeded")
        words.tell_time(talk, fields)

    gateway = gateways()
    there = replace(config, port=gateway.port)

    async def run() -> Any:
        strategy, rate_limiter = IbConnectionStrategy(there), RateLimiter.of(there)
        async with strategy.get_connection_for_operation("cli") as connection:
            Requester(connection, rate_limiter, there)
            gateway.script.time = complain
            health = await connection.health()
            there.folder.unlink()
            return health

    assert asyncio.run(run()).is_good
