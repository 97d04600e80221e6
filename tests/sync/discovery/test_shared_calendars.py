"""Trading hours of one contract hold for it alone; bars after the close extend sessions."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import date, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.domain.bars import bars_between, micros, timestamps
from ktrdr_pipelines.domain.calendars.gateway_schedules import LearnedDay
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar, interval_between
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Instrument, Origin, SecType, Series, identity_of
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.jobs import Mode, RequestedBy
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.gaps.index import GapIndex
from ktrdr_pipelines.sync.runner import Job
from tests.support.examples import UNSHRUNK, examples
from tests.support.fake_gateway import (
    FakeGateway,
    TrueBars,
    dense_keys,
    schedule_of,
    stock,
    true_bars_of,
)
from tests.support.loading import Harness, MakeHarness, NotedTexts, World

RTH = "XNYS.RTH"
NEW_YORK = calendar_named(RTH)
DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
FIRST, END = date(2024, 6, 3), date(2024, 6, 15)
M5, H1, D1 = Timeframe.M5, Timeframe.H1, Timeframe.D1


def at(text: str) -> datetime:
    """Parse a moment."""
    return datetime.fromisoformat(text)


def true_bars_by_series(
    symbols: Iterable[str], timeframe: Timeframe, calendar: str, first: date, end: date
) -> dict[tuple[str, Timeframe], TrueBars]:
    """Return the bars of markets that trade at every expected time, daily bars included."""
    sessions = calendar_named(calendar)
    made = {
        kind: true_bars_of(dense_keys(calendar, kind, first, end), kind, sessions)
        for kind in (timeframe, D1)
    }
    return {(symbol, kind): true_bars for symbol in symbols for kind, true_bars in made.items()}


def session_of(calendar: SessionCalendar, day: date) -> Interval:
    """Return the hours of a session."""
    [session] = calendar.sessions(day, day + DAY)
    return Interval(session.opens_at, session.closes_at)


# --- an expiring contract --------------------------------------------------------------------


def future(symbol: str, last: date) -> Instrument:
    """Return a contract of the equity futures."""
    return replace(
        stock(symbol, "GLOBEX.EQUITY"),
        sec_type=SecType.FUT,
        exchange="CME",
        last_trade_date=last,
        start=date(2026, 10, 1),
    )


EXPIRY = date(2026, 11, 20)
ESX6, ESH7 = future("ESX6", EXPIRY), future("ESH7", date(2027, 3, 19))


@pytest.fixture
def futures(harness: MakeHarness) -> Harness:
    """Make a market of two contracts, on the evening of the day on which one expires.

    Its trading hours and its bars end at 08:30 in Chicago on that day.
    """
    globex = calendar_named("GLOBEX.EQUITY")
    true_bars = true_bars_by_series(
        ("ESX6", "ESH7"), M5, "GLOBEX.EQUITY", date(2026, 10, 1), EXPIRY + DAY
    )
    last = Interval(session_of(globex, EXPIRY).start, at("2026-11-20T14:30Z"))
    keys = timestamps(true_bars["ESX6", M5].bars)
    true_bars["ESX6", M5] = true_bars_of(keys[keys < micros(last.end)], M5, globex)
    gateway = FakeGateway(true_bars, at("2026-11-20T23:00Z"))
    gateway.details_of = {
        "ESX6": (LearnedDay(EXPIRY, (last,)),),
        "ESH7": (LearnedDay(EXPIRY, (session_of(globex, EXPIRY),)),),
    }
    return harness(gateway)


@pytest.mark.parametrize("order", [(ESX6, ESH7), (ESH7, ESX6)], ids=["before", "after"])
@pytest.mark.parametrize("together", [False, True])
def test_an_expiring_contract_does_not_shorten_the_day_of_another(
    futures: Harness, order: tuple[Instrument, Instrument], *, together: bool
) -> None:
    """Every five-minute bar of the other contract is stored, whichever is loaded last."""
    globex = calendar_named("GLOBEX.EQUITY")
    wanted = interval_between(globex, M5, date(2026, 11, 16), EXPIRY + DAY)
    jobs = [Job(Series(one, M5), wanted=IntervalSet([wanted])) for one in order]
    reports = futures.run(*jobs) if together else [futures.run(job)[0] for job in jobs]
    other = next(one for one in reports if one.series.symbol == "ESH7")
    assert other.is_complete
    futures.check_complete(other.series, wanted)
    after = bars_between(futures.store.read(other.series), at("2026-11-20T14:30Z"), wanted.end)
    assert after.num_rows == 7.5 * 12
    index = futures.ledger.calendars()
    assert index.of(ESH7) is index.of(ESX6) is globex
    futures.check_complete(Series(ESX6, M5), wanted)
    [found] = GapIndex(futures.store, index, futures.gateway.gateway).series_gaps(
        [Series(replace(ESH7, start=date(2026, 11, 16)), M5)], futures.gateway.time
    )
    assert found.gaps == ()


# --- calendars that symbols share ------------------------------------------------------------


TODAY = date(2024, 6, 14)
EARLY = date(2024, 6, 20)
SYMBOLS = ("AAA", "BBB", "CCC", "DDD")


@pytest.fixture
def exchange(harness: MakeHarness) -> Harness:
    """Make a store of four stocks that hold ten weeks of daily bars, on the evening of the last."""
    true_bars = true_bars_by_series(SYMBOLS, H1, RTH, date(2024, 4, 1), date(2024, 7, 20))
    made = harness(FakeGateway(true_bars, at("2024-06-14T23:00Z")))
    wanted = IntervalSet([interval_between(NEW_YORK, D1, date(2024, 4, 2), TODAY)])
    reports = made.run(*(Job(Series(stock(one), D1), wanted=wanted) for one in SYMBOLS))
    assert all(report.is_complete for report in reports)
    return made


def load_with_hours(harness: Harness, symbol: str, day: date, *hours: Interval) -> list[str]:
    """Load an hour of a symbol whose details state hours of a date; return the noted texts."""
    harness.gateway.details_of[symbol] = (LearnedDay(day, hours),)
    noted = NotedTexts()
    last = harness.store.rows(Series(stock(symbol), H1)) // 7
    first = [one.day for one in NEW_YORK.sessions(date(2024, 4, 2), TODAY)][last]
    wanted = interval_between(NEW_YORK, H1, first, first + DAY)
    harness.run_with(noted, Series(stock(symbol), H1), wanted)
    return noted.texts


def shared_session(harness: Harness, day: date, symbol: str = "ZZZ") -> list[Interval]:
    """Return the hours of a date for a symbol whose details were never received."""
    sessions = harness.ledger.calendars().of(stock(symbol)).sessions(day, day + DAY)
    return [Interval(one.opens_at, one.closes_at) for one in sessions]


def test_three_contracts_change_the_calendar_of_all(exchange: Harness) -> None:
    """The third contract changes it, with a note; when one withdraws, the library applies again."""
    known = session_of(NEW_YORK, EARLY)
    early = Interval(known.start, known.end - 3 * HOUR)
    for symbol in SYMBOLS[:2]:
        assert load_with_hours(exchange, symbol, EARLY, early) == []
        assert shared_session(exchange, EARLY) == [known]
    noted = load_with_hours(exchange, "CCC", EARLY, early)
    [text] = noted
    assert text.startswith("XNYS.RTH 2024-06-20: 09:30-13:00 instead of 09:30-16:00 ")
    assert text.endswith("according to 3 contracts: AAA, BBB, CCC")
    assert shared_session(exchange, EARLY) == [early]
    index = exchange.ledger.calendars()
    assert index.of(stock("AAA")) is index.of(stock("ZZZ"))
    [changed] = index.changed()[RTH]
    assert (changed.stated.day, changed.symbols) == (EARLY, SYMBOLS[:3])
    # One of the three withdraws it: the library's hours apply again.
    assert "no longer agree" in load_with_hours(exchange, "AAA", EARLY, known)[0]
    assert shared_session(exchange, EARLY) == [known]


def test_contracts_with_hours_of_their_own_do_not_count(exchange: Harness) -> None:
    """Two active contracts, one without bars, and one that has an end change nothing."""
    for symbol in SYMBOLS[:2]:
        load_with_hours(exchange, symbol, EARLY)
    exchange.gateway.true_bars["NEW", H1] = exchange.gateway.true_bars["AAA", H1]
    exchange.gateway.true_bars["NEW", D1] = exchange.gateway.true_bars["AAA", D1]
    load_with_hours(exchange, "NEW", EARLY)
    ended = Series(replace(stock("DDD"), end=date(2024, 12, 1)), H1)
    exchange.gateway.details_of["DDD"] = (LearnedDay(EARLY, ()),)
    exchange.load(ended, interval_between(NEW_YORK, H1, date(2024, 5, 1), date(2024, 5, 2)))
    index = exchange.ledger.calendars()
    assert index.changed() == {}
    assert index.stated_closed(stock("NEW")) == index.stated_closed(stock("DDD")) == {EARLY}
    assert shared_session(exchange, EARLY) == [session_of(NEW_YORK, EARLY)]


def test_a_date_of_which_any_symbol_holds_bars_is_never_closed(exchange: Harness) -> None:
    """Nor are hours with held bars shortened, though the three contracts hold none of them."""
    held = date(2024, 6, 13)
    known = session_of(NEW_YORK, held)
    load_with_hours(exchange, "DDD", EARLY, session_of(NEW_YORK, EARLY))
    exchange.load(Series(stock("DDD"), H1), interval_between(NEW_YORK, H1, held, TODAY))
    for symbol in SYMBOLS[:3]:
        load_with_hours(exchange, symbol, held, Interval(known.start, known.end - 2 * HOUR))
    assert shared_session(exchange, held) == [known]
    assert exchange.ledger.calendars().changed() == {}
    for symbol in SYMBOLS[:3]:
        load_with_hours(exchange, symbol, held)
    assert shared_session(exchange, held) == [known]


def test_bars_override_what_contracts_agreed_on(exchange: Harness) -> None:
    """A future date that three contracts call closed is expected again once a bar of it arrives."""
    for symbol in SYMBOLS[:3]:
        load_with_hours(exchange, symbol, EARLY)
    assert shared_session(exchange, EARLY) == []
    exchange.gateway.time = at("2024-06-21T23:00Z")
    exchange.gateway.details_of = {}
    noted = NotedTexts()
    around = interval_between(NEW_YORK, H1, date(2024, 6, 18), date(2024, 6, 22))
    series = Series(stock("DDD"), H1)
    exchange.run_with(noted, series, around)
    assert any("bars of DDD lie outside the hours" in text for text in noted.texts)
    assert shared_session(exchange, EARLY) == [session_of(NEW_YORK, EARLY)]
    assert exchange.load(series, around).is_complete
    exchange.check_complete(series, around)


# --- bars after the close --------------------------------------------------------------------


def late_true_bars(timeframe: Timeframe, days: Iterable[date], minutes: int = 15) -> TrueBars:
    """Return the bars of a market that trades past the close on some days."""
    chosen = np.array(sorted(days), dtype="datetime64[D]")
    longer = NEW_YORK.closes + np.where(np.isin(NEW_YORK.days, chosen), minutes * 60_000_000, 0)
    calendar = SessionCalendar(
        key=RTH, zone=NEW_YORK.zone, days=NEW_YORK.days, opens=NEW_YORK.opens, closes=longer
    )
    length = timeframe.seconds * 1_000_000
    keys: list[int] = []
    for one in calendar.sessions(FIRST - 60 * DAY, END + 20 * DAY):
        opens, closes = micros(one.opens_at), micros(one.closes_at)
        keys.extend((opens, *range(opens // length * length + length, closes, length)))
    return true_bars_of(np.array(keys, dtype=np.int64), timeframe, calendar)


def days_between(first: date, end: date) -> list[date]:
    """Return session dates."""
    return [one.day for one in NEW_YORK.sessions(first, end)]


@pytest.fixture
def vix(harness: MakeHarness) -> Callable[[Iterable[date]], tuple[Harness, Series]]:
    """Make an index with bars until 16:15 on some days; ten sessions are held until 16:00."""

    def make(days: Iterable[date]) -> tuple[Harness, Series]:
        series = Series(stock("VIX"), M5)
        true_bars = true_bars_by_series(("VIX",), M5, RTH, FIRST - 60 * DAY, END + 20 * DAY)
        true_bars["VIX", M5] = late_true_bars(M5, days)
        made = harness(FakeGateway(true_bars, at("2024-06-14T23:00Z")))
        hours = [session_of(NEW_YORK, day) for day in days_between(FIRST, date(2024, 6, 12))]
        held = true_bars["VIX", M5].bars
        identity = identity_of(series, contract_id=265598, origin=Origin.IB)
        for one in hours:
            inside = bars_between(held, one.start, one.end)
            made.store.save(series, identity, inside, Coverage(bars=IntervalSet([one])))
        return made, series

    return make


NEW_DAYS = interval_between(NEW_YORK, M5, date(2024, 6, 12), END)
ALL_DAYS = interval_between(NEW_YORK, M5, FIRST, END)


def test_three_days_of_late_bars_make_earlier_days_due(
    vix: Callable[[Iterable[date]], tuple[Harness, Series]],
) -> None:
    """Ranges after the close that no tail requested become gaps, and the next load fills them."""
    harness, series = vix(days_between(FIRST, END))
    assert harness.load(series, Interval(ALL_DAYS.start, NEW_DAYS.start)).is_complete
    noted = NotedTexts()
    [report] = harness.run_with(noted, series, NEW_DAYS)
    assert report.is_complete
    [text] = noted.texts
    assert text.startswith("sessions of VIX last until 16:15 instead of 16:00 ")
    assert text.endswith("bars after the close on 2024-06-12, 2024-06-13, 2024-06-14")
    index = harness.ledger.calendars()
    wanted = Series(replace(series.instrument, start=FIRST), M5)
    [found] = GapIndex(harness.store, index, harness.gateway.gateway).series_gaps(
        [wanted], harness.gateway.time
    )
    assert sum(gap.bars for gap in found.gaps) == 7 * 3
    request_count = harness.request_count
    assert harness.load(series, ALL_DAYS).is_complete
    harness.check_complete(series, ALL_DAYS)
    assert harness.request_count - request_count <= 2
    request_count = harness.request_count
    assert harness.load(series, ALL_DAYS).is_complete
    assert harness.request_count == request_count
    assert harness.ledger.calendars().of(stock("SPX")) is NEW_YORK


def test_earlier_days_are_filled_in_the_load_that_shows_them(
    vix: Callable[[Iterable[date]], tuple[Harness, Series]],
) -> None:
    """The load in which three days show later bars also fills the earlier days that it wants."""
    harness, series = vix(days_between(FIRST, END))
    assert harness.load(series, ALL_DAYS).is_complete
    harness.check_complete(series, ALL_DAYS)


@pytest.mark.parametrize("after", [2, 20, 32], ids=["at once", "soon", "half an hour"])
def test_an_index_kept_by_tails_after_each_close_lacks_no_bar(
    harness: MakeHarness, after: int
) -> None:
    """Tails at any time after the known close store the last quarter of an hour.

    What the first tails cannot know becomes due once three sessions have shown it.
    """
    series = Series(stock("VIX"), M5)
    true_bars = true_bars_by_series(("VIX",), M5, RTH, FIRST - 60 * DAY, END + 20 * DAY)
    true_bars["VIX", M5] = late_true_bars(M5, days_between(FIRST - 60 * DAY, END + 20 * DAY))
    made = harness(FakeGateway(true_bars, at("2024-06-03T12:00Z")))
    for day in days_between(FIRST, END):
        close = session_of(NEW_YORK, day).end
        for minutes in (-120, after):
            made.gateway.time = close + minutes * MINUTE
            tail = Interval(ALL_DAYS.start, made.gateway.time)
            made.run(
                Job(series, Mode.TAIL, wanted=IntervalSet([tail]), requested_by=RequestedBy.SENSOR)
            )
            made.check(series, tail)
    made.gateway.time = at("2024-06-14T23:00Z")
    assert World(made, series, ALL_DAYS).load_until_confirmed().is_complete
    made.check_complete(series, ALL_DAYS)


@pytest.mark.parametrize("count", [1, 2])
def test_stray_bars_extend_nothing(
    vix: Callable[[Iterable[date]], tuple[Harness, Series]], count: int
) -> None:
    """Late bars on one or two days are kept, and no other day becomes due."""
    harness, series = vix(days_between(date(2024, 6, 12), END)[:count])
    assert harness.load(series, NEW_DAYS).is_complete
    assert harness.ledger.calendars().of(series.instrument) is NEW_YORK
    assert len(harness.ledger.late_bars.all()["VIX"]) == count
    request_count = harness.request_count
    assert harness.load(series, ALL_DAYS).is_complete
    assert harness.request_count == request_count


def test_late_bars_are_recorded_only_if_they_add_something(
    vix: Callable[[Iterable[date]], tuple[Harness, Series]],
) -> None:
    """Responses without late bars, and late bars that are already known, add no row."""
    harness, series = vix(())
    assert harness.load(series, NEW_DAYS).is_complete
    assert harness.ledger.late_bars.all() == {}
    harness, series = vix(days_between(FIRST - 30 * DAY, END))
    assert harness.load(series, NEW_DAYS).is_complete
    assert harness.load(series, interval_between(NEW_YORK, M5, FIRST - 20 * DAY, FIRST)).is_complete
    assert set(harness.ledger.late_bars.all()["VIX"]) == set(days_between(date(2024, 6, 12), END))
    harness.ledger.move_symbol("VIX", "VIX2")
    assert set(harness.ledger.late_bars.all()) == {"VIX2"}


# --- one contract that states false hours ----------------------------------------------------


class FalseHours:
    """Generates wrong trading hours of one contract, from a seed."""

    KINDS = ("closed", "short", "late open", "long", "saturday", "other market")

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def details(self, days: list[LearnedDay]) -> tuple[LearnedDay, ...]:
        """Return false hours of one of the first two sessions, which few checks reject, or many."""
        chosen = np.zeros(len(days), dtype=bool)
        chosen[self.rng.integers(0, min(2, len(days)))] = True
        if self.rng.random() < 0.2:
            chosen |= self.rng.random(len(days)) < 0.5
        return tuple(self._mutated(days, chosen))

    def schedule(self, days: list[LearnedDay]) -> list[LearnedDay]:
        """Return a year's schedule of which a few sessions, or all, are false."""
        share = float(self.rng.choice([0.02, 0.08, 1.0]))
        return self._mutated(days, self.rng.random(len(days)) < share)

    def _mutated(self, days: list[LearnedDay], chosen: np.ndarray) -> list[LearnedDay]:
        kind = str(self.rng.choice(self.KINDS))
        found = {one.day: one for one in days}
        for one, is_chosen in zip(days, chosen, strict=True):
            if is_chosen:
                false = self._false(kind, one)
                found[false.day] = false
        return [found[day] for day in sorted(found)]

    def _false(self, kind: str, one: LearnedDay) -> LearnedDay:
        """Return a false version of one session."""
        if not one.parts or kind == "closed":
            return LearnedDay(one.day, ())
        hours = Interval(one.parts[0].start, one.parts[-1].end)
        by = timedelta(minutes=int(self.rng.integers(1, 200)))
        if kind == "short":
            return LearnedDay(one.day, (Interval(hours.start, hours.end - by),))
        if kind == "late open":
            return LearnedDay(one.day, (Interval(hours.start + by, hours.end),))
        if kind == "long":
            return LearnedDay(one.day, (Interval(hours.start - by, hours.end + by),))
        if kind == "saturday":
            ahead = (5 - one.day.weekday()) * DAY
            return LearnedDay(one.day + ahead, (Interval(hours.start + ahead, hours.end + ahead),))
        return LearnedDay(one.day, (Interval(hours.start + 3 * HOUR, hours.end + 3 * HOUR),))


