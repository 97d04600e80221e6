"""Stopping by a signal: commands end at a point where nothing is lost, and say so.

Not here: what is saved on the way (``load``), what is said and the exit code (``cli.edge``).
"""

import asyncio
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, TypeVar

from ktrdr_pipelines.errors import StoreError

T = TypeVar("T")
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked the command to end: no error, so that nothing takes it for one."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """What a shell expects of a command that a signal ended."""
        return 128 + self.signum


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise Stopped where a signal arrives; a signal that is ignored stays ignored."""
    taken = [one for one in SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]
    older = [(one, signal.signal(one, _raise)) for one in taken]
    try:
        yield
    finally:
        for one, handler in older:
            signal.signal(one, handler)


def run_stoppable(work: Coroutine[Any, Any, T]) -> T:
    """Run async work; a signal cancels it, and a second one does not wait for it to tidy up.

    Raises:
        Stopped: a signal ended the work.
        StoreError: a signal ended it, and what it held could not be saved.
    """
    handlers = {one: signal.getsignal(one) for one in SIGNALS}
    received: list[int] = []
    try:
        return asyncio.run(_cancellable(work, received))
    except StoreError:
        raise
    except BaseException as error:
        if received:
            raise Stopped(received[0]) from error
        raise
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)


async def _cancellable(work: Coroutine[Any, Any, T], received: list[int]) -> T:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101  (a coroutine that runs has a task)
    taken = [one for one in SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]

    def stop(signum: int) -> None:
        received.append(signum)
        for one in taken:
            loop.remove_signal_handler(one)
        task.cancel()

    for one in taken:
        loop.add_signal_handler(one, stop, one)
    return await work


def _raise(signum: int, _: FrameType | None) -> None:
    raise Stopped(signum)
