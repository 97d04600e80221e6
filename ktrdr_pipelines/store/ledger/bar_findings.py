"""The ledger's findings: bars at other prices, volumes in another unit, implausible values.

Not here: how they are found (``domain.plausibility``).
"""

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Final

from ktrdr_pipelines.domain.bars import micros
from ktrdr_pipelines.domain.plausibility import Disagreement, DisagreementKind, Finding
from ktrdr_pipelines.store.ledger.database import Table
from ktrdr_pipelines.store.ledger.rows import Rows

PRICES: Final = frozenset({DisagreementKind.PRICE, DisagreementKind.UNIT})
VOLUMES: Final = frozenset({DisagreementKind.VOLUME})

_DISAGREEMENTS = Rows(
    "disagreements",
    Disagreement,
    keys=("series", "found_at"),
    names={"first": "starts", "last": "ends"},
)
_FINDINGS = Rows("findings", Finding, keys=("series", "found_at"))


class DisagreementsTable(Table):
    """Bars received at other prices, or with volumes in another unit, than the held ones.

    Rows stay until the series has been requested again as a whole.
    """

    def record(self, series_key: str, found: Disagreement, at: datetime) -> None:
        """Record a disagreement."""
        with self._database.writing() as connection:
            _DISAGREEMENTS.insert(connection, [found], series_key, micros(at))

    def of(
        self, series_key: str, kinds: Collection[DisagreementKind] = PRICES
    ) -> list[Disagreement]:
        """Return the disagreements of a series of some kinds, oldest bars first."""
        found = self._database.remembered(
            ("disagreements", series_key),
            lambda connection: _DISAGREEMENTS.select(
                connection, "WHERE series = ? ORDER BY starts, found_at", (series_key,)
            ),
        )
        return [one for one in found if one.kind in kinds]

    def jumps_of(self, series_key: str) -> list[Disagreement]:
        """Return the jumps of the volumes of a series, oldest bars first."""
        return self.of(series_key, VOLUMES)

    def all(
        self, kinds: Collection[DisagreementKind] = PRICES
    ) -> dict[str, tuple[Disagreement, ...]]:
        """Return the disagreements of some kinds of every series that has any, oldest first."""
        found: dict[str, list[Disagreement]] = {}
        with self._database.reading() as connection:
            for (key, _), one in _DISAGREEMENTS.select_keyed(
                connection, "ORDER BY starts, found_at"
            ):
                if one.kind in kinds:
                    found.setdefault(key, []).append(one)
        return {key: tuple(ones) for key, ones in found.items()}

    def clear(
        self, series_key: str, kinds: Collection[DisagreementKind] = frozenset(DisagreementKind)
    ) -> None:
        """Delete the disagreements of a series of some kinds; by default all of them."""
        with self._database.writing() as connection:
            connection.executemany(
                "DELETE FROM disagreements WHERE series = ? AND kind = ?",
                [(series_key, kind.value) for kind in kinds],
            )


class FindingsTable(Table):
    """Bars that are kept although their values are implausible, by series and bar timestamp.

    The gateway returned them twice the same. A finding holds for the values it was recorded for: a
    bar with other values is damage. ``ktrdr repair`` rebuilds a lost table, except for counts that
    could not be kept.
    """

    def record(self, series_key: str, found: Iterable[Finding], at: datetime) -> None:
        """Record findings, replacing earlier ones of the same bars."""
        ones = list(found)
        with self._database.writing() as connection:
            connection.executemany(
                "DELETE FROM findings WHERE series = ? AND ts = ?",
                [(series_key, one.ts) for one in ones],
            )
            _FINDINGS.insert(connection, ones, series_key, micros(at))

    def of(self, series_key: str) -> list[Finding]:
        """Return the findings of a series, oldest bar first."""
        with self._database.reading() as connection:
            return _FINDINGS.select(connection, "WHERE series = ? ORDER BY ts", (series_key,))

    def counts(self) -> dict[str, int]:
        """Return how many bars have a finding, for each series that has any."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT series, count(DISTINCT ts) FROM findings GROUP BY series"
            ).fetchall()
        return {series: int(count) for series, count in rows}

    def clear(self, series_key: str, keys: Iterable[int]) -> None:
        """Delete the findings of bars, given by timestamp, that have other values now."""
        with self._database.writing() as connection:
            connection.executemany(
                "DELETE FROM findings WHERE series = ? AND ts = ?",
                [(series_key, key) for key in keys],
            )
