"""Objects that a store's path may hold in place of the expected file or folder."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

PRECIOUS = "not to be lost"


def _link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere")


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _link_to_file(path: Path) -> None:
    target = outside(path) / "file"
    target.write_text(PRECIOUS)
    path.symlink_to(target)


def _link_to_folder(path: Path) -> None:
    target = outside(path) / "folder"
    target.mkdir()
    (target / "inside").write_text(PRECIOUS)
    path.symlink_to(target)


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_text(PRECIOUS)


def _socket(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


def _file(path: Path) -> None:
    path.write_text(PRECIOUS)


MAKERS: dict[str, Callable[[Path], None]] = {
    "link to nothing": _link_to_nothing,
    "loop": _loop,
    "link to file": _link_to_file,
    "link to folder": _link_to_folder,
    "folder": _folder,
    "pipe": os.mkfifo,
    "socket": _socket,
    "file": _file,
}


def outside(path: Path) -> Path:
    """Return a folder outside the store of a path, in the temporary folder of the test."""
    root = next(folder for folder in path.parents if (folder / "store.json").exists())
    found = root.parent / "outside"
    found.mkdir(exist_ok=True)
    return found


def put(path: Path, kind: str) -> None:
    """Put an object of a kind at a path, after moving away what is there."""
    if path.exists():
        path.rename(outside(path) / "before")
    path.parent.mkdir(parents=True, exist_ok=True)
    MAKERS[kind](path)
