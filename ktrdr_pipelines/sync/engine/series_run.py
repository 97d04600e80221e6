"""One run over one series: plan chunks from the state, fetch, evaluate, apply, write.

``SeriesRun`` owns the series state. In outline::

    while chunks := plan(what the state needs):
        for each chunk, several at once, that no other run has claimed:
            while the chunk has an open part:
                response = fetch(part)
                change = evaluate(part, response, state)      # pure
                apply(change)                                 # evidence, state, writer
    for each change of the confirmation:                      # of responses without bars
        apply(change)
    once more, if some of it turned out to have bars

Not here: one chunk (``sync.engine.chunk_run``), what confirms empty ranges
(``sync.engine.confirmation``), retries of failed requests (``sync.engine.source_session``).
"""

import asyncio
from collections import deque
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime
from itertools import islice

from ktrdr_pipelines.domain.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.domain.planning.chunks import (
    BY_THE_YEAR,
    Chunk,
    Need,
    across_boundary,
    plan,
)
from ktrdr_pipelines.errors import (
    BadAnswerError,
    ClientIdInUseError,
    EntitlementError,
    GatewayError,
    GatewayTimeoutError,
    GatewayUnreachableError,
    RequestRejectedError,
    RequestTooLongError,
)
from ktrdr_pipelines.store.evidence import Evidence
from ktrdr_pipelines.sync.discovery.trading_hours import Schedules
from ktrdr_pipelines.sync.engine.bar_requester import Fetched, Fetcher
from ktrdr_pipelines.sync.engine.basis_check import BasisChecks, FetchedBasis
from ktrdr_pipelines.sync.engine.chunk_run import ChunkRun
from ktrdr_pipelines.sync.engine.confirmation import Confirmation
from ktrdr_pipelines.sync.engine.failed_attempts import FailedAttempts
from ktrdr_pipelines.sync.engine.series_state import Limits, SeriesState, StateChange
from ktrdr_pipelines.sync.engine.writer import SeriesWriter

_FAILURES_IN_A_ROW = 3
_MOST_PASSES = 12
"""Passes of requesting what daily bars showed to have bars: each pass reaches back a year."""

_MOST_ROUNDS_BY_NOW = 4
"""Rounds that each also request what has become due since the run began; later rounds request only
what was due in the last of these. Otherwise a gateway that takes longer for a response than a bar
lasts would keep a run busy until the close."""

_MOST_WITHOUT_BARS = 3
"""Chunks in a row before the oldest bar that may have no bars before daily bars are requested."""

_CLAIMED_AHEAD = 8
"""Chunks that are claimed together with one, in one transaction: other runs find the rest."""

_CLAIMED_PAUSE_S = 1.0
"""Pause before the next round when another run holds the claim of a chunk."""


