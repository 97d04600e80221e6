"""One chunk of a series: requested until responses have spoken of all of it.

One chunk of a series: request it, and narrower parts of it, until a response has spoken of all.

The desk of one series: the facts, the asking, the saving and the state that its cases share.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.domain.bars import bars_between, micros, moment, timestamps, without_flat
from ktrdr_pipelines.domain.calendars.registry import Calendars
from ktrdr_pipelines.domain.calendars.sessions import (
    Span,
    expected_spans,
    interval_between,
    monday_of,
)
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Identity, SecType, WhatToShow
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.domain.planning.chunks import (
    BY_THE_YEAR,
    Chunk,
    Need,
    is_opening,
    newest_run,
    plan,
)
from ktrdr_pipelines.domain.planning.empty_ranges import Statement, StatementKind
from ktrdr_pipelines.domain.planning.evaluation import Evaluation, Question, answered_now, evaluate
from ktrdr_pipelines.domain.planning.gaps import bar_lag, final_lag, is_closed
from ktrdr_pipelines.domain.planning.jobs import LoadOptions
from ktrdr_pipelines.domain.planning.reports import Progress
from ktrdr_pipelines.domain.planning.responses import Answer, NoData
from ktrdr_pipelines.domain.planning.sparse_sessions import may_be_sparse
from ktrdr_pipelines.domain.plausibility import (
    Disagreement,
    DisagreementKind,
    disagreement,
    explained,
    findings_of,
    reconciled,
)
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.volume_units import SESSIONS, between_sessions, came_again, is_told
from ktrdr_pipelines.errors import GatewayError
from ktrdr_pipelines.store.bars.bar_store import BarStore, SaveResult
from ktrdr_pipelines.store.claim_owners import Claimant
from ktrdr_pipelines.store.evidence import Evidence, new_request, runs_of
from ktrdr_pipelines.store.ledger.file_index import Fingerprint, fingerprint
from ktrdr_pipelines.store.ledger.ledger import series_key
from ktrdr_pipelines.sync.discovery.head_timestamps import RangeDiscovery
from ktrdr_pipelines.sync.discovery.sessions import Schedules
from ktrdr_pipelines.sync.engine.bar_requester import Asked, Asking, LifeSigns
from ktrdr_pipelines.sync.engine.request_widths import Widths
from ktrdr_pipelines.sync.engine.series_state import SeriesState
from ktrdr_pipelines.sync.engine.source_session import SourceSession
from ktrdr_pipelines.sync.engine.writer import Commits, FailedAttempts

_DAY, _INSTANT = timedelta(days=1), timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class RunContext:
    """What all series of one run share: sessions, where to ask, where to save, whom to tell."""

    source_session: SourceSession
    store: BarStore
    schedules: Schedules
    claimant: Claimant
    ranges: RangeDiscovery
    life: LifeSigns
    evidence: Evidence
    widths: Widths
    progress: Progress

    @property
    def calendars(self) -> Calendars:
        """The book of calendars as it stands now."""
        return self.schedules.calendars


class ChunkRun:
    """What the cases of one series in one run have in common."""

    def __init__(
        self, context: RunContext, facts: SeriesState, identity: Identity, options: LoadOptions
    ) -> None:
        self.context = context
        self.facts = facts
        self.series = facts.series
        self.identity = identity
        self._is_refresh, self._is_tail = options.refresh, options.tail
        self.stop: GatewayError | None = None
        self.is_dead = False
        self.failures_in_a_row = 0
        self._skipped = IntervalSet()
        self.disagreement: Disagreement | None = None
        self._gained: tuple[date, date] | None = None
        self._seen: dict[Path, Fingerprint] = {}
        self.asking = Asking(
            context.source_session,
            context.store.ledger,
            self.series,
            contract_id=identity.contract_id,
            options=options,
            note=self.note,
        )
        self.failed_attempts = FailedAttempts(
            context.store.ledger, self.series, context.source_session.retry_policy.clock
        )
        self.commits = Commits(
            save=self._save,
            release=lambda intervals: context.claimant.release(self.series, intervals),
            saved=lambda: context.progress.saved(self.series),
        )

    @property
    def is_over(self) -> bool:
        """Say whether more asking is vain."""
        return self.is_dead or self.stop is not None

    def need(self, within: Interval | None = None, *, everything: bool = False) -> Need:
        """State wants and facts as they stand, of all or of one interval."""
        source_session = self.context.source_session
        market_now = source_session.retry_policy.market_clock()
        need = self.facts.need(source_session.now(), market_now, within, everything=everything)
        need = replace(need, ends_now=self._is_tail)
        most = self.context.widths.most(self.series.timeframe)
        if most is None:
            return need
        is_by_the_year = most == BY_THE_YEAR and not need.timeframe.is_intraday
        return replace(need, most_sessions=most, is_by_the_year=is_by_the_year)

    def claim(self, interval: Interval) -> bool:
        """Try to claim an interval, and learn what others have saved of it by then."""
        now = self.context.source_session.retry_policy.clock()
        if not self.context.claimant.claim(self.series, interval, now):
            return False
        self.learn_saved()
        return True

    def learn_saved(self) -> None:
        """Take in what is covered on disk, by whomever, where a file has changed."""
        layout = self.context.store.layout
        paths = layout.bar_files(self.series.symbol, self.series.timeframe)
        current = {path: fingerprint(path) for path in paths}
        if current == self._seen:
            return
        self._seen = current
        saved = self.context.store.coverage(self.series)
        self.facts.learn(saved, proof_now=self.context.source_session.retry_policy.market_clock())

    async def learn_beginning(self, *, ask: bool = True) -> bool:
        """Excuse what lies before the data of the contract where it is proved where they begin.

        Args:
            ask: ask for the head timestamp where it is not freshly known.

        Returns: whether something is excused by it.
        """
        head = await self._head() if ask else self._known_head()
        bars = self.facts.bars.bounds
        found = self.context.evidence.beginning(
            self.series.instrument,
            self.facts.calendar,
            head,
            unsaved=self._oldest_day(bars) if bars else None,
        )
        self.facts.excuse_before(found)
        return found is not None

    def _oldest_day(self, bars: Interval) -> date:
        """Return the session date of the oldest bar; a week refutes only what is behind it."""
        first = self.facts.days_of(bars)[0]
        return first + timedelta(days=6) if self.series.timeframe is Timeframe.W1 else first

    @property
    def is_beginning_seen(self) -> bool:
        """Whether a response began at the oldest bar though it was requested from before.

        Where older bars came since then, the response had been cut short.
        """
        known = self.context.evidence.of(self.series.symbol).statements
        oldest = self.oldest_known()
        return any(
            one.kind is StatementKind.BEGINS and oldest is not None and one.interval.end <= oldest
            for one in known
        )

    def asked_before(self, chunk: Chunk, begins_at: datetime) -> Interval | None:
        """Return what a response spoke of before its first bar, in real time; None for weeks.

        A weekly bar does not say on which day of its week the data begin.
        """
        timeframe, calendar = self.series.timeframe, self.facts.calendar
        if timeframe is Timeframe.W1:
            return None
        spans = expected_spans(calendar, timeframe, chunk.interval)
        first = spans[0].opens_at if spans else chunk.interval.start
        if timeframe.is_intraday:
            return between(first, begins_at)
        began = next((span for span in spans if begins_at in span.interval), None)
        return between(first, began.opens_at) if began else None

    def oldest_known(self) -> datetime | None:
        """Return when the oldest covered session of the series opens, in real time."""
        bounds = self.facts.bars.bounds
        if bounds is None:
            return None
        if self.series.timeframe.is_intraday:
            return bounds.start
        spans = expected_spans(
            self.facts.calendar,
            self.series.timeframe,
            Interval(bounds.start, bounds.start + _INSTANT),
        )
        return spans[0].opens_at if spans else bounds.start

    async def learn_sessions(self, day: date) -> bool:
        """Ask whether a date without bars has the session that is expected; say what changed."""
        if not await self.context.schedules.after_empty_session(self.series, day, self.note):
            return False
        self.learn_calendar()
        return True

    def learn_from_bars(self, bars: pa.Table) -> None:
        """Take in what kept bars show of the sessions of the instrument."""
        schedules, series = self.context.schedules, self.series
        if schedules.saw_bars(series.instrument, series.timeframe, bars, self.note):
            self.learn_calendar()

    def learn_calendar(self) -> None:
        """Expect the sessions that are known by now; another series of the symbol may know more."""
        calendar = self.context.calendars.of(self.series.instrument)
        if calendar is not self.facts.calendar:
            self.facts.learn_calendar(calendar)

    async def is_alive(self) -> bool:
        """Say whether the contract has lately answered with bars; without, more asking is vain."""
        if await self.context.life.are_there(self.asking, self._head):
            return True
        if not self.is_dead:
            self.is_dead = True
            self.note(
                f"the gateway has no data of {self.series.instrument} at all, so nothing is "
                "taken to be empty: permissions may be missing, or the instrument has ended"
            )
        return False

    async def _head(self) -> datetime | None:
        source_session, instrument = self.context.source_session, self.series.instrument
        return await self.context.ranges.head(
            source_session, instrument, self.identity.contract_id, self.note
        )

    def _known_head(self) -> datetime | None:
        return self.context.ranges.known_head(self.series.instrument, self.identity.contract_id)

    def compare_with_held(self, chunk: Chunk, bars: pa.Table) -> None:
        """Look whether bars that came again still agree with those that are held.

        Other prices are no news of what is asked for once more, which replaces what is held.
        Another unit of volume is: it makes a jump at either end of it.
        """
        keys, start = timestamps(bars), chunk.interval.start
        low, high = moment(int(keys[0])), moment(int(keys[-1])) + _INSTANT
        again = bars.filter(pa.array(keys < micros(start)))
        has_lots = self._has_lots and bool(self.facts.bars_before.clip(Interval(low, high)))
        if not again.num_rows and not has_lots:
            return
        held = self.context.store.read(self.series, Interval(low, high if has_lots else start))
        if has_lots:
            whole = bars.slice(1) if self.series.timeframe.is_intraday else bars
            self._tell_of_volume(came_again(held, whole))
        if not again.num_rows:
            return
        found = disagreement(bars_between(held, low, start), again)
        if found is not None and self.disagreement is None:
            self.disagreement = found
            at = self.context.source_session.retry_policy.clock()
            self.context.store.ledger.record_disagreement(series_key(self.series), found, at)
            self.note(str(found))

    @property
    def _has_lots(self) -> bool:
        """Whether gateways tell the volume of the instrument in shares, or else in lots."""
        instrument = self.series.instrument
        is_traded = instrument.what_to_show is WhatToShow.TRADES
        return instrument.sec_type is SecType.STK and is_traded

    def compare_volumes(self) -> None:
        """Look whether volumes jump by a lot where bars of this run adjoin those of other runs.

        It takes some sessions on either side, and of a tail a session that has just closed.
        """
        if self._gained is None or not self._has_lots:
            return
        first, last = self._gained
        calendar, timeframe = self.facts.calendar, self.series.timeframe
        now = self.context.source_session.now()
        today = calendar.day_of(now - final_lag())
        is_over = all(one.closes_at + final_lag() <= now for one in calendar.sessions(last, today))
        if self._is_tail and timeframe.is_intraday and (last > today or not is_over):
            return
        days = [day for day in self.context.store.rows_per_session(self.series) if day <= today]
        for edge in sorted({first, last}):
            place = bisect_left(days, edge)
            around = days[max(0, place - 2 * SESSIONS) : place + 2 * SESSIONS]
            if all(first <= day <= last for day in around):
                continue
            start, end = around[0], around[-1] + _DAY
            if timeframe is Timeframe.W1:
                start, end = monday_of(start), monday_of(around[-1]) + 7 * _DAY
            part = interval_between(calendar, timeframe, start, end)
            self._tell_of_volume(between_sessions(self.context.store.read(self.series, part)))

    def _tell_of_volume(self, found: Disagreement | None) -> None:
        """Tell of a jump of volumes once, and remember it."""
        ledger, key = self.context.store.ledger, series_key(self.series)
        if found is None or is_told(found, ledger.disagreements(key, DisagreementKind.VOLUME)):
            return
        ledger.record_disagreement(key, found, self.context.source_session.retry_policy.clock())
        self.note(str(found))

    def cover(self, coverage: Coverage, bars: pa.Table | None = None) -> None:
        """Take in what a response covered, and the bars that it gave."""
        if bars is not None and bars.num_rows:
            days = (bars["session_date"][0].as_py(), bars["session_date"][-1].as_py())
            before = self._gained or days
            self._gained = min(days[0], before[0]), max(days[1], before[1])
        self.facts.cover(coverage, self.context.source_session.market_now())
        self.commits.add(bars, coverage)

    def _save(self, bars: pa.Table, coverage: Coverage) -> SaveResult:
        """Save, and then remember what a refresh need not ask for once more should it be stopped.

        It runs in the thread of the commits.
        """
        store, retry_policy = self.context.store, self.context.source_session.retry_policy
        result = store.save(self.series, self.identity, bars, coverage)
        self._clear_findings(bars)
        if self._is_refresh:
            answered = coverage.covered(retry_policy.market_clock()) & self.facts.again
            store.ledger.record_refreshed(series_key(self.series), answered, retry_policy.clock())
        return result

    def _clear_findings(self, bars: pa.Table) -> None:
        """Forget the findings of bars that were replaced by others, once these are on disk."""
        ledger, key = self.context.store.ledger, series_key(self.series)
        if not (known := ledger.findings(key)):
            return
        _, found = explained(bars, self.series.instrument.sec_type, known)
        stale = {one.ts for one in known} - {one.ts for one in found}
        if replaced := stale & set(timestamps(bars).tolist()):
            ledger.clear_findings(key, replaced)

    def days_of(self, span: Span) -> set[date]:
        """Return the session dates inside a span."""
        inside = Interval(span.opens_at, span.closes_at)
        return {one.day for one in self.facts.calendar.sessions_meeting(inside)}

    def has_traded(self, span: Span) -> bool:
        """Whether daily bars with volume were returned for a session."""
        inside = Interval(span.opens_at, span.closes_at)
        return any(
            one.kind is StatementKind.TRADED and one.interval.overlaps(inside)
            for one in self.context.evidence.of(self.series.symbol).statements
        )

    def skip(self, interval: Interval) -> None:
        """Leave an interval unrequested: requests beside it brought no bars."""
        part = self.need(interval).gaps()
        self._skipped |= part
        self.defer_part(part)

    def was_skipped(self, interval: Interval) -> bool:
        """Whether an interval was left unrequested."""
        return self._skipped.covers(interval)

    def refreshed(self) -> IntervalSet:
        """Give what was requested again and came again.

        What holds no bars and came without any once more is as it was: a response that has bars on
        one side of it only takes nothing back, and needs no second one to be believed.
        """
        again = self.facts.unconfirmed_again(self.context.source_session.market_now())
        same = [one for one in again if not self.context.store.read(self.series, one).num_rows]
        return (self.facts.proved & self.facts.again) | IntervalSet(same)

    def defer(self, interval: Interval) -> None:
        """Leave to another request or run what is open in an interval."""
        self.defer_part(self.need(interval).gaps())

    def defer_part(self, part: IntervalSet) -> None:
        """Leave an open part to another request or run."""
        if part:
            self.facts.defer(part)

    def note(self, text: str) -> None:
        """Say something that a person may want to know."""
        self.context.progress.noted(self.series, text)


_MOST_AT_END = 0.4
"""Share of a chunk's sessions that may be missing at its end without its being requested again."""

