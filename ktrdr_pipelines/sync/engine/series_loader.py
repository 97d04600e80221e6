"""Loading one series: its sessions and contract are learned, then one series run, then the report.

Not here: many series in one run (``sync.runner``), the rounds of requests
(``sync.engine.series_run``), the rules (``domain.planning``).
"""

from dataclasses import replace
from functools import partial

from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.jobs import Job, LoadOptions
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.errors import (
    ClientIdInUseError,
    ForeignIdentityError,
    GatewayError,
    GatewayUnreachableError,
)
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.claim_owners import Claimant
from ktrdr_pipelines.store.evidence import Evidence
from ktrdr_pipelines.store.ledger.ledger import series_key
from ktrdr_pipelines.sync.discovery.contracts import learn_identity
from ktrdr_pipelines.sync.discovery.trading_hours import Schedules, is_to_be_told
from ktrdr_pipelines.sync.engine.assembly import make_series_run
from ktrdr_pipelines.sync.engine.bar_requester import Requests
from ktrdr_pipelines.sync.engine.failed_attempts import FailedAttempts
from ktrdr_pipelines.sync.engine.series_report import report_of
from ktrdr_pipelines.sync.engine.series_state import SeriesState
from ktrdr_pipelines.sync.engine.stored_states import SeriesStates

_NAMED_AT_MOST = 3


class SeriesLoader:
    """Loads series from a gateway into a store; one object serves many series at once.

    If a load is stopped, what it saved is kept; repeating it requests only the rest.

    Args:
        requests: the requests of the run.
        store: the files and the ledger.
        claimant: the owner of the run's claims.
        gateway: the gateway's name, under which the ledger records what is known of it.
    """

    def __init__(
        self, requests: Requests, store: BarStore, claimant: Claimant, gateway: str
    ) -> None:
        self._requests, self._store, self._claimant = requests, store, claimant
        self._session = requests.source_session
        self._schedules = Schedules(store, self._session)
        self._evidence = Evidence(store, gateway, self._session.retry_policy.clock)

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
        ledger, key = self._store.ledger, series_key(series)
        wanted = self._states.wanted(job, self._session.now())
        await self._learn_sessions(series, wanted)
        state = self._states.state(series, wanted, options)
        if options.refresh:
            known = ledger.refreshed(key, self._session.retry_policy.clock())
            if known and known.intervals & state.wanted:
                self._note(
                    series,
                    "resuming a refresh that was stopped: ranges received since "
                    f"{known.since:%Y-%m-%d %H:%MZ} are not requested again",
                )
        report = await self._run_series(state, options)
        if options.refresh and not report.not_refreshed:
            ledger.end_refresh(key, state.wanted)
            held = state.bars.bounds
            if held is not None and state.wanted.covers(held):
                ledger.clear_disagreements(key)
                report = replace(report, disagreements=())
        return report

    def checked_again(self, job: Job, report: SeriesReport) -> SeriesReport:
        """Return a report updated to the store at the end of a run of many series.

        Bars of one timeframe may have refuted empty responses for another one that was finished
        before.
        """
        if report.error is not None or report.now is None:
            return report
        missing = self._states.unexplained(job, report.now)
        known = report.unexplained | report.waiting | report.deferred
        return replace(report, unexplained=report.unexplained | (missing - known))

    @property
    def _states(self) -> SeriesStates:
        """The states by the calendars as they are known now."""
        policy, calendars = self._session.retry_policy, self._schedules.calendars
        return SeriesStates(
            self._store,
            calendars,
            self._evidence,
            policy.clock,
            market_clock=policy.market_clock,
        )

    async def _run_series(self, state: SeriesState, options: LoadOptions) -> SeriesReport:
        """Request what is due; if nothing is, no gateway is contacted."""
        series, series_run = state.series, None
        gaps = state.need(self._session.now(), self._session.market_now()).gaps().bounds
        if gaps is not None:
            try:
                identity = await learn_identity(self._session, self._store, series)
            except (GatewayError, ForeignIdentityError) as error:
                self._record_failure(series, gaps, error)
                raise
            self._states.recall_beginning(state, identity.contract_id)
            note = partial(self._note, series)
            await self._schedules.hear_hours(series.instrument, note)
            if (bounds := state.wanted.bounds) is not None:
                await self._schedules.learn_own_hours(series, bounds, note)
            state.learn_calendar(self._schedules.calendars.of(series.instrument))
            series_run = make_series_run(
                state,
                identity,
                options,
                requests=self._requests,
                store=self._store,
                claimant=self._claimant,
                evidence=self._evidence,
                schedules=self._schedules,
            )
            await series_run.run()
        found = () if options.tail else self._states.sparse_sessions(series, state.begins)
        sparse = IntervalSet(one.interval for one in found)
        report = report_of(
            state, series_run, sparse=sparse, ledger=self._store.ledger, session=self._session
        )
        if series_run is not None and not options.tail:
            attempts = FailedAttempts(self._store.ledger, series, self._session.retry_policy.clock)
            attempts.sparse(sparse, wanted=state.wanted, answered=state.proved)
            if report.sparse:
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
        if bounds is None or not is_to_be_told(series.instrument, self._session.now()):
            return
        try:
            await self._schedules.ensure(series, bounds, partial(self._note, series))
        except GatewayError as error:
            self._record_failure(series, bounds, error)
            raise

    def _record_failure(
        self, series: Series, missing: Interval, error: GatewayError | ForeignIdentityError
    ) -> None:
        """Record an error as a failed attempt at all that is missing, if a gateway was reached."""
        if not isinstance(error, GatewayUnreachableError | ClientIdInUseError):
            clock = self._session.retry_policy.clock
            FailedAttempts(self._store.ledger, series, clock).failed(missing, error)

    def _note(self, series: Series, text: str) -> None:
        self._requests.progress.noted(series, text)
