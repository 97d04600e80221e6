"""Saving bars and coverage of a series run, and recording its failed attempts.

``Commits`` writes several responses at a time, every few seconds, so that a killed process loses
seconds of requests and never a saved bar. ``FailedAttempts`` records what failed or stayed open,
and ``deferred`` returns what automatic work skips because of it. Not here: when a failed attempt is
due again (``domain.planning.retry_schedule``), the files (``store.bars.bar_store``).
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
    """What is covered but not on disk yet, and the claims under which it was requested."""

    tables: list[pa.Table] = field(default_factory=list)
    coverage: Coverage = field(default_factory=Coverage)
    claimed: list[Interval] = field(default_factory=list)
    rows: int = 0

    def __bool__(self) -> bool:
        return bool(self.tables) or bool(self.coverage)

    def bars(self) -> pa.Table:
        """Return all bars as one sorted table; of two responses the later one wins."""
        return sorted_unique(pa.concat_tables([empty_bars(), *self.tables]))

    def then(self, later: "_Pending") -> "_Pending":
        """Return both as one."""
        return _Pending(
            [*self.tables, *later.tables],
            self.coverage.merged(later.coverage),
            [*self.claimed, *later.claimed],
            self.rows + later.rows,
        )


class Commits:
    """Collects what responses cover and writes it every few seconds, in a thread of its own.

    ``added`` and ``revised`` count the bars that writes added and replaced.

    Args:
        save: writes bars and coverage of the series.
        release: releases claims after what they were made for is on disk.
        saved: called after every write.
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
        """Record that a claimed chunk is done: its claim is released after the next write."""
        self._pending.claimed.append(interval)

    def add(self, bars: pa.Table | None, coverage: Coverage) -> None:
        """Queue what one response covered, with its bars."""
        if bars is not None and bars.num_rows:
            self._pending.tables.append(bars)
            self._pending.rows += bars.num_rows
        self._pending.coverage = self._pending.coverage.merged(coverage)

    async def commit_when_due(self) -> None:
        """Write if enough time has passed or many rows are queued, and no write is under way.

        Raises:
            StoreError: the write failed; its content stays queued for the next one.
        """
        due = self._clock() - self._last >= _EVERY_S or self._pending.rows >= _MOST_ROWS
        if due and self._running is None:
            await self.flush()

    async def flush(self) -> None:
        """Write what is queued, after a write under way; raises as ``commit_when_due``."""
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
        """Write all that is queued, in the calling thread, and end the commits of the run.

        Raises:
            StoreError: the write failed.
        """
        self._finish()
        self._thread.shutdown()
        pending, self._pending = self._pending, _Pending()
        self._write(pending)
        if pending:
            self._saved()

    def _finish(self) -> BaseException | None:
        """Wait for a write under way; queue again what it could not write."""
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
    """Return the part of what is wanted of a series that automatic work skips.

    An attempt that concerns the whole series defers all of it, also what has become due since: a
    contract that has never returned bars is not requested again for every new session.
    """
    early = [attempt for attempt in attempts if not attempt.is_due(now)]
    if any(attempt.is_series_wide for attempt in early):
        return wanted
    return IntervalSet(attempt.interval for attempt in early) & wanted


def next_try(attempts: Iterable[Attempt], now: datetime) -> datetime | None:
    """Return when the first of the deferred attempts is due, or None if none is deferred."""
    times = (a.next_try_at for a in attempts if a.next_try_at is not None and not a.is_due(now))
    return min(times, default=None)


def kind_of(error: KtrdrError) -> AttemptKind:
    """Return the kind of attempt to record for an error."""
    if isinstance(error, EntitlementError):
        return AttemptKind.BLOCKED
    return AttemptKind.UNKNOWN if isinstance(error, _OTHER_CONTRACT) else AttemptKind.ERROR


class FailedAttempts:
    """The failed and inconclusive attempts of one series, read and recorded by one run."""

    def __init__(self, ledger: Ledger, series: Series, clock: Callable[[], datetime]) -> None:
        self._ledger = ledger
        self._key = series_key(series)
        self._clock = clock
        self._has_answered = False

    def known(self) -> list[Attempt]:
        """Return the recorded attempts."""
        return self._ledger.attempts.of(self._key)

    def failed(self, interval: Interval, error: KtrdrError) -> None:
        """Record that a request for an interval failed."""
        lasts_s = getattr(error, "retry_in_s", 0.0) if isinstance(error, EntitlementError) else 0.0
        self._record(
            interval, kind_of(error), str(error), code=getattr(error, "code", None), lasts_s=lasts_s
        )

    def left_open(
        self, interval: Interval, kind: AttemptKind, text: str, *, due_at: datetime | None = None
    ) -> None:
        """Record that responses left an interval open; ``due_at`` is when the next can count."""
        self._record(interval, kind, text, due_at=due_at)

    def answered(self) -> None:
        """Record that the gateway returned bars: clear the attempts that defer the whole series."""
        if not self._has_answered:
            self._has_answered = True
            for kind in SERIES_WIDE:
                self._ledger.attempts.forget(self._key, kind)

    def forget_covered(self, gaps_in: Callable[[Interval], IntervalSet]) -> None:
        """Clear attempts at what is covered or excused by now; ``gaps_in`` returns what is not.

        Attempts at sparse sessions stay, which are covered: ``sparse`` clears them.
        """
        for attempt in self.known():
            if attempt.kind is not AttemptKind.SPARSE and not gaps_in(attempt.interval):
                self._ledger.attempts.clear(self._key, attempt.interval, attempt.kind)

    def sparse(
        self, sessions: Iterable[Interval], *, wanted: IntervalSet, answered: IntervalSet
    ) -> None:
        """Record which sessions are sparse now; one that is deferred already keeps its time.

        Args:
            sessions: the sparse sessions of the whole series.
            wanted: what this run was to load.
            answered: what responses of this run covered.
        """
        now, sparse = self._clock(), list(sessions)
        waiting = []
        for attempt in self.known():
            if attempt.kind is not AttemptKind.SPARSE:
                continue
            if not any(attempt.interval.overlaps(one) for one in sparse):
                self._ledger.attempts.clear(self._key, attempt.interval, attempt.kind)
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
        if due_at is None and lasts_s:
            due_at = at + timedelta(seconds=lasts_s)
        elif due_at is None:
            before = (
                attempt.failures
                for attempt in self.known()
                if attempt.kind is kind
                and (kind in SERIES_WIDE or attempt.interval.overlaps(interval))
            )
            due_at = at + retry_in(kind, 1 + max(before, default=0))
        self._ledger.attempts.record(
            self._key, interval, kind, error=text, code=code, next_try_at=due_at, at=at
        )
