"""Re-basings are found at no or one request, need two responses, and readers see one basis."""

import asyncio
import random
from collections.abc import Callable
from datetime import date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from ktrdr_pipelines.domain.adjustments import Adjustment
from ktrdr_pipelines.domain.bars import UNCONFIRMED, basis_of, timestamps
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.planning.jobs import Job, Mode, RequestedBy
from ktrdr_pipelines.domain.planning.responses import BarRequest, NoData, Response
from ktrdr_pipelines.domain.plausibility import DisagreementKind
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import GatewayError, RequestRejectedError
from ktrdr_pipelines.store.ledger.ledger import Ledger
from tests.support.fake_gateway import utc
from tests.support.loading import MakeHarness, NotedTexts
from tests.support.splitting import CALENDAR, SplitMarket, rebased, split_market

FIRST, END = date(2024, 4, 1), date(2024, 8, 1)
TUESDAY = utc(2024, 5, 28, 21)
EX = utc(2024, 5, 30, 4)
"""Midnight in New York before a Thursday."""

DAY = timedelta(days=1)
SHORT, LONG = Timeframe.M5, Timeframe.D1
MakeMarket = Callable[..., SplitMarket]


@pytest.fixture
def market(harness: MakeHarness) -> MakeMarket:
    """Return a function that makes a stock, loaded up to a Tuesday's close."""

    def make(*timeframes: Timeframe, loaded: bool = True) -> SplitMarket:
        made = split_market(harness, timeframes, TUESDAY, first=FIRST, end=END)
        if loaded:
            assert all(report.is_complete for report in made.run(*timeframes, mode=Mode.FULL))
        return made

    return make


def found_in(market: SplitMarket) -> tuple[Adjustment, ...]:
    """Return the adjustments of the stock."""
    return market.harness.store.bases.of("AAPL")


def requests_for_the_basis(market: SplitMarket) -> list[datetime]:
    """Return when requests were sent for the price basis alone, by the audit."""
    records = market.harness.ledger.requests.newest(10_000)
    return [one.sent_at for one in records if one.proved.startswith("the price basis")]


@pytest.mark.parametrize(
    ("timeframes", "factor"),
    [
        *(((LONG,), one) for one in (1 / 4, 20.0, 1 / 7, 2 / 3, 1 / 1.05, 0.8734, 50.0, 1 / 50)),
        *(((SHORT, Timeframe.H1, LONG), one) for one in (1 / 4, 1.05)),
        *(((SHORT,), one) for one in (20.0, 1 / 1.05)),
        *(((Timeframe.H1,), one) for one in (1 / 7, 0.8734)),
        *(((Timeframe.H4,), one) for one in (2 / 3, 50.0)),
    ],
)
def test_a_split_between_two_tails_is_found_by_the_second(
    market: MakeMarket, timeframes: tuple[Timeframe, ...], factor: float
) -> None:
    """Readers then see the gateway's basis, and the stored bars are as they were."""
    made = market(*timeframes)
    before = {one: made.harness.store.read_raw(series) for one, series in made.series.items()}
    made.splits[EX] = factor
    for at in (EX - timedelta(hours=7), EX + timedelta(hours=17)):
        made.gateway.time = at
        assert all(report.is_complete for report in made.run(*timeframes))
        made.check_today()
    [found] = found_in(made)
    assert found.ratio == pytest.approx(factor, rel=1e-5)
    assert found.volume_ratio == 1 / found.ratio
    assert (found.effective, found.is_estimated) == (date(2024, 5, 30), False)
    for timeframe, bars in before.items():
        raw = made.harness.store.read_raw(made.series[timeframe])
        assert raw.slice(0, bars.num_rows).equals(bars)
    assert len(requests_for_the_basis(made)) <= 1


def test_simple_ratios_are_exact(market: MakeMarket) -> None:
    """One in seven is one in seven, so that older prices are no less exact than newer ones."""
    made = market(LONG)
    made.splits[EX] = 1 / 7
    made.gateway.time = EX + timedelta(hours=17)
    made.run(LONG)
    assert [one.ratio for one in found_in(made)] == [1 / 7]


def test_weeks_alone_show_a_split(market: MakeMarket) -> None:
    """A tail has three older weeks, and one request more confirms them."""
    made = market(Timeframe.W1)
    made.splits[EX] = 1 / 4
    for days in range(1, 15):
        made.gateway.time = TUESDAY + days * DAY
        made.run(Timeframe.W1)
        made.check()
    made.check_today()
    assert [one.ratio for one in found_in(made)] == [1 / 4]


