"""The ledger's rows of one symbol, in whatever table they stand, under another name.

Not here: what the tables hold (one module a group of tables).
"""

import sqlite3

from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.store.database import Database

_OF_FILES = ("mirror", "claims", "refreshed")
"""Tables whose rows are of files and moments: they are not moved but dropped, and made anew."""


class SymbolsTable(Database):
    """All tables by symbol: those with a column ``series`` (``AAPL|1m``) or ``symbol``."""

    def move_symbol(self, old: str, new: str) -> None:
        """Put every row of a symbol under another name, in one transaction."""
        with self._writing() as connection:
            for table in _tables(connection):
                columns = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
                if table in _OF_FILES:
                    _drop_series(connection, table, old)
                elif "series" in columns:
                    _move_series(connection, table, old, new)
                if "symbol" in columns:
                    connection.execute(
                        f"UPDATE OR REPLACE {table} SET symbol = ? WHERE symbol = ?",  # noqa: S608
                        (new, old),
                    )


def _tables(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return [name for (name,) in rows if not name.startswith("sqlite_")]


def _move_series(connection: sqlite3.Connection, table: str, old: str, new: str) -> None:
    connection.executemany(
        f"UPDATE OR REPLACE {table} SET series = ? WHERE series = ?",  # noqa: S608
        [(f"{new}|{timeframe}", f"{old}|{timeframe}") for timeframe in Timeframe],
    )


def _drop_series(connection: sqlite3.Connection, table: str, old: str) -> None:
    connection.executemany(
        f"DELETE FROM {table} WHERE series = ?",  # noqa: S608
        [(f"{old}|{timeframe}",) for timeframe in Timeframe],
    )
