"""The universe sensor keeps the partitions of removed symbols as long as something names them."""

from typing import Any

import dagster as dg
import pytest
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill

from ktrdr_pipelines.defs.partitions import BarPartition
from ktrdr_pipelines.defs.runs.tags import range_tags

ONLY_MSFT = """
defaults: {timeframes: [1d, 1h], start: 2023-03-01}
windows: {yearly: 2020}
symbols: {MSFT: {}}
"""


def backfill_of(location: Any, status: BulkActionStatus) -> PartitionBackfill:
    """Record a backfill of two years of AAPL's daily bars, as the UI does."""
    key = dg.AssetKey(["bars", "1d"])
    backfill = PartitionBackfill.from_asset_partitions(
        backfill_id="abcdefgh",
        asset_graph=location.defs().resolve_asset_graph(),
        partition_names=["AAPL|2024", "AAPL|2025"],
        asset_selection=[key],
        backfill_timestamp=1_780_000_000.0,
        tags={},
        dynamic_partitions_store=location.instance,
        all_partitions=False,
        title=None,
        description=None,
        run_config=None,
    )
    location.instance.add_backfill(backfill)
    location.instance.update_backfill(backfill.with_status(status))
    return backfill.with_status(status)


def tick(location: Any) -> tuple[set[tuple[str, str]], str]:
    """Tick; return the partitions to delete, by set and symbol, and the message."""
    defs = location.defs()
    sensor = defs.resolve_sensor_def("universe_sensor")
    context = dg.build_sensor_context(
        instance=location.instance, resources=defs.resources, definitions=defs
    )
    result: Any = sensor(context)
    deleted = {
        (one.partitions_def_name, key)
        for one in result.dynamic_partitions_requests
        for key in one.partition_keys
    }
    return deleted, str(result.skip_reason.skip_message)


# Dagster calls a function of its own that it has deprecated.
@pytest.mark.filterwarnings("ignore:Function `AssetSelection.sources`:DeprecationWarning")
@pytest.mark.parametrize("status", [BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING])
def test_partitions_wait_for_the_backfill_that_names_them(
    location: Any, status: BulkActionStatus
) -> None:
    """Only those of the timeframe that the backfill names, and only until it has ended."""
    backfill = backfill_of(location, status)
    location.write_universe(ONLY_MSFT)
    deleted, text = tick(location)
    assert deleted == {("symbols_1h", "AAPL")}
    assert "AAPL: no longer in the universe; their partitions go after backfill abcdefgh" in text
    location.instance.update_backfill(backfill.with_status(BulkActionStatus.COMPLETED_FAILED))
    assert tick(location)[0] == {("symbols_1h", "AAPL"), ("symbols_1d", "AAPL")}


@pytest.mark.parametrize("last", ["AAPL", "MSFT"])
def test_partitions_wait_for_the_runs_that_name_them(location: Any, last: str) -> None:
    """A run over one symbol, or over a range of symbols."""
    run = location.instance.add_run(
        dg.DagsterRun(
            job_name="__ASSET_JOB",
            run_id="11111111-1111-1111-1111-111111111111",
            status=dg.DagsterRunStatus.STARTED,
            asset_selection=frozenset([dg.AssetKey(["bars", "1d"])]),
            tags=range_tags(BarPartition("AAPL", "2024"), BarPartition(last, "2025")),
        )
    )
    location.write_universe(ONLY_MSFT)
    deleted, text = tick(location)
    assert deleted == {("symbols_1h", "AAPL")}
    assert "go after run 11111111" in text
    location.instance.report_run_canceled(run)
    assert ("symbols_1d", "AAPL") in tick(location)[0]
    assert "removed AAPL" in tick(location)[1]
