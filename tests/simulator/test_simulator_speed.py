"""How fast bars are served, in processor time: the machine may be busy with other things."""

import time
from typing import Any

import pytest

from ktrdr_pipelines.simulator import wire
from ktrdr_pipelines.simulator.answers import answer
from ktrdr_pipelines.simulator.behaviour import Behaviour
from ktrdr_pipelines.simulator.messages import HistoryRequest
from ktrdr_pipelines.simulator.pacing import PacingMode
from ktrdr_pipelines.simulator.server import running_simulator
from ktrdr_pipelines.simulator.synthetic import SyntheticMarket
from tests.simulator.rawclient import raw_client

NOW = "2024-01-10T20:00:30+00:00"
LEAST_BARS_PER_S = 300_000
TRIES = 5


@pytest.mark.parametrize("key", ["AAPL", "EURUSD"])
def test_a_year_of_minutes_is_made_at_300_000_bars_a_second(
    ask: Any, fields_of: Any, key: str
) -> None:
    """From the request to the frame, the best of a few tries."""
    request = HistoryRequest(
        request_id=1,
        contract=fields_of(key),
        end="20240101-00:00:00",
        bar_size="1 min",
        duration="1 Y",
        use_rth=True,
        what="MIDPOINT" if key == "EURUSD" else "TRADES",
        format_date=2,
        keep_up_to_date=False,
    )
    speeds = []
    for _ in range(TRIES):
        started = time.process_time()
        found = answer(ask.setting(), request)
        speeds.append(found.count / (time.process_time() - started))
    assert found.count > 90_000
    assert max(speeds) > LEAST_BARS_PER_S


def test_a_client_is_served_300_000_bars_a_second(synthetic: SyntheticMarket) -> None:
    """Over a real socket, what one client takes to read them included."""
    unpaced, speeds = Behaviour(pacing=PacingMode.OFF), []
    with (
        running_simulator(synthetic, now=NOW, behaviour=unpaced) as server,
        raw_client(server) as client,
    ):
        for number in range(TRIES):
            started = time.process_time()
            client.bars(number, size="1 min", duration="1 Y", end="20240101-00:00:00")
            count = int(client.until(17, number)[4])
            speeds.append(count / (time.process_time() - started))
    assert count > 90_000
    assert max(speeds) > LEAST_BARS_PER_S


def test_reading_frames_costs_the_same_however_they_come() -> None:
    """A stream of many small frames in large pieces is cut in time that grows with its length."""

    def cost(count: int) -> float:
        stream = wire.message(("49", "1")) * count
        started = time.process_time()
        reader = wire.FrameReader()
        pieces = (stream[at : at + 65_536] for at in range(0, len(stream), 65_536))
        assert sum(1 for piece in pieces for _ in reader.feed(piece)) == count
        return time.process_time() - started

    cost(1_000)
    assert min(cost(100_000) for _ in range(3)) < 40 * min(cost(10_000) for _ in range(3))
