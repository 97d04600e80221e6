"""The log file: warnings and tracebacks go there, so that a terminal shows one clear line.

It lies in the state folder and is made with the first line. Not here: what a person is told
(``cli.edge``).
"""

import contextlib
import logging
import tempfile
from pathlib import Path
from typing import Final

from ktrdr_pipelines.errors import KtrdrError

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
        for folder in _folders():
            with contextlib.suppress(OSError):
                self.path = _append(folder / NAME, text)
                return


def log_to_file() -> LogFile:
    """Send what is logged and what Python warns of to the file, and nothing to the terminal."""
    handler = LogFile()
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(capture=True)
    return handler


def _folders() -> list[Path]:
    """Give where the log may lie, best first."""
    return [_state_folder(), Path(tempfile.gettempdir())]


def _state_folder() -> Path:
    import platformdirs

    from ktrdr_pipelines.settings import load_settings

    try:
        return load_settings().ktrdr_state
    except KtrdrError:
        return platformdirs.user_state_path("ktrdr", appauthor=False)


def _append(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > MOST_BYTES:
        path.replace(path.with_name(f"{NAME}.1"))
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
    return path
