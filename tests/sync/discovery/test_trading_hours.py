"""The gateway's sessions in a load: asked when needed, believed where they can be."""

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
from ktrdr_pipelines.domain.planning.reports import Quiet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import BadAnswerError, GatewayTimeoutError
from ktrdr_pipelines.gaps.index import GapIndex
from ktrdr_pipelines.gaps.windows import WindowState
from tests.support.fake_gateway import FakeGateway, dense_keys, schedule_of, stock, true_bars_of
from tests.support.loading import Bench, Make, World

MakeWorld = Callable[..., World]
RTH, ETH = "XNYS.RTH", "XNYS.ETH"
GATEWAYS = "GATEWAY:America/New_York"
DAY = timedelta(days=1)
FIRST, END = date(2024, 6, 3), date(2024, 6, 22)
GONE = {date(2024, 6, 11), date(2024, 6, 12)}


class Notes(Quiet):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def noted(self, series: Series, text: str) -> None:
        self.texts.append(text)


def keys_without(timeframe: Timeframe, gone: set[date]) -> np.ndarray:
    """Give timestamps of a market that did not open on some days."""
    keys = dense_keys(RTH, timeframe, FIRST - 40 * DAY, END + 20 * DAY)
    days = calendar_named(RTH).days_of(keys)
    return keys[~np.isin(days, np.array(sorted(gone), dtype="datetime64[D]"))]


def told_without(gone: set[date]) -> Callable[[datetime, int], list[LearnedDay]]:
    """Tell the known sessions but for some days."""

    def tell(ends_at: datetime, days: int) -> list[LearnedDay]:
        return [
            one for one in schedule_of(calendar_named(RTH), ends_at, days) if one.day not in gone
        ]

    return tell


@pytest.fixture
def closure(world: MakeWorld) -> World:
    """Make a market that was closed on two days that the library has as sessions."""
    made = world(RTH, Timeframe.H1, FIRST, END, keys=keys_without(Timeframe.H1, GONE))
    made.bench.gateway.mutate_schedule = told_without(GONE)
    return made


def sessions_of(bench: Bench, series: Series) -> set[date]:
    """Give the session dates that are expected of a series."""
    index = bench.ledger.calendars()
    return {one.day for one in index.of(series.instrument).sessions(FIRST, END)}


def told_closed(bench: Bench, series: Series) -> frozenset[date]:
    """Give the dates that the contract of a series calls closed."""
    return bench.ledger.calendars().stated_closed(series.instrument)


def empty_days(bench: Bench, series: Series) -> set[date]:
    """Give the dates that are proved to be empty."""
    return {one.interval.start.date() for one in bench.store.coverage(series).empty}


def test_a_closed_day_that_no_library_knows_is_one_statement(closure: World) -> None:
    """No bars ask for the schedule once; with bars around it proves the days to be empty.

    They stay expected: the contract's word alone removes nothing.
    """
    report = closure.load()
    assert report.is_complete
    closure.check_complete()
    gateway = closure.bench.gateway
    assert len(gateway.schedule_requests) == 1
    audited = [
        one for one in closure.bench.ledger.requests.newest(100) if one.what_to_show == "SCHEDULE"
    ]
    assert [(one.duration, one.outcome, one.series) for one in audited] == [
        ("365 D", "schedule", "AAPL|1d")
    ]
    assert told_closed(closure.bench, closure.series) == GONE
    assert sessions_of(closure.bench, closure.series) >= GONE
    assert empty_days(closure.bench, closure.series) == GONE
    asked = closure.bench.request_count
    assert closure.load().is_complete
    assert (closure.bench.request_count, len(gateway.schedule_requests)) == (asked, 1)


