"""Loading one series: learning its sessions and contract, one series run, and the report.

Not here: many series in one run (``sync.runner``), the rounds of requests
(``sync.engine.series_run``), the rules (``domain.planning``).
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial

from ktrdr_pipelines.domain.adjustments import Adjustment, AdjustmentKind
from ktrdr_pipelines.domain.instruments import Identity, Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.jobs import Job, LoadOptions
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.planning.retry_schedule import TO_CONFIRM, AttemptKind
from ktrdr_pipelines.errors import (
    ClientIdInUseError,
    ForeignIdentityError,
    GatewayError,
    GatewayUnreachableError,
)
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.claim_owners import Claimant
from ktrdr_pipelines.store.evidence import Evidence
from ktrdr_pipelines.store.ledger.attempts import Attempt
from ktrdr_pipelines.store.ledger.ledger import series_key
from ktrdr_pipelines.sync.discovery.contracts import learn_identity
from ktrdr_pipelines.sync.discovery.trading_hours import Schedules, must_learn_sessions
from ktrdr_pipelines.sync.engine.bar_requester import Fetcher, Requests
from ktrdr_pipelines.sync.engine.basis_check import BasisChecks
from ktrdr_pipelines.sync.engine.confirmation import Confirmation
from ktrdr_pipelines.sync.engine.failed_attempts import FailedAttempts, next_try
from ktrdr_pipelines.sync.engine.open_ranges import OpenRanges
from ktrdr_pipelines.sync.engine.series_run import SeriesRun
from ktrdr_pipelines.sync.engine.series_state import SeriesState, of_open_session
from ktrdr_pipelines.sync.engine.source_session import SourceSession
from ktrdr_pipelines.sync.engine.writer import SeriesWriter
from ktrdr_pipelines.sync.stored_states import SeriesStates

_NAMED_AT_MOST = 3


class SeriesLoader:
    """Loads series from a gateway into a store; one object serves many series at once.

    If a load is stopped, what it saved is kept; repeating it requests only the rest.

    Args:
        requests: the requests of the run.
        store: the files and the ledger.
        claimant: the owner of the run's claims.
        gateway: the gateway's name, under which the ledger records what is known of it.
        threads: writes what was received.
    """

    def __init__(
        self,
        requests: Requests,
        store: BarStore,
        claimant: Claimant,
        gateway: str,
        *,
        threads: Executor,
    ) -> None:
        self._requests, self._store = requests, store
        self._session, self._gateway = requests.source_session, gateway
        self._schedules = Schedules(store, self._session)
        self._evidence = Evidence(store, gateway, self._session.retry_policy.clock)
        self._runs = _SeriesRuns(
            requests,
            store,
            claimant,
            evidence=self._evidence,
            schedules=self._schedules,
            threads=threads,
        )
        self._adjustments_before: dict[str, int] = {}

    async def load(self, job: Job) -> SeriesReport:
        """Load what is missing of what a job wants.

        Returns: the report, which also has what is still missing and why.

        Raises:
            GatewayUnreachableError, ClientIdInUseError: no gateway can be reached.
            ForeignIdentityError: the store holds something else under this symbol.
            GatewayError: the contract, or sessions that only the gateway knows, could not be
                learned.
            StoreError: received bars could not be saved.
        """
        series, options = job.series, job.options
        self._adjustments_before.setdefault(series.symbol, len(self._store.bases.of(series.symbol)))
        wanted = self._states.wanted(job, self._session.now())
        await self._learn_sessions(series, wanted)
        state = self._states.state(series, wanted, options)
        if not options.refresh:
            return await self._run_series(state, options)
        if note := _resumed_refresh(self._requests, state):
            self._note(series, note)
        report = await self._run_series(state, options)
        return report if report.not_refreshed else _end_refresh(self._requests, state, report)

    def checked_again(self, job: Job, report: SeriesReport) -> SeriesReport:
        """Return a report updated to the store at the end of a run of many series.

        Bars of one timeframe may have refuted empty responses for another one that was finished
        before, or have shown that the symbol was re-based.
        """
        report = replace(
            report,
            adjustments=_found_since(self._store, report.series.symbol, self._adjustments_before),
        )
        if report.error is not None or report.now is None:
            return report
        missing = self._states.unexplained(job, report.now)
        known = report.unexplained | report.waiting | report.deferred
        return replace(
            report,
            unexplained=report.unexplained | (missing - known),
            unconfirmed_bars=_unconfirmed_bars(
                self._store, job.series, self._states.wanted(job, report.now)
            ),
        )

    @property
    def _states(self) -> SeriesStates:
        """The states by the calendars and the statements as they are recorded now.

        Another process may have recorded or voided statements since this run read them.
        """
        policy, calendars = self._session.retry_policy, self._schedules.calendars
        return SeriesStates(
            self._store,
            calendars,
            Evidence(self._store, self._gateway, policy.clock),
            policy.clock,
            market_clock=policy.market_clock,
        )

    async def _run_series(self, state: SeriesState, options: LoadOptions) -> SeriesReport:
        """Request what is due; if nothing is, no gateway is contacted."""
        series, series_run = state.series, None
        gaps = state.need(self._session.now(), self._session.market_now()).gaps().bounds
        if gaps is not None:
            with _failures_recorded(self._requests, series, gaps):
                identity = await learn_identity(self._session, self._store, series)
            self._states.recall_beginning(state, identity.contract_id)
            note = partial(self._note, series)
            await self._schedules.learn_stated_hours(series.instrument, note)
            if (bounds := state.wanted.bounds) is not None:
                await self._schedules.learn_own_hours(series, bounds, note)
            state.learn_calendar(self._schedules.calendars.of(series.instrument))
            series_run = self._runs.of(state, identity, options)
            with _stop_reported(self._requests, self._store, state, series_run):
                await series_run.run()
        found = () if options.tail else self._states.sparse_sessions(series, state.begins)
        sparse = IntervalSet(one.interval for one in found)
        if series_run is not None and not options.tail:
            attempts = _attempts(self._requests, series)
            attempts.sparse(sparse, wanted=state.wanted, answered=state.proved)
        report = _report(state, series_run, sparse=sparse, store=self._store, session=self._session)
        report = replace(
            report, adjustments=_found_since(self._store, series.symbol, self._adjustments_before)
        )
        if series_run is not None and report.sparse:
            self._report_sparse(series)
        return report

    def _report_sparse(self, series: Series) -> None:
        """Report which sparse sessions are requested once more."""
        if not (found := self._states.sparse_sessions(series)):
            return
        days = [f"{one.day} ({one.rows} bars)" for one in found[-_NAMED_AT_MOST:]]
        more = f" and {len(found) - len(days)} before" if len(found) > len(days) else ""
        self._note(
            series,
            f"far fewer bars than in the sessions around: {', '.join(days)}{more}; they are "
            "requested once more 15 minutes after the first time",
        )

    async def _learn_sessions(self, series: Series, wanted: IntervalSet) -> None:
        """Learn the sessions from the gateway first if no library knows them."""
        bounds = wanted.bounds
        if bounds is None or not must_learn_sessions(series.instrument, self._session.now()):
            return
        with _failures_recorded(self._requests, series, bounds):
            await self._schedules.ensure(series, bounds, partial(self._note, series))

    def _note(self, series: Series, text: str) -> None:
        self._requests.progress.noted(series, text)


def _resumed_refresh(requests: Requests, state: SeriesState) -> str:
    """Return a note if a refresh was stopped before, which is resumed, else an empty text."""
    now = requests.source_session.retry_policy.clock()
    known = requests.ledger.refreshes.of(series_key(state.series), now)
    if known is None or not known.intervals & state.wanted:
        return ""
    return (
        "resuming a refresh that was stopped: ranges received since "
        f"{known.since:%Y-%m-%d %H:%MZ} are not requested again"
    )


def _end_refresh(requests: Requests, state: SeriesState, report: SeriesReport) -> SeriesReport:
    """Record that all that was to be refreshed was; return the report as it is then."""
    ledger, key, held = requests.ledger, series_key(state.series), state.bars.bounds
    ledger.refreshes.end(key, state.wanted)
    if held is None or not state.wanted.covers(held):
        return report
    ledger.disagreements.clear(key)
    return replace(report, disagreements=())


@contextmanager
def _failures_recorded(requests: Requests, series: Series, missing: Interval) -> Iterator[None]:
    """Record an error as a failed attempt at all that is missing, if a gateway was reached."""
    try:
        yield
    except (GatewayUnreachableError, ClientIdInUseError):
        raise
    except (GatewayError, ForeignIdentityError) as error:
        _attempts(requests, series).failed(missing, error)
        raise


@contextmanager
def _stop_reported(
    requests: Requests, store: BarStore, state: SeriesState, series_run: SeriesRun
) -> Iterator[None]:
    """Report what a run has loaded if it ends with the whole load."""
    try:
        yield
    except (GatewayUnreachableError, ClientIdInUseError, asyncio.CancelledError):
        session = requests.source_session
        report = _report(state, series_run, sparse=IntervalSet(), store=store, session=session)
        requests.progress.ended(report)
        raise


def _attempts(requests: Requests, series: Series) -> FailedAttempts:
    return FailedAttempts(requests.ledger, series, requests.source_session.retry_policy.clock)


def _writer(
    requests: Requests,
    store: BarStore,
    claimant: Claimant,
    state: SeriesState,
    *,
    identity: Identity,
    options: LoadOptions,
    threads: Executor,
) -> SeriesWriter:
    return SeriesWriter(
        store,
        claimant,
        state.series,
        identity=identity,
        again=state.again if options.refresh else None,
        clocks=requests.source_session.retry_policy,
        progress=requests.progress,
        threads=threads,
    )


class _SeriesRuns:
    """Makes the runs over single series, which share what one load has learned.

    Args:
        requests: the requests of the load.
        store: the files and the ledger.
        claimant: the owner of its claims.
        evidence: its statements.
        schedules: its calendars.
        threads: its writes.
    """

    def __init__(
        self,
        requests: Requests,
        store: BarStore,
        claimant: Claimant,
        *,
        evidence: Evidence,
        schedules: Schedules,
        threads: Executor,
    ) -> None:
        self._requests, self._store, self._claimant = requests, store, claimant
        self._threads = threads
        self._evidence, self._schedules = evidence, schedules
        self._bases = BasisChecks(store, requests.source_session)

    def of(self, state: SeriesState, identity: Identity, options: LoadOptions) -> SeriesRun:
        """Return a run over one series.

        Args:
            state: the state of the series, which the run owns from now on.
            identity: of its bars.
            options: how it is requested.
        """
        series, progress = state.series, self._requests.progress
        evidence, schedules = self._evidence, self._schedules
        requester = self._requests.of(series, identity.contract_id, options)
        open_ranges = OpenRanges(
            state,
            identity.contract_id,
            evidence=evidence,
            schedules=schedules,
            source_session=self._requests.source_session,
        )
        return SeriesRun(
            state,
            fetcher=Fetcher(requester, series, progress),
            writer=_writer(
                self._requests,
                self._store,
                self._claimant,
                state,
                identity=identity,
                options=options,
                threads=self._threads,
            ),
            confirmation=Confirmation(
                state, open_ranges, requester, evidence=evidence, schedules=schedules
            ),
            attempts=_attempts(self._requests, series),
            evidence=evidence,
            schedules=schedules,
            bases=self._bases,
        )


def _found_since(store: BarStore, symbol: str, before: Mapping[str, int]) -> tuple[Adjustment, ...]:
    """Return the adjustments of a symbol that were found since a run began.

    Args:
        store: the adjustments.
        symbol: the symbol.
        before: how many there were of each symbol whose load was begun.
    """
    known = store.bases.history.of(symbol)[before[symbol] :] if symbol in before else ()
    return tuple(one for one in known if one.kind is AdjustmentKind.SPLIT)


def _report(
    state: SeriesState,
    series_run: SeriesRun | None,
    *,
    sparse: IntervalSet,
    store: BarStore,
    session: SourceSession,
) -> SeriesReport:
    """Return how the load of a series ended.

    Args:
        state: the state at the end.
        series_run: the run, None if nothing was due.
        sparse: the sparse sessions of the series.
        store: the bars, and the ledger with attempts and disagreements.
        session: the clocks.
    """
    series, key, here = state.series, series_key(state.series), session.market_now()
    ledger = store.ledger
    need = state.need(session.now(), here, everything=True)
    gaps = state.left(need, here)
    not_received = series_run.not_received if series_run else IntervalSet()
    refreshed = series_run.refreshed if series_run else IntervalSet()
    waiting = of_open_session(need, gaps) - not_received
    again = need.gaps() - gaps - refreshed
    unexplained = gaps - waiting
    attempts, clock = ledger.attempts.of(key), session.retry_policy.clock()
    to_confirm = [
        one for one in attempts if one.kind in TO_CONFIRM and unexplained.clip(one.interval)
    ]
    at_sparse = [
        one for one in attempts if one.kind is AttemptKind.SPARSE and sparse.clip(one.interval)
    ]
    of_basis = [one for one in attempts if one.kind is AttemptKind.BASIS]
    return SeriesReport(
        series=series,
        requests=series_run.requester.requests if series_run else 0,
        rows=series_run.requester.rows if series_run else 0,
        added=series_run.writer.commits.added if series_run else 0,
        revised=series_run.writer.commits.revised if series_run else 0,
        unexplained=unexplained,
        waiting=waiting,
        before_listing=state.before_listing,
        failures=tuple(series_run.failures) if series_run else (),
        now=need.now,
        deferred=state.skipped & gaps,
        next_try_at=state.next_try_at or _first_due(at_sparse, clock),
        not_refreshed=again - of_open_session(need, again),
        sparse=sparse & state.wanted,
        unconfirmed=unexplained & IntervalSet(one.interval for one in to_confirm),
        confirmed_at=_first_due(to_confirm, clock),
        no_data_until=next(
            (
                one.next_try_at
                for one in attempts
                if one.kind is AttemptKind.NO_DATA and unexplained.clip(one.interval)
            ),
            None,
        ),
        disagreements=tuple(ledger.disagreements.of(key)),
        volume_jumps=tuple(ledger.disagreements.jumps_of(key)),
        unconfirmed_bars=_unconfirmed_bars(store, series, state.wanted),
        unconfirmed_basis=gaps & IntervalSet(one.interval for one in of_basis),
        basis_due_at=_first_due(of_basis, clock),
    )


def _unconfirmed_bars(store: BarStore, series: Series, wanted: IntervalSet) -> int:
    """Return how many bars are on an unconfirmed basis; 0 if none of them is wanted."""
    intervals, count = store.unconfirmed(series.symbol, series.timeframe)
    return count if intervals & wanted else 0


def _first_due(attempts: Sequence[Attempt], now: datetime) -> datetime | None:
    """Return when the first of some attempts is due; one already due only if none is later."""
    times = (one.next_try_at for one in attempts if one.next_try_at is not None)
    return next_try(attempts, now) or min(times, default=None)
