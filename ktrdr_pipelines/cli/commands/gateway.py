"""Commands that look at a gateway: ``ktrdr health``, ``ktrdr doctor``, ``ktrdr probe``.

``ktrdr doctor``: what is wrong with a gateway's set-up, and how to fix it.

``ktrdr health``: whether the gateway is there and answers, without asking for any data.

``ktrdr probe``: where the questions to real gateways are now.
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
    from ktrdr_pipelines.ib.diagnostics.gateway_checks import Check
    from ktrdr_pipelines.ib.pacing.shared_state import Vitals


def doctor(as_json: AsJson = False) -> None:
    """Find out what is wrong with the gateway's set-up, and say how to fix it.

    IB_HOST and IB_PORT say which gateway. It makes five requests at most. Refusals and failures
    that earlier runs remember are forgotten, so that loads may try again at once.

    Exit codes: 0 nothing is wrong, 1 something is, 2 bad usage.
    """
    from ktrdr_pipelines.cli.entry_point import run_stoppable
    from ktrdr_pipelines.ib.config import GatewayConfig
    from ktrdr_pipelines.ib.diagnostics.doctor import diagnose
    from ktrdr_pipelines.ib.diagnostics.gateway_checks import Verdict
    from ktrdr_pipelines.settings import load_settings

    config = GatewayConfig.from_settings(load_settings())
    checks = run_stoppable(diagnose(config))
    make_attempts_due()
    is_good = all(check.verdict is not Verdict.WRONG for check in checks)
    if as_json:
        told = [asdict(check) for check in checks]
        say_json({"gateway": config.gateway, "good": is_good, "checks": told})
    else:
        _say_checks(config.gateway, checks)
    raise typer.Exit(ExitCode.DONE if is_good else ExitCode.FAILED)


def make_attempts_due() -> None:
    """Let sensors of the store, where there is one, try again at once what they have deferred."""
    from ktrdr_pipelines.settings import data_folder, load_settings
    from ktrdr_pipelines.store.layout import open_store
    from ktrdr_pipelines.store.ledger.ledger import open_ledger

    try:
        layout = open_store(data_folder(load_settings()))
    except NoStoreError:
        return
    open_ledger(layout).hasten_attempts(system_now())


def _say_checks(gateway: str, checks: "list[Check]") -> None:
    say(f"gateway {gateway}")
    for check in checks:
        say(f"{check.verdict:<9} {check.name:<12} {check.finding}")
        if check.hint:
            say(f"{'':<9} {'':<12} -> {check.hint}")


@dataclass(frozen=True, slots=True)
class HealthReport:
    """What a look at a gateway found, step by step; None where it did not come that far."""

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
        """Say whether it answers and knows of no trouble."""
        return self.error is None and self.round_trip_ms is not None and not self.troubles

    def document(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        fields = asdict(self) | {"good": self.is_good}
        return fields | {"error": None if self.error is None else error_json(self.error)}


def health(as_json: AsJson = False) -> None:
    """See whether the gateway is there: connection, handshake, round trip, clock.

    IB_HOST and IB_PORT say which. No data is asked for.

    Exit codes: 0 it answers and knows of no trouble, 1 it does not, or does, 2 bad usage.
    """
    from ktrdr_pipelines.cli.entry_point import run_stoppable
    from ktrdr_pipelines.ib.config import GatewayConfig
    from ktrdr_pipelines.settings import load_settings

    config = GatewayConfig.from_settings(load_settings())
    found = run_stoppable(check_health(config))
    if as_json:
        say_json(found.document())
    else:
        _say_health(found)
    raise typer.Exit(ExitCode.DONE if found.is_good else ExitCode.FAILED)


async def check_health(config: "GatewayConfig") -> HealthReport:
    """Connect, ask for the time, and disconnect; what fails is part of the answer."""
    from ktrdr_pipelines.ib.connection.gateway_status import with_vitals
    from ktrdr_pipelines.ib.connection.strategy import IbConnectionStrategy, Operation

    strategy = IbConnectionStrategy(config)
    started_s = time.monotonic()
    try:
        async with strategy.get_connection_for_operation(Operation.CLI) as connection:
            connect_s = time.monotonic() - started_s
            seen = with_vitals(await connection.health(), _vitals(config))
            return _seen(connection, seen, connect_s)
    except GatewayError as error:
        return _failed(config.gateway, error)
    finally:
        await strategy.cleanup_temporary_connections()


def _seen(connection: "GatewayConnection", seen: "Health", connect_s: float) -> HealthReport:
    """Say what a connection showed."""
    trip_s = seen.round_trip_s
    return HealthReport(
        gateway=connection.gateway,
        tcp=True,
        handshake=True,
        connect_ms=_ms(connect_s),
        round_trip_ms=None if trip_s is None else _ms(trip_s),
        clock_offset_s=round(seen.clock_offset_s, 1) + 0.0,  # no minus before nothing
        origin=str(connection.origin),
        client_id=connection.client_id,
        server_version=connection.server_version,
        last_answer_age_s=_rounded(seen.last_answer_age_s),
        concurrency=seen.concurrency,
        breaker=seen.breaker,
        paused_s=round(seen.paused_s, 1),
        farms=tuple(map(str, seen.farms)),
        troubles=seen.troubles,
    )


def _vitals(config: "GatewayConfig") -> "Vitals":
    """Give what all processes know of the gateway."""
    from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter

    with closing(RateLimiter.of(config)) as budget:
        return budget.vitals()


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _failed(gateway: str, error: GatewayError) -> HealthReport:
    """Say how far a connection came that was not made."""
    from ktrdr_pipelines.ib.protocol.transport import NO_LISTENER, DisconnectReason, TransportError

    cause = error.__cause__
    disconnect_reason = cause.disconnect_reason if isinstance(cause, TransportError) else None
    if disconnect_reason is None and isinstance(error, ClientIdInUseError):
        return HealthReport(gateway, tcp=None, handshake=None, error=error)
    is_met, shook_hands = (
        disconnect_reason not in NO_LISTENER,
        disconnect_reason in {None, DisconnectReason.ID_IN_USE},
    )
    return HealthReport(gateway, tcp=is_met, handshake=shook_hands, error=error)


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
    trip = "no answer" if found.round_trip_ms is None else f"{found.round_trip_ms:g} ms"
    say(f"round trip  {trip} (connecting {found.connect_ms:g} ms)")
    say(f"clock       {found.clock_offset_s:+g} s against this machine")
    say(f"bars        origin {found.origin}")
    say(f"client id   {found.client_id}, protocol version {found.server_version}")
    age_s = found.last_answer_age_s
    say(f"last bars   {'none since this machine started' if age_s is None else f'{age_s:g} s ago'}")
    say(f"breaker     {found.breaker}, {found.concurrency} requests for bars at once")
    if found.paused_s:
        say(f"pause       {found.paused_s:.0f} s more: the gateway said that it was asked too much")
    for farm in found.farms:
        say(f"farm        {farm}")
    for trouble in found.troubles:
        note(f"Trouble: {trouble}")


def probe() -> None:
    """Say how to ask a gateway about what is believed of real ones and not certain.

    The questions are tests: a clone of the project runs them. Exit code: 2.
    """
    raise UsageError(
        "ktrdr probe",
        reason="the questions to real gateways are tests now",
        hint="In a clone of the project, with IB_HOST and IB_PORT naming the gateway: "
        "python -m pytest tests/live -m live -n 0",
    )
