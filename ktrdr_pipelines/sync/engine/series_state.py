"""The state of one series in a load: wanted, covered, excused, deferred.

What one load knows of its series: what is wanted, covered, excused and deferred.

The outlook of a series: what a job wants of it and what is missing, as far as the store knows.

It asks nobody, so a plan and the load that follows it begin with the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from ktrdr_pipelines.domain.bars import micros, moment
from ktrdr_pipelines.domain.calendars.registry import Calendars
from ktrdr_pipelines.domain.calendars.session_grid import interval_arrays, span_arrays
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar, expected_spans
from ktrdr_pipelines.domain.coverage import REFUTABLE, Coverage
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.domain.planning.chunks import Need
from ktrdr_pipelines.domain.planning.gaps import (
    due_gaps,
    first_interval_of,
    is_closed,
    whole_sessions,
)
from ktrdr_pipelines.domain.planning.jobs import Bounds, LoadOptions, Mode, RequestedBy, wanted_by
from ktrdr_pipelines.domain.planning.retry_schedule import TO_CONFIRM, AttemptKind
from ktrdr_pipelines.domain.planning.sparse_sessions import may_be_sparse, sparse_days
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.evidence import Evidence
from ktrdr_pipelines.store.ledger.ledger import series_key
from ktrdr_pipelines.sync.discovery.contracts import known_contract
from ktrdr_pipelines.sync.discovery.head_timestamps import RangeDiscovery
from ktrdr_pipelines.sync.engine.writer import FailedAttempts, deferred, next_try


@dataclass(frozen=True, slots=True)
class SparseSession:
    """A session that has far fewer bars than its neighbours, and how many."""

    day: date
    interval: Interval
    rows: int


class SeriesState:
    """The facts of one series in one run; they only ever grow.

    Args:
        series: what is loaded.
        wanted: the interval that is wanted, on the stamp axis; sessions that it cuts are wanted
            as a whole.
        coverage: what is covered on disk.
        calendar: the sessions that are expected.
        again: what is asked for once more although it is covered, on the stamp axis; whole
            sessions too.
        sparse sessions: the sessions for whose sake it is, if for any.
    """

    def __init__(
        self,
        series: Series,
        wanted: IntervalSet,
        coverage: Coverage,
        *,
        calendar: SessionCalendar,
        again: IntervalSet | None = None,
        sparse_sessions: tuple[SparseSession, ...] = (),
    ) -> None:
        self.series = series
        self.calendar = calendar
        self.wanted = whole_sessions(self.calendar, series.timeframe, wanted)
        self.bars = coverage.bars
        self.empty = IntervalSet()
        self.begins: date | None = None
        self.again = whole_sessions(self.calendar, series.timeframe, again or IntervalSet())
        self.sparse_sessions = sparse_sessions
        self.proved = IntervalSet()
        self.unconfirmed = self.without_bars = IntervalSet()
        self.skipped = IntervalSet()
        self.next_try_at: datetime | None = None
        self._stored = coverage
        self._covered: IntervalSet | None = None
        self._deferred = IntervalSet()
        self._answered = IntervalSet()

    def need(
        self,
        now: datetime,
        proof_now: datetime,
        within: Interval | None = None,
        *,
        everything: bool = False,
    ) -> Need:
        """State wants and facts as they stand.

        Args:
            now: the gateway's time; it says what is due.
            proof_now: this machine's time; when first asked, it says for the whole run which
                proofs of emptiness still hold.
            within: only this interval.
            everything: also what this run has deferred.
        """
        wanted = (self.wanted.clip(within) if within else self.wanted) - self.before_listing
        bars = self.bars.bounds
        return Need(
            calendar=self.calendar,
            timeframe=self.series.timeframe,
            wanted=wanted if everything else wanted - self._deferred,
            covered=self._known(proof_now),
            now=now,
            most_days=IbLimitsRegistry.SAFE_DAYS.value[self.series.timeframe.value],
            known_from=bars.start if bars else None,
            unconfirmed=self.empty_before | self.unconfirmed,
            without_bars=self.empty_before | self.without_bars,
        )

    @property
    def before_listing(self) -> IntervalSet:
        """What is excused because the contract's data begin later.

        Of the first session, what lies before its first bar is excused too.
        """
        bounds = self.wanted.bounds
        if self.begins is None or bounds is None:
            return IntervalSet()
        ends = first_interval_of(self.calendar, self.series.timeframe, self.begins)
        bars = self.bars.bounds
        end = bars.start if bars is not None and bars.start in ends else ends.start
        before = between(bounds.start, end)
        return IntervalSet([before] if before else [])

    def left(self, need: Need, proof_now: datetime) -> IntervalSet:
        """Give what is missing of a need, whatever of it was to be asked for once more.

        ``proof_now`` is this machine's time, as in ``need``.

        Asking again takes nothing back: what was covered before and could not be had again is
        covered still.
        """
        before = self._stored.covered(proof_now)
        return due_gaps(
            need.calendar,
            need.timeframe,
            wanted=need.wanted,
            covered=need.covered | before,
            now=need.now,
        )

    def open_in(self, interval: Interval, now: datetime, proof_now: datetime) -> IntervalSet:
        """Give what has no answer in an interval, whether or not this run wants it."""
        return due_gaps(
            self.calendar,
            self.series.timeframe,
            wanted=IntervalSet([interval]) - self.before_listing,
            covered=self._known(proof_now),
            now=now,
        )

    def cover(self, coverage: Coverage, proof_now: datetime) -> None:
        """Take in what a response covered, or what was proved to be empty."""
        self.bars |= coverage.bars
        self.empty |= IntervalSet(proof.interval for proof in coverage.empty)
        is_covered = coverage.covered(proof_now)
        self.proved |= is_covered
        self._covered = self._known(proof_now) | is_covered

    def answered(self, interval: IntervalSet) -> None:
        """Take in that responses came to requests for these timestamps, whatever they held."""
        self._answered |= interval

    def unconfirmed_again(self, proof_now: datetime) -> IntervalSet:
        """Give what was covered and requested again, to responses that prove nothing of it."""
        return (self.again & self._answered & self._stored.covered(proof_now)) - self.proved

    @property
    def bars_before(self) -> IntervalSet:
        """What was covered with bars when the run began."""
        return self._stored.bars

    @property
    def empty_before(self) -> IntervalSet:
        """What was ever proved to be empty when the run began; ``empty`` is what it proved."""
        return IntervalSet(proof.interval for proof in self._stored.empty)

    @property
    def confirmed_before(self) -> IntervalSet:
        """The part of ``empty_before`` that nothing contradicted; a person's word is not in it."""
        return IntervalSet(
            proof.interval for proof in self._stored.empty if proof.kind in REFUTABLE
        )

    def learn(self, stored: Coverage, proof_now: datetime) -> None:
        """Take in what stands on disk by now, by whomever; it answers no second question."""
        self.bars |= stored.bars
        self._covered = self._known(proof_now) | (stored.covered(proof_now) - self.again)

    def _known(self, proof_now: datetime) -> IntervalSet:
        if self._covered is None:
            self._covered = self._stored.covered(proof_now) - self.again
        return self._covered

    def learn_calendar(self, calendar: SessionCalendar) -> None:
        """Expect other sessions than so far; what was wanted stays wanted."""
        self.calendar = calendar
        self.wanted |= whole_sessions(calendar, self.series.timeframe, self.wanted)

    def defer(self, part: IntervalSet) -> None:
        """Leave a part to another request or run."""
        self._deferred |= part

    def resume(self, part: IntervalSet) -> None:
        """Request a part after all."""
        self._deferred -= part

    def defer_sessions(self, interval: IntervalSet, until: datetime | None) -> None:
        """Leave the sessions of an interval alone, because they were tried in vain a while ago."""
        self.skipped = whole_sessions(self.calendar, self.series.timeframe, interval)
        self.next_try_at = until if interval else None
        self.defer(self.skipped)

    def excuse_before(self, day: date | None) -> None:
        """Excuse what lies before the session date at which the contract's data begin."""
        self.begins = day

    def days_of(self, interval: Interval) -> tuple[date, date]:
        """Give the session dates of the first and the last moment of an interval of timestamps."""
        last = interval.end - timedelta(microseconds=1)
        if self.series.timeframe.is_intraday:
            return self.calendar.day_of(interval.start), self.calendar.day_of(last)
        return interval.start.date(), last.date()


