"""The document of a chart that was written."""

from collections.abc import Iterable
from datetime import datetime
from typing import Self

from ktrdr_pipelines.app.charts.bar_chart import Shade
from ktrdr_pipelines.app.views.documents import Document, ResultDocument


class ShadedGapDocument(Document):
    """A missing range that a chart shades; the end is exclusive, ``bars`` are those missing."""

    start: datetime
    end: datetime
    bars: int
    reason: str
    detail: str

    @classmethod
    def all_of(cls, shades: Iterable[Shade]) -> tuple[Self, ...]:
        """Return the documents of the missing ranges of a chart."""
        return tuple(
            cls(
                start=one.missing.start,
                end=one.missing.end,
                bars=one.lacking,
                reason=one.missing.reason,
                detail=one.missing.detail,
            )
            for one in shades
        )


class PlotDocument(ResultDocument):
    """A chart of bars that was written.

    Attributes:
        complete: whether nothing is missing in the range, and that is known.
        path: the file; ``format`` is that of its suffix.
        bars: how many bars it shows.
        form: ``candles``, or ``envelope`` with ``bars_per_column``.
        start, end: the timestamps of the oldest and of the newest bar.
        zone: the time zone of the axis.
        raw: whether bars are as stored; else they are on today's price basis.
        gaps: what is shaded; null if the symbol is not in the universe, so that it is not known.
    """

    path: str
    format: str
    symbol: str
    timeframe: str
    bars: int
    form: str
    bars_per_column: int
    start: datetime
    end: datetime
    zone: str
    raw: bool
    gaps: tuple[ShadedGapDocument, ...] | None
