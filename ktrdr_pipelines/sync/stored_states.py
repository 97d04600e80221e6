"""States of series as the store alone knows them, before a run and for plans without a gateway.

A plan and the load that follows it start from the same state.

Not here: what a run changes (``sync.engine.series_state``), recording failed attempts
(``sync.engine.failed_attempts``).
"""

from collections.abc import Callable
from datetime import date, datetime

from ktrdr_pipelines.domain.bars import micros, moment
from ktrdr_pipelines.domain.calendars.registry import Calendars
from ktrdr_pipelines.domain.calendars.session_grid import session_grid
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.jobs import Job, LoadOptions, RequestedBy, wanted_by
from ktrdr_pipelines.domain.planning.retry_schedule import TO_CONFIRM, AttemptKind
from ktrdr_pipelines.domain.planning.sparse_sessions import may_be_sparse, sparse_days
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.evidence import Evidence
from ktrdr_pipelines.store.ledger.ledger import series_key
from ktrdr_pipelines.sync.discovery.contracts import known_contract
from ktrdr_pipelines.sync.engine.failed_attempts import deferred, next_try
from ktrdr_pipelines.sync.engine.series_state import SeriesState, SparseSession


class SeriesStates:
    """Makes the states of series from one store.

    Args:
        store: gives coverage, and attempts through its ledger.
        calendars: the expected sessions.
        evidence: the statements from which follows where data begin.
        clock: real time.
        market_clock: market time; real time if not given.
    """

    def __init__(
        self,
        store: BarStore,
        calendars: Calendars,
        evidence: Evidence,
        clock: Callable[[], datetime],
        *,
        market_clock: Callable[[], datetime] | None = None,
    ) -> None:
        self._store = store
        self._calendars = calendars
        self._evidence = evidence
        self._clock = clock
        self._market_clock = market_clock or clock

    def wanted(self, job: Job, now: datetime) -> IntervalSet:
        """Return what a job wants, by bar timestamp."""
        if job.wanted is not None:
            return job.wanted
        attempts = self._store.ledger.attempts.of(series_key(job.series))
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
        return state.closed_gaps(now, self._market_clock())

    def state(self, series: Series, wanted: IntervalSet, options: LoadOptions) -> SeriesState:
        """Return the state of a series at the start of a run: covered, excused and deferred."""
        coverage, calendar = self._store.coverage(series), self._calendars.of(series.instrument)
        sparse_sessions = () if options.refresh or options.tail else self.due_sparse(series)
        again = IntervalSet(one.interval for one in sparse_sessions) & wanted
        if options.refresh:
            # A refresh that was stopped resumes after what it has received.
            known = self._store.ledger.refreshes.of(series_key(series), self._clock())
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
            for attempt in self._store.ledger.attempts.of(series_key(series))
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
        calendar, market_now = self._calendars.of(series.instrument), self._market_clock()
        return sparse_sessions(self._store, series, calendar, market_now, begins=begins)

    def recall_beginning(self, state: SeriesState, contract_id: int) -> None:
        """Excuse what lies before the contract's data, if statements prove where these begin."""
        instrument, calendar = state.series.instrument, state.calendar
        state.excuse_before(
            self._evidence.beginning(instrument, contract_id, calendar, unsaved=state.oldest_day)
        )

    def _defer_failed(self, state: SeriesState, options: LoadOptions) -> None:
        """Defer the ranges of recent failed attempts, unless a person requested the load.

        A session is deferred as a whole: otherwise its newest minutes would be requested again and
        again while its older ones wait. A tail that finds nothing new confirms nothing old.
        """
        if options.requested_by is RequestedBy.PERSON:
            return
        now = self._clock()
        attempts = self._store.ledger.attempts.of(series_key(state.series))
        skipped = deferred(attempts, state.wanted, now)
        if options.tail:
            waits = IntervalSet(one.interval for one in attempts if one.kind in TO_CONFIRM)
            market_now = self._market_clock()
            if not state.need(market_now, market_now).gaps() - waits:
                skipped |= waits & state.wanted
        state.defer_sessions(skipped, next_try(attempts, now))


def sparse_sessions(
    store: BarStore,
    series: Series,
    calendar: SessionCalendar,
    market_now: datetime,
    *,
    begins: date | None,
) -> tuple[SparseSession, ...]:
    """Return the sparse sessions of a series that were not confirmed by a second response.

    Args:
        store: the files and the ledger.
        series: the series.
        calendar: its sessions.
        market_now: market time.
        begins: the session date at which the data begin, if known.
    """
    coverage = store.coverage(series)
    if not coverage.bars or series.timeframe is Timeframe.W1:
        return ()
    spans, rows = session_grid(calendar, series.timeframe), store.rows_per_session(series)
    covered, now = coverage.bars, micros(market_now)
    traded = store.traded_per_session(series)
    confirmed = store.ledger.confirmed.of(series_key(series))
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
