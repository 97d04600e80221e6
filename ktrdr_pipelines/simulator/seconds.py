"""The seconds of synthetic minutes: what bars below a minute and cut minutes are made of.

A minute's price goes from its open in straight lines through its two extremes to its close, the
turning points at seconds that differ by minute; volume and trades are spread evenly. So all
seconds of a minute add up to it exactly in every column but the turnover, which depends on when
a share was traded.
"""

from dataclasses import replace

import numpy as np

from ktrdr_pipelines.simulator.bars import Bars
from ktrdr_pipelines.simulator.hashing import hash_key, words
from ktrdr_pipelines.simulator.hours import MINUTE_S, Ints

_KEY = hash_key("turning points")
_FIRST_TURN, _SECOND_TURN, _TURN_SPREAD = 8, 32, 20
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
    turns = words(_KEY, minutes.start)
    first = _FIRST_TURN + (turns % _TURN_SPREAD).astype(np.int64)
    second = _SECOND_TURN + (turns >> np.uint64(32)).astype(np.int64) % _TURN_SPREAD
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
