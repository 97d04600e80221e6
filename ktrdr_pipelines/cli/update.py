"""``ktrdr update``: the tails and the gaps of the whole universe.

Not here: which jobs that is (``cli.jobs``), how it is run and told (``cli.loading``).
"""

from typing import Annotated

import typer

from ktrdr_pipelines.cli.jobs import WaitOption
from ktrdr_pipelines.cli.output import AsJson, note


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
    from ktrdr_pipelines.cli.jobs import update_jobs
    from ktrdr_pipelines.cli.loading import load_jobs
    from ktrdr_pipelines.cli.output import warn_of_problem
    from ktrdr_pipelines.cli.place import open_place

    place = open_place()
    warn_of_problem(place)
    held = [(symbol, str(kind)) for symbol, kind in place.layout.series_folders()]
    jobs = update_jobs(place.universe, symbols, held, fresh_from=place.fresh_from())
    left = sum(one.instrument.backfill == "manual" for one in place.universe.series())
    if left:
        note(f"{left} series have backfill: manual; their history is loaded by ktrdr load")
    raise typer.Exit(load_jobs(place, jobs, as_json=as_json, wait_s=wait))
