"""Loads by several runners: claims, reported waits, ranges due later, and clock offsets."""

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from filelock import FileLock

from ktrdr_pipelines.domain.calendars.registry import Calendars, calendar_named
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.gaps import GapReason
from ktrdr_pipelines.domain.planning.jobs import Bounds, Job, RequestedBy
from ktrdr_pipelines.domain.planning.reports import Quiet, SeriesReport
from ktrdr_pipelines.domain.planning.responses import BarRequest, BarSource, NoData
from ktrdr_pipelines.domain.planning.retry_schedule import AttemptKind
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import (
    ClientIdInUseError,
    ConnectionLostError,
    GatewayError,
    GatewayRestingError,
    GatewayTimeoutError,
    GatewayUnreachableError,
    RequestRejectedError,
)
from ktrdr_pipelines.gaps.index import GapIndex
from ktrdr_pipelines.ib.protocol.transport import DisconnectReason, TransportError
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.store.claim_owners import CLAIM_S, claiming
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.ledger import Ledger, series_key
from ktrdr_pipelines.sync.engine.source_session import RetryPolicy, SourceSession
from ktrdr_pipelines.sync.runner import REPORTED_FROM_S, LoadManager, Waits
from tests.support.fake_gateway import NO_DATA_TEXT, FakeGateway, dense_keys, utc
from tests.support.loading import Harness, World, no_sleep

MakeWorld = Callable[..., World]

JUNE = date(2024, 6, 3), date(2024, 6, 29)


def test_two_loaders_at_once_request_nothing_twice(world: MakeWorld) -> None:
    """Two loaders of a series share its chunks, and both end complete."""
    made = world("XNYS.RTH", Timeframe.M1, *JUNE)

    async def linger(_: BarRequest) -> None:
        for _turn in range(5):
            await asyncio.sleep(0)

    made.harness.gateway.before_response = linger
    reports: list[SeriesReport] = []
    start = threading.Barrier(2)
    saved = threading.Semaphore(0)

    async def until_saved(_: float) -> None:
        await asyncio.to_thread(saved.acquire)

    class SavedSignal(Quiet):
        def saved(self, series: Series) -> None:
            saved.release(2)

    def load() -> None:
        gateway = made.harness.gateway
        retry_policy = RetryPolicy(max_retries=1, delay_s=0, sleep=until_saved, clock=gateway.now)
        manager = LoadManager(
            made.harness.layout, gateway.open, gateway.gateway, retry_policy, SavedSignal()
        )
        start.wait()
        job = Job(made.series, wanted=IntervalSet([made.wanted]))
        reports.extend(asyncio.run(manager.run([job])))
        saved.release(100)

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [report.is_complete for report in reports] == [True, True]
    ends = [request.ends_at for request in made.harness.gateway.requests]
    assert len(ends) == len(set(ends)) == 19
    made.check_complete()


def test_a_chunk_that_another_run_saved_is_not_requested(world: MakeWorld) -> None:
    """A chunk that another run saved after it was planned is skipped."""
    made = world("XNYS.RTH", Timeframe.M1, *JUNE)
    other = Harness(
        made.harness.layout, FakeGateway(made.harness.gateway.true_bars, made.harness.gateway.time)
    )
    oldest = Interval(made.wanted.start, made.wanted.start.replace(day=8))

    async def let_other_load(_: BarRequest) -> None:
        if not other.request_count:
            await other.manager().run([Job(made.series, wanted=IntervalSet([oldest]))])

    made.harness.gateway.before_response = let_other_load
    assert made.load().requests == 19 - 5
    assert other.request_count == 5
    made.check_complete()


def _claim_and_wait(root: Path, series: Series, interval: Interval, ready: Path) -> None:
    layout = StoreLayout(root)
    ledger = Ledger(layout.ledger)
    with claiming(layout, ledger) as claimant:
        assert claimant.claim_each(series, [interval], interval.end)
        ready.write_text("claimed")
        signal.pause()


