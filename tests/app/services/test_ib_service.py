"""IbService: statuses without requests, everything that is on disk, and contracts."""

import asyncio
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.app.services.gateway_monitor import GatewayMonitor
from ktrdr_pipelines.app.services.gateway_settings import update_gateway_settings
from ktrdr_pipelines.app.services.ib_service import IbService
from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.domain.instruments import Origin, Series
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import (
    CorruptFileError,
    ForeignIdentityError,
    GatewayUnreachableError,
    NoStoreError,
    SettingsError,
    UnknownSymbolError,
    UsageError,
)
from ktrdr_pipelines.settings import Settings, effective_settings
from ktrdr_pipelines.store.layout import create_store
from ktrdr_pipelines.store.ledger.ledger import RequestRecord
from ktrdr_pipelines.store.store_summary import StoreSummary
from tests.ib.conftest import closed_port, gateways
from tests.ib.scripted_gateway import ScriptedGateway
from tests.support.complete_series import save_complete
from tests.support.monitoring import eventually

__all__ = ["closed_port", "gateways"]  # fixtures

FIRST, END = date(2024, 3, 4), date(2024, 3, 9)
UNIVERSE = """
defaults: {timeframes: [1h, 1d], start: 2024-03-01}
symbols:
  AAPL: {primary_exchange: NASDAQ}
  MSFT: {}
  EURUSD: {timeframes: [1h]}
"""


class Setup:
    """A store with some bars, its settings, and services over it."""

    def __init__(self, folder: Path, port: int) -> None:
        self.layout = create_store(folder / "data", Origin.IB)
        self.layout.universe.write_text(UNIVERSE)
        self.settings = Settings(
            ib_port=port,
            ktrdr_data=self.layout.root,
            ktrdr_state=folder / "state",
            ib_max_retries=0,
        )
        self.opened = 0

    def open(self) -> Workspace:
        self.opened += 1
        return Workspace.open(self.settings)

    def service(self, **parts: Any) -> IbService:
        return IbService(self.open, **parts)

    def use(self, port: int) -> None:
        """Set another gateway."""
        self.settings = self.settings.model_copy(update={"ib_port": port})

    def series(self, symbol: str, timeframe: str) -> Series:
        return Series(self.open().universe.instrument(symbol), Timeframe(timeframe))

    def save(self, symbol: str, timeframe: str) -> Path:
        """Save a week of a series."""
        return save_complete(self.open().store, self.series(symbol, timeframe), FIRST, END)

    def record(self, outcome: str, rows: int = 0) -> None:
        """Record a request."""
        at = datetime(2024, 3, 9, 12, tzinfo=UTC)
        self.open().ledger.requests.record(
            RequestRecord(
                *("AAPL|1h", 1, "TRADES", "gateway", "login 1", None, "1 W", at, 0.5),
                outcome=outcome,
                rows=rows,
            )
        )


@pytest.fixture
def setup(tmp_path: Path, closed_port: int) -> Setup:
    """Return a store without bars, and a port without a gateway."""
    return Setup(tmp_path, closed_port)


@pytest.fixture
def monitored(setup: Setup, gateways: Callable[..., ScriptedGateway]) -> Iterator[IbService]:
    """Return a service with a monitor that is connected."""
    setup.use(gateways().port)
    with GatewayMonitor(lambda: setup.settings) as monitor:
        eventually(lambda: monitor.snapshot().connected)
        yield setup.service(monitor=monitor)


def listed(service: IbService) -> dict[str, tuple[str, ...]]:
    """Return the timeframes that a service lists, by symbol."""
    return {one.symbol: one.available_timeframes for one in service.symbols()}


