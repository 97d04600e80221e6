"""Renaming, retiring and restoring symbols: moving everything a store has of one symbol.

First everything is prepared beside the bars, then the journal is written, then each step is done.
Every step finds out by itself whether it is done already, so after a kill at any moment the
remaining steps complete the move.

Not here: the journal, and what it forbids while a move is unfinished
(``store.maintenance.rename_journal``); which retired bars are restored, and as what
(``store.maintenance.restore``).
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from itertools import count
from pathlib import Path

from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.editing import (
    add_entry,
    entry_text,
    remove_symbol,
    rename_symbol,
)
from ktrdr_pipelines.domain.universe.fields import KEY_PATTERN, KEY_RULE
from ktrdr_pipelines.errors import CorruptFileError, StoreError, UniverseError
from ktrdr_pipelines.store.bars.adjustment_history import AdjustmentHistory
from ktrdr_pipelines.store.bars.bar_file import is_as_written, read_file, write_file
from ktrdr_pipelines.store.bars.integrity import true_footer
from ktrdr_pipelines.store.claim_owners import is_requested
from ktrdr_pipelines.store.files import (
    disk_errors,
    kind_of,
    locked,
    make_folder,
    sync_folder,
    write_atomically,
)
from ktrdr_pipelines.store.layout import StoreLayout, upgrade_store
from ktrdr_pipelines.store.ledger.ledger import Ledger, open_ledger
from ktrdr_pipelines.store.maintenance.imported_renames import (
    imported_locks,
    rename_imported,
    restore_imported,
    retire_imported,
)
from ktrdr_pipelines.store.maintenance.rename_journal import (
    Move,
    MoveKind,
    pending_move,
    remove_journal,
    write_journal,
)
from ktrdr_pipelines.store.universe_file import load_universe

ENTRY = "entry.json"
"""The file in a folder of retired bars with the entry that their symbol had."""

ADJUSTMENTS = "adjustments.json"

_STAGE = "renaming"


def retired_name(layout: StoreLayout, symbol: str) -> str:
    """Return an unused name for retired bars; no symbol of a universe can equal it."""
    folders = (layout.retired, StoreLayout(layout.imported).retired)
    names = (f"{symbol}@{number}" for number in count(1))
    return next(name for name in names if not any((one / name).exists() for one in folders))


def retired_symbol(name: str) -> str:
    """Return the symbol of a name among the retired ones, such as ``AAPL`` of ``AAPL@1``."""
    return name.rpartition("@")[0]


def move_symbol(layout: StoreLayout, ledger: Ledger, move: Move) -> None:
    """Move a symbol; ``finish_move`` completes a move that was killed.

    Raises:
        UniverseError: the universe cannot be edited this way; nothing has changed.
        UnknownSymbolError: neither the universe nor the store has the symbol.
        CorruptFileError: a file of the symbol cannot be read; nothing has changed.
        StoreError: a load keeps a series locked, another move is unfinished, the target has bars,
            or bars lie on another disk than the folders beside them; nothing has changed.
        DiskError: the system refused.
    """
    with _all_series_locked(layout, move):
        _refuse_unfinished(layout, move)
        _refuse_other_disk(layout, move)
        edited, old = _edited(layout, move), _old_folder(layout, move)
        if edited is None and not old.exists():
            load_universe(layout.universe).instrument(move.symbol)
        if move.kind is MoveKind.RENAME:
            AdjustmentHistory(layout).of(move.symbol)  # a damaged file cannot be renamed
        if move.kind is MoveKind.RENAME or (
            move.kind is MoveKind.RESTORE and retired_symbol(move.symbol) != move.target
        ):
            _write_stage(layout, move)
        write_journal(layout, move)
        _steps(layout, ledger, move)


def finish_move(layout: StoreLayout, ledger: Ledger) -> Move | None:
    """Complete an interrupted move and return it; None where there is none.

    Raises: as ``move_symbol``; the journal remains then.
    """
    move = pending_move(layout)
    if move is None:
        # Remove what a move prepared that was killed before it began.
        layout.require_same()
        with locked(layout.lock("move"), "the moving of symbols"):
            if pending_move(layout) is None:
                for folder in layout.epochs.glob(f"{_STAGE}-*"):
                    _remove(folder)
        return None
    with _all_series_locked(layout, move):
        if pending_move(layout) == move:
            _steps(layout, ledger, move)
    return move


@contextmanager
def _all_series_locked(layout: StoreLayout, move: Move) -> Iterator[None]:
    """Hold the locks of the price basis and of all series of both names."""
    symbols = sorted(set(move.symbols))
    layout.require_same()
    with ExitStack() as locks:
        locks.enter_context(locked(layout.lock("move"), "the moving of symbols"))
        layout.require_same()
        for symbol in symbols:
            locks.enter_context(locked(layout.basis_lock(symbol), f"the price basis of {symbol}"))
        for symbol in symbols:
            for timeframe in Timeframe:
                path = layout.series_lock(symbol, timeframe)
                locks.enter_context(locked(path, f"{symbol} {timeframe}"))
        for path, what in imported_locks(layout, symbols):
            locks.enter_context(locked(path, what))
        yield


def _refuse_unfinished(layout: StoreLayout, move: Move) -> None:
    if other := pending_move(layout):
        raise StoreError(
            f"cannot begin the {move}",
            reason=f"the {other} is unfinished",
            hint="Run `ktrdr repair`, which completes it",
        )
    taken = (
        layout.symbol_folder(move.target),
        layout.adjustments_file(move.target),
        StoreLayout(layout.imported).symbol_folder(move.target),
    )
    for path in taken:
        if move.kind is not MoveKind.RETIRE and kind_of(path):
            raise StoreError(
                f"cannot begin the {move}",
                reason=f"{path} is there already",
                hint=f"Restore it as another symbol: ktrdr universe restore {move.symbol} --as NEW"
                if move.kind is MoveKind.RESTORE
                else "Choose another symbol, or move it away",
            )


def _refuse_other_disk(layout: StoreLayout, move: Move) -> None:
    """Refuse a move that could not be completed: folders cannot be renamed to another disk."""
    beside = layout.epochs if move.kind is MoveKind.RENAME else layout.retired
    with disk_errors(beside):
        make_folder(beside)
        apart = beside.stat().st_dev != layout.bars.stat().st_dev
    if apart:
        raise StoreError(
            f"cannot begin the {move}",
            reason=f"{layout.bars} and {beside} are on different disks",
            hint=f"Link {beside.name} to a folder on the disk of the bars",
        )


def _steps(layout: StoreLayout, ledger: Ledger, move: Move) -> None:
    if move.kind is MoveKind.RENAME:
        rename_imported(layout, move.symbol, move.target)
    layout.require_same()
    history = AdjustmentHistory(layout)
    if move.kind is MoveKind.RESTORE:
        _show_restored(layout, move)
        old_symbol = retired_symbol(move.symbol)
        restore_imported(layout, move.symbol, old_symbol, move.target)
    elif move.kind is MoveKind.RENAME:
        # Show the new folder, then remove the old one: the bars are visible at every moment, and
        # with them the adjustments that they need.
        try:
            if adjustments := history.of(move.symbol):
                history.write(move.target, adjustments)
        except CorruptFileError:  # damaged since the move began: no bar is served without it
            history.copy(move.symbol, layout.adjustments_file(move.target))
        _rename_folder(_stage(layout, move), layout.symbol_folder(move.target))
        layout.require_same()
        trash = layout.epochs / f"renamed-{move.symbol}-to-{move.target}"
        _rename_folder(layout.symbol_folder(move.symbol), trash)
        _remove(trash)
    else:
        kept = layout.retired / move.target
        retire_imported(layout, move.symbol, move.target)
        _rename_folder(layout.symbol_folder(move.symbol), kept)
        history.copy(move.symbol, kept / ADJUSTMENTS)
        if move.entry:
            _write_entry(kept / ENTRY, move)
    ledger.move_symbol(move.symbol, move.target)
    history.remove(move.symbol)
    new_text = _edited(layout, move)
    if new_text is not None:
        write_atomically(
            layout.universe,
            lambda file: file.write(new_text.encode()),
            before_renaming=layout.require_same,
        )
    remove_journal(layout)


def _write_stage(layout: StoreLayout, move: Move) -> None:
    """Write the files under the new symbol, where no query's glob finds them."""
    stage, old = _stage(layout, move), _old_folder(layout, move)
    _remove(stage)
    upgrade_store(layout)
    for path in sorted(old.rglob("*.parquet")) if old.is_dir() else ():
        said, bars = read_file(path)
        footer = true_footer(path, said, bars, None)
        footer = replace(footer, identity=replace(footer.identity, symbol=move.target))
        is_ours = said.seal is not None or is_as_written(path)
        write_file(stage / path.relative_to(old), bars, footer, is_as_written=is_ours)


