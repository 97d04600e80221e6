"""The replay market: recorded bars, answered bit for bit.

The file of a size is answered as it is; only a size that has no file is built of the longest
shorter one that has and that goes into it. What was not recorded stays missing. A recorded bar
cannot be split: one that the window cuts at its end is built of shorter recorded bars where
there are any and left out where there are none; one that it cuts at its start is left out.

Stocks and futures are recorded as TRADES and pairs as MIDPOINT; anything else has no data, and
futures are never forgotten. Of the fields, average and count were not recorded and are not
available, nor is the volume of a pair; a volume that is null in the file makes that of every
bar it is part of not available.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import numpy as np

from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.simulator.bars import Bars, aggregated, empty_bars, joined
from ktrdr_pipelines.simulator.calendar import calendar_of, within_regular_clock
from ktrdr_pipelines.simulator.durations import Window
from ktrdr_pipelines.simulator.hours import DAY_S, Hours
from ktrdr_pipelines.simulator.instruments import Instrument, SecType
from ktrdr_pipelines.simulator.market import BarQuery, PricedBars, What
from ktrdr_pipelines.simulator.recording import ends_of, read_bars, recordings_in
from ktrdr_pipelines.simulator.sizes import BarSize

_RECORDED_WHAT = {
    SecType.STOCK: What.TRADES,
    SecType.FUTURE: What.TRADES,
    SecType.FX: What.MIDPOINT,
}
_KEPT_SERIES = 64
_NOT_AVAILABLE = IbLimitsRegistry.NO_MARKET_DATA_VALUE.value


class ReplayMarket:
    """The recorded bars of a folder.

    Raises:
        SimulatorError: the folder holds nothing that can be replayed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._recordings = recordings_in(folder)
        self._series = lru_cache(maxsize=_KEPT_SERIES)(self._read)

    def __repr__(self) -> str:
        return f"ReplayMarket({', '.join(each.key for each in self._recordings)})"

    def instruments(self) -> Sequence[Instrument]:
        """Return what was recorded."""
        return tuple(self._recordings)

    def hours(self, instrument: Instrument, *, use_rth: bool) -> Hours:
        """Return the sessions of the instrument's market, whatever was recorded of them."""
        return calendar_of(instrument.venue).hours(use_rth=use_rth)

    def default_now(self) -> datetime | None:
        """Return a midnight UTC a day or more after the end of the newest recorded bar.

        A session that closes this very moment is not final yet for a careful client.
        """
        newest = max(self._newest(instrument) for instrument in self._recordings)
        return datetime.fromtimestamp((-(-newest // DAY_S) + 1) * DAY_S, UTC)

    def head(self, instrument: Instrument, what: What, *, use_rth: bool) -> int | None:
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

    def bars(self, instrument: Instrument, query: BarQuery) -> PricedBars:
        """Return the recorded bars that lie wholly in the window, oldest first."""
        if query.what is not _RECORDED_WHAT[instrument.sec_type]:
            return _priced(empty_bars(np.float64), instrument.sec_type)
        return _priced(self._in_window(instrument, query.size, query), instrument.sec_type)

    def _read(self, instrument: Instrument, size: BarSize, use_rth: bool) -> Bars:  # noqa: FBT001 - a cache key
        """Read a series once, without the bars outside the hours that are asked for.

        A recording of regular hours stays whole: some of its bars stand after the early close of
        a half day, and the recording knows better than the calendar.
        """
        hours = self.hours(instrument, use_rth=use_rth)
        bars = read_bars(self._recordings[instrument].files[size], size, hours)
        if size.is_dated or not use_rth or instrument.sec_type is SecType.FX:
            return bars
        if within_regular_clock(bars.start + hours.offsets[bars.session]):
            return bars
        return bars.take(bars.start >= hours.opens[bars.session])

    def _newest(self, instrument: Instrument) -> int:
        """Return when the newest bar is over; a day is with its regular session."""
        ends = (
            int(ends_of(bars, size, self.hours(instrument, use_rth=size.is_dated))[-1])
            for size in self._recordings[instrument].files
            if len(bars := self._series(instrument, size, size.is_dated))
        )
        return max(ends, default=0)

    def _in_window(self, instrument: Instrument, size: BarSize, query: BarQuery) -> Bars:
        if size in self._recordings[instrument].files:
            return self._recorded(instrument, size, query)
        shorter = self._longest_below(instrument, size)
        if shorter is None:
            return empty_bars(np.float64)
        hours = self.hours(instrument, use_rth=query.use_rth)
        return aggregated(self._in_window(instrument, shorter, query), size, hours)

    def _longest_below(self, instrument: Instrument, size: BarSize) -> BarSize | None:
        files = self._recordings[instrument].files
        return max((each for each in files if size.is_made_of(each)), default=None)

    def _recorded(self, instrument: Instrument, size: BarSize, query: BarQuery) -> Bars:
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
        self, instrument: Instrument, size: BarSize, query: BarQuery, rest: Window
    ) -> Bars:
        """Build what there is so far of a bar that the end cuts, if shorter ones know it."""
        shorter = self._longest_below(instrument, size)
        if shorter is None:
            return empty_bars(np.float64)
        narrowed = BarQuery(query.what, size, query.use_rth, rest)
        hours = self.hours(instrument, use_rth=query.use_rth)
        return aggregated(self._in_window(instrument, shorter, narrowed), size, hours)


def _priced(bars: Bars, sec_type: SecType) -> PricedBars:
    prices = (
        np.asarray(column, np.float64) for column in (bars.open, bars.high, bars.low, bars.close)
    )
    open_, high, low, close = prices
    known = np.where(np.isnan(bars.volume), _NOT_AVAILABLE, bars.volume)
    volume = None if sec_type is SecType.FX else known
    return PricedBars(bars.start, open_, high, low, close, volume=volume)
