"""Runs whose process has disappeared: which are ended, and which slots are freed."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import DagsterEvent, EngineEventData
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.test_utils import create_run_for_test
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from ktrdr_pipelines.defs.runs.dead_runs import UNKNOWN_START, end_dead_runs, process_start
from ktrdr_pipelines.defs.runs.tags import CAUSE, KILLED

Status = dg.DagsterRunStatus
GONE, ALIVE, REUSED, HIDDEN = 11, 12, 13, 14
"""Process ids: of no process, of the run's own, of one that started later, of unknown start."""

SETTINGS = "concurrency: {pools: {default_limit: 2}}\ntelemetry: {enabled: false}\n"


def start_of(pid: int) -> float | None:
    """Return when a process of the table above started."""
    now = time.time()
    return {ALIVE: now - 3600, REUSED: now + 60, HIDDEN: UNKNOWN_START}.get(pid)


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """Open a Dagster home in a temporary folder."""
    (tmp_path / "dagster.yaml").write_text(SETTINGS)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance


def run_in(instance: dg.DagsterInstance, status: Status, pid: int | None = None) -> str:
    """Record a run with a status, and the process that it logged; return its id."""
    location = ManagedGrpcPythonEnvCodeLocationOrigin(
        LoadableTargetOrigin(module_name="ktrdr_pipelines.definitions")
    )
    job = RemoteRepositoryOrigin(location, "__repository__").get_job_origin("bars")
    run = create_run_for_test(instance, "bars", status=Status.NOT_STARTED, remote_job_origin=job)
    steps = {
        Status.NOT_STARTED: (),
        Status.QUEUED: ("PIPELINE_ENQUEUED",),
        Status.STARTING: ("PIPELINE_STARTING",),
        Status.STARTED: ("PIPELINE_STARTING", "PIPELINE_START"),
        Status.CANCELING: ("PIPELINE_STARTING", "PIPELINE_START", "PIPELINE_CANCELING"),
        Status.SUCCESS: ("PIPELINE_STARTING", "PIPELINE_START", "PIPELINE_SUCCESS"),
        Status.FAILURE: ("PIPELINE_STARTING", "PIPELINE_START", "PIPELINE_FAILURE"),
        Status.CANCELED: ("PIPELINE_STARTING", "PIPELINE_START", "PIPELINE_CANCELED"),
    }[status]
    for name in steps:
        instance.report_dagster_event(DagsterEvent(name, "bars"), run_id=run.run_id)
    if pid is not None:
        event = EngineEventData.in_process(pid)
        instance.report_engine_event("Started process for run.", run, event)
    return run.run_id


def status_of(instance: dg.DagsterInstance, run_id: str) -> Status:
    """Return the recorded status of a run."""
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


RUNS = [
    (Status.STARTING, GONE, Status.FAILURE),
    (Status.STARTED, GONE, Status.FAILURE),
    (Status.CANCELING, GONE, Status.CANCELED),
    (Status.STARTED, REUSED, Status.FAILURE),
    (Status.STARTING, None, Status.FAILURE),
    (Status.CANCELING, None, Status.CANCELED),
    (Status.STARTING, ALIVE, Status.STARTING),
    (Status.STARTED, ALIVE, Status.STARTED),
    (Status.CANCELING, ALIVE, Status.CANCELING),
    (Status.STARTED, HIDDEN, Status.STARTED),
    (Status.QUEUED, None, Status.QUEUED),
    (Status.NOT_STARTED, None, Status.NOT_STARTED),
    (Status.SUCCESS, GONE, Status.SUCCESS),
    (Status.FAILURE, GONE, Status.FAILURE),
    (Status.CANCELED, GONE, Status.CANCELED),
]
"""Status and logged process of a run, and its status afterwards."""


def test_active_runs_without_a_process_are_ended(instance: dg.DagsterInstance) -> None:
    """Runs with a live process, queued runs and ended runs are unchanged."""
    ids = [run_in(instance, status, pid) for status, pid, _ in RUNS]
    ended = end_dead_runs(instance, launched_before=time.time() + 1, start_of=start_of)
    found = [(status, pid, status_of(instance, ids[n])) for n, (status, pid, _) in enumerate(RUNS)]
    assert found == RUNS
    dead = {ids[n] for n, (before, _, after) in enumerate(RUNS) if before is not after}
    assert {one.run_id for one in ended} == dead
    assert len(ended) == len(dead)
    assert end_dead_runs(instance, launched_before=time.time() + 1, start_of=start_of) == []


def test_an_ended_run_records_why(instance: dg.DagsterInstance) -> None:
    """The failure names the process, and the tag gives a killed process as the cause."""
    run_id = run_in(instance, Status.STARTED, GONE)
    end_dead_runs(instance, launched_before=time.time(), start_of=start_of)
    (failure,) = instance.all_logs(run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
    assert f"process {GONE} no longer exists" in failure.message
    run = instance.get_run_by_id(run_id)
    assert run is not None
    assert run.tags[CAUSE] == KILLED


def test_a_run_that_is_starting_may_still_get_a_process(instance: dg.DagsterInstance) -> None:
    """Without a logged process, only runs that an earlier Dagster launched are ended."""
    begun_at = time.time()
    run_id = run_in(instance, Status.STARTING)
    assert end_dead_runs(instance, launched_before=begun_at, start_of=start_of) == []
    assert status_of(instance, run_id) is Status.STARTING


def test_a_run_without_a_launcher_has_time_to_log_its_process(
    instance: dg.DagsterInstance,
) -> None:
    """Runs of `ktrdr demo` and `dagster asset materialize` are such."""
    run_id = run_in(instance, Status.STARTED)
    assert end_dead_runs(instance, launched_before=time.time() + 1, start_of=start_of) == []
    assert status_of(instance, run_id) is Status.STARTED


def test_slots_of_ended_and_deleted_runs_are_freed(instance: dg.DagsterInstance) -> None:
    """Slots of live runs stay taken."""
    storage = instance.event_log_storage
    storage.set_concurrency_slots("ib", 5)
    killed = run_in(instance, Status.STARTED, GONE)
    living = run_in(instance, Status.STARTED, ALIVE)
    failed = run_in(instance, Status.FAILURE)
    for run_id in (killed, living, failed, "a-deleted-run"):
        storage.claim_concurrency_slot("ib", run_id, "step")
    end_dead_runs(instance, launched_before=time.time(), start_of=start_of)
    assert set(storage.get_concurrency_run_ids()) == {living}
    assert storage.get_concurrency_info("ib").active_slot_count == 1


def test_the_start_of_a_process_is_known_while_it_lives() -> None:
    """A process that has ended has none, reaped or not."""
    own = process_start(os.getpid())
    assert own is not None
    assert own < time.time()
    began_at = time.time()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        start = process_start(child.pid)
        assert start is not None
        assert abs(start - began_at) < 5
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert process_start(child.pid) is None
    assert process_start(child.pid) is None
