"""From settings to a manager that loads: where gateway, store, universe and loading meet.

Not here: reading settings (``settings``), commands and assets (``cli``, ``defs``).
"""

from collections.abc import Callable
from datetime import datetime

from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.core.calendars import Calendars
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.source import open_source
from ktrdr_pipelines.load.keeper import Patience
from ktrdr_pipelines.load.manager import LoadManager
from ktrdr_pipelines.load.outlook import Outlook
from ktrdr_pipelines.load.ranges import RangeDiscovery
from ktrdr_pipelines.load.rates import Rates, measured_rates
from ktrdr_pipelines.load.reports import Progress, Quiet
from ktrdr_pipelines.load.waits import Waits
from ktrdr_pipelines.settings import Settings
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger import open_ledger
from ktrdr_pipelines.store.parquet import BarStore
from ktrdr_pipelines.universe import UniverseFile


def open_manager(
    settings: Settings,
    layout: StoreLayout,
    *,
    operation: str = "cli",
    progress: Progress | None = None,
    wait_s: float = 0.0,
    clock: Callable[[], datetime] = system_now,
) -> LoadManager:
    """Make a manager that loads from the gateway of the settings; nothing is opened yet.

    Args:
        settings: which gateway, and how patiently it is asked.
        layout: the store.
        operation: whose client ids are used (``api``, ``gap_filler``, ``batch``, ``cli``).
        progress: who listens.
        wait_s: how long a run waits for a gateway that lets it connect.
        clock: gives real time.
    """
    config = GatewayConfig.from_settings(settings)
    listener = progress or Quiet()
    waits = Waits(listener.waiting, clock)
    return LoadManager(
        layout=layout,
        open_source=lambda: open_source(config, operation, waits=waits, notices=listener.noticed),
        gateway=config.gateway,
        patience=Patience(
            max_retries=config.max_retries,
            delay_s=config.retry_delay_s,
            wait_s=wait_s,
            clock=clock,
            clock_offset_s=settings.ktrdr_clock_offset_s,
        ),
        progress=listener,
    )


def open_outlook(settings: Settings, layout: StoreLayout, calendars: Calendars) -> Outlook:
    """Make what looks at jobs without asking anybody; it counts the settings' gateway's data."""
    ledger = open_ledger(layout)
    gateway = GatewayConfig.from_settings(settings).gateway
    ranges = RangeDiscovery(ledger, gateway)
    clock = settings.clock
    return Outlook(
        BarStore(layout, ledger), calendars, ranges, clock.real_now, market_clock=clock.market_now
    )


def open_rates(settings: Settings, layout: StoreLayout) -> Rates:
    """Measure how fast the settings' gateway answered, and how much room bars take."""
    config = GatewayConfig.from_settings(settings)
    ledger = open_ledger(layout)
    return measured_rates(ledger, config.gateway, conservative=config.conservative)


def universe_file(layout: StoreLayout) -> UniverseFile:
    """Give the universe of a store, with the copy that stands in for it after a bad edit."""
    return UniverseFile(layout.universe, layout.state / "universe.good.yaml")
