"""Two meanings of now: real time, and the time of the market.

They are the same unless ``KTRDR_CLOCK_OFFSET_S`` moves the market's, so that a gateway whose clock
is in the past (a recording, a simulator) can be worked with as if it were the present.

**Market time** decides what has traded: which bars are due, which sessions have closed, how far
windows reach, how fresh a series is, when a proof of emptiness expires. **Real time** is for
everything that happens between this machine and others: rate limits, deadlines, claims, the next
try of what failed, the audit, ages of files and runs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta


def system_now() -> datetime:
    """Return this machine's time."""
    return datetime.now(tz=UTC)


@dataclass(frozen=True, slots=True)
class Clock:
    """Tells both times.

    Args:
        offset_s: seconds by which market time is ahead of real time; negative where it is behind.
        real: gives real time.
    """

    offset_s: float = 0.0
    real: Callable[[], datetime] = system_now

    def real_now(self) -> datetime:
        """Return real time."""
        return self.real()

    def market_now(self) -> datetime:
        """Return the time of the market."""
        return self.market_at(self.real())

    def market_at(self, real: datetime) -> datetime:
        """Return the time of the market at a moment of real time."""
        return real + timedelta(seconds=self.offset_s)

    def moved_now(self) -> datetime | None:
        """Return the time of the market where it is not real time, else None."""
        return self.market_now() if self.offset_s else None

    def __str__(self) -> str:
        digits = 0 if self.offset_s.is_integer() else 3
        return (
            f"market time is offset by {self.offset_s:+.{digits}f} s (KTRDR_CLOCK_OFFSET_S); "
            f"it is now {self.market_now():%Y-%m-%dT%H:%M:%SZ} for the market"
        )
