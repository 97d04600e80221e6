"""The workspace: from settings to store, universe, ledger, gap index, catalog and load manager.

Commands, Dagster runs and programs open one; its parts are put together here alone. Modules are
imported when a part is first used, so that a command that needs few of them starts fast.

Not here: creating a store (``app.setup``), the resources of Dagster (``defs.resources``).
"""

from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING

from ktrdr_pipelines.app.services.array_files import ArrayFiles
from ktrdr_pipelines.clock import Clock, system_now
from ktrdr_pipelines.domain.calendars.kept_arrays import keep_arrays_in
from ktrdr_pipelines.errors import KtrdrError
from ktrdr_pipelines.settings import Settings, data_folder, effective_settings

if TYPE_CHECKING:
    from datetime import date

    from ktrdr_pipelines.domain.planning.reports import Progress
    from ktrdr_pipelines.domain.universe.universe import Universe
    from ktrdr_pipelines.errors import UniverseError
    from ktrdr_pipelines.gaps.index import GapIndex
    from ktrdr_pipelines.ib.config import GatewayConfig
    from ktrdr_pipelines.store.bars.bar_store import BarStore
    from ktrdr_pipelines.store.layout import StoreLayout
    from ktrdr_pipelines.store.ledger.ledger import Ledger
    from ktrdr_pipelines.store.universe_file import UniverseFile
    from ktrdr_pipelines.sync.loader import IbDataLoader
    from ktrdr_pipelines.sync.runner import LoadManager


class Workspace:
    """A store, its universe, and the gateway that its bars come from.

    A workspace is cheap: each part is made when it is first used. Open one for each command, run,
    tick or request: it keeps the universe as it first read it. Threads may share one; each gets
    a connection of its own to the ledger. From then on this process keeps the sessions of calendars
    in the state folder of the settings.

    Args:
        settings: the gateway, and by how many seconds market time is ahead of real time.
        layout: the store.
        universe: used in place of the store's universe file, which is then not read.
        real: returns the real time.
    """

    def __init__(
        self,
        settings: Settings,
        layout: "StoreLayout",
        *,
        universe: "Universe | None" = None,
        real: Callable[[], datetime] = system_now,
    ) -> None:
        self.settings = settings
        self.layout = layout
        self.clock = Clock(settings.ktrdr_clock_offset_s, real)
        self._universe = universe
        keep_arrays_in(ArrayFiles(settings.ktrdr_state / "sessions"))

    @classmethod
    def open(cls, settings: Settings | None = None) -> "Workspace":
        """Open the store of the settings; without any, of the environment, with its file.

        Raises:
            SettingsError: a setting is wrong.
            NoStoreError: there is no store.
        """
        from ktrdr_pipelines.store.layout import open_store

        used = effective_settings() if settings is None else settings
        return cls(used, open_store(data_folder(used)))

    def __repr__(self) -> str:
        return f"Workspace({self.layout.root})"

    @property
    def now(self) -> datetime:
        """The time of the market."""
        return self.clock.market_now()

    @property
    def universe(self) -> "Universe":
        """The universe, as first read; what an edit made invalid is as it was before.

        Raises:
            UniverseError: the file is malformed, and there is no earlier copy.
        """
        return self._universe_read[0]

    @property
    def problem(self) -> "UniverseError | None":
        """What is wrong with the universe file; what is wrong is used as it was before."""
        return self._universe_read[1]

    @cached_property
    def _universe_read(self) -> "tuple[Universe, UniverseError | None]":
        if self._universe is not None:
            return self._universe, None
        return universe_file(self.layout).read()

    @cached_property
    def gateway_config(self) -> "GatewayConfig":
        """The gateway of the settings."""
        return gateway_config(self.settings)

    @cached_property
    def ledger(self) -> "Ledger":
        """The ledger; opening it fails if another store has taken the path of this one."""
        from ktrdr_pipelines.store.ledger.ledger import open_ledger

        return open_ledger(self.layout)

    @cached_property
    def store(self) -> "BarStore":
        """The bars of the store."""
        from ktrdr_pipelines.store.bars.bar_store import BarStore

        return BarStore(self.layout, self.ledger)

    def gap_index(self) -> "GapIndex":
        """Return the gap index, with the calendars as the ledger holds them now.

        Indexes of one store share what they have read in this process. The beginnings of the data
        are those that the gateway of the settings stated.

        Raises:
            StoreError: the ledger cannot be read.
        """
        from ktrdr_pipelines.gaps.index import GapIndex, memory_of

        return GapIndex(
            self.store,
            self.ledger.calendars(),
            self.gateway_config.gateway,
            memory=memory_of(self.layout.root),
        )

    def fresh_from(self) -> dict[str, datetime]:
        """Return the timestamps from which series are kept fresh, by their ledger keys."""
        return self.ledger.kept_fresh.all()

    def is_catalog_due(self) -> bool:
        """Return whether automatic work should rebuild the catalog when it is done."""
        from ktrdr_pipelines.gaps.catalog_refresh import is_catalog_due

        instruments = list(self.universe.instruments.values())
        return is_catalog_due(self.layout, instruments, self.clock.real_now())

    def renew_catalog(self) -> None:
        """Rebuild the catalog from the files, the ledger and the universe.

        Raises:
            StoreError: a bar file or the ledger cannot be read.
            StoreReplacedError: the store is not the one that was opened.
            DiskError: the catalog cannot be written; the older one is unchanged.
        """
        from ktrdr_pipelines.gaps.catalog_refresh import renew_catalog

        renew_catalog(self.gap_index(), list(self.universe.instruments.values()), self.now)

    def try_renew_catalog(self) -> "KtrdrError | None":
        """Rebuild the catalog after a load, which is complete without it; return a failure."""
        try:
            self.renew_catalog()
        except KtrdrError as error:
            return error
        return None

    def load_manager(
        self,
        *,
        operation: str = "cli",
        progress: "Progress | None" = None,
        wait_s: float = 0.0,
        first_wait_s: float | None = None,
    ) -> "LoadManager":
        """Return a manager that loads from the gateway into the store; nothing is opened yet.

        Args:
            operation: the operation whose client ids are used: ``api``, ``gap_filler``, ``batch``
                or ``cli``.
            progress: the listener to its loads.
            wait_s: how many seconds a run waits for a gateway that is away.
            first_wait_s: the same before it has received anything; None for ``wait_s``.
        """
        return _load_manager(self, operation, progress, wait_s=wait_s, first_wait_s=first_wait_s)

    def data_loader(self) -> "IbDataLoader":
        """Return a loader that loads bars of symbols and returns them as DataFrames."""
        from ktrdr_pipelines.sync.loader import IbDataLoader

        return IbDataLoader(self.load_manager(operation="api"), self.store, self.universe)


