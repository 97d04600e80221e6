"""A chart of the bars of a series as values: bars, missing ranges and ticks along one axis.

Bars stand at equal distances, so that closed time (nights, weekends, holidays) takes no room. What
is missing between them does: a missing range is as wide as its bars would be, within limits that
keep one bar visible and leave room for those held. Which ranges are missing, and why, is what
``is_ready`` of ``app.reading`` says, from the gap index.

Not here: how it is drawn (``app.charts.bar_figure``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pandas as pd

from ktrdr_pipelines.app.reading.bar_tables import bar_tables
from ktrdr_pipelines.app.reading.read_options import Period, parse_period, parse_timeframe
from ktrdr_pipelines.app.reading.readiness import NOT_CLOSED, MissingRange, readiness_of
from ktrdr_pipelines.app.reading.store_parts import StoreParts
from ktrdr_pipelines.domain.bars import micros, moment
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import IncompleteError, UsageError
from ktrdr_pipelines.store.bars.column_reader import BarSelection

if TYPE_CHECKING:
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.domain.planning.date_bounds import DateRange

DEFAULT_BARS: Final = 200
"""How many of the newest bars are shown where no start is given."""

_COLUMNS: Final = ("ts", "session_date", "open", "high", "low", "close", "volume")
_MINUTE_US: Final = 60_000_000

_LEAST_SHARE, _MOST_SHARE = 0.005, 0.12
"""Least and greatest width of one missing range, as a share of the width of all bars."""

_NOTICED: Final = 0.5
"""Difference, in widths of a bar, from which a range counts as not to scale."""

_MOST_TICKS: Final = 12
_MINUTES: Final = (1, 5, 15, 30, 60, 120, 240, 360, 720)
_MONTHS: Final = (1, 3, 12, 24, 60, 120)


@dataclass(frozen=True, slots=True)
class Shade:
    """A missing range, and where it lies on the axis; ``first`` to ``end``, in widths of a bar.

    ``lacking`` is the number of bars that are expected in it and not shown.
    """

    missing: MissingRange
    first: float
    end: float
    lacking: int


class Tick(NamedTuple):
    """A label below the axis: its position, its text, and a second line where that changes."""

    at: float
    text: str
    context: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class BarChart:
    """Bars of a series, oldest first, and what is missing between and around them.

    Attributes:
        symbol, timeframe: the series.
        zone: IANA name of the exchange's time zone.
        currency: of the prices; empty for a symbol that has left the universe.
        is_raw: whether bars are as stored; else they are on today's price basis.
        times: bar timestamps, int64 microseconds since 1970 UTC.
        days: session dates, ``datetime64[D]``; of days and weeks the dates of the timestamps.
        open, high, low, close: prices, float64.
        volume: shares or contracts, float64; NaN where there is none.
        at: the position of each bar, that of its middle.
        width: the position of the end of the axis, which begins at 0.
        shades: the missing ranges, oldest first; None where the symbol is not in the universe, so
            that it is not known what is missing.
    """

    symbol: str
    timeframe: Timeframe
    zone: str
    currency: str
    is_raw: bool
    times: np.ndarray
    days: np.ndarray
    open: np.ndarray
    high: np.ndarray
    low: np.ndarray
    close: np.ndarray
    volume: np.ndarray
    at: np.ndarray
    width: float
    shades: tuple[Shade, ...] | None

    def __len__(self) -> int:
        return len(self.times)

    @property
    def first(self) -> datetime:
        """The timestamp of the oldest bar."""
        return moment(self.times[0])

    @property
    def last(self) -> datetime:
        """The timestamp of the newest bar."""
        return moment(self.times[-1])

    @property
    def has_volume(self) -> bool:
        """Whether any bar has a volume."""
        return bool(np.nansum(self.volume) > 0)

    @property
    def is_to_scale(self) -> bool:
        """Whether each missing range is as wide as the bars that it lacks would be."""
        return all(
            abs(one.end - one.first - one.missing.bars) < _NOTICED for one in self.shades or ()
        )

    def local_times(self) -> np.ndarray:
        """Return the timestamps by the exchange's clock, ``datetime64[us]``; of days, as dates."""
        if not self.timeframe.is_intraday:
            return self.times.astype("datetime64[us]")
        utc = pd.DatetimeIndex(self.times.astype("datetime64[us]")).tz_localize("UTC")
        local = utc.tz_convert(self.zone).tz_localize(None)
        return np.asarray(local.to_numpy().astype("datetime64[us]"))

    def ticks(self) -> list[Tick]:
        """Return the ticks: where an hour, a session, a week, a month or a year begins.

        It is the shortest of these of which the axis can hold all beginnings.
        """
        wall = self.local_times()
        firsts, text_of, context_of = _divisions(wall, self.days, self.timeframe)
        least = self.width / _MOST_TICKS / 1.6
        # Of two that would overlap the beginning of a session stays, or the one before; but the
        # first bar is where the axis begins, and seldom a week, a month or a year.
        is_session = _is_first(self.days) & self.timeframe.is_intraday
        kept: list[int] = []
        for one in firsts.tolist():
            if kept and self.at[one] - self.at[kept[-1]] < least:
                is_weaker = not is_session[kept[-1]] and (is_session[one] or kept == [0])
                if not is_weaker:
                    continue
                kept.pop()
            kept.append(one)
        ticks, before = [], ""
        for one in kept:
            day = self.days[one].item()
            context = context_of(day)
            shown = context if context != before else ""
            ticks.append(Tick(float(self.at[one]), text_of(day, wall[one].item()), shown))
            before = context
        return ticks


