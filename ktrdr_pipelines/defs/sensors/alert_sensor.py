"""The alert sensor: one alert when an outage begins and one when it is over, one a re-basing.

Failed runs with a shared cause (the gateway, the disk) are one outage; any other job that fails is
an outage of its own. So are an invalid universe, and a check that fails as an error. An alert is an
ERROR in the log and, if the user configured a command, a JSON document on that command's stdin.

Not here: which re-basings and changes of unit are new (``defs.sensors.basis_alerts``).
"""

import json
import logging
import shlex
import subprocess
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import dagster as dg

from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.defs.resources import StoreResource
from ktrdr_pipelines.defs.runs.tags import (
    BETWEEN,
    CAUSE,
    KIND,
    RECORDED,
    REQUESTS,
    SYMBOL,
    TIMEFRAME,
)
from ktrdr_pipelines.defs.sensors.basis_alerts import Told, basis_alerts
from ktrdr_pipelines.domain.adjustments import Adjustment
from ktrdr_pipelines.domain.plausibility import Disagreement, DisagreementKind
from ktrdr_pipelines.errors import KtrdrError, NoStoreError, StoreError
from ktrdr_pipelines.store.files import kind_of

COMMAND_S: Final = 20.0
"""Seconds after which the command is killed. A tick may run it twice, for an outage and for an
all-clear, and Dagster ends a tick after 60 s; a longer one would send the same alerts again."""

_MOST_ALERTS: Final = 2
"""Alerts that one tick sends; further ones wait for the next."""

_EVERY_S = 30
_RUNS = 200
_FIRST_LOOKBACK = timedelta(hours=1)
_MOST_TEXT: Final = 1_000
_TEXT_LENGTH = 300

_UNITS: Final = frozenset({DisagreementKind.UNIT, DisagreementKind.VOLUME})

