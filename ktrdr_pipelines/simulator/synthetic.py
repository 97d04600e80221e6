"""The synthetic market: every bar a pure function of seed, instrument and time.

Longer bars are built of the minutes of ``minutes``, whole sessions of them once: so all sizes
agree exactly, and a request of many years of days costs its minutes only the first time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date, datetime
from functools import lru_cache

import numpy as np

from ktrdr_pipelines.simulator.bars import Bars, aggregated, empty_bars, joined
from ktrdr_pipelines.simulator.calendar import calendar_of
from ktrdr_pipelines.simulator.durations import Window
from ktrdr_pipelines.simulator.hours import MINUTE_S, Hours, MarketKind
from ktrdr_pipelines.simulator.instruments import Instrument
from ktrdr_pipelines.simulator.listings import LISTINGS, Listing
from ktrdr_pipelines.simulator.market import BarQuery, PricedBars, What
from ktrdr_pipelines.simulator.minutes import MinutePaths, cut_minute
from ktrdr_pipelines.simulator.sizes import DAY, WEEK, BarSize

_BLOCK = 256
"""Sessions computed at once: about a year, which keeps the columns in the processor's cache."""

_KEPT_DAY_BLOCKS = 8_192
"""Blocks of daily bars that are kept, some 20 kB each."""


class SyntheticMarket:
    """US stocks and currency pairs with invented prices over real calendars."""

    def __init__(self, seed: int = 1) -> None:
        self.seed = seed
        self._paths = lru_cache(maxsize=None)(self._new_paths)
        self._day_block = lru_cache(maxsize=_KEPT_DAY_BLOCKS)(self._new_day_block)

    def __repr__(self) -> str:
        return f"SyntheticMarket(seed={self.seed})"

    def instruments(self) -> Sequence[Instrument]:
        """Return every listing's instrument."""
        return tuple(LISTINGS)

    def hours(self, instrument: Instrument, *, use_rth: bool) -> Hours:
        """Return the sessions of the instrument's market."""
        return calendar_of(instrument.kind).hours(use_rth=use_rth)

    def default_now(self) -> datetime | None:
        """Return None: the market goes on for ever, so now is the machine's."""
        return None

    def head(self, instrument: Instrument, what: What, *, use_rth: bool) -> int | None:
        """Return the open of the first session since the listing, if that trades."""
        if what is What.TRADES and instrument.kind is MarketKind.FX:
            return None
        hours = self.hours(instrument, use_rth=use_rth)
        first = self._first_session(instrument, hours)
        paths = self._paths(instrument)
        return int(paths.minutes(range(first, first + 5), use_rth=use_rth).start[0])

    def bars(self, instrument: Instrument, query: BarQuery) -> PricedBars:
        """Return the bars of a query; those at its edges hold only what lies in the window."""
        hours = self.hours(instrument, use_rth=query.use_rth)
        build = self._dated if query.size.is_dated else self._timed
        bars = self._quoted(instrument, build(instrument, query, hours), query.what)
        if query.size == WEEK:
            bars = aggregated(bars, WEEK, hours)
        return _priced(bars, LISTINGS[instrument], query.what)

    def _new_paths(self, instrument: Instrument) -> MinutePaths:
        return MinutePaths(self.seed, LISTINGS[instrument], calendar_of(instrument.kind))

    def _first_session(self, instrument: Instrument, hours: Hours) -> int:
        listed = (LISTINGS[instrument].listed - date(1970, 1, 1)).days
        return int(np.searchsorted(hours.labels, listed))

    def _sessions(self, instrument: Instrument, window: Window, hours: Hours) -> range:
        found = hours.overlapping(window.start_s, window.end_s)
        first = max(found.start, self._first_session(instrument, hours))
        return range(first, max(first, found.stop))

    def _timed(self, instrument: Instrument, query: BarQuery, hours: Hours) -> Bars:
        sessions = self._sessions(instrument, query.window, hours)
        return joined(
            [self._cut(instrument, block, query, query.size) for block in _blocks(sessions)]
        )

    def _cut(self, instrument: Instrument, sessions: range, query: BarQuery, size: BarSize) -> Bars:
        """Build bars of what the window leaves of some sessions' minutes."""
        hours = self.hours(instrument, use_rth=query.use_rth)
        minutes = self._paths(instrument).minutes(sessions, use_rth=query.use_rth)
        return aggregated(_within(minutes, query.window), size, hours)

    def _dated(self, instrument: Instrument, query: BarQuery, hours: Hours) -> Bars:
        """Build daily bars: whole sessions out of kept blocks, cut ones out of minutes."""
        window, sessions = query.window, self._sessions(instrument, query.window, hours)
        parts = []
        for block in _blocks(sessions):
            inside = range(
                block.start + (hours.opens[block.start] < window.start_s),
                block.stop - (hours.closes[block.stop - 1] > window.end_s),
            )
            whole = self._whole_days(instrument, inside, use_rth=query.use_rth)
            edges = sorted(set(block) - set(inside))
            cut = {at: self._cut(instrument, range(at, at + 1), query, DAY) for at in edges}
            before = [bars for at, bars in cut.items() if at < inside.start]
            after = [bars for at, bars in cut.items() if at >= inside.start]
            parts += [*before, whole, *after]
        return joined(parts)

    def _whole_days(self, instrument: Instrument, sessions: range, *, use_rth: bool) -> Bars:
        if not sessions:
            return empty_bars()
        number = sessions.start // _BLOCK
        days = self._day_block(instrument, number, use_rth)
        first, last = np.searchsorted(days.session, (sessions.start, sessions.stop))
        return days.take(slice(int(first), int(last)))

    def _new_day_block(self, instrument: Instrument, number: int, use_rth: bool) -> Bars:  # noqa: FBT001 - a cache key
        hours = self.hours(instrument, use_rth=use_rth)
        first = max(number * _BLOCK, self._first_session(instrument, hours))
        sessions = range(first, min((number + 1) * _BLOCK, len(hours.labels)))
        minutes = self._paths(instrument).minutes(sessions, use_rth=use_rth)
        return aggregated(minutes, DAY, hours)

    def _quoted(self, instrument: Instrument, bars: Bars, what: What) -> Bars:
        """Shift prices by half the session's spread for bid and ask."""
        if what not in {What.BID, What.ASK} or not len(bars):
            return bars
        spread = self._paths(instrument).spreads(bars.session)
        shift = spread if what is What.ASK else -spread
        moved = {name: getattr(bars, name) + shift for name in ("open", "high", "low", "close")}
        return replace(bars, **moved)


