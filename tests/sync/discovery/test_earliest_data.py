"""Discovering where data begin: by the head, else by probing, and remembered for a while."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta

import numpy as np

from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import ContractUnknownError
from ktrdr_pipelines.sync.discovery.earliest_data import EarliestData, HowFound
from tests.support.fake_gateway import dense_keys, stock, truth_of, utc
from tests.support.loading import World

MakeWorld = Callable[..., World]
RTH = "XNYS.RTH"
LISTED, NOW = date(2016, 5, 17), utc(2024, 7, 1, 12)


def world_of(world: MakeWorld, first: date = LISTED) -> World:
    """Make an instrument with hours, days and weeks since its listing."""
    made = world(RTH, Timeframe.H1, date(2024, 5, 1), date(2024, 7, 1), now=NOW)
    for kind in (Timeframe.H1, Timeframe.D1, Timeframe.W1):
        keys = dense_keys(RTH, kind, first, date(2024, 9, 1))
        truth = truth_of(keys, kind, calendar_named(RTH))
        made.bench.gateway.truth[made.series.symbol, kind] = truth
    return made


def ask(made: World, *, refresh: bool = False, start: date = date(2000, 1, 3)) -> EarliestData:
    """Discover the start of the world's instrument."""
    instrument = replace(made.series.instrument, start=start)
    manager = made.bench.manager()
    (found,) = asyncio.run(manager.discover([instrument], refresh=refresh))
    return found


def test_a_head_is_asked_once_a_day(world: MakeWorld) -> None:
    """The gateway's word counts for a day; a refresh asks at once."""
    made = world_of(world)
    made.load()
    made.bench.gateway.head_at = utc(2016, 5, 17, 13, 30)
    asked = made.bench.asked
    found = ask(made)
    assert (found.how, found.oldest, found.head) == (
        HowFound.HEAD,
        LISTED,
        utc(2016, 5, 17, 13, 30),
    )
    assert made.bench.gateway.heads == 1
    made.bench.gateway.time += timedelta(hours=23)
    assert ask(made).asked_at == NOW
    assert made.bench.gateway.heads == 1
    made.bench.gateway.time += timedelta(hours=2)
    ask(made)
    assert made.bench.gateway.heads == 2
    ask(made, refresh=True)
    assert made.bench.gateway.heads == 3
    assert made.bench.asked == asked


def test_without_a_head_the_oldest_bar_is_found_by_few_requests(world: MakeWorld) -> None:
    """Of 25 years the listing is found to the day; marked as found by probing, and remembered."""
    made = world_of(world)
    found = ask(made)
    assert (found.how, found.oldest, found.head) == (HowFound.PROBED, LISTED, None)
    first = made.bench.asked
    assert first <= 45
    assert found.empty
    assert all(end <= date(2016, 6, 1) for _, end in found.empty)
    made.bench.gateway.time += timedelta(days=29)
    assert ask(made).oldest == LISTED
    assert made.bench.asked == first
    made.bench.gateway.time += timedelta(days=2)
    ask(made)
    assert made.bench.asked > first


def test_years_that_discovery_found_empty_excuse_nothing(world: MakeWorld) -> None:
    """A look at the ranges is for people: a load after it asks by itself where data begin."""
    made = world_of(world)
    ask(made)
    wanted = Interval(utc(2002, 1, 2), made.wanted.end)
    report = made.bench.load(made.series, wanted)
    assert report.is_complete
    assert report.requests <= 120


def test_a_head_that_bars_contradict_is_probed(world: MakeWorld) -> None:
    """A start later than a bar held is told as contradicted, and the oldest bar looked for."""
    made = world_of(world)
    made.load()
    made.bench.gateway.head_at = utc(2024, 6, 3, 13, 30)
    found = ask(made)
    assert (found.how, found.oldest, found.contradicted) == (HowFound.PROBED, LISTED, True)


def test_an_instrument_that_never_answers_is_not_known(world: MakeWorld) -> None:
    """Neither a head nor a bar: nothing is claimed, for two requests."""
    made = world_of(world)
    made.bench.gateway.truth.clear()
    found = ask(made)
    assert (found.how, found.oldest) == (HowFound.UNKNOWN, None)
    assert made.bench.asked == 1


def test_one_that_cannot_be_asked_about_does_not_stop_the_others(world: MakeWorld) -> None:
    """Its result has the error, and the others their start."""
    made = world_of(world)
    made.bench.gateway.head_at = utc(2016, 5, 17, 13, 30)
    known = made.bench.gateway.contract_id

    async def contract_id(instrument: object) -> int:
        if str(instrument) == "GONE":
            raise ContractUnknownError("contract of GONE", reason="200", code=200)
        return await known(instrument)  # type: ignore[arg-type]

    made.bench.gateway.contract_id = contract_id  # type: ignore[method-assign]
    manager = made.bench.manager()
    gone, apple = asyncio.run(manager.discover([stock("GONE"), made.series.instrument]))
    assert isinstance(gone.error, ContractUnknownError)
    assert gone.how is HowFound.UNKNOWN
    assert (apple.how, apple.error) == (HowFound.HEAD, None)


def test_bars_that_are_held_are_told_where_nothing_else_is_known(world: MakeWorld) -> None:
    """Before anybody asked, the oldest bar held is what is known."""
    made = world_of(world)
    made.load()
    manager = made.bench.manager()

    async def failing(_: object, *, sent: object) -> None:
        raise ContractUnknownError("head", reason="200", code=200)

    made.bench.gateway.head = failing  # type: ignore[method-assign]
    (found,) = asyncio.run(manager.discover([made.series.instrument]))
    assert found.how is HowFound.HELD
    assert found.oldest == date(2024, 5, 1)
    assert isinstance(found.error, ContractUnknownError)
    assert np.datetime64(found.oldest) == np.datetime64("2024-05-01")