def test_the_claims_of_a_killed_process_are_dropped_at_once(
    world: MakeWorld, folders: Iterator[Path]
) -> None:
    """An interval that a killed process had claimed is requested without waiting."""
    made = world("XNYS.RTH", Timeframe.H1, *JUNE)
    ready = next(folders)
    context = multiprocessing.get_context("fork")
    args = (made.harness.layout.root, made.series, made.wanted, ready)
    process = context.Process(target=_claim_and_wait, args=args)
    process.start()
    never = threading.Event()
    while not ready.exists():
        assert process.is_alive(), "the claiming process has died"
        never.wait(0.02)
    clock = made.wanted.end
    made.harness.gateway.time = clock
    slept: list[float] = []

    async def kill_at_first_sleep(seconds: float) -> None:
        if not slept:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        slept.append(seconds)
        await no_sleep(seconds)

    gateway = made.harness.gateway
    retry_policy = RetryPolicy(
        max_retries=1, delay_s=0, sleep=kill_at_first_sleep, clock=gateway.now
    )
    manager = LoadManager(made.harness.layout, gateway.open, gateway.gateway, retry_policy)
    wanted = IntervalSet([made.wanted])
    (report,) = asyncio.run(manager.run([Job(made.series, wanted=wanted)]))
    assert report.is_complete
    assert len(slept) == 1
    made.check_complete()


def test_claims_and_locks_are_released_at_the_end(world: MakeWorld) -> None:
    """A finished load leaves no claim and no lock file of its owner."""
    made = world("XNYS.RTH", Timeframe.M1, *JUNE)
    made.load()
    key = series_key(made.series)
    assert made.harness.ledger.claims.live(key, made.harness.gateway.time) == []
    assert not list(made.harness.layout.locks.glob("owner-*"))


def test_lock_files_of_killed_owners_are_removed(world: MakeWorld) -> None:
    """Old lock files of dead owners are removed; those of live owners and new ones stay."""
    made = world("XNYS.RTH", Timeframe.H1, *JUNE)
    locks = made.harness.layout.locks
    dead, living, young = (locks / f"owner-{name}.lock" for name in ("dead", "living", "young"))
    for path in (dead, living, young):
        path.touch()
    with FileLock(living):
        for path in (dead, living):
            os.utime(path, (1, 1))
        made.load()
        assert set(locks.glob("owner-*")) == {living, young}


def test_a_claim_outlasts_the_longest_wait_for_a_permit() -> None:
    """A claim lasts longer than an owner can wait for a permit through a pacing pause."""
    limits = IbLimitsRegistry
    longest_pause_s = limits.PACING_PAUSE_S.value.longest_s
    # Those that may be open are fewer than those that a window lets through.
    assert limits.MAX_OPEN_HISTORICAL.value < limits.WINDOW_MOST.value - limits.WINDOW_RESERVE.value
    assert 2 * (longest_pause_s + limits.WINDOW_S.value) < CLAIM_S


NOW = utc(2026, 1, 5, 14, 30)


