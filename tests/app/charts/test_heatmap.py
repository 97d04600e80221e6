"""The heatmap as a picture: what it shows, its size, and what it depends on."""

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from io import BytesIO
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from ktrdr_pipelines.app.charts.heatmap import STATES, CellState, HeatGrid, draw

COLOURS = [tuple(bytes.fromhex(colour[1:])) for _name, colour in STATES]


def grid(rows: int, columns: int, *, months: int = 1, state: int = CellState.COMPLETE) -> HeatGrid:
    """Return a grid from 2004 on with cells of one state."""
    numbers = [2004 * 12 + months * column for column in range(columns)]
    return HeatGrid(
        "Coverage at 2024-03-05 12:00 UTC, 1d",
        tuple(f"SYMBOL.{row:04}" for row in range(rows)),
        tuple(date(number // 12, number % 12 + 1, 1) for number in numbers),
        np.full((rows, columns), state),
    )


def pixels_of(picture: bytes) -> np.ndarray:
    """Return the pixels of a PNG, each red, green and blue from 0 to 255."""
    levels = imread(BytesIO(picture), format="png")[..., :3] * 255
    return np.asarray(levels.round().astype(int))


def cells_along(pixels: np.ndarray) -> list[int]:
    """Return the states along a line of pixels, each once."""
    states = (COLOURS.index(colour) for colour in map(tuple, pixels.tolist()) if colour in COLOURS)
    return [state for state, _ in groupby(states)]


def chunks_of(picture: bytes) -> Iterator[bytes]:
    """Yield the types of the chunks of a PNG."""
    at = 8
    while at < len(picture):
        length, kind = struct.unpack_from(">I4s", picture, at)
        yield kind
        at += 12 + length


def test_symbols_go_down_and_time_goes_right() -> None:
    """Each cell has the colour of its state, in the order of the grid."""
    states = np.array([[one] * 20 for one in CellState])
    states[0] = np.arange(20) % 5
    drawn = HeatGrid("states", tuple("ABCDEF"), grid(6, 20).columns, states)
    pixels = pixels_of(draw(drawn))
    assert cells_along(pixels[74:, -40]) == [4, 1, 2, 3, 4, 5]
    assert cells_along(pixels[74 + 13, 60:]) == [one % 5 for one in range(20)]


@pytest.mark.parametrize(
    ("rows", "columns", "most"),
    [(0, 1, 120), (1, 1, 140), (1, 240, 140), (12, 60, 430), (200, 180, 1_710), (500, 80, 1_710)],
)
def test_a_picture_has_a_bounded_size(rows: int, columns: int, most: int) -> None:
    """One symbol has a tall row, hundreds share the height of a page."""
    height, width, _ = pixels_of(draw(grid(rows, columns))).shape
    assert width == 1_100
    assert 100 < height <= most


def test_not_even_the_largest_universe_makes_an_endless_picture() -> None:
    """More rows than pixels are possible."""
    picture = draw(grid(7_000, 2))
    assert pixels_of(picture).shape[0] == 6_110
    assert len(picture) < 1_000_000


@pytest.mark.parametrize("rows", [1, 12, 300])
def test_cells_are_exact_with_and_without_lines(rows: int) -> None:
    """Where cells are large they are separated by white, and no colour is mixed from two."""
    drawn = grid(rows, 24)
    drawn.states[:, 12:] = CellState.MISSING
    pixels = pixels_of(draw(drawn))[76:-40]
    middle = pixels[pixels.shape[0] // 2]
    assert cells_along(middle) == [CellState.COMPLETE, CellState.MISSING]
    own = np.array([COLOURS[CellState.COMPLETE], COLOURS[CellState.MISSING]])
    known = (middle[:, None, :] == own).all(axis=2).any(axis=1)
    assert known[200:-60].mean() > 0.9


def test_equal_grids_give_equal_bytes() -> None:
    """The file holds neither the time nor the program."""
    picture = draw(grid(3, 24))
    assert draw(grid(3, 24)) == picture
    assert set(chunks_of(picture)) == {b"IHDR", b"pHYs", b"IDAT", b"IEND"}


def test_the_users_plotting_settings_do_not_matter(tmp_path: Path) -> None:
    """Neither a style of the user nor a home without a place for a cache is seen or told."""
    (tmp_path / "matplotlibrc").write_text(
        "font.size: 30\naxes.facecolor: red\nsavefig.bbox: tight\nno.such.key: 1\n"
    )
    (tmp_path / "home").touch()
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from datetime import date\n"
        "import numpy as np\n"
        "from ktrdr_pipelines.app.charts.heatmap import HeatGrid, draw\n"
        "assert 'matplotlib' not in sys.modules\n"
        "drawn = HeatGrid('t', ('A',), (date(2024, 1, 1),), np.array([[1]]))\n"
        "sys.stdout.buffer.write(draw(drawn))\n"
    )
    unset = {"MPLCONFIGDIR", "MATPLOTLIBRC", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"}
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        check=False,
        cwd=tmp_path,
        env={**kept, "HOME": str(tmp_path / "home")},
    )
    assert done.stderr == b""
    expected = HeatGrid("t", ("A",), (date(2024, 1, 1),), np.array([[1]]))
    assert done.stdout == draw(expected)
