"""The gateway's historical answers as values: bars, the stretch they answer, head timestamps.

Not here: asking (``ib.source``), which bars are kept (``core.settle``).
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.core.bars import BAR_SCHEMA, moment
from ktrdr_pipelines.core.calendars import calendar_named
from ktrdr_pipelines.core.instruments import Series
from ktrdr_pipelines.core.intervals import Interval, IntervalSet, between
from ktrdr_pipelines.core.plausibility import implausible_rows
from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.limits import IbLimitsRegistry

_PER_BAR = 8
_HEADER = 5
_MONDAY = 3  # 1970-01-01 was a Thursday
_OLDEST_EPOCH_S = 100_000_000  # 1973; smaller numbers are dates such as 20260105, not epochs
_NEWEST_EPOCH_S = 4_102_444_800  # 2100; larger numbers are milliseconds, or nonsense
_DAY_S = 86_400
_MOST_COUNT = 2**31 - 1
_END = ";"
_NUMBERS = re.compile(r"(?:-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?;)*")
_WHOLE_NUMBERS = re.compile(r"(?:[0-9]{1,12};)*")
_EVER = Interval(datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC))
_SHORT_A_DAY = 3  # the bars that a session and the breaks in it begin with
_NOT_AVAILABLE = IbLimitsRegistry.NO_MARKET_DATA_VALUE.value
_UNSET = IbLimitsRegistry.UNSET_VALUES.value
_PRICES = 4
_MOMENT = re.compile(r"(\d{8})(-| {1,2})(\d\d:\d\d:\d\d)(?: +(\S+))?")
_NO_HEAD = frozenset({"", "0", str(_NOT_AVAILABLE)})
_UTC_NAMES = frozenset({"UTC", "GMT", "Z"})


@dataclass(frozen=True, slots=True)
class History:
    """Message 17: what the gateway says it answered, and the texts of the bars, one after one."""

    start: str
    end: str
    count: int
    texts: list[str]


def history_of(fields: list[str]) -> History:
    """Read message 17.

    Raises:
        ValueError: it does not hold as many bars as it says.
    """
    _, _, start, end, count_text, *_ = fields[:_HEADER]
    count = int(count_text)
    texts = fields[_HEADER:]
    if count < 0 or len(texts) != count * _PER_BAR:
        raise ValueError(f"{len(texts)} values for {count} bars")
    return History(start, end, count, texts)


@dataclass(frozen=True, slots=True)
class ReadBars:
    """The bars of message 17, sorted and unique by stamp, and what is odd about its rows.

    ``impossible`` are the places, on the stamp axis, of rows that are no bars and are left out:
    between the rows beside them. ``implausible`` are the stamps, int64 microseconds, of bars that
    are there although their values can hardly be what was traded.
    """

    bars: pa.Table
    impossible: IntervalSet
    implausible: tuple[int, ...]


def bars_of(history: History, series: Series, until: datetime | None = None) -> ReadBars:
    """Read the bars of a response.

    Args:
        history: message 17.
        series: what was requested.
        until: the requested end, or the gateway's time; no bar begins a day after it.

    Raises:
        ValueError: most rows are no bars, or the bars are of another size; the text says which.
    """
    places, days, good = _stamps(history.texts[0::_PER_BAR], series, until)
    columns = [history.texts[place::_PER_BAR] for place in range(1, _PER_BAR)]
    values = []
    for place, texts in enumerate(columns):
        numbers, known = _numbers(texts, optional=place >= _PRICES)
        is_price = place < _PRICES
        if place == len(columns) - 1:
            known &= numbers == np.floor(numbers)
        unset = np.isin(numbers, _UNSET)
        good &= known & np.isfinite(numbers) & ~(unset if is_price else np.zeros_like(unset))
        values.append(numbers if is_price else np.where(unset, _NOT_AVAILABLE, numbers))
    _check_most_are_bars(history.texts, good)
    impossible = _places_of(~good, places, series.timeframe)
    places, days = places[good], days[good]
    values = [column[good] for column in values]
    order, twice = _order(places, values)
    impossible |= IntervalSet(
        Interval(moment(key), moment(key) + series.timeframe.length) for key in twice.tolist()
    )
    if not len(order):
        raise ValueError(f"two different bars for each of {len(twice)} stamps")
    places, days = places[order], days[order]
    values = [column[order] for column in values]
    if series.timeframe.is_intraday:
        _check_spacing(places, days, series.timeframe)
    bars, odd = _table(places, days, values)
    odd |= implausible_rows(bars, series.instrument.sec_type)
    return ReadBars(bars, impossible, tuple(places[odd].tolist()))


def reach_of(history: History) -> Interval | None:
    """Give the stretch of real time that an answer says it covers, or None if that is unclear.

    A wall time that occurs twice is read so that the stretch is the shorter one.
    """
    start, end = moment_of(history.start, fold=1), moment_of(history.end, fold=0)
    return None if start is None or end is None else between(start, end)


def moment_of(text: str, *, fold: int = 0) -> datetime | None:
    """Read one of the gateway's moments; None where zone or form are unclear.

    ``yyyymmdd-HH:MM:SS`` is UTC; with blanks it needs a zone by its full name, since short ones
    (``EST``, ``CST``) are ambiguous.
    """
    if (found := _MOMENT.fullmatch(text.strip())) is None:
        return None
    day, separator, clock, zone_name = found.groups()
    zone = zone_named("UTC" if separator == "-" and zone_name is None else zone_name)
    if zone is None:
        return None
    try:
        wall = datetime.strptime(f"{day} {clock}", "%Y%m%d %H:%M:%S")  # noqa: DTZ007
    except ValueError:
        return None
    return wall.replace(tzinfo=zone, fold=fold).astimezone(UTC)


def head_of(text: str) -> datetime | None:
    """Read a head timestamp; None where the gateway has none.

    Raises:
        ValueError: the text is no moment.
    """
    if text.strip() in _NO_HEAD:
        return None
    if text.strip().isdigit() and int(text) >= _OLDEST_EPOCH_S:
        return datetime.fromtimestamp(int(text), UTC)
    if text.strip().lstrip("-").isdigit() and len(text.strip()) != 8:
        return datetime.fromtimestamp(int(text), UTC)
    if (moment := moment_of(text)) is None:
        raise ValueError(f"head timestamp {text!r}")
    return moment


def zone_named(name: str | None, *, also: frozenset[str] = frozenset()) -> ZoneInfo | None:
    """Give a zone by its full name; None where a name is short, and so may mean several.

    ``also`` are short names that mean one place only.
    """
    if name is None:
        return None
    if name.upper() in _UTC_NAMES:
        return ZoneInfo("UTC")
    if "/" not in name and name not in also:
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def _stamps(
    texts: list[str], series: Series, until: datetime | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return stamps (int64 microseconds), session dates, and which rows have one that can be."""
    latest = _NEWEST_EPOCH_S if until is None else int(until.timestamp()) + _DAY_S
    if series.timeframe.is_intraday:
        seconds, good = _whole_numbers(texts)
        good &= (seconds % 60 == 0) & (seconds >= _OLDEST_EPOCH_S) & (seconds <= latest)
        seconds = np.where(good, seconds, _OLDEST_EPOCH_S)
        keys = seconds * 1_000_000
        return keys, calendar_named(series.instrument.calendar).days_of(keys), good
    days, good = _dates(texts)
    numbers = days.astype(np.int64)
    good &= numbers * _DAY_S <= latest + _DAY_S
    if series.timeframe is Timeframe.W1:
        numbers = numbers - (numbers + _MONDAY) % 7
    return numbers * 86_400_000_000, days, good


