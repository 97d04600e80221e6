"""How `ktrdr up --simulate` keeps many symbols fresh while it loads their history.

A program, not a test: ``python -m tests.benchmarks.soak --minutes 30``. It makes a store of its own
in a temporary folder, starts the command as a user would, watches it for the given time and ends
it. It prints how long after a bar's close the bar could be queried in DuckDB, how the runs ended,
and how Dagster's home grew. Markets must be open: outside their hours no bar is due.
"""

# ruff: noqa: T201  (it prints)

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from ktrdr_pipelines.domain.instruments import Origin
from ktrdr_pipelines.store.layout import create_store
from tests.benchmarks.freshness import PAIRS, STOCKS, Watch, universe_text
from tests.benchmarks.running_up import POLL_S, Up, running_up

RUNS = """
query ($filter: RunsFilter!) {
  runsOrError(filter: $filter, limit: 5000) {
    ... on Runs { results { runId status jobName tags { key value } } }
  }
}
"""


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def runs_of(up: Up) -> list[dict[str, Any]]:
    """Return all runs that Dagster knows."""
    found: list[dict[str, Any]] = up.query(RUNS, filter={})["runsOrError"]["results"]
    return found


def print_report(
    watch: Watch, runs: list[dict[str, Any]], home: list[tuple[float, int]], minutes: float
) -> None:
    """Print what was observed."""
    print(f"runs by status: {dict(Counter(run['status'] for run in runs))}")
    for run in runs:
        if run["status"] not in {"SUCCESS", "STARTED", "QUEUED", "STARTING"}:
            print(f"  {run['runId']} {run['status']} {run['tags']}")
    if watch.delays_s:
        p50, p95, worst = np.percentile(watch.delays_s, [50, 95, 100])
        count = len(watch.delays_s)
        print(f"{count} bars: close to queryable p50 {p50:.1f} s, p95 {p95:.1f} s, {worst:.1f} s")
    began, grown = home[0][1], home[-1][1]
    per_hour = (grown - began) / minutes * 60 / 1e6
    print(f"Dagster's home {began / 1e6:.1f} MB, then {grown / 1e6:.1f} MB: {per_hour:.1f} MB/h")
    for at_s, size in home[:: max(1, len(home) // 10)]:
        print(f"  after {at_s / 60:5.1f} min {size / 1e6:8.1f} MB")
    with duckdb.connect(str(watch.layout.catalog), read_only=True) as catalog:
        print(catalog.sql("SELECT timeframe, count(*) AS bars FROM bars GROUP BY 1"))
        print(catalog.sql("SELECT outcome, count(*) AS requests FROM requests GROUP BY 1"))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--symbols", type=int, default=50)
    parser.add_argument("--start", default="2025-01-01", help="first session date wanted")
    parser.add_argument("--port", type=int, default=3055)
    parser.add_argument("--folder", type=Path, help="where to work [default: a temporary folder]")
    given = parser.parse_args()
    symbols = [*PAIRS.split(), *STOCKS.split()][: given.symbols]
    folder = given.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    layout = create_store(folder / "data" / "simulated", Origin.SIMULATED)
    layout.universe.write_text(universe_text(symbols, given.start), encoding="utf-8")
    print(f"{len(symbols)} symbols in {layout.root}")
    watch = Watch(layout, symbols)
    home: list[tuple[float, int]] = []
    environment = {"KTRDR_DATA": str(folder / "data"), "KTRDR_STATE": str(folder / "state")}
    with running_up(folder, environment, given.port, "--simulate") as up:
        up.wait_until_painted()
        began = time.monotonic()
        while (passed := time.monotonic() - began) < given.minutes * 60:
            watch.look()
            if not home or passed - home[-1][0] > 30:
                home.append((passed, size_of(layout.root / "dagster")))
            time.sleep(POLL_S)
        print_report(watch, runs_of(up), home, given.minutes)
    print(f"the command ended with exit code {up.process.returncode}")


if __name__ == "__main__":
    main()
