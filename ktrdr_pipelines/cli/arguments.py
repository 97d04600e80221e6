"""What commands take: symbols, timeframes, modes and ranges, read into jobs.

Which series a command is about: names from the command line, found in the universe.

From the words of a command line to jobs: symbols, timeframes, mode, start and end.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ktrdr_pipelines.cli.output import note
from ktrdr_pipelines.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ktrdr_pipelines.cli.dates import DateRange
    from ktrdr_pipelines.domain.instruments import Instrument, Series
    from ktrdr_pipelines.domain.planning.jobs import Mode
    from ktrdr_pipelines.domain.timeframes import Timeframe
    from ktrdr_pipelines.domain.universe.universe import Universe
    from ktrdr_pipelines.store.bars.bar_store import BarStore
    from ktrdr_pipelines.sync.engine.series_state import Job


SomeSymbols = Annotated[
    str | None,
    typer.Argument(
        metavar="[SYMBOL[,SYMBOL...]]",
        help="Symbols of the universe.",
        show_default="all of them",
    ),
]
SomeTimeframes = Annotated[
    str | None,
    typer.Argument(
        metavar="[TIMEFRAME[,...]]",
        help="Some of 1m 5m 15m 30m 1h 4h 1d 1w.",
        show_default="those of each symbol, and those on disk",
    ),
]


def chosen_series(
    universe: "Universe", store: "BarStore", symbols: str | None, timeframes: str | None
) -> "list[Series]":
    """Give the named series, each once; those that are listed or on disk where none is named.

    Raises:
        UnknownSymbolError, UsageError: a name means nothing.
    """
    from ktrdr_pipelines.domain.instruments import Series

    chosen = instruments_of(universe, symbols)
    if timeframes is not None:
        kinds = timeframes_named(timeframes)
        return [Series(instrument, kind) for instrument in chosen for kind in kinds]
    names = {instrument.symbol for instrument in chosen}
    listed = [Series(one, kind) for one in chosen for kind in one.timeframes]
    on_disk = (
        Series(universe.instruments[symbol], kind)
        for symbol, kind in store.series_on_disk()
        if symbol in names
    )
    return list(dict.fromkeys((*listed, *on_disk)))


def instruments_of(universe: "Universe", symbols: str | None) -> "list[Instrument]":
    """Give the named instruments, each once; all of them where none is named.

    Raises:
        UsageError: a name is empty, or not in the universe.
    """
    if symbols is None:
        return list(universe.instruments.values())
    return [universe.instrument(name) for name in _names("symbol", symbols)]


def timeframes_named(text: str) -> "list[Timeframe]":
    """Give the timeframes of a list, each once.

    Raises:
        UsageError: a name is empty, or none of a timeframe.
    """
    return [_timeframe(name) for name in _names("timeframe", text)]


def _names(what: str, text: str) -> list[str]:
    """Split a list at its commas; each name counts once."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UsageError(
            f"{what}s {text!r}", reason=f"a {what} is empty", hint="Separate them by single commas"
        )
    return list(dict.fromkeys(names))


def _timeframe(text: str) -> "Timeframe":
    from ktrdr_pipelines.domain.timeframes import Timeframe

    if text not in list(Timeframe):
        allowed = f"Allowed are {', '.join(Timeframe)}"
        raise UsageError(f"timeframe {text!r}", reason="no such timeframe", hint=allowed)
    return Timeframe(text)


ModeOption = Annotated[
    str,
    typer.Option(
        metavar="tail|backfill|full",
        help="tail: from the newest bar on; backfill: before the oldest; full: all of it.",
    ),
]
StartOption = Annotated[
    str | None,
    typer.Option(
        metavar="DATE|INSTANT",
        help="First session date, such as 2024-01-05, or an instant with a zone, such as "
        "2024-01-05T14:30:00Z. [default: the start in the universe]",
    ),
]
EndOption = Annotated[
    str | None,
    typer.Option(
        metavar="DATE|INSTANT",
        help="First session date that is not wanted, or an instant. [default: now]",
    ),
]
RefreshOption = Annotated[
    bool,
    typer.Option(
        "--refresh",
        help="Ask also for what is settled. Changed bars replace the stored ones, whose values "
        "are kept as revisions; nothing is deleted. A refresh that was stopped goes on "
        "within a week.",
    ),
]