def _blocks(sessions: range) -> Iterator[range]:
    """Cut sessions where a block of ``_BLOCK`` ends."""
    start = sessions.start
    while start < sessions.stop:
        stop = min(sessions.stop, (start // _BLOCK + 1) * _BLOCK)
        yield range(start, stop)
        start = stop


def _within(minutes: Bars, window: Window) -> Bars:
    """Return the minutes of a window, those at its edges cut to the second."""
    touched = minutes.between(window.start_s - MINUTE_S + 1, window.end_s)
    if not len(touched):
        return touched
    cut_first = touched.start[0] < window.start_s
    cut_last = touched.start[-1] + MINUTE_S > window.end_s
    if not (cut_first or cut_last):
        return touched
    if len(touched) == 1:
        return cut_minute(touched, window.start_s, window.end_s)
    head = touched.take(slice(0, 1))
    tail = touched.take(slice(len(touched) - 1, None))
    if cut_first:
        head = cut_minute(head, window.start_s, window.end_s)
    if cut_last:
        tail = cut_minute(tail, window.start_s, window.end_s)
    return joined([head, touched.take(slice(1, -1)), tail])


def _priced(bars: Bars, listing: Listing, what: What) -> PricedBars:
    """Turn ticks into prices; dividing whole numbers gives the shortest decimals."""
    unit = listing.ticks_per_unit
    open_, high, low, close = (
        column / unit for column in (bars.open, bars.high, bars.low, bars.close)
    )
    priced = PricedBars(bars.start, open_, high, low, close)
    if what is not What.TRADES or listing.instrument.kind is MarketKind.FX:
        return priced
    average = np.round(bars.turnover / np.maximum(bars.volume, 1) / (4 * unit), 6)
    return replace(priced, volume=bars.volume, average=average, count=bars.count)
