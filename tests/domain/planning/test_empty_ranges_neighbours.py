"""Neighbours: whether the sessions around one without bars all trade, or some are empty too."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.domain.planning.empty_ranges import NEIGHBOURS, Neighbours, neighbours_of

FULL, THIN, UNKNOWN = Neighbours.FULL, Neighbours.THIN, Neighbours.UNKNOWN


SESSIONS = 300


def around(
    have: np.ndarray, empty: Sequence[int] = (), *, position: int = 150, expected: int = 7
) -> Neighbours:
    """Return what the sessions around an index are like."""
    known_empty = np.zeros(len(have), dtype=bool)
    known_empty[list(empty)] = True
    return neighbours_of(np.full(len(have), expected), have, known_empty, position)


def sessions(*without: int, bars: int = 7) -> np.ndarray:
    """Make sessions that have bars, but for some."""
    have = np.full(SESSIONS, bars)
    have[list(without)] = 0
    return have


@pytest.mark.parametrize("position", [0, 1, 150, SESSIONS - 2, SESSIONS - 1])
@pytest.mark.parametrize("bars", [4, 7])
def test_an_instrument_that_trades_in_every_session_has_full_neighbours(
    position: int, bars: int
) -> None:
    """Half of the expected bars are enough; the place itself says nothing of its neighbours."""
    assert around(sessions(position, bars=bars), [position], position=position) is FULL


def test_few_bars_a_session_make_thin_neighbours() -> None:
    """Less than half of the expected bars, in the middle of all neighbours."""
    assert around(sessions(150, bars=3), [150]) is THIN
    assert around(sessions(150, bars=10), [150], expected=390) is THIN


def test_other_empty_sessions_make_thin_neighbours() -> None:
    """More than one in twenty; one of forty is a lapse or a halt."""
    assert around(sessions(150, 140), [150, 140]) is FULL
    assert around(sessions(150, 140, 145), [150, 140, 145]) is FULL
    assert around(sessions(150, 140, 145, 160), [150, 140, 145, 160]) is THIN


@pytest.mark.parametrize("length", [2, 5, 20, 60])
@pytest.mark.parametrize("position", [0, 1, -1])
def test_a_halt_does_not_make_its_own_neighbours_thin(length: int, position: int) -> None:
    """A run of empty sessions counts once, wherever in it the place lies."""
    run = list(range(150, 150 + length))
    assert around(sessions(*run), run, position=run[position]) is FULL


def test_sessions_of_which_nothing_is_known_are_no_neighbours() -> None:
    """Only those with bars count, and those that are stated to be empty."""
    have = np.zeros(SESSIONS, dtype=int)
    assert around(have) is UNKNOWN
    have[100:104] = 7
    assert around(have) is UNKNOWN
    have[104] = 7
    assert around(have) is FULL


def test_neighbours_are_the_nearest_known_ones() -> None:
    """What lies further away than twenty known sessions says nothing."""
    have = sessions(150, bars=2)
    have[150 - NEIGHBOURS : 150 + NEIGHBOURS + 1] = 7
    have[150] = 0
    assert around(have, [150]) is FULL
    far = np.zeros(SESSIONS * 3, dtype=int)
    far[:20] = 7
    assert around(far, position=600) is UNKNOWN


def test_an_empty_session_with_bars_is_no_empty_session() -> None:
    """Bars came for it after all."""
    assert around(sessions(150), [150, 130, 132, 134, 136, 138, 140]) is FULL


@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=60),
    st.lists(st.booleans(), min_size=60, max_size=60),
    st.integers(0, 59),
)
def test_full_neighbours_have_bars(have: list[int], empty: list[bool], position: int) -> None:
    """At least five sessions with half their bars, whatever the rest is."""
    held = np.array(have)
    position %= len(held)
    known = np.array(empty[: len(held)])
    found = neighbours_of(np.full(len(held), 7), held, known, position)
    others = np.delete(held, position)
    if found is FULL:
        assert np.count_nonzero(others) >= 5
        assert np.count_nonzero(others >= 4) >= np.count_nonzero(others) / 2 - 1
    if not others.any():
        assert found is UNKNOWN
