"""End the process group of a command that was killed and could not do so itself.

After ``kill -9`` or an out-of-memory kill, the children of a command would run for ever. Run as a
module, this watchdog reads its stdin, which only that command holds open.

Not here: the ordinary end of processes (``cli.processes``).
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
    """End the group of a process if this process is killed while the context lasts."""
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
    """Terminate a group, and kill it if it does not end within ``grace_s``.

    The time is short: loads save what they have and return their permits, which takes seconds.
    What is not done by then is lost as if it had been killed with the command.
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
    """Wait until the command ends; end the group unless the command ended in order."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    if not sys.stdin.buffer.read():
        end_group(int(sys.argv[1]))


if __name__ == "__main__":
    main()
