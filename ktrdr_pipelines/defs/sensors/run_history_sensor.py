"""Dagster's history of runs, kept small without forgetting what it says of any window.

Deleting a run takes its materializations along, and its windows would look missing. So a run goes
only when nothing hangs on it: it told of no window, or later events tell of all its windows; for
old runs the telling is first repeated by events that belong to no run.

The history sensor: old run history goes, what it says of windows stays.
"""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import dagster as dg
from dagster._core.storage.event_log import SqliteEventLogStorage

from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.defs.runs.tags import ENDED, QUIET, YES

QUIET_KEPT: Final = timedelta(hours=6)
"""How long runs are kept that told of no window: tails, mostly, of which there are 80 an hour."""

FAILED_KEPT: Final = timedelta(days=7)
"""How long failed runs are kept that told of no window."""

KEPT: Final = timedelta(days=14)
"""How long every other run is kept."""

_BACKFILL: Final = "dagster/backfill"
_ENDED_BACKFILLS: Final = ("COMPLETED", "CANCELED", "FAILED")
_EVENTS_OF_A_RUN: Final = 10_000


@dataclass(frozen=True, slots=True)
class Pruned:
    """What one pruning did: runs deleted, windows told of again, bytes of files removed."""

    runs: int = 0
    windows: int = 0
    freed_bytes: int = 0

    def __add__(self, other: "Pruned") -> "Pruned":
        return Pruned(
            self.runs + other.runs,
            self.windows + other.windows,
            self.freed_bytes + other.freed_bytes,
        )


def prune_history(
    instance: dg.DagsterInstance, now: datetime, *, most_runs: int, most_windows: int
) -> Pruned:
    """Delete old runs that nothing hangs on, oldest first.

    Args:
        instance: whose history.
        now: what age is told by.
        most_runs: how many runs are looked at, at most.
        most_windows: how many windows are told of again, at most, but for those of one run.
    """
    total = Pruned()
    for run in _candidates(instance, now, most_runs):
        if total.windows >= most_windows:
            break
        total += _prune(instance, run, is_old=_is_older(run, now - KEPT))
    return total


def _candidates(instance: dg.DagsterInstance, now: datetime, most: int) -> Iterator[dg.RunRecord]:
    """Give ended runs that may be past keeping, each once."""
    filters = (
        dg.RunsFilter(tags={QUIET: YES}, statuses=ENDED, updated_before=now - QUIET_KEPT),
        dg.RunsFilter(
            statuses=[dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED],
            updated_before=now - FAILED_KEPT,
        ),
        dg.RunsFilter(statuses=ENDED, updated_before=now - KEPT),
    )
    seen: set[str] = set()
    for one in filters:
        for record in instance.get_run_records(one, limit=most, ascending=True):
            run_id = record.dagster_run.run_id
            if len(seen) < most and run_id not in seen:
                seen.add(run_id)
                yield record


def _prune(instance: dg.DagsterInstance, record: dg.RunRecord, *, is_old: bool) -> Pruned:
    run = record.dagster_run
    if _is_of_open_backfill(instance, run):
        return Pruned()
    told = _materializations(instance, run.run_id)
    lost = [one for one in told if not _is_superseded(instance, one)]
    if (lost and not is_old) or _holds_newest_check(instance, run.run_id):
        return Pruned()
    for one in lost:
        instance.report_runless_asset_event(_again(one, record))
    if any(not _is_superseded(instance, one) for one in lost):
        return Pruned(windows=len(lost))
    return Pruned(1, len(lost), delete_run(instance, run.run_id))


def delete_run(instance: dg.DagsterInstance, run_id: str) -> int:
    """Delete a run with its files, and give the bytes of those."""
    instance.delete_run(run_id)
    return sum(_removed(path) for path in _files_of(instance, run_id))


def _materializations(instance: dg.DagsterInstance, run_id: str) -> list[dg.EventLogEntry]:
    records = instance.get_records_for_run(
        run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION, limit=_EVENTS_OF_A_RUN
    ).records
    return [record.event_log_entry for record in records]


