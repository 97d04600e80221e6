"""Recorded bars on disk (``<SYMBOL>/<timeframe>.parquet``), and a market that replays them.

A size that has a file is replayed from it bit for bit; a size without one is aggregated from the
longest shorter size that has a file and divides it. What was not recorded stays missing. A recorded
bar cannot be split: one that the window cuts at its end is aggregated from shorter recorded bars
where there are any and left out where there are none; one that it cuts at its start is left out.

Stocks and futures are recorded as TRADES and pairs as MIDPOINT; anything else has no data, and
futures stay known after they expire. Of the fields, average and count were not recorded and are not
available, nor is the volume of a pair; a volume that is null in the file makes that of every
bar it is part of not available.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ktrdr_pipelines.errors import SimulatorError
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.simulator.market.bar_arrays import Bars, aggregated, empty_bars, joined
from ktrdr_pipelines.simulator.market.futures import recorded_contract
from ktrdr_pipelines.simulator.market.hours import DAY_S, Hours, Ints
from ktrdr_pipelines.simulator.market.listings import listings
from ktrdr_pipelines.simulator.market.market import BarQuery, PricedBars, What
from ktrdr_pipelines.simulator.market.market_calendars import calendar_of, within_regular_clock
from ktrdr_pipelines.simulator.market.simulated_instruments import (
    SecurityType,
    SimulatedInstrument,
    fx_pair,
    pair_of,
    us_stock,
)
from ktrdr_pipelines.simulator.requests.durations import SIZES, BarSize, Window

_LOG = logging.getLogger(__name__)

_STOCK = re.compile(r"[A-Z]{1,5}(?:[ .][A-Z])?")
_VALUES = ("open", "high", "low", "close", "volume")
_COLUMNS = ("ts", *_VALUES)
_NEVER_MISSING = ("ts", "open", "high", "low", "close")


@dataclass(frozen=True, slots=True)
class Recording:
    """The files of one instrument, from the shortest size to the longest."""

    instrument: SimulatedInstrument
    files: dict[BarSize, Path]


def recordings_in(folder: Path) -> dict[SimulatedInstrument, Recording]:
    """Find the recorded stocks, currency pairs and futures of a folder.

    Anything else is skipped with a note in the log.

    Raises:
        SimulatorError: there is no such folder, or nothing in it can be replayed.
    """
    if not folder.is_dir():
        raise SimulatorError(
            f"replay the bars of {folder}",
            reason="no such folder",
            hint="Name a folder with files like AAPL/1m.parquet",
        )
    found = [_recording(path) for path in sorted(folder.iterdir()) if path.is_dir()]
    recordings = {each.instrument: each for each in found if each is not None}
    if not recordings:
        raise SimulatorError(
            f"replay the bars of {folder}",
            reason="no recorded stock, currency pair or future",
            hint="Name a folder with files like AAPL/1m.parquet",
        )
    return recordings


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
    """Check a file's columns when the folder is opened, not at its first request."""
    try:
        missing = set(_COLUMNS) - set(pq.read_schema(path).names)
    except (OSError, pa.ArrowException) as error:
        raise _malformed(path, str(error).splitlines()[0]) from error
    if missing:
        raise _malformed(path, f"no column {', '.join(sorted(missing))}")


def _malformed(path: Path, reason: str) -> SimulatorError:
    return SimulatorError(
        f"read recorded bars from {path}",
        reason=reason,
        hint=f"It must be Parquet with the columns {', '.join(_COLUMNS)}",
    )


def _instrument(key: str, files: dict[BarSize, Path]) -> SimulatedInstrument | None:
    """Return the instrument of a folder; the year of a future follows from its newest bar."""
    pair = pair_of(key)
    if pair is not None:
        return fx_pair(*pair)
    if _STOCK.fullmatch(key):
        stocks = (each for each in listings() if each.sec_type is SecurityType.STOCK)
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
        # Only a volume may be null: a bar without a time or a price is unusable.
        for name in _NEVER_MISSING:
            if nulls := table.column(name).null_count:
                raise _malformed(path, f"{name} is missing in {nulls} bars")
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


_RECORDED_WHAT = {
    SecurityType.STOCK: What.TRADES,
    SecurityType.FUTURE: What.TRADES,
    SecurityType.FX: What.MIDPOINT,
}
_KEPT_SERIES = 64
_NOT_AVAILABLE = IbLimitsRegistry.NO_MARKET_DATA_VALUE.value