class Clock:
    """A clock that a test sets."""

    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Return a clock."""
    return Clock()


@pytest.fixture
def reported() -> list[tuple[str, float]]:
    """Return a list of what was reported, with the seconds from NOW at which it ends."""
    return []


@pytest.fixture
def waits(reported: Any, clock: Clock) -> Waits:
    """Return the waits under test."""
    return Waits(lambda why, until: reported.append((why, (until - NOW).total_seconds())), clock)


def test_a_shared_wait_is_reported_once(waits: Waits, reported: Any, clock: Clock) -> None:
    """Several requests wait one after another for the same reason."""
    for _ in range(45):
        waits("circuit breaker open", 300)
        clock.now += timedelta(seconds=1)
    assert reported == [("circuit breaker open", 300)]


def test_a_wait_that_takes_longer_or_begins_again_is_reported_again(
    waits: Waits, reported: Any, clock: Clock
) -> None:
    """A wait is reported again when its end moves or when it starts again."""
    waits("circuit breaker open", 30)
    waits("circuit breaker open", 120)
    clock.now += timedelta(seconds=150)
    waits("circuit breaker open", 15)
    assert reported == [
        ("circuit breaker open", 30),
        ("circuit breaker open", 120),
        ("circuit breaker open", 165),
    ]


def test_two_reasons_are_two_waits(waits: Waits, reported: Any) -> None:
    """Waits for two reasons are both reported."""
    waits("circuit breaker open", 60)
    waits("the link is lost", 60)
    assert [why for why, _ in reported] == ["circuit breaker open", "the link is lost"]


def test_a_short_wait_is_not_reported(waits: Waits, reported: Any) -> None:
    """A wait below the reporting threshold is not reported."""
    waits("a moment", REPORTED_FROM_S - 1)
    assert reported == []


def test_a_wait_for_an_open_circuit_breaker_is_reported(reported: Any, waits: Waits) -> None:
    """A load reports the wait for the circuit breaker before it waits, and no short retry."""
    resting = GatewayRestingError(
        "connect", reason="circuit breaker open after 5 failures in a row"
    )
    resting.retry_in_s = 540.0
    errors = [GatewayTimeoutError("bars", reason="no answer in 30 s"), resting]
    slept: list[tuple[float, int]] = []

    @asynccontextmanager
    async def opened() -> Any:
        yield object()

    async def sleep(seconds: float) -> None:
        slept.append((seconds, len(reported)))

    async def request(_: Any) -> str:
        if errors:
            raise errors.pop(0)
        return "bars"

    async def run() -> str:
        retry_policy = RetryPolicy(sleep=sleep, jitter=lambda: 0.0)
        async with SourceSession(opened, retry_policy, waits=waits) as source_session:
            return await source_session.ask(request)

    assert asyncio.run(run()) == "bars"
    assert reported == [("connect: circuit breaker open after 5 failures in a row", 540.0)]
    assert slept == [(2.0, 0), (540.0, 1)]


def test_an_absent_gateway_ends_a_run_that_may_not_wait_at_once() -> None:
    """Nothing listens: retries could only delay the answer. A lost connection is opened again."""
    slept: list[float] = []
    is_up, lost = [False, True, False, True], [True, False]

    @asynccontextmanager
    async def opened() -> Any:
        if not is_up.pop(0):
            cause = TransportError(DisconnectReason.REFUSED)
            raise GatewayUnreachableError("connect", reason="nothing listens there") from cause
        yield object()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def request(_: Any) -> str:
        if lost.pop(0):
            raise ConnectionLostError("bars", reason="the gateway closed the connection")
        return "bars"

    async def ask() -> str:
        retry_policy = RetryPolicy(sleep=sleep, jitter=lambda: 0.0)
        async with SourceSession(opened, retry_policy) as source_session:
            return await source_session.ask(request)

    with pytest.raises(GatewayUnreachableError, match="nothing listens"):
        asyncio.run(ask())
    assert slept == []
    assert asyncio.run(ask()) == "bars"
    assert slept == [2.0, 4.0]


def test_alternating_reasons_are_reported_once_each() -> None:
    """Timeouts and refused client ids that alternate while a run waits are reported once each."""
    clock = Clock()
    reasons: list[str] = []
    kinds = cycle([GatewayTimeoutError, ClientIdInUseError])

    @asynccontextmanager
    async def refused() -> AsyncIterator[BarSource]:
        raise next(kinds)("connect to it", reason="no connection")
        yield

    async def sleep(seconds: float) -> None:
        clock.now += timedelta(seconds=seconds)

    async def main() -> None:
        retry_policy = RetryPolicy(wait_s=120, sleep=sleep, clock=lambda: clock.now)
        async with SourceSession(
            refused, retry_policy, waits=lambda why, _: reasons.append(why)
        ) as source_session:
            with pytest.raises(GatewayError):
                await source_session.source()

    asyncio.run(main())
    assert len(reasons) == 2


RTH = "XNYS.RTH"

DAY = date(2024, 6, 11)


def gaps_of(made: World) -> list[tuple[GapReason, Interval, datetime | None]]:
    """Return the gaps of the series in the gap index."""
    harness = made.harness
    index = GapIndex(harness.store, harness.ledger.calendars(), harness.gateway.gateway)
    (found,) = index.series_gaps([made.series], harness.gateway.time)
    return [
        (gap.reason, gap.interval, gap.next_try_at)
        for gap in found.gaps
        if made.wanted.overlaps(gap.interval)
    ]


def session() -> Interval:
    """Return the interval of the session under test."""
    (one,) = calendar_named(RTH).sessions(DAY, DAY + timedelta(days=1))
    return Interval(one.opens_at, one.closes_at)


def made_of(world: MakeWorld) -> World:
    """Make a world of five weeks of hourly bars."""
    now = datetime(2024, 7, 1, 15, tzinfo=UTC)
    return world(RTH, Timeframe.H1, date(2024, 5, 20), date(2024, 6, 22), now=now)


def no_data(request: BarRequest, bars: pa.Table) -> pa.Table | NoData:
    """Return no data for requests of hours of the newest week."""
    if request.series.timeframe is Timeframe.H1 and request.ends_at > session().start:
        return NoData(request, NO_DATA_TEXT)
    return bars


def test_ranges_without_bars_are_unconfirmed_until_a_time(world: MakeWorld) -> None:
    """The report, the gap index and a load without requests name the ranges and the time."""
    made = made_of(world)
    made.harness.gateway.mutate = no_data
    report = made.load()
    assert not report.is_complete
    assert report.unconfirmed
    assert report.unexplained.covers(session())
    assert report.unconfirmed.covers(session())
    assert report.confirmed_at is not None
    later = report.confirmed_at - made.harness.gateway.time
    assert timedelta(minutes=14) < later < timedelta(days=2)
    found = [one for one in gaps_of(made) if session().start in one[1]]
    assert [reason for reason, _, _ in found] in ([GapReason.UNCONFIRMED], [GapReason.CONTRADICTED])
    assert found[0][2] == report.confirmed_at
    request_count = made.harness.request_count
    job = Job(made.series, wanted=IntervalSet([made.wanted]), requested_by=RequestedBy.SENSOR)
    (again,) = made.harness.run(job)
    assert made.harness.request_count == request_count
    assert (again.confirmed_at, again.unconfirmed) == (report.confirmed_at, report.unconfirmed)


def test_a_complete_load_has_nothing_to_confirm(world: MakeWorld) -> None:
    """Without unconfirmed ranges there is no time of the next confirmation."""
    report = made_of(world).load()
    assert report.is_complete
    assert (report.confirmed_at, report.unconfirmed) == (None, IntervalSet())


def test_the_gap_index_has_a_sparse_session_with_its_time(world: MakeWorld) -> None:
    """The session is covered, counts as missing, and states when it is requested once more."""
    made = made_of(world)

    def thin(request: BarRequest, bars: pa.Table) -> pa.Table:
        if request.series.timeframe is not Timeframe.H1:
            return bars
        of_day = pc.equal(bars["session_date"], pa.scalar(DAY))
        few = bars.filter(of_day)
        ends = pa.concat_tables([few.slice(0, 1), few.slice(max(few.num_rows - 1, 1))])
        return pa.concat_tables([bars.filter(pc.invert(of_day)), ends]).sort_by("ts")

    made.harness.gateway.mutate = thin
    report = made.load()
    assert [part.start.date() for part in report.sparse] == [DAY]
    assert not report.is_complete
    ((reason, interval, due),) = gaps_of(made)
    assert (reason, interval) == (GapReason.SPARSE, session())
    assert due is not None
    assert due >= made.harness.gateway.time + timedelta(minutes=14)
    assert report.next_try_at == due
    assert f"requested once more at {due:%Y-%m-%d %H:%MZ}" in report.summary


# --- loads under a clock offset ---------------------------------------------------------------


MARKET = datetime(2024, 6, 28, 12, tzinfo=UTC)
OFFSET_S = -2 * 365 * 86_400.0
REAL = MARKET - timedelta(seconds=OFFSET_S)
"""Two years after the gateway's time, which a load without the offset would take for a gap."""


