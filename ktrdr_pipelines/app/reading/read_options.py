"""What a caller selects: symbols, timeframe, dates, columns, engine and time zone, each checked.

Every mistake is a ``UsageError`` that says what is allowed.

Not here: reading what was selected (``app.reading.bar_reader``).
"""

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from importlib.util import find_spec
from typing import Final, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ktrdr_pipelines.domain.bars import STORED_SCHEMA, VALUES, micros
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar, interval_between, midnight
from ktrdr_pipelines.domain.intervals import Interval, between
from ktrdr_pipelines.domain.planning.date_bounds import ALLOWED, parse_bound
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import UnknownSymbolError, UsageError
from ktrdr_pipelines.store.bars.bar_file import BarBounds

When = str | date | datetime
"""A session date, or an instant with a zone; as text in ISO format."""

EngineName = Literal["pandas", "polars", "arrow"]

ENGINES: Final = ("pandas", "polars", "arrow")
DEFAULT_COLUMNS: Final = ("open", "high", "low", "close", "volume")
KEYS: Final = ("ts", "symbol")
"""Columns that every frame has; ``symbol`` if several symbols were asked for."""

CLOSES_AT: Final = "closes_at"
COLUMNS: Final = (*KEYS, "session_date", *VALUES, CLOSES_AT)
"""All columns that can be named; ``raw`` adds ``basis``."""

ORIGIN: Final = "origin"
"""The last column of reads of gateway's and imported bars together: where each bar comes from."""

_LOCAL_ZONES: Final = re.compile(r"localtime$|posixrules$|Factory$|posix/|right/")
"""Files of the system's zone database that are no names of zones."""

_EVER: Final = datetime(1, 1, 1, tzinfo=UTC)
_FOR_EVER: Final = datetime(9999, 12, 31, tzinfo=UTC)
_DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Period:
    """From ``start`` up to ``end``, which is not included: session dates, instants, or None."""

    start: date | datetime | None = None
    end: date | datetime | None = None

    def bounds(self, timeframe: Timeframe) -> BarBounds:
        """Return the bounds of the bars of a timeframe, for which no calendar is needed.

        Dates are compared with the session dates of intraday bars; a daily bar belongs to its date,
        a weekly one to its Monday. Instants are compared with timestamps.
        """
        first, until, start, end = None, None, None, None
        if isinstance(self.start, datetime):
            start = _micros_from(self.start)
        elif self.start is not None:
            first = self.start
        if isinstance(self.end, datetime):
            end = _micros_from(self.end)
        elif self.end is not None:
            until = self.end
        if not timeframe.is_intraday:
            start = start if first is None else micros(midnight(first))
            end = end if until is None else micros(midnight(until))
            first = until = None
        return BarBounds(start, end, first, until)

    def interval(self, calendar: SessionCalendar, timeframe: Timeframe) -> Interval | None:
        """Return the interval of bar timestamps; None where it is empty. Open ends are far away."""

        def at(bound: date | datetime) -> datetime:
            if isinstance(bound, datetime):
                return bound.astimezone(UTC)
            return interval_between(calendar, timeframe, bound, bound + 14 * _DAY).start

        return between(
            _EVER if self.start is None else at(self.start),
            _FOR_EVER if self.end is None else at(self.end),
        )

    def whole_sessions(self, calendar: SessionCalendar) -> "Period":
        """Return a period of session dates that includes this one, with a margin at instants."""

        def day(bound: date | datetime, later: timedelta) -> date:
            if not isinstance(bound, datetime):
                return bound
            return calendar.day_of(bound) + later

        return Period(
            None if self.start is None else day(self.start, -_DAY),
            None if self.end is None else day(self.end, 2 * _DAY),
        )

    def __str__(self) -> str:
        start = "the beginning" if self.start is None else str(self.start)
        return f"from {start} to {'now' if self.end is None else self.end}"


