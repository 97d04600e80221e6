"""Tags of Dagster runs: what a run is for, and how it ended.

Sensors read the tags of earlier runs to decide what to start, what to report and what to delete.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import dagster as dg

from ktrdr_pipelines.defs.partitions import BarPartition

KIND: Final = "ktrdr/kind"
TIMEFRAME: Final = "ktrdr/timeframe"
SYMBOL: Final = "ktrdr/symbol"
"""The symbols of a gap run."""

GAPS: Final = "ktrdr/gaps"
"""A fingerprint of the due gaps of each series, in the order of the symbols, when its gap run was
requested."""

BETWEEN: Final = "+"
"""Separates several symbols, fingerprints or timeframes in a tag; none of them contains it."""

SHOWN_SYMBOLS: Final = "bars/symbols"
SHOWN_WINDOWS: Final = "bars/windows"
"""What a run over partitions loads, for people. The UI lists tags by name: these are ahead of those
of Dagster, except for the backfill."""

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

LOADED: Final = "ktrdr/loaded"
"""Set on a run of a backfill once it has loaded: ``new`` if it sent requests, else ``nothing``."""

NEW, NOTHING = "new", "nothing"

POOL: Final = "ib"
"""The pool of all runs that load bars, except for tails."""

PRIORITY: Final = "dagster/priority"
PARTITION: Final = "dagster/partition"
BACKFILL: Final = "dagster/backfill"
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


def shown_tags(partitions: Sequence[BarPartition]) -> dict[str, str]:
    """Return the tags that tell people the symbols and the windows of a run over partitions."""
    symbols = list(dict.fromkeys(one.symbol for one in partitions))
    windows = sorted({one.window for one in partitions})
    more = f" ({len(symbols)} symbols)" if len(symbols) > 2 else ""
    return {
        SHOWN_SYMBOLS: _span(symbols) + more,
        SHOWN_WINDOWS: _span(windows),
    }


def _span(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def range_tags(first: BarPartition, last: BarPartition) -> dict[str, str]:
    """Return the tags of a run over a range of partitions."""
    return {RANGE_START: str(first.key), RANGE_END: str(last.key)}
