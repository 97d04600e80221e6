"""Confirming emptiness: what a series lacks as whole sessions after everything was requested.

Sessions that no bar came for are judged by all statements of their symbol. Where these do not
suffice, daily bars are requested: one year of them, with bars on both sides, speaks for 250
sessions of every timeframe. A control, a request for bars that are held, shows that the gateway
returned bars when it had none for the rest. What stays open is written down with the time at which
another statement can count. Not here: the rules (``domain.planning.empty_ranges``), chunks
(``sync.engine.chunk_run``).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from ktrdr_pipelines.domain.bars import is_untraded
from ktrdr_pipelines.domain.calendars.sessions import Span, expected_spans, midnight
from ktrdr_pipelines.domain.coverage import Coverage, Emptiness, ProofKind
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.chunks import ALWAYS_COUNTED, BY_THE_YEAR, Chunk, Need, plan
from ktrdr_pipelines.domain.planning.empty_ranges import (
    CONFIRM_AFTER,
    NONE_CAME,
    STATEMENT_DAYS,
    Proof,
    Statement,
    StatementKind,
    Verdict,
    stated_days,
)
from ktrdr_pipelines.domain.planning.evaluation import Question, evaluate
from ktrdr_pipelines.domain.planning.gaps import bar_lag, final_lag, first_interval_of
from ktrdr_pipelines.domain.planning.responses import Answer
from ktrdr_pipelines.domain.planning.retry_schedule import AttemptKind
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import RequestRejectedError, RequestTooLongError
from ktrdr_pipelines.store.evidence import Open, new_request, runs_of
from ktrdr_pipelines.sync.engine.bar_requester import Asked
from ktrdr_pipelines.sync.engine.chunk_run import ChunkRun
from ktrdr_pipelines.sync.engine.series_state import of_open_session

_DAY = timedelta(days=1)
_BLOCK: Final = timedelta(days=330)
"""Sessions that one request for daily bars is to speak for lie no further apart than this where a
gateway refuses more than a year: with sessions that have bars on both sides they fit into one."""

_EVER: Final = timedelta(days=60 * 365)
"""The same for a gateway that does not refuse so much, as IB's current table of durations says:
one request for daily bars then speaks for all years."""

_MARGIN_DAYS: Final = 14
"""Days in which a session with bars is looked for on either side of a block."""

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
    """A request for daily bars: session dates from the first to the last, both in."""

    first: date
    last: date


class Confirmation:
    """Confirms what one run leaves open of one series."""

    def __init__(self, chunk_run: ChunkRun) -> None:
        self._chunk_run = chunk_run
        self._daily: Counter[datetime] = Counter()
        self._widest = _EVER
        self._left = IntervalSet()

    def prove_known(self) -> None:
        """Prove what statements of other runs and timeframes suffice for, at no request.

        What does not suffice is requested with bars on both sides from now on.
        """
        found = self._open()
        self._prove(found)
        empty = [one for one in found if any(said.kind in NONE_CAME for said in one.statements)]
        self._chunk_run.facts.came_empty = IntervalSet(one.span.interval for one in empty)
        self._chunk_run.facts.unconfirmed = IntervalSet(
            one.span.interval
            for one in empty
            if self._chunk_run.oldest_known() is not None and not self._is_before_bars(one)
        )

    def leave_to_daily_bars(self) -> None:
        """Leave to one request for daily bars, which speaks for a year, what it can prove.

        These are sessions whose proof of emptiness has expired, and sessions of which daily bars
        said before that they are empty though their neighbours are full; on the day that decides
        they are requested themselves. What is found to have traded is requested after it.
        """
        expired, left = self._chunk_run.facts.confirmed_before, []
        for one in self._open():
            is_told = any(_is_daily(said) for said in one.statements)
            is_early = (
                one.verdict.proof is Proof.CONTRADICTED
                and len(stated_days(one.statements)) < STATEMENT_DAYS - 1
            )
            if (is_told and is_early) or expired.covers(one.span.interval):
                left.append(one.span.interval)
        for interval in left:
            self._chunk_run.skip(interval)
        self._left = IntervalSet(left)

    async def run(self) -> bool:
        """Prove what can be proved now.

        Returns: whether something turned out to have bars after all, and is to be requested.

        Raises:
            GatewayError: a request failed after all tries.
        """
        chunk_run = self._chunk_run
        await chunk_run.commits.flush()
        self._prove(self._open())
        if not self._open() and not self._pieces():
            return False
        resumed = False
        async with chunk_run.context.evidence.of(chunk_run.series.symbol).lock:
            await self._learn_beginning()
            self._prove(self._open())
            resumed = await self._ask_daily() or self._take_back()
            await self._ask_schedule()
            if not resumed:
                await self._control()
        self._prove((*self._open(), *self._pieces()))
        return resumed

    def _take_back(self) -> bool:
        """Request what daily bars were to prove and said nothing of; say whether there is any."""
        today = self._chunk_run.context.source_session.gateway_now().date()
        empty = [
            one.span.interval
            for one in self._open()
            if self._left.covers(one.span.interval)
            and not any(_is_daily(said) and said.said_at.date() == today for said in one.statements)
        ]
        self._left = IntervalSet()
        self._chunk_run.facts.resume(IntervalSet(empty))
        return bool(empty)

    def write_down(self) -> datetime | None:
        """Record what stays open, and return when the first of it can be confirmed.

        The moment is by this machine's clock. What was due in this run and got no statement is due
        a while later.
        """
        chunk_run, source_session = self._chunk_run, self._chunk_run.context.source_session
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
                chunk_run.failed_attempts.left_open(part, _KINDS[proof], _TEXTS[proof], due_at=due)
        return min((due for _, due in groups), default=None)

    def _bars_behind(self, span: Span) -> datetime:
        """Return when the session after the end of one can have bars: both sides then speak."""
        after = Interval(span.closes_at, span.closes_at + _MARGIN_DAYS * _DAY)
        calendar, timeframe = self._chunk_run.facts.calendar, self._chunk_run.series.timeframe
        opens = (one.opens_at for one in calendar.sessions_meeting(after))
        following = next((at for at in opens if at >= span.closes_at), span.closes_at)
        return following + timeframe.length + bar_lag()

    # --- what is open --------------------------------------------------------------------------

    def _need(self) -> Need:
        return self._chunk_run.need(everything=True)

    def _closed_gaps(self) -> IntervalSet:
        need = self._need()
        gaps = self._chunk_run.facts.left(need, self._chunk_run.context.source_session.market_now())
        return gaps - of_open_session(need, gaps)

    def _open(self) -> list[Open]:
        """Judge the sessions that are missing as a whole."""
        chunk_run = self._chunk_run
        return chunk_run.context.evidence.open_sessions(
            chunk_run.series,
            chunk_run.facts.calendar,
            self._closed_gaps(),
            empty=chunk_run.facts.empty,
            empty_before=chunk_run.facts.empty_before,
            now=chunk_run.context.source_session.gateway_now(),
            closed=chunk_run.context.calendars.told_closed(chunk_run.series.instrument),
            head=chunk_run.context.ranges.record(
                chunk_run.series.instrument, chunk_run.identity.contract_id
            ),
        )

    def _pieces(self) -> list[Open]:
        """Judge the quiet parts of sessions that have bars."""
        chunk_run = self._chunk_run
        whole = IntervalSet(one.span.interval for one in self._open())
        return chunk_run.context.evidence.open_pieces(
            chunk_run.series,
            chunk_run.facts.calendar,
            self._closed_gaps() - whole,
            now=chunk_run.context.source_session.gateway_now(),
            empty_before=chunk_run.facts.empty_before,
        )

    def _prove(self, found: Iterable[Open]) -> None:
        """Cover what is proved to be empty."""
        chunk_run = self._chunk_run
        at = chunk_run.context.source_session.market_now().replace(
            minute=0, second=0, microsecond=0
        )
        proofs = [
            Emptiness(one.span.interval, at, _proof_kind(one.verdict))
            for one in found
            if one.verdict.is_proved
        ]
        if proofs:
            chunk_run.cover(Coverage().merged(Coverage(empty=tuple(proofs))))

    # --- where data begin ----------------------------------------------------------------------

    async def _learn_beginning(self) -> None:
        """Ask where the data begin if sessions before the oldest bar are open."""
        chunk_run = self._chunk_run
        oldest = chunk_run.oldest_known()
        before = [one for one in self._open() if oldest is None or one.span.closes_at <= oldest]
        if not before:
            return
        if not await chunk_run.learn_beginning(ask=False):
            is_stated = any(one.statements for one in before)
            await chunk_run.learn_beginning(ask=is_stated)

    # --- daily bars ----------------------------------------------------------------------------

    async def _ask_daily(self) -> bool:
        """Request daily bars for what they can speak for; say whether some of it has bars."""
        resumed = IntervalSet()
        for _ in range(2 * _MOST_DAILY + 64):
            block = self._undecided()
            if not block:
                break
            traded = await self._daily_block(block)
            resumed |= traded
            if traded and self._chunk_run.oldest_known() is not None:
                oldest = self._chunk_run.oldest_known()
                if any(one.span.closes_at <= oldest for one in block if oldest):
                    break  # there are older bars: they are requested before anything older
            await self._chunk_run.learn_beginning(ask=False)
            self._prove(self._open())
        if resumed:
            self._chunk_run.facts.resume(resumed)
        return bool(resumed)

    def _undecided(self) -> list[Open]:
        """Return the newest sessions that one request for daily bars can speak for."""
        chosen: list[Open] = []
        for one in reversed(self._open()):
            if not self._is_worth_asking(one):
                continue
            if chosen and chosen[0].span.closes_at - one.span.opens_at > self._widest:
                break
            chosen.append(one)
        return chosen

    def _is_worth_asking(self, one: Open) -> bool:
        """Whether daily bars can change what is known of a session."""
        asked = self._daily[one.span.opens_at]
        if one.verdict.is_proved:
            return False
        kinds = Counter(said.kind for said in one.statements)
        if kinds[StatementKind.TRADED]:
            return False
        if self._is_before_bars(one):
            is_dumb = asked == _MOST_DAILY and not kinds[StatementKind.BEGINS]
            return asked <= _MOST_DAILY and not is_dumb
        if one.verdict.proof is Proof.CONTRADICTED:
            return not asked
        is_told = bool(one.statements) or self._chunk_run.was_skipped(one.span.interval)
        return is_told and asked < _MOST_DAILY

    def _is_before_bars(self, one: Open) -> bool:
        """Whether a session lies before the oldest bar of the series."""
        oldest = self._chunk_run.oldest_known()
        return oldest is not None and one.span.closes_at <= oldest

    def _daily_chunk(self, wanted: _Daily) -> Chunk:
        """Return the request for the daily bars of some session dates."""
        calendar, now = self._chunk_run.facts.calendar, self._chunk_run.context.source_session.now()
        interval = Interval(midnight(wanted.first), midnight(wanted.last + _DAY))
        spans = expected_spans(calendar, Timeframe.D1, interval)
        closes_at = spans[-1].closes_at
        ends_at = min(max(calendar.last_second_of(closes_at), closes_at), now)
        most = self._chunk_run.context.widths.most(Timeframe.D1)
        years = -(-(wanted.last - wanted.first).days // 364)
        duration = f"{len(spans)} D" if _may_count(len(spans), most) else f"{years} Y"
        return Chunk(interval, ends_at, duration, len(spans))

    async def _ask_for_days(self, block: Sequence[Open], chunk: Chunk) -> Asked | None:
        """Request daily bars; None where less must be requested at a time, which is remembered."""
        chunk_run, widths = self._chunk_run, self._chunk_run.context.widths
        try:
            return await chunk_run.asking.daily(chunk.ends_at, chunk.duration)
        except RequestRejectedError as error:
            is_counted = chunk.duration.endswith("D")
            is_long = is_counted and isinstance(error, RequestTooLongError)
            if is_long and widths.narrow(Timeframe.D1, chunk.sessions, refused=chunk.duration):
                chunk_run.note(f"{error}; daily bars are requested by the year now")
            elif is_counted or chunk.duration == "1 Y":
                raise
            else:
                self._widest = _BLOCK
            for one in block:
                self._daily[one.span.opens_at] -= 1
            return None

    async def _daily_block(self, block: Sequence[Open]) -> IntervalSet:
        """Request daily bars around some sessions; return those of them that have bars."""
        chunk_run, calendar = self._chunk_run, self._chunk_run.facts.calendar
        attempts = max(self._daily[one.span.opens_at] for one in block)
        if chunk_run.series.timeframe is Timeframe.D1 and not self._is_before_bars(block[0]):
            attempts += 1  # its own request was the first
        for one in block:
            self._daily[one.span.opens_at] += 1
        chunk = self._daily_chunk(self._days_around(block, attempts))
        asked = await self._ask_for_days(block, chunk)
        if asked is None:
            return IntervalSet()
        at, request = chunk_run.context.source_session.gateway_now(), new_request()
        if not isinstance(asked.answer, Answer):
            chunk_run.asking.record(asked, "no daily bars")
            self._say_empty(block, at, request)
            return IntervalSet()
        spans = expected_spans(calendar, Timeframe.D1, chunk.interval)
        impossible = asked.answer.impossible
        question = Question(
            chunk,
            calendar,
            Timeframe.D1,
            chunk_run.context.source_session.now(),
            impossible=impossible,
        )
        found = evaluate(question, asked.answer.bars, asked.answer.reach)
        chunk_run.asking.record(asked, f"{found.bars.num_rows} daily bars around empty sessions")
        daily = Series(chunk_run.series.instrument, Timeframe.D1)
        chunk_run.context.evidence.saw_bars(daily, at)
        traded = _traded_days(found.bars)
        refuted = [
            Interval(span.opens_at, span.closes_at)
            for span in spans
            if span.interval.start.date() in traded
        ]
        chunk_run.context.evidence.refute(chunk_run.series.symbol, refuted)
        statements = [
            Statement(part, StatementKind.AROUND, Timeframe.D1.value, at, request)
            for part in runs_of(
                calendar, (span for span in spans if found.around.covers(span.interval))
            )
        ]
        if found.begins_at is not None:
            began = next((span for span in spans if found.begins_at in span.interval), None)
            if began is not None and spans[0].opens_at < began.opens_at:
                asked_for = Interval(spans[0].opens_at, began.opens_at)
                statements.append(
                    Statement(asked_for, StatementKind.BEGINS, Timeframe.D1.value, at, request)
                )
        newest = asked.answer.bars["session_date"][-1].as_py()
        self._say_empty(
            [
                one
                for one in block
                if newest < min(days := chunk_run.days_of(one.span))
                and not impossible.clip(Interval(midnight(min(days)), midnight(max(days) + _DAY)))
            ],
            at,
            request,
            controlled=True,
        )
        with_bars = [one for one in block if chunk_run.days_of(one.span) & traded]
        missing = {day for one in with_bars for day in chunk_run.days_of(one.span)}
        statements.extend(
            Statement(part, StatementKind.TRADED, Timeframe.D1.value, at, request)
            for part in runs_of(
                calendar,
                (span for span in spans if span.interval.start.date() in traded & missing),
            )
        )
        chunk_run.context.evidence.record(chunk_run.series.symbol, statements)
        return IntervalSet(one.span.interval for one in with_bars)

    def _say_empty(
        self, block: Sequence[Open], at: datetime, request: str, *, controlled: bool = False
    ) -> None:
        """Record that no daily bars came for some sessions; older ones are a control."""
        chunk_run = self._chunk_run
        if not block:
            return
        oldest = chunk_run.oldest_known()
        spans = sorted((one.span for one in block), key=lambda span: span.opens_at)
        chunk_run.context.evidence.record(
            chunk_run.series.symbol,
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
                for part in runs_of(chunk_run.facts.calendar, spans)
            ],
        )

    def _days_around(self, block: Sequence[Open], attempts: int) -> _Daily:
        """Choose the session dates to request: the block, and sessions with bars around it.

        Before the oldest bar the block itself comes first: a gateway that returns too little
        would return bars of it. Where a response begins that reaches over the oldest bar is told
        after that.
        A second request reaches a session further on either side: it is not the same one.
        """
        chunk_run, calendar = self._chunk_run, self._chunk_run.facts.calendar
        first = min(min(chunk_run.days_of(one.span)) for one in block)
        last = max(max(chunk_run.days_of(one.span)) for one in block)
        held = sorted(chunk_run.context.store.rows_per_session(chunk_run.series))
        before = [day for day in held if first - _MARGIN_DAYS * _DAY <= day < first]
        after = [day for day in held if last < day <= last + _MARGIN_DAYS * _DAY]
        older = [one.day for one in calendar.sessions(first - _MARGIN_DAYS * _DAY, first)]
        today = calendar.day_of(chunk_run.context.source_session.now())
        newer = [
            one.day
            for one in calendar.sessions(last + _DAY, last + (_MARGIN_DAYS + 7) * _DAY)
            if one.day <= today
        ]
        if self._is_before_bars(block[0]):
            oldest = chunk_run.oldest_known()
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

    async def _ask_schedule(self) -> None:
        """Ask for the sessions of the contract where a day is empty among full ones."""
        chunk_run = self._chunk_run
        for one in reversed(self._open()):
            kinds = {said.kind for said in one.statements}
            is_puzzling = one.verdict.proof is Proof.CONTRADICTED and StatementKind.AROUND in kinds
            if is_puzzling and StatementKind.TRADED not in kinds:
                await chunk_run.learn_sessions(max(chunk_run.days_of(one.span)))
                return

    async def _control(self) -> None:
        """Request bars that are held, so that responses without bars can count."""
        chunk_run = self._chunk_run
        today = chunk_run.context.source_session.gateway_now().date()
        waiting = {
            said.timeframe
            for one in (*self._open(), *self._pieces())
            if one.verdict.proof is not Proof.CONTRADICTED
            or today not in stated_days(one.statements)
            for said in one.statements
            if said.kind is StatementKind.EMPTY and not said.controlled
        }
        if chunk_run.series.timeframe.value in waiting:
            await self._control_of(chunk_run.series)
        daily = Series(chunk_run.series.instrument, Timeframe.D1)
        if daily != chunk_run.series and Timeframe.D1.value in waiting:
            await self._control_of(daily)

    async def _control_of(self, series: Series) -> None:
        """Request one session that is held of a series; no bars for it void what was said."""
        chunk_run, calendar = self._chunk_run, self._chunk_run.facts.calendar
        await chunk_run.commits.flush()
        now = chunk_run.context.source_session.now()
        held = sorted(chunk_run.context.store.rows_per_session(series))
        day = held[len(held) // 2] if held else self._newest_day()
        if day is None:
            return
        interval = first_interval_of(calendar, series.timeframe, day)
        need = Need(calendar, series.timeframe, IntervalSet([interval]), IntervalSet(), now, 1)
        chunks = plan(need)
        if not chunks:
            return
        asked = await chunk_run.asking.of(series, chunks[0].ends_at, chunks[0].duration)
        at = chunk_run.context.source_session.gateway_now()
        if isinstance(asked.answer, Answer):
            chunk_run.asking.record(asked, "a control: bars came")
            chunk_run.context.evidence.saw_bars(series, at)
            return
        if not held:
            chunk_run.asking.record(asked, "a control: no bars of the newest session either")
            return
        chunk_run.asking.record(asked, "a control: no bars for a session that is held")
        if chunk_run.context.evidence.void_around(at):
            chunk_run.note(
                f"the gateway returned no bars of {series} for {day}, which are held: its "
                "responses without bars within a day of that count no more"
            )

    def _newest_day(self) -> date | None:
        """Return the newest session date that has closed, as a control where nothing is held."""
        now = self._chunk_run.context.source_session.now()
        calendar = self._chunk_run.facts.calendar
        today = calendar.day_of(now)
        closed = [
            one.day
            for one in calendar.sessions(today - _MARGIN_DAYS * _DAY, today + _DAY)
            if one.closes_at + final_lag() <= now
        ]
        return closed[-1] if closed else None


def _is_daily(said: Statement) -> bool:
    """Whether bars of days have none of a session and some on both sides."""
    return said.kind is StatementKind.AROUND and said.timeframe == Timeframe.D1


def _proof_kind(verdict: Verdict) -> ProofKind:
    if verdict.proof is Proof.DISPUTED:
        return ProofKind.DISPUTED
    return ProofKind.VOIDABLE if verdict.is_voidable else ProofKind.PLAIN


def _traded_days(bars: pa.Table) -> set[date]:
    """Return the session dates of bars that do not tell that nothing was traded."""
    traded = bars.filter(pa.array(~is_untraded(bars)))
    return set(pc.unique(traded["session_date"]).to_pylist())


def _may_count(sessions: int, most: int | None) -> bool:
    """Whether so many daily bars are requested by their count, where ``most`` is known to work."""
    if most == BY_THE_YEAR:
        return sessions <= ALWAYS_COUNTED[Timeframe.D1]
    return sessions <= min(most or _MOST_IN_DAYS, _MOST_IN_DAYS)
