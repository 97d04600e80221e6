"""Sparse sessions: a steady instrument that breaks off once, never a thin one."""

from datetime import UTC, datetime

import numpy as np
import pytest

from ktrdr_pipelines.domain.bars import micros
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.session_grid import session_grid
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.sparse_sessions import sparse_days, sparse_indexes
from ktrdr_pipelines.domain.timeframes import Timeframe

SESSIONS = 500


def _sparse_sessions(
    have: np.ndarray, expected: np.ndarray | int = 390, answered: np.ndarray | None = None
) -> list[int]:
    count = len(have)
    known = np.ones(count, dtype=bool) if answered is None else answered
    positions: list[int] = sparse_indexes(np.broadcast_to(expected, count), have, known).tolist()
    return positions


@pytest.mark.parametrize("position", [0, 1, 19, 20, 250, SESSIONS - 1])
@pytest.mark.parametrize("left", [1, 150, 280])
def test_a_session_that_breaks_off_is_sparse(position: int, left: int) -> None:
    """Wherever it lies, the first and the newest session included."""
    have = np.full(SESSIONS, 390)
    have[position] = left
    assert _sparse_sessions(have) == [position]


def test_half_days_are_measured_by_their_own_length() -> None:
    """A half day with all its bars is none; one that breaks off is."""
    expected = np.full(SESSIONS, 390)
    expected[[100, 300]] = 210
    have = expected.copy()
    assert _sparse_sessions(have, expected) == []
    have[300] = 90
    assert _sparse_sessions(have, expected) == [300]


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.6, 0.9])
def test_thin_instruments_have_no_sparse_sessions(share: float) -> None:
    """Randomly distributed trades, few or many, make no session sparse in forty years."""
    dice = np.random.default_rng(1)
    have = dice.binomial(390, share, size=10_000)
    assert _sparse_sessions(have) == []


def test_irregular_instruments_have_few_sparse_sessions() -> None:
    """Where the activity varies by a factor of ten, a quiet day is usual."""
    dice = np.random.default_rng(2)
    have = dice.binomial(390, np.exp(dice.normal(-1.5, 0.8, 10_000)).clip(0, 1))
    assert len(_sparse_sessions(have)) < 10


def test_thin_sessions_after_a_listing_are_not_sparse() -> None:
    """Thin first and full later: the last thin sessions are like those before them."""
    dice = np.random.default_rng(3)
    have = np.append(dice.binomial(390, 0.2, 200), np.full(200, 390))
    assert _sparse_sessions(have) == []


def test_sessions_that_are_not_covered_are_not_sparse() -> None:
    """They are gaps already, with or without bars."""
    have = np.full(SESSIONS, 390)
    have[[50, 60]] = 10, 0
    answered = np.ones(SESSIONS, dtype=bool)
    answered[[50, 60]] = False
    assert _sparse_sessions(have, answered=answered) == []


def test_an_empty_session_between_full_ones_is_sparse() -> None:
    """A gateway may report no data although it has some; a thin instrument has empty days."""
    have = np.full(SESSIONS, 390)
    have[[60, 200, 201]] = 0
    assert _sparse_sessions(have) == [60, 200, 201]
    dice = np.random.default_rng(4)
    assert _sparse_sessions(dice.binomial(390, 0.005, size=10_000)) == []


def test_sessions_before_the_first_and_after_the_last_bar_are_not_sparse() -> None:
    """They lie before the listing or after the end of the instrument."""
    have = np.full(SESSIONS, 390)
    have[:12] = have[-7:] = 0
    assert _sparse_sessions(have) == []


def test_many_short_sessions_in_a_row_are_sparse() -> None:
    """Fifteen short sessions among full ones are all sparse."""
    have = np.full(SESSIONS, 390)
    have[200:215] = 120
    assert _sparse_sessions(have) == list(range(200, 215))


