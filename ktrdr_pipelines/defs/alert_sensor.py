"""The alert sensor: one alert when something begins to fail, one when it works again.

Not here: what belongs to one outage (``core.outages``), how a person is told (``defs.alert``).
"""

import json
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
from dagster_shared.error import SerializableErrorInfo

from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.core.outages import Ended, Outage, after
from ktrdr_pipelines.defs.alert import document_of, run_command
from ktrdr_pipelines.defs.resources import StoreResource
from ktrdr_pipelines.defs.tags import CAUSE, REQUESTS, SYMBOL, TIMEFRAME

_EVERY_S = 30
_RUNS = 200
_FIRST_LOOK = timedelta(hours=1)
_TEXT_LENGTH = 300


def alert_sensor(command: str | None) -> dg.SensorDefinition:
    """Make the sensor that alerts once an outage.

    Args:
        command: what to run with the alert on its stdin; None only logs.
    """

    @dg.sensor(
        name="alert_sensor",
        minimum_interval_seconds=_EVERY_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Says once that something fails, and once that it works again: in the log, "
        "and to KTRDR_ALERT_COMMAND.",
    )
    def sensor(context: dg.SensorEvaluationContext, store: StoreResource) -> dg.SensorResult:
        seen_at, standing = _state(context.cursor)
        records = context.instance.get_run_records(
            dg.RunsFilter(
                statuses=[dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE],
                updated_after=seen_at,
            ),
            limit=_RUNS,
            order_by="update_timestamp",
            ascending=True,
        )
        turn = after(standing, [_ended(context.instance, record) for record in records])
        if records:
            seen_at = _utc(records[-1].update_timestamp)
        told = []
        for event, outages in (("outage", turn.begun), ("all-clear", turn.over)):
            if outages:
                text = _line(event, outages)
                told.append(text)
                (context.log.error if event == "outage" else context.log.info)(text)
                if command:
                    run_command(command, document_of(event, outages, store.data_dir), context.log)
        return dg.SensorResult(
            skip_reason="; ".join(told) or _quiet(turn.standing),
            cursor=_cursor(seen_at, turn.standing),
        )

    return sensor


def _ended(instance: dg.DagsterInstance, record: dg.RunRecord) -> Ended:
    run = record.dagster_run
    failed = run.status is dg.DagsterRunStatus.FAILURE
    return Ended(
        work=_name(run),
        at=_utc(record.update_timestamp),
        failed=failed,
        cause=run.tags.get(CAUSE, ""),
        text=_failure(instance, run.run_id) if failed else "",
        asked=REQUESTS in run.tags,
    )


def _name(run: dg.DagsterRun) -> str:
    """Name what a run works on: its assets (which name the timeframe) or its job, and a symbol."""
    keys = sorted(key.to_user_string() for key in run.asset_selection or ())
    name = ", ".join(keys) or f"{run.job_name} {run.tags.get(TIMEFRAME, '')}".strip()
    return f"{name} {run.tags.get(SYMBOL, '')}".strip()


def _failure(instance: dg.DagsterInstance, run_id: str) -> str:
    records = instance.get_records_for_run(
        run_id, of_type=dg.DagsterEventType.STEP_FAILURE, limit=1
    ).records
    if not records:
        return "the run died without an error"
    event = records[0].event_log_entry.dagster_event
    data = event.step_failure_data if event else None
    if data is not None and data.user_failure_data is not None:
        return str(data.user_failure_data.description)
    return _innermost(data.error) if data and data.error else "no text"


def _innermost(error: SerializableErrorInfo) -> str:
    """Give the text of what an error came from: Dagster wraps it, and names only itself."""
    while error.cause is not None:
        error = error.cause
    return error.message.strip()


def _line(event: str, outages: tuple[Outage, ...]) -> str:
    parts = [
        f"{one.name} since {one.since:%Y-%m-%d %H:%M:%S}Z ({_counted(one.failures)}: "
        f"{_short(one.text) or one.cause})"
        for one in outages[:5]
    ]
    more = f" and {len(outages) - 5} more" if len(outages) > 5 else ""
    verb = "begins to fail" if event == "outage" else "works again"
    return f"{verb}: {'; '.join(parts)}{more}"


def _short(text: str) -> str:
    """Give the beginning of a text on one line: its first one alone may only announce the rest."""
    return textwrap.shorten(text, _TEXT_LENGTH, placeholder=" ...")


def _counted(failures: int) -> str:
    return "1 failure" if failures == 1 else f"{failures} failures"


def _quiet(standing: Mapping[str, Outage]) -> str:
    if not standing:
        return "nothing fails"
    return f"nothing new; still failing, alerted before: {', '.join(standing)}"


def _cursor(seen_at: datetime, standing: Mapping[str, Outage]) -> str:
    outages = [asdict(one) | {"since": one.since.isoformat()} for one in standing.values()]
    return json.dumps({"seen_at": seen_at.isoformat(), "outages": outages})


def _state(cursor: str | None) -> tuple[datetime, dict[str, Outage]]:
    if cursor is None:
        return system_now() - _FIRST_LOOK, {}
    fields: dict[str, Any] = json.loads(cursor)
    outages = (
        Outage(**{**one, "since": datetime.fromisoformat(one["since"])})
        for one in fields["outages"]
    )
    return datetime.fromisoformat(fields["seen_at"]), {one.name: one for one in outages}


def _utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
