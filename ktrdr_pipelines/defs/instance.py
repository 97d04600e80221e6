"""The Dagster instance of a store, for commands that run outside of Dagster.

Not here: Dagster's settings file (``app.setup``).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import dagster as dg

from ktrdr_pipelines.app.setup import dagster_home, has_history
from ktrdr_pipelines.app.workspace import universe_file
from ktrdr_pipelines.defs.partitions import symbols_partitions
from ktrdr_pipelines.defs.runs.active_runs import held_symbols, users_of
from ktrdr_pipelines.defs.sensors.universe_sensor import change_from
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.layout import StoreLayout


def is_materialize_command(arguments: Sequence[str]) -> bool:
    """Return whether these arguments of a process are of ``dagster asset materialize``."""
    return list(arguments[1:3]) == ["asset", "materialize"]


def register_symbols(layout: StoreLayout) -> None:
    """Make the symbols of the universe partitions in the instance that DAGSTER_HOME names.

    ``universe_sensor`` does that, too; without a daemon it never runs.

    Raises:
        UniverseError: the universe is malformed, and there is no earlier copy.
    """
    universe, _ = universe_file(layout).read()
    with dg.DagsterInstance.get() as instance:
        for timeframe in Timeframe:
            added = change_from(held_symbols(instance, timeframe), universe, timeframe).added
            if added:
                name = str(symbols_partitions(timeframe).name)
                instance.add_dynamic_partitions(name, list(added))


@contextmanager
def existing_instance(layout: StoreLayout) -> Iterator[dg.DagsterInstance | None]:
    """Yield the Dagster instance of a store, or None if Dagster has never run on it."""
    if not has_history(layout):
        yield None
        return
    with dg.DagsterInstance.from_config(str(dagster_home(layout))) as instance:
        yield instance


def symbols_held(layout: StoreLayout) -> dict[Timeframe, tuple[str, ...]]:
    """Return the symbols that have partitions, by timeframe; empty if Dagster has never run."""
    with existing_instance(layout) as instance:
        if instance is None:
            return {}
        return {timeframe: held_symbols(instance, timeframe) for timeframe in Timeframe}


def add_partitions(layout: StoreLayout, symbol: str, timeframes: Iterable[Timeframe]) -> int:
    """Add a symbol's partitions; return the number of partition sets that changed."""
    with existing_instance(layout) as instance:
        if instance is None:
            return 0
        lacking = [one for one in timeframes if symbol not in held_symbols(instance, one)]
        for timeframe in lacking:
            name = str(symbols_partitions(timeframe).name)
            instance.add_dynamic_partitions(name, [symbol])
        return len(lacking)


def move_partitions(layout: StoreLayout, symbol: str, new_symbol: str | None) -> int:
    """Rename a symbol's partitions, or delete them if ``new_symbol`` is None.

    Those that an unfinished backfill or an active run names are left to the universe sensor, which
    deletes them afterwards. Return the number of partition sets (one per timeframe) that changed.
    """
    with existing_instance(layout) as instance:
        if instance is None:
            return 0
        changed = [one for one in Timeframe if symbol in held_symbols(instance, one)]
        users = users_of(instance) if changed else {}
        for timeframe in changed:
            name = str(symbols_partitions(timeframe).name)
            if new_symbol is not None:
                instance.add_dynamic_partitions(name, [new_symbol])
            if (symbol, timeframe) not in users:
                instance.delete_dynamic_partition(name, symbol)
        return len(changed)
