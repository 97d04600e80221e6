"""What `ktrdr up` takes, how fresh it keeps a store, and what a backfill adds to a load.

These figures are of processes that wait for each other, so that all but processor time and memory
get worse on a busy machine.
"""

import json
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import pyarrow.parquet as pq

from ktrdr_pipelines.defs.runs.tail_run import MARGIN
from ktrdr_pipelines.domain.planning.gaps import bar_lag
from ktrdr_pipelines.domain.timeframes import Timeframe
from tests.benchmarks.freshness import delays_s
from tests.benchmarks.measuring import Benchmark, Target, cost_of_command
from tests.benchmarks.running_up import Up, running_up
from tests.benchmarks.stores import LargeStore, Shape, large_store
from tests.support.timed_gateway import Law, running_gateway

_SETTLE_S, _IDLE_S = 120.0, 180.0
_MINUTES, _SYMBOLS = 5.0, 50
_LOADED_SYMBOLS, _YEAR = 3, 2021
_NARROW_S = 0.6
_LONGEST_S = 1_200.0

LAUNCH = """
mutation ($backfill: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $backfill) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message }
  }
}
"""
STATUS = """
query ($id: String!) {
  partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } }
}
"""
PARTITIONS = """
query ($key: AssetKeyInput!) {
  assetNodeOrError(assetKey: $key) { ... on AssetNode { partitionKeys } }
}
"""


def benchmarks() -> list[Benchmark]:
    """Return the benchmarks; together they take about 15 minutes."""
    return [_up(500), _backfill(), _freshness()]


def _up(symbols: int) -> Benchmark:
    """Return the benchmark of the command over a universe whose history nobody has requested."""
    paint = Target(
        "up-paint",
        f"ktrdr up, {symbols} symbols: UI with all assets",
        6,
        more_is_better=False,
        unit="s",
        is_compared=False,
    )
    start = Target(
        "up-start",
        "the same: processor time until then",
        None,
        more_is_better=False,
        unit="s",
        is_compared=False,
    )
    memory = Target(
        "up-pss", "the same: memory (PSS)", 700, more_is_better=False, unit="MB", is_compared=False
    )
    idle = Target(
        "up-idle",
        "the same: processor time a minute, nothing to load",
        4,
        more_is_better=False,
        unit="s",
        is_compared=False,
    )

    def measure() -> Mapping[str, float]:
        with (
            large_store(Shape(symbols, is_filled=False)) as store,
            running_gateway(Law()) as gateway,
        ):
            environment = {**store.environment, "IB_PORT": str(gateway.port)}
            began_s = time.perf_counter()
            with running_up(store.layout.root.parent, environment, _free_port()) as up:
                up.wait_until_painted()
                painted_s, start_s = time.perf_counter() - began_s, up.cpu_s()
                time.sleep(_SETTLE_S)
                before_s, began_s = up.cpu_s(), time.perf_counter()
                time.sleep(_IDLE_S)
                a_minute_s = (up.cpu_s() - before_s) / (time.perf_counter() - began_s) * 60
                return {
                    paint.key: painted_s,
                    start.key: start_s,
                    memory.key: up.pss_mb(),
                    idle.key: a_minute_s,
                }

    return Benchmark([paint, start, memory, idle], measure)


def _freshness() -> Benchmark:
    """Return the benchmark of the time between the close of a minute and its bar in a query."""
    requested_s = (bar_lag() + MARGIN).total_seconds()
    what = (
        f"close of a 1m bar to queryable, requested from {requested_s:g} s on, {_SYMBOLS} symbols, "
        "backfill running"
    )
    middle = Target(
        "fresh-p50", f"{what}: p50", 6, more_is_better=False, unit="s", is_compared=False
    )
    late = Target(
        "fresh-p95", "the same: p95", 10, more_is_better=False, unit="s", is_compared=False
    )

    def measure() -> Mapping[str, float]:
        found = delays_s(_free_port(), symbols=_SYMBOLS, minutes=_MINUTES)
        if len(found) < _SYMBOLS * (_MINUTES - 2):
            raise RuntimeError(f"only {len(found)} bars became queryable in {_MINUTES} minutes")
        p50, p95 = np.percentile(found, [50, 95])
        return {middle.key: float(p50), late.key: float(p95)}

    return Benchmark([middle, late], measure)


