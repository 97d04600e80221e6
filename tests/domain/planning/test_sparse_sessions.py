"""Sparse sessions: a steady instrument that breaks off once, never a thin one."""

import numpy as np
import pytest

from ktrdr_pipelines.domain.planning.sparse_sessions import sparse_indexes

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
    """Wherever it stands, the first and the newest session included."""
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
def test_thin_instruments_are_no_sparse_sessions_by_nature(share: float) -> None:
    """Trades that come by chance, few or many, make no sparse in forty years of sessions."""
    dice = np.random.default_rng(1)
    have = dice.binomial(390, share, size=10_000)
    assert _sparse_sessions(have) == []


def test_restless_instruments_are_no_sparse_sessions() -> None:
    """Where busy and quiet days alternate by a factor of ten, a quiet day says nothing."""
    dice = np.random.default_rng(2)
    have = dice.binomial(390, np.exp(dice.normal(-1.5, 0.8, 10_000)).clip(0, 1))
    assert len(_sparse_sessions(have)) < 10


def test_a_listing_that_comes_to_life_is_no_sparse() -> None:
    """Thin first and full later: the last thin sessions are as their neighbours were."""
    dice = np.random.default_rng(3)
    have = np.append(dice.binomial(390, 0.2, 200), np.full(200, 390))
    assert _sparse_sessions(have) == []


def test_sessions_that_are_not_covered_are_left_out() -> None:
    """A gap is a gap already, whether a response passed over it or broke off in it."""
    have = np.full(SESSIONS, 390)
    have[[50, 60]] = 10, 0
    answered = np.ones(SESSIONS, dtype=bool)
    answered[[50, 60]] = False
    assert _sparse_sessions(have, answered=answered) == []


def test_an_empty_session_between_full_ones_is_sparse() -> None:
    """A gateway may say "no data" of what it has; a thin instrument has such days by nature."""
    have = np.full(SESSIONS, 390)
    have[[60, 200, 201]] = 0
    assert _sparse_sessions(have) == [60, 200, 201]
    dice = np.random.default_rng(4)
    assert _sparse_sessions(dice.binomial(390, 0.005, size=10_000)) == []


def test_what_lies_around_all_bars_is_no_sparse() -> None:
    """Before a listing and behind an end nothing is usual."""
    have = np.full(SESSIONS, 390)
    have[:12] = have[-7:] = 0
    assert _sparse_sessions(have) == []


def test_a_month_of_short_answers_is_found() -> None:
    """Fifteen bad sessions in a row among good ones are all sparse sessions."""
    have = np.full(SESSIONS, 390)
    have[200:215] = 120
    assert _sparse_sessions(have) == list(range(200, 215))


@pytest.mark.parametrize(("expected", "have"), [(7, 4), (7, 1), (13, 9), (24, 17)])
def test_long_bars_count_too(expected: int, have: int) -> None:
    """Four hourly bars of seven, or nine of thirteen half hours, are far fewer."""
    rows = np.full(SESSIONS, expected)
    rows[77] = have
    assert _sparse_sessions(rows, expected) == [77]


@pytest.mark.parametrize(("expected", "have"), [(7, 5), (2, 1), (2, 0), (6, 4), (1, 0)])
def test_one_or_two_missing_bars_make_no_session_sparse(expected: int, have: int) -> None:
    """With two or three bars a session, one or two of them say nothing.

    A session without any bar is judged by statements, not by counts.
    """
    rows = np.full(SESSIONS, expected)
    rows[77] = have
    assert _sparse_sessions(rows, expected) == []


def test_a_session_that_lacks_half_is_found_among_uneven_ones() -> None:
    """Sessions around it that lack a bar now and then hide nothing."""
    rows = np.full(SESSIONS, 13)
    rows[100:400:7] = 12
    rows[77] = 6
    assert _sparse_sessions(rows, 13) == [77]


def test_few_sessions_have_no_usual() -> None:
    """With five sessions nothing can be said; with six it can."""
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
def test_sessions_that_are_filled_and_others_are_no_sparse_sessions_of_each_other(
    switch: int,
) -> None:
    """Traded bars are compared with traded bars, wherever the gateway began or ceased to fill."""
    traded = np.random.default_rng(4).binomial(390, 0.3, size=SESSIONS)
    behind = np.arange(SESSIONS) >= switch
    assert _with_flat(traded, behind) == []
    assert _with_flat(traded, ~behind) == []


def test_a_filled_session_that_breaks_off_is_sparse_however_thin_it_is() -> None:
    """Among filled sessions all bars count: half a day is missing, of which trades say nothing."""
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
