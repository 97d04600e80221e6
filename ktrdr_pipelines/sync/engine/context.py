"""What the work on one series shares: services of the run, series state, requests and saving.

Not here: the requests for one chunk (``sync.engine.chunk_run``), the order of the chunks
(``sync.engine.series_run``).
"""

from bisect import bisect_left
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from pathlib import Path

import pyarrow as pa

from ktrdr_pipelines.domain.bars import bars_between, micros, moment, timestamps
from ktrdr_pipelines.domain.calendars.registry import Calendars
from ktrdr_pipelines.domain.calendars.session_grid import Span, session_grid
from ktrdr_pipelines.domain.calendars.sessions import interval_between, monday_of
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Identity, SecType, WhatToShow
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.domain.planning.chunks import (
    BY_THE_YEAR,
    Chunk,
    Need,
)
from ktrdr_pipelines.domain.planning.empty_ranges import StatementKind
from ktrdr_pipelines.domain.planning.gaps import final_lag
from ktrdr_pipelines.domain.planning.jobs import LoadOptions
from ktrdr_pipelines.domain.planning.reports import Progress
from ktrdr_pipelines.domain.plausibility import (
    Disagreement,
    DisagreementKind,
    disagreement,
    explained,
)
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.volume_units import SESSIONS, between_sessions, compare_volume, is_told
from ktrdr_pipelines.errors import GatewayError
from ktrdr_pipelines.store.bars.bar_store import BarStore, SaveResult
from ktrdr_pipelines.store.claim_owners import Claimant
from ktrdr_pipelines.store.evidence import Evidence
from ktrdr_pipelines.store.ledger.file_index import Fingerprint, fingerprint
from ktrdr_pipelines.store.ledger.ledger import series_key
from ktrdr_pipelines.sync.discovery.head_timestamps import RangeDiscovery
from ktrdr_pipelines.sync.discovery.trading_hours import Schedules
from ktrdr_pipelines.sync.engine.bar_requester import BarRequester, LifeSigns
from ktrdr_pipelines.sync.engine.request_widths import Widths
from ktrdr_pipelines.sync.engine.series_state import SeriesState
from ktrdr_pipelines.sync.engine.source_session import SourceSession
from ktrdr_pipelines.sync.engine.writer import Commits, FailedAttempts

_DAY, _INSTANT = timedelta(days=1), timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class RunContext:
    """What all series of one run share: source, store, calendars, claims, evidence and progress."""

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
        """The calendars as they are known now."""
        return self.schedules.calendars


