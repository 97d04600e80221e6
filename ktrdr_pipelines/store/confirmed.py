"""The ledger's confirmed sessions: suspects that gave the same when they were asked once more.

A confirmation holds for the number of bars that it was given for: a session that has lost bars
since is suspect again. Losing the table costs one request a suspect, and no bar. Not here: which
sessions are suspect (``core.suspects``).
"""

from collections import defaultdict
from collections.abc import Mapping
from datetime import date, datetime

from ktrdr_pipelines.core.bars import micros
from ktrdr_pipelines.store.database import Database


class ConfirmedTable(Database):
    """Confirmed sessions by series and session date."""

    def confirm_sessions(
        self, series_key: str, rows_per_session: Mapping[date, int], at: datetime
    ) -> None:
        """Remember that these sessions were asked once more and have this many bars."""
        with self._writing() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO confirmed VALUES (?, ?, ?, ?)",
                [
                    (series_key, day.isoformat(), rows, micros(at))
                    for day, rows in rows_per_session.items()
                ],
            )

    def confirmed(self, series_key: str) -> dict[date, int]:
        """Give the confirmed sessions of a series, and the bars that each had."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT session_date, rows FROM confirmed WHERE series = ?", (series_key,)
            ).fetchall()
        return {date.fromisoformat(day): count for day, count in rows}

    def all_confirmed(self) -> dict[str, dict[date, int]]:
        """Give the confirmed sessions of every series that has any."""
        found: dict[str, dict[date, int]] = defaultdict(dict)
        with self._reading() as connection:
            for series, day, count in connection.execute(
                "SELECT series, session_date, rows FROM confirmed"
            ):
                found[series][date.fromisoformat(day)] = count
        return dict(found)
