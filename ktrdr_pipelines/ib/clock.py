"""The clocks of this machine: one that all its processes share, and the wall.

Not here: the gateway's clock (``ib.connection.connection``).
"""

import sys
import time
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


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


def wall_now() -> datetime:
    """Give this machine's idea of the time."""
    return datetime.now(UTC)
