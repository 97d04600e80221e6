"""The tail schedule: every minute it requests a run for the bars that have just closed, if any.

The run is a job with one op, not a run over the assets: Dagster records every partition that a run
over assets plans to materialize, and five hundred windows a minute would swamp the history. The
run reports its windows itself (``defs.runs.tail_run``).

Not here: which tails are due (``gaps.due_chunks``).
"""

from collections import Counter
from contextlib import closing
from datetime import UTC, datetime

import dagster as dg

from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.defs.resources import IbResource, StoreResource
from ktrdr_pipelines.defs.runs.tags import BETWEEN, KIND, PRIORITY, TIMEFRAME, UNENDED, RunKind
from ktrdr_pipelines.defs.runs.tail_run import MARGIN, TAIL_OP, tail_job
from ktrdr_pipelines.domain.planning.gaps import bar_lag
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import KtrdrError
from ktrdr_pipelines.gaps.due_chunks import Tail, due_tails


def tail_schedule() -> dg.ScheduleDefinition:
    """Return the schedule that keeps the tails of all series fresh."""

    @dg.schedule(
        name="tail_schedule",
        job=tail_job,
        cron_schedule="* * * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Loads bars that have just closed: one run for all symbols and timeframes "
        "that are due, and no run if none is due.",
    )
    def schedule(
        context: dg.ScheduleEvaluationContext, ib: IbResource, store: StoreResource
    ) -> dg.RunRequest | dg.SkipReason:
        at = context.scheduled_execution_time.astimezone(UTC)
        return request_tails(context.instance, ib, store, at)

    return schedule


def request_tails(
    instance: dg.DagsterInstance, ib: IbResource, store: StoreResource, at: datetime
) -> dg.RunRequest | dg.SkipReason:
    """Return a run request for the bars that close at ``at``, or the reason to skip.

    The run starts at once but sends its first request a few seconds later, when the newest bar is
    final.
    """
    final_at = at + bar_lag() + MARGIN
    try:
        with closing(ib.rate_limiter()) as gateway:
            available = gateway.availability(at)
        if not available.may_try:
            return dg.SkipReason(str(available))
        tails = find_tails(ib.workspace(store), final_at)
    except KtrdrError as error:
        return dg.SkipReason(str(error))
    if not tails:
        return dg.SkipReason("no tail is due: the bars that have closed are stored")
    active = instance.get_runs(dg.RunsFilter(tags={KIND: RunKind.TAIL.value}, statuses=UNENDED))
    busy = {Timeframe(name) for run in active for name in run.tags[TIMEFRAME].split(BETWEEN)}
    free = [tail for tail in tails if tail.series.timeframe not in busy]
    if not free:
        counts = Counter(tail.series.timeframe.value for tail in tails)
        due = ", ".join(f"{number} series of {name}" for name, number in counts.items())
        return dg.SkipReason(f"{due} due; the previous run is still loading them")
    timeframes = [one for one in Timeframe if any(one is t.series.timeframe for t in free)]
    names = BETWEEN.join(one.value for one in timeframes)
    return dg.RunRequest(
        run_key=f"{at.isoformat()} {names}",
        run_config={
            "ops": {
                TAIL_OP: {
                    "config": {
                        "timeframes": [one.value for one in timeframes],
                        "not_before": final_at.isoformat(),
                    }
                }
            }
        },
        tags={KIND: RunKind.TAIL.value, TIMEFRAME: names, PRIORITY: "10"},
    )


def find_tails(workspace: Workspace, real_now: datetime) -> list[Tail]:
    """Return the tails of all series that are due at ``real_now``.

    Raises:
        KtrdrError: the store or the universe cannot be read.
    """
    now = workspace.clock.market_at(real_now)
    found = workspace.gap_index().series_gaps(workspace.universe.series(), now)
    return due_tails(found, now, real_now=real_now)
