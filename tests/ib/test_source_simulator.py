"""The source against the product's simulated gateway."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ktrdr_pipelines.domain.bars import BAR_SCHEMA, timestamps
from ktrdr_pipelines.domain.instruments import Instrument, Origin, Series
from ktrdr_pipelines.domain.planning.responses import BarRequest, Response
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import ContractUnknownError
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.source import open_source
from ktrdr_pipelines.simulator.server import running_simulator
from tests.support.universes import EURUSD

NOW = datetime(2024, 1, 10, 20, 0, 30, tzinfo=UTC)


@pytest.fixture
def ask(tmp_path: Path) -> Any:
    """Return a function that connects to a simulated gateway at NOW and calls its source."""

    def run(act: Any) -> Any:
        async def session(port: int) -> Any:
            config = GatewayConfig(state_dir=tmp_path, port=port, timeout_s=60)
            async with open_source(config) as source:
                return await act(source)

        with running_simulator(now=NOW) as simulator:
            return asyncio.run(session(simulator.port))

    return run


@pytest.mark.parametrize("timeframe", list(Timeframe))
def test_every_timeframe_gives_a_table(ask: Any, aapl: Instrument, timeframe: Timeframe) -> None:
    """Bars of each size are sorted, unique and in the schema."""
    request = BarRequest(Series(aapl, timeframe), NOW - timedelta(days=1), "1 M")
    answer = ask(lambda source: source.bars(request))
    assert isinstance(answer, Response)
    assert answer.bars.schema == BAR_SCHEMA
    assert bool(np.all(np.diff(timestamps(answer.bars)) > 0))
    assert answer.reach is not None
    assert answer.reach.end == request.ends_at


def test_currencies_have_no_volume(ask: Any) -> None:
    """Midpoint bars have prices; everything else is null."""
    request = BarRequest(Series(EURUSD, Timeframe.H1), NOW, "2 D")
    answer = ask(lambda source: source.bars(request))
    assert answer.bars["volume"].null_count == answer.bars.num_rows > 0
    assert answer.bars["close"].null_count == 0


def test_the_simulator_is_recognized(ask: Any, aapl: Instrument) -> None:
    """Its bars are simulated, and it has a clock, contracts and heads."""

    async def act(source: Any) -> Any:
        return (
            source.origin,
            source.now(),
            await source.contract_id(aapl),
            await source.head(aapl),
            (await source.health()).is_good,
        )

    origin, now, contract_id, head, is_good = ask(act)
    assert origin is Origin.SIMULATED
    assert NOW - timedelta(seconds=2) < now < NOW + timedelta(minutes=1)
    assert contract_id > 0
    assert head < NOW
    assert is_good


def test_a_symbol_that_does_not_exist_is_unknown(ask: Any, aapl: Instrument) -> None:
    """The simulator refuses an unknown symbol as the gateway does."""
    unlisted = replace(aapl, symbol="NOSUCH1", ib_symbol="NOSUCH1")
    with pytest.raises(ContractUnknownError):
        ask(lambda source: source.contract_id(unlisted))


def test_concurrent_requests_get_their_own_bars(ask: Any, aapl: Instrument) -> None:
    """Forty concurrent requests get their own bars each."""

    async def act(source: Any) -> Any:
        requests = [
            BarRequest(Series(aapl, Timeframe.M1), NOW - timedelta(days=day), "1 D")
            for day in range(1, 41)
        ]
        return await asyncio.gather(*(source.bars(request) for request in requests))

    answers = ask(act)
    assert [answer.request.ends_at for answer in answers] == [
        NOW - timedelta(days=day) for day in range(1, 41)
    ]
    assert all(isinstance(answer, Response) for answer in answers)
