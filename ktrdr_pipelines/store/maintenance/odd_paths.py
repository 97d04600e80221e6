"""Quarantining anything that lies where the store keeps a file or a folder and is neither.

Folders named like a file, dangling links, named pipes and the like are moved into quarantine as
they are: nothing is opened, deleted or followed.

Not here: finding out what lies at a path (``store.files``), odd bar files, which are checked with
all others (``store.maintenance.inspection``).
"""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

from ktrdr_pipelines.errors import OddPathError
from ktrdr_pipelines.settings import settings_file
from ktrdr_pipelines.store.files import (
    TEMP_SUFFIX,
    disk_errors,
    is_folder,
    is_link_to_nothing,
    is_regular,
    is_series_folder,
    kind_of,
    make_folder,
    sync_folder,
    write_atomically,
)
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.maintenance.inspection import Quarantined, quarantine

_NOTHING = "nothing"
_LOGS = ("-wal", "-shm")


def quarantine_odd_paths(layout: StoreLayout) -> list[Quarantined]:
    """Quarantine what cannot be used at the store's own paths, and create the folders it needs.

    A quarantined universe is restored from its last good copy, where there is one.

    Raises:
        OddPathError: the folder of bars is a link to a missing target, such as another disk.
        StoreReplacedError: the store is not the one that was opened.
        DiskError: the system refused.
    """
    layout.require_same()
    if is_link_to_nothing(layout.bars):
        raise OddPathError(
            f"cannot use {layout.bars}",
            reason=f"it is {kind_of(layout.bars)}",
            hint="Mount the disk with the bars, or correct the link by hand. To start without any "
            "bars, remove the link and run `ktrdr repair`",
        )
    moved = _move_odd_quarantine(layout)
    moved += [
        _quarantine(layout, path, "a folder")
        for path in (layout.bars, layout.epochs, layout.retired, layout.state, layout.locks)
        if kind_of(path) and not is_folder(path)
    ]
    with disk_errors(layout.root):
        for folder in (layout.bars, layout.epochs, layout.locks):
            make_folder(folder)
    if kind_of(layout.ledger) and not is_regular(layout.ledger):
        moved += [
            _quarantine(layout, path, "the ledger's log")
            for path in map(layout.ledger_beside, _LOGS)
            if kind_of(path)
        ]
    moved += [_quarantine(layout, path, "a file") for path in _odd_files(layout)]
    for folder in _odd_series_folders(layout):
        shared = " inside a store" if is_folder(folder) else ""
        parts = folder.relative_to(layout.bars).parts
        name = " ".join(part.partition("=")[2] for part in parts)
        why = f"it is {kind_of(folder)}{shared}, not a folder of bars of its own"
        moved.append(quarantine(layout, folder, why, f"{name}, all dates"))
    # Real unfinished files are removed elsewhere.
    moved += [
        _quarantine(layout, path, "an unfinished file")
        for folder in (layout.root, *layout.series_folders().values())
        for path in sorted(folder.glob(f".*{TEMP_SUFFIX}*"))
        if kind_of(path) not in {None, "a file"}
    ]
    good = layout.state / "universe.good.yaml"
    if any(one.was == layout.universe for one in moved) and is_regular(good):
        with disk_errors(good):
            text = good.read_bytes()
        write_atomically(
            layout.universe, lambda file: file.write(text), before_renaming=layout.require_same
        )
    return moved


def _move_odd_quarantine(layout: StoreLayout) -> list[Quarantined]:
    """Rename whatever lies at the quarantine's path; it cannot be moved into itself."""
    was = layout.quarantine
    kind = kind_of(was)
    if kind is None or is_folder(was):
        return []
    candidates = (was.with_name(f"{was.name}.{number}") for number in count(1))
    now = next(candidate for candidate in candidates if kind_of(candidate) is None)
    with disk_errors(was):
        was.rename(now)
        sync_folder(was.parent)
    return [Quarantined(was, now, f"it is {kind}, not a folder", _NOTHING)]


def _quarantine(layout: StoreLayout, path: Path, wanted: str) -> Quarantined:
    return quarantine(layout, path, f"it is {kind_of(path)}, not {wanted}", _NOTHING)


def _odd_files(layout: StoreLayout) -> Iterator[Path]:
    """Yield the paths of the store's files that hold something that cannot be used as one."""
    beside = map(layout.ledger_beside, (*_LOGS, ".lock"))
    yield from (
        path
        for path in (
            layout.universe,
            layout.catalog,
            layout.ledger,
            settings_file(layout.root),
            *(layout.state / name for name in ("universe.good.yaml", "move.json", "dagster.log")),
        )
        if kind_of(path) and not is_regular(path)
    )
    # Programs that open these refuse links, or would follow one and write elsewhere.
    unlinked = (*beside, layout.catalog_log, *sorted(layout.locks.glob("*.lock")))
    yield from (path for path in unlinked if kind_of(path) not in {None, "a file"})


def _odd_series_folders(layout: StoreLayout) -> Iterator[Path]:
    for symbol in sorted(layout.bars.glob("symbol=*")):
        if not is_series_folder(symbol):
            yield symbol
            continue
        yield from (
            folder for folder in sorted(symbol.glob("timeframe=*")) if not is_series_folder(folder)
        )
