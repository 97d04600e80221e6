"""Runs whose process is gone: ended in Dagster's records, so that others get their places.

A run that was killed together with its code server stays ``STARTED`` for ever, and one that was
killed while it started stays so until ``start_timeout_seconds``: Dagster's run monitoring cannot
look at the processes of the default launcher. Both count against the limits of concurrent runs.

The evidence is the process id that Dagster logs when a run's process begins, and the time at which
a process of that id started: a later one is another process with a reused id.

Not here: queued runs and runs that were created and not yet queued. The daemon goes on with those.
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
"""How far the start of a process, counted back from now, may lie after what it logged."""

_LOGS_PROCESS_WITHIN_S: Final = 60.0
"""A run that executes in the process that made it logs that process within this time."""

UNKNOWN_START: Final = 0.0

ProcessStart = Callable[[int], float | None]


@dataclass(frozen=True, slots=True)
class DeadRun:
    """A run that was ended, and why."""

    run_id: str
    reason: str

    def __str__(self) -> str:
        return f"run {self.run_id}: {self.reason}"


def process_start(pid: int) -> float | None:
    """Return the Unix time at which a process started, or None where none of this id lives.

    ``UNKNOWN_START`` where the system does not tell. A process that has ended and waits for its
    parent does not live.
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
    """End the runs whose process is gone, and free the concurrency slots of ended runs.

    Starting and started runs are reported as failed, so that Dagster's own retries apply to them;
    canceling ones as canceled.

    Args:
        instance: where the runs are recorded.
        launched_before: Unix time. A run that logged no process and was launched earlier has lost
            the code server that was to start one; a later one may still get it.
        start_of: gives the Unix time at which the living process of an id started, or None.

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
    """Return why a run is dead, or None where its process lives or may still come."""
    run = record.dagster_run
    logged = _logged_processes(instance, run.run_id)
    if logged:
        starts = ((start_of(pid), logged_at) for pid, logged_at in logged)
        if any(start is not None and start <= at + _CLOCK_SLACK_S for start, at in starts):
            return None
        pids = ", ".join(str(pid) for pid in dict(logged))
        return f"its process {pids} is gone, killed or lost with the machine"
    if run.status is dg.DagsterRunStatus.STARTED:
        launched_before = min(launched_before, time.time() - _LOGS_PROCESS_WITHIN_S)
    launched_at = instance.get_run_stats(run.run_id).launch_time or record.start_time
    if (launched_at or record.create_timestamp.timestamp()) >= launched_before:
        return None
    return "no process began for it before Dagster was killed"


def _logged_processes(instance: dg.DagsterInstance, run_id: str) -> list[tuple[int, float]]:
    """Return the process ids that a run's processes logged, with when they did."""
    found = []
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        event = entry.dagster_event
        pid = event.engine_event_data.metadata.get("pid") if event else None
        if pid is not None and str(pid.value).isdecimal():
            found.append((int(str(pid.value)), entry.timestamp))
    return found


def _free_concurrency(instance: dg.DagsterInstance) -> None:
    """Free the slots that ended or deleted runs hold in pools, without waiting for the daemon."""
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
    """Count back from the age that ``ps`` gives as ``[[days-]hours:]minutes:seconds``."""
    told = subprocess.run(  # noqa: S603  (a fixed command)
        ["/bin/ps", "-o", "stat=,etime=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    if len(told) != 2 or told[0].startswith("Z"):
        return None
    days, _, clock = told[1].rpartition("-")
    age_s = int(days or 0) * 86_400
    for power, part in enumerate(reversed(clock.split(":"))):
        age_s += int(part) * 60**power
    return time.time() - age_s