@pytest.mark.parametrize("requested_by", RequestedBy)
@pytest.mark.parametrize("first", [SHORT, Timeframe.H1, LONG, Timeframe.W1])
def test_any_timeframe_that_is_loaded_first_finds_it_for_all(
    market: MakeMarket, first: Timeframe, requested_by: RequestedBy
) -> None:
    """What one timeframe has shown holds for the others, whoever loads them."""
    timeframes = (SHORT, Timeframe.H1, LONG, Timeframe.W1)
    made = market(*timeframes)
    made.splits[EX] = 1 / 4
    made.gateway.time = utc(2024, 6, 3, 21)
    made.run(first, mode=Mode.FULL, requested_by=requested_by)
    made.check_today()
    assert len(found_in(made)) == 1
    made.run(*timeframes, requested_by=requested_by)
    made.check_today()
    assert len(found_in(made)) == 1


def test_several_splits_between_two_loads_are_one_adjustment(market: MakeMarket) -> None:
    """What counts is their product; the day is estimated, because sessions lie between."""
    made = market(SHORT, LONG)
    made.splits |= {EX: 1 / 4, EX + DAY: 1 / 3, EX + 5 * DAY: 2.0}
    made.gateway.time = utc(2024, 6, 20, 21)
    made.run(SHORT, LONG)
    made.check_today()
    [found] = found_in(made)
    assert found.ratio == pytest.approx(1 / 6)
    assert (found.effective, found.is_estimated) == (date(2024, 5, 29), True)


def test_two_splits_in_one_week_are_two_adjustments(market: MakeMarket) -> None:
    """Each is found on its day; bars of three bases are read as one."""
    made = market(SHORT, LONG)
    made.splits |= {EX: 1 / 4, EX + DAY: 20.0}
    for days in range(1, 8):
        made.gateway.time = TUESDAY + days * DAY
        made.run(SHORT, LONG)
        made.check_today()
    assert [one.ratio for one in found_in(made)] == [1 / 4, 20.0]
    raw = made.harness.store.read_raw(made.series[LONG])
    assert set(basis_of(raw).tolist()) == {0, 1, 2}


def test_a_gap_that_is_filled_later_lies_on_the_newer_basis(market: MakeMarket) -> None:
    """Basis follows the request, not the session: it is not multiplied a second time."""
    made = market(SHORT, LONG, loaded=False)
    calendar = calendar_named(CALENDAR)
    for first, end in (
        (date(2024, 4, 1), date(2024, 4, 20)),
        (date(2024, 5, 6), date(2024, 5, 29)),
    ):
        wanted = {
            one: IntervalSet([interval_between(calendar, one, first, end)]) for one in made.series
        }
        made.harness.run(*(Job(made.series[one], wanted=wanted[one]) for one in made.series))
    made.splits[EX] = 1 / 4
    made.gateway.time = EX + timedelta(hours=17)
    for mode in (Mode.FULL, Mode.TAIL):
        made.run(SHORT, LONG, mode=mode, requested_by=RequestedBy.PERSON)
        made.check_today()
    raw = made.harness.store.read_raw(made.series[SHORT])
    days = raw["session_date"].to_pylist()
    assert basis_of(raw)[days.index(date(2024, 4, 25))] == 1
    assert basis_of(raw)[days.index(date(2024, 5, 10))] == 0


@pytest.mark.parametrize("held", [(SHORT,), (SHORT, LONG)], ids=["5m", "5m 1d"])
def test_a_backfill_checks_first(market: MakeMarket, held: tuple[Timeframe, ...]) -> None:
    """Its own bars cannot be compared with any; the newest held ones are requested before them."""
    made = market(*held, loaded=False)
    calendar = calendar_named(CALENDAR)
    part = {one: interval_between(calendar, one, date(2024, 5, 1), END) for one in held}
    made.harness.run(*(Job(made.series[one], wanted=IntervalSet([part[one]])) for one in held))
    made.splits[EX] = 1 / 4
    made.gateway.time = EX + timedelta(hours=7)
    sent = made.harness.request_count
    made.run(SHORT, mode=Mode.BACKFILL)
    made.check_today()
    first, second = made.gateway.requests[sent : sent + 2]
    assert first.series.timeframe is second.series.timeframe is (LONG if LONG in held else SHORT)
    assert first.ends_at is not None
    assert first.ends_at.date() >= date(2024, 5, 28)
    assert len(found_in(made)) == 1


