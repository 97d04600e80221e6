"""ktrdr simulate, and the processes that commands start and end."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ib_async
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ib_async.wrapper import RequestError

from ktrdr_pipelines.app.views.service_documents import SimulatedGatewayDocument
from ktrdr_pipelines.cli.entry_point import stoppable
from ktrdr_pipelines.cli.processes import end, is_free, simulator_process, start
from ktrdr_pipelines.errors import SimulatorError
from ktrdr_pipelines.simulator.faults.faults import Fault
from ktrdr_pipelines.simulator.variants import SPEED_VARIANTS, MarketVariants, Variants
from tests.simulator.rawclient import AAPL, END, raw_client
from tests.support.recordings import write

STUBBORN = """\
import os, signal, subprocess, sys, threading
impatient = "impatient" in sys.argv
def refuse(*_):
    if impatient:
        os.kill(os.getppid(), signal.SIGINT)
signal.signal(signal.SIGINT, refuse)
child = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
print("ready", flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_stopped(helpers: Any, signum: signal.Signals) -> None:
    """It prints its address, market and time, and a signal ends it in order."""
    now = "2024-01-10T20:00:30Z"
    with helpers.started("simulate", "--port", "0", "--seed", "7", "--now", now) as simulator:
        line = simulator.stdout.readline()
        simulator.send_signal(signum)
        out, err = simulator.communicate(timeout=180)
    assert line.startswith("serving synthetic market 7 on 127.0.0.1:")
    assert line.endswith(f", now {now}\n")
    assert (simulator.returncode, out, err) == (0, "stopped\n", "")


def test_it_serves_recorded_bars(tmp_path: Path, helpers: Any) -> None:
    """A folder of bars is replayed, by default from its own last moment on."""
    folder = tmp_path / "bars"
    (folder / "AAPL").mkdir(parents=True)
    days = pa.array(
        [datetime(2021, 1, day, tzinfo=UTC) for day in (4, 5)], pa.timestamp("us", "UTC")
    )
    values = dict.fromkeys(("open", "high", "low", "close", "volume"), pa.array([1.0, 2.0]))
    pq.write_table(pa.table({"ts": days, **values}), folder / "AAPL" / "1d.parquet")
    with helpers.started("simulate", "--port", "0", "--bars", str(folder)) as simulator:
        line = simulator.stdout.readline()
    assert line.startswith(f"serving bars of {folder} on 127.0.0.1:")
    assert ", now 2021-01-" in line


def test_it_takes_a_table_of_durations(helpers: Any) -> None:
    """With the safe table, two days of minutes are refused with IB's text."""

    async def ask(port: int) -> str:
        ib = ib_async.IB()
        ib.RaiseRequestErrors = True
        await ib.connectAsync("127.0.0.1", port, clientId=9)
        try:
            stock = ib_async.Stock("AAPL", "SMART", "USD")
            with pytest.raises(RequestError) as refused:
                await ib.reqHistoricalDataAsync(stock, "", "2 D", "1 min", "TRADES", useRTH=True)
        finally:
            ib.disconnect()
        return str(refused.value.message)

    options = ("--port", "0", "--durations", "safe", "--now", "2024-01-10T20:00:30Z", "--json")
    with helpers.started("simulate", *options) as simulator:
        document = json.loads(simulator.stdout.readline())
        port = SimulatedGatewayDocument.model_validate(document).port
        assert asyncio.run(ask(port)).endswith("error message:invalid step: 60")


def test_the_example_of_faults_can_be_served(tmp_path: Path, helpers: Any, ktrdr: Any) -> None:
    """The printed example injects its faults; the log has them as JSON lines."""
    faults, log = tmp_path / "faults.yaml", tmp_path / "log"
    faults.write_text(ktrdr("simulate", "--faults-example").out, encoding="utf-8")
    options = ("--faults", str(faults), "--log", str(log), "--pacing", "hard", "--hold-ids", "5")
    with helpers.started("simulate", "--port", "0", *options) as simulator:
        line = simulator.stdout.readline()
        port = int(line.split(":")[1].split(",")[0])
        with raw_client(SimpleNamespace(port=port)) as client:  # type: ignore[arg-type]
            microsoft = ("0", "MSFT", *AAPL[2:])
            for number in (1, 2):
                query = (END, "1 hour", f"{number} D", "1", "TRADES", "2", "0", "")
                client.send(20, number, *microsoft, 0, *query)
            assert "no data: MSFT@SMART" in client.until(162, 1)[4]
            assert client.until(17, 2)[4] == "14"
    assert line.startswith("serving synthetic market 1 on ")
    events = [json.loads(text) for text in log.read_text(encoding="utf-8").splitlines()]
    (fault,) = (each for each in events if each["event"] == "fault")
    assert (fault["fault"], fault["request_id"]) == ("no_data", 1)
    answered = [each for each in events if each["event"] == "answered"]
    assert {each["number"]: each.get("count") for each in answered} == {0: None, 1: 14}


def test_the_help_names_every_fault_and_selector(ktrdr: Any) -> None:
    """The help alone is enough to write a file of faults."""
    result = ktrdr("simulate", "--help").out
    named = (*Fault, "kind", "symbol", "from", "until", "nth", "every", "times", "probability")
    assert [each for each in named if each not in result] == []


def test_the_help_names_every_variant(ktrdr: Any) -> None:
    """The help has every way in which gateways differ."""
    result = ktrdr("simulate", "--help").out
    fields = (*Variants.__dataclass_fields__, *MarketVariants.__dataclass_fields__, *SPEED_VARIANTS)
    assert [each for each in fields if each not in result] == []


def test_variants_reach_the_client(helpers: Any) -> None:
    """The client sees the zone of the login and a variant."""

    async def ask(port: int) -> tuple[str, str]:
        ib = ib_async.IB()
        await ib.connectAsync("127.0.0.1", port, clientId=9)
        try:
            future = ib_async.Future("ES", "202403", "CME", currency="USD")
            (es,) = await ib.reqContractDetailsAsync(future)
            stock = ib_async.Stock("AAPL", "SMART", "USD")
            (aapl,) = await ib.reqContractDetailsAsync(stock)
        finally:
            ib.disconnect()
        return f"{es.lastTradeTime} {es.timeZoneId}", aapl.timeZoneId

    options = ("--zone", "Europe/Zurich", "--variant", "zone_names=modern")
    result = ("--port", "0", "--now", "2024-01-10T20:00:30Z", "--json")
    with helpers.started("simulate", *result, *options) as simulator:
        port = json.loads(simulator.stdout.readline())["port"]
        assert asyncio.run(ask(port)) == ("14:30:00 Europe/Zurich", "America/New_York")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--zone", "Mars/Base"), ("Mars/Base", "Europe/Zurich")),
        (("--zone", "Europe"), ("Europe", "no such zone")),
        (("--variant", "flat_bar=THIN"), ("Did you mean flat_bars",)),
        (("--variant", "flat_bars"), ("it has no value",)),
        (("--variant", "week_name=2W"), ("both, 1 week, 1W, none",)),
        (("--variant", "plain_expiry_days=-1"), ("whole number of days",)),
        (("--variant", "account_comma=1"), ("yes or no",)),
        (("--variant", "end_factor=fast"), ("from 1 to 1000",)),
        (("--variant", "noise=nan", "--pacing", "soft"), ("from 0 to 2",)),
        (("--variant", "workers=0", "--pacing", "soft"), ("whole number from 1",)),
        (("--variant", "workers=6,3@60,9@60", "--pacing", "soft"), ("6,3@60,12@120",)),
        (("--variant", "load=0.1"), ("load=0.1 with --pacing documented", "Add --pacing soft")),
        (("--variant", "crypto_zone=Mars"), ("Mars",)),
        (("--variant", "greeting_zone=\N{SNOWMAN}"), ("no such characters",)),
    ],
)
def test_an_invalid_variant_is_bad_usage(
    ktrdr: Any, options: tuple[str, ...], named: tuple[str, ...]
) -> None:
    """The error names the value and what is allowed."""
    ktrdr("simulate", "--port", "0", *options).is_error(2, *named)


