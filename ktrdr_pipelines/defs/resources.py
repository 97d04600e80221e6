"""Dagster resources: the gateway (settings, connection strategy, limits) and the store.

Not here: the assets that use them (``defs.assets``).
"""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import ClassVar

import dagster as dg
from pydantic import Field

from ktrdr_pipelines.app.workspace import Workspace, gateway_config, universe_file
from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.domain.planning.reports import Progress
from ktrdr_pipelines.domain.universe.universe import Universe
from ktrdr_pipelines.ib.connection.strategy import IbConnectionStrategy
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.settings import PacingMode, Settings, load_settings
from ktrdr_pipelines.store.layout import StoreLayout, open_store
from ktrdr_pipelines.store.ledger.ledger import Ledger
from ktrdr_pipelines.store.universe_file import UniverseFile
from ktrdr_pipelines.sync.runner import LoadManager


class IbResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """An Interactive Brokers gateway: its settings, connection strategy and registry of limits.

    The connection is read-only: no method can send an order.
    """

    host: str = Field(default="127.0.0.1", description="host of the gateway")
    port: int = Field(default=4002, description="TCP port of the gateway")
    timeout_s: float = Field(default=30.0, description="deadline of a request, seconds")
    pacing: str = Field(default="adaptive", description="adaptive or conservative")
    max_retries: int = Field(default=3, description="retries after a failed request")
    retry_delay_s: float = Field(default=2.0, description="first pause before a retry, seconds")
    client_ids: dict[str, str] = Field(
        default_factory=dict, description="client ids per operation, such as batch: 11-50"
    )
    state_dir: str = Field(
        description="folder of the request budget and client ids, shared by all processes"
    )
    clock_offset_s: float = Field(
        default=0.0, description="seconds by which market time is ahead of this machine's"
    )

    limits: ClassVar[type[IbLimitsRegistry]] = IbLimitsRegistry

    @classmethod
    def of(cls, settings: Settings) -> "IbResource":
        """Return the resource for these settings."""
        return cls(
            host=settings.ib_host,
            port=settings.ib_port,
            timeout_s=settings.ib_timeout,
            pacing=settings.ib_pacing.value,
            max_retries=settings.ib_max_retries,
            retry_delay_s=settings.ib_retry_delay,
            client_ids={name: f"{a}-{b}" for name, (a, b) in settings.client_ids.items()},
            state_dir=str(settings.ktrdr_state),
            clock_offset_s=settings.ktrdr_clock_offset_s,
        )

    def settings(self) -> Settings:
        """Return the settings of this resource; the inverse of ``of``."""
        ranges = {f"ib_client_id_{name}": text for name, text in self.client_ids.items()}
        return Settings.model_validate(
            {
                "ib_host": self.host,
                "ib_port": self.port,
                "ib_timeout": self.timeout_s,
                "ib_pacing": PacingMode(self.pacing),
                "ib_max_retries": self.max_retries,
                "ib_retry_delay": self.retry_delay_s,
                "ktrdr_state": self.state_dir,
                "ktrdr_clock_offset_s": self.clock_offset_s,
                **ranges,
            }
        )

    def workspace(
        self, store: "StoreResource", real: Callable[[], datetime] = system_now
    ) -> Workspace:
        """Open the workspace of a store with this gateway; ``real`` returns real time.

        Raises:
            NoStoreError: the folder is not a store.
        """
        return Workspace(self.settings(), store.layout(), real=real)

    def rate_limiter(self) -> RateLimiter:
        """Return the rate limiter, whose state all processes share; the caller closes it."""
        return RateLimiter.of(gateway_config(self.settings()))

    def strategy(self) -> IbConnectionStrategy:
        """Return a new connection strategy for this gateway."""
        return IbConnectionStrategy(gateway_config(self.settings()))

    def manager(self, workspace: Workspace, *, operation: str, progress: Progress) -> LoadManager:
        """Return a manager for the loads of a run; overridden where loads are watched."""
        return workspace.load_manager(operation=operation, progress=progress)


class StoreResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The store of bars in one data folder, with its universe."""

    data_dir: str = Field(description="folder of the store")

    def layout(self) -> StoreLayout:
        """Open the store.

        Raises:
            NoStoreError: the folder is not a store.
        """
        return open_store(Path(self.data_dir))

    def ledger(self) -> Ledger:
        """Open the ledger of the store; the caller closes it.

        Raises:
            NoStoreError: the folder is not a store.
            StoreError: the ledger cannot be read.
        """
        return Workspace(load_settings(), self.layout()).ledger

    def universe_file(self) -> UniverseFile:
        """Return the universe file, which falls back to the last good version."""
        return universe_file(self.layout())

    def universe(self) -> Universe:
        """Return the universe; after an invalid edit, the last good version."""
        return self.universe_file().read()[0]
