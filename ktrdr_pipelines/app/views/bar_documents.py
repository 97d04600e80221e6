"""Documents of bars, and of the symbols and timeframes that have any."""

from datetime import datetime
from typing import Any

from ktrdr_pipelines.app.views.documents import Document


class SymbolDocument(Document):
    """A symbol that has bars; ``type`` and ``exchange`` are those of the universe.

    A symbol that has left the universe keeps its bars and is listed with ``in_universe`` false.
    """

    symbol: str
    name: str
    type: str
    exchange: str
    available_timeframes: tuple[str, ...]
    in_universe: bool = True


class TimeframeDocument(Document):
    """A timeframe."""

    id: str
    name: str
    description: str


class PointDocument(Document):
    """One bar; ``timestamp`` is its start."""

    timestamp: datetime
    open: float
    high: float
    low: float
    close: float
    volume: float | None


class BarsDocument(Document):
    """Bars of a series on today's price basis.

    Attributes:
        dates: the bar timestamps, in order.
        ohlcv: ``[open, high, low, close, volume]`` of each; volume is null where IB has none.
        points: the same bars as objects, where they were asked for.
        metadata: symbol, timeframe, count, start, end, and what is missing of the range.
    """

    dates: tuple[datetime, ...]
    ohlcv: tuple[tuple[float | None, ...], ...]
    points: tuple[PointDocument, ...] | None = None
    metadata: dict[str, Any]


class RangeDocument(Document):
    """The first and the last bar held of a series, by timestamp; null without bars."""

    symbol: str
    timeframe: str
    start_date: datetime | None
    end_date: datetime | None
    point_count: int