def _is_superseded(instance: dg.DagsterInstance, entry: dg.EventLogEntry) -> bool:
    """Say whether a later event, of another run or of none, tells of the same window."""
    materialization = _of(entry)
    newest = instance.fetch_materializations(
        dg.AssetRecordsFilter(
            asset_key=materialization.asset_key,
            asset_partitions=[materialization.partition] if materialization.partition else None,
        ),
        limit=1,
    ).records
    return bool(newest) and newest[0].run_id != entry.run_id


def _again(entry: dg.EventLogEntry, record: dg.RunRecord) -> dg.AssetMaterialization:
    """Tell of a window as the run did, and when that was."""
    told = _of(entry)
    at = datetime.fromtimestamp(entry.timestamp, UTC).isoformat()
    return dg.AssetMaterialization(
        asset_key=told.asset_key,
        partition=told.partition,
        metadata={
            **told.metadata,
            "told_at": told.metadata.get("told_at", dg.MetadataValue.text(at)),
            "told_by": dg.MetadataValue.text(f"run {record.dagster_run.run_id}, pruned"),
        },
    )


def _of(entry: dg.EventLogEntry) -> dg.AssetMaterialization:
    materialization = entry.asset_materialization
    assert materialization is not None  # noqa: S101  (asked for by type)
    return materialization


def _holds_newest_check(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Say whether an asset check's newest result is this run's."""
    records = instance.get_records_for_run(
        run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION, limit=_EVENTS_OF_A_RUN
    ).records
    evaluations = [record.event_log_entry.asset_check_evaluation for record in records]
    keys = list({one.asset_check_key for one in evaluations if one is not None})
    newest = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    return any(record.run_id == run_id for record in newest.values())


def _is_of_open_backfill(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Say whether a backfill that is still at work counts on this run's record."""
    backfill_id = run.tags.get(_BACKFILL)
    backfill = instance.get_backfill(backfill_id) if backfill_id else None
    return backfill is not None and not backfill.status.value.startswith(_ENDED_BACKFILLS)


def _is_older(record: dg.RunRecord, than: datetime) -> bool:
    updated = record.update_timestamp
    return (updated if updated.tzinfo else updated.replace(tzinfo=UTC)) < than


def _files_of(instance: dg.DagsterInstance, run_id: str) -> Iterable[Path]:
    """Give the files and folders that Dagster leaves of a deleted run."""
    storage = instance.event_log_storage
    inner = getattr(storage, "event_log_storage", storage)
    if isinstance(inner, SqliteEventLogStorage):
        shard = Path(inner.path_for_shard(run_id))
        yield from (shard.with_name(f"{shard.name}{suffix}") for suffix in ("", "-wal", "-shm"))
    root = Path(instance.storage_directory()) if instance.root_directory else None
    if root is not None:
        yield root / run_id


def _removed(path: Path) -> int:
    """Remove a file or a folder, and give its bytes; what is gone already is well."""
    if path.is_dir():
        size = sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
        shutil.rmtree(path, ignore_errors=True)
        return size
    try:
        size = path.stat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    return size


_EVERY_S = 600
_RUNS = 100
_WINDOWS = 500


def history_sensor() -> dg.SensorDefinition:
    """Make the sensor that deletes runs nothing hangs on, some a tick."""

    @dg.sensor(
        name="history_sensor",
        minimum_interval_seconds=_EVERY_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Deletes runs that told of no window after 6 hours, others after 14 days; "
        "windows stay materialized.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        now = system_now()
        done = prune_history(context.instance, now, most_runs=_RUNS, most_windows=_WINDOWS)
        if not done.runs:
            return dg.SkipReason("no run is past keeping")
        text = (
            f"deleted {done.runs} runs that were past keeping ({done.freed_bytes / 1e6:.1f} MB); "
            f"told of {done.windows} windows again, so that they stay materialized"
        )
        context.log.info(text)
        return dg.SkipReason(text)

    return sensor
