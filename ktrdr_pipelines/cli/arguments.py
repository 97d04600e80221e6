"""Arguments and options that several commands share, and the jobs of those of a load.

Not here: the series and jobs that names select (``app.selection``), reading ``--start`` and
``--end`` (``domain.planning.date_bounds``), what a job loads (``domain.planning.jobs``).
"""

import functools
import inspect
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ktrdr_pipelines.cli.completion import (
    DATA_VARIABLE,
    complete_modes,
    complete_symbols,
    complete_timeframes,
)
from ktrdr_pipelines.cli.output import note, typed_text
from ktrdr_pipelines.errors import UsageError

if TYPE_CHECKING:
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.domain.planning.date_bounds import DateRange
    from ktrdr_pipelines.domain.planning.jobs import Job, Mode


def with_files(context: typer.Context, text: str | None) -> str | None:
    """Return a list of names with those of its files; the callback of an argument."""
    return text if context.resilient_parsing or text is None else names_with_files(text)


def _symbols_argument(default: str = "") -> Any:
    text = "Symbols of the universe; patterns such as 'US*'; ALL; @FILE for those in a file."
    return typer.Argument(
        metavar="SYMBOL[,SYMBOL...]",
        help=f"{text} [default: {default}]" if default else text,
        callback=with_files,
        autocompletion=complete_symbols,
    )


def _timeframes_argument(default: str = "") -> Any:
    text = "Timeframes, out of 1m 5m 15m 30m 1h 4h 1d 1w, or ALL of those that the universe lists."
    return typer.Argument(
        metavar="TIMEFRAME[,...]",
        help=f"{text} [default: {default}]" if default else text,
        autocompletion=complete_timeframes,
    )


Symbols = Annotated[str, _symbols_argument()]
SomeSymbols = Annotated[str | None, _symbols_argument("all")]
PlannedSymbols = Annotated[str | None, _symbols_argument("the series of ktrdr update")]
Timeframes = Annotated[str, _timeframes_argument()]
ListedTimeframes = Annotated[str | None, _timeframes_argument("ALL")]
SomeTimeframes = Annotated[str | None, _timeframes_argument("ALL, and those on disk")]


ModeOption = Annotated[
    str,
    typer.Option(
        metavar="tail|backfill|full",
        help="tail: after the newest bar; backfill: before the oldest bar; full: the whole range.",
        autocompletion=complete_modes,
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


def names_with_files(text: str) -> str:
    """Return a list of names in which ``@FILE`` is replaced by the names in that file.

    A file has names separated by commas or lines; ``#`` begins a comment; ``@-`` is stdin.

    Raises:
        UsageError: a file cannot be read, or has no name.
    """
    names = [name.strip() for name in text.split(",")]
    return ",".join(
        part
        for name in names
        for part in (_names_in_file(name) if name.startswith("@") else [name])
    )


def _names_in_file(name: str) -> list[str]:
    path, what = name.removeprefix("@"), f"symbols {name}"
    try:
        if path == "-":
            text = typed_text(sys.stdin.read(), sys.stdin.encoding)
        else:
            text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, ValueError, RuntimeError) as error:
        is_of_encoding = isinstance(error, UnicodeError)
        reason = "it is not a text file in UTF-8" if is_of_encoding else _reason_of(error)
        raise UsageError(
            what,
            reason=f"the file cannot be read: {reason}",
            hint="Name a text file with one symbol a line, or write @- for stdin",
        ) from error
    lines = [line.partition("#")[0] for line in text.splitlines()]
    names = [one.strip() for line in lines for one in line.split(",") if one.strip()]
    nested = next((one for one in names if one.startswith("@")), None)
    if nested is not None or not names:
        raise UsageError(
            what,
            reason=f"it names another file, {nested}" if nested else "it has no symbol",
            hint="Write one symbol a line; # begins a comment",
        )
    return names


def _reason_of(error: Exception) -> str:
    """Return why a path could not be read: the system's words, or those of the path's name."""
    return getattr(error, "strerror", None) or f"{error}".rstrip(".").lower()


def note_symbol_named_all(workspace: "Workspace", symbols: str | None) -> None:
    """Note on stderr that ``ALL`` means one symbol, where the universe has one of this name."""
    from ktrdr_pipelines.app.selection import EVERY, is_symbol_named_all

    if is_symbol_named_all(workspace.universe, symbols):
        note(f"ALL is a symbol of {workspace.universe.name}, and means it alone; '{EVERY}' is all")


def _set_data_folder(context: typer.Context, folder: str | None) -> str | None:
    """Make the store in a folder the one that this command and its child processes use."""
    if folder is None:
        return None
    if not folder.strip():
        raise typer.BadParameter("the name of the folder is empty")
    try:
        os.environ[DATA_VARIABLE] = str(Path(folder).expanduser().absolute())
    except (RuntimeError, ValueError) as error:
        if not context.resilient_parsing:
            raise typer.BadParameter(str(error)) from error
    return folder


DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Folder of the store. [default: KTRDR_DATA, else data beside workspace.yaml]",
        show_default=False,
        is_eager=True,
        callback=_set_data_folder,
    ),
]


def takes_data_folder(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command with the option ``--data`` besides its own; one that has it is returned."""
    own = inspect.signature(command)
    if "data" in own.parameters:
        return command

    @functools.wraps(command)
    def with_option(*arguments: Any, data: str | None = None, **options: Any) -> Any:
        _ = data  # its callback has set the folder
        return command(*arguments, **options)

    option = inspect.Parameter(
        "data", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=DataOption
    )
    with_option.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[*own.parameters.values(), option]
    )
    with_option.__annotations__ = {**command.__annotations__, "data": DataOption}
    return with_option


_typed: ContextVar[tuple[str, ...]] = ContextVar("typed", default=())


def typed_command() -> str:
    """Return the running command line as it can be typed again."""
    return shlex.join(("ktrdr", *_typed.get()))


@contextmanager
def running(arguments: Sequence[str]) -> Iterator[None]:
    """Run a command line inside the context, and restore the environment that ``--data`` sets."""
    before, token = os.environ.get(DATA_VARIABLE), _typed.set(tuple(arguments))
    try:
        yield
    finally:
        _typed.reset(token)
        if before is None:
            os.environ.pop(DATA_VARIABLE, None)
        else:
            os.environ[DATA_VARIABLE] = before


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
    workspace: "Workspace", symbols: str, timeframes: str | None, typed: TypedOptions
) -> "list[Job]":
    """Return the jobs of a command line; without timeframes, those that the universe lists.

    A series that the universe does not list is noted on stderr.

    Raises:
        UsageError: an argument or option is invalid, or two exclude each other.
    """
    from ktrdr_pipelines.app import selection

    mode, date_range = typed.read()
    note_symbol_named_all(workspace, symbols)
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
