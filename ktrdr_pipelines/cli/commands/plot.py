"""``ktrdr plot``: draw the bars of a series, with volume and with what is missing.

Not here: what is drawn (``app.charts.bar_chart``) and how (``app.charts.bar_figure``), the heatmap
of the coverage of many series (``ktrdr gaps --plot``).
"""

from pathlib import Path
from typing import Annotated

import typer

from ktrdr_pipelines.cli.completion import complete_symbol, complete_timeframe
from ktrdr_pipelines.cli.output import AsJson, counted, say, say_json, warn_of_problem


def plot(
    symbol: Annotated[
        str,
        typer.Argument(
            metavar="SYMBOL", help="A symbol with bars.", autocompletion=complete_symbol
        ),
    ],
    timeframe: Annotated[
        str,
        typer.Argument(
            metavar="TIMEFRAME",
            help="One of 1m 5m 15m 30m 1h 4h 1d 1w.",
            autocompletion=complete_timeframe,
        ),
    ],
    *,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="DATE|INSTANT",
            help="First session date to include, such as 2024-01-05, or an instant with a zone, "
            "such as 2024-01-05T14:30:00Z. [default: that of the newest 200 bars]",
        ),
    ] = None,
    end: Annotated[
        str | None,
        typer.Option(
            metavar="DATE|INSTANT",
            help="Session date or instant to stop before; it is not included. [default: now]",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The file to write, of the format that its suffix names: .png, .svg or .pdf. "
            "[default: SYMBOL_TIMEFRAME.png in the current folder]",
        ),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Draw prices as stored, not on today's price basis.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Draw candles and volume of a series to a file, with what is missing shaded by its reason.

    Bars stand at equal distances: nights, weekends and holidays take no room, missing bars do. More
    than 400 bars are drawn as an envelope: from the highest to the lowest price of each column of
    bars, with a line of closes. Times are those of the exchange. No request is sent to a gateway.

    Example: ktrdr plot AAPL 1d --start 2024-01-02 --out aapl.png

    Exit codes: 0 drawn, with or without gaps, 1 a file cannot be read or written, 2 bad usage, 3
    the store has no bars in the range.
    """
    from ktrdr_pipelines.app.charts.bar_chart import bar_chart
    from ktrdr_pipelines.app.charts.bar_figure import bar_figure, bars_per_column, chart_form
    from ktrdr_pipelines.app.charts.drawing import image_bytes, image_format_of, write_image
    from ktrdr_pipelines.app.views.chart_documents import PlotDocument, ShadedGapDocument
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.domain.planning.date_bounds import parse_date_range

    image_format = "png" if out is None else image_format_of(out)
    date_range = parse_date_range(start, end)
    workspace = Workspace.open()
    warn_of_problem(workspace)
    chart = bar_chart(workspace, symbol, timeframe, date_range, raw=raw)
    path = Path(f"{symbol}_{timeframe}.png") if out is None else out
    write_image(path, image_bytes(bar_figure(chart), image_format))
    shades = chart.shades
    if as_json:
        say_json(
            PlotDocument(
                complete=shades == (),
                exit_code=0,
                path=str(path),
                format=image_format,
                symbol=symbol,
                timeframe=timeframe,
                bars=len(chart),
                form=chart_form(chart),
                bars_per_column=bars_per_column(chart),
                start=chart.first,
                end=chart.last,
                zone=chart.zone,
                raw=raw,
                gaps=None if shades is None else ShadedGapDocument.all_of(shades),
            )
        )
        return
    form = chart_form(chart)
    drawn = "candles" if form == "candles" else f"an envelope, {bars_per_column(chart)} a column"
    say(f"{counted(len(chart), 'bar')} of {symbol} {timeframe} drawn as {drawn}: {path}")
    if shades is None:
        say(f"{symbol} is not in the universe: it is not known what is missing")
    elif shades:
        missing = counted(sum(one.lacking for one in shades), "bar")
        say(f"{counted(len(shades), 'range')} shaded, in which {missing} are missing")
