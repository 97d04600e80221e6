"""Arguments and options that several commands share, and the series and jobs they select.

Symbols and timeframes are looked up in the universe. ``load``, ``plan`` and ``update`` turn them,
with mode, start and end, into jobs.

Not here: reading ``--start`` and ``--end`` (``domain.planning.date_bounds``), what a job loads
(``domain.planning.jobs``).
"""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ktrdr_pipelines.cli.output import note
from ktrdr_pipelines.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ktrdr_pipelines.domain.instruments import Instrument, Series
    from ktrdr_pipelines.domain.planning.date_bounds import DateRange
    from ktrdr_pipelines.domain.planning.jobs import Job, Mode
    from ktrdr_pipelines.domain.timeframes import Timeframe
    from ktrdr_pipelines.domain.universe.universe import Universe
    from ktrdr_pipelines.store.bars.bar_store import BarStore


SomeSymbols = Annotated[
    str | None,
    typer.Argument(metavar="SYMBOL[,SYMBOL...]", help="Symbols of the universe. [default: all]"),
]
SomeTimeframes = Annotated[
    str | None,
    typer.Argument(
        metavar="TIMEFRAME[,...]",
        help="Timeframes, out of 1m 5m 15m 30m 1h 4h 1d 1w. [default: those that the universe "
        "lists for each symbol, and those on disk]",
    ),
]


def chosen_series(
    universe: "Universe", store: "BarStore", symbols: str | None, timeframes: str | None
) -> "list[Series]":
    """Return the named series, each once.

    Without timeframes, those that the universe lists and those on disk; without symbols, all.

    Raises:
        UnknownSymbolError: a symbol is not in the universe.
        UsageError: a name is empty, or not that of a timeframe.
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
    """Return the named instruments, each once; all of the universe without names.

    Raises:
        UsageError: a name is empty, or not in the universe.
    """
    if symbols is None:
        return list(universe.instruments.values())
    return [universe.instrument(name) for name in _names("symbol", symbols)]


def timeframes_named(text: str) -> "list[Timeframe]":
    """Return the timeframes of a comma-separated list, each once.

    Raises:
        UsageError: a name is empty, or not that of a timeframe.
    """
    from ktrdr_pipelines.domain.timeframes import Timeframe

    names = _names("timeframe", text)
    for name in names:
        if name not in list(Timeframe):
            allowed = f"Allowed are {', '.join(Timeframe)}"
            raise UsageError(f"timeframe {name!r}", reason="no such timeframe", hint=allowed)
    return [Timeframe(name) for name in names]


def _names(what: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UsageError(
            f"{what}s {text!r}",
            reason=f"a {what} is empty",
            hint=f"Separate {what}s by single commas",
        )
    return list(dict.fromkeys(names))


ModeOption = Annotated[
    str,
    typer.Option(
        metavar="tail|backfill|full",
        help="tail: after the newest bar; backfill: before the oldest bar; full: the whole range.",
    ),
]
StartOption = Annotated[
    str | None,
    typer.Option(
        metavar="DATE|INSTANT",
        help="First session date to include, such as 2024-01-05, or an instant with a zone, such "
        "as 2024-01-05T14:30:00Z. [default: the start in the universe]",
    ),
]
EndOption = Annotated[
    str | None,
    typer.Option(
        metavar="DATE|INSTANT",
        help="Session date or instant to stop before; it is not included. [default: now]",
    ),
]
RefreshOption = Annotated[
    bool,
    typer.Option(
        "--refresh",
        help="Also request what is already covered. Changed bars replace the stored ones, whose "
        "values are kept as revisions; nothing is deleted. A refresh that was stopped is resumed "
        "if it is run again within a week.",
    ),
]

WaitOption = Annotated[
    float,
    typer.Option(
        "--wait",
        metavar="SECONDS",
        min=0.0,
        help="How long to wait for a gateway that accepts no connection: it is not running, does "
        "not respond, or still holds the client ids of lost connections. [default: 0]",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class TypedOptions:
    """The options of ``ktrdr load`` as the user typed them."""

    mode: str = "full"
    start: str | None = None
    end: str | None = None
    refresh: bool = False

    def read(self) -> "tuple[Mode, DateRange]":
        """Return the mode and the range of dates.

        Raises:
            UsageError: an option has an invalid value, or two exclude each other.
        """
        from ktrdr_pipelines.domain.planning.date_bounds import parse_date_range
        from ktrdr_pipelines.domain.planning.jobs import Mode

        date_range = parse_date_range(self.start, self.end)
        if self.mode not in list(Mode):
            allowed = f"Allowed are {', '.join(Mode)}"
            raise UsageError(f"--mode {self.mode}", reason="no such mode", hint=allowed)
        mode = Mode(self.mode)
        if self.refresh and mode is not Mode.FULL:
            raise UsageError(
                f"--refresh with --mode {mode}",
                reason="a refresh requests the whole range again",
                hint="Leave out --mode, and limit the range with --start and --end",
            )
        return mode, date_range

    @property
    def is_plain(self) -> bool:
        """Return whether all options have their defaults."""
        return self == TypedOptions()


def named_jobs(
    universe: "Universe",
    symbols: str,
    timeframes: str | None,
    typed: TypedOptions,
    *,
    now: datetime,
) -> "list[Job]":
    """Return the jobs of a command line; without timeframes, those that the universe lists.

    A series that the universe does not list is noted on stderr. ``now`` is market time: bounds
    that lie after it are refused.

    Raises:
        UsageError: an argument or option is invalid, or two exclude each other.
    """
    from ktrdr_pipelines.domain.instruments import Series
    from ktrdr_pipelines.domain.planning.jobs import Job

    mode, date_range = typed.read()
    kinds = None if timeframes is None else timeframes_named(timeframes)
    chosen = [
        Series(instrument, kind)
        for instrument in instruments_of(universe, symbols)
        for kind in (instrument.timeframes if kinds is None else kinds)
    ]
    for one in chosen:
        if one.timeframe not in one.instrument.timeframes:
            note(
                f"{one}: {universe.name} does not list this timeframe for {one.symbol}; it is "
                "loaded now, but not kept up to date"
            )
    return [Job(one, mode, date_range.bounds(one, now), refresh=typed.refresh) for one in chosen]


def update_jobs(
    universe: "Universe",
    symbols: str | None,
    held: "Iterable[tuple[str, str]]",
    *,
    fresh_from: "Mapping[str, datetime]",
) -> "list[Job]":
    """Return the jobs that keep a universe up to date and complete, tails first.

    Ranges with failed attempts are deferred until their next attempt is due. Series whose
    ``backfill`` is manual are kept up to date from the bar timestamp that the ledger holds for
    them, as sensors do (``gaps.due_chunks``), and are skipped while they have no bar: the user
    loads their history.

    Args:
        universe: the universe whose series are loaded.
        symbols: only these; None for all.
        held: symbols and timeframes that have bars on disk.
        fresh_from: bar timestamps from which series are kept up to date, by their ledger keys.
    """
    from ktrdr_pipelines.domain.instruments import Backfill
    from ktrdr_pipelines.domain.planning.jobs import Bounds, Job, Mode, RequestedBy

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
