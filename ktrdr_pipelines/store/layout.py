"""The paths of a data folder, the marker that makes it a store, and the guard of its identity.

A data folder can be moved, deleted or replaced while a process works on it: another store is
created at its path, another disk is mounted there, a link is redirected. A process that opened the
old store must not write into the new one. Open handles keep the inodes of the folders from being
reused, so device and inode identify a folder for as long as the guard lives. The id in the marker
distinguishes stores that used one folder in turn.

Not here: what lies at a path (``store.files``).
"""

import errno
import json
import os
import re
import shlex
import stat
import uuid
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from ktrdr_pipelines.domain.instruments import SYMBOL_PATTERN, Origin
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import (
    CorruptFileError,
    ForeignIdentityError,
    NoStoreError,
    StoreReplacedError,
)
from ktrdr_pipelines.store.files import (
    disk_errors,
    is_folder,
    is_regular,
    kind_of,
    locked,
    make_folder,
    require_series_folder,
    write_atomically,
)

_MOST_FOLDERS = 8_192

_OPENING = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NONBLOCK", 0)


class StoreGuard:
    """Checks that the folders of a store are those that were opened.

    Args:
        root: the data folder.
        folders: the root and those folders below it that may lie on other disks. A missing folder
            is not watched.
        store_id: the id in the marker; None for a store from before ids existed.
    """

    def __init__(self, root: Path, folders: Iterable[Path], store_id: str | None) -> None:
        self._root = root
        self._store_id = store_id
        self._handles: dict[Path, int] = {}
        for folder in folders:
            try:
                handle = os.open(folder, _OPENING)
            except OSError:
                continue
            self._handles[folder] = handle
            weakref.finalize(self, os.close, handle)

    def __repr__(self) -> str:
        return f"StoreGuard({self._root})"

    def check(self, read_id: Callable[[], str | None], *, only_root: bool = False) -> None:
        """Refuse to continue where another store, or none, is at the path.

        Args:
            read_id: reads the id in the marker at the path.
            only_root: whether to check only the root, as folders below it may be replaced.

        Raises:
            StoreReplacedError: the store is not the one that was opened.
        """
        for folder, handle in self._handles.items():
            if only_root and folder != self._root:
                continue
            opened = os.fstat(handle)
            try:
                found = folder.stat()
            except OSError as error:
                raise self._replaced(f"{folder}: {error.strerror}") from error
            if (found.st_dev, found.st_ino) != (opened.st_dev, opened.st_ino):
                raise self._replaced(f"another folder is now at {folder}")
        if read_id() != self._store_id:
            raise self._replaced("its store.json now has another id")

    def _replaced(self, reason: str) -> StoreReplacedError:
        return StoreReplacedError(
            f"the store at {self._root} is not the one that was opened",
            reason=reason,
            hint="Earlier saves are in the store that was opened, wherever it is now. Put it back, "
            "or name its folder in KTRDR_DATA, and run this again",
        )


_MARKER = "store.json"

FORMAT_VERSION = 2
"""Version of the folder's structure. 1 is the first; 2 adds the price basis of bars
(``store.bars.footer.SCHEMA_VERSION``) and the folder ``history``. A store of version 1 is read, and
becomes one of version 2 when bars are saved; programs of version 1 refuse it from then on."""

_MARKER_HINT = (
    'It should be like {"format_version": 2, "origin": "ib"}; '
    "the origin is in the footer of every bar file"
)


