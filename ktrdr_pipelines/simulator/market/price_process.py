"""The price process of the synthetic market: a pure function of seed, listing and time.

Random numbers go by position: each is the hash of a counter, never the next of a sequence, so any
bar can be computed alone, and again, whatever was computed before. Source: the finalizer of
SplitMix64, https://prng.di.unimi.it/splitmix64.c (public domain).

A session has nodes (open, regular open, regular close, close); a random walk over all sessions
since 1980 fixes the price at every node. The minutes between two nodes are a bridge from one to
the other. All prices are whole ticks and all volumes whole shares: sums and extremes are exact.

Within a minute the price goes from its open in straight lines through its two extremes to its
close, the turning points at seconds that differ by minute; volume and trades are spread evenly. So
all seconds of a minute add up to it exactly in every column but the turnover, which depends on when
a share was traded.
"""

from dataclasses import dataclass, replace
from datetime import date
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from ktrdr_pipelines.simulator.market.bar_arrays import Bars, empty_bars, joined
from ktrdr_pipelines.simulator.market.hours import MINUTE_S, Ints, MarketCalendar, Venue
from ktrdr_pipelines.simulator.market.listings import Listing

Words = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E37_79B9_7F4A_7C15)
_FIRST = np.uint64(0xBF58_476D_1CE4_E5B9)
_SECOND = np.uint64(0x94D0_49BB_1331_11EB)

GAUSS_SD = 65_536 * (4 / 12) ** 0.5
"""Standard deviation of ``gauss``: four uniform numbers of 16 bits."""


def hash_key(*parts: str | int) -> np.uint64:
    """Return the key of one random stream, which its name decides."""
    digest = blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "big"))


def words(key: np.uint64, counters: Ints) -> Words:
    """Return 64 random bits for each counter."""
    mixed = counters.astype(np.uint64)
    mixed *= _GOLDEN
    mixed += key
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= factor
    mixed ^= mixed >> np.uint64(31)
    return mixed


def bits(random: Words, low: int, count: int) -> Ints:
    """Return ``count`` bits of each word, from bit ``low`` on, as whole numbers."""
    field = random >> np.uint64(low)
    field &= np.uint64((1 << count) - 1)
    return field.view(np.int64)


def gauss(random: Words) -> Ints:
    """Return a nearly normal whole number for each word: mean 0, deviation ``GAUSS_SD``."""
    total = bits(random, 0, 16)
    for low in (16, 32, 48):
        total += bits(random, low, 16)
    total -= 2 * 65_535
    return total


_EPOCH = date(1970, 1, 1)
_LEVEL_DAY = (date(2020, 1, 2) - _EPOCH).days
_STEP_SD = 65_536 * (2 / 12) ** 0.5
_SHARES_PER_TRADE = 100
_LEAST_TRADES = 60
"""Shares and trades that every minute with a trade has at least: one a second."""

_EXTENDED_BOUNDARIES = 4
"""Edges of a session with three parts, of which the first and the last are extended hours."""


@dataclass(frozen=True, slots=True)
class _Profile:
    """How a session's move and volume are spread over its parts.

    ``moves`` are shares of a day's move: before the session, then each part. ``liquidity`` is
    each part's volume in 256ths of a regular minute's.
    """

    moves: tuple[float, ...]
    liquidity: tuple[int, ...]


_STOCKS = _Profile((0.55, 0.25, 0.80, 0.15), (6, 256, 9))
_FUTURES = _Profile((0.05, 0.50, 0.85, 0.10), (40, 256, 60))
_WHOLE = _Profile((0.10, 1.0), (256,))
_OVERNIGHT = _Profile((0.55, 0.85), (256,))

_PROFILES = {
    **dict.fromkeys(Venue, _OVERNIGHT),
    Venue.US_STOCKS: _STOCKS,
    Venue.FX: _WHOLE,
    Venue.CME: _FUTURES,
    Venue.NYMEX: _FUTURES,
    Venue.CRYPTO: _WHOLE,
}
"""A venue with extended hours has three parts: before, in and after the regular hours."""


