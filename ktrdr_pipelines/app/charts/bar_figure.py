"""Draw a chart of bars: candles or an envelope, volume below, and missing ranges shaded.

Up and down differ in colour and in filling, reasons in colour and in hatching, so that neither
needs colours to be told apart.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import numpy as np

from ktrdr_pipelines.app.charts.bar_chart import BarChart, segments
from ktrdr_pipelines.app.charts.drawing import DPI, FAINT_INK, INK, RULE, chart_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CANDLES: Final = 400
"""Bars that are drawn as candles; more are an envelope."""

_MOST_COLUMNS: Final = 540
"""Columns of an envelope: two pixels each."""

UP, DOWN = "#0072b2", "#d55e00"
LINE: Final = "#1f4e79"
BAND: Final = "#9cc3e0"

REASON_STYLES: Final = {
    "missing": ("#e69f00", "////"),
    "failed": ("#cc79a7", "\\\\\\\\"),
    "expired": ("#b8860b", "...."),
    "unconfirmed": ("#56b4e9", "////"),
    "contradicted": ("#882255", "xxxx"),
    "sparse": ("#d9c400", "...."),
    "no_data": ("#8a9199", "xxxx"),
    "blocked": ("#7e57a0", "\\\\\\\\"),
    "basis": ("#009e73", "----"),
    "before_start": ("#a7adb5", "////"),
    "unknown_sessions": ("#a7adb5", "...."),
}
"""Colour and hatching by reason: those of ``ktrdr gaps``, and two of a range outside of them."""

_SIZE_PX: Final = (1_200, 700)
_LEFT_PX, _RIGHT_PX, _HEAD_PX = 28, 84, 76
_TICKS_PX, _REASON_PX, _FOOT_PX = 46, 19, 12
_VOLUME_SHARE: Final = 0.19
_BETWEEN_PX: Final = 8
_MOST_REASONS: Final = 5
_MOST_DETAIL: Final = 110
_WIDE_PX: Final = (15, 64)
"""A shaded range of the first width has its number of bars upright, of the second across."""


def chart_form(chart: BarChart) -> str:
    """Return how bars are drawn: ``candles``, or ``envelope`` where there are too many."""
    return "candles" if len(chart) <= MOST_CANDLES else "envelope"


def bars_per_column(chart: BarChart) -> int:
    """Return how many bars one column shows."""
    return 1 if chart_form(chart) == "candles" else -(-len(chart) // _MOST_COLUMNS)


def bar_figure(chart: BarChart) -> "Figure":
    """Return the figure of a chart, 1,200 x 700 pixels.

    Its axes have the labels ``price`` and, if there are volumes, ``volume``. What stands for one
    bar, column or range is an artist of its own, or an element of a collection; ``gid`` tells which
    (``bodies``, ``wicks``, ``ranges``, ``close``, ``volume``, and the reason of a shaded range).
    """
    with chart_style():
        from matplotlib.figure import Figure

        width, height = _SIZE_PX
        reasons = _reason_texts(chart)
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
        bottom = _FOOT_PX + _REASON_PX * len(reasons) + _TICKS_PX
        room = height - _HEAD_PX - bottom
        volume = round(room * _VOLUME_SHARE) if chart.has_volume else 0
        low = bottom + volume + (_BETWEEN_PX if volume else 0)
        across = _LEFT_PX / width, (width - _LEFT_PX - _RIGHT_PX) / width
        price = figure.add_axes(
            (across[0], low / height, across[1], (height - _HEAD_PX - low) / height), label="price"
        )
        panels = [price]
        if volume:
            panels.append(
                figure.add_axes(
                    (across[0], bottom / height, across[1], volume / height), label="volume"
                )
            )
        for axes in panels:
            _prepare(axes, chart)
        columns = segments(chart, bars_per_column(chart))
        if chart_form(chart) == "candles":
            _draw_candles(price, chart)
        else:
            _draw_envelope(price, chart, columns)
        if volume:
            _draw_volume(panels[1], chart, columns)
        _draw_shades(panels, chart, across[1] * width / chart.width)
        _set_ticks(panels, chart)
        _tag_last_close(price, chart)
        _write_head(figure, chart, len(columns))
        _write_reasons(figure, reasons)
    return figure


def _prepare(axes: "Axes", chart: BarChart) -> None:
    axes.set_xlim(0, chart.width)
    axes.yaxis.tick_right()
    axes.tick_params(labelsize=8.5, length=0, color=RULE, labelcolor=FAINT_INK, pad=6)
    axes.spines[:].set_color(RULE)
    axes.grid(visible=True, color=RULE, linewidth=0.7)
    axes.set_axisbelow(True)


def _draw_candles(axes: "Axes", chart: BarChart) -> None:
    """Draw wicks and bodies; a bar that closes at or above its open is hollow."""
    from matplotlib.collections import LineCollection, PolyCollection

    is_up = chart.close >= chart.open
    low, high = np.minimum(chart.open, chart.close), np.maximum(chart.open, chart.close)
    px = (_SIZE_PX[0] - _LEFT_PX - _RIGHT_PX) / chart.width
    line = 1.0 if px >= 4 else 0.7
    half = 0.34 if px >= 3 else 0.4
    colours = np.where(is_up, UP, DOWN)
    wicks = [
        ((at, first), (at, end))
        for at, first, end in (
            *zip(chart.at, chart.low, low, strict=True),
            *zip(chart.at, high, chart.high, strict=True),
        )
    ]
    axes.add_collection(
        LineCollection(wicks, colors=[*colours, *colours], linewidths=line, gid="wicks", zorder=3)
    )
    bodies = [
        ((at - half, first), (at + half, first), (at + half, end), (at - half, end))
        for at, first, end in zip(chart.at, low, high, strict=True)
    ]
    axes.add_collection(
        PolyCollection(
            bodies,
            facecolors=["white" if up else DOWN for up in is_up],
            edgecolors=list(colours),
            linewidths=line,
            gid="bodies",
            zorder=4,
        )
    )
    _limit_prices(axes, chart)


def _draw_envelope(axes: "Axes", chart: BarChart, columns: list[tuple[int, int]]) -> None:
    """Draw from the lowest to the highest price of each column, and a line of its last closes."""
    from matplotlib.collections import LineCollection

    ranges: list[tuple[tuple[float, float], tuple[float, float]]] = []
    line_x: list[float] = []
    line_y: list[float] = []
    end = 0.0
    for low, high in columns:
        at = float(chart.at[low:high].mean())
        least, most = chart.low[low:high].min(), chart.high[low:high].max()
        ranges.append(((at, least), (at, most)))
        if line_x and chart.at[low] - 1.0 > end + 1e-9:  # a missing range interrupts the line
            line_x.append(np.nan)
            line_y.append(np.nan)
        line_x.append(at)
        line_y.append(float(chart.close[high - 1]))
        end = float(chart.at[high - 1])
    px = (_SIZE_PX[0] - _LEFT_PX - _RIGHT_PX) / chart.width * bars_per_column(chart)
    axes.add_collection(
        LineCollection(
            ranges,
            colors=BAND,
            linewidths=max(0.8, px * 72 / DPI),
            capstyle="butt",
            gid="ranges",
            zorder=3,
        )
    )
    axes.plot(line_x, line_y, color=LINE, linewidth=1.0, gid="close", zorder=4)
    _limit_prices(axes, chart)


def _limit_prices(axes: "Axes", chart: BarChart) -> None:
    low, high = float(chart.low.min()), float(chart.high.max())
    margin = (high - low) * 0.05 or abs(high) * 0.01 or 1.0
    axes.set_ylim(low - margin, high + margin)
    axes.ticklabel_format(axis="y", style="plain", useOffset=False)
    # The tag of the newest close covers what is near it.
    covered = 0.025 * (high - low + 2 * margin)
    ticks = axes.get_yticks()
    inside = (ticks > low - margin) & (ticks < high + margin)
    axes.set_yticks(ticks[inside & (np.abs(ticks - chart.close[-1]) > covered)])


def _draw_volume(axes: "Axes", chart: BarChart, columns: list[tuple[int, int]]) -> None:
    """Draw the volume of each column, of candles in the colour of their direction."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    first = np.array([low for low, _ in columns])
    last = np.array([high - 1 for _, high in columns])
    totals = np.add.reduceat(np.nan_to_num(chart.volume), first)
    is_up = chart.close[last] >= chart.open[first]
    colours = [UP if up else DOWN for up in is_up]
    bars = axes.bar(
        (chart.at[first] + chart.at[last]) / 2,
        totals,
        width=chart.at[last] - chart.at[first] + (0.72 if len(columns) == len(chart) else 1),
        color=colours if chart_form(chart) == "candles" else LINE,
        alpha=0.55,
        linewidth=0,
        zorder=3,
    )
    for one in bars:
        one.set_gid("volume")
    axes.set_ylim(0, max(float(totals.max()), 1.0) * 1.08)
    axes.yaxis.set_major_locator(MaxNLocator(3, min_n_ticks=2))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.text(
        0.006,
        0.93,
        "Volume",
        transform=axes.transAxes,
        va="top",
        size=8.5,
        color=FAINT_INK,
        bbox={"boxstyle": "round,pad=0.2", "fc": "white", "ec": "none", "alpha": 0.75},
        zorder=6,
    )


