"""Historical responses of the gateway as values: bars, the stated range, head timestamps.

Not here: sending requests (``ib.source``), which texts are numbers (``ib.protocol.bar_rows``),
which bars are kept (``domain.planning.evaluation``).
"""

import re
from bisect import bisect_left
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.domain.bars import BAR_SCHEMA, micros, moment
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.domain.plausibility import implausible_rows
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.ib.protocol.bar_rows import (
    PER_ROW,
    PRICES,
    Message,
    fields_of,
    read_rows,
    texts_of,
)
from ktrdr_pipelines.ib.protocol.times import in_utc, written_moment, zone_named
from ktrdr_pipelines.limits import IbLimitsRegistry

_HEADER = 5
_MONDAY = 3  # 1970-01-01 was a Thursday
_OLDEST_EPOCH_S = 100_000_000  # 1973; smaller numbers are dates such as 20260105, not epochs
_NEWEST_EPOCH_S = 4_102_444_800  # 2100; larger numbers are milliseconds, or nonsense
_DAY_S = 86_400
_MOST_COUNT = 2**31 - 1
_MOST_OUT_OF_ORDER = 0.25
"""Share of misplaced rows above which a gateway is assumed not to order its rows at all."""

_EVER = Interval(datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC))
_SLACK = timedelta(days=30)
_UNITS = {
    "S": {"seconds": 1},
    "D": {"days": 1},
    "W": {"days": 7},
    "M": {"days": 31},
    "Y": {"days": 366},
}
_SHORT_A_DAY = 3  # the bars at the start of a session and after its breaks
_NOT_AVAILABLE = IbLimitsRegistry.NO_MARKET_DATA_VALUE.value
_UNSET = IbLimitsRegistry.UNSET_VALUES.value
_LEAST_UNSET = min(_UNSET)
_COUNT = re.compile(r"[0-9]{1,9}")
_EPOCH = re.compile(r"-?[0-9]{1,18}")
_NO_HEAD = frozenset({"", "0", str(_NOT_AVAILABLE)})


@dataclass(frozen=True, slots=True)
class History:
    """Message 17: the range that it states, and the texts of its bars, one after another.

    As bytes, each text ends with a NUL.
    """

    start: str
    end: str
    count: int
    texts: list[str] | bytes


def history_of(message: Message) -> History:
    """Read message 17.

    Raises:
        ValueError: it does not contain as many bars as it states.
    """
    texts: list[str] | bytes
    if isinstance(message, bytes):
        fields, texts = _header_of(message)
        values = len(texts) - int(np.count_nonzero(np.frombuffer(texts, np.uint8)))
    else:
        fields, texts = message[:_HEADER], message[_HEADER:]
        values = len(texts)
    _, _, start, end, count_text, *_ = fields
    if _COUNT.fullmatch(count_text) is None:
        raise ValueError(f"the number of bars is {count_text!r}")
    count = int(count_text)
    if values != count * PER_ROW:
        raise ValueError(f"{values} values for {count} bars")
    return History(start, end, count, texts)


def _header_of(message: bytes) -> tuple[list[str], bytes]:
    """Return the texts before the bars, and the bytes of the bars' texts."""
    end = 0
    for _ in range(_HEADER):
        end = message.find(b"\0", end) + 1
        if not end:  # fewer fields than a header has
            return texts_of(message), b""
    return texts_of(message[:end]), message[end : message.rfind(b"\0") + 1]


@dataclass(frozen=True, slots=True)
class ReadBars:
    """The bars of message 17, sorted and unique by bar timestamp, and its odd rows.

    ``impossible`` are the intervals, by bar timestamp, of rows that are no bars and are left out:
    those between the adjacent bars. ``implausible`` are the timestamps, int64 microseconds, of
    bars that are kept although their values can hardly be what was traded.
    """

    bars: pa.Table
    impossible: IntervalSet
    implausible: tuple[int, ...]


def bars_of(history: History, series: Series, requested: Interval | None = None) -> ReadBars:
    """Read the bars of a response.

    Args:
        history: message 17.
        series: what was requested.
        requested: the longest interval of real time that the request may mean
            (``requested_interval``). No bar begins a day after it; older ones are normal if the
            response has no others.

    Raises:
        ValueError: no row is a bar, or the bars are of another size.
    """
    rows = read_rows(history.texts, dated=not series.timeframe.is_intraday)
    values, good = _values(rows.numbers, rows.good)
    positions, days, good = _timestamps(rows.times, good, series, requested)
    if not (is_rising := _is_rising(positions)):
        _drop_conflicting(positions, values, good)
        _drop_misplaced(positions, good)
    if requested is not None:
        _drop_ancient(positions, good, requested)
    impossible = IntervalSet()
    if not (is_rising and good.all()):
        if not good.any():
            row = fields_of(history.texts)[:PER_ROW]
            raise ValueError(f"none of {len(good)} rows is a bar, the first is {row}")
        taken = np.flatnonzero(good)
        taken = taken[np.unique(positions[taken], return_index=True)[1]]
        impossible = _impossible_ranges(
            np.flatnonzero(~good), np.sort(taken), positions, series.timeframe
        )
        positions, days, values = positions[taken], days[taken], values[:, taken]
    if series.timeframe.is_intraday:
        if requested is not None:
            impossible |= _before_late(positions, requested, series.timeframe)
        _check_spacing(positions, days, series.timeframe)
    bars, odd = _table(positions, days, values)
    odd |= implausible_rows(bars, series.instrument.sec_type)
    return ReadBars(bars, impossible, tuple(positions[odd].tolist()))