class MinutePaths:
    """The minutes of one listing under one seed."""

    def __init__(self, seed: int, listing: Listing, calendar: MarketCalendar) -> None:
        name = listing.stream
        self._listing = listing
        self._minute_key = hash_key(seed, name, "minute")
        self._day_key = hash_key(seed, name, "day")
        self._profile = _PROFILES[calendar.venue]
        self._boundaries = _boundaries(calendar)
        self._nodes = self._node_ticks(hash_key(seed, name, "node"), calendar)
        regular = self._hours = calendar.regular
        self._busy = 192 + bits(words(self._day_key, regular.labels), 0, 7)

    def spreads(self, sessions: Ints) -> Ints:
        """Return how many ticks bid and ask are from the middle, which is per session."""
        return 1 + bits(words(self._day_key, sessions + (1 << 40)), 0, 16) % 3

    def minutes(self, sessions: range, *, use_rth: bool) -> Bars:
        """Return every minute bar of the given sessions, in all or in regular hours."""
        chosen = np.arange(sessions.start, sessions.stop)
        has_parts = len(self._profile.liquidity) > 1
        first, parts = (1, 1) if use_rth and has_parts else (0, self._boundaries.shape[1] - 1)
        pieces = [
            self._part(same, part)
            for part in range(first, first + parts)
            for same in self._same_length(chosen, part)
        ]
        minutes = _in_order(pieces)
        if self._hours.pause == (0, 0):
            return minutes
        trading = self._hours.trading(minutes.start, minutes.session)
        return minutes.take(np.flatnonzero(trading))

    def _same_length(self, sessions: Ints, part: int) -> list[Ints]:
        lengths = self._boundaries[sessions, part + 1] - self._boundaries[sessions, part]
        return [sessions[lengths == length] for length in np.unique(lengths)]

    def _node_ticks(self, key: np.uint64, calendar: MarketCalendar) -> Ints:
        """Walk once over all sessions and return the price at each node, in ticks."""
        moves = np.array(self._profile.moves)
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
        start, end = self._boundaries[sessions, part], self._boundaries[sessions, part + 1]
        count = int(end[0] - start[0]) // MINUTE_S if len(sessions) else 0
        if count <= 0:
            return empty_bars()
        times = start[:, np.newaxis] + MINUTE_S * np.arange(count)
        random = words(self._minute_key, times // MINUTE_S)
        bars = self._bridged(random, sessions, part)
        return _flat(bars, times, sessions, self._traded(random, part))

    def _traded(self, random: Words, part: int) -> Ints | None:
        is_extended = part in {0, 2} and self._boundaries.shape[1] == _EXTENDED_BOUNDARIES
        share = self._listing.extended_share if is_extended else self._listing.trade_share
        return None if share >= 256 else np.flatnonzero(bits(random.ravel(), 56, 8) < share)

    def _bridged(self, random: Words, sessions: Ints, part: int) -> tuple[Ints, ...]:
        first = self._nodes[sessions, part][:, np.newaxis]
        last = self._nodes[sessions, part + 1][:, np.newaxis]
        count = random.shape[1]
        moves = self._profile.moves[part + 1]
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
        shift = self._listing.shift_ticks
        prices = (price + shift for price in (open_, high, low, close))
        return *prices, self._volumes(random, sessions, part)

    def _volumes(self, random: Words, sessions: Ints, part: int) -> Ints:
        if not self._listing.minute_volume:
            return np.zeros(random.shape, np.int64)
        middle = self._listing.minute_volume * self._profile.liquidity[part] * self._busy[sessions]
        shape = _smile(random.shape[1]) * (64 + bits(random, 48, 8))
        return _LEAST_TRADES + ((middle[:, np.newaxis] >> 8) * shape >> 24)


def _smile(count: int) -> Ints:
    """Return weights around 256 that are higher at both ends."""
    middle = (count - 1) / 2 or 1.0
    distance = (np.arange(count) - middle) / middle
    weights: Ints = np.rint(160 + 290 * distance**2).astype(np.int64)
    return weights


def _boundaries(calendar: MarketCalendar) -> Ints:
    hours, regular = calendar.all_hours, calendar.regular
    if not calendar.has_extended_hours:
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
        count=_LEAST_TRADES + volume // _SHARES_PER_TRADE,
    )
    return bars if traded is None else bars.take(traded)