def test_a_basis_is_established_once_a_session_date(market: MakeMarket) -> None:
    """By tails, backfills and gaps of any timeframe: one request for the basis alone at most."""
    timeframes = (SHORT, Timeframe.H1, LONG)
    made = market(*timeframes, loaded=False)
    calendar, rng = calendar_named(CALENDAR), random.Random(1)
    for hours in range(0, 24 * 6, 5):
        made.gateway.time = TUESDAY + timedelta(hours=hours)
        for timeframe in timeframes:
            first = FIRST + rng.randrange(50) * DAY
            part = interval_between(calendar, timeframe, first, first + 7 * DAY)
            made.harness.run(Job(made.series[timeframe], wanted=IntervalSet([part])))
        made.run(*timeframes)
    days = [calendar.day_of(at) for at in requests_for_the_basis(made)]
    assert len(days) == len(set(days))
    assert found_in(made) == ()


def test_tails_that_are_kept_fresh_need_no_request_for_the_basis(market: MakeMarket) -> None:
    """They start at held bars; without splits, no request is sent for anything else."""
    made = market(SHORT, LONG)
    for days in range(1, 15):
        made.gateway.time = TUESDAY + days * DAY
        made.run(SHORT, LONG)
    assert requests_for_the_basis(made) == []


@pytest.mark.parametrize("spoiled", [1, 2, 3])
def test_one_wrong_response_is_no_split(market: MakeMarket, spoiled: int) -> None:
    """A gateway that once returns other prices is asked again, and its bars are not shown."""
    made = market(SHORT, LONG)
    count = [0]

    def serve(request: BarRequest, bars: pa.Table) -> pa.Table:
        count[0] += 1
        return rebased(bars, 1 / 4 if count[0] == spoiled else 1.0)

    made.gateway.mutate = serve
    for days in range(1, 4):
        made.gateway.time = TUESDAY + days * DAY
        made.run(SHORT, LONG, requested_by=RequestedBy.PERSON)
        made.check()
    made.check_today()
    assert found_in(made) == ()
    assert all(report.is_complete for report in made.run(SHORT, LONG, mode=Mode.FULL))


def test_one_bar_in_common_is_not_enough(market: MakeMarket) -> None:
    """The bars are kept on an unconfirmed basis, and shown once more bars agree."""
    made = market(LONG, loaded=False)
    calendar = calendar_named(CALENDAR)
    one_day = interval_between(calendar, LONG, date(2024, 5, 28), date(2024, 5, 29))
    series = made.series[LONG]
    made.harness.run(Job(series, wanted=IntervalSet([one_day])))
    made.splits[EX] = 1 / 4
    made.gateway.time = EX + timedelta(hours=17)
    [report] = made.run(LONG)
    assert not report.is_complete
    made.check()
    raw = made.harness.store.read_raw(series)
    assert basis_of(raw).tolist() == [0, UNCONFIRMED, UNCONFIRMED]
    assert made.harness.store.read(series).num_rows == 1
    assert found_in(made) == ()


def test_bars_requested_after_the_last_comparison_are_requested_again(market: MakeMarket) -> None:
    """The gateway was re-based within a session date: what was presumed may be on either basis."""
    made = market(SHORT, LONG, loaded=False)
    calendar = calendar_named(CALENDAR)

    def load(timeframe: Timeframe, first: date, end: date) -> None:
        part = interval_between(calendar, timeframe, first, end)
        made.harness.run(Job(made.series[timeframe], wanted=IntervalSet([part])))

    load(LONG, date(2024, 5, 1), date(2024, 5, 29))
    load(SHORT, date(2024, 5, 20), date(2024, 5, 29))
    made.gateway.time = utc(2024, 5, 30, 12)
    load(SHORT, date(2024, 4, 2), date(2024, 4, 4))  # establishes the basis
    made.splits[utc(2024, 5, 30, 13)] = 1 / 4
    made.gateway.time = utc(2024, 5, 30, 14)
    load(SHORT, date(2024, 4, 15), date(2024, 4, 17))  # has no bar in common
    made.gateway.time = utc(2024, 5, 30, 21)
    made.run(LONG)
    made.check_today()
    [found] = found_in(made)
    raw = made.harness.store.read_raw(made.series[SHORT])
    day = np.array(raw["session_date"].to_pylist())
    assert set(basis_of(raw)[day == date(2024, 4, 15)].tolist()) == {UNCONFIRMED}
    assert set(basis_of(raw)[day == date(2024, 4, 2)].tolist()) == {0}
    load(SHORT, date(2024, 4, 15), date(2024, 4, 17))
    made.check_today()
    raw = made.harness.store.read_raw(made.series[SHORT])
    assert set(basis_of(raw).tolist()) == {0, found.number}