def _old_folder(layout: StoreLayout, move: Move) -> Path:
    if move.kind is MoveKind.RESTORE:
        return layout.retired / move.symbol
    return layout.symbol_folder(move.symbol)


def _show_restored(layout: StoreLayout, move: Move) -> None:
    """Put retired bars where queries find them, first the adjustments that they need."""
    kept, shown = layout.retired / move.symbol, layout.symbol_folder(move.target)
    old_symbol = retired_symbol(move.symbol)
    AdjustmentHistory(layout).take(kept / ADJUSTMENTS, old_symbol, move.target)
    if old_symbol == move.target and kept.is_dir() and not shown.exists():
        with disk_errors(kept):
            for name in (ADJUSTMENTS, ENTRY):
                (kept / name).unlink(missing_ok=True)
            has_bars = any(kept.iterdir())
        if has_bars:
            _rename_folder(kept, shown)
    _rename_folder(_stage(layout, move), shown)
    layout.require_same()
    trash = layout.epochs / f"restored-{move.symbol}"
    _rename_folder(kept, trash)
    _remove(trash)


def _write_entry(path: Path, move: Move) -> None:
    text = f"{json.dumps({'symbol': move.symbol, 'entry': move.entry})}\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def _edited(layout: StoreLayout, move: Move) -> str | None:
    """Return the universe's text after the move; None where it needs no edit."""
    universe = load_universe(layout.universe)
    is_rename = move.kind is MoveKind.RENAME
    if move.kind is MoveKind.RESTORE:
        if move.target in universe.instruments or not move.entry:
            return None
        with disk_errors(layout.universe):
            text = layout.universe.read_bytes().decode("utf-8-sig")
        return add_entry(text, str(layout.universe), move.target, move.entry)
    if move.symbol not in universe.instruments and (
        not is_rename or move.target in universe.instruments
    ):
        return None
    with disk_errors(layout.universe):
        text = layout.universe.read_bytes().decode("utf-8-sig")
    if is_rename:
        return rename_symbol(
            text,
            str(layout.universe),
            move.symbol,
            move.target,
            contract_id=move.contract_id,
            ib_symbol=move.ib_symbol,
        )
    return remove_symbol(text, str(layout.universe), move.symbol)


