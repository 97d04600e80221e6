"""The lock of a store's Dagster: one ``ktrdr up``, or Dagster's own tools, but never both.

Two daemons would request everything twice and start each other's queued runs. ``ktrdr up`` holds
the lock file alone, through all processes that it starts. Code servers and daemons that other
commands start (``dagster dev``, ``dg dev``, ``dagster-daemon run``) share it for as long as they
live. Commands that only load the definitions do not touch it.

Not here: ending the Dagster that a killed ``ktrdr up`` left behind (``cli.commands.up``).
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from ktrdr_pipelines.errors import StoreError
from ktrdr_pipelines.store.files import disk_errors, make_folder, require_file
from ktrdr_pipelines.store.layout import StoreLayout

NAME: Final = "dagster"
"""The name of the lock."""

SERVED: Final = "_KTRDR_UP_STORE"
"""The environment variable by which processes of ``ktrdr up`` know that they are its own."""

_shares: dict[Path, IO[str]] = {}
"""The lock files that this process shares, open until it ends."""


def take(file: IO[str], *, shared: bool = False) -> bool:
    """Lock a file for as long as any process has it open; return False if it is locked already."""
    import fcntl

    mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_code_server(arguments: Sequence[str]) -> bool:
    """Return whether these arguments of a process start a code server of Dagster."""
    return list(arguments[1:3]) == ["api", "grpc"]


def is_daemon(arguments: Sequence[str]) -> bool:
    """Return whether these arguments of a process start a daemon of Dagster."""
    program, command = Path(arguments[0]), list(arguments[1:2])
    is_module = program.name == "__main__.py"  # python -m NAME
    name = program.parent.name if is_module else program.stem
    if command == ["run"]:
        return name in {"_daemon", "dagster-daemon"}
    return command == ["dev"] and name in {"dagster", "_cli"}


def share(layout: StoreLayout, environment: Mapping[str, str] = os.environ) -> None:
    """Share the lock of a store until this process ends; a process of `ktrdr up` has it already.

    Raises:
        StoreError: `ktrdr up` is running over the store.
    """
    path = layout.lock(NAME)
    if path in _shares or environment.get(SERVED) == str(layout.root):
        return
    with disk_errors(path):
        require_file(path)
        make_folder(path.parent)
        file = path.open("a")
        if not take(file, shared=True):
            file.close()
            raise StoreError(
                f"start Dagster over {layout.root}",
                reason="`ktrdr up` is running over this store, and two daemons would request "
                "everything twice",
                hint="Use the web UI of `ktrdr up`, or stop it first",
            )
        file.truncate(0)  # no process group of an earlier `ktrdr up` is to be ended for this one
        _shares[path] = file
