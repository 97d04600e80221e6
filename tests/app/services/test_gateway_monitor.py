"""The monitor of a gateway: what it sees of one that is there, hangs, ends, moves or is away."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.app.services.gateway_monitor import GatewayMonitor
from ktrdr_pipelines.errors import (
    ConnectionLostError,
    GatewayRestingError,
    GatewayTimeoutError,
    GatewayUnreachableError,
    SettingsError,
)
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.connection.client_ids import ClientIdLeases
from ktrdr_pipelines.ib.pacing.circuit_breaker import MOST_FAILURES, BreakerState
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.settings import Settings
from tests.ib.conftest import closed_port, gateways
from tests.ib.scripted_gateway import ScriptedGateway
from tests.support.monitoring import ManualTime, eventually

__all__ = ["closed_port", "gateways"]  # fixtures


class Setup:
    """The settings of a gateway, which a test may change, and its monitor."""

    def __init__(self, folder: Path) -> None:
        self.time = ManualTime()
        self.settings = Settings(ktrdr_state=folder, ib_timeout=60.0)
        self.error: SettingsError | None = None
        self.monitor: GatewayMonitor | None = None

    def use(self, port: int, **changes: Any) -> None:
        """Set another gateway."""
        self.settings = self.settings.model_copy(update={"ib_port": port, **changes})

    def read(self) -> Settings:
        if self.error is not None:
            raise self.error
        return self.settings

    def start(self, port: int, **changes: Any) -> GatewayMonitor:
        """Start the monitor of a gateway."""
        self.use(port, **changes)
        self.monitor = GatewayMonitor(self.read, clock=self.time, sleep=self.time.sleep)
        self.monitor.start()
        return self.monitor

    @property
    def config(self) -> GatewayConfig:
        return GatewayConfig.from_settings(self.settings)


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    """Return settings and a clock for a monitor, which is closed at the end."""
    made = Setup(tmp_path / "state")
    yield made
    if made.monitor is not None:
        made.monitor.close()


def test_one_connection_is_kept_checked_and_closed(
    setup: Setup, gateways: Callable[..., ScriptedGateway]
) -> None:
    """Checks request the time alone; at the end connection, lease and thread are gone."""
    gateway = gateways()
    monitor = setup.start(gateway.port)
    assert not monitor.snapshot().connected
    setup.time.wait_until_asleep()
    first = monitor.snapshot()
    assert (first.connected, first.host, first.port) == (True, "127.0.0.1", gateway.port)
    assert first.report is not None
    assert first.report.document.good
    assert first.client_id == setup.settings.client_ids["api"][0]
    assert setup.time.pass_pause() == 15.0
    second = eventually(lambda: (found := monitor.snapshot()) is not first and found)
    assert second.checked_at > first.checked_at
    assert second.uptime_s(setup.time()) == 15.0
    monitor.start()  # it runs already
    monitor.close()
    monitor.close()
    ended = monitor.snapshot()
    assert (ended.connected, ended.client_id, ended.uptime_s(setup.time())) == (False, None, 0.0)
    assert ended.last_disconnect_at == setup.time()
    assert (ended.connections, ended.failures) == (1, 0)
    assert {fields[0] for fields in gateway.received} == {"71", "49"}  # start, and the time
    eventually(lambda: not gateway.open_now)
    assert not [one for one in threading.enumerate() if one.name == "ktrdr gateway monitor"]
    ClientIdLeases(setup.config.folder).lease((first.client_id, first.client_id)).release()


def test_an_absent_gateway_is_tried_after_growing_pauses(setup: Setup, closed_port: int) -> None:
    """The report says why; nothing counts for the breaker that stops the requests of others."""
    monitor = setup.start(closed_port)
    pauses = [setup.time.pass_pause() for _ in range(6)]
    assert pauses == [3.0, 6.0, 12.0, 24.0, 48.0, 60.0]
    setup.time.wait_until_asleep()
    seen = monitor.snapshot()
    assert not seen.connected
    assert seen.failures == 7
    assert seen.next_try_at is not None
    assert seen.next_try_at > setup.time()
    assert seen.report is not None
    assert isinstance(seen.report.error, GatewayUnreachableError)
    assert seen.report.document.tcp is False
    with closing(RateLimiter.of(setup.config)) as budget:
        assert budget.vitals().breaker.failures == 0


def test_a_gateway_that_hangs_is_reported_and_left(
    setup: Setup, gateways: Callable[..., ScriptedGateway]
) -> None:
    """A check without a response ends the connection; the next one begins anew."""
    answers = threading.Event()
    answers.set()

    def send_time(client: Any, fields: list[str]) -> None:
        if answers.is_set():
            client.send(49, 1, 1_767_614_400)

    gateway = gateways(time=send_time)
    monitor = setup.start(gateway.port, ib_timeout=0.2)
    setup.time.wait_until_asleep()
    answers.clear()
    setup.time.pass_pause()
    setup.time.wait_until_asleep()
    seen = monitor.snapshot()
    assert not seen.connected
    assert seen.report is not None
    assert isinstance(seen.report.error, GatewayTimeoutError)
    assert seen.last_disconnect_at is not None
    assert (seen.connections, seen.failures) == (1, 0)
    answers.set()
    setup.time.pass_pause()
    assert eventually(lambda: (found := monitor.snapshot()).connected and found).connections == 2


def test_an_ended_connection_is_seen_at_once(
    setup: Setup, gateways: Callable[..., ScriptedGateway]
) -> None:
    """A gateway that restarts is noticed without waiting for the next check, and found again."""
    clients: list[Any] = []

    def greet_and_remember(client: Any, fields: list[str]) -> None:
        clients.append(client)
        client.send(49, 1, 1_767_614_400)

    gateway = gateways(time=greet_and_remember)
    monitor = setup.start(gateway.port)
    setup.time.wait_until_asleep()
    gateway._loop.call_soon_threadsafe(clients[-1].close)
    eventually(lambda: isinstance(monitor.snapshot().report.error, ConnectionLostError))
    assert not monitor.snapshot().connected
    eventually(lambda: setup.time.slept[-1] == 3.0)
    setup.time.pass_pause()
    assert eventually(lambda: (found := monitor.snapshot()).connected and found).connections == 2


@pytest.mark.parametrize("wakes", [True, False])
def test_changed_settings_are_used(
    setup: Setup, gateways: Callable[..., ScriptedGateway], *, wakes: bool
) -> None:
    """Another port ends the connection, at once if it is told to, else with the next check."""
    old, new = gateways(), gateways()
    monitor = setup.start(old.port)
    setup.time.wait_until_asleep()
    setup.use(new.port)
    if wakes:
        monitor.reconnect()
    else:
        setup.time.pass_pause()
    seen = eventually(
        lambda: (found := monitor.snapshot()).connected and found.port == new.port and found
    )
    assert (seen.connections, seen.failures) == (2, 0)
    eventually(lambda: not old.open_now)
    setup.time.wait_until_asleep()
    monitor.reconnect()  # the same gateway again
    assert eventually(lambda: (found := monitor.snapshot()).connections == 3 and found)


def test_wrong_settings_are_reported_until_they_are_right(
    setup: Setup, gateways: Callable[..., ScriptedGateway]
) -> None:
    """A bad file of settings ends neither the monitor nor what is known."""
    gateway = gateways()
    monitor = setup.start(gateway.port)
    setup.time.wait_until_asleep()
    setup.error = SettingsError("settings.json", reason="is no JSON")
    setup.time.pass_pause()
    seen = eventually(lambda: not (found := monitor.snapshot()).connected and found)
    eventually(lambda: monitor.snapshot().report.error is setup.error)
    setup.error = None
    monitor.reconnect()
    assert eventually(lambda: monitor.snapshot().connected)
    assert seen.port == gateway.port


def test_an_open_breaker_is_waited_for(
    setup: Setup, gateways: Callable[..., ScriptedGateway]
) -> None:
    """While the circuit breaker is open the monitor does not connect; then it closes it."""
    gateway = gateways()
    setup.use(gateway.port)
    with closing(RateLimiter.of(setup.config)) as budget:
        for _ in range(MOST_FAILURES):
            budget.note_trouble(failure="no response")
        until = budget.vitals().breaker.until
        boot_s = [until - 20.0]
        setup.monitor = monitor = GatewayMonitor(
            setup.read, clock=setup.time, boot=lambda: boot_s[0], sleep=setup.time.sleep
        )
        monitor.start()
        setup.time.wait_until_asleep()
        seen = monitor.snapshot()
        assert seen.report is not None
        assert isinstance(seen.report.error, GatewayRestingError)
        assert gateway.connects == seen.failures == 0
        assert setup.time.slept == [20.0]
        boot_s[0] = until
        setup.time.pass_pause()
        assert eventually(lambda: monitor.snapshot().connected)
        assert budget.vitals().breaker.state is BreakerState.CLOSED


def test_a_monitor_that_connects_can_be_closed(
    setup: Setup, gateways: Callable[..., ScriptedGateway]
) -> None:
    """Closing ends an attempt that hangs, before and after the thread has begun."""
    gateway = gateways(greet=lambda _: None)
    monitor = setup.start(gateway.port)
    eventually(lambda: gateway.open_now)
    monitor.close()
    eventually(lambda: not gateway.open_now)
    with GatewayMonitor(setup.read, sleep=setup.time.sleep):
        pass
    GatewayMonitor(setup.read).close()
