from collections.abc import Callable
from datetime import date, timedelta

import pytest

from ktrdr_pipelines.domain.timeframes import Timeframe
from tests.support.fake_gateway import dense_keys, thinned, utc
from tests.support.loading import World

MakeWorld = Callable[..., World]
CALENDARS = ["XNYS.RTH", "XNYS.ETH", "FX"]

STRETCHES = {
    "a half day in November": (date(2023, 11, 20), date(2023, 11, 28)),
    "a half day in July": (date(2024, 7, 1), date(2024, 7, 9)),
    "clocks forward": (date(2024, 3, 7), date(2024, 3, 15)),
    "clocks back": (date(2024, 10, 31), date(2024, 11, 7)),
    "a holiday end": (date(2024, 5, 20), date(2024, 5, 28)),
    "a week end": (date(2024, 6, 3), date(2024, 6, 9)),
    "a year end": (date(2023, 12, 20), date(2024, 1, 6)),
    "Good Friday": (date(2024, 3, 18), date(2024, 4, 3)),
    "a month end": (date(2024, 1, 29), date(2024, 2, 2)),
    "a leap day": (date(2024, 2, 26), date(2024, 3, 4)),
}


@pytest.mark.parametrize("calendar", CALENDARS)
@pytest.mark.parametrize("timeframe", Timeframe)
@pytest.mark.parametrize("interval", STRETCHES)
def test_a_interval_is_stored_exactly_as_it_was(
    world: MakeWorld, calendar: str, timeframe: Timeframe, interval: str
) -> None:
    """Every bar is stored, none is invented, cut or altered; a repeat requests nothing."""
    first, end = STRETCHES[interval]
    made = world(calendar, timeframe, first, end)
    report = made.load()
    assert report.is_complete
    made.check_complete()
    asked = made.bench.asked
    assert made.load().requests == 0
    assert made.bench.asked == asked
    assert made.bench.gateway.opened == 1


@pytest.mark.parametrize("calendar", CALENDARS)
@pytest.mark.parametrize("days", [31, 44, 45, 70, 100])
def test_hours_of_a_span_are_whole(world: MakeWorld, calendar: str, days: int) -> None:
    """Spans that are no multiple of a request's length lose nothing and take few requests."""
    first = date(2024, 2, 5)
    made = world(calendar, Timeframe.H1, first, first + timedelta(days=days))
    assert made.load().is_complete
    made.check_complete()
    assert made.bench.asked <= -(-days // 29)


@pytest.mark.parametrize("calendar", CALENDARS)
@pytest.mark.parametrize("timeframe", Timeframe)
def test_a_thin_market_is_stored_exactly_as_it_was(
    world: MakeWorld, calendar: str, timeframe: Timeframe
) -> None:
    """Silences between bars, at edges and over whole sessions neither hide nor invent bars."""
    first, end = date(2024, 6, 24), date(2024, 7, 13)
    around = first - timedelta(days=40), end + timedelta(days=20)
    keys = thinned(dense_keys(calendar, timeframe, *around), 0.6)
    made = world(calendar, timeframe, first, end, keys=keys)
    assert made.load_until_confirmed().is_complete
    made.check_complete()
    assert made.load().requests == 0


@pytest.mark.parametrize("calendar", CALENDARS)
@pytest.mark.parametrize("timeframe", Timeframe)
def test_an_end_in_mid_session_cuts_no_bar(
    world: MakeWorld, calendar: str, timeframe: Timeframe
) -> None:
    """Of an open session whole bars are stored, and the rest once it has come to be."""
    first, end = date(2024, 5, 28), date(2024, 6, 7)
    made = world(calendar, timeframe, first, end, now=utc(2024, 6, 5, 15, 17, 41))
    report = made.load()
    assert report.is_complete
    made.check()
    held = made.bench.store.rows(made.series)
    made.bench.gateway.time = utc(2024, 6, 5, 17, 3, 2)
    made.load()
    made.check()
    assert made.bench.store.rows(made.series) >= held
    made.bench.gateway.time = utc(2024, 7, 5)
    assert made.load().is_complete
    made.check_complete()


def test_the_session_after_the_clocks_went_back_is_one_request(world: MakeWorld) -> None:
    """The FX session that opens on the Sunday of the clock change is whole, in one request."""
    made = world("FX", Timeframe.M1, date(2024, 11, 4), date(2024, 11, 5))
    assert made.load().is_complete
    made.check_complete()
    assert made.bench.gateway.sizes == ["1 D"]


def test_bars_of_equal_values_all_stay(world: MakeWorld) -> None:
    """Two bars that differ by their time alone are two bars."""
    made = world("XNYS.RTH", Timeframe.M1, date(2024, 6, 4), date(2024, 6, 5))
    made.bench.gateway.twist = lambda _, bars: bars.set_column(
        5, bars.schema.field("close"), [[1.0] * bars.num_rows]
    )
    made.load()
    assert made.bench.store.rows(made.series) == 390


def test_a_wanted_end_in_mid_session_loses_no_bar_for_good(world: MakeWorld) -> None:
    """A interval that cuts a session, and then its neighbour, make the session whole."""
    made = world("XNYS.RTH", Timeframe.H1, date(2024, 6, 4), date(2024, 6, 5))
    cut = made.wanted.start.replace(hour=15, minute=45)
    made.bench.load(made.series, type(made.wanted)(cut, made.wanted.end))
    made.bench.load(made.series, type(made.wanted)(made.wanted.start, cut))
    made.check_complete()
