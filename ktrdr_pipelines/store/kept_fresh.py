"""The ledger's marks of what is kept fresh: from where on automatic work loads a series.

Of a series that a person loads (``backfill: manual``), sensors and updates load what comes after
the bars that the person has loaded. Filling goes newest first, so the newest bar does not say where
that is: once a run has saved the newest part of what is due, older parts lie behind the newest bar.
The mark is set when a series has bars for the first time, and never moves. Losing the table costs
no bar; the newest bar then counts until the next save. Not here: what is due (``load.filling``).
"""

from datetime import datetime

from ktrdr_pipelines.core.bars import micros, moment
from ktrdr_pipelines.store.database import Database


class KeptFreshTable(Database):
    """Marks by series, as bar timestamps."""

    def keep_fresh(self, series_key: str, since: datetime) -> None:
        """Remember from where on a series is kept fresh; a mark that is there stays."""
        with self._reading() as connection:
            if connection.execute(
                "SELECT 1 FROM kept_fresh WHERE series = ?", (series_key,)
            ).fetchone():
                return
        with self._writing() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO kept_fresh VALUES (?, ?)", (series_key, micros(since))
            )

    def kept_fresh(self) -> dict[str, datetime]:
        """Return the marks of all series."""
        with self._reading() as connection:
            rows = connection.execute("SELECT series, since FROM kept_fresh").fetchall()
        return {series: moment(since) for series, since in rows}
