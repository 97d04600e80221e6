"""``ktrdr up`` as users of Dagster see it: backfills, runs, lost bars, edits of the universe.

Everything is asked through GraphQL, as the UI asks it.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from ktrdr_pipelines.simulator.server import SimulatorServer, running_simulator
from ktrdr_pipelines.store.layout import StoreLayout, create_store
from tests.integration.conftest import DagsterDev, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
"""The gateway has no bar of this year yet, so that nothing grows while a test looks."""

LONG_S = 400.0
_EVENTS = "assetMaterializations"
YEARS = ("2023", "2024", "2025")
MANY_YEARS = tuple(str(year) for year in range(2014, 2026))

LAUNCH_BACKFILL = """
mutation ($backfill: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $backfill) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""
BACKFILL = """
query ($id: String!) {
  partitionBackfillOrError(backfillId: $id) {
    ... on PartitionBackfill { status error { message } runs(limit: 50) { id status } }
  }
}
"""
CANCEL = """
mutation ($id: String!) { cancelPartitionBackfill(backfillId: $id) { __typename } }
"""
LAUNCH_RUN = """
mutation ($run: ExecutionParams!) {
  launchRun(executionParams: $run) {
    __typename
    ... on LaunchRunSuccess { run { id } }
    ... on PythonError { message }
  }
}
"""
RUN = """
query ($id: ID!) {
  runOrError(runId: $id) { ... on Run { status tags { key value } } }
}
"""
TERMINATE = """
mutation ($id: String!) { terminateRun(runId: $id) { __typename } }
"""
REEXECUTE = """
mutation ($run: ReexecutionParams!) {
  launchRunReexecution(reexecutionParams: $run) {
    __typename
    ... on LaunchRunSuccess { run { id } }
    ... on PythonError { message }
  }
}
"""
WINDOWS = """
query ($key: AssetKeyInput!) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode {
      partitionKeys
      assetPartitionStatuses {
        ... on MultiPartitionStatuses { primaryDimensionName ranges {
          primaryDimStartKey primaryDimEndKey
          secondaryDim { ... on DefaultPartitionStatuses {
            materializedPartitions failedPartitions } }
        } }
      }
    }
  }
}
"""
EVENTS = """
query ($key: AssetKeyInput!) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode { assetMaterializations(limit: 1000) { partition runId } }
  }
}
"""
CHECKS = """
query ($key: AssetKeyInput!, $name: String!) {
  assetCheckExecutions(assetKey: $key, checkName: $name, limit: 20) { runId status }
}
"""
TICKS = """
query ($sensor: SensorSelector!) {
  sensorOrError(sensorSelector: $sensor) {
    ... on Sensor { sensorState { ticks(limit: 5) { status skipReason } } }
  }
}
"""
LOCATION = """
{ repositoriesOrError { ... on RepositoryConnection { nodes { name location { name } } } } }
"""


