"""The SQLite file in which all processes keep what they share about one gateway.

Opening, the tables, transactions, and replacement after damage. A missing file is created empty:
either no request was sent yet, or a user removed it on purpose. A file that cannot be read is
quarantined and replaced, and ``on_loss`` writes into the successor that requests may have been
sent which the successor does not list.

Not here: what the tables hold (``ib.pacing.shared_state``).
"""

import errno
import logging
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from filelock import FileLock

from ktrdr_pipelines.domain.account_numbers import without_accounts
from ktrdr_pipelines.errors import DiskError
from ktrdr_pipelines.ib.private_files import (
    FILE_MODE,
    make_private_database,
    make_private_file,
    make_private_folder,
)

FILE = "pacer.sqlite"
LOCK_WAIT_S = 0.05
"""Seconds that one attempt waits for another process's transaction before it gives up."""

_VERSION = 5
"""Version of the tables. 5 adds when a request is counted at the latest; 4 has the tables of 3, and
texts of earlier versions may name accounts."""

_NO_ACCOUNTS_SINCE = 4

_SETUP_WAIT_S = 30.0
_NO_FILE = -1
_BROKEN_CODES = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_BUSY_CODES = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS requests (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    boot TEXT NOT NULL,
    owner TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'open', 'done')),
    at REAL NOT NULL,
    until REAL NOT NULL,
    kind TEXT NOT NULL,
    contract TEXT NOT NULL,
    identical TEXT NOT NULL,
    weight INTEGER NOT NULL,
    small INTEGER NOT NULL,
    tail INTEGER NOT NULL,
    counted REAL
)""",
    """CREATE TABLE IF NOT EXISTS pauses
    (boot TEXT NOT NULL, until REAL NOT NULL, length_s REAL NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS memory (
    boot TEXT NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (boot, name)
)""",
    """CREATE TABLE IF NOT EXISTS blocks (
    entitlement TEXT PRIMARY KEY,
    reason TEXT NOT NULL,
    code INTEGER,
    until REAL NOT NULL
)""",
)
_COUNTED = (
    "ALTER TABLE requests ADD COLUMN counted REAL",
    "UPDATE requests SET counted = max(at, until) WHERE state <> 'waiting'",
)
"""What an earlier table of requests lacks: its deadlines are the latest times of responses."""

_INDEXES = (
    "DROP INDEX IF EXISTS requests_at",
    # By time, with all that is read of sent requests but the names of rare rules.
    """CREATE INDEX IF NOT EXISTS requests_counted ON requests
    (boot, counted, at, until, state, kind, small, weight, tail, owner)""",
    """CREATE INDEX IF NOT EXISTS requests_small ON requests
    (boot, counted, at, state, weight, tail) WHERE small = 1""",
    """CREATE INDEX IF NOT EXISTS requests_identical ON requests (identical)
    WHERE kind IN ('bars', 'head')""",
    """CREATE INDEX IF NOT EXISTS requests_waiting ON requests (boot, until)
    WHERE state = 'waiting'""",
    # A process of an earlier version that still runs writes no such times.
    """CREATE TRIGGER IF NOT EXISTS requests_of_version_4 AFTER UPDATE OF state ON requests
    WHEN NEW.counted IS NULL AND NEW.state <> 'waiting'
    BEGIN UPDATE requests SET counted = max(NEW.at, NEW.until) WHERE number = NEW.number; END""",
)
_MOVE = "Set KTRDR_STATE to a writable folder on a local disk."
_MAKE_ROOM = "Make room on that disk, or set KTRDR_STATE to a folder on another disk."
_log = logging.getLogger(__name__)


class RecordBusyError(Exception):
    """Another process is writing, or the file has just been replaced; try again."""


class SharedFile:
    """One process's connection to the shared file.

    Args:
        folder: where the file lies; created when first needed.
        on_loss: called inside a transaction of the successor when a broken file was quarantined.
    """

    def __init__(self, folder: Path, *, on_loss: Callable[[sqlite3.Connection], None]) -> None:
        self.path = folder / FILE
        self._name = str(self.path)
        self._on_loss = on_loss
        self._database: sqlite3.Connection | None = None
        self._inode = 0

    @property
    def exists(self) -> bool:
        """Return whether the file exists; looking creates nothing."""
        return _inode(self.path) != _NO_FILE

    def close(self) -> None:
        """Close the file; the next transaction opens it again."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def glance(self, query: str, values: tuple[str, ...]) -> tuple[object, ...] | None:
        """Return one row as the last transaction left it, without waiting for a writer.

        Raises:
            RecordBusyError: the file cannot be read now.
            DiskError: the file cannot be used.
        """
        try:
            row: tuple[object, ...] | None = self._current().execute(query, values).fetchone()
        except sqlite3.DatabaseError as error:
            self._handle_damage(error)
            raise RecordBusyError from error
        return row

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run one transaction as the only writer.

        Raises:
            RecordBusyError: another process is writing, or the file has just been replaced.
            DiskError: the file cannot be used.
        """
        try:
            database = self._current()
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("COMMIT")
            finally:
                if database.in_transaction:
                    database.execute("ROLLBACK")
        except sqlite3.DatabaseError as error:
            self._handle_damage(error)
            raise RecordBusyError from error

    def _current(self) -> sqlite3.Connection:
        """Return the open file, which another process may have replaced."""
        inode = _inode(self._name)
        if self._database is not None and self._inode != inode:
            self.close()
        if self._database is None:
            self._database = self._open()
            self._inode = _inode(self._name)
        return self._database

    def _handle_damage(self, error: sqlite3.DatabaseError) -> None:
        code = _code(error)
        if code in _BUSY_CODES:
            return
        self.close()
        if code not in _BROKEN_CODES:
            hint = _MAKE_ROOM if code == sqlite3.SQLITE_FULL else _MOVE
            raise self._disk_error(str(error), hint) from error
        try:
            self._replace_broken()
        except OSError as refusal:
            reason = f"the file is broken and cannot be replaced: {refusal.strerror or refusal}"
            raise self._disk_error(reason, _hint(refusal)) from refusal

    def _open(self) -> sqlite3.Connection:
        try:
            make_private_folder(self.path.parent)
            make_private_database(self.path)
        except OSError as error:
            raise self._disk_error(error.strerror or str(error), _hint(error)) from error
        database = sqlite3.connect(self.path, timeout=LOCK_WAIT_S, isolation_level=None)
        try:
            if not self._is_current(database):
                _set_up(database)
            database.execute("PRAGMA synchronous = NORMAL")
        except (sqlite3.Error, DiskError):
            database.close()
            raise
        return database

    def _is_current(self, database: sqlite3.Connection) -> bool:
        version = _version(database)
        if version > _VERSION:
            raise self._disk_error(
                f"made by a newer version of this program ({version})",
                "Update this program, or stop the newer one and remove the file.",
            )
        return version == _VERSION

    def _replace_broken(self) -> None:
        """Replace a broken file by a successor that records the loss, once for all processes."""
        with FileLock(self.path.with_suffix(".lock"), timeout=_SETUP_WAIT_S, mode=FILE_MODE):
            if _is_sound(self.path):
                return
            quarantined = self.path.with_name(f"{FILE}.broken")
            successor = self.path.with_name(f"{FILE}.new")
            _log.warning("%s is broken; it is quarantined as %s", self.path, quarantined.name)
            successor.unlink(missing_ok=True)
            for path in (quarantined, successor):
                make_private_file(path)
            with closing(sqlite3.connect(successor, isolation_level=None)) as database:
                _set_up(database)
                self._on_loss(database)
            shutil.copyfile(self.path, quarantined)
            for suffix in ("-wal", "-shm"):
                self.path.with_name(FILE + suffix).unlink(missing_ok=True)
            successor.replace(self.path)

    def _disk_error(self, reason: str, hint: str) -> DiskError:
        return DiskError(f"use the request record {self.path}", reason=reason, hint=hint)


def _hint(error: OSError) -> str:
    return _MAKE_ROOM if error.errno in {errno.ENOSPC, errno.EDQUOT} else _MOVE


def _set_up(database: sqlite3.Connection) -> None:
    database.execute(f"PRAGMA busy_timeout = {round(_SETUP_WAIT_S * 1000)}")
    database.execute("PRAGMA journal_mode = WAL")
    if 0 < _version(database) < _NO_ACCOUNTS_SINCE:
        _remove_accounts(database)
    database.execute("BEGIN IMMEDIATE")  # as another process may do the same
    for statement in _SCHEMA:
        database.execute(statement)
    if "counted" not in {row[1] for row in database.execute("PRAGMA table_info(requests)")}:
        for statement in _COUNTED:
            database.execute(statement)
    for statement in _INDEXES:
        database.execute(statement)
    database.execute(f"PRAGMA user_version = {_VERSION}")
    database.execute("COMMIT")
    database.execute(f"PRAGMA busy_timeout = {round(LOCK_WAIT_S * 1000)}")


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def _remove_accounts(database: sqlite3.Connection) -> None:
    """Remove account numbers from the texts of an earlier version, free pages included.

    The version is set afterwards, so an interrupted run is repeated.
    """
    database.execute("PRAGMA secure_delete = ON")
    database.create_function("without_accounts", 1, without_accounts, deterministic=True)
    database.execute("BEGIN IMMEDIATE")
    for table, column in (("blocks", "reason"), ("memory", "value")):
        if database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone():
            database.execute(f"UPDATE {table} SET {column} = without_accounts({column})")  # noqa: S608
    database.execute("COMMIT")
    database.execute("VACUUM")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _inode(path: Path | str) -> int:
    try:
        return os.stat(path).st_ino  # noqa: PTH116 - a path object costs more than the call
    except OSError:
        return _NO_FILE


def _is_sound(path: Path) -> bool:
    with closing(sqlite3.connect(path, timeout=LOCK_WAIT_S)) as database:
        try:
            return bool(database.execute("PRAGMA quick_check").fetchone()[0] == "ok")
        except sqlite3.DatabaseError as error:
            return _code(error) in _BUSY_CODES


def _code(error: sqlite3.Error) -> int:
    """Return the primary code of an error; 0 where Python, not SQLite, raised it."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
