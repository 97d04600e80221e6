"""The simulator's now: one settable clock, the only reader of the machine's time."""

import time
from datetime import UTC, datetime, timedelta


class SimClock:
    """A clock that starts at a given moment, and runs on at real speed or stands still.

    Args:
        now: where it starts, with a zone; None is the machine's own time.
        runs: whether it goes on from there.
    """

    def __init__(self, now: datetime | None = None, *, runs: bool = True) -> None:
        self._runs = runs
        self.set(now if now is not None else datetime.now(UTC))

    def __repr__(self) -> str:
        state = "running" if self._runs else "standing"
        return f"SimClock({self.now().isoformat(timespec='seconds')}, {state})"

    def set(self, now: datetime) -> None:
        """Move the clock to a moment.

        Raises:
            ValueError: the moment has no zone.
        """
        if now.tzinfo is None:
            raise ValueError(f"now={now.isoformat()} has no zone")
        self._origin = now.astimezone(UTC), time.monotonic()

    def now(self) -> datetime:
        """Return the present moment in UTC."""
        start, set_at = self._origin
        return start + timedelta(seconds=time.monotonic() - set_at) if self._runs else start