@dataclass(frozen=True, slots=True)
class _Marker:
    """The content of a marker; stores from before ids existed have no ``store_id``."""

    origin: Origin | None
    store_id: str | None
    version: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class StoreLayout:
    """Every path of one store; ``guard`` identifies the store that was opened."""

    root: Path
    guard: StoreGuard | None = field(default=None, compare=False, repr=False)

    def require_same(self) -> None:
        """Refuse to continue where the store at the path is not the one that was opened.

        Raises:
            StoreReplacedError: it was moved, deleted or replaced.
        """
        if self.guard is not None:
            self.guard.check(lambda: _id_at(self))

    def reopened(self) -> "StoreLayout":
        """Return the layout of the same store after folders below its root may have been replaced.

        Raises:
            StoreReplacedError: it is not the store that was opened.
        """
        if self.guard is not None:
            self.guard.check(lambda: _id_at(self), only_root=True)
        return open_store(self.root)

    @property
    def marker(self) -> Path:
        """The file that makes the folder a store: format version and origin."""
        return self.root / _MARKER

    @property
    def universe(self) -> Path:
        """The universe file, which the user edits."""
        return self.root / "universe.yaml"

    @property
    def bars(self) -> Path:
        """The folder of all bar files."""
        return self.root / "bars"

    @property
    def epochs(self) -> Path:
        """The folder in which bar files are prepared, outside every glob."""
        return self.root / "epochs"

    @property
    def retired(self) -> Path:
        """The folder with the bars of retired symbols, outside every glob."""
        return self.root / "retired"

    @property
    def history(self) -> Path:
        """The folder of what cannot be rebuilt from the bars, such as adjustments."""
        return self.root / "history"

    @property
    def adjustments_folder(self) -> Path:
        """The folder of the files of all symbols' adjustments."""
        return self.history / "adjustments"

    def adjustments_file(self, symbol: str) -> Path:
        """Return the file of a symbol's adjustments."""
        return self.adjustments_folder / f"{symbol}.json"

    @property
    def imported(self) -> Path:
        """The folder of the store of imported bars, which may not exist."""
        return self.root / "imported"

    @property
    def own_folders(self) -> tuple[Path, ...]:
        """The folders in which nothing but the store writes."""
        bars = (self.bars, self.epochs, self.retired, self.imported)
        return (*bars, self.history, self.quarantine, self.state)

    @property
    def quarantine(self) -> Path:
        """The folder into which repair moves files that it cannot trust."""
        return self.root / "quarantine"

    @property
    def state(self) -> Path:
        """The folder of settings, and of what can be rebuilt or is not needed after a restart."""
        return self.root / "state"

    @property
    def ledger(self) -> Path:
        """The SQLite ledger."""
        return self.state / "ledger.sqlite"

    def ledger_beside(self, suffix: str) -> Path:
        """Return the path of a file beside the ledger: its logs, its lock."""
        if suffix == ".lock":
            return self.ledger.with_suffix(suffix)
        return self.ledger.with_name(f"{self.ledger.name}{suffix}")

    @property
    def operations(self) -> Path:
        """The folder of the records of operations."""
        return self.state / "operations"

    @property
    def locks(self) -> Path:
        """The folder of lock files."""
        return self.state / "locks"

    @property
    def coverage_image(self) -> Path:
        """The PNG image of the coverage, as of the catalog's last materialization in Dagster."""
        return self.state / "coverage.png"

    @property
    def catalog(self) -> Path:
        """The DuckDB catalog."""
        return self.root / "ktrdr.duckdb"

    @property
    def catalog_log(self) -> Path:
        """The log that DuckDB keeps beside the catalog while a shell writes to it."""
        return self.root / "ktrdr.duckdb.wal"

    def remove_catalog(self) -> None:
        """Remove the catalog; commands that load or query build it again.

        Raises:
            DiskError: the system refused.
        """
        with disk_errors(self.catalog):
            self.catalog.unlink(missing_ok=True)
            self.catalog_log.unlink(missing_ok=True)

    def symbol_folder(self, symbol: str) -> Path:
        """Return the folder of all files of one symbol."""
        return self.bars / f"symbol={symbol}"

    def series_folder(self, symbol: str, timeframe: Timeframe) -> Path:
        """Return the folder of one series' files."""
        return _series_folder(self.root, symbol, timeframe)

    def bar_files(self, symbol: str, timeframe: Timeframe) -> list[Path]:
        """Return the files of one series, oldest first.

        Raises:
            OddPathError: their folder is not a folder, or is a link into a store.
        """
        folder = self.series_folder(symbol, timeframe)
        require_series_folder(folder)
        try:
            with os.scandir(folder) as entries:
                names = [one.name for one in entries if one.name.endswith(".parquet")]
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return []
        return [folder / name for name in sorted(names)]

    def timeframes_of(self, symbol: str) -> list[Timeframe]:
        """Return the timeframes for which a symbol has a folder."""
        folder = self.symbol_folder(symbol)
        try:
            with os.scandir(folder) as entries:
                names = {one.name for one in entries if _is_folder(one)}
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            if error.errno == errno.ELOOP:  # a link in a circle is no folder
                return []
            raise
        return [kind for kind in Timeframe if f"timeframe={kind}" in names]

    def series_folders(self) -> dict[tuple[str, Timeframe], Path]:
        """Return the folder of every series that has one, by symbol and timeframe.

        Folders whose names cannot be symbols are left out.
        """
        return {
            (symbol, timeframe): _series_folder(self.root, symbol, timeframe)
            for symbol in self.symbols()
            for timeframe in self.timeframes_of(symbol)
        }

    def symbols(self) -> list[str]:
        """Return the symbols that have a folder, sorted; names that no symbol has are left out."""
        if not is_folder(self.bars):
            return []
        try:
            with os.scandir(self.bars) as entries:
                names = [_value(one.name) for one in entries if one.name.startswith("symbol=")]
        except (FileNotFoundError, PermissionError):
            return []
        return sorted(name for name in names if re.fullmatch(SYMBOL_PATTERN, name))

    def has_bar_files(self, symbol: str, timeframe: Timeframe) -> bool:
        """Return whether a series has any file.

        Raises:
            OddPathError: as ``bar_files``.
        """
        folder = self.series_folder(symbol, timeframe)
        require_series_folder(folder)
        try:
            with os.scandir(folder) as entries:
                return any(one.name.endswith(".parquet") for one in entries)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return False

    def relative(self, path: Path) -> str:
        """Return a path relative to the data folder, the same wherever that is moved."""
        return path.relative_to(self.root).as_posix()

    def series_lock(self, symbol: str, timeframe: Timeframe) -> Path:
        """Return the lock file of one series."""
        return self.locks / f"{symbol}.{timeframe}.lock"

    def basis_lock(self, symbol: str) -> Path:
        """Return the lock file of a symbol's price basis; it is taken before those of series."""
        return self.locks / f"{symbol}.basis.lock"

    def lock(self, name: str) -> Path:
        """Return the lock file of something that is not a series."""
        return self.locks / f"{name}.lock"


