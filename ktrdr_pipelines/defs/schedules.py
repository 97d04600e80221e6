"""The tail schedule: every minute it looks which bars have just closed, and runs only for those.

The run is a job of one op, not of the assets: a run over assets notes every partition that it is
meant to make, and five hundred windows a minute would drown the history. Windows are told of by
the run itself (``defs.runs.tail_run``).

Not here: which tails are due (``gaps.due_chunks``).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import dagster as dg

from ktrdr_pipelines.defs.resources import IbResource, StoreResource
from ktrdr_pipelines.defs.runs.tags import KIND, PRIORITY, TIMEFRAME, UNENDED, RunKind
from ktrdr_pipelines.defs.runs.tail_run import TAIL_OP, tail_job
from ktrdr_pipelines.domain.planning.gaps import bar_lag
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import KtrdrError
from ktrdr_pipelines.gaps.due_chunks import Tail, due_tails
from ktrdr_pipelines.gaps.index import open_gap_index
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.store.gateway_absence import AbsenceFile

_MARGIN: Final = timedelta(seconds=1)
_BETWEEN: Final = "+"
"""Stands between the timeframes of one run in its tag."""


def tail_schedule() -> dg.ScheduleDefinition:
    """Make the schedule that keeps all series fresh."""

    @dg.schedule(
        name="tail_schedule",
        job=tail_job,
        cron_schedule="* * * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Loads bars that have just closed: one run for all symbols and timeframes "
        "that are due, none where nothing is.",
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
    """Decide what runs for the bars that close at a moment.

    The run begins to ask when the newest bar is final, a few seconds later; it starts meanwhile.
    """
    final_at = at + bar_lag() + _MARGIN
    try:
        if absence := AbsenceFile(store.layout()).believed(at):
            return dg.SkipReason(str(absence))
        tails = find_tails(ib, store, final_at)
    except KtrdrError as error:
        return dg.SkipReason(str(error))
    if not tails:
        return dg.SkipReason("no bar has closed that is not there")
    busy = _under_way(instance)
    free = [tail for tail in tails if tail.series.timeframe not in busy]
    if not free:
        return dg.SkipReason(f"{_counted(tails)} are due; the run before is still at work on them")
    timeframes = [one for one in Timeframe if any(one is t.series.timeframe for t in free)]
    names = _BETWEEN.join(one.value for one in timeframes)
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


def find_tails(
    ib: IbResource,
    store: StoreResource,
    real_now: datetime,
    keeps: Callable[[Timeframe], bool] = lambda _: True,
) -> list[Tail]:
    """Return the tails that are due by a moment of real time, of the timeframes asked for.

    Raises:
        KtrdrError: there is no store or no universe to look through.
    """
    gateway = GatewayConfig.from_settings(ib.settings()).gateway
    series = [one for one in store.universe().series() if keeps(one.timeframe)]
    now = ib.clock().market_at(real_now)
    found = open_gap_index(store.layout(), gateway).series_gaps(series, now)
    return due_tails(found, now, real_now=real_now)


def _under_way(instance: dg.DagsterInstance) -> set[Timeframe]:
    """Give the timeframes that earlier runs of tails are at."""
    filters = dg.RunsFilter(tags={KIND: RunKind.TAIL.value}, statuses=UNENDED)
    return {
        Timeframe(name)
        for run in instance.get_runs(filters)
        for name in run.tags[TIMEFRAME].split(_BETWEEN)
    }


def _counted(tails: Sequence[Tail]) -> str:
    counts = Counter(tail.series.timeframe.value for tail in tails)
    return ", ".join(f"{number} series of {name}" for name, number in counts.items())
