"""The budget of one gateway: every request of every process waits here for its turn.

A place in the budget, while it is taken.

Who is told of waits: for a pause to end, for a link to come back, for another process's try.
"""

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from sqlite3 import Connection
from typing import TypeVar

from ktrdr_pipelines.clock import boot_id, boot_time_s
from ktrdr_pipelines.errors import DiskError, GatewayRestingError
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.pacing.circuit_breaker import Admission, BreakerState, Depth
from ktrdr_pipelines.ib.pacing.rules import MESSAGE, PacedRequest, Pacing, RequestKind, pacing_of
from ktrdr_pipelines.ib.pacing.shared_file import RecordBusyError
from ktrdr_pipelines.ib.pacing.shared_state import (
    LONGEST_SLEEP_S,
    QueueEntry,
    Sending,
    SharedMemory,
    SharedRecord,
    Vitals,
)
from ktrdr_pipelines.ib.private_files import tighten_state

CANCEL_HOLD_S = 2.0
"""How long a cancelled request keeps its place: the gateway may still be working on it."""

ATTEMPTS = 40
"""How often a place is tried to be given back while other processes write, 50 ms each: one that is
not given back keeps everybody waiting until its deadline."""

_log = logging.getLogger(__name__)


class Permit:
    """A place in the budget, to be given back when the answer is there.

    A slot that is not given back stays taken until its deadline. ``sent_at_s`` is its stamp.
    """

    def __init__(self, entry: QueueEntry, record: SharedRecord, size: str = "") -> None:
        self.sent_at_s = entry.send_time.at
        self.is_held = True
        self._number, self._record, self._size = entry.number, record, size

    def release(self) -> None:
        """Give it back: the gateway has said something."""
        self._let_go(lambda: self._record.release(self._number))

    def answered(self) -> None:
        """Give it back: what was asked for came; how long it took tells of the gateway's load."""
        if not self._size:
            self.release()
            return
        self._let_go(lambda: self._record.answered(self._number, self._size, self.sent_at_s))

    def cut(self) -> None:
        """Give it back soon: the request was cancelled, and the gateway may not know yet."""
        self._let_go(lambda: self._record.shorten(self._number, hold_s=CANCEL_HOLD_S))

    def withdraw(self) -> None:
        """Take it back as if it had never been: nothing was sent."""
        self._let_go(lambda: self._record.withdraw(self._number))

    def _let_go(self, act: Callable[[], None]) -> None:
        if not self.is_held:
            return
        self.is_held = False
        for _ in range(ATTEMPTS):
            try:
                act()
            except RecordBusyError:
                continue
            return
        _log.warning("a place in the budget stays taken until its deadline: the record is busy")


OnWait = Callable[[str, float], None]
"""Takes in words what is waited for, and the seconds that it lasts at most."""


def untold(_why: str, _wait_s: float) -> None:
    """Tell nobody."""


POLL_S = 0.1
"""How often a process looks whether another one has given a place back."""

_BUSY_S = 0.01
_BUSY_ATTEMPTS = 500
_WRITE_ATTEMPTS = 20
_TRIAL_S = 1.0
_TRYING = "another question tries whether the gateway answers again"
_PAUSED = "the gateway was asked too much, and every process pauses"
_FEW_HEADS = "IB allows only so many questions about the oldest data in 10 minutes"
T = TypeVar("T")
_log = logging.getLogger(__name__)


def _nothing() -> None:
    """Write nothing: what is sent is written by the caller, at once."""


