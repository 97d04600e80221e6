"""The report on one series at the end of its load.

Not here: what a report says in words (``domain.planning.reports``).
"""

from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.planning.retry_schedule import TO_CONFIRM
from ktrdr_pipelines.domain.plausibility import DisagreementKind
from ktrdr_pipelines.store.ledger.ledger import Ledger, series_key
from ktrdr_pipelines.sync.engine.failed_attempts import next_try
from ktrdr_pipelines.sync.engine.series_run import SeriesRun
from ktrdr_pipelines.sync.engine.series_state import SeriesState, of_open_session
from ktrdr_pipelines.sync.engine.source_session import SourceSession


def report_of(
    state: SeriesState,
    series_run: SeriesRun | None,
    *,
    sparse: IntervalSet,
    ledger: Ledger,
    session: SourceSession,
) -> SeriesReport:
    """Return how the load of a series ended.

    Args:
        state: the state at the end.
        series_run: the run, None if nothing was due.
        sparse: the sparse sessions of the series.
        ledger: attempts and disagreements.
        session: the clocks.
    """
    series, key, here = state.series, series_key(state.series), session.market_now()
    need = state.need(session.now(), here, everything=True)
    gaps = state.left(need, here)
    not_received = series_run.not_received if series_run else IntervalSet()
    refreshed = series_run.refreshed if series_run else IntervalSet()
    waiting = of_open_session(need, gaps) - not_received
    again = need.gaps() - gaps - refreshed
    unexplained = gaps - waiting
    to_confirm = [
        attempt
        for attempt in ledger.attempts(key)
        if attempt.kind in TO_CONFIRM and unexplained.clip(attempt.interval)
    ]
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
        next_try_at=state.next_try_at,
        not_refreshed=again - of_open_session(need, again),
        sparse=sparse & state.wanted,
        unconfirmed=unexplained & IntervalSet(one.interval for one in to_confirm),
        confirmed_at=next_try(to_confirm, session.retry_policy.clock())
        or min((one.next_try_at for one in to_confirm if one.next_try_at), default=None),
        disagreements=tuple(ledger.disagreements(key, DisagreementKind.PRICE)),
        volume_jumps=tuple(ledger.disagreements(key, DisagreementKind.VOLUME)),
    )
