"""Cryptocurrencies: the hours of the contract replace the assumption of continuous trading.

Hours as seen: ``20260507:1601-20260508:1600;20260509:CLOSED``, taken to be New York's.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ktrdr_pipelines.domain.bars import bars_between, micros, timestamps
from ktrdr_pipelines.domain.calendars.gateway_schedules import LearnedDay, with_own_hours
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.session_extension import Extension, extended
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar, monday_of
from ktrdr_pipelines.domain.instruments import Instrument, SecType, Series, WhatToShow
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.jobs import Bounds, Mode
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import GatewayTimeoutError
from ktrdr_pipelines.store.catalog.catalog import query_catalog, rebuild_catalog
from ktrdr_pipelines.sync.runner import Job
from tests.support.fake_gateway import (
    FakeGateway,
    TrueBars,
    bars_at,
    moment_of,
    stock,
    true_keys,
    utc,
)
from tests.support.loading import Harness, MakeHarness

NEW_YORK = ZoneInfo("America/New_York")
DAY = timedelta(days=1)
FIRST, END = date(2026, 4, 20), date(2026, 5, 8)
NOW = utc(2026, 5, 12, 12)
WANTED = Interval(utc(2026, 4, 20), utc(2026, 5, 8, 20))


def own_day(day: date) -> LearnedDay:
    """Return the hours of a date: closed on Saturdays and Sundays, else from 16:01 to 16:00."""
    if day.weekday() >= 5:
        return LearnedDay(day, ())
    opens = datetime.combine(day - DAY, datetime.min.time(), NEW_YORK).replace(hour=16, minute=1)
    return LearnedDay(day, (Interval(opens.astimezone(utc(2026, 1, 1).tzinfo), _close(day)),))


def _close(day: date) -> datetime:
    wall = datetime.combine(day, datetime.min.time(), NEW_YORK).replace(hour=16)
    return wall.astimezone(utc(2026, 1, 1).tzinfo)


def own_days(first: date, end: date) -> list[LearnedDay]:
    """Return the hours of dates."""
    return [own_day(first + place * DAY) for place in range((end - first).days)]


TRUE = with_own_hours(calendar_named("CRYPTO"), own_days(date(2025, 1, 1), date(2026, 6, 1)))


@pytest.fixture
def bitcoin() -> Instrument:
    """Return a cryptocurrency."""
    return replace(
        stock("BTC"),
        sec_type=SecType.CRYPTO,
        exchange="PAXOS",
        what_to_show=WhatToShow.AGGTRADES,
        use_rth=False,
        calendar="CRYPTO",
    )


def true_bars_in(calendar: SessionCalendar, timeframe: Timeframe) -> TrueBars:
    """Return the bars of a market that trades in the sessions of a calendar."""
    first, end = FIRST - 30 * DAY, END + 30 * DAY
    keys = true_keys(calendar, timeframe, first, end)
    bars = bars_at(keys, calendar, daily=not timeframe.is_intraday)
    sessions = calendar.sessions(first, end)
    if timeframe is Timeframe.W1:
        weeks = [
            [one for one in sessions if monday_of(one.day) == moment_of(key).date()] for key in keys
        ]
        opens = np.array([micros(week[0].opens_at) for week in weeks])
        return TrueBars(bars, opens, np.array([micros(week[-1].closes_at) for week in weeks]))
    if timeframe is Timeframe.D1:
        opens = np.array([micros(one.opens_at) for one in sessions])
        return TrueBars(bars, opens, np.array([micros(one.closes_at) for one in sessions]))
    length = timeframe.seconds * 1_000_000
    place = np.searchsorted([micros(one.opens_at) for one in sessions], keys, side="right") - 1
    closes = np.array([micros(one.closes_at) for one in sessions])[place]
    return TrueBars(bars, keys, np.minimum((keys // length + 1) * length, closes))


@dataclass
class CoinGateway(FakeGateway):
    """A fake gateway that counts the sessions of its own calendar."""

    sessions: SessionCalendar = field(default_factory=lambda: TRUE)

    def unmutated(self, request: BarRequest) -> pa.Table:
        true_bars = self.true_bars[request.series.symbol, request.series.timeframe]
        end = min(request.ends_at or self.time, self.time)
        count, unit = request.duration.split()
        if unit != "D":
            units = {"S": timedelta(seconds=1), "W": 7 * DAY, "Y": 366 * DAY}
            length = units[unit] * int(count)
            return true_bars.between(end - length, end)
        around = self.sessions.sessions_meeting(Interval(end - 2 * int(count) * DAY - 7 * DAY, end))
        return true_bars.between(around[-int(count)].opens_at, end)


@pytest.fixture
def harness_of(harness: MakeHarness) -> Callable[..., Harness]:
    """Return a function that makes a harness whose contract states its own hours."""

    def make(calendar: SessionCalendar = TRUE) -> Harness:
        kinds = (Timeframe.D1, Timeframe.H1, Timeframe.M15)
        true_bars = {("BTC", kind): true_bars_in(calendar, kind) for kind in kinds}
        gateway = CoinGateway(true_bars, NOW, sessions=calendar)
        gateway.details = tuple(own_days(date(2026, 5, 12), date(2026, 5, 19)))
        gateway.mutate_schedule = lambda ends_at, days: [
            one
            for one in own_days((ends_at - days * DAY).date(), ends_at.date() + DAY)
            if one.parts and one.parts[0].start < ends_at
        ]
        return harness(gateway)

    return make


@pytest.mark.parametrize("timeframe", [Timeframe.D1, Timeframe.H1, Timeframe.M15])
def test_a_coin_is_complete_by_its_own_hours(
    harness_of: Callable[..., Harness], bitcoin: Instrument, timeframe: Timeframe
) -> None:
    """Closed weekends are no gaps, sessions cross midnight, and daily bars follow them."""
    harness, series = harness_of(), Series(bitcoin, timeframe)
    report = harness.load(series, WANTED)
    assert report.is_complete, report.summary
    assert report.requests <= 6
    harness.check_complete(series, WANTED)
    calendar = harness.ledger.calendars().of(bitcoin)
    expected = [(one.day, one.opens_at, one.closes_at) for one in TRUE.sessions(FIRST, END + DAY)]
    assert [
        (one.day, one.opens_at, one.closes_at) for one in calendar.sessions(FIRST, END + DAY)
    ] == expected
    request_count = harness.request_count
    assert harness.load(series, WANTED).is_complete
    assert harness.request_count == request_count


def test_a_running_session_gives_no_daily_bar(
    harness_of: Callable[..., Harness], bitcoin: Instrument
) -> None:
    """The session ends in the afternoon; its bar is due when the UTC day is over too.

    It is not proved whether daily bars span sessions or UTC days: one that is requested before both
    are over may be partial.
    """
    harness, series = harness_of(), Series(bitcoin, Timeframe.D1)
    wanted = Interval(utc(2026, 5, 4), utc(2026, 5, 13))
    harness.gateway.time = utc(2026, 5, 12, 19, 30)
    harness.load(series, wanted)
    assert harness.store.read(series)["session_date"].to_pylist()[-1] == date(2026, 5, 11)
    harness.gateway.time = utc(2026, 5, 12, 20, 45)
    harness.load(series, wanted)
    assert harness.store.read(series)["session_date"].to_pylist()[-1] == date(2026, 5, 11)
    harness.gateway.time = utc(2026, 5, 13, 0, 45)
    assert harness.load(series, wanted).is_complete
    assert harness.store.read(series)["session_date"].to_pylist()[-1] == date(2026, 5, 12)
    harness.check(series, wanted)


@pytest.mark.parametrize("timeframe", [Timeframe.D1, Timeframe.H1])
def test_bars_override_days_that_were_stated_as_closed(
    harness_of: Callable[..., Harness], bitcoin: Instrument, timeframe: Timeframe
) -> None:
    """A coin that trades continuously is loaded whole, whatever hours its contract states."""
    whole = calendar_named("CRYPTO")
    harness, series = harness_of(whole), Series(bitcoin, timeframe)
    harness.load(series, WANTED)
    harness.gateway.time += DAY
    report = harness.load(series, WANTED)
    assert report.is_complete, report.summary
    stored = timestamps(harness.store.read(series, WANTED))
    true = timestamps(harness.true_bars(series).bars)
    inside = (true >= micros(WANTED.start)) & (true < micros(WANTED.end))
    weekend = np.isin(whole.days_of(true), np.array(["2026-04-25", "2026-05-02"], "datetime64[D]"))
    assert np.isin(true[inside & weekend], stored).all()
    assert np.array_equal(stored, true[inside])
    harness.check(series, WANTED)


@pytest.mark.parametrize("calendar", [TRUE, calendar_named("CRYPTO")])
@pytest.mark.parametrize("timeframe", [Timeframe.D1, Timeframe.W1])
@pytest.mark.parametrize("mode", [Mode.TAIL, Mode.FULL])
def test_no_partial_day_is_stored_whichever_days_the_bars_span(
    harness_of: Callable[..., Harness],
    bitcoin: Instrument,
    timeframe: Timeframe,
    calendar: SessionCalendar,
    mode: Mode,
) -> None:
    """Repeated loads at any hour store no partial bar, of sessions or of UTC days.

    Nor does a load before the contract states its hours.
    """
    harness, series = harness_of(calendar), Series(bitcoin, timeframe)
    details, harness.gateway.details = harness.gateway.details, ()
    harness.gateway.true_bars["BTC", timeframe] = true_bars_in(calendar, timeframe)
    wanted = Interval(utc(2026, 4, 20), utc(2026, 5, 25))
    harness.load(series, wanted)
    harness.check(series, wanted)
    harness.gateway.details = details
    for hours in (8, 1, 4, 20, 31, 70, 5, 24, 50):
        harness.gateway.time += timedelta(hours=hours)
        harness.run(Job(series, mode, Bounds(start=wanted.start)))
        harness.check(series, wanted)
    assert not harness.run(Job(series, Mode.FULL, Bounds(start=wanted.start)))[0].unexplained
    true = bars_between(harness.true_bars(series).bars, wanted.start, utc(2026, 5, 18))
    assert bars_between(harness.store.read(series), wanted.start, utc(2026, 5, 18)).equals(true)


def test_without_a_schedule_continuous_trading_is_assumed(
    harness_of: Callable[..., Harness], bitcoin: Instrument
) -> None:
    """Dates without stated hours stay expected, and need confirmation."""
    harness, series = harness_of(), Series(bitcoin, Timeframe.H1)
    harness.gateway.mutate_schedule = lambda *_: []
    report = harness.load(series, WANTED)
    assert len(harness.gateway.schedule_requests) == 1
    harness.check(series, WANTED)
    calendar = harness.ledger.calendars().of(bitcoin)
    assert [one.day for one in calendar.sessions(date(2026, 4, 25), date(2026, 4, 27))] == [
        date(2026, 4, 25),
        date(2026, 4, 26),
    ]
    assert not report.unexplained.clip(Interval(utc(2026, 5, 8, 0), utc(2026, 5, 8, 20)))


def dated_by_open(days: list[LearnedDay]) -> list[LearnedDay]:
    """Return sessions dated by their opens."""
    return [LearnedDay(one.day - DAY, one.parts) for one in days]


def by_the_week(days: list[LearnedDay]) -> list[LearnedDay]:
    """Return one session from Sunday to Friday for each week, dated Friday."""
    fridays = (one for one in days if one.day.weekday() == 4)
    return [
        LearnedDay(one.day, (Interval(one.parts[0].end - 5.5 * DAY, one.parts[0].end),))
        for one in fridays
    ]


@pytest.mark.parametrize("redated", [dated_by_open, by_the_week])
@pytest.mark.parametrize("timeframe", [Timeframe.D1, Timeframe.H1])
def test_a_schedule_with_other_session_dates_loses_no_bar(
    harness_of: Callable[..., Harness],
    bitcoin: Instrument,
    timeframe: Timeframe,
    redated: Callable[[list[LearnedDay]], list[LearnedDay]],
) -> None:
    """Details and schedule are dated alike, so that each date has its own session."""
    harness, series = harness_of(), Series(bitcoin, timeframe)
    unmutated = harness.gateway.mutate_schedule
    assert unmutated is not None
    harness.gateway.mutate_schedule = lambda ends_at, days: redated(unmutated(ends_at, days))
    for _ in range(3):
        report = harness.load(series, WANTED)
        harness.gateway.time += DAY
    assert report.is_complete, report.summary
    harness.check_complete(series, WANTED)
    calendar = harness.ledger.calendars().of(bitcoin)
    assert (calendar.closes[:-1] <= calendar.opens[1:]).all()


@pytest.mark.parametrize("timeframe", [Timeframe.D1, Timeframe.H1])
def test_details_of_another_zone_are_dated_as_the_schedule(
    harness_of: Callable[..., Harness], bitcoin: Instrument, timeframe: Timeframe
) -> None:
    """A close at 16:00 in New York is on the next date in Shanghai."""
    harness, series = harness_of(), Series(bitcoin, timeframe)
    harness.gateway.details = tuple(
        LearnedDay(one.day + DAY, one.parts) for one in harness.gateway.details
    )
    assert harness.load(series, WANTED).is_complete
    harness.check_complete(series, WANTED)
    calendar = harness.ledger.calendars().of(bitcoin)
    assert (calendar.closes[:-1] <= calendar.opens[1:]).all()
    assert (calendar.sessions(date(2026, 5, 13), date(2026, 5, 14))[0].closes_at) == _close(
        date(2026, 5, 13)
    )


@pytest.mark.slow
def test_a_failed_schedule_request_is_not_repeated_for_each_year(
    harness_of: Callable[..., Harness], bitcoin: Instrument
) -> None:
    """Ten years would take ten deadlines: the next run requests the next year."""
    harness, series = harness_of(), Series(bitcoin, Timeframe.D1)

    def refuse(ends_at: datetime, days: int) -> list[LearnedDay]:
        raise GatewayTimeoutError("the schedule", reason="no answer")

    harness.gateway.mutate_schedule = refuse
    years = IntervalSet([Interval(utc(2016, 5, 1), WANTED.end)])
    harness.run(Job(series, wanted=years), Job(Series(bitcoin, Timeframe.H1), wanted=years))
    assert len(harness.gateway.schedule_requests) == harness.retries + 1


def test_a_daily_bar_of_a_coin_closes_at_the_end_of_its_utc_day(
    harness_of: Callable[..., Harness], bitcoin: Instrument
) -> None:
    """A join on closes_at sees no bar before all hours that it may span are over."""
    harness, series = harness_of(), Series(bitcoin, Timeframe.D1)
    harness.load(series, WANTED)
    index = harness.ledger.calendars()
    assert index.of(bitcoin).days_may_differ
    rebuild_catalog(harness.layout, [bitcoin], NOW)
    for source in ("bars_1d", "series('BTC', '1d')"):
        rows = query_catalog(harness.layout, f"FROM {source}").to_pylist()
        assert rows
        assert all(row["closes_at"] == row["ts"] + DAY for row in rows)


def test_an_extended_calendar_keeps_that_days_may_differ() -> None:
    """Extending a calendar by late bars does not change what is known of its daily bars."""
    longer = Extension(None, by_us=60_000_000, starts_us=0, sessions=(date(2026, 5, 1),))
    assert extended(TRUE, (longer,)).days_may_differ


def test_held_flat_bars_are_no_evidence_of_a_session(
    harness_of: Callable[..., Harness], bitcoin: Instrument
) -> None:
    """Closed weekends that the gateway fills, loaded before the hours were known, stay closed."""
    whole = calendar_named("CRYPTO")
    harness, series = harness_of(whole), Series(bitcoin, Timeframe.H1)
    true_bars = harness.true_bars(series)
    keys = timestamps(true_bars.bars)
    place = np.searchsorted(TRUE.opens, keys, side="right") - 1
    is_open = pa.array(keys < TRUE.closes[place])
    bars = true_bars.bars
    for name, flat in (("high", bars["close"]), ("low", bars["close"]), ("volume", 0.0)):
        column = pc.if_else(is_open, bars[name], flat)
        bars = bars.set_column(bars.schema.get_field_index(name), bars.schema.field(name), column)
    count = pc.if_else(is_open, bars["bar_count"], pa.scalar(0, pa.int32()))
    bars = bars.set_column(len(bars.schema) - 1, bars.schema.field("bar_count"), count)
    harness.gateway.true_bars["BTC", Timeframe.H1] = replace(true_bars, bars=bars)
    details, harness.gateway.details = harness.gateway.details, ()
    harness.load(series, WANTED)
    harness.gateway.details = details
    harness.load(series, Interval(WANTED.start, WANTED.end + 3 * DAY))
    calendar = harness.ledger.calendars().of(bitcoin)
    assert not calendar.sessions(date(2026, 4, 25), date(2026, 4, 27))
