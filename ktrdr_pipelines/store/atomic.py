"""Small promises about files: a name holds the whole old content or the whole new one.

Every file of the store but the SQLite ledger is written through here. Not here: what is written
(``store.layout``, ``store.parquet``, ``store.catalog``).
"""

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from ktrdr_pipelines.errors import DiskError, StoreError

TEMP_SUFFIX = ".tmp"
"""What names of unfinished files end with; no glob of bars or catalogs meets it."""

_ODD = {errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.ENOTEMPTY, errno.ENXIO}
"""What the system says where a file, a folder or a link stands in place of another of them."""

LOCK_TIMEOUT_S = 60.0
"""Seconds to wait for a lock: holders keep one for a second or so, never while asking."""


def write_atomically(
    path: Path,
    write: Callable[[BinaryIO], object],
    before_renaming: Callable[[], object] | None = None,
) -> None:
    """Put a file in place in one step that outlives a crash and a power cut.

    Args:
        path: the file.
        write: writes its content.
        before_renaming: raises where the file must not be put in place after all. The unfinished
            file is in the folder by then: where the folder is moved away afterwards, the renaming
            fails and does nothing to what is at ``path`` then.

    Raises:
        DiskError: the system refused; what stood at ``path`` still stands there.
    """
    with disk_errors(path):
        make_folder(path.parent)
        temp = temp_beside(path)
        try:
            with temp.open("xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            if before_renaming is not None:
                before_renaming()
            put_in_place(temp, path)
        finally:
            temp.unlink(missing_ok=True)


def put_in_place(temp: Path, path: Path) -> None:
    """Rename a finished file over ``path`` and make the renaming itself durable."""
    temp.replace(path)
    sync_folder(path.parent)


def temp_beside(path: Path) -> Path:
    """Give a new name for the unfinished version of a file, in the same folder."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMP_SUFFIX}")


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, each durable in the one that holds it."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the system's refusals into DiskError.

    Arrow raises OSError without an errno for bad content; that is not the disk's fault and passes.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        remedy = "Make room, or make the folder readable and writable, and run it again"
        if error.errno in _ODD:
            remedy = (
                "Something else than should be stands there or above it: in a store `ktrdr repair` "
                "sets it aside; elsewhere move it away, or name a folder that is writable"
            )
        raise DiskError(
            f"cannot use {path}", came=error.strerror or str(error), remedy=remedy
        ) from error


@contextmanager
def locked(path: Path, what: str, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold a lock file for as long as the block runs; the system frees it when the holder dies.

    Raises:
        StoreError: another process held it for longer than ``timeout_s``.
    """
    with disk_errors(path):
        make_folder(path.parent)
        lock = FileLock(path, timeout=timeout_s, poll_interval=0.01)
        try:
            lock.acquire()
        except Timeout as error:
            raise StoreError(
                f"cannot lock {what}",
                came=f"another process has held {path} for over {timeout_s:g} s",
                remedy="See whether a load of it hangs, end that process and run it again",
            ) from error
    try:
        yield
    finally:
        lock.release()
