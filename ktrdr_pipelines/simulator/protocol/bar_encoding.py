"""How bars are written into messages 17 and 90.

Prices are written as the shortest text that reads back as the same float64: what a market holds
arrives bit for bit. What is not available is -1 (grade L for FX, grade P for recorded stocks).
Columns are written whole by Arrow, which is several times as fast as one number at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ktrdr_pipelines.simulator.market.bar_arrays import Column
from ktrdr_pipelines.simulator.market.hours import DAY_S, Ints
from ktrdr_pipelines.simulator.market.market import PricedBars
from ktrdr_pipelines.simulator.protocol.time_texts import date_text, zoned_texts
from ktrdr_pipelines.simulator.requests.durations import BarSize

EPOCH_FORMAT = 2
"""The ``formatDate`` that asks for seconds since 1970; any other gets texts with a zone."""

_NUL, _NOTHING, _NOT_AVAILABLE = pa.scalar("\0"), pa.scalar(""), pa.scalar("-1")


@dataclass(frozen=True, slots=True)
class DateStyle:
    """How a bar's date is written: by its size, the asked format and the exchange's zone."""

    size: BarSize
    format_date: int
    zone: str


def bar_fields(bars: PricedBars, style: DateStyle) -> bytes:
    """Return the eight NUL-terminated fields of every bar."""
    rows = pc.binary_join_element_wise(*_columns(bars, style), _NOTHING, _NUL)
    _, offsets, texts = rows.buffers()
    first, last = np.frombuffer(offsets, np.int32)[[0, len(bars)]]
    return bytes(memoryview(texts)[first:last]) if len(bars) else b""


def bar_rows(bars: PricedBars, style: DateStyle) -> Iterator[tuple[str, ...]]:
    """Return the texts of every bar: date, four prices, volume, average, count."""
    return zip(*(column.to_pylist() for column in _columns(bars, style)), strict=True)


def _columns(bars: PricedBars, style: DateStyle) -> list[pa.StringArray]:
    columns = (bars.open, bars.high, bars.low, bars.close, bars.volume, bars.average, bars.count)
    return [_dates(bars.start, style), *(_texts(column, len(bars)) for column in columns)]


def _dates(start: Ints, style: DateStyle) -> pa.StringArray:
    if style.size.is_dated:
        return pa.array([date_text(day) for day in (start // DAY_S).tolist()], pa.string())
    if style.format_date == EPOCH_FORMAT:
        return pa.array(start).cast(pa.string())
    return pa.array(zoned_texts(start, style.zone), pa.string())


def _texts(column: Column | None, length: int) -> pa.StringArray:
    """Write a column: whole numbers come without a decimal point, whatever their type."""
    if column is None:
        return pa.repeat(_NOT_AVAILABLE, length)
    return pa.array(column).cast(pa.string())