def _in_order(pieces: list[Bars]) -> Bars:
    bars = joined(pieces)
    in_order = bool(np.all(bars.start[1:] > bars.start[:-1]))
    return bars if in_order else bars.take(np.argsort(bars.start, kind="stable"))


_KEY = hash_key("turning points")
_FIRST_REVERSAL, _SECOND_REVERSAL, _REVERSAL_SPREAD = 8, 32, 20
_STEPS = np.arange(MINUTE_S)


def seconds_of(minutes: Bars) -> Bars:
    """Return one bar for every second of the given minutes."""
    path = _path(minutes)
    open_ = np.concatenate([minutes.open[:, np.newaxis], path[:, :-1]], axis=1)
    high, low = np.maximum(open_, path), np.minimum(open_, path)
    volume, count = _spread(minutes.volume), _spread(minutes.count)
    return Bars(
        start=(minutes.start[:, np.newaxis] + _STEPS).ravel(),
        session=np.repeat(minutes.session, MINUTE_S),
        open=open_.ravel(),
        high=high.ravel(),
        low=low.ravel(),
        close=path.ravel(),
        volume=volume.ravel(),
        turnover=(volume * (open_ + high + low + path)).ravel(),
        count=count.ravel(),
    )


def cut_minute(minute: Bars, start_s: int, end_s: int) -> Bars:
    """Return what the seconds in ``[start_s, end_s)`` make of one minute bar, or nothing."""
    kept = seconds_of(minute).between(start_s, end_s)
    if not len(kept):
        return minute.take(slice(0))
    return replace(
        minute,
        open=kept.open[:1],
        high=kept.high.max(keepdims=True),
        low=kept.low.min(keepdims=True),
        close=kept.close[-1:],
        volume=kept.volume.sum(keepdims=True),
        turnover=kept.turnover.sum(keepdims=True),
        count=kept.count.sum(keepdims=True),
    )


def _path(minutes: Bars) -> Ints:
    """Return the price at the end of every second, a row a minute."""
    reversals = words(_KEY, minutes.start)
    first = _FIRST_REVERSAL + (reversals % _REVERSAL_SPREAD).astype(np.int64)
    second = _SECOND_REVERSAL + (reversals >> np.uint64(32)).astype(np.int64) % _REVERSAL_SPREAD
    rises = minutes.close >= minutes.open
    trough = np.where(rises, minutes.low, minutes.high).astype(np.int64)
    peak = np.where(rises, minutes.high, minutes.low).astype(np.int64)
    open_, close = minutes.open.astype(np.int64), minutes.close.astype(np.int64)
    zero, last = np.zeros_like(first), np.full_like(first, MINUTE_S - 1)
    falling = _line(open_, trough, zero, first)
    rising = _line(trough, peak, first, second)
    closing = _line(peak, close, second, last)
    before_second = np.where(first[:, np.newaxis] >= _STEPS, falling, rising)
    return np.where(second[:, np.newaxis] >= _STEPS, before_second, closing)


def _line(start: Ints, end: Ints, start_at: Ints, end_at: Ints) -> Ints:
    """Return whole ticks on the lines between two points, and beyond them."""
    share = _STEPS - start_at[:, np.newaxis]
    length = (end_at - start_at)[:, np.newaxis]
    line: Ints = start[:, np.newaxis] + (end - start)[:, np.newaxis] * share // length
    return line


def _spread(column: Ints | np.ndarray) -> Ints:
    """Spread whole numbers over 60 seconds, so that they add up."""
    so_far = column.astype(np.int64)[:, np.newaxis] * np.arange(MINUTE_S + 1) // MINUTE_S
    return np.diff(so_far, axis=1)
