"""The work on one chunk of a series: what is requested next, and what each response means.

It is pure: it reads the series state and returns a ``StateChange`` for each response, which the
series run applies before it has the next part of the chunk requested.

Not here: sending requests (``sync.engine.bar_requester``), which bars a response keeps and covers
(``domain.planning.evaluation``), confirming empty sessions (``sync.engine.confirmation``).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from ktrdr_pipelines.domain.bars import moment, timestamps
from ktrdr_pipelines.domain.calendars.session_grid import session_grid
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.domain.planning.chunks import Chunk, Need, is_opening, newest_run, plan
from ktrdr_pipelines.domain.planning.empty_ranges import ResponseStatements, Statement, runs_of
from ktrdr_pipelines.domain.planning.evaluation import Evaluation, EvaluationContext, evaluate
from ktrdr_pipelines.domain.planning.gaps import bar_lag, is_closed
from ktrdr_pipelines.domain.planning.responses import Response
from ktrdr_pipelines.domain.planning.sparse_sessions import may_be_sparse
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.sync.engine.series_state import SeriesState, StateChange

_MOST_AT_END = 0.4
"""Share of a chunk's sessions that may be missing at its end without its being requested again."""

_SPARE_REQUESTS = 8
"""Requests for one chunk beside those that halving it takes: a gateway that returns only a little
of each requested range is not followed to the end in one run."""


