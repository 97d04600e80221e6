"""A backfill launched in the UI, through the daemon."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from ktrdr_pipelines.simulator.server import running_simulator
from ktrdr_pipelines.store.layout import create_store

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
"""The gateway has no bar of this year yet: nothing but the backfill has anything to ask for."""
SYMBOLS = ("AAPL", "MSFT", "EURUSD")
YEARS = ("2023", "2024", "2025")
UNIVERSE = """
defaults: {timeframes: [1d], start: 2023-01-01, backfill: manual}
windows: {yearly: 2022}
symbols:
  AAPL: {}
  MSFT: {}
  EURUSD: {}
"""

LAUNCH = """
mutation ($backfill: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $backfill) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""
STATUS = """
query ($id: String!) {
  partitionBackfillOrError(backfillId: $id) {
    ... on PartitionBackfill {
      status
      numPartitions
      runs(limit: 50) { status }
    }
  }
}
"""
MATERIALIZED = """
query ($key: AssetKeyInput!) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode {
      assetMaterializations(limit: 1000) { partition metadataEntries {
        label ... on IntMetadataEntry { intValue } ... on TextMetadataEntry { text } } }
    }
  }
}
"""
PARTITIONS = """
query ($key: AssetKeyInput!) {
  assetNodeOrError(assetKey: $key) { ... on AssetNode { partitionKeys } }
}
"""


@pytest.mark.slow
def test_backfill_of_symbols_and_windows_completes_and_materializes_every_window(
    tmp_path: Path,
    dagster_dev: Callable[[Mapping[str, str]], Any],
    wait_for: Callable[..., Any],
) -> None:
    """A backfill launched through GraphQL, as the UI does it, leaves every window materialized."""
    layout = create_store(tmp_path / "data")
    layout.universe.write_text(UNIVERSE, encoding="utf-8")
    key = {"path": ["bars", "1d"]}
    wanted = {f"{symbol}|{year}" for symbol in SYMBOLS for year in YEARS}
    with running_simulator(now=NOW) as gateway:
        environment = {
            "IB_PORT": str(gateway.port),
            "KTRDR_DATA": str(layout.root),
            "KTRDR_STATE": str(tmp_path / "state"),
        }
        with dagster_dev(environment) as dev:

            def known() -> set[str]:
                return set(dev.ask(PARTITIONS, key=key)["assetNodeOrError"]["partitionKeys"])

            wait_for(lambda: wanted <= known(), "the universe sensor to add the symbols")
            launched = dev.ask(
                LAUNCH,
                backfill={
                    "assetSelection": [key],
                    "partitionNames": sorted(wanted),
                    "fromFailure": False,
                    "tags": [],
                },
            )["launchPartitionBackfill"]
            assert launched["__typename"] == "LaunchBackfillSuccess", launched

            def ended() -> Any:
                answer = dev.ask(STATUS, id=launched["backfillId"])
                backfill = answer["partitionBackfillOrError"]
                return backfill if backfill["status"].startswith("COMPLETED") else None

            backfill = wait_for(ended, "the backfill to complete")
            assert backfill["status"] == "COMPLETED_SUCCESS", dev.log.read_text()[-4000:]
            assert {run["status"] for run in backfill["runs"]} == {"SUCCESS"}
            events = dev.ask(MATERIALIZED, key=key)["assetNodeOrError"]["assetMaterializations"]
        requests = [request for request in gateway.requests if request.kind == "history"]

    assert wanted <= {event["partition"] for event in events}
    stored = duckdb.connect(str(layout.catalog), read_only=True).sql(
        "SELECT symbol, year(session_date)::VARCHAR, count(*) FROM bars_1d GROUP BY ALL"
    )
    rows = {f"{symbol}|{year}": count for symbol, year, count in stored.fetchall()}
    assert rows == {one["partition"]: _rows(one) for one in events if one["partition"] in wanted}
    assert rows["AAPL|2023"] == 250
    assert rows["AAPL|2024"] == 252
    assert len(requests) == len(wanted)  # one request serves a year of days


def _rows(event: dict[str, Any]) -> int:
    entries = event["metadataEntries"]
    return next(int(e["intValue"]) for e in entries if e["label"] == "dagster/partition_row_count")