GATEWAY, DISK, UNIVERSE = "gateway", "disk", "universe"
_FAILED_CHECK: Final = "AssetCheckFailed"
"""The cause of an outage that is a failed check."""

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
    """Return the outage that errors of this class share, or None if there is none."""
    return _CAUSES.get(cause)


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that ended: its job, and why it failed, if it did.

    ``job`` names what is repeated, such as ``bars/1m AAPL``; ``cause`` is the class of the error,
    empty if the run died without one; ``used_gateway`` is true if the run sent requests. With
    ``is_state`` it is no run but a state that was read: whether the universe is valid, how a check
    ended last.
    """

    job: str
    at: datetime
    failed: bool = False
    cause: str = ""
    text: str = ""
    used_gateway: bool = False
    is_state: bool = False

    @property
    def outage(self) -> str:
        """The outage that a failure belongs to: its shared cause, or else its job."""
        return outage_of(self.cause) or self.job


@dataclass(frozen=True, slots=True)
class Outage:
    """Something that fails: since when, why (the first failure's text), how often so far."""

    name: str
    since: datetime
    cause: str
    text: str
    failures: int = 1


@dataclass(frozen=True, slots=True)
class OutageChange:
    """The outages after some ended runs: those that are open, that began, and that are over."""

    open_outages: Mapping[str, Outage]
    begun: tuple[Outage, ...] = field(default=())
    over: tuple[Outage, ...] = field(default=())


def outages_after(open_outages: Mapping[str, Outage], ended: Iterable[Ended]) -> OutageChange:
    """Return the outages after these ended runs, which are in order of time.

    An outage that both began and ended within them is in neither ``begun`` nor ``over``.
    """
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
        # A success with requests used the gateway and wrote to the disk: both outages are over.
        for name in (one.job, GATEWAY, DISK) if one.used_gateway else (one.job,):
            now.pop(name, None)
    return OutageChange(
        now,
        begun=tuple(outage for name, outage in now.items() if name not in open_outages),
        over=tuple(outage for name, outage in open_outages.items() if name not in now),
    )


def document_of(event: str, outages: Sequence[Outage], store: str) -> str:
    """Return the JSON document that the command reads.

    ``event`` is ``outage`` or ``all-clear``; each outage has ``name``, ``since``, ``cause``,
    ``text`` and ``failures``.
    """
    described = [
        {
            "name": one.name,
            "since": one.since.isoformat(),
            "cause": one.cause or "died without an error",
            "text": one.text[:_MOST_TEXT],
            "failures": one.failures,
        }
        for one in outages
    ]
    return json.dumps({"event": event, "store": store, "outages": described})


def run_command(command: str, document: str, log: logging.Logger) -> bool:
    """Run the user's command with the document on its stdin; return whether it succeeded.

    A failure is logged.
    """
    try:
        done = subprocess.run(  # noqa: S603  (the user's own command, from the environment)
            shlex.split(command),
            input=document,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        log.error("running KTRDR_ALERT_COMMAND failed: %s", error)  # noqa: TRY400
        return False
    if done.returncode != 0:
        log.error(
            "KTRDR_ALERT_COMMAND exited with code %d: %s", done.returncode, done.stderr[-500:]
        )
    return done.returncode == 0


def alert_sensor(
    command: str | None, checks: Iterable[dg.AssetCheckKey] = ()
) -> dg.SensorDefinition:
    """Return the sensor that alerts once when an outage begins and once when it is over.

    It alerts once about each re-basing and each change of unit, too.

    Args:
        command: the command to run with the alert on its stdin; None only logs.
        checks: the checks whose failure is an outage.
    """
    watched = tuple(checks)

    @dg.sensor(
        name="alert_sensor",
        minimum_interval_seconds=_EVERY_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Alerts once when something begins to fail and once when it works again, and "
        "once when the gateway has re-based a symbol or changed a unit: in the log, and through "
        "KTRDR_ALERT_COMMAND.",
    )
    def sensor(context: dg.SensorEvaluationContext, store: StoreResource) -> dg.SensorResult:
        seen_at, open_outages, told = _state(context.cursor)
        records = context.instance.get_run_records(
            dg.RunsFilter(
                statuses=[dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE],
                updated_after=seen_at,
            ),
            limit=_RUNS,
            order_by="update_timestamp",
            ascending=True,
        )
        ended = [
            one
            for record in records
            if record.dagster_run.tags.get(KIND) not in RECORDED
            for one in _ended(context.instance, record)
        ]
        ended += [*_universe_read(store), *_checks_done(context.instance, watched)]
        # A state that lasts is not a further failure.
        change = outages_after(
            open_outages,
            [one for one in ended if not (one.is_state and one.failed and one.job in open_outages)],
        )
        if records:
            seen_at = _utc(records[-1].update_timestamp)
        alerts = []
        for event, outages in (("outage", change.begun), ("all-clear", change.over)):
            if outages:
                text = _line(event, outages)
                alerts.append(text)
                (context.log.error if event == "outage" else context.log.info)(text)
                if command:
                    run_command(command, document_of(event, outages, store.data_dir), context.log)
        most, found = _MOST_ALERTS - len(alerts), _found(store)
        if found is not None:
            new, told = basis_alerts(told, *found, now=system_now(), most=most)
            for alert in new:
                alerts.append(alert.line)
                context.log.error(alert.line)
                if command:
                    run_command(command, alert.document(store.data_dir), context.log)
        is_all_told = found is not None and most == _MOST_ALERTS
        quiet = "nothing is failing"
        if change.open_outages:
            quiet = f"no change; still failing, already alerted: {', '.join(change.open_outages)}"
        return dg.SensorResult(
            skip_reason="; ".join(alerts) or quiet,
            cursor=_cursor(
                seen_at, change.open_outages, None if is_all_told and told.is_empty else told
            ),
        )

    return sensor


def _ended(instance: dg.DagsterInstance, record: dg.RunRecord) -> list[Ended]:
    """Return a run that ended, once for each of its symbols.

    A failed run of several does not tell which of them is at fault, unless the cause is shared by
    all: the next runs of those that still lack bars do (``defs.sensors.gap_runs``).
    """
    run = record.dagster_run
    failed, cause = run.status is dg.DagsterRunStatus.FAILURE, run.tags.get(CAUSE, "")
    # The assets of a run name the timeframe.
    keys = sorted(key.to_user_string() for key in run.asset_selection or ())
    name = ", ".join(keys) or f"{run.job_name} {run.tags.get(TIMEFRAME, '')}".strip()
    symbols = run.tags.get(SYMBOL, "").split(BETWEEN)
    if failed and len(symbols) > 1:
        symbols = symbols[:1] if outage_of(cause) else []
    text = _failure(instance, run.run_id) if failed and symbols else ""
    return [
        Ended(
            job=f"{name} {symbol}".strip(),
            at=_utc(record.update_timestamp),
            failed=failed,
            cause=cause,
            text=text,
            used_gateway=REQUESTS in run.tags,
        )
        for symbol in symbols
    ]


def _universe_read(store: StoreResource) -> Iterator[Ended]:
    """Yield whether the universe is valid; nothing where there is no store, or none was ever there.

    The last good universe replaces an invalid one, so that no run fails.
    """
    problem: KtrdrError | None
    try:
        file = store.universe_file()
    except (NoStoreError, StoreError):
        return  # runs and other sensors report it
    try:
        _, problem = file.read()
    except KtrdrError as error:
        if kind_of(file.path) is None:
            return
        problem = error
    failed = problem is not None
    cause, text = (type(problem).__name__, str(problem)) if failed else ("", "")
    yield Ended(UNIVERSE, system_now(), failed, cause, text, is_state=True)


def _checks_done(instance: dg.DagsterInstance, keys: Sequence[dg.AssetCheckKey]) -> Iterator[Ended]:
    """Yield how these checks ended last; none for a check that has never ended, or runs now."""
    newest = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    for key, record in newest.items():
        found = None if record.event is None else record.event.asset_check_evaluation
        if record.event is None or found is None:
            continue
        failed = not found.passed and found.severity is dg.AssetCheckSeverity.ERROR
        yield Ended(
            f"{key.asset_key.to_user_string()} {key.name}",
            datetime.fromtimestamp(record.event.timestamp, UTC),
            failed=failed,
            cause=_FAILED_CHECK if failed else "",
            text=(found.description or "") if failed else "",
            is_state=True,
        )


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
    if data is None or data.error is None:
        return "no text"
    # Dagster wraps the error of a step in one that names only Dagster.
    error = data.error
    while error.cause is not None:
        error = error.cause
    return error.message.strip()


def _line(event: str, outages: tuple[Outage, ...]) -> str:
    parts = []
    for one in outages[:5]:
        failures = "1 failure" if one.failures == 1 else f"{one.failures} failures"
        # Shortened over all lines: the first line of a text may only announce the rest.
        why = textwrap.shorten(one.text, _TEXT_LENGTH, placeholder=" ...") or one.cause
        parts.append(f"{one.name} since {one.since:%Y-%m-%d %H:%M:%S}Z ({failures}: {why})")
    more = f" and {len(outages) - 5} more" if len(outages) > 5 else ""
    verb = "begins to fail" if event == "outage" else "works again"
    return f"{verb}: {'; '.join(parts)}{more}"


def _found(
    store: StoreResource,
) -> tuple[Mapping[str, Sequence[Adjustment]], Mapping[str, Sequence[Disagreement]]] | None:
    """Return all adjustments by symbol and changes of unit by series; None if unreadable."""
    try:
        with closing(store.ledger()) as ledger:
            return ledger.adjustments.all(), ledger.disagreements.all(_UNITS)
    except (NoStoreError, StoreError):
        return None  # runs and other sensors report it


def _cursor(seen_at: datetime, open_outages: Mapping[str, Outage], told: Told | None) -> str:
    outages = [asdict(one) | {"since": one.since.isoformat()} for one in open_outages.values()]
    fields: dict[str, object] = {"seen_at": seen_at.isoformat(), "outages": outages}
    return json.dumps(fields | ({} if told is None else {"told": told.to_fields()}))


def _state(cursor: str | None) -> tuple[datetime, dict[str, Outage], Told]:
    if cursor is None:
        seen_at = system_now() - _FIRST_LOOKBACK
        return seen_at, {}, Told.nothing(seen_at)
    fields: dict[str, Any] = json.loads(cursor)
    outages = (
        Outage(**{**one, "since": datetime.fromisoformat(one["since"])})
        for one in fields["outages"]
    )
    seen_at = datetime.fromisoformat(fields["seen_at"])
    # It is left out as long as there was nothing to tell, and in cursors of earlier versions.
    told = Told.of_fields(fields["told"]) if "told" in fields else Told.nothing(seen_at)
    return seen_at, {one.name: one for one in outages}, told


def _utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
