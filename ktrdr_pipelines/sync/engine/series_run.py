"""One run over one series: rounds of planning and requesting until nothing more can be proved.

Not here: one chunk's requests (``sync.engine.chunk_run``), retries of failed requests
(``sync.engine.source_session``), when covered bars are written (``sync.engine.writer``).
"""

import asyncio
from collections import deque
from dataclasses import replace

from ktrdr_pipelines.domain.instruments import Identity
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.planning.chunks import Chunk, across_boundary, plan
from ktrdr_pipelines.domain.planning.jobs import LoadOptions
from ktrdr_pipelines.domain.planning.retry_schedule import AttemptKind
from ktrdr_pipelines.errors import (
    ClientIdInUseError,
    EntitlementError,
    GatewayError,
    GatewayTimeoutError,
    GatewayUnreachableError,
    RequestTooLongError,
)
from ktrdr_pipelines.store.ledger.ledger import series_key
from ktrdr_pipelines.sync.engine.bar_requester import BarRequester
from ktrdr_pipelines.sync.engine.chunk_run import ChunkRun
from ktrdr_pipelines.sync.engine.confirmation import Confirmation
from ktrdr_pipelines.sync.engine.context import RunContext, SeriesContext
from ktrdr_pipelines.sync.engine.series_state import SeriesState
from ktrdr_pipelines.sync.engine.writer import Commits

_FAILURES_IN_A_ROW = 3
_MOST_PASSES = 12
"""Passes of requesting what daily bars showed to have bars: each pass reaches back a year."""

_MOST_ROUNDS_BY_NOW = 4
"""Rounds that each also request what has become due since the run began; later rounds request only
what was due in the last of these. Otherwise a gateway that takes longer for a response than a bar
lasts would keep a run busy until the close."""

_MOST_WITHOUT_BARS = 3
"""Chunks in a row before the oldest bar that may have no bars before daily bars are requested."""

_CLAIMED_PAUSE_S = 1.0
"""Pause before the next round when another run holds the claim of a chunk."""


