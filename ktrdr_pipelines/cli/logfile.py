"""The log file: warnings and tracebacks go there, so that a terminal shows one clear line.

It lies in the state folder, is made with the first line, and only its user may read it. Not here:
what a person is told (``cli.edge``).
"""

import contextlib
import logging
import tempfile
from pathlib import Path
from typing import Final

from ktrdr_pipelines.errors import KtrdrError
from ktrdr_pipelines.private_files import make_private_folder, private_opener

NAME: Final = "ktrdr.log"
MOST_BYTES: Final = 1_000_000
"""A longer log becomes ``ktrdr.log.1``, and what was that is gone."""


class LogFile(logging.Handler):
    """Appends what is logged to the first folder that takes it; losing a line stops no work."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s")
        )
        self.path: Path | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, and its traceback."""
        text = f"{self.format(record)}\n"
        for place in (_in_state_folder, _in_temp_folder):
            with contextlib.suppress(OSError):
                self.path = _append(place(), text)
                return


def log_to_file() -> LogFile:
    """Send what is logged and what Python warns of to the file, and nothing to the terminal."""
    handler = LogFile()
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(capture=True)
    return handler


def _in_state_folder() -> Path:
    folder = _state_folder()
    make_private_folder(folder)
    return folder / NAME


def _in_temp_folder() -> Path:
    return Path(tempfile.gettempdir()) / NAME


def _state_folder() -> Path:
    import platformdirs

    from ktrdr_pipelines.settings import load_settings

    try:
        return load_settings().ktrdr_state
    except KtrdrError:
        return platformdirs.user_state_path("ktrdr", appauthor=False)


def _append(path: Path, text: str) -> Path:
    if path.exists() and path.stat().st_size > MOST_BYTES:
        path.replace(path.with_name(f"{NAME}.1"))
    with open(
        path, "a", encoding="utf-8", errors="backslashreplace", opener=private_opener
    ) as file:
        file.write(text)
    return path
