"""``ktrdr export`` and ``ktrdr import-csv``: bars to and from files of other programs.

Not here: what the files hold (``app.transfer``).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ktrdr_pipelines.cli.arguments import with_files
from ktrdr_pipelines.cli.completion import complete_symbols, complete_timeframes
from ktrdr_pipelines.cli.output import AsJson, counted, instant_text, note, say, say_json, say_table

if TYPE_CHECKING:
    from ktrdr_pipelines.app.transfer.export import ExportedSeries
    from ktrdr_pipelines.app.transfer.imports import ImportedFile

_EXPORTED: Final = {
    "file": "left",
    "bars": "right",
    "first": "left",
    "last": "left",
}

_IMPORTED: Final = {
    "file": "left",
    "series": "left",
    "rows": "right",
    "added": "right",
    "changed": "right",
    "bad": "right",
}

MOST_BAD_ROWS: Final = 10
"""Bad rows of a file that are printed; --json prints all."""


def export(  # noqa: PLR0913, PLR0917  (typer makes an option of each)
    symbols: Annotated[
        str,
        typer.Argument(
            metavar="SYMBOL[,SYMBOL...]",
            help="Symbols with bars; ALL, patterns and @FILE too.",
            callback=with_files,
            autocompletion=complete_symbols,
        ),
    ],
    timeframes: Annotated[
        str | None,
        typer.Argument(
            metavar="TIMEFRAME[,...]",
            help="Timeframes. [default: all with bars]",
            autocompletion=complete_timeframes,
        ),
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
    origin: Annotated[
        str | None,
        typer.Option(
            metavar="gateway|import", help="Bars of one origin alone. [default: all, see below]"
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that exist.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write bars to files, one a series: SYMBOL_TIMEFRAME.csv, .parquet or .arrow.

    No request is sent. The files hold what read_bars returns: bars on today's price basis, with
    each float to its last digit. Bars of days and weeks have a date, all others an instant. Where
    the store has no bar of the gateway, imported ones are there, and the last column is origin.

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
        origin=origin,
    )
    workspace = Workspace.open()
    warn_of_problem(workspace)
    parts = StoreParts(workspace.layout, workspace.clock.real_now)
    keys = exported_keys(workspace, parts, symbols, timeframes, origin=options.origin)
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


def import_csv(  # noqa: PLR0917  (typer makes an option of each)
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Folder of CSV files named SYMBOL_TIMEFRAME.csv, or one file."
        ),
    ],
    zone: Annotated[
        str | None,
        typer.Option(
            "--timezone",
            "--tz",
            metavar="ZONE",
            help="Time zone of times that have no offset, such as America/New_York or UTC.",
        ),
    ] = None,
    mapping: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML file that states other names and shapes."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Import nothing of a file that has a bad row.")
    ] = False,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Replace bars that were imported before with other values; the older are kept as "
            "revisions.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Import bars of CSV files into a store of their own, data/imported.

    Queries and reads show them where the store has no bar of the gateway, with origin import. They
    fill no gap, are never adjusted, and nothing is requested less because of them. Files have a
    line of names (date, open, high, low, close, volume and the like); symbols are those of the
    universe. A row that is no bar is left out and reported with its line.

    Example: ktrdr import-csv ktrdr/data --timezone America/New_York

    Exit codes: 0 done, 1 nothing could be imported, 2 bad usage, 3 a file or row is not imported.
    """
    from ktrdr_pipelines.app.transfer.imports import (
        ImportOptions,
        import_files,
        try_refresh_views,
    )
    from ktrdr_pipelines.app.views.file_documents import ImportDocument
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.cli.output import warn_of_problem

    workspace = Workspace.open()
    warn_of_problem(workspace)
    options = ImportOptions(source.expanduser(), zone, mapping, strict, replace)
    found = import_files(workspace, options)
    has_changed = any(one.added or one.changed for one in found)
    error = try_refresh_views(workspace) if has_changed else None
    document = ImportDocument.of(options.source, found, error)
    if as_json:
        say_json(document)
    else:
        _say_imported(found)
        bars = f"{counted(document.added, 'bar')} added, {document.changed:,} changed"
        say(f"{bars}, {counted(document.bad_rows, 'bad row')}")
        if error is not None:
            note(f"the bars are imported, but the catalog is older: {error}")
    raise typer.Exit(document.exit_code)


def _say_imported(found: "list[ImportedFile]") -> None:
    rows = [
        (
            one.name,
            f"{one.symbol} {one.timeframe or ''}",
            f"{one.rows:,}",
            f"{one.added:,}",
            f"{one.changed:,}",
            f"{len(one.bad):,}",
        )
        for one in found
        if one.error is None
    ]
    if rows:
        say_table(_IMPORTED, rows)
    for one in found:
        if one.error is not None:
            note(str(one.error))
        for row in one.bad[:MOST_BAD_ROWS]:
            note(f"{one.name}, line {row.line}: {row.reason}")
        if len(one.bad) > MOST_BAD_ROWS:
            more = counted(len(one.bad) - MOST_BAD_ROWS, "bad row")
            note(f"{one.name}: {more} more; --json prints all")
        if one.repeated:
            note(f"{one.name}: {counted(one.repeated, 'row')} left out that repeat another one")
        if not one.was_sorted:
            note(f"{one.name}: its rows were not in order of time; they are sorted")
        if one.ignored:
            note(f"{one.name}: columns not read: {', '.join(one.ignored)}")
        if "volume" in one.without:
            note(f"{one.name}: it has no volume")
