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

from ktrdr_pipelines.cli.processes import GRACE_S, lives, start

_POLL_S = 0.1
_INTERRUPT_GRACE_S = 4.0
_ALL_WELL = b"."


@contextmanager
def last_will(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """See to it that a group ends with this process, however that ends, while the context lasts."""
    watch = start([sys.executable, "-m", __name__, str(process.pid)])
    assert watch.stdin is not None  # noqa: S101  (started with a pipe)
    try:
        yield
    finally:
        with suppress(OSError):
            watch.stdin.write(_ALL_WELL)
            watch.stdin.close()
        watch.wait()


def end_group(group: int, *, grace_s: float = GRACE_S) -> None:
    """End a group as Ctrl-C would, harder where that does not do it.

    The first step reaches the group's first process alone and is a short one: loads go on through
    it, and save what they have at the second, which reaches all.
    """
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            (os.kill if signum is signal.SIGINT else os.killpg)(group, signum)
        wait_s = min(grace_s, _INTERRUPT_GRACE_S) if signum is signal.SIGINT else grace_s
        deadline_s = time.monotonic() + wait_s
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