@pytest.fixture
def real() -> Clock:
    """Return the clock of real time."""
    return Clock(REAL)


@pytest.fixture
def june(world: MakeWorld) -> World:
    """Make a series of hourly bars, at a gateway whose clock is two years behind."""
    return world("XNYS.RTH", Timeframe.H1, *JUNE, now=MARKET)


def load_at(
    made: World,
    real: Clock,
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


def test_a_load_that_is_complete_leaves_no_gap_at_market_time(june: World, real: Clock) -> None:
    """Without the offset, the two years after the gateway's time are gaps."""
    assert load_at(june, real).is_complete
    assert gaps_at(june, MARKET) == []
    assert gaps_at(june, REAL) != []


def test_requests_are_audited_by_real_time_with_the_offset(june: World, real: Clock) -> None:
    """A row states when its request was sent, and the offset of market time."""
    load_at(june, real)
    rows = june.harness.ledger.requests.newest(100)
    assert {row.clock_offset_s for row in rows} == {OFFSET_S}
    assert {row.sent_at for row in rows} == {REAL}


def test_failed_attempts_are_retried_by_real_time(june: World, real: Clock) -> None:
    """A change of market time does not bring the next attempt forward."""
    june.harness.gateway.mutate = lambda request, _: RequestRejectedError(str(request))
    load_at(june, real, by=RequestedBy.SENSOR)
    [attempt] = june.harness.ledger.attempts.of(series_key(june.series))
    assert attempt.kind is AttemptKind.ERROR
    assert attempt.last_at == REAL
    assert attempt.next_try_at == REAL + timedelta(minutes=5)
    june.harness.gateway.mutate = None
    assert load_at(june, real, offset_s=OFFSET_S + 3600, by=RequestedBy.SENSOR).requests == 0
    real.now += timedelta(minutes=5)
    assert load_at(june, real, by=RequestedBy.SENSOR).is_complete


def test_claims_expire_by_real_time(june: World, real: Clock) -> None:
    """A claim lasts an hour of real time after it was made."""
    taken: list[tuple[int, int]] = []

    async def count_claims(_: BarRequest) -> None:
        ledger, key = june.harness.ledger, series_key(june.series)
        hour = timedelta(hours=1, seconds=1)
        taken.append(
            (len(ledger.claims.live(key, real.now)), len(ledger.claims.live(key, real.now + hour)))
        )

    june.harness.gateway.before_response = count_claims
    load_at(june, real)
    assert taken
    assert all(live and not later for live, later in taken), taken


def test_confirmed_empty_ranges_are_dated_by_market_time(world: MakeWorld, real: Clock) -> None:
    """They expire by market time, so their proofs are dated by it."""
    calendar, gone = "XNYS.RTH", np.datetime64("2024-06-11")
    keys = dense_keys(calendar, Timeframe.H1, date(2024, 5, 1), date(2024, 7, 10))
    traded = calendar_named(calendar).days_of(keys) != gone
    made = world(calendar, Timeframe.H1, *JUNE, now=MARKET, keys=keys[traded])
    for _ in range(4):
        load_at(made, real)
        real.now += timedelta(days=1)
        made.harness.gateway.time += timedelta(days=1)
    proofs = made.harness.store.coverage(made.series).empty
    assert proofs
    assert all(MARKET - timedelta(hours=1) <= one.proved_at < REAL for one in proofs), proofs
