"""The gap filler: what its scans found, its sensor's switch in Dagster, and forced scans."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    InProcessCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    SensorInstigatorData,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._daemon.types import DaemonHeartbeat

from ktrdr_pipelines.app.services.gap_filler import RECORD, GapFillerService, make_attempts_due
from ktrdr_pipelines.app.services.ib_service import IbService
from ktrdr_pipelines.app.services.sensor_switch import SensorSwitch
from ktrdr_pipelines.app.services.system_status import SystemService
from ktrdr_pipelines.app.setup import prepare_home
from ktrdr_pipelines.app.views.load_documents import OperationDocument, OperationState
from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.domain.instruments import Origin, Series
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import NoStoreError, UniverseError, UsageError
from ktrdr_pipelines.settings import Settings
from ktrdr_pipelines.store.layout import create_store
from ktrdr_pipelines.store.ledger.attempts import AttemptKind
from tests.support.complete_series import save_complete

NOW = datetime(2024, 3, 11, 12, tzinfo=UTC)
"""A Monday before the open; the week before has ended."""

FIRST, END = date(2024, 3, 4), date(2024, 3, 9)
UNIVERSE = "defaults: {timeframes: [1d], start: 2024-03-04}\nsymbols: {AAPL: {}, MSFT: {}}\n"


class FakeOperations:
    """Starts updates that never run."""

    def __init__(self) -> None:
        self.started = 0

    def wait(self, operation_id: str, timeout_s: float | None = None) -> OperationDocument:
        raise AssertionError("a scan is not waited for")

    def start_update(self) -> OperationDocument:
        self.started += 1
        return OperationDocument(
            id="update-1",
            kind="update",
            description="",
            state=OperationState.RUNNING,
            started_at=NOW,
        )


class Setup:
    """A store whose time a test sets, and its gap filler."""

    def __init__(self, folder: Path) -> None:
        self.now = NOW
        self.layout = create_store(folder / "data", Origin.IB)
        self.layout.universe.write_text(UNIVERSE)
        self.settings = Settings(
            ib_port=1, ktrdr_data=folder / "data", ktrdr_state=folder / "state"
        )
        self.operations = FakeOperations()
        self.service = GapFillerService(
            self.open, operations=self.operations, clock=lambda: self.now
        )

    def open(self) -> Workspace:
        opened = Workspace.open(self.settings)
        return Workspace(self.settings, opened.layout, real=lambda: self.now)

    def save(self, symbol: str, *without: date) -> None:
        workspace = self.open()
        series = Series(workspace.universe.instrument(symbol), Timeframe.D1)
        save_complete(workspace.store, series, FIRST, END, without=without)

    def scan(self) -> None:
        self.service.scan(self.open(), self.now)

    def defer(self, symbol: str, day: date) -> None:
        """Record a failed attempt at a day, to be repeated in an hour."""
        start = datetime(day.year, day.month, day.day, tzinfo=UTC)
        self.open().ledger.attempts.record(
            f"{symbol}|1d",
            Interval(start, start + timedelta(days=1)),
            AttemptKind.ERROR,
            error="timeout",
            code=None,
            next_try_at=self.now + timedelta(hours=1),
            at=self.now,
        )


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    """Return a store without bars."""
    made = Setup(tmp_path)
    yield made
    made.service.close()


def test_scans_are_recorded_and_closed_gaps_counted(setup: Setup) -> None:
    """Of the gaps of one scan, those without a missing part in the next are filled."""
    setup.save("AAPL", date(2024, 3, 5), date(2024, 3, 7))
    before = setup.service.status()
    assert (before.symbols, before.series_watched) == (("AAPL", "MSFT"), 2)
    assert (before.last_scan, before.enabled, before.running) == (None, None, False)
    setup.defer("AAPL", date(2024, 3, 7))
    setup.scan()
    first = setup.service.status()
    assert (first.gaps_detected, first.bars_missing, first.gaps_filled) == (3, 7, 0)
    assert (first.gaps_failed, first.next_try_at) == (1, NOW + timedelta(hours=1))
    assert (first.last_scan, first.last_error) == (NOW, None)
    setup.save("AAPL", date(2024, 3, 7))
    setup.now += timedelta(seconds=30)
    setup.scan()
    second = setup.service.status()
    assert (second.gaps_detected, second.bars_missing, second.gaps_filled) == (2, 6, 1)
    setup.save("AAPL")
    setup.save("MSFT")
    setup.layout.universe.write_text("symbols: {AAPL: {timeframes: [1d], start: 2024-03-04}}")
    setup.scan()
    third = setup.service.status()
    assert (third.gaps_detected, third.gaps_filled) == (0, 2)  # MSFT is not watched any more
    assert third.symbols == ("AAPL",)
    (setup.layout.state / RECORD).write_text("{")
    assert setup.service.status().last_scan is None
    setup.scan()
    assert setup.service.status().gaps_filled == 0


def test_a_failed_scan_is_told_beside_the_last_figures(setup: Setup) -> None:
    """The figures stay those of the last scan that could be made."""
    setup.scan()
    (setup.layout.state / "universe.good.yaml").unlink()
    setup.layout.universe.write_text("symbols: [")
    setup.now += timedelta(seconds=30)
    with pytest.raises(UniverseError):
        setup.scan()
    status = setup.service.status()
    assert (status.gaps_detected, status.last_scan) == (2, setup.now)
    assert status.last_error is not None
    assert status.last_error.kind == UniverseError.__name__
    setup.layout.universe.write_text(UNIVERSE)
    setup.scan()
    assert setup.service.status().last_error is None


def test_a_store_that_is_gone_is_an_error(setup: Setup) -> None:
    """Nothing is made in its place."""
    setup.layout.root.rename(setup.layout.root.with_name("moved"))
    with pytest.raises(NoStoreError):
        setup.service.status()
    assert not setup.layout.root.exists()


def test_without_dagster_a_forced_scan_is_an_update(setup: Setup) -> None:
    """Deferred requests become due, and without operations of the caller it has its own."""
    with pytest.raises(UsageError, match="ktrdr up"):
        setup.service.start()
    with closing(GapFillerService(setup.open)) as alone:
        began = alone.force_scan().operation
        assert began is not None
        ended = alone.wait(began.id, 60)
    assert ended.state is OperationState.FAILED
    assert ended.error is not None
    assert ended.error.kind == "GatewayUnreachableError"
    for symbol in ("AAPL", "MSFT"):
        assert setup.open().ledger.attempts.of(f"{symbol}|1d") == []
    setup.defer("AAPL", date(2024, 3, 7))
    forced = setup.service.force_scan()
    assert (forced.gaps_made_due, forced.sensor_woken) == (1, False)
    assert forced.operation is not None
    assert "no Dagster daemon runs" in forced.message
    assert setup.operations.started == 1
    assert make_attempts_due(setup.open()) == 0
    assert not (setup.layout.root / "dagster").exists()


def test_reads_without_dagster_do_not_import_it(setup: Setup) -> None:
    """The import takes most of a second."""
    code = (
        "import sys; from ktrdr_pipelines.app.services.gap_filler import GapFillerService;"
        "GapFillerService().status(); print('dagster' in sys.modules)"
    )
    environment = {"KTRDR_DATA": str(setup.layout.root), "KTRDR_STATE": str(setup.layout.root)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path), **environment},
    )
    assert done.stdout == "False\n"


@pytest.fixture
def instance(setup: Setup) -> Iterator[Any]:
    """Return the Dagster instance of the store, in which the sensor has run."""
    with dg.DagsterInstance.from_config(str(prepare_home(setup.layout))) as instance:
        target = LoadableTargetOrigin(
            executable_path=sys.executable, module_name="ktrdr_pipelines.definitions"
        )
        location = InProcessCodeLocationOrigin(target, location_name="ktrdr")
        for name in ("gap_sensor", "gateway_sensor"):
            origin = RemoteInstigatorOrigin(
                RemoteRepositoryOrigin(location, "__repository__"), name
            )
            data = SensorInstigatorData(
                last_tick_timestamp=NOW.timestamp(),
                last_tick_start_timestamp=NOW.timestamp(),
                cursor="kept",
            )
            status = InstigatorStatus.DECLARED_IN_CODE
            instance.add_instigator_state(
                InstigatorState(origin, InstigatorType.SENSOR, status, data)
            )
        yield instance


def beat(instance: Any, at: datetime) -> None:
    """Record a heartbeat of the daemon that runs sensors."""
    instance.add_daemon_heartbeat(DaemonHeartbeat(at.timestamp(), "SENSOR", "1", []))


def states(instance: Any) -> dict[str, Any]:
    """Return the states of all sensors, by name."""
    return {one.instigator_name: one for one in instance.all_instigator_state()}


def test_the_sensor_is_switched_in_dagsters_instance(setup: Setup, instance: Any) -> None:
    """Only that sensor; it runs while it is on and the daemon's heart beats."""
    assert (setup.service.status().enabled, setup.service.status().running) == (True, False)
    beat(instance, NOW)
    setup.now += timedelta(seconds=4)  # what was read is served for three seconds
    assert setup.service.status().running
    stopped = setup.service.stop()
    assert (stopped.enabled, stopped.running) == (False, False)
    assert not states(instance)["gap_sensor"].is_running
    assert states(instance)["gateway_sensor"].is_running
    assert setup.service.stop().enabled is False
    started = setup.service.start()
    assert (started.enabled, started.running) == (True, True)
    data = states(instance)["gap_sensor"].instigator_data
    assert (data.cursor, data.last_sensor_start_timestamp) == ("kept", setup.now.timestamp())
    setup.now += timedelta(minutes=2)
    dead = setup.service.status()
    assert (dead.enabled, dead.running) == (True, False)


