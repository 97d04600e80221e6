"""What happens at a gateway, counted and written down: one JSON object a line.

Every line has ``at`` (the gateway's time) and ``event``: ``connected``, ``left``, ``asked``,
``answered``, ``violation`` or ``fault``. ``asked`` and ``answered`` share a ``number``.

Not here: the records of requests themselves (``record``).
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TextIO

from ktrdr_pipelines.errors import SimulatorError
from ktrdr_pipelines.simulator.record import RequestRecord

Value = str | int | float | bool | None


class Journal:
    """Counts events, and writes them where there is a file; used in one thread.

    Args:
        path: the file, which is added to; None writes nothing.
        now: the gateway's time.

    Raises:
        SimulatorError: the file cannot be written.
    """

    def __init__(self, path: Path | None, now: Callable[[], datetime]) -> None:
        self._now = now
        self._counts: Counter[str] = Counter()
        self._file: TextIO | None = None if path is None else _opened(path)

    @property
    def counts(self) -> dict[str, int]:
        """How often each event happened."""
        return dict(self._counts)

    def note(self, event: str, **values: Value) -> None:
        """Write an event down."""
        self._counts[event] += 1
        if self._file is not None and not self._file.closed:
            line = {"at": self._now().isoformat(), "event": event, **values}
            self._file.write(json.dumps(line) + "\n")

    def note_request(self, number: int, record: RequestRecord) -> None:
        """Write a request down: that it was asked, or what became of it."""
        values = {**asdict(record), "received": record.received.isoformat()}
        event = "asked" if record.is_open else "answered"
        shown = {key: value for key, value in values.items() if value not in {"", None}}
        self.note(event, number=number, **shown)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _opened(path: Path) -> TextIO:
    try:
        return path.open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise SimulatorError(
            f"write the log {path}",
            came=error.strerror or str(error),
            remedy="Choose another file with --log",
        ) from error
