"""The coverage heatmap as a PNG: symbols downwards, time to the right, colours for states."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import IntEnum
from typing import Final

import numpy as np

from ktrdr_pipelines.app.charts.drawing import DPI, FAINT_INK, INK, chart_style, image_bytes
from ktrdr_pipelines.domain.bars import micros
from ktrdr_pipelines.domain.calendars.session_grid import SessionGrid, session_grid
from ktrdr_pipelines.domain.planning.gaps import Gap, GapReason, closed_count
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.gaps.index import GapIndex, SeriesGaps

STATES: Final = (
    ("not expected", "#eceef1"),
    ("complete", "#2e8b57"),
    ("partly", "#f4b43c"),
    ("missing", "#cd3e36"),
    ("blocked", "#7e57a0"),
    ("unreadable", "#282c34"),
)
"""Name and colour of each state, by its number; distinct without telling red from green."""

_WIDTH_PX: Final = 1_100
_HEAD_PX, _LEGEND_PX, _FOOT_PX, _SIDE_PX = 74, 40, 36, 36
_ROW_PX: Final = (3, 26)
"""Least and greatest height of a row."""

_ROWS_PX: Final = (1_600, 6_000)
"""Height of all rows: the first if they can be that low, never more than the second."""

_NAME_PX: Final = (12, 8)
"""Height of a name, and the width of a character."""

_RULED_PX: Final = 8
"""Cells at least as wide and as high are separated by lines."""

_MOST_COLUMNS = 240
_MONTHS = (1, 3, 6, 12)
_HALF_DAY = timedelta(hours=12)
"""Added to the start of a session day, in any time zone, it gives a time on that date in UTC."""


class CellState(IntEnum):
    """The state of a symbol in an interval of time; of several the greatest is shown."""

    NOT_EXPECTED = 0
    COMPLETE = 1
    PARTLY = 2
    MISSING = 3
    BLOCKED = 4
    UNREADABLE = 5


@dataclass(frozen=True, slots=True)
class HeatGrid:
    """The heatmap as numbers: ``states[row, column]`` of a symbol and an interval of months."""

    title: str
    symbols: tuple[str, ...]
    columns: tuple[date, ...]
    states: np.ndarray


def coverage_heatmap(index: GapIndex, found: Sequence[SeriesGaps], now: datetime) -> bytes:
    """Draw how complete series are, the worst of each symbol's timeframes, as a PNG.

    Args:
        index: the gap index, whose calendars tell what is expected.
        found: its gaps of the series at ``now``.
        now: the end of the time axis.
    """
    return draw(heat_grid(index, found, now))


def draw(grid: HeatGrid) -> bytes:
    """Draw a grid with its names, a time axis and a legend; equal grids give equal bytes."""
    count = len(grid.symbols)
    row = float(np.clip(_ROWS_PX[0] / max(1, count), *_ROW_PX))
    row = min(row, _ROWS_PX[1] / max(1, count))
    rows = max(1.0, row * count)
    every = int(-(-_NAME_PX[0] // row))  # one of so many rows is named: names do not overlap
    names = grid.symbols[::every]
    left = _SIDE_PX + _NAME_PX[1] * max(map(len, names), default=0)
    width = _WIDTH_PX - left - _SIDE_PX
    height = round(_HEAD_PX + rows + _FOOT_PX)
    is_ruled = min(row, width / len(grid.columns)) >= _RULED_PX
    months = np.array(grid.columns, dtype="datetime64[M]")
    step = np.diff(months[:2]) if len(months) > 1 else np.array([1], dtype="timedelta64[M]")
    bounds = np.append(months, months[-1] + step).astype("datetime64[D]")

    with chart_style():
        from matplotlib.colors import ListedColormap
        from matplotlib.dates import AutoDateFormatter, AutoDateLocator
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        figure = Figure(figsize=(_WIDTH_PX / DPI, height / DPI), dpi=DPI)
        axes = figure.add_axes(
            (left / _WIDTH_PX, _FOOT_PX / height, width / _WIDTH_PX, rows / height)
        )
        axes.pcolormesh(
            bounds,
            np.arange(count + 1),
            grid.states,
            cmap=ListedColormap([colour for _name, colour in STATES]),
            vmin=-0.5,
            vmax=len(STATES) - 0.5,
            edgecolors="white",
            linewidth=0.5 if is_ruled else 0,
        )
        axes.set(xlim=(bounds[0], bounds[-1]), ylim=(max(1, count), 0))
        axes.set_yticks(np.arange(0, count, every) + 0.5, names)
        locator = AutoDateLocator()
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(AutoDateFormatter(locator))
        axes.tick_params(labelsize=8, left=False, color=FAINT_INK)
        axes.spines[:].set_visible(False)
        figure.text(_SIDE_PX / _WIDTH_PX, 1 - 14 / height, grid.title, size=11, va="top", color=INK)
        shares = [float(np.mean(grid.states == number)) if count else 0.0 for number in CellState]
        figure.legend(
            handles=[
                Patch(color=colour, label=f"{name} {share:.{1 if 0 < share < 1 else 0}%}")
                for (name, colour), share in zip(STATES, shares, strict=True)
                if share or name != "unreadable"
            ],
            loc="upper left",
            bbox_to_anchor=(_SIDE_PX / _WIDTH_PX, 1 - _LEGEND_PX / height),
            ncols=len(STATES),
            borderaxespad=0,
            borderpad=0,
            handlelength=1,
            handleheight=1,
            fontsize=8,
            frameon=False,
        )
    return image_bytes(figure)


def heat_grid(index: GapIndex, found: Sequence[SeriesGaps], now: datetime) -> HeatGrid:
    """Return the state of each symbol in each interval of months."""
    symbols = tuple(dict.fromkeys(one.series.symbol for one in found))
    row_of = {symbol: row for row, symbol in enumerate(symbols)}
    columns = _columns(found, now)
    boundaries = np.array([*columns, now.date()], dtype="datetime64[D]")
    states = np.full((len(symbols), len(columns)), CellState.NOT_EXPECTED, dtype=np.int64)
    for one in found:
        row = states[row_of[one.series.symbol]]
        np.maximum(row, _row(index, one, boundaries, now), out=row)
    used = {one.series.timeframe for one in found}
    kinds = [str(one) for one in Timeframe if one in used]
    which = "worst of " if len(kinds) > 1 else ""
    title = f"Coverage at {now:%Y-%m-%d %H:%M} UTC, {which}{' '.join(kinds)}"
    return HeatGrid(title, symbols, columns, states)


def _columns(found: Iterable[SeriesGaps], now: datetime) -> tuple[date, ...]:
    """Return the first days of intervals of whole months, as many as can be told apart."""
    boundaries = (one.expected_from for one in found)
    starts = [(boundary + _HALF_DAY).date() for boundary in boundaries if boundary is not None]
    first = min((*starts, now.date()))
    months = (now.year - first.year) * 12 + now.month - first.month + 1
    step = next((step for step in _MONTHS if months <= step * _MOST_COLUMNS), _MONTHS[-1])
    begin = (first.year * 12 + first.month - 1) // step * step
    return tuple(
        date(month // 12, month % 12 + 1, 1)
        for month in range(begin, now.year * 12 + now.month, step)
    )


def _row(index: GapIndex, one: SeriesGaps, boundaries: np.ndarray, now: datetime) -> np.ndarray:
    if one.error is not None:
        return np.full(len(boundaries) - 1, CellState.UNREADABLE)
    spans = session_grid(index.calendars.of(one.series.instrument), one.series.timeframe)
    bounds = np.searchsorted(spans.days, boundaries)
    low = 0 if one.expected_from is None else _position(spans, one.expected_from)
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


def _missing(spans: SessionGrid, gaps: Iterable[Gap], bounds: np.ndarray) -> np.ndarray:
    """Return the number of sessions between bounds that have a part in any gap."""
    count = np.zeros(len(bounds) - 1, dtype=np.int64)
    end = -1
    for gap in gaps:
        low = max(_position(spans, gap.interval.start), end)
        end = int(np.searchsorted(spans.starts, micros(gap.interval.end), side="left"))
        count += np.diff(np.clip(bounds, low, max(low, end)))
    return count


def _position(spans: SessionGrid, moment: datetime) -> int:
    return int(np.searchsorted(spans.ends, micros(moment), side="right"))
