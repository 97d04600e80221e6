"""One source of bars, kept open while a load runs, and the policy of retries.

The one policy of how often and how soon a failed request is sent again.

Keeping a source of bars open while a load runs, and asking it with patience.

Nothing is opened before the first question: a load that finds its store complete never bothers a
gateway.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
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
    PacingError,
)
from ktrdr_pipelines.ib.pacing.rate_limiter import OnWait, untold
from ktrdr_pipelines.limits import IbLimitsRegistry

LONGEST_DELAY_S = 60.0
"""Longest wait after an error that is not about pacing."""


def retry_delay_s(
    error: GatewayError,
    attempts: int,
    *,
    max_retries: int,
    base_delay_s: float,
    jitter: float = 0.0,
) -> float | None:
    """Give the seconds to wait before another try, or None where none is worth it.

    The wait doubles with each try, up to a longest that depends on the error.

    Args:
        error: what the last try ended with.
        tries: how many tries there were, at least 1.
        max_retries: tries allowed after the first.
        base_delay_s: wait after the first.
        jitter: from 0 to 1, how much of half the wait is added, so that many who failed together
            do not come back together.
    """
    if not error.retry or attempts > max_retries:
        return None
    first_s, longest_s = base_delay_s, max(LONGEST_DELAY_S, base_delay_s)
    if isinstance(error, PacingError):
        first_s, longest_s = IbLimitsRegistry.PACING_PAUSE_S.value
    elif isinstance(error, ClientIdInUseError):
        first_s = max(base_delay_s, IbLimitsRegistry.CLIENT_ID_PAUSE_S.value)
    delay_s = min(first_s * 2.0 ** (attempts - 1), longest_s)
    return max(delay_s * (1 + jitter / 2), error.retry_in_s)


T = TypeVar("T")
OpenSource = Callable[[], AbstractAsyncContextManager[BarSource]]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how soon a failed question is asked again, by which clock.

    ``wait_s`` is how long a run waits for a gateway that lets it connect, each time that it needs
    a connection; 0 is not at all. ``clock`` gives real time; market time is ``clock_offset_s``
    ahead of it.
    """

    max_retries: int = 3
    delay_s: float = 2.0
    wait_s: float = 0.0
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], datetime] = field(default=system_now)
    clock_offset_s: float = 0.0
    jitter: Callable[[], float] = field(default=random.random)

    def market_clock(self) -> datetime:
        """Return the time of the market, which is real time unless an offset moves it."""
        return Clock(self.clock_offset_s, self.clock).market_now()

    def delay_after(self, error: GatewayError, attempts: int) -> float | None:
        """Give the seconds to wait after so many tries, or None where no more are worth it."""
        return retry_delay_s(
            error,
            attempts,
            max_retries=self.max_retries,
            base_delay_s=self.delay_s,
            jitter=self.jitter(),
        )

    def pause_before_connecting(
        self, error: GatewayError, attempts: int, left_s: float
    ) -> float | None:
        """Give the seconds to wait before another try to connect, or None where there is none.

        Args:
            error: what the last one ended with.
            tries: how many there were, at least 1.
            left_s: what is left of ``wait_s``.
        """
        if not self.wait_s:
            return self.delay_after(error, attempts)
        first_s, longest_s = IbLimitsRegistry.CONNECT_PAUSE_S.value
        pause_s = max(min(first_s * 2.0 ** (attempts - 1), longest_s), error.retry_in_s)
        return min(pause_s, left_s) if left_s > 0 else None


