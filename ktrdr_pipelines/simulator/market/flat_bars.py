"""Flat bars: how gateways report intervals without a trade.

A session's bars begin with its first trade; from there on an interval without a trade is a bar
whose four prices and average are the last price, with volume 0 and count 0. Source: SPY in the
evening, https://github.com/ib-api-reloaded/ib_async/issues/23 (grade L).
"""

import numpy as np

from ktrdr_pipelines.simulator.market.bar_arrays import Bars, joined
from ktrdr_pipelines.simulator.market.hours import Hours, Ints
from ktrdr_pipelines.simulator.requests.durations import BarSize, Window

_PRINTS = 4
"""By what ``turnover`` weighs a price: the sum of open, high, low and close."""


def filled(bars: Bars, traded: Bars, size: BarSize, *, window: Window, hours: Hours) -> Bars:
    """Return intraday bars of trades with flat ones between them.

    Args:
        bars: the bars of a window, in order.
        traded: the traded minutes of the same sessions, also those before the window.
        size: of the bars.
        window: what they are cut to.
        hours: of the market.
    """
    known = traded.between(0, window.end_s)
    if not len(known):
        return bars
    starts, sessions = _grid(known, size, window, hours)
    is_missing = ~np.isin(starts, bars.start)
    starts, sessions = starts[is_missing], sessions[is_missing]
    last = np.searchsorted(known.start, np.maximum(starts, window.start_s)) - 1
    price, none = known.close[last], np.zeros_like(starts)
    flat = Bars(
        start=starts,
        session=sessions,
        open=price,
        high=price,
        low=price,
        close=price,
        volume=none,
        turnover=_PRINTS * price,
        count=none,
    )
    both = joined([bars, flat])
    return both.take(np.argsort(both.start, kind="stable"))


def _grid(known: Bars, size: BarSize, window: Window, hours: Hours) -> tuple[Ints, Ints]:
    """Return where bars begin from each session's first trade to the window's end, and whose."""
    starts: list[Ints] = []
    sessions, first_at = np.unique(known.session, return_index=True)
    for session, first in zip(sessions.tolist(), known.start[first_at].tolist(), strict=True):
        offset = int(hours.offsets[session])
        begin = max(first, window.start_s) + offset
        end = min(int(hours.closes[session]), window.end_s)
        grid = np.arange(begin // size.seconds * size.seconds - offset, end, size.seconds)
        grid = grid[hours.trading(grid, np.full(len(grid), session))]
        starts.append(np.maximum(grid, hours.opens[session]))
    lengths = [len(each) for each in starts]
    return np.concatenate(starts), np.repeat(sessions, lengths)
