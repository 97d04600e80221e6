"""The state of one series in a run: what is wanted, covered, excused and deferred.

``SeriesStates`` makes it from the store alone, without a request to the gateway, so that a plan and
the load that follows it start from the same state. All intervals of a state are of bar timestamps.
Not here: recording failed attempts (``sync.engine.writer``), the rules of gaps
(``domain.planning.gaps``).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from ktrdr_pipelines.domain.bars import micros, moment
from ktrdr_pipelines.domain.calendars.registry import Calendars
from ktrdr_pipelines.domain.calendars.session_grid import session_grid
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from ktrdr_pipelines.domain.coverage import REFUTABLE, Coverage
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.domain.planning.chunks import Need
from ktrdr_pipelines.domain.planning.gaps import due_gaps, first_interval_of, is_closed
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
    """What one run knows of its series; coverage is only ever added.

    Args:
        series: what is loaded.
        wanted: what is wanted, by bar timestamp; sessions that it cuts are wanted as a whole.
        coverage: what is covered on disk.
        calendar: the sessions that are expected.
        again: what is requested once more although it is covered, by bar timestamp; widened to
            whole sessions too.
        sparse_sessions: the sparse sessions that are part of ``again``, if any.
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
        self.wanted = session_grid(self.calendar, series.timeframe).widened(wanted)
        self.bars = coverage.bars
        self.empty = IntervalSet()
        self.begins: date | None = None
        self.again = session_grid(self.calendar, series.timeframe).widened(again or IntervalSet())
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
        """Return what planning needs of this state.

        Args:
            now: the gateway's time, which decides what is due.
            proof_now: this machine's time, which decides which confirmed empty ranges still hold;
            the
                first value passed decides for the whole run.
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

        In the first session, this includes what lies before its first bar.
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
        """Return what is missing of a need, not counting what is only to be requested once more.

        What was covered before the run stays covered, even if requesting it again fails.
        ``proof_now`` is this machine's time, as in ``need``.
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
        """Return what is due and not covered in an interval, whether or not this run wants it."""
        return due_gaps(
            self.calendar,
            self.series.timeframe,
            wanted=IntervalSet([interval]) - self.before_listing,
            covered=self._known(proof_now),
            now=now,
        )

    def cover(self, coverage: Coverage, proof_now: datetime) -> None:
        """Add what a response covered, or what was confirmed empty."""
        self.bars |= coverage.bars
        self.empty |= IntervalSet(proof.interval for proof in coverage.empty)
        covered = coverage.covered(proof_now)
        self.proved |= covered
        self._covered = self._known(proof_now) | covered

    def answered(self, interval: IntervalSet) -> None:
        """Record that requests for these timestamps got a response, with or without bars."""
        self._answered |= interval

    def unconfirmed_again(self, proof_now: datetime) -> IntervalSet:
        """Return what was covered and requested again, but not proved by the responses."""
        return (self.again & self._answered & self._stored.covered(proof_now)) - self.proved

    @property
    def bars_before(self) -> IntervalSet:
        """What was covered with bars when the run began."""
        return self._stored.bars

    @property
    def empty_before(self) -> IntervalSet:
        """What earlier runs confirmed empty, also if expired; ``empty`` is what this one did."""
        return IntervalSet(proof.interval for proof in self._stored.empty)

    @property
    def confirmed_before(self) -> IntervalSet:
        """The part of ``empty_before`` that nothing contradicted and no user acknowledged."""
        return IntervalSet(
            proof.interval for proof in self._stored.empty if proof.kind in REFUTABLE
        )

    def learn(self, stored: Coverage, proof_now: datetime) -> None:
        """Add what any run has saved on disk by now; it does not count as requested again."""
        self.bars |= stored.bars
        self._covered = self._known(proof_now) | (stored.covered(proof_now) - self.again)

    def _known(self, proof_now: datetime) -> IntervalSet:
        if self._covered is None:
            self._covered = self._stored.covered(proof_now) - self.again
        return self._covered

    def learn_calendar(self, calendar: SessionCalendar) -> None:
        """Replace the expected sessions; what was wanted stays wanted."""
        self.calendar = calendar
        self.wanted |= session_grid(calendar, self.series.timeframe).widened(self.wanted)

    def defer(self, part: IntervalSet) -> None:
        """Defer a part to another request or run."""
        self._deferred |= part

    def resume(self, part: IntervalSet) -> None:
        """Stop deferring a part, so that it is requested after all."""
        self._deferred -= part

    def defer_sessions(self, interval: IntervalSet, until: datetime | None) -> None:
        """Skip the sessions of an interval until a time, because of earlier failed attempts."""
        self.skipped = session_grid(self.calendar, self.series.timeframe).widened(interval)
        self.next_try_at = until if interval else None
        self.defer(self.skipped)

    def excuse_before(self, day: date | None) -> None:
        """Excuse what lies before the session date at which the contract's data begin."""
        self.begins = day

    def days_of(self, interval: Interval) -> tuple[date, date]:
        """Return the session dates of the first and the last moment of an interval."""
        last = interval.end - timedelta(microseconds=1)
        if self.series.timeframe.is_intraday:
            return self.calendar.day_of(interval.start), self.calendar.day_of(last)
        return interval.start.date(), last.date()


