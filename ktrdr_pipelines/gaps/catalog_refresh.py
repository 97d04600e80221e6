"""Rebuild the catalog with bars, sessions, coverage and gaps, and decide when that is due.

Not here: how it is written (``store.catalog.catalog``), what a gap is (``gaps.index``).
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from ktrdr_pipelines.domain.instruments import Instrument, Series
from ktrdr_pipelines.gaps.index import GapIndex
from ktrdr_pipelines.store.catalog.catalog import rebuild_catalog
from ktrdr_pipelines.store.layout import StoreLayout

_REST_S: Final = 0.05
"""Age of the catalog in seconds a series from which automatic work rebuilds it. Measured: 4,000
series take 3 s of a core each time, which this keeps below 2 % of the time."""


def is_catalog_due(layout: StoreLayout, universe: Sequence[Instrument], now: datetime) -> bool:
    """Return whether automatic work should rebuild the catalog when it is done.

    Its views show new bars without that; the larger its tables, the less often they are rebuilt.
    """
    if not layout.catalog.exists():
        return True
    age_s = now.timestamp() - layout.catalog.stat().st_mtime
    return not 0 <= age_s < _REST_S * sum(len(one.timeframes) for one in universe)


def renew_catalog(index: GapIndex, universe: Sequence[Instrument], now: datetime) -> None:
    """Rebuild the catalog of the index's store from its files and ledger.

    Raises:
        StoreError: a bar file or the ledger cannot be read.
        StoreReplacedError: the store is not the one that was opened.
        DiskError: the catalog cannot be written; the older one is unchanged.
    """
    index.store.layout.require_same()
    series = [Series(one, timeframe) for one in universe for timeframe in one.timeframes]
    gaps = [(one.series, gap) for one in index.series_gaps(series, now) for gap in one.gaps]
    rebuild_catalog(index.store.layout, universe, now, gaps=gaps)
