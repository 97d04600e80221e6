"""Small promises about files: a name holds the whole old content or the whole new one.

Every file of the store but the SQLite ledger is written through here.

What stands at a path of the store: a file, a folder, or something that cannot be used there.

Nothing is opened to find out, as opening a named pipe waits for its other end. A link to a regular
file or a folder is as good as that itself, with two exceptions. A bar file is never a link: it is
replaced by each save, and its target would not be. A linked folder of bars may not lead into a
store, whose files would then belong to two series or two stores.
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
            replace_file(temp, path)
        finally:
            temp.unlink(missing_ok=True)


def replace_file(temp: Path, path: Path) -> None:
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
        hint = "Make room, or make the folder readable and writable, and run it again"
        if error.errno in _ODD:
            hint = (
                "Something else than should be stands there or above it: in a store `ktrdr repair` "
                "quarantines it; elsewhere move it away, or name a folder that is writable"
            )
        raise DiskError(
            f"cannot use {path}", reason=error.strerror or str(error), hint=hint
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
                reason=f"another process has held {path} for over {timeout_s:g} s",
                hint="See whether a load of it hangs, end that process and run it again",
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
    """Return in words what stands at a path, such as ``a folder``; None where nothing does."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return f"something that cannot be looked at ({error.strerror})"
    if not stat.S_ISLNK(mode):
        return _KINDS.get(stat.S_IFMT(mode), "something unknown")
    target = path.readlink()
    try:
        followed = _KINDS.get(stat.S_IFMT(path.stat().st_mode), "something unknown")
    except FileNotFoundError:
        return f"a link to {target}, which is not there"
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
    """Return whether a path is a link to something that is not there, and could come back."""
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
    """Return whether the bars of a symbol or series can stand in a folder."""
    if not is_folder(path):
        return False
    return not path.is_symlink() or not _is_in_store(path)


def require_file(path: Path) -> bool:
    """Return whether there is a file; links are followed.

    Raises:
        OddPathError: something else stands there.
    """
    kind = kind_of(path)
    if kind is None:
        return False
    if not is_regular(path):
        raise OddPathError(f"cannot use {path}", reason=f"it is {kind}", hint=_HINT)
    return True


def bar_file_oddity(path: Path) -> str | None:
    """Return what is wrong with what stands at the path of a bar file; None for a file."""
    kind = kind_of(path)
    return None if kind in {None, _KINDS[stat.S_IFREG]} else f"it is {kind}, not a file"


def not_a_bar_file(path: Path) -> CorruptFileError:
    """Return the error of a path that should lead to a bar file."""
    return CorruptFileError(
        f"cannot read {path} as a bar file", reason=str(bar_file_oddity(path)), hint=_HINT
    )


def require_series_folder(folder: Path) -> None:
    """Refuse to read or write bars where their folder, or one above it, is something else.

    Raises:
        OddPathError: it is.
    """
    symbol = folder.parent
    bars = symbol.parent
    if bars.is_symlink() and is_folder(bars) and _is_below_marker(Path(os.path.realpath(bars))):
        raise OddPathError(
            f"cannot use {bars} as the folder of bars",
            reason=f"it is {kind_of(bars)} inside a store",
            hint="Point the link to a folder that is in no store",
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
                hint=f"{_HINT}, or make a writable folder in its place",
            )


def _leads_to(path: Path, kind: int) -> bool:
    try:
        return stat.S_IFMT(path.stat().st_mode) == kind
    except OSError:
        return False


def _is_in_store(path: Path) -> bool:
    """Return whether the target of a linked folder belongs to a store, this one or another."""
    target = path.resolve()
    above = {target, *target.parents}
    own = {path.parent.resolve(), path.parent.parent.resolve()}
    return bool(own & above) or _is_below_marker(target)


def _is_below_marker(target: Path) -> bool:
    """Return whether a folder, or one above it, is a store."""
    return any(os.path.lexists(one / "store.json") for one in (target, *target.parents))
