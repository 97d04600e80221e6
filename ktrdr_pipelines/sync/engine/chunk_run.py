"""One chunk of a series: requested as a whole and in parts until responses have covered it.

Not here: what the chunk runs of a series share (``sync.engine.context``), how a response is
evaluated (``domain.planning.evaluation``), how empty sessions are confirmed
(``sync.engine.confirmation``).
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.domain.bars import micros, moment, timestamps, without_flat
from ktrdr_pipelines.domain.calendars.session_grid import Span, session_grid
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.chunks import (
    Chunk,
    Need,
    is_opening,
    newest_run,
    plan,
)
from ktrdr_pipelines.domain.planning.empty_ranges import Statement, StatementKind
from ktrdr_pipelines.domain.planning.evaluation import (
    Evaluation,
    EvaluationContext,
    answered_now,
    evaluate,
)
from ktrdr_pipelines.domain.planning.gaps import bar_lag, is_closed
from ktrdr_pipelines.domain.planning.responses import NoData, Response
from ktrdr_pipelines.domain.planning.sparse_sessions import may_be_sparse
from ktrdr_pipelines.domain.plausibility import (
    findings_of,
    reconciled,
)
from ktrdr_pipelines.store.evidence import new_request, runs_of
from ktrdr_pipelines.store.ledger.ledger import series_key
from ktrdr_pipelines.sync.engine.bar_requester import ReceivedResponse
from ktrdr_pipelines.sync.engine.context import SeriesContext

_MOST_AT_END = 0.4
"""Share of a chunk's sessions that may be missing at its end without its being requested again."""

_SPARE_REQUESTS = 8
"""Requests for one chunk beside those that halving it takes: a gateway that returns only a little
of each requested range is not followed to the end in one run."""


