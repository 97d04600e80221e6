"""Whether a gateway may be tried, as all processes of a machine record and read it."""

import json
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.pacing.circuit_breaker import MOST_FAILURES, Availability, BreakerState
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from tests.ib.paced import Time

NOW = datetime(2026, 6, 12, 12, tzinfo=UTC)


def test_looking_creates_nothing(config: GatewayConfig) -> None:
    """A machine without state stays one."""
    with closing(RateLimiter.of(config)) as one:
        assert one.availability(NOW) == Availability()
        assert one.absence() is None
    assert not config.state_dir.exists()


def test_what_one_process_records_every_process_reads(rate_limiter: Any) -> None:
    """The start is kept until the gateway is found again; then the breaker closes too."""
    one, other = rate_limiter(), rate_limiter()
    one.note_absence(NOW, "nothing listens")
    other.note_absence(NOW + timedelta(minutes=2), "no response")
    told = one.availability(NOW + timedelta(minutes=3))
    assert (told.may_try, told.since) == (False, NOW)
    assert str(told) == "the gateway is away since 2026-06-12 12:00:00Z: no response"
    for _ in range(MOST_FAILURES):
        one.note_trouble(ill_with="it hung up")
    other.note_recovery(NOW + timedelta(minutes=4))
    assert one.availability(NOW + timedelta(minutes=4)) == Availability()
    assert one.vitals().breaker.state is BreakerState.CLOSED
    assert one.absence().ended_at == NOW + timedelta(minutes=4)
    other.note_recovery(NOW + timedelta(minutes=5))
    assert one.absence().ended_at == NOW + timedelta(minutes=4)


def test_an_absence_outlasts_a_restart_of_the_machine_and_an_open_breaker_does_not(
    rate_limiter: Any, time: Time
) -> None:
    """Real moments mean the same after it; seconds of another boot mean nothing."""
    before = rate_limiter(boot="yesterday")
    before.note_absence(NOW, "nothing listens")
    for _ in range(MOST_FAILURES):
        time.now += 1
        before.note_trouble(ill_with="it hung up")
    assert "circuit breaker open" in str(before.availability(NOW + timedelta(hours=1)))
    time.now = 30.0
    after = rate_limiter(boot="today")
    assert after.absence() == before.absence()
    assert not after.availability(NOW + timedelta(minutes=9)).may_try
    assert after.availability(NOW + timedelta(hours=1)).may_try


@pytest.mark.parametrize(
    ("other", "is_same"),
    [({"host": "localhost"}, True), ({"port": 2}, False), ({"host": "gate.example"}, False)],
)
def test_an_absence_belongs_to_one_gateway(
    config: GatewayConfig, other: dict[str, Any], *, is_same: bool
) -> None:
    """Under whatever name of this machine; another port is another gateway."""
    with closing(RateLimiter.of(config)) as one:
        one.note_absence(NOW, "nothing listens")
    with closing(RateLimiter.of(replace(config, **other))) as one:
        assert one.availability(NOW).may_try is not is_same


def test_a_breaker_that_an_earlier_version_recorded_goes_on(rate_limiter: Any, time: Time) -> None:
    """It wrote the length of its pause as well, which follows from the failures."""
    one = rate_limiter()
    value = {"state": "open", "failures": 6, "failed_at": 4990.0, "until": 5050.0, "pause_s": 60.0}

    def record(database: Any) -> None:
        row = ("boot", "breaker", json.dumps({**value, "depth": 0, "reason": "it hung up"}))
        database.execute("INSERT INTO memory VALUES (?, ?, ?)", row)

    one.remember(lambda _, database: record(database))
    breaker = one.vitals().breaker
    assert (breaker.until, breaker.pause_s) == (5050.0, 60.0)
    assert str(one.availability(NOW)) == (
        "circuit breaker open after 6 consecutive failures (last: it hung up); next attempt in 50 s"
    )
