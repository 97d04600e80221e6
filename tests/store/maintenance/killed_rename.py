"""Moves a symbol in its own process, which is killed before its n-th change on disk.

Not a test module: ``python killed_rename.py KIND FOLDER NUMBER``. Every rename of a file or a
folder, every removal and every commit of SQLite counts as one change.
"""

import os
import pathlib
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from ktrdr_pipelines.store.layout import open_store
from ktrdr_pipelines.store.ledger import database
from ktrdr_pipelines.store.maintenance.rename import rename, retire
from ktrdr_pipelines.store.maintenance.restore import restore

NOW = datetime(2024, 6, 4, tzinfo=UTC)


class Countdown:
    """Kills this process at the given tick."""

    def __init__(self, left: int) -> None:
        self._left = left

    def tick(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **named: Any) -> Any:
            self.tick()
            return act(*args, **named)

        return counted


def main() -> None:
    """Run one move."""
    kind, folder, number = sys.argv[1:]
    layout, countdown = open_store(pathlib.Path(folder)), Countdown(int(number))

    class Connection(sqlite3.Connection):
        def commit(self) -> None:
            countdown.tick()
            super().commit()

    connect = sqlite3.connect
    database.sqlite3.connect = lambda *a, **n: connect(*a, factory=Connection, **n)  # type: ignore[misc]
    for name in ("rename", "replace", "unlink"):
        setattr(pathlib.Path, name, countdown.before(getattr(pathlib.Path, name)))
    shutil.rmtree = countdown.before(shutil.rmtree)  # type: ignore[assignment]
    if kind == "rename":
        rename(layout, "AAPL", "APPL2", NOW)
    elif kind.startswith("restore"):
        restore(layout, "AAPL", NOW, new_symbol=kind.split()[1])
    else:
        retire(layout, "AAPL", NOW)


main()
