"""Signs of life: whether a contract lately returned bars; without, empty responses say nothing.

Not here: what empty responses prove (``core.evidence``), requests (``load.asking``).
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime

from ktrdr_pipelines.load.asking import Asking


class LifeSigns:
    """What one run knows of its contracts; each is asked for a sign at most once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], bool] = {}
        self._asking = asyncio.Lock()

    def saw(self, asking: Asking) -> None:
        """Take in that a contract answered with bars."""
        self._known[asking.contract] = True

    async def are_there(
        self, asking: Asking, head: Callable[[], Awaitable[datetime | None]]
    ) -> bool:
        """Say whether a contract has lately answered with bars, asking once if need be.

        ``head`` gives the start of the gateway's data, or None.

        Raises:
            GatewayError: it could not be asked.
        """
        async with self._asking:
            if asking.contract not in self._known:
                self._known[asking.contract] = await asking.is_alive(head)
        return self._known[asking.contract]
