"""``ktrdr load``: bars of named series, from the gateway into the store.

Not here: how a load works (``load``), how its result is told (``cli.load_report``).
"""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ktrdr_pipelines.cli.output import AsJson, note
from ktrdr_pipelines.errors import KtrdrError, UsageError

if TYPE_CHECKING:
    from ktrdr_pipelines.cli.dates import Stretch
    from ktrdr_pipelines.cli.place import Place
    from ktrdr_pipelines.core.instruments import Series
    from ktrdr_pipelines.core.timeframes import Timeframe
    from ktrdr_pipelines.load.manager import Job
    from ktrdr_pipelines.load.modes import Mode
    from ktrdr_pipelines.load.reports import Progress, SeriesReport
    from ktrdr_pipelines.universe import Universe


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
    mode: Annotated[
        str,
        typer.Option(
            metavar="tail|backfill|full",
            help="tail: from the newest bar on; backfill: before the oldest; full: all of it.",
        ),
    ] = "full",
    start: Annotated[
        str | None,
        typer.Option(
            metavar="DATE|INSTANT",
            help="First session date, such as 2024-01-05, or an instant with a zone, such as "
            "2024-01-05T14:30:00Z. [default: the start in the universe]",
        ),
    ] = None,
    end: Annotated[
        str | None,
        typer.Option(
            metavar="DATE|INSTANT",
            help="First session date that is not wanted, or an instant. [default: now]",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Load bars: ask for what is missing, save it, and say what could not be had.

    What was saved stays, whenever you stop it; the same command then asks for the rest.

    Exit codes: 0 complete, 1 failed, 2 bad usage, 3 something is unexplained.
    """
    from ktrdr_pipelines.cli.dates import parse_stretch
    from ktrdr_pipelines.cli.load_report import exit_code_of, tell
    from ktrdr_pipelines.cli.place import open_place, warn_of_problem
    from ktrdr_pipelines.cli.progress import load_progress, tell_notes

    stretch, chosen = parse_stretch(start, end), _mode(mode)
    place = open_place()
    warn_of_problem(place)
    jobs = _jobs(_series(place.universe, symbols, timeframes), chosen, stretch)
    with load_progress(shown=not as_json) as notes:
        reports = _run(place, jobs, notes)
    if not as_json:
        tell_notes(notes)
    catalog_error = _renewed(place)
    tell(reports, notes, catalog_error, calendars=place.calendars(), as_json=as_json)
    raise typer.Exit(exit_code_of(reports, catalog_error))


def _run(place: "Place", jobs: "list[Job]", progress: "Progress") -> "list[SeriesReport]":
    """Load; where that is cut short, the catalog still comes to show what was saved."""
    from ktrdr_pipelines.cli.stopping import run_stoppable
    from ktrdr_pipelines.load.opening import open_manager

    manager = open_manager(place.settings, place.layout, operation="cli", progress=progress)
    try:
        return run_stoppable(manager.run(jobs))
    except BaseException:
        _renewed(place)
        raise


def _renewed(place: "Place") -> KtrdrError | None:
    """Make the catalog show what the files hold; give what speaks against it."""
    from ktrdr_pipelines.cli.place import renew_catalog

    try:
        renew_catalog(place.layout, place.universe)
    except KtrdrError as error:
        return error
    return None


def _jobs(series: "list[Series]", mode: "Mode", stretch: "Stretch") -> "list[Job]":
    from ktrdr_pipelines.load.manager import Job

    now = datetime.now(tz=UTC)
    return [Job(one, mode, stretch.bounds(one, now)) for one in series]


def _series(universe: "Universe", symbols: str, timeframes: str) -> "list[Series]":
    """Give the named series, each once; one that the universe does not list is noted."""
    from ktrdr_pipelines.core.instruments import Series

    kinds = [_timeframe(text) for text in _names("timeframe", timeframes)]
    chosen = [universe.instrument(name) for name in _names("symbol", symbols)]
    series = [Series(instrument, kind) for instrument in chosen for kind in kinds]
    for one in series:
        if one.timeframe not in one.instrument.timeframes:
            note(
                f"{one}: {universe.name} does not list this timeframe for {one.symbol}; it is "
                "loaded now, and nothing keeps it fresh"
            )
    return series


def _names(what: str, text: str) -> list[str]:
    """Split a list at its commas; each name counts once."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UsageError(
            f"{what}s {text!r}", came=f"a {what} is empty", remedy="Separate them by single commas"
        )
    return list(dict.fromkeys(names))


def _timeframe(text: str) -> "Timeframe":
    from ktrdr_pipelines.core.timeframes import Timeframe

    if text not in list(Timeframe):
        allowed = f"Allowed are {', '.join(Timeframe)}"
        raise UsageError(f"timeframe {text!r}", came="no such timeframe", remedy=allowed)
    return Timeframe(text)


def _mode(text: str) -> "Mode":
    from ktrdr_pipelines.load.modes import Mode

    if text not in list(Mode):
        allowed = f"Allowed are {', '.join(Mode)}"
        raise UsageError(f"--mode {text}", came="no such mode", remedy=allowed)
    return Mode(text)