def _rename_folder(source: Path, target: Path) -> None:
    """Rename a folder durably, unless that has been done."""
    with disk_errors(source):
        if not source.exists():
            return
        make_folder(target.parent)
        source.rename(target)
        sync_folder(target.parent)
        sync_folder(source.parent)


def _remove(folder: Path) -> None:
    with disk_errors(folder):
        if folder.is_symlink():
            folder.unlink()
        elif folder.is_dir():
            shutil.rmtree(folder)


def _stage(layout: StoreLayout, move: Move) -> Path:
    return layout.epochs / f"{_STAGE}-{move.symbol}-to-{move.target}"


def rename(
    layout: StoreLayout,
    symbol: str,
    new_symbol: str,
    now: datetime,
    *,
    contract_id: int | None = None,
    ib_symbol: str = "",
) -> Move:
    """Rename a symbol with its bars and its ledger rows; return the move.

    Args:
        layout: the store.
        symbol, new_symbol: the old and the new key.
        now: the time, by which loads that request bars of it are found.
        contract_id, ib_symbol: as in ``editing.rename_symbol``.

    Raises: as ``move_symbol``; StoreError also where a load is requesting bars of it.
    """
    move = Move(MoveKind.RENAME, symbol, new_symbol, contract_id=contract_id, ib_symbol=ib_symbol)
    return begin_move(layout, move, now)


def retire(layout: StoreLayout, symbol: str, now: datetime) -> Move:
    """Remove a symbol from the universe; its bars are kept where no query finds them.

    Raises: as ``rename``.
    """
    universe = load_universe(layout.universe)
    entry = ""
    if symbol in universe.instruments:
        with disk_errors(layout.universe):
            text = layout.universe.read_bytes().decode("utf-8-sig")
        entry = entry_text(text, str(layout.universe), symbol)
    target = retired_name(layout, symbol)
    return begin_move(layout, Move(MoveKind.RETIRE, symbol, target, entry), now)


def begin_move(layout: StoreLayout, move: Move, now: datetime) -> Move:
    """Move a symbol of which no load is requesting bars, and return the move.

    Raises: as ``rename``, and as ``require_symbols``.
    """
    require_symbols(move)
    layout.require_same()
    _refuse_unknown(layout, move)
    ledger = open_ledger(layout)
    for symbol in (move.symbol, move.target):
        for timeframe in Timeframe:
            if is_requested(layout, ledger, f"{symbol}|{timeframe}", now):
                raise StoreError(
                    f"cannot {move.kind} {move.symbol}",
                    reason=f"a load is requesting {symbol} {timeframe}",
                    hint="Wait for the load or stop it, and run this again",
                )
    move_symbol(layout, ledger, move)
    return move


def require_symbols(move: Move) -> None:
    """Refuse names that can be no symbols: files and ledger rows are named after them.

    Raises:
        UniverseError: a name is no symbol.
    """
    for symbol in move.symbols:
        if not re.fullmatch(KEY_PATTERN, symbol):
            raise UniverseError(
                f"cannot {move.kind} {move.symbol!a}",
                reason=f"{symbol!a} is not a symbol",
                hint=f"Choose another one: {KEY_RULE}",
            )


def _refuse_unknown(layout: StoreLayout, move: Move) -> None:
    """Refuse a symbol that neither universe nor store has, before locks are named after it."""
    is_held = _old_folder(layout, move).exists() or layout.adjustments_file(move.symbol).exists()
    if move.kind is not MoveKind.RESTORE and not is_held and _edited(layout, move) is None:
        load_universe(layout.universe).instrument(move.symbol)
