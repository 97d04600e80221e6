"""Telling whoever listens to a load that it waits, for what and until when.

Many questions wait for the same thing: it is told once, and again where it takes a minute more than
was told, or begins anew. Not here: why and how long (``sync.engine.source_session``, ``ib``), how
it is shown (``cli``, ``defs``).
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

TOLD_FROM_S: Final = 3.0
"""Seconds from which a wait is told: a shorter one is over before anybody wonders."""

_SAME: Final = timedelta(minutes=1)


class Waits:
    """Tells of waits.

    Args:
        tell: takes in words what is waited for, and the moment at which that ends at the latest.
        clock: this machine's time.
    """

    def __init__(
        self, tell: Callable[[str, datetime], None], clock: Callable[[], datetime]
    ) -> None:
        self._tell, self._clock = tell, clock
        self._told: dict[str, datetime] = {}

    def __call__(self, why: str, wait_s: float) -> None:
        """Take in that something is waited for so many seconds."""
        if wait_s < TOLD_FROM_S:
            return
        now = self._clock()
        until, told = now + timedelta(seconds=wait_s), self._told.get(why)
        if told is None or told < now or until - told > _SAME:
            self._told[why] = until
            self._tell(why, until)
