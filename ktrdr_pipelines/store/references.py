"""The ledger's references: which contract a symbol is, how far back it goes, and old values.

Not here: asking a gateway for them (``ib.contracts``, ``load.ranges``).
"""

from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa

from ktrdr_pipelines.core.bars import VALUES, micros, moment, stamps
from ktrdr_pipelines.core.instruments import Origin
from ktrdr_pipelines.store.database import Database


@dataclass(frozen=True, slots=True)
class HeadRecord:
    """What a gateway said of the oldest data of a contract; ``head`` None if it cannot say."""

    head: datetime | None
    asked_at: datetime


@dataclass(frozen=True, slots=True)
class Revision:
    """A bar that was replaced by a newer answer that differed: its old values."""

    ts: datetime
    replaced_at: datetime
    open: float | None
    high: float | None
    low: float | None
    close: float | None
    volume: float | None
    average: float | None
    bar_count: int | None


class ReferencesTable(Database):
    """Heads, pinned contracts and revisions."""

    def head(self, contract_id: int, what_to_show: str, gateway: str) -> HeadRecord | None:
        """Give the recorded head of a contract, or None where none was ever asked for."""
        with self._reading() as connection:
            row = connection.execute(
                "SELECT head, asked_at FROM ranges "
                "WHERE contract_id = ? AND what_to_show = ? AND gateway = ?",
                (contract_id, what_to_show, gateway),
            ).fetchone()
        if row is None:
            return None
        return HeadRecord(None if row[0] is None else moment(row[0]), moment(row[1]))

    def heads(self, gateway: str) -> dict[tuple[int, str], datetime]:
        """Give the known heads of a gateway by contract id and what_to_show."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT contract_id, what_to_show, head FROM ranges "
                "WHERE gateway = ? AND head IS NOT NULL",
                (gateway,),
            ).fetchall()
        return {(contract_id, what): moment(head) for contract_id, what, head in rows}

    def record_head(
        self,
        contract_id: int,
        what_to_show: str,
        gateway: str,
        *,
        head: datetime | None,
        asked_at: datetime,
    ) -> None:
        """Keep what a gateway said of the oldest data."""
        stamp = None if head is None else micros(head)
        with self._writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO ranges VALUES (?, ?, ?, ?, ?)",
                (contract_id, what_to_show, gateway, stamp, micros(asked_at)),
            )

    def pinned_contract(self, symbol: str, origin: Origin) -> int | None:
        """Give the contract id that a symbol stands for, or None before its first answer."""
        with self._reading() as connection:
            row = connection.execute(
                "SELECT contract_id FROM instruments WHERE symbol = ? AND origin = ?",
                (symbol, origin),
            ).fetchone()
        return None if row is None else int(row[0])

    def pinned_contracts(self, origin: Origin) -> dict[str, int]:
        """Give the contract ids that symbols stand for."""
        with self._reading() as connection:
            return dict(
                connection.execute(
                    "SELECT symbol, contract_id FROM instruments WHERE origin = ?", (origin,)
                ).fetchall()
            )

    def pin_contract(  # noqa: PLR0917  (a row, in its order)
        self, symbol: str, origin: Origin, contract_id: int, description: str, at: datetime
    ) -> None:
        """Fix the contract id that a symbol stands for; a later call replaces it."""
        with self._writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO instruments VALUES (?, ?, ?, ?, ?)",
                (symbol, origin, contract_id, description, micros(at)),
            )

    def record_revisions(self, series_key: str, replaced: pa.Table, at: datetime) -> None:
        """Keep the old values of bars that a newer answer replaced."""
        keys = stamps(replaced).tolist()
        columns = [replaced[name].to_pylist() for name in VALUES]
        with self._writing() as connection:
            connection.executemany(
                "INSERT INTO revisions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (series_key, key, micros(at), *values)
                    for key, *values in zip(keys, *columns, strict=True)
                ],
            )

    def revisions(self, series_key: str) -> list[Revision]:
        """Give the replaced bars of a series, oldest bar first."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT ts, replaced_at, open, high, low, close, volume, average, bar_count "
                "FROM revisions WHERE series = ? ORDER BY ts, replaced_at",
                (series_key,),
            ).fetchall()
        return [Revision(moment(row[0]), moment(row[1]), *row[2:]) for row in rows]
