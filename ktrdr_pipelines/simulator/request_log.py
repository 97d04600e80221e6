"""What was asked of a simulated gateway, and what happened.

What happens at a gateway, counted and written down: one JSON object a line.

Every line has ``at`` (the gateway's time) and ``event``: ``connected``, ``left``, ``asked``,
``answered``, ``violation`` or ``fault``. ``asked`` and ``answered`` share a ``number``.

What a gateway was asked: one entry a request, readable from any thread.
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
"""Records that are kept, some 60 MB: a gateway serves for days."""


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """One contract, head timestamp or historical request, and what became of it.

    ``count`` is the number of bars (or contracts) that were answered, ``error_code`` that of the
    error; both are None while the request is open, and when its client left. ``received`` is the
    gateway's time.
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
        """How many bars were answered: 0 for an error, another kind, or none yet."""
        return self.count or 0 if self.kind is Kind.HISTORY else 0

    @property
    def is_open(self) -> bool:
        """Whether it has no outcome yet."""
        return self.count is None and self.error_code is None


def record_of(
    request: DataRequest, *, client_id: int, kind: Kind, received: datetime
) -> LoggedRequest:
    """Describe a request as it came in."""
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
    """The records of a gateway in the order of arrival; safe from any thread.

    Args:
        told: is given every record and its place when it arrives and when it has an outcome.
        most_kept: how many are kept; beyond it the oldest is forgotten, and so is its outcome.
    """

    def __init__(
        self,
        told: Callable[[int, LoggedRequest], None] | None = None,
        *,
        most_kept: int = MOST_KEPT,
    ) -> None:
        self._lock = threading.Lock()
        self._records: dict[int, LoggedRequest] = {}
        self._next_number = 0
        self._most_kept = most_kept
        self._told = told

    def add(self, record: LoggedRequest) -> int:
        """Append a record and return its place."""
        with self._lock:
            number, self._next_number = self._next_number, self._next_number + 1
            self._records[number] = record
            self._records.pop(number - self._most_kept, None)
        self._tell(number, record)
        return number

    def finish(self, number: int, *, count: int | None, error_code: int | None) -> None:
        """Note the outcome of the record at a place."""
        with self._lock:
            asked = self._records.get(number)
            if asked is None:
                return
            record = replace(asked, count=count, error_code=error_code)
            self._records[number] = record
        self._tell(number, record)

    def is_open(self, number: int) -> bool:
        """Say whether the record at a place has no outcome yet; live bars have one early."""
        with self._lock:
            record = self._records.get(number)
            return record is not None and record.is_open

    def snapshot(self) -> tuple[LoggedRequest, ...]:
        """Return all records that are kept."""
        with self._lock:
            return tuple(self._records.values())

    def _tell(self, number: int, record: LoggedRequest) -> None:
        if self._told is not None:
            self._told(number, record)


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

    def note_request(self, number: int, record: LoggedRequest) -> None:
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
            reason=error.strerror or str(error),
            hint="Choose another file with --log",
        ) from error
