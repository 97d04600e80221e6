"""The gateway's sessions in a load: requested when needed, applied where plausible."""

from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime, timedelta

import numpy as np
import pytest

from ktrdr_pipelines.domain.calendars.gateway_schedules import LearnedDay
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.instruments import Instrument, Series
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import BadAnswerError, GatewayTimeoutError
from ktrdr_pipelines.gaps.index import GapIndex
from ktrdr_pipelines.gaps.windows import WindowState
from tests.support.fake_gateway import FakeGateway, dense_keys, schedule_of, stock, true_bars_of
from tests.support.loading import Harness, MakeHarness, NotedTexts, World

MakeWorld = Callable[..., World]
RTH, ETH = "XNYS.RTH", "XNYS.ETH"
GATEWAYS = "GATEWAY:America/New_York"
DAY = timedelta(days=1)
FIRST, END = date(2024, 6, 3), date(2024, 6, 22)
GONE = {date(2024, 6, 11), date(2024, 6, 12)}


def keys_without(timeframe: Timeframe, gone: set[date]) -> np.ndarray:
    """Return timestamps of a market that did not open on some days."""
    keys = dense_keys(RTH, timeframe, FIRST - 40 * DAY, END + 20 * DAY)
    days = calendar_named(RTH).days_of(keys)
    return keys[~np.isin(days, np.array(sorted(gone), dtype="datetime64[D]"))]


def schedule_without(gone: set[date]) -> Callable[[datetime, int], list[LearnedDay]]:
    """Return a schedule mutation that omits some days."""

    def mutate(ends_at: datetime, days: int) -> list[LearnedDay]:
        return [
            one for one in schedule_of(calendar_named(RTH), ends_at, days) if one.day not in gone
        ]

    return mutate


@pytest.fixture
def closure(world: MakeWorld) -> World:
    """Make a market that was closed on two days that the library has as sessions."""
    made = world(RTH, Timeframe.H1, FIRST, END, keys=keys_without(Timeframe.H1, GONE))
    made.harness.gateway.mutate_schedule = schedule_without(GONE)
    return made


def sessions_of(harness: Harness, series: Series) -> set[date]:
    """Return the session dates that are expected of a series."""
    index = harness.ledger.calendars()
    return {one.day for one in index.of(series.instrument).sessions(FIRST, END)}


def stated_closed(harness: Harness, series: Series) -> frozenset[date]:
    """Return the dates that the contract of a series states as closed."""
    return harness.ledger.calendars().stated_closed(series.instrument)


def empty_days(harness: Harness, series: Series) -> set[date]:
    """Return the dates that are confirmed empty."""
    return {one.interval.start.date() for one in harness.store.coverage(series).empty}


def test_a_closed_day_that_no_library_knows_is_one_statement(closure: World) -> None:
    """Empty sessions cause one schedule request; with bars around them it confirms the days.

    They stay expected: the schedule of one contract alone removes nothing.
    """
    report = closure.load()
    assert report.is_complete
    closure.check_complete()
    gateway = closure.harness.gateway
    assert len(gateway.schedule_requests) == 1
    audited = [
        one for one in closure.harness.ledger.requests.newest(100) if one.what_to_show == "SCHEDULE"
    ]
    assert [(one.duration, one.outcome, one.series) for one in audited] == [
        ("365 D", "schedule", "AAPL|1d")
    ]
    assert stated_closed(closure.harness, closure.series) == GONE
    assert sessions_of(closure.harness, closure.series) >= GONE
    assert empty_days(closure.harness, closure.series) == GONE
    request_count = closure.harness.request_count
    assert closure.load().is_complete
    assert (closure.harness.request_count, len(gateway.schedule_requests)) == (request_count, 1)


def test_a_closed_day_is_learned_for_daily_bars_too(world: MakeWorld) -> None:
    """A response that ends before the days causes the schedule request, as one without bars."""
    daily = dense_keys(RTH, Timeframe.D1, FIRST - 40 * DAY, END + 20 * DAY)
    days = daily.astype("datetime64[us]").astype("datetime64[D]")
    open_days = ~np.isin(days, np.array(sorted(GONE), dtype="datetime64[D]"))
    made = world(RTH, Timeframe.D1, FIRST, END, keys=daily[open_days])
    made.harness.gateway.mutate_schedule = schedule_without(GONE)
    assert made.load().is_complete
    made.check_complete()
    assert len(made.harness.gateway.schedule_requests) == 1
    assert stated_closed(made.harness, made.series) == GONE
    assert sessions_of(made.harness, made.series) >= GONE


