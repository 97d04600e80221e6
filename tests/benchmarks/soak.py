"""How `ktrdr up --simulate` keeps many symbols fresh while it loads their history.

A program, not a test: ``python tests/benchmarks/soak.py --minutes 30``. It makes a store of its own
in a temporary folder, starts the command as a user would, watches it for the given time and ends
it. It prints how long after a bar's close the bar could be queried in DuckDB, how the runs ended,
and how Dagster's home grew. Markets must be open: outside their hours no bar is due.
"""

# ruff: noqa: T201, S608  (it prints; its SQL holds symbols of this module only)

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from ktrdr_pipelines.domain.instruments import Origin
from ktrdr_pipelines.store.layout import StoreLayout, create_store

STOCKS = """
AAPL MSFT AMZN GOOGL GOOG META NVDA TSLA NFLX INTC AMD CSCO ADBE PYPL QQQ JPM BAC V MA JNJ PG KO
XOM WMT DIS IBM GE BA CAT HD UNH F T ON SPY IWM DIA GLD
"""
PAIRS = """
EURUSD GBPUSD USDJPY USDCHF AUDUSD USDCAD NZDUSD EURGBP EURJPY EURCHF GBPJPY AUDJPY
"""
READY_S = 180.0
POLL_S = 0.5
RUNS = """
query ($filter: RunsFilter!) {
  runsOrError(filter: $filter, limit: 5000) {
    ... on Runs { results { runId status jobName tags { key value } } }
  }
}
"""


@dataclass
class Watch:
    """Observations: delays in seconds by symbol, and the size of Dagster's home over time."""

    delays_s: list[float] = field(default_factory=list)
    newest: dict[str, datetime] = field(default_factory=dict)
    modified_ns: dict[Path, int] = field(default_factory=dict)
    home: list[tuple[float, int]] = field(default_factory=list)


def universe_text(symbols: list[str], start: str) -> str:
    """Return a universe of symbols that want 1m, 1h and 1d from a date on."""
    entries = "\n".join(f"  {symbol!r}: {{}}" for symbol in symbols)
    return f"defaults: {{timeframes: [1m, 1h, 1d], start: {start}}}\nsymbols:\n{entries}\n"


@contextmanager
def running_up(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command over a data folder, and end it as Ctrl-C does."""
    command = [sys.executable, "-m", "ktrdr_pipelines.cli.main", "up", "--simulate"]
    env = {**os.environ, "KTRDR_DATA": str(folder / "data"), "KTRDR_STATE": str(folder / "state")}
    # A shell may start this program with SIGINT ignored; the command would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with (folder / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            print(f"the command ended with exit code {process.wait(timeout=120)}")


def query_ui(port: int, query: str, **variables: Any) -> dict[str, Any]:
    """Send a GraphQL request as the UI does."""
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        found: dict[str, Any] = json.load(answer)["data"]
    return found


def wait_until_ready(port: int) -> None:
    """Return once the UI responds."""
    ends_at = time.monotonic() + READY_S
    while True:
        try:
            query_ui(port, "{ version }")
        except OSError:
            if time.monotonic() > ends_at:
                raise
            time.sleep(POLL_S)
        else:
            return


def measure(layout: StoreLayout, watch: Watch, symbols: list[str]) -> None:
    """Query each series whose newest file changed, and record the delay of each new minute."""
    for symbol in symbols:
        files = sorted((layout.bars / f"symbol={symbol}" / "timeframe=1m").glob("*.parquet"))
        if not files or watch.modified_ns.get(files[-1]) == files[-1].stat().st_mtime_ns:
            continue
        modified_ns = files[-1].stat().st_mtime_ns
        newest = newest_of(layout, symbol)
        if newest is None:
            continue
        watch.modified_ns[files[-1]] = modified_ns
        seen_at, before = datetime.now(tz=UTC), watch.newest.get(symbol)
        if before is not None and newest > before:
            _record(watch, before, newest, seen_at)
        watch.newest[symbol] = newest


def _record(watch: Watch, before: datetime, newest: datetime, seen_at: datetime) -> None:
    """Record the delay of each new minute; after a night only the newest ones count."""
    minute = timedelta(minutes=1)
    first = max(before, newest - 10 * minute) + minute
    while first <= newest:
        watch.delays_s.append((seen_at - first - minute).total_seconds())
        first += minute


def newest_of(layout: StoreLayout, symbol: str) -> datetime | None:
    """Return the start of the newest minute of a symbol in the catalog."""
    try:
        with duckdb.connect(str(layout.catalog), read_only=True) as catalog:
            recent = datetime.now(tz=UTC) - timedelta(hours=1)
            ((newest_us,),) = catalog.execute(
                f"SELECT epoch_us(max(ts)) FROM series('{symbol}', '1m') WHERE ts > ?", [recent]
            ).fetchall()
    except duckdb.Error:
        return None
    if newest_us is None:
        return None
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=newest_us)


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def runs_of(port: int) -> list[dict[str, Any]]:
    """Return all runs that Dagster knows."""
    found: list[dict[str, Any]] = query_ui(port, RUNS, filter={})["runsOrError"]["results"]
    return found


def print_report(
    watch: Watch, runs: list[dict[str, Any]], layout: StoreLayout, minutes: float
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
    began, grown = watch.home[0][1], watch.home[-1][1]
    per_hour = (grown - began) / minutes * 60 / 1e6
    print(f"Dagster's home {began / 1e6:.1f} MB, then {grown / 1e6:.1f} MB: {per_hour:.1f} MB/h")
    for at_s, size in watch.home[:: max(1, len(watch.home) // 10)]:
        print(f"  after {at_s / 60:5.1f} min {size / 1e6:8.1f} MB")
    with duckdb.connect(str(layout.catalog), read_only=True) as catalog:
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
    watch = Watch()
    with running_up(folder, given.port):
        wait_until_ready(given.port)
        began = time.monotonic()
        while (passed := time.monotonic() - began) < given.minutes * 60:
            measure(layout, watch, symbols)
            if not watch.home or passed - watch.home[-1][0] > 30:
                watch.home.append((passed, size_of(layout.root / "dagster")))
            time.sleep(POLL_S)
        print_report(watch, runs_of(given.port), layout, given.minutes)


if __name__ == "__main__":
    main()