def _draw_shades(panels: Iterable["Axes"], chart: BarChart, px_per_bar: float) -> None:
    for axes in panels:
        for one in chart.shades or ():
            colour, hatch = REASON_STYLES[one.missing.reason]
            axes.axvspan(one.first, one.end, facecolor=colour, alpha=0.16, lw=0, zorder=1)
            area = axes.axvspan(
                one.first, one.end, facecolor="none", edgecolor=colour, hatch=hatch, lw=0, zorder=2
            )
            area.set(gid=one.missing.reason, hatch_linewidth=0.4)
            px = (one.end - one.first) * px_per_bar
            if axes.get_label() == "price" and one.lacking and px >= _WIDE_PX[0]:
                axes.text(
                    (one.first + one.end) / 2,
                    0.985,
                    _counted(one.lacking, "bar"),
                    transform=axes.get_xaxis_transform(),
                    rotation=90 if px < _WIDE_PX[1] else 0,
                    ha="center",
                    va="top",
                    size=8,
                    color=INK,
                    bbox={"boxstyle": "round,pad=0.2", "fc": "white", "ec": "none", "alpha": 0.75},
                    zorder=6,
                )


def _set_ticks(panels: list["Axes"], chart: BarChart) -> None:
    ticks = chart.ticks()
    for axes in panels:
        axes.set_xticks([one.at for one in ticks], [""] * len(ticks))
    texts = [f"{one.text}\n{one.context}".rstrip() for one in ticks]
    labels = panels[-1].set_xticklabels(texts)
    # Long labels at the ends of the axis would leave the figure.
    px = (_SIZE_PX[0] - _LEFT_PX - _RIGHT_PX) / chart.width
    for one, label in zip(ticks, labels, strict=True):
        if one.at * px < _LEFT_PX:
            label.set_horizontalalignment("left")
        elif (chart.width - one.at) * px < _LEFT_PX:
            label.set_horizontalalignment("right")


