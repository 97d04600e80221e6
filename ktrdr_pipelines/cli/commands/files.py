"""``ktrdr export``: write bars to files of other programs.

Not here: what the files hold (``app.transfer``).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ktrdr_pipelines.cli.output import AsJson, counted, instant_text, note, say, say_json, say_table

if TYPE_CHECKING:
    from ktrdr_pipelines.app.transfer.export import ExportedSeries

_EXPORTED: Final = {
    "file": "left",
    "bars": "right",
    "first": "left",
    "last": "left",
}


def export(  # noqa: PLR0913, PLR0917  (typer makes an option of each)
    symbols: Annotated[
        str,
        typer.Argument(metavar="SYMBOL[,SYMBOL...]", help="Symbols with bars."),
    ],
    timeframes: Annotated[
        str | None,
        typer.Argument(metavar="TIMEFRAME[,...]", help="Timeframes. [default: all with bars]"),
    ] = None,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="Folder of the files; made if there is none."),
    ] = ...,  # type: ignore[assignment]
    kind: Annotated[
        str,
        typer.Option("--format", metavar="csv|parquet|arrow", help="Format of the files."),
    ] = "csv",
    start: Annotated[
        str | None,
        typer.Option(metavar="DATE|INSTANT", help="First session date, or instant. [default: all]"),
    ] = None,
    end: Annotated[
        str | None,
        typer.Option(
            metavar="DATE|INSTANT",
            help="First session date, or instant, not wanted. [default: all]",
        ),
    ] = None,
    zone: Annotated[
        str,
        typer.Option("--timezone", "--tz", metavar="ZONE", help="Time zone of instants."),
    ] = "UTC",
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME...]",
            help="Columns after ts, out of session_date, open, high, low, close, volume, average, "
            "bar_count, closes_at, and with --raw basis. [default: open,high,low,close,volume]",
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="ktrdr", help="Write CSV as KTRDR did: date,open,high,low,close,volume in UTC."
        ),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Bars as stored, not on one price basis.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that exist.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write bars to files, one a series: SYMBOL_TIMEFRAME.csv, .parquet or .arrow.

    No request is sent. The files hold what read_bars returns: bars on today's price basis, with
    each float to its last digit. Bars of days and weeks have a date, all others an instant.

    Example: ktrdr export AAPL,MSFT 1h,1d --format parquet --out export

    Exit codes: 0 done, 1 a series cannot be read or a file cannot be written, 2 bad usage, 3 a
    series has no bars, or some are left out as their price basis is unconfirmed.
    """
    from ktrdr_pipelines.app.reading.store_parts import StoreParts
    from ktrdr_pipelines.app.transfer.export import export_options, export_series, exported_keys
    from ktrdr_pipelines.app.views.file_documents import ExportDocument
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.cli.output import warn_of_problem

    names = None if columns is None else [one.strip() for one in columns.split(",")]
    options = export_options(
        out,
        kind,
        start=start,
        end=end,
        columns=names,
        zone=zone,
        layout=layout,
        raw=raw,
        overwrite=overwrite,
    )
    workspace = Workspace.open()
    warn_of_problem(workspace)
    keys = exported_keys(workspace, symbols, timeframes)
    parts = StoreParts(workspace.layout, workspace.clock.real_now)
    found = export_series(parts, keys, options)
    document = ExportDocument.of(options.folder, found)
    if as_json:
        say_json(document)
    else:
        _say_exported(found)
        say(f"{counted(document.bars, 'bar')} in {options.folder}")
    raise typer.Exit(document.exit_code)


def _say_exported(found: "list[ExportedSeries]") -> None:
    say_table(
        _EXPORTED,
        (
            (one.path.name, f"{one.bars:,}", _text(one, one.first), _text(one, one.last))
            for one in found
            if one.path is not None
        ),
    )
    for one in found:
        series = f"{one.symbol} {one.timeframe}"
        if one.error is not None:
            note(f"{series}: {one.error}")
        elif one.path is None and not one.left_out:
            note(f"{series}: no bars of this period are on disk")
        if one.left_out:
            note(
                f"{series}: {counted(one.left_out, 'bar')} on an unconfirmed price basis left out. "
                "Hint: --raw exports them as stored"
            )


def _text(one: "ExportedSeries", at: object) -> str:
    from datetime import datetime

    if not isinstance(at, datetime):
        return ""
    return instant_text(at) if one.timeframe.is_intraday else f"{at:%Y-%m-%d}"
