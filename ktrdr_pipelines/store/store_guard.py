"""The store that was opened is still the one at its path.

A data folder can be moved, deleted, or replaced while a process works on it: another store is
created at its path, another disk is mounted there, a link is pointed elsewhere. A process that
opened the old one must not write into the new one. Open handles keep the inodes of the folders from
being used again, so that device and inode tell one folder from another for as long as the guard
lives. The id in the marker tells apart stores that took turns in one folder.

Not here: when a store is opened, and what its marker says (``store.layout``).
"""

import os
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path

from ktrdr_pipelines.errors import StoreReplacedError

_OPENING = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NONBLOCK", 0)


class StoreGuard:
    """Tells whether the folders of a store are those that were opened.

    Args:
        root: the data folder.
        folders: the root and those folders below it that may lie on other disks. One that is not
            there yet is not watched.
        store_id: the id in the marker; None in a store that was made before there were ids.
    """

    def __init__(self, root: Path, folders: Iterable[Path], store_id: str | None) -> None:
        self._root = root
        self._store_id = store_id
        self._handles: dict[Path, int] = {}
        for folder in folders:
            try:
                handle = os.open(folder, _OPENING)
            except OSError:
                continue
            self._handles[folder] = handle
            weakref.finalize(self, os.close, handle)

    def __repr__(self) -> str:
        return f"StoreGuard({self._root})"

    def check(self, read_id: Callable[[], str | None], *, only_root: bool = False) -> None:
        """Refuse to go on where another store, or none, is at the path.

        Args:
            read_id: reads the id in the marker at the path.
            only_root: whether folders below the root may have been replaced.

        Raises:
            StoreReplacedError: the store is not the one that was opened.
        """
        for folder, handle in self._handles.items():
            if only_root and folder != self._root:
                continue
            opened = os.fstat(handle)
            try:
                found = folder.stat()
            except OSError as error:
                raise self._replaced(f"{folder}: {error.strerror}") from error
            if (found.st_dev, found.st_ino) != (opened.st_dev, opened.st_ino):
                raise self._replaced(f"{folder} is another folder now")
        if read_id() != self._store_id:
            raise self._replaced("its store.json has another id now")

    def _replaced(self, reason: str) -> StoreReplacedError:
        return StoreReplacedError(
            f"the store at {self._root} is not the one that was opened",
            came=reason,
            remedy="What was saved before is in the store that was opened, wherever it is now; "
            "put it back, or name its folder in KTRDR_DATA, and run this again",
        )
