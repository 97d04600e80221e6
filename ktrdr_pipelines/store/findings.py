"""The ledger's findings: bars that are kept although their values are implausible.

The gateway returned them twice the same. A finding holds for the values that it was made for: a bar
with other values is damage. Where the table is lost ``ktrdr repair`` makes it anew, but for counts
that could not be kept.
"""

from collections.abc import Iterable
from datetime import datetime

from ktrdr_pipelines.core.bars import micros
from ktrdr_pipelines.core.plausibility import Finding, FindingKind
from ktrdr_pipelines.store.database import Database


class FindingsTable(Database):
    """Findings by series and bar timestamp."""

    def record_findings(self, series_key: str, found: Iterable[Finding], at: datetime) -> None:
        """Keep findings; others of the same bars are forgotten."""
        rows = [(series_key, *one, micros(at)) for one in found]
        with self._writing() as connection:
            connection.executemany(
                "DELETE FROM findings WHERE series = ? AND ts = ?", [row[:2] for row in rows]
            )
            connection.executemany(
                "INSERT INTO findings (series, ts, kind, detail, found_at) VALUES (?, ?, ?, ?, ?)",
                rows,
            )

    def findings(self, series_key: str) -> list[Finding]:
        """Return the findings of a series, oldest bar first."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT ts, kind, detail FROM findings WHERE series = ? ORDER BY ts", (series_key,)
            ).fetchall()
        return [Finding(int(ts), FindingKind(kind), detail) for ts, kind, detail in rows]

    def count_findings(self) -> dict[str, int]:
        """Return how many bars of each series have a finding; series without any are left out."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT series, count(DISTINCT ts) FROM findings GROUP BY series"
            ).fetchall()
        return {series: int(count) for series, count in rows}

    def clear_findings(self, series_key: str, keys: Iterable[int]) -> None:
        """Forget the findings of bars, named by their timestamps, that have other values now."""
        with self._writing() as connection:
            connection.executemany(
                "DELETE FROM findings WHERE series = ? AND ts = ?",
                [(series_key, key) for key in keys],
            )
