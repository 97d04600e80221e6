"""Read bars from the rows of a CSV file, and say of each row that is none why, by its line.

Nothing is invented and nothing is dropped without being told: a row that is not plainly one bar is
a bad row. Nothing is guessed either: a time without an offset needs the time zone to be stated.

Not here: the shapes that users state (``app.transfer.mapping``), files (``app.transfer.imports``).
"""

import csv
import math
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Final, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa

from ktrdr_pipelines.app.transfer.mapping import COLUMNS, CsvShape, TimeOf
from ktrdr_pipelines.domain.bars import BAR_SCHEMA, micros
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import UsageError

_SYNONYMS: Final[Mapping[str, tuple[str, ...]]] = {
    "time": ("datetime", "timestamp", "ts", "date", "time", "gmt time", "local time", "open time"),
    "open": ("open", "o", "first"),
    "high": ("high", "h"),
    "low": ("low", "l"),
    "close": ("close", "c", "last"),
    "volume": ("volume", "vol", "v"),
    "average": ("average", "wap", "vwap"),
    "bar_count": ("bar_count", "barcount", "count", "trades"),
}
"""What other programs call the columns, in lower case, the best name first."""

_PRICES: Final = ("open", "high", "low", "close")
_UNNAMED: Final = re.compile(r"|unnamed: 0|index")

_DAY_US: Final = 86_400_000_000
_HOUR_US: Final = 3_600_000_000
_UNKNOWN_OFFSET: Final = 2**31 - 1

_DATE: Final = re.compile(
    r"(\d{4})(?:-(\d\d)-(\d\d)|/(\d\d)/(\d\d)|\.(\d\d)\.(\d\d)|(\d\d)(\d\d))"
    r"(?:[T ]*(\d\d|(?<=[T ])\d|\d(?=:)):?(\d\d)(?::?(\d\d)(?:[.,](\d{1,9}))?)?)?"
    r"\s*(Z|UTC|GMT|[+-]\d\d(?::?\d\d)?)?",
    re.IGNORECASE,
)
"""Its digits stand apart or have all of their zeros: 13 in a row are milliseconds since 1970."""

_EPOCH: Final = re.compile(r"(\d{9,10})(?:\.0*)?|(\d{12,13})|(\d{15,16})|(\d{18,19})")
_EPOCH_US: Final = ((1_000_000, 1), (1_000, 1), (1, 1), (1, 1_000))
"""By what seconds, and parts of them, are multiplied and divided to get microseconds."""

_ROUNDING: Final = 1e-9
"""By what share of a price open and close may lie outside of high and low: prices that were
multiplied, as for splits, are rounded apart."""

_EPOCH_DAY: Final = date(1970, 1, 1).toordinal()
_YEARS: Final = range(1800, 2262)
"""Years of which a time can be one of a bar; programs write others for a time that is missing."""