def test_a_malformed_file_of_faults(tmp_path: Path, ktrdr: Any) -> None:
    """The error names file, line and key, and the nearest valid value."""
    faults = tmp_path / "faults.yaml"
    faults.write_text("faults:\n  - {fault: silense}\n", encoding="utf-8")
    ktrdr("simulate", "--port", "0", "--faults", str(faults)).is_error(
        1, f"{faults}, line 2, fault", "Did you mean silence"
    )


def test_a_file_of_splits_changes_the_price_basis(tmp_path: Path, helpers: Any) -> None:
    """On the ex-date the day before has a quarter of its price and four times its volume."""

    async def ask(port: int) -> tuple[float, float]:
        ib = ib_async.IB()
        await ib.connectAsync("127.0.0.1", port, clientId=9)
        try:
            stock = ib_async.Stock("AAPL", "SMART", "USD")
            asked = ib.reqHistoricalDataAsync(stock, "", "1 D", "1 day", "TRADES", useRTH=True)
            (day,) = await asked
        finally:
            ib.disconnect()
        return day.close, day.volume

    splits = tmp_path / "splits.csv"
    splits.write_text("symbol,ex_date,ratio\nAAPL,2024-01-10,4\n", encoding="utf-8")
    served = []
    for now in ("2024-01-10T01:00:00Z", "2024-01-10T06:00:00Z"):
        options = ("--port", "0", "--json", "--now", now, "--splits", str(splits))
        with helpers.started("simulate", *options) as simulator:
            served.append(asyncio.run(ask(json.loads(simulator.stdout.readline())["port"])))
    (old_close, old_volume), (close, volume) = served
    assert close == pytest.approx(old_close / 4, abs=0.005 + 1e-9)
    assert volume == 4 * old_volume


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("AAPL,2024-01-10,4:1", ("line 2, ratio", "'4:1'", "4 for 4:1")),
        ("AAPL,10.1.2024,4", ("line 2, ex_date", "2020-08-31")),
        ("AAPLX,2024-01-10,4", ("line 2, symbol", "Did you mean AAPL")),
    ],
)
def test_a_malformed_file_of_splits_is_bad_usage(
    tmp_path: Path, ktrdr: Any, line: str, named: tuple[str, ...]
) -> None:
    """The error names file, line and field, and what is allowed."""
    splits = tmp_path / "splits.csv"
    splits.write_text(f"symbol,ex_date,ratio\n{line}\n", encoding="utf-8")
    ktrdr("simulate", "--port", "0", "--splits", str(splits)).is_error(2, str(splits), *named)


