"""The request budget of one gateway: every request of every process waits here for a permit.

The budget is kept in the shared record, so the rules hold over all processes. The circuit breaker
and pauses after violations stop requests here too, and ``OnWait`` callbacks report waits that a
user would wonder about. Runs that cannot reach the gateway record that here for all others.

Not here: the rules (``ib.pacing.rules``), the record (``ib.pacing.shared_state``).
"""

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from sqlite3 import Connection
from typing import TypeVar

from ktrdr_pipelines.clock import boot_id, boot_time_s
from ktrdr_pipelines.errors import DiskError, GatewayRestingError
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.pacing.circuit_breaker import (
    Absence,
    Availability,
    BreakerState,
    Depth,
    availability,
)
from ktrdr_pipelines.ib.pacing.gateway_memory import SharedMemory, Vitals
from ktrdr_pipelines.ib.pacing.rules import MESSAGE, PacedRequest, Pacing, RequestKind, pacing_of
from ktrdr_pipelines.ib.pacing.shared_file import RecordBusyError
from ktrdr_pipelines.ib.pacing.shared_state import (
    LONGEST_SLEEP_S,
    QueueEntry,
    Sending,
    SharedRecord,
)
from ktrdr_pipelines.ib.private_files import tighten_state

CANCEL_HOLD_S = 2.0
"""Seconds that a cancelled request keeps its permit: the gateway may still be working on it."""

ATTEMPTS = 40
"""Attempts to release a permit while other processes write, 50 ms each: one that is not released
delays every process until its deadline."""

POLL_S = 0.1
"""Seconds between two checks whether another process has released a permit."""

RESPONSE_CHECK_S = 0.5
"""Seconds between two checks of a request that waits until some time after another's response."""

OnWait = Callable[[str, float], None]
"""Takes the reason of a wait as a text, and its longest duration in seconds."""

_BUSY_S = 0.01
_BUSY_ATTEMPTS = 500
_WRITE_ATTEMPTS = 20
_PROBE_CHECK_S = 1.0
_PROBING = "another request probes whether the gateway responds again"
_PAUSED = "the gateway received too many requests, and every process pauses"
_FEW_HEADS = "IB limits the number of requests for the oldest data in 10 minutes"
_COUNTED = "earlier requests count against IB's limits, cancelled ones until their deadlines"
_LONG_WAIT_S = 20.0
"""Seconds from which a wait for other limits is reported: longer than one for identical requests.
"""

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Permit:
    """The right to one request in flight, to be released when the response is there.

    A permit that is not released stays taken until its deadline. ``sent_at_s`` is when the request
    was written to the socket.
    """

    def __init__(self, entry: QueueEntry, record: SharedRecord) -> None:
        self.sent_at_s = entry.send_time.at
        self.is_held = True
        self._entry, self._record = entry, record

    def release(self) -> None:
        """Release the permit: the gateway has responded."""
        self._let_go(lambda: self._record.release(self._entry))

    def answered(self) -> int:
        """Release the permit after a response with data, whose time shows the gateway's load.

        Returns: how many were in flight when it was sent, with it, of all processes.
        """
        if not self._entry.request.size:
            self.release()
            return 1
        return self._let_go(lambda: self._record.answered(self._entry)) or 1

    def cut(self) -> None:
        """Release the permit: the gateway lost the request, or the connection has ended.

        It has been read by now or never will be, so it counts from now.
        """
        self._let_go(lambda: self._record.lose(self._entry))

    def abandon(self) -> None:
        """Release the permit soon: the request was cancelled here.

        A gateway that hangs may read it any time until its deadline, from which it counts.
        """
        self._let_go(lambda: self._record.cancel(self._entry, hold_s=CANCEL_HOLD_S))

    def withdraw(self) -> None:
        """Release the permit without a trace: nothing was sent."""
        self._let_go(lambda: self._record.withdraw(self._entry.number))

    def _let_go(self, act: Callable[[], T]) -> T | None:
        """Release the permit, and return what that returns; None if it is not held."""
        if not self.is_held:
            return None
        self.is_held = False
        for _ in range(ATTEMPTS):
            with suppress(RecordBusyError):
                return act()
        _log.warning("a permit stays taken until its deadline: the shared record is busy")
        return None


def ignore_wait(_why: str, _wait_s: float) -> None:
    """Ignore a wait: the default of ``OnWait`` parameters."""


def _nothing() -> None:
    """Write nothing: the caller writes the request itself, at once."""


def _wake(woken: asyncio.Future[None]) -> None:
    """Let a request that waits go on at the next step of the event loop."""
    if not woken.done():
        woken.set_result(None)


