"""Commits: several answers a write, so that a kill costs seconds of asking and never a bar.

Not here: files (``store.parquet``), deciding what is settled (``core.settle``).
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa

from ktrdr_pipelines.core.bars import empty_bars, merge_bars
from ktrdr_pipelines.core.coverage import Coverage
from ktrdr_pipelines.core.intervals import Interval
from ktrdr_pipelines.store.parquet import SaveResult

_EVERY_S = 2.0
_MOST_ROWS = 500_000


@dataclass(slots=True)
class _Pending:
    """What is settled and not on disk yet, and the claims that it was asked under."""

    tables: list[pa.Table] = field(default_factory=list)
    coverage: Coverage = field(default_factory=Coverage)
    claimed: list[Interval] = field(default_factory=list)
    rows: int = 0

    def bars(self) -> pa.Table:
        """Give all bars as one sorted table; of two answers the later one stands."""
        merged = empty_bars()
        for table in self.tables:
            merged = merge_bars(merged, table).bars
        return merged


class Commits:
    """Collects what answers settle and writes it every few seconds.

    Args:
        save: writes bars and coverage of the series; called in a thread of its own.
        release: gives claims back after what they gave is on disk.
        saved: is told after every write.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        save: Callable[[pa.Table, Coverage], SaveResult],
        release: Callable[[list[Interval]], None],
        saved: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._save = save
        self._release = release
        self._saved = saved
        self._clock = clock
        self._pending = _Pending()
        self._writing = asyncio.Lock()
        self._last = clock()
        self.added = 0
        self.revised = 0

    def asked(self, stamps: Interval) -> None:
        """Take in that a claimed chunk was dealt with: its claim goes back after the next write."""
        self._pending.claimed.append(stamps)

    def add(self, bars: pa.Table | None, coverage: Coverage) -> None:
        """Take in what one answer settled."""
        if bars is not None and bars.num_rows:
            self._pending.tables.append(bars)
            self._pending.rows += bars.num_rows
        self._pending.coverage = self._pending.coverage.merged(coverage)

    async def commit_when_due(self) -> None:
        """Write in a thread if the last write is long enough ago or much is waiting."""
        due = self._clock() - self._last >= _EVERY_S or self._pending.rows >= _MOST_ROWS
        if not due or self._writing.locked():
            return
        async with self._writing:
            wrote = await asyncio.shield(asyncio.to_thread(self._write, self._take()))
            self._last = self._clock()
        if wrote:
            self._saved()

    def commit(self) -> None:
        """Write all that waits, here and now: for the end of a run, however it ends."""
        if self._write(self._take()):
            self._saved()

    def _take(self) -> _Pending:
        taken, self._pending = self._pending, _Pending()
        return taken

    def _write(self, pending: _Pending) -> bool:
        """Write what was taken; say whether there was anything."""
        anything = bool(pending.tables) or bool(pending.coverage)
        if anything:
            result = self._save(pending.bars(), pending.coverage)
            self.added += result.added
            self.revised += result.revised
        if pending.claimed:
            self._release(pending.claimed)
        return anything
