"""Dagster's home of a store: where its history lies, with the settings that the project commits.

Not here: starting Dagster (``cli.dagster_web``), runs in this process (``cli.demo_runs``).
"""

from pathlib import Path
from typing import Final

from ktrdr_pipelines.cli.templates import DAGSTER_SETTINGS, committed
from ktrdr_pipelines.store.atomic import disk_errors, make_folder, write_atomically
from ktrdr_pipelines.store.layout import StoreLayout

SETTINGS_FILE: Final = "dagster.yaml"


def prepare_home(layout: StoreLayout) -> Path:
    """Make the home of a store; settings that are there already stay, a person may edit them.

    Raises:
        DiskError: the folder cannot be written.
    """
    home = layout.root / "dagster"
    path = home / SETTINGS_FILE
    with disk_errors(home):
        make_folder(home)
    if not path.exists():
        text = committed(DAGSTER_SETTINGS)
        write_atomically(path, lambda file: file.write(text))
    return home