def test_a_forced_scan_wakes_the_sensor_of_a_living_daemon(setup: Setup, instance: Any) -> None:
    """Its last tick is forgotten, not its cursor; a sensor that is off is not switched on."""
    beat(instance, NOW)
    setup.defer("AAPL", date(2024, 3, 7))
    forced = setup.service.force_scan()
    assert (forced.gaps_made_due, forced.sensor_woken, forced.operation) == (1, True, None)
    data = states(instance)["gap_sensor"].instigator_data
    assert (data.last_tick_timestamp, data.last_tick_start_timestamp) == (None, None)
    assert data.cursor == "kept"
    assert states(instance)["gateway_sensor"].instigator_data.last_tick_timestamp
    setup.service.stop()
    off = setup.service.force_scan()
    assert "switched off" in off.message
    assert (off.sensor_woken, setup.operations.started) == (False, 1)
    assert not states(instance)["gap_sensor"].is_running


def test_a_tick_in_flight_is_waited_for(setup: Setup, instance: Any) -> None:
    """At its end it writes its time over what wakes the sensor."""
    beat(instance, NOW)

    def set_ticks(*, begun: float | None, ended: float | None) -> None:
        state = states(instance)["gap_sensor"]
        changes = {"last_tick_start_timestamp": begun, "last_tick_timestamp": ended}
        instance.update_instigator_state(state.with_data(state.instigator_data._replace(**changes)))

    waits: list[float] = []

    def end_at_third(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            set_ticks(begun=200.0, ended=200.0)

    switch = SensorSwitch(lambda: setup.now, pause=end_at_third)
    with closing(GapFillerService(setup.open, switch=switch, clock=lambda: setup.now)) as service:
        set_ticks(begun=200.0, ended=100.0)
        assert service.force_scan().sensor_woken
        assert len(waits) == 3
        assert states(instance)["gap_sensor"].instigator_data.last_tick_timestamp is None
        set_ticks(begun=400.0, ended=100.0)
        late = service.force_scan()
    assert not late.sensor_woken
    assert sum(waits[3:]) == 10.0
    assert states(instance)["gap_sensor"].instigator_data.last_tick_start_timestamp == 400.0


def test_a_home_in_which_the_sensor_never_ran_is_an_error(setup: Setup) -> None:
    """There is nothing to switch; Dagster makes the state when it first runs."""
    with dg.DagsterInstance.from_config(str(prepare_home(setup.layout))):
        pass
    assert setup.service.status().enabled is None
    with pytest.raises(UsageError, match="never run"):
        setup.service.stop()


def test_metrics_are_figures_of_the_last_scan(setup: Setup) -> None:
    """Without a daemon a scan is made in the background once they are a minute old."""
    setup.save("AAPL")
    ib = IbService(setup.open, clock=lambda: setup.now)
    system = SystemService(setup.open, ib=ib, gap_filler=setup.service, clock=lambda: setup.now)
    assert system.metrics().gaps_scanned_at is None
    system.close()
    seen = system.metrics()
    assert (seen.gaps_open, seen.gap_bars, seen.gaps_scanned_at) == (1, 5, NOW)
    assert seen.tail_age_s == {"1d": 0.0}
    assert (seen.permits_taken, seen.connected) == (0, False)
    assert seen.concurrency > 0
    setup.now += timedelta(seconds=59)
    system.metrics()
    system.close()
    assert system.metrics().gaps_scanned_at == NOW
    setup.now = datetime(2024, 3, 13, 12, tzinfo=UTC)
    system.metrics()
    system.close()
    late = system.metrics()
    assert late.gaps_scanned_at == setup.now
    assert late.tail_age_s == {"1d": 2 * 6.5 * 3600}
    status = system.status()
    assert (status.symbols, status.series, status.origin) == (1, 1, "ib")
    assert status.gap_filler.gaps_detected == 2
    assert json.loads(status.model_dump_json())["ib"]["ib_available"] is False


def test_an_ended_series_has_no_tail(setup: Setup) -> None:
    """Its newest bar is never followed by another."""
    setup.layout.universe.write_text(
        "symbols: {AAPL: {timeframes: [1d], start: 2024-03-04, end: 2024-03-09}}"
    )
    setup.save("AAPL")
    setup.now = datetime(2024, 4, 1, tzinfo=UTC)
    setup.scan()
    record = setup.service.last_scan(setup.layout)
    assert record is not None
    assert (record.tail_age_s, record.gap_count) == ({}, 0)
