"""The ledger's attempts: requests that failed or are not final yet, and when each is due again.

Not here: how long an attempt is deferred (``domain.planning.retry_schedule``), what responses
covered (``store.ledger.file_index``).
"""

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime

from ktrdr_pipelines.domain.bars import micros, moment
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.planning.retry_schedule import SERIES_WIDE, AttemptKind
from ktrdr_pipelines.store.ledger.database import Table
from ktrdr_pipelines.store.ledger.rows import Rows, bounds

__all__ = ["Attempt", "AttemptKind", "AttemptsTable"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """All attempts of one kind at one interval of a series.

    ``error`` and ``code`` are those of the last; ``next_try_at`` is None where no time is set.
    """

    series_key: str
    interval: Interval
    kind: AttemptKind
    error: str
    code: int | None
    failures: int
    first_at: datetime
    last_at: datetime
    next_try_at: datetime | None

    @property
    def is_series_wide(self) -> bool:
        """Whether the attempt concerns the whole series, future bars included."""
        return self.kind in SERIES_WIDE

    def is_due(self, now: datetime) -> bool:
        """Return whether automatic work may try again."""
        return self.next_try_at is None or self.next_try_at <= now


_ATTEMPTS = Rows("attempts", Attempt, names={"series_key": "series", "failures": "tries"})


class AttemptsTable(Table):
    """Attempts by series, interval and kind."""

    def record(
        self,
        series_key: str,
        interval: Interval,
        kind: str,
        *,
        error: str,
        code: int | None,
        next_try_at: datetime | None,
        at: datetime,
    ) -> None:
        """Count an attempt; ``next_try_at`` is None where no time of the next is set.

        Earlier attempts of that kind at any part of the interval count too, since every run cuts
        its chunks anew; those that lie wholly inside are replaced.
        """
        start, end = bounds(interval)
        known_kind = AttemptKind(kind)
        with self._database.writing() as connection:
            failures, first_at = connection.execute(
                "SELECT coalesce(max(tries), 0), min(first_at) FROM attempts "
                "WHERE series = ? AND kind = ? AND starts < ? AND ends > ?",
                (series_key, kind, end, start),
            ).fetchone()
            connection.execute(
                "DELETE FROM attempts WHERE series = ? AND kind = ? AND starts >= ? AND ends <= ?",
                (series_key, kind, start, end),
            )
            attempt = Attempt(
                series_key=series_key,
                interval=interval,
                kind=known_kind,
                error=error,
                code=code,
                failures=failures + 1,
                first_at=at if first_at is None else moment(first_at),
                last_at=at,
                next_try_at=next_try_at,
            )
            _ATTEMPTS.insert(connection, [attempt])

    def of(self, series_key: str) -> list[Attempt]:
        """Return the attempts of a series, oldest interval first."""
        with self._database.reading() as connection:
            return _ATTEMPTS.select(
                connection, "WHERE series = ? ORDER BY starts, ends, kind", (series_key,)
            )

    def all(self) -> dict[str, list[Attempt]]:
        """Return the attempts of every series that has any, oldest interval first."""
        found: dict[str, list[Attempt]] = defaultdict(list)
        with self._database.reading() as connection:
            for one in _ATTEMPTS.select(connection, "ORDER BY series, starts, ends, kind"):
                found[one.series_key].append(one)
        return dict(found)

    def clear(self, series_key: str, interval: Interval, kind: str | None = None) -> None:
        """Delete the attempts, of one kind or all, that lie wholly inside an interval."""
        start, end = bounds(interval)
        with self._database.writing() as connection:
            connection.execute(
                "DELETE FROM attempts WHERE series = ? AND starts >= ? AND ends <= ? "
                "AND kind = coalesce(?, kind)",
                (series_key, start, end, kind),
            )

    def forget(self, series_key: str, kind: str) -> None:
        """Delete the attempts of one kind in the whole series."""
        with self._database.writing() as connection:
            connection.execute(
                "DELETE FROM attempts WHERE series = ? AND kind = ?", (series_key, kind)
            )

    def hasten(self, at: datetime, *, made_until: datetime | None = None) -> int:
        """Make attempts due by a moment; return how many were brought forward.

        Args:
            at: the moment.
            made_until: only attempts up to this moment; None is every attempt.
        """
        latest = _END_OF_TIME if made_until is None else micros(made_until)
        with self._database.writing() as connection:
            return connection.execute(
                "UPDATE attempts SET next_try_at = ? WHERE next_try_at > ? AND last_at <= ?",
                (micros(at), micros(at), latest),
            ).rowcount


_END_OF_TIME = 2**63 - 1  # the largest number of SQLite
