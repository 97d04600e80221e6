"""Encode bars as the text fields of messages 17 and 90.

A price is written as the shortest text that reads back as the same float64, so that clients receive
the prices of a market bit for bit. A value that is not available is -1 (grade L for FX, grade P for
recorded stocks). Arrow writes whole columns, several times as fast as one number at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ktrdr_pipelines.simulator.market.hours import DAY_S
from ktrdr_pipelines.simulator.market.market import PricedBars
from ktrdr_pipelines.simulator.protocol.time_texts import date_text, zoned_texts
from ktrdr_pipelines.simulator.requests.durations import BarSize

EPOCH_FORMAT = 2
"""The ``formatDate`` for seconds since 1970; any other gives texts with a time zone."""

_NUL, _NOTHING, _NOT_AVAILABLE = pa.scalar("\0"), pa.scalar(""), pa.scalar("-1")


@dataclass(frozen=True, slots=True)
class DateStyle:
    """How dates are written: by bar size, the requested format and the exchange's zone."""

    size: BarSize
    format_date: int
    zone: str


def bar_fields(bars: PricedBars, style: DateStyle) -> bytes:
    """Return the eight NUL-terminated fields of every bar, joined."""
    rows = pc.binary_join_element_wise(*_columns(bars, style), _NOTHING, _NUL)
    _, offsets, texts = rows.buffers()
    first, last = np.frombuffer(offsets, np.int32)[[0, len(bars)]]
    return bytes(memoryview(texts)[first:last]) if len(bars) else b""


def bar_rows(bars: PricedBars, style: DateStyle) -> Iterator[tuple[str, ...]]:
    """Return the texts of every bar: date, four prices, volume, average, count."""
    return zip(*(column.to_pylist() for column in _columns(bars, style)), strict=True)


def _columns(bars: PricedBars, style: DateStyle) -> list[pa.StringArray]:
    if style.size.is_dated:
        days = (bars.start // DAY_S).tolist()
        dates = pa.array([date_text(day) for day in days], pa.string())
    elif style.format_date == EPOCH_FORMAT:
        dates = pa.array(bars.start).cast(pa.string())
    else:
        dates = pa.array(zoned_texts(bars.start, style.zone), pa.string())
    columns = (bars.open, bars.high, bars.low, bars.close, bars.volume, bars.average, bars.count)
    # A cast writes whole numbers without a decimal point, whatever their type.
    texts = (
        pa.repeat(_NOT_AVAILABLE, len(bars))
        if column is None
        else pa.array(column).cast(pa.string())
        for column in columns
    )
    return [dates, *texts]
