"""Runs that are only records: they report windows to Dagster's history without a process.

A *lost* window is materialized but no longer complete: its bars were deleted or damaged, or what
explained them was refuted. Dagster cannot revoke a materialization; a failed run that planned the
window and did not materialize it shows it as failed, until a later event materializes it.

Reports of open windows are records too, because a run can be deleted with its events, and an event
that belongs to no run stays for ever.

Not here: which windows are lost or have grown (``defs.sensors.materialization_sensor``).
"""

from collections.abc import Iterable, Mapping
from typing import Final

import dagster as dg
from dagster._core.events import (
    AssetMaterializationPlannedData,
    DagsterEvent,
    StepMaterializationData,
)
from dagster._core.utils import make_new_run_id

from ktrdr_pipelines.defs.partitions import BarPartition
from ktrdr_pipelines.defs.runs.active_runs import held_symbols
from ktrdr_pipelines.defs.runs.tags import KIND, QUIET, TIMEFRAME, YES, RunKind
from ktrdr_pipelines.domain.timeframes import Timeframe

_NO_RETRY: Final = {"dagster/max_retries": "0"}
_NAMED_AT_MOST: Final = 20
_JOBS: Final = {RunKind.LOST: "lost_windows", RunKind.REPORT: "grown_windows"}


def mark_lost(
    instance: dg.DagsterInstance, timeframe: Timeframe, lost: Mapping[BarPartition, str]
) -> str:
    """Record a failed run over windows that are no longer complete; return its id.

    Args:
        instance: the Dagster instance with the history.
        timeframe: that of the windows.
        lost: what each of them lacks.
    """
    run = _added(instance, timeframe, RunKind.LOST, _NO_RETRY)
    key = dg.AssetKey(["bars", timeframe.value])
    for partition in lost:
        data = AssetMaterializationPlannedData(key, partition=str(partition.key))
        event = DagsterEvent.build_asset_materialization_planned_event(run.job_name, "lost", data)
        instance.report_dagster_event(event, run.run_id)
    lines = [f"{one.symbol} {one.window}: {why}" for one, why in lost.items()]
    more = len(lines) - _NAMED_AT_MOST
    what = "1 window is" if len(lines) == 1 else f"{len(lines)} windows are"
    instance.report_run_failed(
        run,
        f"{what} no longer complete:\n"
        + "\n".join(lines[:_NAMED_AT_MOST])
        + (f"\nand {more} more" if more > 0 else "")
        + "\nNothing was run. Hint: Launch the failed windows of the asset, or wait for the gap "
        "sensor.",
    )
    return run.run_id


def needed_marks(
    instance: dg.DagsterInstance, timeframe: Timeframe
) -> dict[str, list[BarPartition]]:
    """Return the windows that failed runs show as failed, by run.

    Those of symbols that have no partition any more are left out.
    """
    symbols = set(held_symbols(instance, timeframe))
    storage = instance.event_log_storage
    attempts = storage.get_latest_asset_partition_materialization_attempts_without_materializations(
        dg.AssetKey(["bars", timeframe.value])
    )
    needed: dict[str, list[BarPartition]] = {}
    for key, (run_id, _) in attempts.items():
        partition = BarPartition.of(key)
        if partition.symbol in symbols:
            needed.setdefault(run_id, []).append(partition)
    return needed


def report_grown(
    instance: dg.DagsterInstance,
    timeframe: Timeframe,
    events: Iterable[dg.AssetMaterialization],
) -> str:
    """Record a quiet run with the materializations of windows that have grown; return its id."""
    run = _added(instance, timeframe, RunKind.REPORT, {QUIET: YES})
    for one in events:
        data = StepMaterializationData(one)
        instance.report_dagster_event(
            DagsterEvent(
                event_type_value=dg.DagsterEventType.ASSET_MATERIALIZATION.value,
                job_name=run.job_name,
                event_specific_data=data,
            ),
            run.run_id,
        )
    return run.run_id


def _added(
    instance: dg.DagsterInstance, timeframe: Timeframe, kind: RunKind, tags: Mapping[str, str]
) -> dg.DagsterRun:
    is_lost = kind is RunKind.LOST
    run = dg.DagsterRun(
        job_name=_JOBS[kind],
        run_id=make_new_run_id(),
        status=dg.DagsterRunStatus.FAILURE if is_lost else dg.DagsterRunStatus.SUCCESS,
        tags={KIND: kind.value, TIMEFRAME: timeframe.value, **tags},
        asset_selection=frozenset([dg.AssetKey(["bars", timeframe.value])]),
    )
    return instance.add_run(run)
