"""The ledger's refreshes: what was asked for again by a refresh that has not come to its end.

A refresh that was stopped goes on from there; one that has ended leaves nothing here. Losing the
table costs requests, and no bar. Not here: what is asked for again (``load.outlook``).
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from ktrdr_pipelines.core.bars import micros, moment
from ktrdr_pipelines.core.intervals import Interval, IntervalSet
from ktrdr_pipelines.store.attempts import bounds
from ktrdr_pipelines.store.database import Database

REFRESH_KEPT_DAYS = 7
"""Days that the answers of a refresh which was stopped count as fresh."""


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What was answered again, on the stamp axis, and when the first of it was."""

    stamps: IntervalSet
    since: datetime


class RefreshesTable(Database):
    """Stretches that were answered again, by series."""

    def refreshed(self, series_key: str, now: datetime) -> Refreshed | None:
        """Give what refreshes that did not end have had of a series, or None."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT starts, ends, answered_at FROM refreshed "
                "WHERE series = ? AND answered_at >= ?",
                (series_key, _oldest(now)),
            ).fetchall()
        if not rows:
            return None
        stamps = IntervalSet(Interval(moment(start), moment(end)) for start, end, _ in rows)
        return Refreshed(stamps, moment(min(at for _, _, at in rows)))

    def record_refreshed(self, series_key: str, stamps: IntervalSet, at: datetime) -> None:
        """Remember that stretches were answered again, after what came is on disk.

        What is too old to count is dropped, of whatever series.
        """
        with self._writing() as connection:
            connection.execute("DELETE FROM refreshed WHERE answered_at < ?", (_oldest(at),))
            connection.executemany(
                "INSERT OR REPLACE INTO refreshed VALUES (?, ?, ?, ?)",
                [(series_key, *bounds(part), micros(at)) for part in stamps],
            )

    def end_refresh(self, series_key: str, wanted: IntervalSet) -> None:
        """Forget what was answered again in stretches of which a refresh had all."""
        with self._writing() as connection:
            connection.executemany(
                "DELETE FROM refreshed WHERE series = ? AND starts < ? AND ends > ?",
                [(series_key, end, start) for start, end in map(bounds, wanted)],
            )


def _oldest(now: datetime) -> int:
    return micros(now - timedelta(days=REFRESH_KEPT_DAYS))
