"""Bars that a run was given, so that it can tell those which the gateway no longer gives.

Not here: which bars are kept (``core.evaluation``), writing them (``load.commits``).
"""

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.core.bars import micros, stamps
from ktrdr_pipelines.core.instruments import Series
from ktrdr_pipelines.core.intervals import IntervalSet
from ktrdr_pipelines.store.parquet import BarStore


class Given:
    """The stamps of all bars that answers gave for one series."""

    def __init__(self) -> None:
        self._keys: list[np.ndarray] = []

    def take(self, bars: pa.Table) -> None:
        """Take in the bars of one answer."""
        self._keys.append(stamps(bars))

    def count_kept(self, store: BarStore, series: Series, proved: IntervalSet) -> int:
        """Count stored bars of what was proved that no answer gave; the given ones are stored."""
        keys = np.unique(np.concatenate([np.empty(0, np.int64), *self._keys]))
        stored = sum(store.rows(series, part) for part in proved)
        edges = [(micros(part.start), micros(part.end)) for part in proved]
        given = sum(int(np.diff(np.searchsorted(keys, edge))[0]) for edge in edges)
        return stored - given
