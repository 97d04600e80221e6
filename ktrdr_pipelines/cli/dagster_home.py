"""Dagster's home of a store: where its history lies, with the settings that the project commits.

Not here: starting Dagster (``cli.dagster_web``), runs in this process (``cli.demo_runs``).
"""

import hashlib
from pathlib import Path
from typing import Final

from ktrdr_pipelines.cli.templates import DAGSTER_SETTINGS, committed
from ktrdr_pipelines.store.atomic import disk_errors, make_folder, write_atomically
from ktrdr_pipelines.store.layout import StoreLayout

SETTINGS_FILE: Final = "dagster.yaml"

EARLIER: Final = frozenset({"db43e8a4bdf0bef4875d99470ff6f12de6ec9165daecb89fefda8f0f2683b9fd"})
"""SHA-256 of the settings that earlier versions committed: nobody edited those."""


def prepare_home(layout: StoreLayout) -> Path:
    """Make the home of a store, with the settings of this version.

    Settings that a person has edited stay as they are.

    Raises:
        DiskError: the folder cannot be written.
    """
    home = layout.root / "dagster"
    path = home / SETTINGS_FILE
    with disk_errors(home):
        make_folder(home)
    text = committed(DAGSTER_SETTINGS)
    if _is_ours(path) and (not path.exists() or path.read_bytes() != text):
        write_atomically(path, lambda file: file.write(text))
    return home


def _is_ours(path: Path) -> bool:
    """Say whether settings are missing, or are those of an earlier version to the byte."""
    with disk_errors(path):
        if not path.exists():
            return True
        return hashlib.sha256(path.read_bytes()).hexdigest() in EARLIER
