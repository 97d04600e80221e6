"""Time that a test lets pass for a monitor, and scripted gateways at a port of their own."""

import asyncio
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.ib.scripted_gateway import LONGEST_S


class ManualTime:
    """A clock, and a sleep that ends when a test says so; for one sleeper in another thread."""

    def __init__(self, now: datetime = datetime(2026, 1, 5, 12, tzinfo=UTC)) -> None:
        self.now = now
        self.slept: list[float] = []
        self._changed = threading.Condition()
        self._sleeping: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def __call__(self) -> datetime:
        """Return the time."""
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Sleep until ``pass_pause`` is called."""
        woken = asyncio.Event()
        with self._changed:
            self.slept.append(seconds)
            self._sleeping = asyncio.get_running_loop(), woken
            self._changed.notify_all()
        try:
            await woken.wait()
        finally:
            with self._changed:
                self._sleeping = None

    def pass_pause(self) -> float:
        """Wait for the sleeper to sleep, let its time pass, and return the seconds."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._sleeping is not None, LONGEST_S)
            assert self._sleeping is not None
            loop, woken = self._sleeping
            self._sleeping = None
            seconds = self.slept[-1]
            self.now += timedelta(seconds=seconds)
        loop.call_soon_threadsafe(woken.set)
        return seconds

    def wait_until_asleep(self) -> None:
        """Wait for the sleeper to sleep."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._sleeping is not None, LONGEST_S)


def eventually(holds: Callable[[], Any]) -> Any:
    """Return a value once it is true; another thread makes it so."""
    pause = threading.Event()
    for _ in range(round(LONGEST_S * 200)):
        if value := holds():
            return value
        pause.wait(0.005)
    raise AssertionError(f"waited for {LONGEST_S:.0f} s")
