"""Longer bars made of shorter ones, within sessions, and timeframes joined without looking ahead.

Nothing is interpolated: a group without bars has none, and each value of a longer bar is made of
bars that exist.

Not here: reading the bars (``app.reading.bar_reader``).
"""

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.domain.bars import BAR_SCHEMA, micros, timestamps
from ktrdr_pipelines.domain.calendars.closing_times import closing_times
from ktrdr_pipelines.domain.calendars.session_grid import session_grid
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import UsageError

COMPLETE: Final = "complete"
"""The column that says whether a longer bar is made of all bars that there are."""

_INSTANT: Final = BAR_SCHEMA.field("ts").type
_DAY_US: Final = 86_400_000_000
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3_600, 86_400
_UNITS: Final = {"m": _MINUTE_S, "h": _HOUR_S, "d": _DAY_S, "w": 7 * _DAY_S}


@dataclass(frozen=True, slots=True)
class Target:
    """The length of longer bars: minutes or hours within a session, a day or a week."""

    name: str
    seconds: int

    @property
    def is_intraday(self) -> bool:
        """Whether there are several in a session."""
        return self.seconds < _DAY_S

    @property
    def is_week(self) -> bool:
        """Whether it is a week."""
        return self.seconds > _DAY_S


def parse_target(name: str, source: Timeframe) -> Target:
    """Return the length of the bars that are made of bars of a timeframe.

    Raises:
        UsageError: it is no length, or not a multiple of the source.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,3})(m|h|d|w)", str(name))
    target = Target(str(name), int(found[1]) * _UNITS[found[2]]) if found else None
    if target is None or (target.seconds > _DAY_S and name != "1w"):
        raise UsageError(
            f"resampling to {name!r}",
            reason="no such length",
            hint="Allowed are minutes and hours up to a day, such as 10m or 2h, and 1d and 1w",
        )
    if target.seconds == _DAY_S:
        target = Target("1d", _DAY_S)
    if target.seconds < source.seconds or target.seconds % source.seconds:
        raise UsageError(
            f"resampling {source} to {name}",
            reason=f"{name} is not a multiple of {source}",
            hint="Name a shorter timeframe in from_, such as 1m",
        )
    return target


def resampled(
    bars: pa.Table,
    source: Timeframe,
    target: Target,
    *,
    calendar: SessionCalendar,
    known: IntervalSet,
) -> pa.Table:
    """Return longer bars, each made of the bars of one session (1w: of one week).

    Within a session the groups begin at its open, and again after each break; the last one ends at
    the close. ``ts`` is the start of the group: of a day midnight UTC of the session date, of a
    week that of its Monday. ``volume`` and ``bar_count`` are null where that of a bar is;
    ``average`` is weighted by volume, null where that is unknown or nothing was traded.

    Args:
        bars: in the columns of ``BAR_SCHEMA`` and ``closes_at``, sorted by timestamp.
        source: their timeframe.
        target: the length of the longer ones.
        calendar: the sessions.
        known: the intervals of bar timestamps of which all bars are there.

    Returns: a table in the columns of ``BAR_SCHEMA``, with ``closes_at``, when the group is over,
        and ``COMPLETE``.

    Raises:
        UsageError: bars do not fit into the groups: they begin at full hours, and the session does
            not.
    """
    keys, days = timestamps(bars), _dates(bars)
    if not len(keys):
        return _schema().empty_table()
    if target.is_intraday:
        starts, ends = _session_groups(keys, days, calendar, target.seconds * 1_000_000)
        closes = ends
        _require_fit(bars, ends, (source, target))
    else:
        starts, ends, closes = _date_groups(days, calendar, target)
    first = np.flatnonzero(np.concatenate(([True], starts[1:] != starts[:-1])))
    last = np.append(first[1:], len(keys)) - 1
    session_days = days[first] if not target.is_week else _as_dates(starts[first])
    columns: dict[str, pa.Array] = {
        "ts": pa.array(starts[first], pa.int64()).cast(_INSTANT),
        "session_date": pa.array(session_days, pa.date32()),
        "open": _floats(bars, "open")[first],
        "high": np.fmax.reduceat(_floats(bars, "high"), first),
        "low": np.fmin.reduceat(_floats(bars, "low"), first),
        "close": _floats(bars, "close")[last],
    }
    volume, average, count = (_floats(bars, name) for name in ("volume", "average", "bar_count"))
    total = np.add.reduceat(volume, first)
    traded = np.where(volume == 0, 0.0, volume * average)  # without volume an average adds nothing
    weighted = np.add.reduceat(traded, first)
    mean = np.full(len(first), np.nan)
    np.divide(weighted, total, out=mean, where=total > 0)
    columns |= {"volume": total, "average": mean, "bar_count": np.add.reduceat(count, first)}
    arrays = [
        columns[field.name]
        if isinstance(columns[field.name], pa.Array)
        else pa.array(columns[field.name], pa.float64(), from_pandas=True).cast(field.type)
        for field in BAR_SCHEMA
    ]
    arrays.append(pa.array(closes[first], pa.int64()).cast(_INSTANT))
    whole = _are_known((source, target), calendar, (starts[first], ends[first]), known)
    return pa.Table.from_arrays([*arrays, pa.array(whole)], schema=_schema())


def joined_as_of(
    base: pa.Table, other: pa.Table, suffix: str
) -> list[tuple[pa.Field, pa.ChunkedArray]]:
    """Return columns with, for each base bar, the newest other bar that is complete at its close.

    Args:
        base: with ``closes_at``.
        other: with ``closes_at``, sorted by timestamp; all its columns are returned.
        suffix: follows an underscore in their names.

    Returns: the columns in the order of ``other``; null where no bar is complete yet.
    """
    closes = np.maximum.accumulate(_micros(other, "closes_at")) if other.num_rows else np.empty(0)
    newest = np.searchsorted(closes, _micros(base, "closes_at"), side="right") - 1
    rows = pa.array(newest, pa.int64(), mask=newest < 0)
    return [
        (pa.field(f"{field.name}_{suffix}", field.type), other[field.name].take(rows))
        for field in other.schema
    ]


def _schema() -> pa.Schema:
    fields = [pa.field("closes_at", _INSTANT), pa.field(COMPLETE, pa.bool_(), nullable=False)]
    return pa.schema([*BAR_SCHEMA, *fields])


def _session_groups(
    keys: np.ndarray, days: np.ndarray, calendar: SessionCalendar, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return start and end of the group of each bar, microseconds since 1970 UTC.

    Bars after a close or in a break have groups of their own, which begin there; those before the
    open of their session have groups that end there.
    """
    starts, ends = calendar.opens, calendar.closes
    if len(calendar.breaks):
        starts = np.sort(np.append(starts, calendar.breaks[:, 1]))
        ends = np.sort(np.append(ends, calendar.breaks[:, 0]))
    known = calendar.days.astype("datetime64[D]")
    # The parts of a session are those between its open and its close.
    session = np.minimum(np.searchsorted(known, days), max(len(known) - 1, 0))
    has_session = known[session] == days if len(known) else np.zeros(len(days), dtype=bool)
    opens = np.where(has_session, calendar.opens[session] if len(known) else 0, 0)
    lone = ~has_session
    if lone.any():
        # No session is known of the date: its groups begin where the session day does.
        each, inverse = np.unique(days[lone], return_inverse=True)
        openings = [micros(calendar.day_starts_at(day)) for day in each.astype(object)]
        opens[lone] = np.array(openings, np.int64)[inverse]
    never = np.iinfo(np.int64).max
    begins, until = opens, np.full(len(keys), never)
    if len(starts):
        # Each bar's part, and where the next one begins.
        at = np.maximum(np.searchsorted(starts, keys, side="right") - 1, 0)
        is_in = has_session & (starts[at] <= keys) & (starts[at] >= opens)
        is_after = is_in & (keys >= ends[at])
        begins = np.where(is_after, ends[at], np.where(is_in, starts[at], opens))
        following = np.append(starts[1:], never)[at]
        until = np.where(is_after, following, np.where(is_in, ends[at], until))
    until = np.where(keys < begins, begins, until)
    group = begins + (keys - begins) // length * length
    return group, np.minimum(group + length, until)