def _tag_last_close(axes: "Axes", chart: BarChart) -> None:
    """Mark the newest close at the axis of prices."""
    last = float(chart.close[-1])
    colour = UP if last >= chart.open[-1] else DOWN
    axes.axhline(last, color=colour, linewidth=0.7, linestyle=(0, (4, 3)), zorder=2, gid="last")
    axes.annotate(
        price_text(last),
        (1, last),
        xycoords=axes.get_yaxis_transform(),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        size=8.5,
        color="white",
        bbox={"boxstyle": "round,pad=0.28", "fc": colour, "ec": colour},
        annotation_clip=False,
    )


def _write_head(figure: "Figure", chart: BarChart, columns: int) -> None:
    width, height = _SIZE_PX
    left, right = _LEFT_PX / width, 1 - _RIGHT_PX / width
    figure.text(
        left,
        1 - 16 / height,
        f"{chart.symbol}  {chart.timeframe}",
        size=15,
        weight="bold",
        va="top",
        color=INK,
    )
    form, bars = chart_form(chart), _counted(len(chart), "bar")
    basis = "prices as stored" if chart.is_raw else "on today's price basis"
    text = (
        f"{bars} {_range_text(chart)}, {basis}{f', in {chart.currency}' if chart.currency else ''}"
    )
    figure.text(left, 1 - 44 / height, text, size=9.5, va="top", color=FAINT_INK)
    hint = "hollow: closes at or above its open, filled: below"
    if form == "envelope":
        hint = f"{columns:,} columns of up to {_counted(bars_per_column(chart), 'bar')}: "
        hint += "high to low, and the last close"
    figure.text(right, 1 - 22 / height, hint, size=8.5, va="top", ha="right", color=FAINT_INK)


