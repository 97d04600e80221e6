"""The ledger's records of price bases: the index of adjustments, and when bases were confirmed.

Not here: the files of adjustments, which are the truth (``store.bars.adjustment_history``).
"""

import re
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime

from ktrdr_pipelines.domain.adjustments import Adjustment
from ktrdr_pipelines.domain.universe.fields import KEY_PATTERN
from ktrdr_pipelines.store.ledger.database import Table
from ktrdr_pipelines.store.ledger.rows import Rows

_ROWS = Rows("adjustments", Adjustment, keys=("symbol",))


class AdjustmentsTable(Table):
    """The index of all adjustments; ``repair`` rebuilds it.

    It is written after the files, and never forgets an adjustment of a symbol: where it has more
    than the symbol's file, that has been lost.
    """

    def record(self, adjustments: Mapping[str, Sequence[Adjustment]]) -> None:
        """Record all adjustments of some symbols, unless more are recorded of a symbol already."""
        with self._database.writing() as connection:
            for symbol, ones in adjustments.items():
                if _count(connection, symbol) <= len(ones):
                    connection.execute("DELETE FROM adjustments WHERE symbol = ?", (symbol,))
                    _ROWS.insert(connection, ones, symbol)

    def of(self, symbol: str) -> tuple[Adjustment, ...]:
        """Return the adjustments of a symbol, in the order of their numbers."""
        with self._database.reading() as connection:
            ones = _ROWS.select(connection, "WHERE symbol = ? ORDER BY number", (symbol,))
            return tuple(ones)

    def count(self, symbol: str) -> int:
        """Return how many adjustments of a symbol are recorded."""
        return self._database.remembered(
            ("adjustments", symbol), lambda connection: _count(connection, symbol)
        )

    def counts(self) -> dict[str, int]:
        """Return how many adjustments of each symbol are recorded, if any are."""
        with self._database.reading() as connection:
            return dict(
                connection.execute("SELECT symbol, count(*) FROM adjustments GROUP BY symbol")
            )

    def all(self) -> dict[str, tuple[Adjustment, ...]]:
        """Return the adjustments of every symbol that has any; retired ones are no symbols."""
        found: dict[str, list[Adjustment]] = {}
        with self._database.reading() as connection:
            for (symbol,), one in _ROWS.select_keyed(connection, "ORDER BY symbol, number"):
                if re.fullmatch(KEY_PATTERN, symbol):
                    found.setdefault(symbol, []).append(one)
        return {symbol: tuple(ones) for symbol, ones in found.items()}


def _count(connection: sqlite3.Connection, symbol: str) -> int:
    counted = connection.execute("SELECT count(*) FROM adjustments WHERE symbol = ?", (symbol,))
    return int(counted.fetchone()[0])


@dataclass(frozen=True, slots=True)
class BasisCheck:
    """What responses have shown of the price basis on which the gateway serves a symbol.

    Attributes:
        basis: the number of the last adjustment that its prices include.
        established_on: the session date on which this was last established.
        confirmed_at: when the newest request that showed it was sent, by this machine's clock;
            None if no held bars could be compared yet.
        next_session: the first session that opened after that request.
        requested_on: the session date of the newest request that was sent for this alone.
        requests: how many such requests were sent on that date.
        stated_ratio: at which ratio a single response returned the newest held bars; None where
            none did, or others have refuted it.
        stated_bars: how many bars showed it.
        stated_by: the request for that response, in words.
        stated_at: when it was sent, by this machine's clock.
    """

    basis: int = 0
    established_on: date | None = None
    confirmed_at: datetime | None = None
    next_session: date | None = None
    requested_on: date | None = None
    requests: int = 0
    stated_ratio: float | None = None
    stated_bars: int = 0
    stated_by: str = ""
    stated_at: datetime | None = None

    @property
    def statement(self) -> str:
        """What one response stated and no other has confirmed or refuted, in words; else empty."""
        if self.stated_ratio is None:
            return ""
        return (
            f"one response returned the newest bars at {self.stated_ratio:.6g} times their price, "
            "as after a split; a second one is needed"
        )


_CHECKS = Rows("basis_checks", BasisCheck, keys=("symbol",))


class BasisChecksTable(Table):
    """The last check of each symbol's basis. Losing it costs a request a symbol, and no bar."""

    def of(self, symbol: str) -> BasisCheck:
        """Return the last check of a symbol; an empty one if there was none."""
        found = self._database.remembered(
            ("basis_checks", symbol),
            lambda connection: _CHECKS.select(connection, "WHERE symbol = ?", (symbol,)),
        )
        return found[0] if found else BasisCheck()

    def all(self) -> dict[str, BasisCheck]:
        """Return the last check of every symbol that had one."""
        with self._database.reading() as connection:
            return {symbol: one for (symbol,), one in _CHECKS.select_keyed(connection)}

    def stated(self) -> dict[str, BasisCheck]:
        """Return the checks with a re-basing that one response stated, by symbol."""
        with self._database.reading() as connection:
            found = _CHECKS.select_keyed(connection, "WHERE stated_ratio IS NOT NULL")
            return {symbol: one for (symbol,), one in found}

    def change(self, symbol: str, change: Callable[[BasisCheck], BasisCheck]) -> BasisCheck:
        """Replace the check of a symbol by what a function makes of it, and return that."""
        with self._database.writing() as connection:
            known = _CHECKS.select(connection, "WHERE symbol = ?", (symbol,))
            found = change(known[0] if known else BasisCheck())
            _CHECKS.insert(connection, [found], symbol)
        return found
