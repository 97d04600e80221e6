"""Ends of processes that hang: what waits for them gets an error, never no answer."""

import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def killed_after(
    seconds: float, processes: Iterable["subprocess.Popen[Any]"], what: str
) -> Iterator[None]:
    """Kill processes that are still needed after a time.

    Raises:
        TimeoutError: they were killed; whatever that led to is the error's context.
    """
    expired = threading.Event()

    def end() -> None:
        expired.set()
        for process in processes:
            process.kill()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if expired.is_set():
            raise TimeoutError(f"{what} did not end in {seconds:g} s, and was killed")
