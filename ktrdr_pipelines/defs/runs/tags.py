"""The tags by which runs know each other: what a run is for, and how it ended.

Not here: who starts runs (one module a sensor), Dagster's own tags but for the range.
"""

from enum import StrEnum
from typing import Final

import dagster as dg

from ktrdr_pipelines.defs.partitions import BarPartition

KIND: Final = "ktrdr/kind"
TIMEFRAME: Final = "ktrdr/timeframe"
SYMBOL: Final = "ktrdr/symbol"

GAPS: Final = "ktrdr/gaps"
"""A print of what was due of the series when a gap run was asked for."""

CAUSE: Final = "ktrdr/cause"
"""Why a run failed: the class of the error. A run that failed without one died."""

KILLED: Final = "ProcessKilled"
"""The cause of a run whose process was found gone or was ended by a signal: no fault of what it
loaded."""

REQUESTS: Final = "ktrdr/requests"
"""How many requests a run that ended well made; not there where it made none."""

QUIET: Final = "ktrdr/quiet"
"""Set on a run that ended well and told of no window: nothing is lost with its history."""

YES: Final = "yes"
PRIORITY: Final = "dagster/priority"
RANGE_START: Final = "dagster/asset_partition_range_start"
RANGE_END: Final = "dagster/asset_partition_range_end"


class RunKind(StrEnum):
    """What the sensors start runs for."""

    TAIL = "tail"
    GAP = "gap"
    CHECK = "check"


UNENDED: Final = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
"""What a run is in that may still ask for something."""

ENDED: Final = [
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.CANCELED,
]


def range_tags(first: BarPartition, last: BarPartition) -> dict[str, str]:
    """Give the tags of a run over a range of partitions."""
    return {RANGE_START: str(first.key), RANGE_END: str(last.key)}