class SeriesContext:
    """What the chunk runs of one series in one run share."""

    def __init__(
        self, context: RunContext, state: SeriesState, identity: Identity, options: LoadOptions
    ) -> None:
        self.context = context
        self.state = state
        self.series = state.series
        self.identity = identity
        self._is_refresh, self._is_tail = options.refresh, options.tail
        self.stop: GatewayError | None = None
        self.is_dead = False
        self.failures_in_a_row = 0
        self._skipped = IntervalSet()
        self.disagreement: Disagreement | None = None
        self._gained: tuple[date, date] | None = None
        self._seen: dict[Path, Fingerprint] = {}
        self.requester = BarRequester(
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
        """Whether further requests would be useless."""
        return self.is_dead or self.stop is not None

    def need(self, within: Interval | None = None, *, everything: bool = False) -> Need:
        """Return what planning needs of the series state, for all of it or for one interval.

        Args:
            within: only this interval.
            everything: also what this run has deferred.
        """
        source_session = self.context.source_session
        market_now = source_session.retry_policy.market_clock()
        need = self.state.need(source_session.now(), market_now, within, everything=everything)
        need = replace(need, ends_now=self._is_tail)
        most = self.context.widths.most(self.series.timeframe)
        if most is None:
            return need
        is_by_the_year = most == BY_THE_YEAR and not need.timeframe.is_intraday
        return replace(need, most_sessions=most, is_by_the_year=is_by_the_year)

    def claim(self, interval: Interval) -> bool:
        """Try to claim an interval; on success, learn what other runs have saved of it.

        Returns: whether the claim was granted.
        """
        now = self.context.source_session.retry_policy.clock()
        if not self.context.claimant.claim(self.series, interval, now):
            return False
        self.learn_saved()
        return True

    def learn_saved(self) -> None:
        """Add to the state what is covered on disk, by any run, if a file has changed."""
        layout = self.context.store.layout
        paths = layout.bar_files(self.series.symbol, self.series.timeframe)
        current = {path: fingerprint(path) for path in paths}
        if current == self._seen:
            return
        self._seen = current
        saved = self.context.store.coverage(self.series)
        self.state.learn(saved, proof_now=self.context.source_session.retry_policy.market_clock())

    async def learn_beginning(self, *, ask: bool = True) -> bool:
        """Excuse what lies before the contract's data, if it is proved where these begin.

        Args:
            ask: request the head timestamp unless it is freshly known.

        Returns: whether the beginning is proved.
        """
        instrument = self.series.instrument
        if ask:
            head = await self._head()
        else:
            head = self.context.ranges.known_head(instrument, self.identity.contract_id)
        oldest: date | None = None
        if (bars := self.state.bars.bounds) is not None:
            oldest = self.state.days_of(bars)[0]
            if self.series.timeframe is Timeframe.W1:
                oldest += timedelta(days=6)  # a weekly bar refutes only dates after its week
        found = self.context.evidence.beginning(
            instrument, self.state.calendar, head, unsaved=oldest
        )
        self.state.excuse_before(found)
        return found is not None

    @property
    def is_beginning_seen(self) -> bool:
        """Whether a response to a request from before the oldest bar began at that bar.

        If older bars have been received since, that response had been cut short.
        """
        known = self.context.evidence.of(self.series.symbol).statements
        oldest = self.oldest_known()
        return any(
            one.kind is StatementKind.BEGINS and oldest is not None and one.interval.end <= oldest
            for one in known
        )

    def requested_before(self, chunk: Chunk, begins_at: datetime) -> Interval | None:
        """Return the requested interval before the first bar of a response, in real time.

        None for weeks: a weekly bar does not show on which day of its week the data begin.
        """
        timeframe, calendar = self.series.timeframe, self.state.calendar
        if timeframe is Timeframe.W1:
            return None
        spans = session_grid(calendar, timeframe).spans_in(chunk.interval)
        first = spans[0].opens_at if spans else chunk.interval.start
        if timeframe.is_intraday:
            return between(first, begins_at)
        began = next((span for span in spans if begins_at in span.interval), None)
        return between(first, began.opens_at) if began else None

    def oldest_known(self) -> datetime | None:
        """Return when the oldest covered session of the series opens, in real time."""
        bounds = self.state.bars.bounds
        if bounds is None:
            return None
        if self.series.timeframe.is_intraday:
            return bounds.start
        spans = session_grid(self.state.calendar, self.series.timeframe).spans_in(
            Interval(bounds.start, bounds.start + _INSTANT)
        )
        return spans[0].opens_at if spans else bounds.start

    async def learn_sessions(self, day: date) -> bool:
        """Request the schedule of a date without bars; return whether the calendar changed."""
        if not await self.context.schedules.after_empty_session(self.series, day, self.note):
            return False
        self.learn_calendar()
        return True

    def learn_from_bars(self, bars: pa.Table) -> None:
        """Update the instrument's calendar by what kept bars show of its sessions."""
        schedules, series = self.context.schedules, self.series
        if schedules.saw_bars(series.instrument, series.timeframe, bars, self.note):
            self.learn_calendar()

    def learn_calendar(self) -> None:
        """Use the newest calendar; another series of the symbol may have extended it."""
        calendar = self.context.calendars.of(self.series.instrument)
        if calendar is not self.state.calendar:
            self.state.learn_calendar(calendar)

    async def is_alive(self) -> bool:
        """Return whether the contract has lately returned bars; if not, the series run is over."""
        if await self.context.life.are_there(self.requester, self._head):
            return True
        if not self.is_dead:
            self.is_dead = True
            self.note(
                f"the gateway has no data of {self.series.instrument} at all, so no session is "
                "confirmed empty: permissions may be missing, or the instrument has ended"
            )
        return False

    async def _head(self) -> datetime | None:
        source_session, instrument = self.context.source_session, self.series.instrument
        return await self.context.ranges.head(
            source_session, instrument, self.identity.contract_id, self.note
        )

    def compare_with_held(self, chunk: Chunk, bars: pa.Table) -> None:
        """Check whether bars received again agree with those that are held.

        Prices are compared only before the chunk: inside it, new bars replace held ones. The unit
        of volume is compared inside too, because a change makes a jump at either end of the chunk.
        """
        keys, start = timestamps(bars), chunk.interval.start
        low, high = moment(int(keys[0])), moment(int(keys[-1])) + _INSTANT
        again = bars.filter(pa.array(keys < micros(start)))
        has_lots = self._has_lots and bool(self.state.bars_before.clip(Interval(low, high)))
        if not again.num_rows and not has_lots:
            return
        held = self.context.store.read(self.series, Interval(low, high if has_lots else start))
        if has_lots:
            whole = bars.slice(1) if self.series.timeframe.is_intraday else bars
            self._report_volume(compare_volume(held, whole))
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
        """Whether the gateway may give the instrument's volume in shares or in lots."""
        instrument = self.series.instrument
        is_traded = instrument.what_to_show is WhatToShow.TRADES
        return instrument.sec_type is SecType.STK and is_traded

    def compare_volumes(self) -> None:
        """Check whether volumes jump by a lot where bars of this run adjoin those of other runs.

        The comparison needs some sessions on either side. An intraday tail is compared only once
        its last session has closed.
        """
        if self._gained is None or not self._has_lots:
            return
        first, last = self._gained
        calendar, timeframe = self.state.calendar, self.series.timeframe
        now = self.context.source_session.now()
        today = calendar.day_of(now - final_lag())
        is_over = all(one.closes_at + final_lag() <= now for one in calendar.sessions(last, today))
        if self._is_tail and timeframe.is_intraday and (last > today or not is_over):
            return
        days = [day for day in self.context.store.rows_per_session(self.series) if day <= today]
        for boundary in sorted({first, last}):
            position = bisect_left(days, boundary)
            around = days[max(0, position - 2 * SESSIONS) : position + 2 * SESSIONS]
            if all(first <= day <= last for day in around):
                continue
            start, end = around[0], around[-1] + _DAY
            if timeframe is Timeframe.W1:
                start, end = monday_of(start), monday_of(around[-1]) + 7 * _DAY
            part = interval_between(calendar, timeframe, start, end)
            self._report_volume(between_sessions(self.context.store.read(self.series, part)))

    def _report_volume(self, found: Disagreement | None) -> None:
        """Record a jump of volumes and report it once."""
        ledger, key = self.context.store.ledger, series_key(self.series)
        if found is None or is_told(found, ledger.disagreements(key, DisagreementKind.VOLUME)):
            return
        ledger.record_disagreement(key, found, self.context.source_session.retry_policy.clock())
        self.note(str(found))

    def cover(self, coverage: Coverage, bars: pa.Table | None = None) -> None:
        """Add what a response covered to the state, and queue it with its bars for saving."""
        if bars is not None and bars.num_rows:
            days = (bars["session_date"][0].as_py(), bars["session_date"][-1].as_py())
            before = self._gained or days
            self._gained = min(days[0], before[0]), max(days[1], before[1])
        self.state.cover(coverage, self.context.source_session.market_now())
        self.commits.add(bars, coverage)

    def _save(self, bars: pa.Table, coverage: Coverage) -> SaveResult:
        """Save bars and coverage, then update the ledger; runs in the thread of the commits."""
        ledger, key = self.context.store.ledger, series_key(self.series)
        retry_policy = self.context.source_session.retry_policy
        result = self.context.store.save(self.series, self.identity, bars, coverage)
        # Findings of replaced bars are cleared only now that the new bars are on disk.
        if known := ledger.findings(key):
            _, found = explained(bars, self.series.instrument.sec_type, known)
            stale = {one.ts for one in known} - {one.ts for one in found}
            if replaced := stale & set(timestamps(bars).tolist()):
                ledger.clear_findings(key, replaced)
        if self._is_refresh:  # a refresh that is stopped resumes after what it has received
            answered = coverage.covered(retry_policy.market_clock()) & self.state.again
            ledger.record_refreshed(key, answered, retry_policy.clock())
        return result

    def days_of(self, span: Span) -> set[date]:
        """Return the session dates inside a span."""
        inside = Interval(span.opens_at, span.closes_at)
        return {one.day for one in self.state.calendar.sessions_meeting(inside)}

    def has_traded(self, span: Span) -> bool:
        """Return whether the gateway returned daily bars with volume for a session."""
        inside = Interval(span.opens_at, span.closes_at)
        return any(
            one.kind is StatementKind.TRADED and one.interval.overlaps(inside)
            for one in self.context.evidence.of(self.series.symbol).statements
        )

    def skip(self, interval: Interval) -> None:
        """Leave an interval unrequested, because neighbouring requests returned no bars."""
        part = self.need(interval).gaps()
        self._skipped |= part
        self.defer_part(part)

    def was_skipped(self, interval: Interval) -> bool:
        """Return whether this run left an interval unrequested."""
        return self._skipped.covers(interval)

    def refreshed(self) -> IntervalSet:
        """Return what was requested again and confirmed.

        An interval without bars for which a response again held none is unchanged: a response with
        bars on one side only does not void it, and needs no second one.
        """
        again = self.state.unconfirmed_again(self.context.source_session.market_now())
        same = [one for one in again if not self.context.store.read(self.series, one).num_rows]
        return (self.state.proved & self.state.again) | IntervalSet(same)

    def defer(self, interval: Interval) -> None:
        """Defer what is open in an interval to another request or run."""
        self.defer_part(self.need(interval).gaps())

    def defer_part(self, part: IntervalSet) -> None:
        """Defer an open part to another request or run."""
        if part:
            self.state.defer(part)

    def note(self, text: str) -> None:
        """Report a note to the user."""
        self.context.progress.noted(self.series, text)
