"""The clocks of this machine: real time, market time, and seconds since boot.

Real and market time are the same unless ``KTRDR_CLOCK_OFFSET_S`` moves the market's, so that a
gateway whose clock is in the past (a recording, a simulator) can be used as if it were the present.

**Market time** decides what has traded: which bars are due, which sessions have closed, how far
windows reach, how fresh a series is, when a proof that a range is empty expires. **Real time** is
for everything between this machine and others: rate limits, deadlines, claims, retries after failed
attempts, the audit, ages of files and runs. **Boot time** is shared by processes for rate limits:
it never jumps.

Not here: the gateway's clock (``ib.connection.connection``).
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
    """Return this machine's time, in UTC."""
    return datetime.now(tz=UTC)


@dataclass(frozen=True, slots=True)
class Clock:
    """Real time and market time.

    Args:
        offset_s: seconds by which market time is ahead of real time; negative where it is behind.
        real: returns real time.
    """

    offset_s: float = 0.0
    real: Callable[[], datetime] = system_now

    def real_now(self) -> datetime:
        """Return real time."""
        return self.real()

    def market_now(self) -> datetime:
        """Return market time."""
        return self.market_at(self.real())

    def market_at(self, real: datetime) -> datetime:
        """Return market time at a moment of real time."""
        return real + timedelta(seconds=self.offset_s)

    def moved_now(self) -> datetime | None:
        """Return market time, or None where it is the same as real time."""
        return self.market_now() if self.offset_s else None

    def __str__(self) -> str:
        digits = 0 if self.offset_s.is_integer() else 3
        return (
            f"market time is offset by {self.offset_s:+.{digits}f} s (KTRDR_CLOCK_OFFSET_S); "
            f"it is now {self.market_now():%Y-%m-%dT%H:%M:%SZ} for the market"
        )


def boot_time_s() -> float:
    """Return the seconds since this machine started, suspended or not; equal in all processes."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


@cache
def boot_id() -> str:
    """Return an identifier of this boot of the machine; boot times compare within one boot only.

    Where the system has none it is constant: boot times from before a restart may then lie in the
    future, and their reader must drop those (``ib.pacing.shared_state``).
    """
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return "unnamed"
