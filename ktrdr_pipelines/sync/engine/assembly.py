"""Assembling a series run from what one run of many series shares."""

from ktrdr_pipelines.domain.instruments import Identity
from ktrdr_pipelines.domain.planning.jobs import LoadOptions
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.claim_owners import Claimant
from ktrdr_pipelines.store.evidence import Evidence
from ktrdr_pipelines.sync.discovery.trading_hours import Schedules
from ktrdr_pipelines.sync.engine.bar_requester import Requests
from ktrdr_pipelines.sync.engine.confirmation import Confirmation
from ktrdr_pipelines.sync.engine.failed_attempts import FailedAttempts
from ktrdr_pipelines.sync.engine.fetch import Fetcher
from ktrdr_pipelines.sync.engine.open_ranges import OpenRanges
from ktrdr_pipelines.sync.engine.series_run import SeriesRun
from ktrdr_pipelines.sync.engine.series_state import SeriesState
from ktrdr_pipelines.sync.engine.writer import SeriesWriter


def make_series_run(
    state: SeriesState,
    identity: Identity,
    options: LoadOptions,
    *,
    requests: Requests,
    store: BarStore,
    claimant: Claimant,
    evidence: Evidence,
    schedules: Schedules,
) -> SeriesRun:
    """Return a run over one series.

    Args:
        state: the state of the series, which the run owns from now on.
        identity: of its bars.
        options: how it is requested.
        requests: the requests of the run.
        store: the files and the ledger.
        claimant: the owner of the run's claims.
        evidence: the statements of the run.
        schedules: the calendars of the run.
    """
    series, session, progress = state.series, requests.source_session, requests.progress
    requester = requests.of(series, identity.contract_id, options)
    writer = SeriesWriter(
        store,
        claimant,
        series,
        identity=identity,
        again=state.again if options.refresh else None,
        clocks=session.retry_policy,
        progress=progress,
    )
    open_ranges = OpenRanges(
        state,
        identity.contract_id,
        evidence=evidence,
        schedules=schedules,
        source_session=session,
    )
    return SeriesRun(
        state,
        fetcher=Fetcher(requester, series, progress),
        writer=writer,
        confirmation=Confirmation(
            state, open_ranges, requester, evidence=evidence, schedules=schedules
        ),
        attempts=FailedAttempts(store.ledger, series, session.retry_policy.clock),
        evidence=evidence,
        schedules=schedules,
    )
