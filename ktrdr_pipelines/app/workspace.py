"""The workspace: from settings to store, universe, gap index, catalog and load manager."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from ktrdr_pipelines.clock import Clock, system_now
from ktrdr_pipelines.domain.calendars.registry import Calendars
from ktrdr_pipelines.domain.planning.reports import Progress, Quiet
from ktrdr_pipelines.domain.universe.universe import Universe
from ktrdr_pipelines.errors import UniverseError
from ktrdr_pipelines.gaps.estimates import Rates, measured_rates
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.source import open_source
from ktrdr_pipelines.settings import Settings, data_folder, load_settings
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.layout import StoreLayout, open_store
from ktrdr_pipelines.store.ledger.ledger import open_ledger
from ktrdr_pipelines.store.universe_file import UniverseFile
from ktrdr_pipelines.sync.discovery.head_timestamps import RangeDiscovery
from ktrdr_pipelines.sync.engine.series_state import SeriesStates
from ktrdr_pipelines.sync.engine.source_session import RetryPolicy
from ktrdr_pipelines.sync.runner import LoadManager, Waits

if TYPE_CHECKING:
    from ktrdr_pipelines.gaps.index import GapIndex


def open_manager(
    settings: Settings,
    layout: StoreLayout,
    *,
    operation: str = "cli",
    progress: Progress | None = None,
    wait_s: float = 0.0,
    clock: Callable[[], datetime] = system_now,
) -> LoadManager:
    """Return a manager that loads from the gateway of the settings; nothing is opened yet.

    Args:
        settings: which gateway, and how often and how long it is retried.
        layout: the store.
        operation: the operation whose client ids are used (``api``, ``gap_filler``, ``batch``,
            ``cli``).
        progress: the listener to its loads.
        wait_s: how long a run waits until a gateway accepts the connection.
        clock: returns real time.
    """
    config = GatewayConfig.from_settings(settings)
    listener = progress or Quiet()
    waits = Waits(listener.waiting, clock)
    return LoadManager(
        layout=layout,
        open_source=lambda: open_source(config, operation, waits=waits, notices=listener.noticed),
        gateway=config.gateway,
        retry_policy=RetryPolicy(
            max_retries=config.max_retries,
            delay_s=config.retry_delay_s,
            wait_s=wait_s,
            clock=clock,
            clock_offset_s=settings.ktrdr_clock_offset_s,
        ),
        progress=listener,
    )


def open_series_states(
    settings: Settings, layout: StoreLayout, calendars: Calendars
) -> SeriesStates:
    """Return what computes series states without a gateway; the settings' gateway's data count."""
    ledger = open_ledger(layout)
    gateway = GatewayConfig.from_settings(settings).gateway
    ranges = RangeDiscovery(ledger, gateway)
    clock = settings.clock
    return SeriesStates(
        BarStore(layout, ledger), calendars, ranges, clock.real_now, market_clock=clock.market_now
    )


def open_rates(settings: Settings, layout: StoreLayout) -> Rates:
    """Return how fast the settings' gateway has answered, and how much room bars take."""
    config = GatewayConfig.from_settings(settings)
    ledger = open_ledger(layout)
    return measured_rates(ledger, config.gateway, conservative=config.conservative)


def universe_file(layout: StoreLayout) -> UniverseFile:
    """Return the universe file of a store, with the copy that replaces it after a bad edit."""
    return UniverseFile(layout.universe, layout.state / "universe.good.yaml")


@dataclass(frozen=True, slots=True)
class Workspace:
    """A store, its universe, and the settings; ``problem`` is what is wrong with the last edit."""

    settings: Settings
    layout: StoreLayout
    universe: Universe
    problem: UniverseError | None = None

    @property
    def clock(self) -> Clock:
        """Real time, and the market's time by the offset of the settings."""
        return self.settings.clock

    @property
    def now(self) -> datetime:
        """The time of the market."""
        return self.clock.market_now()

    def fresh_from(self) -> dict[str, datetime]:
        """Return the timestamps from which series are kept fresh, by their ledger keys."""
        from ktrdr_pipelines.store.ledger.ledger import open_ledger

        return open_ledger(self.layout).kept_fresh.all()

    def calendars(self) -> "Calendars":
        """Return the calendars as the store's ledger holds them now."""
        from ktrdr_pipelines.store.ledger.ledger import open_calendars, open_ledger

        return open_calendars(open_ledger(self.layout))


def open_workspace() -> Workspace:
    """Find the store of the settings and read its universe.

    Raises:
        SettingsError: a setting is wrong.
        NoStoreError: there is no store.
        UniverseError: the universe is malformed, and there is no earlier copy.
    """
    settings = load_settings()
    layout = open_store(data_folder(settings))
    universe, problem = universe_file(layout).read()
    return Workspace(settings, layout, universe, problem)


def open_gap_index(workspace: Workspace) -> "GapIndex":
    """Open the gap index of a workspace, for the gateway of its settings."""
    from ktrdr_pipelines.gaps.index import open_gap_index
    from ktrdr_pipelines.ib.config import GatewayConfig

    return open_gap_index(workspace.layout, GatewayConfig.from_settings(workspace.settings).gateway)


def renew_catalog(
    layout: StoreLayout, universe: Universe, settings: Settings | None = None
) -> None:
    """Rebuild the catalog from the files; without ``settings``, with those of the environment."""
    from ktrdr_pipelines.gaps import catalog_refresh as catalog

    workspace = Workspace(settings or load_settings(), layout, universe)
    catalog.renew_catalog(
        open_gap_index(workspace), list(universe.instruments.values()), workspace.now
    )