class SourceSession:
    """One source of bars, opened when first needed and opened anew when it is lost.

    ``waits`` is told what is waited for before another try, and how many seconds.
    """

    def __init__(
        self,
        open_source: OpenSource,
        retry_policy: RetryPolicy | None = None,
        *,
        waits: OnWait = untold,
    ) -> None:
        self.retry_policy = retry_policy or RetryPolicy()
        self._open_source, self._waits = open_source, waits
        self._stack = AsyncExitStack()
        self._source: BarSource | None = None
        self._opening = asyncio.Lock()
        self._timeouts_in_a_row = 0
        self._final_error: GatewayError | None = None

    def __repr__(self) -> str:
        state = "closed" if self._source is None else f"open to {self._source.gateway}"
        return f"SourceKeeper({state})"

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

        A gateway whose clock is ahead would make bars final that are not over.
        """
        here = self.retry_policy.market_clock()
        return min(self._source.now(), here) if self._source else here

    def gateway_now(self) -> datetime:
        """Return the gateway's clock as it is, by which its statements are told apart in time."""
        return self._source.now() if self._source else self.retry_policy.market_clock()

    def market_now(self) -> datetime:
        """Return the market's time on this machine, by which proofs of emptiness age."""
        return self.retry_policy.market_clock()

    @property
    def is_open(self) -> bool:
        """Say whether a gateway is connected."""
        return self._source is not None

    @property
    def concurrency(self) -> int:
        """How many requests for bars it is worth to have open at once now."""
        return (
            IbLimitsRegistry.CONCURRENCY.value if self._source is None else self._source.concurrency
        )

    async def source(self) -> BarSource:
        """Give the open source, opening one where there is none.

        Raises:
            GatewayError: no connection came about, though the run waited as long as it may.
        """
        async with self._opening:
            if self._source is None:
                self._source = await self._opened()
            return self._source

    async def _opened(self) -> BarSource:
        """Open a source; one request waits for a gateway that lets no one connect, for all of them.

        A gateway that holds the client ids of lost connections is tried by few ids, with growing
        pauses, and not by each request anew.
        """
        if self._final_error is not None:
            raise self._final_error
        retry_policy, paused_s = self.retry_policy, 0.0
        told: set[str] = set()
        until = retry_policy.clock() + timedelta(seconds=retry_policy.wait_s)
        for attempts in count(1):
            try:
                return await self._stack.enter_async_context(self._open_source())
            except GatewayError as error:
                has_no_id = isinstance(error, ClientIdInUseError)
                if not error.retry or not (retry_policy.wait_s or has_no_id):
                    raise
                by_clock_s = (until - retry_policy.clock()).total_seconds()
                left_s = min(retry_policy.wait_s - paused_s, by_clock_s)
                pause_s = retry_policy.pause_before_connecting(error, attempts, left_s)
                if pause_s is None:
                    self._final_error = error
                    raise
                if (kind := type(error).__name__) not in told:
                    told.add(kind)
                    self._waits(_why_not_connected(error, left_s), max(left_s, pause_s))
            await retry_policy.sleep(pause_s)
            paused_s += pause_s
        raise AssertionError("tries end by a source or an error")

    async def ask(
        self,
        request: Callable[[BarSource], Awaitable[T]],
        *,
        but_after: tuple[type[GatewayError], ...] = (),
    ) -> T:
        """Ask the source, again after failures that may pass, and give its answer.

        Args:
            question: asks once.
            but_after: failures after which another question is better than the same again.

        Raises:
            GatewayError: the last failure, after all tries or where no try can help.
        """
        for attempts in count(1):
            try:
                return await self._once(request)
            except GatewayError as error:
                delay_s = self.retry_policy.delay_after(error, attempts)
                if delay_s is None or error is self._final_error or isinstance(error, but_after):
                    raise
                self._waits(_why(error), delay_s)
            await self.retry_policy.sleep(delay_s)
        raise AssertionError("tries end by an answer or an error")

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
                "asking the gateway", reason="the question was cancelled from inside the connection"
            ) from error
        except GatewayTimeoutError:
            self._timeouts_in_a_row += 1
            if self._timeouts_in_a_row > self.retry_policy.max_retries:
                await self._drop(source)
            raise
        self._timeouts_in_a_row = 0
        return response

    async def _drop(self, source: BarSource) -> None:
        """Close a lost source once, however many questions it took down."""
        async with self._opening:
            if self._source is source:
                self._source = None
                self._timeouts_in_a_row = 0
                stack, self._stack = self._stack, AsyncExitStack()
                await stack.aclose()


def _why(error: GatewayError) -> str:
    """Say what went wrong, alike for all questions that it meets."""
    if isinstance(error, GatewayUnreachableError):
        return f"{error.what}: {error.reason}"
    return error.reason or error.what


def _why_not_connected(error: GatewayError, left_s: float) -> str:
    """Say why a run waits for a connection, and how long it does so at most."""
    why = _why(error)
    if isinstance(error, ClientIdInUseError):
        ids = error.reason if error.code else f"{error.what}: {error.reason}"
        why = f"{ids}; the gateway may still hold the old connection"
    return f"{why}; trying again for {left_s:.0f} s" if left_s > 0 else why


def _is_cancelled() -> bool:
    """Say whether somebody cancelled the task, rather than a future inside a lost connection."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
