"""The meaning of durations and bar sizes, and which bar sizes fit a duration.

A duration is counted back from the end of a request: ``N D`` in sessions, W, M and Y in calendar
time cut to whole sessions, S in seconds of trading. Source: ``8 D`` ending on a Sunday gave 8
trading days (https://github.com/ib-api-reloaded/ib_async/issues/140), ``1 D`` on a holiday the
session before, ``86400 S`` of hourly bars in regular hours 3.69 sessions
(https://github.com/wboayue/rust-ibapi/issues/835): all grade L. Undocumented, and this simulator's
own choice (grade P): W, M and Y take the sessions later than the same weekday or day of the month,
counted back from the last session. Gateways differ in whether an end before a session's first trade
takes the session before (``variants.BeforeFirstTrade``).

Bars start on the grid of the local clock: hours on the local hour, four hours on local midnight;
the first bar of a session starts at its open wherever the grid lies (a US stock: 09:30, then
10:00).

Which bar sizes fit a duration is stated by a selectable table. Source: both tables of IB
(``IbLimitsRegistry``, grade O); the texts and ``invalid step: 1`` for a day of seconds are live
(grade L). The wide table contradicts itself: ``5 D`` of ``1 day`` works (grade L), so only the
smallest bar size of its rows is enforced.
"""

import calendar
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

import numpy as np

from ktrdr_pipelines.limits import DurationRange, IbLimitsRegistry
from ktrdr_pipelines.simulator.market.hours import DAY_S, ZONE, Hours

_PATTERN = re.compile(r"([0-9]{1,6})(?: ([SDWMY]))?")
_EPOCH = date(1970, 1, 1)


class Unit(StrEnum):
    """The units of a duration."""

    SECONDS = "S"
    DAYS = "D"
    WEEKS = "W"
    MONTHS = "M"
    YEARS = "Y"


_BAD_FORM = (
    "When specifying a unit, historical data request duration format is "
    "integer{SPACE}unit (S|D|W|M|Y)."
)
_BAD_COUNT = "Historical data requested duration is invalid."
MOST = {
    Unit.SECONDS: (86_400, "request for greater than 86400 seconds rejected."),
    Unit.DAYS: (365, "requests for durations longer than 365 days must be made in years."),
    Unit.WEEKS: (52, "request for durations longer than 52 weeks must be made in years."),
    Unit.MONTHS: (12, "request for durations longer than 12 months must be made in years."),
    Unit.YEARS: (68, "request for durations longer than 68 years rejected."),
}
"""The longest duration of each unit, and the end of the refusal's text.

Source: the current table of durations on IBKR Campus (grade O); that more than 86400 S and 365 D
are refused in this way is an author's report about a live gateway (grade C,
https://github.com/wboayue/rust-ibapi/pull/837); the texts are those of clones of the gateway
(grade R), the text for years is this simulator's (grade P).
"""


class DurationError(ValueError):
    """A duration that the gateway refuses; the text is the cause that it states."""


@dataclass(frozen=True, slots=True)
class Duration:
    """A count of units."""

    count: int
    unit: Unit


@dataclass(frozen=True, slots=True)
class Window:
    """The interval ``[start_s, end_s)`` of the bars of a response, in seconds since 1970."""

    start_s: int
    end_s: int


def parse_duration(text: str) -> Duration:
    """Return the duration of a text ``N S|D|W|M|Y``; a plain number is seconds.

    Raises:
        DurationError: the text has another form, or the count is zero or above that of ``MOST``.
    """
    found = _PATTERN.fullmatch(text)
    if found is None:
        raise DurationError(_BAD_FORM)
    duration = Duration(int(found[1]), Unit(found[2] or "S"))
    if duration.count == 0:
        raise DurationError(_BAD_COUNT)
    most, rule = MOST[duration.unit]
    if duration.count > most:
        raise DurationError(f"Historical data {rule}")
    return duration


def window_of(duration: Duration, end_s: int, hours: Hours) -> Window:
    """Return the interval that a duration covers back from its end.

    Units other than S start at the close before their first session, so that recorded bars outside
    known sessions belong to the request that covers their neighbours.
    """
    last = hours.last_opened_before(end_s)
    if last < 0:
        return Window(end_s, end_s)
    if duration.unit is Unit.SECONDS:
        return Window(_trading_back(duration.count, last, end_s, hours), end_s)
    if duration.unit is Unit.DAYS:
        first = max(0, last - duration.count + 1)
    else:
        bound = _back(_EPOCH + timedelta(days=int(hours.labels[last])), duration)
        first = int(np.searchsorted(hours.labels, (bound - _EPOCH).days, side="right"))
    return Window(hours.reaches_back_from(first), end_s)


def _trading_back(seconds: int, last: int, end_s: int, hours: Hours) -> int:
    """Return the moment that is a number of seconds of trading before an end."""
    moment_s, left_s = min(end_s, int(hours.closes[last])), seconds
    while last > 0 and moment_s - hours.opens[last] < left_s:
        left_s -= moment_s - int(hours.opens[last])
        last -= 1
        moment_s = int(hours.closes[last])
    return moment_s - left_s


