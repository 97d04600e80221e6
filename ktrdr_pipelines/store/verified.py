"""The ledger's verifications: when a series was last read whole, and what its bars were.

Not here: the reading (``load.verify``).
"""

from dataclasses import dataclass
from datetime import datetime

from ktrdr_pipelines.core.bars import micros, moment
from ktrdr_pipelines.store.database import Database


@dataclass(frozen=True, slots=True)
class Verification:
    """One reading of all bars of a series: when, and their digest."""

    verified_at: datetime
    digest: str


class VerifiedTable(Database):
    """The last verification of each series."""

    def record_verified(self, series_key: str, digest: str, at: datetime) -> None:
        """Keep that a series was read whole and found sound."""
        with self._writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO verified VALUES (?, ?, ?)", (series_key, micros(at), digest)
            )

    def last_verified(self, series_key: str) -> Verification | None:
        """Give the last verification of a series, or None where there was none."""
        with self._reading() as connection:
            row = connection.execute(
                "SELECT verified_at, digest FROM verified WHERE series = ?", (series_key,)
            ).fetchone()
        return None if row is None else Verification(moment(row[0]), row[1])
