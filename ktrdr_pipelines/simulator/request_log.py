"""The requests that a simulated gateway received, and the log of its events.

``RequestLog`` holds one entry a request in memory and can be read from any thread. ``Journal``
counts events and writes them to a file, one JSON object a line. Every line has ``at`` (the
gateway's time) and ``event``: ``connected``, ``left``, ``asked``, ``answered``, ``violation`` or
``fault``. The lines ``asked`` and ``answered`` of one request share a ``number``.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TextIO

from ktrdr_pipelines.errors import SimulatorError
from ktrdr_pipelines.simulator.protocol.messages import ContractRequest, DataRequest, HistoryRequest
from ktrdr_pipelines.simulator.requests.request_limits import Kind

MOST_KEPT = 100_000
"""How many records are kept, some 60 MB: a gateway may run for days."""


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """One contract, head timestamp or historical request, and its outcome.

    ``count`` is the number of bars (or contracts) in the response, ``error_code`` the code of an
    error; both are None while the request is open, and when its client left before a response.
    ``received`` is the gateway's time.
    """

    client_id: int
    request_id: int
    kind: Kind
    symbol: str
    received: datetime
    sec_type: str = ""
    bar_size: str = ""
    duration: str = ""
    end: str = ""
    what: str = ""
    use_rth: bool = False
    count: int | None = None
    error_code: int | None = None

    @property
    def bars(self) -> int:
        """The number of bars in the response: 0 for an error, another kind, or no response yet."""
        return self.count or 0 if self.kind is Kind.HISTORY else 0

    @property
    def is_open(self) -> bool:
        """Whether it has no outcome yet."""
        return self.count is None and self.error_code is None


def record_of(
    request: DataRequest, *, client_id: int, kind: Kind, received: datetime
) -> LoggedRequest:
    """Return the record of a request that has just been received."""
    contract = request.contract
    record = LoggedRequest(
        client_id=client_id,
        request_id=request.request_id,
        kind=kind,
        symbol=contract.symbol or contract.local_symbol,
        sec_type=contract.sec_type,
        received=received,
    )
    if isinstance(request, ContractRequest):
        return record
    record = replace(record, what=request.what, use_rth=request.use_rth)
    if not isinstance(request, HistoryRequest):
        return record
    return replace(record, bar_size=request.bar_size, duration=request.duration, end=request.end)


class RequestLog:
    """The records of a gateway in the order of arrival; thread-safe.

    Args:
        on_change: called with the number and the record of each request, when it is received and
            when it has an outcome.
        most_kept: how many records are kept; beyond it the oldest is dropped, and its outcome with
            it.
    """

    def __init__(
        self,
        on_change: Callable[[int, LoggedRequest], None] | None = None,
        *,
        most_kept: int = MOST_KEPT,
    ) -> None:
        self._lock = threading.Lock()
        self._records: dict[int, LoggedRequest] = {}
        self._next_number = 0
        self._most_kept = most_kept
        self._on_change = on_change

    def add(self, record: LoggedRequest) -> int:
        """Append a record and return its number."""
        with self._lock:
            number, self._next_number = self._next_number, self._next_number + 1
            self._records[number] = record
            self._records.pop(number - self._most_kept, None)
        self._notify(number, record)
        return number

    def finish(self, number: int, *, count: int | None, error_code: int | None) -> None:
        """Set the outcome of the record of a number."""
        with self._lock:
            opened = self._records.get(number)
            if opened is None:
                return
            record = replace(opened, count=count, error_code=error_code)
            self._records[number] = record
        self._notify(number, record)

    def is_open(self, number: int) -> bool:
        """Return whether a record has no outcome yet.

        A request for live bars has its outcome with the first response, before it ends.
        """
        with self._lock:
            record = self._records.get(number)
            return record is not None and record.is_open

    def snapshot(self) -> tuple[LoggedRequest, ...]:
        """Return all records that are kept, oldest first."""
        with self._lock:
            return tuple(self._records.values())

    def _notify(self, number: int, record: LoggedRequest) -> None:
        if self._on_change is not None:
            self._on_change(number, record)


Value = str | int | float | bool | None


class Journal:
    """Count events, and write them to a file if there is one; used in one thread.

    Args:
        path: the file, to which lines are appended; None writes nothing.
        now: the gateway's time.

    Raises:
        SimulatorError: the file cannot be written.
    """

    def __init__(self, path: Path | None, now: Callable[[], datetime]) -> None:
        self._now = now
        self._counts: Counter[str] = Counter()
        self._file: TextIO | None = None
        if path is not None:
            try:
                self._file = path.open("a", encoding="utf-8", buffering=1)
            except OSError as error:
                raise SimulatorError(
                    f"write the log {path}",
                    reason=error.strerror or str(error),
                    hint="Choose another file with --log",
                ) from error

    @property
    def counts(self) -> dict[str, int]:
        """How often each event happened."""
        return dict(self._counts)

    def note(self, event: str, **values: Value) -> None:
        """Count an event and write its line."""
        self._counts[event] += 1
        if self._file is not None and not self._file.closed:
            line = {"at": self._now().isoformat(), "event": event, **values}
            self._file.write(json.dumps(line) + "\n")

    def note_request(self, number: int, record: LoggedRequest) -> None:
        """Write the line of a request: ``asked`` while it is open, then ``answered``."""
        values = {**asdict(record), "received": record.received.isoformat()}
        event = "asked" if record.is_open else "answered"
        shown = {key: value for key, value in values.items() if value not in {"", None}}
        self.note(event, number=number, **shown)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
