"""Limits of the requests for confirmation, over those of a market without empty sessions."""

from collections.abc import Callable
from datetime import date, timedelta

import numpy as np
import pytest

from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.timeframes import Timeframe
from tests.support.fake_gateway import dense_keys, utc
from tests.support.loading import World

RTH = "XNYS.RTH"
YEAR = date(2023, 1, 3), date(2024, 1, 3)
MakeWorld = Callable[..., World]


def year_of(
    world: MakeWorld, timeframe: Timeframe, empty: Callable[[np.ndarray], np.ndarray]
) -> World:
    """Make a year of a market that does not trade in some sessions."""
    around = YEAR[0] - timedelta(days=40), YEAR[1] + timedelta(days=20)
    keys = dense_keys(RTH, timeframe, *around)
    days = calendar_named(RTH).days_of(keys) if timeframe.is_intraday else keys.astype("M8[us]")
    dates = days.astype("datetime64[D]")
    gone = empty(np.unique(dates))
    return world(RTH, timeframe, *YEAR, keys=keys[~np.isin(dates, gone)], now=utc(2024, 3, 1))


def none_of(days: np.ndarray) -> np.ndarray:
    """Return no session."""
    return days[:0]


def thin(days: np.ndarray) -> np.ndarray:
    """Return a random three of ten sessions."""
    return days[np.random.default_rng(11).random(len(days)) < 0.3]


def days_from(first: date, count: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that returns some consecutive sessions."""

    def empty(days: np.ndarray) -> np.ndarray:
        place = int(np.searchsorted(days, np.datetime64(first)))
        return days[place : place + count]

    return empty


@pytest.mark.parametrize("timeframe", [Timeframe.M30, Timeframe.H1, Timeframe.H4, Timeframe.D1])
def test_a_thin_stock_is_complete_in_its_first_load_with_two_requests_more(
    world: MakeWorld, timeframe: Timeframe
) -> None:
    """In a year with 30 % empty sessions, daily bars confirm all of them."""
    liquid = year_of(world, timeframe, none_of).load()
    assert liquid.is_complete
    made = year_of(world, timeframe, thin)
    report = made.load()
    assert report.is_complete, report.summary
    made.check_complete()
    assert report.requests <= liquid.requests + 2


@pytest.mark.parametrize("timeframe", [Timeframe.M5, Timeframe.H1, Timeframe.D1])
def test_a_liquid_stock_takes_the_requests_of_its_chunks_alone(
    world: MakeWorld, timeframe: Timeframe
) -> None:
    """It takes no more requests than its sessions do at the width that is always granted."""
    made = year_of(world, timeframe, none_of)
    report = made.load()
    assert report.is_complete
    longest = {Timeframe.M5: 5, Timeframe.H1: 20, Timeframe.D1: 250}[timeframe]
    assert report.requests <= -(-250 // longest) + 2
    assert made.load().requests == 0


@pytest.mark.parametrize("timeframe", [Timeframe.H1, Timeframe.D1])
def test_a_halt_of_one_day_is_explained_within_three_days(
    world: MakeWorld, timeframe: Timeframe
) -> None:
    """It takes statements on three days, since its neighbours are full."""
    made = year_of(world, timeframe, days_from(date(2023, 6, 7), 1))
    for _ in range(3):
        report = made.load()
        made.harness.gateway.time += timedelta(days=1, minutes=1)
    assert report.is_complete
    made.check_complete()


def test_a_halt_of_weeks_is_explained_in_its_first_load(world: MakeWorld) -> None:
    """Two responses with bars on both sides, one of them of daily bars."""
    made = year_of(world, Timeframe.H1, days_from(date(2023, 6, 5), 15))
    report = made.load()
    assert report.is_complete, report.summary
    made.check_complete()


def test_a_load_ends_though_the_gateway_returns_a_tenth_of_each_range(
    world: MakeWorld,
) -> None:
    """One load takes a few requests for each chunk at most, and keeps what was returned."""
    made = year_of(world, Timeframe.H1, none_of)
    made.harness.gateway.mutate = lambda _, bars: bars.slice(
        bars.num_rows - bars.num_rows // 10 - 1
    )
    report = made.load()
    assert not report.is_complete
    assert report.requests <= 250
    made.check()
