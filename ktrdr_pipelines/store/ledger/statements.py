"""The ledger's statements: what single responses said about intervals without bars.

Losing the table costs waiting and requests, but no bar: the proofs themselves are in the footers of
the bar files.

Not here: what statements prove (``domain.planning.empty_ranges``), when they are recorded
(``store.evidence``).
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from ktrdr_pipelines.domain.bars import micros, moment
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.planning.empty_ranges import Statement, StatementKind
from ktrdr_pipelines.store.ledger.database import Database

KEPT_DAYS: Final = 400
"""Days that statements are kept: longer than any proof based on them is valid."""

_COLUMNS: Final = (
    "starts, ends, kind, timeframe, said_at, request, controlled, reaches_past"  # of a Statement
)


@dataclass(frozen=True, slots=True)
class StatementRecord:
    """A stored statement about a symbol; ``voided_at`` is when it became void, or None."""

    symbol: str
    said: Statement
    voided_at: datetime | None = None


class StatementsTable(Database):
    """Statements by symbol; void ones are kept for display only."""

    def record_statements(
        self, symbol: str, gateway: str, statements: Iterable[Statement], at: datetime
    ) -> None:
        """Store statements about one symbol; delete those older than ``KEPT_DAYS``."""
        oldest = micros(at - timedelta(days=KEPT_DAYS))
        with self._writing() as connection:
            connection.execute("DELETE FROM statements WHERE recorded_at < ?", (oldest,))
            connection.executemany(
                "INSERT OR REPLACE INTO statements "  # noqa: S608  (a constant)
                "(symbol, gateway, recorded_at, voided_at, "
                f"{_COLUMNS}) VALUES (?, ?, ?, NULL, ?, ?, ?, ?, ?, ?, ?, ?)",
                [(symbol, gateway, micros(at), *_row(one)) for one in statements],
            )

    def statements(self, symbol: str) -> list[Statement]:
        """Return the statements about a symbol that are not void, oldest first."""
        with self._reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM statements "  # noqa: S608  (a constant)
                "WHERE symbol = ? AND voided_at IS NULL ORDER BY said_at",
                (symbol,),
            ).fetchall()
        return [_statement(row) for row in rows]

    def statement_records(self) -> list[StatementRecord]:
        """Return all statements, void ones included, by symbol and then oldest first."""
        with self._reading() as connection:
            rows = connection.execute(
                f"SELECT symbol, voided_at, {_COLUMNS} FROM statements "  # noqa: S608  (a constant)
                "ORDER BY symbol, said_at"
            ).fetchall()
        return [
            StatementRecord(symbol, _statement(row), None if voided is None else moment(voided))
            for symbol, voided, *row in rows
        ]

    def beginning_statements(self) -> dict[str, list[Statement]]:
        """Return, by symbol, the valid statements about where data begin, oldest first.

        These are the kinds ``begins``, ``empty`` and ``older``.
        """
        found: dict[str, list[Statement]] = defaultdict(list)
        with self._reading() as connection:
            for symbol, *row in connection.execute(
                f"SELECT symbol, {_COLUMNS} FROM statements "  # noqa: S608  (a constant)
                "WHERE voided_at IS NULL AND kind IN ('begins', 'empty', 'older') ORDER BY said_at"
            ):
                found[symbol].append(_statement(row))
        return dict(found)

    def void_empty_responses(
        self, gateway: str, start: datetime, end: datetime, at: datetime
    ) -> dict[str, list[Interval]]:
        """Void a gateway's statements of kind ``empty`` or ``older`` made in ``[start, end]``.

        Returns: the intervals whose statements become void, by symbol.
        """
        bounds = (gateway, micros(start), micros(end))
        where = (
            "gateway = ? AND kind IN ('empty', 'older') AND voided_at IS NULL "
            "AND said_at BETWEEN ? AND ?"
        )
        found: dict[str, list[Interval]] = defaultdict(list)
        with self._writing() as connection:
            for symbol, starts, ends in connection.execute(
                f"SELECT DISTINCT symbol, starts, ends FROM statements WHERE {where}",  # noqa: S608
                bounds,
            ):
                found[symbol].append(Interval(moment(starts), moment(ends)))
            connection.execute(
                f"UPDATE statements SET voided_at = ? WHERE {where}",  # noqa: S608  (a constant)
                (micros(at), *bounds),
            )
        return dict(found)


def _row(one: Statement) -> tuple[object, ...]:
    return (
        micros(one.interval.start),
        micros(one.interval.end),
        one.kind.value,
        one.timeframe,
        micros(one.said_at),
        one.request,
        int(one.controlled),
        int(one.reaches_past),
    )


def _statement(row: Iterable[Any]) -> Statement:
    starts, ends, kind, timeframe, said_at, request, controlled, reaches_past = row
    return Statement(
        interval=Interval(moment(starts), moment(ends)),
        kind=StatementKind(kind),
        timeframe=timeframe,
        said_at=moment(said_at),
        request=request,
        controlled=bool(controlled),
        reaches_past=bool(reaches_past),
    )