@dataclass(frozen=True, slots=True, order=True)
class BadRow:
    """A row that is not imported: its line in the file, from 1, and why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class ParsedBars:
    """The bars of a file.

    Attributes:
        bars: in the columns of ``BAR_SCHEMA``, sorted by timestamp.
        rows: how many rows the file has, less the line of names.
        bad: the rows that are no bar, by line.
        repeated: how many rows were left out that repeat another one to the last value.
        was_sorted: whether the rows came in order.
        ignored: the columns that are not read.
        without: the columns that the file does not have, whose values are null.
    """

    bars: pa.Table
    rows: int
    bad: tuple[BadRow, ...] = ()
    repeated: int = 0
    was_sorted: bool = True
    ignored: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


def parse_csv(
    lines: Iterable[str],
    shape: CsvShape,
    timeframe: Timeframe,
    *,
    calendar: SessionCalendar,
    now: datetime,
) -> ParsedBars:
    """Return the bars of the lines of a file.

    Args:
        lines: its lines, with their ends.
        shape: how they are read.
        timeframe: of the bars.
        calendar: the sessions of the instrument; they fix session dates and where bars may begin.
        now: the time of the market; no bar begins later.

    Raises:
        UsageError: the file as a whole cannot be read so; it says what is to be stated.
    """
    reader, names = _opened(lines, shape)
    columns = _Columns.of(names, shape)
    rows = _Rows(columns, shape, len(names), timeframe)
    try:
        rows.read(reader)
    except csv.Error as error:
        raise UsageError(
            f"line {reader.line_num}", reason=f"it is not CSV: {error}", hint="Check the delimiter"
        ) from error
    return rows.bars(calendar, now)


def _opened(lines: Iterable[str], shape: CsvShape) -> "tuple[_Reader, list[str]]":
    """Return a reader of the rows, and the names of the columns."""
    rest = iter(lines)
    first = next((line for line in rest), "")
    delimiter = shape.delimiter or max(",;\t", key=first.count)
    reader = csv.reader(_chained(first, rest), delimiter=delimiter)
    if shape.header:
        return reader, list(shape.header)
    names = next(reader, [])
    if not names or _DATE.fullmatch(names[0].strip()) or _EPOCH.fullmatch(names[0].strip()):
        if not names:
            raise UsageError(
                "line 1",
                reason="it is empty",
                hint="The first line has the names of the columns: date,open,high,low,close,volume",
            )
        raise UsageError(
            "line 1",
            reason="it has values, and no names of columns",
            hint="State them in a mapping file, such as `header: time,open,high,low,close,volume`",
        )
    return reader, names


def _chained(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


class _Reader(Protocol):
    """What ``csv.reader`` returns."""

    @property
    def line_num(self) -> int:
        """The line that was read last."""
        ...

    def __iter__(self) -> Iterator[list[str]]: ...

    def __next__(self) -> list[str]: ...


def _plain(name: str) -> str:
    """Return a name in lower case, without the brackets that some programs put around it."""
    return re.sub(r"[\s_]+", " ", name.strip().strip("<>").lower()).strip()


@dataclass(frozen=True, slots=True)
class _Columns:
    """Where the values of a bar stand in a row.

    Attributes:
        at: the position of each column that the file has, but for the time.
        times: the positions whose texts, joined by a space, are the time.
        ignored: the names of all others.
    """

    at: Mapping[str, int]
    times: tuple[int, ...]
    ignored: tuple[str, ...]

    @classmethod
    def of(cls, names: Sequence[str], shape: CsvShape) -> "_Columns":
        """Return the columns of names.

        Raises:
            UsageError: time or a price is missing, or named twice.
        """
        plain = [_plain(name) for name in names]
        found: dict[str, int] = {}
        for column in COLUMNS:
            stated = shape.columns.get(column)
            wanted = [stated] if stated else _SYNONYMS[column]
            for name in (_plain(one) for one in wanted):
                if plain.count(name) > 1:
                    raise UsageError(
                        "line 1",
                        reason=f"two columns are named {name!r}",
                        hint=f"State which is the {column} in a mapping file",
                    )
                if name in plain:
                    found[column] = plain.index(name)
                    break
            if stated and column not in found:
                raise UsageError(
                    "line 1",
                    reason=f"it names no column {stated!r}, which the mapping file states as the "
                    f"{column}: {', '.join(names)[:200]}",
                    hint=f"Correct or remove {column} under `columns` of the mapping file",
                )
        if "time" not in found and "time" not in shape.columns and _UNNAMED.fullmatch(plain[0]):
            found["time"] = 0
        missing = [one for one in ("time", *_PRICES) if one not in found]
        if missing:
            raise UsageError(
                "line 1",
                reason=f"it names no column for {', '.join(missing)}: {', '.join(names)[:200]}",
                hint="State them in a mapping file: `columns: {time: Moment, open: First}`",
            )
        time = found.pop("time")
        times: tuple[int, ...] = (time,)
        if plain[time] == "date" and "time" in plain and "time" not in shape.columns:
            times = (time, plain.index("time"))
        used = {*found.values(), *times}
        ignored = tuple(name for at, name in enumerate(names) if at not in used)
        return cls(found, times, ignored)


def _numbers() -> dict[str, "array[float]"]:
    return {name: array("d") for name in (*_PRICES, "volume", "average", "bar_count")}


@dataclass(slots=True)
class _Rows:
    """The values of all rows that can be read, as arrays, and the bad rows."""

    columns: _Columns
    shape: CsvShape
    width: int
    timeframe: Timeframe
    count: int = 0
    lines: "array[int]" = field(default_factory=lambda: array("q"))
    walls: "array[int]" = field(default_factory=lambda: array("q"))
    offsets: "array[int]" = field(default_factory=lambda: array("q"))
    dated: "array[int]" = field(default_factory=lambda: array("b"))
    values: dict[str, "array[float]"] = field(default_factory=_numbers)
    bad: list[BadRow] = field(default_factory=list)

    def read(self, reader: "_Reader") -> None:
        """Read the values of each row."""
        columns, shape = self.columns, self.shape
        time_at = columns.times
        moment_of = _moment_by(shape.date_format) if shape.date_format else _moment
        numbers = [(self.values[name], at, name) for name, at in columns.at.items()]
        others = [self.values[name] for name in self.values if name not in columns.at]
        is_comma = shape.decimal == ","
        for line, row in self._lines(reader):
            if len(row) != self.width:
                self._refuse(line, f"it has {len(row)} values, the file {self.width} columns")
                continue
            text = row[time_at[0]] if len(time_at) == 1 else " ".join(row[at] for at in time_at)
            moment = moment_of(text.strip())
            if moment is None:
                self._refuse(line, f"{text.strip()[:40]!r} is no time that can be read")
                continue
            found = []
            for _, at, name in numbers:
                number = _number(row[at], is_comma=is_comma)
                if number is None:
                    self._refuse(line, f"{name} is {row[at].strip()[:40]!r}, not a number")
                    break
                if number != number and name in _PRICES:  # noqa: PLR0124
                    self._refuse(line, f"{name} is missing")
                    break
                found.append(number)
            else:
                self.lines.append(line)
                self.walls.append(moment[0])
                self.offsets.append(moment[1])
                self.dated.append(moment[2])
                for (values, _, _), number in zip(numbers, found, strict=True):
                    values.append(number)
                for values in others:
                    values.append(math.nan)

    def _lines(self, reader: "_Reader") -> Iterator[tuple[int, list[str]]]:
        """Yield rows and their lines, but for those that a quotation mark made of several."""
        line = reader.line_num
        for row in reader:
            first, line = line + 1, reader.line_num
            if not any(row):
                continue
            self.count += line - first + 1
            if line == first:
                yield line, row
                continue
            for one in range(first, line + 1):
                self._refuse(one, f"a quotation mark of line {first} is closed in line {line} only")

    def _refuse(self, line: int, reason: str) -> None:
        self.bad.append(BadRow(line, reason))

    def bars(self, calendar: SessionCalendar, now: datetime) -> ParsedBars:
        """Return the bars, once all rows have been read.

        Raises:
            UsageError: times have no offset, and their time zone is not stated.
        """
        lines = np.asarray(self.lines)  # views, not copies: a file may have millions of rows
        values = {name: np.asarray(ones) for name, ones in self.values.items()}
        is_bad = np.zeros(len(lines), dtype=bool)

        def refuse(chosen: np.ndarray, reason: Callable[[int], str]) -> None:
            for at in np.flatnonzero(chosen & ~is_bad).tolist():
                self._refuse(int(lines[at]), reason(at))
            is_bad[chosen] = True

        walls, offsets = np.asarray(self.walls), np.asarray(self.offsets)
        dated = np.asarray(self.dated).astype(bool)
        if self.timeframe.is_intraday:
            keys, days = self._instants(walls, offsets, dated, calendar=calendar, refuse=refuse)
        else:
            keys, days = self._dates(walls, offsets, dated, refuse=refuse)
        refuse(keys > micros(now), lambda at: f"{_text(keys[at])} is in the future")
        self._refuse_values(values, refuse)
        return self._made(lines, keys, days, values=values, is_bad=is_bad)

    def _instants(
        self,
        walls: np.ndarray,
        offsets: np.ndarray,
        dated: np.ndarray,
        *,
        calendar: SessionCalendar,
        refuse: "_Refuse",
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the starts of intraday bars, and their session dates."""
        refuse(dated, lambda _: "it has a date without a time")
        keys = self._utc(walls, offsets, refuse)
        if self.shape.time_of is TimeOf.END:
            ends = _whole_minutes(keys)
            refuse(
                ~_may_end(ends, self.timeframe, calendar),
                lambda at: f"no {self.timeframe} bar ends at {_text(ends[at])}",
            )
            keys = _starts(ends, self.timeframe, calendar)
        refuse(
            ~_is_on_grid(keys, self.timeframe, calendar),
            lambda at: f"no {self.timeframe} bar begins at {_text(keys[at])}",
        )
        return keys, calendar.days_of(keys)

    def _dates(
        self, walls: np.ndarray, offsets: np.ndarray, dated: np.ndarray, *, refuse: "_Refuse"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the timestamps of daily and weekly bars, and their dates.

        A date may have a time: midnight in its own offset, or in the stated time zone. One that
        states the end of a bar may have any other, too.
        """
        is_end = self.shape.time_of is TimeOf.END
        local, is_timed = walls, ~dated & (walls % _DAY_US != 0)
        if self.shape.zone is not None and is_timed.any():
            known = is_timed & (offsets != _UNKNOWN_OFFSET)
            utc = np.where(known, walls - offsets, 0)
            local = np.where(known, _local(utc, self.shape.zone), walls)
            is_timed &= local % _DAY_US != 0
        if is_end:
            local = np.where(dated, local, local - 1)
        else:
            refuse(
                is_timed,
                lambda at: (
                    f"a bar of a day has the time {_text(walls[at])[11:]}; state the time "
                    "zone in which that is midnight"
                ),
            )
        days = local // _DAY_US
        keys = days - (days + 3) % 7 if self.timeframe is Timeframe.W1 else days
        return keys * _DAY_US, days.astype("datetime64[D]")

    def _utc(self, walls: np.ndarray, offsets: np.ndarray, refuse: "_Refuse") -> np.ndarray:
        """Return instants; those without an offset are in the stated time zone."""
        naive = offsets == _UNKNOWN_OFFSET
        keys = walls - np.where(naive, 0, offsets)
        if not naive.any():
            return np.asarray(keys)
        zone = self.shape.zone
        if zone is None:
            first = int(np.flatnonzero(naive)[0])
            raise UsageError(
                f"line {self.lines[first]}",
                reason=f"{_text(walls[first])} has no time zone",
                hint="State the one of its times, such as --timezone America/New_York, or "
                "--timezone UTC",
            )
        found = pd.DatetimeIndex(np.where(naive, walls, 0).astype("datetime64[us]"))
        every = np.ones(len(found), dtype=bool)
        first_ones = found.tz_localize(zone, ambiguous=every, nonexistent="NaT")
        second = found.tz_localize(zone, ambiguous=~every, nonexistent="NaT")
        utc = [_micros(one) for one in (first_ones, second)]
        is_never = naive & np.asarray(first_ones.isna())
        refuse(
            is_never,
            lambda at: f"{_text(walls[at])} does not exist in {zone}, where clocks go forward",
        )
        refuse(
            naive & (utc[0] != utc[1]),
            lambda at: (
                f"{_text(walls[at])} is twice in {zone}, where clocks go back; give it with "
                "its offset, or in UTC"
            ),
        )
        return np.where(naive, np.where(is_never, 0, utc[0]), keys)

    def _refuse_values(self, values: Mapping[str, np.ndarray], refuse: "_Refuse") -> None:
        for name in ("volume", "average", "bar_count"):
            values[name][values[name] == -1.0] = np.nan  # the gateway's "not available"
        opens, high, low, close = (values[name] for name in _PRICES)
        for name, one in values.items():
            refuse(np.isinf(one), lambda _, name=name: f"{name} is infinite")  # type: ignore[misc]
        refuse(high < low, lambda at: f"high {high[at]} is below low {low[at]}")
        rounding = _ROUNDING * np.maximum(np.abs(high), np.abs(low))
        for name, one in (("open", opens), ("close", close)):
            refuse(
                (one < low - rounding) | (one > high + rounding),
                lambda at, name=name, one=one: (  # type: ignore[misc]
                    f"{name} {one[at]} is not between low {low[at]} and high {high[at]}"
                ),
            )
        for name in ("volume", "bar_count"):
            one = values[name]
            refuse(one < 0, lambda at, name=name, one=one: f"{name} is {one[at]}")  # type: ignore[misc]
        count = values["bar_count"]
        refuse(
            (count % 1 != 0) & ~np.isnan(count) | (count >= 2**31),
            lambda at: f"bar_count is {count[at]}",
        )

    def _made(
        self,
        lines: np.ndarray,
        keys: np.ndarray,
        days: np.ndarray,
        *,
        values: Mapping[str, np.ndarray],
        is_bad: np.ndarray,
    ) -> ParsedBars:
        """Return the bars of the rows that are good, sorted, and each once."""
        good = np.flatnonzero(~is_bad)
        was_sorted = bool(np.all(keys[good][1:] >= keys[good][:-1]))
        order = good[np.argsort(keys[good], kind="stable")]
        ordered = keys[order]
        # Rows of one time are one bar if all of their values are the same.
        kept, repeated = np.ones(len(order), dtype=bool), 0
        kept[1:] = ordered[1:] != ordered[:-1]
        starts = np.flatnonzero(kept)
        ends = np.append(starts[1:], len(order))
        for at in np.flatnonzero(ends - starts > 1).tolist():
            low, high = int(starts[at]), int(ends[at])
            same = order[low:high]
            if all(_all_equal(one[same]) for one in values.values()):
                repeated += high - low - 1
                continue
            kept[low] = False
            others = ", ".join(str(one) for one in lines[same][:5].tolist())
            for row in same.tolist():
                self._refuse(
                    int(lines[row]),
                    f"{_text(keys[row])} is there with different values, in lines {others}",
                )
        chosen: np.ndarray | slice = order[kept]
        if was_sorted and kept.all() and len(order) == len(lines):
            chosen = slice(None)
        nullable = {
            name: pa.array(values[name][chosen], mask=np.isnan(values[name][chosen]))
            for name in ("volume", "average", "bar_count")
        }
        table = pa.Table.from_arrays(
            [
                pa.array(keys[chosen], BAR_SCHEMA.field("ts").type),
                pa.array(days[chosen], pa.date32()),
                *(pa.array(values[name][chosen]) for name in _PRICES),
                nullable["volume"],
                nullable["average"],
                nullable["bar_count"].cast(pa.int32()),
            ],
            schema=BAR_SCHEMA,
        )
        return ParsedBars(
            table,
            self.count,
            tuple(sorted(self.bad)),
            repeated,
            was_sorted,
            self.columns.ignored,
            tuple(one for one in values if one not in self.columns.at),
        )


_Refuse = Callable[[np.ndarray, Callable[[int], str]], None]


def _moment(text: str) -> tuple[int, int, bool] | None:
    """Return a time: its clock in microseconds, its offset from UTC, and whether it is a date only.

    None for what is no time that can be read without being told how.
    """
    # The dates of a file repeat within a day, and the times of day from day to day.
    day, clock = _whole_moment(text[:10]), _whole_moment(f"1970-01-01{text[10:]}")
    if day is None or clock is None or not day[2]:
        return _whole_moment(text)
    return day[0] + clock[0], clock[1], clock[2]


@lru_cache(maxsize=16_384)
def _whole_moment(text: str) -> tuple[int, int, bool] | None:
    found = _DATE.fullmatch(text)
    if found is None:
        return _epoch(text)
    year = int(found[1])
    if year not in _YEARS:
        return _epoch(text)
    month, day = (int(one) for one in found.groups()[1:9] if one is not None)
    hour, minute, second, part, zone = found.groups()[9:]
    try:
        days = date(year, month, day).toordinal() - _EPOCH_DAY
    except ValueError:
        return _epoch(text)
    wall = days * _DAY_US
    if hour is not None:
        seconds = int(hour) * 3600 + int(minute) * 60 + int(second or 0)
        if int(hour) > 23 or int(minute) > 59 or int(second or 0) > 59:
            return None
        wall += seconds * 1_000_000 + int((part or "0").ljust(6, "0")[:6])
    return wall, _offset(zone), hour is None


def _offset(zone: str | None) -> int:
    """Return the offset of a time in microseconds."""
    if not zone:
        return _UNKNOWN_OFFSET
    if zone[0] not in "+-":
        return 0
    digits = zone[1:].replace(":", "").ljust(4, "0")
    size = (int(digits[:2]) * 60 + int(digits[2:])) * 60_000_000
    return size if zone[0] == "+" else -size


def _epoch(text: str) -> tuple[int, int, bool] | None:
    """Return a time given as seconds, or parts of seconds, since 1970 UTC."""
    found = _EPOCH.fullmatch(text)
    if found is None:
        return None
    at = next(at for at, one in enumerate(found.groups()) if one is not None)
    factor, divisor = _EPOCH_US[at]
    return int(found[at + 1]) * factor // divisor, 0, False


def _moment_by(pattern: str) -> Callable[[str], tuple[int, int, bool] | None]:
    """Return a function that reads times in a format of ``strptime``."""
    has_time = re.search(r"%[HIsXcT]", pattern) is not None

    def read(text: str) -> tuple[int, int, bool] | None:
        try:
            found = datetime.strptime(text, pattern)  # noqa: DTZ007  (its zone is stated apart)
        except ValueError:
            return None
        if found.year not in _YEARS:
            return None
        ahead = found.utcoffset()
        offset = _UNKNOWN_OFFSET if ahead is None else int(ahead.total_seconds() * 1_000_000)
        return micros(found.replace(tzinfo=UTC)), offset, not has_time

    return read


_NULLS: Final = frozenset({"", "nan", "null", "none", "na", "n/a", "-"})


def _number(text: str, *, is_comma: bool) -> float | None:
    """Return a number, NaN for one that is missing, None for what is no number."""
    try:
        if is_comma:
            return float(text.replace(",", ".")) if "." not in text else None
        if "_" in text:
            return None
        return float(text)
    except ValueError:
        return math.nan if text.strip().lower() in _NULLS else None


def _is_on_grid(keys: np.ndarray, timeframe: Timeframe, calendar: SessionCalendar) -> np.ndarray:
    """Return whether a bar may begin at each timestamp.

    IB's begin at full multiples of their length by the clock of the exchange, at the open of a
    session and after its breaks; longer ones of other sources at any full hour.
    """
    length = min(timeframe.seconds * 1_000_000, _HOUR_US)
    is_multiple = _local(keys, calendar.zone) % length == 0
    return np.asarray(is_multiple | np.isin(keys, _begins(calendar)))


def _begins(calendar: SessionCalendar) -> np.ndarray:
    """Return the opens of all sessions, and the ends of their breaks, sorted."""
    return np.sort(np.concatenate([calendar.opens, calendar.breaks[:, 1]]))


def _whole_minutes(ends: np.ndarray) -> np.ndarray:
    """Return ends of bars, those in the last second of a minute as its end: 10:59:59 is 11:00."""
    minute = 60_000_000
    is_last_second = ends % minute >= minute - 1_000_000
    return np.asarray(np.where(is_last_second, ends - ends % minute + minute, ends))


def _may_end(ends: np.ndarray, timeframe: Timeframe, calendar: SessionCalendar) -> np.ndarray:
    """Return whether a bar may end at each instant.

    It does at full multiples of its length by the clock of the exchange, at the close of a session
    and before its breaks. A bar that ends elsewhere began where none of this timeframe begins.
    """
    stops = np.concatenate([calendar.closes, calendar.breaks[:, 0]])
    is_multiple = _local(ends, calendar.zone) % (timeframe.seconds * 1_000_000) == 0
    return np.asarray(is_multiple | np.isin(ends, stops))


def _starts(ends: np.ndarray, timeframe: Timeframe, calendar: SessionCalendar) -> np.ndarray:
    """Return the starts of bars by their ends, which may be shorter than their timeframe."""
    last = ends - 1
    length = timeframe.seconds * 1_000_000
    found = last - _local(last, calendar.zone) % length
    begins = _begins(calendar)
    if not len(begins):
        return np.asarray(found)
    at = np.searchsorted(begins, last, side="right") - 1
    return np.asarray(np.where(at >= 0, np.maximum(found, begins[np.maximum(at, 0)]), found))


def _local(keys: np.ndarray, zone: str) -> np.ndarray:
    """Return the local clock at instants, in microseconds."""
    moments = pd.DatetimeIndex(keys.astype("datetime64[us]")).tz_localize("UTC")
    return _micros(moments.tz_convert(zone).tz_localize(None))


def _micros(index: pd.DatetimeIndex) -> np.ndarray:
    """Return instants as int64 microseconds since 1970."""
    plain = index if index.tz is None else index.tz_convert("UTC").tz_localize(None)
    return np.asarray(plain.to_numpy().astype("datetime64[us]").astype(np.int64))


def _all_equal(values: np.ndarray) -> bool:
    return bool(np.all((values == values[0]) | (np.isnan(values) & np.isnan(values[0]))))


def _text(at: int) -> str:
    """Return microseconds since 1970 as a time."""
    return str(np.datetime64(int(at), "us").astype("datetime64[s]")).replace("T", " ")
