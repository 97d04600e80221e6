"""Set up a store from the project's own files: the example universe and Dagster's home.

A store that has no bars and whose universe is still the example is not loaded by itself: the
example lists symbols that the user has not chosen.

These files lie in ``data`` beside the package. The documented install is an editable one, from a
clone, so they are always there.
"""

import hashlib
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML

import ktrdr_pipelines
from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.domain.instruments import Origin
from ktrdr_pipelines.errors import NoStoreError
from ktrdr_pipelines.settings import Settings
from ktrdr_pipelines.store.files import disk_errors, kind_of, make_folder, write_atomically
from ktrdr_pipelines.store.layout import StoreLayout, create_store, store_origin

UNIVERSE_EXAMPLE: Final = "universe.example.yaml"
DAGSTER_SETTINGS: Final = "dagster/dagster.yaml"


def make_workspace(
    settings: Settings, folder: Path, origin: Origin | None, *, example: str
) -> tuple[Workspace, bool]:
    """Make a folder a store with a universe and a catalog, and keep the parts that exist.

    Args:
        settings: the settings of the command.
        folder: the data folder.
        origin: the origin of its bars; None for that of the first bars saved.
        example: the project's file that is copied as the universe if there is none.

    Returns:
        The workspace, and whether the universe was created.

    Raises:
        DiskError: the folder cannot be written.
        NoStoreError: it is a store of a newer version.
        ForeignIdentityError: it is a store of another origin.
        UniverseError: its universe is malformed.
    """
    text = committed(example)
    layout = create_store(folder, origin)
    was_made = put_universe(layout, text)
    workspace = Workspace(settings, layout)
    workspace.renew_catalog()
    return workspace, was_made


def put_universe(layout: StoreLayout, text: bytes) -> bool:
    """Write a universe if there is none, and return whether it was written."""
    if kind_of(layout.universe) is not None:
        return False
    write_atomically(
        layout.universe, lambda file: file.write(text), before_renaming=layout.require_same
    )
    return True


GO_AHEAD: Final = "example_accepted"
"""The file in the folder of a store's state that lets an unedited example universe be loaded."""


def waits_for_universe(layout: StoreLayout) -> bool:
    """Return whether nothing may be loaded by itself until the user has chosen what.

    That is so as long as a store has no bars, its universe is the example to the byte, and the user
    has not accepted it. A store of simulated bars never waits: its requests reach no gateway of IB.
    """
    try:
        if layout.universe.read_bytes() != committed(UNIVERSE_EXAMPLE):
            return False
    except (OSError, NoStoreError):
        return False  # those who read the universe report it
    return not (
        (layout.state / GO_AHEAD).exists()
        or store_origin(layout) is Origin.SIMULATED
        or any(layout.bars.rglob("*.parquet"))
    )


def accept_example(layout: StoreLayout) -> None:
    """Let the sensors load the example universe as it is.

    Raises:
        DiskError: the file cannot be written.
    """
    write_atomically(layout.state / GO_AHEAD, lambda file: file.write(b""), layout.require_same)


def committed(name: str) -> bytes:
    """Return the bytes of a file in the project's own data folder.

    Raises:
        NoStoreError: the file does not exist.
    """
    path = Path(ktrdr_pipelines.__file__).resolve().parents[1] / "data" / name
    if not path.is_file():
        raise NoStoreError(
            f"looked for {path}",
            reason="the file does not exist",
            hint="Install from a clone, which contains it: python -m pip install -e .",
        )
    with disk_errors(path):
        return path.read_bytes()


SETTINGS_FILE: Final = "dagster.yaml"

EARLIER: Final = frozenset(
    {
        "db43e8a4bdf0bef4875d99470ff6f12de6ec9165daecb89fefda8f0f2683b9fd",
        "1c51c12d3c83ecbb8bf45f57b20bac9ed320c3af326ed17212da11aa83ae8543",
        "f4ad4696c15a357a2f4754196a3064a8b909ba8461d1c33e3f9b416a23089ed8",
        "02e7650f14cd275fd4b5dbd60c9077f724463f606d3e3b33b7678d217b5d24e8",
        "33de2092e6ae1fd6cd2047479b9117cc0527fdf27518644fd759f5114b93e2cb",
        "8e7cdfd6ce4dbe08e90cfd243663baa99f5412a16f5d061a204d659cae330b28",
    }
)
"""SHA-256 of the settings that earlier versions wrote: such a file is unedited, and is replaced."""

_MONITORING: Final = "run_monitoring"
_EVENTS: Final = "event_log_storage"
_STORAGES: Final = frozenset({"storage", "run_storage", _EVENTS, "schedule_storage"})


def dagster_home(layout: StoreLayout) -> Path:
    """Return the folder with a store's Dagster history and settings."""
    return layout.root / "dagster"


def has_history(layout: StoreLayout) -> bool:
    """Return whether Dagster has ever run on a store."""
    return (dagster_home(layout) / "history").is_dir()


def prepare_home(layout: StoreLayout) -> Path:
    """Make Dagster's home of a store, with the settings of this version, and return its folder.

    Settings that the user has edited are kept.

    Raises:
        DiskError: the folder cannot be written.
    """
    home = dagster_home(layout)
    path = home / SETTINGS_FILE
    with disk_errors(home):
        make_folder(home)
    text = committed(DAGSTER_SETTINGS)
    # Replace only a missing file, or one that is an earlier version's to the byte.
    with disk_errors(path):
        is_ours = not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() in EARLIER
    if is_ours and (not path.exists() or path.read_bytes() != text):
        write_atomically(path, lambda file: file.write(text))
    return home


def setting_overrides(home: Path) -> dict[str, Any]:
    """Return settings of a home that its file lacks: run monitoring, and the storage of events.

    Settings that the user edited under an earlier version lack timeouts that were added later. The
    storage writes Dagster's own files, in larger commits; it is not replaced if the user chose one.
    """
    path = home / SETTINGS_FILE
    reader = YAML(typ="safe", pure=True)
    reader.version = (1, 1)  # as Dagster reads it
    with disk_errors(path):
        own = reader.load(path.read_bytes()) or {}
    ours = reader.load(committed(DAGSTER_SETTINGS))
    overrides: dict[str, Any] = {_MONITORING: {**ours[_MONITORING], **(own.get(_MONITORING) or {})}}
    if not any(own.get(one) for one in _STORAGES):
        overrides[_EVENTS] = {
            "module": "ktrdr_pipelines.defs.event_storage",
            "class": "BatchEventLogStorage",
            "config": {"base_dir": str(home / "history" / "runs")},
        }
    return overrides
