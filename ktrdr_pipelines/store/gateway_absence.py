"""The record that the gateway is unreachable: a small file of the store that all runs share.

A run that cannot reach the gateway records it, and other runs do not try until the gateway sensor
finds it again. Without confirmation the record counts only for ``BELIEVED``, so that no run waits
for a sensor that was switched off.

Not here: polling the gateway (``defs.sensors.gateway_sensor``), the circuit breaker
(``ib.pacing.rate_limiter``).
"""

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from ktrdr_pipelines.store.files import disk_errors, is_regular, write_atomically
from ktrdr_pipelines.store.layout import StoreLayout

BELIEVED = timedelta(minutes=10)
"""How long other runs do not try, unless the gateway sensor confirms the record."""


@dataclass(frozen=True, slots=True)
class Absence:
    """Since when the gateway is unreachable, when that was last seen, and the error text."""

    since: datetime
    seen_at: datetime
    text: str

    def __str__(self) -> str:
        return f"the gateway is away since {self.since_text}: {self.text}"

    @property
    def since_text(self) -> str:
        """The start of the absence in UTC, for messages."""
        return f"{self.since:%Y-%m-%d %H:%M:%S}Z"

    def is_believed(self, now: datetime) -> bool:
        """Return whether it is too early to try again."""
        return self.seen_at <= now < self.seen_at + BELIEVED


class AbsenceFile:
    """The absence record of one store."""

    def __init__(self, layout: StoreLayout) -> None:
        self._layout = layout
        self._path: Path = layout.state / "gateway-away.json"

    def read(self) -> Absence | None:
        """Return the record; None where there is none or it cannot be read."""
        if not is_regular(self._path):
            return None
        try:
            fields = json.loads(self._path.read_bytes())
            since, seen_at = (datetime.fromisoformat(fields[name]) for name in ("since", "seen_at"))
            return Absence(since, seen_at, str(fields["text"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def believed(self, now: datetime) -> Absence | None:
        """Return the record where it is too early to try again, else None."""
        known = self.read()
        return known if known is not None and known.is_believed(now) else None

    def note(self, at: datetime, text: str) -> None:
        """Record that the gateway is unreachable; the time of the first such record is kept."""
        known = self.read()
        fields = {
            "since": (known.since if known else at).isoformat(),
            "seen_at": at.isoformat(),
            "text": text,
        }
        self._layout.require_same()
        write_atomically(self._path, lambda file: file.write(json.dumps(fields).encode()))

    def end(self) -> None:
        """Remove the record: the gateway is reachable."""
        self._layout.require_same()
        with disk_errors(self._path):
            self._path.unlink(missing_ok=True)
