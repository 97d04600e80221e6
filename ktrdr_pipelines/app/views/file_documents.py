"""Documents of bars that are exported to files, and imported from them."""

from datetime import datetime
from typing import TYPE_CHECKING, Self

from ktrdr_pipelines.app.views.documents import Document, ErrorDocument, ResultDocument
from ktrdr_pipelines.errors import ExitCode, KtrdrError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ktrdr_pipelines.app.transfer.export import ExportedSeries
    from ktrdr_pipelines.app.transfer.imports import ImportedFile


class ExportedDocument(Document):
    """What was exported of one series.

    Attributes:
        path: the file; null if there was no bar to write, or it failed.
        bars: how many bars it has.
        first, last: the timestamps of the first and the last one.
        left_out: how many are not in it, as their price basis is unconfirmed.
        error: why the series could not be exported.
    """

    symbol: str
    timeframe: str
    path: str | None
    bars: int
    first: datetime | None
    last: datetime | None
    left_out: int
    error: ErrorDocument | None

    @classmethod
    def of(cls, found: "ExportedSeries") -> Self:
        """Return the document of an exported series."""
        return cls(
            symbol=found.symbol,
            timeframe=found.timeframe.value,
            path=None if found.path is None else str(found.path),
            bars=found.bars,
            first=found.first,
            last=found.last,
            left_out=found.left_out,
            error=ErrorDocument.of_any(found.error),
        )


class ExportDocument(ResultDocument):
    """The files of an export; ``bars`` is the number of all of them."""

    folder: str
    bars: int
    series: tuple[ExportedDocument, ...]

    @classmethod
    def of(cls, folder: "Path", found: "Sequence[ExportedSeries]") -> Self:
        """Return the document of an export, with the exit code of the command."""
        complete = all(one.is_complete for one in found)
        failed = any(one.error is not None for one in found)
        code = ExitCode.DONE if complete else ExitCode.INCOMPLETE
        return cls(
            complete=complete,
            exit_code=ExitCode.FAILED if failed else code,
            folder=str(folder),
            bars=sum(one.bars for one in found),
            series=tuple(map(ExportedDocument.of, found)),
        )


class BadRowDocument(Document):
    """A row that is not imported: its line in the file, from 1, and why."""

    line: int
    reason: str


class ImportedDocument(Document):
    """What was imported of one file.

    Attributes:
        name: the file, relative to the folder.
        symbol, timeframe: the series; null as far as the name states none.
        rows: how many rows the file has.
        bars: how many bars of it the store has now.
        added, changed, unchanged: how many of them are new, replaced others, were there already.
        first, last: the timestamps of the first and the last bar that was read.
        bad: the rows that are not imported.
        repeated: how many rows repeat another one.
        was_sorted: whether the rows came in order.
        ignored: the columns that are not read.
        without: the columns that the file lacks; their values are null.
        error: why nothing of it was imported.
    """

    name: str
    symbol: str | None
    timeframe: str | None
    rows: int
    bars: int
    added: int
    changed: int
    unchanged: int
    first: datetime | None
    last: datetime | None
    bad: tuple[BadRowDocument, ...]
    repeated: int
    was_sorted: bool
    ignored: tuple[str, ...]
    without: tuple[str, ...]
    error: ErrorDocument | None

    @classmethod
    def of(cls, found: "ImportedFile") -> Self:
        """Return the document of an imported file."""
        return cls(
            name=found.name,
            symbol=found.symbol or None,
            timeframe=found.timeframe and found.timeframe.value,
            rows=found.rows,
            bars=found.added + found.changed + found.unchanged,
            added=found.added,
            changed=found.changed,
            unchanged=found.unchanged,
            first=found.first,
            last=found.last,
            bad=tuple(BadRowDocument(line=one.line, reason=one.reason) for one in found.bad),
            repeated=found.repeated,
            was_sorted=found.was_sorted,
            ignored=found.ignored,
            without=found.without,
            error=ErrorDocument.of_any(found.error),
        )


class ImportDocument(ResultDocument):
    """The files of an import, and how many bars and bad rows all of them have."""

    source: str
    bars: int
    added: int
    changed: int
    bad_rows: int
    files: tuple[ImportedDocument, ...]
    catalog_error: ErrorDocument | None

    @classmethod
    def of(
        cls,
        source: "Path",
        found: "Sequence[ImportedFile]",
        catalog_error: KtrdrError | None = None,
    ) -> Self:
        """Return the document of an import, with the exit code of the command.

        An error of the catalog does not count: the bars are there, and queries see them.
        """
        files = tuple(map(ImportedDocument.of, found))
        complete = all(one.is_complete for one in found)
        code = ExitCode.DONE if complete else ExitCode.INCOMPLETE
        if not complete and all(one.error is not None or not one.bars for one in files):
            code = ExitCode.FAILED
        return cls(
            complete=complete,
            exit_code=code,
            source=str(source),
            bars=sum(one.bars for one in files),
            added=sum(one.added for one in files),
            changed=sum(one.changed for one in files),
            bad_rows=sum(len(one.bad) for one in files),
            files=files,
            catalog_error=ErrorDocument.of_any(catalog_error),
        )
