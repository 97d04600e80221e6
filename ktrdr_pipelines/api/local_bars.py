"""What the store holds of a series, and what it lacks, for the routes of bars.

Not here: formats (``api.bar_formats``), reading files (``app.reading``).
"""

from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.api.envelopes import RequestError, range_error
from ktrdr_pipelines.app.reading.bar_reader import Store
from ktrdr_pipelines.app.reading.readiness import MissingRange, Readiness
from ktrdr_pipelines.app.views.documents import Document
from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.domain.bars import BAR_SCHEMA, moment, timestamps
from ktrdr_pipelines.domain.calendars.session_grid import session_grid
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import UnknownSymbolError, UsageError

_COLUMNS: Final = tuple(name for name in BAR_SCHEMA.names if name != "ts")


class MissingDocument(Document):
    """Bars that a range lacks, by bar timestamps, and why.

    ``reason`` is one of ``ktrdr gaps``, or ``before_start`` (the universe wants bars from a later
    date on) or ``not_closed`` (their session is not over).
    """

    start: datetime
    end: datetime
    sessions: int
    bars: int
    reason: str
    detail: str = ""
    next_try_at: datetime | None = None

    @classmethod
    def of(cls, found: MissingRange) -> "MissingDocument":
        """Return the document of what is missing."""
        return cls(
            start=found.start,
            end=found.end,
            sessions=found.sessions,
            bars=found.bars,
            reason=found.reason,
            detail=found.detail,
            next_try_at=found.next_try_at,
        )


class SeriesGapsDocument(Document):
    """What a series lacks from the start in the universe to the newest session that is over."""

    symbol: str
    timeframe: str
    start: datetime
    end: datetime
    complete: bool
    missing_bars: int
    gaps: tuple[MissingDocument, ...]


@dataclass(frozen=True, slots=True)
class BarsWanted:
    """Bars that a request asks for.

    Args:
        symbol: a symbol that has bars, or of the universe.
        timeframe: of the bars.
        start: the first session date, or instant; by default the oldest bar's.
        end: the first session date, or instant, that is not wanted.
        in_sessions: leave out bars outside the sessions of the instrument's calendar.
        last: the newest so many of them.
        limit: the oldest so many of these.
    """

    symbol: str
    timeframe: Timeframe
    start: date | datetime | None = None
    end: date | datetime | None = None
    in_sessions: bool = False
    limit: int | None = None
    last: int | None = None


@dataclass(frozen=True, slots=True)
class LocalBars:
    """Bars of a series, and what is to be said of them.

    ``next_start`` is the ``start_date`` that continues after them, where a limit left some out.
    """

    bars: pa.Table
    metadata: dict[str, Any]
    next_start: str | None


def read_local(
    store: Store, open_workspace: Callable[[], Workspace], wanted: BarsWanted
) -> LocalBars:
    """Read bars of the store, and what the range lacks.

    Args:
        store: the store.
        open_workspace: opens it with its universe, where the sessions of a symbol are needed.
        wanted: which bars.

    Raises:
        UnknownSymbolError: the symbol has no bars, and is not in the universe.
        RequestError: a value of the request is not allowed; the error names its field.
        StoreError: bars cannot be read.
    """
    # With the newest alone, the rest is not even read.
    newest = wanted.last if wanted.start is None and not wanted.in_sessions else None
    try:
        bars = store.read_bars(
            wanted.symbol,
            wanted.timeframe,
            wanted.start,
            wanted.end,
            last=newest,
            columns=_COLUMNS,
            engine="arrow",
            origin="gateway",  # the formats have no column that could mark imported bars
        )
    except UsageError as error:
        if type(error) is not UsageError:  # of the symbol, the universe, the store or the settings
            raise
        raise _bound_error(store, wanted, error) from error
    if wanted.in_sessions:
        bars = _in_sessions(open_workspace, wanted, bars)
    return _cut(bars, wanted, _readiness(store, wanted))


def gaps_of_series(store: Store, symbol: str, timeframe: Timeframe) -> SeriesGapsDocument:
    """Return what a series lacks.

    Raises:
        UnknownSymbolError: the symbol is not in the universe: nothing is expected of it.
        StoreError: the series cannot be read.
    """
    found = store.is_ready(symbol, timeframe)
    return SeriesGapsDocument(
        symbol=symbol,
        timeframe=timeframe.value,
        start=found.start,
        end=found.end,
        complete=bool(found),
        missing_bars=found.missing_bars,
        gaps=tuple(map(MissingDocument.of, found.missing)),
    )


def _bound_error(store: Store, wanted: BarsWanted, error: UsageError) -> RequestError:
    """Return the error of a range that is not allowed; an unknown symbol is the greater error."""
    store.read_bars(wanted.symbol, wanted.timeframe, last=0)
    return range_error(error, has_start=wanted.start is not None, suffix="_date")


def _readiness(store: Store, wanted: BarsWanted) -> Readiness | None:
    """Return what the range lacks; None for a symbol that has left the universe."""
    with suppress(UnknownSymbolError):
        return store.is_ready(wanted.symbol, wanted.timeframe, wanted.start, wanted.end)
    return None


def _in_sessions(
    open_workspace: Callable[[], Workspace], wanted: BarsWanted, bars: pa.Table
) -> pa.Table:
    """Return the bars that begin inside sessions; breaks at noon belong to them."""
    workspace = open_workspace()
    instrument = workspace.universe.instruments.get(wanted.symbol)
    if instrument is None:
        raise RequestError(
            "trading_hours_only",
            reason=f"the sessions of {wanted.symbol} are not known, as it has left the universe",
            hint="Leave it out",
            status=409,
            code="DATA-UnknownSessions",
            field="trading_hours_only",
        )
    with closing(workspace.ledger) as ledger:
        grid = session_grid(ledger.calendars().of(instrument), wanted.timeframe)
    keys = timestamps(bars)
    before = np.searchsorted(grid.starts, keys, side="right") - 1
    is_inside = before >= 0
    is_inside[is_inside] &= keys[is_inside] < grid.ends[before[is_inside]]
    return bars.filter(pa.array(is_inside))


def _cut(bars: pa.Table, wanted: BarsWanted, found: Readiness | None) -> LocalBars:
    """Return the bars that ``last`` and ``limit`` leave, with their metadata."""
    next_start = None
    if wanted.last is not None:
        bars = bars.slice(max(0, len(bars) - wanted.last))
    if wanted.limit is not None and len(bars) > wanted.limit:
        following = moment(int(timestamps(bars.slice(wanted.limit, 1))[0]))
        next_start = f"{following:%Y-%m-%d}"
        if wanted.timeframe.is_intraday:
            next_start = f"{following:%Y-%m-%dT%H:%M:%SZ}"
        bars = bars.slice(0, wanted.limit)
    keys = timestamps(bars)
    missing = [] if found is None else list(map(MissingDocument.of, found.missing))
    metadata = {
        "symbol": wanted.symbol,
        "timeframe": wanted.timeframe.value,
        "count": len(bars),
        "start": moment(int(keys[0])) if len(keys) else None,
        "end": moment(int(keys[-1])) if len(keys) else None,
        "complete": None if found is None else bool(found),
        "missing": [one.model_dump(mode="json") for one in missing],
        "truncated": next_start is not None,
        "next_start": next_start,
    }
    return LocalBars(bars, metadata, next_start)