def test_a_schedule_holds_for_its_contract_alone(closure: World) -> None:
    """Another symbol of the same hours expects the days, and requests its own schedule, once."""
    closure.load()
    other = Series(stock("MSFT"), Timeframe.H1)
    gateway = closure.harness.gateway
    gateway.true_bars["MSFT", Timeframe.H1] = closure.harness.true_bars(closure.series)
    gateway.true_bars["MSFT", Timeframe.D1] = gateway.true_bars["AAPL", Timeframe.D1]
    assert stated_closed(closure.harness, other) == frozenset()
    assert sessions_of(closure.harness, other) >= GONE
    assert closure.harness.load(other, closure.wanted).is_complete
    assert [symbol for symbol, _, _ in gateway.schedule_requests] == ["AAPL", "MSFT"]
    assert stated_closed(closure.harness, other) == GONE
    assert empty_days(closure.harness, other) == GONE


def check_days_need_confirmation(made: World, noted: NotedTexts | None = None) -> None:
    """Check that the days without bars are open at first and confirmed empty in the end."""
    harness = made.harness
    [report] = harness.run_with(noted or NotedTexts(), made.series, made.wanted)
    assert not report.is_complete
    assert empty_days(harness, made.series) == set()
    assert made.load_until_confirmed().is_complete
    assert empty_days(harness, made.series) == GONE


def test_a_schedule_with_the_session_leaves_it_to_be_confirmed(world: MakeWorld) -> None:
    """A session without trades is confirmed empty, as without a schedule."""
    made = world(RTH, Timeframe.H1, FIRST, END, keys=keys_without(Timeframe.H1, GONE))
    check_days_need_confirmation(made)
    assert len(made.harness.gateway.schedule_requests) == 1


def test_without_empty_sessions_no_schedule_is_requested(world: MakeWorld) -> None:
    """A load in which every session has bars needs no schedule."""
    made = world(RTH, Timeframe.H1, FIRST, END)
    assert made.load().is_complete
    assert made.harness.gateway.schedule_requests == []


def test_a_schedule_of_another_market_is_noted_and_rejected(closure: World) -> None:
    """It contradicts more than a tenth of the known sessions; the days need confirmation."""
    london = calendar_named("XLON.RTH")
    closure.harness.gateway.mutate_schedule = lambda ends_at, days: [
        LearnedDay(one.day, (Interval(one.parts[0].start + DAY / 8, one.parts[0].end + DAY / 8),))
        for one in schedule_of(london, ends_at, days)
    ]
    noted = NotedTexts()
    check_days_need_confirmation(closure, noted)
    assert any("are rejected: it contradicts" in text for text in noted.texts)
    assert closure.harness.ledger.schedules.all() == {}


def test_an_unavailable_schedule_is_noted_and_not_requested_again(closure: World) -> None:
    """The days need confirmation, and the schedule is not requested again for a month."""

    def refuse(ends_at: datetime, days: int) -> list[LearnedDay]:
        raise BadAnswerError("schedule", reason="malformed")

    closure.harness.gateway.mutate_schedule = refuse
    noted = NotedTexts()
    check_days_need_confirmation(closure, noted)
    assert any("schedule of AAPL not available" in text for text in noted.texts)
    assert len(closure.harness.gateway.schedule_requests) == 1 + closure.harness.retries


def test_a_schedule_that_ends_early_closes_nothing(world: MakeWorld) -> None:
    """Days after its last session are not stated as closed, and need confirmation."""
    made = world(RTH, Timeframe.H1, FIRST, END, keys=keys_without(Timeframe.H1, GONE))
    made.harness.gateway.mutate_schedule = lambda ends_at, days: [
        one for one in schedule_of(calendar_named(RTH), ends_at, days) if one.day < min(GONE)
    ]
    check_days_need_confirmation(made)
    assert sessions_of(made.harness, made.series) >= GONE
    assert stated_closed(made.harness, made.series) == frozenset()


