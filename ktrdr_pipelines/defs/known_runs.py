"""Dagster's runs as the gap sensor sees them: which series they are at, how the last ones ended.

Not here: what is started and why (``defs.gap_sensor``), the decisions (``defs.gap_runs``).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC
from functools import cache
from typing import Final

import dagster as dg

from ktrdr_pipelines.core.outages import GATEWAY, outage_of
from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.defs.gap_runs import PastRun, SeriesName
from ktrdr_pipelines.defs.partitions import BarPartition
from ktrdr_pipelines.defs.tags import (
    CAUSE,
    ENDED,
    GAPS,
    KILLED,
    KIND,
    RANGE_END,
    RANGE_START,
    SYMBOL,
    TIMEFRAME,
    UNENDED,
    RunKind,
)
from ktrdr_pipelines.defs.universe_sensor import held_symbols

_PAST_RUNS: Final = 400
_PARTITION: Final = "dagster/partition"


def work_under_way(instance: dg.DagsterInstance) -> tuple[set[SeriesName], int]:
    """Give the series that runs are at, and how many runs of this sensor there are."""
    busy: set[SeriesName] = set()
    own = 0
    symbols_of = cache(lambda timeframe: held_symbols(instance, timeframe))
    for run in instance.get_runs(dg.RunsFilter(statuses=UNENDED)):
        own += run.tags.get(KIND) == RunKind.GAP
        for key in run.asset_selection or ():
            if len(key.path) == 2 and key.path[0] == "bars":
                timeframe = Timeframe(key.path[1])
                busy |= {(symbol, timeframe) for symbol in _symbols(run, symbols_of(timeframe))}
    return busy, own


def _symbols(run: dg.DagsterRun, order: Sequence[str]) -> Sequence[str]:
    """Name the symbols that a run's range of partitions holds, by Dagster's order of symbols."""
    first = run.tags.get(RANGE_START) or run.tags.get(_PARTITION)
    last = run.tags.get(RANGE_END) or run.tags.get(_PARTITION)
    if not first or not last:
        return ()
    ends = BarPartition.of(first).symbol, BarPartition.of(last).symbol
    if ends[0] not in order or ends[1] not in order:
        return ends
    return order[order.index(ends[0]) : order.index(ends[1]) + 1]


def past_runs(instance: dg.DagsterInstance) -> Mapping[SeriesName, list[PastRun]]:
    """Give the last runs of each series, newest first.

    Runs that failed by a gateway that was away, or whose process was killed, are left out: neither
    is a fault of the series.
    """
    past: dict[SeriesName, list[PastRun]] = defaultdict(list)
    records = instance.get_run_records(
        dg.RunsFilter(tags={KIND: RunKind.GAP.value}, statuses=ENDED), limit=_PAST_RUNS
    )
    for record in records:
        tags = record.dagster_run.tags
        cause = tags.get(CAUSE, "")
        if cause != KILLED and outage_of(cause) != GATEWAY:
            at = record.update_timestamp
            ended_at = at if at.tzinfo else at.replace(tzinfo=UTC)
            name = (tags[SYMBOL], Timeframe(tags[TIMEFRAME]))
            past[name].append(PastRun(tags.get(GAPS, ""), ended_at))
    return past
