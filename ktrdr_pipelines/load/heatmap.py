"""The coverage heatmap: symbols downwards, time to the right, a colour for what is there.

Not here: drawing (``load.heatmap_png``), what is missing (``load.gapbook``).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import IntEnum

import numpy as np

from ktrdr_pipelines.core.bars import micros
from ktrdr_pipelines.core.completeness import Gap, GapReason, closed_count
from ktrdr_pipelines.core.spanarrays import SpanArrays, span_arrays
from ktrdr_pipelines.load.gapbook import GapBook, SeriesGaps
from ktrdr_pipelines.load.heatmap_png import draw

_MOST_COLUMNS = 240
_MONTHS = (1, 3, 6, 12)
_HALF_DAY = timedelta(hours=12)
"""What brings the start of a session day, wherever it is, to a time on that date in UTC."""


class CellState(IntEnum):
    """What is there of a symbol in a stretch of time; of several the greater is shown."""

    NOT_EXPECTED = 0
    COMPLETE = 1
    PARTLY = 2
    MISSING = 3
    BLOCKED = 4
    UNREADABLE = 5


@dataclass(frozen=True, slots=True)
class HeatGrid:
    """The heatmap as numbers: ``states[row, column]`` of a symbol and a stretch of months."""

    title: str
    symbols: tuple[str, ...]
    columns: tuple[date, ...]
    states: np.ndarray


def coverage_heatmap(book: GapBook, found: Sequence[SeriesGaps], now: datetime) -> bytes:
    """Draw how complete series are, the worst of each symbol's timeframes, as a PNG.

    Args:
        book: whose calendars say what is expected.
        found: what it said of the series when it looked at ``now``.
        now: where time ends.
    """
    grid = heat_grid(book, found, now)
    return draw(grid.title, grid.symbols, grid.columns, grid.states)


def heat_grid(book: GapBook, found: Sequence[SeriesGaps], now: datetime) -> HeatGrid:
    """Say for each symbol and stretch of months what is there."""
    symbols = tuple(dict.fromkeys(one.series.symbol for one in found))
    row_of = {symbol: row for row, symbol in enumerate(symbols)}
    columns = _columns(found, now)
    edges = np.array([*columns, now.date()], dtype="datetime64[D]")
    states = np.full((len(symbols), len(columns)), CellState.NOT_EXPECTED, dtype=np.int64)
    for one in found:
        row = states[row_of[one.series.symbol]]
        np.maximum(row, _row(book, one, edges, now), out=row)
    return HeatGrid(_title(found, now), symbols, columns, states)


def _title(found: Sequence[SeriesGaps], now: datetime) -> str:
    kinds = dict.fromkeys(str(one.series.timeframe) for one in found)
    which = "worst of " if len(kinds) > 1 else ""
    return f"Coverage at {now:%Y-%m-%d %H:%M} UTC, {which}{' '.join(kinds)}"


def _columns(found: Iterable[SeriesGaps], now: datetime) -> tuple[date, ...]:
    """Cut time into stretches of whole months, as many as can be told apart."""
    edges = (one.expected_from for one in found)
    starts = [(edge + _HALF_DAY).date() for edge in edges if edge is not None]
    first = min((*starts, now.date()))
    months = (now.year - first.year) * 12 + now.month - first.month + 1
    step = next((step for step in _MONTHS if months <= step * _MOST_COLUMNS), _MONTHS[-1])
    begin = (first.year * 12 + first.month - 1) // step * step
    return tuple(
        date(month // 12, month % 12 + 1, 1)
        for month in range(begin, now.year * 12 + now.month, step)
    )


def _row(book: GapBook, one: SeriesGaps, edges: np.ndarray, now: datetime) -> np.ndarray:
    if one.error is not None:
        return np.full(len(edges) - 1, CellState.UNREADABLE)
    spans = span_arrays(book.calendars.of(one.series.instrument), one.series.timeframe)
    bounds = np.searchsorted(spans.days, edges)
    low = 0 if one.expected_from is None else _place(spans, one.expected_from)
    high = closed_count(spans, now)
    bounds[-1] = high
    bounds = np.clip(bounds, low, max(low, high))
    expected = np.diff(bounds)
    missing = _missing(spans, one.gaps, bounds)
    blocked = _missing(spans, (g for g in one.gaps if g.reason is GapReason.BLOCKED), bounds)
    cells: Mapping[CellState, np.ndarray] = {
        CellState.BLOCKED: blocked > 0,
        CellState.MISSING: (missing > 0) & (missing >= expected),
        CellState.PARTLY: missing > 0,
        CellState.COMPLETE: expected > 0,
    }
    return np.select(list(cells.values()), list(cells), CellState.NOT_EXPECTED)


def _missing(spans: SpanArrays, gaps: Iterable[Gap], bounds: np.ndarray) -> np.ndarray:
    """Count the sessions between bounds that have a part in any gap."""
    count = np.zeros(len(bounds) - 1, dtype=np.int64)
    end = -1
    for gap in gaps:
        low = max(_place(spans, gap.stamps.start), end)
        end = int(np.searchsorted(spans.spans.starts, micros(gap.stamps.end), side="left"))
        count += np.diff(np.clip(bounds, low, max(low, end)))
    return count


def _place(spans: SpanArrays, moment: datetime) -> int:
    return int(np.searchsorted(spans.spans.ends, micros(moment), side="right"))
