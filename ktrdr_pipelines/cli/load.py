"""``ktrdr load``: bars of named series, from the gateway into the store.

Not here: how a load works (``load``), how it is run and told (``cli.loading``).
"""

from typing import Annotated

import typer

from ktrdr_pipelines.cli.jobs import EndOption, ModeOption, RefreshOption, StartOption, WaitOption
from ktrdr_pipelines.cli.output import AsJson


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
    from ktrdr_pipelines.cli.jobs import Wish, named_jobs
    from ktrdr_pipelines.cli.loading import load_jobs
    from ktrdr_pipelines.cli.output import warn_of_problem
    from ktrdr_pipelines.cli.place import open_place

    wish = Wish(mode, start, end, refresh)
    wish.read()
    place = open_place()
    warn_of_problem(place)
    jobs = named_jobs(place.universe, symbols, timeframes, wish, now=place.now)
    raise typer.Exit(load_jobs(place, jobs, as_json=as_json, wait_s=wait))