def bar_chart(
    workspace: "Workspace",
    symbol: str,
    timeframe: str,
    date_range: "DateRange",
    *,
    raw: bool = False,
) -> BarChart:
    """Read the bars of a series, and what is missing of them.

    Args:
        workspace: the store; no gateway is needed.
        symbol: of the universe, or with bars on disk.
        timeframe: 1m, 5m, 15m, 30m, 1h, 4h, 1d or 1w.
        date_range: which bars; without a start, the newest ``DEFAULT_BARS`` before the end.
        raw: bars as stored instead of on today's price basis.

    Raises:
        UsageError: a name or a date is wrong, or no bar can lie in the range.
        IncompleteError: the store has no bars in the range, in which some are missing.
        StoreError: a file or the ledger cannot be read.
    """
    parts = StoreParts(workspace.layout, workspace.clock.real_now)
    kind = parse_timeframe(timeframe)
    universe = parts.workspace.universe
    is_known = symbol in universe.instruments
    if not is_known and symbol not in parts.symbols_on_disk():
        universe.instrument(symbol)  # its error names similar symbols
    period = _period(parts, symbol, kind, date_range)
    wanted = BarSelection(
        _COLUMNS,
        period.bounds(kind),
        last=DEFAULT_BARS if date_range.start is None else None,
        raw=raw,
    )
    (table,) = bar_tables(parts, [symbol], kind, wanted)
    times = table["ts"].to_numpy().astype("datetime64[us]").astype(np.int64)
    if date_range.start is None and len(times):
        period = Period(moment(times[0]), period.end)
    missing: list[MissingRange] = []
    if is_known:
        (found,) = readiness_of(parts, [symbol], kind, [period], now=parts.now, raw=raw)
        missing = [one for one in found.missing if one.reason != NOT_CLOSED]
        # Bars that are saved meanwhile are shown beside a range that lacked them, never left out.
        again = replace(wanted, bounds=period.bounds(kind), last=None)
        (table,) = bar_tables(parts, [symbol], kind, again)
        times = table["ts"].to_numpy().astype("datetime64[us]").astype(np.int64)
    if not len(times):
        raise _no_bars(parts, f"{symbol} {kind}", date_range, missing)
    days = table["session_date"].to_numpy() if kind.is_intraday else times.astype("datetime64[us]")
    at, shades, width = axis_positions(times, missing)
    prices = {name: table[name].to_numpy() for name in _COLUMNS[2:]}
    calendar = parts.calendars([symbol])[0]
    return BarChart(
        symbol,
        kind,
        "UTC" if calendar is None else calendar.zone,
        parts.instrument(symbol).currency if is_known else "",
        raw,
        times=times,
        days=np.asarray(days.astype("datetime64[D]")),
        **prices,
        at=at,
        width=width,
        shades=tuple(shades) if is_known else None,
    )


def axis_positions(
    times: np.ndarray, missing: Sequence[MissingRange]
) -> tuple[np.ndarray, list[Shade], float]:
    """Return the position of each bar, where missing ranges lie, and the width of the axis.

    A range in which bars are held, as of a sparse session, begins at the first of them, and has
    room for those that it lacks after the last.

    Args:
        times: timestamps of bars, ascending, int64 microseconds since 1970 UTC.
        missing: ranges, oldest first.
    """
    count = len(times)
    bounds = np.array([(micros(one.start), micros(one.end)) for one in missing], np.int64)
    bounds = bounds.reshape(-1, 2)
    low, high = np.searchsorted(times, bounds[:, 0]), np.searchsorted(times, bounds[:, 1])
    lacking = np.array([one.bars for one in missing], np.float64) - (high - low)
    least = min(max(1.0, _LEAST_SHARE * count), count / max(1, len(missing)))
    most = max(least, 3.0, _MOST_SHARE * count)
    rooms = np.where((low < high) & (lacking <= 0), 0.0, np.clip(lacking, least, most))
    wide = rooms.sum() - least * len(missing)
    if rooms.sum() > count and wide > 0:  # many wide ranges: they share as much as the bars have
        left = max(0.0, count - least * len(missing))
        rooms = np.where(rooms > least, least + (rooms - least) * min(1.0, left / wide), rooms)
    # A range moves the bars from its end on, by its room.
    moved = np.zeros(count + 1)
    np.add.at(moved, high, rooms)
    at = np.arange(count) + 0.5 + np.cumsum(moved[:count])
    before = np.cumsum(rooms) - rooms
    shades = [
        Shade(
            one,
            float(low[number] + before[number]),
            float(high[number] + before[number] + room),
            max(0, int(lacking[number])),
        )
        for number, (one, room) in enumerate(zip(missing, rooms.tolist(), strict=True))
    ]
    return at, shades, float(count + rooms.sum())


