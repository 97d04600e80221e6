"""The alert sensor: one alert when an outage begins, and one when it is over.

Outages: many failures, one cause, one alert when it begins and one when it is over.

Telling a person: an ERROR in the log, and a command of their own with JSON on its stdin.

The alert sensor: one alert when something begins to fail, one when it works again.
"""

import json
import logging
import shlex
import subprocess
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import dagster as dg
from dagster_shared.error import SerializableErrorInfo

from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.defs.resources import StoreResource
from ktrdr_pipelines.defs.runs.tags import CAUSE, REQUESTS, SYMBOL, TIMEFRAME

GATEWAY, DISK = "gateway", "disk"
_CAUSES = {
    "GatewayUnreachableError": GATEWAY,
    "GatewayRestingError": GATEWAY,
    "GatewayTimeoutError": GATEWAY,
    "GatewaySilentError": GATEWAY,  # its name in runs of earlier versions
    "ClientIdInUseError": GATEWAY,
    "ConnectionLostError": GATEWAY,
    "OutageError": GATEWAY,
    "DiskError": DISK,
}


def outage_of(cause: str) -> str | None:
    """Name the outage that errors of a class share, or None where each is its own."""
    return _CAUSES.get(cause)


@dataclass(frozen=True, slots=True)
class Ended:
    """One piece of work that ended: what it was, and why it failed, if it did.

    ``job`` names what is repeated, such as ``bars 1m AAPL``; ``cause`` is the class of the error
    (empty: it died without one); ``used_gateway`` says whether a gateway answered it.
    """

    job: str
    at: datetime
    failed: bool = False
    cause: str = ""
    text: str = ""
    used_gateway: bool = False

    @property
    def outage(self) -> str:
        """Name the outage that a failure belongs to: a shared cause, or the work itself."""
        return outage_of(self.cause) or self.job


@dataclass(frozen=True, slots=True)
class Outage:
    """Something that fails: since when, why in the first failure's words, how often so far."""

    name: str
    since: datetime
    cause: str
    text: str
    failures: int = 1


@dataclass(frozen=True, slots=True)
class Change:
    """What some ended work changed: the outages that stand now, what began, what is over."""

    open_outages: Mapping[str, Outage]
    begun: tuple[Outage, ...] = field(default=())
    over: tuple[Outage, ...] = field(default=())


def after(open_outages: Mapping[str, Outage], ended: Iterable[Ended]) -> Change:
    """Take in work that ended, oldest first; what began and was over at once is in neither."""
    now = dict(open_outages)
    for one in ended:
        if one.failed:
            known = now.get(one.outage)
            now[one.outage] = (
                replace(known, failures=known.failures + 1)
                if known
                else Outage(one.outage, one.at, one.cause, one.text)
            )
            continue
        for name in _ended_by(one):
            now.pop(name, None)
    return Change(
        now,
        begun=tuple(outage for name, outage in now.items() if name not in open_outages),
        over=tuple(outage for name, outage in open_outages.items() if name not in now),
    )


def _ended_by(one: Ended) -> set[str]:
    """Name the outages that a success ends: it asked the gateway, and it wrote."""
    return {one.job} | ({GATEWAY, DISK} if one.used_gateway else set())


COMMAND_S: Final = 20.0
"""How long the command may take; then it is ended. A tick may run it twice, for an outage and for
an all-clear, and Dagster gives a tick 60 s: one that takes longer would tell the same again."""

_MOST_TEXT: Final = 1_000


def document_of(event: str, outages: Sequence[Outage], store: str) -> str:
    """Write what the command reads: one JSON document.

    ``event`` is ``outage`` or ``all-clear``; each outage has ``name``, ``since``, ``cause``,
    ``text`` and ``failures``.
    """
    told = [
        {
            "name": one.name,
            "since": one.since.isoformat(),
            "cause": one.cause or "died without an error",
            "text": one.text[:_MOST_TEXT],
            "failures": one.failures,
        }
        for one in outages
    ]
    return json.dumps({"event": event, "store": store, "outages": told})


def run_command(command: str, document: str, log: logging.Logger) -> bool:
    """Run the person's command, and say whether it took the document; a failure is logged."""
    try:
        done = subprocess.run(  # noqa: S603  (the person's own command, from their environment)
            shlex.split(command),
            input=document,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        log.error("KTRDR_ALERT_COMMAND could not be run: %s", error)  # noqa: TRY400
        return False
    if done.returncode != 0:
        log.error(
            "KTRDR_ALERT_COMMAND ended with exit code %d: %s", done.returncode, done.stderr[-500:]
        )
    return done.returncode == 0


_EVERY_S = 30
_RUNS = 200
_FIRST_LOOKBACK = timedelta(hours=1)
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
        seen_at, open_outages = _state(context.cursor)
        records = context.instance.get_run_records(
            dg.RunsFilter(
                statuses=[dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE],
                updated_after=seen_at,
            ),
            limit=_RUNS,
            order_by="update_timestamp",
            ascending=True,
        )
        change = after(open_outages, [_ended(context.instance, record) for record in records])
        if records:
            seen_at = _utc(records[-1].update_timestamp)
        told = []
        for event, outages in (("outage", change.begun), ("all-clear", change.over)):
            if outages:
                text = _line(event, outages)
                told.append(text)
                (context.log.error if event == "outage" else context.log.info)(text)
                if command:
                    run_command(command, document_of(event, outages, store.data_dir), context.log)
        return dg.SensorResult(
            skip_reason="; ".join(told) or _quiet(change.open_outages),
            cursor=_cursor(seen_at, change.open_outages),
        )

    return sensor


def _ended(instance: dg.DagsterInstance, record: dg.RunRecord) -> Ended:
    run = record.dagster_run
    failed = run.status is dg.DagsterRunStatus.FAILURE
    return Ended(
        job=_name(run),
        at=_utc(record.update_timestamp),
        failed=failed,
        cause=run.tags.get(CAUSE, ""),
        text=_failure(instance, run.run_id) if failed else "",
        used_gateway=REQUESTS in run.tags,
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


def _quiet(open_outages: Mapping[str, Outage]) -> str:
    if not open_outages:
        return "nothing fails"
    return f"nothing new; still failing, alerted before: {', '.join(open_outages)}"


def _cursor(seen_at: datetime, open_outages: Mapping[str, Outage]) -> str:
    outages = [asdict(one) | {"since": one.since.isoformat()} for one in open_outages.values()]
    return json.dumps({"seen_at": seen_at.isoformat(), "outages": outages})


def _state(cursor: str | None) -> tuple[datetime, dict[str, Outage]]:
    if cursor is None:
        return system_now() - _FIRST_LOOKBACK, {}
    fields: dict[str, Any] = json.loads(cursor)
    outages = (
        Outage(**{**one, "since": datetime.fromisoformat(one["since"])})
        for one in fields["outages"]
    )
    return datetime.fromisoformat(fields["seen_at"]), {one.name: one for one in outages}


def _utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
