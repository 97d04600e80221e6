"""The budget of one gateway: every request of every process waits here for its turn.

Not here: the rules (``core.pacing``), the shared record (``ib.pacer_record``).
"""

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from ktrdr_pipelines.core.pacing import PacedRequest, Pacing, pacing_of
from ktrdr_pipelines.errors import DiskError
from ktrdr_pipelines.ib.clock import boot_id, boot_time_s
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.pacer_file import RecordBusyError
from ktrdr_pipelines.ib.pacer_record import LONGEST_SLEEP_S, PacerRecord, Place

POLL_S = 0.1
"""How often a process looks whether another one has given a place back."""

FRESH_S = 0.1
"""How old a stamp may be when the request is sent; an older one is taken again."""

STAMP_TRIES = 3
"""How often that is done before a machine is taken to be just slow."""

CANCEL_HOLD_S = 2.0
"""How long a cancelled request keeps its place: the gateway may still be working on it."""

_BUSY_S = 0.01
_BUSY_TRIES = 500
_PAUSE_TRIES = 20
_log = logging.getLogger(__name__)


class Slot:
    """A place in the budget, to be given back when the answer is there.

    A slot that is not given back stays taken until its deadline. ``sent_at_s`` is its stamp.
    """

    def __init__(self, place: Place, record: PacerRecord) -> None:
        self.sent_at_s = place.turn.at
        self.is_held = True
        self._number, self._record = place.number, record

    def release(self) -> None:
        """Give it back: the gateway has answered."""
        self._let_go(lambda: self._record.release(self._number))

    def cut(self) -> None:
        """Give it back soon: the request was cancelled, and the gateway may not know yet."""
        self._let_go(lambda: self._record.shorten(self._number, hold_s=CANCEL_HOLD_S))

    def _let_go(self, act: Callable[[], None]) -> None:
        if self.is_held:
            self.is_held = False
            with suppress(RecordBusyError):  # then it stays taken until its deadline
                act()


class Pacer:
    """Makes requests wait for their turn, over all processes that use the same gateway.

    One pacer serves one thread; several of one process share the budget as processes do.

    Args:
        folder: where the shared record of the gateway lies.
        pacing: the rules.
        clock: seconds that all processes of this machine share.
        sleep: waits.
        boot: name of this run of the machine.
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
        self._record = PacerRecord(
            folder,
            boot=boot_id() if boot is None else boot,
            owner=owner,
            pacing=pacing or pacing_of(),
            clock=clock,
        )
        self._line: dict[tuple[bool, int], asyncio.Event] = {}

    @classmethod
    def of(cls, config: GatewayConfig) -> "Pacer":
        """Make the pacer of a configured gateway."""
        return cls(config.folder, pacing=pacing_of(conservative=config.conservative))

    def __repr__(self) -> str:
        return f"Pacer({self._folder}, {len(self._line)} waiting for a place)"

    def close(self) -> None:
        """Let go of the shared record."""
        self._record.close()

    @asynccontextmanager
    async def slot(self, request: PacedRequest, *, hold_s: float) -> AsyncIterator[Slot]:
        """Wait for the request's turn; the context begins when it must be sent, at once.

        Args:
            request: what is to be sent.
            hold_s: how long the slot stays taken if it is never given back.
        """
        slot = Slot(await self._enter(request, hold_s), self._record)
        try:
            yield slot
        except asyncio.CancelledError:
            slot.cut()
            raise
        finally:
            self._wake_first()

    def pause_after_violation(self) -> float:
        """Make every process pause, because the gateway said that it was asked too much.

        Returns:
            Seconds from now; they double while violations stay close.
        """
        for _ in range(_PAUSE_TRIES):
            with suppress(RecordBusyError):
                pause_s = self._record.pause()
                _log.warning("the gateway was asked too much: a pause of %.0f s", pause_s)
                return pause_s
        raise self._stuck()

    async def _enter(self, request: PacedRequest, hold_s: float) -> Place:
        number: int | None = None
        stamps = 0
        try:
            while True:
                place = await self._attempt(request, number, hold_s)
                number, stamps = place.number, stamps + place.sent
                if place.sent and (self._is_fresh(place) or stamps >= STAMP_TRIES):
                    return place
                if not place.sent:
                    await self._wait(place, request)
        except BaseException:
            self._withdraw(number)
            raise
        finally:
            self._wake_first()

    def _is_fresh(self, place: Place) -> bool:
        """Say whether a request is sent when its stamp says; the process may have stood still."""
        return self._clock() - place.turn.at <= FRESH_S

    async def _attempt(self, request: PacedRequest, number: int | None, hold_s: float) -> Place:
        """Try to send, giving way while other processes write."""
        for _ in range(_BUSY_TRIES):
            try:
                return self._record.attempt(request, number, hold_s=hold_s)
            except RecordBusyError:
                await self._sleep(_BUSY_S)
        raise self._stuck()

    def _stuck(self) -> DiskError:
        return DiskError(
            f"request record in {self._folder}",
            came="another process holds it and does not let go",
            remedy="End the process that hangs.",
        )

    async def _wait(self, place: Place, request: PacedRequest) -> None:
        """Sleep until the turn may have come: by time, or for a place that is given back."""
        left_s = place.turn.at - self._clock()
        if left_s > 0:
            await self._sleep(min(left_s, LONGEST_SLEEP_S))
            return
        key = (not request.tail, place.number)
        self._line[key] = woken = asyncio.Event()
        try:
            first = min(self._line) == key
            await self._sleep_unless(woken, POLL_S if first else LONGEST_SLEEP_S)
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
