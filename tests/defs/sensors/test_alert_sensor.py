"""The alert sensor: one alert an outage, one all-clear, to the log and to a person's command."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ktrdr_pipelines.defs.resources import StoreResource
from ktrdr_pipelines.defs.runs.tags import CAUSE, REQUESTS, SYMBOL, TIMEFRAME
from ktrdr_pipelines.defs.sensors.alert_sensor import alert_sensor


@dg.op
def job(context: dg.OpExecutionContext) -> None:
    """Fail where the run is told to."""
    if "fail" in context.run.tags:
        raise dg.Failure("cannot reach 127.0.0.1:4002")
    if "break" in context.run.tags:
        raise ValueError("no such window")


@dg.job
def tails() -> None:
    """Work."""
    job()


@dg.asset(key=["bars", "1d"])
def broken() -> None:
    """Fail."""
    raise dg.Failure("broken")


class Watch:
    """The sensor with a command that keeps what it is told."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        self.heard = folder / "heard.jsonl"
        script = folder / "alert.py"
        script.write_text(
            "import pathlib, sys\n"
            f"with pathlib.Path({str(self.heard)!r}).open('a') as file:\n"
            "    file.write(sys.stdin.read() + '\\n')\n"
        )
        self.instance, self.cursor = instance, None
        self.sensor: Any = alert_sensor(f"{sys.executable} {script}")

    def run(self, **tags: str) -> None:
        tails.execute_in_process(instance=self.instance, tags=tags, raise_on_error=False)

    def tick(self) -> str:
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            resources={"store": StoreResource(data_dir="/the/store")},
        )
        result = self.sensor(context)
        self.cursor = result.cursor
        return str(result.skip_reason.skip_message)

    def alerts(self) -> list[dict[str, Any]]:
        if not self.heard.exists():
            return []
        return [json.loads(line) for line in self.heard.read_text().splitlines()]


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    """Give the sensor over an instance of its own."""
    home = tmp_path / "home"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        yield Watch(tmp_path, instance)


def test_an_outage_is_alerted_once_and_so_is_its_end(
    watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    """Five failed runs make one alert; the first answer makes one all-clear."""
    assert watch.tick() == "nothing is failing"
    for _ in range(3):
        watch.run(fail="yes", **{CAUSE: "GatewayUnreachableError"})
    assert "begins to fail: gateway since" in watch.tick()
    watch.run(fail="yes", **{CAUSE: "GatewayRestingError"})
    watch.run(fail="yes", **{CAUSE: "GatewayUnreachableError"})
    assert watch.tick() == "no change; still failing, already alerted: gateway"
    watch.run()
    assert "still failing" in watch.tick()
    watch.run(**{REQUESTS: "3"})
    assert "works again: gateway since" in watch.tick()
    assert watch.tick() == "nothing is failing"
    outage, clear = watch.alerts()
    assert (outage["event"], clear["event"]) == ("outage", "all-clear")
    assert outage["store"] == "/the/store"
    [told] = outage["outages"]
    assert (told["name"], told["cause"], told["failures"]) == (
        "gateway",
        "GatewayUnreachableError",
        3,
    )
    assert told["text"] == "cannot reach 127.0.0.1:4002"
    assert clear["outages"][0]["failures"] == 5


def test_a_run_that_died_is_alerted_by_its_work(watch: Watch) -> None:
    """It left no error behind; its next success is the all-clear."""
    watch.run(fail="yes")
    assert "begins to fail: tails" in watch.tick()
    watch.run()
    assert "works again: tails" in watch.tick()


@pytest.mark.parametrize("command", ["/no/such/command", f"{sys.executable} -c 'exit(3)'", "'"])
def test_a_command_that_fails_stops_nothing(watch: Watch, command: str) -> None:
    """The tick goes on, and the outage counts as told."""
    watch.sensor = alert_sensor(command)
    watch.run(fail="yes")
    assert "begins to fail" in watch.tick()
    assert "already alerted" in watch.tick()


def test_without_a_command_it_is_logged_only(watch: Watch) -> None:
    """Off by default: nothing is started."""
    watch.sensor = alert_sensor(None)
    watch.run(fail="yes")
    assert "begins to fail" in watch.tick()
    assert watch.alerts() == []


def test_an_alert_names_the_work_once_and_the_cause_that_dagster_wrapped(watch: Watch) -> None:
    """A person reads what broke, not that an op did, and an asset's timeframe once."""
    watch.run(**{"break": "yes", TIMEFRAME: "1d", SYMBOL: "AAPL"})
    told = watch.tick()
    assert "begins to fail: tails 1d AAPL since" in told
    assert "(1 failure: ValueError: no such window)" in told
    job = dg.Definitions(
        assets=[broken], jobs=[dg.define_asset_job("broken_job", [broken])]
    ).resolve_job_def("broken_job")
    materialized = job.execute_in_process(
        instance=watch.instance,
        asset_selection=[broken.key],
        tags={TIMEFRAME: "1d"},
        raise_on_error=False,
    )
    assert not materialized.success
    assert "begins to fail: bars/1d since" in watch.tick()
