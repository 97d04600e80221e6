"""``ktrdr load`` and ``ktrdr update``: request missing bars from the gateway and save them.

``load`` takes named series; ``update`` takes the tails and the gaps of the whole universe.

Not here: running the jobs and reporting the result (``cli.load_report``).
"""

from typing import Annotated

import typer

from ktrdr_pipelines.cli.arguments import (
    EndOption,
    ModeOption,
    RefreshOption,
    StartOption,
    WaitOption,
)
from ktrdr_pipelines.cli.output import AsJson, note


def load(
    symbols: Annotated[
        str,
        typer.Argument(metavar="SYMBOL[,SYMBOL...]", help="Symbols of the universe."),
    ],
    timeframes: Annotated[
        str,
        typer.Argument(
            metavar="TIMEFRAME[,...]", help="Timeframes, out of 1m 5m 15m 30m 1h 4h 1d 1w."
        ),
    ],
    *,
    mode: ModeOption = "full",
    start: StartOption = None,
    end: EndOption = None,
    refresh: RefreshOption = False,
    wait: WaitOption = 0.0,
    as_json: AsJson = False,
) -> None:
    """Load bars: request what is missing, save it, and report the gaps that remain.

    You can stop it at any time: what was saved is kept, and the same command requests the rest.
    Ranges that failed or were refused earlier are retried immediately. Ranges that the gateway
    returned without bars are unconfirmed: they need a second response at least 15 minutes later,
    and the load says when.

    Exit codes: 0 complete, 1 failed, 2 bad usage, 3 ranges are unexplained or unconfirmed,
    sessions are sparse, bars are on an unconfirmed price basis, or the gateway returned stored bars
    again at other prices or in another unit.
    """
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.cli.arguments import TypedOptions, named_jobs
    from ktrdr_pipelines.cli.load_report import load_jobs
    from ktrdr_pipelines.cli.output import warn_of_problem

    typed = TypedOptions(mode, start, end, refresh)
    typed.read()
    workspace = Workspace.open()
    warn_of_problem(workspace)
    jobs = named_jobs(workspace, symbols, timeframes, typed)
    raise typer.Exit(load_jobs(workspace, jobs, as_json=as_json, wait_s=wait))


def update(
    symbols: Annotated[
        str | None,
        typer.Argument(
            metavar="SYMBOL[,SYMBOL...]", help="Symbols of the universe. [default: all]"
        ),
    ] = None,
    *,
    wait: WaitOption = 0.0,
    as_json: AsJson = False,
) -> None:
    """Bring the whole universe up to date: newest bars first, then every gap.

    You can run it as often as you like. Covered ranges are not requested. Ranges that failed, are
    unconfirmed or are not permitted are deferred until their next attempt is due; ktrdr load
    retries them immediately. Symbols with `backfill: manual` are kept up to date; load their
    history with ktrdr load.

    Exit codes: 0 complete, 1 failed, 2 bad usage, 3 ranges are unexplained or unconfirmed,
    sessions are sparse, bars are on an unconfirmed price basis, or the gateway returned stored bars
    again at other prices or in another unit.
    """
    from ktrdr_pipelines.app.selection import update_jobs
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.cli.load_report import load_jobs
    from ktrdr_pipelines.cli.output import warn_of_problem

    workspace = Workspace.open()
    warn_of_problem(workspace)
    jobs = update_jobs(workspace, symbols)
    left = sum(one.instrument.backfill == "manual" for one in workspace.universe.series())
    if left:
        note(f"{left} series have backfill: manual; load their history with ktrdr load")
    raise typer.Exit(load_jobs(workspace, jobs, as_json=as_json, wait_s=wait))
