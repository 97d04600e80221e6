"""Files that only their user may read: what lies in the state folder, whatever the umask says.

Folders have the mode 0700, files 0600; what exists with another mode gets it when it is opened. On
systems without such modes nothing changes. Not here: what the files hold
(``ib.pacing.shared_file``, ``ib.connection.client_ids``, ``ib.connection.accounts``,
``cli.entry_point``).
"""

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

FOLDER_MODE: Final = 0o700
FILE_MODE: Final = 0o600

_GATEWAY_FILES = ("pacer.*", "client-*")
_STATE_FILES = ("ktrdr.log*", "logins.*")


def make_private_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing; the folder itself becomes private.

    Raises:
        OSError: it cannot be made.
    """
    if not folder.is_dir():
        if not folder.parent.is_dir():
            make_private_folder(folder.parent)
        folder.mkdir(FOLDER_MODE, exist_ok=True)
    _make_private(folder)


def make_private_file(path: Path) -> None:
    """Make a file, empty, where there is none; one that is there keeps its content.

    An existing file is never opened: closing it would drop the locks that SQLite has on it.

    Raises:
        OSError: it cannot be made.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, FILE_MODE))
    _make_private(path)


def make_private_database(path: Path) -> None:
    """Make a SQLite file as ``make_private_file``; the files that SQLite adds take its mode.

    Raises:
        OSError: it cannot be made.
    """
    make_private_file(path)
    for suffix in ("-wal", "-shm"):
        _make_private(path.with_name(path.name + suffix))


def private_opener(path: str, flags: int) -> int:
    """Open a file privately; for the ``opener`` argument of ``open``."""
    handle = os.open(path, flags, FILE_MODE)
    _make_private(Path(path))
    return handle


def write_privately(path: Path, content: bytes) -> None:
    """Put a private file in place in one step, durably.

    Raises:
        OSError: the system refused; what stood at ``path`` still stands there.
    """
    temp = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temp, "xb", opener=private_opener) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temp.replace(path)
    finally:
        temp.unlink(missing_ok=True)


def tighten_state(folder: Path) -> None:
    """Make a state folder and what earlier versions left in it private, as far as possible.

    Files that are not this program's keep their modes: the folder may hold other things.
    """
    if not folder.is_dir():
        return
    _make_private(folder)
    with suppress(OSError):
        for inner in folder.iterdir():
            if inner.is_dir() and any(inner.glob(_GATEWAY_FILES[0])):
                _make_private(inner)
                _make_files_private(inner, _GATEWAY_FILES)
        _make_files_private(folder, _STATE_FILES)


def _make_files_private(folder: Path, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        for path in folder.glob(pattern):
            if path.is_file():
                _make_private(path)


def _make_private(path: Path) -> None:
    """Set the mode where it is another one; what belongs to another user stays as it is.

    A folder that many users share, such as ``/tmp``, has the sticky bit and is left alone.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    wanted = FOLDER_MODE if stat.S_ISDIR(mode) else FILE_MODE
    if stat.S_IMODE(mode) != wanted and not mode & stat.S_ISVTX:
        with suppress(OSError):
            path.chmod(wanted)
