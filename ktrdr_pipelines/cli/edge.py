"""The edge of the process: whatever happens becomes one message and an exit code.

Exit codes: 0 done, 1 failed, 2 bad usage, 3 incomplete, 128 and the signal's number where a
signal ended it. No traceback ever reaches the terminal; it goes to the log (``cli.logfile``).
"""

import errno
import logging
import sys
from collections.abc import Callable, Mapping
from typing import IO, Any, Final, Protocol, runtime_checkable

import typer

from ktrdr_pipelines.cli.logfile import LogFile
from ktrdr_pipelines.cli.output import error_json, note, say_json
from ktrdr_pipelines.cli.stopping import Stopped, stoppable
from ktrdr_pipelines.cli.streams import mute, tell_somewhere
from ktrdr_pipelines.errors import ExitCode, KtrdrError

INTERRUPTED: Final = 130
_OF_THE_DISK: Final = frozenset({errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EROFS})


@runtime_checkable
class _UsageError(Protocol):
    """What typer raises for a command line that it cannot read, in every version of it."""

    exit_code: int

    def format_message(self) -> str: ...

    def show(self, file: IO[str]) -> None: ...


def run(command: Callable[[list[str]], object], arguments: list[str], log: LogFile) -> int:
    """Run a command line and give its exit code.

    Args:
        command: takes the arguments; gives an exit code, or anything else for success.
        arguments: what stands behind the program's name.
        log: where tracebacks go.
    """
    as_json = "--json" in arguments
    try:
        with stoppable():
            code = command(arguments)
            sys.stdout.flush()
        return code if isinstance(code, int) else ExitCode.DONE
    except BrokenPipeError:  # whoever read the output has gone, as ``head`` does
        mute(sys.stdout, sys.stderr)
        return ExitCode.FAILED
    except (Stopped, KeyboardInterrupt, typer.Abort) as stop:
        _tell("stopped; what was saved stays", kind="Stopped", as_json=as_json)
        return stop.exit_code if isinstance(stop, Stopped) else INTERRUPTED
    except KtrdrError as error:
        _tell_document(f"Error: {error}", error_json(error), as_json=as_json)
        return error.exit_code
    except Exception as error:  # noqa: BLE001  (the process edge)
        return _surprise(error, log, as_json=as_json)


def _tell(text: str, *, kind: str, as_json: bool) -> None:
    _tell_document(text, {"kind": kind, "message": text}, as_json=as_json)


def _tell_document(text: str, document: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        tell_somewhere(lambda: say_json({"error": document}, lines=False), lambda: note(text))
    else:
        tell_somewhere(lambda: note(text), lambda: None)


def _surprise(error: Exception, log: LogFile, *, as_json: bool) -> int:
    """Tell of an error that is not the project's own: of typer, of the disk, or a defect."""
    if isinstance(error, _UsageError):
        if as_json:
            _tell(error.format_message(), kind="UsageError", as_json=as_json)
        else:
            tell_somewhere(lambda: error.show(sys.stderr), lambda: None)
        return error.exit_code
    log.handle(_record(error))
    where = f"The details are in {log.path}" if log.path else "No log could be written"
    text = f"Error: {_told(error)}. {where}"
    _tell(text, kind=type(error).__name__, as_json=as_json)
    return ExitCode.FAILED


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        place: Any = error.filename or "the system"
        is_of_disk = error.filename is not None or error.errno in _OF_THE_DISK
        remedy = "; make room or make it writable" if is_of_disk else ""
        return f"{place}: {error.strerror} ({type(error).__name__}){remedy}"
    text = " ".join(str(error).split())
    return f"an unexpected {type(error).__name__}{f': {text}' if text else ''}"


def _record(error: Exception) -> logging.LogRecord:
    told = (type(error), error, error.__traceback__)
    return logging.LogRecord(__name__, logging.ERROR, __file__, 0, "unexpected", None, told)
