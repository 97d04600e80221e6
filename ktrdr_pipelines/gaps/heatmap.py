"""Draw the coverage heatmap as a PNG: symbols downwards, time to the right, colours for states.

Pillow draws it in milliseconds, and the file is small.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import IntEnum
from io import BytesIO
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ktrdr_pipelines.domain.bars import micros
from ktrdr_pipelines.domain.calendars.session_grid import SessionGrid, session_grid
from ktrdr_pipelines.domain.planning.gaps import Gap, GapReason, closed_count
from ktrdr_pipelines.gaps.index import GapIndex, SeriesGaps

STATES: Final = (
    ("not expected", (236, 238, 241)),
    ("complete", (46, 139, 87)),
    ("partly", (244, 180, 60)),
    ("missing", (205, 62, 54)),
    ("blocked", (126, 87, 160)),
    ("unreadable", (40, 44, 52)),
)
"""Name and colour of each state, by its number; distinct without telling red from green."""

_INK, _PAPER, _FAINT = (40, 44, 52), (255, 255, 255), (120, 126, 134)
_MARGIN, _WIDTH = 16, 960
_HEAD, _AXIS, _FOOT = 58, 22, 12
_TALL, _SMALL_TEXT, _TEXT = 26, 11, 13


def draw(title: str, rows: Sequence[str], columns: Sequence[date], states: np.ndarray) -> bytes:
    """Draw cells with their names, a time axis and a legend.

    Args:
        title: the text at the top.
        rows: names of the rows, downwards.
        columns: first day of each column, to the right.
        states: number of each cell's state, shape ``(rows, columns)``.

    Returns:
        The image, as the bytes of a PNG file.
    """
    # Few rows are tall, and many just tall enough to be told apart.
    height = max(5, min(_TALL, 1600 // max(1, len(rows))))
    width = max(3, _WIDTH // max(1, len(columns)))
    every = -(-_SMALL_TEXT // height)  # one of so many rows is named, so that names do not overlap
    font = _font(_SMALL_TEXT)
    left = _MARGIN + 10 + round(max((font.getlength(name) for name in rows[::every]), default=0))
    size = (
        max(left + width * len(columns), left + 560) + _MARGIN,
        _HEAD + height * len(rows) + _AXIS + _FOOT,
    )
    image = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((_MARGIN, 10), title, fill=_INK, font=_font(_TEXT + 2))
    _legend(pen, states)
    if len(rows) and len(columns):
        image.paste(_cells(states, width, height), (left, _HEAD))
    for position in range(0, len(rows), every):
        at = (left - 8, _HEAD + position * height + height // 2)
        pen.text(at, rows[position], fill=_INK, font=font, anchor="rm")
    _axis(pen, columns, left, width, top=_HEAD + height * len(rows))
    file = BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()


def _cells(states: np.ndarray, width: int, height: int) -> Image.Image:
    colours = np.array([colour for _name, colour in STATES], dtype=np.uint8)
    pixels = np.repeat(np.repeat(colours[states], height, axis=0), width, axis=1)
    if height > 6:
        pixels[height - 1 :: height] = _PAPER
    if width > 6:
        pixels[:, width - 1 :: width] = _PAPER
    return Image.fromarray(pixels)


def _legend(pen: ImageDraw.ImageDraw, states: np.ndarray) -> None:
    x = _MARGIN
    for number, (name, colour) in enumerate(STATES):
        share = float(np.mean(states == number)) if states.size else 0.0
        if not share and name == "unreadable":
            continue
        pen.rectangle((x, 36, x + 11, 47), fill=colour)
        text = f"{name} {share:.1%}" if 0 < share < 1 else f"{name} {share:.0%}"
        pen.text((x + 16, 35), text, fill=_FAINT, font=_font(_SMALL_TEXT))
        x += 32 + round(pen.textlength(text, font=_font(_SMALL_TEXT)))


def _axis(
    pen: ImageDraw.ImageDraw, columns: Sequence[date], left: int, width: int, *, top: int
) -> None:
    last = -1_000
    for position, text in _marks(columns):
        x = left + position * width
        if x - last < 44:
            continue
        last = x
        pen.line((x, top, x, top + 4), fill=_FAINT)
        pen.text((x, top + 6), text, fill=_FAINT, font=_font(_SMALL_TEXT))


def _marks(columns: Sequence[date]) -> Iterator[tuple[int, str]]:
    """Yield the labels of the time axis: years, or months where there are few columns."""
    for position, day in enumerate(columns):
        if len(columns) <= 18:
            yield position, f"{day:%Y-%m}"
        elif day.month == 1 or (position and columns[position - 1].year < day.year):
            yield position, str(day.year)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


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
    grid = heat_grid(index, found, now)
    return draw(grid.title, grid.symbols, grid.columns, grid.states)


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
    kinds = dict.fromkeys(str(one.series.timeframe) for one in found)
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
