"""What a gateway was asked: one entry a request, readable from any thread."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from ktrdr_pipelines.simulator.messages import ContractRequest, DataRequest, HistoryRequest
from ktrdr_pipelines.simulator.rules import Kind

MOST_KEPT = 100_000
"""Records that are kept, some 60 MB: a gateway serves for days."""


@dataclass(frozen=True, slots=True)
class RequestRecord:
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
) -> RequestRecord:
    """Describe a request as it came in."""
    contract = request.contract
    record = RequestRecord(
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
        told: Callable[[int, RequestRecord], None] | None = None,
        *,
        most_kept: int = MOST_KEPT,
    ) -> None:
        self._lock = threading.Lock()
        self._records: dict[int, RequestRecord] = {}
        self._next_place = 0
        self._most_kept = most_kept
        self._told = told

    def add(self, record: RequestRecord) -> int:
        """Append a record and return its place."""
        with self._lock:
            place, self._next_place = self._next_place, self._next_place + 1
            self._records[place] = record
            self._records.pop(place - self._most_kept, None)
        self._tell(place, record)
        return place

    def finish(self, place: int, *, count: int | None, error_code: int | None) -> None:
        """Note the outcome of the record at a place."""
        with self._lock:
            asked = self._records.get(place)
            if asked is None:
                return
            record = replace(asked, count=count, error_code=error_code)
            self._records[place] = record
        self._tell(place, record)

    def is_open(self, place: int) -> bool:
        """Say whether the record at a place has no outcome yet; live bars have one early."""
        with self._lock:
            record = self._records.get(place)
            return record is not None and record.is_open

    def snapshot(self) -> tuple[RequestRecord, ...]:
        """Return all records that are kept."""
        with self._lock:
            return tuple(self._records.values())

    def _tell(self, place: int, record: RequestRecord) -> None:
        if self._told is not None:
            self._told(place, record)