def _whole_numbers(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return whole numbers, 0 where a text is none, and which texts are."""
    if _WHOLE_NUMBERS.fullmatch(_END.join((*texts, ""))):
        return np.array([int(text) for text in texts], dtype=np.int64), np.ones(len(texts), bool)
    good = np.array([bool(_WHOLE_NUMBERS.fullmatch(text + _END)) for text in texts], bool)
    numbers = [int(text) if is_one else 0 for text, is_one in zip(texts, good, strict=True)]
    return np.array(numbers, dtype=np.int64), good


def _dates(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return dates, the first of 1970 where a text is none, and which texts are."""
    found = []
    for text in texts:
        try:
            is_date = len(text) == 8 and text.isascii() and text.isdigit()
            found.append(np.datetime64(_date_text(text)) if is_date else None)
        except ValueError:
            found.append(None)
    good = np.array([one is not None for one in found], bool)
    days = np.array([one or np.datetime64("1970-01-01") for one in found], "datetime64[D]")
    return days, good


def _check_most_are_bars(texts: list[str], good: np.ndarray) -> None:
    """Refuse a response of which no more than half the rows are bars."""
    bad = len(good) - int(np.count_nonzero(good))
    if bad and bad * 2 >= len(good):
        first = int(np.argmin(good))
        row = texts[first * _PER_BAR : (first + 1) * _PER_BAR]
        raise ValueError(f"{bad} of {len(good)} rows are no bars, first {row}")


def _places_of(bad: np.ndarray, keys: np.ndarray, timeframe: Timeframe) -> IntervalSet:
    """Return where rows that are no bars may stand: between the bars beside them, as they came."""
    length = timeframe.seconds * 1_000_000
    good = np.flatnonzero(~bad)
    found: list[Interval] = []
    for place in np.flatnonzero(bad):
        at = int(np.searchsorted(good, place))
        start = moment(int(keys[good[at - 1]]) + length) if at else _EVER.start
        end = moment(int(keys[good[at]])) if at < len(good) else _EVER.end
        if start < end:
            found.append(Interval(start, end))
    return IntervalSet(found)


def _check_spacing(micros: np.ndarray, days: np.ndarray, timeframe: Timeframe) -> None:
    """Refuse bars that follow each other too soon: they are of another size.

    A bar is shorter than its size only where trading begins, after a night or a break.
    """
    stamps = np.unique(micros)
    near = int(np.count_nonzero(np.diff(stamps) < timeframe.seconds * 1_000_000))
    if near > _SHORT_A_DAY * len(np.unique(days)):
        raise ValueError(
            f"{len(stamps)} bars, {near} of them sooner than {timeframe} after another"
        )


def _date_text(text: str) -> str:
    return f"{text[:4]}-{text[4:6]}-{text[6:]}"


def _numbers(texts: list[str], *, optional: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers, -1 where a text is none, and which texts are.

    IB writes decimals in ASCII digits, with an exponent at most (grade L): what Python reads
    beyond that (``1_0.5``, digits of other scripts, ``nan``) is no number of IB's. An optional one
    may be empty, which stands for "not available".
    """
    absent = str(_NOT_AVAILABLE)
    given = [text or absent for text in texts] if optional else texts
    if _NUMBERS.fullmatch(_END.join((*given, ""))):
        numbers = np.fromiter(map(float, given), dtype=np.float64, count=len(given))
        return numbers, np.ones(len(given), bool)
    good = np.array([bool(_NUMBERS.fullmatch(text + _END)) for text in given], bool)
    read = (float(text) if is_one else -1.0 for text, is_one in zip(given, good, strict=True))
    return np.fromiter(read, dtype=np.float64, count=len(given)), good


def _order(keys: np.ndarray, values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the places to take so that stamps rise, and the stamps of which rows disagree.

    Of rows that are alike one is taken, of rows that disagree none.
    """
    if len(keys) < 2 or bool(np.all(keys[1:] > keys[:-1])):
        return np.arange(len(keys)), np.empty(0, np.int64)
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    twin = np.append(False, ordered[1:] == ordered[:-1])
    differs = np.zeros(len(keys), dtype=bool)
    for column in values:
        differs |= np.append(False, column[order][1:] != column[order][:-1])
    rivals = np.unique(ordered[twin & differs])
    return order[~twin & ~np.isin(ordered, rivals)], rivals


def _table(
    keys: np.ndarray, days: np.ndarray, values: list[np.ndarray]
) -> tuple[pa.Table, np.ndarray]:
    """Return the table of bars, and which counts it cannot hold."""
    prices, (volume, average, count) = values[:_PRICES], values[_PRICES:]
    no_count = count == _NOT_AVAILABLE
    odd = ((count < 0) & ~no_count) | (count > _MOST_COUNT)
    columns = [
        pa.array(keys, pa.int64()).cast(BAR_SCHEMA.field("ts").type),
        pa.array(days, pa.date32()),
        *(pa.array(column, pa.float64()) for column in prices),
        _where_known(volume, volume == _NOT_AVAILABLE, pa.float64()),
        _where_known(average, average == _NOT_AVAILABLE, pa.float64()),
        _where_known(np.where(odd, 0, count), no_count | odd, pa.int32()),
    ]
    return pa.Table.from_arrays(columns, schema=BAR_SCHEMA), odd


def _where_known(column: np.ndarray, missing: np.ndarray, kind: pa.DataType) -> pa.Array:
    """Make an array in which the gateway's -1, "not available", is null."""
    return pa.array(column, pa.float64(), mask=missing).cast(kind)
