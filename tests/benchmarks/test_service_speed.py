"""How fast services answer over a large store: 500 symbols, 8 timeframes, a million requests.

A status may take 20 ms at its 95th percentile. Other processes share the machine, so what is
compared is processor time, with what ``pathlib`` takes to find all bar files, some 150 ms, in turns
with the answers. That answers do not wait instead is shown by the time of the clock, with a wide
margin.
"""

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from ktrdr_pipelines.app.services.gap_filler import GapFillerService
from ktrdr_pipelines.app.services.gateway_monitor import GatewayMonitor
from ktrdr_pipelines.app.services.ib_service import IbService
from ktrdr_pipelines.app.services.system_status import SystemService
from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.settings import Settings
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.ledger import Ledger
from ktrdr_pipelines.store.store_summary import StoreSummary
from tests.benchmarks.test_gap_index_speed import FIRST, SYMBOLS, filled

__all__ = ["filled"]  # a fixture

REQUESTS = 1_000_000
ROUNDS, CALLS = 20, 10
_INSERT = (
    "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n LIMIT ?) INSERT INTO requests "
    "SELECT 'S001|1m', 1, 'TRADES', 'gateway', 'login 1', NULL, '1 D', 1700000000000000 + i, 0.5, "
    " CASE i % 20 WHEN 0 THEN 'OutageError' ELSE 'bars' END, NULL, 390, 'a week', 0.0 FROM n"
)


def _both_ms(call: Callable[[], object]) -> tuple[float, float]:
    """Return the processor time of a call and its time by the clock, in ms."""
    begun, used = time.perf_counter(), time.process_time()
    call()
    return (time.process_time() - used) * 1000, (time.perf_counter() - begun) * 1000


@pytest.mark.slow
def test_statuses_answer_in_milliseconds_whatever_the_store_holds(
    filled: StoreLayout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each answer usually costs less than a fifteenth of finding the files of all series once."""
    entries = "".join(f"  S{number:03d}: {{}}\n" for number in range(SYMBOLS))
    filled.universe.write_text(
        f"defaults: {{timeframes: [{', '.join(Timeframe)}], start: {FIRST}-01-01}}\n"
        f"symbols:\n{entries}"
    )
    with closing(Ledger(filled.ledger)) as ledger, ledger.database.writing() as connection:
        connection.execute(_INSERT, (REQUESTS,))
    settings = Settings(ib_port=1, ktrdr_data=filled.root, ktrdr_state=tmp_path)

    def workspace() -> Workspace:
        return Workspace.open(settings)

    summary, monitor = StoreSummary(), GatewayMonitor(lambda: settings)
    ib = IbService(workspace, monitor=monitor, summary=summary)
    gap_filler = GapFillerService(workspace, summary=summary)
    system = SystemService(workspace, ib=ib, gap_filler=gap_filler, summary=summary)
    begun = time.perf_counter()
    gap_filler.scan(workspace(), system_now())
    scan_s = time.perf_counter() - begun
    pattern = "symbol=*/timeframe=*/*.parquet"
    calls: dict[str, Callable[[], object]] = {
        "status": ib.get_status,
        "health": ib.get_health,
        "symbols": ib.symbols,
        "gap filler": gap_filler.status,
        "system": system.status,
        "metrics": system.metrics,
    }
    first = {name: _both_ms(call)[1] for name, call in calls.items()}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    listings = []
    for _ in range(ROUNDS):
        listings.append(_both_ms(lambda: list(filled.bars.glob(pattern))))
        for name, call in calls.items():
            taken[name] += [_both_ms(call) for _ in range(CALLS)]
    system.close()
    listing_ms, listing_clock_ms = np.median(listings, axis=0)
    used = {name: np.percentile(both, [50, 95], axis=0) for name, both in taken.items()}
    with capsys.disabled():
        print(f"\nfinding all bar files {listing_ms:.0f} ms, a scan {scan_s:.1f} s")  # noqa: T201
        for name, ((median, clock), (high, _)) in used.items():
            text = f"{median:5.1f}, p95 {high:5.1f} ms of processor time, {clock:5.1f} by the clock"
            print(f"{name:<11} first {first[name]:7.1f}, median {text}")  # noqa: T201
    assert len(ib.symbols()) == SYMBOLS
    assert ib.get_status().data_metrics.total_requests == REQUESTS
    assert system.status().series == SYMBOLS * len(Timeframe)
    assert all(median < listing_ms / 15 for (median, _), _ in used.values()), used
    assert all(high < listing_ms / 8 for _, (high, _) in used.values()), used
    assert all(clock < listing_clock_ms / 5 for (_, clock), _ in used.values()), used
