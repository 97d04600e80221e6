"""Waiting for a gateway that is away, for all requests of a run together."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ktrdr_pipelines.errors import (
    ConnectionLostError,
    GatewayError,
    GatewayRestingError,
    GatewayTimeoutError,
    GatewayUnreachableError,
    OutageError,
)
from ktrdr_pipelines.ib.protocol.transport import DisconnectReason, TransportError
from ktrdr_pipelines.sync.engine.source_session import RetryPolicy, SourceSession

LONG_S, SHORT_S = 7200.0, 60.0


def refused() -> GatewayError:
    """Return the error of a port without a program."""
    error = GatewayUnreachableError("connect", reason="nothing listens there")
    error.__cause__ = TransportError(DisconnectReason.REFUSED)
    return error


def hanging() -> GatewayError:
    """Return the error of a port that accepts, without a handshake."""
    return GatewayTimeoutError("connect", reason="no answer in 30 s")


def lost() -> GatewayError:
    """Return the error of a connection that ends while a request is open."""
    return ConnectionLostError("bars", reason="the gateway closed the connection")


def resting() -> GatewayError:
    """Return the error of an open circuit breaker."""
    error = GatewayRestingError("bars", reason="circuit breaker open")
    error.retry_in_s = 600.0
    return error


def no_link() -> GatewayError:
    """Return the error of a gateway without its connection to IB."""
    return OutageError("bars", reason="the gateway has no connection to IB", code=1100)


def no_farm() -> GatewayError:
    """Return the error of a broken data farm."""
    return OutageError("bars", reason="historical data farm is broken")


def silent() -> GatewayError:
    """Return the error of a request without a response."""
    return GatewayTimeoutError("bars", reason="no answer in 30 s")


Fault = Callable[[], GatewayError]


@dataclass
class Restarting:
    """A gateway that fails between two moments of a run, by a clock that only pauses advance.

    ``again_s`` are the moments between which it fails once more. ``connecting`` and
    ``requesting`` are how it fails meanwhile; None where it does not.
    """

    away_s: tuple[float, float]
    connecting: Fault | None = None
    requesting: Fault | None = None
    first_wait_s: float = SHORT_S
    retries: int = 3
    again_s: tuple[float, float] = (0.0, 0.0)
    passed_s: float = 0.0
    connections: int = 0
    waits: list[tuple[str, float]] = field(default_factory=list)

    def _fail(self, fault: Fault | None) -> None:
        is_away = any(one[0] <= self.passed_s < one[1] for one in (self.away_s, self.again_s))
        if fault is not None and is_away:
            raise fault()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Any]:
        self.connections += 1
        self._fail(self.connecting)
        yield self

    async def pause(self, seconds: float) -> None:
        self.passed_s += seconds
        await asyncio.sleep(0)

    async def bars(self, _: Any) -> str:
        self._fail(self.requesting)
        return "bars"

    def run(self, *pauses_s: float) -> list[Any]:
        """Make one request, and another after each pause; return responses and errors."""
        policy = RetryPolicy(
            max_retries=self.retries,
            wait_s=LONG_S,
            first_wait_s=self.first_wait_s,
            sleep=self.pause,
            clock=lambda: datetime(2026, 1, 5, tzinfo=UTC) + timedelta(seconds=self.passed_s),
            jitter=lambda: 0.0,
        )

        async def main() -> list[Any]:
            results: list[Any] = []
            async with SourceSession(
                self.open, policy, waits=lambda why, wait_s: self.waits.append((why, wait_s))
            ) as session:
                for pause_s in (0.0, *pauses_s):
                    self.passed_s += pause_s
                    try:
                        results.append(await session.ask(self.bars))
                    except GatewayError as error:
                        results.append(error)
            return results

        return asyncio.run(main())


@pytest.mark.parametrize("retries", [0, 3])
@pytest.mark.parametrize(
    ("connecting", "requesting"),
    [(refused, lost), (hanging, lost), (refused, silent), (None, resting), (None, no_link)],
    ids=["refuses", "hangs", "half-open", "breaker", "lost link"],
)
def test_a_run_that_has_received_bars_outlasts_a_reset(
    connecting: Fault | None, requesting: Fault, retries: int
) -> None:
    """However the gateway is away for an hour and a half, the request gets its response."""
    gateway = Restarting((10.0, 5400.0), connecting, requesting, retries=retries)
    assert gateway.run(20.0) == ["bars", "bars"]
    assert 5400.0 <= gateway.passed_s < 6100.0
    told = [why for why, wait_s in gateway.waits if wait_s > 600.0]
    assert len(told) == 1, gateway.waits
    assert "trying again for 7200 s" in told[0]


def test_a_first_connection_is_waited_for_a_short_time() -> None:
    """Before anything was received, no gateway may be there at all."""
    gateway = Restarting((0.0, float("inf")), refused)
    (error,) = gateway.run()
    assert isinstance(error, GatewayUnreachableError)
    assert gateway.passed_s == SHORT_S
    assert gateway.waits == [
        ("connect: nothing listens there; trying again for 60 s", SHORT_S),
    ]


@pytest.mark.parametrize(
    ("connecting", "requesting"),
    [(refused, lost), (hanging, lost), (None, no_link), (None, resting)],
)
def test_a_run_gives_up_once_for_all_requests(connecting: Fault | None, requesting: Fault) -> None:
    """After the wait the error ends the run: later requests get it at once."""
    gateway = Restarting((10.0, float("inf")), connecting, requesting)
    first, second, third = gateway.run(20.0, 0.0)
    assert first == "bars"
    assert isinstance(second, GatewayUnreachableError)
    assert third is second
    assert 7200.0 <= gateway.passed_s <= 7250.0


@pytest.mark.parametrize(
    ("requesting", "longest_s"), [(lost, 400.0), (silent, 60.0), (no_farm, 60.0)]
)
def test_a_request_that_fails_at_a_good_gateway_is_no_absence(
    requesting: Fault, longest_s: float
) -> None:
    """The gateway accepts every connection: after some attempts the request has failed."""
    gateway = Restarting((10.0, float("inf")), None, requesting)
    _, error = gateway.run(20.0)
    assert type(error) is type(requesting())
    assert gateway.passed_s <= 20.0 + longest_s


def test_each_absence_has_the_whole_wait() -> None:
    """A response between two absences ends the first one."""
    gateway = Restarting((10.0, 7000.0), refused, lost, again_s=(8000.0, 15_000.0))
    assert gateway.run(20.0, 1000.0) == ["bars", "bars", "bars"]
    assert gateway.passed_s >= 15_000.0
    assert len([why for why, wait_s in gateway.waits if wait_s > 600.0]) == 2


def test_without_a_wait_nothing_is_waited_for() -> None:
    """The wait of the first connection may be 0 as well."""
    gateway = Restarting((0.0, float("inf")), refused, first_wait_s=0.0)
    (error,) = gateway.run()
    assert isinstance(error, GatewayUnreachableError)
    assert gateway.passed_s == 0.0
    assert gateway.connections == 1
