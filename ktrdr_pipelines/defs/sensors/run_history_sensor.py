"""The history sensor: deletes old runs from Dagster's history; their windows stay materialized.

Deleting a run also deletes its materializations, and its windows would look missing. A run is
therefore deleted only if it materialized no window, or if later events materialize all its windows;
for old runs, such events are first added outside of any run.

The record of a lost window is what shows it as failed. It is deleted once a later event or run of
its windows has replaced it; of old ones, what is still needed moves into one record a timeframe, so
that there are never many.
"""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Final

import dagster as dg
from dagster._core.storage.event_log import SqliteEventLogStorage

from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.defs.runs.recorded_runs import mark_lost, needed_marks
from ktrdr_pipelines.defs.runs.tags import BACKFILL, ENDED, KIND, QUIET, TIMEFRAME, YES, RunKind
from ktrdr_pipelines.domain.timeframes import Timeframe

QUIET_KEPT: Final = timedelta(hours=6)
"""Retention of quiet runs, which materialized no window: mostly tails, about 80 an hour."""

FAILED_KEPT: Final = timedelta(days=7)
"""Retention of failed and canceled runs that materialized no window."""

KEPT: Final = timedelta(days=14)
"""Retention of every other run."""

_ENDED_BACKFILLS: Final = ("COMPLETED", "CANCELED", "FAILED")
_EVENTS_OF_A_RUN: Final = 10_000
_EVERY_S = 600
_RUNS = 100
_WINDOWS = 500
_TIMES_AS_MANY: Final = 10
"""How many more runs of each kind are examined than deleted."""

_MOST_S: Final = 25.0
"""Seconds after which a tick examines no further run: Dagster ends a tick that takes a minute."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What one pruning did: deleted runs, windows reported again, bytes of deleted files."""

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
    instance: dg.DagsterInstance,
    now: datetime,
    *,
    most_runs: int,
    most_windows: int,
    is_late: Callable[[], bool] = lambda: False,
) -> Pruned:
    """Delete old runs whose windows stay materialized without them, oldest first.

    Args:
        instance: the Dagster instance with the history.
        now: the time from which ages are counted.
        most_runs: number of deleted runs after which no further run is examined.
        most_windows: number of windows reported again after which no further run is examined.
        is_late: tells that the time is over.
    """
    total = _prune_lost(instance, now, most_runs)
    for run in _candidates(instance, now, most_runs * _TIMES_AS_MANY):
        if total.runs >= most_runs or total.windows >= most_windows or is_late():
            break
        total += _prune(instance, run, is_old=_utc(run.update_timestamp) < now - KEPT)
    return total


def _candidates(instance: dg.DagsterInstance, now: datetime, most: int) -> Iterator[dg.RunRecord]:
    """Yield ended runs that may be past their retention, each once.

    Runs of each kind alternate, up to ``most`` of a kind: those of one that may not be deleted
    yet, such as quiet runs with the newest event of a window, must not hold up the others.
    """
    filters = (
        dg.RunsFilter(tags={QUIET: YES}, statuses=ENDED, updated_before=now - QUIET_KEPT),
        dg.RunsFilter(
            statuses=[dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED],
            updated_before=now - FAILED_KEPT,
        ),
        dg.RunsFilter(statuses=ENDED, updated_before=now - KEPT),
    )
    seen: set[str] = set()
    kinds = (instance.get_run_records(one, limit=most, ascending=True) for one in filters)
    for record in chain.from_iterable(zip_longest(*kinds)):
        if record is None or record.dagster_run.tags.get(KIND) == RunKind.LOST:
            continue
        if record.dagster_run.run_id not in seen:
            seen.add(record.dagster_run.run_id)
            yield record


def _prune(instance: dg.DagsterInstance, record: dg.RunRecord, *, is_old: bool) -> Pruned:
    run = record.dagster_run
    if _is_of_open_backfill(instance, run):
        return Pruned()
    records = instance.get_records_for_run(
        run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION, limit=_EVENTS_OF_A_RUN
    ).records
    entries = (record.event_log_entry for record in records)
    needed = (entry for entry in entries if not _is_superseded(instance, entry))
    # One is reason enough to keep a run that is not old: each costs a query.
    lost = list(needed if is_old else islice(needed, 1))
    if (lost and not is_old) or _holds_newest_check(instance, run.run_id):
        return Pruned()
    for one in lost:
        instance.report_runless_asset_event(_again(one, record))
    if any(not _is_superseded(instance, one) for one in lost):
        return Pruned(windows=len(lost))
    return Pruned(1, len(lost), delete_run(instance, run.run_id))


