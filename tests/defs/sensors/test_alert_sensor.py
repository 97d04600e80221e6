"""The alert sensor: one alert and one all-clear an outage, to the log and the user's command."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from ktrdr_pipelines.defs.runs.tags import CAUSE, REQUESTS, SYMBOL, TIMEFRAME
from ktrdr_pipelines.defs.sensors.alert_sensor import Ended, outages_after
from ktrdr_pipelines.store.layout import create_store
from tests.support.alert_ticks import AlertTicker


@dg.op
def job(context: dg.OpExecutionContext) -> None:
    """Fail if the run is tagged so."""
    if "fail" in context.run.tags:
        raise dg.Failure("cannot reach 127.0.0.1:4002")
    if "break" in context.run.tags:
        raise ValueError("no such window")


@dg.job
def tails() -> None:
    """Run the op."""
    job()


@dg.asset(key=["bars", "1d"])
def broken() -> None:
    """Fail."""
    raise dg.Failure("broken")


class Ticker(AlertTicker):
    """Ticks the sensor after runs of the job."""

    def run(self, **tags: str) -> None:
        """Run the job with some tags."""
        tails.execute_in_process(instance=self.instance, tags=tags, raise_on_error=False)


@pytest.fixture
def ticker(tmp_path: Path) -> Iterator[Ticker]:
    """Return the sensor over an instance of its own."""
    home = tmp_path / "home"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        yield Ticker(tmp_path, instance, Path("/the/store"))


def test_an_outage_is_alerted_once_and_so_is_its_end(
    ticker: Ticker, caplog: pytest.LogCaptureFixture
) -> None:
    """Five failed runs make one alert, and the first run with requests one all-clear."""
    assert ticker.tick() == "nothing is failing"
    for _ in range(3):
        ticker.run(fail="yes", **{CAUSE: "GatewayUnreachableError"})
    assert "begins to fail: gateway since" in ticker.tick()
    ticker.run(fail="yes", **{CAUSE: "GatewayRestingError"})
    ticker.run(fail="yes", **{CAUSE: "GatewayUnreachableError"})
    assert ticker.tick() == "no change; still failing, already alerted: gateway"
    ticker.run()
    assert "still failing" in ticker.tick()
    ticker.run(**{REQUESTS: "3"})
    assert "works again: gateway since" in ticker.tick()
    assert ticker.tick() == "nothing is failing"
    outage, clear = ticker.alerts()
    assert (outage["event"], clear["event"]) == ("outage", "all-clear")
    assert outage["store"] == "/the/store"
    [described] = outage["outages"]
    assert (described["name"], described["cause"], described["failures"]) == (
        "gateway",
        "GatewayUnreachableError",
        3,
    )
    assert described["text"] == "cannot reach 127.0.0.1:4002"
    assert clear["outages"][0]["failures"] == 5


def test_a_run_without_an_error_is_an_outage_of_its_job(ticker: Ticker) -> None:
    """The next success of the job is the all-clear."""
    ticker.run(fail="yes")
    assert "begins to fail: tails" in ticker.tick()
    ticker.run()
    assert "works again: tails" in ticker.tick()


@pytest.mark.parametrize("command", ["/no/such/command", f"{sys.executable} -c 'exit(3)'", "'"])
def test_a_failing_command_does_not_fail_the_tick(ticker: Ticker, command: str) -> None:
    """The outage counts as alerted."""
    ticker.command = command
    ticker.run(fail="yes")
    assert "begins to fail" in ticker.tick()
    assert "already alerted" in ticker.tick()


def test_without_a_command_it_is_logged_only(ticker: Ticker) -> None:
    """No command is run by default."""
    ticker.command = None
    ticker.run(fail="yes")
    assert "begins to fail" in ticker.tick()
    assert ticker.alerts() == []


def test_an_alert_names_the_job_once_and_the_error_that_dagster_wrapped(ticker: Ticker) -> None:
    """The text is that of the project's error, and an asset's timeframe is not repeated."""
    ticker.run(**{"break": "yes", TIMEFRAME: "1d", SYMBOL: "AAPL"})
    text = ticker.tick()
    assert "begins to fail: tails 1d AAPL since" in text
    assert "(1 failure: ValueError: no such window)" in text
    job = dg.Definitions(
        assets=[broken], jobs=[dg.define_asset_job("broken_job", [broken])]
    ).resolve_job_def("broken_job")
    materialized = job.execute_in_process(
        instance=ticker.instance,
        asset_selection=[broken.key],
        tags={TIMEFRAME: "1d"},
        raise_on_error=False,
    )
    assert not materialized.success
    assert "begins to fail: bars/1d since" in ticker.tick()


def test_a_failed_run_of_several_symbols_is_no_outage_of_one_of_them(ticker: Ticker) -> None:
    """The next run of a symbol at fault is alone; a success of several ends the outage of each."""
    of_aapl, of_both = {TIMEFRAME: "1d", SYMBOL: "AAPL"}, {TIMEFRAME: "1d", SYMBOL: "AAPL+MSFT"}
    ticker.run(fail="yes", **of_both)
    assert ticker.tick() == "nothing is failing"
    ticker.run(fail="yes", **of_both, **{CAUSE: "DiskError"})
    assert "begins to fail: disk since" in ticker.tick()
    ticker.run(fail="yes", **of_aapl)
    assert "begins to fail: tails 1d AAPL since" in ticker.tick()
    ticker.run(**of_both, **{REQUESTS: "2"})
    assert "works again: disk since" in (text := ticker.tick())
    assert "tails 1d AAPL since" in text


AT = datetime(2024, 6, 3, 14, tzinfo=UTC)


def failed(job_name: str, cause: str, minute: int = 0) -> Ended:
    """Return a failed run of a job."""
    at = AT + timedelta(minutes=minute)
    return Ended(job_name, at, failed=True, cause=cause, text=cause)


def succeeded(job_name: str, *, used_gateway: bool = False) -> Ended:
    """Return a successful run of a job."""
    return Ended(job_name, AT, used_gateway=used_gateway)


def test_an_invalid_universe_is_an_outage_until_it_is_repaired(
    ticker: Ticker, tmp_path: Path
) -> None:
    """It is alerted once, although the last good universe replaces it."""
    layout = create_store(tmp_path / "data")
    ticker.data_dir = layout.root
    layout.universe.write_text("symbols: {AAPL: {}}")
    assert ticker.tick() == "nothing is failing"
    layout.universe.write_text("symbols: {AAPL: {timeframe: [1d]}}")
    assert "universe since" in ticker.tick()
    assert "already alerted: universe" in ticker.tick()
    layout.universe.write_text("symbols: {AAPL: {}}")
    assert ticker.tick().startswith("works again: universe")
    outage, over = ticker.alerts()
    assert (outage["event"], over["event"]) == ("outage", "all-clear")
    [found] = outage["outages"]
    assert (found["name"], found["cause"], found["failures"]) == ("universe", "UniverseError", 1)
    assert "timeframe" in found["text"]


def test_a_check_that_fails_as_an_error_is_an_outage(ticker: Ticker) -> None:
    """One that warns is not; a later success ends it."""
    key = dg.AssetKey(["bars", "1d"])
    ticker.checks = (dg.AssetCheckKey(key, "ohlc_sane"), dg.AssetCheckKey(key, "file_integrity"))

    def evaluated(name: str, *, passed: bool, severity: dg.AssetCheckSeverity) -> None:
        found = dg.AssetCheckEvaluation(
            asset_key=key, check_name=name, passed=passed, severity=severity, description="3 of 9"
        )
        ticker.instance.report_runless_asset_event(found)

    warn, error = dg.AssetCheckSeverity.WARN, dg.AssetCheckSeverity.ERROR
    evaluated("file_integrity", passed=False, severity=warn)
    evaluated("ohlc_sane", passed=False, severity=error)
    assert "bars/1d ohlc_sane since" in ticker.tick()
    assert "already alerted: bars/1d ohlc_sane" in ticker.tick()
    evaluated("ohlc_sane", passed=True, severity=error)
    assert ticker.tick().startswith("works again: bars/1d ohlc_sane")
    [outage] = ticker.alerts()[0]["outages"]
    assert (outage["cause"], outage["text"]) == ("AssetCheckFailed", "3 of 9")


def test_failures_of_the_gateway_are_one_outage() -> None:
    """Whatever the job and the class of the error, they share one outage."""
    change = outages_after(
        {},
        [
            failed("bars/1m", "GatewayUnreachableError"),
            failed("bars/1d AAPL", "GatewayRestingError", 1),
            failed("tails", "ClientIdInUseError", 2),
        ],
    )
    [outage] = change.begun
    assert (outage.name, outage.since, outage.failures) == ("gateway", AT, 3)
    again = outages_after(change.open_outages, [failed("bars/1h", "GatewayUnreachableError", 3)])
    assert again.begun == ()
    assert again.open_outages["gateway"].failures == 4


def test_only_a_run_with_requests_ends_an_outage_of_the_gateway() -> None:
    """A successful run without requests does not end it."""
    known = outages_after({}, [failed("bars/1m", "GatewayUnreachableError")]).open_outages
    assert outages_after(known, [succeeded("bars/1m")]).over == ()
    change = outages_after(known, [succeeded("bars/1d", used_gateway=True)])
    assert [one.name for one in change.over] == ["gateway"]
    assert change.open_outages == {}


def test_another_outage_ends_with_a_success_of_its_own_job() -> None:
    """Successes of other jobs end neither unexplained windows nor a run without an error."""
    known = outages_after(
        {}, [failed("bars/1d AAPL", "IncompleteError"), failed("tails", "")]
    ).open_outages
    assert set(known) == {"bars/1d AAPL", "tails"}
    change = outages_after(
        known, [succeeded("bars/1d MSFT", used_gateway=True), succeeded("tails")]
    )
    assert [one.name for one in change.over] == ["tails"]
    assert set(change.open_outages) == {"bars/1d AAPL"}


def test_an_outage_that_begins_and_ends_between_two_ticks_is_not_alerted() -> None:
    """It is neither begun nor over."""
    change = outages_after(
        {}, [failed("bars/1d AAPL", "BadAnswerError"), succeeded("bars/1d AAPL")]
    )
    assert (change.begun, change.over, change.open_outages) == ((), (), {})


def test_error_classes_of_earlier_versions_belong_to_their_outage() -> None:
    """Runs from before an update are read after it."""
    change = outages_after(
        {}, [failed("bars/1m", "GatewaySilentError"), failed("tails", "OutageError")]
    )
    assert [one.name for one in change.begun] == ["gateway"]
