"""What the store holds of a series, and what it lacks, for the routes of bars.

Not here: formats (``api.bar_formats``), reading files (``app.reading``).
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.api.envelopes import RequestError
from ktrdr_pipelines.app.data_manager import DataManager, Loaded
from ktrdr_pipelines.app.reading.store import open_store
from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.domain.bars import moment, timestamps
from ktrdr_pipelines.domain.calendars.session_grid import session_grid
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import UsageError


@dataclass(frozen=True, slots=True)
class BarsWanted:
    """Bars that a request asks for.

    Args:
        symbol: a symbol that has bars, or of the universe.
        timeframe: of the bars.
        start: the first session date, or instant; by default the oldest bar's.
        end: the first session date, or instant, that is not wanted.
        in_sessions: leave out bars outside the sessions of the instrument's calendar.
        limit: the oldest so many of them.
        last: the newest so many of them.
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


def read_local(open_workspace: Callable[[], Workspace], wanted: BarsWanted) -> LocalBars:
    """Read bars of the store, and what the range lacks.

    Raises:
        UnknownSymbolError: the symbol has no bars, and is not in the universe.
        RequestError: a value of the request is not allowed; the error names its field.
        StoreError: bars cannot be read.
    """
    workspace = open_workspace()
    store = open_store(workspace.layout.root)
    is_listed = wanted.symbol in workspace.universe.instruments
    bars = _read(store, wanted)
    if wanted.limit is not None and wanted.last is not None:
        raise _wrong("last", "last and limit exclude each other", "Leave one of them out")
    if wanted.in_sessions:
        if not is_listed:
            raise _wrong(
                "trading_hours_only",
                f"the sessions of {wanted.symbol} are not known: it has left the universe",
                "Leave it out",
                status=409,
            )
        bars = _in_sessions(workspace, wanted, bars)
    found = _state(workspace, wanted) if is_listed else None
    return _cut(bars, wanted, found)
