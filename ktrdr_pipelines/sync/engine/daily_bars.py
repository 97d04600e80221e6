"""Daily bars as evidence: one request for years of them, with bars on both sides of what is open.

Not here: when they are requested (``sync.engine.confirmation``), the rule
(``domain.planning.empty_ranges``).
"""

from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from datetime import date, datetime, timedelta
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from ktrdr_pipelines.domain.bars import is_untraded
from ktrdr_pipelines.domain.calendars.session_grid import session_grid
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar, midnight
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.chunks import ALWAYS_COUNTED, BY_THE_YEAR, Chunk
from ktrdr_pipelines.domain.planning.empty_ranges import (
    Proof,
    ResponseStatements,
    Statement,
    StatementKind,
    runs_of,
)
from ktrdr_pipelines.domain.planning.evaluation import EvaluationContext, evaluate
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import RequestRejectedError, RequestTooLongError
from ktrdr_pipelines.store.evidence import Evidence, Open
from ktrdr_pipelines.sync.engine.bar_requester import BarRequester, ReceivedResponse
from ktrdr_pipelines.sync.engine.open_ranges import OpenRanges
from ktrdr_pipelines.sync.engine.series_state import SeriesState, StateChange

_DAY = timedelta(days=1)
_BLOCK: Final = timedelta(days=330)
"""Largest distance of the sessions that one request for daily bars covers, on a gateway that
refuses more than a year: together with sessions that have bars on both sides they fit into one."""

_EVER: Final = timedelta(days=60 * 365)
"""The same on a gateway that accepts more, as IB's current table of durations states: one request
for daily bars then covers all years."""

_MARGIN_DAYS: Final = 14
"""Days on either side of a block in which a session with bars is searched."""

_MOST_DAILY: Final = 2
"""Requests for daily bars about one session in one run: two statements are enough."""

_MOST_IN_DAYS: Final = 60


