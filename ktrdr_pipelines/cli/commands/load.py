"""``ktrdr load``: bars of named series, from the gateway into the store.

``ktrdr update``: the tails and the gaps of the whole universe.
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
        typer.Argument(metavar="TIMEFRAME[,...]", help="Some of 1m 5m 15m 30m 1h 4h 1d 1w."),
    ],
    *,
    mode: ModeOption = "full",
    start: StartOption = None,
    end: EndOption = None,
    refresh: RefreshOption = False,
    wait: WaitOption = 0.0,
    as_json: AsJson = False,
) -> None:
    """Load bars: request what is missing, save it, and say what could not be had.

    What was saved stays, whenever you stop it; the same command then requests the rest. Ranges that
    failed before, or were refused, are requested at once. Ranges that came without bars need a
    second response at least 15 minutes later: the load says when they can be confirmed.

    Exit codes: 0 complete, 1 failed, 2 bad usage, 3 something is unexplained, waits to be
    confirmed, is sparse, or came again at other prices.
    """
    from ktrdr_pipelines.app.workspace import open_workspace
    from ktrdr_pipelines.cli.arguments import Wish, named_jobs
    from ktrdr_pipelines.cli.load_report import load_jobs
    from ktrdr_pipelines.cli.output import warn_of_problem

    wish = Wish(mode, start, end, refresh)
    wish.read()
    workspace = open_workspace()
    warn_of_problem(workspace)
    jobs = named_jobs(workspace.universe, symbols, timeframes, wish, now=workspace.now)
    raise typer.Exit(load_jobs(workspace, jobs, as_json=as_json, wait_s=wait))


def update(
    symbols: Annotated[
        str | None,
        typer.Argument(metavar="[SYMBOL[,SYMBOL...]]", help="Only these symbols."),
    ] = None,
    *,
    wait: WaitOption = 0.0,
    as_json: AsJson = False,
) -> None:
    """Bring the whole universe up to date: newest bars first, then every gap.

    It may run as often as you like: what is covered is not requested, and what failed, waits to be
    confirmed or is not permitted only when its next try is due (ktrdr load requests it at once).
    Symbols with `backfill: manual` are kept fresh, and their history is left to you.

    Exit codes: 0 complete, 1 failed, 2 bad usage, 3 something is unexplained, waits to be
    confirmed, is sparse, or came again at other prices.
    """
    from ktrdr_pipelines.app.workspace import open_workspace
    from ktrdr_pipelines.cli.arguments import update_jobs
    from ktrdr_pipelines.cli.load_report import load_jobs
    from ktrdr_pipelines.cli.output import warn_of_problem

    workspace = open_workspace()
    warn_of_problem(workspace)
    held = [(symbol, str(kind)) for symbol, kind in workspace.layout.series_folders()]
    jobs = update_jobs(workspace.universe, symbols, held, fresh_from=workspace.fresh_from())
    left = sum(one.instrument.backfill == "manual" for one in workspace.universe.series())
    if left:
        note(f"{left} series have backfill: manual; their history is loaded by ktrdr load")
    raise typer.Exit(load_jobs(workspace, jobs, as_json=as_json, wait_s=wait))
