"""The mapping file: which files of other programs hold which series, and in which shape.

Each key is the pattern of a file name, in which ``{symbol}`` and ``{timeframe}`` stand for these
and ``*`` for anything; the first that matches a name applies. ``MAPPING_EXAMPLE`` has every key.

Not here: reading the rows of a file (``app.transfer.csv_bars``).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Final

from ktrdr_pipelines.app.reading.read_options import parse_zone
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.yaml_nodes import Item, parsed
from ktrdr_pipelines.errors import UniverseError, UsageError
from ktrdr_pipelines.store.files import disk_errors

MAPPING_EXAMPLE: Final = """\
"{symbol}-{timeframe}.txt":
  timezone: America/New_York     # of times without an offset
  timestamp: end                 # of the bar; the default is start
  delimiter: ";"                 # the default is found out: comma, semicolon or tab
  decimal: ","                   # the default is a point
  date_format: "%d.%m.%Y %H:%M"  # of strptime; the default is ISO, or numbers of seconds
  columns: {time: Moment, open: First, volume: Lots}   # those with another name
  header: time,open,high,low,close,volume              # only for files without names
  symbols: {EURUSD.FX: EURUSD}   # symbols with another name
  timeframes: {M1: 1m, D: 1d}    # timeframes with another name
"daily/*.csv":
  symbol: AAPL                   # where the name has none
  timeframe: 1d
