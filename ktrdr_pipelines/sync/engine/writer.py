"""Saving bars and coverage of a series run: claims before, commits every few seconds.

A killed process loses seconds of requests and never a saved bar.

Not here: the files (``store.bars.bar_store``), owners of claims (``store.claim_owners``).
"""

import asyncio
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

import pyarrow as pa

from ktrdr_pipelines.domain.bars import (
    STORED_SCHEMA,
    UNCONFIRMED,
    basis_of,
    sorted_unique,
    timestamps,
    with_basis,
)
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Identity, Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.reports import Progress
from ktrdr_pipelines.domain.plausibility import explained, findings_of
from ktrdr_pipelines.store.bars.bar_store import BarStore, SaveResult
from ktrdr_pipelines.store.bars.footer import Presumed
from ktrdr_pipelines.store.claim_owners import CLAIM_S, Claimant
from ktrdr_pipelines.store.ledger.ledger import series_key
from ktrdr_pipelines.sync.engine.comparison import Comparison
from ktrdr_pipelines.sync.engine.series_state import StateChange
from ktrdr_pipelines.sync.engine.source_session import RetryPolicy

_EVERY_S = 2.0
_MOST_EVERY_S = 5.0
_WRITING_SHARE = 0.05
"""Writes are so far apart that they take about this share of the time, but never over five seconds:
a file is written as a whole, however little is new in it."""

_MOST_ROWS = 500_000

_AHEAD_FOR = timedelta(seconds=CLAIM_S / 2)
"""How long a claim made ahead serves: the request that is sent under it has as much time left."""


@dataclass(slots=True)
class Batch:
    """What is covered but not on disk yet, and the claims under which it was requested.

    ``presumed`` are bars whose price basis was not shown by a comparison.
    """

    tables: list[pa.Table] = field(default_factory=list)
    presumed: list[Presumed] = field(default_factory=list)
    coverage: Coverage = field(default_factory=Coverage)
    claimed: list[Interval] = field(default_factory=list)
    rows: int = 0

    def __bool__(self) -> bool:
        return bool(self.tables) or bool(self.coverage)

    def bars(self) -> pa.Table:
        """Return all bars as one sorted table; of two responses the later one wins.

        Bars on an unconfirmed basis never replace others.
        """
        tables = sorted(self.tables, key=_is_confirmed)
        return sorted_unique(pa.concat_tables([STORED_SCHEMA.empty_table(), *tables]))

    def then(self, later: "Batch") -> "Batch":
        """Return both as one."""
        return Batch(
            [*self.tables, *later.tables],
            [*self.presumed, *later.presumed],
            self.coverage.merged(later.coverage),
            [*self.claimed, *later.claimed],
            self.rows + later.rows,
        )


def _is_confirmed(bars: pa.Table) -> bool:
    return int(basis_of(bars)[0]) != UNCONFIRMED


