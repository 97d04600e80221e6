"""Bars as parallel columns, and their aggregation into longer bars.

Prices and volumes are whole numbers of ticks and shares in the synthetic market, so that sums
are exact, and floats as recorded in a replay; every function here works on both.

Not here: where bars come from (``synthetic``, ``recorded``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from ktrdr_pipelines.simulator.market.hours import DAY_S, Hours, Ints
from ktrdr_pipelines.simulator.requests.durations import DAY, WEEK, BarSize

Column = npt.NDArray[np.int64 | np.float64]

_MONDAY_SHIFT = 3
"""1 January 1970 was a Thursday: days + 3 count from a Monday."""


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars in order of their start.

    ``start`` is in seconds since 1970; of a day or longer it is midnight UTC of the (last)
    session's date. ``session`` is the index of that session in the market's hours. ``turnover``
    is price times volume, in ticks where prices are. ``volume``, ``turnover`` and ``count`` are
    meaningless where the market states none.
    """

    start: Ints
    session: Ints
    open: Column
    high: Column
    low: Column
    close: Column
    volume: Column
    turnover: Column
    count: Ints

    def __len__(self) -> int:
        return len(self.start)

    def take(self, which: slice | npt.NDArray[np.bool_] | Ints) -> "Bars":
        """Return some of the bars."""
        return Bars(*(getattr(self, field.name)[which] for field in fields(self)))

    def between(self, start_s: int, end_s: int) -> "Bars":
        """Return the bars that start in ``[start_s, end_s)``."""
        first, last = np.searchsorted(self.start, (start_s, end_s))
        return self.take(slice(int(first), int(last)))


def empty_bars(prices: type[np.int64] | type[np.float64] = np.int64) -> Bars:
    """Return no bars."""
    whole, price = np.empty(0, np.int64), np.empty(0, prices)
    return Bars(whole, whole, price, price, price, price, price, price, whole)


def joined(parts: Sequence[Bars]) -> Bars:
    """Return the bars of several pieces, which are in order, as one."""
    filled = [part for part in parts if len(part)]
    if len(filled) <= 1:
        return filled[0] if filled else empty_bars()
    columns = ([getattr(part, field.name) for part in filled] for field in fields(Bars))
    return Bars(*(np.concatenate(column) for column in columns))


def aggregated(bars: Bars, size: BarSize, hours: Hours) -> Bars:
    """Build the bars of a longer size out of whole shorter ones of the same hours.

    A bar at either edge holds only what is there: a week or month that is cut is dated by its
    last session so far.
    """
    if not len(bars):
        return bars
    group = _groups(bars, size, hours)
    first = np.flatnonzero(np.r_[True, np.any(np.diff(group) != 0, axis=0)])
    last = np.r_[first[1:], len(bars)] - 1
    return Bars(
        start=_starts(bars.take(first), bars.session[last], size, hours),
        session=bars.session[last],
        open=bars.open[first],
        high=np.maximum.reduceat(bars.high, first),
        low=np.minimum.reduceat(bars.low, first),
        close=bars.close[last],
        volume=np.add.reduceat(bars.volume, first),
        turnover=np.add.reduceat(bars.turnover, first),
        count=np.add.reduceat(bars.count, first),
    )


def _groups(bars: Bars, size: BarSize, hours: Hours) -> Ints:
    """Return rows of keys; neighbours with equal keys make one bar."""
    if not size.is_dated:
        return np.stack([bars.session, _grid(bars, size, hours)])
    if size == DAY:
        return bars.session[np.newaxis]
    labels = hours.labels[bars.session]
    if size == WEEK:
        return ((labels + _MONDAY_SHIFT) // 7)[np.newaxis]
    return labels.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)[np.newaxis]


def _grid(bars: Bars, size: BarSize, hours: Hours) -> Ints:
    offsets = hours.offsets[bars.session]
    return (bars.start + offsets) // size.seconds * size.seconds - offsets


def _starts(leading: Bars, last_sessions: Ints, size: BarSize, hours: Hours) -> Ints:
    if size.is_dated:
        return hours.labels[last_sessions] * DAY_S
    opens = np.minimum(hours.opens[leading.session], leading.start)
    return np.maximum(_grid(leading, size, hours), opens)
