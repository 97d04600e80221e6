"""Discovery of the earliest data: by head timestamp, else by probing, cached for a while."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pytest

from ktrdr_pipelines.domain.bars import bars_between, micros
from ktrdr_pipelines.domain.calendars.registry import Calendars, calendar_named
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.jobs import Bounds, Mode
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import ContractUnknownError
from ktrdr_pipelines.gaps.index import GapIndex
from ktrdr_pipelines.sync.discovery.earliest_data import EarliestData, HowFound
from ktrdr_pipelines.sync.runner import Job
from tests.support.fake_gateway import dense_keys, series_of, stock, true_bars_of, utc
from tests.support.loading import World

MakeWorld = Callable[..., World]

RTH = "XNYS.RTH"

LISTED, NOW = date(2016, 5, 17), utc(2024, 7, 1, 12)


def world_of(world: MakeWorld, first: date = LISTED) -> World:
    """Make an instrument with hours, days and weeks since its listing."""
    made = world(RTH, Timeframe.H1, date(2024, 5, 1), date(2024, 7, 1), now=NOW)
    for kind in (Timeframe.H1, Timeframe.D1, Timeframe.W1):
        keys = dense_keys(RTH, kind, first, date(2024, 9, 1))
        true_bars = true_bars_of(keys, kind, calendar_named(RTH))
        made.harness.gateway.true_bars[made.series.symbol, kind] = true_bars
    return made


def discover(made: World, *, refresh: bool = False, start: date = date(2000, 1, 3)) -> EarliestData:
    """Discover the start of the world's instrument."""
    instrument = replace(made.series.instrument, start=start)
    manager = made.harness.manager()
    (found,) = asyncio.run(manager.discover([instrument], refresh=refresh))
    return found


def test_head_timestamp_is_requested_once_a_day(world: MakeWorld) -> None:
    """The head timestamp is cached for a day; a refresh requests it again."""
    made = world_of(world)
    made.load()
    made.harness.gateway.head_at = utc(2016, 5, 17, 13, 30)
    request_count = made.harness.request_count
    found = discover(made)
    assert (found.how, found.oldest, found.head) == (
        HowFound.HEAD,
        LISTED,
        utc(2016, 5, 17, 13, 30),
    )
    assert made.harness.gateway.head_requests == 1
    made.harness.gateway.time += timedelta(hours=23)
    assert discover(made).asked_at == NOW
    assert made.harness.gateway.head_requests == 1
    made.harness.gateway.time += timedelta(hours=2)
    discover(made)
    assert made.harness.gateway.head_requests == 2
    discover(made, refresh=True)
    assert made.harness.gateway.head_requests == 3
    assert made.harness.request_count == request_count


def test_without_a_head_the_oldest_bar_is_found_by_few_requests(world: MakeWorld) -> None:
    """In 25 years the listing date is found exactly, marked as probed, and cached."""
    made = world_of(world)
    found = discover(made)
    assert (found.how, found.oldest, found.head) == (HowFound.PROBED, LISTED, None)
    first = made.harness.request_count
    assert first <= 45
    assert found.empty
    assert all(end <= date(2016, 6, 1) for _, end in found.empty)
    made.harness.gateway.time += timedelta(days=29)
    assert discover(made).oldest == LISTED
    assert made.harness.request_count == first
    made.harness.gateway.time += timedelta(days=2)
    discover(made)
    assert made.harness.request_count > first


def test_years_that_discovery_found_empty_are_still_expected(world: MakeWorld) -> None:
    """Discovery only informs users: a later load finds by itself where data begin."""
    made = world_of(world)
    discover(made)
    wanted = Interval(utc(2002, 1, 2), made.wanted.end)
    report = made.harness.load(made.series, wanted)
    assert report.is_complete
    assert report.requests <= 120


