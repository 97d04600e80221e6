"""Quiet parts of sessions that have bars: one response without bars covers none of them."""

from collections.abc import Callable
from datetime import date, timedelta

import pyarrow as pa
import pytest

from ktrdr_pipelines.cli.load_report import exit_code_of
from ktrdr_pipelines.domain.planning.responses import BarRequest, NoData
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import ExitCode
from tests.support.fake_gateway import NOT_ANSWERED, utc
from tests.support.loading import World

RTH = "XNYS.RTH"
FIRST, END = date(2024, 6, 4), date(2024, 6, 6)
MakeWorld = Callable[..., World]


def short_then_empty(made: World, *, bars: int) -> None:
    """Return too few bars at first, then none, and then what is true."""
    asked = 0

    def twist(request: BarRequest, found: pa.Table) -> pa.Table | NoData:
        nonlocal asked
        asked += 1
        if asked == 1:
            return found.slice(0, bars)
        return NoData(request, NOT_ANSWERED) if asked == 2 else found

    made.bench.gateway.twist = twist


@pytest.mark.parametrize("bars", [1, 200, 380])
def test_a_part_that_came_short_and_then_empty_is_loaded(world: MakeWorld, bars: int) -> None:
    """Every minute of it comes in the end, and the store is never called complete before."""
    made = world(RTH, Timeframe.M1, FIRST, END)
    short_then_empty(made, bars=bars)
    report = made.load()
    if report.is_complete:
        made.check_complete()
    assert made.load_until_confirmed().is_complete
    made.check_complete()


@pytest.mark.parametrize("bars", [1, 200, 380])
def test_a_part_of_the_newest_session_is_loaded_too(world: MakeWorld, bars: int) -> None:
    """There is no session behind it yet that could have bars on its other side."""
    made = world(RTH, Timeframe.M1, date(2024, 6, 5), END, now=utc(2024, 6, 5, 21))
    short_then_empty(made, bars=bars)
    report = made.load()
    assert exit_code_of([report]) is ExitCode.INCOMPLETE
    made.bench.gateway.time += timedelta(minutes=16)
    assert made.load_until_confirmed().is_complete
    made.check_complete()


def test_two_empty_responses_of_a_bad_hour_hide_no_half_day(world: MakeWorld) -> None:
    """A tail of the morning, then a gateway that returns nothing of today for some hours."""
    made = world(RTH, Timeframe.M1, FIRST, END, now=utc(2024, 6, 5, 16))
    made.load()
    gateway = made.bench.gateway

    def twist(request: BarRequest, found: pa.Table) -> pa.Table | NoData:
        is_today = request.ends_at is None or request.ends_at > utc(2024, 6, 5, 14)
        return NoData(request, NOT_ANSWERED) if is_today else found

    gateway.twist = twist
    for minutes in (300, 16, 16, 16):
        gateway.time += timedelta(minutes=minutes)
        assert not made.load().is_complete
    gateway.twist = None
    gateway.time += timedelta(hours=10)
    assert made.load_until_confirmed().is_complete
    made.check_complete()


def test_the_beginning_of_a_life_that_was_cut_short_is_no_beginning(world: MakeWorld) -> None:
    """A response that began late proves nothing where older bars came since then."""
    made = world(RTH, Timeframe.H1, FIRST, date(2024, 6, 15), now=utc(2024, 6, 20))
    gateway = made.bench.gateway
    key = made.series.symbol, Timeframe.D1
    gateway.truth.pop(key)
    gateway.twist = lambda _, found: found.slice(found.num_rows // 2)
    made.load()
    gateway.twist = None
    assert made.load_until_confirmed().is_complete
    made.check_complete()