class Commits:
    """Collects what responses cover and writes it every few seconds, in another thread.

    ``added`` and ``revised`` count the bars that writes added and replaced.

    Args:
        threads: runs one write at a time; other series may use it too.
        save: writes a batch.
        release: releases claims after what they were made for is on disk.
        saved: called after every write.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        threads: Executor,
        save: Callable[[Batch], SaveResult],
        release: Callable[[list[Interval]], None],
        saved: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._save = save
        self._release = release
        self._saved = saved
        self._clock = clock
        self._pending = Batch()
        self._taken = Batch()
        self._running: Future[None] | None = None
        self._threads = threads
        self._last = clock()
        self._took_s = 0.0
        self.added = 0
        self.revised = 0

    def received(self, interval: Interval) -> None:
        """Record that a claimed chunk is done: its claim is released after the next write."""
        self._pending.claimed.append(interval)

    def keep_claims(self, intervals: Iterable[Interval]) -> None:
        """Release no earlier claims of these with a write: they are claimed once more."""
        kept = set(intervals)
        for batch in (self._taken, self._pending):
            batch.claimed = [one for one in batch.claimed if one not in kept]

    def add(
        self, bars: pa.Table | None, coverage: Coverage, presumed: Presumed | None = None
    ) -> None:
        """Queue what one response covered, with its bars in the columns of ``STORED_SCHEMA``."""
        if bars is not None and bars.num_rows:
            self._pending.tables.append(bars)
            self._pending.rows += bars.num_rows
        if presumed is not None:
            self._pending.presumed.append(presumed)
        self._pending.coverage = self._pending.coverage.merged(coverage)

    async def commit_when_due(self) -> None:
        """Write if enough time has passed or many rows are queued, and no write is under way.

        Raises:
            StoreError: the write failed; its content stays queued for the next one.
        """
        pause_s = min(max(_EVERY_S, self._took_s / _WRITING_SHARE), _MOST_EVERY_S)
        due = self._clock() - self._last >= pause_s or self._pending.rows >= _MOST_ROWS
        if due and self._running is None:
            await self.flush()

    async def flush(self) -> None:
        """Write what is queued, after a write under way; raises as ``commit_when_due``."""
        while self._running is not None:
            await asyncio.wait([asyncio.wrap_future(self._running)])
            await asyncio.sleep(0)
        if not self._pending and not self._pending.claimed:
            return
        self._taken, self._pending = self._pending, Batch()
        self._running = self._threads.submit(self._write, self._taken)
        await asyncio.wait([asyncio.wrap_future(self._running)])
        if error := self._finish():
            raise error

    def commit(self) -> None:
        """Write all that is queued, in the calling thread, and end the commits of the run.

        Raises:
            StoreError: the write failed.
        """
        self._finish()
        pending, self._pending = self._pending, Batch()
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
        self._running, self._taken, self._last = None, Batch(), self._clock()
        return error

    def _write(self, pending: Batch) -> None:
        if pending:
            begun = self._clock()
            result = self._save(pending)
            self._took_s = self._clock() - begun
            self.added += result.added
            self.revised += result.revised
        if pending.claimed:
            self._release(pending.claimed)


class SeriesWriter:
    """Claims what a run requests of one series, and saves what responses cover.

    Args:
        store: the files and the ledger.
        claimant: the owner of the claims.
        series: the series.
        identity: of its bars.
        again: what a refresh requests again, by bar timestamp; None without a refresh.
        clocks: real time and market time.
        progress: receives notes, and a call each time that everything so far is on disk.
        threads: writes.
    """

    def __init__(
        self,
        store: BarStore,
        claimant: Claimant,
        series: Series,
        *,
        identity: Identity,
        again: IntervalSet | None,
        clocks: RetryPolicy,
        progress: Progress,
        threads: Executor,
    ) -> None:
        self._store, self._claimant = store, claimant
        self._series, self._identity, self._again = series, identity, again
        self._clocks, self._progress = clocks, progress
        self._may_be_saved = True
        self._seen: Hashable = ()
        self._recorded: Hashable = None
        self._ahead: dict[Interval, datetime] = {}  # and when it was claimed
        self.comparison = Comparison(store, series, clocks, progress)
        self.commits = Commits(
            threads=threads,
            save=self._save,
            release=lambda intervals: claimant.release(series, intervals),
            saved=lambda: progress.saved(series),
        )

    def claim(self, interval: Interval, following: Sequence[Interval] = ()) -> bool:
        """Claim an interval until it is saved; return False where another run holds part of it.

        Args:
            interval: what is requested next.
            following: what is to be requested after it: as much of it as is free is claimed in the
                same transaction, and is granted without another when its turn comes.
        """
        now = self._clocks.clock()
        claimed_at = self._ahead.pop(interval, None)
        if claimed_at is not None and now - claimed_at < _AHEAD_FOR:
            return True
        kept = {one: self._ahead.pop(one) for one in following if one in self._ahead}
        self._release(self._ahead)
        following = [one for one in following if one not in kept]
        self.commits.keep_claims([interval, *following])
        self._may_be_saved = True
        granted = self._claimant.claim_each(self._series, [interval, *following], now)
        self._ahead = kept | {one: now for one in granted if one != interval}
        return interval in granted

    def release_ahead(self) -> None:
        """Release, with the next write, what was claimed ahead and has not been requested."""
        self._release(self._ahead)
        self._ahead = {}

    def _release(self, intervals: Iterable[Interval]) -> None:
        for interval in intervals:
            self.commits.received(interval)

    def saved_since(self, *, anyway: bool = False) -> Coverage | None:
        """Return what is covered on disk, by any run; None if no file has changed since.

        Looked for once after each claim: what is claimed, ahead too, no other run saves. ``anyway``
        looks without one, for what another run has claimed. Whatever saves bars records the file in
        the ledger: without a change of that no file is looked at.
        """
        if not (self._may_be_saved or anyway):
            return None
        self._may_be_saved = False
        recorded = self._store.ledger.version()
        if recorded == self._recorded:
            return None
        current = self._store.files.version(self._series.symbol, self._series.timeframe)
        self._recorded = recorded
        if current is not None and current == self._seen:
            return None
        self._seen = current
        return self._store.known_coverage(self._series)

    def add(self, change: StateChange) -> None:
        """Queue what one response covered, with its bars.

        Findings are recorded before the bars: a finding without a bar is harmless, but an
        implausible bar without its finding would count as damage.
        """
        found = _record_findings(self._store, self._series, change, self._clocks.clock())
        if found:
            count = f"{found} bars" if found > 1 else "1 bar"
            self._progress.noted(
                self._series,
                f"{count} with implausible values kept: the gateway returned the same values twice",
            )
        bars = change.bars
        if bars is not None:
            if "basis" not in bars.schema.names:
                bars = with_basis(bars, len(self._store.bases.of(self._series.symbol)))
            self.comparison.kept(bars)
        self.commits.add(bars, change.coverage, change.presumed)

    def is_without_bars(self, interval: Interval) -> bool:
        """Return whether no bar of an interval is held."""
        return not self._store.read_raw(self._series, interval).num_rows

    def rows_per_session(self) -> dict[date, int]:
        """Return the number of bars on disk of each session date."""
        return self._store.rows_per_session(self._series)

    def _save(self, batch: Batch) -> SaveResult:
        """Save a batch, then update the ledger; runs in the thread of the commits."""
        self._store.ledger.requests.store_queued()  # of the bars' requests: no bar without a row
        bars, coverage = batch.bars(), batch.coverage
        result = self._store.save(
            self._series, self._identity, bars, coverage, presumed=batch.presumed
        )
        # Only now that the new bars are on disk.
        _clear_replaced_findings(self._store, self._series, bars)
        if self._again is not None:  # a refresh that is stopped resumes after what it has received
            answered = coverage.covered(self._clocks.market_clock()) & self._again
            key = series_key(self._series)
            self._store.ledger.refreshes.record(key, answered, self._clocks.clock())
        return result


def _clear_replaced_findings(store: BarStore, series: Series, bars: pa.Table) -> None:
    """Clear the findings of bars that were replaced by others."""
    key = series_key(series)
    if known := store.ledger.findings.of(key):
        _, found = explained(bars, series.instrument.sec_type, known)
        stale = {one.ts for one in known} - {one.ts for one in found}
        if replaced := stale & set(timestamps(bars).tolist()):
            store.ledger.findings.clear(key, replaced)


def _record_findings(store: BarStore, series: Series, change: StateChange, at: datetime) -> int:
    """Record the findings of the implausible bars of a change; return how many there are."""
    if change.bars is None or not change.implausible:
        return 0
    found = findings_of(change.bars, change.implausible, series.instrument.sec_type)
    if found:
        store.ledger.findings.record(series_key(series), found, at)
    return len(found)
