"""Waits of a load are told: for what, until when, each once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from itertools import cycle
from typing import Any

import pytest

from ktrdr_pipelines.domain.planning.responses import BarSource
from ktrdr_pipelines.errors import (
    ClientIdInUseError,
    GatewayError,
    GatewayRestingError,
    GatewayTimeoutError,
)
from ktrdr_pipelines.sync.engine.source_session import RetryPolicy, SourceSession
from ktrdr_pipelines.sync.runner import TOLD_FROM_S, Waits
from tests.support.fake_gateway import utc

NOW = utc(2026, 1, 5, 14, 30)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Give a clock."""
    return Clock()


@pytest.fixture
def told() -> list[tuple[str, float]]:
    """Give a list of what was told, with the seconds from NOW at which it ends."""
    return []


@pytest.fixture
def waits(told: Any, clock: Clock) -> Waits:
    """Give what is tested."""
    return Waits(lambda why, until: told.append((why, (until - NOW).total_seconds())), clock)


def test_a_wait_that_many_share_is_told_once(waits: Waits, told: Any, clock: Clock) -> None:
    """Questions come to wait one after another, and what they wait for is one thing."""
    for _ in range(45):
        waits("it rests", 300)
        clock.now += timedelta(seconds=1)
    assert told == [("it rests", 300)]


def test_a_wait_that_takes_longer_or_begins_anew_is_told_again(
    waits: Waits, told: Any, clock: Clock
) -> None:
    """What was told would be wrong else."""
    waits("it rests", 30)
    waits("it rests", 120)
    clock.now += timedelta(seconds=150)
    waits("it rests", 15)
    assert told == [("it rests", 30), ("it rests", 120), ("it rests", 165)]


def test_two_reasons_are_two_waits(waits: Waits, told: Any) -> None:
    """Each is told."""
    waits("it rests", 60)
    waits("the link is lost", 60)
    assert [why for why, _ in told] == ["it rests", "the link is lost"]


def test_a_short_wait_is_not_told(waits: Waits, told: Any) -> None:
    """It is over before anybody wonders."""
    waits("a moment", TOLD_FROM_S - 1)
    assert told == []


def test_waiting_for_a_gateway_that_rests_is_told(told: Any, waits: Waits) -> None:
    """A load that waits for the breaker says so before it waits, and not of every retry."""
    resting = GatewayRestingError("connect", reason="it failed 5 times in a row and is left alone")
    resting.retry_in_s = 540.0
    errors = [GatewayTimeoutError("bars", reason="no answer in 30 s"), resting]
    slept: list[tuple[float, int]] = []

    @asynccontextmanager
    async def opened() -> Any:
        yield object()

    async def sleep(seconds: float) -> None:
        slept.append((seconds, len(told)))

    async def question(_: Any) -> str:
        if errors:
            raise errors.pop(0)
        return "bars"

    async def run() -> str:
        retry_policy = RetryPolicy(sleep=sleep, jitter=lambda: 0.0)
        async with SourceSession(opened, retry_policy, waits=waits) as source_session:
            return await source_session.ask(question)

    assert asyncio.run(run()) == "bars"
    assert told == [("connect: it failed 5 times in a row and is left alone", 540.0)]
    assert slept == [(2.0, 0), (540.0, 1)]


def test_reasons_that_take_turns_are_told_once_each() -> None:
    """A gateway that is silent, then refuses an id, and is silent again, while a run waits."""
    clock = Clock()
    heard: list[str] = []
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
            refused, retry_policy, waits=lambda why, _: heard.append(why)
        ) as source_session:
            with pytest.raises(GatewayError):
                await source_session.source()

    asyncio.run(main())
    assert len(heard) == 2
