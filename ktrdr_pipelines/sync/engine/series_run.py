"""The work on one series: rounds of planning and asking until nothing more can be proved.

Not here: one chunk's requests (``sync.engine.chunk_run``), how patiently the gateway is asked
(``sync.engine.source_session``), when covered bars are written (``sync.engine.writer``).
"""

import asyncio
from collections import deque
from dataclasses import replace
from datetime import datetime

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
"""Times that a run goes on after daily bars showed older ones: each pass reaches back a year."""

_MOST_ROUNDS_BY_NOW = 4
"""Rounds of which each requests what is due by then, too; later ones request only what was due in
the last of them. A gateway slower than a bar would keep a run busy until the close."""

_MOST_WITHOUT_BARS = 3
"""Chunks in a row before the oldest bar that come without bars until daily bars are requested."""

_OTHERS_S = 1.0


class SeriesRun:
    """One run over one series that has something due; made and used once, in one event loop.

    A tail asks oldest first and one by one: however it ends, what it saved leaves no hole behind
    the newest bar, from where the next tail goes on.
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
        self.confirmed_at: datetime | None = None

    @property
    def requester(self) -> BarRequester:
        """What was asked, in numbers."""
        return self._series_context.requester

    @property
    def commits(self) -> Commits:
        """What was saved, in numbers."""
        return self._series_context.commits

    @property
    def is_over(self) -> bool:
        """Say whether more asking is vain."""
        return self._series_context.is_over

    @property
    def not_received(self) -> IntervalSet:
        """What was asked for and could not be had: all, where the gateway has no data at all."""
        return self._state.wanted if self._series_context.is_dead else self._failed

    async def run(self) -> None:
        """Ask until nothing more can be proved; what is covered is saved however it ends.

        Raises:
            GatewayUnreachableError, ClientIdInUseError: there is no gateway to ask.
            StoreError: what was answered could not be saved.
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
        self._take_refreshed()
        if isinstance(self._series_context.stop, GatewayUnreachableError | ClientIdInUseError):
            raise self._series_context.stop

    async def _confirm(self) -> None:
        """Prove what came without bars to be empty, and request what turns out to have some."""
        for _ in range(_MOST_PASSES):
            if self._series_context.is_over or self._tail:
                return
            try:
                if not await self._confirmation.run():
                    return
            except GatewayError as error:
                self._take_error(error)
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
            await self._request_all(deque(reversed(chunks) if self._tail else chunks))
            if self._refused:
                await self._series_context.commits.flush()
                await self._context.source_session.retry_policy.sleep(_OTHERS_S)
                self._series_context.learn_saved()
            self._series_context.learn_calendar()

    async def _request_all(self, queue: deque[Chunk]) -> None:
        """Work on chunks, as many at a time as the rate limiter finds worth it."""
        try:
            async with asyncio.TaskGroup() as group:
                self._hire(group, queue)
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures

    def _hire(self, group: asyncio.TaskGroup, queue: deque[Chunk]) -> None:
        """Let as many workers work as there are places for chunks that wait."""
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
        """Work while there are chunks and places; hire where places were added."""
        while queue and not self._series_context.is_over:
            if not self._is_one_by_one and self._workers > max(
                self._context.source_session.concurrency, 1
            ):
                return
            self._hire(group, queue)
            chunk = across_boundary(self._series_context.need(), queue.popleft())
            if self._is_beyond_bars(chunk):
                self._series_context.skip(chunk.interval)
                self._context.progress.answered(self._state.series, 0)
                continue
            most = self._context.widths.most(self._state.series.timeframe)
            if most is not None and chunk.sessions > most:
                self._cut_anew(chunk, queue)
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

        Tails leave no hole behind the newest bar that way. Daily bars are few requests, and the
        first year without any ends the search for older ones.
        """
        return self._tail or not self._state.series.timeframe.is_intraday

    def _is_beyond_bars(self, chunk: Chunk) -> bool:
        """Whether a chunk lies before the oldest bar, behind several that had none.

        Daily bars then tell at less cost whether there is anything older.
        """
        return self._is_older(chunk) and self._older_without_bars >= _MOST_WITHOUT_BARS

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
            refused = chunk_run.requester.duration if isinstance(error, RequestTooLongError) else ""
            if self._context.widths.narrow(
                timeframe, chunk_run.requester.sessions, refused=refused
            ):
                self._series_context.note(f"{error}; less is requested at a time now")
                self._cut_anew(chunk, queue)
            else:
                self._take_failure(chunk, error)
        except GatewayError as error:
            self._take_failure(chunk, error)

    def _cut_anew(self, chunk: Chunk, queue: deque[Chunk]) -> None:
        """Put narrower chunks at the place of one, in the order in which they are worked on."""
        chunks = plan(self._series_context.need(chunk.interval))
        queue.extendleft(chunks if self._tail else reversed(chunks))
        self._context.progress.planned(self._state.series, len(chunks))
        self._context.progress.answered(self._state.series, 0)

    # --- failures ---------------------------------------------------------------------------

    def _take_failure(self, chunk: Chunk, error: GatewayError) -> None:
        """Defer a chunk that could not be had, and stop where more requests are useless."""
        series_context = self._series_context
        left = series_context.need(chunk.interval).gaps().bounds
        self._failed |= IntervalSet([chunk.interval])
        self._state.defer(IntervalSet([chunk.interval]))
        series_context.failed_attempts.failed(left or chunk.interval, error)
        self._context.progress.answered(self._state.series, 0)
        self._take_error(error)

    def _take_error(self, error: GatewayError) -> None:
        """Tell of a request that failed, and stop where more requests are useless."""
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
        """Write down what asking could not cover, and forget what is covered by now."""
        series_context = self._series_context
        now, here = (
            self._context.source_session.now(),
            self._context.source_session.retry_policy.market_clock(),
        )
        series_context.failed_attempts.forget_covered(
            lambda interval: self._state.open_in(interval, now, here)
        )
        bounds = self._state.left(series_context.need(everything=True), here).bounds
        if series_context.is_dead and bounds:
            series_context.failed_attempts.left_open(bounds, AttemptKind.NO_DATA, "no data at all")
        if bounds and not series_context.is_dead:
            self.confirmed_at = self._confirmation.write_down()

    def _take_refreshed(self) -> None:
        """Take in what came again, and remember the sparse sessions that have no more bars."""
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
        store.ledger.confirm_sessions(series_key(series), same, at)
