"""A complete local store of Interactive Brokers bars: Dagster pipelines, Parquet, DuckDB.

The names that programs use are imported from here; each brings its modules only when it is first
used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ktrdr_pipelines.app.data_manager import DataManager
    from ktrdr_pipelines.app.reading.bar_reader import Store, open_store
    from ktrdr_pipelines.app.reading.readiness import MissingRange, Readiness
    from ktrdr_pipelines.app.services.gap_filler import GapFillerService
    from ktrdr_pipelines.app.services.ib_service import IbService
    from ktrdr_pipelines.ib.connection.strategy import IbConnectionStrategy
    from ktrdr_pipelines.limits import IbLimitsRegistry
    from ktrdr_pipelines.sync.loader import IbDataLoader

__all__ = [
    "DataManager",
    "GapFillerService",
    "IbConnectionStrategy",
    "IbDataLoader",
    "IbLimitsRegistry",
    "IbService",
    "MissingRange",
    "Readiness",
    "Store",
    "open_store",
]

_MODULES = {
    "DataManager": "app.data_manager",
    "GapFillerService": "app.services.gap_filler",
    "IbConnectionStrategy": "ib.connection.strategy",
    "IbDataLoader": "sync.loader",
    "IbLimitsRegistry": "limits",
    "IbService": "app.services.ib_service",
    "MissingRange": "app.reading.readiness",
    "Readiness": "app.reading.readiness",
    "Store": "app.reading.bar_reader",
    "open_store": "app.reading.bar_reader",
}
"""The module, below this package, that defines each name."""


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
