"""Failed attempts: how long each defers requests, which loads ignore it, and what ends it."""

from collections.abc import Callable
from datetime import date, datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest

from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.planning.jobs import Bounds, Mode, RequestedBy
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.domain.planning.retry_schedule import AttemptKind, retry_in
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import (
    ContractUnknownError,
    EntitlementError,
    GatewayError,
    GatewayTimeoutError,
    RequestRejectedError,
)
from ktrdr_pipelines.store.ledger.attempts import Attempt
from ktrdr_pipelines.store.ledger.ledger import series_key
from ktrdr_pipelines.sync.engine.failed_attempts import deferred, next_try
from ktrdr_pipelines.sync.runner import Job
from tests.support.fake_gateway import utc
from tests.support.loading import World

MakeWorld = Callable[..., World]
RTH = "XNYS.RTH"
JUNE = date(2024, 6, 3), date(2024, 6, 29)
HOUR = timedelta(hours=1)


def sensor(made: World, mode: Mode = Mode.FULL) -> SeriesReport:
    """Load as a sensor does."""
    bounds = Bounds(start=made.wanted.start, end=made.wanted.end)
    return made.harness.run(Job(made.series, mode, bounds, requested_by=RequestedBy.SENSOR))[0]


def person(made: World) -> SeriesReport:
    """Load as a user does."""
    return made.harness.run(Job(made.series, bounds=Bounds(made.wanted.start, made.wanted.end)))[0]


def attempts_of(made: World) -> list[Attempt]:
    """Return the recorded attempts."""
    return made.harness.ledger.attempts.of(series_key(made.series))


def always(error: GatewayError) -> Callable[..., GatewayError]:
    """Return a mutation that fails every request."""
    return lambda *_: error


def failed_at(made: World, count: int) -> list[datetime]:
    """Return the times of so many failed attempts of a sensor.

    Loads in between, the last a minute before the next attempt is due, request nothing and leave
    its time as it is.
    """
    times = []
    for _ in range(count):
        times.append(made.harness.gateway.time)
        before = attempts_of(made)
        sensor(made)
        (failed,) = attempts_of(made)
        assert failed.failures == (before[0].failures if before else 0) + 1
        due = failed.next_try_at
        assert due is not None
        step = (due - times[-1]) / 3
        for moment in (times[-1] + step, times[-1] + 2 * step, due - timedelta(minutes=1)):
            made.harness.gateway.time = moment
            sensor(made)
            assert attempts_of(made) == [failed]
        made.harness.gateway.time = due
    return times


