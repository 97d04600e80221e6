"""Suspects: closed sessions that answered with far fewer bars than their neighbours, or with none.

An answer that was cut short looks like a quiet session, and a gateway may say "no data" of a
session that it has. What is thin by nature varies from day to day and is no sparse; what is steady
and breaks off once is asked once more. Counts are told in shares of the expected bars, so half days
and long sessions compare, and a daily bar is there or is not.

Some gateways fill intervals without a trade by flat bars, and not all do, or not always. So traded
bars are compared with traded bars; the sessions that were filled are compared once more among
themselves by all their bars, which a session that breaks off lacks.

Not here: the asking (``load``), what was asked again with the same outcome
(``store.ledger.marks``).
"""

from collections.abc import Mapping
from datetime import date

import numpy as np

from ktrdr_pipelines.domain.calendars.session_grid import IntervalArrays, SpanArrays, is_covered
from ktrdr_pipelines.domain.instruments import Instrument
from ktrdr_pipelines.domain.timeframes import Timeframe

NEIGHBOURS = 20
"""Sessions on either side that one is compared with: a month each way."""

FEWEST_NEIGHBOURS = 5
"""Fewer say nothing about what is usual."""

FAR_FEWER = 0.75
"""Share of the usual number below which a session may be sparse: above it, asking again would
cost more requests than the few quiet minutes are worth."""

STEADY = 6.0
"""Spreads below the usual that make a session sparse: chance alone does so once in millions."""

FEWEST_LACKING = 2.5
"""Bars that a sparse session lacks at least: with two or three bars a session, one says nothing."""

_TO_SIGMA = 1.4826


def may_be_sparse(instrument: Instrument, day: date) -> bool:
    """Say whether few bars of a session are odd at all: a contract's last day ends when it expires.

    Its calendar knows only how long others trade on that day.
    """
    return day != instrument.last_trade_date


def sparse_indexes(
    expected: np.ndarray,
    have: np.ndarray,
    answered: np.ndarray,
    traded: np.ndarray | None = None,
) -> np.ndarray:
    """Give the places of sparse sessions, rising.

    Args:
        expected: bars that the calendar expects, one place a session, oldest first.
        have: bars that are held.
        answered: whether the session is closed and wholly covered, as bars or as proved empty.
        traded: those of the bars held that are not flat; all if not given.

    Sessions before the first bar and behind the last one say nothing of those between. Where no bar
    at all is of a trade, as of an index, all are alike.
    """
    if traded is None or not traded.any() or np.array_equal(traded, have):
        return _find_sparse(expected, have, answered)
    filled = _find_sparse(expected, have, answered & (have > traded))
    return np.union1d(_find_sparse(expected, traded, answered), filled)


def _find_sparse(expected: np.ndarray, have: np.ndarray, answered: np.ndarray) -> np.ndarray:
    """Give the places of sessions that have far fewer of some bars than their neighbours."""
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
    spans: SpanArrays,
    rows: Mapping[date, int],
    covered: IntervalArrays,
    now_us: int,
    *,
    traded: Mapping[date, int] | None = None,
) -> np.ndarray:
    """Give the places of the sparse sessions of a series; weeks have none.

    Args:
        spans: the expected spans of the series.
        rows: bars held, by session date.
        covered: what is covered as bars or was proved empty, on the stamp axis.
        now_us: closed is what closes before it.
        traded: those of the bars held that are not flat, by session date; all if not given.
    """
    if spans.timeframe is Timeframe.W1:
        return np.empty(0, dtype=np.int64)
    have = _have(spans, rows)
    answered = is_covered(spans.spans, covered) & (spans.closes <= now_us)
    return sparse_indexes(
        spans.bars, have, answered, None if traded is None else _have(spans, traded)
    )


def _have(spans: SpanArrays, rows: Mapping[date, int]) -> np.ndarray:
    return have_bars(
        spans, np.array(list(rows), "datetime64[D]"), np.array(list(rows.values()), np.int64)
    )


def have_bars(spans: SpanArrays, days: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Count the bars held in each span, from bars by session date."""
    if np.array_equal(days, spans.days):
        return rows
    position = spans.positions_of(days)
    inside = position >= 0
    found = np.bincount(position[inside], weights=rows[inside], minlength=len(spans))
    return found.astype(np.int64)


def _candidates(share: np.ndarray) -> np.ndarray:
    """Give the places that may be sparse, by a bound that is cheap and never too low.

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
    """Give the median of each place's neighbours, itself left out, their spread, and a chance.

    The chance is that of any one bar. It is taken from the mean, which sees the quiet sessions that
    a median hides where few bars are expected, and never taken for certainty.
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
