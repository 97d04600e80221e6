"""The synthetic price process: session nodes, and the minutes bridged between them.

A session has nodes (open, regular open, regular close, close); a random walk over all sessions
since 1980 fixes the price at every node. The minutes between two nodes are a bridge from one to
the other: each minute's randomness is a hash of its time, so a session can be computed alone.
All prices are whole ticks and all volumes whole shares: sums and extremes are exact.

A minute is four prints, 15 seconds apart: its open, its two extremes, its close. That decides
what there is of a minute that is cut.
"""

from dataclasses import replace
from datetime import date

import numpy as np

from ktrdr_pipelines.simulator.bars import Bars, empty_bars, joined
from ktrdr_pipelines.simulator.hashing import GAUSS_SD, Words, bits, gauss, hash_key, words
from ktrdr_pipelines.simulator.hours import MINUTE_S, Ints, MarketCalendar, MarketKind
from ktrdr_pipelines.simulator.listings import Listing

_EPOCH = date(1970, 1, 1)
_LEVEL_DAY = (date(2020, 1, 2) - _EPOCH).days
_PRINT_S = 15
_STEP_SD = 65_536 * (2 / 12) ** 0.5
_SHARES_PER_TRADE = 100

_STOCK_MOVES = (0.55, 0.25, 0.80, 0.15)
"""Share of a day's move by part: overnight, before the open, regular, after the close."""

_FX_MOVES = (0.10, 1.0)
_STOCK_LIQUIDITY = (6, 256, 9)
"""Volume by part of a stock's session, in 256ths of a regular minute's."""


