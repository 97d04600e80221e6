"""The speed of serving bars, in processor time, relative to that of plain Python.

The aim is 300,000 bars a second. Where plain Python writes 0.65 million rows a second, that is a
little under half of its speed.
"""

import time
from typing import Any

import pytest

from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.protocol import framing
from ktrdr_pipelines.simulator.protocol.messages import HistoryRequest
from ktrdr_pipelines.simulator.requests.answers import answer
from ktrdr_pipelines.simulator.requests.pacing_rules import SimulatedPacing
from ktrdr_pipelines.simulator.server import running_simulator
from ktrdr_pipelines.simulator.simulated_gateway import Behaviour
from tests.simulator.conftest import NOW
from tests.simulator.rawclient import raw_client

LEAST_OF_PLAIN = 0.45
ATTEMPTS = 3


def _plain_bars_per_s(count: int = 100_000) -> float:
    """Return how many rows of eight numbers Python's own formatting writes per second."""

    def row(at: int) -> str:
        return f"{at}|{at / 7:.2f}|{at / 9:.2f}|{at / 11:.2f}|{at / 13:.2f}|{at}|{at}|{at}"

    started = time.process_time()
    text = "|".join(row(at) for at in range(count)).encode()
    assert text.count(b"|") == 8 * count - 1
    return count / (time.process_time() - started)


def _assert_fast(speeds: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    plain = max(_plain_bars_per_s() for _ in range(ATTEMPTS))
    with capsys.disabled():
        print(f"\n{max(speeds):,.0f} bars/s, plain {plain:,.0f}")  # noqa: T201  (it reports)
    assert max(speeds) > LEAST_OF_PLAIN * plain


@pytest.mark.parametrize(("key", "duration"), [("AAPL", "1 Y"), ("EURUSD", "14 W")])
def test_minutes_are_encoded_about_as_fast_as_python_writes(
    requester: Any, fields_of: Any, key: str, duration: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the request to the frame, the best of a few attempts."""
    request = HistoryRequest(
        request_id=1,
        contract=fields_of(key),
        end="20240101-00:00:00",
        bar_size="1 min",
        duration=duration,
        use_rth=True,
        what="MIDPOINT" if key == "EURUSD" else "TRADES",
        format_date=2,
        keep_up_to_date=False,
    )
    speeds = []
    for _ in range(ATTEMPTS):
        started = time.process_time()
        found = answer(requester.setting(), request)
        speeds.append(found.count / (time.process_time() - started))
    assert found.count > 90_000
    _assert_fast(speeds, capsys)


def test_a_client_is_served_about_as_fast_as_python_writes(
    synthetic: SyntheticMarket, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over a socket, including the time that the client takes to read."""
    unpaced, speeds = Behaviour(pacing=SimulatedPacing.OFF), []
    with (
        running_simulator(synthetic, now=NOW, behaviour=unpaced) as server,
        raw_client(server) as client,
    ):
        for number in range(ATTEMPTS):
            started = time.process_time()
            client.bars(number, size="1 min", duration="1 Y", end="20240101-00:00:00")
            count = int(client.until(17, number)[4])
            speeds.append(count / (time.process_time() - started))
    assert count > 90_000
    _assert_fast(speeds, capsys)


def test_reading_frames_is_linear() -> None:
    """Cutting a stream into frames takes time linear in its length."""

    def cost(count: int) -> float:
        stream = framing.message(("49", "1")) * count
        started = time.process_time()
        reader = framing.FrameReader()
        pieces = (stream[at : at + 65_536] for at in range(0, len(stream), 65_536))
        assert sum(1 for piece in pieces for _ in reader.feed(piece)) == count
        return time.process_time() - started

    cost(1_000)
    assert min(cost(100_000) for _ in range(3)) < 40 * min(cost(10_000) for _ in range(3))
