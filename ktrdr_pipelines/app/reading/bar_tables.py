"""Bars as Arrow tables: as asked for, of several timeframes joined, and resampled.

Not here: reading files (``store.bars.column_reader``), frames (``app.reading.frames``).
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Final

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.app.reading.read_options import CLOSES_AT, Period, stored_columns
from ktrdr_pipelines.app.reading.resampling import Target, joined_as_of, resampled
from ktrdr_pipelines.app.reading.store_parts import ImportedParts, StoreParts
from ktrdr_pipelines.domain.bars import BAR_SCHEMA, timestamps
from ktrdr_pipelines.domain.calendars.closing_times import closing_times, depends_on_next
from ktrdr_pipelines.domain.calendars.sessions import monday_of
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import UsageError
from ktrdr_pipelines.store.bars.column_reader import NEXT, BarSelection

_CLOSES: Final = pa.field(CLOSES_AT, BAR_SCHEMA.field("ts").type)
_CLOSED_BY: Final = 8
"""Bars before the first close of the others that are read in search of one complete by then."""


def bar_tables(
    parts: StoreParts | ImportedParts,
    symbols: Sequence[str],
    timeframe: Timeframe,
    wanted: BarSelection,
) -> list[pa.Table]:
    """Return the bars of each symbol in the columns of ``wanted``, which may name ``closes_at``.

    Raises: as ``ColumnReader.read``.
    """
    if CLOSES_AT not in wanted.columns:
        return parts.read(symbols, timeframe, wanted)
    stored = dict.fromkeys([*stored_columns(wanted.columns), "ts", "session_date"])
    needed = replace(wanted, columns=tuple(stored), with_next=depends_on_next(timeframe))
    tables = parts.read(symbols, timeframe, needed)
    found = []
    for table, calendar in zip(tables, parts.calendars(symbols), strict=True):
        following = None
        if needed.with_next:
            following = table[NEXT].cast(pa.int64()).fill_null(0).to_numpy()
        closes = closing_times(
            timeframe,
            timestamps(table),
            np.asarray(table["session_date"].to_numpy().astype("datetime64[D]")),
            calendar=calendar,
            following=following,
        )
        column = pa.array(closes, pa.int64()).cast(_CLOSES.type)
        found.append(table.append_column(_CLOSES, column).select(list(wanted.columns)))
    return found


def joined_timeframes(
    parts: StoreParts,
    symbol: str,
    timeframes: Sequence[Timeframe],
    period: Period,
    *,
    columns: Sequence[str],
) -> pa.Table:
    """Return bars of the first timeframe, each with the newest one of the others at its close.

    Args:
        parts: the store.
        symbol: the symbol.
        timeframes: that of the rows, then those that are joined.
        period: of the rows.
        columns: of each timeframe; ``closes_at`` follows them.

    Raises: as ``ColumnReader.read``.
    """
    while True:
        known = parts.bases.of(symbol)
        found = _joined(parts, symbol, timeframes, (period, (*columns, CLOSES_AT)))
        if parts.bases.of(symbol) == known:  # else the timeframes may be on different bases
            return found


def _joined(
    parts: StoreParts,
    symbol: str,
    timeframes: Sequence[Timeframe],
    asked: tuple[Period, tuple[str, ...]],
) -> pa.Table:
    base, *others = timeframes
    period, columns = asked
    (joined,) = bar_tables(
        parts, [symbol], base, BarSelection(("ts", *columns), period.bounds(base))
    )
    closes = joined[CLOSES_AT].cast(pa.int64()).to_numpy()
    for kind in others:
        wanted = BarSelection(columns)
        if len(closes):
            # Few bars begin before the first close and end after it.
            bounds = replace(wanted.bounds, start=int(closes[0]), end=int(closes.max()))
            wanted = replace(wanted, bounds=bounds, before=_CLOSED_BY)
        (other,) = bar_tables(parts, [symbol], kind, wanted)
        first = other[CLOSES_AT].cast(pa.int64()).to_numpy()[:1]
        if len(closes) and len(first) and first[0] > closes[0]:
            wanted = replace(wanted, bounds=replace(wanted.bounds, start=None), before=0)
            (other,) = bar_tables(parts, [symbol], kind, wanted)
        for field, column in joined_as_of(joined, other, str(kind)):
            joined = joined.append_column(field, column)
    return joined


def resampled_bars(
    parts: StoreParts, symbol: str, made: tuple[Timeframe, Target], period: Period
) -> pa.Table:
    """Return bars of a longer length, made of those of a timeframe, that begin in a period.

    Raises:
        UsageError: the symbol is not in the universe, its sessions are not known, or the bars do
            not fit into the groups.
        StoreError: as ``ColumnReader.read``.
    """
    source, target = made
    instrument = parts.instrument(symbol)
    # What is known is found first: bars that are saved meanwhile are more, never less.
    (series,), calendars = parts.series_gaps([instrument], source, parts.now)
    if series.error is not None:
        raise series.error
    calendar = calendars.of(replace(instrument, end=None))
    if calendar.known is None:
        raise UsageError(
            f"resampling {symbol}",
            reason="its sessions are not known until the gateway states them",
            hint=f"`ktrdr load {symbol} {source}` requests them",
        )
    whole = period.whole_sessions(calendar)
    if target.is_week:
        whole = _whole_weeks(whole)
    wanted = BarSelection((*BAR_SCHEMA.names, CLOSES_AT), whole.bounds(source))
    (bars,) = bar_tables(parts, [symbol], source, wanted)
    known = series.covered - series.missing - series.waiting - series.unconfirmed_basis
    longer = resampled(bars, source, target, calendar=calendar, known=known)
    kind = Timeframe.M1 if target.is_intraday else Timeframe.D1
    low, high = period.bounds(kind).select(longer)
    return longer.slice(low, high - low)


def _whole_weeks(period: Period) -> Period:
    """Return a period of session dates that includes the weeks that it touches."""
    start, end = period.start, period.end
    return Period(
        None if start is None else monday_of(start),
        None if end is None else monday_of(end + timedelta(days=6)),
    )
