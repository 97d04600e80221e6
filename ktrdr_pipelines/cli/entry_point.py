"""Run a command line so that it always ends with one message and an exit code.

Exit codes: 0 done, 1 failed, 2 bad usage, 3 incomplete, 128 plus the signal's number if a signal
ended the command. A command that is stopped saves what it has received. The terminal shows one
line; warnings and tracebacks go to the log file. It lies in the state folder, is created with its
first line, and only its user may read it.
"""

import contextlib
import errno
import logging
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any, Final, Protocol, TypeVar, runtime_checkable

import typer

from ktrdr_pipelines.cli.output import mute, note, print_with_fallback, say_json
from ktrdr_pipelines.errors import ExitCode, KtrdrError, StoreError
from ktrdr_pipelines.ib.private_files import make_private_folder, private_opener

NAME: Final = "ktrdr.log"
MOST_BYTES: Final = 1_000_000
"""Size above which the log is renamed to ``ktrdr.log.1``, replacing an older one."""


class LogFile(logging.Handler):
    """Appends records to a file in the first writable folder, or drops them if there is none."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s")
        )
        self.path: Path | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, with its traceback."""
        text = f"{self.format(record)}\n"
        for where in (_in_state_folder, _in_temp_folder):
            with contextlib.suppress(OSError):
                self.path = _append(where(), text)
                return


def log_to_file() -> LogFile:
    """Send log records and Python's warnings to the log file, and nothing to the terminal."""
    handler = LogFile()
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(capture=True)
    return handler


def _in_state_folder() -> Path:
    import platformdirs

    from ktrdr_pipelines.settings import load_settings

    try:
        folder = load_settings().ktrdr_state
    except KtrdrError:  # the error to log may be that of the settings
        folder = platformdirs.user_state_path("ktrdr", appauthor=False)
    make_private_folder(folder)
    return folder / NAME


def _in_temp_folder() -> Path:
    return Path(tempfile.gettempdir()) / NAME


def _append(path: Path, text: str) -> Path:
    if path.exists() and path.stat().st_size > MOST_BYTES:
        path.replace(path.with_name(f"{NAME}.1"))
    with open(
        path, "a", encoding="utf-8", errors="backslashreplace", opener=private_opener
    ) as file:
        file.write(text)
    return path


T = TypeVar("T")
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal stopped the command; not an ``Exception``, so that no such handler catches it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """The exit code that shells expect of a command ended by a signal."""
        return 128 + self.signum


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise Stopped when a signal arrives; ignored signals stay ignored."""
    taken = [one for one in SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]
    older = [(one, signal.signal(one, _raise)) for one in taken]
    try:
        yield
    finally:
        for one, handler in older:
            signal.signal(one, handler)


def run_stoppable(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine; a signal cancels it, and a second signal interrupts its cleanup.

    Raises:
        Stopped: a signal ended the coroutine.
        StoreError: a signal ended the coroutine, and the bars it held could not be saved.
    """
    import asyncio

    handlers = {one: signal.getsignal(one) for one in SIGNALS}
    received: list[int] = []
    try:
        return asyncio.run(_cancellable(coroutine, received))
    except StoreError:
        raise
    except BaseException as error:
        if received:
            raise Stopped(received[0]) from error
        raise
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)


async def _cancellable(coroutine: Coroutine[Any, Any, T], received: list[int]) -> T:
    import asyncio

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
    return await coroutine


def _raise(signum: int, _: FrameType | None) -> None:
    raise Stopped(signum)


INTERRUPTED: Final = 130
_OF_THE_DISK: Final = frozenset({errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EROFS})


@runtime_checkable
class _UsageError(Protocol):
    """The error that every version of typer raises for a command line that it cannot parse."""

    exit_code: int

    def format_message(self) -> str: ...

    def show(self, file: IO[str]) -> None: ...


def run(command: Callable[[list[str]], object], arguments: list[str], log: LogFile) -> int:
    """Run a command line and return its exit code.

    Args:
        command: takes the arguments; returns an exit code, or anything else for success.
        arguments: the arguments after the program's name.
        log: where tracebacks go.
    """
    as_json = "--json" in arguments
    try:
        with stoppable():
            code = command(arguments)
            sys.stdout.flush()
        return code if isinstance(code, int) else ExitCode.DONE
    except BrokenPipeError:  # the reader of the output has closed the pipe, as ``head`` does
        mute(sys.stdout, sys.stderr)
        return ExitCode.FAILED
    except (Stopped, KeyboardInterrupt, typer.Abort) as stop:
        code = stop.exit_code if isinstance(stop, Stopped) else INTERRUPTED
        return _end("stopped; what was saved is kept", code, kind="Stopped", as_json=as_json)
    except KtrdrError as error:
        return _end(f"Error: {error}", error.exit_code, error=error, as_json=as_json)
    except Exception as error:  # noqa: BLE001  (the process edge)
        return _end_foreign(error, log, as_json=as_json)


def _end(
    text: str, exit_code: int, *, kind: str = "", error: KtrdrError | None = None, as_json: bool
) -> int:
    """Print why a command ended, as text or as a document, and return its exit code."""

    def say_document() -> None:
        from ktrdr_pipelines.app.views.documents import ErrorDocument, FailureDocument

        found = ErrorDocument.of_any(error) or ErrorDocument.of_text(kind, text)
        say_json(FailureDocument.of(found, exit_code), lines=False)

    if as_json:
        print_with_fallback(say_document, lambda: note(text))
    else:
        print_with_fallback(lambda: note(text), lambda: None)
    return exit_code


def _end_foreign(error: Exception, log: LogFile, *, as_json: bool) -> int:
    """End with an error that is not a KtrdrError: one of typer, of the disk, or a defect."""
    if isinstance(error, _UsageError):
        if as_json:
            return _end(error.format_message(), error.exit_code, kind="UsageError", as_json=True)
        print_with_fallback(lambda: error.show(sys.stderr), lambda: None)
        return error.exit_code
    trace = (type(error), error, error.__traceback__)
    log.handle(logging.LogRecord(__name__, logging.ERROR, __file__, 0, "unexpected", None, trace))
    where = f"Details are in {log.path}" if log.path else "The log could not be written"
    text = f"Error: {_foreign_error_text(error)}. {where}"
    return _end(text, ExitCode.FAILED, kind=type(error).__name__, as_json=as_json)


def _foreign_error_text(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where: Any = error.filename or "the system"
        is_of_disk = error.filename is not None or error.errno in _OF_THE_DISK
        hint = "; free some space or make it writable" if is_of_disk else ""
        return f"{where}: {error.strerror} ({type(error).__name__}){hint}"
    text = " ".join(str(error).split())
    return f"an unexpected {type(error).__name__}{f': {text}' if text else ''}"