def of_open_session(need: Need, gaps: IntervalSet) -> IntervalSet:
    """Return the part of gaps that belongs to sessions that have not closed."""
    bounds: Interval | None = gaps.bounds
    if bounds is None:
        return gaps
    spans = need.grid.spans_in(bounds)
    closed = (span.interval for span in spans if is_closed(span, need.now))
    return gaps - IntervalSet(closed)


@dataclass(frozen=True, slots=True)
class Job:
    """One series to load: by mode and bounds, or by an interval of bar timestamps.

    ``requested_by`` decides whether ranges of failed attempts are deferred; with ``refresh``, what
    is covered is requested once more too.
    """

    series: Series
    mode: Mode = Mode.FULL
    bounds: Bounds = field(default_factory=Bounds)
    wanted: IntervalSet | None = None
    requested_by: RequestedBy = RequestedBy.PERSON
    refresh: bool = False

    @property
    def options(self) -> LoadOptions:
        """The load options of the job."""
        return LoadOptions(self.mode is Mode.TAIL, self.requested_by, self.refresh)


class SeriesStates:
    """Makes the states of series from one store.

    Args:
        store: gives coverage, and attempts through its ledger.
        calendars: the expected sessions.
        ranges: where the data of contracts begin.
        clock: real time.
        market_clock: market time; real time if not given.
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
        """Return what a job wants, by bar timestamp."""
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
        """Return what a job would request now, by bar timestamp."""
        state = self.state(job.series, self.wanted(job, now), job.options)
        return state.need(now, self._market_clock()).gaps()

    def unexplained(self, job: Job, now: datetime) -> IntervalSet:
        """Return what a job wants of closed sessions that the store neither covers nor explains.

        Args:
            job: what is wanted.
            now: the gateway's time.
        """
        state = self.state(job.series, self.wanted(job, now), LoadOptions(tail=True))
        need = state.need(now, self._market_clock(), everything=True)
        gaps = state.left(need, self._market_clock())
        return gaps - of_open_session(need, gaps)

    def state(self, series: Series, wanted: IntervalSet, options: LoadOptions) -> SeriesState:
        """Return the state of a series at the start of a run: covered, excused and deferred."""
        coverage, calendar = self._store.coverage(series), self._calendars.of(series.instrument)
        sparse_sessions = () if options.refresh or options.tail else self.due_sparse(series)
        again = IntervalSet(one.interval for one in sparse_sessions) & wanted
        if options.refresh:
            # A refresh that was stopped resumes after what it has received.
            known = self._store.ledger.refreshed(series_key(series), self._clock())
            again = wanted - known.intervals if known else wanted
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

    def due_sparse(self, series: Series) -> tuple[SparseSession, ...]:
        """Return the sparse sessions that are due to be requested once more.

        A second response counts only some time after the first: a gateway with a short fault
        returns too few bars twice.
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

        A session that returned the same bars when requested once more is no longer sparse. Sessions
        that are confirmed empty are judged by their statements instead. ``begins`` is the session
        date at which the data begin: that session may begin late.
        """
        coverage, calendar = self._store.coverage(series), self._calendars.of(series.instrument)
        if not coverage.bars or series.timeframe is Timeframe.W1:
            return ()
        spans, rows = session_grid(calendar, series.timeframe), self._store.rows_per_session(series)
        traded = self._store.traded_per_session(series)
        covered, now = coverage.bars, micros(self._market_clock())
        confirmed = self._store.ledger.confirmed(series_key(series))
        found = (
            (
                spans.days[position].item(),
                int(spans.starts[position]),
                int(spans.ends[position]),
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
        """Excuse what lies before the contract's data, if statements prove where these begin."""
        series, bounds = state.series, state.bars.bounds
        evidence = Evidence(self._store, self._ranges.gateway, self._clock)
        head = self._ranges.known_head(series.instrument, contract_id)
        unsaved = (
            state.days_of(bounds)[0] if bounds and series.timeframe is not Timeframe.W1 else None
        )
        found = evidence.beginning(series.instrument, state.calendar, head, unsaved=unsaved)
        state.excuse_before(found)

    def _defer_failed(self, state: SeriesState, options: LoadOptions) -> None:
        """Defer the ranges of recent failed attempts, unless a person requested the load.

        A session is deferred as a whole: otherwise its newest minutes would be requested again and
        again while its older ones wait. A tail that finds nothing new confirms nothing old.
        """
        if options.requested_by is RequestedBy.PERSON:
            return
        now = self._clock()
        attempts = FailedAttempts(self._store.ledger, state.series, self._clock).known()
        skipped = deferred(attempts, state.wanted, now)
        if options.tail:
            waits = IntervalSet(one.interval for one in attempts if one.kind in TO_CONFIRM)
            market_now = self._market_clock()
            if not state.need(market_now, market_now).gaps() - waits:
                skipped |= waits & state.wanted
        state.defer_sessions(skipped, next_try(attempts, now))
