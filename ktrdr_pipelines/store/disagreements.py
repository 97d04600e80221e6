"""The ledger's disagreements: bars at other prices, or with volumes in another unit.

They stay until the series was requested again as a whole. Not here: how they are found
(``core.disagreement``, ``core.volume_units``).
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from ktrdr_pipelines.core.bars import micros, moment
from ktrdr_pipelines.core.disagreement import Disagreement, DisagreementKind
from ktrdr_pipelines.store.database import Database


class DisagreementsTable(Database):
    """Disagreements by series."""

    def record_disagreement(self, series_key: str, found: Disagreement, at: datetime) -> None:
        """Keep a disagreement."""
        with self._writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO disagreements VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    series_key,
                    micros(found.first),
                    micros(found.last),
                    found.bars,
                    found.ratio,
                    micros(at),
                    found.kind.value,
                ),
            )

    def disagreements(
        self, series_key: str, kind: DisagreementKind = DisagreementKind.PRICE
    ) -> list[Disagreement]:
        """Return the disagreements of a series of one kind, oldest bars first."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT starts, ends, bars, ratio, kind FROM disagreements "
                "WHERE series = ? AND kind = ? ORDER BY starts, found_at",
                (series_key, kind.value),
            ).fetchall()
        return [_disagreement(row) for row in rows]

    def all_disagreements(
        self, kind: DisagreementKind = DisagreementKind.PRICE
    ) -> dict[str, tuple[Disagreement, ...]]:
        """Return those of one kind of every series that has any, oldest bars first."""
        found: dict[str, list[Disagreement]] = {}
        with self._reading() as connection:
            for key, *row in connection.execute(
                "SELECT series, starts, ends, bars, ratio, kind FROM disagreements "
                "WHERE kind = ? ORDER BY starts, found_at",
                (kind.value,),
            ):
                found.setdefault(key, []).append(_disagreement(row))
        return {key: tuple(ones) for key, ones in found.items()}

    def clear_disagreements(self, series_key: str) -> None:
        """Forget the disagreements of a series that was requested again as a whole."""
        with self._writing() as connection:
            connection.execute("DELETE FROM disagreements WHERE series = ?", (series_key,))


def _disagreement(row: Iterable[Any]) -> Disagreement:
    starts, ends, bars, ratio, kind = row
    return Disagreement(
        moment(starts), moment(ends), int(bars), float(ratio), DisagreementKind(kind)
    )
