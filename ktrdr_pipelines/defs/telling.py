"""What Dagster is told of a window: the same whoever tells it.

Not here: whether a window may be told of (``load.windows``, ``load.window_book``), who tells
(``defs.bars_run``, ``defs.tail_run``, ``defs.report_sensor``).
"""

from collections.abc import Sequence
from typing import Final

import dagster as dg

from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.defs.partitions import BarPartition
from ktrdr_pipelines.load.windows import WindowFacts, WindowState

STATE = "state"


def materialization(
    timeframe: Timeframe, partition: BarPartition, facts: WindowFacts
) -> dg.AssetMaterialization:
    """Tell of a window of which nothing is unexplained: its rows, its state, its stretch."""
    return dg.AssetMaterialization(
        asset_key=["bars", timeframe.value],
        partition=str(partition.key),
        metadata={
            "dagster/partition_row_count": facts.rows,
            STATE: facts.state.value,
            "from": facts.stamps.start.isoformat(),
            "to": facts.stamps.end.isoformat(),
        },
    )


def is_told(
    instance: dg.DagsterInstance, timeframe: Timeframe, partition: BarPartition, state: WindowState
) -> bool:
    """Say whether Dagster has been told of a window as it is now: open, or finished."""
    return told_states(instance, timeframe, [partition]).get(partition) in _AS_GOOD_AS[state]


def told_states(
    instance: dg.DagsterInstance, timeframe: Timeframe, partitions: Sequence[BarPartition]
) -> dict[BarPartition, WindowState | None]:
    """Give what Dagster was told last of each window; None where that says no state."""
    told: dict[BarPartition, WindowState | None] = {}
    for partition in partitions:
        newest = instance.fetch_materializations(
            dg.AssetRecordsFilter(
                asset_key=dg.AssetKey(["bars", timeframe.value]),
                asset_partitions=[str(partition.key)],
            ),
            limit=1,
        ).records
        event = newest[0].asset_materialization if newest else None
        if event is not None:
            told[partition] = _state_of(event)
    return told


def _state_of(event: dg.AssetMaterialization) -> WindowState | None:
    told = event.metadata.get(STATE)
    values = {state.value: state for state in WindowState}
    return values.get(str(told.value)) if told is not None else None


_AS_GOOD_AS: Final = {
    state: set(WindowState) if state is WindowState.OPEN else {state} for state in WindowState
}
"""What may have been told where a window is in a state; an open one changes all the time."""
