"""Outages of the whole gateway: flapping farms, a lost link, held client ids.

The notices arrive in the order of published logs, at the times of the rules.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ktrdr_pipelines.errors import SimulatorError
from ktrdr_pipelines.simulator.faults.fault_file import parse_faults
from ktrdr_pipelines.simulator.faults.faults import Fault, FaultPlan, FaultRule, Met, Occasion
from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.server import SimulatorServer, running_simulator
from ktrdr_pipelines.simulator.simulated_gateway import Behaviour
from tests.simulator.conftest import NOW
from tests.simulator.rawclient import Frame, RawClient, faulty_gateway, raw_client

LOST = "Connectivity between IBKR and Trader Workstation has been lost."
KEPT = "Connectivity between IBKR and Trader Workstation has been restored - data maintained."


@contextmanager
def faulty(market: SyntheticMarket, faults: str) -> Iterator[tuple[SimulatorServer, RawClient]]:
    """Run a gateway with faults, and a client that has read the start-up messages."""
    with faulty_gateway(market, faults, now=NOW) as (server, client):
        client.until(2158)
        client.seen.clear()
        yield server, client


def notices(client: RawClient) -> list[tuple[str, str]]:
    """Return code and text of the received notices that concern no request."""
    return [_notice(frame) for frame in client.seen if frame[0] == "4" and frame[2] == "-1"]


def _notice(frame: Frame) -> tuple[str, str]:
    return frame[3], frame[4]


def test_notice_1100_is_repeated(synthetic: SyntheticMarket) -> None:
    """The last notice, 1102, may list the connected farms; requests hang until then."""
    farms = "eufarmnj; usfarm; ushmds; secdefnj"
    fault = f"{{fault: link_lost, seconds: 0.05, repeats: 4, farms: {farms}, nth: 1}}"
    with faulty(synthetic, fault) as (_, client):
        client.bars(1)
        client.until(1102)
        list_of_farms = f"{KEPT} All data farms are connected: {farms}."
        assert notices(client) == [*[("1100", LOST)] * 4, ("1102", list_of_farms)]
        client.bars(2)
        assert client.until(17)[1] == "2"


def test_a_farm_of_market_data_flaps(synthetic: SyntheticMarket) -> None:
    """It breaks and is restored, and no request is lost."""
    with faulty(synthetic, "{fault: farm_flaps, seconds: 0.01, repeats: 2, nth: 1}") as (_, client):
        client.bars(1)
        client.until(2104)
        client.until(2104)
        farm = "Market data farm connection is {}:usfarm"
        pair = [("2103", farm.format("broken")), ("2104", farm.format("OK"))]
        assert notices(client) == pair * 2
        if "17" not in [frame[0] for frame in client.seen]:
            assert client.until(17)[1] == "1"


def test_a_night_follows_the_published_log(synthetic: SyntheticMarket) -> None:
    """A farm flaps, the link is lost, and in the end two farms are broken.

    Source: https://github.com/IbcAlpha/IBC/issues/143 (grade L).
    """
    fault = "{fault: nightly_farms, seconds: 0.05, repeats: 3, flap: 0.01, nth: 1}"
    with faulty(synthetic, fault) as (server, client):
        client.bars(1)
        client.until(2103)
        client.until(2103)
        client.until(2103)
        codes = [code for code, _ in notices(client)]
        assert codes == ["2103", "2104", "1100", "1100", "1100", "1102", "2103", "2103"]
        texts = [text for _, text in notices(client)]
        farms = "eufarmnj; usfarm; ushmds; secdefnj"
        assert texts[5] == f"{KEPT} All data farms are connected: {farms}."
        assert [text.rpartition(":")[2] for text in texts[6:]] == ["usfarm", "cashfarm"]
        client.bars(2)
        client.until(17, 2)
        assert server.counts["fault"] == 1


def test_a_farm_that_1102_omits_is_restored(synthetic: SyntheticMarket) -> None:
    """No notice reports it: bars are returned, and a new client gets no trouble."""
    with faulty(synthetic, "{fault: farm_unnamed, seconds: 0.01, nth: 1}") as (server, client):
        client.bars(1)
        client.until(1102)
        farms = "All data farms are connected: eufarmnj; usfarm; secdefnj."
        assert [code for code, _ in notices(client)] == ["2105", "1100", "1102"]
        assert notices(client)[-1][1] == f"{KEPT} {farms}"
        client.bars(2)
        assert client.until(17)[1] == "2"
        with raw_client(server, client_id=2) as other:
            other.until(2158)
            assert other.receives_none_of(4)


def test_a_client_that_connects_in_an_outage_gets_the_notices(synthetic: SyntheticMarket) -> None:
    """Each trouble once; lifting the faults sends a notice of its end."""
    fault = "{fault: farm_unnamed, seconds: 3600, repeats: 720, nth: 1}"
    with faulty(synthetic, fault) as (server, client):
        client.bars(1)
        client.until(1100)
        with raw_client(server, client_id=2) as other:
            other.until(1100)
            assert [code for code, _ in notices(other)][-2:] == ["2105", "1100"]
            server.lift_faults()
            assert other.until(1102)[4].startswith(KEPT)
        client.bars(2)
        assert client.until(17)[1] == "2"


def test_every_id_is_held_for_a_while(synthetic: SyntheticMarket) -> None:
    """Every new id is refused by 326; connected clients stay."""
    plan = parse_faults("faults: [{fault: ids_held, seconds: 60, nth: 2}]", "faults")
    behaviour = Behaviour(faults=plan)
    with (
        running_simulator(synthetic, now=NOW, behaviour=behaviour) as server,
        raw_client(server, client_id=1) as first,
    ):
        first.until(2158)
        for client_id in (2, 3, 4):
            with raw_client(server, client_id) as refused:
                assert refused.until(326)[4].startswith("Unable to connect as the client id is")
                assert refused.is_ended()
        first.bars(1)
        assert first.until(17)[1] == "1"
        assert server.counts["fault"] == 1
        server.clock.set(server.clock.now().replace(minute=10))
        with raw_client(server, client_id=2) as let_in:
            let_in.until(2158)


def test_ids_may_be_held_until_the_gateway_restarts(synthetic: SyntheticMarket) -> None:
    """If every connection meets the fault, the ids stay held."""
    behaviour = Behaviour(faults=parse_faults("faults: [{fault: ids_held}]", ""))
    with running_simulator(synthetic, now=NOW, behaviour=behaviour) as server:
        for hour in (21, 22, 23):
            server.clock.set(server.clock.now().replace(hour=hour))
            with raw_client(server, hour) as refused:
                assert refused.until(326)[2] == "-1"


def test_violations_are_single(synthetic: SyntheticMarket) -> None:
    """Each refused request gets a 162, the others their bars."""
    with faulty(synthetic, "{fault: pacing, every: 3}") as (_, client):
        for number in range(1, 10):
            client.bars(number, duration=f"{number} D")
        service = "Historical Market Data Service error message:"
        text = f"{service}Historical data request pacing violation"
        frames = [client.frame() for _ in range(9)]
        by_request = {frame[2] if frame[0] == "4" else frame[1]: frame for frame in frames if frame}
        refused = {number for number, frame in by_request.items() if frame[0] == "4"}
        assert refused == {"3", "6", "9"}
        assert all(by_request[number][3:5] == ["162", text] for number in refused)
        assert {by_request[str(number)][0] for number in (1, 2, 4, 5, 7, 8)} == {"17"}


@pytest.mark.parametrize(
    ("selectors", "hit"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7]),
        ({"every": 3}, [3, 6]),
        ({"every": 3, "nth": frozenset({1})}, [1, 3, 6]),
        ({"every": 2, "times": 2}, [2, 4]),
    ],
)
def test_every_selects_beside_nth(selectors: dict[str, object], hit: list[int]) -> None:
    """Both selectors apply: one of so many, and numbered ones."""
    plan = FaultPlan([FaultRule(Fault.NO_RESPONSE, **selectors)])  # type: ignore[arg-type]
    chosen = [plan.choose(Met(Occasion.HISTORY)) is not None for _ in range(7)]
    assert [number for number, is_hit in enumerate(chosen, 1) if is_hit] == hit


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ("{fault: link_lost, repeats: 1.5}", "whole number"),
        ("{fault: silence, every: 0}", "whole number from 1"),
        ("{fault: ids_held, kind: history}", "ids_held can meet connect"),
        ("{fault: farm_flaps, farms: usfarm}", "not a known key"),
        ("{fault: farm_unnamed, text: usfarm}", "not a known key"),
        ("{fault: ids_held, symbol: AAPL}", "of no effect with kind connect"),
    ],
)
def test_a_meaningless_entry_is_refused(entry: str, named: str) -> None:
    """Key and reason are named."""
    with pytest.raises(SimulatorError, match=named):
        parse_faults(f"faults: [{entry}]", "faults")
