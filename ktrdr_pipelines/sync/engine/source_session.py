"""One source of bars, kept open while a load runs, and the policy of retries.

No connection is opened before the first request: a load that finds its store complete never
contacts a gateway. Not here: the gateway client (``ib.source``), the rate limiter (``ib.pacing``),
retries of later runs (``domain.planning.retry_schedule``).
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import count
from types import TracebackType
from typing import Self, TypeVar

from ktrdr_pipelines.clock import Clock, system_now
from ktrdr_pipelines.domain.planning.responses import BarSource
from ktrdr_pipelines.errors import (
    ClientIdInUseError,
    ConnectionLostError,
    GatewayError,
    GatewayTimeoutError,
    GatewayUnreachableError,
    OutageError,
    PacingError,
)
from ktrdr_pipelines.ib.pacing.rate_limiter import OnWait, ignore_wait
from ktrdr_pipelines.ib.protocol.transport import NO_LISTENER, TransportError
from ktrdr_pipelines.limits import IbLimitsRegistry

_LINK_LOST = 1100
_WITHOUT_RESPONSE = (
    GatewayTimeoutError,
    ConnectionLostError,
    OutageError,
    GatewayUnreachableError,
    ClientIdInUseError,
)
"""Errors of a request that the gateway has not responded to."""
_MOST_LOST = 8
"""Connections in a row that one request may lose in a run that waits for its gateway."""


def retry_delay_s(
    error: GatewayError,
    attempts: int,
    *,
    max_retries: int,
    base_delay_s: float,
    jitter: float = 0.0,
) -> float | None:
    """Return the seconds to wait before the next attempt, or None if no retry is worth it.

    The delay doubles with each attempt, up to a maximum that depends on the error.

    Args:
        error: the error of the last attempt.
        attempts: the number of attempts made, at least 1.
        max_retries: attempts allowed after the first.
        base_delay_s: delay after the first attempt.
        jitter: from 0 to 1, the share of half the delay that is added, so that requests that
            failed together are not all retried at the same moment.
    """
    if not error.retry or attempts > max_retries:
        return None
    limits, first_s = IbLimitsRegistry, base_delay_s
    if isinstance(error, ClientIdInUseError):
        first_s = max(base_delay_s, limits.CLIENT_ID_PAUSE_S.value)
    backoff = limits.RETRY_PAUSE_S.value.starting(first_s)
    if isinstance(error, PacingError):
        backoff = limits.PACING_PAUSE_S.value
    return max(backoff.delay_s(attempts, jitter), error.retry_in_s)


T = TypeVar("T")
OpenSource = Callable[[], AbstractAsyncContextManager[BarSource]]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how soon a failed request is retried, and by which clock.

    ``wait_s`` is how long a run waits for a gateway that is away: it accepts no connection, has
    lost its own to IB, or its circuit breaker is open. 0 means that it does not wait.
    ``first_wait_s`` is the same before the run has received anything; None means ``wait_s``.
    ``clock`` gives real time; market time is ``clock_offset_s`` ahead of it.
    """

    max_retries: int = 3
    delay_s: float = 2.0
    wait_s: float = 0.0
    first_wait_s: float | None = None
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], datetime] = field(default=system_now)
    clock_offset_s: float = 0.0
    jitter: Callable[[], float] = field(default=random.random)

    def market_clock(self) -> datetime:
        """Return market time, which is real time plus the offset."""
        if not self.clock_offset_s:
            return self.clock()
        return Clock(self.clock_offset_s, self.clock).market_now()

    def delay_after(self, error: GatewayError, attempts: int) -> float | None:
        """Return the seconds to wait after so many attempts, or None if no retry is worth it."""
        return retry_delay_s(
            error,
            attempts,
            max_retries=self.max_retries,
            base_delay_s=self.delay_s,
            jitter=self.jitter(),
        )

    def longest_wait_s(self, *, has_received: bool) -> float:
        """Return how long a run waits for a gateway that is away."""
        is_first = not has_received and self.first_wait_s is not None
        return self.first_wait_s or 0.0 if is_first else self.wait_s


@dataclass(slots=True)
class _Absence:
    """The time for which a run still waits for a gateway that is away.

    ``paused_s`` is what it has waited: a clock that was set back does not prolong the wait.
    """

    wait_s: float
    until: datetime
    paused_s: float = 0.0
    reported: set[str] = field(default_factory=set)

    def left_s(self, now: datetime) -> float:
        """Return the seconds that are left; 0 or less if the wait is over."""
        return min(self.wait_s - self.paused_s, (self.until - now).total_seconds())


