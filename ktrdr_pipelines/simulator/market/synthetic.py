"""The synthetic market: every bar a pure function of seed, instrument and time.

Longer bars are aggregated from the minutes of ``price_process``, whole sessions only once: all
sizes agree exactly, and a request for many years of days costs its minutes only the first time.
Bars below a minute are aggregated from its seconds.

The price process is the midpoint; bid and ask are some ticks from it, per session. BID_ASK is, as
IB defines it (grade O), the time-averaged bid, the highest ask, the lowest bid and the
time-averaged ask: until bars are priced, ``turnover`` holds the sum of bids and ``count`` that of
asks, each over four prices of every minute, and ``volume`` the number of minutes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date, datetime
from functools import cache, lru_cache

import numpy as np

from ktrdr_pipelines.simulator.market.bar_arrays import Bars, Column, aggregated, empty_bars, joined
from ktrdr_pipelines.simulator.market.flat_bars import filled
from ktrdr_pipelines.simulator.market.hours import MINUTE_S, Hours, Ints, MarketCalendar
from ktrdr_pipelines.simulator.market.listings import Listing, listings
from ktrdr_pipelines.simulator.market.market import TRADED, BarQuery, PricedBars, Prices, What
from ktrdr_pipelines.simulator.market.market_calendars import calendar_of, crypto_sessions
from ktrdr_pipelines.simulator.market.price_process import MinutePaths, cut_minute, seconds_of
from ktrdr_pipelines.simulator.market.simulated_instruments import SecurityType, SimulatedInstrument
from ktrdr_pipelines.simulator.requests.durations import DAY, MINUTE, Window
from ktrdr_pipelines.simulator.variants import MarketVariants

_PRINTS = 4
_AVERAGE_DIGITS = 8


def by_time(bars: Bars) -> Bars:
    """Weigh every bar alike, as time averages need, instead of by its volume."""
    prices = np.add(np.add(bars.open, bars.high), np.add(bars.low, bars.close))
    return replace(bars, volume=np.ones_like(bars.start), turnover=prices)


def quoted(bars: Bars, what: What, spread: Ints) -> Bars:
    """Return bars with prices moved from the midpoint to the requested quotes."""
    if what is What.BID_ASK:
        apart = np.multiply(_PRINTS * spread, bars.volume)
        asks = np.add(bars.turnover, apart).astype(np.int64)
        return replace(
            bars,
            high=np.add(bars.high, spread),
            low=np.subtract(bars.low, spread),
            turnover=np.subtract(bars.turnover, apart),
            count=asks,
        )
    shift = spread if what is What.ASK else -spread
    moved = {name: getattr(bars, name) + shift for name in ("open", "high", "low", "close")}
    return replace(bars, **moved)


def priced(bars: Bars, listing: Listing, what: What) -> PricedBars:
    """Turn ticks into prices; dividing whole numbers gives the shortest decimals."""
    unit = listing.ticks_per_unit
    high, low = bars.high / unit, bars.low / unit
    if what is What.BID_ASK:
        bid, ask = (_averages(total, bars, unit) for total in (bars.turnover, bars.count))
        return PricedBars(bars.start, bid, high, low, ask)
    prices = PricedBars(bars.start, bars.open / unit, high, low, bars.close / unit)
    return _with_volume(prices, bars, listing) if what in TRADED else prices


def _with_volume(prices: PricedBars, bars: Bars, listing: Listing) -> PricedBars:
    """Add volume, average and count; an index has ticks but nothing is traded."""
    if not listing.minute_volume:
        none = np.zeros(len(bars))
        return replace(prices, volume=none, average=none, count=bars.count)
    volume = bars.volume if listing.volume_parts == 1 else bars.volume / listing.volume_parts
    average = np.round(_averages(bars.turnover, bars, listing.ticks_per_unit), 6)
    return replace(prices, volume=volume, average=average, count=bars.count)


def _averages(total: Column, bars: Bars, unit: int) -> Prices:
    return np.round(total / np.maximum(bars.volume, 1) / (_PRINTS * unit), _AVERAGE_DIGITS)


_BLOCK = 256
"""Sessions computed at once: about a year, which keeps the columns in the processor's cache."""