class ReplayMarket:
    """The recorded bars of a folder.

    Raises:
        SimulatorError: the folder holds nothing that can be replayed.
    """

    jumps_at_splits = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._recordings = recordings_in(folder)
        self._series = lru_cache(maxsize=_KEPT_SERIES)(self._read)

    def __repr__(self) -> str:
        return f"ReplayMarket({', '.join(each.key for each in self._recordings)})"

    def instruments(self) -> Sequence[SimulatedInstrument]:
        """Return what was recorded."""
        return tuple(self._recordings)

    def hours(self, instrument: SimulatedInstrument, *, use_rth: bool) -> Hours:
        """Return the sessions of the instrument's market, whatever was recorded of them."""
        return calendar_of(instrument.venue).hours(use_rth=use_rth)

    def default_now(self) -> datetime | None:
        """Return a midnight UTC a day or more after the end of the newest recorded bar.

        A session that closes this very moment is not final yet for a careful client.
        """
        newest = max(self._newest(instrument) for instrument in self._recordings)
        return datetime.fromtimestamp((-(-newest // DAY_S) + 1) * DAY_S, UTC)

    def head(self, instrument: SimulatedInstrument, what: What, *, use_rth: bool) -> int | None:
        """Return the start of the oldest bar of any size; of a day it is the session's open."""
        if what is not _RECORDED_WHAT[instrument.sec_type]:
            return None
        hours = self.hours(instrument, use_rth=use_rth)
        starts = [
            int(hours.opens[bars.session[0]] if size.is_dated else bars.start[0])
            for size in self._recordings[instrument].files
            if len(bars := self._series(instrument, size, use_rth))
        ]
        return min(starts, default=None)

    def bars(self, instrument: SimulatedInstrument, query: BarQuery) -> PricedBars:
        """Return the recorded bars that lie wholly in the window, oldest first."""
        if query.what is not _RECORDED_WHAT[instrument.sec_type]:
            return _priced(empty_bars(np.float64), instrument.sec_type)
        return _priced(self._in_window(instrument, query.size, query), instrument.sec_type)

    def _read(self, instrument: SimulatedInstrument, size: BarSize, use_rth: bool) -> Bars:  # noqa: FBT001 - a cache key
        """Read a series once, without the bars outside the requested hours.

        A recording of regular hours stays whole: some of its bars lie after the early close of a
        half day, where the recording is more reliable than the calendar.
        """
        hours = self.hours(instrument, use_rth=use_rth)
        bars = read_bars(self._recordings[instrument].files[size], size, hours)
        if size.is_dated or not use_rth or instrument.sec_type is SecurityType.FX:
            return bars
        if within_regular_clock(bars.start + hours.offsets[bars.session]):
            return bars
        return bars.take(bars.start >= hours.opens[bars.session])

    def _newest(self, instrument: SimulatedInstrument) -> int:
        """Return when the newest bar is over; a day is with its regular session."""
        ends = (
            int(ends_of(bars, size, self.hours(instrument, use_rth=size.is_dated))[-1])
            for size in self._recordings[instrument].files
            if len(bars := self._series(instrument, size, size.is_dated))
        )
        return max(ends, default=0)

    def _in_window(self, instrument: SimulatedInstrument, size: BarSize, query: BarQuery) -> Bars:
        if size in self._recordings[instrument].files:
            return self._recorded(instrument, size, query)
        shorter = self._longest_below(instrument, size)
        if shorter is None:
            return empty_bars(np.float64)
        hours = self.hours(instrument, use_rth=query.use_rth)
        return aggregated(self._in_window(instrument, shorter, query), size, hours)

    def _longest_below(self, instrument: SimulatedInstrument, size: BarSize) -> BarSize | None:
        files = self._recordings[instrument].files
        return max((each for each in files if size.is_made_of(each)), default=None)

    def _recorded(self, instrument: SimulatedInstrument, size: BarSize, query: BarQuery) -> Bars:
        hours = self.hours(instrument, use_rth=query.use_rth)
        bars = self._series(instrument, size, query.use_rth)
        starts = hours.opens[bars.session] if size.is_dated else bars.start
        ends = ends_of(bars, size, hours)
        window = query.window
        whole = np.flatnonzero((starts >= window.start_s) & (ends <= window.end_s))
        cut = np.flatnonzero((starts < window.end_s) & (ends > window.end_s))
        if not len(cut) or starts[cut[0]] < window.start_s:
            return bars.take(whole)
        rest = Window(int(starts[cut[0]]), window.end_s)
        return joined([bars.take(whole), self._rebuilt(instrument, size, query, rest)])

    def _rebuilt(
        self, instrument: SimulatedInstrument, size: BarSize, query: BarQuery, rest: Window
    ) -> Bars:
        """Build the part before the end of a bar that the end cuts, from shorter recorded bars."""
        shorter = self._longest_below(instrument, size)
        if shorter is None:
            return empty_bars(np.float64)
        narrowed = BarQuery(query.what, size, query.use_rth, rest)
        hours = self.hours(instrument, use_rth=query.use_rth)
        return aggregated(self._in_window(instrument, shorter, narrowed), size, hours)


def _priced(bars: Bars, sec_type: SecurityType) -> PricedBars:
    prices = (
        np.asarray(column, np.float64) for column in (bars.open, bars.high, bars.low, bars.close)
    )
    open_, high, low, close = prices
    known = np.where(np.isnan(bars.volume), _NOT_AVAILABLE, bars.volume)
    volume = None if sec_type is SecurityType.FX else known
    return PricedBars(bars.start, open_, high, low, close, volume=volume)