def _prune_lost(instance: dg.DagsterInstance, now: datetime, most: int) -> Pruned:
    """Delete records of lost windows that are replaced, and join what is needed of old ones."""
    records = instance.get_run_records(
        dg.RunsFilter(tags={KIND: RunKind.LOST.value}, updated_before=now - QUIET_KEPT),
        limit=most,
        ascending=True,
    )
    total = Pruned()
    by_timeframe: dict[Timeframe, list[dg.RunRecord]] = {}
    for record in records:
        timeframe = Timeframe(record.dagster_run.tags[TIMEFRAME])
        by_timeframe.setdefault(timeframe, []).append(record)
    for timeframe, ones in by_timeframe.items():
        needed = needed_marks(instance, timeframe)
        done = [one for one in ones if one.dagster_run.run_id not in needed]
        old = [one for one in ones if _utc(one.update_timestamp) < now - FAILED_KEPT]
        old = [one for one in old if one.dagster_run.run_id in needed]
        if len(old) > 1:
            joined = [part for one in old for part in needed[one.dagster_run.run_id]]
            mark_lost(instance, timeframe, dict.fromkeys(joined, "lost some time ago"))
            done += old
        for one in done:
            total += Pruned(runs=1, freed_bytes=delete_run(instance, one.dagster_run.run_id))
    return total


def delete_run(instance: dg.DagsterInstance, run_id: str) -> int:
    """Delete a run and its files; return the bytes of the files."""
    instance.delete_run(run_id)
    return sum(_removed(path) for path in _files_of(instance, run_id))


def _is_superseded(instance: dg.DagsterInstance, entry: dg.EventLogEntry) -> bool:
    """Return whether a later event, of another run or of none, materializes the same window."""
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
    """Return the same materialization, with the time and the run of the original event."""
    original = _of(entry)
    at = datetime.fromtimestamp(entry.timestamp, UTC).isoformat()
    return dg.AssetMaterialization(
        asset_key=original.asset_key,
        partition=original.partition,
        metadata={
            **original.metadata,
            "told_at": original.metadata.get("told_at", dg.MetadataValue.text(at)),
            "told_by": dg.MetadataValue.text(f"run {record.dagster_run.run_id}, pruned"),
        },
    )


def _of(entry: dg.EventLogEntry) -> dg.AssetMaterialization:
    materialization = entry.asset_materialization
    assert materialization is not None  # noqa: S101  (the records are of this type)
    return materialization


def _holds_newest_check(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Return whether the newest result of an asset check belongs to this run."""
    records = instance.get_records_for_run(
        run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION, limit=_EVENTS_OF_A_RUN
    ).records
    evaluations = [record.event_log_entry.asset_check_evaluation for record in records]
    keys = list({one.asset_check_key for one in evaluations if one is not None})
    newest = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    return any(record.run_id == run_id for record in newest.values())


def _is_of_open_backfill(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Return whether the run belongs to an active backfill, which needs its record."""
    backfill_id = run.tags.get(BACKFILL)
    backfill = instance.get_backfill(backfill_id) if backfill_id else None
    return backfill is not None and not backfill.status.value.startswith(_ENDED_BACKFILLS)


def _utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _files_of(instance: dg.DagsterInstance, run_id: str) -> Iterable[Path]:
    """Yield the files and folders that Dagster leaves behind when a run is deleted."""
    storage = instance.event_log_storage
    inner = getattr(storage, "event_log_storage", storage)
    if isinstance(inner, SqliteEventLogStorage):
        shard = Path(inner.path_for_shard(run_id))
        yield from (shard.with_name(f"{shard.name}{suffix}") for suffix in ("", "-wal", "-shm"))
    root = Path(instance.storage_directory()) if instance.root_directory else None
    if root is not None:
        yield root / run_id


def _removed(path: Path) -> int:
    """Delete a file or a folder, and return its bytes; 0 if it does not exist."""
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


def history_sensor() -> dg.SensorDefinition:
    """Return the sensor that deletes old runs, a limited number per tick."""

    @dg.sensor(
        name="history_sensor",
        minimum_interval_seconds=_EVERY_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Deletes runs that materialized no window after 6 hours (7 days if they "
        "failed), others after 14 days. Windows stay materialized.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        now = system_now()
        until_s = time.monotonic() + _MOST_S
        done = prune_history(
            context.instance,
            now,
            most_runs=_RUNS,
            most_windows=_WINDOWS,
            is_late=lambda: time.monotonic() > until_s,
        )
        if not done.runs:
            return dg.SkipReason("no run is past its retention")
        text = (
            f"deleted {done.runs} runs past their retention ({done.freed_bytes / 1e6:.1f} MB); "
            f"reported {done.windows} windows again, so that they stay materialized"
        )
        context.log.info(text)
        return dg.SkipReason(text)

    return sensor
