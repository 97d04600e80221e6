"""Helpers of the simulator's tests: responses without a socket, frames, running gateways."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

import pytest

from ktrdr_pipelines.simulator.market.market import Market
from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.protocol.messages import ContractFields, HeadRequest, HistoryRequest
from ktrdr_pipelines.simulator.requests.answers import Setting, answer
from ktrdr_pipelines.simulator.server import SimulatorServer, running_simulator

NOW = "2024-01-10T20:00:30+00:00"
"""A Wednesday, 15:00:30 in New York: an open session of both markets."""


def contract_fields(key: str, **other: object) -> ContractFields:
    """Return an instrument's fields as ib_async sends them; six letters are a currency pair."""
    is_pair = len(key) == 6
    values: dict[str, object] = {
        "con_id": 0,
        "symbol": key[:3] if is_pair else key,
        "sec_type": "CASH" if is_pair else "STK",
        "last_trade_date": "",
        "strike": "0.0",
        "right": "",
        "multiplier": "",
        "exchange": "IDEALPRO" if is_pair else "SMART",
        "primary_exchange": "",
        "currency": key[3:] if is_pair else "USD",
        "local_symbol": "",
        "trading_class": "",
    }
    return ContractFields(**(values | other))  # type: ignore[arg-type]


def frames_of(data: bytes) -> list[list[str]]:
    """Return the fields of frames, without the code under test."""
    frames = []
    while data:
        (length,) = struct.unpack(">I", data[:4])
        frames.append(data[4 : 4 + length].decode().split("\0")[:-1])
        data = data[4 + length :]
    return frames


@dataclass
class DecodedResponse:
    """A decoded response: bars as lists of texts, or errors."""

    start: str = ""
    end: str = ""
    bars: list[list[str]] = field(default_factory=list)
    errors: list[tuple[int, str]] = field(default_factory=list)
    head: str = ""

    @property
    def dates(self) -> list[str]:
        return [bar[0] for bar in self.bars]

    @property
    def days(self) -> list[str]:
        """The different dates of the bars, in order."""
        return list(dict.fromkeys(date[:8] for date in self.dates))


def decode_response(data: bytes) -> DecodedResponse:
    """Decode the frames of a response."""
    result = DecodedResponse()
    for fields in frames_of(data):
        if fields[0] == "4":
            result.errors.append((int(fields[3]), fields[4]))
        elif fields[0] == "88":
            result.head = fields[2]
        elif fields[0] == "17":
            result.start, result.end, count = fields[2], fields[3], int(fields[4])
            result.bars = [fields[5 + 8 * at : 13 + 8 * at] for at in range(count)]
            assert len(fields) == 5 + 8 * count
    return result


@dataclass
class Requester:
    """Requests historical data of a market without a socket."""

    market: Market
    now: str = NOW

    def setting(self) -> Setting:
        now_s = int(datetime.fromisoformat(self.now).timestamp())
        return Setting(self.market, version=178, now_s=now_s)

    def bars(
        self, key: str, size: str, duration: str, end: str = "", **other: object
    ) -> DecodedResponse:
        values: dict[str, object] = {
            "request_id": 7,
            "contract": contract_fields(key),
            "end": end,
            "bar_size": size,
            "duration": duration,
            "use_rth": True,
            "what": "MIDPOINT" if len(key) == 6 else "TRADES",
            "format_date": 1,
            "keep_up_to_date": False,
        }
        request = HistoryRequest(**(values | other))  # type: ignore[arg-type]
        return decode_response(answer(self.setting(), request).data)

    def head(
        self, key: str, what: str, *, use_rth: bool = True, format_date: int = 1
    ) -> DecodedResponse:
        request = HeadRequest(7, contract_fields(key), use_rth, what, format_date)
        return decode_response(answer(self.setting(), request).data)


@pytest.fixture(scope="session")
def synthetic() -> SyntheticMarket:
    """Return the synthetic market that all tests of a run share."""
    return SyntheticMarket(seed=1)


@pytest.fixture
def requester(synthetic: SyntheticMarket) -> Requester:
    """Return a requester of that market at ``NOW``."""
    return Requester(synthetic)


@pytest.fixture
def new_requester() -> type[Requester]:
    """Return the class of requesters, for any market and time."""
    return Requester


@pytest.fixture(scope="session")
def fields_of() -> Callable[..., ContractFields]:
    """Return a function that makes the fields of an instrument."""
    return contract_fields


@pytest.fixture(scope="session")
def split_frames() -> Callable[[bytes], list[list[str]]]:
    """Return a function that splits frames into fields."""
    return frames_of


@pytest.fixture(scope="module")
def gateway(synthetic: SyntheticMarket) -> Iterator[SimulatorServer]:
    """Run a gateway for the tests of a module."""
    with running_simulator(synthetic, now=NOW) as server:
        yield server


@pytest.fixture
def slow_gateway(synthetic: SyntheticMarket) -> Iterator[SimulatorServer]:
    """Run a gateway that keeps every request in flight until its client leaves."""
    with running_simulator(synthetic, now=NOW, latency_s=3_600.0) as server:
        yield server