def _period(
    parts: StoreParts, symbol: str, timeframe: Timeframe, date_range: "DateRange"
) -> Period:
    """Return the period by bar timestamp; by session date where there is no calendar."""
    from ktrdr_pipelines.domain.instruments import Series

    known = parts.workspace.universe.instruments.get(symbol)
    if known is not None:
        bounds = date_range.bounds(Series(known, timeframe), parts.now)
        return Period(bounds.start, bounds.end)
    values = (None if one is None else one.value for one in (date_range.start, date_range.end))
    return parse_period(*values)


def _no_bars(
    parts: StoreParts, series: str, date_range: "DateRange", missing: Sequence[MissingRange]
) -> UsageError | IncompleteError:
    """Return the error of a range without bars: of the store if it lacks some, else of the user."""
    asked = [str(one) for one in (date_range.start, date_range.end) if one is not None]
    what = " ".join([f"cannot plot {series}", *(["with", " and ".join(asked)] if asked else [])])
    symbol, timeframe = series.split(" ")
    bounds = BarSelection(("ts",), last=1)
    (newest,) = bar_tables(parts, [symbol], parse_timeframe(timeframe), bounds)
    held = "; the newest one is of " + f"{newest['ts'][0].as_py():%Y-%m-%d}" if len(newest) else ""
    load = f"`ktrdr load {symbol} {timeframe}` requests bars, `ktrdr gaps {symbol}` says what fails"
    if missing or not len(newest):
        reason = f"the store has no bars of it{' there' if held else ''}{held}"
        return IncompleteError(what, reason=reason, hint=load)
    return UsageError(
        what,
        reason=f"no bar lies there{held}",
        hint="--start is the first session date to include, --end the first one not to include",
    )


def _divisions(
    wall: np.ndarray, days: np.ndarray, timeframe: Timeframe
) -> tuple[np.ndarray, Callable[[date, datetime], str], Callable[[date], str]]:
    """Return the first bar of each division of the axis, and what their labels read.

    The labels are functions of a session date and a local time, and of a session date.
    """
    day = days.astype(np.int64)
    if timeframe.is_intraday:
        minute = wall.astype(np.int64) // _MINUTE_US
        for length in _MINUTES:
            firsts = _firsts(minute // length * 100_000 + day)
            if length * 60 >= timeframe.seconds and len(firsts) <= _MOST_TICKS:
                return firsts, lambda _, at: f"{at:%H:%M}", lambda one: f"{one:%a} {_day_text(one)}"
    month = days.astype("datetime64[M]").astype(np.int64)
    for key in (day, (day + 3) // 7):
        firsts = _firsts(key)
        if len(firsts) <= _MOST_TICKS:
            return firsts, lambda one, _: f"{one.day} {one:%b}", lambda one: f"{one:%Y}"
    for months in _MONTHS:
        firsts = _firsts(month // months)
        if len(firsts) <= _MOST_TICKS or months == _MONTHS[-1]:
            break
    if months < 12:
        return firsts, lambda one, _: f"{one:%b}", lambda one: f"{one:%Y}"
    return firsts, lambda one, _: f"{one:%Y}", lambda _: ""


def _firsts(keys: np.ndarray) -> np.ndarray:
    """Return the indexes at which a key differs from the one before; 0 is one of them."""
    return np.flatnonzero(_is_first(keys))


def _is_first(keys: np.ndarray) -> np.ndarray:
    return np.append(True, keys[1:] != keys[:-1])


def _day_text(day: date) -> str:
    return f"{day.day} {day:%b %Y}"


def segments(chart: BarChart, per_column: int) -> list[tuple[int, int]]:
    """Return the bars of each column, as first and end index: so many, none across a missing range.

    Args:
        chart: the bars.
        per_column: the most bars in a column.
    """
    cuts = np.flatnonzero(np.diff(chart.at) > 1.0 + 1e-9) + 1
    bounds = [0, *cuts.tolist(), len(chart)]
    return [
        (low, min(low + per_column, end))
        for start, end in pairwise(bounds)
        for low in range(start, end, per_column)
    ]
