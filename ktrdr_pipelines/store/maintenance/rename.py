"""Renaming and retiring symbols.

Renaming and retiring symbols: who may be moved, and when.

Moving all that a store has of one symbol: to another name, or out of the way.

First everything is prepared beside the bars, then the journal is written, then each step is done;
every step finds out by itself whether it is done already, so that a kill at any moment is made
good by doing the rest again.
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from itertools import count
from pathlib import Path

from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.editing import remove_symbol, rename_symbol
from ktrdr_pipelines.errors import StoreError
from ktrdr_pipelines.store.bars.bar_file import is_as_written, read_file, write_file
from ktrdr_pipelines.store.bars.integrity import true_footer
from ktrdr_pipelines.store.claim_owners import is_in_hand
from ktrdr_pipelines.store.files import (
    disk_errors,
    locked,
    make_folder,
    sync_folder,
    write_atomically,
)
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.ledger import Ledger, open_ledger
from ktrdr_pipelines.store.maintenance.rename_journal import (
    Move,
    MoveKind,
    pending_move,
    remove_journal,
    write_journal,
)
from ktrdr_pipelines.store.universe_file import load_universe

_STAGE = "renaming"


def retired_name(layout: StoreLayout, symbol: str) -> str:
    """Give a name among the retired that is not taken; no symbol of a universe can be like it."""
    return next(
        name
        for number in count(1)
        if not (layout.retired / (name := f"{symbol}@{number}")).exists()
    )


def move_symbol(layout: StoreLayout, ledger: Ledger, move: Move) -> None:
    """Move a symbol; what is killed on the way is finished by ``finish_move``.

    Raises:
        UniverseError: the universe cannot be edited so; nothing has changed.
        UnknownSymbolError: neither the universe nor the store has it.
        CorruptFileError: a file of the symbol cannot be read; nothing has changed.
        StoreError: a load keeps a series locked, another move waits to be finished, the target
            has bars, or bars lie on another disk than what is beside them; nothing has changed.
        DiskError: the system refused.
    """
    with _alone(layout, move):
        _refuse_unfinished(layout, move)
        _refuse_other_disk(layout, move)
        if _edited(layout, move) is None and not layout.symbol_folder(move.symbol).exists():
            load_universe(layout.universe).instrument(move.symbol)
        if move.kind is MoveKind.RENAME:
            _prepare(layout, move)
        write_journal(layout, move)
        _steps(layout, ledger, move)


def finish_move(layout: StoreLayout, ledger: Ledger) -> Move | None:
    """Do what is left of a move that was cut short, and give it; None where there is none.

    Raises: as ``move_symbol``; the journal stays then.
    """
    move = pending_move(layout)
    if move is None:
        _tidy(layout)
        return None
    with _alone(layout, move):
        if pending_move(layout) == move:
            _steps(layout, ledger, move)
    return move


def _tidy(layout: StoreLayout) -> None:
    """Remove what a move left that was killed before it began."""
    layout.require_same()
    with locked(layout.lock("move"), "the moving of symbols"):
        if pending_move(layout) is None:
            for folder in layout.epochs.glob(f"{_STAGE}-*"):
                _remove(folder)


@contextmanager
def _alone(layout: StoreLayout, move: Move) -> Iterator[None]:
    """Keep everybody else from the series of both names."""
    symbols = sorted({move.symbol, move.target} if move.kind is MoveKind.RENAME else {move.symbol})
    layout.require_same()
    with ExitStack() as locks:
        locks.enter_context(locked(layout.lock("move"), "the moving of symbols"))
        layout.require_same()
        for symbol in symbols:
            for timeframe in Timeframe:
                path = layout.series_lock(symbol, timeframe)
                locks.enter_context(locked(path, f"{symbol} {timeframe}"))
        yield


def _refuse_unfinished(layout: StoreLayout, move: Move) -> None:
    if other := pending_move(layout):
        raise StoreError(
            f"cannot begin the {move}",
            reason=f"a {other} was begun and is not finished",
            hint="Run `ktrdr repair`, which finishes it",
        )
    folder = layout.symbol_folder(move.target)
    if move.kind is MoveKind.RENAME and folder.exists():
        raise StoreError(
            f"cannot begin the {move}",
            reason=f"{folder} has files already",
            hint="Choose another symbol, or move that folder out of the way",
        )


def _refuse_other_disk(layout: StoreLayout, move: Move) -> None:
    """Refuse to begin what could not be finished: no folder is renamed to another disk."""
    beside = layout.epochs if move.kind is MoveKind.RENAME else layout.retired
    with disk_errors(beside):
        make_folder(beside)
        apart = beside.stat().st_dev != layout.bars.stat().st_dev
    if apart:
        raise StoreError(
            f"cannot begin the {move}",
            reason=f"{layout.bars} and {beside} are on different disks",
            hint=f"Put {beside.name} on the disk of the bars too, as a link",
        )


def _prepare(layout: StoreLayout, move: Move) -> None:
    """Write the files of the old symbol anew under the new one, outside every glob."""
    stage, old = _stage(layout, move), layout.symbol_folder(move.symbol)
    _remove(stage)
    for path in sorted(old.rglob("*.parquet")) if old.is_dir() else ():
        said, bars = read_file(path)
        footer = true_footer(path, said, bars, None)
        footer = replace(footer, identity=replace(footer.identity, symbol=move.target))
        is_ours = said.seal is not None or is_as_written(path)
        write_file(stage / path.relative_to(old), bars, footer, is_as_written=is_ours)


def _steps(layout: StoreLayout, ledger: Ledger, move: Move) -> None:
    layout.require_same()
    (_put_renamed if move.kind is MoveKind.RENAME else _put_retired)(layout, move)
    ledger.move_symbol(move.symbol, move.target)
    new_text = _edited(layout, move)
    if new_text is not None:
        write_atomically(
            layout.universe,
            lambda file: file.write(new_text.encode()),
            before_renaming=layout.require_same,
        )
    remove_journal(layout)


def _put_renamed(layout: StoreLayout, move: Move) -> None:
    """Show the new folder, then take the old one away: bars are never not to be seen."""
    stage, trash = _stage(layout, move), _trash(layout, move)
    _rename_folder(stage, layout.symbol_folder(move.target))
    layout.require_same()
    _rename_folder(layout.symbol_folder(move.symbol), trash)
    _remove(trash)


def _put_retired(layout: StoreLayout, move: Move) -> None:
    _rename_folder(layout.symbol_folder(move.symbol), layout.retired / move.target)


def _edited(layout: StoreLayout, move: Move) -> str | None:
    """Give the universe's text after the move; None where it says so already."""
    universe = load_universe(layout.universe)
    is_rename = move.kind is MoveKind.RENAME
    if move.symbol not in universe.instruments and (
        not is_rename or move.target in universe.instruments
    ):
        return None
    with disk_errors(layout.universe):
        text = layout.universe.read_bytes().decode("utf-8-sig")
    if is_rename:
        return rename_symbol(text, str(layout.universe), move.symbol, move.target)
    return remove_symbol(text, str(layout.universe), move.symbol)