def test_a_head_that_bars_contradict_is_probed(world: MakeWorld) -> None:
    """A head later than a held bar is reported as contradicted, and the oldest bar is probed."""
    made = world_of(world)
    made.load()
    made.harness.gateway.head_at = utc(2024, 6, 3, 13, 30)
    found = discover(made)
    assert (found.how, found.oldest, found.contradicted) == (HowFound.PROBED, LISTED, True)


def test_the_start_of_an_instrument_without_data_is_unknown(world: MakeWorld) -> None:
    """Without a head timestamp and bars nothing is claimed, after two requests."""
    made = world_of(world)
    made.harness.gateway.true_bars.clear()
    found = discover(made)
    assert (found.how, found.oldest) == (HowFound.UNKNOWN, None)
    assert made.harness.request_count == 1


def test_an_unknown_contract_does_not_stop_the_others(world: MakeWorld) -> None:
    """Its result has the error; those of the others have their start."""
    made = world_of(world)
    made.harness.gateway.head_at = utc(2016, 5, 17, 13, 30)
    known = made.harness.gateway.contract_id

    async def contract_id(instrument: object) -> int:
        if str(instrument) == "GONE":
            raise ContractUnknownError("contract of GONE", reason="200", code=200)
        return await known(instrument)  # type: ignore[arg-type]

    made.harness.gateway.contract_id = contract_id  # type: ignore[method-assign]
    manager = made.harness.manager()
    gone, apple = asyncio.run(manager.discover([stock("GONE"), made.series.instrument]))
    assert isinstance(gone.error, ContractUnknownError)
    assert gone.how is HowFound.UNKNOWN
    assert (apple.how, apple.error) == (HowFound.HEAD, None)


def test_the_oldest_held_bar_is_reported_where_nothing_else_is_known(world: MakeWorld) -> None:
    """Without an earlier discovery, the oldest held bar is reported beside the error."""
    made = world_of(world)
    made.load()
    manager = made.harness.manager()

    async def failing(_: object, *, sent: object) -> None:
        raise ContractUnknownError("head", reason="200", code=200)

    made.harness.gateway.head = failing  # type: ignore[method-assign]
    (found,) = asyncio.run(manager.discover([made.series.instrument]))
    assert found.how is HowFound.HELD
    assert found.oldest == date(2024, 5, 1)
    assert isinstance(found.error, ContractUnknownError)
    assert np.datetime64(found.oldest) == np.datetime64("2024-05-01")


FIRST, END, LISTED_LATE = date(2014, 1, 2), date(2024, 7, 1), date(2023, 5, 16)


def listed_late(
    world: MakeWorld, timeframe: Timeframe, *, gap: tuple[date, date] | None = None
) -> World:
    """Make ten wanted years of an instrument whose bars of all sizes begin in the last year."""
    made = world(RTH, timeframe, FIRST, END, keys=_keys(timeframe, gap), now=utc(2024, 7, 1, 12))
    for other in (Timeframe.D1, Timeframe.W1):
        true_bars = true_bars_of(_keys(other, gap), other, calendar_named(RTH))
        made.harness.gateway.true_bars[made.series.symbol, other] = true_bars
    return made


def _keys(timeframe: Timeframe, gap: tuple[date, date] | None) -> np.ndarray:
    first = LISTED_LATE if gap is None else date(2017, 3, 6)
    keys = dense_keys(RTH, timeframe, first, date(2024, 9, 1))
    if gap is None:
        return keys
    low, high = (micros(utc(day.year, day.month, day.day)) for day in gap)
    return keys[(keys < low) | (keys >= high)]


@pytest.mark.parametrize("nothing_past_oldest", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("timeframe", "most"), [(Timeframe.H1, 85), (Timeframe.M30, 85), (Timeframe.D1, 70)]
)
def test_years_before_a_listing_take_a_few_requests_each(
    world: MakeWorld, timeframe: Timeframe, most: int, nothing_past_oldest: bool
) -> None:
    """Nine years without data take at most four requests each, not seven for each month."""
    made = listed_late(world, timeframe)
    made.harness.gateway.nothing_past_oldest = nothing_past_oldest
    report = made.load()
    assert report.requests <= most
    assert report.is_complete is not nothing_past_oldest, report.summary
    assert made.load_until_confirmed().is_complete
    made.check_complete()
    assert made.load().requests == 0


