"""The ledger's SQLite file: connections, transactions, errors, the erasure of free pages.

``Database`` is the one way to the file; a table takes it and holds no connection of its own.

Not here: the tables' definitions and their migration (``store.ledger.schema``).
"""

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from ktrdr_pipelines.errors import CorruptFileError, DiskError, StoreError
from ktrdr_pipelines.store.files import disk_errors, locked, make_folder, require_file
from ktrdr_pipelines.store.ledger.schema import (
    ERASURE,
    LEDGER_VERSION,
    is_erasure_due,
    migrate,
    mismatch,
    version,
)

BUSY_TIMEOUT_S = 30.0
"""Seconds that a statement waits for another process's transaction, which lasts milliseconds."""

ERASURE_WAIT_S = 2.0
"""Seconds that the erasure of free pages waits for readers of the ledger before it is deferred to
the next opening."""

_REBUILD = "Run `ktrdr repair`: it is rebuilt from the bar files, no bar is lost"

_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
"""Codes that mean damage. SQLITE_ERROR reports a statement that does not fit the tables; the
ledger's own statements fit, so the tables are not the ledger's."""

T = TypeVar("T")

_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}

_log = logging.getLogger(__name__)


class Database:
    """One SQLite file with one connection per thread and process, opened on first use.

    A missing or empty file is created. When another process has quarantined the file (a repair),
    the next use opens the new file. An open connection keeps its file wherever that is moved.

    Args:
        path: the file.
        guard: called before a file at the path is opened; raises where the store at the path is
            not the one that was opened.
        remove_copies: removes files that were built from the rows, when removed rows are erased.
    """

    def __init__(
        self,
        path: Path,
        guard: Callable[[], object] | None = None,
        *,
        remove_copies: Callable[[], object] | None = None,
    ) -> None:
        self.path = path
        self._name = str(path)
        self._guard = guard or (lambda: None)
        self._remove_copies = remove_copies or (lambda: None)
        self._local = threading.local()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path})"

    def close(self) -> None:
        """Close this thread's connection; the next use opens another."""
        handle = self._handle()
        self._local.handle = None
        if handle is not None:
            handle.connection.close()

    def check(self) -> None:
        """Check the whole file for damage, and for tables and values of other programs.

        Raises:
            CorruptFileError: the file has any of these.
        """
        with self.reading() as connection:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if found == "ok":
                found = mismatch(connection) or "ok"
        if found != "ok":
            raise CorruptFileError(
                f"the ledger {self.path} is damaged", reason=found, hint=_REBUILD
            )

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection for statements that read."""
        with self._errors():
            yield self._connection()

    def remembered(self, key: Hashable, read: Callable[[sqlite3.Connection], T]) -> T:
        """Return what a function reads, from memory while no row of the file has changed since.

        Every thread remembers by itself, until any connection, of whatever process, commits.

        Args:
            key: tells the function and its arguments from others of this database.
            read: reads rows.
        """
        try:
            handle = self._current()
            if handle.connection.in_transaction:  # what it reads may be rolled back
                return read(handle.connection)
            known = handle.remembered()
            if key not in known:
                known[key] = read(handle.connection)
            found: T = known[key]
        except (sqlite3.Error, UnicodeError):
            with self._errors():
                raise
        return found

    def version(self) -> Hashable:
        """Return a value that stays the same, in this thread, while no row of the file changes."""
        try:
            return self._current().version()
        except (sqlite3.Error, UnicodeError):
            with self._errors():
                raise

    @contextmanager
    def as_of_now(self) -> Iterator[None]:
        """Ask only once, for a block, whether others have changed rows.

        In this thread, what other connections commit during the block counts as committed after it,
        for ``remembered`` and ``version``; what this one writes is seen at once. The block must be
        short, and must not wait for anything.
        """
        with self._errors():
            handle = self._current()
            is_outermost = handle.pin()
        try:
            yield
        finally:
            if is_outermost:
                handle.unpin()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection for one transaction, which is committed whole or not at all.

        Inside another transaction of the same thread it is a part of that one.
        """
        with self._errors():
            handle = self._handle()
            if handle is not None and handle.connection.in_transaction:
                yield handle.connection
                return
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.commit()
            except BaseException:  # an interrupted transaction must not stay open, too
                connection.rollback()
                raise

    def _handle(self) -> "_Handle | None":
        handle: _Handle | None = getattr(self._local, "handle", None)
        return handle

    def _connection(self) -> sqlite3.Connection:
        return self._current().connection

    def _current(self) -> "_Handle":
        handle = self._handle()
        if handle is not None and handle.is_pinned:
            return handle
        if handle is None or not handle.is_current(self._name):
            self._local.handle = handle = self._open()
        return handle

    def _open(self) -> "_Handle":
        self._guard()
        require_file(self.path)
        with disk_errors(self.path):
            make_folder(self.path.parent)
        connection = _connect(self.path)
        try:
            self._guard()
            if version(connection) != LEDGER_VERSION or is_erasure_due(connection):
                with locked(self.path.with_suffix(".lock"), f"the ledger {self.path}"):
                    self._create(connection)
                    if is_erasure_due(connection):
                        self._erase(connection)
            return _Handle(connection, self.path)
        except BaseException:  # an interrupted opening must not leave a connection, too
            connection.close()
            raise

    def _create(self, connection: sqlite3.Connection) -> None:
        """Create the tables, or migrate those of an earlier version."""
        found = version(connection)
        if found > LEDGER_VERSION:
            raise StoreError(
                f"cannot open the ledger {self.path}",
                reason=f"it has version {found}, this ktrdr reads versions up to {LEDGER_VERSION}",
                hint="Use a newer ktrdr",
            )
        if found < LEDGER_VERSION:
            migrate(connection, found)

    def _erase(self, connection: sqlite3.Connection) -> None:
        """Rewrite the file, so that neither free pages nor the log hold what was removed.

        Where another process or a full disk prevents that, the next opening does it.
        """
        if connection.execute(f"SELECT 1 FROM {ERASURE}").fetchone():  # noqa: S608
            self._remove_copies()
            connection.execute(f"DELETE FROM {ERASURE}")  # noqa: S608
        connection.execute(f"PRAGMA busy_timeout = {round(ERASURE_WAIT_S * 1000)}")
        try:
            connection.execute("VACUUM")
            # The file keeps its old pages until the whole log is in it; readers can delay that.
            is_busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not is_busy:
                connection.execute(f"DROP TABLE {ERASURE}")
                return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in {*_BUSY, sqlite3.SQLITE_FULL}:
                raise
        finally:
            connection.execute(f"PRAGMA busy_timeout = {round(BUSY_TIMEOUT_S * 1000)}")
        _log.info("%s is in use; its free pages will be erased at the next opening", self.path)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _translated(self.path, error) from error
        except UnicodeError as error:  # sqlite3 decodes the names of a damaged schema
            raise CorruptFileError(
                f"cannot use the ledger {self.path}", reason=str(error), hint=_REBUILD
            ) from error


