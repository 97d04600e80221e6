"""Recorded bars on disk: ``<SYMBOL>/<timeframe>.parquet``, one file a series.

Here: which folders are instruments, and a file's columns. Not here: what is answered from them
(``replay``). Columns are ``ts`` (bar start in UTC; a date for days and weeks), ``open``,
``high``, ``low``, ``close`` and ``volume``, which may be null: not available.
"""

import logging
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ktrdr_pipelines.errors import SimulatorError
from ktrdr_pipelines.simulator.bars import Bars
from ktrdr_pipelines.simulator.describing import fx_pair, pair_of, us_stock
from ktrdr_pipelines.simulator.futures import recorded_contract
from ktrdr_pipelines.simulator.hours import DAY_S, Hours, Ints
from ktrdr_pipelines.simulator.instruments import Instrument, SecType
from ktrdr_pipelines.simulator.listings import listings
from ktrdr_pipelines.simulator.sizes import SIZES, BarSize

_LOG = logging.getLogger(__name__)

_STOCK = re.compile(r"[A-Z]{1,5}(?:[ .][A-Z])?")
_VALUES = ("open", "high", "low", "close", "volume")
_COLUMNS = ("ts", *_VALUES)
_NEVER_MISSING = ("ts", "open", "high", "low", "close")


@dataclass(frozen=True, slots=True)
class Recording:
    """The files of one instrument, from the shortest size to the longest."""

    instrument: Instrument
    files: dict[BarSize, Path]


def recordings_in(folder: Path) -> dict[Instrument, Recording]:
    """Find the recorded stocks, currency pairs and futures of a folder.

    Anything else is skipped with a note in the log.

    Raises:
        SimulatorError: there is no such folder, or nothing in it can be replayed.
    """
    found = [_recording(path) for path in _folders(folder)]
    recordings = {each.instrument: each for each in found if each is not None}
    if not recordings:
        raise SimulatorError(
            f"replay the bars of {folder}",
            came="no recorded stock, currency pair or future",
            remedy="Name a folder with files like AAPL/1m.parquet",
        )
    return recordings


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise SimulatorError(
            f"replay the bars of {folder}",
            came="no such folder",
            remedy="Name a folder with files like AAPL/1m.parquet",
        )
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _recording(folder: Path) -> Recording | None:
    files = {size: folder / f"{size.key}.parquet" for size in SIZES}
    present = {size: path for size, path in files.items() if path.is_file()}
    if not present:
        return None
    for path in present.values():
        _check(path)
    instrument = _instrument(folder.name, present)
    if instrument is None:
        _LOG.warning("%s is no stock, currency pair or future: not replayed", folder.name)
        return None
    return Recording(instrument, present)


def _check(path: Path) -> None:
    """Look at a file's columns when the folder is opened, not when it is first asked for."""
    try:
        missing = set(_COLUMNS) - set(pq.read_schema(path).names)
    except (OSError, pa.ArrowException) as error:
        raise _malformed(path, str(error).splitlines()[0]) from error
    if missing:
        raise _malformed(path, f"no column {', '.join(sorted(missing))}")


def _malformed(path: Path, came: str) -> SimulatorError:
    return SimulatorError(
        f"read recorded bars from {path}",
        came=came,
        remedy=f"It must be Parquet with the columns {', '.join(_COLUMNS)}",
    )


def _instrument(key: str, files: dict[BarSize, Path]) -> Instrument | None:
    """Tell what a folder's name stands for; a future's year needs a look at its bars."""
    pair = pair_of(key)
    if pair is not None:
        return fx_pair(*pair)
    if _STOCK.fullmatch(key):
        stocks = (each for each in listings() if each.sec_type is SecType.STOCK)
        return next((each for each in stocks if each.key == key), us_stock(key, "NASDAQ", key))
    return recorded_contract(key, max(_newest_day(path) for path in files.values()))


def _newest_day(path: Path) -> date:
    starts = _starts(pq.read_table(path, columns=["ts"]).column("ts"))
    newest = int(starts.max()) if len(starts) else 0
    return datetime.fromtimestamp(newest, UTC).date()


def read_bars(path: Path, size: BarSize, hours: Hours) -> Bars:
    """Read one file; its bars belong to the sessions of the given hours.

    Raises:
        SimulatorError: the file is not Parquet, lacks a column, a time or a price.
    """
    try:
        table = pq.read_table(path, columns=list(_COLUMNS))
        _refuse_missing(path, table)
        start = _starts(table.column("ts"))
        open_, high, low, close, volume = (_floats(table.column(name)) for name in _VALUES)
    except (OSError, pa.ArrowException) as error:
        raise _malformed(path, str(error).splitlines()[0]) from error
    if not all(np.isfinite(column).all() for column in (open_, high, low, close)):
        raise _malformed(path, "a price is no number")
    session = _sessions(start, size, hours)
    none = np.zeros(len(start), np.int64)
    bars = Bars(start, session, open_, high, low, close, volume, turnover=none, count=none)
    return bars.take(np.argsort(start, kind="stable"))


def _refuse_missing(path: Path, table: pa.Table) -> None:
    """Refuse bars without a time or a price; only a volume may be not available."""
    for name in _NEVER_MISSING:
        if table.column(name).null_count:
            raise _malformed(path, f"{name} is missing in {table.column(name).null_count} bars")


def _starts(column: pa.ChunkedArray) -> Ints:
    seconds = pc.cast(pc.cast(column, pa.timestamp("s", tz="UTC"), safe=False), pa.int64())
    return np.asarray(seconds.to_numpy(), dtype=np.int64)


def _floats(column: pa.ChunkedArray) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.asarray(pc.cast(column, pa.float64()).to_numpy(), dtype=np.float64)


def _sessions(start: Ints, size: BarSize, hours: Hours) -> Ints:
    if not size.is_dated:
        return hours.owners(start)
    at = np.searchsorted(hours.labels, start // DAY_S)
    return np.minimum(at, len(hours.labels) - 1).astype(np.int64)


def ends_of(bars: Bars, size: BarSize, hours: Hours) -> Ints:
    """Return when each bar is over: at the grid's next step or its session's close."""
    closes = hours.closes[bars.session]
    if size.is_dated:
        return closes
    offsets = hours.offsets[bars.session]
    grid = (bars.start + offsets) // size.seconds * size.seconds - offsets
    inside = bars.start >= hours.opens[bars.session]
    return np.where(inside, np.minimum(grid + size.seconds, closes), grid + size.seconds)
