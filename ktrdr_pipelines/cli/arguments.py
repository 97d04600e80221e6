"""Arguments and options that several commands share, and the jobs of those of a load.

Not here: the series and jobs that names select (``app.selection``), reading ``--start`` and
``--end`` (``domain.planning.date_bounds``), what a job loads (``domain.planning.jobs``).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ktrdr_pipelines.cli.output import note
from ktrdr_pipelines.errors import UsageError

if TYPE_CHECKING:
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.domain.planning.date_bounds import DateRange
    from ktrdr_pipelines.domain.planning.jobs import Job, Mode


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

FIRST_WAIT_S: Final = 60.0
"""Seconds for which a load waits for its first connection: no gateway may be there at all."""

WAIT_S: Final = 7200.0
"""Seconds for which a load that has received bars waits: IB's nightly reset lasts up to 90 min."""


def _wait_s(text: str) -> float:
    from ktrdr_pipelines.settings import wait_seconds

    try:
        return wait_seconds(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is {error}; use 0, 90, 90m or 2h") from error


WaitOption = Annotated[
    float | None,
    typer.Option(
        "--wait",
        metavar="SECONDS|90m|2h",
        parser=_wait_s,
        help="How long to wait for a gateway that is away: it is not running, restarts, is in its "
        "nightly reset, or still holds the client ids of lost connections. 0 ends at once. "
        "[default: 2h once bars were received, 1m before; KTRDR_WAIT sets both]",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class Wait:
    """For how long a load waits for its gateway: at first, and once it has received bars."""

    first_s: float = FIRST_WAIT_S
    later_s: float = WAIT_S

    @classmethod
    def of(cls, option_s: float | None, setting_s: float | None) -> "Wait":
        """Return the wait of the option, else of the setting, else the default."""
        wait_s = setting_s if option_s is None else option_s
        return cls() if wait_s is None else cls(wait_s, wait_s)


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
    def words(self) -> tuple[str, ...]:
        """The options as words of a command line, those that have their defaults left out."""
        mode = None if self.mode == "full" else self.mode
        typed = {"--mode": mode, "--start": self.start, "--end": self.end}
        words = [word for name, value in typed.items() if value for word in (name, value)]
        return (*words, *(["--refresh"] if self.refresh else []))

    @property
    def is_plain(self) -> bool:
        """Return whether all options have their defaults."""
        return self == TypedOptions()


def named_jobs(
    workspace: "Workspace", symbols: str, timeframes: str | None, typed: TypedOptions
) -> "list[Job]":
    """Return the jobs of a command line; without timeframes, those that the universe lists.

    A series that the universe does not list is noted on stderr.

    Raises:
        UsageError: an argument or option is invalid, or two exclude each other.
    """
    from ktrdr_pipelines.app import selection

    mode, date_range = typed.read()
    jobs = selection.named_jobs(
        workspace, symbols, timeframes, date_range, mode=mode, refresh=typed.refresh
    )
    for one in (job.series for job in jobs):
        if one.timeframe not in one.instrument.timeframes:
            note(
                f"{one}: {workspace.universe.name} does not list this timeframe for {one.symbol}; "
                "it is loaded now, but not kept up to date"
            )
    return jobs