def test_status_tells_the_monitors_connection_and_all_requests(
    setup: Setup, monitored: IbService
) -> None:
    """The audit of the store counts requests of every process."""
    status = monitored.get_status()
    assert status.ib_available
    assert status.connection.port == setup.settings.ib_port
    assert status.connection.client_id == 1
    assert status.connection_metrics.total_connections == 1
    assert status.data_metrics.total_requests == 0
    assert monitored.get_health().healthy
    for outcome, rows in (("bars", 35), ("no data", 0), ("bars", 5), ("OutageError", 0)):
        setup.record(outcome, rows)
    metrics = monitored.get_status().data_metrics
    assert (metrics.total_requests, metrics.failed_requests) == (4, 1)
    assert (metrics.total_bars_fetched, metrics.success_rate) == (40, 75.0)
    health = monitored.get_health()
    assert (health.healthy, health.connection_ok, health.data_fetching_ok) == (False, True, False)
    assert health.error_message == "the last request for data failed: OutageError"
    assert health.last_successful_request == datetime(2024, 3, 9, 12, tzinfo=UTC)


def test_without_a_monitor_status_and_health_connect_once(
    setup: Setup, gateways: Callable[..., ScriptedGateway]
) -> None:
    """A gateway that is away is a state, not an error; also inside a running event loop."""
    service = setup.service()
    away = service.get_health()
    assert not away.connection_ok
    assert away.error is not None
    assert away.error.kind == GatewayUnreachableError.__name__
    assert not service.get_status().ib_available
    gateway = gateways()
    setup.use(gateway.port)

    async def inside() -> bool:
        return service.get_health().healthy

    assert asyncio.run(inside())
    assert service.get_status().connection.connected
    assert gateway.connects == 2
    assert {fields[0] for fields in gateway.received} == {"71", "49"}


def test_every_symbol_with_files_is_listed(setup: Setup) -> None:
    """Of the universe or not, new, moved and lost ones, at once."""
    service = setup.service()
    assert service.symbols() == ()
    setup.save("AAPL", "1h")
    setup.save("EURUSD", "1h")
    assert listed(service) == {"AAPL": ("1h",), "EURUSD": ("1h",)}
    setup.save("AAPL", "1d")
    setup.save("MSFT", "1d")
    assert listed(service)["AAPL"] == ("1h", "1d")
    setup.layout.universe.write_text("symbols: {EURUSD: {timeframes: [1h]}}")
    found = {one.symbol: one for one in service.symbols()}
    assert list(found) == ["AAPL", "EURUSD", "MSFT"]
    assert (found["AAPL"].in_universe, found["AAPL"].type) == (False, "")
    pair = found["EURUSD"]
    assert (pair.in_universe, pair.name, pair.type) == (True, "EUR.USD", "CASH")
    assert pair.exchange == "IDEALPRO"
    shutil.copytree(setup.layout.symbol_folder("AAPL"), setup.layout.symbol_folder("COPY"))
    shutil.rmtree(setup.layout.symbol_folder("MSFT"))
    (setup.layout.bars / "symbol=.odd").mkdir()
    (setup.layout.bars / "notes.txt").write_text("mine")
    assert list(listed(service)) == ["AAPL", "COPY", "EURUSD"]


def test_lost_files_are_noticed_after_a_moment(setup: Setup) -> None:
    """A file may vanish by hand: its folder is checked every few seconds."""
    now = [datetime.now(tz=UTC) + timedelta(minutes=1)]
    service = setup.service(summary=StoreSummary(lambda: now[0]))
    path = setup.save("AAPL", "1h")
    assert listed(service) == {"AAPL": ("1h",)}
    path.unlink()
    now[0] += timedelta(seconds=6)
    assert listed(service) == {}
    setup.save("AAPL", "1h")
    assert listed(service) == {"AAPL": ("1h",)}


def test_another_store_at_the_path_is_another_answer(setup: Setup, tmp_path: Path) -> None:
    """Nothing that was kept of the old one is served."""
    service = setup.service(monitor=GatewayMonitor(lambda: setup.settings))
    setup.save("AAPL", "1h")
    setup.record("bars", 35)
    assert listed(service) == {"AAPL": ("1h",)}
    assert service.get_status().data_metrics.total_bars_fetched == 35
    setup.layout.root.rename(tmp_path / "moved")
    with pytest.raises(NoStoreError):
        service.get_status()
    Setup(tmp_path, 1).save("MSFT", "1d")
    assert listed(service) == {"MSFT": ("1d",)}
    assert service.get_status().data_metrics.total_bars_fetched == 0


