"""Marks of the ledger: confirmed sessions, refreshes, fresh series, verified files.

The ledger's confirmed sessions: sparse sessions that gave the same when they were asked once more.

A confirmation holds for the number of bars that it was given for: a session that has lost bars
since is sparse again. Losing the table costs one request a sparse, and no bar.

The ledger's marks of what is kept fresh: from where on automatic work loads a series.

Of a series that a person loads (``backfill: manual``), sensors and updates load what comes after
the bars that the person has loaded. Filling goes newest first, so the newest bar does not say where
that is: once a run has saved the newest part of what is due, older parts lie behind the newest bar.
The mark is set when a series has bars for the first time, and never moves. Losing the table costs
no bar; the newest bar then counts until the next save.

The ledger's refreshes: what was asked for again by a refresh that has not come to its end.

A refresh that was stopped goes on from there; one that has ended leaves nothing here. Losing the
table costs requests, and no bar.

The ledger's verifications: when a series was last read whole, and what its bars were.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from ktrdr_pipelines.domain.bars import micros, moment
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.store.ledger.attempts import bounds
from ktrdr_pipelines.store.ledger.database import Database


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


REFRESH_KEPT_DAYS = 7
"""Days that the answers of a refresh which was stopped count as fresh."""


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What was answered again, on the stamp axis, and when the first of it was."""

    intervals: IntervalSet
    since: datetime


class RefreshesTable(Database):
    """Intervals that were answered again, by series."""

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
        intervals = IntervalSet(Interval(moment(start), moment(end)) for start, end, _ in rows)
        return Refreshed(intervals, moment(min(at for _, _, at in rows)))

    def record_refreshed(self, series_key: str, intervals: IntervalSet, at: datetime) -> None:
        """Remember that intervals were answered again, after what came is on disk.

        What is too old to count is dropped, of whatever series.
        """
        with self._writing() as connection:
            connection.execute("DELETE FROM refreshed WHERE answered_at < ?", (_oldest(at),))
            connection.executemany(
                "INSERT OR REPLACE INTO refreshed VALUES (?, ?, ?, ?)",
                [(series_key, *bounds(part), micros(at)) for part in intervals],
            )

    def end_refresh(self, series_key: str, wanted: IntervalSet) -> None:
        """Forget what was answered again in intervals of which a refresh had all."""
        with self._writing() as connection:
            connection.executemany(
                "DELETE FROM refreshed WHERE series = ? AND starts < ? AND ends > ?",
                [(series_key, end, start) for start, end in map(bounds, wanted)],
            )


def _oldest(now: datetime) -> int:
    return micros(now - timedelta(days=REFRESH_KEPT_DAYS))


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
