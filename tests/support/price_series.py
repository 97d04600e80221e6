"""Random bars of one instrument, and the same bars as a gateway returns them after a split."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.domain.bars import BAR_SCHEMA

FIRST = datetime(2024, 6, 3, 13, 30, tzinfo=UTC)

EXCHANGE = None
"""A tick of 0.01, or 0.0001 below 1, as exchanges round."""

UNROUNDED = 0.0


@dataclass(frozen=True)
class Prices:
    """Bars as arrays: prices of shape (4, n) in the order open, high, low, close."""

    minutes: np.ndarray
    prices: np.ndarray
    volume: np.ndarray | None
    bar_count: np.ndarray | None

    def table(self) -> pa.Table:
        """Return the bars as they are stored."""
        count = len(self.minutes)
        moments = [FIRST + timedelta(minutes=int(one)) for one in self.minutes]
        nothing = [None] * count
        columns = {
            "ts": moments,
            "session_date": [one.date() for one in moments],
            **dict(zip(("open", "high", "low", "close"), self.prices, strict=True)),
            "volume": nothing if self.volume is None else self.volume,
            "average": nothing if self.volume is None else self.prices.mean(axis=0),
            "bar_count": nothing if self.bar_count is None else self.bar_count,
        }
        arrays = [pa.array(columns[one.name], type=one.type) for one in BAR_SCHEMA]
        return pa.Table.from_arrays(arrays, schema=BAR_SCHEMA)

    def take(self, rows: np.ndarray) -> "Prices":
        """Return some of the bars."""
        volume, count = (
            None if one is None else one[rows] for one in (self.volume, self.bar_count)
        )
        return Prices(self.minutes[rows], self.prices[:, rows], volume, count)

    def rebased(self, ratio: float, tick: float | None = EXCHANGE) -> "Prices":
        """Return the bars at ``ratio`` times their prices, rounded, with inverse volumes."""
        volume = None if self.volume is None else np.round(self.volume / ratio)
        return replace(self, prices=rounded(self.prices * ratio, tick), volume=volume)

    def corrected(self, rng: np.random.Generator, rows: np.ndarray, size: float = 0.1) -> "Prices":
        """Return the bars with prices and volumes of some corrected by differing amounts."""
        factors = 1 + rng.uniform(-size, size, (5, int(rows.sum())))
        prices = self.prices.copy()
        prices[:, rows] = rounded(prices[:, rows] * factors[:4], EXCHANGE)
        volume = self.volume
        if volume is not None:
            volume = volume.copy()
            volume[rows] = np.round(volume[rows] * factors[4])
        return replace(self, prices=prices, volume=volume)


def rounded(prices: np.ndarray, tick: float | None) -> np.ndarray:
    """Return prices on a tick, at least one tick high."""
    if tick == UNROUNDED:
        return prices
    if tick is not None:
        return np.maximum(np.round(np.round(prices / tick) * tick, 10), tick)
    low = np.maximum(np.round(prices, 4), 0.0001)
    return np.where(prices < 1, low, np.round(prices, 2))


def random_prices(
    rng: np.random.Generator,
    count: int,
    *,
    level: float,
    step_minutes: int = 1,
    change: float = 0.01,
    tick: float | None = EXCHANGE,
    volume: float = 1e5,
    traded: float = 1.0,
) -> Prices:
    """Return bars of a random walk.

    Args:
        rng: the source of randomness.
        count: number of bars.
        level: price of the first bar.
        step_minutes: length of a bar.
        change: standard deviation of the change from bar to bar, as a share.
        tick: what prices are rounded to.
        volume: typical volume of a traded bar.
        traded: share of the bars that are traded, at least 5 if there are as many; the others are
            flat.
    """
    close = level * np.exp(np.cumsum(rng.normal(0, change, count)))
    open_ = np.append(level, close[:-1]) * np.exp(rng.normal(0, change / 2, count))
    high = np.maximum(open_, close) * np.exp(np.abs(rng.normal(0, change / 2, count)))
    low = np.minimum(open_, close) * np.exp(-np.abs(rng.normal(0, change / 2, count)))
    prices = rounded(np.array([open_, high, low, close]), tick)
    volumes = np.maximum(np.round(volume * np.exp(rng.normal(0, 0.5, count))), 1)
    counts = np.ceil(volumes / 50)
    is_flat = rng.random(count) >= traded
    is_flat[rng.permutation(count)[:5]] = False
    last = prices[0, 0]
    for row in range(count):
        if is_flat[row]:
            prices[:, row] = last
            volumes[row] = counts[row] = 0
        last = prices[3, row]
    return Prices(np.arange(count) * step_minutes, prices, volumes, counts)