def test_a_schedule_does_not_remove_a_day_with_bars(world: MakeWorld) -> None:
    """A schedule without a session of which daily bars are held is not applied to it."""
    made = world(RTH, Timeframe.H1, FIRST, END, keys=keys_without(Timeframe.H1, GONE))
    daily = Series(made.series.instrument, Timeframe.D1)
    sessions = calendar_named(RTH)
    made.harness.load(daily, interval_between(sessions, Timeframe.D1, FIRST, END))
    made.harness.gateway.mutate_schedule = schedule_without(GONE)
    assert made.load().is_complete
    assert made.harness.ledger.schedules.all() == {}
    assert len(made.harness.store.coverage(made.series).empty) == 2


def test_hours_in_contract_details_are_learned_without_a_request(world: MakeWorld) -> None:
    """A later close in the contract details is expected from then on.

    An earlier close is not: its response shows that the end of that day is empty.
    """
    made = world(RTH, Timeframe.H1, FIRST, END)
    days = [date(2024, 7, 2), date(2024, 7, 3)]
    later, earlier = (calendar_named(RTH).sessions(day, day + DAY)[0] for day in days)
    made.harness.gateway.details = (
        LearnedDay(later.day, (Interval(later.opens_at, later.closes_at + DAY / 24),)),
    )
    assert made.load().is_complete
    made.harness.gateway.details = (
        LearnedDay(earlier.day, (Interval(earlier.opens_at, earlier.closes_at - DAY / 24),)),
    )
    report = made.harness.load(
        made.series, interval_between(calendar_named(RTH), Timeframe.H1, END, END + 7 * DAY)
    )
    assert report.is_complete
    calendar = made.harness.ledger.calendars().of(made.series.instrument)
    assert calendar.sessions(days[0], days[0] + DAY)[0].closes_at == later.closes_at + DAY / 24
    assert calendar.sessions(days[1], days[1] + DAY) == [earlier]
    assert made.harness.ledger.calendars().of(stock("MSFT")) is calendar_named(RTH)
    assert made.harness.gateway.schedule_requests == []


def test_hours_that_are_too_long_are_noted(world: MakeWorld) -> None:
    """Hours that are too long add nothing to what is expected."""
    made = world(RTH, Timeframe.H1, FIRST, END)
    [known] = calendar_named(RTH).sessions(date(2024, 6, 20), date(2024, 6, 21))
    too_long = Interval(known.opens_at - 9 * DAY / 24, known.closes_at)
    made.harness.gateway.details = (LearnedDay(known.day, (too_long,)),)
    noted = NotedTexts()
    [report] = made.harness.run_with(noted, made.series, made.wanted)
    assert report.is_complete
    assert any("more than eight hours longer" in text for text in noted.texts)
    assert made.harness.ledger.calendars().of(made.series.instrument) is calendar_named(RTH)


@pytest.fixture
def hidden(harness: MakeHarness) -> tuple[Harness, Series]:
    """Make a series whose hours only the gateway knows: in truth those of New York, extended."""
    instrument: Instrument = replace(stock("VOD", GATEWAYS), start=date(2023, 1, 3))
    true_bars = {
        ("VOD", timeframe): true_bars_of(
            dense_keys(ETH, timeframe, date(2023, 1, 3), date(2024, 7, 10)),
            timeframe,
            calendar_named(ETH),
        )
        for timeframe in (Timeframe.H1, Timeframe.D1)
    }
    gateway = FakeGateway(true_bars, datetime.fromisoformat("2024-07-08T12:00Z"))
    gateway.mutate_schedule = lambda at, days: schedule_of(calendar_named(ETH), at, days)
    return harness(gateway), Series(instrument, Timeframe.H1)


