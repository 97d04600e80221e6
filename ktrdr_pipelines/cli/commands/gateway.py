"""``ktrdr health``, ``ktrdr doctor`` and ``ktrdr probe``: check and diagnose a gateway.

``health`` connects and measures a round trip, without requesting data. ``doctor`` diagnoses the
gateway's setup, and explains how to fix it. ``probe`` names the tests against real gateways.

Not here: the checks of ``doctor`` (``ib.diagnostics``).
"""

import time
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import typer

from ktrdr_pipelines.cli.output import AsJson, error_json, note, say, say_json
from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.errors import (
    ClientIdInUseError,
    ExitCode,
    GatewayError,
    NoStoreError,
    UsageError,
)

if TYPE_CHECKING:
    from ktrdr_pipelines.ib.config import GatewayConfig
    from ktrdr_pipelines.ib.connection.connection import GatewayConnection
    from ktrdr_pipelines.ib.connection.gateway_status import Health


def doctor(as_json: AsJson = False) -> None:
    """Diagnose the gateway's setup, and explain how to fix what is wrong.

    The settings select the gateway: IB_HOST and IB_PORT, or the store's settings.json. At most five
    requests are sent. Ranges deferred after refusals or failed attempts become due immediately, so
    that sensors and updates retry them.

    Exit codes: 0 nothing is wrong, 1 something is wrong, 2 bad usage.
    """
    from ktrdr_pipelines.app.workspace import gateway_config
    from ktrdr_pipelines.cli.entry_point import run_stoppable
    from ktrdr_pipelines.ib.diagnostics.doctor import diagnose
    from ktrdr_pipelines.ib.diagnostics.gateway_checks import CheckVerdict

    config = gateway_config()
    checks = run_stoppable(diagnose(config))
    make_attempts_due()
    is_good = all(check.verdict is not CheckVerdict.WRONG for check in checks)
    if as_json:
        documents = [asdict(check) for check in checks]
        say_json({"gateway": config.gateway, "good": is_good, "checks": documents})
    else:
        say(f"gateway {config.gateway}")
        for check in checks:
            say(f"{check.verdict:<9} {check.name:<12} {check.finding}")
            if check.hint:
                say(f"{'':<9} {'':<12} -> {check.hint}")
    raise typer.Exit(ExitCode.DONE if is_good else ExitCode.FAILED)


def make_attempts_due() -> None:
    """Make the deferred requests of the store, if there is one, due now, so that sensors retry."""
    from ktrdr_pipelines.app.workspace import Workspace

    try:
        workspace = Workspace.open()
    except NoStoreError:
        return
    workspace.ledger.attempts.hasten(system_now())


