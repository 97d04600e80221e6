"""A record of the probe, from a gateway to a gateway: probe, replay, and ask again."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.core.pacing import pacing_of
from ktrdr_pipelines.ib.capture import read_capture as read_again
from ktrdr_pipelines.ib.capture import write_capture
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.pacer import Pacer
from ktrdr_pipelines.ib.probe import Probe, probe
from ktrdr_pipelines.ib.probe_table import FACTS
from ktrdr_pipelines.simulator.behaviour import Behaviour
from ktrdr_pipelines.simulator.capture import Capture, read_capture
from ktrdr_pipelines.simulator.faults import Fault, FaultPlan, FaultRule
from ktrdr_pipelines.simulator.pacing import PacingMode
from ktrdr_pipelines.simulator.server import SimulatorServer, running_simulator
from ktrdr_pipelines.simulator.synthetic import SyntheticMarket
from tests.simulator.client_async import AsyncClient
from tests.simulator.client_official import OfficialClient

NOW = "2024-01-10T20:00:30+00:00"
SEED = 77
UNPACED = Behaviour(pacing=PacingMode.OFF)
ODD = FaultPlan(
    [
        FaultRule(Fault.ERROR, nth=frozenset({3}), settings={"code": 354}, text="not subscribed"),
        FaultRule(Fault.NO_DATA, nth=frozenset({5})),
        FaultRule(Fault.PARTIAL, nth=frozenset({8})),
        FaultRule(Fault.NEWEST_MISSING, nth=frozenset({9})),
    ]
)
"""What makes a gateway unlike any market: only a record can answer like it."""

ASKED = [
    (fact.trial.bar_size, fact.trial.duration, fact.trial.end)
    for fact in FACTS
    if fact.name in {"first hours of a session", "5 D of 1 day", "1 W of 1 min (wide table)"}
]


@dataclass
class Probed:
    """A market, what the probe found there, and its record on disk."""

    market: SyntheticMarket
    path: Path
    con_id: int


def probed(server: SimulatorServer, folder: Path) -> Probe:
    """Probe a gateway with a budget whose windows pass at once."""
    config = GatewayConfig(state_dir=folder, port=server.port, timeout_s=20.0)
    budget = Pacer(config.folder, pacing=pacing_of().scaled(0))
    return asyncio.run(probe(config, pacer=budget))


def told(found: Probe) -> list[tuple[str, str, bool | None]]:
    """Return the table of facts: name, what was seen, whether it agrees."""
    return [(each.fact.name, each.seen, each.agrees) for each in found.findings]


def fields(path: Path) -> list[tuple[str, ...]]:
    """Return the frames of a record without their times."""
    return [(frame.way, *frame.fields) for frame in read_again(path).frames]


@pytest.mark.parametrize("faults", [None, ODD], ids=["a market", "an odd gateway"])
def test_a_probe_of_the_replay_finds_what_the_first_found(
    tmp_path: Path, faults: FaultPlan | None
) -> None:
    """Every fact is seen as it was, and the second record holds the very same frames."""
    behaviour = Behaviour(faults=faults)
    with running_simulator(SyntheticMarket(SEED), now=NOW, behaviour=behaviour) as server:
        first = probed(server, tmp_path / "one")
    write_capture(tmp_path / "a.jsonl", first.capture)
    with running_simulator(read_capture(tmp_path / "a.jsonl")) as server:
        second = probed(server, tmp_path / "two")
        assert "unrecorded" not in server.counts
    write_capture(tmp_path / "b.jsonl", second.capture)
    assert first.is_whole
    assert second.is_whole
    assert told(second) == told(first)
    assert fields(tmp_path / "b.jsonl") == fields(tmp_path / "a.jsonl")


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Probed:
    """Probe a synthetic market once for the tests below."""
    folder, market = tmp_path_factory.mktemp("probe"), SyntheticMarket(SEED)
    with running_simulator(market, now=NOW) as server:
        found = probed(server, folder / "state")
    write_capture(folder / "a.jsonl", found.capture)
    con_id = next(each.con_id for each in market.instruments() if each.key == "AAPL")
    return Probed(market, folder / "a.jsonl", con_id)


@pytest.fixture(scope="module")
def replay(record: Probed) -> Iterator[SimulatorServer]:
    """Replay that probe."""
    with running_simulator(read_capture(record.path), behaviour=UNPACED) as server:
        yield server


@pytest.mark.parametrize(("client", "client_id"), [(AsyncClient, 31), (OfficialClient, 32)])
def test_both_clients_get_the_bars_of_the_first_gateway(
    record: Probed, replay: SimulatorServer, *, client: Any, client_id: int
) -> None:
    """Unmodified, and with bars that are equal to the last bit; ibapi writes a strike otherwise."""
    stock = {
        "conId": record.con_id,
        "symbol": "AAPL",
        "secType": "STK",
        "exchange": "SMART",
        "primaryExchange": "NASDAQ",
        "currency": "USD",
    }
    with running_simulator(record.market, now=NOW, behaviour=UNPACED) as server:
        told = []
        for port in (server.port, replay.port):
            with closing(client(port, client_id)) as asking:
                told.append([asking.bars(stock, *asked[:2], end=asked[2]) for asked in ASKED])
    assert told[0] == told[1]
    assert [len(answer.rows) for answer in told[1]] == [7, 5, 1380]


def test_a_client_hears_that_a_question_is_not_on_record(
    record: Probed, replay: SimulatorServer
) -> None:
    """A duration that the probe never asked is refused, and the account is a simulated one."""
    with closing(AsyncClient(replay.port, 33)) as asking:
        answer = asking.bars({"conId": record.con_id, "exchange": "SMART"}, "1 hour", "2 D")
        assert asking._ib.managedAccounts() == ["SIM000001"]
    ((code, text),) = answer.errors
    assert code == 162
    assert "holds no answer" in text


def test_a_record_has_the_time_of_its_gateway(record: Probed, replay: SimulatorServer) -> None:
    """The clock of the replay goes on from when the record began."""
    capture = read_capture(record.path)
    assert isinstance(capture, Capture)
    assert 0 <= (replay.clock.now() - capture.began).total_seconds() < 600
