"""What commands print: results to stdout, everything else to stderr.

Not here: errors (``cli.edge``), progress (``cli.progress``).
"""

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, TextIO

import typer

from ktrdr_pipelines.cli.streams import is_unicode, showable
from ktrdr_pipelines.errors import GatewayError, KtrdrError

if TYPE_CHECKING:
    from rich.console import Console

    from ktrdr_pipelines.cli.place import Place
    from ktrdr_pipelines.core.disagreement import Disagreement
    from ktrdr_pipelines.core.instruments import Series
    from ktrdr_pipelines.core.intervals import Interval
    from ktrdr_pipelines.core.timeframes import Timeframe

CLOCK_VARIABLE: Final = "KTRDR_CLOCK_OFFSET_S"

PIPED_WIDTH: Final = 160
"""Columns of a table that goes into a file or another program."""

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


def say(text: str = "") -> None:
    """Print a line of a result."""
    _print(text, sys.stdout)


def note(text: str) -> None:
    """Print a line beside the result."""
    _print(text, sys.stderr)


def _print(text: str, stream: TextIO) -> None:
    """Print a line in the stream's own encoding; ``typer.echo`` writes UTF-8 where it is ASCII."""
    stream.write(f"{text}\n")
    stream.flush()


def say_clock() -> None:
    """Print on stderr that market time is not this machine's, where that is so.

    Raises:
        SettingsError: the environment has a bad setting.
    """
    if CLOCK_VARIABLE not in os.environ:
        return  # reading all settings would take longer than `ktrdr --help` may
    from ktrdr_pipelines.settings import load_settings

    clock = load_settings().clock
    if clock.offset_s:
        note(f"Clock: {clock}")


def say_json(document: object, *, lines: bool = True) -> None:
    """Print a result as one JSON document, on one line for a program that waits for it.

    An object also says, as ``market_clock_offset_s``, how far market time is ahead of real time.
    What stdout has no character for is a JSON escape, so that it stays JSON.
    """
    if isinstance(document, Mapping):
        document = {**document, "market_clock_offset_s": _clock_offset_s()}
    indent = 2 if lines else None
    say(
        json.dumps(
            document,
            indent=indent,
            ensure_ascii=not is_unicode(sys.stdout),
            allow_nan=False,
            default=plain,
        )
    )


def _clock_offset_s() -> float | None:
    """Return the offset that the environment sets; None where it is bad, which is the error then.

    The variable is read here by itself, so that a document can be printed of any settings error.
    """
    try:
        offset_s = float(os.environ.get(CLOCK_VARIABLE, "0"))
    except ValueError:
        return None
    return offset_s if math.isfinite(offset_s) else None


def plain(value: object) -> object:
    """Give a value as JSON has it: instants and dates in ISO form, the rest as text."""
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return value.isoformat() if isinstance(value, date) else str(value)


def error_json(error: KtrdrError) -> dict[str, Any]:
    """Give an error as JSON has it."""
    fields = {
        "kind": type(error).__name__,
        "message": str(error),
        "what": error.what,
        "came": error.came,
        "remedy": error.remedy,
    }
    return fields | ({"code": error.code} if isinstance(error, GatewayError) else {})


def console(*, err: bool = False) -> "Console":
    """Make a console that prints text as it is; colours only where a person looks at it."""
    from rich.console import Console

    file = sys.stderr if err else sys.stdout
    width = None if file.isatty() else PIPED_WIDTH
    return Console(file=file, width=width, markup=False, highlight=False, emoji=False)


def say_table(columns: Mapping[str, str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table.

    Args:
        columns: headings, each with ``left``, ``right`` or ``fold``: what gives way, in lines of
            its own, where the terminal is too narrow for all.
        rows: cells as they are to be read.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for heading, kind in columns.items():
        right = kind == "right"
        table.add_column(
            showable(heading, sys.stdout),
            justify="right" if right else "left",
            overflow="fold" if kind == "fold" else "ellipsis",
            no_wrap=kind != "fold",
        )
    for row in rows:
        table.add_row(*(showable(str(cell), sys.stdout) for cell in row))
    console().print(table)


def instant_text(moment: datetime) -> str:
    """Write an instant in UTC, to the second."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def stretch_text(timeframe: "Timeframe", stretch: "Interval") -> str:
    """Write a stretch of stamps: days and weeks by their dates, both in, others by instants."""
    if timeframe.is_intraday:
        return f"{instant_text(stretch.start)} to {instant_text(stretch.end)}"
    first, last = stretch.start.date(), (stretch.end - timedelta(days=1)).date()
    return str(first) if first == last else f"{first} to {last}"


def stretches_json(stretches: Iterable["Interval"]) -> list[dict[str, str]]:
    """Give stretches of stamps as JSON has them; each end is out."""
    return [{"start": instant_text(one.start), "end": instant_text(one.end)} for one in stretches]


def disagreement_json(found: "Disagreement") -> dict[str, Any]:
    """Give bars at other prices, or with volumes in another unit, as JSON has them."""
    return {"first": found.first, "last": found.last, "bars": found.bars, "ratio": found.ratio}


def disagreement_text(series: "Series", found: "Disagreement") -> str:
    """Say how bars disagree with others, with the command that requests them again."""
    return str(found).replace("SYMBOL TIMEFRAME", f"{series.symbol} {series.timeframe}")


def counted(number: int, one: str, many: str = "") -> str:
    """Write a number and what it counts."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def warn_of_problem(place: "Place") -> None:
    """Say where the last good universe stands in for a bad edit."""
    if place.problem is not None:
        note(f"Warning: {place.problem}. Until then the last good universe counts")
