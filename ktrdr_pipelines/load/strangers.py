"""Strangers: bars on disk of series that the universe does not name.

Not here: series that it names (``load.gapbook``).
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.errors import StoreError
from ktrdr_pipelines.store.parquet import BarStore


@dataclass(frozen=True, slots=True)
class Stranger:
    """One series that the universe does not name; 0 rows where its files cannot be read."""

    symbol: str
    timeframe: Timeframe
    rows: int


def strangers(store: BarStore, symbols: Collection[str]) -> Iterator[Stranger]:
    """Give the series on disk whose symbol is not among those of the universe."""
    for symbol, timeframe in store.series_on_disk():
        if symbol not in symbols:
            yield Stranger(symbol, timeframe, _rows(store, symbol, timeframe))


def _rows(store: BarStore, symbol: str, timeframe: Timeframe) -> int:
    try:
        return sum(row.rows for row in store.files(symbol, timeframe).values())
    except StoreError:
        return 0
