"""The ledger's claims: which owner may request which interval of a series, and until when.

A claim keeps two processes from requesting the same interval; it protects no data. The claims of
a process that died lapse when they expire.

Not here: owners and their lifetime (``store.claim_owners``).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from ktrdr_pipelines.domain.bars import micros, moment
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.store.ledger.attempts import bounds
from ktrdr_pipelines.store.ledger.database import Database


@dataclass(frozen=True, slots=True)
class Claim:
    """One interval that only its owner may request, until the claim expires."""

    series_key: str
    interval: Interval
    owner: str
    expires_at: datetime


class ClaimsTable(Database):
    """Claims by series, interval and owner."""

    def claim(  # noqa: PLR0917  (whose, what, who, when, how long)
        self,
        series_key: str,
        intervals: Iterable[Interval],
        owner: str,
        now: datetime,
        ttl_s: float,
    ) -> list[Interval]:
        """Claim intervals for ``ttl_s`` seconds and return those that were granted.

        An interval that overlaps a live claim of another owner is refused as a whole; claims of
        the owner itself are renewed.
        """
        expires_at = micros(now + timedelta(seconds=ttl_s))
        with self._writing() as connection:
            connection.execute("DELETE FROM claims WHERE expires_at <= ?", (micros(now),))
            foreign = connection.execute(
                "SELECT starts, ends FROM claims WHERE series = ? AND owner <> ?",
                (series_key, owner),
            ).fetchall()
            taken = [Interval(moment(starts), moment(ends)) for starts, ends in foreign]
            granted = [i for i in intervals if not any(i.overlaps(other) for other in taken)]
            connection.executemany(
                "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?)",
                [(series_key, *bounds(i), owner, expires_at) for i in granted],
            )
        return granted

    def release(
        self,
        owner: str,
        series_key: str | None = None,
        intervals: Iterable[Interval] | None = None,
    ) -> None:
        """Delete an owner's claims: all, those of a series, or the given ones of a series."""
        if intervals is None:
            statement = "DELETE FROM claims WHERE owner = ? AND series = coalesce(?, series)"
            rows: list[tuple[str | int | None, ...]] = [(owner, series_key)]
        else:
            statement = (
                "DELETE FROM claims WHERE owner = ? AND series = ? AND starts = ? AND ends = ?"
            )
            rows = [(owner, series_key, *bounds(interval)) for interval in intervals]
        with self._writing() as connection:
            connection.executemany(statement, rows)

    def live_claims(self, series_key: str, now: datetime) -> list[Claim]:
        """Return the claims of a series that have not expired, oldest interval first."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT starts, ends, owner, expires_at FROM claims "
                "WHERE series = ? AND expires_at > ? ORDER BY starts, ends, owner",
                (series_key, micros(now)),
            ).fetchall()
        return [
            Claim(series_key, Interval(moment(starts), moment(ends)), owner, moment(expires_at))
            for starts, ends, owner, expires_at in rows
        ]
