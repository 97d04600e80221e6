"""Pruning run history: runs and their files are deleted, windows stay materialized."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ktrdr_pipelines.defs.runs.tags import QUIET, YES
from ktrdr_pipelines.defs.sensors.run_history_sensor import (
    FAILED_KEPT,
    KEPT,
    QUIET_KEPT,
    prune_history,
)

WINDOWS = dg.StaticPartitionsDefinition(["2022", "2023", "2024"])
KEY = dg.AssetKey("bars")
SOON = timedelta(minutes=1)


@dg.asset(name="bars", partitions_def=WINDOWS)
def bars(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Materialize a window, or fail if the run is tagged so."""
    if "fail" in context.run.tags:
        raise dg.Failure("injected")
    return dg.MaterializeResult(metadata={"rows": 7})


@dg.asset_check(asset="bars", name="sane")
def sane() -> dg.AssetCheckResult:
    """Pass."""
    return dg.AssetCheckResult(passed=True)


@dg.op
def quiet_op() -> None:
    """Materialize nothing."""


@dg.job
def quiet_job() -> None:
    """Materialize nothing."""
    quiet_op()


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """Return an instance with its files in a folder, as in production."""
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


def run(instance: dg.DagsterInstance, window: str, **tags: str) -> str:
    """Materialize a window; return the id of the run."""
    done = dg.materialize(
        [bars], instance=instance, partition_key=window, tags=tags, raise_on_error=False
    )
    return done.run_id


def windows(instance: dg.DagsterInstance) -> set[str]:
    """Return the windows that are materialized in Dagster."""
    return set(instance.get_materialized_partitions(KEY))


def runs(instance: dg.DagsterInstance) -> set[str]:
    """Return the ids of all runs."""
    return {one.run_id for one in instance.get_runs()}


def prune(instance: dg.DagsterInstance, age: timedelta, **most: int) -> Any:
    """Prune as if all runs had an age."""
    now = datetime.now(tz=UTC) + age + SOON
    return prune_history(instance, now, most_runs=100, most_windows=100, **most)


def test_old_runs_are_deleted_and_their_windows_stay_materialized(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    """Old runs are deleted with their files; their windows keep their metadata."""
    ids = {run(instance, window) for window in ("2022", "2023")}
    before = windows(instance)
    shards = [path for run_id in ids for path in tmp_path.rglob(f"{run_id}*")]
    assert len(shards) >= 4
    done = prune(instance, KEPT)
    assert (done.runs, done.windows) == (2, 2)
    assert runs(instance) == set()
    assert not any(path.exists() for path in shards)
    assert done.freed_bytes > 200_000
    assert windows(instance) == before == {"2022", "2023"}
    [record] = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=KEY, asset_partitions=["2023"]), limit=5
    ).records
    assert record.asset_materialization is not None
    metadata = record.asset_materialization.metadata
    assert metadata["rows"].value == 7
    assert "told_at" in metadata
    assert prune(instance, KEPT).runs == 0


def test_young_runs_are_kept(instance: dg.DagsterInstance) -> None:
    """A run that materialized a window is kept for two weeks, a failed one for one."""
    kept = run(instance, "2022")
    failed = run(instance, "2023", fail=YES)
    assert prune(instance, FAILED_KEPT - 2 * SOON).runs == 0
    assert prune(instance, FAILED_KEPT).runs == 1
    assert runs(instance) == {kept}
    assert failed not in runs(instance)
    assert windows(instance) == {"2022"}


def test_run_whose_windows_have_newer_events_is_deleted_without_new_ones(
    instance: dg.DagsterInstance,
) -> None:
    """Only the newest run needs its window reported again."""
    run(instance, "2022")
    run(instance, "2022")
    done = prune(instance, KEPT)
    assert (done.runs, done.windows) == (2, 1)
    assert windows(instance) == {"2022"}


def test_quiet_runs_are_deleted_after_hours(instance: dg.DagsterInstance) -> None:
    """Other runs of that age are kept."""
    other = run(instance, "2022")
    done = quiet_job.execute_in_process(instance=instance, tags={QUIET: YES})
    assert prune(instance, QUIET_KEPT - 2 * SOON).runs == 0
    assert prune(instance, QUIET_KEPT).runs == 1
    assert runs(instance) == {other}
    assert done.run_id not in runs(instance)


def test_quiet_run_that_materialized_a_window_is_kept(instance: dg.DagsterInstance) -> None:
    """The events of a run count, not its tag alone."""
    kept = run(instance, "2022", **{QUIET: YES})
    assert prune(instance, QUIET_KEPT).runs == 0
    assert runs(instance) == {kept}


def test_newest_result_of_a_check_is_kept(instance: dg.DagsterInstance) -> None:
    """A run with the newest result of a check is kept until there is a newer result."""

    def check() -> str:
        return dg.materialize([bars, sane], instance=instance, partition_key="2022").run_id

    first = check()
    assert prune(instance, KEPT).runs == 0
    second = check()
    assert prune(instance, KEPT).runs == 1
    assert runs(instance) == {second}
    assert first not in runs(instance)


def test_running_runs_are_never_deleted(instance: dg.DagsterInstance) -> None:
    """A run that has not ended is kept, however old it is."""
    instance.create_run_for_job(quiet_job, tags={QUIET: YES})
    assert prune(instance, KEPT).runs == 0
    assert len(runs(instance)) == 1


def test_a_tick_is_bounded(instance: dg.DagsterInstance) -> None:
    """A tick deletes at most so many runs, the oldest first."""
    ids = [run(instance, "2022") for _ in range(3)]
    now = datetime.now(tz=UTC) + KEPT + SOON
    done = prune_history(instance, now, most_runs=2, most_windows=100)
    assert done.runs == 2
    assert runs(instance) == {ids[-1]}


def test_runs_that_are_kept_do_not_hold_up_others(instance: dg.DagsterInstance) -> None:
    """Quiet runs with the newest event of a window, and older ones than those to delete."""
    kept = {run(instance, window, **{QUIET: YES}) for window in ("2022", "2023", "2024")}
    quiet_job.execute_in_process(instance=instance, tags={QUIET: YES})
    now = datetime.now(tz=UTC) + QUIET_KEPT + SOON
    assert (
        prune_history(instance, now, most_runs=1, most_windows=100, is_late=lambda: True).runs == 0
    )
    assert prune_history(instance, now, most_runs=1, most_windows=100).runs == 1
    assert runs(instance) == kept
