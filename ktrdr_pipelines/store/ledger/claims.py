"""The ledger's claims: which owner may request which interval of a series, and until when.

A claim keeps two processes from requesting the same interval; it protects no data. The claims of
a process that died lapse when they expire.

Not here: owners and their lifetime (``store.claim_owners``).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from ktrdr_pipelines.domain.bars import micros
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.store.ledger.database import Table
from ktrdr_pipelines.store.ledger.rows import Rows, bounds


@dataclass(frozen=True, slots=True)
class Claim:
    """One interval that only its owner may request, until the claim expires."""

    series_key: str
    interval: Interval
    owner: str
    expires_at: datetime


_CLAIMS = Rows("claims", Claim, names={"series_key": "series"})


class ClaimsTable(Table):
    """Claims by series, interval and owner."""

    def acquire(  # noqa: PLR0917  (the parts of a claim)
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
        expires_at = now + timedelta(seconds=ttl_s)
        with self._database.writing() as connection:
            connection.execute("DELETE FROM claims WHERE expires_at <= ?", (micros(now),))
            foreign = _CLAIMS.select(
                connection, "WHERE series = ? AND owner <> ?", (series_key, owner)
            )
            taken = [claim.interval for claim in foreign]
            granted = [i for i in intervals if not any(i.overlaps(other) for other in taken)]
            claims = [Claim(series_key, interval, owner, expires_at) for interval in granted]
            _CLAIMS.insert(connection, claims)
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
        with self._database.writing() as connection:
            connection.executemany(statement, rows)

    def live(self, series_key: str, now: datetime) -> list[Claim]:
        """Return the claims of a series that have not expired, oldest interval first."""
        with self._database.reading() as connection:
            return _CLAIMS.select(
                connection,
                "WHERE series = ? AND expires_at > ? ORDER BY starts, ends, owner",
                (series_key, micros(now)),
            )
