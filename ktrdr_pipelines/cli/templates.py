"""Stores made from the files that the project commits: the example universe, Dagster's settings.

These files lie in ``data`` beside the package; the documented install is an editable one, from
a clone, so they are always there. Not here: what a store is (``store.layout``).
"""

from pathlib import Path
from typing import Final

import ktrdr_pipelines
from ktrdr_pipelines.cli.place import Place, renew_catalog
from ktrdr_pipelines.core.instruments import Origin
from ktrdr_pipelines.errors import NoStoreError
from ktrdr_pipelines.load.opening import universe_file
from ktrdr_pipelines.settings import Settings
from ktrdr_pipelines.store.atomic import disk_errors, write_atomically
from ktrdr_pipelines.store.layout import StoreLayout, create_store
from ktrdr_pipelines.store.path_kinds import kind_of

UNIVERSE_EXAMPLE: Final = "universe.example.yaml"
DAGSTER_SETTINGS: Final = "dagster/dagster.yaml"


def make_place(
    settings: Settings, folder: Path, origin: Origin | None, *, example: str
) -> tuple[Place, bool]:
    """Make a folder a store with a universe and a catalog; what is there already stays.

    Args:
        settings: those of the command.
        folder: the data folder.
        origin: where its bars will come from; None leaves it to the first bars.
        example: the committed file that becomes the universe where there is none.

    Returns:
        The place, and whether the universe was made.

    Raises:
        DiskError: the folder cannot be written.
        NoStoreError, ForeignIdentityError: it is a store of a newer version or another origin.
        UniverseError: it has a universe, and that is malformed.
    """
    text = committed(example)
    layout = create_store(folder, origin)
    was_made = put_universe(layout, text)
    universe, problem = universe_file(layout).read()
    renew_catalog(layout, universe, settings)
    return Place(settings, layout, universe, problem), was_made


def put_universe(layout: StoreLayout, text: bytes) -> bool:
    """Write a universe where there is none, and say whether that was so."""
    if kind_of(layout.universe) is not None:
        return False
    write_atomically(
        layout.universe, lambda file: file.write(text), before_renaming=layout.require_same
    )
    return True


def committed(name: str) -> bytes:
    """Read a file of the project's own data folder.

    Raises:
        NoStoreError: it is not there.
    """
    path = Path(ktrdr_pipelines.__file__).resolve().parents[1] / "data" / name
    if not path.is_file():
        raise NoStoreError(
            f"looked for {path}",
            came="it is not there",
            remedy="Install from a clone, in which it lies: python -m pip install -e .",
        )
    with disk_errors(path):
        return path.read_bytes()
