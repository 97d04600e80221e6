"""Loads through the public load manager, in processes whose processor time is known.

Each call has a new store and a new record of what was sent, so that nothing is known of the
gateway. Later loads of one process find what its earlier ones learned: the first may warm up.
"""

# ruff: noqa: T201  (its output is its interface)

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.instruments import Origin
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.ib.pacing.rules import pacing_of
from ktrdr_pipelines.ib.source import open_source
from ktrdr_pipelines.limits import IbLimitsRegistry, Limit
from ktrdr_pipelines.store.layout import create_store
from ktrdr_pipelines.sync.loader import job_of, series_named
from ktrdr_pipelines.sync.runner import LoadManager
from tests.support.time_limits import killed_after

_UNIVERSE = "defaults: {{timeframes: [1m, 1d], start: {start}}}\nsymbols:\n{entries}"


@dataclass(frozen=True, slots=True)
class Load:
    """Minutes of symbols between two session dates, the last one excluded."""

    symbols: Sequence[str]
    start: str
    end: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load took: seconds, and seconds of all processors; and what it requested."""

    wall_s: float
    cpu_s: float
    requests: int
    bars: int


@dataclass(frozen=True, slots=True)
class Manner:
    """How loads are run.

    ``days`` is how many days one request reaches over, None for what the product plans and learns.
    ``hard_rules_by`` puts every request under the rules for small bars, their windows multiplied by
    this factor. ``settings`` are more settings of the product, as environment variables. Loads that
    last longer than ``longest_s`` are killed.
    """

    days: int | None = None
    hard_rules_by: float | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    longest_s: float = 1_800.0


def stocks(number: int, *, first: int = 0) -> list[str]:
    """Return names of stocks."""
    return [f"S{one:03}" for one in range(first, first + number)]


def load_of(symbols: Sequence[str], start: str, sessions: int) -> Load:
    """Return the load of a number of sessions from a date on."""
    first = date.fromisoformat(start)
    calendar = calendar_named("XNYS.RTH")
    days = [one.day for one in calendar.sessions(first, first + timedelta(days=2 * sessions + 14))]
    return Load(symbols, start, days[sessions].isoformat())


def run_loads(port: int, loads: Sequence[Load], manner: Manner = Manner()) -> list[Loaded]:
    """Run loads one after the other in a new process, and return what each took.

    Raises:
        RuntimeError: a load failed, or is not complete.
        TimeoutError: loads did not end in time.
    """
    return run_together(port, [loads], manner)[0]


def run_together(
    port: int,
    processes: Sequence[Sequence[Load]],
    manner: Manner = Manner(),
) -> list[list[Loaded]]:
    """Run loads in several new processes at once, which share a store and the gateway on a port.

    Raises:
        RuntimeError: a load failed, or is not complete.
        TimeoutError: loads did not end in time.
    """
    with _new_store([load for loads in processes for load in loads]) as environment:
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.benchmarks.loads", _request(loads, manner)],
                env={**os.environ, **environment, "IB_PORT": str(port), **manner.settings},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for loads in processes
        ]
        with (
            killed_after(manner.longest_s, started, "a load"),
            ThreadPoolExecutor(len(started)) as threads,
        ):
            for _ in [process.stdout.readline() for process in started if process.stdout]:
                pass  # each has imported everything, so that they begin together
            outputs = list(threads.map(lambda process: process.communicate("go\n")[0], started))
        if failed := [one.returncode for one in started if one.returncode]:
            raise RuntimeError(f"loads ended with exit codes {failed}")
    return [[Loaded(**one) for one in json.loads(output)] for output in outputs]


@contextmanager
def _new_store(loads: Sequence[Load]) -> Iterator[dict[str, str]]:
    """Make a store for loads, and yield the settings that name it."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        layout = create_store(Path(folder) / "data", Origin.SIMULATED)
        names = sorted({symbol for load in loads for symbol in load.symbols})
        entries = "".join(f"  {symbol}: {{}}\n" for symbol in names)
        start = min(load.start for load in loads)
        layout.universe.write_text(_UNIVERSE.format(start=start, entries=entries), "utf-8")
        state = str(Path(folder) / "state")
        yield {"KTRDR_DATA": str(layout.root), "KTRDR_STATE": state, "IB_HOST": "127.0.0.1"}


def _request(loads: Sequence[Load], manner: Manner) -> str:
    return json.dumps(
        {
            "loads": [asdict(load) for load in loads],
            "days": manner.days,
            "hard_rules_by": manner.hard_rules_by,
        }
    )


def _run(workspace: Workspace, manager: LoadManager, load: Load) -> Loaded:
    """Run one load and check that nothing is missing."""
    now = system_now()
    all_series = [
        series_named(workspace.universe, symbol, Timeframe.M1.value) for symbol in load.symbols
    ]
    jobs = [job_of(series, load.start, load.end, now=now) for series in all_series]
    begun_s, cpu_s = time.perf_counter(), time.process_time()
    reports = asyncio.run(manager.run(jobs))
    wall_s, cpu_s = time.perf_counter() - begun_s, time.process_time() - cpu_s
    for report in reports:
        if report.error is not None:
            raise report.error
        if report.unexplained | report.deferred | report.waiting:
            raise RuntimeError(f"{report.series} is not complete: {report}")
    requests, bars = (sum(getattr(one, name) for one in reports) for name in ("requests", "rows"))
    return Loaded(wall_s, cpu_s, requests, bars)


def _run_all(request: Mapping[str, Any]) -> list[Loaded]:
    """Run the loads of a request in this process."""
    workspace = Workspace.open()
    manager = workspace.load_manager(operation="batch")
    if (factor := request["hard_rules_by"]) is not None:
        config = workspace.gateway_config
        limiter = RateLimiter(config.folder, pacing=pacing_of(conservative=True).scaled(factor))
        manager = replace(
            manager, open_source=lambda: open_source(config, "batch", rate_limiter=limiter)
        )
    if request["days"] is not None:
        manager = replace(manager, widths=None)
    planned = IbLimitsRegistry.SAFE_DAYS
    minutes = request["days"] or planned.value[Timeframe.M1.value]
    days = MappingProxyType({**planned.value, Timeframe.M1.value: minutes})
    wider = Limit(days, planned.unit, planned.source, planned.grade)
    with patch.object(IbLimitsRegistry, "SAFE_DAYS", wider):
        return [_run(workspace, manager, Load(**one)) for one in request["loads"]]


if __name__ == "__main__":
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps([asdict(one) for one in _run_all(json.loads(sys.argv[1]))]))