def parse_period(start: When | None, end: When | None) -> Period:
    """Return the period between two bounds.

    Raises:
        UsageError: one is neither a date nor an instant with a zone, or they are reversed.
    """
    found = Period(_bound("start", start), _bound("end", end))
    if _is_reversed(found.start, found.end):
        raise UsageError(
            f"start={start} and end={end}",
            reason="they are reversed, or nothing lies between them",
            hint="The start is the first session date to read, the end the first one not to read",
        )
    return found


def parse_symbols(symbols: str | Iterable[str]) -> tuple[list[str], bool]:
    """Return the symbols, and whether several were asked for, even if these are one or none.

    Raises:
        UsageError: there is none, one is no text, or one is named twice.
    """
    if isinstance(symbols, str):
        return [symbols], False
    try:
        found = list(symbols)
    except TypeError:
        found = [symbols]  # type: ignore[list-item]
    if strange := [one for one in found if not isinstance(one, str)]:
        raise UsageError(
            f"symbols {strange[0]!r}",
            reason=f"a symbol is text, not {type(strange[0]).__name__}",
            hint="Give one symbol, such as 'AAPL', or a list of them",
        )
    if not found:
        raise UsageError(
            "symbols []", reason="no symbol", hint="`store.symbols()` has those with bars"
        )
    if twice := sorted({one for one in found if found.count(one) > 1}):
        raise UsageError(
            f"symbols {', '.join(twice)}", reason="named twice", hint="Name each symbol once"
        )
    return found, True


def parse_symbol(symbol: str) -> str:
    """Return a symbol.

    Raises:
        UsageError: it is no text.
    """
    if not isinstance(symbol, str):
        raise UsageError(
            f"symbol {symbol!r}",
            reason=f"a symbol is text, not {type(symbol).__name__}",
            hint="Give one symbol, such as 'AAPL'",
        )
    return symbol


def unknown_symbol(symbol: str, known: Collection[str]) -> UnknownSymbolError:
    """Return the error of a symbol that is neither in the universe nor on disk."""
    by_capitals = {key.upper(): key for key in sorted(known)}
    near = difflib.get_close_matches(symbol.upper(), by_capitals, n=3)
    meant = f"Did you mean {', '.join(by_capitals[one] for one in near)}? " if near else ""
    return UnknownSymbolError(
        f"symbol {symbol!r}",
        reason="neither in the universe nor on disk",
        hint=f"{meant}`store.symbols()` has the symbols with bars, "
        "`ktrdr universe add` adds others",
    )


def parse_timeframe(name: str) -> Timeframe:
    """Return the timeframe of a name.

    Raises:
        UsageError: there is none.
    """
    if name not in list(Timeframe):
        allowed = f"Allowed are {', '.join(Timeframe)}"
        raise UsageError(f"timeframe {name!r}", reason="no such timeframe", hint=allowed)
    return Timeframe(name)


