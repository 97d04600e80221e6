"""Unfinished backfills and runs over months of 1m, as earlier versions launched them.

Windows of 1m are years now, and Dagster fails a backfill whose partitions no longer exist
(``DagsterAssetBackfillDataLoadError``). So what is unfinished is canceled and replaced by a
backfill over the years of its remaining months. Runs of the gap sensor are only canceled: it
requests again what is missing.

Dagster has no public interface for backfills but its GraphQL API, which needs a running web server;
this must happen before the daemon looks at them.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph_subset import AssetGraphSubset
from dagster._core.definitions.partitions.subset import DefaultPartitionsSubset
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus, PartitionBackfill
from dagster_shared.error import SerializableErrorInfo

from ktrdr_pipelines.defs.partitions import BarPartition, symbols_partitions
from ktrdr_pipelines.defs.runs.tags import (
    BACKFILL,
    KIND,
    PARTITION,
    RANGE_END,
    RANGE_START,
    UNENDED,
    RunKind,
)
from ktrdr_pipelines.domain.timeframes import Timeframe

REPLACES: Final = "ktrdr/replaces"
"""The id of the backfill or run that a backfill replaces."""

REPLACED_BY: Final = "ktrdr/replaced-by"
"""The id of the backfill that replaces a canceled one."""

_MINUTES: Final = dg.AssetKey(["bars", Timeframe.M1.value])
_OPEN: Final = [BulkActionStatus.REQUESTED, BulkActionStatus.FAILING]
"""A daemon that was faster has marked the backfill as failing, and fails it half a minute later."""

_WAITING: Final = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED]


@dataclass(frozen=True, slots=True)
class Replaced:
    """Something unfinished that was canceled, and the backfill that replaces it, if any."""

    what: str
    replacement: str | None

    def __str__(self) -> str:
        text = f"canceled {self.what}: it is over months of 1m, whose windows are years now"
        return f"{text}; backfill {self.replacement} replaces it" if self.replacement else text


def replace_monthly_runs(
    instance: dg.DagsterInstance, now: datetime, *, is_dagster_down: bool = False
) -> list[Replaced]:
    """Replace unfinished backfills and cancel waiting runs over months of 1m.

    Doing it again changes nothing, even if an earlier call was killed half-way.

    Args:
        instance: that of the store.
        now: real time.
        is_dagster_down: no process of Dagster is alive, so that started runs are over, too.
    """
    return [
        *_replace_backfills(instance, now),
        *_cancel_runs(instance, now, UNENDED if is_dagster_down else _WAITING),
    ]


def _replace_backfills(instance: dg.DagsterInstance, now: datetime) -> Iterator[Replaced]:
    for old in instance.get_backfills(filters=BulkActionsFilter(statuses=_OPEN)):
        data = old.asset_backfill_data
        if data is None or not _has_months(data.target_subset):
            continue
        left = data.target_subset - data.materialized_subset
        keys = {
            key: set(subset.get_partition_keys())
            for key, subset in left.partitions_subsets_by_asset_key.items()
        }
        new = _launch(
            instance,
            now,
            old.backfill_id,
            keys=keys,
            whole=left.non_partitioned_asset_keys,
            tags=old.tags,
            title=old.title,
        )
        replaced = Replaced(f"backfill {old.backfill_id}", new)
        instance.update_backfill(
            old._replace(
                status=BulkActionStatus.CANCELED,
                tags={**old.tags, **({REPLACED_BY: new} if new else {})},
                error=SerializableErrorInfo(str(replaced), [], None),
                backfill_end_timestamp=now.timestamp(),
            )
        )
        yield replaced


def _cancel_runs(
    instance: dg.DagsterInstance, now: datetime, statuses: list[dg.DagsterRunStatus]
) -> Iterator[Replaced]:
    for run in instance.get_runs(dg.RunsFilter(statuses=statuses)):
        if _MINUTES not in (run.asset_selection or ()):
            continue
        ends = [run.tags.get(one) or run.tags.get(PARTITION) for one in (RANGE_START, RANGE_END)]
        first, last = (BarPartition.of(one) if one else None for one in ends)
        if first is None or last is None or not (first.is_monthly or last.is_monthly):
            continue
        new = None
        if BACKFILL not in run.tags and run.tags.get(KIND) != RunKind.GAP:
            order = instance.get_dynamic_partitions(str(symbols_partitions(Timeframe.M1).name))
            if first.symbol in order and last.symbol in order:
                symbols = order[order.index(first.symbol) : order.index(last.symbol) + 1]
                years = range(int(first.of_year.window), int(last.of_year.window) + 1)
                keys = {str(BarPartition(one, f"{year}").key) for one in symbols for year in years}
                new = _launch(instance, now, run.run_id, keys={_MINUTES: keys}, tags={})
        replaced = Replaced(f"run {run.run_id}", new)
        instance.report_run_canceled(run, message=str(replaced))
        yield replaced


def _launch(
    instance: dg.DagsterInstance,
    now: datetime,
    replaces: str,
    *,
    keys: Mapping[dg.AssetKey, Iterable[str]],
    whole: Iterable[dg.AssetKey] = (),
    tags: Mapping[str, str],
    title: str | None = None,
) -> str | None:
    """Request a backfill over partitions, with months as their years, and return its id.

    ``whole`` are assets without partitions. The id follows from what it replaces, so that it is
    requested once. Partitions of symbols that have left the universe are left out; None if no other
    is left.
    """
    subsets = {key: DefaultPartitionsSubset(_years(instance, key, of)) for key, of in keys.items()}
    of_assets = {key: one for key, one in subsets.items() if len(one)}
    target = AssetGraphSubset(of_assets, frozenset(whole))  # type: ignore[call-arg]
    if target.is_empty:
        return None
    number = hashlib.sha256(replaces.encode()).hexdigest()[:8]
    letters = "".join(chr(ord("a") + int(digit, 16)) for digit in number)
    if instance.get_backfill(letters) is None:
        instance.add_backfill(
            PartitionBackfill.from_asset_graph_subset(
                backfill_id=letters,
                backfill_timestamp=now.timestamp(),
                tags={**tags, REPLACES: replaces},
                dynamic_partitions_store=instance,
                asset_graph_subset=target,
                title=title,
                description=f"In place of {replaces}, over years in place of months",
                run_config=None,
            )
        )
    return letters


def _years(instance: dg.DagsterInstance, key: dg.AssetKey, keys: Iterable[str]) -> set[str]:
    held = instance.get_dynamic_partitions(f"symbols_{key.path[-1]}")
    partitions = {BarPartition.of(one).of_year for one in keys}
    return {str(one.key) for one in partitions if one.symbol in held}


def _has_months(target: AssetGraphSubset) -> bool:
    subset = target.partitions_subsets_by_asset_key.get(_MINUTES)
    keys = subset.get_partition_keys() if subset is not None else ()
    return any(BarPartition.of(one).is_monthly for one in keys)
