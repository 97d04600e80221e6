"""Renaming, retiring and restoring the imported bars of a symbol together with the symbol.

What is done already is not done again, so a move that was killed is finished by the same calls. The
caller holds ``imported_locks``.

Not here: the move of everything else (``store.maintenance.rename``).
"""

import shutil
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Final

from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import CorruptFileError
from ktrdr_pipelines.store.bars.bar_file import is_as_written, read_file, write_file
from ktrdr_pipelines.store.files import disk_errors, make_folder, sync_folder
from ktrdr_pipelines.store.layout import StoreLayout, imported_store
from ktrdr_pipelines.store.ledger.ledger import open_ledger

_STAGE: Final = "renaming"


def imported_locks(layout: StoreLayout, symbols: Iterable[str]) -> list[tuple[Path, str]]:
    """Return the locks of the imported series of some symbols, and what each keeps.

    An import holds the first of a series from its comparison with held bars until it has saved.
    """
    imported = imported_store(layout)
    if imported is None:
        return []
    series = [(symbol, timeframe) for symbol in symbols for timeframe in Timeframe]
    return [
        *((import_lock(imported, *one), f"imports of {one[0]} {one[1]}") for one in series),
        *((imported.series_lock(*one), f"imported bars of {one[0]} {one[1]}") for one in series),
    ]


def import_lock(imported: StoreLayout, symbol: str, timeframe: Timeframe) -> Path:
    """Return the lock that an import of a series holds."""
    return imported.lock(f"import-{symbol}.{timeframe}")


def rename_imported(layout: StoreLayout, symbol: str, new_symbol: str) -> None:
    """Rename the imported bars of a symbol, if it has any; what is done already is not done again.

    A series stays under the old symbol, where it is still read, if a file of it is damaged, or if
    the new symbol has other imported bars.

    Args:
        layout: the store above that of the imported bars.
        symbol, new_symbol: the old and the new key.

    Raises:
        DiskError: the system refused.
    """
    imported = imported_store(layout)
    if imported is None or not imported.symbol_folder(symbol).is_dir():
        return
    for timeframe in imported.timeframes_of(symbol):
        old, new = (imported.series_folder(one, timeframe) for one in (symbol, new_symbol))
        stage = imported.epochs / f"{_STAGE}-{symbol}-to-{new_symbol}-{timeframe}"
        try:
            if not new.exists():
                _write(old, stage, new_symbol)
                _rename(stage, new)
            elif not _has_same(old, new):
                continue
        except CorruptFileError:
            _remove(stage)
            continue
        _rename(old, stage)
        _remove(stage)
    with disk_errors(imported.bars), closing(open_ledger(imported)) as ledger:
        folder = imported.symbol_folder(symbol)
        if not any(folder.iterdir()):
            folder.rmdir()
            sync_folder(imported.bars)
            ledger.move_symbol(symbol, new_symbol)


def retire_imported(layout: StoreLayout, symbol: str, name: str) -> None:
    """Keep the imported bars of a retired symbol where no query finds them, if it has any.

    Args:
        layout: the store above that of the imported bars.
        symbol: the key.
        name: its name among the retired ones.

    Raises:
        DiskError: the system refused.
    """
    imported = imported_store(layout)
    if imported is None or not imported.symbol_folder(symbol).is_dir():
        return
    if not (imported.retired / name).exists():
        _rename(imported.symbol_folder(symbol), imported.retired / name)
    with closing(open_ledger(imported)) as ledger:
        ledger.move_symbol(symbol, name)


def restore_imported(layout: StoreLayout, name: str, symbol: str, new_symbol: str) -> None:
    """Put the imported bars of a retired symbol back, if it has any.

    A series stays among the retired ones if a file of it is damaged, or if the symbol has other
    imported bars by now.

    Args:
        layout: the store above that of the imported bars.
        name: its name among the retired ones.
        symbol: the symbol that it had.
        new_symbol: the symbol that it gets.

    Raises:
        DiskError: the system refused.
    """
    imported = imported_store(layout)
    if imported is None or not (imported.retired / name).is_dir():
        return
    for kept in sorted((imported.retired / name).glob("timeframe=*")):
        timeframe = Timeframe(kept.name.partition("=")[2])
        new = imported.series_folder(new_symbol, timeframe)
        if new.exists():
            continue
        if symbol == new_symbol:
            _rename(kept, new)
            continue
        stage = imported.epochs / f"{_STAGE}-{name}-to-{new_symbol}-{timeframe}"
        try:
            _write(kept, stage, new_symbol)
        except CorruptFileError:
            _remove(stage)
            continue
        _rename(stage, new)
    with disk_errors(imported.retired), closing(open_ledger(imported)) as ledger:
        folder = imported.retired / name
        if symbol != new_symbol:
            _remove_shown(folder, imported, new_symbol)
        if not any(folder.iterdir()):
            folder.rmdir()
            sync_folder(imported.retired)
            ledger.move_symbol(name, new_symbol)


def _remove_shown(folder: Path, imported: StoreLayout, symbol: str) -> None:
    """Remove the retired series that have been written under another symbol."""
    for kept in sorted(folder.glob("timeframe=*")):
        shown = imported.series_folder(symbol, Timeframe(kept.name.partition("=")[2]))
        try:
            is_shown = shown.exists() and _has_same(kept, shown)
        except CorruptFileError:
            continue
        if is_shown:
            _remove(kept)


def _write(old: Path, stage: Path, symbol: str) -> None:
    """Write the files of a series under another symbol, where nothing reads them.

    Raises:
        CorruptFileError: one cannot be read.
    """
    _remove(stage)
    for path in sorted(old.glob("*.parquet")):
        footer, bars = read_file(path)
        named = replace(footer, identity=replace(footer.identity, symbol=symbol))
        is_ours = footer.seal is not None or is_as_written(path)
        write_file(stage / path.name, bars, named, is_as_written=is_ours)


def _has_same(old: Path, new: Path) -> bool:
    """Return whether an interrupted rename has written all files of a series."""
    return all(
        (new / path.name).exists() and read_file(path)[1].equals(read_file(new / path.name)[1])
        for path in sorted(old.glob("*.parquet"))
    )


def _rename(source: Path, target: Path) -> None:
    with disk_errors(source):
        if source.exists():
            make_folder(target.parent)
            source.rename(target)
            sync_folder(target.parent)
            sync_folder(source.parent)


def _remove(folder: Path) -> None:
    with disk_errors(folder):
        if folder.exists():
            shutil.rmtree(folder)
