"""Tags of Dagster runs: what a run is for, and how it ended.

Sensors read the tags of earlier runs to decide what to start, what to report and what to delete.
"""

from enum import StrEnum
from typing import Final

import dagster as dg

from ktrdr_pipelines.defs.partitions import BarPartition

KIND: Final = "ktrdr/kind"
TIMEFRAME: Final = "ktrdr/timeframe"
SYMBOL: Final = "ktrdr/symbol"

GAPS: Final = "ktrdr/gaps"
"""A fingerprint of the due gaps of the series when its gap run was requested."""

CAUSE: Final = "ktrdr/cause"
"""Why a run failed: the class of the error. A failed run without this tag died."""

KILLED: Final = "ProcessKilled"
"""The cause of a run whose process disappeared or was ended by a signal. Its series is not at
fault and may be loaded again at once."""

REQUESTS: Final = "ktrdr/requests"
"""Number of requests of a successful run; absent if it sent none."""

QUIET: Final = "ktrdr/quiet"
"""Set on a successful run that materialized no window: its history can be deleted early."""

YES: Final = "yes"
PRIORITY: Final = "dagster/priority"
RANGE_START: Final = "dagster/asset_partition_range_start"
RANGE_END: Final = "dagster/asset_partition_range_end"


class RunKind(StrEnum):
    """What a run that a sensor or schedule started or recorded is for."""

    TAIL = "tail"
    GAP = "gap"
    CHECK = "check"
    LOST = "lost"
    REPORT = "report"


RECORDED: Final = frozenset({RunKind.LOST.value, RunKind.REPORT.value})
"""Kinds of runs that were never started: a sensor recorded them to report windows."""

UNENDED: Final = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
"""Statuses of runs that may still send requests."""

ENDED: Final = [
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.CANCELED,
]


def range_tags(first: BarPartition, last: BarPartition) -> dict[str, str]:
    """Return the tags of a run over a range of partitions."""
    return {RANGE_START: str(first.key), RANGE_END: str(last.key)}
