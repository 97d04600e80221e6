"""Contract ids: pinned by the first load, and refused when they change."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.domain.instruments import Instrument, Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import ForeignIdentityError
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.source import open_source
from ktrdr_pipelines.store.layout import create_store
from ktrdr_pipelines.sync.engine.source_session import RetryPolicy
from ktrdr_pipelines.sync.runner import Job, LoadManager

DAY = Interval(datetime(2026, 1, 5, tzinfo=UTC), datetime(2026, 1, 6, tzinfo=UTC))


@pytest.mark.parametrize("timeframe", [Timeframe.D1, Timeframe.H1])
def test_a_changed_contract_id_is_refused(
    config: GatewayConfig,
    gateways: Any,
    replies: Any,
    aapl: Instrument,
    tmp_path: Path,
    *,
    timeframe: Timeframe,
) -> None:
    """When the symbol means another contract, nothing is requested."""
    ids = ["265598"]

    def respond(client: Any, fields: list[str]) -> None:
        texts = [text.format(id=fields[2]) for text in replies.details]
        texts[12] = ids[-1]
        client.send(*texts)
        client.send(52, 1, fields[2])

    def send_daily_bar(client: Any, fields: list[str]) -> None:
        client.raw(replies.history(fields[1], replies.bar("20260105")))

    gateway = gateways(contract=respond, bars=send_daily_bar)
    gateway_config = replace(config, port=gateway.port, max_retries=0)
    layout = create_store(tmp_path / "store")

    def load(series: Series, wanted: Interval) -> Any:
        retry_policy = RetryPolicy(max_retries=0)
        manager = LoadManager(
            layout, lambda: open_source(gateway_config), gateway_config.gateway, retry_policy
        )
        return asyncio.run(manager.run([Job(series, wanted=IntervalSet([wanted]))]))[0]

    assert load(Series(aapl, Timeframe.D1), DAY).is_complete
    count = len(gateway.frames(20))
    ids.append("4711")
    later = Interval(DAY.end, datetime(2026, 1, 7, tzinfo=UTC))
    report = load(Series(aapl, timeframe), later)
    assert isinstance(report.error, ForeignIdentityError)
    assert "265598" in str(report.error)
    assert "4711" in str(report.error)
    assert len(gateway.frames(20)) == count
