"""Dagster's home of a store: where its history lies, with the settings that the project commits.

Not here: starting Dagster (``cli.dagster_web``), runs in this process (``cli.demo_runs``).
"""

import hashlib
from pathlib import Path
from typing import Any, Final

import yaml

from ktrdr_pipelines.cli.templates import DAGSTER_SETTINGS, committed
from ktrdr_pipelines.store.atomic import disk_errors, make_folder, write_atomically
from ktrdr_pipelines.store.layout import StoreLayout

SETTINGS_FILE: Final = "dagster.yaml"

EARLIER: Final = frozenset(
    {
        "db43e8a4bdf0bef4875d99470ff6f12de6ec9165daecb89fefda8f0f2683b9fd",
        "1c51c12d3c83ecbb8bf45f57b20bac9ed320c3af326ed17212da11aa83ae8543",
        "f4ad4696c15a357a2f4754196a3064a8b909ba8461d1c33e3f9b416a23089ed8",
    }
)
"""SHA-256 of the settings as earlier versions wrote them, which no person has edited."""

_MONITORING: Final = "run_monitoring"


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


def setting_overrides(home: Path) -> dict[str, Any]:
    """Return the settings of run monitoring: those of the home, and ours where it has none.

    Settings that a person edited under an earlier version say nothing of timeouts that came later.
    """
    path = home / SETTINGS_FILE
    with disk_errors(path):
        own = yaml.safe_load(path.read_bytes()) or {}
    ours = yaml.safe_load(committed(DAGSTER_SETTINGS))
    return {_MONITORING: {**ours[_MONITORING], **(own.get(_MONITORING) or {})}}


def _is_ours(path: Path) -> bool:
    """Say whether settings are missing, or are those of an earlier version to the byte."""
    with disk_errors(path):
        if not path.exists():
            return True
        return hashlib.sha256(path.read_bytes()).hexdigest() in EARLIER