def test_a_writer_in_the_ledger_delays_no_answer(setup: Setup) -> None:
    """Reads go on beside another process's transaction."""
    setup.save("AAPL", "1h")
    setup.record("bars", 35)
    service = setup.service(monitor=GatewayMonitor(lambda: setup.settings))
    with closing(sqlite3.connect(setup.layout.ledger, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("DELETE FROM requests")
        assert service.get_status().data_metrics.total_requests == 1
        assert not service.get_health().connection_ok
        assert listed(service) == {"AAPL": ("1h",)}
        other.execute("ROLLBACK")


def test_ranges_are_of_bars_held_and_of_recorded_beginnings(setup: Setup) -> None:
    """Null where nothing is held, and a known beginning where the gateway stated one."""
    setup.save("AAPL", "1h")
    setup.save("AAPL", "1d")
    ledger, gateway = setup.open().ledger, setup.open().gateway_config.gateway
    head = datetime(1980, 12, 12, 14, 30, tzinfo=UTC)
    service = setup.service()
    ranges = service.get_data_ranges(["AAPL", "MSFT"], ["1h", Timeframe.W1])
    hourly = ranges.symbols[0].ranges["1h"]
    assert hourly is not None
    assert hourly.earliest_date == datetime(2024, 3, 4, 14, 30, tzinfo=UTC)
    assert hourly.latest_date == datetime(2024, 3, 8, 20, tzinfo=UTC)
    assert (hourly.total_days, hourly.cached, hourly.earliest_available) == (4, False, None)
    assert ranges.symbols[0].ranges["1w"] is None
    assert ranges.symbols[1].ranges == {"1h": None, "1w": None}
    assert ranges.cache_stats == {"cached": 0, "missing": 3}
    ledger.heads.record(1, "TRADES", gateway, head=head, asked_at=head)
    known = service.get_data_ranges(["AAPL"], ["1h"]).symbols[0].ranges["1h"]
    assert known is not None
    assert (known.cached, known.earliest_available) == (True, head)
    daily = service.data_range("AAPL", "1d")
    assert daily.start_date == datetime(2024, 3, 4, tzinfo=UTC)
    assert daily.end_date == datetime(2024, 3, 8, tzinfo=UTC)
    assert daily.point_count == 5
    assert service.data_range("MSFT", "1d").point_count == 0
    for act in (
        lambda: service.data_range("NOPE", "1d"),
        lambda: service.data_range("AAPL", "2d"),
        lambda: service.get_data_ranges(["AAPL", "NOPE"], ["1d"]),
    ):
        with pytest.raises(UsageError):
            act()
    setup.layout.bar_files("AAPL", Timeframe.D1)[0].write_bytes(b"damaged")
    with pytest.raises(CorruptFileError, match="ktrdr repair"):
        service.data_range("AAPL", "1d")


def test_a_contract_is_requested_once(
    setup: Setup, gateways: Callable[..., ScriptedGateway]
) -> None:
    """Of the universe it is pinned in the ledger; another symbol's is not."""
    gateway = gateways()
    setup.use(gateway.port)
    service = setup.service()
    found = service.discover_symbol("AAPL")
    assert (found.con_id, found.instrument_type, found.currency) == (265598, "STK", "USD")
    assert "APPLE INC" in found.description
    setup.use(1)
    assert setup.service().discover_symbol("AAPL").description == found.description
    with pytest.raises(GatewayUnreachableError):
        service.discover_symbol("TSLA")
    setup.use(gateway.port)
    assert service.discover_symbol("TSLA").con_id == 265598
    assert service.discover_symbol("TSLA").symbol == "TSLA"
    assert [one.symbol for one in service.discovered_symbols().symbols] == ["TSLA", "AAPL"]
    assert setup.open().ledger.contracts.all(Origin.IB) == {"AAPL": 265598}
    assert len(gateway.frames(9)) == 2
    assert not [*gateway.frames(20), *gateway.frames(87)]
    assert service.discover_symbol("AAPL", force_refresh=True).con_id == 265598
    assert len(gateway.frames(9)) == 3
    with pytest.raises(UnknownSymbolError):
        service.discover_symbol('X": {}\n')


def test_another_contract_under_a_symbol_is_refused(
    setup: Setup, gateways: Callable[..., ScriptedGateway]
) -> None:
    """A refresh never replaces the contract that the store's bars are of."""
    setup.save("AAPL", "1h")  # of contract 1
    setup.use(gateways().port)
    with pytest.raises(ForeignIdentityError):
        setup.service().discover_symbol("AAPL")


def test_cleanup_lets_a_waiting_monitor_connect(
    setup: Setup, gateways: Callable[..., ScriptedGateway]
) -> None:
    """No connection is ever left open; the monitor does not sit out its pause."""
    with GatewayMonitor(lambda: setup.settings) as monitor:
        eventually(lambda: monitor.snapshot().next_try_at)
        setup.use(gateways().port)
        service = setup.service(monitor=monitor)
        assert service.cleanup_connections().connections_closed == 0
        assert eventually(service.is_connected)


def test_cleanup_closes_the_connection_of_the_monitor(
    setup: Setup, gateways: Callable[..., ScriptedGateway]
) -> None:
    """It is reported once, with its client id, and made anew; its lease is free meanwhile."""
    gateway = gateways()
    setup.use(gateway.port)
    with GatewayMonitor(lambda: setup.settings) as monitor:
        service = setup.service(monitor=monitor)
        eventually(service.is_connected)
        before = monitor.snapshot()
        found = service.cleanup_connections()
        assert (found.connections_closed, found.client_ids) == (1, (before.client_id,))
        assert f"client id {before.client_id}" in found.message
        assert eventually(lambda: service.is_connected() and monitor.snapshot().connections == 2)
        assert monitor.snapshot().client_id == before.client_id
        assert monitor.snapshot().last_disconnect_at is not None
        assert monitor.snapshot().failures == 0


def test_timeframes_are_those_of_the_store() -> None:
    """All eight, by their ids."""
    assert [one.id for one in IbService().timeframes()] == list(Timeframe)


def test_files_without_bars_are_no_data(setup: Setup) -> None:
    """A file that only confirms that a range is empty lists no symbol."""
    path = setup.save("AAPL", "1h")
    ledger = setup.open().ledger
    name = setup.layout.relative(path)
    (row,) = ledger.files.of("AAPL|1h").values()
    ledger.files.record("AAPL|1h", {name: replace(row, rows=0)})
    assert setup.service().symbols() == ()


def test_a_changed_gateway_is_connected_to_at_once(
    setup: Setup, gateways: Callable[..., ScriptedGateway]
) -> None:
    """The change lies in the store's file; a bad value changes nothing."""
    old, new = gateways(), gateways()
    environ = {"KTRDR_DATA": str(setup.layout.root), "KTRDR_STATE": str(setup.layout.root)}

    def workspace() -> Workspace:
        return Workspace.open(effective_settings(environ))

    update_gateway_settings(setup.layout, port=old.port, environ=environ)
    with GatewayMonitor(lambda: workspace().settings) as monitor:
        service = IbService(workspace, monitor=monitor)
        eventually(service.is_connected)
        assert service.get_config().port == old.port
        assert service.get_config().readonly
        changed = service.update_config(port=new.port, client_id=5)
        assert changed.reconnect_required
        assert changed.previous_config.port == old.port
        assert (changed.new_config.port, changed.new_config.client_id_range.min) == (new.port, 5)
        assert changed.new_config.sources["ib_port"] == "file"
        eventually(lambda: service.is_connected() and monitor.snapshot().port == new.port)
        assert service.get_status().connection.client_id == 5
        with pytest.raises(SettingsError):
            service.update_config(port=0)
        assert service.get_config().port == new.port


def test_loads_return_their_result(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that is away is part of the result; what is asked for wrongly is an error."""
    monkeypatch.setenv("KTRDR_STATE", str(setup.settings.ktrdr_state))
    result = setup.service().load_data("AAPL", "1d", "full", "2024-03-04", "2024-03-09")
    assert (result.status, result.requests_made) == ("failed", 0)
    assert result.error is not None
    assert result.error.kind == GatewayUnreachableError.__name__
    with pytest.raises(UsageError):
        setup.service().load_data("AAPL", "2d")