@dataclass(frozen=True, slots=True)
class HealthReport:
    """The result of checking a gateway step by step; None for steps that were not reached."""

    gateway: str
    tcp: bool | None
    handshake: bool | None
    connect_ms: float | None = None
    round_trip_ms: float | None = None
    clock_offset_s: float | None = None
    origin: str | None = None
    client_id: int | None = None
    server_version: int | None = None
    last_answer_age_s: float | None = None
    concurrency: int | None = None
    breaker: str | None = None
    paused_s: float | None = None
    farms: tuple[str, ...] = ()
    troubles: tuple[str, ...] = ()
    error: GatewayError | None = None

    @property
    def is_good(self) -> bool:
        """Return whether the gateway responds and reports no problem."""
        return self.error is None and self.round_trip_ms is not None and not self.troubles

    def document(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        fields = asdict(self) | {"good": self.is_good}
        return fields | {"error": None if self.error is None else error_json(self.error)}


def health(as_json: AsJson = False) -> None:
    """Check whether the gateway responds: connection, handshake, round trip, clock.

    The settings select the gateway: IB_HOST and IB_PORT, or the store's settings.json. No data is
    requested.

    Exit codes: 0 it responds and reports no problem, 1 it does not respond or reports a problem,
    2 bad usage.
    """
    from ktrdr_pipelines.app.workspace import gateway_config
    from ktrdr_pipelines.cli.entry_point import run_stoppable

    config = gateway_config()
    found = run_stoppable(check_health(config))
    if as_json:
        say_json(found.document())
    else:
        _say_health(found)
    raise typer.Exit(ExitCode.DONE if found.is_good else ExitCode.FAILED)


async def check_health(config: "GatewayConfig") -> HealthReport:
    """Connect, request the time, and disconnect; a failure is part of the report."""
    from ktrdr_pipelines.ib.connection.gateway_status import with_vitals
    from ktrdr_pipelines.ib.connection.strategy import IbConnectionStrategy, Operation
    from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter

    strategy = IbConnectionStrategy(config)
    started_s = time.monotonic()
    try:
        async with strategy.get_connection_for_operation(Operation.CLI) as connection:
            connect_s = time.monotonic() - started_s
            seen = await connection.health()
            with closing(RateLimiter.of(config)) as budget:  # shared by all processes
                seen = with_vitals(seen, budget.vitals())
            return _reached(connection, seen, connect_s)
    except GatewayError as error:
        return _unreached(config.gateway, error)
    finally:
        await strategy.cleanup_temporary_connections()


def _reached(connection: "GatewayConnection", seen: "Health", connect_s: float) -> HealthReport:
    trip_s, age_s = seen.round_trip_s, seen.last_answer_age_s
    return HealthReport(
        gateway=connection.gateway,
        tcp=True,
        handshake=True,
        connect_ms=_ms(connect_s),
        round_trip_ms=None if trip_s is None else _ms(trip_s),
        clock_offset_s=round(seen.clock_offset_s, 1) + 0.0,  # prints 0 instead of -0
        origin=str(connection.origin),
        client_id=connection.client_id,
        server_version=connection.server_version,
        last_answer_age_s=None if age_s is None else round(age_s, 1),
        concurrency=seen.concurrency,
        breaker=seen.breaker,
        paused_s=round(seen.paused_s, 1),
        farms=tuple(map(str, seen.farms)),
        troubles=seen.troubles,
    )


def _unreached(gateway: str, error: GatewayError) -> HealthReport:
    """Return the report on a failed connection, with the steps that succeeded."""
    from ktrdr_pipelines.ib.protocol.transport import NO_LISTENER, DisconnectReason, TransportError

    cause = error.__cause__
    disconnect_reason = cause.disconnect_reason if isinstance(cause, TransportError) else None
    if disconnect_reason is None and isinstance(error, ClientIdInUseError):
        return HealthReport(gateway, tcp=None, handshake=None, error=error)
    return HealthReport(
        gateway,
        tcp=disconnect_reason not in NO_LISTENER,
        handshake=disconnect_reason in {None, DisconnectReason.ID_IN_USE},
        error=error,
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


def _say_health(found: HealthReport) -> None:
    say(f"gateway     {found.gateway}")
    made = {True: "made", False: "none", None: "not tried"}
    say(f"connection  {made[found.tcp]}")
    if found.tcp:
        say(f"handshake   {'done' if found.handshake else 'not done'}")
    if found.error is not None:
        note(f"Error: {found.error}")
        return
    trip = "no response" if found.round_trip_ms is None else f"{found.round_trip_ms:g} ms"
    say(f"round trip  {trip} (connecting {found.connect_ms:g} ms)")
    say(f"clock       {found.clock_offset_s:+g} s against this machine")
    say(f"bars        origin {found.origin}")
    say(f"client id   {found.client_id}, protocol version {found.server_version}")
    age_s = found.last_answer_age_s
    say(f"last bars   {'none since this machine started' if age_s is None else f'{age_s:g} s ago'}")
    say(f"breaker     {found.breaker}, {found.concurrency} concurrent requests for bars")
    if found.paused_s:
        say(f"pause       {found.paused_s:.0f} s more: the gateway reported too many requests")
    for farm in found.farms:
        say(f"farm        {farm}")
    for trouble in found.troubles:
        note(f"Problem: {trouble}")


def probe() -> None:
    """Explain how to test the project's assumptions about gateways against a real one.

    The tests run in a clone of the project. Exit code: 2.
    """
    raise UsageError(
        "ktrdr probe",
        reason="the checks of real gateways are tests, which this command does not run",
        hint="In a clone of the project, with IB_HOST and IB_PORT naming the gateway: "
        "python -m pytest tests/live -m live -n 0",
    )
