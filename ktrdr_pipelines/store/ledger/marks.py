"""Marks of the ledger: confirmed sparse sessions, series kept fresh, refreshes, verifications.

Losing any of these tables costs requests, but no bar.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from ktrdr_pipelines.domain.bars import micros, moment
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.store.ledger.database import Table
from ktrdr_pipelines.store.ledger.rows import Rows, bounds


class ConfirmedTable(Table):
    """Sparse sessions that returned the same bars when requested once more.

    A confirmation holds for the number of bars it was recorded with: a session that has lost bars
    since is sparse again. Losing the table costs one request a sparse session.
    """

    def record(self, series_key: str, rows_per_session: Mapping[date, int], at: datetime) -> None:
        """Record that these sessions were requested once more and have this many bars."""
        with self._database.writing() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO confirmed VALUES (?, ?, ?, ?)",
                [
                    (series_key, day.isoformat(), rows, micros(at))
                    for day, rows in rows_per_session.items()
                ],
            )

    def of(self, series_key: str) -> dict[date, int]:
        """Return the confirmed sessions of a series, and the number of bars each had."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT session_date, rows FROM confirmed WHERE series = ?", (series_key,)
            ).fetchall()
        return {date.fromisoformat(day): count for day, count in rows}

    def all(self) -> dict[str, dict[date, int]]:
        """Return the confirmed sessions of every series that has any."""
        found: dict[str, dict[date, int]] = defaultdict(dict)
        with self._database.reading() as connection:
            for series, day, count in connection.execute(
                "SELECT series, session_date, rows FROM confirmed"
            ):
                found[series][date.fromisoformat(day)] = count
        return dict(found)


class KeptFreshTable(Table):
    """From which bar timestamp on automatic work keeps a series fresh.

    Of a series that the user loads (``backfill: manual``), sensors and updates load what follows
    the bars that the user has loaded. Filling goes newest first, so the newest bar does not show
    that point: once a run has saved the newest part of what is due, older parts lie behind the
    newest bar. The mark is set when a series has its first bars, and never moves. Where the table
    is lost, the newest bar counts until the next save.
    """

    def record(self, series_key: str, since: datetime) -> None:
        """Record from which bar timestamp on a series is kept fresh; an existing mark stays."""
        with self._database.reading() as connection:  # spares most saves a transaction
            if connection.execute(
                "SELECT 1 FROM kept_fresh WHERE series = ?", (series_key,)
            ).fetchone():
                return
        with self._database.writing() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO kept_fresh VALUES (?, ?)", (series_key, micros(since))
            )

    def all(self) -> dict[str, datetime]:
        """Return the marks of all series."""
        with self._database.reading() as connection:
            rows = connection.execute("SELECT series, since FROM kept_fresh").fetchall()
        return {series: moment(since) for series, since in rows}


REFRESH_KEPT_DAYS = 7
"""Days that the responses of an interrupted refresh count as fresh."""


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What a refresh has received, by bar timestamp, and the time of its first response."""

    intervals: IntervalSet
    since: datetime


class RefreshesTable(Table):
    """Intervals that unfinished refreshes have received again, by series.

    An interrupted refresh continues from them; a completed one leaves no rows.
    """

    def of(self, series_key: str, now: datetime) -> Refreshed | None:
        """Return what unfinished refreshes have received of a series, or None."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT starts, ends, answered_at FROM refreshed "
                "WHERE series = ? AND answered_at >= ?",
                (series_key, _oldest(now)),
            ).fetchall()
        if not rows:
            return None
        intervals = IntervalSet(Interval(moment(start), moment(end)) for start, end, _ in rows)
        return Refreshed(intervals, moment(min(at for _, _, at in rows)))

    def record(self, series_key: str, intervals: IntervalSet, at: datetime) -> None:
        """Record that intervals were received again; the caller has saved the bars already.

        Rows older than ``REFRESH_KEPT_DAYS`` are deleted, of every series.
        """
        with self._database.writing() as connection:
            connection.execute("DELETE FROM refreshed WHERE answered_at < ?", (_oldest(at),))
            connection.executemany(
                "INSERT OR REPLACE INTO refreshed VALUES (?, ?, ?, ?)",
                [(series_key, *bounds(part), micros(at)) for part in intervals],
            )

    def end(self, series_key: str, wanted: IntervalSet) -> None:
        """Delete what was received again within intervals that a refresh has completed."""
        with self._database.writing() as connection:
            connection.executemany(
                "DELETE FROM refreshed WHERE series = ? AND starts < ? AND ends > ?",
                [(series_key, end, start) for start, end in map(bounds, wanted)],
            )


def _oldest(now: datetime) -> int:
    return micros(now - timedelta(days=REFRESH_KEPT_DAYS))


@dataclass(frozen=True, slots=True)
class Verification:
    """When all bars of a series were last read, and their digest."""

    verified_at: datetime
    digest: str


_VERIFICATIONS = Rows("verified", Verification, keys=("series",))


class VerifiedTable(Table):
    """The last verification of each series."""

    def record(self, series_key: str, digest: str, at: datetime) -> None:
        """Record that a series was read as a whole and found valid."""
        with self._database.writing() as connection:
            _VERIFICATIONS.insert(connection, [Verification(at, digest)], series_key)

    def of(self, series_key: str) -> Verification | None:
        """Return the last verification of a series, or None."""
        with self._database.reading() as connection:
            found = _VERIFICATIONS.select(connection, "WHERE series = ?", (series_key,))
        return found[0] if found else None
