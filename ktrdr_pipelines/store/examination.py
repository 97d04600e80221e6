"""Looking through the bars of a file for what no bar can be: out of order, twice, or impossible.

Only what is newer than a date is read. Not here: whether a file is what its footer says
(``store.inspection``), what is missing (``load.gapbook``).
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ktrdr_pipelines.errors import CorruptFileError
from ktrdr_pipelines.store.atomic import disk_errors

_COLUMNS = ["ts", "session_date", "open", "high", "low", "close", "volume", "bar_count"]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Examined:
    """What some bars of a file are like; stamps are those of the first bad bar, or None."""

    rows: int = 0
    out_of_order: int = 0
    duplicates: int = 0
    insane: int = 0
    first_misplaced: datetime | None = None
    first_insane: datetime | None = None


def examine(path: Path, since: date) -> Examined:
    """Examine the bars of a file whose session is not older than a date.

    Raises:
        CorruptFileError: it cannot be read.
        DiskError: the system refused.
    """
    try:
        with disk_errors(path):
            bars = pq.read_table(
                path, columns=_COLUMNS, filters=pc.field("session_date") >= pa.scalar(since)
            )
    except (pa.ArrowException, OSError) as error:
        raise CorruptFileError(
            f"cannot read {path}", came=str(error), remedy="Run `ktrdr repair`"
        ) from error
    return examined(bars)


def examined(bars: pa.Table) -> Examined:
    """Examine bars as they stand in a file.

    A bar is insane whose prices are no numbers, whose high is not its highest or low not its
    lowest price, or whose volume or count is negative. Prices below zero are not: futures and
    spreads have had them.
    """
    keys = np.asarray(bars["ts"].cast(pa.int64()).to_numpy())
    steps = np.diff(keys)
    insane = _insane(bars)
    return Examined(
        rows=len(keys),
        out_of_order=int((steps < 0).sum()),
        duplicates=len(keys) - len(np.unique(keys)),
        insane=int(insane.sum()),
        first_misplaced=_first(keys[1:], steps <= 0),
        first_insane=_first(keys, insane),
    )


def _insane(bars: pa.Table) -> np.ndarray:
    prices = {name: _numbers(bars, name) for name in ("open", "high", "low", "close")}
    stacked = np.stack(list(prices.values()))
    with np.errstate(invalid="ignore"):
        bad = (prices["high"] < stacked.max(axis=0)) | (prices["low"] > stacked.min(axis=0))
        for name in ("volume", "bar_count"):
            bad |= _numbers(bars, name) < 0
    return np.asarray(bad | ~np.isfinite(stacked).all(axis=0))


def _numbers(bars: pa.Table, name: str) -> np.ndarray:
    """Give a column as floats, null as NaN."""
    column = bars[name].cast(pa.float64())
    return np.asarray(pc.fill_null(column, float("nan")).to_numpy())


def _first(keys: np.ndarray, chosen: np.ndarray) -> datetime | None:
    places = np.flatnonzero(chosen)
    return _EPOCH + timedelta(microseconds=int(keys[places[0]])) if len(places) else None
