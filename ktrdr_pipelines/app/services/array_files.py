"""Files of computed arrays, such as the sessions of calendars, that all processes of a user share.

A file is used only while everything that it was computed from is unchanged: this project's code of
calendars, the versions of the libraries and of Python, and the clocks of the time zone. What is
missing, damaged or outdated is computed again, and replaced in one step.

Not here: what is computed (``domain.calendars``).
"""

import hashlib
import io
import logging
import sys
import zoneinfo
from collections.abc import Mapping
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from ktrdr_pipelines.ib.private_files import make_private_folder, write_privately

if TYPE_CHECKING:  # a workspace is opened by commands that need no arrays
    import numpy as np

_LIBRARIES: Final = (
    "exchange_calendars",
    "pandas_market_calendars",
    "pandas",
    "numpy",
    "tzdata",
    "pytz",
)
_DIGEST_BYTES: Final = 32

_log = logging.getLogger(__name__)


class ArrayFiles:
    """Keeps arrays in private files of one folder, one a name.

    A file begins with the SHA-256 digest of everything after it, the arrays in numpy's format
    ``.npz``; one of them, ``computed_from``, tells what they were computed from.

    Args:
        folder: where the files are; it is created with the first of them.
        versions: what the arrays are computed from, besides time zones; that of this process if
            not given.
    """

    def __init__(self, folder: Path, versions: str | None = None) -> None:
        self._folder = folder
        self._versions = versions

    def __repr__(self) -> str:
        return f"ArrayFiles({self._folder})"

    def read(self, name: str) -> "Mapping[str, np.ndarray] | None":
        """Return the arrays of a name; None if their file is missing, damaged or outdated."""
        try:
            content = self._path(name).read_bytes()  # at once: the file may be replaced meanwhile
        except OSError:
            return None
        digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != digest:
            return None
        import numpy as np

        with np.load(io.BytesIO(body), allow_pickle=False) as found:
            arrays = {one: found[one] for one in found.files}
        return arrays if arrays.pop("computed_from").item() == self._key(arrays) else None

    def write(self, name: str, arrays: "Mapping[str, np.ndarray]") -> None:
        """Keep arrays in the file of a name, if the folder can be written."""
        import numpy as np

        buffer = io.BytesIO()
        contents: dict[str, Any] = {**arrays, "computed_from": np.array(self._key(arrays))}
        np.savez(buffer, **contents)
        body = buffer.getvalue()
        try:
            make_private_folder(self._folder)
            write_privately(self._path(name), hashlib.sha256(body).digest() + body)
        except OSError as error:  # the next process computes them again
            _log.info("cannot keep %s in %s: %s", name, self._folder, error)

    def _path(self, name: str) -> Path:
        return self._folder / f"{quote(name, safe=' ')}.npz"

    def _key(self, arrays: "Mapping[str, np.ndarray]") -> str:
        zone = arrays.get("zone")
        clocks = "" if zone is None else _clocks_of(str(zone.item()))
        return f"{_versions() if self._versions is None else self._versions} {clocks}"


@cache
def _versions() -> str:
    """Return a digest of the code of calendars, and of the versions of what it uses."""
    digest = hashlib.sha256(sys.version.encode())
    for library in _LIBRARIES:
        try:
            version = metadata.version(library)
        except metadata.PackageNotFoundError:
            version = ""
        digest.update(f"{library} {version};".encode())
    code = resources.files("ktrdr_pipelines.domain.calendars")
    for part in sorted(code.iterdir(), key=lambda one: one.name):
        if part.name.endswith(".py"):
            digest.update(part.read_bytes())
    return digest.hexdigest()


@cache
def _clocks_of(zone: str) -> str:
    """Return a digest of the rules of a time zone as ``zoneinfo`` finds them."""
    folders = (Path(one) for one in zoneinfo.TZPATH)
    for path in (folder / zone for folder in folders):
        if path.is_file():
            return hashlib.sha256(path.read_bytes()).hexdigest()
    # Without a database of the system, that of the package tzdata is used, whose version counts.
    return ""
