"""IbDataLoader: plans, requests, covers and saves, one series at a time.

Not here: many series in one run, and the choice of gateway (``sync.runner``), the rounds of
requests (``sync.engine.series_run``), the rules (``domain.planning``).
"""

from dataclasses import replace
from datetime import datetime
from functools import partial

import pyarrow as pa

from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Identity, Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.jobs import Bounds, LoadOptions, Mode
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.planning.retry_schedule import TO_CONFIRM
from ktrdr_pipelines.domain.plausibility import Disagreement, DisagreementKind
from ktrdr_pipelines.errors import (
    ClientIdInUseError,
    ForeignIdentityError,
    GatewayError,
    GatewayUnreachableError,
)
from ktrdr_pipelines.store.bars.bar_store import SaveResult
from ktrdr_pipelines.store.ledger.ledger import series_key
from ktrdr_pipelines.sync.discovery.contracts import learn_identity
from ktrdr_pipelines.sync.discovery.trading_hours import is_to_be_told
from ktrdr_pipelines.sync.engine.context import RunContext
from ktrdr_pipelines.sync.engine.series_run import SeriesRun
from ktrdr_pipelines.sync.engine.series_state import Job, SeriesState, SeriesStates, of_open_session
from ktrdr_pipelines.sync.engine.writer import FailedAttempts, next_try

_NAMED_AT_MOST = 3


