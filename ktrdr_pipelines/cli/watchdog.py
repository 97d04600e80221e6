"""A process that ends another one's group when the command that started both was killed.

``kill -9``, a closed machine's out-of-memory killer: such a command ends nothing any more, and
its children would go on for ever. Run as a module it watches its stdin, which only that command
holds open. Not here: the ordinary end (``cli.processes``).
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ktrdr_pipelines.cli.processes import lives, start

GRACE_S = 6.0
_POLL_S = 0.1
_ENDED_BY_ITSELF = b"."


@contextmanager
def last_will(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """See to it that a group ends with this process, however that ends, while the context lasts."""
    watch = start([sys.executable, "-m", __name__, str(process.pid)])
    assert watch.stdin is not None  # noqa: S101  (started with a pipe)
    try:
        yield
    finally:
        with suppress(OSError):
            watch.stdin.write(_ENDED_BY_ITSELF)
            watch.stdin.close()
        watch.wait()


def end_group(group: int, *, grace_s: float = GRACE_S) -> None:
    """End a group: all of it are asked to end, and killed where they do not in time.

    The time is short. Loads save what they have and give their permits back, which takes seconds,
    and what is not done then is as if it had been killed with the command.
    """
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signum)
        deadline_s = time.monotonic() + grace_s
        while lives(group) and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
        if not lives(group):
            return


def main() -> None:
    """Wait for the end of the command; end the group unless it said that all is well."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    if not sys.stdin.buffer.read():
        end_group(int(sys.argv[1]))


if __name__ == "__main__":
    main()