_KEPT_DAY_BLOCKS = 8_192
"""Blocks of daily bars that are kept, some 20 kB each."""


_SPREAD = frozenset({What.BID, What.ASK, What.BID_ASK})


class SyntheticMarket:
    """Stocks, pairs, futures, indices and crypto with invented prices over real calendars.

    Nothing here pays a dividend or splits: ADJUSTED_LAST is the same as TRADES. A ``SplitMarket``
    adds splits.

    Args:
        seed: decides every price.
        variants: how it differs from other markets of the same seed.
    """

    jumps_at_splits = False

    def __init__(self, seed: int = 1, variants: MarketVariants = MarketVariants()) -> None:  # noqa: B008 - immutable
        self.seed = seed
        self._variants = variants
        self._listings = _listings_in(variants.crypto_zone)
        self._paths = lru_cache(maxsize=None)(self._new_paths)
        self._day_block = lru_cache(maxsize=_KEPT_DAY_BLOCKS)(self._new_day_block)

    def __repr__(self) -> str:
        return f"SyntheticMarket(seed={self.seed})"

    def instruments(self) -> Sequence[SimulatedInstrument]:
        """Return every listing's instrument."""
        return tuple(self._listings)

    def hours(self, instrument: SimulatedInstrument, *, use_rth: bool) -> Hours:
        """Return the sessions of the instrument's market."""
        return _calendar(instrument).hours(use_rth=use_rth)

    def default_now(self) -> datetime | None:
        """Return None: the market has no end, so now is the machine's."""
        return None

    def head(self, instrument: SimulatedInstrument, what: What, *, use_rth: bool) -> int | None:  # noqa: ARG002 - all start together
        """Return the start of the first minute since the listing."""
        hours = self.hours(instrument, use_rth=use_rth)
        first = self._first_session(instrument, hours)
        paths = self._paths(instrument)
        return int(paths.minutes(range(first, first + 5), use_rth=use_rth).start[0])

    def bars(self, instrument: SimulatedInstrument, query: BarQuery) -> PricedBars:
        """Return the bars of a query; those at its edges hold only what lies in the window."""
        hours = self.hours(instrument, use_rth=query.use_rth)
        living = replace(query, window=_until_end_of(instrument, query.window))
        build = self._dated if query.size.is_dated else self._timed
        bars = self._quoted(instrument, build(instrument, living, hours), query.what)
        if query.size > DAY:
            bars = aggregated(bars, query.size, hours)
        return priced(bars, self._listings[instrument], query.what)

    def _new_paths(self, instrument: SimulatedInstrument) -> MinutePaths:
        return MinutePaths(self.seed, self._listings[instrument], _calendar(instrument))

    def _first_session(self, instrument: SimulatedInstrument, hours: Hours) -> int:
        listed = (self._listings[instrument].listed - date(1970, 1, 1)).days
        return int(np.searchsorted(hours.labels, listed))

    def _sessions(self, instrument: SimulatedInstrument, window: Window, hours: Hours) -> range:
        found = hours.overlapping(window.start_s, window.end_s)
        first = max(found.start, self._first_session(instrument, hours))
        return range(first, max(first, found.stop))

    def _timed(self, instrument: SimulatedInstrument, query: BarQuery, hours: Hours) -> Bars:
        sessions = self._sessions(instrument, query.window, hours)
        length = 1 if query.size < MINUTE else _BLOCK
        blocks = _blocks(sessions, length)
        return joined([self._cut(instrument, block, query) for block in blocks])

    def _cut(self, instrument: SimulatedInstrument, sessions: range, query: BarQuery) -> Bars:
        """Build bars, of a day at most, of what the window leaves of some sessions' minutes."""
        hours, size = self.hours(instrument, use_rth=query.use_rth), min(query.size, DAY)
        minutes = self._paths(instrument).minutes(sessions, use_rth=query.use_rth)
        window = query.window
        if size < MINUTE:
            touched = minutes.between(window.start_s - MINUTE_S + 1, window.end_s)
            pieces = seconds_of(touched).between(window.start_s, window.end_s)
        else:
            pieces = _within(minutes, window)
        bars = aggregated(_weighed(pieces, query.what), size, hours)
        if size.is_dated or not self._has_flat_bars(instrument, query.what):
            return bars
        return filled(bars, minutes, size, window=window, hours=hours)

    def _has_flat_bars(self, instrument: SimulatedInstrument, what: What) -> bool:
        """Return whether the gateway sends flat bars for intervals without a trade."""
        if what not in TRADED or not self._listings[instrument].minute_volume:
            return False
        names = (instrument.key, instrument.symbol, instrument.local_symbol, instrument.sec_type)
        return self._variants.fills(names)

    def _dated(self, instrument: SimulatedInstrument, query: BarQuery, hours: Hours) -> Bars:
        """Build daily bars: whole sessions out of kept blocks, cut ones out of minutes."""
        window, sessions = query.window, self._sessions(instrument, query.window, hours)
        parts = []
        for block in _blocks(sessions, _BLOCK):
            inside = range(
                block.start + (hours.opens[block.start] < window.start_s),
                block.stop - (hours.closes[block.stop - 1] > window.end_s),
            )
            whole = self._whole_days(instrument, inside, query)
            boundaries = sorted(set(block) - set(inside))
            cut = {at: self._cut(instrument, range(at, at + 1), query) for at in boundaries}
            before = [bars for at, bars in cut.items() if at < inside.start]
            after = [bars for at, bars in cut.items() if at >= inside.start]
            parts += [*before, whole, *after]
        return joined(parts)

    def _whole_days(
        self, instrument: SimulatedInstrument, sessions: range, query: BarQuery
    ) -> Bars:
        if not sessions:
            return empty_bars()
        number = sessions.start // _BLOCK
        what = query.what if query.what is What.BID_ASK else What.TRADES
        days = self._day_block(instrument, number, what, query.use_rth)
        first, last = np.searchsorted(days.session, (sessions.start, sessions.stop))
        return days.take(slice(int(first), int(last)))

    def _new_day_block(
        self,
        instrument: SimulatedInstrument,
        number: int,
        what: What,
        use_rth: bool,  # noqa: FBT001 - a cache key
    ) -> Bars:
        hours = self.hours(instrument, use_rth=use_rth)
        first = max(number * _BLOCK, self._first_session(instrument, hours))
        sessions = range(first, min((number + 1) * _BLOCK, len(hours.labels)))
        minutes = self._paths(instrument).minutes(sessions, use_rth=use_rth)
        return aggregated(_weighed(minutes, what), DAY, hours)

    def _quoted(self, instrument: SimulatedInstrument, bars: Bars, what: What) -> Bars:
        """Move prices by the session's spread for bid and ask."""
        if what not in _SPREAD or not len(bars):
            return bars
        return quoted(bars, what, self._paths(instrument).spreads(bars.session))