class DailyBars:
    """Requests daily bars about the open sessions of one series.

    Args:
        state: the state of the series, which is only read here.
        open_ranges: what is open.
        requester: sends the requests.
        evidence: the statements, and which dates are held.
    """

    def __init__(
        self,
        state: SeriesState,
        open_ranges: OpenRanges,
        requester: BarRequester,
        evidence: Evidence,
    ) -> None:
        self._state, self._open_ranges = state, open_ranges
        self._requester, self._evidence = requester, evidence
        self._series = state.series
        self._requested: Counter[datetime] = Counter()
        self._widest = _EVER

    async def request(self) -> AsyncGenerator[StateChange]:
        """Request daily bars around open sessions, and yield what they state.

        The last change resumes the sessions that turned out to have bars.

        Raises:
            GatewayError: a request failed after all retries.
        """
        with_bars = IntervalSet()
        for _ in range(2 * _MOST_DAILY + 64):
            block = self._undecided()
            if not block:
                break
            change, found = await self._request_block(block)
            yield change
            with_bars |= found
            if found and any(self._state.is_before_bars(one.span) for one in block):
                break  # there are older bars: they are requested before anything older
            yield StateChange(is_about_beginning=True)
            yield self._open_ranges.confirmed(self._open_ranges.sessions())
        if with_bars:
            yield StateChange(resumed=with_bars)

    def _undecided(self) -> list[Open]:
        """Return the newest open sessions that one request for daily bars can cover."""
        chosen: list[Open] = []
        for one in reversed(self._open_ranges.sessions()):
            if not self._is_worth_requesting(one):
                continue
            if chosen and chosen[0].span.closes_at - one.span.opens_at > self._widest:
                break
            chosen.append(one)
        return chosen

    def _is_worth_requesting(self, one: Open) -> bool:
        """Return whether daily bars can change what is known of a session."""
        received = self._requested[one.span.opens_at]
        kinds = Counter(said.kind for said in one.statements)
        if one.verdict.is_proved or kinds[StatementKind.TRADED]:
            return False
        if self._state.is_before_bars(one.span):
            is_exhausted = received == _MOST_DAILY and not kinds[StatementKind.BEGINS]
            return received <= _MOST_DAILY and not is_exhausted
        if one.verdict.proof is Proof.CONTRADICTED:
            return not received
        is_left = self._state.is_left_to_daily_bars(one.span.interval)
        return (bool(one.statements) or is_left) and received < _MOST_DAILY

    async def _request_block(self, block: Sequence[Open]) -> tuple[StateChange, IntervalSet]:
        """Request daily bars around some sessions.

        Returns: what they state, and which of the sessions have bars.
        """
        calendar = self._state.calendar
        attempts = max(self._requested[one.span.opens_at] for one in block)
        if self._series.timeframe is Timeframe.D1 and not self._state.is_before_bars(block[0].span):
            attempts += 1  # its own request was the first
        for one in block:
            self._requested[one.span.opens_at] += 1
        chunk = _chunk(calendar, *self._days_around(block, attempts), self._requester)
        received = await self._send(block, chunk)
        if received is None:
            return StateChange(), IntervalSet()
        said = ResponseStatements(Timeframe.D1.value, self._requester.source_session.gateway_now())
        response = received.with_bars
        if response is None:
            self._requester.record(received, "no daily bars")
            return StateChange(statements=self._without_bars(said, block)), IntervalSet()
        spans = session_grid(calendar, Timeframe.D1).spans_in(chunk.interval)
        now, impossible = self._requester.source_session.now(), response.impossible
        context = EvaluationContext(chunk, calendar, Timeframe.D1, now, impossible=impossible)
        found = evaluate(context, response.bars, response.reach)
        self._requester.record(received, f"{found.bars.num_rows} daily bars around empty sessions")
        self._evidence.saw_bars(self._series.symbol, Timeframe.D1, said.said_at)
        has_trades = pa.array(~is_untraded(found.bars))
        traded = set(pc.unique(found.bars.filter(has_trades)["session_date"]).to_pylist())
        self._evidence.refute(
            self._series.symbol,
            [span.open_interval for span in spans if span.interval.start.date() in traded],
        )
        statements = said.around(
            calendar, (span for span in spans if found.around.covers(span.interval))
        )
        if found.begins_at is not None:
            began = next((span for span in spans if found.begins_at in span.interval), None)
            if began is not None and spans[0].opens_at < began.opens_at:
                statements += said.begins(Interval(spans[0].opens_at, began.opens_at))
        newest = response.bars["session_date"][-1].as_py()
        days_of = {id(one): calendar.days_meeting(one.span.open_interval) for one in block}
        newer = [
            one
            for one in block
            if newest < min(days := days_of[id(one)]) and _is_read(impossible, days)
        ]
        with_bars = [one for one in block if days_of[id(one)] & traded]
        missing = {day for one in with_bars for day in days_of[id(one)]}
        statements += said.traded(
            calendar, (span for span in spans if span.interval.start.date() in traded & missing)
        )
        change = StateChange(
            statements=(*self._without_bars(said, newer, controlled=True), *statements)
        )
        return change, IntervalSet(one.span.interval for one in with_bars)

    def _without_bars(
        self, said: ResponseStatements, block: Sequence[Open], *, controlled: bool = False
    ) -> tuple[Statement, ...]:
        """Return that a response had no daily bars of some sessions; older ones are a control."""
        spans = sorted((one.span for one in block), key=lambda span: span.opens_at)
        parts = runs_of(self._state.calendar, spans)
        oldest = self._state.oldest_open
        return tuple(said.without_bars(parts, oldest=oldest, controlled=controlled))

    async def _send(self, block: Sequence[Open], chunk: Chunk) -> ReceivedResponse | None:
        """Request daily bars; None if narrower requests are needed, which is then recorded."""
        requester, widths = self._requester, self._requester.widths
        try:
            return await requester.bars_of(Timeframe.D1, chunk.ends_at, chunk.duration)
        except RequestRejectedError as error:
            is_counted = chunk.duration.endswith("D")
            is_long = is_counted and isinstance(error, RequestTooLongError)
            if is_long and widths.narrow(Timeframe.D1, chunk.sessions, refused=chunk.duration):
                requester.note(f"{error}; daily bars are requested by the year from now on")
            elif is_counted or chunk.duration == "1 Y":
                raise
            else:
                self._widest = _BLOCK
            for one in block:
                self._requested[one.span.opens_at] -= 1
            return None

    def _days_around(self, block: Sequence[Open], attempts: int) -> tuple[date, date]:
        """Return the session dates to request: the block, and sessions with bars around it.

        Before the oldest bar, the first request is for the block alone: a gateway that returns too
        little would return bars of it. Only later requests reach past the oldest bar, to show where
        their response begins. A second request reaches a session further on either side, so that it
        is not identical to the first.
        """
        calendar = self._state.calendar
        margin = _MARGIN_DAYS * _DAY
        first = min(min(calendar.days_meeting(one.span.open_interval)) for one in block)
        last = max(max(calendar.days_meeting(one.span.open_interval)) for one in block)
        oldest = self._state.oldest_open
        if self._state.is_before_bars(block[0].span) and oldest is not None:
            if not attempts:
                return first, last
            began = calendar.day_of(oldest)
            over = calendar.sessions(began, began + margin)
            return first, over[min(attempts, len(over) - 1)].day
        held = self._evidence.held_days(self._series)
        before = [day for day in held if first - margin <= day < first]
        after = [day for day in held if last < day <= last + margin]
        older = [one.day for one in calendar.sessions(first - margin, first)]
        today = calendar.day_of(self._requester.source_session.now())
        newer = [
            one.day
            for one in calendar.sessions(last + _DAY, last + margin + 7 * _DAY)
            if one.day <= today
        ]
        start = before[-1] if before else older[0] if older else first
        end = after[0] if after else newer[-1] if newer else last
        if attempts:
            later = [day for day in newer if day > end]
            end = later[min(attempts, len(later)) - 1] if later else end
            further = calendar.sessions(start - margin, start)
            start = further[-min(attempts, len(further))].day if further else start
        return start, end


def _chunk(calendar: SessionCalendar, first: date, last: date, requester: BarRequester) -> Chunk:
    """Return the request for the daily bars of session dates, both included."""
    interval = Interval(midnight(first), midnight(last + _DAY))
    spans = session_grid(calendar, Timeframe.D1).spans_in(interval)
    closes_at = spans[-1].closes_at
    now = requester.source_session.now()
    ends_at = min(max(calendar.last_second_of(closes_at), closes_at), now)
    most = requester.widths.most(Timeframe.D1)
    if most == BY_THE_YEAR:
        may_count = len(spans) <= ALWAYS_COUNTED[Timeframe.D1]
    else:
        may_count = len(spans) <= min(most or _MOST_IN_DAYS, _MOST_IN_DAYS)
    years = -(-(last - first).days // 364)
    duration = f"{len(spans)} D" if may_count else f"{years} Y"
    return Chunk(interval, ends_at, duration, len(spans))


def _is_read(impossible: IntervalSet, days: set[date]) -> bool:
    """Return whether a response had no impossible row on session dates."""
    return not impossible.clip(Interval(midnight(min(days)), midnight(max(days) + _DAY)))
