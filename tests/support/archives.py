"""Unpacking the archives of the fixtures."""

import tarfile
from pathlib import Path


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive into a folder, as data alone where Python has filters (from 3.11.4 on)."""
    options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(archive) as file:
        file.extractall(folder, **options)  # type: ignore[arg-type]  # noqa: S202
