"""Loads under a clock offset: processes coordinate by real time, the market has its own."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest

from ktrdr_pipelines.domain.calendars.registry import Calendars, calendar_named
from ktrdr_pipelines.domain.planning.jobs import Bounds, RequestedBy
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.domain.planning.retry_schedule import AttemptKind
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import RequestRejectedError
from ktrdr_pipelines.gaps.index import GapIndex
from ktrdr_pipelines.store.ledger.ledger import series_key
from ktrdr_pipelines.sync.engine.source_session import RetryPolicy, SourceSession
from ktrdr_pipelines.sync.runner import Job, LoadManager
from tests.support.fake_gateway import FakeGateway, dense_keys
from tests.support.loading import World, no_sleep

MakeWorld = Callable[..., World]
JUNE = date(2024, 6, 3), date(2024, 6, 29)
MARKET = datetime(2024, 6, 28, 12, tzinfo=UTC)
OFFSET_S = -2 * 365 * 86_400.0
REAL = MARKET - timedelta(seconds=OFFSET_S)
"""Two years after the gateway's time, which a load without the offset would take for a gap."""


class RealClock:
    """A clock of real time, which a test sets."""

    def __init__(self) -> None:
        self.now = REAL

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def real() -> RealClock:
    """Return the clock of real time."""
    return RealClock()


@pytest.fixture
def june(world: MakeWorld) -> World:
    """Make a series of hourly bars, at a gateway whose clock is two years behind."""
    return world("XNYS.RTH", Timeframe.H1, *JUNE, now=MARKET)


def load(
    made: World,
    real: RealClock,
    *,
    offset_s: float = OFFSET_S,
    by: RequestedBy = RequestedBy.PERSON,
) -> SeriesReport:
    """Load everything from the start to now, under a clock offset."""
    retry_policy = RetryPolicy(
        max_retries=0, delay_s=0.0, sleep=no_sleep, clock=real, clock_offset_s=offset_s
    )
    gateway = made.harness.gateway
    manager = LoadManager(made.harness.layout, gateway.open, gateway.gateway, retry_policy)
    job = Job(made.series, bounds=Bounds(made.wanted.start), requested_by=by)
    return asyncio.run(manager.run([job]))[0]


def gaps_at(made: World, now: datetime) -> list[str]:
    """Return the first session dates of the gaps that the index finds at a moment."""
    gateway = made.harness.gateway.gateway
    series = replace(
        made.series, instrument=replace(made.series.instrument, start=made.wanted.start.date())
    )
    (found,) = GapIndex(made.harness.store, Calendars(), gateway).series_gaps([series], now)
    return [str(gap.interval.start.date()) for gap in found.gaps]


def test_a_retry_policy_with_one_clock_has_one_time() -> None:
    """An injected clock gives real and market time, unless an offset is given too."""
    assert RetryPolicy(clock=lambda: REAL).market_clock() == REAL
    assert RetryPolicy(clock=lambda: REAL, clock_offset_s=-60).market_clock() == REAL - timedelta(
        minutes=1
    )


def test_the_gateways_time_is_capped_at_market_time() -> None:
    """A gateway ahead of market time makes no bar final; the time of one behind is used."""
    gateway = FakeGateway({}, MARKET)

    async def now_with(offset_s: float) -> datetime:
        retry_policy = RetryPolicy(clock=lambda: REAL, clock_offset_s=offset_s)
        async with SourceSession(gateway.open, retry_policy) as source_session:
            assert source_session.now() == REAL + timedelta(seconds=offset_s)
            await source_session.source()
            return source_session.now()

    assert asyncio.run(now_with(0.0)) == MARKET
    assert asyncio.run(now_with(OFFSET_S)) == MARKET
    assert asyncio.run(now_with(OFFSET_S - 60)) == MARKET - timedelta(minutes=1)


def test_a_load_that_is_complete_leaves_no_gap_at_market_time(june: World, real: RealClock) -> None:
    """Without the offset, the two years after the gateway's time are gaps."""
    assert load(june, real).is_complete
    assert gaps_at(june, MARKET) == []
    assert gaps_at(june, REAL) != []


def test_requests_are_audited_by_real_time_with_the_offset(june: World, real: RealClock) -> None:
    """A row states when its request was sent, and the offset of market time."""
    load(june, real)
    rows = june.harness.ledger.requests.newest(100)
    assert {row.clock_offset_s for row in rows} == {OFFSET_S}
    assert {row.sent_at for row in rows} == {REAL}


def test_failed_attempts_are_retried_by_real_time(june: World, real: RealClock) -> None:
    """A change of market time does not bring the next attempt forward."""
    june.harness.gateway.mutate = lambda request, _: RequestRejectedError(str(request))
    load(june, real, by=RequestedBy.SENSOR)
    [attempt] = june.harness.ledger.attempts.of(series_key(june.series))
    assert attempt.kind is AttemptKind.ERROR
    assert attempt.last_at == REAL
    assert attempt.next_try_at == REAL + timedelta(minutes=5)
    june.harness.gateway.mutate = None
    assert load(june, real, offset_s=OFFSET_S + 3600, by=RequestedBy.SENSOR).requests == 0
    real.now += timedelta(minutes=5)
    assert load(june, real, by=RequestedBy.SENSOR).is_complete


def test_claims_expire_by_real_time(june: World, real: RealClock) -> None:
    """A claim lasts an hour of real time after it was made."""
    taken: list[tuple[int, int]] = []

    async def count_claims(_: BarRequest) -> None:
        ledger, key = june.harness.ledger, series_key(june.series)
        hour = timedelta(hours=1, seconds=1)
        taken.append(
            (len(ledger.claims.live(key, real.now)), len(ledger.claims.live(key, real.now + hour)))
        )

    june.harness.gateway.before_response = count_claims
    load(june, real)
    assert taken
    assert all(live and not later for live, later in taken), taken


def test_confirmed_empty_ranges_are_dated_by_market_time(world: MakeWorld, real: RealClock) -> None:
    """They expire by market time, so their proofs are dated by it."""
    calendar, gone = "XNYS.RTH", np.datetime64("2024-06-11")
    keys = dense_keys(calendar, Timeframe.H1, date(2024, 5, 1), date(2024, 7, 10))
    traded = calendar_named(calendar).days_of(keys) != gone
    made = world(calendar, Timeframe.H1, *JUNE, now=MARKET, keys=keys[traded])
    for _ in range(4):
        load(made, real)
        real.now += timedelta(days=1)
        made.harness.gateway.time += timedelta(days=1)
    proofs = made.harness.store.coverage(made.series).empty
    assert proofs
    assert all(MARKET - timedelta(hours=1) <= one.proved_at < REAL for one in proofs), proofs