class MinutePaths:
    """The minutes of one listing under one seed."""

    def __init__(self, seed: int, listing: Listing, calendar: MarketCalendar) -> None:
        name = listing.instrument.key
        self._listing = listing
        self._minute_key = hash_key(seed, name, "minute")
        self._day_key = hash_key(seed, name, "day")
        self._is_stock = calendar.kind is MarketKind.STOCK
        self._edges = _edges(calendar)
        self._nodes = self._node_ticks(hash_key(seed, name, "node"), calendar)
        regular = calendar.regular
        self._busy = 192 + bits(words(self._day_key, regular.labels), 0, 7)

    def spreads(self, sessions: Ints) -> Ints:
        """Return how many ticks bid and ask are from the middle, which is per session."""
        return 1 + bits(words(self._day_key, sessions + (1 << 40)), 0, 16) % 3

    def minutes(self, sessions: range, *, use_rth: bool) -> Bars:
        """Return every minute bar of the given sessions, in all or in regular hours."""
        chosen = np.arange(sessions.start, sessions.stop)
        first, parts = (1, 1) if use_rth and self._is_stock else (0, self._edges.shape[1] - 1)
        pieces = [
            self._part(same, part)
            for part in range(first, first + parts)
            for same in self._same_length(chosen, part)
        ]
        return _in_order(pieces)

    def _same_length(self, sessions: Ints, part: int) -> list[Ints]:
        lengths = self._edges[sessions, part + 1] - self._edges[sessions, part]
        return [sessions[lengths == length] for length in np.unique(lengths)]

    def _node_ticks(self, key: np.uint64, calendar: MarketCalendar) -> Ints:
        """Walk once over all sessions and return the price at each node, in ticks."""
        moves = np.array(_STOCK_MOVES if self._is_stock else _FX_MOVES)
        labels = calendar.all_hours.labels
        counters = labels[:, np.newaxis] * len(moves) + np.arange(len(moves))
        steps = gauss(words(key, counters)) / GAUSS_SD * moves * self._listing.daily_move
        walk = np.cumsum(steps.ravel()).reshape(steps.shape)
        walk -= walk[np.searchsorted(labels, _LEVEL_DAY), 0]
        reach = self._listing.reach
        folded = np.abs((walk + reach) % (4 * reach) - 2 * reach) - reach
        level = self._listing.price * self._listing.ticks_per_unit
        nodes: Ints = np.rint(level * np.exp(-folded)).astype(np.int64)
        return nodes

    def _part(self, sessions: Ints, part: int) -> Bars:
        """Return the minutes of one part of sessions in which it has the same length."""
        start, end = self._edges[sessions, part], self._edges[sessions, part + 1]
        count = int(end[0] - start[0]) // MINUTE_S if len(sessions) else 0
        if count <= 0:
            return empty_bars()
        times = start[:, np.newaxis] + MINUTE_S * np.arange(count)
        random = words(self._minute_key, times // MINUTE_S)
        bars = self._bridged(random, sessions, part)
        return _flat(bars, times, sessions, self._traded(random))

    def _traded(self, random: Words) -> Ints | None:
        share = self._listing.trade_share
        return None if share >= 256 else np.flatnonzero(bits(random.ravel(), 56, 8) < share)

    def _bridged(self, random: Words, sessions: Ints, part: int) -> tuple[Ints, ...]:
        first = self._nodes[sessions, part][:, np.newaxis]
        last = self._nodes[sessions, part + 1][:, np.newaxis]
        count = random.shape[1]
        moves = (_STOCK_MOVES if self._is_stock else _FX_MOVES)[part + 1]
        deviation = first * (self._listing.daily_move * moves / count**0.5)
        scale = np.rint(deviation * (65_536 / _STEP_SD)).astype(np.int64)
        steps = bits(random, 0, 16) + bits(random, 16, 16) - 65_535
        walk = np.cumsum((steps * scale) >> 16, axis=1)
        ramp = np.arange(1, count + 1)
        close = first + walk + (last - first - walk[:, -1:]) * ramp // count
        open_ = np.concatenate([first, close[:, :-1]], axis=1)
        wick = np.ceil(deviation).astype(np.int64)
        high = np.maximum(open_, close) + ((bits(random, 32, 8) * wick) >> 8)
        low = np.minimum(open_, close) - ((bits(random, 40, 8) * wick) >> 8)
        low = np.maximum(low, 1)
        close, open_, high = (np.maximum(price, 1) for price in (close, open_, high))
        return open_, high, low, close, self._volumes(random, sessions, part)

    def _volumes(self, random: Words, sessions: Ints, part: int) -> Ints:
        if not self._is_stock:
            return np.zeros(random.shape, np.int64)
        middle = self._listing.minute_volume * _STOCK_LIQUIDITY[part] * self._busy[sessions]
        shape = _smile(random.shape[1]) * (64 + bits(random, 48, 8))
        return 1 + ((middle[:, np.newaxis] >> 8) * shape >> 24)


def _smile(count: int) -> Ints:
    """Return weights around 256 that are higher at both ends."""
    middle = (count - 1) / 2 or 1.0
    distance = (np.arange(count) - middle) / middle
    weights: Ints = np.rint(160 + 290 * distance**2).astype(np.int64)
    return weights


def _edges(calendar: MarketCalendar) -> Ints:
    hours, regular = calendar.all_hours, calendar.regular
    if calendar.kind is MarketKind.FX:
        return np.stack([hours.opens, hours.closes], axis=1)
    return np.stack([hours.opens, regular.opens, regular.closes, hours.closes], axis=1)


def _flat(columns: tuple[Ints, ...], times: Ints, sessions: Ints, traded: Ints | None) -> Bars:
    open_, high, low, close, volume = (column.ravel() for column in columns)
    bars = Bars(
        start=times.ravel(),
        session=np.repeat(sessions, times.shape[1]),
        open=open_,
        high=high,
        low=low,
        close=close,
        volume=volume,
        turnover=volume * (open_ + high + low + close),
        count=1 + volume // _SHARES_PER_TRADE,
    )
    return bars if traded is None else bars.take(traded)


def _in_order(pieces: list[Bars]) -> Bars:
    bars = joined(pieces)
    in_order = bool(np.all(bars.start[1:] > bars.start[:-1]))
    return bars if in_order else bars.take(np.argsort(bars.start, kind="stable"))


def cut_minute(minute: Bars, start_s: int, end_s: int) -> Bars:
    """Return what the prints in ``[start_s, end_s)`` make of one minute bar, or nothing."""
    stamp = int(minute.start[0])
    open_, high, low, close = (
        int(column[0]) for column in (minute.open, minute.high, minute.low, minute.close)
    )
    extremes = (low, high) if close >= open_ else (high, low)
    prints = [
        (price, number)
        for number, price in enumerate((open_, *extremes, close))
        if start_s <= stamp + number * _PRINT_S < end_s
    ]
    if not prints:
        return minute.take(slice(0))
    prices = [price for price, _ in prints]
    quarter, rest = divmod(int(minute.volume[0]), 4)
    volume = quarter * len(prints) + (rest if prints[0][1] == 0 else 0)
    kept = {
        "open": prices[0],
        "high": max(prices),
        "low": min(prices),
        "close": prices[-1],
        "volume": volume,
        "turnover": volume * sum(prices) * 4 // len(prices),
        "count": 1 + volume // _SHARES_PER_TRADE,
    }
    return replace(minute, **{name: np.array([value]) for name, value in kept.items()})
