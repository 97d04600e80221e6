"""Files of the store: atomic writes, locks, and what lies at a path.

A file name refers to the whole old content or the whole new one; every file of the store but the
SQLite ledger and the catalog's build is written through here.

A path may hold a file, a folder, or something that cannot be used there. Nothing is opened to find
out, as opening a named pipe waits for its other end. Links to regular files and folders are used
like their targets, with two exceptions. A bar file is never a link: each save would replace the
link and not its target. A linked folder of bars may not lead into a store, whose files would then
belong to two series or two stores.
"""

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from ktrdr_pipelines.errors import CorruptFileError, DiskError, OddPathError, StoreError

TEMP_SUFFIX = ".tmp"
"""Suffix of unfinished files; no glob of bars or catalogs matches it."""

_ODD = {errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.ENOTEMPTY, errno.ENXIO}
"""Error numbers where a file, a folder or a link lies in place of another of these."""

LOCK_TIMEOUT_S = 60.0
"""Seconds to wait for a lock: holders keep one for about a second, never during a request."""


def write_atomically(
    path: Path,
    write: Callable[[BinaryIO], object],
    before_renaming: Callable[[], object] | None = None,
) -> None:
    """Write a file in one atomic step that survives a crash and a power cut.

    Args:
        path: the file.
        write: writes its content.
        before_renaming: raises where the file must not be put in place after all. The unfinished
            file is in the folder by then: if the folder is moved away afterwards, the renaming
            fails and leaves whatever is at ``path`` then alone.

    Raises:
        DiskError: the system refused; the earlier file is unchanged.
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
            replace_file(temp, path)
        finally:
            temp.unlink(missing_ok=True)


def replace_file(temp: Path, path: Path) -> None:
    """Rename a finished file over ``path`` and make the renaming itself durable."""
    temp.replace(path)
    sync_folder(path.parent)


def temp_beside(path: Path) -> Path:
    """Return an unused path for the unfinished version of a file, in the same folder."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMP_SUFFIX}")


def make_folder(folder: Path) -> None:
    """Create a folder and those above it, each durable in its parent."""
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
    """Translate OSError to DiskError.

    Arrow raises OSError without an errno for invalid content; that is not a disk error and passes.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        hint = "Make room on the disk, or make the folder readable and writable, and run this again"
        if error.errno in _ODD:
            hint = (
                "A file, folder or link lies there or above it in place of another. In a store "
                "`ktrdr repair` quarantines it; elsewhere move it away, or name a writable folder"
            )
        raise DiskError(
            f"cannot use {path}", reason=error.strerror or str(error), hint=hint
        ) from error


@contextmanager
def locked(path: Path, what: str, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold a lock file during the block; the system frees it when the holder dies.

    Args:
        path: the lock file.
        what: what it protects, for messages.
        timeout_s: seconds to wait for another holder.

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
                reason=f"another process has held {path} for over {timeout_s:g} s",
                hint="If a load of it hangs, end that process, and run this again",
            ) from error
    try:
        yield
    finally:
        lock.release()


_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_HINT = "Run `ktrdr repair`, which quarantines it"


def kind_of(path: Path) -> str | None:
    """Return a description of what lies at a path, such as ``a folder``; None if nothing does."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return f"something that cannot be accessed ({error.strerror})"
    if not stat.S_ISLNK(mode):
        return _KINDS.get(stat.S_IFMT(mode), "something unknown")
    target = path.readlink()
    try:
        followed = _KINDS.get(stat.S_IFMT(path.stat().st_mode), "something unknown")
    except FileNotFoundError:
        return f"a link to {target}, which does not exist"
    except OSError as error:
        return f"a link to {target}, which leads nowhere ({error.strerror})"
    return f"a link to {followed}, {target}"


def is_regular(path: Path) -> bool:
    """Return whether a path leads to a regular file, links followed."""
    return _leads_to(path, stat.S_IFREG)


def is_folder(path: Path) -> bool:
    """Return whether a path leads to a folder, links followed."""
    return _leads_to(path, stat.S_IFDIR)


def is_link_to_nothing(path: Path) -> bool:
    """Return whether a path is a link to a missing target, which could come back."""
    if not path.is_symlink():
        return False
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def is_series_folder(path: Path) -> bool:
    """Return whether a folder can hold the bars of a symbol or series."""
    if not is_folder(path):
        return False
    if not path.is_symlink():
        return True
    # A link must not lead into a store, this one or another.
    target = path.resolve()
    above = {target, *target.parents}
    own = {path.parent.resolve(), path.parent.parent.resolve()}
    return not own & above and not _is_below_marker(target)


def require_file(path: Path) -> bool:
    """Return whether a file exists; links are followed.

    Raises:
        OddPathError: something else lies there.
    """
    kind = kind_of(path)
    if kind is None:
        return False
    if not is_regular(path):
        raise OddPathError(f"cannot use {path}", reason=f"it is {kind}", hint=_HINT)
    return True


def require_folders(folder: Path, root: Path) -> None:
    """Refuse a folder below a root that cannot be used; one that does not exist can.

    Raises:
        OddPathError: something else lies in place of it, or of a folder between the two.
    """
    for one in (folder, *folder.parents):
        if one == root:
            return
        if (kind := kind_of(one)) is not None and not is_folder(one):
            raise OddPathError(
                f"cannot use {one} as a folder", reason=f"it is {kind}", hint="Move it away by hand"
            )


def bar_file_oddity(path: Path) -> str | None:
    """Return why a path cannot be a bar file; None for a regular file or an unused path."""
    kind = kind_of(path)
    return None if kind in {None, _KINDS[stat.S_IFREG]} else f"it is {kind}, not a file"


def not_a_bar_file(path: Path) -> CorruptFileError:
    """Return the error of a path that should lead to a bar file."""
    return CorruptFileError(
        f"cannot read {path} as a bar file", reason=str(bar_file_oddity(path)), hint=_HINT
    )


def require_series_folder(folder: Path) -> None:
    """Refuse a folder of bars that cannot be used; the folders above it are checked too.

    Raises:
        OddPathError: one of them is not a folder, or is a link into a store.
    """
    symbol = folder.parent
    bars = symbol.parent
    if _is_usable(bars, symbol, folder):
        return
    if bars.is_symlink() and is_folder(bars) and _is_below_marker(Path(os.path.realpath(bars))):
        raise OddPathError(
            f"cannot use {bars} as the folder of bars",
            reason=f"it is {kind_of(bars)} inside a store",
            hint="Point the link to a folder outside of any store",
        )
    for one in (bars, symbol, folder):
        kind = kind_of(one)
        if kind is None:
            return
        if not (is_folder(one) if one == bars else is_series_folder(one)):
            shared = " inside a store" if is_folder(one) else ""
            raise OddPathError(
                f"cannot use {one} as a folder of bars",
                reason=f"it is {kind}{shared}",
                hint=f"{_HINT}, or create a writable folder in its place",
            )


def _is_usable(*folders: Path) -> bool:
    """Return whether folders one below the other are no links, as far as they exist."""
    for one in folders:
        try:
            mode = os.lstat(one).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False
        if not stat.S_ISDIR(mode):
            return False
    return True


def _leads_to(path: Path, kind: int) -> bool:
    try:
        return stat.S_IFMT(path.stat().st_mode) == kind
    except OSError:
        return False


def _is_below_marker(target: Path) -> bool:
    """Return whether a folder, or one above it, is a store."""
    return any(os.path.lexists(one / "store.json") for one in (target, *target.parents))
