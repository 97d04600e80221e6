"""The clocks of this machine: real time, the time of the market, and seconds since the start.

Real and market time are the same unless ``KTRDR_CLOCK_OFFSET_S`` moves the market's, so that a
gateway whose clock is in the past (a recording, a simulator) can be worked with as if it were the
present.

**Market time** decides what has traded: which bars are due, which sessions have closed, how far
windows reach, how fresh a series is, when a proof of emptiness expires. **Real time** is for
everything that happens between this machine and others: rate limits, deadlines, claims, the next
try of what failed, the audit, ages of files and runs. **Boot time** is what processes share for
rate limits: it never jumps. Not here: the gateway's clock (``ib.connection.connection``).
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


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


def boot_time_s() -> float:
    """Give seconds since this machine started, asleep or not; the same in every process."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


@cache
def boot_id() -> str:
    """Name this run of the machine; timestamps of another run mean nothing.

    Where the system gives no name it is constant: then timestamps from before a restart look as if
    they lay in the future, and whoever reads them must drop those (``ib.pacing.shared_state``).
    """
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return "unnamed"
