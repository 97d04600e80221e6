"""Confirming empty sessions: what a series still lacks after everything was requested.

Sessions without bars are judged by all statements about their symbol. If these do not suffice,
daily bars are requested: one year of them, with bars on both sides, is evidence for 250 sessions of
every timeframe. A control, a request for bars that are held, shows that the gateway did return bars
at the time when it had none for the rest. What stays open is recorded as an attempt, due when
another statement can count.

Not here: the rules (``domain.planning.empty_ranges``), chunks (``sync.engine.chunk_run``).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from ktrdr_pipelines.domain.bars import is_untraded
from ktrdr_pipelines.domain.calendars.session_grid import Span, session_grid
from ktrdr_pipelines.domain.calendars.sessions import midnight
from ktrdr_pipelines.domain.coverage import Coverage, Emptiness, ProofKind
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.chunks import ALWAYS_COUNTED, BY_THE_YEAR, Chunk, Need, plan
from ktrdr_pipelines.domain.planning.empty_ranges import (
    CONFIRM_AFTER,
    STATEMENT_DAYS,
    WITHOUT_BARS,
    Proof,
    Statement,
    StatementKind,
    Verdict,
    stated_days,
)
from ktrdr_pipelines.domain.planning.evaluation import EvaluationContext, evaluate
from ktrdr_pipelines.domain.planning.gaps import bar_lag, final_lag, first_interval_of
from ktrdr_pipelines.domain.planning.responses import Response
from ktrdr_pipelines.domain.planning.retry_schedule import AttemptKind
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import RequestRejectedError, RequestTooLongError
from ktrdr_pipelines.store.evidence import Open, new_request, runs_of
from ktrdr_pipelines.sync.engine.bar_requester import ReceivedResponse
from ktrdr_pipelines.sync.engine.context import SeriesContext
from ktrdr_pipelines.sync.engine.series_state import of_open_session

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

_TEXTS: Final = {
    Proof.UNCONFIRMED: "the gateway returned no bars once; a second response is due",
    Proof.CONTRADICTED: "the gateway returned no bars though held data speak against it; three "
    "responses on three days are needed",
}
_KINDS: Final = {
    Proof.UNCONFIRMED: AttemptKind.PROBED,
    Proof.CONTRADICTED: AttemptKind.CONTRADICTED,
}


@dataclass(frozen=True, slots=True)
class _Daily:
    """A request for daily bars: session dates from the first to the last, both included."""

    first: date
    last: date


class Confirmation:
    """Confirms as empty what one run leaves open of one series."""

    def __init__(self, series_context: SeriesContext) -> None:
        self._series_context = series_context
        self._context = series_context.context
        self._state = series_context.state
        self._series = series_context.series
        self._daily: Counter[datetime] = Counter()
        self._widest = _EVER
        self._left = IntervalSet()

    def prove_known(self) -> None:
        """Confirm what statements of other runs and timeframes prove, without any request.

        What they do not prove is requested with bars on both sides from now on.
        """
        found = self._open()
        self._cover_confirmed(found)
        empty = [one for one in found if any(said.kind in WITHOUT_BARS for said in one.statements)]
        self._state.without_bars = IntervalSet(one.span.interval for one in empty)
        self._state.unconfirmed = IntervalSet(
            one.span.interval
            for one in empty
            if self._series_context.oldest_known() is not None and not self._is_before_bars(one)
        )

    def leave_to_daily_bars(self) -> None:
        """Skip the sessions that one request for daily bars, evidence for a year, can confirm.

        These are sessions whose confirmed empty range has expired, and sessions that daily bars
        have shown to be empty although their neighbours are full; on the day that decides, the
        latter are requested themselves. Sessions that turn out to have traded are requested
        afterwards.
        """
        expired, left = self._state.confirmed_before, []
        for one in self._open():
            is_told = any(_is_daily(said) for said in one.statements)
            is_early = (
                one.verdict.proof is Proof.CONTRADICTED
                and len(stated_days(one.statements)) < STATEMENT_DAYS - 1
            )
            if (is_told and is_early) or expired.covers(one.span.interval):
                left.append(one.span.interval)
        for interval in left:
            self._series_context.skip(interval)
        self._left = IntervalSet(left)

    async def run(self) -> bool:
        """Confirm what can be confirmed now.

        Returns: whether some sessions turned out to have bars after all, and are to be requested.

        Raises:
            GatewayError: a request failed after all retries.
        """
        series_context = self._series_context
        await series_context.commits.flush()
        self._cover_confirmed(self._open())
        if not self._open() and not self._pieces():
            return False
        resumed = False
        async with self._context.evidence.of(self._series.symbol).lock:
            oldest = series_context.oldest_known()
            before = [one for one in self._open() if oldest is None or one.span.closes_at <= oldest]
            if before and not await series_context.learn_beginning(ask=False):
                is_stated = any(one.statements for one in before)
                await series_context.learn_beginning(ask=is_stated)
            self._cover_confirmed(self._open())
            resumed = await self._request_daily() or self._resume_unconfirmed()
            await self._request_schedule()
            if not resumed:
                await self._control()
        self._cover_confirmed((*self._open(), *self._pieces()))
        return resumed

    def _resume_unconfirmed(self) -> bool:
        """Resume what daily bars should have proved but did not; return whether there is any."""
        today = self._context.source_session.gateway_now().date()
        empty = [
            one.span.interval
            for one in self._open()
            if self._left.covers(one.span.interval)
            and not any(_is_daily(said) and said.said_at.date() == today for said in one.statements)
        ]
        self._left = IntervalSet()
        self._state.resume(IntervalSet(empty))
        return bool(empty)

    def write_down(self) -> None:
        """Record what stays open, due when another statement can count, by this machine's clock.

        What was due in this run and got no statement is due a while later.
        """
        series_context, source_session = self._series_context, self._context.source_session
        here, there = source_session.retry_policy.clock(), source_session.gateway_now()
        groups: dict[tuple[Proof, datetime], list[Interval]] = defaultdict(list)
        pieces = self._pieces()
        for one in (*self._open(), *pieces):
            proof, next_at, _ = one.verdict
            if proof not in _KINDS or next_at is None:
                continue
            if one in pieces and proof is Proof.CONTRADICTED:
                next_at = max(next_at, self._bars_behind(one.span))
            due = here + (next_at - there if next_at > there else CONFIRM_AFTER)
            groups[proof, due.replace(microsecond=0)].append(one.span.interval)
        for (proof, due), parts in groups.items():
            for part in IntervalSet(parts):
                series_context.failed_attempts.left_open(
                    part, _KINDS[proof], _TEXTS[proof], due_at=due
                )

    def _bars_behind(self, span: Span) -> datetime:
        """Return when the next session can have bars, so that there is evidence on both sides."""
        after = Interval(span.closes_at, span.closes_at + _MARGIN_DAYS * _DAY)
        calendar, timeframe = self._state.calendar, self._series.timeframe
        opens = (one.opens_at for one in calendar.sessions_meeting(after))
        following = next((at for at in opens if at >= span.closes_at), span.closes_at)
        return following + timeframe.length + bar_lag()

    # --- what is open --------------------------------------------------------------------------

    def _closed_gaps(self) -> IntervalSet:
        need = self._series_context.need(everything=True)
        gaps = self._state.left(need, self._context.source_session.market_now())
        return gaps - of_open_session(need, gaps)

    def _open(self) -> list[Open]:
        """Return the sessions that are missing as a whole, with their verdicts."""
        series_context = self._series_context
        return self._context.evidence.open_sessions(
            self._series,
            self._state.calendar,
            self._closed_gaps(),
            empty=self._state.empty,
            empty_before=self._state.empty_before,
            now=self._context.source_session.gateway_now(),
            closed=self._context.calendars.told_closed(self._series.instrument),
            head=self._context.ranges.record(
                self._series.instrument, series_context.identity.contract_id
            ),
        )

    def _pieces(self) -> list[Open]:
        """Return the missing parts of sessions that have bars, with their verdicts."""
        whole = IntervalSet(one.span.interval for one in self._open())
        return self._context.evidence.open_pieces(
            self._series,
            self._state.calendar,
            self._closed_gaps() - whole,
            now=self._context.source_session.gateway_now(),
            empty_before=self._state.empty_before,
        )

    def _cover_confirmed(self, found: Iterable[Open]) -> None:
        """Cover what is confirmed empty."""
        series_context = self._series_context
        at = self._context.source_session.market_now().replace(minute=0, second=0, microsecond=0)
        proofs = [
            Emptiness(one.span.interval, at, _proof_kind(one.verdict))
            for one in found
            if one.verdict.is_proved
        ]
        if proofs:
            series_context.cover(Coverage().merged(Coverage(empty=tuple(proofs))))

    # --- daily bars ----------------------------------------------------------------------------

    async def _request_daily(self) -> bool:
        """Request daily bars around open sessions; return whether some of these have bars."""
        resumed = IntervalSet()
        for _ in range(2 * _MOST_DAILY + 64):
            block = self._undecided()
            if not block:
                break
            traded = await self._daily_block(block)
            resumed |= traded
            if traded and self._series_context.oldest_known() is not None:
                oldest = self._series_context.oldest_known()
                if any(one.span.closes_at <= oldest for one in block if oldest):
                    break  # there are older bars: they are requested before anything older
            await self._series_context.learn_beginning(ask=False)
            self._cover_confirmed(self._open())
        if resumed:
            self._state.resume(resumed)
        return bool(resumed)

    def _undecided(self) -> list[Open]:
        """Return the newest open sessions that one request for daily bars can cover."""
        chosen: list[Open] = []
        for one in reversed(self._open()):
            if not self._is_worth_requesting(one):
                continue
            if chosen and chosen[0].span.closes_at - one.span.opens_at > self._widest:
                break
            chosen.append(one)
        return chosen

    def _is_worth_requesting(self, one: Open) -> bool:
        """Return whether daily bars can change what is known of a session."""
        received = self._daily[one.span.opens_at]
        if one.verdict.is_proved:
            return False
        kinds = Counter(said.kind for said in one.statements)
        if kinds[StatementKind.TRADED]:
            return False
        if self._is_before_bars(one):
            is_exhausted = received == _MOST_DAILY and not kinds[StatementKind.BEGINS]
            return received <= _MOST_DAILY and not is_exhausted
        if one.verdict.proof is Proof.CONTRADICTED:
            return not received
        is_told = bool(one.statements) or self._series_context.was_skipped(one.span.interval)
        return is_told and received < _MOST_DAILY

    def _is_before_bars(self, one: Open) -> bool:
        """Return whether a session lies before the oldest bar of the series."""
        oldest = self._series_context.oldest_known()
        return oldest is not None and one.span.closes_at <= oldest

    def _daily_chunk(self, wanted: _Daily) -> Chunk:
        """Return the request for the daily bars of some session dates."""
        calendar, now = self._state.calendar, self._context.source_session.now()
        interval = Interval(midnight(wanted.first), midnight(wanted.last + _DAY))
        spans = session_grid(calendar, Timeframe.D1).spans_in(interval)
        closes_at = spans[-1].closes_at
        ends_at = min(max(calendar.last_second_of(closes_at), closes_at), now)
        most = self._context.widths.most(Timeframe.D1)
        years = -(-(wanted.last - wanted.first).days // 364)
        duration = f"{len(spans)} D" if _may_count(len(spans), most) else f"{years} Y"
        return Chunk(interval, ends_at, duration, len(spans))

    async def _request_days(self, block: Sequence[Open], chunk: Chunk) -> ReceivedResponse | None:
        """Request daily bars; None if narrower requests are needed, which is then recorded."""
        series_context, widths = self._series_context, self._context.widths
        try:
            return await series_context.requester.daily(chunk.ends_at, chunk.duration)
        except RequestRejectedError as error:
            is_counted = chunk.duration.endswith("D")
            is_long = is_counted and isinstance(error, RequestTooLongError)
            if is_long and widths.narrow(Timeframe.D1, chunk.sessions, refused=chunk.duration):
                series_context.note(f"{error}; daily bars are requested by the year from now on")
            elif is_counted or chunk.duration == "1 Y":
                raise
            else:
                self._widest = _BLOCK
            for one in block:
                self._daily[one.span.opens_at] -= 1
            return None

    async def _daily_block(self, block: Sequence[Open]) -> IntervalSet:
        """Request daily bars around some sessions; return those of them that have bars."""
        series_context, calendar = self._series_context, self._state.calendar
        attempts = max(self._daily[one.span.opens_at] for one in block)
        if self._series.timeframe is Timeframe.D1 and not self._is_before_bars(block[0]):
            attempts += 1  # its own request was the first
        for one in block:
            self._daily[one.span.opens_at] += 1
        chunk = self._daily_chunk(self._days_around(block, attempts))
        received = await self._request_days(block, chunk)
        if received is None:
            return IntervalSet()
        at, request = self._context.source_session.gateway_now(), new_request()
        if not isinstance(received.response, Response):
            series_context.requester.record(received, "no daily bars")
            self._record_empty(block, at, request)
            return IntervalSet()
        spans = session_grid(calendar, Timeframe.D1).spans_in(chunk.interval)
        impossible = received.response.impossible
        context = EvaluationContext(
            chunk,
            calendar,
            Timeframe.D1,
            self._context.source_session.now(),
            impossible=impossible,
        )
        found = evaluate(context, received.response.bars, received.response.reach)
        series_context.requester.record(
            received, f"{found.bars.num_rows} daily bars around empty sessions"
        )
        daily = Series(self._series.instrument, Timeframe.D1)
        self._context.evidence.saw_bars(daily, at)
        has_trades = pa.array(~is_untraded(found.bars))
        traded = set(pc.unique(found.bars.filter(has_trades)["session_date"]).to_pylist())
        refuted = [
            Interval(span.opens_at, span.closes_at)
            for span in spans
            if span.interval.start.date() in traded
        ]
        self._context.evidence.refute(self._series.symbol, refuted)
        statements = [
            Statement(part, StatementKind.AROUND, Timeframe.D1.value, at, request)
            for part in runs_of(
                calendar, (span for span in spans if found.around.covers(span.interval))
            )
        ]
        if found.begins_at is not None:
            began = next((span for span in spans if found.begins_at in span.interval), None)
            if began is not None and spans[0].opens_at < began.opens_at:
                requested = Interval(spans[0].opens_at, began.opens_at)
                statements.append(
                    Statement(requested, StatementKind.BEGINS, Timeframe.D1.value, at, request)
                )
        newest = received.response.bars["session_date"][-1].as_py()
        self._record_empty(
            [
                one
                for one in block
                if newest < min(days := series_context.days_of(one.span))
                and not impossible.clip(Interval(midnight(min(days)), midnight(max(days) + _DAY)))
            ],
            at,
            request,
            controlled=True,
        )
        with_bars = [one for one in block if series_context.days_of(one.span) & traded]
        missing = {day for one in with_bars for day in series_context.days_of(one.span)}
        statements.extend(
            Statement(part, StatementKind.TRADED, Timeframe.D1.value, at, request)
            for part in runs_of(
                calendar,
                (span for span in spans if span.interval.start.date() in traded & missing),
            )
        )
        self._context.evidence.record(self._series.symbol, statements)
        return IntervalSet(one.span.interval for one in with_bars)

    def _record_empty(
        self, block: Sequence[Open], at: datetime, request: str, *, controlled: bool = False
    ) -> None:
        """Record that a response had no daily bars of some sessions.

        Args:
            controlled: the response had older bars, which are a control.
        """
        series_context = self._series_context
        if not block:
            return
        oldest = series_context.oldest_known()
        spans = sorted((one.span for one in block), key=lambda span: span.opens_at)
        self._context.evidence.record(
            self._series.symbol,
            [
                Statement(
                    part,
                    StatementKind.OLDER if controlled else StatementKind.EMPTY,
                    Timeframe.D1.value,
                    at,
                    request,
                    controlled=controlled,
                    reaches_past=oldest is None or part.start < oldest,
                )
                for part in runs_of(self._state.calendar, spans)
            ],
        )

    def _days_around(self, block: Sequence[Open], attempts: int) -> _Daily:
        """Return the session dates to request: the block, and sessions with bars around it.

        Before the oldest bar, the first request is for the block alone: a gateway that returns too
        little would return bars of it. Only later requests reach past the oldest bar, to show where
        their response begins. A second request reaches a session further on either side, so that it
        is not identical to the first.
        """
        series_context, calendar = self._series_context, self._state.calendar
        first = min(min(series_context.days_of(one.span)) for one in block)
        last = max(max(series_context.days_of(one.span)) for one in block)
        held = sorted(self._context.store.rows_per_session(self._series))
        before = [day for day in held if first - _MARGIN_DAYS * _DAY <= day < first]
        after = [day for day in held if last < day <= last + _MARGIN_DAYS * _DAY]
        older = [one.day for one in calendar.sessions(first - _MARGIN_DAYS * _DAY, first)]
        today = calendar.day_of(self._context.source_session.now())
        newer = [
            one.day
            for one in calendar.sessions(last + _DAY, last + (_MARGIN_DAYS + 7) * _DAY)
            if one.day <= today
        ]
        if self._is_before_bars(block[0]):
            oldest = series_context.oldest_known()
            if not attempts or oldest is None:
                return _Daily(first, last)
            began = calendar.day_of(oldest)
            over = calendar.sessions(began, began + _MARGIN_DAYS * _DAY)
            return _Daily(first, over[min(attempts, len(over) - 1)].day)
        start = before[-1] if before else older[0] if older else first
        end = after[0] if after else newer[-1] if newer else last
        if attempts:
            later = [day for day in newer if day > end]
            end = later[min(attempts, len(later)) - 1] if later else end
            further = calendar.sessions(start - _MARGIN_DAYS * _DAY, start)
            start = further[-min(attempts, len(further))].day if further else start
        return _Daily(start, end)

    # --- schedule and control ------------------------------------------------------------------

    async def _request_schedule(self) -> None:
        """Request the schedule of the contract if a day is empty among full ones."""
        series_context = self._series_context
        for one in reversed(self._open()):
            kinds = {said.kind for said in one.statements}
            is_puzzling = one.verdict.proof is Proof.CONTRADICTED and StatementKind.AROUND in kinds
            if is_puzzling and StatementKind.TRADED not in kinds:
                await series_context.learn_sessions(max(series_context.days_of(one.span)))
                return

    async def _control(self) -> None:
        """Request bars that are held, so that responses without bars can count."""
        today = self._context.source_session.gateway_now().date()
        waiting = {
            said.timeframe
            for one in (*self._open(), *self._pieces())
            if one.verdict.proof is not Proof.CONTRADICTED
            or today not in stated_days(one.statements)
            for said in one.statements
            if said.kind is StatementKind.EMPTY and not said.controlled
        }
        if self._series.timeframe.value in waiting:
            await self._control_of(self._series)
        daily = Series(self._series.instrument, Timeframe.D1)
        if daily != self._series and Timeframe.D1.value in waiting:
            await self._control_of(daily)

    async def _control_of(self, series: Series) -> None:
        """Request one held session of a series; without bars, statements around it are voided."""
        series_context, calendar = self._series_context, self._state.calendar
        await series_context.commits.flush()
        now = self._context.source_session.now()
        held = sorted(self._context.store.rows_per_session(series))
        day = held[len(held) // 2] if held else self._newest_day()
        if day is None:
            return
        interval = first_interval_of(calendar, series.timeframe, day)
        need = Need(calendar, series.timeframe, IntervalSet([interval]), IntervalSet(), now, 1)
        chunks = plan(need)
        if not chunks:
            return
        received = await series_context.requester.of(series, chunks[0].ends_at, chunks[0].duration)
        at = self._context.source_session.gateway_now()
        if isinstance(received.response, Response):
            series_context.requester.record(received, "a control: bars came")
            self._context.evidence.saw_bars(series, at)
            return
        if not held:
            series_context.requester.record(
                received, "a control: no bars of the newest session either"
            )
            return
        series_context.requester.record(received, "a control: no bars for a session that is held")
        if self._context.evidence.void_around(at):
            series_context.note(
                f"the gateway returned no bars of {series} for {day} although the store has some: "
                "its responses without bars within a day of this one no longer count"
            )

    def _newest_day(self) -> date | None:
        """Return the newest session date that has closed, as a control where nothing is held."""
        now = self._context.source_session.now()
        calendar = self._state.calendar
        today = calendar.day_of(now)
        closed = [
            one.day
            for one in calendar.sessions(today - _MARGIN_DAYS * _DAY, today + _DAY)
            if one.closes_at + final_lag() <= now
        ]
        return closed[-1] if closed else None


def _is_daily(said: Statement) -> bool:
    """Return whether a response had daily bars on both sides of a session but none of it."""
    return said.kind is StatementKind.AROUND and said.timeframe == Timeframe.D1


def _proof_kind(verdict: Verdict) -> ProofKind:
    if verdict.proof is Proof.DISPUTED:
        return ProofKind.DISPUTED
    return ProofKind.VOIDABLE if verdict.is_voidable else ProofKind.PLAIN


def _may_count(sessions: int, most: int | None) -> bool:
    """Return whether so many daily bars may be requested by count (``D``) and not by year.

    Args:
        most: the most sessions that the gateway is known to accept, None if not known.
    """
    if most == BY_THE_YEAR:
        return sessions <= ALWAYS_COUNTED[Timeframe.D1]
    return sessions <= min(most or _MOST_IN_DAYS, _MOST_IN_DAYS)
