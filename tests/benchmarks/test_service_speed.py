"""How fast services answer over a large store: 500 symbols, 8 timeframes, a million requests.

A status may take 20 ms at its 95th percentile. Other processes share the machine, so the tests
compare with the time in which ``pathlib`` finds all bar files once in the same run, some 150 ms.
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
CALLS, LISTINGS = 200, 20
_INSERT = (
    "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n LIMIT ?) INSERT INTO requests "
    "SELECT 'S001|1m', 1, 'TRADES', 'gateway', 'login 1', NULL, '1 D', 1700000000000000 + i, 0.5, "
    " CASE i % 20 WHEN 0 THEN 'OutageError' ELSE 'bars' END, NULL, 390, 'a week', 0.0 FROM n"
)


def _percentiles_ms(call: Callable[[], object], calls: int = CALLS) -> tuple[float, float, float]:
    """Return the first call, and the median and the 95th percentile of the others, in ms."""
    taken = []
    for _ in range(calls + 1):
        begun = time.perf_counter()
        call()
        taken.append((time.perf_counter() - begun) * 1000)
    median, high = np.percentile(taken[1:], [50, 95])
    return taken[0], float(median), float(high)


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
    listing = _percentiles_ms(lambda: list(filled.bars.glob(pattern)), LISTINGS)[1]
    answers = {
        "status": _percentiles_ms(ib.get_status),
        "health": _percentiles_ms(ib.get_health),
        "symbols": _percentiles_ms(ib.symbols),
        "gap filler": _percentiles_ms(gap_filler.status),
        "system": _percentiles_ms(system.status),
        "metrics": _percentiles_ms(system.metrics),
    }
    system.close()
    with capsys.disabled():
        print(f"\nfinding all bar files {listing:.0f} ms, a scan {scan_s:.1f} s")  # noqa: T201
        for name, (first, median, high) in answers.items():
            times = f"first {first:7.1f}, median {median:5.1f}, p95 {high:5.1f} ms"
            print(f"{name:<11} {times}")  # noqa: T201  (it reports)
    assert len(ib.symbols()) == SYMBOLS
    assert ib.get_status().data_metrics.total_requests == REQUESTS
    assert system.status().series == SYMBOLS * len(Timeframe)
    assert all(median < listing / 15 for _, median, _ in answers.values()), answers
    assert all(high < listing / 8 for _, _, high in answers.values()), answers
