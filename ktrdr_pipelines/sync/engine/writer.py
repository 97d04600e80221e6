"""Saving what responses brought, and recording what failed.

Commits: several answers a write, so that a kill costs seconds of asking and never a bar.

Tries in vain: what one run writes down of them, and what automatic work leaves alone.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pyarrow as pa

from ktrdr_pipelines.domain.bars import empty_bars, sorted_unique
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.retry_schedule import SERIES_WIDE, AttemptKind, retry_in
from ktrdr_pipelines.errors import (
    ContractAmbiguousError,
    ContractUnclearError,
    ContractUnknownError,
    EntitlementError,
    ForeignIdentityError,
    KtrdrError,
)
from ktrdr_pipelines.store.bars.bar_store import SaveResult
from ktrdr_pipelines.store.ledger.attempts import Attempt
from ktrdr_pipelines.store.ledger.ledger import Ledger, series_key

_EVERY_S = 2.0
_MOST_ROWS = 500_000


@dataclass(slots=True)
class _Pending:
    """What is covered and not on disk yet, and the claims that it was asked under."""

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
    """Collects what answers cover and writes it every few seconds, in a thread of its own.

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

    def received(self, interval: Interval) -> None:
        """Take in that a claimed chunk was dealt with: its claim goes back after the next write."""
        self._pending.claimed.append(interval)

    def add(self, bars: pa.Table | None, coverage: Coverage) -> None:
        """Take in what one answer covered."""
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


_OTHER_CONTRACT = (
    ContractUnknownError,
    ContractAmbiguousError,
    ContractUnclearError,
    ForeignIdentityError,
)


_SPARSE = "far fewer bars than the sessions around it; it is requested once more"


def deferred(attempts: Iterable[Attempt], wanted: IntervalSet, now: datetime) -> IntervalSet:
    """Give what automatic work leaves alone of what is wanted of a series.

    A try that concerns the whole series puts off all of it, also what has come to be missing
    since: a contract that has never answered is not asked again for every new session.
    """
    early = [attempt for attempt in attempts if not attempt.is_due(now)]
    if any(attempt.is_series_wide for attempt in early):
        return wanted
    return IntervalSet(attempt.interval for attempt in early) & wanted


def next_try(attempts: Iterable[Attempt], now: datetime) -> datetime | None:
    """Say when the first of the tries that are deferred is due, or None where none is."""
    times = (a.next_try_at for a in attempts if a.next_try_at is not None and not a.is_due(now))
    return min(times, default=None)


def kind_of(error: KtrdrError) -> AttemptKind:
    """Say what kind of try an error makes of what was asked."""
    if isinstance(error, EntitlementError):
        return AttemptKind.BLOCKED
    return AttemptKind.UNKNOWN if isinstance(error, _OTHER_CONTRACT) else AttemptKind.ERROR


class FailedAttempts:
    """The tries of one series, as one run finds and leaves them."""

    def __init__(self, ledger: Ledger, series: Series, clock: Callable[[], datetime]) -> None:
        self._ledger = ledger
        self._key = series_key(series)
        self._clock = clock
        self._has_answered = False

    def known(self) -> list[Attempt]:
        """Give the tries that are written down."""
        return self._ledger.attempts(self._key)

    def failed(self, interval: Interval, error: KtrdrError) -> None:
        """Write down that a request for an interval failed."""
        lasts_s = getattr(error, "retry_in_s", 0.0) if isinstance(error, EntitlementError) else 0.0
        self._record(
            interval, kind_of(error), str(error), code=getattr(error, "code", None), lasts_s=lasts_s
        )

    def left_open(
        self, interval: Interval, kind: AttemptKind, text: str, *, due_at: datetime | None = None
    ) -> None:
        """Record that responses left an interval open, and when the next one can count."""
        self._record(interval, kind, text, due_at=due_at)

    def answered(self) -> None:
        """Take in that bars came: nothing speaks against the series as a whole any more."""
        if not self._has_answered:
            self._has_answered = True
            for kind in SERIES_WIDE:
                self._ledger.forget_attempts(self._key, kind)

    def forget_covered(self, gaps_in: Callable[[Interval], IntervalSet]) -> None:
        """Forget tries at what is covered or excused by now; ``gaps_in`` gives what is not.

        A sparse session is covered and waits all the same (``sparse``).
        """
        for attempt in self.known():
            if attempt.kind is not AttemptKind.SPARSE and not gaps_in(attempt.interval):
                self._ledger.clear_attempts(self._key, attempt.interval, attempt.kind)

    def sparse(
        self, sessions: Iterable[Interval], *, wanted: IntervalSet, answered: IntervalSet
    ) -> None:
        """Record which sessions are sparse now; one that waits already is not deferred further.

        Args:
            sessions: those of the whole series.
            wanted: what this run was to load.
            answered: what responses of this run covered.
        """
        now, sparse = self._clock(), list(sessions)
        waiting = []
        for attempt in self.known():
            if attempt.kind is not AttemptKind.SPARSE:
                continue
            if not any(attempt.interval.overlaps(one) for one in sparse):
                self._ledger.clear_attempts(self._key, attempt.interval, attempt.kind)
            elif not attempt.is_due(now) or not answered.covers(attempt.interval):
                waiting.append(attempt.interval)
        for one in sparse:
            if wanted.clip(one) and not any(interval.covers(one) for interval in waiting):
                self.left_open(one, AttemptKind.SPARSE, _SPARSE)

    def _record(
        self,
        interval: Interval,
        kind: AttemptKind,
        text: str,
        *,
        code: int | None = None,
        lasts_s: float = 0.0,
        due_at: datetime | None = None,
    ) -> None:
        at = self._clock()
        if due_at is None:
            wait = retry_in(kind, self._failures(interval, kind))
            due_at = at + (timedelta(seconds=lasts_s) if lasts_s else wait)
        self._ledger.record_attempt(
            self._key, interval, kind, error=text, code=code, next_try_at=due_at, at=at
        )

    def _failures(self, interval: Interval, kind: AttemptKind) -> int:
        """Count this try and those before it."""
        before = (
            attempt.failures
            for attempt in self.known()
            if attempt.kind is kind and (kind in SERIES_WIDE or attempt.interval.overlaps(interval))
        )
        return 1 + max(before, default=0)
