"""The three streams of the process: always there, and no trouble once nobody reads them.

Not here: what is printed (``cli.output``), what an error says (``cli.edge``).
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TextIO

_MODES: Final = {"stdin": "r", "stdout": "w", "stderr": "w"}


def take_streams() -> None:
    """Stand the null device in for streams that were closed, and write whatever can be written.

    A closed one would leave its number to the next file that is opened, and whoever prints to it
    would print into that file.
    """
    for name, mode in _MODES.items():
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]


def is_unicode(stream: TextIO) -> bool:
    """Return whether a stream can print every character."""
    return (stream.encoding or "utf-8").lower().startswith("utf")


def showable(text: str, stream: TextIO) -> str:
    """Return text with escapes for the characters that a stream cannot print."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def typed_text(text: str, encoding: str | None = None) -> str:
    """Return text that was typed or piped in as UTF-8, also where the locale is another.

    Python keeps bytes that an ASCII locale does not know as lone surrogates. Bytes that are no
    UTF-8 stay as Python read them.

    Args:
        text: an argument, or what a stream gave.
        encoding: the stream's; without it, that of arguments.
    """
    with suppress(UnicodeError):
        return text.encode(encoding or sys.getfilesystemencoding(), "surrogateescape").decode()
    return text


def mute(*streams: TextIO) -> None:
    """Let what is still printed to streams go nowhere, at the end of the process too."""
    for stream in streams:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def tell_somewhere(result: Callable[[], object], beside: Callable[[], object]) -> None:
    """Print to stdout, or where that refuses beside the result; readers that have gone are well."""
    try:
        result()
        sys.stdout.flush()
    except BrokenPipeError:
        mute(sys.stdout, sys.stderr)
    except OSError:
        mute(sys.stdout)
        with suppress(OSError):
            beside()