@lru_cache(maxsize=_MOST_FOLDERS)
def _series_folder(root: Path, symbol: str, timeframe: Timeframe) -> Path:
    # A run composes the path of its series' folder some hundred times.
    return StoreLayout(root).symbol_folder(symbol) / f"timeframe={timeframe}"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry leads to a folder; a link in a circle leads to none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _value(name: str) -> str:
    """Return the value of a folder named ``key=value``."""
    return name.partition("=")[2]


def create_store(root: Path, origin: Origin | None = None) -> StoreLayout:
    """Make a folder a store; an existing store keeps its marker.

    Raises:
        DiskError: the folder cannot be written.
        NoStoreError: it is a store of a newer version.
        CorruptFileError: its marker cannot be read.
        ForeignIdentityError: it is a store of another origin.
    """
    layout = StoreLayout(root.absolute())
    with disk_errors(layout.root):
        for folder in (layout.bars, layout.locks, layout.epochs):
            make_folder(folder)
    with locked(layout.lock("store"), f"the store {layout.root}"):
        if kind_of(layout.marker) is None:
            _write_marker(layout, _Marker(origin, uuid.uuid4().hex))
    layout = open_store(layout.root)
    if origin is not None:
        pin_origin(layout, origin)
    return layout


def open_store(root: Path) -> StoreLayout:
    """Return the layout of a folder that is a store.

    Raises:
        NoStoreError: it has no marker, or that of a newer version.
        CorruptFileError: its marker cannot be read.
    """
    layout = StoreLayout(root.absolute())
    marker = _read_marker(layout)
    folders = (layout.root, layout.bars, layout.state)
    return StoreLayout(layout.root, StoreGuard(layout.root, folders, marker.store_id))


def imported_store(layout: StoreLayout) -> StoreLayout | None:
    """Return the layout of a store's imported bars; None as long as there are none.

    Raises:
        NoStoreError: a newer version made it.
        CorruptFileError: its marker cannot be read.
    """
    if not os.path.lexists(StoreLayout(layout.imported).marker):
        return None
    return open_store(layout.imported)


def store_origin(layout: StoreLayout) -> Origin | None:
    """Return the origin of the store's bars; None as long as it has had no bars."""
    return _read_marker(layout).origin


def store_version(layout: StoreLayout) -> int:
    """Return the version of the folder's structure."""
    return _read_marker(layout).version


def upgrade_store(layout: StoreLayout) -> None:
    """Make a store of an earlier version one of this version; its bar files stay as they are.

    The catalog of an earlier version does not know the basis of bars: it is removed, and rebuilt
    after the next load.

    Raises:
        StoreReplacedError: it is not the store that was opened.
        DiskError: the system refused.
    """
    if store_version(layout) == FORMAT_VERSION:
        return
    with locked(layout.lock("store"), f"the store {layout.root}"):
        marker = _read_marker(layout)
        if marker.version == FORMAT_VERSION:
            return
        with locked(layout.lock("catalog"), f"the catalog {layout.catalog}"):
            layout.remove_catalog()
            _write_marker(layout, replace(marker, version=FORMAT_VERSION))


