"""Files that only their user may read: all files in the state folder, whatever the umask.

Folders have the mode 0700, files 0600; existing ones with another mode get it when they are opened.
On systems without such modes nothing changes.

Not here: the contents of the files (``ib.pacing.shared_file``, ``ib.connection.client_ids``,
``ib.connection.accounts``, ``cli.entry_point``).
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
    """Create a folder and its missing parents; the folder itself becomes private.

    Raises:
        OSError: it cannot be created.
    """
    if not folder.is_dir():
        if not folder.parent.is_dir():
            make_private_folder(folder.parent)
        folder.mkdir(FOLDER_MODE, exist_ok=True)
    _make_private(folder)


def make_private_file(path: Path) -> None:
    """Create an empty private file; an existing one keeps its content and becomes private.

    An existing file is never opened: closing it would drop the locks that SQLite has on it.

    Raises:
        OSError: it cannot be created.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, FILE_MODE))
    _make_private(path)


def make_private_database(path: Path) -> None:
    """Create a SQLite file like ``make_private_file``; the files that SQLite adds take its mode.

    Raises:
        OSError: it cannot be created.
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
    """Write a private file atomically and durably.

    Raises:
        OSError: it cannot be written; an earlier file at ``path`` is unchanged.
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
    """Make a state folder and this program's files in it private, as far as possible.

    Earlier versions created them with other modes. Other files keep theirs: the folder may be
    shared with other programs.
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
    """Set the private mode; files of another user stay unchanged.

    A folder that many users share, such as ``/tmp``, has the sticky bit and stays unchanged.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    wanted = FOLDER_MODE if stat.S_ISDIR(mode) else FILE_MODE
    if stat.S_IMODE(mode) != wanted and not mode & stat.S_ISVTX:
        with suppress(OSError):
            path.chmod(wanted)
