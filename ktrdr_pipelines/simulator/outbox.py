"""What goes out on one connection: whole frames at once, or one of them slowly.

Not here: what is sent (``serving``), the socket's life (``connection``).
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

PIECES = 20
"""Into how many pieces a slow answer is cut."""

MADE_AT_ONCE = 4
"""How many answers of one client are made side by side."""


class Outbox:
    """Writes frames in the order given; while one trickles out the others wait."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._slow = asyncio.Lock()
        self._making = asyncio.Semaphore(MADE_AT_ONCE)
        self._waiting: list[bytes] = []

    def send(self, data: bytes) -> None:
        """Send frames."""
        if self._slow.locked():
            self._waiting.append(data)
        elif not self._writer.is_closing():
            self._writer.write(data)

    @asynccontextmanager
    async def room(self) -> AsyncIterator[None]:
        """Wait until another answer may be made.

        For a client that does not read, no more are made than fit in the socket and a few: what
        is not sent yet lies in memory.
        """
        async with self._making:
            await self.drained()
            yield

    async def drained(self) -> None:
        """Wait until the client has read nearly all that was sent, or is gone."""
        with suppress(OSError):
            await self._writer.drain()

    async def trickle(self, data: bytes, seconds: float) -> None:
        """Send a frame in pieces over some seconds; cancelled, it sends the rest at once."""
        async with self._slow:
            size = -(-len(data) // PIECES)
            sent = 0
            try:
                while sent < len(data):
                    self._writer.write(data[sent : sent + size])
                    sent += size
                    await asyncio.sleep(seconds / PIECES)
            finally:
                held, self._waiting = self._waiting, []
                if not self._writer.is_closing():
                    self._writer.write(data[sent:] + b"".join(held))

    def close(self) -> None:
        """Hang up once everything is sent."""
        self._writer.close()
