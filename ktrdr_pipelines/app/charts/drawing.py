"""What all charts share: the style, image formats, and how a file of one is written.

matplotlib is imported when a chart is drawn. Figures are made without ``pyplot``: they need no
display and leave the state of the caller's own plots alone.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ktrdr_pipelines.errors import DiskError, UsageError
from ktrdr_pipelines.store.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI: Final = 100
INK: Final = "#30363d"
"""The colour of titles."""

FAINT_INK: Final = "#787e86"
"""The colour of ticks and remarks."""

RULE: Final = "#e6e8eb"
"""The colour of grid lines and frames."""

IMAGE_FORMATS: Final = ("png", "svg", "pdf")
"""The suffixes of files that a chart can be written to, less the dot."""

_METADATA: Final[dict[str, dict[str, Any]]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""Left out of files, so that equal charts have equal bytes."""


@contextmanager
def chart_style() -> Iterator[None]:
    """Draw in the style of the project while the context lasts, not in that of the user's plots.

    matplotlib is to be imported inside of it: it reads the user's settings when it is imported.
    """
    # Its log would tell the user of errors in those settings, and of a home folder that it cannot
    # write its cache of fonts to.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib import style

    with style.context(["default", {"svg.hashsalt": "ktrdr"}]):
        yield


def image_bytes(figure: "Figure", image_format: str = "png") -> bytes:
    """Return a figure as a file of one of ``IMAGE_FORMATS``; equal figures give equal bytes."""
    with chart_style():
        file = BytesIO()
        figure.savefig(file, format=image_format, metadata=_METADATA[image_format])
    return file.getvalue()


def image_format_of(path: Path) -> str:
    """Return the image format that the suffix of a file names.

    Raises:
        UsageError: it names none that charts can be written in.
    """
    found = path.suffix.lower().removeprefix(".")
    if found not in IMAGE_FORMATS:
        allowed = ", ".join(f".{one}" for one in IMAGE_FORMATS)
        raise UsageError(
            f"cannot write {path}",
            reason=f"no image format has the suffix {path.suffix!r}"
            if path.suffix
            else "the name has no suffix, which tells the image format",
            hint=f"Allowed are {allowed}",
        )
    return found


def write_image(path: Path, image: bytes) -> None:
    """Write an image in one atomic step; a file that is there is replaced.

    Raises:
        DiskError: the folder does not exist, or the system refused; an earlier file is unchanged.
    """
    if not path.parent.is_dir():
        raise DiskError(
            f"cannot write {path}",
            reason=f"there is no folder {path.parent}",
            hint="Choose a file in an existing, writable folder",
        )
    if path.is_dir():
        raise DiskError(
            f"cannot write {path}", reason="it is a folder", hint="Give the name of a file in it"
        )
    write_atomically(path, lambda file: file.write(image))
