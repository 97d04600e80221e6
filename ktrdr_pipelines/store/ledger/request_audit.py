"""The ledger's audit: every request that was sent, its outcome, and what it proved.

Accounts do not appear: a login has a name such as ``login 1``.

Not here: the budget of requests, which belongs to the gateway and lies outside the store
(``ib.pacing.rate_limiter``).
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from ktrdr_pipelines.domain.bars import micros, moment
from ktrdr_pipelines.store.ledger.database import Table
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


_REQUESTS = Rows("requests", RequestRecord)


class RequestsTable(Table):
    """Requests in the order they were recorded."""

    def record(self, record: RequestRecord) -> None:
        """Store the outcome of one request."""
        with self._database.writing() as connection:
            _REQUESTS.insert(connection, [record])

    def newest(self, most: int) -> list[RequestRecord]:
        """Return the newest ``most`` requests, newest first."""
        with self._database.reading() as connection:
            return _REQUESTS.select(
                connection, "ORDER BY sent_at DESC, rowid DESC LIMIT ?", (most,)
            )

    def last_answered(self, contract_id: int, what_to_show: str, gateway: str) -> datetime | None:
        """Return when the last request that returned bars was sent, or None if none did."""
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
        with self._database.reading() as connection:
            (count,) = connection.execute(statement, values).fetchone()
        return int(count)

    def prune(self, now: datetime) -> int:
        """Delete rows older than ``AUDIT_KEPT_DAYS``; return how many were deleted."""
        oldest = micros(now - timedelta(days=AUDIT_KEPT_DAYS))
        with self._database.writing() as connection:
            return connection.execute("DELETE FROM requests WHERE sent_at < ?", (oldest,)).rowcount
