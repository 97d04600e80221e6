"""``ktrdr doctor``: what is wrong with a gateway's set-up, and how to mend it.

Not here: looking (``ib.doctor``), what findings mean (``ib.findings``).
"""

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from ktrdr_pipelines.cli.output import AsJson, say, say_json
from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.errors import ExitCode, NoStoreError

if TYPE_CHECKING:
    from ktrdr_pipelines.ib.findings import Check


def doctor(as_json: AsJson = False) -> None:
    """Find out what is wrong with the gateway's set-up, and say how to mend it.

    IB_HOST and IB_PORT say which gateway. It makes five requests at most. Refusals and failures
    that earlier runs remember are forgotten, so that loads may try again at once.

    Exit codes: 0 nothing is wrong, 1 something is, 2 bad usage.
    """
    from ktrdr_pipelines.cli.stopping import run_stoppable
    from ktrdr_pipelines.ib.config import GatewayConfig
    from ktrdr_pipelines.ib.doctor import examine
    from ktrdr_pipelines.ib.findings import Verdict
    from ktrdr_pipelines.settings import load_settings

    config = GatewayConfig.from_settings(load_settings())
    checks = run_stoppable(examine(config))
    hasten_tries()
    is_good = all(check.verdict is not Verdict.WRONG for check in checks)
    if as_json:
        told = [asdict(check) for check in checks]
        say_json({"gateway": config.gateway, "good": is_good, "checks": told})
    else:
        _say_checks(config.gateway, checks)
    raise typer.Exit(ExitCode.DONE if is_good else ExitCode.FAILED)


def hasten_tries() -> None:
    """Let sensors of the store, where there is one, try again at once what they have put off."""
    from ktrdr_pipelines.settings import data_folder, load_settings
    from ktrdr_pipelines.store.layout import open_store
    from ktrdr_pipelines.store.ledger import open_ledger

    try:
        layout = open_store(data_folder(load_settings()))
    except NoStoreError:
        return
    open_ledger(layout).hasten_attempts(system_now())


def _say_checks(gateway: str, checks: "list[Check]") -> None:
    say(f"gateway {gateway}")
    for check in checks:
        say(f"{check.verdict:<9} {check.name:<12} {check.finding}")
        if check.remedy:
            say(f"{'':<9} {'':<12} -> {check.remedy}")