def _date_groups(
    days: np.ndarray, calendar: SessionCalendar, target: Target
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return start and end by bar timestamp, and the close, of the day or week of each bar."""
    dates = days - (days.astype(np.int64) + 3) % 7 if target.is_week else days
    starts = dates.astype("datetime64[us]").astype(np.int64)
    kind = Timeframe.W1 if target.is_week else Timeframe.D1
    closes = closing_times(kind, starts, dates, calendar=calendar)
    return starts, starts + target.seconds * 1_000_000, closes


def _require_fit(bars: pa.Table, ends: np.ndarray, made: tuple[Timeframe, Target]) -> None:
    """Refuse bars that begin in one group and end in the next."""
    over = int(np.count_nonzero(_micros(bars, "closes_at") > ends))
    if over:
        source, target = made
        raise UsageError(
            f"resampling {source} to {target.name}",
            reason=f"{over} bars do not fit into groups that begin at the open of the session",
            hint="Bars begin at full hours or their parts, whatever the open is: name a shorter "
            "timeframe in from_, such as 1m",
        )


def _are_known(
    made: tuple[Timeframe, Target],
    calendar: SessionCalendar,
    groups: tuple[np.ndarray, np.ndarray],
    known: IntervalSet,
) -> np.ndarray:
    """Return for each group whether all its source bars are known.

    Of days and weeks, whether all their sessions are: each is due and known from open to close.
    """
    source, target = made
    starts, ends = groups
    if target.is_intraday:
        return np.asarray(known.covers_each(starts, ends))
    spans = session_grid(calendar, source)
    whole = known.covers_each(spans.starts, spans.ends)
    first = np.searchsorted(spans.days, _as_dates(starts))
    last = np.searchsorted(spans.days, _as_dates(ends))
    lacking = np.concatenate(([0], np.cumsum(~whole)))
    return np.asarray((lacking[last] == lacking[first]) & (last > first))


def _as_dates(keys: np.ndarray) -> np.ndarray:
    return keys.astype("datetime64[us]").astype("datetime64[D]")


def _dates(bars: pa.Table) -> np.ndarray:
    return np.asarray(bars["session_date"].to_numpy().astype("datetime64[D]"))


def _micros(bars: pa.Table, name: str) -> np.ndarray:
    return np.asarray(bars[name].cast(pa.int64()).to_numpy())


def _floats(bars: pa.Table, name: str) -> np.ndarray:
    """Return a column as float64, NaN where it is null."""
    return np.asarray(bars[name].to_numpy(), dtype=np.float64)