def _backfill() -> Benchmark:
    """Return the benchmark of a cold backfill in Dagster beside a cold ``ktrdr load``."""
    ratio = Target(
        "backfill-load",
        "Dagster: a cold backfill, of the time of ktrdr load",
        1.3,
        more_is_better=False,
        is_compared=False,
    )
    shape = Shape(_LOADED_SYMBOLS, (Timeframe.M1,), years=5, is_filled=False)
    first, end = f"{_YEAR}-01-01", f"{_YEAR + 1}-01-01"
    law = Law(4, [(1, _NARROW_S), (100, 100 * _NARROW_S)], first=first, end=end)

    def measure() -> Mapping[str, float]:
        with _cold(shape, law) as (store, environment):
            command = [sys.executable, "-m", "ktrdr_pipelines.cli.main", "load"]
            what = [",".join(shape.names), "1m", "--start", first, "--end", end]
            began_s = time.perf_counter()
            cost_of_command([*command, *what], environment, longest_s=_LONGEST_S)
            load_s = time.perf_counter() - began_s
            expected = _sizes(store)
        with (
            _cold(shape, law) as (store, environment),
            running_up(store.layout.root.parent, environment, _free_port()) as up,
        ):
            up.wait_until_painted()
            backfill_s = _run_backfill(up, [f"{symbol}|{_YEAR}" for symbol in shape.names])
            if _sizes(store) != expected:
                raise RuntimeError("the backfill and the load wrote different files")
        return {ratio.key: backfill_s / load_s}

    return Benchmark([ratio], measure)


@contextmanager
def _cold(shape: Shape, law: Law) -> Iterator[tuple[LargeStore, dict[str, str]]]:
    """Yield a store without bars, and the settings that name it and a gateway of its own."""
    with large_store(shape) as store, running_gateway(law) as gateway:
        yield store, {**store.environment, "IB_PORT": str(gateway.port), "IB_TIMEOUT": "20"}


def _run_backfill(up: Up, keys: list[str]) -> float:
    """Run a backfill over partitions of minutes, and return the seconds from launch to its end.

    Raises:
        RuntimeError: it could not be launched, or did not succeed.
    """
    key = {"path": ["bars", "1m"]}

    def are_known() -> bool:
        return set(keys) <= set(up.query(PARTITIONS, key=key)["assetNodeOrError"]["partitionKeys"])

    up.wait_until(are_known, "the partitions")
    began_s = time.perf_counter()
    launched = up.query(
        LAUNCH,
        backfill={
            "assetSelection": [key],
            "partitionNames": keys,
            "fromFailure": False,
            "tags": [],
        },
    )["launchPartitionBackfill"]
    if launched["__typename"] != "LaunchBackfillSuccess":
        raise RuntimeError(f"the backfill was not launched: {json.dumps(launched)}")

    def ended() -> str:
        status: str = up.query(STATUS, id=launched["backfillId"])["partitionBackfillOrError"][
            "status"
        ]
        return "" if status in {"REQUESTED", "CANCELING", "FAILING"} else status

    status = up.wait_until(ended, "the backfill", longest_s=_LONGEST_S)
    if status != "COMPLETED_SUCCESS":
        raise RuntimeError(f"the backfill ended as {status}")
    return time.perf_counter() - began_s


def _sizes(store: LargeStore) -> dict[str, int]:
    """Return the bars in each file of minutes, by symbol and name."""
    files = store.layout.bars.glob("*/timeframe=1m/*.parquet")
    return {f"{one.parts[-3]}/{one.name}": pq.read_metadata(one).num_rows for one in files}


def _free_port() -> int:
    """Return a port of loopback below those that the system gives out by itself."""
    for port in range(25_000, 25_100, 2):
        with socket.socket() as one, socket.socket() as next_one:
            try:
                one.bind(("127.0.0.1", port))
                next_one.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
    raise RuntimeError("no two neighbouring ports between 25000 and 25100 are free")