WaitOption = Annotated[
    float,
    typer.Option(
        "--wait",
        metavar="SECONDS",
        min=0.0,
        help="Wait that long for a gateway that cannot be connected to: it is not there, hangs, or "
        "still holds the client ids of lost connections. [default: 0]",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person said of how to load; texts as they were typed."""

    mode: str = "full"
    start: str | None = None
    end: str | None = None
    refresh: bool = False

    def read(self) -> "tuple[Mode, DateRange]":
        """Give mode and interval.

        Raises:
            UsageError: a word makes no sense, or two do not go together.
        """
        from ktrdr_pipelines.cli.dates import parse_date_range
        from ktrdr_pipelines.domain.planning.jobs import Mode

        date_range, mode = parse_date_range(self.start, self.end), _mode(self.mode)
        if self.refresh and mode is not Mode.FULL:
            raise UsageError(
                f"--refresh with --mode {mode}",
                reason="a refresh requests all of an interval again",
                hint="Leave --mode out, and give the interval with --start and --end",
            )
        return mode, date_range

    @property
    def is_plain(self) -> bool:
        """Say whether nothing was said."""
        return self == Wish()


def named_jobs(
    universe: "Universe",
    symbols: str,
    timeframes: str | None,
    wish: Wish,
    *,
    now: datetime,
) -> "list[Job]":
    """Return the jobs of a command line; without timeframes, those that the universe lists.

    ``now`` is market time: what lies after it is refused.

    Raises:
        UsageError: a word makes no sense, or two do not go together.
    """
    from ktrdr_pipelines.sync.engine.series_state import Job

    mode, date_range = wish.read()
    chosen = _series(universe, symbols, timeframes)
    return [Job(one, mode, date_range.bounds(one, now), refresh=wish.refresh) for one in chosen]


def update_jobs(
    universe: "Universe",
    symbols: str | None,
    held: "Iterable[tuple[str, str]]",
    *,
    fresh_from: "Mapping[str, datetime]",
) -> "list[Job]":
    """Give the jobs that keep a universe fresh and whole, tails first.

    Ranges whose attempts failed are deferred until their next try is due. Series whose
    ``backfill`` is manual are kept fresh from the place on that is remembered of them, as sensors
    do (``gaps.due_chunks``), and left alone while they have no bar: their history is a person's
    business.

    Args:
        universe: whose series are meant.
        symbols: only these; None for all.
        held: symbols and timeframes of which there are bars.
        fresh_from: from which bar timestamp on series are kept fresh, by their ledger keys.
    """
    from ktrdr_pipelines.domain.instruments import Backfill
    from ktrdr_pipelines.domain.planning.jobs import Bounds, Mode, RequestedBy
    from ktrdr_pipelines.sync.engine.series_state import Job

    chosen = set(instruments_of(universe, symbols))
    series = [one for one in universe.series() if one.instrument in chosen]
    known = set(held)
    fresh = [one for one in series if (one.symbol, str(one.timeframe)) in known]
    whole = [one for one in series if one.instrument.backfill is Backfill.AUTO]
    since = [
        (one, fresh_from[key])
        for one in fresh
        if one.instrument.backfill is Backfill.MANUAL
        and (key := f"{one.symbol}|{one.timeframe}") in fresh_from
    ]
    return [
        *(Job(one, Mode.TAIL, requested_by=RequestedBy.SENSOR) for one in fresh),
        *(Job(one, Mode.FULL, requested_by=RequestedBy.SENSOR) for one in whole),
        *(Job(one, bounds=Bounds(start), requested_by=RequestedBy.SENSOR) for one, start in since),
    ]


def _series(universe: "Universe", symbols: str, timeframes: str | None) -> "list[Series]":
    """Give the named series, each once; one that the universe does not list is noted."""
    from ktrdr_pipelines.domain.instruments import Series

    if timeframes is None:
        chosen = instruments_of(universe, symbols)
        return [Series(instrument, kind) for instrument in chosen for kind in instrument.timeframes]
    kinds = timeframes_named(timeframes)
    series = [Series(one, kind) for one in instruments_of(universe, symbols) for kind in kinds]
    for one in series:
        if one.timeframe not in one.instrument.timeframes:
            note(
                f"{one}: {universe.name} does not list this timeframe for {one.symbol}; it is "
                "loaded now, and nothing keeps it fresh"
            )
    return series


def _mode(text: str) -> "Mode":
    from ktrdr_pipelines.domain.planning.jobs import Mode

    if text not in list(Mode):
        allowed = f"Allowed are {', '.join(Mode)}"
        raise UsageError(f"--mode {text}", reason="no such mode", hint=allowed)
    return Mode(text)