@pytest.mark.parametrize("factor", [1 / 4, 20.0, 1 / 1.05])
def test_a_split_on_the_day_after_the_first_load_needs_no_second_one(
    market: MakeMarket, factor: float
) -> None:
    """Nothing was compared yet; bars of other timeframes show that all are on the old basis."""
    timeframes = (SHORT, Timeframe.H1, LONG, Timeframe.W1)
    made = market(*timeframes, loaded=False)

    async def later(_: BarRequest) -> None:
        made.gateway.time += timedelta(minutes=10)

    made.gateway.time = TUESDAY
    made.gateway.before_response = later
    made.run(*timeframes, mode=Mode.FULL)
    made.gateway.before_response = None
    rows = {one: made.harness.store.rows(series) for one, series in made.series.items()}
    made.splits[EX] = factor
    made.gateway.time = EX + timedelta(hours=17)
    made.run(*timeframes)
    made.check_today()
    for timeframe, series in made.series.items():
        raw = made.harness.store.read_raw(series)
        assert (basis_of(raw) != UNCONFIRMED).all(), timeframe
        assert raw.num_rows >= rows[timeframe]


def test_bars_without_a_jump_to_compared_ones_are_on_their_basis(market: MakeMarket) -> None:
    """One timeframe alone, loaded over hours: nothing has to be requested again."""
    made = market(SHORT, loaded=False)

    async def later(_: BarRequest) -> None:
        made.gateway.time += timedelta(minutes=10)

    made.gateway.before_response = later
    made.run(SHORT, mode=Mode.FULL)
    made.gateway.before_response = None
    made.splits[EX] = 1 / 4
    made.gateway.time = EX + timedelta(hours=17)
    made.run(SHORT)
    made.check_today()
    raw = made.harness.store.read_raw(made.series[SHORT])
    assert set(basis_of(raw).tolist()) == {0, 1}


def test_a_re_basing_during_a_long_backfill_mixes_nothing(market: MakeMarket) -> None:
    """A run that goes on into the next session date establishes the basis again."""
    made = market(SHORT, LONG, loaded=False)
    calendar = calendar_named(CALENDAR)
    part = interval_between(calendar, LONG, date(2024, 4, 1), date(2024, 5, 29))
    made.harness.run(Job(made.series[LONG], wanted=IntervalSet([part])))
    made.splits[EX] = 1 / 4

    async def later(_: BarRequest) -> None:
        made.gateway.time += timedelta(hours=5)

    made.gateway.before_response = later
    for _ in range(6):
        made.run(SHORT, mode=Mode.FULL)
        made.check()
    made.gateway.before_response = None
    made.gateway.time += 3 * DAY
    assert all(report.is_complete for report in made.run(SHORT, LONG, mode=Mode.FULL))
    made.check_today()


@pytest.mark.parametrize("price", [100.0, 0.01])
@pytest.mark.parametrize("inverse", [True, False])
def test_a_change_of_unit_is_reported_and_not_applied(
    market: MakeMarket, price: float, *, inverse: bool
) -> None:
    """All bars are shown as returned, and the report names the first session in the new unit."""
    made = market(LONG)
    since = EX

    def serve(request: BarRequest, bars: pa.Table) -> pa.Table:
        if made.gateway.time < since:
            return bars
        changed = rebased(bars, price)
        place = bars.schema.get_field_index("volume")
        volume = changed["volume"] if inverse else bars["volume"]
        return changed.set_column(place, bars.schema.field(place), volume)

    made.gateway.mutate = serve
    made.gateway.time = EX + timedelta(hours=17)
    noted = NotedTexts()
    wanted = interval_between(calendar_named(CALENDAR), LONG, FIRST, END)
    [report] = made.harness.run_with(noted, made.series[LONG], wanted)
    [found] = report.disagreements
    assert found.kind is DisagreementKind.UNIT
    assert (found.ratio, found.first.date()) == (price, date(2024, 5, 29))
    assert any("ktrdr adjust AAPL --ratio" in text for text in noted.texts)
    assert found_in(made) == ()
    store, series = made.harness.store, made.series[LONG]
    raw = store.read_raw(series)
    assert store.read(series).equals(raw.drop_columns("basis"))
    made.gateway.time += DAY
    [report] = made.run(LONG)
    assert len(report.disagreements) == 1


