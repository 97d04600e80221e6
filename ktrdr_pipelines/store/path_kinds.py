"""What stands at a path of the store: a file, a folder, or something that cannot be used there.

Nothing is opened to find out, as opening a named pipe waits for its other end. A link to a regular
file or a folder is as good as that itself, with two exceptions. A bar file is never a link: it is
replaced by each save, and its target would not be. A linked folder of bars may not lead into a
store, whose files would then belong to two series or two stores.

Not here: setting aside what cannot be used (``store.odd_paths``).
"""

import os
import stat
from pathlib import Path

from ktrdr_pipelines.errors import CorruptFileError, OddPathError

_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_REMEDY = "Run `ktrdr repair`, which sets it aside"


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
        raise OddPathError(f"cannot use {path}", came=f"it is {kind}", remedy=_REMEDY)
    return True


def bar_file_oddity(path: Path) -> str | None:
    """Return what is wrong with what stands at the path of a bar file; None for a file."""
    kind = kind_of(path)
    return None if kind in {None, _KINDS[stat.S_IFREG]} else f"it is {kind}, not a file"


def not_a_bar_file(path: Path) -> CorruptFileError:
    """Return the error of a path that should lead to a bar file."""
    return CorruptFileError(
        f"cannot read {path} as a bar file", came=str(bar_file_oddity(path)), remedy=_REMEDY
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
            came=f"it is {kind_of(bars)} inside a store",
            remedy="Point the link to a folder that is in no store",
        )
    for one in (bars, symbol, folder):
        kind = kind_of(one)
        if kind is None:
            return
        if not (is_folder(one) if one == bars else is_series_folder(one)):
            shared = " inside a store" if is_folder(one) else ""
            raise OddPathError(
                f"cannot use {one} as a folder of bars",
                came=f"it is {kind}{shared}",
                remedy=f"{_REMEDY}, or make a writable folder in its place",
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
