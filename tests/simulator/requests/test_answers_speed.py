"""The speed of serving bars, in processor time, relative to that of plain Python.

The aim is 300,000 bars a second. Where plain Python writes 0.65 million rows a second, that is a
little under half of its speed.
"""

from collections.abc import Callable
from itertools import count
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
from tests.support.costs import LINEAR_IN_EIGHT, costs, growth

LEAST_OF_PLAIN = 0.45
ATTEMPTS = 3
PLAIN = 100_000
"""Rows that plain Python writes in turn with each answer."""


def _write_plainly() -> None:
    """Write rows of eight numbers by Python's own formatting."""

    def row(at: int) -> str:
        return f"{at}|{at / 7:.2f}|{at / 9:.2f}|{at / 11:.2f}|{at / 13:.2f}|{at}|{at}|{at}"

    text = "|".join(row(at) for at in range(PLAIN)).encode()
    assert text.count(b"|") == 8 * PLAIN - 1


def _assert_fast(serve: Callable[[], int], capsys: pytest.CaptureFixture[str]) -> None:
    """Compare what serving some bars costs with plain Python."""
    counts = []
    found = costs({"served": lambda: counts.append(serve()), "plain": _write_plainly}, ATTEMPTS)
    assert min(counts) > 90_000
    served, plain = counts[0] / found["served"].cpu_ms, PLAIN / found["plain"].cpu_ms
    with capsys.disabled():
        print(f"\n{served:,.0f} bars/ms, plain {plain:,.0f}")  # noqa: T201  (it reports)
    assert served > LEAST_OF_PLAIN * plain


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
    _assert_fast(lambda: answer(requester.setting(), request).count, capsys)


def test_a_client_is_served_about_as_fast_as_python_writes(
    synthetic: SyntheticMarket, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over a socket, including the time that the client takes to read."""
    unpaced, numbers = Behaviour(pacing=SimulatedPacing.OFF), count()
    with (
        running_simulator(synthetic, now=NOW, behaviour=unpaced) as server,
        raw_client(server) as client,
    ):

        def serve() -> int:
            number = next(numbers)
            client.bars(number, size="1 min", duration="1 Y", end="20240101-00:00:00")
            return int(client.until(17, number)[4])

        _assert_fast(serve, capsys)


def test_reading_frames_is_linear() -> None:
    """Cutting a stream into frames takes time linear in its length."""

    def read(count: int) -> None:
        stream = framing.message(("49", "1")) * count
        reader = framing.FrameReader()
        pieces = (stream[at : at + 65_536] for at in range(0, len(stream), 65_536))
        assert sum(1 for piece in pieces for _ in reader.feed(piece)) == count

    assert growth(read, 12_500, 100_000) < LINEAR_IN_EIGHT
