"""The ledger's widths: how much of a timeframe a gateway answers at once, as runs have learned it.

Losing the table costs a request that is too wide, and no bar. Not here: what is learned, and when
it is believed (``load.widths``).
"""

from dataclasses import dataclass
from datetime import datetime

from ktrdr_pipelines.core.bars import micros, moment
from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.store.database import Database


@dataclass(frozen=True, slots=True)
class WidthRecord:
    """The most sessions (1w: weeks) of a request, how many runs learned it, and when the last."""

    most: int
    runs: int
    learned_at: datetime


class WidthsTable(Database):
    """Widths by gateway and timeframe."""

    def widths(self, gateway: str) -> dict[Timeframe, WidthRecord]:
        """Give what was learned of a gateway."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT timeframe, most, runs, learned_at FROM widths WHERE gateway = ?", (gateway,)
            ).fetchall()
        return {
            Timeframe(name): WidthRecord(most, runs, moment(at)) for name, most, runs, at in rows
        }

    def record_width(self, gateway: str, timeframe: Timeframe, record: WidthRecord) -> None:
        """Keep what was learned; it replaces what was learned before."""
        values = (record.most, record.runs, micros(record.learned_at))
        with self._writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO widths VALUES (?, ?, ?, ?, ?)",
                (gateway, timeframe.value, *values),
            )

    def forget_width(self, gateway: str, timeframe: Timeframe) -> None:
        """Drop what was learned."""
        with self._writing() as connection:
            connection.execute(
                "DELETE FROM widths WHERE gateway = ? AND timeframe = ?", (gateway, timeframe.value)
            )