class SourceSession:
    """One source of bars, opened when first needed and reopened after its connection is lost.

    A gateway that is away (restarting, in its nightly reset, without its connection to IB) is
    waited for as long as the policy says, for all requests together; that is no failed attempt of
    any request. ``waits`` is called before each retry with the reason of the wait and its seconds.
    """

    def __init__(
        self,
        open_source: OpenSource,
        retry_policy: RetryPolicy | None = None,
        *,
        waits: OnWait = ignore_wait,
    ) -> None:
        self.retry_policy = retry_policy or RetryPolicy()
        self._open_source, self._waits = open_source, waits
        self._stack = AsyncExitStack()
        self._source: BarSource | None = None
        self._opening = asyncio.Lock()
        self._timeouts_in_a_row = 0
        self._final_error: GatewayError | None = None
        self._was_connected = self._has_received = False
        self._absence: _Absence | None = None
        self._absences = 0

    def __repr__(self) -> str:
        state = "closed" if self._source is None else f"open to {self._source.gateway}"
        return f"SourceSession({state})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._source = None
        await self._stack.aclose()

    def now(self) -> datetime:
        """Return the gateway's time while one is connected, but never later than market time.

        By the clock of a gateway that is ahead, bars would be final before they are over.
        """
        here = self.retry_policy.market_clock()
        return min(self._source.now(), here) if self._source else here

    def gateway_now(self) -> datetime:
        """Return the gateway's time, even if ahead, by which statements are kept apart."""
        return self._source.now() if self._source else self.retry_policy.market_clock()

    def market_now(self) -> datetime:
        """Return market time by this machine's clock, by which confirmed empty ranges age."""
        return self.retry_policy.market_clock()

    @property
    def concurrency(self) -> int:
        """How many requests for bars are worth having open at once now."""
        return (
            IbLimitsRegistry.CONCURRENCY.value if self._source is None else self._source.concurrency
        )

    async def source(self) -> BarSource:
        """Return the open source, opening one if there is none.

        Raises:
            GatewayError: no connection was made within the time that the run may wait.
        """
        async with self._opening:
            if self._final_error is not None:
                raise self._final_error
            if self._source is None:
                self._source = await self._opened()
            return self._source

    async def _opened(self) -> BarSource:
        """Open a source, waiting for the gateway if the policy allows; one request waits for all.

        A run that may not wait ends at once if no program listens when it first connects. A lost
        connection, or one that the gateway closes at once, is another matter: requests that are
        retried open one again.

        While a gateway holds the client ids of lost connections, only a few ids are tried, with
        growing pauses, and not again for each request.
        """
        for attempts in count(1):
            try:
                source = await self._stack.enter_async_context(self._open_source())
            except GatewayError as error:
                has_no_id = isinstance(error, ClientIdInUseError)
                if error.retry and self._may_wait:
                    await self._wait_for_gateway(error, attempts)
                    continue
                if not error.retry or not has_no_id:
                    if _found_no_listener(error) and not self._was_connected:
                        self._final_error = error
                    raise
                pause_s = self.retry_policy.delay_after(error, attempts)
                if pause_s is None:
                    self._final_error = error
                    raise
                if attempts == 1:
                    self._waits(_why_not_connected(error, 0.0), pause_s)
            else:
                self._was_connected = True
                return source
            await self.retry_policy.sleep(pause_s)
        raise AssertionError("attempts end with a source or an error")

    @property
    def _may_wait(self) -> bool:
        """Whether the policy waits for a gateway that is away."""
        return self.retry_policy.longest_wait_s(has_received=self._has_received) > 0

    async def _wait_for_gateway(self, error: GatewayError, attempts: int) -> None:
        """Pause before the next attempt while the gateway is away; raise if the wait is over.

        The wait begins with the first error after a response, whichever request has it.

        Args:
            error: the error of the last attempt.
            attempts: the number of attempts made, at least 1.
        """
        policy, now = self.retry_policy, self.retry_policy.clock()
        if self._absence is None:
            wait_s = policy.longest_wait_s(has_received=self._has_received)
            self._absence = _Absence(wait_s, now + timedelta(seconds=wait_s))
        absence = self._absence
        left_s = absence.left_s(now)
        if left_s <= 0:
            self._final_error = _gave_up(error, absence.wait_s)
            raise self._final_error
        pause_s = IbLimitsRegistry.CONNECT_PAUSE_S.value.delay_s(attempts)
        pause_s = min(max(pause_s, error.retry_in_s), left_s)
        if (kind := type(error).__name__) not in absence.reported:
            absence.reported.add(kind)
            self._waits(_why_not_connected(error, left_s), max(left_s, pause_s))
        self._absences += 1
        before = absence.paused_s
        await policy.sleep(pause_s)
        # Requests that pause at once wait the same time, which counts once.
        absence.paused_s = max(absence.paused_s, before + pause_s)

    async def ask(
        self,
        request: Callable[[BarSource], Awaitable[T]],
        *,
        but_after: tuple[type[GatewayError], ...] = (),
    ) -> T:
        """Make a request to the source, retry it after temporary errors, and return its response.

        Args:
            request: makes the request once.
            but_after: errors after which a different request is better than a retry.

        Raises:
            GatewayError: the last error, after all retries or if a retry cannot help.
        """
        attempts = lost = 0
        absences, has_reconnected = self._absences, False
        while True:
            attempts += 1
            try:
                response = await self._once(request)
            except GatewayError as error:
                if error is self._final_error or isinstance(error, but_after):
                    raise
                if self._absences != absences:
                    attempts, absences = 1, self._absences  # the gateway was away, then it failed
                if self._may_wait and _is_away(error):
                    lost += 1
                    await self._wait_for_gateway(error, lost)
                    attempts, absences = 0, self._absences
                    continue
                if not isinstance(error, _WITHOUT_RESPONSE):
                    self._absence = None
                delay_s = self._delay_after(error, attempts)
                if delay_s is None:
                    if has_reconnected or not self._is_half_open(error):
                        raise
                    has_reconnected, delay_s = True, self.retry_policy.delay_s
                self._waits(_why(error), delay_s)
            else:
                self._absence, self._has_received = None, True
                return response
            await self.retry_policy.sleep(delay_s)

    def _is_half_open(self, error: GatewayError) -> bool:
        """Return whether timeouts have closed a connection that may have been dead for long.

        A new connection shows it: while the gateway is away, there is none.
        """
        return self._may_wait and isinstance(error, GatewayTimeoutError) and self._source is None

    def _delay_after(self, error: GatewayError, attempts: int) -> float | None:
        """Return the seconds before the next attempt of a request, or None for no attempt.

        A run that waits for its gateway repeats what a lost connection has cost, whatever the
        number of retries, but not for ever: a request may itself end the connection.
        """
        policy = self.retry_policy
        if self._may_wait and isinstance(error, ConnectionLostError):
            policy = replace(policy, max_retries=max(policy.max_retries, _MOST_LOST))
        return policy.delay_after(error, attempts)

    async def _once(self, request: Callable[[BarSource], Awaitable[T]]) -> T:
        source = await self.source()
        try:
            response = await request(source)
        except (ConnectionLostError, GatewayUnreachableError):
            await self._drop(source)
            raise
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            await self._drop(source)
            raise ConnectionLostError(
                "request to the gateway", reason="it was cancelled from inside the connection"
            ) from error
        except GatewayTimeoutError:
            self._timeouts_in_a_row += 1
            if self._timeouts_in_a_row > self.retry_policy.max_retries:
                await self._drop(source)
            raise
        self._timeouts_in_a_row = 0
        return response

    async def _drop(self, source: BarSource) -> None:
        """Close a lost source once, however many requests failed with it."""
        async with self._opening:
            if self._source is source:
                self._source = None
                self._timeouts_in_a_row = 0
                stack, self._stack = self._stack, AsyncExitStack()
                await stack.aclose()