class ChunkRun:
    """The work on one chunk of a series; made and used once.

    What a response leaves open is requested before the next chunk, newest first, so that a window
    is finished soon. ``requested`` is the chunk that was requested last; ``was_empty`` says that no
    response had a bar.
    """

    def __init__(self, series_context: SeriesContext, chunk: Chunk) -> None:
        self._series_context = series_context
        self._context = series_context.context
        self._state = series_context.state
        self._series = series_context.series
        self._chunk = chunk
        self._width: int | None = None
        self._run: Interval | None = None
        self._is_direct = False
        self._is_alone = False
        self._is_opening = is_opening(series_context.need(chunk.interval), chunk)
        self._sent_at: datetime | None = None
        self.requested = chunk
        self.was_empty = True

    async def run(self) -> None:
        """Request until nothing more of the chunk can be learned.

        Raises:
            GatewayError: a request failed after all retries.
            StoreError: received bars could not be saved.
        """
        series_context = self._series_context
        chunk: Chunk | None = self._chunk
        if not series_context.need(self._chunk.interval).gaps():
            self._context.progress.answered(self._series, 0)
            return
        budget = _SPARE_REQUESTS + 2 * self._chunk.sessions.bit_length()
        while chunk is not None and not series_context.is_over:
            await self._request(chunk)
            budget -= 1
            if budget <= 0:
                series_context.defer(self._chunk.interval)
            chunk = self._next_part()
            if chunk is not None:
                self._context.progress.planned(self._series, 1)

    def _next_part(self) -> Chunk | None:
        """Return the newest part that is still open, no wider than the last responses allow.

        The quiet opening of the oldest session is left to the request for the session before it,
        unless a request for several parts left all of them open.
        """
        need = self._series_context.need(self._chunk.interval)
        if self._chunk.now_until is not None:
            # Where the chunk ends inside a bar that was not over when it was planned, the rest of
            # that bar is no gap just because time has passed.
            interval = self._chunk.interval
            last = need.grid.spans_in(interval)[-1]
            if interval.end < last.interval.end:
                need = replace(need, now=min(need.now, interval.end + bar_lag()))
        newest = newest_run(need)
        if newest is None:
            return None
        if self._is_alone:
            newest = list(need.gaps())[-1]
        if self._run is not None and not self._run.overlaps(newest):
            self._width = None
        self._run = newest
        if self._is_direct:
            self._is_direct = False
            need = replace(need, most_sessions=1)
        if self._width is not None:
            need = replace(need, most_sessions=min(self._width, need.most_sessions or self._width))
        chunk = plan(replace(need, wanted=need.wanted.clip(newest)))[0]
        is_others = is_opening(need, chunk) and not (self._is_opening or self._is_alone)
        return None if is_others else chunk

    def _need(self, interval: Interval) -> Need:
        """Return the need of an interval as of when the last request was sent.

        A response says nothing about bars that became due after its request was sent.
        """
        need = self._series_context.need(interval)
        return replace(need, now=min(need.now, self._sent_at)) if self._sent_at else need

    async def _receive(self, chunk: Chunk) -> tuple[ReceivedResponse, Chunk]:
        """Request a chunk; return the response and the chunk that it is evidence for."""
        series_context = self._series_context
        received = await series_context.requester.chunk(chunk)
        self._sent_at = received.sent_at
        with_end = replace(chunk, now_until=None)
        if not received.ends_now:
            return received, with_end
        response, need = received.response, self._need(chunk.interval)
        context = EvaluationContext(chunk, need.calendar, need.timeframe, need.now)
        if isinstance(response, Response):
            context = replace(context, holds_back=response.lacks_newest)
            spoken_of = answered_now(context, response.bars, response.reach)
        else:
            spoken_of = answered_now(context, None, None)
        if spoken_of is not None:
            return received, spoken_of
        series_context.requester.record(received, "nothing by itself: requested with its end")
        return await self._request_again(with_end), with_end

    async def _request_again(self, chunk: Chunk) -> ReceivedResponse:
        """Request a chunk once more, with its end."""
        series_context = self._series_context
        self._context.progress.planned(self._series, 1)
        self._context.progress.answered(self._series, 0)
        received = await series_context.requester.chunk(replace(chunk, now_until=None))
        self._sent_at = received.sent_at
        return received

    async def _request(self, chunk: Chunk) -> None:
        """Request a chunk once and apply its response to the series state."""
        series_context = self._series_context
        self.requested, planned = chunk, chunk
        received, chunk = await self._receive(chunk)
        series_context.failures_in_a_row = 0
        self._context.widths.answered(self._series.timeframe, chunk.sessions)
        response: Response | NoData | None = received.response
        if isinstance(response, Response) and (response.impossible or response.implausible):
            chunk = replace(planned, now_until=None)
            received, response = await self._reconcile(chunk, received, response)
        proved = "nothing"
        try:
            if isinstance(response, NoData):
                has_bars = series_context.need(chunk.interval).known_from is not None
                if has_bars or await series_context.is_alive():
                    self._record_empty(chunk, controlled=False)
                    proved = "no bars"
                else:
                    proved = "nothing, no sign of life"
            elif response is None:
                series_context.defer(chunk.interval)
                self.was_empty = False
                proved = "no row that is a bar twice"
            else:
                proved = await self._apply_bars(chunk, response)
        finally:
            series_context.requester.record(received, proved)
        rows = response.bars.num_rows if isinstance(response, Response) else 0
        self._context.progress.answered(self._series, rows)
        await series_context.commits.commit_when_due()

    async def _reconcile(
        self, chunk: Chunk, received: ReceivedResponse, first: Response
    ) -> tuple[ReceivedResponse, Response | None]:
        """Request a chunk again because rows of its response are impossible or implausible.

        Returns: the second response as received, and the response reconciled from both.
        """
        series_context = self._series_context
        odd = f"{len(first.implausible)} implausible bars, rows at {len(first.impossible)} places"
        series_context.requester.record(received, f"{odd} are no bars: requested once more")
        again = await self._request_again(chunk)
        second = again.response if isinstance(again.response, Response) else None
        return again, reconciled(first, second, self._series.timeframe.length)

    # --- responses with bars -------------------------------------------------------------------

    async def _apply_bars(self, chunk: Chunk, response: Response) -> str:
        """Keep the bars of a response and cover what it proves; return that in a few words."""
        series_context = self._series_context
        self._context.life.saw(series_context.requester)
        series_context.failed_attempts.answered()
        need = self._need(chunk.interval)
        before = need.gaps()
        context = EvaluationContext(
            chunk,
            need.calendar,
            need.timeframe,
            need.now,
            holds_back=response.lacks_newest,
            impossible=response.impossible,
        )
        found = evaluate(context, response.bars, response.reach)
        series_context.compare_with_held(chunk, response.bars)
        self._context.evidence.saw_bars(self._series, self._context.source_session.gateway_now())
        if found.earlier_only:
            return self._apply_earlier_bars(chunk, response)
        self.was_empty = False
        self._refute(found)
        # Findings are recorded before the bars: a finding without a bar is harmless, but an
        # implausible bar without its finding would count as damage.
        self._record_findings(found.bars, response.implausible)
        series_context.cover(Coverage(bars=found.covered), found.bars)
        series_context.learn_from_bars(found.bars)
        self._record_statements(chunk, found)
        if self._width is not None:
            # Bars came after a wider request had none: request half of the rest at once.
            need = series_context.need(self._chunk.interval)
            bounds = need.gaps().bounds
            left = len(need.grid.spans_in(bounds)) if bounds else 0
            self._width = max(1, left // 2)
        if response.lacks_newest:
            series_context.defer(chunk.interval)
            return f"{found.bars.num_rows} bars, the newest are held back"
        self._state.answered(IntervalSet([chunk.interval]) - response.impossible)
        need = series_context.need(chunk.interval)
        if is_opening(need, chunk) and need.gaps() == before:
            # A request over two sessions left the opening open: it is requested alone, because
            # where data begin there is no bar on its other side.
            self._is_direct = True
        if found.around:
            series_context.defer_part(found.around)
        self._skip_outer(chunk, timestamps(response.bars), response.impossible)
        self._request_parts(chunk, before)
        if found.begins_at is not None:
            await series_context.learn_beginning(ask=False)
        return f"{found.bars.num_rows} bars, {found.covered.length} covered"

    def _record_findings(self, bars: pa.Table, implausible: Sequence[int]) -> None:
        """Record which of the bars to be kept are implausible."""
        series_context = self._series_context
        found = findings_of(bars, implausible, self._series.instrument.sec_type)
        if not found:
            return
        at = self._context.source_session.retry_policy.clock()
        self._context.store.ledger.record_findings(series_key(self._series), found, at)
        count = f"{len(found)} bars" if len(found) > 1 else "1 bar"
        series_context.note(
            f"{count} with implausible values kept: the gateway returned the same values twice"
        )

    def _request_parts(self, chunk: Chunk, before: IntervalSet) -> None:
        """Request each open part alone if a response with bars covered none of them.

        A part that was requested alone is deferred to another run.
        """
        left = self._series_context.need(chunk.interval).gaps()
        if self._is_direct or left != before:
            return
        if len(left) > 1:
            self._is_alone = True
        else:
            self._series_context.defer(chunk.interval)

    def _skip_outer(self, chunk: Chunk, keys: np.ndarray, impossible: IntervalSet) -> None:
        """Leave to daily bars the sessions without bars at the ends of a chunk.

        Every third chunk of a thinly traded instrument has such an end; one request for daily bars
        is evidence for a year of them. If most of the newest sessions are missing, or daily bars
        have shown trades in the oldest, the response was cut short and they are requested at once.
        """
        series_context = self._series_context
        need = self._need(chunk.interval)
        if chunk.sessions == 1:
            return
        first, last = moment(keys[0]), moment(keys[-1])
        spans = need.grid.spans_in(chunk.interval)
        gaps = need.gaps() - impossible
        whole = [span for span in spans if gaps.covers(span.interval) and is_closed(span, need.now)]
        older = [span for span in whole if span.interval.end <= first]
        newer = [span for span in whole if span.interval.start > last]
        older = [span for span in older if not series_context.has_traded(span)]
        if len(newer) > len(spans) * _MOST_AT_END:
            newer = []
        for span in (*older, *newer):
            series_context.skip(span.interval)

    def _apply_earlier_bars(self, chunk: Chunk, response: Response) -> str:
        """Apply a response whose bars are all older than the chunk: a statement of emptiness."""
        if response.lacks_newest:
            self._series_context.defer(chunk.interval)
            return "the newest are held back"
        if response.impossible.clip(chunk.interval):
            self._series_context.defer(chunk.interval)
            return "rows that are no bars"
        if self._cover_end_of_contract(chunk):
            return "only older bars: the contract's last session ends with them"
        self._record_empty(chunk, controlled=True)
        return "only older bars"

    def _cover_end_of_contract(self, chunk: Chunk) -> bool:
        """Cover the quiet end of the contract's last session; return whether that was all.

        No later bar can confirm it. Its evidence is the contract's own last day, and an earlier
        response of this chunk run that had bars, reached past the close and held none there either.
        """
        if self.was_empty:
            return False
        series_context = self._series_context
        need = self._need(chunk.interval)
        gaps, held = need.gaps(), self._state.bars
        bounds = gaps.bounds
        if bounds is None or not need.timeframe.is_intraday or len(gaps) > 1:
            return False
        span = need.grid.spans_in(bounds)[0]
        if bounds.end < span.interval.end or not held.clip(span.interval):
            return False
        day = need.calendar.day_of(span.closes_at - timedelta(microseconds=1))
        if may_be_sparse(self._series.instrument, day) or not is_closed(span, need.now):
            return False
        series_context.cover(Coverage(bars=gaps))
        return True

    def _refute(self, found: Evaluation) -> None:
        """Void the responses without bars that received bars refute; flat bars refute none."""
        series_context, timeframe = self._series_context, self._series.timeframe
        moments = timestamps(without_flat(found.bars))
        if not len(moments):
            return
        spans = session_grid(self._state.calendar, timeframe).spans_in(
            Interval(moment(moments[0]), moment(moments[-1] + 1))
        )
        keys = set() if timeframe.is_intraday else set(moments.tolist())
        sessions = [
            Interval(span.opens_at, span.closes_at)
            for span in spans
            if micros(span.interval.start) in keys
        ]
        intraday = moments if timeframe.is_intraday else None
        if self._context.evidence.refute(self._series.symbol, sessions, intraday):
            series_context.note(
                "the gateway returned bars where it had returned none: its responses without bars "
                "within a day of the refuted one no longer count"
            )

    def _record_statements(self, chunk: Chunk, found: Evaluation) -> None:
        """Record what a response with bars states about sessions without any."""
        series_context, calendar = self._series_context, self._state.calendar
        request, at = new_request(), self._context.source_session.gateway_now()
        timeframe = self._series.timeframe.value
        around: list[Span] = []
        if (bounds := found.around.bounds) is not None:
            spans = session_grid(calendar, self._series.timeframe).spans_in(bounds)
            around = [span for span in spans if found.around.covers(span.interval)]
        statements = [
            Statement(part, StatementKind.AROUND, timeframe, at, request)
            for part in runs_of(calendar, around)
        ]
        begins_at = found.begins_at
        if begins_at is not None and (
            received := series_context.requested_before(chunk, begins_at)
        ):
            statements.append(Statement(received, StatementKind.BEGINS, timeframe, at, request))
        self._context.evidence.record(self._series.symbol, statements)

    # --- responses without bars ----------------------------------------------------------------

    def _record_empty(self, chunk: Chunk, *, controlled: bool) -> None:
        """Record a response without bars, and decide how much is requested next.

        Like an empty session, a quiet part of a session with bars needs a second response. Of
        several sessions the newest is requested alone, then the rest by halves: a request that
        reaches past the gateway's oldest bar may return nothing though there are bars (grade C).
        """
        series_context = self._series_context
        self._state.answered(IntervalSet([chunk.interval]))
        need = self._need(chunk.interval)
        gaps = need.gaps()
        bounds = gaps.bounds
        if bounds is None:
            series_context.defer(chunk.interval)
            return
        spans = need.grid.spans_in(bounds)
        closed = IntervalSet(span.interval for span in spans if is_closed(span, need.now))
        rest = gaps & closed
        whole = [span for span in spans if rest.covers(span.interval)]
        pieces = rest - IntervalSet(span.interval for span in whole)
        parts = list(runs_of(need.calendar, whole))
        if need.timeframe.is_intraday:
            parts.extend(pieces)
        oldest = series_context.oldest_known()
        request, at = new_request(), self._context.source_session.gateway_now()
        statements = [
            Statement(
                part,
                StatementKind.OLDER if controlled else StatementKind.EMPTY,
                self._series.timeframe.value,
                at,
                request,
                controlled=controlled,
                reaches_past=oldest is None or part.start < oldest,
            )
            for part in parts
        ]
        self._context.evidence.record(self._series.symbol, statements)
        if pieces:
            series_context.defer_part(pieces)
        if whole:
            self._narrow(len(whole))
        else:
            series_context.defer(chunk.interval)

    def _narrow(self, sessions: int) -> None:
        """Halve what is requested next; with one session left, defer the rest to another run."""
        oldest = self._state.bars.bounds
        is_before = oldest is not None and self._chunk.interval.end <= oldest.start
        if is_before and self._series_context.is_beginning_seen:
            self._series_context.defer(self._chunk.interval)
        elif self._width is None and sessions > 1:
            self._width = 1
        elif self._width is not None and self._width > 1:
            self._width //= 2
        else:
            self._series_context.defer(self._run or self._chunk.interval)