class Table:
    """Rows of one topic in a database; every call is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database


class _Handle:
    """A connection and the file that it was opened on; closes with its thread."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.connection = connection
        self._process = os.getpid()
        self._number = next(_NUMBERS)
        self._file = _file_of(path)
        self._known: dict[Hashable, Any] = {}
        self._known_at: Hashable = None
        self._others: int | None = None

    @property
    def is_pinned(self) -> bool:
        """Whether what other connections commit is not looked for now."""
        return self._others is not None

    def pin(self) -> bool:
        """Look no more for what other connections commit; return False if that was so already."""
        if self.is_pinned:
            return False
        self._others = self._data_version()
        return True

    def unpin(self) -> None:
        """Look again for what other connections commit."""
        self._others = None

    def version(self) -> Hashable:
        """Return a value that changes with every change of a row, whichever connection made it."""
        others = self._data_version() if self._others is None else self._others
        return self._number, others, self.connection.total_changes

    def _data_version(self) -> int:
        (others,) = self.connection.execute("PRAGMA data_version").fetchone()
        return int(others)

    def remembered(self) -> dict[Hashable, Any]:
        """Return what was read since a row last changed."""
        if (version := self.version()) != self._known_at:
            self._known, self._known_at = {}, version
        return self._known

    def is_current(self, path: Path | str) -> bool:
        """Return whether the connection is this process's, and open on the file now at ``path``."""
        return self._process == os.getpid() and self._file == _file_of(path)

    def __del__(self) -> None:
        if self._process == os.getpid():
            self.connection.close()
        else:
            _INHERITED.append(self.connection)


_NUMBERS = count()
"""Numbers of connections: an address may be that of a connection that was closed before."""

_INHERITED: list[sqlite3.Connection] = []
"""Connections inherited through a fork: SQLite forbids both using and closing them."""


def _file_of(path: Path | str) -> tuple[int, int] | None:
    try:
        stat = os.stat(path)  # noqa: PTH116  (for every statement)
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_ino


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def _translated(path: Path, error: sqlite3.Error) -> StoreError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    what, reason = f"cannot use the ledger {path}", str(error)
    is_undecodable = not code and "decode" in reason
    is_protected = code == sqlite3.SQLITE_READONLY and os.access(path, os.W_OK)
    if code in _CORRUPT or is_undecodable or is_protected:
        return CorruptFileError(what, reason=reason, hint=_REBUILD)
    if code in _BUSY:
        return StoreError(
            what, reason=reason, hint="Another process holds it: end that process and run again"
        )
    return DiskError(
        what,
        reason=reason,
        hint="Make room on the disk and make the folder writable, then run `ktrdr repair`",
    )
