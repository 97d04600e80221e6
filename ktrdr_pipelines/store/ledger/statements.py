"""The ledger's statements: what each response stated about ranges without bars.

Losing the table costs waiting and requests, but no bar: the proofs themselves are in the footers of
the bar files.

Not here: what statements prove (``domain.planning.empty_ranges``), when they are recorded
(``store.evidence``).
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from ktrdr_pipelines.domain.bars import micros, moment
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.planning.empty_ranges import Statement
from ktrdr_pipelines.store.ledger.database import Table
from ktrdr_pipelines.store.ledger.rows import Rows

KEPT_DAYS: Final = 400
"""Days that statements are kept: longer than any proof based on them is valid."""

_STATEMENTS = Rows("statements", Statement, keys=("symbol", "gateway", "recorded_at", "voided_at"))


@dataclass(frozen=True, slots=True)
class StatementRecord:
    """A stored statement about a symbol; ``voided_at`` is when it became void, or None."""

    symbol: str
    said: Statement
    voided_at: datetime | None = None


class StatementsTable(Table):
    """Statements by symbol; void ones are kept for display only."""

    def record(
        self, symbol: str, gateway: str, statements: Iterable[Statement], at: datetime
    ) -> None:
        """Store statements about one symbol; delete those older than ``KEPT_DAYS``."""
        oldest = micros(at - timedelta(days=KEPT_DAYS))
        with self._database.writing() as connection:
            connection.execute("DELETE FROM statements WHERE recorded_at < ?", (oldest,))
            _STATEMENTS.insert(connection, statements, symbol, gateway, micros(at), None)

    def of(self, symbol: str) -> list[Statement]:
        """Return the statements about a symbol that are not void, oldest first."""
        with self._database.reading() as connection:
            return _STATEMENTS.select(
                connection, "WHERE symbol = ? AND voided_at IS NULL ORDER BY said_at", (symbol,)
            )

    def all(self) -> list[StatementRecord]:
        """Return all statements, void ones included, by symbol and then oldest first."""
        with self._database.reading() as connection:
            rows = _STATEMENTS.select_keyed(connection, "ORDER BY symbol, said_at")
            return [
                StatementRecord(symbol, said, None if voided_at is None else moment(voided_at))
                for (symbol, _, _, voided_at), said in rows
            ]

    def beginnings(self) -> dict[str, list[Statement]]:
        """Return, by symbol, the valid statements about where data begin, oldest first.

        These are the kinds ``begins``, ``empty`` and ``older``.
        """
        found: dict[str, list[Statement]] = defaultdict(list)
        with self._database.reading() as connection:
            for (symbol, *_), said in _STATEMENTS.select_keyed(
                connection,
                "WHERE voided_at IS NULL AND kind IN ('begins', 'empty', 'older') ORDER BY said_at",
            ):
                found[symbol].append(said)
        return dict(found)

    def void_empty(
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
        with self._database.writing() as connection:
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