@pytest.mark.parametrize("timeframe", [Timeframe.M30, Timeframe.H1, Timeframe.D1])
def test_a_new_listing_takes_two_requests_more_than_its_bars(
    world: MakeWorld, timeframe: Timeframe
) -> None:
    """With a head timestamp, the response that begins at it ends the search for older bars."""
    made = listed_late(world, timeframe)
    made.harness.gateway.concurrency = 1
    made.harness.gateway.head_at = utc(2023, 5, 16, 13, 30)
    report = made.load()
    assert report.is_complete, report.summary
    assert report.before_listing
    made.check_complete()
    with_bars = [
        one for one in made.harness.gateway.requests if made.harness.gateway.unmutated(one).num_rows
    ]
    assert (
        len(made.harness.gateway.requests) + made.harness.gateway.head_requests
        <= len(with_bars) + 2
    )


def test_years_proved_empty_hold_for_every_timeframe(world: MakeWorld) -> None:
    """Years that daily bars proved empty are empty for all bar sizes, and requested once."""
    made = listed_late(world, Timeframe.H1)
    made.load()
    hours4 = series_of(made.series.instrument, Timeframe.H4)
    true_bars = true_bars_of(_keys(Timeframe.H4, None), Timeframe.H4, calendar_named(RTH))
    made.harness.gateway.true_bars[made.series.symbol, Timeframe.H4] = true_bars
    request_count = made.harness.request_count
    report = made.harness.load(hours4, made.wanted)
    assert report.is_complete
    daily = [
        one for one in made.harness.gateway.requests[request_count:] if one.duration.endswith("Y")
    ]
    assert daily == []
    assert report.requests <= 35


@pytest.mark.slow
def test_a_gap_of_a_year_inside_is_not_taken_for_the_beginning(world: MakeWorld) -> None:
    """Bars before an empty year are all loaded, and the year is confirmed empty."""
    gap = date(2019, 1, 1), date(2020, 1, 1)
    made = listed_late(world, Timeframe.H1, gap=gap)
    report = made.load()
    made.check()
    true_bars = made.harness.true_bars(made.series).bars
    assert (
        made.harness.store.rows(made.series, made.wanted)
        == bars_between(true_bars, made.wanted.start, made.wanted.end).num_rows
    )
    report = made.load_until_confirmed()
    assert report.is_complete, report.summary
    made.check_complete()
    before = Interval(made.wanted.start, utc(2017, 3, 6, 14))
    assert all(before.covers(part) for part in report.before_listing)
    empty = IntervalSet(one.interval for one in made.harness.store.coverage(made.series).empty)
    inside = Interval(utc(2019, 1, 2, 14, 30), utc(2019, 12, 31, 21))
    sessions = calendar_named(RTH).sessions(*gap)
    assert all(empty.clip(inside).covers(Interval(s.opens_at, s.closes_at)) for s in sessions)
    assert made.load().requests == 0


def test_a_head_that_held_bars_contradict_explains_nothing(world: MakeWorld) -> None:
    """A head timestamp that is too late hides no bar before it."""
    made = listed_late(world, Timeframe.H1)
    made.harness.gateway.head_at = utc(2024, 1, 3, 14, 30)
    made.harness.load(made.series, Interval(utc(2023, 6, 1), utc(2023, 7, 1)))
    report = made.load()
    assert report.is_complete
    made.check_complete()