def _is_away(error: GatewayError) -> bool:
    """Return whether a request failed because the gateway, not the request, is in trouble.

    A lost link to IB (1100) is one; a data farm that is reported broken concerns a few requests.
    """
    if isinstance(error, OutageError):
        return error.code == _LINK_LOST
    return isinstance(error, GatewayUnreachableError) and error.retry


def _gave_up(error: GatewayError, wait_s: float) -> GatewayError:
    """Return the error of a run that has waited for its gateway without success.

    A request's own error, or a timeout, becomes one about the gateway, which ends the run: it is no
    failed attempt of a series.
    """
    if isinstance(error, GatewayUnreachableError | ClientIdInUseError):
        return error
    made = GatewayUnreachableError(
        "wait for the gateway",
        reason=f"{error.reason or error.what}; waited for {wait_s:.0f} s",
        hint=error.hint,
    )
    made.__cause__ = error
    return made


def _found_no_listener(error: GatewayError) -> bool:
    """Return whether no program was reached at all, so that retries could only delay the answer."""
    cause = error.__cause__
    return isinstance(cause, TransportError) and cause.disconnect_reason in NO_LISTENER


def _why(error: GatewayError) -> str:
    """Return the reason of an error, the same for all requests that fail with it."""
    if isinstance(error, GatewayUnreachableError):
        return f"{error.what}: {error.reason}"
    return error.reason or error.what


def _why_not_connected(error: GatewayError, left_s: float) -> str:
    """Return why a run waits for a connection, and for how long at most."""
    why = _why(error)
    if isinstance(error, ClientIdInUseError):
        ids = error.reason if error.code else f"{error.what}: {error.reason}"
        why = f"{ids}; the gateway may still hold the old connection"
    return f"{why}; trying again for {left_s:.0f} s" if left_s > 0 else why


def _is_cancelled() -> bool:
    """Return whether the task itself was cancelled, not a future inside a lost connection."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
