"""Documents of bars that are exported to files, and imported from them."""

from datetime import datetime
from typing import TYPE_CHECKING, Self

from ktrdr_pipelines.app.views.documents import Document, ErrorDocument, ResultDocument
from ktrdr_pipelines.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ktrdr_pipelines.app.transfer.export import ExportedSeries


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