@pytest.mark.slow
@examples(12, phases=UNSHRUNK)
@given(seed=st.integers(0, 2**32 - 1), gone=st.sampled_from([0.0, 0.1]))
def test_falsehoods_of_one_contract_never_hide_a_bar(
    harness: MakeHarness, seed: int, gone: float
) -> None:
    """Loads that report complete have stored every bar, whatever hours one contract states."""
    wrong = FalseHours(seed)
    true_bars = true_bars_by_series(("AAA", "BBB"), H1, RTH, FIRST - 60 * DAY, END + 40 * DAY)
    days = np.array(days_between(FIRST - 60 * DAY, END), dtype="datetime64[D]")
    missing = days[wrong.rng.random(len(days)) < gone]
    for kind in (H1, D1):
        bars = true_bars["AAA", kind].bars
        dates = bars["session_date"].to_numpy().astype("datetime64[D]")
        true_bars["AAA", kind] = true_bars_of(
            timestamps(bars)[~np.isin(dates, missing)], kind, NEW_YORK
        )
    made = harness(FakeGateway(true_bars, at("2024-06-03T12:00Z")))
    gateway, complete = made.gateway, 0
    gateway.mutate_schedule = lambda at, count: wrong.schedule(schedule_of(NEW_YORK, at, count))
    for day in days_between(FIRST, END):
        gateway.time = max(gateway.time, session_of(NEW_YORK, day).end + 40 * MINUTE)
        wanted = interval_between(NEW_YORK, H1, FIRST, day + DAY)
        coming = schedule_of(NEW_YORK, session_of(NEW_YORK, day).start + 7 * DAY, 7)
        gateway.details_of["AAA"] = wrong.details(coming)
        for symbol in ("AAA", "BBB"):
            series = Series(stock(symbol), H1)
            report = made.load(series, wanted)
            made.check(series, wanted)
            if report.is_complete:
                complete += 1
                made.check_complete(series, wanted)
    for _ in range(6):
        for symbol in ("AAA", "BBB"):
            report = made.load(Series(stock(symbol), H1), wanted)
            if report.confirmed_at is not None:
                gateway.time = max(gateway.time, report.confirmed_at + MINUTE)
    for symbol in ("AAA", "BBB"):
        made.check_complete(Series(stock(symbol), H1), wanted)
    assert complete >= len(days_between(FIRST, END))
    assert made.ledger.calendars().of(stock("ZZZ")) is NEW_YORK
