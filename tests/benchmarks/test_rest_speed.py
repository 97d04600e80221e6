"""How fast the REST API answers over a large store: 500 symbols, 8 timeframes, 20 years.

A status may take 20 ms at its 95th percentile. What is asserted are ratios in one run, as other
processes share the machine: to the liveness of the same server, which has no service behind it, and
beside readers of a year of minutes to the time of one of their reads.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from ktrdr_pipelines.domain.instruments import Origin, identity_of
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.ledger import Ledger
from tests.benchmarks.test_basis_speed import SERIES, year
from tests.benchmarks.test_gap_index_speed import FIRST, SYMBOLS, filled

__all__ = ["filled"]  # a fixture

CALLS, ROUNDS = 100, 2
READERS = 2
LIVENESS = "/api/v1/health"
FAST = ("/api/v1/ib/status", "/api/v1/ib/health", "/api/v1/symbols", "/api/v1/timeframes")
ALL = (LIVENESS, *FAST, "/api/v1/system/gap-filler-status", "/api/v1/system/system-status")
BARS = f"/api/v1/data/{SERIES.symbol}/1m"
MOST = 15.0
"""The p95 of a status over that of the liveness, which takes 1.3 ms on an idle machine: 20 ms."""

PART = 1 / 8
"""The p95 of a status beside readers over the time of one of their reads: it waits for none."""


@contextmanager
def serving(layout: StoreLayout, state: Path) -> Iterator[httpx.Client]:
    """Run ``ktrdr serve`` over a store, without a gateway."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("KTRDR_", "IB_"))}
    settings = {"KTRDR_DATA": str(layout.root), "KTRDR_STATE": str(state), "IB_PORT": "1"}
    command = [sys.executable, "-m", "ktrdr_pipelines.cli.main", "serve", "--port", "0", "--json"]
    with subprocess.Popen(
        command, env={**clean, **settings}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            with httpx.Client(base_url=url, timeout=120) as client:
                yield client
        finally:
            process.terminate()


def percentiles_ms(client: httpx.Client, path: str) -> tuple[float, float, float]:
    """Return the first call, and the median and the 95th percentile of the others, in ms."""
    taken = []
    for _ in range(CALLS + 1):
        begun = time.perf_counter()
        assert client.get(path).status_code == 200
        taken.append((time.perf_counter() - begun) * 1000)
    median, high = np.percentile(taken[1:], [50, 95])
    return taken[0], float(median), float(high)


def least_disturbed_ms(client: httpx.Client) -> dict[str, tuple[float, float, float]]:
    """Return for each route the figures of its round with the lowest 95th percentile."""
    rounds = [{path: percentiles_ms(client, path) for path in ALL} for _ in range(ROUNDS)]
    return {
        path: (rounds[0][path][0], *min((one[path] for one in rounds), key=lambda it: it[2])[1:])
        for path in ALL
    }


_READ = """\
import sys, time, urllib.request
while True:
    begun = time.perf_counter()
    size = len(urllib.request.urlopen(sys.argv[1]).read())
    print(size, time.perf_counter() - begun, flush=True)
"""


@contextmanager
def readers(client: httpx.Client) -> Iterator[list["subprocess.Popen[str]"]]:
    """Read a year of minutes as JSON, in processes of their own, again and again."""
    command = [sys.executable, "-c", _READ, f"{client.base_url}{BARS}"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(READERS)]
    try:
        yield running
    finally:
        for one in running:
            one.terminate()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_statuses_answer_in_milliseconds_also_beside_long_reads(
    filled: StoreLayout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the 95th percentile; a status beside readers waits for none of their reads."""
    entries = "".join(f"  S{number:03d}: {{}}\n" for number in range(SYMBOLS))
    filled.universe.write_text(
        f"defaults: {{timeframes: [{', '.join(Timeframe)}], start: {FIRST}-01-01}}\n"
        f"symbols:\n{entries}  AAPL: {{timeframes: [1m], start: 2024-01-01}}\n"
    )
    with closing(Ledger(filled.ledger)) as ledger:
        bars, coverage = year()
        identity = identity_of(SERIES, contract_id=1, origin=Origin.IB)
        BarStore(filled, ledger).save(SERIES, identity, bars, coverage)
    with serving(filled, tmp_path) as client:
        alone = least_disturbed_ms(client)
        with readers(client) as running:
            beside = least_disturbed_ms(client)
        reads = [line.split() for one in running for line in one.communicate()[0].splitlines()]
        assert all(int(size) > 5_000_000 for size, _ in reads)
        taken = [float(seconds) for _, seconds in reads]
        assert len(client.get("/api/v1/symbols").json()["data"]) == SYMBOLS + 1
    with capsys.disabled():
        print(f"\na year of minutes as JSON, {READERS} at once: {min(taken, default=0):.1f} s")  # noqa: T201
        for path, (first, median, high) in alone.items():
            times = f"first {first:6.1f}, median {median:5.1f}, p95 {high:5.1f} ms"
            among = f"median {beside[path][1]:6.1f}, p95 {beside[path][2]:6.1f} ms"
            print(f"{path:<34} {times}; beside readers {among}")  # noqa: T201  (it reports)
    assert all(alone[path][2] <= MOST * alone[LIVENESS][2] for path in FAST), alone
    assert all(beside[path][2] <= PART * float(np.median(taken)) * 1000 for path in FAST), beside
