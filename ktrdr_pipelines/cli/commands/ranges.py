"""``ktrdr ranges``: show where the data of each symbol begin, how that is known, and what is held.

Not here: finding the earliest data (``sync.discovery.earliest_data``).
"""

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ktrdr_pipelines.cli.output import AsJson, instant_text, say, say_json, say_table
from ktrdr_pipelines.errors import ExitCode

if TYPE_CHECKING:
    from ktrdr_pipelines.app.views.series_documents import HeldRangeDocument
    from ktrdr_pipelines.sync.discovery.earliest_data import EarliestData

_BEGINNINGS: Final = {
    "symbol": "left",
    "shows": "left",
    "oldest data": "left",
    "how known": "fold",
    "requested": "left",
}
_HELD: Final = {
    "series": "left",
    "bars": "right",
    "first": "left",
    "last": "left",
    "covered": "fold",
}


def ranges(
    symbols: Annotated[
        str | None,
        typer.Argument(
            metavar="SYMBOL[,SYMBOL...]", help="Symbols of the universe. [default: all]"
        ),
    ] = None,
    *,
    refresh: Annotated[
        bool,
        typer.Option("--refresh", help="Request the beginnings again, even if they are known."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show where the data of each symbol begin, and which bars the store holds.

    The head timestamp is requested from the gateway if the last response is older than a day. If
    the gateway has none, or states one that is later than a stored bar, small requests search for
    the oldest bar. They prove that data are at least that old, never that nothing older exists.

    Exit codes: 0 done, 1 the request for a symbol failed, 2 bad usage.
    """
    from ktrdr_pipelines.app.selection import instruments_of
    from ktrdr_pipelines.app.store_status import held_ranges
    from ktrdr_pipelines.app.views.series_documents import BeginningDocument, RangesDocument
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.cli.entry_point import run_stoppable
    from ktrdr_pipelines.cli.output import warn_of_problem

    workspace = Workspace.open()
    warn_of_problem(workspace)
    manager = workspace.load_manager()
    instruments = instruments_of(workspace.universe, symbols)
    begun = run_stoppable(manager.discover(instruments, refresh=refresh))
    held = {one.instrument.symbol: held_ranges(workspace, one.instrument) for one in begun}
    if as_json:
        documents = (BeginningDocument.of(one, held[one.instrument.symbol]) for one in begun)
        say_json(RangesDocument(symbols=tuple(documents)))
    else:
        _say(begun, held)
    failed = any(one.error is not None for one in begun)
    raise typer.Exit(ExitCode.FAILED if failed else ExitCode.DONE)


def _covered_text(held: "HeldRangeDocument") -> str:
    """Return the dates that coverage begins and ends on; its end is exclusive."""
    if held.covered_from is None or held.covered_to is None:
        return ""
    return f"{held.covered_from.date()} to {(held.covered_to - timedelta.resolution).date()}"


def _say(begun: "list[EarliestData]", held: "dict[str, list[HeldRangeDocument]]") -> None:
    say_table(_BEGINNINGS, map(_row, begun))
    rows = [
        (
            f"{symbol} {one.timeframe}",
            f"{one.rows:,}",
            one.first or "",
            one.last or "",
            _covered_text(one),
        )
        for symbol, many in held.items()
        for one in many
    ]
    say_table(_HELD, rows)
    for one in begun:
        if one.error is not None:
            say(f"{one.instrument.symbol}: {one.error}")


def _row(one: "EarliestData") -> tuple[str, ...]:
    how = str(one.how)
    if one.contradicted and one.head is not None:
        how = f"{how}; the head timestamp {one.head:%Y-%m-%d} is later than a stored bar"
    return (
        one.instrument.symbol,
        str(one.instrument.what_to_show),
        str(one.oldest or "?"),
        how,
        instant_text(one.asked_at) if one.asked_at else "",
    )
