"""What the ledger records of odd bars: other prices, volumes in another unit, implausible values.

Not here: how they are found (``domain.plausibility``).
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from ktrdr_pipelines.domain.bars import micros, moment
from ktrdr_pipelines.domain.plausibility import Disagreement, DisagreementKind, Finding, FindingKind
from ktrdr_pipelines.store.ledger.database import Database


class DisagreementsTable(Database):
    """Bars received at other prices, or with volumes in another unit, than the held ones.

    Rows stay until the series has been requested again as a whole.
    """

    def record_disagreement(self, series_key: str, found: Disagreement, at: datetime) -> None:
        """Record a disagreement."""
        with self._writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO disagreements VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    series_key,
                    micros(found.first),
                    micros(found.last),
                    found.bars,
                    found.ratio,
                    micros(at),
                    found.kind.value,
                ),
            )

    def disagreements(
        self, series_key: str, kind: DisagreementKind = DisagreementKind.PRICE
    ) -> list[Disagreement]:
        """Return the disagreements of a series of one kind, oldest bars first."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT starts, ends, bars, ratio, kind FROM disagreements "
                "WHERE series = ? AND kind = ? ORDER BY starts, found_at",
                (series_key, kind.value),
            ).fetchall()
        return [_disagreement(row) for row in rows]

    def all_disagreements(
        self, kind: DisagreementKind = DisagreementKind.PRICE
    ) -> dict[str, tuple[Disagreement, ...]]:
        """Return the disagreements of one kind of every series that has any, oldest bars first."""
        found: dict[str, list[Disagreement]] = {}
        with self._reading() as connection:
            for key, *row in connection.execute(
                "SELECT series, starts, ends, bars, ratio, kind FROM disagreements "
                "WHERE kind = ? ORDER BY starts, found_at",
                (kind.value,),
            ):
                found.setdefault(key, []).append(_disagreement(row))
        return {key: tuple(ones) for key, ones in found.items()}

    def clear_disagreements(self, series_key: str) -> None:
        """Delete the disagreements of a series that was requested again as a whole."""
        with self._writing() as connection:
            connection.execute("DELETE FROM disagreements WHERE series = ?", (series_key,))


def _disagreement(row: Iterable[Any]) -> Disagreement:
    starts, ends, bars, ratio, kind = row
    return Disagreement(
        moment(starts), moment(ends), int(bars), float(ratio), DisagreementKind(kind)
    )


class FindingsTable(Database):
    """Bars that are kept although their values are implausible, by series and bar timestamp.

    The gateway returned them twice the same. A finding holds for the values it was recorded for: a
    bar with other values is damage. ``ktrdr repair`` rebuilds a lost table, except for counts that
    could not be kept.
    """

    def record_findings(self, series_key: str, found: Iterable[Finding], at: datetime) -> None:
        """Record findings, replacing earlier ones of the same bars."""
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
        """Return how many bars have a finding, for each series that has any."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT series, count(DISTINCT ts) FROM findings GROUP BY series"
            ).fetchall()
        return {series: int(count) for series, count in rows}

    def clear_findings(self, series_key: str, keys: Iterable[int]) -> None:
        """Delete the findings of bars, given by timestamp, that have other values now."""
        with self._writing() as connection:
            connection.executemany(
                "DELETE FROM findings WHERE series = ? AND ts = ?",
                [(series_key, key) for key in keys],
            )
