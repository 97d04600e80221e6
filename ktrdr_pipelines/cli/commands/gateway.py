"""``ktrdr health``, ``ktrdr doctor`` and ``ktrdr probe``: check and diagnose a gateway.

``health`` connects and measures a round trip, without requesting data. ``doctor`` diagnoses the
gateway's setup, and explains how to fix it. ``probe`` names the tests against real gateways.

Not here: the check of ``health`` (``app.services.gateway_monitor``), those of ``doctor``
(``ib.diagnostics``).
"""

from contextlib import suppress
from typing import TYPE_CHECKING

import typer

from ktrdr_pipelines.cli.output import AsJson, note, say, say_json
from ktrdr_pipelines.errors import ExitCode, NoStoreError, UsageError

if TYPE_CHECKING:
    from ktrdr_pipelines.app.views.ib_documents import HealthDocument


def doctor(as_json: AsJson = False) -> None:
    """Diagnose the gateway's setup, and explain how to fix what is wrong.

    The settings select the gateway: IB_HOST and IB_PORT, or the store's settings.json. At most five
    requests are sent. Ranges deferred after refusals or failed attempts become due immediately, so
    that sensors and updates retry them.

    Exit codes: 0 nothing is wrong, 1 something is wrong, 2 bad usage.
    """
    from ktrdr_pipelines.app.services.gap_filler import make_attempts_due
    from ktrdr_pipelines.app.views.ib_documents import CheckDocument, DoctorDocument
    from ktrdr_pipelines.app.workspace import Workspace, gateway_config
    from ktrdr_pipelines.cli.entry_point import run_stoppable
    from ktrdr_pipelines.ib.diagnostics.doctor import diagnose
    from ktrdr_pipelines.ib.diagnostics.gateway_checks import CheckVerdict

    config = gateway_config()
    checks = run_stoppable(diagnose(config))
    with suppress(NoStoreError):
        make_attempts_due(Workspace.open())
    is_good = all(check.verdict is not CheckVerdict.WRONG for check in checks)
    code = ExitCode.DONE if is_good else ExitCode.FAILED
    if as_json:
        documents = (
            CheckDocument(
                name=check.name, verdict=check.verdict, finding=check.finding, hint=check.hint
            )
            for check in checks
        )
        say_json(
            DoctorDocument(
                complete=is_good,
                exit_code=int(code),
                gateway=config.gateway,
                good=is_good,
                checks=tuple(documents),
            )
        )
    else:
        say(f"gateway {config.gateway}")
        for check in checks:
            say(f"{check.verdict:<9} {check.name:<12} {check.finding}")
            if check.hint:
                say(f"{'':<9} {'':<12} -> {check.hint}")
    raise typer.Exit(code)


def health(as_json: AsJson = False) -> None:
    """Check whether the gateway responds: connection, handshake, round trip, clock.

    The settings select the gateway: IB_HOST and IB_PORT, or the store's settings.json. No data is
    requested.

    Exit codes: 0 it responds and reports no problem, 1 it does not respond or reports a problem,
    2 bad usage.
    """
    from ktrdr_pipelines.app.services.gateway_monitor import check_health
    from ktrdr_pipelines.app.workspace import gateway_config
    from ktrdr_pipelines.cli.entry_point import run_stoppable

    found = run_stoppable(check_health(gateway_config())).document
    if as_json:
        say_json(found)
    else:
        _say_health(found)
    raise typer.Exit(found.exit_code)


def _say_health(found: "HealthDocument") -> None:
    say(f"gateway     {found.gateway}")
    made = {True: "made", False: "none", None: "not tried"}
    say(f"connection  {made[found.tcp]}")
    if found.tcp:
        say(f"handshake   {'done' if found.handshake else 'not done'}")
    if found.error is not None:
        note(f"Error: {found.error.message}")
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


def probe(as_json: AsJson = False) -> None:
    """Explain how to test the project's assumptions about gateways against a real one.

    The tests run in a clone of the project. Exit code: 2.
    """
    _ = as_json  # the entry point prints the error in that form
    raise UsageError(
        "ktrdr probe",
        reason="the checks of real gateways are tests, which this command does not run",
        hint="In a clone of the project, with IB_HOST and IB_PORT naming the gateway: "
        "python -m pytest tests/live -m live -n 0",
    )