class RateLimiter:
    """Makes requests wait for permits, over all processes that use the same gateway.

    One rate limiter serves one thread; several in one process share the budget as processes do.

    Args:
        folder: of the gateway's shared record.
        pacing: the rules.
        clock: seconds that all processes of this machine share.
        sleep, boot: how to wait, and the name of this run of the machine.
    """

    def __init__(
        self,
        folder: Path,
        *,
        pacing: Pacing | None = None,
        clock: Callable[[], float] = boot_time_s,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        boot: str | None = None,
    ) -> None:
        owner = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._folder = folder
        self._clock, self._sleep = clock, sleep
        self._record = SharedRecord(
            folder,
            boot=boot_id() if boot is None else boot,
            owner=owner,
            pacing=pacing or pacing_of(),
            clock=clock,
        )
        self._queue: dict[tuple[bool, int], asyncio.Future[None]] = {}

    @classmethod
    def of(cls, config: GatewayConfig) -> "RateLimiter":
        """Return the rate limiter of a configured gateway."""
        tighten_state(config.state_dir)
        return cls(config.folder, pacing=pacing_of(conservative=config.conservative))

    def __repr__(self) -> str:
        return f"RateLimiter({self._folder}, {len(self._queue)} waiting for a permit)"

    def close(self) -> None:
        """Close the shared record; the next use opens it again."""
        self._record.close()

    @property
    def exists(self) -> bool:
        """Return whether anything was ever recorded; looking creates nothing."""
        return self._record.exists

    @property
    def concurrency(self) -> int:
        """How many requests for bars may be in flight, as far as this process knows."""
        return self._record.concurrency

    def vitals(self) -> Vitals:
        """Return the gateway's condition as all processes together know it.

        Raises:
            DiskError: the shared record cannot be used.
        """
        return self._retrying(self._record.vitals)

    def remember(self, act: Callable[[SharedMemory, Connection], T]) -> T:
        """Read or write what all processes remember of the gateway, in one transaction.

        Raises:
            DiskError: the shared record cannot be used.
        """
        return self._retrying(lambda: self._record.remember(act))

    def is_closed(self) -> bool:
        """Return whether the circuit breaker is closed, so that it lets every request through.

        Raises:
            DiskError: the shared record cannot be used.
        """
        return self._retrying(self._record.lets_through)

    async def admit(self, what: str, *, probe_s: float, waits: OnWait = ignore_wait) -> None:
        """Return when the circuit breaker lets a request through; wait while another one probes.

        Args:
            what: the request, for the error.
            probe_s: how long the request may take if it is the one that probes.
            waits: called when the request waits for another one's probe.

        Raises:
            GatewayRestingError: the circuit breaker is open after consecutive failures.
            DiskError: the shared record cannot be used.
        """
        while not self.is_closed():
            decision = self.remember(
                lambda memory, database: memory.admission(database, self._clock(), probe_s=probe_s)
            )
            if not decision.wait_s:
                return
            if decision.breaker.state is BreakerState.OPEN:
                error = GatewayRestingError(
                    what,
                    reason=decision.breaker.why,
                    hint=f"The next attempt is in {decision.wait_s:.0f} s; 'ktrdr doctor' checks "
                    "the gateway now",
                )
                error.retry_in_s = decision.wait_s
                raise error
            waits(_PROBING, decision.wait_s)
            await self._sleep(min(decision.wait_s, _PROBE_CHECK_S))

    def availability(self, real_now: datetime) -> Availability:
        """Return whether a run may try the gateway at a moment of real time; nothing is sent.

        Raises:
            DiskError: the shared record cannot be used.
        """
        if not self._record.exists:
            return Availability()
        return self.remember(
            lambda memory, database: availability(
                memory.breaker(database),
                memory.absence(database),
                now_s=self._clock(),
                real_now=real_now,
            )
        )

    def absence(self) -> Absence | None:
        """Return the last absence of the gateway, whether it has ended or not; None without one.

        Raises:
            DiskError: the shared record cannot be used.
        """
        if not self._record.exists:
            return None
        return self.remember(lambda memory, database: memory.absence(database))

    def note_absence(self, real_now: datetime, text: str) -> None:
        """Record that a run could not reach the gateway, so that no other run tries for a while.

        Raises:
            DiskError: the shared record cannot be used.
        """
        self.remember(lambda memory, database: memory.absent(database, real_now, text))

    def note_recovery(self, real_now: datetime) -> None:
        """Record that runs can reach the gateway again; this closes the circuit breaker.

        Raises:
            DiskError: the shared record cannot be used.
        """
        self.remember(lambda memory, database: memory.recovered(database, real_now))

    def note_response(self, depth: Depth = Depth.CONNECTION) -> None:
        """Record that the gateway responded at a depth.

        Raises:
            DiskError: the shared record cannot be used.
        """
        self.remember(lambda memory, database: memory.responded(database, depth))

    def note_trouble(
        self,
        sent_at_s: float | None = None,
        *,
        failure: str | None,
        depth: Depth = Depth.CONNECTION,
    ) -> None:
        """Record a failure: it halves the concurrency, and the breaker counts one without response.

        Args:
            sent_at_s: when the failed request was sent; None is now.
            failure: how the gateway failed to respond at all; None if it reported overload.
            depth: how deep into the gateway the failure reached.

        Raises:
            DiskError: the shared record cannot be used.
        """
        now = self._clock()
        sent_at = now if sent_at_s is None else sent_at_s

        def act(memory: SharedMemory, database: Connection) -> None:
            memory.troubled(database, sent_at=sent_at, now=now)
            if failure is not None:
                after = memory.failed(
                    database, sent_at=sent_at, now=now, depth=depth, reason=failure
                )
                if after.state is BreakerState.OPEN:
                    _log.warning("circuit breaker open for %.0f s", after.until - now)

        self.remember(act)

    async def message(self, write: Callable[[], None]) -> None:
        """Write a message that requests no data, when the message rate allows it.

        Raises:
            DiskError: the shared record cannot be used; nothing was written.
        """
        await self._enter(MESSAGE, 0.0, ignore_wait, write)

    @asynccontextmanager
    async def permit(
        self,
        request: PacedRequest,
        *,
        hold_s: float,
        waits: OnWait = ignore_wait,
        write: Callable[[], None] = _nothing,
    ) -> AsyncIterator[Permit]:
        """Wait for a permit; the context begins when the request has been written.

        Args:
            request: what is to be sent.
            hold_s: how long the permit stays taken if it is never released.
            waits: called on pauses, on waits for the limit of head timestamp requests, and on
                long waits for the other limits.
            write: writes it to the socket; an exception from it leaves no trace of the request.

        Raises:
            DiskError: the shared record cannot be used.
        """
        entry = await self._enter(request, hold_s, waits, write)
        permit = Permit(entry, self._record)
        try:
            yield permit
        except asyncio.CancelledError:
            permit.abandon()
            raise
        finally:
            self._wake_first()
        await asyncio.sleep(0)  # what waits is sent before the response is evaluated

    def pause_after_violation(self) -> float:
        """Make every process pause after a pacing violation; return the seconds from now.

        They double while violations stay close.

        Raises:
            DiskError: the shared record cannot be used.
        """
        pause_s = self._retrying(self._record.pause)
        _log.warning("pacing violation: every process pauses for %.0f s", pause_s)
        return pause_s

    async def _enter(
        self, request: PacedRequest, hold_s: float, waits: OnWait, write: Callable[[], None]
    ) -> QueueEntry:
        sending = Sending(write, self._clock)
        was_queued = False
        try:
            while True:
                entry = await self._attempt(request, sending, hold_s)
                if entry.sent:
                    return entry
                # Only waits that a user would wonder about are reported.
                wait_s = entry.send_time.at - self._clock()
                if entry.is_paused:
                    waits(_PAUSED, wait_s)
                elif request.kind is RequestKind.HEAD:
                    waits(_FEW_HEADS, wait_s)
                elif wait_s >= _LONG_WAIT_S:
                    waits(_COUNTED, wait_s)
                was_queued = await self._wait(entry, request, was_queued=was_queued)
        except BaseException:  # a cancelled request must leave the queue, too
            if sending.number is not None and sending.at is None:
                with suppress(RecordBusyError):
                    self._record.withdraw(sending.number)
            raise
        finally:
            self._wake_first()

    async def _attempt(self, request: PacedRequest, sending: Sending, hold_s: float) -> QueueEntry:
        for _ in range(_BUSY_ATTEMPTS):
            with suppress(RecordBusyError):
                return self._record.attempt(request, sending.number, sending, hold_s=hold_s)
            await self._sleep(_BUSY_S)
        raise self._stuck()

    def _retrying(self, act: Callable[[], T]) -> T:
        for _ in range(_WRITE_ATTEMPTS):
            with suppress(RecordBusyError):
                return act()
        raise self._stuck()

    def _stuck(self) -> DiskError:
        return DiskError(
            f"use the request record in {self._folder}",
            reason="another process keeps it locked",
            hint="Stop the process that hangs.",
        )

    async def _wait(self, entry: QueueEntry, request: PacedRequest, *, was_queued: bool) -> bool:
        """Sleep until the request may be due: by time, or because a permit was released.

        Messages that need no permit (a cancel, the time) wait for time alone, and never behind
        requests that wait for one.

        Args:
            entry: the request's place.
            request: what is to be sent.
            was_queued: whether it waited for a release just before.

        Returns: whether it waited for a release now.
        """
        now = self._clock()
        left_s = entry.send_time.at - now
        if left_s > 0 or entry.send_time.has_permit:
            if was_queued:
                self._wake_first()  # another one has to poll now
            # Responses that come meanwhile may make it due earlier.
            checks_in_s = max(entry.send_time.check_at - now, RESPONSE_CHECK_S)
            await self._sleep(max(min(left_s, checks_in_s, LONGEST_SLEEP_S), 0.0))
            return False
        key = (not request.tail, entry.number)
        self._queue[key] = woken = asyncio.get_running_loop().create_future()
        # Only the first in the queue polls; it is woken when this process releases a permit.
        seconds = POLL_S if min(self._queue) == key else LONGEST_SLEEP_S
        timer = asyncio.ensure_future(self._sleep(seconds))
        timer.add_done_callback(lambda _: _wake(woken))
        try:
            await woken
        finally:
            del self._queue[key]
            timer.cancel()
        return True

    def _wake_first(self) -> None:
        if self._queue:
            _wake(self._queue[min(self._queue)])
