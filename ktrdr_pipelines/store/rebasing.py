"""Recording adjustments, with all that follows from one at once.

The order keeps readers on one basis at every moment. Bars that may be on either basis are left out
first; then one renaming adds the adjustment; then the catalog multiplies by it; only then are bars
of the new basis saved.

Not here: how a re-basing is found (``sync.engine.basis_check``), what it does to bars
(``domain.price_basis``).
"""

from dataclasses import replace
from datetime import date, datetime

from ktrdr_pipelines.domain.plausibility import DisagreementKind
from ktrdr_pipelines.domain.price_basis import Adjustment, AdjustmentKind
from ktrdr_pipelines.errors import UsageError
from ktrdr_pipelines.store.bars.adjustment_history import Adjustments
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.catalog.catalog import refresh_views
from ktrdr_pipelines.store.files import locked
from ktrdr_pipelines.store.layout import upgrade_store
from ktrdr_pipelines.store.maintenance.rename_journal import refuse_moving


def record_adjustment(store: BarStore, symbol: str, found: Adjustment) -> bool:
    """Record an adjustment that a comparison has found.

    Bars whose basis was only presumed, and that were requested after ``found.old_until``, become
    bars on an unconfirmed basis.

    Args:
        store: the store.
        symbol: the symbol.
        found: the adjustment; its number follows those known.

    Returns: whether it was recorded; False where another process has recorded one meanwhile, or has
        moved the symbol away.

    Raises:
        StoreError: a file cannot be read, or a series stayed locked.
        DiskError: the system refused.
    """
    with locked(store.layout.basis_lock(symbol), f"the price basis of {symbol}"):
        known = _changeable(store, symbol)
        timeframes = store.layout.timeframes_of(symbol)
        if found.number != len(known) + 1 or not timeframes:
            return False
        for timeframe in timeframes:
            store.doubt_basis(symbol, timeframe, found.old_until)
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
    if store.history.symbols():
        known, _ = store.history.all()
        recorded = store.ledger.adjustments.all()
        if missing := {one: known[one] for one in known if recorded.get(one) != known[one]}:
            store.ledger.adjustments.record(missing)
        refresh_views(store.layout)


def _changeable(store: BarStore, symbol: str) -> Adjustments:
    """Return the adjustments of a symbol, which may be changed; the caller holds its lock.

    Raises:
        StoreError: some are lost, or the symbol is being moved.
    """
    refuse_moving(store.layout, symbol)
    return store.all_adjustments_of(symbol)


def _write(
    store: BarStore, symbol: str, adjustments: tuple[Adjustment, ...] | list[Adjustment]
) -> None:
    """Write the adjustments of a symbol, and make index and catalog follow."""
    upgrade_store(store.layout)
    store.history.write(symbol, adjustments)
    store.ledger.adjustments.record({symbol: adjustments})
    refresh_views(store.layout)