def test_a_closed_day_is_told_for_daily_bars_too(world: MakeWorld) -> None:
    """A response that only reaches before the days asks for the schedule as one without bars."""
    daily = dense_keys(RTH, Timeframe.D1, FIRST - 40 * DAY, END + 20 * DAY)
    days = daily.astype("datetime64[us]").astype("datetime64[D]")
    open_days = ~np.isin(days, np.array(sorted(GONE), dtype="datetime64[D]"))
    made = world(RTH, Timeframe.D1, FIRST, END, keys=daily[open_days])
    made.bench.gateway.mutate_schedule = told_without(GONE)
    assert made.load().is_complete
    made.check_complete()
    assert len(made.bench.gateway.schedule_requests) == 1
    assert told_closed(made.bench, made.series) == GONE
    assert sessions_of(made.bench, made.series) >= GONE


def test_a_schedule_is_of_its_contract_alone(closure: World) -> None:
    """Another symbol of the same hours expects the days, and asks for its own schedule, once."""
    closure.load()
    other = Series(stock("MSFT"), Timeframe.H1)
    gateway = closure.bench.gateway
    gateway.true_bars["MSFT", Timeframe.H1] = closure.bench.true_bars(closure.series)
    gateway.true_bars["MSFT", Timeframe.D1] = gateway.true_bars["AAPL", Timeframe.D1]
    assert told_closed(closure.bench, other) == frozenset()
    assert sessions_of(closure.bench, other) >= GONE
    assert closure.bench.load(other, closure.wanted).is_complete
    assert [symbol for symbol, _, _ in gateway.schedule_requests] == ["AAPL", "MSFT"]
    assert told_closed(closure.bench, other) == GONE
    assert empty_days(closure.bench, other) == GONE


def check_needs_proof(made: World, notes: Notes | None = None) -> None:
    """See that the days without bars are open at first, and proved to be empty in the end."""
    bench = made.bench
    [report] = bench.run_with(notes or Notes(), made.series, made.wanted)
    assert not report.is_complete
    assert empty_days(bench, made.series) == set()
    assert made.load_until_confirmed().is_complete
    assert empty_days(bench, made.series) == GONE


def test_a_schedule_that_has_the_session_leaves_it_to_be_proved(world: MakeWorld) -> None:
    """A stock that did not trade on a session is proved empty there, as without a schedule."""
    made = world(RTH, Timeframe.H1, FIRST, END, keys=keys_without(Timeframe.H1, GONE))
    check_needs_proof(made)
    assert len(made.bench.gateway.schedule_requests) == 1


def test_without_empty_sessions_no_schedule_is_requested(world: MakeWorld) -> None:
    """Where every session has bars, none is needed."""
    made = world(RTH, Timeframe.H1, FIRST, END)
    assert made.load().is_complete
    assert made.bench.gateway.schedule_requests == []


def test_a_schedule_of_another_market_is_noted_and_not_believed(closure: World) -> None:
    """It contradicts more than a tenth of the known sessions: the days are proved as ever."""
    london = calendar_named("XLON.RTH")
    closure.bench.gateway.mutate_schedule = lambda ends_at, days: [
        LearnedDay(one.day, (Interval(one.parts[0].start + DAY / 8, one.parts[0].end + DAY / 8),))
        for one in schedule_of(london, ends_at, days)
    ]
    notes = Notes()
    check_needs_proof(closure, notes)
    assert any("are rejected: it contradicts" in text for text in notes.texts)
    assert closure.bench.ledger.schedules.all() == {}


def test_a_schedule_that_cannot_be_had_costs_nothing(closure: World) -> None:
    """It is noted, the days are proved as ever, and it is not asked for again for a month."""

    def refuse(ends_at: datetime, days: int) -> list[LearnedDay]:
        raise BadAnswerError("schedule", reason="nonsense")

    closure.bench.gateway.mutate_schedule = refuse
    notes = Notes()
    check_needs_proof(closure, notes)
    assert any("schedule of AAPL not available" in text for text in notes.texts)
    assert len(closure.bench.gateway.schedule_requests) == 1 + closure.bench.retries


