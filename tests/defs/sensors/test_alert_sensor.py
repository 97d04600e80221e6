"""The alert sensor: one alert an outage, one all-clear, to the log and to a person's command."""

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ktrdr_pipelines.defs.resources import StoreResource
from ktrdr_pipelines.defs.runs.tags import CAUSE, REQUESTS, SYMBOL, TIMEFRAME
from ktrdr_pipelines.defs.sensors.alert_sensor import Ended, after, alert_sensor


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


AT = datetime(2024, 6, 3, 14, tzinfo=UTC)


def failed(work: str, cause: str, minute: int = 0) -> Ended:
    """Make work that failed."""
    return Ended(work, AT + timedelta(minutes=minute), failed=True, cause=cause, text=cause)


def succeeded(work: str, *, used_gateway: bool = False) -> Ended:
    """Make work that ended well."""
    return Ended(work, AT, used_gateway=used_gateway)


def test_many_failures_of_the_gateway_are_one_outage() -> None:
    """Whatever work meets it, and in whatever shape, it is one gateway that is away."""
    change = after(
        {},
        [
            failed("bars/1m", "GatewayUnreachableError"),
            failed("bars/1d AAPL", "GatewayRestingError", 1),
            failed("tails", "ClientIdInUseError", 2),
        ],
    )
    [outage] = change.begun
    assert (outage.name, outage.since, outage.failures) == ("gateway", AT, 3)
    again = after(change.open_outages, [failed("bars/1h", "GatewayUnreachableError", 3)])
    assert again.begun == ()
    assert again.open_outages["gateway"].failures == 4


def test_only_an_answer_ends_an_outage_of_the_gateway() -> None:
    """A run that asked nothing proves nothing."""
    known = after({}, [failed("bars/1m", "GatewayUnreachableError")]).open_outages
    assert after(known, [succeeded("bars/1m")]).over == ()
    change = after(known, [succeeded("bars/1d", used_gateway=True)])
    assert [one.name for one in change.over] == ["gateway"]
    assert change.open_outages == {}


def test_what_fails_by_itself_ends_by_itself() -> None:
    """Unexplained windows of one series, and a run that died, have nothing to do with others."""
    known = after({}, [failed("bars/1d AAPL", "IncompleteError"), failed("tails", "")]).open_outages
    assert set(known) == {"bars/1d AAPL", "tails"}
    change = after(known, [succeeded("bars/1d MSFT", used_gateway=True), succeeded("tails")])
    assert [one.name for one in change.over] == ["tails"]
    assert set(change.open_outages) == {"bars/1d AAPL"}


def test_what_begins_and_ends_between_two_looks_alerts_nobody() -> None:
    """It is over before anybody could be told."""
    change = after({}, [failed("bars/1d AAPL", "BadAnswerError"), succeeded("bars/1d AAPL")])
    assert (change.begun, change.over, change.open_outages) == ((), (), {})


def test_an_error_that_an_earlier_version_recorded_belongs_to_its_outage() -> None:
    """Runs of before the update are read after it."""
    change = after({}, [failed("bars/1m", "GatewaySilentError"), failed("tails", "OutageError")])
    assert [one.name for one in change.begun] == ["gateway"]
