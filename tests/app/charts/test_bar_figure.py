"""The figure of a chart of bars: each bar, volume, missing range and tick that it shows."""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from ktrdr_pipelines.app.charts.bar_chart import BarChart
from ktrdr_pipelines.app.charts.bar_figure import (
    DOWN,
    REASON_STYLES,
    bar_figure,
    bars_per_column,
    chart_form,
    price_text,
)
from ktrdr_pipelines.app.charts.drawing import image_bytes
from ktrdr_pipelines.app.reading.readiness import BEFORE_START, UNKNOWN_SESSIONS
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.planning.gaps import GapReason
from tests.support.readable import ReadableStore, random_bars

Chart = Callable[..., BarChart]


def panel(figure: Figure, label: str) -> Any:
    """Return the axes of a label."""
    (found,) = (one for one in figure.axes if one.get_label() == label)
    return found


def marked(axes: Any, gid: str) -> list[Any]:
    """Return the artists of axes with a gid."""
    return [one for one in axes.get_children() if one.get_gid() == gid]


def texts_of(figure: Figure) -> list[str]:
    """Return the texts of the legend and around the axes."""
    legend = [one.get_text() for one in figure.legends[0].get_texts()]
    return [*legend, *(one.get_text() for one in figure.texts)]


def test_each_bar_is_a_candle_with_its_volume(readable: ReadableStore, chart: Chart) -> None:
    """Bodies span open and close, wicks low and high, and down is filled."""
    readable.fill("AAPL", "1d", "2023-01-03", "2024-07-06")
    found = chart("AAPL", "1d")
    figure = bar_figure(found)
    price, volume = panel(figure, "price"), panel(figure, "volume")
    (bodies,), (wicks,) = marked(price, "bodies"), marked(price, "wicks")
    corners = [path.get_extents() for path in bodies.get_paths()]
    assert len(corners) == len(found) == 200
    assert [one.y0 for one in corners] == pytest.approx(np.minimum(found.open, found.close))
    assert [one.y1 for one in corners] == pytest.approx(np.maximum(found.open, found.close))
    ends = np.array([path.vertices for path in wicks.get_paths()])
    assert ends[:200, 0, 1] == pytest.approx(found.low)
    assert ends[200:, 1, 1] == pytest.approx(found.high)
    fills = ["#{:02x}{:02x}{:02x}".format(*(one[:3] * 255).astype(int)) for one in
             bodies.get_facecolors()]  # fmt: skip
    assert [fill == DOWN for fill in fills] == (found.close < found.open).tolist()
    assert [bar.get_height() for bar in marked(volume, "volume")] == found.volume.tolist()
    assert chart_form(found) == "candles"
    assert "200 bars of session dates 2023-09-19 to 2024-07-05, on today's price basis, in USD" in (
        texts_of(figure)
    )
    assert "nothing is missing in this range" in texts_of(figure)


def test_missing_ranges_are_shaded_and_explained(readable: ReadableStore, chart: Chart) -> None:
    """Both panels are shaded where bars are missing, and the legend says how many, and why."""
    without = ["2024-06-12", "2024-06-13", "2024-06-24"]
    readable.fill("AAPL", "1d", "2024-05-01", "2024-07-06", without=without)
    found = chart("AAPL", "1d", "2024-05-01")
    figure = bar_figure(found)
    for axes in figure.axes:
        areas = [(one.get_x(), one.get_width()) for one in marked(axes, "missing")]
        assert areas == [(29.0, 2.0), (36.0, 1.0)]
    counts = [one.get_text() for one in panel(figure, "price").texts]
    assert {"2 bars", "1 bar", price_text(found.close[-1])} == set(counts)
    assert "missing: 3 bars in 2 ranges, no response has covered it yet" in texts_of(figure)


def test_ticks_label_the_lower_panel(readable: ReadableStore, chart: Chart) -> None:
    """Session dates and the exchange's time are at the positions of the bars."""
    readable.fill("AAPL", "5m", "2024-07-02", "2024-07-06")
    found = chart("AAPL", "5m", "2024-07-02")
    figure = bar_figure(found)
    labels = [one.get_text() for one in panel(figure, "volume").get_xticklabels()]
    assert labels[0] == "09:30\nTue 2 Jul 2024"
    assert "09:30\nFri 5 Jul 2024" in labels
    assert {one.get_text() for one in panel(figure, "price").get_xticklabels()} == {""}
    assert any("America/New_York" in text for text in texts_of(figure))


def test_many_bars_are_an_envelope(readable: ReadableStore, chart: Chart) -> None:
    """Each column spans the prices of its bars, sums their volume, and no bar is left out."""
    readable.fill("AAPL", "1m", "2024-05-01", "2024-07-06", without=["2024-06-05"])
    found = chart("AAPL", "1m", "2024-05-01")
    figure = bar_figure(found)
    price = panel(figure, "price")
    (ranges,), (close,) = marked(price, "ranges"), marked(price, "close")
    ends = np.array([path.vertices[:, 1] for path in ranges.get_paths()])
    assert (chart_form(found), marked(price, "bodies")) == ("envelope", [])
    assert 500 < len(ends) <= 545
    assert len(ends) * bars_per_column(found) >= len(found) > 16_000
    assert (ends[:, 0].min(), ends[:, 1].max()) == (found.low.min(), found.high.max())
    assert np.isnan(close.get_ydata()).sum() == 1  # the line is interrupted where bars are missing
    volumes = [bar.get_height() for bar in marked(panel(figure, "volume"), "volume")]
    assert sum(volumes) == found.volume.sum()
    assert any("high to low" in text for text in texts_of(figure))


def test_bars_without_volume_have_one_panel(readable: ReadableStore, chart: Chart) -> None:
    """Midpoints of currencies have none."""
    calendar, series = readable.calendar("EURUSD"), readable.series("EURUSD", "1h")
    days = [np.datetime64(one).item() for one in ("2024-07-03", "2024-07-06")]
    bars = random_bars(calendar, series.timeframe, *days)
    at = bars.schema.get_field_index("volume")
    nulls = pa.nulls(bars.num_rows, pa.float64())
    readable.save("EURUSD", "1h", bars.set_column(at, bars.schema.field("volume"), nulls),
                  Coverage(IntervalSet()))  # fmt: skip
    figure = bar_figure(chart("EURUSD", "1h"))
    assert [one.get_label() for one in figure.axes] == ["price"]
    assert panel(figure, "price").get_xticklabels()[0].get_text() != ""


def test_every_reason_has_a_style_of_its_own() -> None:
    """No two reasons share colour and hatching."""
    assert {*GapReason, BEFORE_START, UNKNOWN_SESSIONS} == set(REASON_STYLES)
    assert len(set(REASON_STYLES.values())) == len(REASON_STYLES)


@pytest.mark.parametrize(
    ("image_format", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_equal_charts_are_equal_files(
    readable: ReadableStore, chart: Chart, image_format: str, begins: bytes
) -> None:
    """A file of each format holds neither the time nor the program."""
    readable.fill("AAPL", "1d", "2024-06-03", "2024-07-06", without=["2024-06-12"])
    found = chart("AAPL", "1d", "2024-06-03")
    first, second = (image_bytes(bar_figure(found), image_format) for _ in range(2))
    assert first.startswith(begins)
    assert first == second
    if image_format == "png":
        pixels = imread(BytesIO(first), format="png")
        assert pixels.shape[:2] == (700, 1200)
        assert len(np.unique((pixels[..., :3] @ [1, 256, 65_536]).ravel())) > 50
