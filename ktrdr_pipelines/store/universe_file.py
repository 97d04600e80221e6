"""The universe file of a store, and the copy of its last good text.

Not here: what the text means (``domain.universe.universe``), editing it
(``domain.universe.editing``).
"""

import contextlib
import stat
from dataclasses import dataclass
from pathlib import Path

from ktrdr_pipelines.domain.universe.universe import Universe, parse_universe
from ktrdr_pipelines.errors import UniverseError
from ktrdr_pipelines.store.files import write_atomically

FILE_DESCRIPTORS = ("/dev/fd", "/dev/stdin", "/proc")


@dataclass(frozen=True, slots=True)
class UniverseFile:
    """A universe file that the user edits, and a copy of its last good text."""

    path: Path
    last_good: Path

    def read(self) -> tuple[Universe, UniverseError | None]:
        """Return the universe; with the file's error where the last good copy replaces it.

        Raises:
            UniverseError: the file is invalid and there is no good copy.
            DiskError: the copy cannot be written.
        """
        try:
            text = _text_of(self.path)
            universe = parse_universe(text, str(self.path))
        except UniverseError as problem:
            try:
                return parse_universe(_text_of(self.last_good), str(self.path)), problem
            except UniverseError:
                raise problem from None
        with contextlib.suppress(OSError, UniverseError):
            if _text_of(self.last_good) == text:
                return universe, None
        write_atomically(self.last_good, lambda file: file.write(text.encode()))
        return universe, None


def load_universe(path: Path) -> Universe:
    """Return the universe in a file.

    Raises:
        UniverseError: it is missing or malformed; the text names file, line and key.
    """
    return parse_universe(_text_of(path), str(path))


def _text_of(path: Path) -> str:
    _refuse_odd(path)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UniverseError(
            str(path), reason="there is no such file", hint="Create one with `ktrdr init`"
        ) from None
    except UnicodeDecodeError as error:
        raise UniverseError(
            f"{path}, byte {error.start + 1}", reason="is not UTF-8", hint="Save the file as UTF-8"
        ) from None
    except OSError as error:
        raise UniverseError(
            str(path), reason=f"cannot be read ({error.strerror})", hint="Check its permissions"
        ) from error


def _refuse_odd(path: Path) -> None:
    """Refuse to open anything but a file: a named pipe would block this process forever.

    Exempt are open file descriptors, by which a shell offers the output of a command as a file.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if not path.is_symlink():
            return
        reason = f"cannot be read: it is a link that leads nowhere ({error.strerror})"
    else:
        if stat.S_ISREG(mode) or any(path.is_relative_to(one) for one in FILE_DESCRIPTORS):
            return
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        reason = f"cannot be read: it is {kind}, not a file"
    raise UniverseError(
        str(path), reason=reason, hint="Run `ktrdr repair`, which quarantines it in a store"
    )