def _range_text(chart: BarChart) -> str:
    local = chart.local_times()
    first, last = local[0].item(), local[-1].item()
    if chart.timeframe.is_intraday:
        return f"from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} {chart.zone}"
    weeks = "weeks of " if chart.timeframe.length.days > 1 else "session dates "
    return f"of {weeks}{first:%Y-%m-%d} to {last:%Y-%m-%d}"


def _reason_texts(chart: BarChart) -> list[tuple[str, str]]:
    """Return reason and text of each line of the legend, those with the most bars first."""
    if chart.shades is None:
        return [("", f"{chart.symbol} is not in the universe: it is not known what is missing")]
    if not chart.shades:
        return [("", "nothing is missing in this range")]
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for one in chart.shades:
        found[one.missing.reason, one.missing.detail].append(one.lacking)
    lines = []
    for (reason, detail), bars in sorted(found.items(), key=lambda one: -sum(one[1])):
        why = f", {detail}" if detail else ""
        why = why if len(why) <= _MOST_DETAIL else f"{why[:_MOST_DETAIL]}..."
        count = f"{_counted(sum(bars), 'bar')} in {_counted(len(bars), 'range')}"
        lines.append((reason, f"{reason.replace('_', ' ')}: {count}{why}"))
    if len(lines) > _MOST_REASONS:
        more = len(lines) - _MOST_REASONS + 1
        lines = [
            *lines[: _MOST_REASONS - 1],
            ("", f"and {more} more reasons, as `ktrdr gaps` lists"),
        ]
    if not chart.is_to_scale:
        reason, text = lines[-1]
        lines[-1] = reason, f"{text} (widths of ranges are not to scale)"
    return lines


def _write_reasons(figure: "Figure", reasons: list[tuple[str, str]]) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(
            facecolor="none" if not reason else _mixed(REASON_STYLES[reason][0]),
            edgecolor="none" if not reason else REASON_STYLES[reason][0],
            hatch=None if not reason else REASON_STYLES[reason][1],
            linewidth=0,
            label=text,
        )
        for reason, text in reasons
    ]
    is_plain = not any(reason for reason, _ in reasons)
    legend = figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(_LEFT_PX / _SIZE_PX[0], _FOOT_PX / _SIZE_PX[1]),
        borderaxespad=0,
        borderpad=0,
        handlelength=0 if is_plain else 2.0,
        handletextpad=0 if is_plain else 0.8,
        handleheight=1,
        labelspacing=0.55,
        fontsize=8.5,
        frameon=False,
        labelcolor=INK,
    )
    legend.set_gid("reasons")


def _mixed(colour: str) -> tuple[float, float, float]:
    """Return a colour as it is when shaded over white."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (1 - 0.16 * (1 - one) for one in parts)
    return red, green, blue


def price_text(price: float) -> str:
    """Return a price with two decimals, or with more where it is small."""
    decimals = 2 if abs(price) >= 10 else 5 if abs(price) >= 0.1 else 8
    return f"{price:,.{decimals}f}"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