class Up:
    """A running ``ktrdr up``, and what a user does in its UI."""

    def __init__(self, dagster: DagsterDev, layout: StoreLayout, alerts: Path) -> None:
        self.dagster, self.layout, self._alerts = dagster, layout, alerts
        (found,) = dagster.ask(LOCATION)["repositoriesOrError"]["nodes"]
        self._repository = found["name"], found["location"]["name"]

    def node(self, query: str, *path: str) -> dict[str, Any]:
        """Return what a query says of an asset."""
        found: dict[str, Any] = self.dagster.ask(query, key={"path": path})["assetNodeOrError"]
        return found

    def windows(self, timeframe: str) -> tuple[set[str], set[str], set[str]]:
        """Return the partitions, and which the UI shows as materialized and as failed."""
        found = self.node(WINDOWS, "bars", timeframe)
        statuses = found["assetPartitionStatuses"]
        if not statuses.get("ranges"):
            return set(found["partitionKeys"]), set(), set()
        assert statuses["primaryDimensionName"] == "window"
        shown: tuple[set[str], set[str]] = set(), set()
        for one in statuses["ranges"]:
            first, last = int(one["primaryDimStartKey"]), int(one["primaryDimEndKey"])
            for keys, kind in zip(shown, ("materialized", "failed"), strict=True):
                symbols = one["secondaryDim"][f"{kind}Partitions"]
                keys |= {f"{name}|{year}" for name in symbols for year in range(first, last + 1)}
        return set(found["partitionKeys"]), *shown

    def wait_for_partitions(self, timeframe: str, keys: set[str]) -> None:
        """Wait until the universe sensor has added the partitions."""
        wait_until(lambda: keys <= self.windows(timeframe)[0], f"partitions {sorted(keys)}")

    def launch_backfill(self, keys: Iterable[str], *assets: Sequence[str]) -> str:
        """Launch a backfill of partitions of some assets, and return its id."""
        launched = self.dagster.ask(
            LAUNCH_BACKFILL,
            backfill={
                "assetSelection": [{"path": one} for one in assets],
                "partitionNames": sorted(keys),
                "fromFailure": False,
                "tags": [],
            },
        )["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        return str(launched["backfillId"])

    def backfill(self, name: str) -> dict[str, Any]:
        """Return the state of a backfill and of its runs."""
        found: dict[str, Any] = self.dagster.ask(BACKFILL, id=name)["partitionBackfillOrError"]
        return found

    def ended_backfill(self, name: str) -> dict[str, Any]:
        """Wait for the end of a backfill and return its state."""

        def ended() -> dict[str, Any] | None:
            found = self.backfill(name)
            active = {"REQUESTED", "CANCELING", "FAILING"}
            return None if found["status"] in active else found

        found: dict[str, Any] = wait_until(ended, f"backfill {name} to end", seconds=LONG_S)
        return found

    def launch_run(self, timeframe: str, first: str, last: str) -> str:
        """Launch one run over a range of partitions, and return its id."""
        repository, location = self._repository
        launched = self.dagster.ask(
            LAUNCH_RUN,
            run={
                "selector": {
                    "jobName": "__ASSET_JOB",
                    "repositoryName": repository,
                    "repositoryLocationName": location,
                    "assetSelection": [{"path": ["bars", timeframe]}],
                    "assetCheckSelection": [],
                },
                "mode": "default",
                "executionMetadata": {
                    "tags": [
                        {"key": "dagster/asset_partition_range_start", "value": first},
                        {"key": "dagster/asset_partition_range_end", "value": last},
                    ]
                },
            },
        )["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return str(launched["run"]["id"])

    def reexecute(self, run: str) -> str:
        """Launch a run again, and return the id of the new one."""
        again = {"parentRunId": run, "strategy": "ALL_STEPS"}
        launched = self.dagster.ask(REEXECUTE, run=again)["launchRunReexecution"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return str(launched["run"]["id"])

    def run(self, run: str) -> dict[str, Any]:
        """Return the status and the tags of a run."""
        found: dict[str, Any] = self.dagster.ask(RUN, id=run)["runOrError"]
        return {
            "status": found["status"],
            "tags": {one["key"]: one["value"] for one in found["tags"]},
        }

    def wait_for_run(self, run: str, status: str) -> dict[str, Any]:
        """Wait until a run has a status, and return it."""

        def reached() -> dict[str, Any] | None:
            found = self.run(run)
            return found if found["status"] == status else None

        found: dict[str, Any] = wait_until(reached, f"run {run} to be {status}", seconds=LONG_S)
        return found

    def ticks(self, sensor: str) -> list[str]:
        """Return what the newest ticks of a sensor say."""
        repository, location = self._repository
        selector = {
            "sensorName": sensor,
            "repositoryName": repository,
            "repositoryLocationName": location,
        }
        found = self.dagster.ask(TICKS, sensor=selector)["sensorOrError"]["sensorState"]["ticks"]
        return [one["skipReason"] or "" for one in found]

    def wait_for_tick(self, sensor: str, text: str) -> None:
        """Wait until one of the newest ticks of a sensor says something."""
        wait_until(lambda: any(text in one for one in self.ticks(sensor)), f"{sensor}: {text}")

    def alerts(self) -> str:
        """Return the alerts so far, as the command received them."""
        return self._alerts.read_text() if self._alerts.exists() else ""

    def bars(self, symbol: str, timeframe: str) -> set[tuple[Any, ...]]:
        """Return the stored bars of a series."""
        pattern = self.layout.bars / f"symbol={symbol}" / f"timeframe={timeframe}" / "*.parquet"
        if not list(pattern.parent.glob("*.parquet")):
            return set()
        with duckdb.connect() as connection:
            found = connection.sql(f"SELECT ts, open, close, volume FROM '{pattern}'")  # noqa: S608
            return set(found.fetchall())


@contextmanager
def running_up(folder: Path, universe: str, gateway: SimulatorServer) -> Iterator[Up]:
    """Run ``ktrdr up`` over a store with a universe, and end it as Ctrl-C does."""
    layout = create_store(folder / "data")
    layout.universe.write_text(universe, encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    alerts, output = folder / "alerts.txt", folder / "up.log"
    environment = {
        **os.environ,
        "IB_PORT": str(gateway.port),
        "KTRDR_DATA": str(layout.root),
        "KTRDR_STATE": str(folder / "state"),
        "KTRDR_ALERT_COMMAND": f"tee -a {alerts}",
        "KTRDR_CLOCK_OFFSET_S": str((NOW - datetime.now(UTC)).total_seconds()),
    }
    command = [sys.executable, "-m", "ktrdr_pipelines.cli.main", "up", "--port", str(port)]
    dagster = DagsterDev(f"http://127.0.0.1:{port}", layout.state / "dagster", output)
    with output.open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            wait_until(lambda: process.poll() is not None or dagster.is_up(), "ktrdr up")
            assert process.poll() is None, output.read_text()
            yield Up(dagster, layout, alerts)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=90)


def keys(symbols: Iterable[str], years: Iterable[str] = YEARS) -> set[str]:
    """Return the partitions of symbols and years."""
    found = list(years)
    return {f"{symbol}|{year}" for symbol in symbols for year in found}


def history_requests(gateway: SimulatorServer, symbol: str) -> int:
    """Return how often bars of a symbol were requested."""
    return sum(one.kind == "history" and one.symbol == symbol for one in gateway.requests)


def test_windows_of_backfills_ended_runs_and_deleted_bars_are_shown_as_they_are(
    tmp_path: Path,
) -> None:
    """Checks and the catalog follow a backfill; canceled work goes on; lost bars are offered."""
    universe = """
defaults: {start: 2023-01-01, backfill: manual}
windows: {yearly: 2014}
symbols:
  AAPL: {timeframes: [1d]}
  MSFT: {timeframes: [1d]}
  NVDA: {timeframes: [1h], start: 2014-01-01}
"""
    wanted, slow = keys(["AAPL", "MSFT"]), keys(["NVDA"], MANY_YEARS)
    with (
        running_simulator(now=NOW) as gateway,
        running_up(tmp_path, universe, gateway) as up,
    ):
        up.wait_for_partitions("1d", wanted)
        up.wait_for_partitions("1h", slow)
        assert up.windows("1d")[1:] == (set(), set()), "nothing is loaded, so nothing is filled"

        backfill = up.ended_backfill(up.launch_backfill(wanted, ["bars", "1d"], ["bars_catalog"]))
        assert backfill["status"] == "COMPLETED_SUCCESS", backfill
        assert {one["status"] for one in backfill["runs"]} == {"SUCCESS"}
        runs = {one["id"] for one in backfill["runs"]}
        events = up.node(EVENTS, "bars", "1d")[_EVENTS]
        assert Counter(one["partition"] for one in events if one["runId"] in runs) == dict.fromkeys(
            wanted, 1
        )
        for check in ("unexplained_gaps", "order_and_duplicates", "ohlc_sane", "price_basis"):
            evaluated = up.dagster.ask(CHECKS, key={"path": ["bars", "1d"]}, name=check)
            assert runs & {one["runId"] for one in evaluated["assetCheckExecutions"]}, check
        assert runs & {one["runId"] for one in up.node(EVENTS, "bars_catalog")[_EVENTS]}

        bars = up.bars("MSFT", "1d")
        shutil.rmtree(up.layout.bars / "symbol=MSFT" / "timeframe=1d")

        # Meanwhile: a canceled backfill, and a run that is terminated.
        gateway.latency_s = 4.0
        name = up.launch_backfill(slow, ["bars", "1h"])
        wait_until(lambda: up.bars("NVDA", "1h"), "bars of the backfill", seconds=LONG_S)
        up.dagster.ask(CANCEL, id=name)
        backfill = up.ended_backfill(name)
        assert backfill["status"] == "CANCELED", backfill
        assert {one["status"] for one in backfill["runs"]} <= {"CANCELED", "SUCCESS"}
        canceled = up.bars("NVDA", "1h")
        assert canceled

        run = up.launch_run("1h", f"NVDA|{MANY_YEARS[0]}", f"NVDA|{MANY_YEARS[-1]}")
        wait_until(lambda: up.bars("NVDA", "1h") > canceled, "bars of the run", seconds=LONG_S)
        up.dagster.ask(TERMINATE, id=run)
        tags = up.wait_for_run(run, "CANCELED")["tags"]
        assert (tags["bars/symbols"], tags["bars/windows"]) == ("NVDA", "2014 to 2025")
        terminated = up.bars("NVDA", "1h")
        sent = history_requests(gateway, "NVDA")
        gateway.latency_s = 0.0
        up.wait_for_run(up.reexecute(run), "SUCCESS")
        assert up.bars("NVDA", "1h") >= terminated >= canceled
        assert up.windows("1h")[1] >= slow
        assert history_requests(gateway, "NVDA") > sent, "it was terminated before its end"

        lost = keys(["MSFT"])
        wait_until(lambda: lost <= up.windows("1d")[2], "lost windows", seconds=LONG_S)
        offered = wanted - up.windows("1d")[1]
        assert offered == lost, "only failed and missing partitions within the selection"
        backfill = up.ended_backfill(up.launch_backfill(offered, ["bars", "1d"]))
        assert backfill["status"] == "COMPLETED_SUCCESS", backfill
        _, filled, failed = up.windows("1d")
        assert wanted <= filled
        assert not failed & wanted
        assert up.bars("MSFT", "1d") == bars


def test_edits_of_the_universe_are_followed_and_a_broken_one_raises_an_alert(
    tmp_path: Path,
) -> None:
    """A broken file alerts; a new symbol is loaded; one removed in a backfill ends without harm."""
    universe = """
defaults: {start: 2023-01-01, timeframes: [1d]}
windows: {yearly: 2014}
symbols:
  AAPL: {}
  NVDA: {timeframes: [1h], start: 2014-01-01, backfill: manual}
"""
    removed = "  IBM: {timeframes: [1h], start: 2014-01-01, backfill: manual}\n"
    with (
        running_simulator(now=NOW) as gateway,
        running_up(tmp_path, universe + removed, gateway) as up,
    ):
        file = up.layout.universe
        slow, gone = keys(["NVDA"], MANY_YEARS), keys(["IBM"], MANY_YEARS)
        up.wait_for_partitions("1h", slow | gone)

        file.write_text(universe + "  MSFT: {timeframes: [1x]}\n", encoding="utf-8")
        wait_until(lambda: '"name": "universe"' in up.alerts(), "an alert")
        up.wait_for_tick("universe_sensor", "1x")
        assert gone <= up.windows("1h")[0], "the last good universe stays in use"

        file.write_text(universe + removed + "  MSFT: {}\n", encoding="utf-8")
        wait_until(lambda: '"event": "all-clear"' in up.alerts(), "the all-clear")
        up.wait_for_partitions("1d", keys(["MSFT"]))
        wait_until(
            lambda: keys(["AAPL", "MSFT"]) <= up.windows("1d")[1], "bars of MSFT", seconds=LONG_S
        )
        assert len(up.bars("MSFT", "1d")) == 752

        gateway.latency_s = 4.0
        name = up.launch_backfill(slow | gone, ["bars", "1h"])
        wait_until(lambda: history_requests(gateway, "NVDA"), "requests", seconds=LONG_S)
        file.write_text(universe + "  MSFT: {}\n", encoding="utf-8")
        up.wait_for_tick("universe_sensor", "IBM: no longer")
        assert gone <= up.windows("1h")[0], "a backfill names them"
        gateway.latency_s = 0.0
        backfill = up.ended_backfill(name)
        assert backfill["error"] is None, backfill
        assert slow <= up.windows("1h")[1]
        wait_until(lambda: not gone & up.windows("1h")[0], "the partitions of IBM to go")
