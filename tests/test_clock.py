"""The clocks: real time and market time."""

from datetime import UTC, datetime, timedelta

from ktrdr_pipelines.clock import Clock, system_now
from ktrdr_pipelines.settings import load_settings

REAL = datetime(2026, 6, 12, 12, tzinfo=UTC)


def test_without_an_offset_both_are_the_same() -> None:
    """There is no offset by default."""
    clock = Clock(real=lambda: REAL)
    assert clock.real_now() == clock.market_now() == REAL
    assert clock.moved_now() is None
    assert load_settings({}).clock == Clock()


def test_an_offset_moves_market_time_alone() -> None:
    """A negative offset is a market time in the past."""
    clock = Clock(-86_400.0, lambda: REAL)
    assert clock.real_now() == REAL
    assert clock.market_now() == clock.moved_now() == REAL - timedelta(days=1)
    assert clock.market_at(REAL + timedelta(hours=1)) == REAL - timedelta(hours=23)
    assert str(clock) == (
        "market time is offset by -86400 s (KTRDR_CLOCK_OFFSET_S); it is now "
        "2026-06-11T12:00:00Z for the market"
    )
    assert "offset by +1.500 s" in str(Clock(1.5, lambda: REAL))


def test_real_time_is_that_of_this_machine() -> None:
    """It is in UTC, and advances."""
    first = system_now()
    assert first.tzinfo is UTC
    assert first <= Clock().real_now()