def test_a_schedule_that_ends_early_closes_nothing(world: MakeWorld) -> None:
    """What lies behind its last session is not told: days there are proved as ever."""
    made = world(RTH, Timeframe.H1, FIRST, END, keys=keys_without(Timeframe.H1, GONE))
    made.bench.gateway.mutate_schedule = lambda ends_at, days: [
        one for one in schedule_of(calendar_named(RTH), ends_at, days) if one.day < min(GONE)
    ]
    check_needs_proof(made)
    assert sessions_of(made.bench, made.series) >= GONE
    assert told_closed(made.bench, made.series) == frozenset()


def test_a_day_with_bars_is_not_unlearned(world: MakeWorld) -> None:
    """A schedule that denies a session of which daily bars are held is not believed there."""
    made = world(RTH, Timeframe.H1, FIRST, END, keys=keys_without(Timeframe.H1, GONE))
    daily = Series(made.series.instrument, Timeframe.D1)
    sessions = calendar_named(RTH)
    made.bench.load(daily, interval_between(sessions, Timeframe.D1, FIRST, END))
    made.bench.gateway.mutate_schedule = told_without(GONE)
    assert made.load().is_complete
    assert made.bench.ledger.schedules.all() == {}
    assert len(made.bench.store.coverage(made.series).empty) == 2


def test_hours_in_details_are_learned_for_nothing(world: MakeWorld) -> None:
    """A later close that the contract tells is expected from then on, at no request.

    An earlier one is not: the quiet end of that day is left to its response.
    """
    made = world(RTH, Timeframe.H1, FIRST, END)
    days = [date(2024, 7, 2), date(2024, 7, 3)]
    later, earlier = (calendar_named(RTH).sessions(day, day + DAY)[0] for day in days)
    made.bench.gateway.details = (
        LearnedDay(later.day, (Interval(later.opens_at, later.closes_at + DAY / 24),)),
    )
    assert made.load().is_complete
    made.bench.gateway.details = (
        LearnedDay(earlier.day, (Interval(earlier.opens_at, earlier.closes_at - DAY / 24),)),
    )
    report = made.bench.load(
        made.series, interval_between(calendar_named(RTH), Timeframe.H1, END, END + 7 * DAY)
    )
    assert report.is_complete
    calendar = made.bench.ledger.calendars().of(made.series.instrument)
    assert calendar.sessions(days[0], days[0] + DAY)[0].closes_at == later.closes_at + DAY / 24
    assert calendar.sessions(days[1], days[1] + DAY) == [earlier]
    assert made.bench.ledger.calendars().of(stock("MSFT")) is calendar_named(RTH)
    assert made.bench.gateway.schedule_requests == []


def test_hours_that_are_too_long_are_noted(world: MakeWorld) -> None:
    """They add nothing to what is expected."""
    made = world(RTH, Timeframe.H1, FIRST, END)
    [known] = calendar_named(RTH).sessions(date(2024, 6, 20), date(2024, 6, 21))
    too_long = Interval(known.opens_at - 9 * DAY / 24, known.closes_at)
    made.bench.gateway.details = (LearnedDay(known.day, (too_long,)),)
    notes = Notes()
    [report] = made.bench.run_with(notes, made.series, made.wanted)
    assert report.is_complete
    assert any("more than eight hours longer" in text for text in notes.texts)
    assert made.bench.ledger.calendars().of(made.series.instrument) is calendar_named(RTH)


@pytest.fixture
def hidden(bench: Make) -> tuple[Bench, Series]:
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
    return bench(gateway), Series(instrument, Timeframe.H1)