def of_open_session(need: Need, gaps: IntervalSet) -> IntervalSet:
    """Give the part of gaps that belongs to sessions which have not closed."""
    bounds: Interval | None = gaps.bounds
    if bounds is None:
        return gaps
    spans = expected_spans(need.calendar, need.timeframe, bounds)
    closed = (span.interval for span in spans if is_closed(span, need.now))
    return gaps - IntervalSet(closed)


@dataclass(frozen=True, slots=True)
class Job:
    """One series to load: by mode and bounds, or an interval of timestamps.

    ``requested_by`` says whether what was tried in vain is deferred; ``refresh`` asks also for what
    is covered, once.
    """

    series: Series
    mode: Mode = Mode.FULL
    bounds: Bounds = field(default_factory=Bounds)
    wanted: IntervalSet | None = None
    requested_by: RequestedBy = RequestedBy.PERSON
    refresh: bool = False

    @property
    def options(self) -> LoadOptions:
        """How it is asked for."""
        return LoadOptions(self.mode is Mode.TAIL, self.requested_by, self.refresh)


class SeriesStates:
    """Looks at series of one store.

    Args:
        store: what is covered.
        calendars: which sessions are expected.
        ranges: where data begin.
        clock: real time.
        market_clock: market time; the same if not given.
    """

    def __init__(
        self,
        store: BarStore,
        calendars: Calendars,
        ranges: RangeDiscovery,
        clock: Callable[[], datetime],
        *,
        market_clock: Callable[[], datetime] | None = None,
    ) -> None:
        self._store = store
        self._calendars = calendars
        self._ranges = ranges
        self._clock = clock
        self._market_clock = market_clock or clock

    def wanted(self, job: Job, now: datetime) -> IntervalSet:
        """Give the interval of timestamps that a job means."""
        if job.wanted is not None:
            return job.wanted
        attempts = self._store.ledger.attempts(series_key(job.series))
        return wanted_by(
            job.mode,
            job.series,
            bounds=job.bounds,
            coverage=self._store.coverage(job.series),
            failed=IntervalSet(attempt.interval for attempt in attempts),
            calendar=self._calendars.of(job.series.instrument),
            now=now,
        )

    def missing(self, job: Job, now: datetime) -> IntervalSet:
        """Give what a job would ask for now, on the stamp axis."""
        state = self.state(job.series, self.wanted(job, now), job.options)
        return state.need(now, self._market_clock()).gaps()

    def unexplained(self, job: Job, now: datetime) -> IntervalSet:
        """Return what a job wants and the store neither covers nor explains, sessions that closed.

        Args:
            job: what is wanted.
            now: the gateway's time.
        """
        state = self.state(job.series, self.wanted(job, now), LoadOptions(tail=True))
        need = state.need(now, self._market_clock(), everything=True)
        gaps = state.left(need, self._market_clock())
        return gaps - of_open_session(need, gaps)

    def state(self, series: Series, wanted: IntervalSet, options: LoadOptions) -> SeriesState:
        """Give what is known of a series: what is covered, excused and deferred."""
        coverage, calendar = self._store.coverage(series), self._calendars.of(series.instrument)
        sparse_sessions = () if options.refresh or options.tail else self.due_sparse(series)
        again = IntervalSet(one.interval for one in sparse_sessions) & wanted
        if options.refresh:
            again = wanted - self._refreshed(series)
        state = SeriesState(
            series,
            wanted,
            coverage,
            calendar=calendar,
            again=again,
            sparse_sessions=sparse_sessions,
        )
        contract_id = known_contract(self._store, series)
        if contract_id is not None:
            self.recall_beginning(state, contract_id)
        self._defer_failed(state, options)
        return state

    def _refreshed(self, series: Series) -> IntervalSet:
        """Give what a refresh that was stopped has had already: the next one goes on from there."""
        known = self._store.ledger.refreshed(series_key(series), self._clock())
        return known.intervals if known else IntervalSet()

    def due_sparse(self, series: Series) -> tuple[SparseSession, ...]:
        """Return the sparse sessions that may be requested once more by now.

        A second response counts only some time after the first: a gateway that is ill for a
        minute returns too little twice.
        """
        early = IntervalSet(
            attempt.interval
            for attempt in self._store.ledger.attempts(series_key(series))
            if attempt.kind is AttemptKind.SPARSE and not attempt.is_due(self._clock())
        )
        return tuple(one for one in self.sparse_sessions(series) if not early.clip(one.interval))

    def sparse_sessions(
        self, series: Series, begins: date | None = None
    ) -> tuple[SparseSession, ...]:
        """Return the sparse sessions: far fewer bars than their neighbours, or none.

        What was requested once more and gave the same is not sparse any more, and what is proved
        to be empty is judged by its statements. The session at which the data begin may begin late.
        """
        coverage, calendar = self._store.coverage(series), self._calendars.of(series.instrument)
        if not coverage.bars or series.timeframe is Timeframe.W1:
            return ()
        spans, rows = span_arrays(calendar, series.timeframe), self._store.rows_per_session(series)
        traded = self._store.traded_per_session(series)
        covered, now = interval_arrays(coverage.bars), micros(self._market_clock())
        confirmed = self._store.ledger.confirmed(series_key(series))
        found = (
            (
                spans.days[position].item(),
                int(spans.spans.starts[position]),
                int(spans.spans.ends[position]),
            )
            for position in sparse_days(spans, rows, covered, now, traded=traded)
        )
        return tuple(
            SparseSession(day, Interval(moment(start), moment(end)), rows.get(day, 0))
            for day, start, end in found
            if confirmed.get(day) != rows.get(day, 0)
            and day != begins
            and may_be_sparse(series.instrument, day)
        )

    def recall_beginning(self, state: SeriesState, contract_id: int) -> None:
        """Excuse what lies before the contract's data, as far as statements prove that."""
        series, bounds = state.series, state.bars.bounds
        evidence = Evidence(self._store, self._ranges.gateway, self._clock)
        head = self._ranges.known_head(series.instrument, contract_id)
        unsaved = (
            state.days_of(bounds)[0] if bounds and series.timeframe is not Timeframe.W1 else None
        )
        found = evidence.beginning(series.instrument, state.calendar, head, unsaved=unsaved)
        state.excuse_before(found)

    def _defer_failed(self, state: SeriesState, options: LoadOptions) -> None:
        """Leave to later what automatic work has tried in vain a short while ago.

        A session is left alone as a whole: else its newest minutes would be asked for again and
        again while its older ones wait. A tail that finds nothing new confirms nothing old.
        """
        if options.requested_by is RequestedBy.PERSON:
            return
        now = self._clock()
        attempts = FailedAttempts(self._store.ledger, state.series, self._clock).known()
        alone = deferred(attempts, state.wanted, now)
        if options.tail:
            waits = IntervalSet(one.interval for one in attempts if one.kind in TO_CONFIRM)
            market_now = self._market_clock()
            if not state.need(market_now, market_now).gaps() - waits:
                alone |= waits & state.wanted
        state.defer_sessions(alone, next_try(attempts, now))
