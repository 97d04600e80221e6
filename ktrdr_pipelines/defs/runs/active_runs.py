"""Which series the unfinished runs and backfills of Dagster's history name.

Not here: what sensors start or wait for because of it (``defs.sensors``).
"""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Final

import dagster as dg
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus, PartitionBackfill

from ktrdr_pipelines.defs.partitions import BarPartition, symbols_partitions
from ktrdr_pipelines.defs.runs.tags import (
    BACKFILL,
    KIND,
    LOADED,
    NEW,
    NOTHING,
    PARTITION,
    RANGE_END,
    RANGE_START,
    UNENDED,
    RunKind,
)
from ktrdr_pipelines.domain.timeframes import Timeframe

_UNFINISHED: Final = [
    BulkActionStatus.REQUESTED,
    BulkActionStatus.CANCELING,
    BulkActionStatus.FAILING,
]
_ID_LENGTH: Final = 8
SeriesName = tuple[str, Timeframe]


def active_runs(instance: dg.DagsterInstance) -> tuple[set[SeriesName], int]:
    """Return the series of all active runs, and the number of active runs of the gap sensor."""
    busy: set[SeriesName] = set()
    own = 0
    symbols_of = cache(lambda timeframe: held_symbols(instance, timeframe))
    for run in instance.get_runs(dg.RunsFilter(statuses=UNENDED)):
        own += run.tags.get(KIND) == RunKind.GAP
        for timeframe in _timeframes(run.asset_selection or ()):
            busy |= {(symbol, timeframe) for symbol in _symbols(run, symbols_of(timeframe))}
    return busy, own


def users_of(instance: dg.DagsterInstance) -> dict[SeriesName, str]:
    """Return what names the partitions of each series: an unfinished backfill, or an active run.

    Dagster fails a whole backfill if one of its dynamic partitions is deleted before all of its
    runs are submitted, and a queued run whose partition is deleted. Source: observed on Dagster
    1.13.28, ``DagsterAssetBackfillDataLoadError``.
    """
    users: dict[SeriesName, str] = {}
    symbols_of = cache(lambda timeframe: held_symbols(instance, timeframe))
    for run in instance.get_runs(dg.RunsFilter(statuses=UNENDED)):
        for timeframe in _timeframes(run.asset_selection or ()):
            for symbol in _symbols(run, symbols_of(timeframe)):
                users[symbol, timeframe] = f"run {run.run_id[:_ID_LENGTH]}"
    for backfill in instance.get_backfills(filters=BulkActionsFilter(statuses=_UNFINISHED)):
        name = f"backfill {backfill.backfill_id}"
        users |= dict.fromkeys(_series_of(instance, backfill), name)
    return users


def is_last_to_load(instance: dg.DagsterInstance, run: dg.DagsterRun, *, is_new: bool) -> bool:
    """Return whether what a run and its backfill have loaded is to be made known now.

    That is so for the last run of the backfill that has loaded, if any of its runs sent requests.
    Two that end at once may both be the last; one always is, unless that is killed before.

    Args:
        instance: the Dagster instance with the history.
        run: a run that has loaded; it is tagged accordingly.
        is_new: whether the run sent requests.
    """
    backfill = run.tags.get(BACKFILL)
    if backfill is None:
        return is_new
    instance.add_run_tags(run.run_id, {LOADED: NEW if is_new else NOTHING})
    others = instance.get_runs(dg.RunsFilter(tags={BACKFILL: backfill}, statuses=UNENDED))
    if any(
        LOADED not in one.tags and (not one.asset_selection or _timeframes(one.asset_selection))
        for one in others
        if one.run_id != run.run_id
    ):
        return False
    of_new = dg.RunsFilter(tags={BACKFILL: backfill, LOADED: NEW})
    return is_new or instance.get_runs_count(of_new) > 0


def held_symbols(instance: dg.DagsterInstance, timeframe: Timeframe) -> tuple[str, ...]:
    """Return the symbols that have partitions of a timeframe, in Dagster's order."""
    return tuple(instance.get_dynamic_partitions(str(symbols_partitions(timeframe).name)))


def _series_of(instance: dg.DagsterInstance, backfill: PartitionBackfill) -> set[SeriesName]:
    """Return the series that a backfill names."""
    found: set[SeriesName] = set()
    for timeframe in _timeframes(backfill.asset_selection or ()):
        data, key = backfill.asset_backfill_data, dg.AssetKey(["bars", timeframe.value])
        if data is None:
            # Written by an earlier Dagster in a form that is read with the definitions alone.
            found |= {(symbol, timeframe) for symbol in held_symbols(instance, timeframe)}
        elif key in data.target_subset.partitions_subsets_by_asset_key:
            keys = data.target_subset.get_partitions_subset(key).get_partition_keys()
            found |= {(BarPartition.of(one).symbol, timeframe) for one in keys}
    return found


def _timeframes(keys: Iterable[dg.AssetKey]) -> list[Timeframe]:
    """Return the timeframes of the bars assets among some keys."""
    return [Timeframe(one.path[1]) for one in keys if len(one.path) == 2 and one.path[0] == "bars"]


def _symbols(run: dg.DagsterRun, order: Sequence[str]) -> Sequence[str]:
    """Return the symbols in a run's range of partitions, in Dagster's order of symbols."""
    first = run.tags.get(RANGE_START) or run.tags.get(PARTITION)
    last = run.tags.get(RANGE_END) or run.tags.get(PARTITION)
    if not first or not last:
        return ()
    ends = BarPartition.of(first).symbol, BarPartition.of(last).symbol
    if ends[0] not in order or ends[1] not in order:
        return ends
    return order[order.index(ends[0]) : order.index(ends[1]) + 1]