def requested_at(made: World, *, days: int, every: timedelta) -> list[datetime]:
    """Return the times at which a sensor made requests, of loads at regular times."""
    times = []
    for _ in range(timedelta(days=days) // every):
        request_count = made.harness.request_count
        sensor(made)
        if made.harness.request_count > request_count:
            times.append(made.harness.gateway.time)
        made.harness.gateway.time += every
    return times


def test_the_delay_doubles_with_each_failure_up_to_a_day(world: MakeWorld) -> None:
    """Five minutes, doubled with each failure up to a day, and nothing in between."""
    made = world(RTH, Timeframe.H1, *JUNE)
    made.harness.gateway.mutate = always(RequestRejectedError("bars", code=321))
    times = failed_at(made, 12)
    minutes = [(later - earlier) // timedelta(minutes=1) for earlier, later in pairwise(times)]
    assert minutes == [5, 10, 20, 40, 80, 160, 320, 640, 1280, 1440, 1440]
    assert attempts_of(made)[0].failures == len(times)


def test_a_user_is_not_deferred(world: MakeWorld) -> None:
    """A load by a user immediately requests what is deferred for sensors."""
    made = world(RTH, Timeframe.H1, *JUNE)
    made.harness.gateway.mutate = always(RequestRejectedError("bars"))
    sensor(made)
    made.harness.gateway.mutate = None
    report = sensor(made)
    assert (report.requests, report.is_complete) == (0, False)
    assert report.deferred == report.unexplained
    assert report.next_try_at == made.harness.gateway.time + timedelta(minutes=5)
    assert "deferred until" in report.summary
    assert person(made).is_complete
    assert attempts_of(made) == []
    made.check_complete()


def test_a_failure_defers_its_own_interval_alone(world: MakeWorld) -> None:
    """Other missing ranges are still requested."""
    made = world(RTH, Timeframe.M1, *JUNE)
    failed = iter([False, True])
    made.harness.gateway.mutate = lambda _, bars: (
        RequestRejectedError("bars") if next(failed, False) else bars
    )
    assert sensor(made).requests == 19
    assert made.harness.store.rows(made.series) == 18 * 390
    assert len(made.harness.store.coverage(made.series).bars) == 2
    report = sensor(made)
    assert report.requests == 0
    assert report.deferred == report.unexplained
    made.check()
    made.harness.gateway.time += timedelta(minutes=5)
    assert sensor(made).requests == 1
    made.check_complete()


def test_an_open_session_that_fails_is_not_requested_for_each_new_minute(world: MakeWorld) -> None:
    """New minutes of a session whose last request failed wait with its older ones."""
    made = world(RTH, Timeframe.M1, *JUNE, now=utc(2024, 6, 28, 15))
    made.harness.load(made.series, type(made.wanted)(made.wanted.start, utc(2024, 6, 28, 4)))
    made.harness.gateway.mutate = always(GatewayTimeoutError("bars"))
    request_count = 0
    for _ in range(60):
        before = made.harness.request_count
        sensor(made, Mode.TAIL)
        request_count += made.harness.request_count > before
        made.harness.gateway.time += timedelta(minutes=1)
    assert request_count == 4
    made.harness.gateway.mutate = None
    made.harness.gateway.time += timedelta(hours=12)
    assert sensor(made, Mode.TAIL).is_complete
    assert attempts_of(made) == []


def test_a_success_resets_the_count(world: MakeWorld) -> None:
    """An interval that fails again after it was loaded is retried after five minutes."""
    made = world(RTH, Timeframe.H1, *JUNE)
    made.harness.gateway.mutate = always(RequestRejectedError("bars"))
    for _ in range(3):
        person(made)
    assert attempts_of(made)[0].failures == 3
    made.harness.gateway.mutate = None
    person(made)
    made.harness.gateway.mutate = always(RequestRejectedError("bars"))
    later = type(made)(
        made.harness,
        made.series,
        type(made.wanted)(made.wanted.start, made.wanted.end + timedelta(days=14)),
    )
    person(later)
    (attempt,) = attempts_of(made)
    assert attempt.failures == 1
    assert attempt.next_try_at == made.harness.gateway.time + timedelta(minutes=5)


def test_a_load_of_another_range_keeps_attempts(world: MakeWorld) -> None:
    """An interval that a load does not want is not thereby covered."""
    made = world(RTH, Timeframe.M1, *JUNE)
    made.harness.gateway.mutate = lambda request, bars: (
        RequestRejectedError("bars") if request.ends_at.day == 12 else bars
    )
    person(made)
    (before,) = attempts_of(made)
    day = type(made.wanted)(utc(2024, 6, 20, 4), utc(2024, 6, 21, 4))
    made.harness.load(made.series, day)
    assert attempts_of(made) == [before]


def test_a_contract_without_any_bar_is_not_requested_every_session(
    world: MakeWorld,
) -> None:
    """A day, doubled up to thirty: 120 days of new sessions take a handful of attempts."""
    made = world(RTH, Timeframe.D1, date(2024, 1, 2), date(2024, 12, 31), keys=np.empty(0, int))
    made.harness.gateway.time = utc(2024, 6, 3, 22)
    times = requested_at(made, days=120, every=timedelta(days=1))
    days = [(later - earlier).days for earlier, later in pairwise(times)]
    assert days == [1, 2, 4, 8, 16, 30, 30]
    assert {attempt.kind for attempt in attempts_of(made)} == {AttemptKind.NO_DATA}
    assert not made.harness.store.coverage(made.series)


def test_a_missing_permission_is_probed_once_a_day(world: MakeWorld) -> None:
    """Sensors make one request a day until the first response."""
    made = world(RTH, Timeframe.H1, *JUNE)
    made.harness.gateway.mutate = always(EntitlementError("bars", code=162))
    times = requested_at(made, days=5, every=HOUR)
    assert {later - earlier for earlier, later in pairwise(times)} == {timedelta(days=1)}
    assert made.harness.request_count == len(times) == 5
    assert {attempt.kind for attempt in attempts_of(made)} == {AttemptKind.BLOCKED}
    made.harness.gateway.mutate = None
    assert sensor(made).is_complete
    assert attempts_of(made) == []


def test_only_a_user_overrides_a_remembered_refusal(world: MakeWorld) -> None:
    """A user's requests are marked as probes, a sensor's are not."""
    made = world(RTH, Timeframe.D1, *JUNE)
    sent: list[BarRequest] = made.harness.gateway.requests
    sensor(made)
    assert [request.probes for request in sent] == [False]
    made.harness.load(made.series, type(made.wanted)(utc(2024, 5, 1), made.wanted.end))
    assert [request.probes for request in sent] == [False, True]


def test_a_refusal_that_lasts_minutes_is_deferred_for_minutes(world: MakeWorld) -> None:
    """A competing session of the login ends sooner than a missing subscription."""
    made = world(RTH, Timeframe.H1, *JUNE)
    error = EntitlementError("bars", reason="Trading TWS session from a different IP address")
    error.retry_in_s = 300.0
    made.harness.gateway.mutate = always(error)
    report = sensor(made)
    assert not report.is_complete
    assert attempts_of(made)[0].next_try_at == made.harness.gateway.time + timedelta(minutes=5)


def test_the_delay_of_an_unknown_contract_doubles_up_to_a_week(world: MakeWorld) -> None:
    """The delay begins at an hour, and the attempt states what to do."""
    made = world(RTH, Timeframe.D1, *JUNE, now=utc(2024, 6, 20, 22))
    assert sensor(made).is_complete
    request_count = made.harness.request_count
    times: list[datetime] = []

    async def unknown(_: object) -> int:
        times.append(made.harness.gateway.time)
        raise ContractUnknownError(
            "contract of AAPL", reason="200 No security definition", code=200
        )

    made.harness.gateway.contract_id = unknown  # type: ignore[method-assign]
    made.harness.gateway.time = utc(2024, 6, 21, 22)
    failed_at(made, 11)
    hours = [(later - earlier) // HOUR for earlier, later in pairwise(times)]
    assert hours == [1, 2, 4, 8, 16, 32, 64, 128, 168, 168]
    report = sensor(made)
    assert made.harness.request_count == request_count
    (attempt,) = attempts_of(made)
    assert attempt.kind is AttemptKind.UNKNOWN
    for text in ("contract 265598 before", "ktrdr universe set AAPL ended=true", "delisted=DATE"):
        assert text in attempt.error
    assert not report.is_complete
    del made.harness.gateway.contract_id
    made.harness.gateway.time += timedelta(days=7)
    assert sensor(made).is_complete
    assert attempts_of(made) == []


def test_a_blocked_attempt_defers_the_whole_series(world: MakeWorld) -> None:
    """Other attempts defer their own interval alone."""
    made = world(RTH, Timeframe.H1, *JUNE)
    now, ledger, key = utc(2024, 7, 1), made.harness.ledger, series_key(made.series)
    part = type(made.wanted)(utc(2024, 6, 4), utc(2024, 6, 5))
    own, whole = IntervalSet([part]), IntervalSet([made.wanted])
    for kind, expected in (("error", own), ("probed", own), ("blocked", whole)):
        ledger.attempts.record(
            key, part, kind, error="x", code=None, next_try_at=now + HOUR, at=now
        )
        attempts = [one for one in ledger.attempts.of(key) if one.kind == kind]
        assert deferred(attempts, whole, now) == expected
        assert next_try(attempts, now) == now + HOUR
        assert not deferred(attempts, whole, now + HOUR)
        assert next_try(attempts, now + HOUR) is None
    assert ledger.attempts.hasten(now) == 3
    assert all(one.is_due(now) for one in ledger.attempts.all()[key])


@pytest.mark.parametrize("kind", AttemptKind)
def test_delays_of_every_kind_grow_within_limits(kind: AttemptKind) -> None:
    """They never decrease, begin at five minutes or more and end at thirty days or less."""
    times = [retry_in(kind, attempts) for attempts in (*range(1, 60), 10**6)]
    assert times == sorted(times)
    assert times[0] >= timedelta(minutes=5)
    assert times[-1] <= timedelta(days=30)
