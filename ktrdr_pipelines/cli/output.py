"""Print what commands produce: results to stdout, everything else to stderr.

Text, tables and JSON are written in the encoding of their stream. The standard streams are replaced
if they are closed, and muted when their reader is gone.
"""

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Final, TextIO

import typer

from ktrdr_pipelines.domain.instruments import Series

if TYPE_CHECKING:
    from rich.console import Console

    from ktrdr_pipelines.app.views.documents import ResultDocument
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.domain.adjustments import Adjustment
    from ktrdr_pipelines.domain.intervals import Interval
    from ktrdr_pipelines.domain.timeframes import Timeframe


_MODES: Final = {"stdin": "r", "stdout": "w", "stderr": "w"}


def take_streams() -> None:
    """Replace closed standard streams by the null device, and escape unprintable characters.

    The next file that is opened would get the descriptor of a closed stream, and text printed to
    the stream would end up in that file.
    """
    for name, mode in _MODES.items():
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]


def is_unicode(stream: TextIO) -> bool:
    """Return whether a stream can print every character."""
    return (stream.encoding or "utf-8").lower().startswith("utf")


def showable(text: str, stream: TextIO) -> str:
    """Return text with escapes for the characters that a stream cannot print."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def typed_text(text: str, encoding: str | None = None) -> str:
    """Return text that was typed or piped in as UTF-8, also if the locale's encoding differs.

    Python keeps bytes that an ASCII locale does not know as lone surrogates. Bytes that are not
    UTF-8 stay as Python read them.

    Args:
        text: an argument, or text read from a stream.
        encoding: the encoding of the stream; by default, that of arguments.
    """
    with suppress(UnicodeError):
        return text.encode(encoding or sys.getfilesystemencoding(), "surrogateescape").decode()
    return text


def mute(*streams: TextIO) -> None:
    """Discard all further output to the streams, also what Python flushes at exit."""
    for stream in streams:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_with_fallback(first: Callable[[], object], second: Callable[[], object]) -> None:
    """Call ``first`` to print, and ``second`` if stdout cannot be written.

    A closed pipe is no error.
    """
    try:
        first()
        sys.stdout.flush()
    except BrokenPipeError:
        mute(sys.stdout, sys.stderr)
    except OSError:
        mute(sys.stdout)
        with suppress(OSError):
            second()


CLOCK_VARIABLE: Final = "KTRDR_CLOCK_OFFSET_S"
CLIENT_ID_VARIABLE: Final = "IB_CLIENT_ID"

_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that messages may quote from names and files, less tab and line feed."""

PIPED_WIDTH: Final = 160
"""Width in columns of a table that is written to a file or another program."""

_FOLDED_AT: Final = 24
"""Columns that a cell which may wrap has before optional columns do."""

_MANY_ROWS: Final = 100
"""Rows above which a table without wrapped cells is printed by ``say_table`` itself."""

_NAMED_AT_MOST: Final = 8
"""Names that one line has."""

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


def say(text: str = "") -> None:
    """Print a line of the result to stdout."""
    _print(text, sys.stdout)


def note(text: str) -> None:
    """Print a line to stderr; what would control the terminal is escaped."""
    _print(_CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text), sys.stderr)


def _print(text: str, stream: TextIO) -> None:
    # typer.echo would write UTF-8 to a stream whose encoding is ASCII.
    stream.write(f"{text}\n")
    stream.flush()


def say_clock() -> None:
    """Note on stderr that market time differs from this machine's time, if it does.

    Raises:
        SettingsError: the environment has an invalid setting.
    """
    if CLOCK_VARIABLE not in os.environ:
        return  # reading all settings would slow down `ktrdr --help`
    from ktrdr_pipelines.settings import load_settings

    clock = load_settings().clock
    if clock.offset_s:
        note(f"Clock: {clock}")


def say_warnings() -> None:
    """Note on stderr what should be changed in the environment, such as variables of older systems.

    Raises:
        SettingsError: the environment has an invalid setting.
    """
    if CLIENT_ID_VARIABLE not in os.environ:
        return  # the only variable with a warning; reading all settings takes time
    from ktrdr_pipelines.settings import load_settings

    for text in load_settings().warnings:
        note(f"Warning: {text}")


def say_json(document: "ResultDocument", *, lines: bool = True) -> None:
    """Print a result as one JSON document: indented, or on one line without ``lines``.

    All fields are printed, and ``market_clock_offset_s`` is that of the environment. Characters
    that stdout cannot print become JSON escapes, so that the document stays valid.
    """
    set_here = {"market_clock_offset_s": _clock_offset_s()}
    found = document.model_copy(update=set_here).model_dump(by_alias=True)
    indent = 2 if lines else None
    say(
        json.dumps(
            found,
            indent=indent,
            ensure_ascii=not is_unicode(sys.stdout),
            allow_nan=False,
            default=plain,
        )
    )


def _clock_offset_s() -> float | None:
    """Return the offset that the environment sets; None if it is invalid.

    The variable is read here directly, so that any settings error can be printed as a document.
    """
    try:
        offset_s = float(os.environ.get(CLOCK_VARIABLE, "0"))
    except ValueError:
        return None
    return offset_s if math.isfinite(offset_s) else None


def plain(value: object) -> object:
    """Return a value as JSON can hold it: instants and dates in ISO form, the rest as text."""
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return value.isoformat() if isinstance(value, date) else str(value)


def console(*, err: bool = False) -> "Console":
    """Return a console that prints text unchanged, with colours only on a terminal."""
    from rich.console import Console

    file = sys.stderr if err else sys.stdout
    width = None if file.isatty() else PIPED_WIDTH
    return Console(file=file, width=width, markup=False, highlight=False, emoji=False)


