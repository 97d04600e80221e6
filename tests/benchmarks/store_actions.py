"""What benchmarks of a store do in a process of its own, so that nothing is known beforehand.

``python -m tests.benchmarks.store_actions ACTION`` acts on the store that the settings name, and
prints the processor seconds that it took as JSON.
"""

# ruff: noqa: T201  (its output is its interface)

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing

import dagster as dg

from ktrdr_pipelines.app.setup import prepare_home
from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.defs.assets import bars_key
from ktrdr_pipelines.defs.build import build_defs
from ktrdr_pipelines.defs.partitions import BarPartition, symbols_partitions
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.ledger.ledger import Ledger

_WARM_TICKS = 3


def ticks() -> dict[str, float]:
    """Tick the gap sensor cold and warm, and read what it must read at least.

    Raises:
        RuntimeError: the sensor found something to load; the store should be complete.
    """
    workspace = Workspace.open()
    definitions = build_defs(workspace.settings)
    sensor = definitions.get_sensor_def("gap_sensor")
    with dg.DagsterInstance.ephemeral() as instance:
        for timeframe in Timeframe:
            symbols = [one.symbol for one in workspace.universe.series(timeframe)]
            instance.add_dynamic_partitions(str(symbols_partitions(timeframe).name), symbols)

        def tick() -> None:
            context = dg.build_sensor_context(
                instance=instance, resources=dict(definitions.resources or {})
            )
            result = sensor(context)
            if not isinstance(result, dg.SensorResult) or result.run_requests:
                raise RuntimeError(f"a tick over a complete store returned {result}")

        cold_s = _cpu_s(tick)
        warm_s = min(_cpu_s(tick) for _ in range(_WARM_TICKS))
    return {"cold_s": cold_s, "warm_s": warm_s, "read_s": _cpu_s(lambda: _read_all(workspace))}


def partitions() -> dict[str, float]:
    """Run the asset of minutes over partitions of a year, as many as one run of a backfill holds.

    Raises:
        RuntimeError: the run failed, or did not materialize each partition.
    """
    workspace = Workspace.open()
    definitions = build_defs(workspace.settings)
    key, name = bars_key(Timeframe.M1), str(symbols_partitions(Timeframe.M1).name)
    asset = next(
        one
        for one in definitions.assets or ()
        if isinstance(one, dg.AssetsDefinition) and key in one.keys
    )
    policy = asset.backfill_policy
    home = prepare_home(workspace.layout)
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        symbols = [one.symbol for one in workspace.universe.series(Timeframe.M1)]
        instance.add_dynamic_partitions(name, symbols)
        symbols = symbols[: policy.max_partitions_per_run if policy else None]
        year = str(workspace.now.year - 1)
        ends = {"start": symbols[0], "end": symbols[-1]}
        done = dg.materialize(
            [asset],
            instance=instance,
            resources=dict(definitions.resources or {}),
            run_config=quiet,
            tags={
                f"dagster/asset_partition_range_{end}": str(BarPartition(symbol, year).key)
                for end, symbol in ends.items()
            },
        )
        events = instance.fetch_materializations(key, limit=len(symbols)).records
        materialized = len({one.partition_key for one in events})
    if not done.success or materialized < len(symbols):
        raise RuntimeError(f"{materialized} of {len(symbols)} partitions were materialized")
    return {"partitions": len(symbols), "cpu_s": time.process_time()}


def _read_all(workspace: Workspace) -> int:
    """Stat every file and read every row of the file index."""
    layout, count = workspace.layout, 0
    for folder in layout.series_folders().values():
        with os.scandir(folder) as entries:
            count += sum(entry.stat().st_size for entry in entries)
    with closing(Ledger(layout.ledger)) as ledger:
        return count + len(ledger.files.all())


def _cpu_s(act: Callable[[], object]) -> float:
    began_s = time.process_time()
    act()
    return time.process_time() - began_s


ACTIONS: Mapping[str, Callable[[], dict[str, float]]] = {"ticks": ticks, "partitions": partitions}


if __name__ == "__main__":
    print(json.dumps(ACTIONS[sys.argv[1]]()))
