"""Find sparse sessions: closed sessions with far fewer bars than their neighbours, or with none.

A response that was cut short looks like a quiet session, and a gateway may say "no data" of a
session that it has. An instrument that trades thinly varies from day to day and has no sparse
sessions; one that is steady and breaks off once is requested once more. Counts are compared as
shares of the expected bars, so that half days and long sessions compare; a daily bar is held or
not.

Some gateways, not all and not always, fill intervals without a trade with flat bars. So traded bars
are compared with traded bars; filled sessions are compared once more among themselves by all their
bars, which a session that breaks off lacks.

Not here: requesting them again (``sync``), sessions that were requested again with the same outcome
(``store.ledger.marks``).
"""

from collections.abc import Mapping
from datetime import date

import numpy as np

from ktrdr_pipelines.domain.calendars.session_grid import SessionGrid
from ktrdr_pipelines.domain.instruments import Instrument
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe

NEIGHBOURS = 20
"""Sessions on either side that one is compared with: a month each way."""

FEWEST_NEIGHBOURS = 5
"""Fewer neighbours do not show what is usual."""

FAR_FEWER = 0.75
"""Share of the usual number below which a session may be sparse: above it, requesting it again
would cost more requests than the few quiet minutes are worth."""

STEADY = 6.0
"""Number of spreads below the usual that makes a session sparse: by chance once in millions."""

FEWEST_LACKING = 2.5
"""Fewest bars that a sparse session lacks: of two or three bars a session, one proves nothing."""

_TO_SIGMA = 1.4826


def may_be_sparse(instrument: Instrument, day: date) -> bool:
    """Return whether a session can be sparse: a contract's last day cannot.

    It ends when the contract expires; its calendar knows only how long others trade on that day.
    """
    return day != instrument.last_trade_date


def sparse_indexes(
    expected: np.ndarray,
    have: np.ndarray,
    answered: np.ndarray,
    traded: np.ndarray | None = None,
) -> np.ndarray:
    """Return the indexes of sparse sessions, ascending.

    Sessions before the first bar and after the last one are not compared with those between. Where
    no bar at all is of a trade, as of an index, all bars count alike.

    Args:
        expected: bars that the calendar expects, one element a session, oldest first.
        have: bars that are held.
        answered: whether the session is closed and wholly covered, with bars or as confirmed empty.
        traded: the number of bars held that are not flat; all of them if not given.
    """
    if traded is None or not traded.any() or np.array_equal(traded, have):
        return _find_sparse(expected, have, answered)
    filled = _find_sparse(expected, have, answered & (have > traded))
    return np.union1d(_find_sparse(expected, traded, answered), filled)


def _find_sparse(expected: np.ndarray, have: np.ndarray, answered: np.ndarray) -> np.ndarray:
    held = np.flatnonzero(have > 0)
    known = np.flatnonzero(answered & (expected > 0))
    if len(held):
        known = known[(known >= held[0]) & (known <= held[-1])]
    if not len(held) or len(known) <= FEWEST_NEIGHBOURS:
        return np.empty(0, dtype=np.int64)
    share = have[known] / expected[known]
    candidates = _candidates(share)
    if not len(candidates):
        return np.empty(0, dtype=np.int64)
    usual, spread, likely = _usual(share, candidates)
    chance = np.sqrt(likely * (1 - likely) / expected[known][candidates])
    lowest = np.minimum(FAR_FEWER * usual, usual - STEADY * np.maximum(spread, chance))
    lacking = (usual - share[candidates]) * expected[known][candidates]
    sparse = (share[candidates] < lowest) & (lacking >= FEWEST_LACKING)
    return np.asarray(known[candidates[sparse]])


def sparse_days(
    spans: SessionGrid,
    rows: Mapping[date, int],
    covered: IntervalSet,
    now_us: int,
    *,
    traded: Mapping[date, int],
) -> np.ndarray:
    """Return the indexes of the sparse sessions of a series; weeks have none.

    Args:
        spans: the expected spans of the series.
        rows: bars held, by session date.
        covered: what is covered with bars or confirmed empty, by bar timestamp.
        now_us: sessions that close by then count as closed, microseconds since 1970 UTC.
        traded: bars held that are not flat, by session date.
    """
    if spans.timeframe is Timeframe.W1:
        return np.empty(0, dtype=np.int64)
    have = _have(spans, rows)
    answered = covered.covers_each(spans.starts, spans.ends) & (spans.over <= now_us)
    return sparse_indexes(spans.bars, have, answered, _have(spans, traded))


def _have(spans: SessionGrid, rows: Mapping[date, int]) -> np.ndarray:
    return have_bars(
        spans, np.array(list(rows), "datetime64[D]"), np.array(list(rows.values()), np.int64)
    )


def have_bars(spans: SessionGrid, days: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the number of bars held in each span, from numbers of bars by session date."""
    if np.array_equal(days, spans.days):
        return rows
    position = spans.positions_of(days)
    inside = position >= 0
    found = np.bincount(position[inside], weights=rows[inside], minlength=len(spans))
    return found.astype(np.int64)


def _candidates(share: np.ndarray) -> np.ndarray:
    """Return the indexes that may be sparse, by a bound that is cheap and never too low.

    The median of neighbours is at most the greatest median of the blocks that they lie in.
    """
    if share.min() >= FAR_FEWER * share.max():
        return np.empty(0, dtype=np.int64)
    blocks = -(-len(share) // NEIGHBOURS)
    padded = np.concatenate([share, np.full(blocks * NEIGHBOURS - len(share), np.inf)])
    ordered = np.sort(padded.reshape(blocks, NEIGHBOURS), axis=1)
    upper = ordered[:, NEIGHBOURS // 2]
    upper = np.where(np.isinf(upper), share.max(), upper)
    around = np.maximum(upper, np.append(upper[1:], upper[-1]))
    around = np.maximum(around, np.append(upper[0], upper[:-1]))
    return np.flatnonzero(share < FAR_FEWER * np.repeat(around, NEIGHBOURS)[: len(share)])


def _usual(share: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the median of each session's neighbours without itself, their spread, and a chance.

    The chance is that of any one bar. It is taken from the mean, which counts the quiet sessions
    that a median hides where few bars are expected, and is never taken as certain.
    """
    steps = np.append(np.arange(-NEIGHBOURS, 0), np.arange(1, NEIGHBOURS + 1))
    index = positions[:, None] + steps
    outside = (index < 0) | (index >= len(share))
    values = share[np.clip(index, 0, len(share) - 1)]
    values[outside] = np.nan
    usual = np.nanmedian(values, axis=1)
    spread = np.nanmedian(np.abs(values - usual[:, None]), axis=1)
    many = np.sum(~outside, axis=1)
    likely = (np.clip(np.nanmean(values, axis=1), 0, 1) * many + 0.5) / (many + 1)
    return usual, _TO_SIGMA * spread, likely