_SPARE_REQUESTS = 8
"""Requests for one chunk beside those that halving it takes: a gateway that returns a little of
what is asked at a time is not followed to the end in one run."""


class Case:
    """The work on one chunk of a series; made and used once.

    What a response leaves open is requested before the next chunk, newest first, so that a window
    is finished soon. ``asking`` is what was requested last; ``was_empty`` says that no response
    brought a bar.
    """

    def __init__(self, chunk_run: ChunkRun, chunk: Chunk) -> None:
        self._chunk_run = chunk_run
        self._chunk = chunk
        self._width: int | None = None
        self._run: Interval | None = None
        self._is_direct = False
        self._is_alone = False
        self._is_opening = is_opening(chunk_run.need(chunk.interval), chunk)
        self._sent_at: datetime | None = None
        self.asking = chunk
        self.was_empty = True

    async def run(self) -> None:
        """Request until nothing more of the chunk can be learned.

        Raises:
            GatewayError: a request failed after all tries.
            StoreError: what was answered could not be saved.
        """
        chunk_run = self._chunk_run
        chunk: Chunk | None = self._chunk
        if not chunk_run.need(self._chunk.interval).gaps():
            chunk_run.context.progress.answered(chunk_run.series, 0)
            return
        budget = _SPARE_REQUESTS + 2 * self._chunk.sessions.bit_length()
        while chunk is not None and not chunk_run.is_over:
            await self._request(chunk)
            budget -= 1
            if budget <= 0:
                chunk_run.defer(self._chunk.interval)
            chunk = self._following()
            if chunk is not None:
                chunk_run.context.progress.planned(chunk_run.series, 1)

    def _following(self) -> Chunk | None:
        """Return the newest part that is still open, no wider than the last responses allow.

        The quiet opening of the oldest session is left to the request for the session before it,
        unless a request for several parts left all of them open.
        """
        need = self._without_rest(self._chunk_run.need(self._chunk.interval))
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

    def _without_rest(self, need: Need) -> Need:
        """Return a need without the piece of a bar with which a chunk that ends now ends.

        That bar was not whole when the chunk was planned; it is no gap because time went on.
        """
        chunk = self._chunk
        if chunk.now_until is None:
            return need
        last = expected_spans(need.calendar, need.timeframe, chunk.interval)[-1]
        is_open = chunk.interval.end < last.interval.end
        return replace(need, now=min(need.now, chunk.interval.end + bar_lag())) if is_open else need

    def _need(self, interval: Interval) -> Need:
        """State what is open in an interval as of when the last request was sent.

        What comes to be due while the gateway answers is not told by its response.
        """
        need = self._chunk_run.need(interval)
        return replace(need, now=min(need.now, self._sent_at)) if self._sent_at else need

    async def _asked(self, chunk: Chunk) -> tuple[Asked, Chunk]:
        """Request a chunk; return the response and what that speaks of."""
        chunk_run = self._chunk_run
        asked = await chunk_run.asking.chunk(chunk)
        self._sent_at = asked.sent_at
        with_end = replace(chunk, now_until=None)
        if not asked.ends_now:
            return asked, with_end
        answer, need = asked.answer, self._need(chunk.interval)
        question = Question(chunk, need.calendar, need.timeframe, need.now)
        if isinstance(answer, Answer):
            question = replace(question, holds_back=answer.lacks_newest)
            spoken_of = answered_now(question, answer.bars, answer.reach)
        else:
            spoken_of = answered_now(question, None, None)
        if spoken_of is not None:
            return asked, spoken_of
        chunk_run.asking.record(asked, "nothing by itself: requested with its end")
        return await self._again(with_end), with_end

    async def _again(self, chunk: Chunk) -> Asked:
        """Request a chunk once more, with its end."""
        chunk_run = self._chunk_run
        chunk_run.context.progress.planned(chunk_run.series, 1)
        chunk_run.context.progress.answered(chunk_run.series, 0)
        asked = await chunk_run.asking.chunk(replace(chunk, now_until=None))
        self._sent_at = asked.sent_at
        return asked

    async def _request(self, chunk: Chunk) -> None:
        """Request once and take in what comes."""
        chunk_run = self._chunk_run
        self.asking, planned = chunk, chunk
        asked, chunk = await self._asked(chunk)
        chunk_run.failures_in_a_row = 0
        chunk_run.context.widths.answered(chunk_run.series.timeframe, chunk.sessions)
        answer: Answer | NoData | None = asked.answer
        if isinstance(answer, Answer) and (answer.impossible or answer.implausible):
            chunk = replace(planned, now_until=None)
            asked, answer = await self._once_more(chunk, asked, answer)
        proved = "nothing"
        try:
            if isinstance(answer, NoData):
                proved = await self._take_empty(chunk)
            elif answer is None:
                chunk_run.defer(chunk.interval)
                self.was_empty = False
                proved = "no row that is a bar twice"
            else:
                proved = await self._take_bars(chunk, answer)
        finally:
            chunk_run.asking.record(asked, proved)
        rows = answer.bars.num_rows if isinstance(answer, Answer) else 0
        chunk_run.context.progress.answered(chunk_run.series, rows)
        await chunk_run.commits.commit_when_due()

    async def _once_more(
        self, chunk: Chunk, asked: Asked, first: Answer
    ) -> tuple[Asked, Answer | None]:
        """Request a chunk again of which rows are no bars, or hardly can be.

        Returns: the second response as it came, and what both say together.
        """
        chunk_run = self._chunk_run
        odd = f"{len(first.implausible)} implausible bars, rows at {len(first.impossible)} places"
        chunk_run.asking.record(asked, f"{odd} are no bars: requested once more")
        again = await self._again(chunk)
        second = again.answer if isinstance(again.answer, Answer) else None
        return again, reconciled(first, second, chunk_run.series.timeframe.length)

    # --- responses with bars -------------------------------------------------------------------

    async def _take_bars(self, chunk: Chunk, answer: Answer) -> str:
        """Keep and cover what a response gives; say it in a few words."""
        chunk_run = self._chunk_run
        chunk_run.context.life.saw(chunk_run.asking)
        chunk_run.failed_attempts.answered()
        need = self._need(chunk.interval)
        before = need.gaps()
        question = Question(
            chunk,
            need.calendar,
            need.timeframe,
            need.now,
            holds_back=answer.lacks_newest,
            impossible=answer.impossible,
        )
        found = evaluate(question, answer.bars, answer.reach)
        chunk_run.compare_with_held(chunk, answer.bars)
        chunk_run.context.evidence.saw_bars(
            chunk_run.series, chunk_run.context.source_session.gateway_now()
        )
        if found.earlier_only:
            return self._take_earlier(chunk, answer)
        self.was_empty = False
        self._refute(found)
        self._record_findings(found.bars, answer.implausible)
        chunk_run.cover(Coverage(bars=found.is_covered), found.bars)
        chunk_run.learn_from_bars(found.bars)
        self._say(chunk, found)
        self._widen()
        if answer.lacks_newest:
            chunk_run.defer(chunk.interval)
            return f"{found.bars.num_rows} bars, the newest are held back"
        chunk_run.facts.answered(IntervalSet([chunk.interval]) - answer.impossible)
        self._take_opening(chunk, before)
        if found.around:
            chunk_run.defer_part(found.around)
        self._skip_edges(chunk, timestamps(answer.bars), answer.impossible)
        self._part(chunk, before)
        if found.begins_at is not None:
            await chunk_run.learn_beginning(ask=False)
        return f"{found.bars.num_rows} bars, {found.is_covered.length} covered"

    def _record_findings(self, bars: pa.Table, implausible: Sequence[int]) -> None:
        """Remember which of the bars to be kept are implausible.

        It comes before the bars: a finding without a bar says nothing, a bar without its finding
        is damage.
        """
        chunk_run = self._chunk_run
        found = findings_of(bars, implausible, chunk_run.series.instrument.sec_type)
        if not found:
            return
        at = chunk_run.context.source_session.retry_policy.clock()
        chunk_run.context.store.ledger.record_findings(series_key(chunk_run.series), found, at)
        count = f"{len(found)} bars" if len(found) > 1 else "1 bar"
        chunk_run.note(f"{count} with implausible values came twice the same and are kept")

    def _take_opening(self, chunk: Chunk, before: IntervalSet) -> None:
        """Request the opening of a session alone that a request over two sessions left as it was.

        Where data begin there is no bar on its other side.
        """
        need = self._chunk_run.need(chunk.interval)
        if is_opening(need, chunk) and need.gaps() == before:
            self._is_direct = True

    def _part(self, chunk: Chunk, before: IntervalSet) -> None:
        """Request by itself each part of what a response with bars left wholly as it was.

        A part that was requested by itself waits for another run.
        """
        left = self._chunk_run.need(chunk.interval).gaps()
        if self._is_direct or left != before:
            return
        if len(left) > 1 and chunk.sessions > 1:
            self._is_alone = True
        else:
            self._chunk_run.defer(chunk.interval)

    def _skip_edges(self, chunk: Chunk, keys: np.ndarray, impossible: IntervalSet) -> None:
        """Leave to daily bars the sessions at a chunk's ends that no bar came for.

        A thin instrument has such an end at every third chunk; one request for daily bars speaks
        for a year of them. Where most of the newest sessions are missing, or daily bars have told
        that the oldest traded, they are requested at once: the response was cut short.
        """
        chunk_run = self._chunk_run
        need = self._need(chunk.interval)
        if chunk.sessions == 1:
            return
        first, last = moment(keys[0]), moment(keys[-1])
        spans = expected_spans(need.calendar, need.timeframe, chunk.interval)
        gaps = need.gaps() - impossible
        whole = [span for span in spans if gaps.covers(span.interval) and is_closed(span, need.now)]
        older = [span for span in whole if span.interval.end <= first]
        newer = [span for span in whole if span.interval.start > last]
        older = [span for span in older if not chunk_run.has_traded(span)]
        if len(newer) > len(spans) * _MOST_AT_END:
            newer = []
        for span in (*older, *newer):
            chunk_run.skip(span.interval)

    def _take_earlier(self, chunk: Chunk, answer: Answer) -> str:
        """Take in a response whose bars are all older: it says that none came behind them."""
        if answer.lacks_newest:
            self._chunk_run.defer(chunk.interval)
            return "the newest are held back"
        if answer.impossible.clip(chunk.interval):
            self._chunk_run.defer(chunk.interval)
            return "rows that are no bars"
        if self._cover_end_of_contract(chunk):
            return "only older bars: the contract's last session ends with them"
        self._say_empty(chunk, controlled=True)
        return "only older bars"

    def _cover_end_of_contract(self, chunk: Chunk) -> bool:
        """Cover the quiet end of the contract's last session; say whether that is all there is.

        The contract's own last day is what stands on the other side of it, and an earlier response
        of this case, which had bars and reached over the close, left it without any too.
        """
        if self.was_empty:
            return False
        chunk_run = self._chunk_run
        need = self._need(chunk.interval)
        gaps, held = need.gaps(), chunk_run.facts.bars
        bounds = gaps.bounds
        if bounds is None or not need.timeframe.is_intraday or len(gaps) > 1:
            return False
        span = expected_spans(need.calendar, need.timeframe, bounds)[0]
        if bounds.end < span.interval.end or not held.clip(span.interval):
            return False
        day = need.calendar.day_of(span.closes_at - timedelta(microseconds=1))
        if may_be_sparse(chunk_run.series.instrument, day) or not is_closed(span, need.now):
            return False
        chunk_run.cover(Coverage(bars=gaps))
        return True

    def _refute(self, found: Evaluation) -> None:
        """Void the responses without bars that the bars which came refute; flat ones do not."""
        chunk_run, timeframe = self._chunk_run, self._chunk_run.series.timeframe
        moments = timestamps(without_flat(found.bars))
        if not len(moments):
            return
        spans = expected_spans(
            chunk_run.facts.calendar,
            timeframe,
            Interval(moment(moments[0]), moment(moments[-1] + 1)),
        )
        keys = set() if timeframe.is_intraday else set(moments.tolist())
        sessions = [
            Interval(span.opens_at, span.closes_at)
            for span in spans
            if micros(span.interval.start) in keys
        ]
        intraday = moments if timeframe.is_intraday else None
        if chunk_run.context.evidence.refute(chunk_run.series.symbol, sessions, intraday):
            chunk_run.note(
                "the gateway returned bars where it had returned none: responses without bars "
                "within a day of that count no more"
            )

    def _say(self, chunk: Chunk, found: Evaluation) -> None:
        """Record what a response with bars says of sessions without any."""
        chunk_run, calendar = self._chunk_run, self._chunk_run.facts.calendar
        request, at = new_request(), chunk_run.context.source_session.gateway_now()
        timeframe = chunk_run.series.timeframe.value
        statements = [
            Statement(part, StatementKind.AROUND, timeframe, at, request)
            for part in runs_of(calendar, self._spans(found.around))
        ]
        begins_at = found.begins_at
        if begins_at is not None and (asked := chunk_run.asked_before(chunk, begins_at)):
            statements.append(Statement(asked, StatementKind.BEGINS, timeframe, at, request))
        chunk_run.context.evidence.record(chunk_run.series.symbol, statements)

    def _spans(self, inside: IntervalSet) -> list[Span]:
        bounds = inside.bounds
        if bounds is None:
            return []
        facts = self._chunk_run.facts
        spans = expected_spans(facts.calendar, facts.series.timeframe, bounds)
        return [span for span in spans if inside.covers(span.interval)]

    # --- responses without bars ----------------------------------------------------------------

    async def _take_empty(self, chunk: Chunk) -> str:
        """Take in a response without bars."""
        chunk_run = self._chunk_run
        if chunk_run.need(chunk.interval).known_from is None and not await chunk_run.is_alive():
            return "nothing, no sign of life"
        self._say_empty(chunk, controlled=False)
        return "no bars"

    def _say_empty(self, chunk: Chunk, *, controlled: bool) -> None:
        """Record a response without bars, and decide how much is requested next.

        A quiet part of a session with bars waits for another response, as an empty session does.
        Of several sessions the newest is requested alone, then the rest by halves: a request that
        reaches past the gateway's oldest bar may return nothing though there are bars (grade C).
        """
        chunk_run = self._chunk_run
        chunk_run.facts.answered(IntervalSet([chunk.interval]))
        need = self._need(chunk.interval)
        gaps = need.gaps()
        bounds = gaps.bounds
        if bounds is None:
            chunk_run.defer(chunk.interval)
            return
        spans = expected_spans(need.calendar, need.timeframe, bounds)
        closed = IntervalSet(span.interval for span in spans if is_closed(span, need.now))
        rest = gaps & closed
        whole = [span for span in spans if rest.covers(span.interval)]
        pieces = rest - IntervalSet(span.interval for span in whole)
        parts = list(runs_of(need.calendar, whole))
        if need.timeframe.is_intraday:
            parts.extend(pieces)
        self._record_empty(parts, controlled=controlled)
        if pieces:
            chunk_run.defer_part(pieces)
        if whole:
            self._narrow(len(whole))
        else:
            chunk_run.defer(chunk.interval)

    def _record_empty(self, parts: Sequence[Interval], *, controlled: bool) -> None:
        """Record that a response held no bars for intervals of real time."""
        chunk_run = self._chunk_run
        oldest = chunk_run.oldest_known()
        request, at = new_request(), chunk_run.context.source_session.gateway_now()
        statements = [
            Statement(
                part,
                StatementKind.OLDER if controlled else StatementKind.EMPTY,
                chunk_run.series.timeframe.value,
                at,
                request,
                controlled=controlled,
                reaches_past=oldest is None or part.start < oldest,
            )
            for part in parts
        ]
        chunk_run.context.evidence.record(chunk_run.series.symbol, statements)

    def _narrow(self, sessions: int) -> None:
        """Halve what is requested next; with one session left, leave the rest to another run."""
        oldest = self._chunk_run.facts.bars.bounds
        is_before = oldest is not None and self._chunk.interval.end <= oldest.start
        if is_before and self._chunk_run.is_beginning_seen:
            self._chunk_run.defer(self._chunk.interval)
        elif self._width is None and sessions > 1:
            self._width = 1
        elif self._width is not None and self._width > 1:
            self._width //= 2
        else:
            self._chunk_run.defer(self._run or self._chunk.interval)

    def _widen(self) -> None:
        """Request half of the rest at once after bars came where a wider request had none."""
        if self._width is not None:
            need = self._chunk_run.need(self._chunk.interval)
            bounds = need.gaps().bounds
            left = len(expected_spans(need.calendar, need.timeframe, bounds)) if bounds else 0
            self._width = max(1, left // 2)
