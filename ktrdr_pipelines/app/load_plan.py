"""Estimate what jobs would request, without a gateway.

Not here: the cost of a request (``gaps.estimates``), the missing ranges of a job
(``sync.stored_states``).
"""

from collections.abc import Sequence

from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.planning.jobs import Job, Mode
from ktrdr_pipelines.gaps.estimates import Estimate, estimate, measured_rates
from ktrdr_pipelines.ib.pacing.learned_widths import learned_widths
from ktrdr_pipelines.store.evidence import Evidence
from ktrdr_pipelines.sync.stored_states import SeriesStates


def planned(workspace: Workspace, jobs: Sequence[Job]) -> Estimate:
    """Return the requests, bars, bytes and time that jobs would take now.

    Raises:
        StoreError: the files, the ledger or the state folder cannot be read.
    """
    now, clock, config = workspace.now, workspace.clock, workspace.gateway_config
    calendars = workspace.gap_index().calendars
    states = SeriesStates(
        workspace.store,
        calendars,
        Evidence(workspace.store, config.gateway, clock.real_now),
        clock.real_now,
        market_clock=clock.market_now,
    )
    missing: dict[Series, IntervalSet] = {}
    for job in jobs:
        before = missing.get(job.series, IntervalSet())
        missing[job.series] = before | states.missing(job, now)
    return estimate(
        missing.items(),
        calendars,
        rates=measured_rates(
            workspace.ledger,
            config.gateway,
            conservative=config.conservative,
            widths=learned_widths(config, clock.real_now()),
        ),
        now=now,
        tails={job.series for job in jobs if job.mode is Mode.TAIL},
    )