def test_a_missing_file_of_splits_is_bad_usage(tmp_path: Path, ktrdr: Any) -> None:
    """The error names the file."""
    splits = tmp_path / "none.csv"
    ktrdr("simulate", "--port", "0", "--splits", str(splits)).is_error(2, str(splits), "No such")


def test_splits_of_recorded_bars_must_be_recorded(tmp_path: Path, ktrdr: Any) -> None:
    """A symbol that the folder does not have would have no effect."""
    folder, splits = tmp_path / "bars", tmp_path / "splits.csv"
    folder.mkdir()
    write(folder, "SPY", "1d", [(date(2021, 1, 4), 1.0, 2.0, 0.5, 1.5, 7.0)])
    splits.write_text("symbol,ex_date,ratio\nAAPL,2024-01-10,4\n", encoding="utf-8")
    options = ("--bars", str(folder), "--splits", str(splits))
    ktrdr("simulate", "--port", "0", *options).is_error(2, "line 2, symbol", "'AAPL'")


def test_a_port_in_use(ktrdr: Any, gateway: Any) -> None:
    """The error names the port and the option."""
    ktrdr("simulate", "--port", str(gateway.port)).is_error(1, str(gateway.port), "--port")


def test_a_missing_folder_of_bars(ktrdr: Any, tmp_path: Path) -> None:
    """The error names the folder."""
    folder = tmp_path / "nowhere"
    ktrdr("simulate", "--port", "0", "--bars", str(folder)).is_error(
        1, str(folder), "no such folder"
    )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--bars", "a", "--seed", "1"), "--bars with --seed"),
        (("--bars", "a", "--variant", "flat_bars=all"), "--bars with --variant flat_bars=all"),
    ],
)
def test_options_that_exclude_each_other_are_refused(
    ktrdr: Any, options: tuple[str, ...], named: str
) -> None:
    """They are bad usage, before any file is read."""
    ktrdr("simulate", "--port", "0", *options).is_error(2, named)


