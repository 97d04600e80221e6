"""The gap sensor: starts runs for due gaps, a few at a time.

What is missing follows from the ledger, the files and the calendars. Of Dagster the sensor reads
only which runs are active and how the last ones ended, never which windows are materialized.

Not here: which gaps are due (``gaps.due_chunks``), which windows a run loads
(``defs.sensors.gap_runs``).
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import Final

import dagster as dg

from ktrdr_pipelines.app.services.gap_filler import GapFillerService, GapScan
from ktrdr_pipelines.app.services.sensor_switch import SENSOR
from ktrdr_pipelines.app.setup import waits_for_universe
from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.defs.assets import bars_key
from ktrdr_pipelines.defs.partitions import BarPartition, windows_partitions
from ktrdr_pipelines.defs.resources import IbResource, StoreResource
from ktrdr_pipelines.defs.runs.active_runs import SeriesName, active_runs, held_symbols
from ktrdr_pipelines.defs.runs.tags import (
    BETWEEN,
    CAUSE,
    ENDED,
    GAPS,
    KILLED,
    KIND,
    PRIORITY,
    SYMBOL,
    TIMEFRAME,
    RunKind,
    range_tags,
    shown_tags,
)
from ktrdr_pipelines.defs.sensors.alert_sensor import GATEWAY, outage_of
from ktrdr_pipelines.defs.sensors.gap_runs import (
    GapRun,
    PastRun,
    SeriesWindows,
    gap_runs,
    newest_windows,
    waits_until,
)
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.universe import Windows
from ktrdr_pipelines.errors import KtrdrError
from ktrdr_pipelines.gaps.due_chunks import Due, backlog_estimate, backlog_text, measured_backlog
from ktrdr_pipelines.ib.config import GatewayConfig

_EVERY_S = 30
_AT_ONCE = 24
"""Maximum of queued and active runs of this sensor. Two run at a time; the others bridge the time
to the next tick even if each takes only a second."""

_PAST_RUNS: Final = 400

WAITS: Final = (
    "nothing is loaded yet: the store has no bars, and universe.yaml is still the example. Hint: "
    "Edit universe.yaml; or start `ktrdr up --yes` to load the example as it is"
)

Clock = Callable[[], datetime]


def past_runs(instance: dg.DagsterInstance) -> Mapping[SeriesName, list[PastRun]]:
    """Return the last ended runs of this sensor by series, newest first.

    Runs that failed because the gateway was unreachable or because their process was killed are
    left out: the series is not at fault.
    """
    past: dict[SeriesName, list[PastRun]] = defaultdict(list)
    records = instance.get_run_records(
        dg.RunsFilter(tags={KIND: RunKind.GAP.value}, statuses=ENDED), limit=_PAST_RUNS
    )
    for record in records:
        tags = record.dagster_run.tags
        cause = tags.get(CAUSE, "")
        if cause != KILLED and outage_of(cause) != GATEWAY:
            at = record.update_timestamp
            ended_at = at if at.tzinfo else at.replace(tzinfo=UTC)
            symbols, fingerprints = tags[SYMBOL].split(BETWEEN), tags.get(GAPS, "").split(BETWEEN)
            for symbol, fingerprint in zip(symbols, fingerprints, strict=True):
                name = (symbol, Timeframe(tags[TIMEFRAME]))
                past[name].append(PastRun(fingerprint, ended_at))
    return past


def gap_sensor(
    timeframes: Iterable[Timeframe], windows: Windows, clock: Clock = system_now
) -> dg.SensorDefinition:
    """Return the sensor that starts runs for due gaps."""
    kept = tuple(timeframes)

    @dg.sensor(
        name=SENSOR,
        asset_selection=[bars_key(timeframe) for timeframe in kept],
        minimum_interval_seconds=_EVERY_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Starts runs for unexplained gaps: long timeframes first, newest windows "
        "first, several symbols per run where each needs little. Symbols with `backfill: manual` "
        "are only kept fresh.",
    )
    def sensor(
        context: dg.SensorEvaluationContext, ib: IbResource, store: StoreResource
    ) -> dg.SensorResult | dg.SkipReason:
        real_now = clock()
        try:
            with closing(ib.rate_limiter()) as gateway:
                available = gateway.availability(real_now)
            if not available.may_try:
                return dg.SkipReason(str(available))
            workspace = ib.workspace(store)
            tick = read_gaps(workspace, real_now)
        except KtrdrError as error:
            return dg.SkipReason(str(error))
        runs, text = choose_runs(context.instance, tick, windows, kept)
        if text == WAITS:
            return dg.SkipReason(text)
        announced, notice = _announcement(tick, workspace.gateway_config, context.cursor)
        if notice:
            context.log.warning(notice)
        context.log.info(text)
        problem = f"{workspace.problem}. Using the last good version" if workspace.problem else ""
        message = "; ".join(part for part in (problem, text, notice) if part)
        return dg.SensorResult(
            run_requests=[run_request(run) for run in runs],
            skip_reason=None if runs else message,
            cursor=json.dumps({"said": message, "announced_bars": announced}),
        )

    return sensor


def read_gaps(workspace: Workspace, real_now: datetime) -> GapScan:
    """Return the state of the store and what is due at ``real_now``, and record the scan.

    Raises:
        KtrdrError: the store or the universe cannot be read.
    """
    return GapFillerService(lambda: workspace).scan(workspace, real_now)


def choose_runs(
    instance: dg.DagsterInstance, tick: GapScan, windows: Windows, timeframes: Sequence[Timeframe]
) -> tuple[list[GapRun], str]:
    """Return the runs to start now, and one line that says what is started or skipped, and why.

    The code location has assets of ``timeframes`` alone; one that a symbol has got since then is
    loaded after the definitions are.
    """
    if not tick.due:
        return [], _nothing_text(tick)
    if waits_for_universe(tick.index.store.layout):
        return [], WAITS
    busy, waiting_runs = active_runs(instance)
    free_runs = _AT_ONCE - waiting_runs
    past = past_runs(instance)
    orders = {timeframe: held_symbols(instance, timeframe) for timeframe in timeframes}
    kept = {timeframe: set(symbols) for timeframe, symbols in orders.items()}
    left_out: Counter[str] = Counter()
    chosen: list[Due] = []
    alone: set[SeriesName] = set()
    for due in tick.due:
        series = due.series
        name = (series.symbol, series.timeframe)
        until = waits_until(due.fingerprint, past.get(name, []))
        reasons = {
            "have no partition yet": series.symbol not in kept.get(series.timeframe, ()),
            "are being loaded": name in busy,
            "wait after runs that changed nothing": until is not None and until > tick.real_now,
        }
        reason = next((reason for reason, holds in reasons.items() if holds), None)
        if reason:
            left_out[reason] += 1
        else:
            chosen.append(due)
            if until is not None:
                alone.add(name)
    wanted, unreached = _windows_wanted(chosen, tick, windows)
    runs = gap_runs(wanted, orders, alone=alone, most=max(free_runs, 0))
    if unreached:
        left_out["have gaps only before Dagster's first windows (see `ktrdr status`)"] = unreached
    if later := len(wanted) - sum(len(run.series) for run in runs):
        why = "follow later" if free_runs > 0 else f"follow after the {_AT_ONCE} active runs"
        left_out[why] = later
    started = f"requested {len(runs)} runs: {', '.join(map(str, runs))}" if runs else "no run"
    others = "".join(f"; {number} {reason}" for reason, number in left_out.items())
    bars = sum(due.bars for due in tick.due)
    return runs, f"{len(tick.due)} series lack {bars:,} bars: {started}{others}"


def run_request(run: GapRun) -> dg.RunRequest:
    """Return the Dagster request of a run."""
    first = BarPartition(run.symbols[0], run.first)
    last = BarPartition(run.symbols[-1], run.last)
    corners = [BarPartition(symbol, window) for symbol in run.symbols for window in run.ends]
    return dg.RunRequest(
        asset_selection=[bars_key(run.timeframe)],
        asset_check_keys=[],
        tags={
            **shown_tags(corners),
            TIMEFRAME: run.timeframe.value,
            KIND: RunKind.GAP.value,
            SYMBOL: BETWEEN.join(run.symbols),
            GAPS: BETWEEN.join(run.fingerprints),
            PRIORITY: "-1",
            **range_tags(first, last),
        },
    )


def _windows_wanted(
    due: Sequence[Due], tick: GapScan, windows: Windows
) -> tuple[list[SeriesWindows], int]:
    """Return what each series would load now, and the number of series due in no window.

    Dagster's newest window is the one of real time, whatever the market time is.
    """
    until = min(tick.market_now, tick.real_now)
    known = {one: windows_partitions(one, windows).get_partition_keys(until) for one in Timeframe}
    calendars = tick.index.calendars
    found = [
        newest_windows(one, known[one.series.timeframe], calendars.of(one.series.instrument))
        for one in due
    ]
    return [one for one in found if one is not None], sum(one is None for one in found)


def _announcement(tick: GapScan, config: GatewayConfig, cursor: str | None) -> tuple[int, str]:
    """Return the announced bars and the notice of a large backlog, with its plan.

    A backlog is announced once, and again after it has doubled.
    """
    announced = int(json.loads(cursor)["announced_bars"]) if cursor else 0
    backlog = measured_backlog(tick.found)
    if not backlog.is_big:
        return 0, ""
    if announced and backlog.bars < 2 * announced:
        return announced, ""
    plan = backlog_estimate(tick.index, tick.found, config, tick.market_now)
    return backlog.bars, backlog_text(plan)


def _nothing_text(tick: GapScan) -> str:
    gaps = sum(len(one.gaps) for one in tick.found)
    broken = sum(one.error is not None for one in tick.found)
    unread = f"; {broken} cannot be read, see `ktrdr status`" if broken else ""
    if not gaps:
        return f"nothing is missing in {len(tick.found)} series{unread}"
    return (
        f"{gaps} gaps, none is due: deferred after failed attempts, waiting for confirmation, "
        f"or left to you (`backfill: manual`){unread}"
    )