def parse_columns(
    columns: str | Iterable[str] | None, *, allowed: Sequence[str], default: Sequence[str]
) -> tuple[str, ...]:
    """Return the columns of values that were asked for, in their order, without the keys.

    Raises:
        UsageError: one is unknown, or named twice.
    """
    if columns is None:
        return tuple(default)
    names = listed(columns)
    for name in names:
        if name in allowed:
            continue
        near = difflib.get_close_matches(str(name), allowed, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        if name == "basis":
            hint = "It is a column of raw bars: add raw=True. "
        raise UsageError(
            f"column {name!r}",
            reason="no such column",
            hint=f"{hint}Allowed are {', '.join(allowed)}",
        )
    if twice := sorted({one for one in names if names.count(one) > 1}):
        raise UsageError(f"column {twice[0]!r}", reason="named twice", hint="Name each column once")
    return tuple(one for one in names if one not in KEYS)


def bar_columns(*, raw: bool) -> tuple[str, ...]:
    """Return the columns that can be asked for, of raw bars or of bars on today's basis."""
    return (*COLUMNS, "basis") if raw else COLUMNS


def parse_engine(engine: str) -> EngineName:
    """Return the engine that makes the frame.

    Raises:
        UsageError: there is no such engine, or it is not installed.
    """
    for name in ENGINES:
        if engine == name:
            if name == "polars":
                _require_polars()
            return name
    raise UsageError(
        f"engine {engine!r}", reason="no such engine", hint=f"Allowed are {', '.join(ENGINES)}"
    )


def parse_zone(zone: str | tzinfo | None) -> str:
    """Return the name of a time zone; UTC for None.

    Raises:
        UsageError: there is no such zone.
    """
    if zone is None:
        return "UTC"
    name = str(getattr(zone, "key", zone))
    is_known = _LOCAL_ZONES.match(name) is None
    with suppress(ZoneInfoNotFoundError, ValueError, OSError, TypeError):
        if is_known and ZoneInfo(name):
            return name
    raise UsageError(
        f"tz {name!r}",
        reason="no such time zone",
        hint="Give an IANA name, such as America/New_York or Europe/London",
    )


def parse_count(option: str, count: int | None) -> int | None:
    """Return a number of bars.

    Raises:
        UsageError: it is not a whole number, or negative.
    """
    if count is None:
        return None
    is_number = hasattr(count, "__index__") and not isinstance(count, bool)
    if not is_number or count < 0:
        raise UsageError(
            f"{option}={count!r}",
            reason="not a number of bars",
            hint="Give a whole number, 0 or more",
        )
    return int(count)


def refuse_together(last: int | None, warmup: int | None, start: When | None) -> None:
    """Refuse options that contradict each other.

    Raises:
        UsageError: ``last`` with ``start`` or ``warmup``, or ``warmup`` without ``start``.
    """
    if last is not None and (start is not None or warmup is not None):
        other = "start" if start is not None else "warmup"
        raise UsageError(
            f"last={last} with {other}={start if start is not None else warmup}",
            reason="the newest bars up to the end have no other start",
            hint=f"Leave out {other}, or last",
        )
    if warmup is not None and start is None:
        raise UsageError(
            f"warmup={warmup} without start",
            reason="nothing lies before the first bar",
            hint="Give the start before which the bars are wanted, too",
        )


def stored_columns(columns: Sequence[str]) -> list[str]:
    """Return those of some columns that bar files have."""
    return [one for one in columns if one in STORED_SCHEMA.names]


def listed(names: str | Iterable[str]) -> list[str]:
    """Return names as a list; one name alone is a list of it, as is what is no name."""
    is_one = isinstance(names, str) or not isinstance(names, Iterable)
    return [names] if is_one else list(names)  # type: ignore[list-item]


def _require_polars() -> None:
    if find_spec("polars") is None:
        raise UsageError(
            "engine 'polars'",
            reason="polars is not installed",
            hint="Install it with `pip install 'ktrdr-pipelines[polars]'`, or use another engine",
        )


def _bound(option: str, value: object) -> date | datetime | None:
    if value is None:
        return None
    if isinstance(value, str):
        return parse_bound(option, value).value
    if isinstance(value, datetime):
        if value != value or value.tzinfo is None:  # noqa: PLR0124  (NaT is a datetime)
            raise UsageError(f"{option}={value}", reason="an instant without a zone", hint=ALLOWED)
        parse_bound(option, value.isoformat())  # the calendars know as little as those of texts
        return value
    if isinstance(value, date):
        return parse_bound(option, value.isoformat()).value
    raise UsageError(
        f"{option}={value!r}", reason=f"a {type(value).__name__}, not a date", hint=ALLOWED
    )


def _is_reversed(start: date | datetime | None, end: date | datetime | None) -> bool:
    if start is None or end is None:
        return False
    if isinstance(start, datetime) == isinstance(end, datetime):
        return start >= end
    # A session date may begin a day before or after midnight UTC.
    earliest = start if isinstance(start, datetime) else midnight(start) - _DAY
    latest = end if isinstance(end, datetime) else midnight(end) + _DAY
    return earliest >= latest


def _micros_from(bound: datetime) -> int:
    """Return the first microsecond that is not before an instant; pandas has nanoseconds too."""
    return micros(bound) + (1 if getattr(bound, "nanosecond", 0) else 0)
