"""Dagster resources: the gateway (settings, connection strategy, limits) and the store.

Not here: the assets that use them (``defs.assets``).
"""

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Final

import dagster as dg
from pydantic import Field

from ktrdr_pipelines.app.workspace import Workspace, gateway_config, universe_file
from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.domain.planning.reports import Progress
from ktrdr_pipelines.domain.universe.universe import Universe
from ktrdr_pipelines.errors import NoStoreError
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.connection.strategy import IbConnectionStrategy
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.settings import (
    Settings,
    Source,
    data_folder,
    effective_settings,
    load_settings,
    settings_sources,
)
from ktrdr_pipelines.store.layout import StoreLayout, open_store
from ktrdr_pipelines.store.ledger.ledger import Ledger
from ktrdr_pipelines.store.universe_file import UniverseFile
from ktrdr_pipelines.sync.runner import LoadManager

_FIELDS: Final = {
    "host": "ib_host",
    "port": "ib_port",
    "timeout_s": "ib_timeout",
    "pacing": "ib_pacing",
    "max_retries": "ib_max_retries",
    "retry_delay_s": "ib_retry_delay",
}
"""The fields of the gateway's resource and the settings that they hold."""


class IbResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """An Interactive Brokers gateway: its settings, connection strategy and registry of limits.

    A field with a value keeps it. One without takes what the file of settings in the data folder
    says when a run or a tick begins, or else the default; `ktrdr health` shows the gateway that
    results. The connection is read-only: no method can send an order.
    """

    host: str | None = Field(default=None, description="host of the gateway (default 127.0.0.1)")
    port: int | None = Field(default=None, description="TCP port of the gateway (default 4002)")
    timeout_s: float | None = Field(
        default=None, description="deadline of a request, seconds (default 30)"
    )
    pacing: str | None = Field(
        default=None, description="adaptive or conservative (default adaptive)"
    )
    max_retries: int | None = Field(
        default=None, description="retries after a failed request (default 3)"
    )
    retry_delay_s: float | None = Field(
        default=None, description="first pause before a retry, seconds (default 2)"
    )
    client_ids: dict[str, str] = Field(
        default_factory=dict, description="client ids per operation, such as batch: 11-50"
    )
    state_dir: str = Field(
        description="folder of the request budget and client ids, shared by all processes"
    )
    clock_offset_s: float = Field(
        default=0.0, description="seconds by which market time is ahead of this machine's"
    )
    data_dir: str | None = Field(
        default=None, description="data folder whose file of settings completes these fields"
    )

    limits: ClassVar[type[IbLimitsRegistry]] = IbLimitsRegistry

    @classmethod
    def of(cls, settings: Settings) -> "IbResource":
        """Return the resource for these settings.

        What flags and environment set keeps its value; what the file or a default says is left to
        the time of use.
        """
        sources = settings_sources(settings)
        fixed = {name for name, one in sources.items() if one in {Source.FLAG, Source.ENVIRONMENT}}
        values = settings.model_dump(mode="json", include=fixed & set(_FIELDS.values()))
        own = {field: values[name] for field, name in _FIELDS.items() if name in values}
        ranges = {
            name: f"{first}-{last}"
            for name, (first, last) in settings.client_ids.items()
            if f"ib_client_id_{name}" in fixed
        }
        with suppress(NoStoreError):
            own["data_dir"] = str(data_folder(settings))
        return cls(
            **own,
            client_ids=ranges,
            state_dir=str(settings.ktrdr_state),
            clock_offset_s=settings.ktrdr_clock_offset_s,
        )

    def settings(self) -> Settings:
        """Return the settings of this resource as they are now.

        Raises:
            SettingsError: a field, or the file of settings, has a bad value.
        """
        values = {name: getattr(self, field) for field, name in _FIELDS.items()}
        ranges = {f"ib_client_id_{name}": text for name, text in self.client_ids.items()}
        flags = {
            **{name: value for name, value in values.items() if value is not None},
            **ranges,
            "ktrdr_state": self.state_dir,
            "ktrdr_clock_offset_s": self.clock_offset_s,
        }
        if self.data_dir is None:
            return effective_settings({}, flags=flags, file={})
        return effective_settings({}, flags={**flags, "ktrdr_data": self.data_dir})

    def workspace(
        self, store: "StoreResource", real: Callable[[], datetime] = system_now
    ) -> Workspace:
        """Open the workspace of a store with this gateway; ``real`` returns real time.

        Raises:
            NoStoreError: the folder is not a store.
        """
        return Workspace(self.settings(), store.layout(), real=real)

    def rate_limiter(self, workspace: Workspace | None = None) -> RateLimiter:
        """Return the rate limiter, whose state all processes share; the caller closes it.

        It is that of the gateway of a workspace, or of the one that the settings name now.
        """
        return RateLimiter.of(self._config(workspace))

    def strategy(self, workspace: Workspace | None = None) -> IbConnectionStrategy:
        """Return a new connection strategy for the gateway of a workspace, or of the settings."""
        return IbConnectionStrategy(self._config(workspace))

    def _config(self, workspace: Workspace | None) -> GatewayConfig:
        return gateway_config(self.settings() if workspace is None else workspace.settings)

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