def say_table(columns: Mapping[str, str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table whose cells are never cut off.

    Where the terminal is too narrow, optional columns are left out, the last one first, then
    columns wrap that may. Is it still too narrow, the terminal wraps the lines.

    Args:
        columns: headings, each with its alignment: ``left``, ``right``, or ``fold`` for a column
            that may wrap between words; a question mark after it makes the column optional.
        rows: the cells of each row.
    """
    from rich import box
    from rich.table import Table

    cells = [[showable(str(cell), sys.stdout) for cell in row] for row in rows]
    headings = [showable(heading, sys.stdout) for heading in columns]
    kinds = [kind.removesuffix("?") for kind in columns.values()]
    whole, least = [], []  # the widths of columns without wrapping, and with all of it
    for at, heading in enumerate(headings):
        texts = [heading, *(row[at] for row in cells)]
        whole.append(max(map(_length, texts)))
        words = (word for text in texts for word in text.split())
        least.append(max(map(_length, words), default=0) if kinds[at] == "fold" else whole[-1])
    shown = list(range(len(headings)))
    screen = console()
    for at, kind in reversed(list(enumerate(columns.values()))):
        wanted = (max(least[one], min(whole[one], _FOLDED_AT)) for one in shown)
        if kind.endswith("?") and sum(wanted) + 2 * len(shown) > screen.width:
            shown.remove(at)
    room = screen.width - sum(least[at] for at in shown) - 2 * len(shown)
    screen.width -= min(room, 0)
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    widths = []
    for at in shown:  # room goes to columns that wrap, the first one first
        width = min(whole[at], least[at] + max(room, 0))
        room -= width - least[at]
        widths.append(width)
        table.add_column(
            headings[at],
            justify="right" if kinds[at] == "right" else "left",
            overflow="fold",
            no_wrap=kinds[at] != "fold",
            width=width,
        )
    fits = all(width == whole[at] for at, width in zip(shown, widths, strict=True))
    if (
        len(cells) > _MANY_ROWS
        and fits
        and all(_is_plain(row[at]) for row in cells for at in shown)
    ):
        # The table as rich prints it, hundreds of times faster.
        with screen.capture() as captured:
            screen.print(table)
        *above, below = captured.get().splitlines(keepends=True)
        pads = [(whole[at], kinds[at] == "right") for at in shown]
        lines = (
            "  ".join(
                f"{' ' * (width - _length(row[at]))}{row[at]}"
                if is_right
                else f"{row[at]}{' ' * (width - _length(row[at]))}"
                for at, (width, is_right) in zip(shown, pads, strict=True)
            )
            for row in cells
        )
        sys.stdout.write("".join((*above, *(f" {line} \n" for line in lines), below)))
        sys.stdout.flush()
        return
    for row in cells:
        table.add_row(*(row[at] for at in shown))
    screen.print(table)


def _length(text: str) -> int:
    """Return how many columns of the terminal a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _is_plain(text: str) -> bool:
    """Return whether a text is one line without space around it."""
    return text.isprintable() and text == text.strip()


def say_wrapped(text: str) -> None:
    """Print a line of the result; a terminal gets it wrapped between words, and indented."""
    if not sys.stdout.isatty():
        say(text)
        return
    import textwrap

    lines = textwrap.wrap(
        text,
        console().width,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    say("\n".join(lines))


def instant_text(moment: datetime) -> str:
    """Format an instant in UTC, to the second."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def local_text(moment: datetime) -> str:
    """Return the local time of an instant in parentheses; empty where local time is UTC."""
    local = moment.astimezone()
    return f" ({local:%H:%M:%S %Z})" if local.utcoffset() else ""


def interval_text(timeframe: "Timeframe", interval: "Interval") -> str:
    """Format an interval: days and weeks as inclusive dates, other timeframes as instants."""
    if timeframe.is_intraday:
        return f"{instant_text(interval.start)} to {instant_text(interval.end)}"
    first, last = interval.start.date(), (interval.end - timedelta(days=1)).date()
    return str(first) if first == last else f"{first} to {last}"


def adjustment_text(one: "Adjustment") -> str:
    """Return an adjustment in words: what it is, what it multiplies and since when."""
    about = "about " if one.is_estimated else ""
    removed = "" if one.removed_at is None else f", removed at {instant_text(one.removed_at)}"
    return (
        f"{one.kind} {one.number}, effective {about}{one.effective}: prices times {one.ratio:.6g}, "
        f"volumes times {one.volume_ratio:.6g}{removed}"
    )


def unconfirmed_text(series: Series, bars: int) -> str:
    """Return how many bars of a series are on an unconfirmed price basis."""
    return f"{series}: {counted(bars, 'bar')} on an unconfirmed price basis, left out of queries"


def few_text(names: Sequence[object]) -> str:
    """Return the first of some names, and how many more there are."""
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(map(str, names[:_NAMED_AT_MOST])) + (f" and {more:,} more" if more > 0 else "")


def say_some(lines: Iterable[str], *, most: int | None) -> None:
    """Print the first lines of a kind, and how many were left out; all of them without ``most``."""
    every = list(lines)
    for line in every[:most]:
        say_wrapped(line)
    if most is not None and len(every) > most:
        say(f"  and {len(every) - most:,} more; --all prints them")


def counted(number: int, one: str, many: str = "") -> str:
    """Format a number and the noun it counts; ``many`` is the plural if it is irregular."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def warn_of_problem(workspace: "Workspace") -> None:
    """Warn that the last good universe is used in place of an invalid edit, if it is."""
    if workspace.problem is not None:
        note(f"Warning: {workspace.problem}. Until then the last good universe is used for it")