def _rename_folder(source: Path, target: Path) -> None:
    """Rename a folder for good, unless that has been done."""
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


def _trash(layout: StoreLayout, move: Move) -> Path:
    return layout.epochs / f"renamed-{move.symbol}-to-{move.target}"


def rename(layout: StoreLayout, symbol: str, new_symbol: str, now: datetime) -> Move:
    """Give a symbol another name, with its bars and all that is known of it.

    Raises: as ``store.maintenance.rename.move_symbol``; StoreError also where a load is at work on
    it.
    """
    return _move(layout, Move(MoveKind.RENAME, symbol, new_symbol), now)


def retire(layout: StoreLayout, symbol: str, now: datetime) -> Move:
    """Take a symbol out of the universe; its bars go where no query sees them, and are kept.

    Raises: as ``rename``.
    """
    return _move(layout, Move(MoveKind.RETIRE, symbol, retired_name(layout, symbol)), now)


def _move(layout: StoreLayout, move: Move, now: datetime) -> Move:
    ledger = open_ledger(layout)
    for symbol in (move.symbol, move.target):
        for timeframe in Timeframe:
            if is_in_hand(layout, ledger, f"{symbol}|{timeframe}", now):
                raise StoreError(
                    f"cannot {move.kind} {move.symbol}",
                    reason=f"a load is asking for {symbol} {timeframe}",
                    hint="Wait for it, or stop it, and run this again",
                )
    move_symbol(layout, ledger, move)
    return move
