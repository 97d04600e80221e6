"""Whether the gateway is known to be away, as a small file of the store that all runs share.

A run that finds no gateway says so; until somebody finds it again, others need not try. Without
news the word counts for a while only, so that nothing waits for a watcher that was switched off.
Not here: looking for the gateway (``defs.sensors.gateway_sensor``), the breaker
(``ib.pacing.rate_limiter``).
"""

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from ktrdr_pipelines.store.files import disk_errors, is_regular, write_atomically
from ktrdr_pipelines.store.layout import StoreLayout

BELIEVED = timedelta(minutes=10)
"""How long nobody else tries, unless a watcher confirms it."""


@dataclass(frozen=True, slots=True)
class Absence:
    """Since when the gateway is away, when that was last seen, and what came instead of it."""

    since: datetime
    seen_at: datetime
    text: str

    def __str__(self) -> str:
        return f"the gateway is away since {self.since_text}: {self.text}"

    @property
    def since_text(self) -> str:
        """Since when, in UTC, as a person reads it."""
        return f"{self.since:%Y-%m-%d %H:%M:%S}Z"

    def is_believed(self, now: datetime) -> bool:
        """Say whether it is too early to try again."""
        return self.seen_at <= now < self.seen_at + BELIEVED


class AbsenceFile:
    """The file of one store."""

    def __init__(self, layout: StoreLayout) -> None:
        self._layout = layout
        self._path: Path = layout.state / "gateway-away.json"

    def read(self) -> Absence | None:
        """Give what is known; an unreadable file says nothing."""
        if not is_regular(self._path):
            return None
        try:
            fields = json.loads(self._path.read_bytes())
            since, seen_at = (datetime.fromisoformat(fields[name]) for name in ("since", "seen_at"))
            return Absence(since, seen_at, str(fields["text"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def believed(self, now: datetime) -> Absence | None:
        """Give what is known where it is too early to try again."""
        known = self.read()
        return known if known is not None and known.is_believed(now) else None

    def note(self, at: datetime, text: str) -> None:
        """Say that the gateway is away."""
        known = self.read()
        fields = {
            "since": (known.since if known else at).isoformat(),
            "seen_at": at.isoformat(),
            "text": text,
        }
        self._layout.require_same()
        write_atomically(self._path, lambda file: file.write(json.dumps(fields).encode()))

    def end(self) -> None:
        """Say that the gateway is there."""
        self._layout.require_same()
        with disk_errors(self._path):
            self._path.unlink(missing_ok=True)