@pytest.mark.parametrize(("expected", "have"), [(7, 4), (7, 1), (13, 9), (24, 17)])
def test_sessions_of_long_bars_can_be_sparse(expected: int, have: int) -> None:
    """Four hourly bars of seven, or nine of thirteen half hours, are far fewer."""
    rows = np.full(SESSIONS, expected)
    rows[77] = have
    assert _sparse_sessions(rows, expected) == [77]


@pytest.mark.parametrize(("expected", "have"), [(7, 5), (2, 1), (2, 0), (6, 4), (1, 0)])
def test_one_or_two_missing_bars_make_no_session_sparse(expected: int, have: int) -> None:
    """With two or three bars a session, one or two of them prove nothing.

    A session without any bar is judged by statements, not by counts.
    """
    rows = np.full(SESSIONS, expected)
    rows[77] = have
    assert _sparse_sessions(rows, expected) == []


def test_a_session_that_lacks_half_of_its_bars_is_sparse_among_uneven_ones() -> None:
    """Neighbours that lack single bars do not hide it."""
    rows = np.full(SESSIONS, 13)
    rows[100:400:7] = 12
    rows[77] = 6
    assert _sparse_sessions(rows, 13) == [77]


def test_few_sessions_cannot_be_compared() -> None:
    """Five sessions are too few, six are enough."""
    assert _sparse_sessions(np.array([390, 390, 100, 390, 390])) == []
    assert _sparse_sessions(np.array([390, 390, 100, 390, 390, 390])) == [2]


def _with_flat(traded: np.ndarray, filled: np.ndarray) -> list[int]:
    """Return the sparse sessions where some are filled up to 390 bars by flat ones."""
    have = np.where(filled & (traded > 0), 390, traded)
    known = np.ones(len(traded), dtype=bool)
    expected = np.full(len(traded), 390)
    positions: list[int] = sparse_indexes(expected, have, known, traded).tolist()
    return positions


@pytest.mark.parametrize("switch", [5, 20, 250, SESSIONS - 5])
def test_filled_sessions_and_others_do_not_make_each_other_sparse(
    switch: int,
) -> None:
    """Traded bars are compared with traded bars, wherever the filling begins or ends."""
    traded = np.random.default_rng(4).binomial(390, 0.3, size=SESSIONS)
    after = np.arange(SESSIONS) >= switch
    assert _with_flat(traded, after) == []
    assert _with_flat(traded, ~after) == []


def test_a_filled_session_that_breaks_off_is_sparse_however_thin_it_is() -> None:
    """Among filled sessions all bars count, and half of this one is missing."""
    traded = np.random.default_rng(5).binomial(390, 0.02, size=SESSIONS)
    have = np.full(SESSIONS, 390)
    have[:100] = traded[:100]
    have[200], traded[200] = 190, 4
    found = sparse_indexes(np.full(SESSIONS, 390), have, np.ones(SESSIONS, dtype=bool), traded)
    assert found.tolist() == [200]


def test_without_any_trade_all_bars_count() -> None:
    """The bars of an index have no volume."""
    have = np.full(SESSIONS, 390)
    have[250] = 100
    none = np.zeros(SESSIONS, dtype=np.int64)
    found = sparse_indexes(np.full(SESSIONS, 390), have, np.ones(SESSIONS, dtype=bool), none)
    assert found.tolist() == [250]


def test_a_session_whose_missing_trades_are_filled_with_flat_bars_is_sparse() -> None:
    """By session date: it holds as many bars as its neighbours, and far fewer that were traded."""
    grid = session_grid(calendar_named("XNYS.RTH"), Timeframe.M1)
    whole = Interval(datetime(2024, 5, 1, tzinfo=UTC), datetime(2024, 6, 29, tzinfo=UTC))
    month = grid.meeting(whole)
    rows = dict(zip(month.days.tolist(), month.bars.tolist(), strict=True))
    day = month.days[20].item()
    now, covered = micros(whole.end), IntervalSet([whole])
    assert not len(sparse_days(month, rows, covered, now, traded=rows))
    assert sparse_days(month, rows, covered, now, traded=rows | {day: 100}).tolist() == [20]