def test_a_backfill_ends_where_the_data_begin(world: MakeWorld) -> None:
    """With a head timestamp a backfill reaches from the oldest bar back to it, and no further."""
    made = listed_late(world, Timeframe.H1)
    made.harness.gateway.head_at = utc(2023, 5, 16, 13, 30)
    made.harness.load(made.series, Interval(utc(2024, 1, 2), utc(2024, 2, 1)))
    request_count = made.harness.request_count
    bounds = Bounds(start=made.wanted.start)
    (report,) = made.harness.run(Job(made.series, Mode.BACKFILL, bounds))
    assert report.is_complete
    oldest = min(request.ends_at for request in made.harness.gateway.requests[request_count:])
    assert oldest > made.harness.gateway.head_at - timedelta(days=31)
    assert report.requests <= 9 + 7


def test_the_first_day_of_a_listing_is_whole(world: MakeWorld) -> None:
    """Trading begins at noon of the first day: its bars are stored, and none before them."""
    keys = _keys(Timeframe.M1, None)
    keys = keys[keys >= micros(utc(2023, 5, 16, 16))]
    made = world(RTH, Timeframe.M1, date(2023, 5, 8), date(2023, 5, 27), keys=keys)
    made.harness.gateway.head_at = utc(2023, 5, 16, 16, 0, 12)
    report = made.load()
    assert report.is_complete
    made.check_complete()
    assert made.harness.store.read(made.series)["ts"][0].as_py() == utc(2023, 5, 16, 16)
    assert report.before_listing


def test_the_gap_index_explains_the_first_session_as_a_load_does(world: MakeWorld) -> None:
    """Trading begins at noon: the morning is neither a gap nor counted as missing."""
    keys = _keys(Timeframe.M1, None)
    keys = keys[keys >= micros(utc(2023, 5, 16, 16))]
    made = world(RTH, Timeframe.M1, date(2023, 5, 8), date(2023, 5, 27), keys=keys)
    made.harness.gateway.head_at = utc(2023, 5, 16, 16, 0, 12)
    instrument = replace(made.series.instrument, start=date(2023, 5, 8), end=date(2023, 5, 27))
    series = series_of(instrument, Timeframe.M1)
    index = GapIndex(made.harness.store, Calendars(), made.harness.gateway.gateway)
    now = made.harness.gateway.time
    assert made.load().is_complete
    assert index.series_gaps([series], now)[0].gaps == ()
    counts = index.completeness(series, now)
    assert int(counts.unexplained.sum()) == 0
    assert int(counts.explained.sum()) == 6 * 390 + 150


def test_the_gap_index_explains_years_without_data(world: MakeWorld) -> None:
    """After a complete load they are no gaps, so that no sensor requests them again."""
    made = listed_late(world, Timeframe.H1)
    series = series_of(replace(made.series.instrument, start=FIRST), Timeframe.H1)
    index = GapIndex(made.harness.store, Calendars(), made.harness.gateway.gateway)
    assert index.series_gaps([series], made.harness.gateway.time)[0].gaps
    made.harness.load(series, made.wanted)
    assert index.series_gaps([series], made.harness.gateway.time)[0].gaps == ()
    later = made.harness.gateway.time + timedelta(days=366)
    assert index.series_gaps([series], later)[0].gaps


@pytest.mark.parametrize("timeframe", Timeframe)
def test_no_bar_near_the_end_of_a_year_without_data_is_missed(
    world: MakeWorld, timeframe: Timeframe
) -> None:
    """Data that begin in January, in a week that began in December, are loaded completely."""
    first = date(2024, 1, 3)
    made = world(
        RTH,
        timeframe,
        date(2023, 10, 2),
        date(2024, 2, 3),
        keys=dense_keys(RTH, timeframe, first, date(2024, 9, 1)),
        now=utc(2024, 7, 2),
    )
    for other in (Timeframe.D1, Timeframe.W1):
        keys = dense_keys(RTH, other, first, date(2024, 9, 1))
        true_bars = true_bars_of(keys, other, calendar_named(RTH))
        made.harness.gateway.true_bars[made.series.symbol, other] = true_bars
    assert made.load_until_confirmed().is_complete
    made.check_complete()
    assert made.harness.store.rows(made.series) > 0
