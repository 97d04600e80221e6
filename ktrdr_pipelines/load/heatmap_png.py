"""Drawing a heatmap as a PNG with Pillow: small, and made in milliseconds.

Not here: what the cells mean (``load.heatmap``).
"""

from collections.abc import Iterator, Sequence
from datetime import date
from io import BytesIO
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

STATES: Final = (
    ("not expected", (236, 238, 241)),
    ("complete", (46, 139, 87)),
    ("partly", (244, 180, 60)),
    ("missing", (205, 62, 54)),
    ("blocked", (126, 87, 160)),
    ("unreadable", (40, 44, 52)),
)
"""Name and colour of each state, by its number; apart for eyes that see no red from green."""

_INK, _PAPER, _FAINT = (40, 44, 52), (255, 255, 255), (120, 126, 134)
_MARGIN, _WIDTH = 16, 960
_HEAD, _AXIS, _FOOT = 58, 22, 12
_TALL, _SMALL_TEXT, _TEXT = 26, 11, 13


def draw(title: str, rows: Sequence[str], columns: Sequence[date], states: np.ndarray) -> bytes:
    """Draw cells with their names, a time axis and a legend.

    Args:
        title: above it all.
        rows: names of the rows, downwards.
        columns: first day of each column, to the right.
        states: number of each cell's state, shape ``(rows, columns)``.
    """
    height = _row_height(len(rows))
    width = max(3, _WIDTH // max(1, len(columns)))
    named = _every(height)
    left = _MARGIN + 10 + _widest(rows[::named])
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
    _names(pen, rows, left, height)
    _axis(pen, columns, left, width, top=_HEAD + height * len(rows))
    file = BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()


def _row_height(rows: int) -> int:
    """Give few rows room, and many just enough to be told apart."""
    return max(5, min(_TALL, 1600 // max(1, rows)))


def _every(height: int) -> int:
    """Say of how many rows one is named, so that names do not meet."""
    return -(-_SMALL_TEXT // height)


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


def _names(pen: ImageDraw.ImageDraw, rows: Sequence[str], left: int, height: int) -> None:
    for place in range(0, len(rows), _every(height)):
        middle = _HEAD + place * height + height // 2
        at = (left - 8, middle)
        pen.text(at, rows[place], fill=_INK, font=_font(_SMALL_TEXT), anchor="rm")


def _axis(
    pen: ImageDraw.ImageDraw, columns: Sequence[date], left: int, width: int, *, top: int
) -> None:
    last = -1_000
    for place, text in _marks(columns):
        x = left + place * width
        if x - last < 44:
            continue
        last = x
        pen.line((x, top, x, top + 4), fill=_FAINT)
        pen.text((x, top + 6), text, fill=_FAINT, font=_font(_SMALL_TEXT))


def _marks(columns: Sequence[date]) -> Iterator[tuple[int, str]]:
    """Name years, or months where there are few."""
    for place, day in enumerate(columns):
        if len(columns) <= 18:
            yield place, f"{day:%Y-%m}"
        elif day.month == 1 or (place and columns[place - 1].year < day.year):
            yield place, str(day.year)


def _widest(names: Sequence[str]) -> int:
    font = _font(_SMALL_TEXT)
    return round(max((font.getlength(name) for name in names), default=0))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
