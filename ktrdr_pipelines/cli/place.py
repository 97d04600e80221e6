"""Where a command works: settings, store, universe, and the catalog when bars have changed.

Not here: making a store (``cli.store``), what is in one (``load.gapbook``).
"""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from ktrdr_pipelines.clock import Clock
from ktrdr_pipelines.errors import UniverseError
from ktrdr_pipelines.load.opening import universe_file
from ktrdr_pipelines.settings import Settings, data_folder, load_settings
from ktrdr_pipelines.store.layout import StoreLayout, open_store
from ktrdr_pipelines.universe import Universe

if TYPE_CHECKING:
    from ktrdr_pipelines.core.calendars import Calendars
    from ktrdr_pipelines.load.gapbook import GapBook


@dataclass(frozen=True, slots=True)
class Place:
    """A store, its universe, and the settings; ``problem`` is what is wrong with the last edit."""

    settings: Settings
    layout: StoreLayout
    universe: Universe
    problem: UniverseError | None = None

    @property
    def clock(self) -> Clock:
        """Real time, and the time of the market as the settings say it."""
        return self.settings.clock

    @property
    def now(self) -> datetime:
        """The time of the market."""
        return self.clock.market_now()

    def fresh_from(self) -> dict[str, datetime]:
        """Return from where on series are kept fresh, by their ledger keys."""
        from ktrdr_pipelines.store.ledger import open_ledger

        return open_ledger(self.layout).kept_fresh()

    def calendars(self) -> "Calendars":
        """Give the book of calendars as the store's ledger stands now."""
        from ktrdr_pipelines.load.calendars import open_calendars
        from ktrdr_pipelines.store.ledger import open_ledger

        return open_calendars(open_ledger(self.layout))


def open_place() -> Place:
    """Find the store of the settings and read its universe.

    Raises:
        SettingsError, NoStoreError, UniverseError: what they say.
    """
    settings = load_settings()
    layout = open_store(data_folder(settings))
    universe, problem = universe_file(layout).read()
    return Place(settings, layout, universe, problem)


def open_book(place: Place) -> "GapBook":
    """Open the gap book of the store, for the gateway of the settings."""
    from ktrdr_pipelines.ib.config import GatewayConfig
    from ktrdr_pipelines.load.gapbook import open_gapbook

    return open_gapbook(place.layout, GatewayConfig.from_settings(place.settings).gateway)


def renew_catalog(
    layout: StoreLayout, universe: Universe, settings: Settings | None = None
) -> None:
    """Make the catalog show what the files hold now; the settings are those of the environment."""
    from ktrdr_pipelines.load import catalog

    place = Place(settings or load_settings(), layout, universe)
    catalog.renew_catalog(open_book(place), list(universe.instruments.values()), place.now)
