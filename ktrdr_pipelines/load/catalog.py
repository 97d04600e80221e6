"""Renewing the catalog with all that is known: bars, sessions, coverage, and the gaps.

Not here: how it is written (``store.catalog``), what a gap is (``load.gapbook``).
"""

from collections.abc import Sequence
from datetime import datetime

from ktrdr_pipelines.core.instruments import Instrument, Series
from ktrdr_pipelines.load.gapbook import GapBook
from ktrdr_pipelines.store.catalog import rebuild_catalog


def renew_catalog(book: GapBook, universe: Sequence[Instrument], now: datetime) -> None:
    """Make the catalog of the book's store show what files and ledger say now.

    Raises:
        StoreError: a bar file or the ledger cannot be read.
        DiskError: the catalog cannot be written; the older one still stands.
    """
    series = [Series(one, timeframe) for one in universe for timeframe in one.timeframes]
    gaps = [(one.series, gap) for one in book.look(series, now) for gap in one.gaps]
    rebuild_catalog(book.store.layout, universe, now, gaps=gaps)
