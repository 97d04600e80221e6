"""Errors cover nothing, stop only the series that they concern, and are recorded."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from ktrdr_pipelines.domain.bars import bars_between, with_basis
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Origin, Series
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.planning.jobs import Bounds, Mode, RequestedBy
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import (
    ConnectionLostError,
    DiskError,
    EntitlementError,
    ForeignIdentityError,
    GatewayError,
    GatewayTimeoutError,
    GatewayUnreachableError,
    PacingError,
    RequestRejectedError,
)
from ktrdr_pipelines.store.bars.bar_store import SaveResult
from ktrdr_pipelines.store.ledger.attempts import AttemptKind
from ktrdr_pipelines.store.ledger.ledger import series_key
from ktrdr_pipelines.sync.engine.writer import Batch, Commits
from ktrdr_pipelines.sync.runner import Job
from tests.support.fake_gateway import Mutation, dense_keys, stock, true_bars_of
from tests.support.loading import World

MakeWorld = Callable[..., World]
RTH = "XNYS.RTH"
JUNE = date(2024, 6, 3), date(2024, 6, 29)


def failing_at(error: GatewayError, *numbers: int) -> Mutation:
    """Return a mutation that fails the n-th requests, from 1; all if none is named."""
    count = iter(range(1, 10_000))

    def mutate(_: BarRequest, bars: pa.Table) -> pa.Table | GatewayError:
        return error if not numbers or next(count) in numbers else bars

    return mutate


@pytest.mark.parametrize(
    "kind", [GatewayTimeoutError, PacingError, RequestRejectedError, ConnectionLostError]
)
def test_an_error_covers_nothing(world: MakeWorld, kind: type[GatewayError]) -> None:
    """A series whose requests all fail stays unexplained, has attempts, and its load ends."""
    made = world(RTH, Timeframe.M1, *JUNE)
    made.harness.gateway.mutate = failing_at(kind("bars", code=1))
    report = made.load()
    assert not report.is_complete
    assert not made.harness.store.coverage(made.series)
    assert 3 <= len(report.failures) <= 8
    attempts = made.harness.ledger.attempts.of(series_key(made.series))
    assert {attempt.kind for attempt in attempts} == {AttemptKind.ERROR}
    assert attempts[0].next_try_at == made.harness.gateway.time + timedelta(minutes=5)


def test_attempts_are_deleted_when_their_interval_is_covered(world: MakeWorld) -> None:
    """A range that is loaded after a failure has no attempt left."""
    made = world(RTH, Timeframe.M1, *JUNE)
    made.harness.gateway.mutate = failing_at(RequestRejectedError("bars"), 3)
    report = made.load()
    assert len(report.failures) == 1
    assert not report.is_complete
    assert len(made.harness.ledger.attempts.of(series_key(made.series))) == 1
    made.harness.gateway.mutate = None
    report = made.load()
    assert report.is_complete
    assert report.requests == 1
    assert made.harness.ledger.attempts.of(series_key(made.series)) == []
    made.check_complete()


def test_a_missing_permission_stops_its_series_alone(world: MakeWorld) -> None:
    """An entitlement error is recorded as blocked for a day; other series continue."""
    made = world(RTH, Timeframe.M1, *JUNE)
    other = Series(stock("SPY"), Timeframe.H1)
    keys = dense_keys(RTH, Timeframe.H1, *JUNE)
    gateway = made.harness.gateway
    gateway.true_bars["SPY", Timeframe.H1] = true_bars_of(keys, Timeframe.H1, calendar_named(RTH))
    gateway.contract_ids["SPY"] = 756733

    def no_permission(request: BarRequest, bars: pa.Table) -> pa.Table | GatewayError:
        return EntitlementError("bars", code=162) if request.series.symbol == "AAPL" else bars

    gateway.mutate = no_permission
    wanted = IntervalSet([made.wanted])
    reports = made.harness.run(Job(made.series, wanted=wanted), Job(other, wanted=wanted))
    assert [report.is_complete for report in reports] == [False, True]
    assert len(reports[0].failures) <= 6
    attempts = made.harness.ledger.attempts.of(series_key(made.series))
    assert attempts[0].kind is AttemptKind.BLOCKED
    assert attempts[0].next_try_at == gateway.time + timedelta(days=1)


def test_a_lost_connection_is_reopened(world: MakeWorld) -> None:
    """A connection lost during a load takes one more request, and loses no bar."""
    made = world(RTH, Timeframe.M1, *JUNE)
    made.harness.gateway.mutate = failing_at(ConnectionLostError("bars"), 7)
    report = made.load()
    assert report.is_complete
    assert made.harness.gateway.opened == 2
    assert report.requests == 19 + 1
    made.check_complete()


def test_a_request_cancelled_inside_a_lost_connection_is_retried(world: MakeWorld) -> None:
    """A request cancelled by its connection neither ends the load nor hangs."""
    made = world(RTH, Timeframe.M1, *JUNE)

    async def cancel_once(_: BarRequest) -> None:
        if made.harness.request_count == 5:
            raise asyncio.CancelledError

    made.harness.gateway.before_response = cancel_once
    assert made.load().is_complete
    assert made.harness.gateway.opened == 2
    made.check_complete()


def test_an_unreachable_gateway_keeps_what_was_saved(world: MakeWorld) -> None:
    """The run ends with the error; bars of earlier responses are stored."""
    made = world(RTH, Timeframe.M1, *JUNE)
    made.harness.gateway.mutate = failing_at(GatewayUnreachableError("bars"), *range(8, 99))
    with pytest.raises(GatewayUnreachableError):
        made.load()
    assert made.harness.store.rows(made.series) == 7 * 390
    made.check()
    made.harness.gateway.mutate = None
    assert made.load().requests == 19 - 7
    made.check_complete()


def test_a_full_disk_ends_the_run_and_harms_no_file(world: MakeWorld) -> None:
    """A save that the system refuses is raised; existing files are unchanged."""
    made = world(RTH, Timeframe.D1, *JUNE)
    made.load()
    folder = made.harness.layout.series_folder("AAPL", Timeframe.D1)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    (folder / "all.parquet").rename(folder.parent / "kept")
    (folder.parent / "timeframe=1d").rmdir()
    (folder.parent / "timeframe=1d").write_text("in the way")
    with pytest.raises(DiskError):
        made.load()
    (folder.parent / "timeframe=1d").unlink()
    folder.mkdir()
    (folder.parent / "kept").rename(folder / "all.parquet")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert made.load().requests == 0


def test_bars_of_a_failed_write_are_saved_by_the_next() -> None:
    """No response is lost."""
    keys = dense_keys(RTH, Timeframe.D1, *JUNE)
    bars = with_basis(true_bars_of(keys, Timeframe.D1, calendar_named(RTH)).bars, 0)
    saved: list[int] = []
    full = iter([True, False])

    def save(batch: Batch) -> SaveResult:
        if next(full):
            raise DiskError("save")
        rows = batch.bars().num_rows
        saved.append(rows)
        return SaveResult(rows, 0, ())

    moments = iter(range(0, 100, 10))
    commits = Commits(
        threads=ThreadPoolExecutor(1),
        save=save,
        release=lambda _: None,
        saved=lambda: None,
        clock=lambda: next(moments),
    )
    commits.add(bars.slice(0, 5), Coverage())
    with pytest.raises(DiskError):
        asyncio.run(commits.commit_when_due())
    commits.add(bars.slice(5), Coverage())
    commits.commit()
    assert saved == [bars.num_rows]


def test_another_contract_is_refused_before_any_request(world: MakeWorld) -> None:
    """No bars are requested of a changed contract id; the error names both ids."""
    made = world(RTH, Timeframe.D1, *JUNE)
    made.load()
    request_count = made.harness.request_count
    made.harness.gateway.contract_ids["AAPL"] = 111
    wider = type(made.wanted)(made.wanted.start - timedelta(days=10), made.wanted.end)
    report = made.harness.load(made.series, wider)
    assert isinstance(report.error, ForeignIdentityError)
    assert "111" in str(report.error)
    assert "265598" in str(report.error)
    hours = Series(made.series.instrument, Timeframe.H1)
    assert isinstance(made.harness.load(hours, made.wanted).error, ForeignIdentityError)
    assert made.harness.request_count == request_count


@pytest.mark.parametrize("what", ["origin", "hours"])
def test_foreign_bars_are_refused_before_any_request(world: MakeWorld, what: str) -> None:
    """Simulated bars, or bars of other hours, are not saved into the files of a series."""
    made = world(RTH, Timeframe.D1, *JUNE)
    made.load()
    request_count = made.harness.request_count
    series = made.series
    if what == "origin":
        made.harness.gateway.origin = Origin.SIMULATED
    else:
        series = Series(replace(series.instrument, use_rth=False), series.timeframe)
    wider = type(made.wanted)(made.wanted.start - timedelta(days=10), made.wanted.end)
    assert isinstance(made.harness.load(series, wider).error, ForeignIdentityError)
    assert made.harness.request_count == request_count


def test_a_restated_bar_replaces_the_older_one_which_becomes_a_revision(world: MakeWorld) -> None:
    """An overlapping response has other volumes."""
    made = world(RTH, Timeframe.H1, *JUNE)
    days = [made.wanted.start + timedelta(days=n) for n in (0, 8, 10, 26)]
    for start, end in ((days[1], days[2]), (days[0], days[3])):
        true_bars = made.harness.true_bars(made.series)
        made.harness.load(made.series, type(made.wanted)(start, end))
        restated = true_bars.bars.set_column(
            true_bars.bars.schema.get_field_index("volume"),
            true_bars.bars.schema.field("volume"),
            pa.array([200.0] * true_bars.bars.num_rows),
        )
        made.harness.gateway.true_bars[made.series.symbol, Timeframe.H1] = replace(
            true_bars, bars=restated
        )
    revisions = made.harness.ledger.revisions.of(series_key(made.series))
    assert {revision.volume for revision in revisions} == {100.0}
    assert len(revisions) == bars_between(true_bars.bars, days[1], days[2]).num_rows
    assert set(made.harness.store.read(made.series)["volume"].to_pylist()) == {200.0}


def test_two_jobs_of_one_series_both_report(world: MakeWorld) -> None:
    """Jobs of one series run one after the other, and request each range once."""
    made = world(RTH, Timeframe.H1, *JUNE)
    wanted = IntervalSet([made.wanted])
    first, second = made.harness.run(
        Job(made.series, wanted=wanted), Job(made.series, Mode.FULL, wanted=wanted)
    )
    assert (first.requests, second.requests) == (1, 0)
    assert first.is_complete
    assert second.is_complete


def test_a_refusal_without_a_sent_request_is_no_request(world: MakeWorld) -> None:
    """A remembered refusal stops the series as the gateway's own does, and is not audited."""
    made = world(RTH, Timeframe.M1, *JUNE)
    error = EntitlementError("bars", reason="not sent", code=354)
    error.was_sent = False
    made.harness.gateway.mutate = failing_at(error)
    report = made.load()
    assert not report.is_complete
    assert report.requests == 0
    attempts = made.harness.ledger.attempts.of(series_key(made.series))
    assert {attempt.kind for attempt in attempts} == {AttemptKind.BLOCKED}