def test_older_bars_on_another_basis_than_the_newest_are_reported(market: MakeMarket) -> None:
    """An earlier version joined two bases: nothing is multiplied, and a refresh cures it."""
    made = market(LONG)
    series, store = made.series[LONG], made.harness.store
    raw = store.read_raw(series)
    days = np.array(raw["session_date"].to_pylist())
    identity = store.identity(series)
    assert identity is not None
    older = rebased(raw.filter(pa.array(days < date(2024, 5, 1))), 4.0)
    store.save(series, identity, older, store.coverage(series))
    wanted = interval_between(calendar_named(CALENDAR), LONG, FIRST, date(2024, 5, 29))
    gone = interval_between(calendar_named(CALENDAR), LONG, date(2024, 4, 15), date(2024, 4, 18))
    made.gateway.time += DAY
    [report] = made.harness.run(Job(series, wanted=IntervalSet([gone]), refresh=True))
    assert [one.kind for one in report.disagreements] == [DisagreementKind.PRICE]
    assert found_in(made) == ()
    [report] = made.harness.run(Job(series, wanted=IntervalSet([wanted]), refresh=True))
    assert report.is_complete
    made.check_today()
    assert found_in(made) == ()


def test_a_refresh_makes_the_factor_one_and_drops_nothing(market: MakeMarket) -> None:
    """Where the gateway has no bars any more, the held ones stay and are multiplied."""
    made = market(SHORT, LONG)
    made.splits[EX] = 1 / 4
    made.gateway.time = EX + timedelta(hours=17)
    made.run(SHORT, LONG)
    lost = calendar_named(CALENDAR).day_starts_at(date(2024, 4, 20))
    rows = made.harness.store.rows(made.series[SHORT])

    def serve(request: BarRequest, bars: pa.Table) -> pa.Table | NoData | Response | GatewayError:
        kept = timestamps(bars) >= int(lost.timestamp() * 1_000_000)
        return made.serve(request, bars.filter(pa.array(kept)))

    made.gateway.mutate = serve
    wanted = interval_between(calendar_named(CALENDAR), SHORT, FIRST, date(2024, 5, 31))
    made.harness.run(Job(made.series[SHORT], wanted=IntervalSet([wanted]), refresh=True))
    made.check_today()
    store = made.harness.store
    assert store.rows(made.series[SHORT]) == rows
    raw = store.read_raw(made.series[SHORT])
    is_old = np.array(raw["session_date"].to_pylist()) < date(2024, 4, 20)
    assert set(basis_of(raw)[is_old].tolist()) == {0}
    assert set(basis_of(raw)[~is_old].tolist()) == {1}
    # The same bars on another basis are no revisions.
    assert made.harness.ledger.revisions.of("AAPL|5m") == []


def test_a_check_that_fails_is_noted_and_stops_no_load(market: MakeMarket) -> None:
    """The bars are saved, and compared on another day."""
    made = market(SHORT, LONG)

    def serve(request: BarRequest, bars: pa.Table) -> pa.Table | NoData | Response | GatewayError:
        if request.series.timeframe is LONG:
            return RequestRejectedError("no daily bars today")
        return made.serve(request, bars)

    made.gateway.mutate = serve
    made.gateway.time = TUESDAY + DAY
    noted = NotedTexts()
    part = interval_between(calendar_named(CALENDAR), SHORT, date(2024, 3, 1), date(2024, 4, 1))
    made.harness.run_with(noted, made.series[SHORT], part)
    assert any("the price basis could not be checked" in text for text in noted.texts)
    made.check_today()


def test_a_late_response_on_the_old_basis_is_not_shown(market: MakeMarket) -> None:
    """It was requested before the re-basing was found, and proves nothing about today's basis."""
    made = market(SHORT, LONG)
    made.splits[EX] = 1 / 4
    made.gateway.time = EX + timedelta(hours=17)
    series = made.series[SHORT]

    async def slow(request: BarRequest) -> None:
        if request.series.timeframe is SHORT:
            await asyncio.sleep(0.2)

    def serve(request: BarRequest, bars: pa.Table) -> pa.Table | NoData | Response | GatewayError:
        if request.series.timeframe is SHORT and not found_in(made):
            return bars  # of another server of the gateway, which is behind
        return made.serve(request, bars)

    made.gateway.before_response, made.gateway.mutate = slow, serve
    made.run(SHORT, LONG)
    made.check()
    made.gateway.before_response, made.gateway.mutate = None, made.serve
    for _ in range(3):
        made.gateway.time += DAY
        made.run(SHORT, LONG, requested_by=RequestedBy.PERSON)
        made.check()
    made.check_today()
    assert made.harness.store.read(series).num_rows