class SeriesRun:
    """One run over one series that has something due; made and used once, in one event loop.

    A tail requests its chunks oldest first, one after the other: however it ends, what it saved
    leaves no hole before the newest bar, where the next tail starts. ``failures`` are the errors of
    failed requests, ``refreshed`` is what was requested again and confirmed.

    Args:
        state: the state of the series, which the run owns from now on.
        fetcher: fetches chunks, through the requester of the series.
        writer: claims chunks and saves what responses cover.
        confirmation: confirms what stays open as empty.
        attempts: records what failed or stayed open.
        evidence: the statements of the run.
        schedules: the calendars, and what bars show of them.
        bases: the price bases of the run's symbols.
    """

    def __init__(
        self,
        state: SeriesState,
        *,
        fetcher: Fetcher,
        writer: SeriesWriter,
        confirmation: Confirmation,
        attempts: FailedAttempts,
        evidence: Evidence,
        schedules: Schedules,
        bases: BasisChecks,
    ) -> None:
        self._state, self._series = state, state.series
        self._fetcher, self.requester = fetcher, fetcher.requester
        self._session = fetcher.requester.source_session
        self.writer, self._confirmation, self._attempts = writer, confirmation, attempts
        self._evidence, self._schedules, self._bases = evidence, schedules, bases
        self._is_tail = self.requester.options.tail
        # The widths of a backfill; None for the safe plan's.
        of_backfill = self.requester.widths.of(state.series, state.calendar)
        self._widths = None if self._is_tail else of_backfill
        self._share = self.requester.concurrency.join()
        self._stop: GatewayError | None = None
        self._is_dead = False
        self._failures_in_a_row = 0
        self._older_without_bars = 0
        self._is_claimed_elsewhere = False
        self._workers = 0
        self._failed = IntervalSet()
        self.refreshed = IntervalSet()
        self.failures: list[GatewayError] = []

    @property
    def not_received(self) -> IntervalSet:
        """What was requested without success: all that is wanted if the gateway has no data."""
        return self._state.wanted if self._is_dead else self._failed

    async def run(self) -> None:
        """Request until nothing more can be proved; what is covered is saved however it ends.

        Raises:
            GatewayUnreachableError, ClientIdInUseError: no gateway can be reached.
            StoreError: received bars could not be saved.
        """
        try:
            self._apply(self._confirmation.from_statements())
            self._apply(StateChange(is_about_beginning=True))
            if not (self.requester.options.refresh or self._is_tail):
                self._apply(self._confirmation.left_to_daily_bars())
            await self._rounds()
            await self._confirm()
            await self.writer.commits.flush()
        finally:
            self._share.leave()
            self.writer.release_ahead()
            self.writer.commits.commit()
        now, here = self._session.now(), self._session.market_now()
        self.writer.comparison.compare_volumes(self._state.calendar, now, is_tail=self._is_tail)
        self._close_attempts(now, here)
        if self._state.again:
            self._close_refresh(here)
        if isinstance(self._stop, GatewayUnreachableError | ClientIdInUseError):
            raise self._stop

    # --- the state -----------------------------------------------------------------------------

    def _need(self, within: Interval | None = None, *, by: datetime | None = None) -> Need:
        """Return what planning needs of the state, for all of it or for one interval.

        ``by`` decides what is due, None for now. A response proves nothing about what was due only
        after its request was sent (``_due_by``).
        """
        timeframe = self._series.timeframe
        most = self.requester.widths.most(timeframe)
        is_by_the_year = most == BY_THE_YEAR and not timeframe.is_intraday
        return self._state.need(
            self._session.now() if by is None else by,
            self._session.market_now(),
            within,
            limits=Limits(
                most,
                is_by_the_year,
                ends_now=self._is_tail,
                width=None if self._widths is None else self._widths.best,
            ),
        )

    def _due_by(self, fetched: Fetched) -> datetime:
        """Return by when bars were due of which a response can be evidence."""
        return min(self._session.now(), fetched.sent_at)

    def _apply(self, change: StateChange) -> None:
        """Apply what a step found: record statements, change the state, queue what is saved."""
        if change.statements:
            self._evidence.record(self._series.symbol, change.statements)
        here = self._session.market_now()
        is_left = change.deferred or change.skipped
        self._state.apply(change, self._session.now() if is_left else here, here)
        if change.coverage or change.bars is not None:
            self.writer.add(change)
        if change.is_about_beginning:
            self._state.excuse_before(
                self._evidence.beginning(
                    self._series.instrument,
                    self.requester.contract_id,
                    self._state.calendar,
                    unsaved=self._state.oldest_day,
                )
            )

    def _learn_calendar(self) -> None:
        """Use the newest calendar; another series of the symbol may have extended it."""
        self._state.learn_calendar(self._schedules.calendars.of(self._series.instrument))

    def _learn_saved(self, *, anyway: bool = False) -> bool:
        """Add to the state what any run has saved meanwhile; return whether there may be any."""
        saved = self.writer.saved_since(anyway=anyway)
        if saved is not None:
            self._state.learn_saved(saved, self._session.market_now())
        return saved is not None

    @property
    def _is_over(self) -> bool:
        """Whether further requests would be useless."""
        return self._is_dead or self._stop is not None

    @property
    def _is_beginning_seen(self) -> bool:
        return self._evidence.is_beginning_seen(self._series.symbol, self._state.oldest_open)

    # --- rounds --------------------------------------------------------------------------------

    async def _confirm(self) -> None:
        """Confirm empty ranges, and request those that daily bars show to have bars."""
        for _ in range(_MOST_PASSES):
            if self._is_over or self._is_tail:
                return
            await self.writer.commits.flush()
            try:
                async with aclosing(self._confirmation.run()) as changes:
                    async for change in changes:
                        self._learn_calendar()
                        self._apply(change)
            except GatewayError as error:
                self._report_error(error)
                return
            if not self._confirmation.found_bars:
                return
            self._older_without_bars = 0
            await self._rounds()

    async def _rounds(self) -> None:
        """Plan and request until nothing is open that this run can request."""
        rounds, due_by = 0, self._session.now()
        while not self._is_over:
            self._learn_calendar()
            rounds += 1
            due_by = self._session.now() if rounds <= _MOST_ROUNDS_BY_NOW else due_by
            need = self._need()
            if not (chunks := plan(replace(need, now=min(need.now, due_by)))):
                return
            self._is_claimed_elsewhere = False
            self._fetcher.planned(len(chunks))
            queue = deque(reversed(chunks) if self._is_tail else chunks)
            await self._establish_basis(queue[0])
            await self._share.admitted()
            try:
                async with asyncio.TaskGroup() as group:
                    self._start_workers(group, queue, self._concurrency_for(len(queue)))
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from failures
            finally:
                self._share.need(0)
            self.writer.release_ahead()
            if self._is_claimed_elsewhere:
                await self.writer.commits.flush()
                await self._session.retry_policy.sleep(_CLAIMED_PAUSE_S)
                self._learn_saved(anyway=True)

    def _concurrency_for(self, queued: int) -> int:
        """Return how many chunks are requested at once, while so many more are queued.

        One for a tail, which then leaves no hole before the newest bar, and for daily bars: they
        take few requests, and the first year without any ends the search for older ones. One until
        the price basis is established, too. Series that began before have their share first.
        """
        instrument, calendar = self._series.instrument, self._state.calendar
        is_single = self._is_tail or not self._series.timeframe.is_intraday
        is_single = is_single or not self._bases.is_established(instrument, calendar)
        most = 1 if is_single else self._session.concurrency
        self._share.need(min(queued + self._workers, most))
        return min(most, self._share.most)

    def _start_workers(
        self, group: asyncio.TaskGroup, queue: deque[Chunk], concurrency: int
    ) -> None:
        """Start workers up to the concurrency and the number of queued chunks."""
        for _ in range(min(len(queue), concurrency - self._workers)):
            self._workers += 1
            group.create_task(self._run_worker(group, queue))

    async def _run_worker(self, group: asyncio.TaskGroup, queue: deque[Chunk]) -> None:
        """Run chunks until the queue is empty or the concurrency was lowered below this worker."""
        try:
            while queue and not self._is_over:
                concurrency = self._concurrency_for(len(queue))
                if self._workers > max(concurrency, 1):
                    break
                self._start_workers(group, queue, concurrency)
                taken, widths = self._take(queue, concurrency), self._widths
                if taken is None:
                    continue
                try:
                    await self._run_taken(taken, queue)
                finally:
                    if widths is not None:
                        widths.done(taken)
                if self._is_claimed_elsewhere and self._is_tail:
                    return
        finally:
            self._workers -= 1
            self._share.need(min(self._share.demand, len(queue) + self._workers))

    def _following(self, queue: deque[Chunk]) -> list[Interval]:
        """Return what is claimed together with a chunk.

        A tail may end after any of its chunks, and chunks that are to be joined or cut to a learned
        width are not requested as they are.
        """
        is_recut = self._widths is not None and self._widths.best is not None
        if self._is_tail or is_recut:
            return []
        return [one.interval for one in islice(queue, _CLAIMED_AHEAD)]

    async def _run_taken(self, taken: Chunk, queue: deque[Chunk]) -> None:
        """Have a chunk of the queue requested, if that is still of use and no other run does it."""
        need = self._need()
        chunk = across_boundary(need, taken)
        if self._is_older(chunk) and self._older_without_bars >= _MOST_WITHOUT_BARS:
            # Daily bars show at less cost whether there is anything older.
            self._apply(StateChange(skipped=IntervalSet([chunk.interval])))
            self._fetcher.done()
            return
        most = self.requester.widths.most(self._series.timeframe)
        if most is not None and chunk.sessions > most:
            self._split(chunk, queue)
        elif not need.gaps(chunk.interval):
            self._fetcher.done()
        elif self.writer.claim(chunk.interval, self._following(queue)):
            has_waited = await self._establish_basis(chunk)
            if self._learn_saved() or has_waited:
                need = self._need()
            if need.gaps(chunk.interval):
                await self._run_chunk(chunk, need, queue, taken=taken)
            else:  # another run has saved it
                self._fetcher.done()
            self.writer.commits.received(chunk.interval)
        else:
            self._is_claimed_elsewhere = True
            self._fetcher.done()

    def _take(self, queue: deque[Chunk], concurrency: int) -> Chunk | None:
        """Take the next chunk, as wide as it should be by now; None if it is not needed."""
        if self._widths is None:
            return queue.popleft()
        chunk, grown = self._widths.take(queue, self._need, concurrency=concurrency)
        if grown > 0:
            self._fetcher.planned(grown)
        for _ in range(-grown):
            self._fetcher.done()
        return chunk

    def _is_older(self, chunk: Chunk) -> bool:
        oldest = self._state.bars.bounds
        return oldest is None or chunk.interval.start < oldest.start

    async def _establish_basis(self, chunk: Chunk) -> bool:
        """Have the price basis established before a chunk is requested that cannot show it.

        Returns: whether this may have waited, so that the state may have changed.
        """
        if self._starts_at_newest(chunk):
            return False
        return await self._bases.establish(self.requester, self._state.calendar)

    def _starts_at_newest(self, chunk: Chunk) -> bool:
        """Return whether a chunk begins at the newest held bars, which its response has too."""
        held = self._state.bars.bounds
        if held is None or chunk.interval.end <= held.end:
            return False
        between_them = between(held.end, chunk.interval.start)
        return between_them is None or not len(self._state.grid.meeting(between_them))

    def _split(self, chunk: Chunk, queue: deque[Chunk]) -> None:
        """Replace a chunk by narrower ones at the head of the queue, in the order of the run."""
        chunks = plan(self._need(chunk.interval))
        queue.extendleft(chunks if self._is_tail else reversed(chunks))
        self._fetcher.planned(len(chunks))
        self._fetcher.done()

    # --- one chunk -----------------------------------------------------------------------------

    async def _run_chunk(
        self, chunk: Chunk, need: Need, queue: deque[Chunk], *, taken: Chunk
    ) -> None:
        """Have a chunk requested until responses have covered it; narrower where that fails.

        ``taken`` is the chunk before it was extended over a boundary.
        """
        chunk_run = ChunkRun(self._state, chunk, need, taken=taken)
        try:
            await self._request_parts(chunk_run, chunk)
            if not chunk_run.was_empty:
                self._older_without_bars = 0
            elif self._is_older(chunk):
                self._older_without_bars += 1
                if self._is_beginning_seen:
                    await self.requester.head()
                self._apply(StateChange(is_about_beginning=True))
        except GatewayError as error:
            if self._has_narrowed(chunk_run, error):
                self._split(chunk, queue)
            else:
                self._record_failure(chunk, error)

    def _has_narrowed(self, chunk_run: ChunkRun, error: GatewayError) -> bool:
        """Return whether requests are narrower after a failure, so that the chunk is to be split.

        A probe that was too wide narrows no other request.
        """
        widths, part = self._widths, chunk_run.part
        is_refused = isinstance(error, RequestTooLongError)
        if is_refused or isinstance(error, GatewayTimeoutError):
            if widths is not None and widths.failed(chunk_run.taken, is_refused=is_refused):
                self.requester.note(f"{error}; such wide requests are not sent for a while")
                return True
            refused = part.duration if is_refused else ""
            limits, timeframe = self.requester.widths, self._series.timeframe
            if limits.narrow(timeframe, part.sessions, refused=refused):
                self.requester.note(f"{error}; requests are narrower from now on")
                return True
            return False
        is_of_session = isinstance(error, RequestRejectedError | BadAnswerError)
        if not is_of_session or widths is None or not widths.is_wide(chunk_run.taken):
            return False
        # One session may be the reason: this run goes on with the safe plan's width.
        self._widths = None
        self.requester.note(f"{error}; requests are narrower in this load")
        return True

    async def _request_parts(self, chunk_run: ChunkRun, chunk: Chunk) -> None:
        """Request a chunk as a whole and then what stays open of it, while that is worthwhile."""
        for more in reversed(range(chunk_run.most_requests)):
            await self._request(chunk_run, chunk)
            if not more:
                self._apply(StateChange(deferred=IntervalSet([chunk.interval])))
            elif not chunk_run.take_next_part(self._need(chunk.interval)) or self._is_over:
                return
            else:
                self._fetcher.planned(1)

    async def _request(self, chunk_run: ChunkRun, chunk: Chunk) -> None:
        """Fetch a part of a chunk, and apply what the response means."""
        is_whole = chunk_run.part.sessions >= chunk_run.taken.sessions
        is_trial = is_whole and self._widths is not None and self._widths.is_trial(chunk_run.taken)
        fetched = await self._fetcher.fetch(chunk_run.part, self._state.calendar, is_trial=is_trial)
        self._failures_in_a_row = 0
        fetched = await self._fetcher.reconcile(chunk_run.part, fetched)
        proved = "nothing"
        try:
            if (response := fetched.with_bars) is not None:
                basis = await self._bases.received(
                    self.requester, self._state.calendar, response, fetched.received.requested_at
                )
                proved = self._evaluate(chunk_run, chunk, fetched, basis)
            elif fetched.response is None:
                chunk_run.was_empty = False
                self._apply(StateChange(deferred=IntervalSet([fetched.chunk.interval])))
                proved = "no row that is a bar twice"
            elif self._state.bars or await self._is_alive():
                need = self._need(fetched.chunk.interval, by=self._due_by(fetched))
                at, is_seen = self._session.gateway_now(), self._is_beginning_seen
                self._apply(
                    chunk_run.without_bars(fetched.chunk, need, at=at, is_beginning_seen=is_seen)
                )
                proved = "no bars"
            else:
                proved = "nothing: the contract has no recent bars"
        finally:
            self.requester.record(fetched.received, proved)
        self._fetcher.done(fetched.rows)
        await self.writer.commits.commit_when_due()

    def _evaluate(
        self,
        chunk_run: ChunkRun,
        chunk: Chunk,
        fetched: Fetched,
        basis: FetchedBasis,
    ) -> str:
        """Apply what a response with bars means; return a short description of what it proved."""
        part, response, due_by = fetched.chunk, fetched.with_bars, self._due_by(fetched)
        assert response is not None  # noqa: S101  (the caller has seen it)
        self.requester.mark_alive()
        self._attempts.answered()
        need, at = self._need(part.interval, by=due_by), self._session.gateway_now()
        found = chunk_run.evaluate(part, need, response)
        if self._widths is not None and found.bars.num_rows:
            took_s, at_once = fetched.received.took_s, response.at_once
            self._widths.received(chunk_run.taken, found.bars, need, took_s=took_s, at_once=at_once)
        self.writer.comparison.received(response.bars, self._state.bars_before)
        self._evidence.saw_bars(self._series.symbol, self._series.timeframe, at)
        if found.earlier_only:
            change, proved = chunk_run.with_earlier_bars(
                part, need, response, at=at, is_beginning_seen=self._is_beginning_seen
            )
            self._apply(change)
            return proved
        if self._evidence.refute_by_bars(self._series, self._state.calendar, found.bars):
            self.requester.note(
                "the gateway returned bars where it had returned none: its responses without bars "
                "within a day of the refuted one no longer count"
            )
        instrument, timeframe = self._series.instrument, self._series.timeframe
        if self._schedules.saw_bars(instrument, timeframe, found.bars, self.requester.note):
            self._learn_calendar()  # before statements are made: late bars extend sessions
        if basis.is_unconfirmed:
            kept = StateChange(bars=found.bars, deferred=IntervalSet([part.interval]))
            return self._keep_unconfirmed(chunk_run, part, basis.stamped(kept))
        self._apply(basis.stamped(chunk_run.with_bars(part, found, response, at)))
        chunk_run.widen_after_bars(lambda: self._need(chunk.interval))
        if response.lacks_newest:
            self._apply(StateChange(deferred=IntervalSet([part.interval])))
            return f"{found.bars.num_rows} bars, the newest are held back"
        is_whole = self._state.calendar is need.calendar and need.is_met_by(found.covered)
        if not is_whole or found.around or not found.covered:
            after = self._need(part.interval, by=due_by)
            if after.gaps() or found.around or not found.covered:
                traded = self._evidence.traded(self._series.symbol)
                self._apply(
                    chunk_run.left_open(
                        part, found, response, before=need.gaps(), need=after, traded=traded
                    )
                )
        if found.begins_at is not None:
            self._apply(StateChange(is_about_beginning=True))
        return f"{found.bars.num_rows} bars, {found.covered.length} covered"

    def _keep_unconfirmed(self, chunk_run: ChunkRun, part: Chunk, change: StateChange) -> str:
        """Keep bars on an unconfirmed basis, which cover nothing; another run requests them."""
        chunk_run.was_empty = False
        self._apply(change)
        self._attempts.basis_unconfirmed(part.interval)
        return "bars on an unconfirmed price basis"

    async def _is_alive(self) -> bool:
        """Return whether the contract has lately returned bars; if not, the run is over."""
        if await self.requester.is_alive():
            return True
        if not self._is_dead:
            self._is_dead = True
            self.requester.note(
                f"the gateway has no data of {self._series.instrument} at all, so no session is "
                "confirmed empty: permissions may be missing, or the instrument has ended"
            )
        return False

    # --- failures and the end ------------------------------------------------------------------

    def _record_failure(self, chunk: Chunk, error: GatewayError) -> None:
        """Record and defer a chunk whose request failed; stop if more requests are useless."""
        left = self._need(chunk.interval).gaps().bounds
        self._failed |= IntervalSet([chunk.interval])
        self._state.defer_whole(chunk.interval)
        self._attempts.failed(left or chunk.interval, error)
        self._fetcher.done()
        self._report_error(error)

    def _report_error(self, error: GatewayError) -> None:
        """Report a failed request, and stop if more requests are useless."""
        self.failures.append(error)
        self.requester.note(str(error))
        self._failures_in_a_row += 1
        is_final = isinstance(
            error, EntitlementError | GatewayUnreachableError | ClientIdInUseError
        )
        if is_final or self._failures_in_a_row >= _FAILURES_IN_A_ROW:
            self._stop = error

    def _close_attempts(self, now: datetime, here: datetime) -> None:
        """Record what requests left uncovered, and clear attempts at what is covered by now."""
        for attempt in self._attempts.to_close():
            if not self._state.open_in(attempt.interval, now, here):
                self._attempts.close(attempt)
        left = self._state.left(self._state.need(now, here, everything=True), here)
        bounds = left.bounds
        if bounds is None:
            return
        if self._is_dead:
            self._attempts.no_data(bounds)
            return
        for one in self._confirmation.attempts():
            self._attempts.left_open(one.interval, one.kind, one.text, due_at=one.due_at)

    def _close_refresh(self, here: datetime) -> None:
        """Set ``refreshed``, and confirm the sparse sessions that were returned unchanged.

        An interval without bars for which a response again held none is unchanged: a response with
        bars on one side only does not void it, and needs no second one.
        """
        again = self._state.unconfirmed_again(here)
        same = (one for one in again if self.writer.is_without_bars(one))
        self.refreshed = (self._state.proved & self._state.again) | IntervalSet(same)
        received = [
            one for one in self._state.sparse_sessions if self.refreshed.covers(one.interval)
        ]
        if received:
            rows = self.writer.rows_per_session()
            confirmed = {one.day: one.rows for one in received if rows.get(one.day, 0) == one.rows}
            self._attempts.confirm_sparse(confirmed)