@pytest.mark.parametrize(("concurrency", "later"), [(2, 9), (9, 2), (1, 1)])
def test_as_many_requests_are_open_as_the_gateway_allows(
    world: MakeWorld, concurrency: int, later: int
) -> None:
    """The number of workers follows the gateway's concurrency, and everything is loaded."""
    made = world(RTH, Timeframe.M1, *JUNE)
    gateway = made.harness.gateway
    gateway.concurrency = concurrency
    open_now, seen = [0], []

    async def busy(_: BarRequest) -> None:
        open_now[0] += 1
        seen.append(open_now[0])
        for _ in range(5):
            await asyncio.sleep(0)
        open_now[0] -= 1
        if made.harness.request_count >= 9:
            gateway.concurrency = later

    gateway.before_response = busy
    assert made.load().is_complete
    assert max(seen) <= max(concurrency, later)
    assert max(seen[-3:]) <= later
    assert max(seen) >= min(max(concurrency, later), 5)
    made.check_complete()


@pytest.mark.parametrize("mode", [Mode.FULL, Mode.TAIL])
@pytest.mark.parametrize("kind", [GatewayTimeoutError, EntitlementError, RequestRejectedError])
def test_an_open_session_that_failed_is_not_complete(
    world: MakeWorld, kind: type[GatewayError], mode: Mode
) -> None:
    """Failed ranges of an open session are unexplained, and deferred ones are missing."""
    made = world(RTH, Timeframe.M1, *JUNE, now=datetime(2024, 6, 28, 15, tzinfo=UTC))
    yesterday = datetime(2024, 6, 28, 4, tzinfo=UTC)
    made.harness.load(made.series, type(made.wanted)(made.wanted.start, yesterday))
    made.harness.gateway.mutate = failing_at(kind("bars", code=354))
    bounds = Bounds(made.wanted.start, made.wanted.end)
    for requested_by, requests in ((RequestedBy.PERSON, True), (RequestedBy.SENSOR, False)):
        (report,) = made.harness.run(Job(made.series, mode, bounds, requested_by=requested_by))
        assert not report.is_complete, report.summary
        assert (
            bool(report.unexplained) is bool(report.failures) is bool(report.requests) is requests
        )
        assert bool(report.deferred) is not requests
        assert (report.unexplained | report.deferred).clip(made.wanted).length >= timedelta(hours=1)
        assert "complete" not in report.summary
    made.harness.gateway.mutate = None
    (report,) = made.harness.run(Job(made.series, mode, bounds))
    assert report.is_complete
    assert not report.unexplained


def test_an_instrument_without_data_is_not_complete_while_its_session_is_open(
    world: MakeWorld,
) -> None:
    """A gateway without any data leaves an open session unexplained."""
    made = world(RTH, Timeframe.M1, date(2024, 6, 28), date(2024, 6, 29), keys=np.empty(0, int))
    made.harness.gateway.true_bars[made.series.symbol, Timeframe.D1] = made.harness.true_bars(
        made.series
    )
    made.harness.gateway.time = datetime(2024, 6, 28, 15, tzinfo=UTC)
    report = made.load()
    assert not report.is_complete
    assert report.unexplained
    (attempt,) = made.harness.ledger.attempts.of(series_key(made.series))
    assert attempt.kind is AttemptKind.NO_DATA
    assert report.no_data_until == attempt.next_try_at is not None
