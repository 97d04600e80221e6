"""How bars are written into messages 17 and 90.

Prices are written as the shortest text that reads back as the same float64: what a market holds
arrives bit for bit. What is not available is -1 (grade L for FX, grade P for recorded stocks).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from ktrdr_pipelines.simulator.bars import Column
from ktrdr_pipelines.simulator.hours import DAY_S, Ints
from ktrdr_pipelines.simulator.market import PricedBars, Prices
from ktrdr_pipelines.simulator.sizes import BarSize
from ktrdr_pipelines.simulator.timetext import date_text, zoned_texts

NOT_AVAILABLE = "-1"
EPOCH_FORMAT = 2
"""The ``formatDate`` that asks for seconds since 1970; any other gets texts with a zone."""


@dataclass(frozen=True, slots=True)
class DateStyle:
    """How a bar's date is written: by its size, the asked format and the exchange's zone."""

    size: BarSize
    format_date: int
    zone: str


def bar_fields(bars: PricedBars, style: DateStyle) -> str:
    """Return the eight NUL-terminated fields of every bar."""
    return "".join(
        [
            f"{d}\0{o}\0{h}\0{low}\0{c}\0{v}\0{a}\0{n}\0"
            for d, o, h, low, c, v, a, n in bar_rows(bars, style)
        ]
    )


def bar_rows(bars: PricedBars, style: DateStyle) -> Iterator[tuple[str, ...]]:
    """Return the texts of every bar: date, four prices, volume, average, count."""
    return zip(
        _dates(bars.start, style),
        *(_prices(column) for column in (bars.open, bars.high, bars.low, bars.close)),
        _whole(bars.volume),
        repeat(NOT_AVAILABLE) if bars.average is None else _prices(bars.average),
        _whole(bars.count),
        strict=False,  # columns that are not available repeat without end
    )


def _dates(start: Ints, style: DateStyle) -> Iterable[str]:
    if style.size.is_dated:
        return map(date_text, (start // DAY_S).tolist())
    if style.format_date == EPOCH_FORMAT:
        return map(str, start.tolist())
    return zoned_texts(start, style.zone)


def _prices(column: Prices) -> Iterable[str]:
    return map(repr, column.tolist())


def _whole(column: Column | None) -> Iterable[str]:
    """Write volumes and counts without a decimal point where they are whole."""
    if column is None:
        return repeat(NOT_AVAILABLE)
    whole = column.astype(np.int64)
    if np.array_equal(whole, column):
        return map(str, whole.tolist())
    return map(repr, column.tolist())
