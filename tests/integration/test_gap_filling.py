"""A running Dagster fills gaps without any launch by a user."""

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.domain.bars import rows_per_session
from ktrdr_pipelines.domain.calendars.sessions import midnight
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.settings import Settings
from ktrdr_pipelines.simulator.server import running_simulator
from ktrdr_pipelines.store.bars.bar_file import read_file, write_file
from ktrdr_pipelines.store.bars.footer import Footer
from ktrdr_pipelines.store.layout import create_store
from ktrdr_pipelines.store.ledger.ledger import Ledger

RUNS = "{ runsOrError(limit: 500) { ... on Runs { results { status tags { key value } } } } }"
FINISHED = {"SUCCESS", "FAILURE", "CANCELED"}
MATERIALIZED = """
query ($key: AssetKeyInput!) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode { assetMaterializations(limit: 1000) { partition } }
  }
}
"""


def delete_days(path: Path, days: list[date]) -> None:
    """Delete days from a file of daily bars, with their coverage."""
    facts, bars = read_file(path)
    kept = bars.filter(pc.invert(pc.is_in(bars["session_date"], pa.array(days))))
    assert kept.num_rows == bars.num_rows - len(days)
    gone = IntervalSet(Interval(midnight(day), midnight(day + timedelta(days=1))) for day in days)
    coverage = Coverage(facts.coverage.bars - gone, facts.coverage.empty)
    write_file(path, kept, Footer(facts.identity, coverage, kept.num_rows, rows_per_session(kept)))


def missing_bars(settings: Settings) -> int:
    """Return the number of unexplained bars."""
    workspace = Workspace.open(settings)
    series = workspace.universe.series()
    found = workspace.gap_index().series_gaps(series, datetime.now(tz=UTC))
    assert not any(one.error for one in found)
    return sum(gap.bars for one in found for gap in one.gaps)


def statuses_of(dev: Any) -> set[str]:
    """Return the statuses that runs have."""
    return {run["status"] for run in dev.ask(RUNS)["runsOrError"]["results"]}


@pytest.mark.slow
def test_deleted_days_are_loaded_again(
    tmp_path: Path,
    dagster_dev: Callable[[Mapping[str, str]], Any],
    wait_for: Callable[..., Any],
) -> None:
    """Without a restart or a launch, the days that were deleted are requested."""
    start = datetime.now(tz=UTC).date() - timedelta(days=150)
    layout = create_store(tmp_path / "data")
    layout.universe.write_text(
        f"defaults: {{timeframes: [1d], start: {start}}}\n"
        f"windows: {{yearly: {start.year}}}\nsymbols: {{AAPL: {{}}, MSFT: {{}}}}\n"
    )
    with running_simulator(now=datetime.now(tz=UTC)) as gateway:
        settings = Settings(ib_port=gateway.port, ktrdr_data=layout.root)
        environment = {
            "IB_PORT": str(gateway.port),
            "KTRDR_DATA": str(layout.root),
            "KTRDR_STATE": str(tmp_path / "state"),
        }
        with dagster_dev(environment) as dev:
            assert missing_bars(settings) > 150
            wait_for(lambda: missing_bars(settings) == 0, "the store to be filled")
            # A run that still examines its windows would rightly fail for the days deleted below.
            wait_for(lambda: statuses_of(dev) <= FINISHED, "the run that filled it to end")
            assert statuses_of(dev) == {"SUCCESS"}, dev.log.read_text()
            ledger = Ledger(layout.ledger)
            [path] = layout.bar_files("AAPL", Timeframe.D1)
            _, before = read_file(path)
            held = sorted(rows_per_session(before))
            days = [held[20], held[41], held[70]]
            audited = ledger.requests.count()
            delete_days(path, days)
            assert missing_bars(settings) == 3
            wait_for(lambda: missing_bars(settings) == 0, "the days to come back")
            new = ledger.requests.newest(ledger.requests.count() - audited)
            runs = dev.ask(RUNS)["runsOrError"]["results"]
            events = dev.ask(MATERIALIZED, key={"path": ["bars", "1d"]})

    assert read_file(path)[1].equals(before)
    assert {record.series for record in new} == {"AAPL|1d"}
    # The three days lie within what one request of days may ask for: from the first to the last.
    [request] = new
    assert request.rows == len([day for day in held if days[0] <= day <= days[-1]])
    assert request.asked_end is not None
    assert days[-1] <= request.asked_end.date() <= days[-1] + timedelta(days=1)
    assert "FAILURE" not in {run["status"] for run in runs}, dev.log.read_text()[-4000:]
    partitions = {one["partition"] for one in events["assetNodeOrError"]["assetMaterializations"]}
    assert {f"AAPL|{start.year}", f"MSFT|{start.year}"} <= partitions
