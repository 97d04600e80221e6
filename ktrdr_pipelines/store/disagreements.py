"""The ledger's disagreements: held bars that came again at other prices.

They stay until the series was requested again as a whole. Not here: how they are found
(``core.disagreement``).
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from ktrdr_pipelines.core.bars import micros, moment
from ktrdr_pipelines.core.disagreement import Disagreement
from ktrdr_pipelines.store.database import Database


class DisagreementsTable(Database):
    """Disagreements by series."""

    def record_disagreement(self, series_key: str, found: Disagreement, at: datetime) -> None:
        """Keep a disagreement."""
        with self._writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO disagreements VALUES (?, ?, ?, ?, ?, ?)",
                (
                    series_key,
                    micros(found.first),
                    micros(found.last),
                    found.bars,
                    found.ratio,
                    micros(at),
                ),
            )

    def disagreements(self, series_key: str) -> list[Disagreement]:
        """Return the disagreements of a series, oldest bars first."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT starts, ends, bars, ratio FROM disagreements WHERE series = ? "
                "ORDER BY starts, found_at",
                (series_key,),
            ).fetchall()
        return [_disagreement(row) for row in rows]

    def all_disagreements(self) -> dict[str, tuple[Disagreement, ...]]:
        """Return the disagreements of every series that has any, oldest bars first."""
        found: dict[str, list[Disagreement]] = {}
        with self._reading() as connection:
            for key, *row in connection.execute(
                "SELECT series, starts, ends, bars, ratio FROM disagreements "
                "ORDER BY starts, found_at"
            ):
                found.setdefault(key, []).append(_disagreement(row))
        return {key: tuple(ones) for key, ones in found.items()}

    def clear_disagreements(self, series_key: str) -> None:
        """Forget the disagreements of a series that was requested again as a whole."""
        with self._writing() as connection:
            connection.execute("DELETE FROM disagreements WHERE series = ?", (series_key,))


def _disagreement(row: Iterable[Any]) -> Disagreement:
    starts, ends, bars, ratio = row
    return Disagreement(moment(starts), moment(ends), int(bars), float(ratio))
