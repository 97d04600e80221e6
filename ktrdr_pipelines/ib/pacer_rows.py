"""The rows of the shared record as values: who waits, what is open, what was sent.

Not here: writing them (``ib.pacer_record``).
"""

import sqlite3

from ktrdr_pipelines.core.pacing import PacedRequest, Pacing, RequestKind
from ktrdr_pipelines.core.turns import Hit, Waiting

_COLUMNS = "number, owner, at, kind, contract, identical, weight, small, tail"
_NOBODY = -1
_Row = tuple[int, str, float, str, str, str, int, int, int]


class RequestRows:
    """The requests of this run of the machine, all but one; read inside a transaction."""

    def __init__(self, database: sqlite3.Connection, boot: str, *, but: int = _NOBODY) -> None:
        self._database = database
        self._boot, self._but = boot, but

    def waiting(self, now: float) -> list[Waiting]:
        """Give those who wait for their turn."""
        return [
            Waiting(number=row[0], owner=row[1], at=row[2], request=_request(row))
            for row in self._rows("state = 'waiting' AND until > ?", (now,))
        ]

    def held(self, now: float) -> dict[str, list[PacedRequest]]:
        """Give what is unanswered and holds a place, by owner."""
        held: dict[str, list[PacedRequest]] = {}
        for row in self._rows("state = 'open' AND until > ?", (now,)):
            held.setdefault(row[1], []).append(_request(row))
        return held

    def sent(self, pacing: Pacing, request: PacedRequest, now: float) -> list[Hit]:
        """Give what was sent and can still matter to a request."""
        recent = now - pacing.horizon_s(small=False)
        since = now - pacing.horizon_s(small=True) if request.small else recent
        where = "state <> 'waiting' AND at > ? AND (small OR at > ?)"
        return [Hit(row[2], _request(row)) for row in self._rows(where, (since, recent))]

    def _rows(self, where: str, values: tuple[float, ...]) -> list[_Row]:
        query = (
            f"SELECT {_COLUMNS} FROM requests "  # noqa: S608
            f"WHERE boot = ? AND number <> ? AND {where}"
        )
        return self._database.execute(query, (self._boot, self._but, *values)).fetchall()


def _request(row: _Row) -> PacedRequest:
    _, _, _, kind, contract, identical, weight, small, tail = row
    return PacedRequest(
        RequestKind(kind), contract, identical, weight=weight, small=bool(small), tail=bool(tail)
    )