class RateLimiter:
    """Makes requests wait for their turn, over all processes that use the same gateway.

    One rate limiter serves one thread; several of one process share the budget as processes do.

    Args:
        folder: where the shared record of the gateway lies.
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
        self._line: dict[tuple[bool, int], asyncio.Event] = {}

    @classmethod
    def of(cls, config: GatewayConfig) -> "RateLimiter":
        """Make the rate limiter of a configured gateway."""
        tighten_state(config.state_dir)
        return cls(config.folder, pacing=pacing_of(conservative=config.conservative))

    def __repr__(self) -> str:
        return f"Pacer({self._folder}, {len(self._line)} waiting for a place)"

    def close(self) -> None:
        """Let go of the shared record."""
        self._record.close()

    @property
    def concurrency(self) -> int:
        """How many requests for bars may be in flight, as far as this process knows."""
        return self._record.concurrency

    def vitals(self) -> Vitals:
        """Say how the gateway is, as all processes together know it."""
        return self._retrying(self._record.vitals)

    def remember(self, act: Callable[[SharedMemory, Connection], T]) -> T:
        """Read or write what all processes remember of the gateway."""
        return self._retrying(lambda: self._record.remember(act))

    async def admit(self, what: str, *, probe_s: float, waits: OnWait = untold) -> None:
        """Let a question pass unless the gateway rests; while another one tries, wait for it.

        Raises:
            GatewayRestingError: it failed again and again, and is left alone for a while.
        """
        while True:
            chance = self.remember(
                lambda memory, database: memory.admission(database, self._clock(), probe_s=probe_s)
            )
            if not chance.wait_s:
                return
            if chance.breaker.state is BreakerState.OPEN:
                raise _resting(what, chance)
            waits(_TRYING, chance.wait_s)
            await self._sleep(min(chance.wait_s, _TRIAL_S))

    def note_life(self, depth: Depth = Depth.CONNECTION) -> None:
        """Take in that the gateway does answer, so deep."""
        self.remember(lambda memory, database: memory.lives(database, depth))

    def note_trouble(
        self,
        sent_at_s: float | None = None,
        *,
        ill_with: str | None,
        depth: Depth = Depth.CONNECTION,
    ) -> None:
        """Take in a failure: fewer requests in flight, and where it is ill the breaker counts.

        Args:
            sent_at_s: when what failed was begun; None is just now.
            ill_with: how the gateway failed to speak at all; None where it said it was too much.
            depth: how deep into the gateway it reached.
        """
        now = self._clock()
        sent_at = now if sent_at_s is None else sent_at_s

        def act(memory: SharedMemory, database: Connection) -> None:
            memory.troubled(database, sent_at=sent_at, now=now)
            if ill_with is not None:
                after = memory.failed(
                    database, sent_at=sent_at, now=now, depth=depth, reason=ill_with
                )
                if after.state is BreakerState.OPEN:
                    _log.warning("the gateway is left alone for %.0f s", after.until - now)

        self.remember(act)

    async def message(self, write: Callable[[], None]) -> None:
        """Write a message that requests no data, when the rate of messages allows it.

        Raises:
            DiskError: the shared record cannot be used; nothing was written.
        """
        await self._enter(MESSAGE, 0.0, untold, write)

    @asynccontextmanager
    async def permit(
        self,
        request: PacedRequest,
        *,
        hold_s: float,
        waits: OnWait = untold,
        write: Callable[[], None] = _nothing,
    ) -> AsyncIterator[Permit]:
        """Wait for the request's turn; the context begins when it has been written.

        Args:
            request: what is to be sent.
            hold_s: how long the slot stays taken if it is never given back.
            waits: told of a pause, and of the window of questions about the oldest data.
            write: writes it to the socket; what it raises leaves no trace of the request.
        """
        entry = await self._enter(request, hold_s, waits, write)
        permit = Permit(entry, self._record, request.size)
        try:
            yield permit
        except asyncio.CancelledError:
            permit.cut()
            raise
        finally:
            self._wake_first()

    def pause_after_violation(self) -> float:
        """Make every process pause, because the gateway said that it was asked too much.

        The seconds from now that it gives double while violations stay close.
        """
        pause_s = self._retrying(self._record.pause)
        _log.warning("the gateway was asked too much: a pause of %.0f s", pause_s)
        return pause_s

    async def _enter(
        self, request: PacedRequest, hold_s: float, waits: OnWait, write: Callable[[], None]
    ) -> QueueEntry:
        number: int | None = None
        sending = Sending(write, self._clock)
        try:
            while True:
                entry = await self._attempt(request, number, sending, hold_s)
                number = entry.number
                if entry.sent:
                    return entry
                if why := _reason(entry, request):
                    waits(why, entry.send_time.at - self._clock())
                await self._wait(entry, request)
        except BaseException:
            self._withdraw(number)
            raise
        finally:
            self._wake_first()

    async def _attempt(
        self, request: PacedRequest, number: int | None, sending: Sending, hold_s: float
    ) -> QueueEntry:
        """Try to send, giving way while other processes write."""
        for _ in range(_BUSY_ATTEMPTS):
            with suppress(RecordBusyError):
                return self._record.attempt(request, number, sending, hold_s=hold_s)
            await self._sleep(_BUSY_S)
        raise self._stuck()

    def _retrying(self, act: Callable[[], T]) -> T:
        """Use the record, giving way a few times while other processes write."""
        for _ in range(_WRITE_ATTEMPTS):
            with suppress(RecordBusyError):
                return act()
        raise self._stuck()

    def _stuck(self) -> DiskError:
        return DiskError(
            f"request record in {self._folder}",
            reason="another process holds it and does not let go",
            hint="End the process that hangs.",
        )

    async def _wait(self, entry: QueueEntry, request: PacedRequest) -> None:
        """Sleep until the turn may have come: by time, or for a place that is given back.

        What needs no place (a cancel, the time) waits for time alone, and never behind requests
        that wait for one.
        """
        left_s = entry.send_time.at - self._clock()
        if left_s > 0 or entry.send_time.has_permit:
            await self._sleep(min(max(left_s, 0.0), LONGEST_SLEEP_S))
            return
        key = (not request.tail, entry.number)
        self._line[key] = woken = asyncio.Event()
        try:
            await self._sleep_unless(woken, POLL_S if min(self._line) == key else LONGEST_SLEEP_S)
        finally:
            del self._line[key]

    async def _sleep_unless(self, woken: asyncio.Event, seconds: float) -> None:
        tasks = {asyncio.ensure_future(self._sleep(seconds)), asyncio.ensure_future(woken.wait())}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    def _wake_first(self) -> None:
        if self._line:
            self._line[min(self._line)].set()

    def _withdraw(self, number: int | None) -> None:
        if number is not None:
            with suppress(RecordBusyError):
                self._record.withdraw(number)


def _reason(entry: QueueEntry, request: PacedRequest) -> str:
    """Say what is waited for where a person would wonder, or nothing."""
    if entry.is_paused:
        return _PAUSED
    return _FEW_HEADS if request.kind is RequestKind.HEAD else ""


def _resting(what: str, chance: Admission) -> GatewayRestingError:
    breaker = chance.breaker
    last = f" (at last: {breaker.reason})" if breaker.reason else ""
    error = GatewayRestingError(
        what,
        reason=f"the gateway failed {breaker.failures} times in a row{last} and is left alone",
        hint=f"It is tried again in {chance.wait_s:.0f} s; 'ktrdr doctor' looks at it now",
    )
    error.retry_in_s = chance.wait_s
    return error