@cache
def _listings_in(crypto_zone: str) -> dict[SimulatedInstrument, Listing]:
    """Return every listing; those of crypto in their own zone where one is given."""
    if not crypto_zone:
        return listings()
    found = {}
    for instrument, listing in listings().items():
        own = crypto_zone if instrument.sec_type is SecurityType.CRYPTO else ""
        zoned = replace(instrument, own_zone=own)
        found[zoned] = replace(listing, instrument=zoned)
    return found


def _calendar(instrument: SimulatedInstrument) -> MarketCalendar:
    """Return the calendar of an instrument: crypto of a zone of its own has sessions."""
    if instrument.own_zone:
        return crypto_sessions(instrument.own_zone)
    return calendar_of(instrument.venue)


def _weighed(bars: Bars, what: What) -> Bars:
    return by_time(bars) if what is What.BID_ASK else bars


def _until_end_of(instrument: SimulatedInstrument, window: Window) -> Window:
    """Cut a window at a future's end."""
    if instrument.expiry is None:
        return window
    return Window(window.start_s, min(window.end_s, instrument.expiry.end_s))


def _blocks(sessions: range, length: int) -> Iterator[range]:
    """Cut sessions where a block of so many ends."""
    start = sessions.start
    while start < sessions.stop:
        stop = min(sessions.stop, (start // length + 1) * length)
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
