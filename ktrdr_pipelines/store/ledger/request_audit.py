"""The ledger's audit: every request that was sent, its outcome, and what it proved.

Accounts do not appear: a login has a name such as ``login 1``.

Not here: the budget of requests, which belongs to the gateway and lies outside the store
(``ib.pacing.rate_limiter``).
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from threading import Lock
from typing import Final

from ktrdr_pipelines.domain.bars import micros, moment
from ktrdr_pipelines.store.ledger.database import Database, Table
from ktrdr_pipelines.store.ledger.rows import Rows

AUDIT_KEPT_DAYS = 90
"""Days that audit rows are kept: long enough to investigate a reported problem."""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request and its outcome.

    There is a row for every request that counts towards IB's limits on historical data. ``series``
    is a series key: for a schedule (``what_to_show`` is SCHEDULE) that of the daily bars, for a
    head timestamp (no ``duration``) one of the series that needed it. ``asked_end`` is None for
    "now"; ``rows`` counts the bars received; ``proved`` describes what the response covered.
    ``sent_at`` and ``took_s`` are the caller's: waiting for the budget counts. ``sent_at`` is real
    time; market time was ``clock_offset_s`` ahead of it.
    """

    series: str
    contract_id: int
    what_to_show: str
    gateway: str
    login: str
    asked_end: datetime | None
    duration: str
    sent_at: datetime
    took_s: float
    outcome: str
    code: int | None = None
    rows: int = 0
    proved: str = ""
    clock_offset_s: float = 0.0


RESPONSES: Final = ("bars", "no data", "head", "schedule")
"""Outcomes of requests that the gateway responded to; other outcomes are names of errors, or
``cancelled``."""

CANCELLED: Final = "cancelled"


@dataclass(frozen=True, slots=True)
class RequestTotals:
    """Counts over all requests of the audit, and how the last ones ended.

    ``answered`` counts those that got a response, with or without bars; ``bars`` are those
    received. ``last_answered_at`` is when the last of them was sent. ``last_outcome`` is that of
    the newest request which was not cancelled; empty without one. ``newest_row`` and ``oldest_at``
    tell which rows were counted.
    """

    requests: int = 0
    answered: int = 0
    bars: int = 0
    last_answered_at: datetime | None = None
    last_outcome: str = ""
    newest_row: int = 0
    oldest_at: int | None = None

    @property
    def failed(self) -> int:
        """The requests without a response, refused and cancelled ones included."""
        return self.requests - self.answered

    @property
    def last_failed(self) -> bool:
        """Whether the newest request that was not cancelled got no response."""
        return bool(self.last_outcome) and self.last_outcome not in RESPONSES


_REQUESTS = Rows("requests", RequestRecord)
_IS_ANSWERED = f"outcome IN ({', '.join('?' * len(RESPONSES))})"
_TOTALS = (
    f"SELECT count(*), total({_IS_ANSWERED}), total(rows), max(rowid), "  # noqa: S608
    f"max(CASE WHEN {_IS_ANSWERED} THEN sent_at END) FROM requests WHERE rowid > ?"
)
_BOUNDS = (
    "SELECT (SELECT min(sent_at) FROM requests), (SELECT max(rowid) FROM requests), "
    "(SELECT outcome FROM requests WHERE outcome <> ? ORDER BY sent_at DESC, rowid DESC LIMIT 1)"
)


class RequestsTable(Table):
    """Requests in the order they were recorded.

    A record may be queued: it is stored with the next transaction that its owner makes anyway, and
    before anything is read here. A killed process loses what was queued.
    """

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._queued: list[RequestRecord] = []
        self._storing = Lock()  # taken before a transaction is begun, never inside one

    def record(self, record: RequestRecord) -> None:
        """Store the outcome of one request, and of those that are queued."""
        self.queue(record)
        self.store_queued()

    def queue(self, record: RequestRecord) -> None:
        """Queue the outcome of one request, to be stored by ``store_queued``."""
        self._queued.append(record)

    def store_queued(self) -> None:
        """Store the outcomes that are queued, by any thread; after an error they stay queued."""
        if self._queued:
            with self.with_queued():
                pass

    @contextmanager
    def with_queued(self) -> Iterator[None]:
        """Store the outcomes that are queued in one transaction with what is written in the block.

        It must not be used inside a transaction.
        """
        with self._storing:
            taken = self._queued[:]
            with self._database.writing() as connection:
                _REQUESTS.insert(connection, taken)
                yield
            del self._queued[: len(taken)]

    def newest(self, most: int) -> list[RequestRecord]:
        """Return the newest ``most`` requests, newest first."""
        self.store_queued()
        with self._database.reading() as connection:
            return _REQUESTS.select(
                connection, "ORDER BY sent_at DESC, rowid DESC LIMIT ?", (most,)
            )

    def last_answered(self, contract_id: int, what_to_show: str, gateway: str) -> datetime | None:
        """Return when the last request that returned bars was sent, or None if none did."""
        self.store_queued()
        with self._database.reading() as connection:
            (sent_at,) = connection.execute(
                "SELECT max(sent_at) FROM requests WHERE rows > 0 AND contract_id = ? "
                "AND what_to_show = ? AND gateway = ?",
                (contract_id, what_to_show, gateway),
            ).fetchone()
        return None if sent_at is None else moment(sent_at)

    def count(self, series_key: str | None = None, since: datetime | None = None) -> int:
        """Return how many requests, of one series or all, were sent at or after a moment."""
        first = 0 if since is None else micros(since)
        values: tuple[object, ...]
        statement, values = "SELECT count(*) FROM requests WHERE sent_at >= ?", (first,)
        if series_key is not None:
            statement, values = f"{statement} AND series = ?", (first, series_key)
        self.store_queued()
        with self._database.reading() as connection:
            (count,) = connection.execute(statement, values).fetchone()
        return int(count)

    def totals(self, known: RequestTotals | None = None) -> RequestTotals:
        """Return counts over all requests.

        Only rows that were recorded since ``known`` are read, unless older ones have been deleted:
        a million rows take half a second, a few take none.

        Args:
            known: an earlier result of this ledger.
        """
        known = known or RequestTotals()
        self.store_queued()
        with self._database.reading() as connection:
            oldest_at, newest_row, last_outcome = connection.execute(
                _BOUNDS, (CANCELLED,)
            ).fetchone()
            if oldest_at != known.oldest_at or (newest_row or 0) < known.newest_row:
                known = RequestTotals()
            newer = _newer(connection, known)
        return replace(newer, oldest_at=oldest_at, last_outcome=last_outcome or "")

    def prune(self, now: datetime) -> int:
        """Delete rows older than ``AUDIT_KEPT_DAYS``; return how many were deleted."""
        oldest = micros(now - timedelta(days=AUDIT_KEPT_DAYS))
        with self._database.writing() as connection:
            return connection.execute("DELETE FROM requests WHERE sent_at < ?", (oldest,)).rowcount


def _newer(connection: sqlite3.Connection, known: RequestTotals) -> RequestTotals:
    """Return the totals with the rows that were recorded since."""
    count, answered, bars, newest_row, answered_at = connection.execute(
        _TOTALS, (*RESPONSES, *RESPONSES, known.newest_row)
    ).fetchone()
    last_answered_at = None if answered_at is None else moment(answered_at)
    moments = [at for at in (known.last_answered_at, last_answered_at) if at is not None]
    return replace(
        known,
        requests=known.requests + count,
        answered=known.answered + round(answered),
        bars=known.bars + round(bars),
        last_answered_at=max(moments, default=None),
        newest_row=newest_row or known.newest_row,
    )