def requested_interval(until: datetime, duration: str) -> Interval:
    """Return the longest interval of real time that a request may mean.

    Args:
        until: its end, or the gateway's time.
        duration: in IB's format. ``N D`` counts sessions: thin markets may trade every other day.
    """
    count, unit = duration.split()
    longest = 2 * int(count) * timedelta(**_UNITS[unit]) + _SLACK
    return Interval(max(until - longest, _EVER.start + _SLACK), until)


def reach_of(history: History) -> Interval | None:
    """Return the range of real time that a response states, or None if that is unclear.

    If a text may mean two times (a wall time that occurs twice, a zone name of two readings), the
    range is the shorter one.
    """
    begins, ends = written_moment(history.start), written_moment(history.end)
    if begins is None or ends is None:
        return None
    start, end = begins.latest(), ends.earliest()
    return None if start is None or end is None else between(start, end)


def unknown_zone(history: History) -> str | None:
    """Return the unknown name of a zone in which message 17 states its range.

    It is empty if a time is written without a zone, and None if nothing is unclear.
    """
    bounds = (written_moment(text) for text in (history.start, history.end))
    return next((one.zone for one in bounds if one is not None and not one.is_known), None)


def head_of(text: str) -> datetime | None:
    """Read a head timestamp; return None if the gateway has none.

    Raises:
        UnknownZone: it is stated in an unknown zone.
        ValueError: the text is not a time.
    """
    plain = text.strip()
    if plain in _NO_HEAD:
        return None
    if _EPOCH.fullmatch(plain) and len(plain) != 8:  # eight digits are a date without a time
        try:
            return datetime.fromtimestamp(int(plain), UTC)
        except (ValueError, OverflowError, OSError) as error:
            raise ValueError(f"{text!r} is not a head timestamp") from error
    if (written := written_moment(plain)) is None:
        raise ValueError(f"{text!r} is not a head timestamp")
    return in_utc(written.wall, zone_named(written.zone))