@pytest.mark.parametrize("now", ["2024-01-10T20:00:30", "2024-01-10", "noon"])
def test_a_clock_needs_an_instant_with_a_zone(ktrdr: Any, now: str) -> None:
    """A naive instant, a date or any other text is refused."""
    ktrdr("simulate", "--port", "0", "--now", now).is_error(2, f"--now {now}", "zone")


def test_a_simulator_process_ends_with_the_context() -> None:
    """Its port is in use while the context lasts, and free afterwards."""
    with simulator_process() as simulator:
        assert not is_free(simulator.port)
    assert is_free(simulator.port)


def test_a_simulator_ends_with_the_process_that_started_it() -> None:
    """It watches its stdin, as its parent may be killed."""
    command = (sys.executable, "-m", "ktrdr_pipelines.cli.main", "simulate", "--json")
    process = subprocess.Popen(
        [*command, "--port", "0", "--until-stdin-closes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["host"] == "127.0.0.1"
    process.stdin.close()
    assert process.wait(timeout=180) == 0
    process.stdout.close()


def test_a_simulator_that_cannot_start_says_why(gateway: Any) -> None:
    """The error has the message of the process."""
    with (
        pytest.raises(SimulatorError, match=f"{gateway.port}"),
        simulator_process(port=gateway.port),
    ):
        pass


def test_a_simulator_that_reports_no_port_is_ended() -> None:
    """The error names the seconds that it had."""
    with (
        pytest.raises(SimulatorError, match="did not report its port within 0 s"),
        simulator_process(within_s=0),
    ):
        pass


def test_end_leaves_no_process_of_a_group(helpers: Any) -> None:
    """A process that ignores SIGINT is terminated, with its child."""
    process = start([sys.executable, "-c", STUBBORN], output=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    assert len(helpers.group_members(process.pid)) == 2
    end(process, grace_s=0.3)
    assert helpers.group_members(process.pid) == []
    end(process, grace_s=0.3)


def test_a_second_interrupt_ends_the_grace(helpers: Any) -> None:
    """A second Ctrl-C sends the harder signal immediately, and no process is left."""
    process = start([sys.executable, "-c", STUBBORN, "impatient"], output=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    with stoppable():
        end(process, grace_s=60.0)
    assert helpers.group_members(process.pid) == []


class InterruptedLock:
    """The lock of a process's exit code: a signal arrives just after it was first taken."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.taken = 0

    def acquire(self, blocking: bool = True) -> bool:
        taken = self._lock.acquire(blocking)
        if taken:
            self.taken += 1
            if self.taken == 1:
                signal.raise_signal(signal.SIGINT)
        return taken

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def test_an_interrupt_inside_a_wait_leaves_nothing_locked(helpers: Any) -> None:
    """A signal just after a wait took its lock cannot keep the process from being reaped."""
    command = [sys.executable, "-c", STUBBORN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, process_group=0) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        lock = InterruptedLock()
        process._waitpid_lock = lock  # type: ignore[attr-defined]
        with stoppable():
            end(process, grace_s=60.0)
        assert lock.taken
        assert lock.acquire(blocking=False)
        lock.release()
        assert process.returncode == -signal.SIGTERM
        assert helpers.group_members(process.pid) == []
        end(process, grace_s=60.0)


def test_end_may_be_called_in_any_thread(helpers: Any) -> None:
    """Two threads and the main thread end one process."""
    process = start([sys.executable, "-c", STUBBORN], output=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    threads = [threading.Thread(target=end, args=(process,), kwargs={"grace_s": 0.3}) for _ in "ab"]
    for thread in threads:
        thread.start()
    end(process, grace_s=0.3)
    for thread in threads:
        thread.join()
    assert process.returncode == -signal.SIGTERM
    assert helpers.group_members(process.pid) == []
