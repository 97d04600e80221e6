"""IbDataLoader: plan, ask, cover, save, for one series at a time.

Not here: which series and which gateway (``sync.runner``), the decisions (``core``).
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

    A stop at any moment keeps what was saved; a repeat asks only for the rest.
    """

    def __init__(self, context: RunContext) -> None:
        self._context = context

    async def load_data_range(
        self, series: Series, wanted: IntervalSet, options: LoadOptions | None = None
    ) -> SeriesReport:
        """Make an interval of a series complete, and say what could not be.

        Args:
            series: what to load.
            wanted: the interval, on the stamp axis.
            manner: how it is asked for; by a person if not given.

        Raises:
            GatewayUnreachableError, ClientIdInUseError: there is no gateway to ask.
            ForeignIdentityError: the store holds something else under this symbol.
            StoreError: what was answered could not be saved.
        """
        options = options or LoadOptions()
        await self._learn_sessions(series, wanted)
        state = self._states.state(series, wanted, options)
        if options.refresh:
            self._tell_of_resuming(state)
        report = await self._run_series(state, options)
        if options.refresh and not report.not_refreshed:
            self._context.store.ledger.end_refresh(series_key(series), state.wanted)
            held = state.bars.bounds
            if held is not None and state.wanted.covers(held):
                self._context.store.ledger.clear_disagreements(series_key(series))
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
        """Load what a mode means for a series; errors as ``load_data_range``."""
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
        """Load what a job means; errors as ``load_data_range``."""
        wanted = self._states.wanted(job, self._context.source_session.now())
        return await self.load_data_range(job.series, wanted, job.options)

    def merge_and_save_data(
        self, series: Series, identity: Identity, bars: pa.Table, coverage: Coverage
    ) -> SaveResult:
        """Merge bars and what they cover into the store; newer bars win."""
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
        """Request what is due, if anything is; without, no gateway is asked."""
        gaps = state.need(self._context.source_session.now(), self._market_clock()).gaps().bounds
        if gaps is None:
            return self._report(state, options)
        identity = await self._identity(state.series, gaps)
        self._states.recall_beginning(state, identity.contract_id)
        await self._hear_hours(state)
        series_run = SeriesRun(self._context, state, identity, options)
        await series_run.run()
        report = self._report(state, options, series_run)
        if not options.tail:
            self._record_sparse(state, report)
        return report

    def checked_again(self, job: Job, report: SeriesReport) -> SeriesReport:
        """Return a report as the store stands at the end of a run of many series.

        Bars of one timeframe may have refuted what another one, finished before, was told.
        """
        if report.error is not None or report.now is None:
            return report
        missing = self._states.unexplained(job, report.now)
        known = report.unexplained | report.waiting | report.deferred
        return replace(report, unexplained=report.unexplained | (missing - known))

    def _record_sparse(self, state: SeriesState, report: SeriesReport) -> None:
        """Record which sparse sessions are requested once more, and tell of them."""
        found = self._states.sparse_sessions(state.series, state.begins)
        failed_attempts = FailedAttempts(self._context.store.ledger, state.series, self._clock)
        interval = (one.interval for one in found)
        failed_attempts.sparse(interval, wanted=state.wanted, answered=state.proved)
        if report.sparse:
            self._report_sparse_sessions(state.series)

    def _report_sparse_sessions(self, series: Series) -> None:
        """Say which sessions are sparse, and when they are requested once more."""
        if found := self._states.sparse_sessions(series):
            days = [f"{one.day} ({one.rows} bars)" for one in found[-_NAMED_AT_MOST:]]
            more = f" and {len(found) - len(days)} before" if len(found) > len(days) else ""
            self._note(
                series,
                f"far fewer bars than in the sessions around: {', '.join(days)}{more}; they are "
                "requested once more a quarter of an hour after the first time",
            )

    def _tell_of_resuming(self, state: SeriesState) -> None:
        """Say what a refresh leaves out because one that was stopped has had it."""
        known = self._context.store.ledger.refreshed(series_key(state.series), self._clock())
        if known and known.intervals & state.wanted:
            self._note(
                state.series,
                f"goes on with a refresh that was stopped: what was answered again since "
                f"{known.since:%Y-%m-%d %H:%MZ} is not asked for",
            )

    def _clock(self) -> datetime:
        return self._context.source_session.retry_policy.clock()

    def _market_clock(self) -> datetime:
        return self._context.source_session.retry_policy.market_clock()

    async def _learn_sessions(self, series: Series, wanted: IntervalSet) -> None:
        """Let the gateway tell the sessions first, where no library knows them."""
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

    async def _hear_hours(self, state: SeriesState) -> None:
        """Take in the hours of the contract that was just looked up."""
        instrument, note = state.series.instrument, partial(self._note, state.series)
        await self._context.schedules.hear_hours(instrument, note)
        if (bounds := state.wanted.bounds) is not None:
            await self._context.schedules.learn_own_hours(state.series, bounds, note)
        state.learn_calendar(self._context.calendars.of(instrument))

    def _note(self, series: Series, text: str) -> None:
        self._context.progress.noted(series, text)

    async def _identity(self, series: Series, gaps: Interval) -> Identity:
        """Learn what the bars are; what speaks against it is a try at all that is missing."""
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
            for attempt in self._context.store.ledger.attempts(series_key(state.series))
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
        return tuple(self._context.store.ledger.disagreements(series_key(series), kind))