def _back(day: date, duration: Duration) -> date:
    """Return the date that is a number of days, weeks, months or years earlier."""
    if duration.unit in {Unit.DAYS, Unit.WEEKS}:
        days = duration.count * (7 if duration.unit is Unit.WEEKS else 1)
        return day - timedelta(days=days)
    months = duration.count * (12 if duration.unit is Unit.YEARS else 1)
    year, month = divmod(day.year * 12 + day.month - 1 - months, 12)
    last_day = calendar.monthrange(year, month + 1)[1]
    return date(year, month + 1, min(day.day, last_day))


def stated_start(duration: Duration, end_s: int, zone: str = ZONE) -> int:
    """Return the start that message 17 states: the end minus the duration in calendar time.

    It ignores sessions: bars may start before it. Days are those of the login's zone.
    Source: eight days stated for eight sessions,
    https://github.com/ib-api-reloaded/ib_async/issues/140 (grade L).
    """
    if duration.unit is Unit.SECONDS:
        return end_s - duration.count
    local = datetime.fromtimestamp(end_s, ZoneInfo(zone))
    start = datetime.combine(_back(local.date(), duration), local.time(), local.tzinfo)
    return int(start.timestamp())


WEEK_S = 7 * DAY_S
MONTH_S = 30 * DAY_S

_TABLE = """
1s  1     1 secs
5s  5     5 secs
10s 10    10 secs
15s 15    15 secs
30s 30    30 secs
1m  60    1 min
2m  120   2 mins
3m  180   3 mins
5m  300   5 mins
10m 600   10 mins
15m 900   15 mins
20m 1200  20 mins
30m 1800  30 mins
1h  3600  1 hour
2h  7200  2 hours
3h  10800 3 hours
4h  14400 4 hours
8h  28800 8 hours
"""


@dataclass(frozen=True, slots=True, order=True)
class BarSize:
    """One bar size.

    Attributes:
        seconds: its length; that of a month is nominal.
        key: its name in the file names of recordings.
        text: its name in requests.
    """

    seconds: int
    key: str
    text: str

    @property
    def is_dated(self) -> bool:
        """Whether its bars have a date instead of a time: days, weeks and months."""
        return self.seconds >= DAY_S

    def is_made_of(self, shorter: "BarSize") -> bool:
        """Return whether each of its bars consists of whole shorter bars."""
        if self.is_dated:
            return shorter.seconds < self.seconds and shorter.seconds <= DAY_S
        return shorter.seconds < self.seconds and self.seconds % shorter.seconds == 0


DAY = BarSize(DAY_S, "1d", "1 day")
WEEK = BarSize(WEEK_S, "1w", "1 week")
MONTH = BarSize(MONTH_S, "1mo", "1 month")

_TIMED_SIZES = [
    BarSize(int(seconds), key, text)
    for key, seconds, text in (line.split(maxsplit=2) for line in _TABLE.strip().splitlines())
]
SIZES = (*_TIMED_SIZES, DAY, WEEK, MONTH)
"""The supported bar sizes, from the shortest to the longest."""

SIZE_BY_KEY = {size.key: size for size in SIZES}
SIZE_BY_TEXT = {size.text: size for size in SIZES} | {"1W": WEEK, "1M": MONTH}
"""The sizes by their names in requests, including a gateway's own names of weeks and months."""

LEGAL_SIZES = ", ".join({WEEK: "1W", MONTH: "1M"}.get(size, size.text) for size in SIZES)
"""The list of sizes in the refusal of an unknown one (grade L)."""

MINUTE = SIZE_BY_KEY["1m"]


TOO_LONG = "Time length exceed max."


class DurationTable(StrEnum):
    """How strict a gateway is about durations and bar sizes.

    ``safe`` is IB's older table of a few thousand bars, ``wide`` its current one; ``any`` enforces
    only the longest duration of each unit.
    """

    SAFE = "safe"
    WIDE = "wide"
    ANY = "any"


def step_refusal(table: DurationTable, duration: Duration, size: BarSize) -> str | None:
    """Return IB's text for a bar size that does not fit a duration; None if it fits."""
    return _REFUSALS[table](duration, size)


def _safe(duration: Duration, size: BarSize) -> str | None:
    rows = _rows(IbLimitsRegistry.SAFE_STEPS.value, duration)
    if not rows:
        return TOO_LONG
    fits = any(row.smallest_bar_s <= size.seconds <= row.largest_bar_s for row in rows)
    return None if fits else _invalid(size)


def _wide(duration: Duration, size: BarSize) -> str | None:
    rows = _rows(IbLimitsRegistry.WIDE_STEPS.value, duration)
    if not rows:
        return TOO_LONG
    return None if any(row.smallest_bar_s <= size.seconds for row in rows) else _invalid(size)


def _rows(table: tuple[DurationRange, ...], duration: Duration) -> list[DurationRange]:
    return [row for row in table if row.unit == duration.unit and duration.count <= row.most]


def _invalid(size: BarSize) -> str:
    return f"invalid step: {size.seconds}"


_REFUSALS: dict[DurationTable, Callable[[Duration, BarSize], str | None]] = {
    DurationTable.SAFE: _safe,
    DurationTable.WIDE: _wide,
    DurationTable.ANY: lambda _, __: None,
}