def test_hours_that_only_the_gateway_knows_are_requested_first(
    hidden: tuple[Harness, Series],
) -> None:
    """One request a year, then the bars of exactly those sessions, and none when repeated."""
    harness, series = hidden
    wanted = interval_between(calendar_named(ETH), Timeframe.H1, date(2023, 1, 3), date(2024, 7, 5))
    report = harness.load(series, wanted)
    assert report.is_complete
    harness.check_complete(series, wanted)
    assert [days for _, _, days in harness.gateway.schedule_requests] == [365, 365]
    request_count = harness.request_count
    assert harness.load(series, wanted).is_complete
    assert (harness.request_count, len(harness.gateway.schedule_requests)) == (request_count, 2)
    daily = Series(series.instrument, Timeframe.D1)
    assert harness.load(daily, interval_between(calendar_named(ETH), Timeframe.D1, FIRST, END)).rows
    assert len(harness.gateway.schedule_requests) == 2


def test_a_series_without_known_sessions_is_never_complete(
    hidden: tuple[Harness, Series],
) -> None:
    """Unknown hours are an error of the load, not an empty load."""
    harness, series = hidden
    wanted = interval_between(calendar_named(ETH), Timeframe.H1, FIRST, END)
    harness.gateway.mutate_schedule = lambda _at, _days: []
    report = harness.load(series, wanted)
    assert not report.is_complete
    assert report.error is not None
    assert "the gateway returned no plausible ones" in str(report.error)

    def refuse(ends_at: datetime, days: int) -> list[LearnedDay]:
        raise GatewayTimeoutError("schedule", reason="no answer")

    harness.gateway.mutate_schedule = refuse
    assert harness.load(
        Series(replace(series.instrument, symbol="VOD2"), Timeframe.H1), wanted
    ).error


def test_two_symbols_of_the_gateways_hours_learn_their_own(hidden: tuple[Harness, Series]) -> None:
    """The schedule of one contract does not apply to another."""
    harness, series = hidden
    wanted = interval_between(calendar_named(ETH), Timeframe.H1, FIRST, END)
    harness.load(series, wanted)
    index = harness.ledger.calendars()
    assert index.of(series.instrument).known is not None
    assert index.of(replace(series.instrument, symbol="BP")).known is None
    harness.ledger.move_symbol("VOD", "VODA")
    moved = harness.ledger.calendars()
    assert moved.of(series.instrument).known is None
    assert moved.of(replace(series.instrument, symbol="VODA")).known is not None


def test_unknown_hours_are_a_gap_with_that_reason(hidden: tuple[Harness, Series]) -> None:
    """The gap index has the whole range as missing until the gateway states the hours."""
    harness, series = hidden
    now = harness.gateway.time
    index = GapIndex(harness.store, harness.ledger.calendars(), harness.gateway.gateway)
    [found] = index.series_gaps([series], now)
    [gap] = found.gaps
    assert gap.interval.end == now
    assert "not known until the gateway states them" in gap.detail
    assert gap.next_try_at is None
    interval = interval_between(calendar_named(ETH), Timeframe.H1, FIRST, END)
    state = index.windows(series, {"2024": (FIRST, END)}, now)["2024"]
    assert state.state is WindowState.UNEXPLAINED
    harness.gateway.mutate_schedule = lambda _at, _days: []
    assert harness.load(series, interval).error is not None
    [again] = GapIndex(harness.store, harness.ledger.calendars(), "fake:1").series_gaps(
        [series], now
    )
    assert again.gaps[0].next_try_at is not None


def test_learned_schedules_are_stored_unchanged(hidden: tuple[Harness, Series]) -> None:
    """Intervals, closed dates and requested ranges are read from the ledger as recorded."""
    harness, series = hidden
    interval = interval_between(calendar_named(ETH), Timeframe.H1, FIRST, END)
    harness.load(series, interval)
    key = f"{GATEWAYS} VOD"
    learned = {one.day: one.parts for one in harness.ledger.schedules.all()[key]}
    [session] = calendar_named(ETH).sessions(date(2024, 6, 11), date(2024, 6, 12))
    assert learned[session.day] == (Interval(session.opens_at, session.closes_at),)
    assert learned[date(2024, 6, 15)] == ()
    [requested] = harness.ledger.schedules.asks(key)
    assert requested.first < FIRST < END <= requested.end
    assert harness.ledger.schedules.asks("XNYS.RTH") == []