def test_hours_that_only_the_gateway_knows_are_asked_for_first(
    hidden: tuple[Bench, Series],
) -> None:
    """A year a request, then the bars of exactly those sessions, and no request when repeated."""
    bench, series = hidden
    wanted = interval_between(calendar_named(ETH), Timeframe.H1, date(2023, 1, 3), date(2024, 7, 5))
    report = bench.load(series, wanted)
    assert report.is_complete
    bench.check_complete(series, wanted)
    assert [days for _, _, days in bench.gateway.schedule_requests] == [365, 365]
    asked = bench.request_count
    assert bench.load(series, wanted).is_complete
    assert (bench.request_count, len(bench.gateway.schedule_requests)) == (asked, 2)
    daily = Series(series.instrument, Timeframe.D1)
    assert bench.load(daily, interval_between(calendar_named(ETH), Timeframe.D1, FIRST, END)).rows
    assert len(bench.gateway.schedule_requests) == 2


def test_without_its_sessions_such_a_series_is_never_complete(
    hidden: tuple[Bench, Series],
) -> None:
    """Unknown hours are an error of the load, not a load of nothing."""
    bench, series = hidden
    wanted = interval_between(calendar_named(ETH), Timeframe.H1, FIRST, END)
    bench.gateway.mutate_schedule = lambda _at, _days: []
    report = bench.load(series, wanted)
    assert not report.is_complete
    assert report.error is not None
    assert "the gateway returned no plausible ones" in str(report.error)

    def refuse(ends_at: datetime, days: int) -> list[LearnedDay]:
        raise GatewayTimeoutError("schedule", reason="no answer")

    bench.gateway.mutate_schedule = refuse
    assert bench.load(Series(replace(series.instrument, symbol="VOD2"), Timeframe.H1), wanted).error


def test_two_symbols_of_the_gateways_hours_learn_their_own(hidden: tuple[Bench, Series]) -> None:
    """What one contract's schedule says is nothing to another's."""
    bench, series = hidden
    wanted = interval_between(calendar_named(ETH), Timeframe.H1, FIRST, END)
    bench.load(series, wanted)
    index = bench.ledger.calendars()
    assert index.of(series.instrument).known is not None
    assert index.of(replace(series.instrument, symbol="BP")).known is None
    bench.ledger.move_symbol("VOD", "VODA")
    moved = bench.ledger.calendars()
    assert moved.of(series.instrument).known is None
    assert moved.of(replace(series.instrument, symbol="VODA")).known is not None


def test_unknown_hours_are_a_gap_that_says_so(hidden: tuple[Bench, Series]) -> None:
    """The gap book shows all of it as missing until the gateway has told, then what is true."""
    bench, series = hidden
    now = bench.gateway.time
    index = GapIndex(bench.store, bench.ledger.calendars(), bench.gateway.gateway)
    [found] = index.series_gaps([series], now)
    [gap] = found.gaps
    assert gap.interval.end == now
    assert "not known until the gateway states them" in gap.detail
    assert gap.next_try_at is None
    interval = interval_between(calendar_named(ETH), Timeframe.H1, FIRST, END)
    state = index.windows(series, {"2024": (FIRST, END)}, now)["2024"]
    assert state.state is WindowState.UNEXPLAINED
    bench.gateway.mutate_schedule = lambda _at, _days: []
    assert bench.load(series, interval).error is not None
    [again] = GapIndex(bench.store, bench.ledger.calendars(), "fake:1").series_gaps([series], now)
    assert again.gaps[0].next_try_at is not None


def test_what_was_learned_is_kept_word_for_word(hidden: tuple[Bench, Series]) -> None:
    """Intervals, closed dates and askings come back from the ledger as they went in."""
    bench, series = hidden
    interval = interval_between(calendar_named(ETH), Timeframe.H1, FIRST, END)
    bench.load(series, interval)
    key = f"{GATEWAYS} VOD"
    learned = {one.day: one.parts for one in bench.ledger.schedules.all()[key]}
    [session] = calendar_named(ETH).sessions(date(2024, 6, 11), date(2024, 6, 12))
    assert learned[session.day] == (Interval(session.opens_at, session.closes_at),)
    assert learned[date(2024, 6, 15)] == ()
    [ask] = bench.ledger.schedules.asks(key)
    assert ask.first < FIRST < END <= ask.end
    assert bench.ledger.schedules.asks("XNYS.RTH") == []
