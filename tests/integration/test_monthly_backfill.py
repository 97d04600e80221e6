"""A backfill over months of 1m that an earlier version left unfinished, through the daemon."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ktrdr_pipelines.defs.runs.monthly_runs import REPLACES
from ktrdr_pipelines.simulator.server import running_simulator
from ktrdr_pipelines.store.layout import create_store
from tests.support.monthly_backfills import MINUTES, monthly_backfill

NOW = datetime(2025, 2, 3, 12, tzinfo=UTC)
UNIVERSE = """
defaults: {timeframes: [1m], start: 2025-01-02, backfill: manual}
windows: {1m: 2024-11, yearly: 2022}
symbols:
  AAPL: {}
  MSFT: {}
"""


@pytest.mark.slow
def test_it_is_replaced_by_a_backfill_over_years_that_completes(
    tmp_path: Path,
    dagster_dev: Callable[[Mapping[str, str]], Any],
    wait_for: Callable[..., Any],
) -> None:
    """Even where the daemon looks at it before the sensor does; it never fails."""
    layout = create_store(tmp_path / "data")
    layout.universe.write_text(UNIVERSE, encoding="utf-8")
    with running_simulator(now=NOW) as gateway:
        environment = {
            "IB_PORT": str(gateway.port),
            "KTRDR_DATA": str(layout.root),
            "KTRDR_STATE": str(tmp_path / "state"),
            "KTRDR_CLOCK_OFFSET_S": str((NOW - datetime.now(tz=UTC)).total_seconds()),
        }
        with (
            dagster_dev(environment) as dev,
            dg.DagsterInstance.from_config(str(dev.home)) as instance,
        ):
            wait_for(
                lambda: "MSFT" in instance.get_dynamic_partitions("symbols_1m"),
                "the universe sensor to add the symbols",
            )
            months = [f"{symbol}|2025-01" for symbol in ("AAPL", "MSFT")]
            instance.add_backfill(monthly_backfill("monthly", months))

            def replacement() -> Any:
                found = [one for one in instance.get_backfills() if one.tags.get(REPLACES)]
                return found[0] if found and found[0].status.value.startswith("COMPLETED") else None

            new = wait_for(replacement, "the backfill over years to complete")
            old = instance.get_backfill("monthly")
            materialized = set(instance.get_materialized_partitions(MINUTES))
    assert new.tags == {REPLACES: "monthly"}
    assert new.status.value == "COMPLETED_SUCCESS", dev.log.read_text()[-4000:]
    assert old is not None
    assert old.status.value == "CANCELED"
    assert {"AAPL|2025", "MSFT|2025"} <= materialized
