"""The gateway's historical answers as values: bars, the stretch they answer, head timestamps.

Not here: asking (``ib.source``), which bars are kept (``core.evaluation``).
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.core.bars import BAR_SCHEMA
from ktrdr_pipelines.core.calendars import calendar_named
from ktrdr_pipelines.core.instruments import Series
from ktrdr_pipelines.core.intervals import Interval, between
from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.limits import IbLimitsRegistry

_PER_BAR = 8
_HEADER = 5
_MONDAY = 3  # 1970-01-01 was a Thursday
_OLDEST_EPOCH_S = 100_000_000  # 1973; smaller numbers are dates such as 20260105, not epochs
_NEWEST_EPOCH_S = 4_102_444_800  # 2100; larger numbers are milliseconds, or nonsense
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


def bars_of(history: History, series: Series) -> pa.Table:
    """Make the table of bars, sorted and unique by stamp.

    Raises:
        ValueError: a value, a stamp or a pair of bars that cannot be; the text says which.
    """
    stamps, days = _stamps(history.texts[0::_PER_BAR], series)
    columns = [history.texts[place::_PER_BAR] for place in range(1, _PER_BAR)]
    values = [_numbers(texts) for texts in columns[:_PRICES]]
    _check_prices(values)
    values += [_known_numbers(texts) for texts in columns[_PRICES:]]
    _check_finite(values)
    order = _order(stamps, values)
    if order is not None:
        stamps, days = stamps[order], days[order]
        values = [column[order] for column in values]
    return _table(stamps, days, values)


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


def _stamps(texts: list[str], series: Series) -> tuple[np.ndarray, np.ndarray]:
    """Give stamps (int64 microseconds) and session dates (``datetime64[D]``)."""
    if series.timeframe.is_intraday:
        seconds = np.array([int(text) for text in texts], dtype=np.int64)
        wrong = (seconds % 60 != 0) | (seconds < _OLDEST_EPOCH_S) | (seconds > _NEWEST_EPOCH_S)
        if wrong.any():
            first = texts[int(np.argmax(wrong))]
            raise ValueError(f"stamp {first} is no moment for a bar of {series.timeframe}")
        micros = seconds * 1_000_000
        days = calendar_named(series.instrument.calendar).days_of(micros)
        _check_spacing(micros, days, series.timeframe)
        return micros, days
    days = np.array([_date_text(text) for text in texts], dtype="datetime64[D]")
    numbers = days.astype(np.int64)
    if series.timeframe is Timeframe.W1:
        numbers = numbers - (numbers + _MONDAY) % 7
    return numbers * 86_400_000_000, days


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
    if len(text) != 8 or not text.isdigit():
        raise ValueError(f"date {text!r} is not yyyymmdd")
    return f"{text[:4]}-{text[4:6]}-{text[6:]}"


def _numbers(texts: list[str]) -> np.ndarray:
    return np.fromiter(map(float, texts), dtype=np.float64, count=len(texts))


def _known_numbers(texts: list[str]) -> np.ndarray:
    """Read what may be unset: an empty text, or a number that stands for none, is not available."""
    numbers = _numbers([text or str(_NOT_AVAILABLE) for text in texts])
    return np.where(np.isin(numbers, _UNSET), _NOT_AVAILABLE, numbers)


def _check_prices(values: list[np.ndarray]) -> None:
    for name, column in zip(BAR_SCHEMA.names[2:], values, strict=False):
        if np.isin(column, _UNSET).any():
            raise ValueError(f"a value of {name} is not set")


def _check_finite(values: list[np.ndarray]) -> None:
    for name, column in zip(BAR_SCHEMA.names[2:], values, strict=True):
        if not np.isfinite(column).all():
            raise ValueError(f"a value of {name} is not a number")


def _order(stamps: np.ndarray, values: list[np.ndarray]) -> np.ndarray | None:
    """Give the places to take so that stamps rise; None where they do already."""
    if len(stamps) < 2 or bool(np.all(stamps[1:] > stamps[:-1])):
        return None
    order = np.argsort(stamps, kind="stable")
    ordered = stamps[order]
    twin = np.append(False, ordered[1:] == ordered[:-1])
    for column in values:
        differs = np.append(False, column[order][1:] != column[order][:-1])
        if bool(np.any(differs & twin)):
            moment = datetime.fromtimestamp(int(ordered[np.argmax(differs & twin)]) / 1e6, UTC)
            raise ValueError(f"two different bars stamped {moment:%Y-%m-%d %H:%M:%SZ}")
    return np.asarray(order[~twin])


def _table(stamps: np.ndarray, days: np.ndarray, values: list[np.ndarray]) -> pa.Table:
    prices, (volume, average, count) = values[:_PRICES], values[_PRICES:]
    columns = [
        pa.array(stamps, pa.int64()).cast(BAR_SCHEMA.field("ts").type),
        pa.array(days, pa.date32()),
        *(pa.array(column, pa.float64()) for column in prices),
        _where_known(volume, volume < 0, pa.float64()),
        _where_known(average, average == _NOT_AVAILABLE, pa.float64()),
        _where_known(count, count < 0, pa.int32()),
    ]
    return pa.Table.from_arrays(columns, schema=BAR_SCHEMA)


def _where_known(column: np.ndarray, missing: np.ndarray, kind: pa.DataType) -> pa.Array:
    """Make an array in which the gateway's -1, "not available", is null.

    No volume and no count is below zero; an average is where prices are.
    """
    return pa.array(column, pa.float64(), mask=missing).cast(kind)