def pin_origin(layout: StoreLayout, origin: Origin) -> None:
    """Set the origin of a store that has none yet; it never changes afterwards.

    Raises:
        ForeignIdentityError: the store holds bars of another origin.
        StoreReplacedError: it is not the store that was opened.
    """
    if store_origin(layout) is None:
        with locked(layout.lock("store"), f"the store {layout.root}"):
            marker = _read_marker(layout)
            if marker.origin is None:
                _write_marker(layout, replace(marker, origin=origin))
                return
    refuse_other_origin(layout, origin)


def refuse_other_origin(layout: StoreLayout, origin: Origin) -> None:
    """Refuse bars of another origin than the store's; a store without origin accepts any.

    Raises:
        ForeignIdentityError: the store holds bars of another origin.
    """
    held = store_origin(layout)
    if held not in {None, origin}:
        raise ForeignIdentityError(
            f"cannot save {origin} bars in the store {layout.root}",
            reason=f"it holds {held} bars",
            hint="A store has one origin: create another store with `ktrdr init` and name its "
            "folder in KTRDR_DATA",
        )


def _write_marker(layout: StoreLayout, marker: _Marker) -> None:
    fields: dict[str, object] = {"format_version": marker.version, "origin": marker.origin}
    if marker.store_id is not None:
        fields["id"] = marker.store_id
    text = f"{json.dumps(fields, indent=2)}\n"
    write_atomically(
        layout.marker, lambda file: file.write(text.encode()), before_renaming=layout.require_same
    )


def _read_marker(layout: StoreLayout) -> _Marker:
    path = f"{layout.root}/{_MARKER}"
    if not _is_file(path):
        _require_marker(layout)
    with disk_errors(Path(path)), open(path, "rb") as file:  # noqa: PTH123  (read with every save)
        text = file.read()
    try:
        marker = _marker_of(text)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CorruptFileError(
            f"cannot read {layout.marker}",
            reason=f"it is not a valid marker: {text[:80]!r}",
            hint=f"Restore it by hand. {_MARKER_HINT}",
        ) from error
    if marker.version > FORMAT_VERSION:
        raise _too_new(layout, marker.version)
    return marker


@lru_cache(maxsize=16)
def _marker_of(text: bytes) -> _Marker:
    """Return the marker that a text describes; of a newer version only that."""
    fields = json.loads(text)
    version, origin, store_id = int(fields["format_version"]), fields["origin"], None
    if version > FORMAT_VERSION:
        return _Marker(None, None, version)
    if fields.get("id") is not None:
        store_id = str(fields["id"])
    return _Marker(None if origin is None else Origin(origin), store_id, version)


def _is_file(path: str) -> bool:
    """Return whether a file itself lies at a path, not a link to one."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _require_marker(layout: StoreLayout) -> None:
    """Refuse a folder whose marker is missing, or is not a file.

    Raises:
        NoStoreError: there is none.
        CorruptFileError: it is not a file.
    """
    kind = kind_of(layout.marker)
    if kind is None:
        at_root = kind_of(layout.root)
        if at_root is not None and not layout.root.is_dir():
            raise NoStoreError(
                f"{layout.root} is not a store",
                reason=f"it is {at_root}, and a store is a folder",
                hint="Name another folder in KTRDR_DATA",
            )
        # Those of `ktrdr demo` and `ktrdr up --simulate` lie below the data folder.
        below = sorted(
            str(one.parent)
            for one in layout.root.glob("*/store.json")
            if one.parent != layout.imported
        )
        others = f", such as {' or '.join(below)}" if below else ""
        raise NoStoreError(
            f"{layout.root} is not a store",
            reason="it has no store.json",
            hint=f"Create a store there with `ktrdr init --data {shlex.quote(str(layout.root))}`, "
            f"or name another folder in KTRDR_DATA{others}",
        )
    if not is_regular(layout.marker):
        raise CorruptFileError(
            f"cannot read {layout.marker}",
            reason=f"it is {kind}",
            hint=f"Move it away by hand and write a file there. {_MARKER_HINT}",
        )


def _id_at(layout: StoreLayout) -> str | None:
    """Return the id of the store at the path."""
    try:
        return _read_marker(layout).store_id
    except NoStoreError as error:
        raise StoreReplacedError(
            f"the store at {layout.root} is not the one that was opened",
            reason=error.reason,
            hint=error.hint,
        ) from error


def _too_new(layout: StoreLayout, version: int) -> NoStoreError:
    return NoStoreError(
        f"cannot open the store {layout.root}",
        reason=f"it has format version {version}, this ktrdr reads versions up to {FORMAT_VERSION}",
        hint="Use a newer ktrdr, or name another folder in KTRDR_DATA",
    )
