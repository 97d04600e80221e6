"""Commits: several answers a write, so that a kill costs seconds of asking and never a bar.

Not here: files (``store.parquet``), deciding what is settled (``core.evaluation``).
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import pyarrow as pa

from ktrdr_pipelines.core.bars import empty_bars, sorted_unique
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

    def __bool__(self) -> bool:
        return bool(self.tables) or bool(self.coverage)

    def bars(self) -> pa.Table:
        """Give all bars as one sorted table; of two answers the later one stands."""
        return sorted_unique(pa.concat_tables([empty_bars(), *self.tables]))

    def then(self, later: "_Pending") -> "_Pending":
        """Give both as one."""
        return _Pending(
            [*self.tables, *later.tables],
            self.coverage.merged(later.coverage),
            [*self.claimed, *later.claimed],
            self.rows + later.rows,
        )


class Commits:
    """Collects what answers settle and writes it every few seconds, in a thread of its own.

    Args:
        save: writes bars and coverage of the series.
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
        self._taken = _Pending()
        self._running: Future[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="commit")
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
        """Write if the last write is long enough ago or much is waiting, and none is under way.

        Raises:
            StoreError: it could not be written; it waits for the next write.
        """
        due = self._clock() - self._last >= _EVERY_S or self._pending.rows >= _MOST_ROWS
        if due and self._running is None:
            await self.flush()

    async def flush(self) -> None:
        """Write what waits now, after the write that is under way; errors as above."""
        while self._running is not None:
            await asyncio.wait([asyncio.wrap_future(self._running)])
            await asyncio.sleep(0)
        if not self._pending and not self._pending.claimed:
            return
        self._taken, self._pending = self._pending, _Pending()
        self._running = self._thread.submit(self._write, self._taken)
        await asyncio.wait([asyncio.wrap_future(self._running)])
        if error := self._finish():
            raise error

    def commit(self) -> None:
        """Write all that waits, here and now: the end of the commits, however a run ends.

        Raises:
            StoreError: it could not be written.
        """
        self._finish()
        self._thread.shutdown()
        pending, self._pending = self._pending, _Pending()
        self._write(pending)
        if pending:
            self._saved()

    def _finish(self) -> BaseException | None:
        """Wait for a write under way; what it could not write waits again."""
        if self._running is None:
            return None
        wait([self._running])
        error = self._running.exception()
        if error is not None:
            self._pending = self._taken.then(self._pending)
        elif self._taken:
            self._saved()
        self._running, self._taken, self._last = None, _Pending(), self._clock()
        return error

    def _write(self, pending: _Pending) -> None:
        if pending:
            result = self._save(pending.bars(), pending.coverage)
            self.added += result.added
            self.revised += result.revised
        if pending.claimed:
            self._release(pending.claimed)
