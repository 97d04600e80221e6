"""Dagster's instance of a store, as commands see it from outside a run.

Not here: what sensors and assets do with theirs, Dagster's settings (``app.setup``).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from ktrdr_pipelines.defs.partitions import symbols_partitions
from ktrdr_pipelines.defs.sensors.universe_sensor import held_symbols
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.layout import StoreLayout


def home_of(layout: StoreLayout) -> Path:
    """Give the folder of a store's Dagster history and settings."""
    return layout.root / "dagster"


@contextmanager
def existing_instance(layout: StoreLayout) -> Iterator[dg.DagsterInstance | None]:
    """Lend the instance of a store, or None where Dagster has never run over it."""
    home = home_of(layout)
    if not (home / "history").is_dir():
        yield None
        return
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield instance


def symbols_held(layout: StoreLayout) -> dict[Timeframe, tuple[str, ...]]:
    """Give the symbols that Dagster has partitions of, by timeframe; none where it never ran."""
    with existing_instance(layout) as instance:
        if instance is None:
            return {}
        return {timeframe: held_symbols(instance, timeframe) for timeframe in Timeframe}


def move_partitions(layout: StoreLayout, symbol: str, new_symbol: str | None) -> int:
    """Give a symbol's partitions to another one, or to none; give how many sets changed."""
    with existing_instance(layout) as instance:
        if instance is None:
            return 0
        changed = [one for one in Timeframe if symbol in held_symbols(instance, one)]
        for timeframe in changed:
            name = str(symbols_partitions(timeframe).name)
            if new_symbol is not None:
                instance.add_dynamic_partitions(name, [new_symbol])
            instance.delete_dynamic_partition(name, symbol)
        return len(changed)