"""

COLUMNS: Final = (
    *("time", "open", "high", "low", "close"),
    *("volume", "average", "bar_count"),
)
"""The columns of a file that bars are made of."""

_NO_NAMES: Final[Mapping[str, str]] = MappingProxyType({})
_PARTS: Final = {"{symbol}": r"(?P<symbol>.+)", "{timeframe}": r"(?P<timeframe>[^_/]+)", "*": ".*"}


class TimeOf(StrEnum):
    """Which end of a bar its time states."""

    START = "start"
    END = "end"


@dataclass(frozen=True, slots=True)
class CsvShape:
    """How the rows of a file are read.

    Attributes:
        zone: the time zone of times without an offset; None if none is stated.
        time_of: which end of a bar its time states.
        delimiter: between the values of a row; None to find out.
        decimal: the decimal point.
        date_format: of ``strptime``; empty for ISO forms and numbers of seconds since 1970.
        columns: the file's names of some of ``COLUMNS``.
        header: the names of the columns of a file that does not state them.
    """

    zone: str | None = None
    time_of: TimeOf = TimeOf.START
    delimiter: str | None = None
    decimal: str = "."
    date_format: str = ""
    columns: Mapping[str, str] = field(default_factory=lambda: _NO_NAMES)
    header: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FileRule:
    """Which files one key of the mapping is about, and how they are read."""

    pattern: str = "{symbol}_{timeframe}.csv"
    shape: CsvShape = field(default_factory=CsvShape)
    symbol: str = ""
    timeframe: str = ""
    symbols: Mapping[str, str] = field(default_factory=lambda: _NO_NAMES)
    timeframes: Mapping[str, str] = field(default_factory=lambda: _NO_NAMES)

    def named(self, name: str) -> tuple[str, str] | None:
        """Return symbol and timeframe of a file by its name; None if it does not match.

        A pattern without a slash is about names in any folder.
        """
        parts = re.split(r"(\{symbol\}|\{timeframe\}|\*)", self.pattern)
        expression = "".join(_PARTS.get(part, re.escape(part)) for part in parts)
        text = name if "/" in self.pattern else name.rpartition("/")[2]
        found = re.fullmatch(expression, text, re.IGNORECASE)
        if found is None:
            return None
        states = found.groupdict()
        symbol = self.symbol or states.get("symbol", "")
        timeframe = self.timeframe or states.get("timeframe", "")
        return self.symbols.get(symbol, symbol), self.timeframes.get(timeframe, timeframe)


DEFAULT_RULE: Final = FileRule()


def timeframe_of(name: str) -> Timeframe | None:
    """Return the timeframe of a name, in which d, h and w may be capitals; M would be a month."""
    plain = name.lower() if name[-1:] in {"D", "H", "W"} else name
    return Timeframe(plain) if plain in list(Timeframe) else None


def read_mapping(path: Path | None, zone: str | None) -> tuple[FileRule, ...]:
    """Return the rules of a mapping file, the default one last.

    Args:
        path: the file; None for the default rule alone.
        zone: the time zone of times without an offset where a rule states none.

    Raises:
        UsageError: the file is malformed, or the zone unknown; the error names line and key.
        DiskError: the file cannot be read.
    """
    known = None if zone is None else parse_zone(zone)
    default = replace(DEFAULT_RULE, shape=CsvShape(zone=known))
    if path is None:
        return (default,)
    with disk_errors(path):
        data = path.read_bytes()
    try:
        items = parsed(data.decode("utf-8-sig"), str(path)).mapping().values()
        return (*(_rule(item, known) for item in items), default)
    except UniverseError as error:
        raise UsageError(error.what, reason=error.reason, hint=error.hint) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}", reason="it is not UTF-8", hint="Save it as UTF-8") from error


_KEYS: Final = (
    *("symbol", "timeframe", "symbols", "timeframes", "timezone", "timestamp"),
    *("delimiter", "decimal", "date_format", "columns", "header"),
)


def _rule(item: Item, zone: str | None) -> FileRule:
    item.refuse_unknown(_KEYS)
    values = item.mapping()
    pattern = item.keys[-1]

    def text(key: str, default: str = "") -> str:
        return values[key].text() if key in values else default

    for part in ("symbol", "timeframe"):
        if pattern.count(f"{{{part}}}") + (part in values) != 1:
            raise item.error(
                f"names no {part}, or several",
                f"Put {{{part}}} into the pattern, or add the key {part}",
            )
    names = {key: _names(values[key]) for key in ("symbols", "timeframes") if key in values}
    kinds = [values["timeframe"]] if "timeframe" in values else []
    kinds += values["timeframes"].mapping().values() if "timeframes" in values else []
    for one in kinds:
        if timeframe_of(one.text()) is None:
            raise one.error(f"is {one.text()!r}", f"Allowed are {', '.join(Timeframe)}")
    return FileRule(
        pattern,
        _shape(values, zone),
        text("symbol"),
        text("timeframe"),
        names.get("symbols", _NO_NAMES),
        names.get("timeframes", _NO_NAMES),
    )


def _shape(values: Mapping[str, Item], zone: str | None) -> CsvShape:
    shape = CsvShape(zone=zone)
    if "timezone" in values:
        item = values["timezone"]
        try:
            shape = replace(shape, zone=parse_zone(item.text()))
        except UniverseError:
            raise
        except UsageError as error:
            raise item.error(error.reason, error.hint) from error
    if "timestamp" in values:
        shape = replace(shape, time_of=values["timestamp"].choice(TimeOf))
    if "delimiter" in values:
        word = values["delimiter"].word(r"[,;|]|\t|\\t", "one of , ; | or a tab")
        shape = replace(shape, delimiter="\t" if word == "\\t" else word)
    if "decimal" in values:
        shape = replace(shape, decimal=values["decimal"].word("[.,]", "a point or a comma"))
    if "date_format" in values:
        shape = replace(shape, date_format=values["date_format"].text())
    if "columns" in values:
        values["columns"].refuse_unknown(COLUMNS)
        shape = replace(shape, columns=_names(values["columns"]))
    if "header" in values:
        names = [one.strip() for one in values["header"].text().split(",")]
        shape = replace(shape, header=tuple(names))
    return shape


def _names(item: Item) -> dict[str, str]:
    return {key: one.text() for key, one in item.mapping().items()}
