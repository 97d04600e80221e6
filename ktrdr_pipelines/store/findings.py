"""The ledger's findings: bars that are kept although their values are implausible.

The gateway returned them twice the same. A finding holds for the values that it was made for: a bar
with other values is damage. Losing the table costs nothing: ``ktrdr repair`` finds them again.
"""

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime

from ktrdr_pipelines.core.bars import micros
from ktrdr_pipelines.core.plausibility import Finding
from ktrdr_pipelines.store.database import Database


class FindingsTable(Database):
    """Findings by series and bar timestamp."""

    def record_findings(self, series_key: str, found: Iterable[Finding], at: datetime) -> None:
        """Keep findings; one of the same bar is replaced."""
        with self._writing() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO findings VALUES (?, ?, ?, ?)",
                [(series_key, one.ts, one.detail, micros(at)) for one in found],
            )

    def findings(self, series_key: str) -> list[Finding]:
        """Return the findings of a series, oldest bar first."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT ts, detail FROM findings WHERE series = ? ORDER BY ts", (series_key,)
            ).fetchall()
        return [Finding(int(ts), detail) for ts, detail in rows]

    def all_findings(self) -> dict[str, list[Finding]]:
        """Return the findings of every series that has any, oldest bar first."""
        found: dict[str, list[Finding]] = defaultdict(list)
        with self._reading() as connection:
            for key, ts, detail in connection.execute(
                "SELECT series, ts, detail FROM findings ORDER BY series, ts"
            ):
                found[key].append(Finding(int(ts), detail))
        return dict(found)
