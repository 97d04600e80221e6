"""Estimate what jobs would request, without a gateway.

Not here: the cost of a request (``gaps.estimates``), the missing ranges of a job
(``sync.stored_states``).
"""

from collections.abc import Hashable, Iterable, Sequence
from datetime import datetime

from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.planning.jobs import Job, Mode, wanted_by
from ktrdr_pipelines.gaps.estimates import Estimate, estimate, measured_rates
from ktrdr_pipelines.gaps.index import GapIndex
from ktrdr_pipelines.ib.pacing.learned_widths import learned_widths
from ktrdr_pipelines.store.evidence import Evidence
from ktrdr_pipelines.sync.engine.series_state import SeriesState
from ktrdr_pipelines.sync.stored_states import SeriesStates


def planned(workspace: Workspace, jobs: Sequence[Job]) -> Estimate:
    """Return the requests, bars, bytes and time that jobs would take now.

    Raises:
        StoreError: the files, the ledger or the state folder cannot be read.
    """
    now, clock, config = workspace.now, workspace.clock, workspace.gateway_config
    index = workspace.gap_index()
    states = SeriesStates(
        workspace.store,
        index.calendars,
        Evidence(workspace.store, config.gateway, clock.real_now),
        clock.real_now,
        market_clock=clock.market_now,
    )
    plain = _PlainSeries(index, (job.series for job in jobs), now)
    missing: dict[Series, IntervalSet] = {}
    for job in jobs:
        found = plain.missing(job, clock.market_now())
        if found is None:
            found = states.missing(job, now)
        before = missing.get(job.series)
        missing[job.series] = found if before is None else before | found
    return estimate(
        missing.items(),
        index.calendars,
        rates=measured_rates(
            workspace.ledger,
            config.gateway,
            conservative=config.conservative,
            widths=learned_widths(config, clock.real_now()),
        ),
        now=now,
        tails={job.series for job in jobs if job.mode is Mode.TAIL},
    )


class _PlainSeries:
    """The missing ranges of series of which nothing is recorded but their files.

    They follow from the coverage alone, which the gap index reads for all series at once. What else
    the state of a series depends on is read by ``SeriesStates``, series by series: failed attempts,
    statements where the data begin, sparse sessions, refreshes.
    """

    def __init__(self, index: GapIndex, wanted: Iterable[Series], now: datetime) -> None:
        self._calendars, self._now = index.calendars, now
        self._files = index.plain_files(dict.fromkeys(wanted))
        self._known: dict[Hashable, IntervalSet] = {}

    def missing(self, job: Job, market_now: datetime) -> IntervalSet | None:
        """Return what a job would request now, or None where that is for ``SeriesStates``."""
        series = job.series
        files = self._files.get(series)
        if files is None or job.wanted is not None or job.refresh:
            return None
        if files.sparse_sessions and job.mode is not Mode.TAIL:
            return None
        coverage = Coverage(files.bars, files.proofs)
        calendar = self._calendars.of(series.instrument)
        wanted = wanted_by(
            job.mode,
            series,
            bounds=job.bounds,
            coverage=coverage,
            calendar=calendar,
            now=self._now,
        )
        key = (calendar, series.timeframe, files.bars, files.proofs, wanted)
        if key not in self._known:
            state = SeriesState(series, wanted, coverage, calendar=calendar)
            self._known[key] = state.need(self._now, market_now).gaps()
        return self._known[key]