class ChunkRun:
    """The work on one chunk; made and used once.

    What a response leaves open is requested before the next chunk, newest first, so that a window
    is finished soon. ``part`` is what is requested now; ``was_empty`` says that no response had a
    bar; ``most_requests`` is how many are worth sending in one run; ``taken`` is the chunk before
    it was extended over a boundary.

    Args:
        state: the state of the series, which is only read here.
        chunk: what is requested, as a whole at first and then in parts.
        need: what planning needs of the chunk's interval.
        taken: the chunk before it was extended; None if it was not.
    """

    def __init__(
        self, state: SeriesState, chunk: Chunk, need: Need, *, taken: Chunk | None = None
    ) -> None:
        self._state, self._chunk = state, chunk
        self.taken = chunk if taken is None else taken
        self._width: int | None = None
        self._run: Interval | None = None
        self._is_direct = False
        self._is_alone = False
        self._is_opening = is_opening(need, chunk)
        self.most_requests = _SPARE_REQUESTS + 2 * chunk.sessions.bit_length()
        self.part = chunk
        self._requested = need.gaps(chunk.interval)
        self.was_empty = True

    # --- what is requested next ----------------------------------------------------------------

    def take_next_part(self, need: Need) -> bool:
        """Set ``part`` to the newest that is open, no wider than the last responses allow.

        The quiet opening of the oldest session is left to the request for the session before it,
        unless a request for several parts left all of them open.

        Args:
            need: what planning needs of the chunk's interval now.

        Returns: whether there is one.
        """
        if self._chunk.now_until is not None:
            # Where the chunk ends inside a bar that was not over when it was planned, the rest of
            # that bar is no gap just because time has passed.
            interval = self._chunk.interval
            last = need.grid.spans_in(interval)[-1]
            if interval.end < last.interval.end:
                need = replace(need, now=min(need.now, interval.end + bar_lag()))
        newest = newest_run(need)
        if newest is None:
            return False
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
        part = plan(replace(need, wanted=need.wanted.clip(newest)))[0]
        if is_opening(need, part) and not (self._is_opening or self._is_alone):
            return False
        self.part = part
        self._requested = need.gaps(part.interval)
        return True

    # --- responses with bars -------------------------------------------------------------------

    @staticmethod
    def evaluate(part: Chunk, need: Need, response: Response) -> Evaluation:
        """Return which bars of a response are kept and what they cover.

        Args:
            part: what was requested.
            need: what planning needs of its interval, as of when it was requested.
            response: the response.
        """
        context = EvaluationContext(
            part,
            need.calendar,
            need.timeframe,
            need.now,
            holds_back=response.lacks_newest,
            impossible=response.impossible,
        )
        return evaluate(context, response.bars, response.reach)

    def with_bars(
        self, part: Chunk, found: Evaluation, response: Response, at: datetime
    ) -> StateChange:
        """Return what a response with bars proves: bars, coverage, and statements about the rest.

        Args:
            part: what was requested.
            found: the evaluation of the response.
            response: the response.
            at: the gateway's time.
        """
        self.was_empty = False
        calendar, timeframe = self._state.calendar, self._state.series.timeframe
        said = ResponseStatements(timeframe.value, at)
        statements: list[Statement] = []
        if (bounds := found.around.bounds) is not None:
            spans = session_grid(calendar, timeframe).spans_in(bounds)
            around = (span for span in spans if found.around.covers(span.interval))
            statements += said.around(calendar, around)
        if found.begins_at is not None:
            statements += said.begins(self._before(part, found.begins_at))
        requested = IntervalSet([part.interval])
        return StateChange(
            coverage=Coverage(bars=found.covered),
            bars=found.bars,
            implausible=response.implausible,
            statements=tuple(statements),
            answered=IntervalSet() if response.lacks_newest else requested - response.impossible,
        )

    def left_open(
        self,
        part: Chunk,
        found: Evaluation,
        response: Response,
        *,
        before: IntervalSet,
        need: Need,
        traded: Sequence[Interval],
    ) -> StateChange:
        """Return what a response with bars leaves to others, and decide how the rest is requested.

        Args:
            part: what was requested.
            found: the evaluation of the response.
            response: the response, whose bars have been applied.
            before: the gaps of the part before the response, as of when it was requested.
            need: what planning needs of the part's interval since, as of the same moment.
            traded: the sessions, in real time, that daily bars show to have traded.
        """
        gaps = need.gaps()
        if is_opening(need, part) and gaps == before:
            # A request over two sessions left the opening open: it is requested alone, because
            # where data begin there is no bar on its other side.
            self._is_direct = True
        skipped = self._outer_sessions(part, need, response, traded)
        deferred, left = found.around, gaps - found.around - skipped
        is_reduced = bool(self._requested.clip(part.interval) - before)
        if not self._is_direct and left == before and not is_reduced:
            # The response covered nothing, and no other one did meanwhile: each open part is
            # requested alone, and one that was requested alone already is left to another run.
            if len(left) > 1:
                self._is_alone = True
            else:
                deferred |= IntervalSet([part.interval])
        return StateChange(deferred=deferred, skipped=skipped)

    def widen_after_bars(self, need_now: Callable[[], Need]) -> None:
        """Request half of the rest at once, if bars came after a wider request had none.

        Args:
            need_now: returns what planning needs of the chunk's interval now.
        """
        if self._width is not None:
            need = need_now()
            bounds = need.gaps().bounds
            left = len(need.grid.meeting(bounds)) if bounds else 0
            self._width = max(1, left // 2)

    def _before(self, part: Chunk, begins_at: datetime) -> Interval | None:
        """Return the requested interval before the first bar of a response, in real time.

        None for weeks: a weekly bar does not show on which day of its week the data begin.
        """
        timeframe = self._state.series.timeframe
        if timeframe is Timeframe.W1:
            return None
        spans = session_grid(self._state.calendar, timeframe).spans_in(part.interval)
        first = spans[0].opens_at if spans else part.interval.start
        if timeframe.is_intraday:
            return between(first, begins_at)
        began = next((span for span in spans if begins_at in span.interval), None)
        return between(first, began.opens_at) if began else None

    @staticmethod
    def _outer_sessions(
        part: Chunk, need: Need, response: Response, traded: Sequence[Interval]
    ) -> IntervalSet:
        """Return the sessions without bars at the ends of a part, which are left to daily bars.

        Every third chunk of a thinly traded instrument has such an end; one request for daily bars
        is evidence for a year of them. If most of the newest sessions are missing, or daily bars
        have shown trades in the oldest, the response was cut short and they are requested at once.
        """
        if part.sessions == 1:
            return IntervalSet()
        keys = timestamps(response.bars)
        first, last = moment(keys[0]), moment(keys[-1])
        spans = need.grid.spans_in(part.interval)
        gaps = need.gaps() - response.impossible
        whole = [span for span in spans if gaps.covers(span.interval) and is_closed(span, need.now)]
        older = [span for span in whole if span.interval.end <= first]
        newer = [span for span in whole if span.interval.start > last]
        older = [
            span for span in older if not any(one.overlaps(span.open_interval) for one in traded)
        ]
        if len(newer) > len(spans) * _MOST_AT_END:
            newer = []
        return IntervalSet(span.interval for span in (*older, *newer))

    # --- responses without bars of the part ----------------------------------------------------

    def with_earlier_bars(
        self, part: Chunk, need: Need, response: Response, *, at: datetime, is_beginning_seen: bool
    ) -> tuple[StateChange, str]:
        """Return what a response of older bars alone proves, and a short description of it.

        It is a statement of emptiness. Arguments as for ``without_bars``.
        """
        requested = IntervalSet([part.interval])
        if response.lacks_newest:
            return StateChange(deferred=requested), "the newest are held back"
        if response.impossible.clip(part.interval):
            return StateChange(deferred=requested), "rows that are no bars"
        end = self._end_of_contract(need)
        if end:
            change = StateChange(coverage=Coverage(bars=end))
            return change, "only older bars: the contract's last session ends with them"
        change = self.without_bars(
            part, need, at=at, controlled=True, is_beginning_seen=is_beginning_seen
        )
        return change, "only older bars"

    def _end_of_contract(self, need: Need) -> IntervalSet:
        """Return the quiet end of the contract's last session, if it is all that is missing.

        No later bar can confirm it. Its evidence is the contract's own last day, and an earlier
        response of this chunk run that had bars, reached past the close and held none there either.
        """
        gaps = need.gaps()
        bounds = gaps.bounds
        if self.was_empty or bounds is None or not need.timeframe.is_intraday or len(gaps) > 1:
            return IntervalSet()
        span = need.grid.spans_in(bounds)[0]
        if bounds.end < span.interval.end or not self._state.bars.clip(span.interval):
            return IntervalSet()
        day = need.calendar.day_of(span.closes_at - timedelta(microseconds=1))
        if may_be_sparse(self._state.series.instrument, day) or not is_closed(span, need.now):
            return IntervalSet()
        return gaps

    def without_bars(
        self,
        part: Chunk,
        need: Need,
        *,
        at: datetime,
        is_beginning_seen: bool,
        controlled: bool = False,
    ) -> StateChange:
        """Return what a response without bars states, and decide how much is requested next.

        Like an empty session, a quiet part of a session with bars needs a second response. Of
        several sessions the newest is requested alone, then the rest by halves: a request that
        reaches past the gateway's oldest bar may return nothing though there are bars (grade C).

        Args:
            part: what was requested.
            need: what planning needs of the part's interval, as of when it was requested.
            at: the gateway's time.
            is_beginning_seen: a response to a request from before the oldest bar began at it.
            controlled: the response had older bars, which are a control.
        """
        requested = IntervalSet([part.interval])
        gaps = need.gaps()
        bounds = gaps.bounds
        if bounds is None:
            return StateChange(answered=requested, deferred=requested)
        spans = need.grid.spans_in(bounds)
        closed = IntervalSet(span.interval for span in spans if is_closed(span, need.now))
        rest = gaps & closed
        whole = [span for span in spans if rest.covers(span.interval)]
        pieces = rest - IntervalSet(span.interval for span in whole)
        parts = list(runs_of(need.calendar, whole))
        if need.timeframe.is_intraday:
            parts.extend(pieces)
        said = ResponseStatements(need.timeframe.value, at)
        statements = said.without_bars(parts, oldest=self._state.oldest_open, controlled=controlled)
        left = self._narrow(len(whole), is_beginning_seen=is_beginning_seen) if whole else requested
        return StateChange(statements=tuple(statements), answered=requested, deferred=pieces | left)

    def _narrow(self, sessions: int, *, is_beginning_seen: bool) -> IntervalSet:
        """Halve what is requested next; return what to defer where one session is left."""
        oldest = self._state.bars.bounds
        is_before = oldest is not None and self._chunk.interval.end <= oldest.start
        if is_before and is_beginning_seen:
            return IntervalSet([self._chunk.interval])
        if self._width is None and sessions > 1:
            self._width = 1
        elif self._width is not None and self._width > 1:
            self._width //= 2
        else:
            return IntervalSet([self._run or self._chunk.interval])
        return IntervalSet()
