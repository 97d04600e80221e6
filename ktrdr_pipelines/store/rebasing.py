"""Recording adjustments, with all that follows from one at once.

The order keeps readers on one basis at every moment. Bars that may be on either basis are left out
first; then one renaming adds the adjustment; then the catalog multiplies by it; only then are bars
of the new basis saved.

Not here: how a re-basing is found (``sync.engine.basis_check``), what it does to bars
(``domain.adjustments``).
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Final

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.domain.adjustments import Adjustment, AdjustmentKind
from ktrdr_pipelines.domain.bars import (
    UNCONFIRMED,
    basis_of,
    micros,
    timestamps,
    unconfirmed_where,
)
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import (
    SessionCalendar,
    interval_between,
    monday_of,
)
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.plausibility import DisagreementKind
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import UsageError
from ktrdr_pipelines.store.bars.adjustment_history import Adjustments
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.catalog.catalog import refresh_views
from ktrdr_pipelines.store.files import locked
from ktrdr_pipelines.store.layout import upgrade_store
from ktrdr_pipelines.store.maintenance.rename_journal import refuse_moving, saving

_DAY = timedelta(days=1)

_LEAST_JUMP: Final = 0.06
"""A jump of prices, as a logarithm, that no bar to the next must make for both to be shown to be on
one basis; a third of that of a ratio of 6 to 5."""


def record_adjustment(
    store: BarStore, series: Series, found: Adjustment, *, compared: Interval
) -> bool:
    """Record an adjustment that a comparison has found.

    Bars whose basis was only presumed, and that were requested after ``found.old_until``, become
    bars on an unconfirmed basis, unless other bars show that they are on the old one.

    Args:
        store: the store.
        series: the series whose bars were compared; the adjustment concerns all of its symbol.
        found: the adjustment; its number follows those known.
        compared: the bars that are on the old basis for certain, by timestamp.

    Returns: whether it was recorded; False where another process has recorded one meanwhile, or has
        moved the symbol away.

    Raises:
        StoreError: a file cannot be read, or a series stayed locked.
        DiskError: the system refused.
    """
    symbol, calendar = series.symbol, calendar_named(series.instrument.calendar)
    with locked(store.layout.basis_lock(symbol), f"the price basis of {symbol}"):
        known = _changeable(store, symbol)
        timeframes = store.layout.timeframes_of(symbol)
        if found.number != len(known) + 1 or not timeframes:
            return False
        doubtful = {one: _presumed_after(store, symbol, one, found.old_until) for one in timeframes}
        doubtful[series.timeframe] -= IntervalSet([compared])
        for timeframe, intervals in doubtful.items():
            if intervals:
                shown = _shown_by_neighbours(
                    store, symbol, timeframe, doubtful=intervals, ratio=found.ratio
                ) | _shown_by_others(
                    store,
                    symbol,
                    timeframe,
                    doubtful=doubtful,
                    ratio=found.ratio,
                    calendar=calendar,
                )
                _unconfirm(store, symbol, timeframe, intervals - shown, since=found.old_until)
        _write(store, symbol, (*known, found))
    return True


def adjust(
    store: BarStore,
    symbol: str,
    *,
    ratio: float,
    volume_ratio: float,
    effective: date,
    note: str,
    now: datetime,
) -> Adjustment:
    """Record what a person decided: bars before a session are multiplied from now on.

    It concerns the bars that the store has now. Bars that are requested later are as the gateway
    serves them then.

    Args:
        store: the store.
        symbol: the symbol.
        ratio: the factor of prices, above 0.
        volume_ratio: the factor of volumes, above 0.
        effective: the first session date that is not multiplied.
        note: why, in the person's words.
        now: this machine's time.

    Returns: the adjustment.

    Raises:
        UsageError: the store has no bars of the symbol.
        StoreError, DiskError: as ``record_adjustment``.
    """
    with locked(store.layout.basis_lock(symbol), f"the price basis of {symbol}"):
        known = _changeable(store, symbol)
        if not store.layout.timeframes_of(symbol):
            raise UsageError(
                f"adjusting {symbol}",
                reason="the store has no bars of it",
                hint="An adjustment concerns the bars that the store has; load some first",
            )
        added = Adjustment(
            number=len(known) + 1,
            ratio=ratio,
            volume_ratio=volume_ratio,
            kind=AdjustmentKind.MANUAL,
            effective=effective,
            is_estimated=False,
            found_at=now,
            old_until=now,
            evidence="decided by a person",
            note=note,
        )
        _write(store, symbol, (*known, added))
        decided = DisagreementKind.VOLUME if ratio == 1 else DisagreementKind.UNIT
        for timeframe in store.layout.timeframes_of(symbol):
            store.ledger.disagreements.clear(f"{symbol}|{timeframe}", {decided})
    return added


def remove_adjustment(
    store: BarStore, symbol: str, *, number: int | None, now: datetime
) -> Adjustment:
    """Undo an adjustment that a person decided on; the record of it stays.

    Args:
        store: the store.
        symbol: the symbol.
        number: which; None for the only one that is in force.
        now: this machine's time.

    Returns: the adjustment as it was.

    Raises:
        UsageError: there is no such adjustment, or there are several and none was named.
        StoreError, DiskError: as ``record_adjustment``.
    """
    what = f"removing an adjustment of {symbol}"
    with locked(store.layout.basis_lock(symbol), f"the price basis of {symbol}"):
        known = _changeable(store, symbol)
        manual = [
            one for one in known if one.kind is AdjustmentKind.MANUAL and one.removed_at is None
        ]
        chosen = [one for one in manual if number in {None, one.number}]
        if len(chosen) != 1:
            numbers = ", ".join(str(one.number) for one in manual) or "none"
            raise UsageError(
                what,
                reason=f"the adjustments of {symbol} that a person made and that are in force "
                f"have the numbers: {numbers}",
                hint="Name one of them with `--remove NUMBER`. One that was found in responses "
                "cannot be removed: `ktrdr load --refresh` replaces the bars that it concerns",
            )
        _write(
            store,
            symbol,
            [replace(one, removed_at=now) if one is chosen[0] else one for one in known],
        )
    return chosen[0]


def require_current_views(store: BarStore) -> None:
    """Make ledger and catalog know all adjustments, where a process was killed before they did.

    Raises: as ``record_adjustment``.
    """
    if store.bases.history.symbols():
        known, _ = store.bases.history.all()
        recorded = store.ledger.adjustments.all()
        if missing := {one: known[one] for one in known if recorded.get(one) != known[one]}:
            store.ledger.adjustments.record(missing)
        refresh_views(store.layout)


def _presumed_after(
    store: BarStore, symbol: str, timeframe: Timeframe, since: datetime
) -> IntervalSet:
    """Return the bars of a series whose basis was presumed by requests after a moment."""
    rows = store.files.of_symbol(symbol, timeframe).values()
    return IntervalSet(
        one.interval for row in rows for one in row.basis.presumed if one.fetched_at > since
    )


def _unconfirm(
    store: BarStore, symbol: str, timeframe: Timeframe, intervals: IntervalSet, *, since: datetime
) -> None:
    """Make the basis of bars unconfirmed, and no basis presumed by requests after a moment.

    The bars stay, cover nothing any more, and are left out of what queries return until they are
    requested again.
    """
    with saving(store.layout, symbol, timeframe):
        for path, row in store.files.of_symbol(symbol, timeframe).items():
            kept = tuple(one for one in row.basis.presumed if one.fetched_at <= since)
            if kept == row.basis.presumed:
                continue
            held = store.files.read(path, row)
            keys, coverage = timestamps(held.bars), held.footer.coverage
            footer = replace(
                held.footer,
                coverage=replace(coverage, bars=coverage.bars - intervals),
                basis=replace(held.footer.basis, presumed=kept),
            )
            bars = unconfirmed_where(held.bars, intervals.covers_each(keys, keys + 1))
            store.files.write(path, bars, footer, is_as_written=held.is_as_written)


def _shown_by_others(
    store: BarStore,
    symbol: str,
    timeframe: Timeframe,
    *,
    doubtful: Mapping[Timeframe, IntervalSet],
    ratio: float,
    calendar: SessionCalendar,
) -> IntervalSet:
    """Return the doubtful bars of a timeframe that others show to be on the old basis.

    High, low and close of each session, or week, are compared with those of bars of another
    timeframe that are not doubtful: all three must be much nearer to them than the adjustment is.
    """
    most, shown = abs(math.log(ratio)) / 3, IntervalSet()
    for other, intervals in doubtful.items():
        if other is timeframe:
            continue
        is_weekly = Timeframe.W1 in {timeframe, other}
        mine = _prices(store, symbol, timeframe, is_weekly=is_weekly, inside=doubtful[timeframe])
        theirs = _prices(store, symbol, other, is_weekly=is_weekly, outside=intervals)
        length = 7 * _DAY if is_weekly else _DAY
        shown |= IntervalSet(
            interval_between(calendar, timeframe, day, day + length)
            for day in mine.keys() & theirs.keys()
            if np.abs(np.log(mine[day] / theirs[day])).max() <= most
        )
    return shown


def _shown_by_neighbours(
    store: BarStore, symbol: str, timeframe: Timeframe, *, doubtful: IntervalSet, ratio: float
) -> IntervalSet:
    """Return the doubtful bars that their neighbours show to be on the old basis.

    Between bars of two bases the price jumps by the ratio. Bars that follow bars which are not
    doubtful, or lead to them, without a jump of a third of that are on the same basis. A small
    ratio shows nothing this way: prices jump as far overnight.
    """
    most = abs(math.log(ratio)) / 3
    if most < _LEAST_JUMP:
        return IntervalSet()
    rows = [
        bars.filter(pa.array(basis_of(bars) != UNCONFIRMED))
        for path, row in store.files.of_symbol(symbol, timeframe).items()
        for bars in [store.files.bars(path, row)]
    ]
    bars = store.bases.on_todays(symbol, pa.concat_tables(rows))
    keys, opens, closes = timestamps(bars), bars["open"].to_numpy(), bars["close"].to_numpy()
    is_doubtful = doubtful.covers_each(keys, keys + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        is_apart = ~(np.abs(np.log(opens[1:] / closes[:-1])) <= most)
    parts = np.concatenate(([0], np.cumsum(is_apart)))[: len(keys)]
    is_shown = is_doubtful & np.isin(parts, parts[~is_doubtful])
    # A part of an interval of which all bars are shown, as a whole.
    return IntervalSet(
        part
        for part in doubtful
        if is_shown[slice(*keys.searchsorted([micros(part.start), micros(part.end)]))].all()
    )


def _prices(
    store: BarStore,
    symbol: str,
    timeframe: Timeframe,
    *,
    is_weekly: bool,
    inside: IntervalSet | None = None,
    outside: IntervalSet | None = None,
) -> dict[date, np.ndarray]:
    """Return high, low and close by session date, or by the Monday of the week.

    Args:
        store: the store.
        symbol, timeframe: the series.
        is_weekly: whether to return weeks.
        inside: only bars in these intervals.
        outside: only bars outside these intervals.
    """
    found: dict[date, np.ndarray] = {}
    for path, row in store.files.of_symbol(symbol, timeframe).items():
        bars = store.files.bars(path, row)
        keys = timestamps(bars)
        chosen = basis_of(bars) != UNCONFIRMED
        if inside is not None:
            chosen &= inside.covers_each(keys, keys + 1)
        if outside is not None:
            chosen &= ~outside.covers_each(keys, keys + 1)
        bars = store.bases.on_todays(symbol, bars.filter(pa.array(chosen)))
        columns = [bars[name].to_numpy() for name in ("high", "low", "close")]
        for day, *prices in zip(bars["session_date"].to_pylist(), *columns, strict=True):
            key = monday_of(day) if is_weekly else day
            high, low, close = prices
            if (before := found.get(key)) is None:
                found[key] = np.array(prices)
            else:
                before[:] = max(before[0], high), min(before[1], low), close
    return {day: prices for day, prices in found.items() if (prices > 0).all()}


def _changeable(store: BarStore, symbol: str) -> Adjustments:
    """Return the adjustments of a symbol, which may be changed; the caller holds its lock.

    Raises:
        StoreError: some are lost, or the symbol is being moved.
    """
    refuse_moving(store.layout, symbol)
    return store.bases.all_of(symbol)


def _write(
    store: BarStore, symbol: str, adjustments: tuple[Adjustment, ...] | list[Adjustment]
) -> None:
    """Write the adjustments of a symbol, and make index and catalog follow."""
    upgrade_store(store.layout)
    store.bases.history.write(symbol, adjustments)
    store.ledger.adjustments.record({symbol: adjustments})
    refresh_views(store.layout)
