"""Backfills over months of 1m, as earlier versions launched them."""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph_subset import AssetGraphSubset
from dagster._core.definitions.partitions.subset import DefaultPartitionsSubset
from dagster._core.execution.asset_backfill import AssetBackfillData
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill

MINUTES = dg.AssetKey(["bars", "1m"])


def monthly_backfill(
    name: str,
    keys: Collection[str],
    *,
    done: Collection[str] = (),
    tags: Mapping[str, str] | None = None,
) -> PartitionBackfill:
    """Return a requested backfill over partitions of 1m, of which some are done."""
    began_s = datetime(2026, 6, 12, tzinfo=UTC).timestamp()
    with dg.DagsterInstance.ephemeral() as store:
        data = AssetBackfillData.empty(_subset(keys), began_s, store)
    return PartitionBackfill(
        backfill_id=name,
        status=BulkActionStatus.REQUESTED,
        from_failure=False,
        tags=tags or {},
        backfill_timestamp=began_s,
        asset_selection=[MINUTES],
        asset_backfill_data=data._replace(materialized_subset=_subset(done)),
    )


def _subset(keys: Collection[str]) -> AssetGraphSubset:
    return AssetGraphSubset({MINUTES: DefaultPartitionsSubset(set(keys))} if keys else {})
