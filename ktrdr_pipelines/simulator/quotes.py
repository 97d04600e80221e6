"""What quotes make of the price process: bid, ask, both at once, and the columns on the wire.

The process is the middle; bid and ask stand some ticks from it, per session. BID_ASK is, as IB
defines it (grade O), the time-averaged bid, the highest ask, the lowest bid and the
time-averaged ask: on the way there ``turnover`` holds the sum of bids and ``count`` that of
asks, each over four prices of every minute, and ``volume`` the number of minutes.
"""

from dataclasses import replace

import numpy as np

from ktrdr_pipelines.simulator.bars import Bars, Column
from ktrdr_pipelines.simulator.hours import Ints
from ktrdr_pipelines.simulator.listings import Listing
from ktrdr_pipelines.simulator.market import TRADED, PricedBars, Prices, What

_PRINTS = 4
_AVERAGE_DIGITS = 8


def by_time(bars: Bars) -> Bars:
    """Weigh every bar alike, as time averages need, instead of by its volume."""
    prices = np.add(np.add(bars.open, bars.high), np.add(bars.low, bars.close))
    return replace(bars, volume=np.ones_like(bars.start), turnover=prices)


def quoted(bars: Bars, what: What, spread: Ints) -> Bars:
    """Move prices from the middle to the quotes that are asked for."""
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
