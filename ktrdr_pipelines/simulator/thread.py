"""A thread with an event loop of its own, in which a gateway serves beside other code.

Not here: the gateway (``server``).
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable


class ServerThread(threading.Thread):
    """A thread that runs a server until told to stop.

    Args:
        start: begins to serve, or raises why it cannot.
        close: ends it.
    """

    def __init__(
        self,
        start: Callable[[], Awaitable[object]],
        close: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(name="simulator", daemon=True)
        self._start_serving, self._close = start, close
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()

    def start_and_wait(self) -> None:
        """Start, and return once the port listens; an error of starting is raised here."""
        self.start()
        self._ready.wait()
        if self._failed is not None:
            self.join()
            raise self._failed

    def stop(self) -> None:
        """Close the server and wait for the thread to end."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self.join()

    def run(self) -> None:
        """Serve until stopped."""
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        try:
            await self._start_serving()
        except Exception as error:  # noqa: BLE001 - raised again in the thread that waits
            self._failed = error
            return
        finally:
            self._ready.set()
        await self._stopping.wait()
        await self._close()