def gateway_config(settings: Settings | None = None) -> "GatewayConfig":
    """Return the gateway of the settings; without any, of the effective ones as they are now.

    Raises:
        SettingsError: a setting is wrong.
    """
    from ktrdr_pipelines.ib.config import GatewayConfig

    return GatewayConfig.from_settings(effective_settings() if settings is None else settings)


def universe_file(layout: "StoreLayout") -> "UniverseFile":
    """Return the universe file of a store, with what its state remembers of earlier contents."""
    from ktrdr_pipelines.store.universe_file import UniverseFile

    def last_session(symbol: str) -> "date | None":
        from ktrdr_pipelines.domain.timeframes import Timeframe
        from ktrdr_pipelines.store.bars.bar_store import BarStore
        from ktrdr_pipelines.store.ledger.ledger import open_ledger

        with closing(open_ledger(layout)) as ledger:
            files = BarStore(layout, ledger).files
            rows = [row for one in Timeframe for row in files.of_symbol(symbol, one).values()]
            return max((max(row.rows_per_session) for row in rows if row.rows), default=None)

    return UniverseFile(
        layout.universe,
        layout.state / "universe.good.yaml",
        last_session,
        windows=layout.state / "windows.json",
    )


def _load_manager(
    workspace: Workspace,
    operation: str,
    progress: "Progress | None",
    *,
    wait_s: float,
    first_wait_s: float | None,
) -> "LoadManager":
    from ktrdr_pipelines.domain.planning.reports import Quiet
    from ktrdr_pipelines.ib.pacing.learned_widths import LearnedWidths
    from ktrdr_pipelines.ib.source import open_source
    from ktrdr_pipelines.sync.discovery.contracts import pinned_in
    from ktrdr_pipelines.sync.engine.source_session import RetryPolicy
    from ktrdr_pipelines.sync.runner import LoadManager, Waits

    config, clock = workspace.gateway_config, workspace.clock
    listener = progress or Quiet()
    waits = Waits(listener.waiting, clock.real_now)
    return LoadManager(
        layout=workspace.layout,
        open_source=lambda: open_source(
            config,
            operation,
            waits=waits,
            notices=listener.noticed,
            pinned=pinned_in(workspace.layout),
        ),
        gateway=config.gateway,
        retry_policy=RetryPolicy(
            max_retries=config.max_retries,
            delay_s=config.retry_delay_s,
            wait_s=wait_s,
            first_wait_s=first_wait_s,
            clock=clock.real_now,
            clock_offset_s=clock.offset_s,
        ),
        progress=listener,
        widths=LearnedWidths.of(config),
        timeout_s=config.timeout_s,
    )