def _values(numbers: np.ndarray, good: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of rows, -1 where one is not available, and which rows are possible."""
    counts = numbers[-1]
    good = good & (counts == np.floor(counts))
    if numbers.min(initial=0) > -_LEAST_UNSET and numbers.max(initial=0) < _LEAST_UNSET:
        return numbers, good
    unset = np.isin(numbers, _UNSET)
    good &= np.isfinite(numbers).all(axis=0) & ~unset[:PRICES].any(axis=0)
    return np.where(unset, _NOT_AVAILABLE, numbers), good


def _timestamps(
    times: np.ndarray, good: np.ndarray, series: Series, requested: Interval | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return timestamps (int64 microseconds), session dates, and which rows are possible."""
    latest = _NEWEST_EPOCH_S if requested is None else int(requested.end.timestamp()) + _DAY_S
    if series.timeframe.is_intraday:
        good = good & (times % 60 == 0) & (times >= _OLDEST_EPOCH_S) & (times <= latest)
        keys = np.where(good, times, _OLDEST_EPOCH_S) * 1_000_000
        return keys, calendar_named(series.instrument.calendar).days_of(keys), good
    numbers = times.astype(np.int64)
    if series.timeframe is Timeframe.W1:  # dated by any day of a week that may not have ended
        numbers = numbers - (numbers + _MONDAY) % 7
    return numbers * 86_400_000_000, times, good & (numbers * _DAY_S <= latest)


def _is_rising(keys: np.ndarray) -> bool:
    """Return whether each timestamp is after the one before it."""
    return bool((keys[1:] > keys[:-1]).all())


def _drop_conflicting(keys: np.ndarray, values: np.ndarray, good: np.ndarray) -> None:
    """Reject rows whose timestamp another row has too, with other values."""
    rows = np.flatnonzero(good)
    order = rows[np.argsort(keys[rows], kind="stable")]
    twin = keys[order][1:] == keys[order][:-1]
    if not twin.any():
        return
    differs = np.zeros(len(twin), dtype=bool)
    for column in values:
        differs |= column[order][1:] != column[order][:-1]
    good &= ~np.isin(keys, keys[order][1:][twin & differs])


def _drop_misplaced(keys: np.ndarray, good: np.ndarray) -> None:
    """Reject rows that break the order of an otherwise ordered response.

    IB orders rows by time (grade L), so a timestamp that is out of order belongs to another bar. If
    a gateway does not order its rows, or orders them newest first, all are accepted: then the order
    shows nothing.
    """
    rows = np.flatnonzero(good)
    rows = rows[np.sort(np.unique(keys[rows], return_index=True)[1])]
    steps = np.diff(keys[rows])
    if not (steps < 0).any() or (steps < 0).all():
        return
    misplaced = np.ones(len(rows), dtype=bool)
    misplaced[_longest_rising(keys[rows].tolist())] = False
    if np.count_nonzero(misplaced) <= _MOST_OUT_OF_ORDER * len(rows):
        good &= ~np.isin(keys, keys[rows[misplaced]])


def _longest_rising(keys: list[int]) -> list[int]:
    """Return the positions of a longest increasing subsequence."""
    tops: list[int] = []
    positions: list[int] = []
    before: list[int] = []
    for position, key in enumerate(keys):
        at = bisect_left(tops, key)
        before.append(positions[at - 1] if at else -1)
        tops[at : at + 1] = [key]
        positions[at : at + 1] = [position]
    chain, position = [], positions[-1]
    while position >= 0:
        chain.append(position)
        position = before[position]
    return chain[::-1]


def _drop_ancient(keys: np.ndarray, good: np.ndarray, requested: Interval) -> None:
    """Reject rows that are far older than the requested interval, if there are others.

    A single one would make the response seem to cover everything up to the next row.
    """
    ancient = good & (keys < micros(requested.start))
    if (good & ~ancient).any():
        good &= ~ancient


def _impossible_ranges(
    bad: np.ndarray, good: np.ndarray, keys: np.ndarray, timeframe: Timeframe
) -> IntervalSet:
    """Return where rejected rows may belong: between the bars adjacent to them in the response.

    Args:
        bad: the positions of rejected rows.
        good: the positions of bars, each timestamp once.
        keys: the timestamps of all rows.
        timeframe: of the bars.
    """
    if not len(bad):
        return IntervalSet()
    steps = np.diff(keys[good])
    is_falling = len(steps) > 0 and bool((steps < 0).all())
    if not is_falling and (steps < 0).any():
        return IntervalSet([_EVER])  # unordered rows do not show where one is missing
    length = timeframe.seconds * 1_000_000
    starts, ends = keys[good], keys[good] + length
    found: list[Interval] = []
    for at in np.unique(np.searchsorted(good, bad)).tolist():
        older, newer = (at, at - 1) if is_falling else (at - 1, at)
        start = moment(int(ends[older])) if 0 <= older < len(good) else _EVER.start
        end = moment(int(starts[newer])) if 0 <= newer < len(good) else _EVER.end
        if start < end:
            found.append(Interval(start, end))
    return IntervalSet(found)


def _before_late(keys: np.ndarray, requested: Interval, timeframe: Timeframe) -> IntervalSet:
    """Return the interval between the last bar before the requested end and the first after it.

    IB returns none after it (grade L): a timestamp there may belong to another bar, and would make
    the response seem to have a bar on both sides of what is missing.
    """
    first = int(np.searchsorted(keys, micros(requested.end)))
    if not 0 < first < len(keys):
        return IntervalSet()
    start = moment(int(keys[first - 1])) + timeframe.length
    position = between(start, moment(int(keys[first])))
    return IntervalSet([position] if position else [])


def _check_spacing(keys: np.ndarray, days: np.ndarray, timeframe: Timeframe) -> None:
    """Raise ValueError for bars that follow each other too soon: they are of another size.

    A bar is shorter than its size only where trading starts, after a night or a break.

    Args:
        keys: their timestamps, rising.
        days: their session dates.
        timeframe: their size.
    """
    near = int(np.count_nonzero(np.diff(keys) < timeframe.seconds * 1_000_000))
    if near > _SHORT_A_DAY and near > _SHORT_A_DAY * len(np.unique(days)):
        raise ValueError(f"{len(keys)} bars, {near} of them sooner than {timeframe} after another")


def _table(keys: np.ndarray, days: np.ndarray, values: np.ndarray) -> tuple[pa.Table, np.ndarray]:
    """Return the table of bars, and which of them have a count that the schema cannot hold."""
    prices, (volume, average, count) = values[:PRICES], values[PRICES:]
    no_count = count == _NOT_AVAILABLE
    odd = ((count < 0) & ~no_count) | (count > _MOST_COUNT)
    columns = [
        pa.array(keys).view(BAR_SCHEMA.field("ts").type),
        pa.array(days.astype(np.int32)).view(pa.date32()),
        *map(pa.array, prices),
        *(_where_known(column, column == _NOT_AVAILABLE) for column in (volume, average)),
        _where_known(np.where(odd, 0, count).astype(np.int32), no_count | odd),
    ]
    return pa.Table.from_arrays(columns, schema=BAR_SCHEMA), odd


def _where_known(column: np.ndarray, missing: np.ndarray) -> pa.Array:
    """Return an array in which missing values (the gateway's -1, "not available") are null."""
    return pa.array(column, mask=missing if missing.any() else None)