class IbDataLoader:
    """Loads series from a gateway into a store; one object serves many series at once.

    If a load is stopped, what it saved is kept; repeating it requests only the rest.
    """

    def __init__(self, context: RunContext) -> None:
        self._context = context

    async def load_data_range(
        self, series: Series, wanted: IntervalSet, options: LoadOptions | None = None
    ) -> SeriesReport:
        """Load what is missing of an interval of a series.

        Args:
            series: what to load.
            wanted: the interval, by bar timestamp.
            options: the load options; as requested by a person if not given.

        Returns: the report, which also has what is still missing and why.

        Raises:
            GatewayUnreachableError, ClientIdInUseError: no gateway can be reached.
            ForeignIdentityError: the store holds something else under this symbol.
            GatewayError: the contract, or sessions that only the gateway knows, could not be
                learned.
            StoreError: received bars could not be saved.
        """
        options = options or LoadOptions()
        await self._learn_sessions(series, wanted)
        state = self._states.state(series, wanted, options)
        if options.refresh:
            known = self._context.store.ledger.refreshes.of(series_key(series), self._clock())
            if known and known.intervals & state.wanted:
                self._note(
                    series,
                    "resuming a refresh that was stopped: ranges received since "
                    f"{known.since:%Y-%m-%d %H:%MZ} are not requested again",
                )
        report = await self._run_series(state, options)
        if options.refresh and not report.not_refreshed:
            self._context.store.ledger.refreshes.end(series_key(series), state.wanted)
            held = state.bars.bounds
            if held is not None and state.wanted.covers(held):
                self._context.store.ledger.disagreements.clear(series_key(series))
                report = replace(report, disagreements=())
        return report

    async def load_progressive(
        self,
        series: Series,
        mode: Mode,
        *,
        bounds: Bounds | None = None,
        options: LoadOptions | None = None,
    ) -> SeriesReport:
        """Load what a mode means for a series; raises as ``load_data_range``."""
        options = options or LoadOptions()
        job = Job(
            series,
            mode,
            bounds or Bounds(),
            requested_by=options.requested_by,
            refresh=options.refresh,
        )
        return await self.load(job)

    async def load(self, job: Job) -> SeriesReport:
        """Load what a job means; raises as ``load_data_range``."""
        wanted = self._states.wanted(job, self._context.source_session.now())
        return await self.load_data_range(job.series, wanted, job.options)

    def merge_and_save_data(
        self, series: Series, identity: Identity, bars: pa.Table, coverage: Coverage
    ) -> SaveResult:
        """Merge bars and their coverage into the store; newer bars win."""
        return self._context.store.save(series, identity, bars, coverage)

    @property
    def _states(self) -> SeriesStates:
        context = self._context
        return SeriesStates(
            context.store,
            context.calendars,
            context.ranges,
            self._clock,
            market_clock=self._market_clock,
        )

    async def _run_series(self, state: SeriesState, options: LoadOptions) -> SeriesReport:
        """Request what is due; if nothing is, no gateway is contacted."""
        series, schedules = state.series, self._context.schedules
        gaps = state.need(self._context.source_session.now(), self._market_clock()).gaps().bounds
        if gaps is None:
            return self._report(state, options)
        identity = await self._identity(series, gaps)
        self._states.recall_beginning(state, identity.contract_id)
        note = partial(self._note, series)
        await schedules.hear_hours(series.instrument, note)
        if (bounds := state.wanted.bounds) is not None:
            await schedules.learn_own_hours(series, bounds, note)
        state.learn_calendar(self._context.calendars.of(series.instrument))
        series_run = SeriesRun(self._context, state, identity, options)
        await series_run.run()
        report = self._report(state, options, series_run)
        if not options.tail:
            self._record_sparse(state, report)
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

    def _record_sparse(self, state: SeriesState, report: SeriesReport) -> None:
        """Record which sparse sessions are requested once more, and report them."""
        found = self._states.sparse_sessions(state.series, state.begins)
        failed_attempts = FailedAttempts(self._context.store.ledger, state.series, self._clock)
        interval = (one.interval for one in found)
        failed_attempts.sparse(interval, wanted=state.wanted, answered=state.proved)
        if report.sparse and (found := self._states.sparse_sessions(state.series)):
            days = [f"{one.day} ({one.rows} bars)" for one in found[-_NAMED_AT_MOST:]]
            more = f" and {len(found) - len(days)} before" if len(found) > len(days) else ""
            self._note(
                state.series,
                f"far fewer bars than in the sessions around: {', '.join(days)}{more}; they are "
                "requested once more 15 minutes after the first time",
            )

    def _clock(self) -> datetime:
        return self._context.source_session.retry_policy.clock()

    def _market_clock(self) -> datetime:
        return self._context.source_session.retry_policy.market_clock()

    async def _learn_sessions(self, series: Series, wanted: IntervalSet) -> None:
        """Learn the sessions from the gateway first if no library knows them."""
        bounds, source_session = wanted.bounds, self._context.source_session
        if bounds is None or not is_to_be_told(series.instrument, source_session.now()):
            return
        try:
            await self._context.schedules.ensure(series, bounds, partial(self._note, series))
        except (GatewayUnreachableError, ClientIdInUseError):
            raise
        except GatewayError as error:
            FailedAttempts(self._context.store.ledger, series, self._clock).failed(bounds, error)
            raise

    def _note(self, series: Series, text: str) -> None:
        self._context.progress.noted(series, text)

    async def _identity(self, series: Series, gaps: Interval) -> Identity:
        """Learn the identity of the bars; an error is a failed attempt at all that is missing."""
        try:
            return await learn_identity(self._context.source_session, self._context.store, series)
        except (GatewayUnreachableError, ClientIdInUseError):
            raise
        except (GatewayError, ForeignIdentityError) as error:
            FailedAttempts(self._context.store.ledger, series, self._clock).failed(gaps, error)
            raise

    def _report(
        self, state: SeriesState, options: LoadOptions, series_run: SeriesRun | None = None
    ) -> SeriesReport:
        source_session = self._context.source_session
        need = state.need(source_session.now(), self._market_clock(), everything=True)
        gaps = state.left(need, self._market_clock())
        waiting = of_open_session(need, gaps) - (
            series_run.not_received if series_run else IntervalSet()
        )
        again = need.gaps() - gaps - (series_run.refreshed if series_run else IntervalSet())
        found = () if options.tail else self._states.sparse_sessions(state.series, state.begins)
        unexplained = gaps - waiting
        to_confirm = [
            attempt
            for attempt in self._context.store.ledger.attempts.of(series_key(state.series))
            if attempt.kind in TO_CONFIRM and unexplained.clip(attempt.interval)
        ]
        return SeriesReport(
            series=state.series,
            requests=series_run.requester.requests if series_run else 0,
            rows=series_run.requester.rows if series_run else 0,
            added=series_run.commits.added if series_run else 0,
            revised=series_run.commits.revised if series_run else 0,
            unexplained=unexplained,
            waiting=waiting,
            before_listing=state.before_listing,
            failures=tuple(series_run.failures) if series_run else (),
            now=need.now,
            deferred=state.skipped & gaps,
            next_try_at=state.next_try_at,
            not_refreshed=again - of_open_session(need, again),
            sparse=IntervalSet(one.interval for one in found) & state.wanted,
            unconfirmed=unexplained & IntervalSet(one.interval for one in to_confirm),
            confirmed_at=next_try(to_confirm, self._clock())
            or min((one.next_try_at for one in to_confirm if one.next_try_at), default=None),
            disagreements=self._disagreements(state.series, DisagreementKind.PRICE),
            volume_jumps=self._disagreements(state.series, DisagreementKind.VOLUME),
        )

    def _disagreements(self, series: Series, kind: DisagreementKind) -> tuple[Disagreement, ...]:
        return tuple(self._context.store.ledger.disagreements.of(series_key(series), kind))
