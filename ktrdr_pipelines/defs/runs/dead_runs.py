"""Marking runs whose process has disappeared as failed, which frees their concurrency slots.

A run that was killed together with its code server keeps the status ``STARTED`` forever, and one
that was killed while starting keeps ``STARTING`` until ``start_timeout_seconds``, because Dagster's
run monitoring cannot check the processes of the default launcher. Both count against the limits of
concurrent runs.

The evidence is the process id that Dagster logs when a run's process begins, and the start time of
the process that has this id now: a later start means that the id was reused.

Not here: runs that are queued or not yet queued. The Dagster daemon continues with those.
"""

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import dagster as dg

from ktrdr_pipelines.defs.runs.tags import CAUSE, KILLED

_ACTIVE: Final = [
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_CLOCK_SLACK_S: Final = 5.0
"""How far the computed start of a process may lie after the time of its log entry."""

_LOGS_PROCESS_WITHIN_S: Final = 60.0
"""A run that executes in the process that created it logs that process within this time."""

UNKNOWN_START: Final = 0.0

ProcessStart = Callable[[int], float | None]


@dataclass(frozen=True, slots=True)
class DeadRun:
    """A run that was marked as ended, and why."""

    run_id: str
    reason: str

    def __str__(self) -> str:
        return f"run {self.run_id}: {self.reason}"


def process_start(pid: int) -> float | None:
    """Return the Unix time at which a process started, or None if no such process is alive.

    ``UNKNOWN_START`` if the system does not disclose it. A zombie process is not alive.
    """
    if Path("/proc/self/stat").exists():
        return _start_in_proc(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return UNKNOWN_START
    return _start_by_ps(pid)


def end_dead_runs(
    instance: dg.DagsterInstance,
    *,
    launched_before: float,
    start_of: ProcessStart = process_start,
) -> list[DeadRun]:
    """End the runs whose process has disappeared, and free the concurrency slots of ended runs.

    Starting and started runs are reported as failed, so that Dagster's retries apply to them;
    canceling runs are reported as canceled.

    Args:
        instance: the Dagster instance that records the runs.
        launched_before: Unix time. A run that was launched earlier and logged no process has lost
            the code server that should have started one; a later run may still get a process.
        start_of: returns the Unix start time of the live process with an id, or None.

    Returns:
        The runs that were ended.
    """
    ended = []
    for record in instance.get_run_records(dg.RunsFilter(statuses=_ACTIVE)):
        run = record.dagster_run
        reason = _why_dead(instance, record, launched_before, start_of)
        current = instance.get_run_by_id(run.run_id)
        if reason is None or current is None or current.is_finished:
            continue
        instance.add_run_tags(run.run_id, {CAUSE: KILLED})
        if run.status is dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, f"Canceled: {reason}.")
        else:
            instance.report_run_failed(run, f"Failed: {reason}.")
        ended.append(DeadRun(run.run_id, reason))
    _free_concurrency(instance)
    return ended


def _why_dead(
    instance: dg.DagsterInstance,
    record: dg.RunRecord,
    launched_before: float,
    start_of: ProcessStart,
) -> str | None:
    """Return why a run is dead, or None if its process is alive or may still start."""
    run = record.dagster_run
    logged = _logged_processes(instance, run.run_id)
    if logged:
        starts = ((start_of(pid), logged_at) for pid, logged_at in logged)
        if any(start is not None and start <= at + _CLOCK_SLACK_S for start, at in starts):
            return None
        pids = ", ".join(str(pid) for pid in dict(logged))
        return f"its process {pids} no longer exists (killed, or the machine was restarted)"
    if run.status is dg.DagsterRunStatus.STARTED:
        launched_before = min(launched_before, time.time() - _LOGS_PROCESS_WITHIN_S)
    launched_at = instance.get_run_stats(run.run_id).launch_time or record.start_time
    if (launched_at or record.create_timestamp.timestamp()) >= launched_before:
        return None
    return "Dagster was killed before it started a process for the run"


def _logged_processes(instance: dg.DagsterInstance, run_id: str) -> list[tuple[int, float]]:
    """Return the process ids that a run logged, with the Unix times of the log entries."""
    found = []
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        event = entry.dagster_event
        pid = event.engine_event_data.metadata.get("pid") if event else None
        if pid is not None and str(pid.value).isdecimal():
            found.append((int(str(pid.value)), entry.timestamp))
    return found


def _free_concurrency(instance: dg.DagsterInstance) -> None:
    """Free the pool slots of ended or deleted runs without waiting for the daemon."""
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return
    for run_id in storage.get_concurrency_run_ids():
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            storage.free_concurrency_slots_for_run(run_id)


def _start_in_proc(pid: int) -> float | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    except (FileNotFoundError, ProcessLookupError):
        return None
    except PermissionError:
        return UNKNOWN_START
    if fields[0] in {"Z", "X"}:
        return None
    # Field 22 of proc(5), counted from the third: clock ticks since the machine started.
    return time.time() - uptime_s + int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _start_by_ps(pid: int) -> float | None:
    """Compute the start from the age that ``ps`` prints as ``[[days-]hours:]minutes:seconds``."""
    printed = subprocess.run(  # noqa: S603  (a fixed command)
        ["/bin/ps", "-o", "stat=,etime=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    if len(printed) != 2 or printed[0].startswith("Z"):
        return None
    days, _, clock = printed[1].rpartition("-")
    age_s = int(days or 0) * 86_400
    for power, part in enumerate(reversed(clock.split(":"))):
        age_s += int(part) * 60**power
    return time.time() - age_s
