"""The ledger's attempts: tries that failed or are not final yet, and when the next is due.

Not here: when a next try is due (``load``); what answers settled (``store.mirror``).
"""

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from ktrdr_pipelines.core.bars import micros, moment
from ktrdr_pipelines.core.intervals import Interval
from ktrdr_pipelines.store.database import Database


class AttemptKind(StrEnum):
    """What came of a try that settled nothing."""

    ERROR = "error"
    NO_DATA = "no_data"
    PROBED = "probed"
    BLOCKED = "blocked"


@dataclass(frozen=True, slots=True)
class Attempt:
    """All tries of one kind at one interval of a series; the texts are those of the last."""

    series_key: str
    interval: Interval
    kind: AttemptKind
    error: str
    code: int | None
    tries: int
    first_at: datetime
    last_at: datetime
    next_try_at: datetime | None


class AttemptsTable(Database):
    """Attempts by series, interval and kind."""

    def record_attempt(
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
        """Count a try; ``next_try_at`` is None where nothing says when to try again."""
        due = None if next_try_at is None else micros(next_try_at)
        with self._writing() as connection:
            connection.execute(
                "INSERT INTO attempts VALUES (?, ?, ?, ?, ?, ?, 1, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET tries = tries + 1, error = excluded.error, "
                "code = excluded.code, last_at = excluded.last_at, "
                "next_try_at = excluded.next_try_at",
                (
                    series_key,
                    *bounds(interval),
                    AttemptKind(kind),
                    error,
                    code,
                    micros(at),
                    micros(at),
                    due,
                ),
            )

    def attempts(self, series_key: str) -> list[Attempt]:
        """Give the attempts of a series, oldest interval first."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT starts, ends, kind, error, code, tries, first_at, last_at, next_try_at "
                "FROM attempts WHERE series = ? ORDER BY starts, ends, kind",
                (series_key,),
            ).fetchall()
        return [_attempt(series_key, row) for row in rows]

    def all_attempts(self) -> dict[str, list[Attempt]]:
        """Give the attempts of every series that has any, oldest interval first."""
        found: dict[str, list[Attempt]] = defaultdict(list)
        with self._reading() as connection:
            for key, *row in connection.execute(
                "SELECT series, starts, ends, kind, error, code, tries, first_at, last_at, "
                "next_try_at FROM attempts ORDER BY series, starts, ends, kind"
            ):
                found[key].append(_attempt(key, tuple(row)))
        return dict(found)

    def clear_attempts(self, series_key: str, interval: Interval) -> None:
        """Drop the attempts that lie wholly inside an interval that is settled now."""
        start, end = bounds(interval)
        with self._writing() as connection:
            connection.execute(
                "DELETE FROM attempts WHERE series = ? AND starts >= ? AND ends <= ?",
                (series_key, start, end),
            )


def bounds(interval: Interval) -> tuple[int, int]:
    """Give an interval as the ledger keeps it."""
    return micros(interval.start), micros(interval.end)


def _attempt(series_key: str, row: tuple[Any, ...]) -> Attempt:
    starts, ends, kind, error, code, tries, first_at, last_at, next_try_at = row
    return Attempt(
        series_key=series_key,
        interval=Interval(moment(starts), moment(ends)),
        kind=AttemptKind(kind),
        error=error,
        code=code,
        tries=tries,
        first_at=moment(first_at),
        last_at=moment(last_at),
        next_try_at=None if next_try_at is None else moment(next_try_at),
    )