class SeriesRun:
    """One run over one series that has something due; made and used once, in one event loop.

    A tail requests its chunks oldest first, one after the other: however it ends, what it saved
    leaves no hole before the newest bar, where the next tail starts. ``failures`` are the errors of
    failed requests, ``refreshed`` is what was requested again and confirmed.
    """

    def __init__(
        self, context: RunContext, state: SeriesState, identity: Identity, options: LoadOptions
    ) -> None:
        self._context = context
        self._state = state
        self._tail = options.tail
        self._is_refresh = options.refresh
        self._series_context = SeriesContext(context, state, identity, options)
        self._confirmation = Confirmation(self._series_context)
        self._older_without_bars = 0
        self._refused = False
        self._workers = 0
        self._failed = IntervalSet()
        self.refreshed = IntervalSet()
        self.failures: list[GatewayError] = []

    @property
    def requester(self) -> BarRequester:
        """The requester of the series, which counts requests and rows."""
        return self._series_context.requester

    @property
    def commits(self) -> Commits:
        """The commits of the series, which count added and revised bars."""
        return self._series_context.commits

    @property
    def not_received(self) -> IntervalSet:
        """What was requested without success: all that is wanted if the gateway has no data."""
        return self._state.wanted if self._series_context.is_dead else self._failed

    async def run(self) -> None:
        """Request until nothing more can be proved; what is covered is saved however it ends.

        Raises:
            GatewayUnreachableError, ClientIdInUseError: no gateway can be reached.
            StoreError: received bars could not be saved.
        """
        try:
            self._confirmation.prove_known()
            await self._series_context.learn_beginning(ask=False)
            if not (self._is_refresh or self._tail):
                self._confirmation.leave_to_daily_bars()
            await self._rounds()
            await self._confirm()
            await self._series_context.commits.flush()
        finally:
            self._series_context.commits.commit()
        self._series_context.compare_volumes()
        self._close_attempts()
        self._confirm_refreshed()
        if isinstance(self._series_context.stop, GatewayUnreachableError | ClientIdInUseError):
            raise self._series_context.stop

    async def _confirm(self) -> None:
        """Confirm empty ranges, and request those that daily bars show to have bars."""
        for _ in range(_MOST_PASSES):
            if self._series_context.is_over or self._tail:
                return
            try:
                if not await self._confirmation.run():
                    return
            except GatewayError as error:
                self._report_error(error)
                return
            self._older_without_bars = 0
            await self._rounds()

    async def _rounds(self) -> None:
        self._series_context.learn_calendar()
        rounds, due_by = 0, self._context.source_session.now()
        while not self._series_context.is_over:
            rounds += 1
            due_by = self._context.source_session.now() if rounds <= _MOST_ROUNDS_BY_NOW else due_by
            need = self._series_context.need()
            if not (chunks := plan(replace(need, now=min(need.now, due_by)))):
                return
            self._refused = False
            self._context.progress.planned(self._state.series, len(chunks))
            queue = deque(reversed(chunks) if self._tail else chunks)
            try:
                async with asyncio.TaskGroup() as group:
                    self._start_workers(group, queue)
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from failures
            if self._refused:
                await self._series_context.commits.flush()
                await self._context.source_session.retry_policy.sleep(_CLAIMED_PAUSE_S)
                self._series_context.learn_saved()
            self._series_context.learn_calendar()

    def _start_workers(self, group: asyncio.TaskGroup, queue: deque[Chunk]) -> None:
        """Start workers up to the concurrency of the source and the number of queued chunks."""
        concurrency = 1 if self._is_one_by_one else self._context.source_session.concurrency
        for _ in range(min(len(queue), concurrency - self._workers)):
            self._workers += 1
            group.create_task(self._run_worker(group, queue))

    async def _run_worker(self, group: asyncio.TaskGroup, queue: deque[Chunk]) -> None:
        try:
            await self._run_chunks(group, queue)
        finally:
            self._workers -= 1

    async def _run_chunks(self, group: asyncio.TaskGroup, queue: deque[Chunk]) -> None:
        """Run chunks until the queue is empty or the concurrency was lowered below this worker."""
        while queue and not self._series_context.is_over:
            if not self._is_one_by_one and self._workers > max(
                self._context.source_session.concurrency, 1
            ):
                return
            self._start_workers(group, queue)
            chunk = across_boundary(self._series_context.need(), queue.popleft())
            if self._is_older(chunk) and self._older_without_bars >= _MOST_WITHOUT_BARS:
                # Daily bars show at less cost whether there is anything older.
                self._series_context.skip(chunk.interval)
                self._context.progress.answered(self._state.series, 0)
                continue
            most = self._context.widths.most(self._state.series.timeframe)
            if most is not None and chunk.sessions > most:
                self._split(chunk, queue)
            elif not self._series_context.need(chunk.interval).gaps():
                self._context.progress.answered(self._state.series, 0)
            elif self._series_context.claim(chunk.interval):
                await self._run_chunk(chunk, queue)
                self._series_context.commits.received(chunk.interval)
            else:
                self._refused = True
                self._context.progress.answered(self._state.series, 0)
                if self._tail:
                    return

    @property
    def _is_one_by_one(self) -> bool:
        """Whether chunks are requested one after the other.

        A tail then leaves no hole before the newest bar. Daily bars take few requests, and the
        first year without any ends the search for older ones.
        """
        return self._tail or not self._state.series.timeframe.is_intraday

    def _is_older(self, chunk: Chunk) -> bool:
        oldest = self._state.bars.bounds
        return oldest is None or chunk.interval.start < oldest.start

    async def _run_chunk(self, chunk: Chunk, queue: deque[Chunk]) -> None:
        chunk_run = ChunkRun(self._series_context, chunk)
        try:
            await chunk_run.run()
            if not chunk_run.was_empty:
                self._older_without_bars = 0
            elif self._is_older(chunk):
                self._older_without_bars += 1
                await self._series_context.learn_beginning(
                    ask=self._series_context.is_beginning_seen
                )
        except (GatewayTimeoutError, RequestTooLongError) as error:
            timeframe = self._state.series.timeframe
            refused = chunk_run.requested.duration if isinstance(error, RequestTooLongError) else ""
            if self._context.widths.narrow(
                timeframe, chunk_run.requested.sessions, refused=refused
            ):
                self._series_context.note(f"{error}; requests are narrower from now on")
                self._split(chunk, queue)
            else:
                self._record_failure(chunk, error)
        except GatewayError as error:
            self._record_failure(chunk, error)

    def _split(self, chunk: Chunk, queue: deque[Chunk]) -> None:
        """Replace a chunk by narrower ones at the head of the queue, in the order of the run."""
        chunks = plan(self._series_context.need(chunk.interval))
        queue.extendleft(chunks if self._tail else reversed(chunks))
        self._context.progress.planned(self._state.series, len(chunks))
        self._context.progress.answered(self._state.series, 0)

    # --- failures ---------------------------------------------------------------------------

    def _record_failure(self, chunk: Chunk, error: GatewayError) -> None:
        """Record and defer a chunk whose request failed; stop if more requests are useless."""
        series_context = self._series_context
        left = series_context.need(chunk.interval).gaps().bounds
        self._failed |= IntervalSet([chunk.interval])
        self._state.defer(IntervalSet([chunk.interval]))
        series_context.failed_attempts.failed(left or chunk.interval, error)
        self._context.progress.answered(self._state.series, 0)
        self._report_error(error)

    def _report_error(self, error: GatewayError) -> None:
        """Report a failed request, and stop if more requests are useless."""
        series_context = self._series_context
        self.failures.append(error)
        series_context.note(str(error))
        series_context.failures_in_a_row += 1
        is_final = isinstance(
            error, EntitlementError | GatewayUnreachableError | ClientIdInUseError
        )
        if is_final or series_context.failures_in_a_row >= _FAILURES_IN_A_ROW:
            series_context.stop = error

    def _close_attempts(self) -> None:
        """Record what requests left uncovered, and clear attempts at what is covered by now."""
        series_context = self._series_context
        now, here = self._context.source_session.now(), self._context.source_session.market_now()
        series_context.failed_attempts.forget_covered(
            lambda interval: self._state.open_in(interval, now, here)
        )
        bounds = self._state.left(series_context.need(everything=True), here).bounds
        if series_context.is_dead and bounds:
            series_context.failed_attempts.left_open(bounds, AttemptKind.NO_DATA, "no data at all")
        if bounds and not series_context.is_dead:
            self._confirmation.write_down()

    def _confirm_refreshed(self) -> None:
        """Set ``refreshed``, and confirm the sparse sessions that were returned unchanged."""
        self.refreshed = self._series_context.refreshed() if self._state.again else IntervalSet()
        received = [
            one for one in self._state.sparse_sessions if self.refreshed.covers(one.interval)
        ]
        if not received:
            return
        series, store = self._state.series, self._context.store
        rows = store.rows_per_session(series)
        same = {one.day: one.rows for one in received if rows.get(one.day, 0) == one.rows}
        at = self._context.source_session.retry_policy.clock()
        store.ledger.confirmed.record(series_key(series), same, at)
