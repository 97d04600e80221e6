"""The table of requests: what was sent to a gateway, what holds a permit, and what waits.

A row is ``waiting`` until it is sent, ``open`` until its response, and ``done`` after that. Its
``counted`` is the latest time at which the gateway can have counted it: the deadline while it is
open, then the time of its response, or of the gateway's report that it was lost; a request that was
cancelled keeps the deadline. Every query reads an index, and only as many rows as a rule can need.
All methods run inside a transaction.

Not here: the rules (``ib.pacing.rules``), the file and its schema (``ib.pacing.shared_file``).
"""

from collections.abc import Sequence
from sqlite3 import Connection
from typing import Final

from ktrdr_pipelines.ib.pacing.rules import (
    Counted,
    OpenRequests,
    PacedRequest,
    RequestKind,
    Rule,
    Scope,
    Waiting,
)

CLOCK_GRAIN_S: Final = 1.0
"""Seconds that a recorded time may lie in the future: clocks of two processors differ."""

_INSERT = (
    "INSERT INTO requests (boot, owner, state, at, until, counted, kind, contract, identical,"
    " weight, small, tail) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_HISTORICAL = "kind IN ('bars', 'head')"
_OF_OTHERS = "state <> 'waiting' AND number <> ?"
_WAITING = (
    "SELECT number, owner, at, kind, contract, identical, weight, small, tail FROM requests"
    " INDEXED BY requests_waiting"
    " WHERE boot = ? AND state = 'waiting' AND until > ? AND number <> ?"
)
# Whatever was open then is counted later: when its response arrived, or by its deadline, which is
# not before the end of its permit.
_OPEN_AT = (
    "SELECT count(*) FROM requests INDEXED BY requests_counted WHERE boot = ? AND counted > ?"
    " AND at <= ? AND until > ? AND state <> 'waiting' AND kind = 'bars' AND small = ?"
)
_OPEN = (
    f"SELECT owner, count(*), sum({_HISTORICAL}), sum(kind = 'bars' AND NOT small)"  # noqa: S608
    " FROM requests INDEXED BY requests_counted"
    " WHERE boot = ? AND counted > ? AND state = 'open' AND until > ?"
    " AND number <> ? GROUP BY owner"
)
# A message is counted when it was sent, and ``counted`` is never before that.
_MESSAGES = (
    "SELECT at, at, 1 FROM requests INDEXED BY requests_counted"  # noqa: S608
    f" WHERE boot = ? AND counted > ? AND at > ? AND {_OF_OTHERS}"
    " ORDER BY at DESC LIMIT ? OFFSET ?"
)
_IDENTICAL = (
    "SELECT counted, at, 1 FROM requests INDEXED BY requests_identical"  # noqa: S608
    f" WHERE identical = ? AND boot = ? AND counted > ?"
    f" AND {_HISTORICAL} AND {_OF_OTHERS} ORDER BY counted DESC LIMIT ?"
)


def _by_arrival(rule: Rule) -> str:
    """Return the query for a rule over all contracts or one, from the response of each request.

    Small requests have an index of their own: among thousands of others they are few.
    """
    index, only = "counted", _HISTORICAL
    if rule.small_only:
        index, only = "small", "small = 1"
    backfills = " AND tail = 0" if rule.backfills_only else ""
    contract = " AND contract = ?" if rule.scope is Scope.CONTRACT else ""
    weight = "weight" if rule.weighted else "1"
    return (
        f"SELECT counted, at, {weight} FROM requests INDEXED BY requests_{index}"  # noqa: S608
        f" WHERE boot = ? AND counted > ? AND {only} AND {_OF_OTHERS}{backfills}{contract}"
        " ORDER BY counted DESC LIMIT ?"
    )


_QUERIES: Final[dict[Rule, str]] = {}


class RequestRows:
    """The requests of this run of the machine, less the excluded one; read in a transaction.

    Args:
        database: the transaction.
        boot: the name of this run.
        now: the clock.
        excluded: the number of the request in question, 0 if it has no row.
    """

    def __init__(self, database: Connection, boot: str, now: float, *, excluded: int = 0) -> None:
        self._database = database
        self._boot, self._now, self._excluded = boot, now, excluded

    def waiting(self) -> list[Waiting]:
        """Return the requests that wait for a permit."""
        rows = self._database.execute(_WAITING, (self._boot, self._now, self._excluded)).fetchall()
        return [
            Waiting(
                number,
                owner,
                at,
                PacedRequest(
                    RequestKind(kind),
                    contract,
                    identical,
                    weight=weight,
                    small=bool(small),
                    tail=bool(tail),
                ),
            )
            for number, owner, at, kind, contract, identical, weight, small, tail in rows
        ]

    def open_requests(self) -> dict[str, OpenRequests]:
        """Return the requests that hold a permit and have no response yet, by owner."""
        values = (self._boot, self._now, self._now, self._excluded)
        return {
            owner: OpenRequests(count, historical, metered)
            for owner, count, historical, metered in self._database.execute(_OPEN, values)
        }

    def open_at(self, moment: float, *, small: bool) -> int:
        """Return how many requests for small bars, or for longer ones, were open at a moment."""
        values = (self._boot, moment, moment, moment, small)
        return int(self._database.execute(_OPEN_AT, values).fetchone()[0])

    def counted(self, rule: Rule, request: PacedRequest, others: int) -> Sequence[Counted]:
        """Return the sent requests that can delay a request under a rule, latest first."""
        since, most = self._now - rule.window_s, rule.most + rule.lent
        if not rule.is_by_arrival:
            return self._messages(rule, since, others)
        if rule.scope is Scope.IDENTICAL:
            query = _IDENTICAL
            values = (request.identical, self._boot, since, self._excluded, most)
        else:
            query = _QUERIES.get(rule) or _QUERIES.setdefault(rule, _by_arrival(rule))
            contract = (request.contract,) if rule.scope is Scope.CONTRACT else ()
            values = (self._boot, since, self._excluded, *contract, most)
        return [Counted._make(row) for row in self._database.execute(query, values)]

    def _messages(self, rule: Rule, since: float, others: int) -> Sequence[Counted]:
        """Return the messages of the last second that can delay another, and as one the newer."""
        newer = max(rule.most - 1 - others, 0)
        values = (self._boot, since, since, self._excluded, rule.most - newer, newer)
        rows = [Counted._make(row) for row in self._database.execute(_MESSAGES, values)]
        return [Counted(rows[0].latest, rows[0].sent_at, newer), *rows] if rows and newer else rows


def is_queued(database: Connection, number: int, owner: str, request: PacedRequest) -> bool:
    """Return whether a request of an owner still has its row, which is not done.

    After the file was replaced another request may have its number.
    """
    row = database.execute(
        "SELECT 1 FROM requests"
        " WHERE number = ? AND owner = ? AND identical = ? AND state <> 'done'",
        (number, owner, request.identical),
    ).fetchone()
    return row is not None


def insert(
    database: Connection,
    boot: str,
    owner: str,
    request: PacedRequest,
    *,
    state: str,
    at: float,
    until: float,
    counted: float | None,
) -> int:
    """Add a request, and return its number."""
    values = (boot, owner, state, at, until, counted, request.kind.value, request.contract)
    rest = (request.identical, request.weight, request.small, request.tail)
    return int(database.execute(_INSERT, (*values, *rest)).lastrowid or 0)


def prune(database: Connection, boot: str, *, now: float, horizon_s: float) -> None:
    """Delete rows that no longer matter: old, abandoned, or of another start of the machine."""
    database.execute("DELETE FROM memory WHERE boot NOT IN (?, '')", (boot,))
    for other in ("boot < ?", "boot > ?"):
        database.execute(f"DELETE FROM requests WHERE {other}", (boot,))  # noqa: S608
    database.execute(
        "DELETE FROM requests WHERE boot = ? AND state = 'waiting' AND until < ?", (boot, now)
    )
    database.execute(
        "DELETE FROM requests WHERE boot = ? AND counted < ? AND state <> 'waiting'",
        (boot, now - horizon_s),
    )
    # No row of this run can have been sent in the future.
    database.execute(
        "DELETE FROM requests WHERE boot = ? AND counted > ? AND at > ? AND state <> 'waiting'",
        (boot, now + CLOCK_GRAIN_S, now + CLOCK_GRAIN_S),
    )


def adopt(database: Connection, boot: str, *, horizon_s: float) -> None:
    """Count what earlier runs of the machine have sent as sent when this one began, at 0.

    A gateway on another machine remembers it, and nothing tells how long ago it was. What was open
    then has no permit any more.
    """
    newest = database.execute("SELECT max(at) FROM requests WHERE boot <> ?", (boot,)).fetchone()[0]
    if newest is None:
        return
    database.execute(
        "DELETE FROM requests WHERE boot <> ? AND (state = 'waiting' OR counted < ?)",
        (boot, newest - horizon_s),
    )
    database.execute(
        "UPDATE requests SET boot = ?, state = 'done', at = 0, until = 0, counted = 0"
        " WHERE boot <> ?",
        (boot, boot),
    )