class _Life:
    """Loads of one stock in any order, with kills and lost ledgers, by one random seed."""

    def __init__(self, harness: MakeHarness, seed: int) -> None:
        self.rng = random.Random(seed)
        sets = [
            (SHORT, Timeframe.H1, LONG),
            (SHORT,),
            (LONG,),
            (Timeframe.H1, LONG, Timeframe.W1),
            (Timeframe.M15, Timeframe.W1),
            (Timeframe.H4,),
            (Timeframe.M1, LONG),
            (Timeframe.W1,),
        ]
        self.timeframes = self.rng.choice(sets)
        self.market = split_market(
            harness, self.timeframes, utc(2024, 5, 20, 21), first=FIRST, end=END
        )
        factors = [1 / 4, 20.0, 1 / 7, 2 / 3, 1 / 2, 1 / 1.05, 1.37, 0.8734, 1 / 40]
        self.rng.shuffle(factors)
        for days in self.rng.sample(range(30), self.rng.choice([0, 1, 1, 2, 3])):
            at = utc(2024, 5, 28, 4) + days * DAY
            if self.rng.random() < 0.3:
                at += timedelta(hours=self.rng.choice([5, 10, 12, 14]))
            self.market.splits[at] = factors.pop()

    def step(self) -> None:
        """Load something, and check what a reader sees."""
        harness = self.market.harness
        if self.rng.random() < 0.15:
            self.lose_ledger()
        chosen = self.rng.sample(self.timeframes, self.rng.randint(1, len(self.timeframes)))
        mode = self.rng.choice([Mode.TAIL, Mode.TAIL, Mode.FULL, Mode.BACKFILL])
        jobs = [self.job(timeframe, mode) for timeframe in chosen]
        stop = self.rng.randint(1, 12) if self.rng.random() < 0.3 else 10_000
        sent = harness.request_count

        async def stopped(_: BarRequest) -> None:
            if harness.request_count - sent >= stop:
                await harness.cancel()

        harness.gateway.before_response = stopped
        try:
            assert [report.error for report in harness.run(*jobs)] == [None] * len(jobs)
        except asyncio.CancelledError:
            assert stop < 10_000
        harness.gateway.before_response = None
        self.market.check()

    def job(self, timeframe: Timeframe, mode: Mode) -> Job:
        """Return a job by a mode, or for a part of the series."""
        series, requested_by = self.market.series[timeframe], self.rng.choice(list(RequestedBy))
        if self.rng.random() > 0.35:
            return Job(series, mode, requested_by=requested_by)
        first = FIRST + self.rng.randint(0, 70) * DAY
        end = first + self.rng.randint(7, 25) * DAY
        part = interval_between(calendar_named(CALENDAR), timeframe, first, end)
        return Job(series, wanted=IntervalSet([part]), requested_by=requested_by)

    def lose_ledger(self) -> None:
        """Delete the ledger, as a user or a disk does."""
        harness = self.market.harness
        harness.ledger.close()
        for suffix in ("", "-wal", "-shm"):
            harness.layout.ledger_beside(suffix).unlink(missing_ok=True)
        harness.ledger = Ledger(harness.layout.ledger)

    def become_whole(self) -> None:
        """Load everything each day until some days after the last split, and check the end."""
        market = self.market
        end = max([*market.splits, market.gateway.time + 2 * DAY]) + 6 * DAY
        while market.gateway.time < end:
            market.gateway.time += DAY
            jobs = (Job(series, Mode.FULL) for series in market.series.values())
            reports = market.harness.run(*jobs)
            market.check()
        for report in reports:
            assert not report.unexplained, report.summary
            assert not report.deferred, report.summary
        market.check_today()


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(n, marks=pytest.mark.slow) for n in range(3, 60))]
)
def test_a_reader_sees_one_basis_at_every_moment(harness: MakeHarness, seed: int) -> None:
    """Tails, gaps and backfills in any order, killed at random, the ledger lost in between."""
    life = _Life(harness, seed)
    for _ in range(40):
        life.market.gateway.time += timedelta(hours=life.rng.choice([1, 3, 6, 12, 20, 24, 24, 60]))
        life.step()
    life.become_whole()
