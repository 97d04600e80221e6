"""The one SQLite database of the ledger: tables, versions, transactions, errors.

The ledger's SQLite file: opening, tables, transactions, errors.

The tables of the ledger. Moments are microseconds since 1970 UTC, intervals ``[start, end)``.

The ledger's rows of one symbol, in whatever table they stand, under another name.
"""

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ktrdr_pipelines.domain.account_numbers import without_accounts
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import CorruptFileError, DiskError, StoreError
from ktrdr_pipelines.store.files import disk_errors, locked, make_folder, require_file

LEDGER_VERSION = 9
"""Version of these tables. 1 is the first; 2 adds ``confirmed``, 3 ``probes`` and ``empty_ranges``,
4 ``verified`` and the packed sessions of ``indexed_files``, 5 ``schedules`` and ``schedule_asks``,
6 ``refreshed`` and ``widths``, 7 ``statements``, ``disagreements``, ``findings``, ``kept_fresh``,
``late_bars``, ``schedule_votes``, ``symbol_calendars`` and the clock's offset in ``requests``, 8
``file_checks``, the digests in ``indexed_files``, and names of logins in ``requests``, which held a
hash of their accounts before, 9 the kinds of ``disagreements``, and ``flat`` in ``indexed_files``;
each reads what those before it wrote."""

ADDED_COLUMNS = (
    # version, table, column, its type
    (7, "requests", "clock_offset_s", "REAL NOT NULL DEFAULT 0"),
    (8, "mirror", "seal", "TEXT NOT NULL DEFAULT ''"),
    (9, "mirror", "flat", "TEXT NOT NULL DEFAULT ''"),
    (9, "disagreements", "kind", "TEXT NOT NULL DEFAULT 'price'"),
)
"""Columns that tables of earlier versions lack. Each is the last one of its table then: SQLite adds
columns at the end, and a new file and a migrated one must have the same shape."""

RENAMED_COLUMNS = (
    # version, table, column, its name from then on
    (8, "requests", "account_hash", "login"),
)

ACCOUNTS_UNTIL = 7
"""The last version that kept hashes of accounts, and texts of gateways as they came."""

REMOVE_ACCOUNTS = (
    "UPDATE requests SET login = ''",
    "UPDATE requests SET outcome = without_accounts(outcome), proved = without_accounts(proved)",
    "UPDATE attempts SET error = without_accounts(error)",
    "UPDATE findings SET detail = without_accounts(detail)",
)
"""What takes them out of rows; ``without_accounts`` is that of ``domain.account_numbers``."""

ERASURE = "erasure_due"
"""A table that is there while free pages may still hold what was taken out of rows. It has a row
while the catalog that was made of them may be there, too."""

TABLES = """
CREATE TABLE IF NOT EXISTS mirror (
    file TEXT PRIMARY KEY,
    series TEXT NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    schema_version INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    identity TEXT NOT NULL,
    coverage TEXT NOT NULL,
    sessions TEXT NOT NULL,
    seal TEXT NOT NULL DEFAULT '',
    flat TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS mirror_series ON mirror (series);

CREATE TABLE IF NOT EXISTS file_checks (
    file TEXT PRIMARY KEY,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    checked_at INTEGER NOT NULL,
    damage TEXT NOT NULL
);

CREATE TABLE IF NOT EXISTS attempts (
    series TEXT NOT NULL,
    starts INTEGER NOT NULL,
    ends INTEGER NOT NULL,
    kind TEXT NOT NULL,
    error TEXT NOT NULL,
    code INTEGER,
    tries INTEGER NOT NULL,
    first_at INTEGER NOT NULL,
    last_at INTEGER NOT NULL,
    next_try_at INTEGER,
    PRIMARY KEY (series, starts, ends, kind)
);

CREATE TABLE IF NOT EXISTS claims (
    series TEXT NOT NULL,
    starts INTEGER NOT NULL,
    ends INTEGER NOT NULL,
    owner TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (series, starts, ends, owner)
);

CREATE TABLE IF NOT EXISTS requests (
    series TEXT NOT NULL,
    contract_id INTEGER NOT NULL,
    what_to_show TEXT NOT NULL,
    gateway TEXT NOT NULL,
    login TEXT NOT NULL,
    asked_end INTEGER,
    duration TEXT NOT NULL,
    sent_at INTEGER NOT NULL,
    took_s REAL NOT NULL,
    outcome TEXT NOT NULL,
    code INTEGER,
    rows INTEGER NOT NULL,
    proved TEXT NOT NULL,
    clock_offset_s REAL NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS requests_sent ON requests (sent_at);
CREATE INDEX IF NOT EXISTS requests_series ON requests (series, sent_at);
CREATE INDEX IF NOT EXISTS requests_answered
    ON requests (contract_id, what_to_show, gateway, sent_at) WHERE rows > 0;

CREATE TABLE IF NOT EXISTS ranges (
    contract_id INTEGER NOT NULL,
    what_to_show TEXT NOT NULL,
    gateway TEXT NOT NULL,
    head INTEGER,
    asked_at INTEGER NOT NULL,
    PRIMARY KEY (contract_id, what_to_show, gateway)
);

CREATE TABLE IF NOT EXISTS probes (
    contract_id INTEGER NOT NULL,
    what_to_show TEXT NOT NULL,
    gateway TEXT NOT NULL,
    oldest TEXT NOT NULL,
    requests INTEGER NOT NULL,
    asked_at INTEGER NOT NULL,
    PRIMARY KEY (contract_id, what_to_show, gateway)
);

CREATE TABLE IF NOT EXISTS silences (
    contract_id INTEGER NOT NULL,
    what_to_show TEXT NOT NULL,
    gateway TEXT NOT NULL,
    first_date TEXT NOT NULL,
    end_date TEXT NOT NULL,
    asked_at INTEGER NOT NULL,
    PRIMARY KEY (contract_id, what_to_show, gateway, first_date, end_date)
);

CREATE TABLE IF NOT EXISTS instruments (
    symbol TEXT NOT NULL,
    origin TEXT NOT NULL,
    contract_id INTEGER NOT NULL,
    description TEXT NOT NULL,
    pinned_at INTEGER NOT NULL,
    PRIMARY KEY (symbol, origin)
);

CREATE TABLE IF NOT EXISTS revisions (
    series TEXT NOT NULL,
    ts INTEGER NOT NULL,
    replaced_at INTEGER NOT NULL,
    open REAL,
    high REAL,
    low REAL,
    close REAL,
    volume REAL,
    average REAL,
    bar_count INTEGER
);
CREATE INDEX IF NOT EXISTS revisions_series ON revisions (series, ts);

CREATE TABLE IF NOT EXISTS verified (
    series TEXT PRIMARY KEY,
    verified_at INTEGER NOT NULL,
    digest TEXT NOT NULL
);

CREATE TABLE IF NOT EXISTS confirmed (
    series TEXT NOT NULL,
    session_date TEXT NOT NULL,
    rows INTEGER NOT NULL,
    confirmed_at INTEGER NOT NULL,
    PRIMARY KEY (series, session_date)
);

CREATE TABLE IF NOT EXISTS refreshed (
    series TEXT NOT NULL,
    starts INTEGER NOT NULL,
    ends INTEGER NOT NULL,
    answered_at INTEGER NOT NULL,
    PRIMARY KEY (series, starts, ends)
);

CREATE TABLE IF NOT EXISTS kept_fresh (
    series TEXT PRIMARY KEY,
    since INTEGER NOT NULL
);

CREATE TABLE IF NOT EXISTS widths (
    gateway TEXT NOT NULL,
    timeframe TEXT NOT NULL,
    most INTEGER NOT NULL,
    runs INTEGER NOT NULL,
    learned_at INTEGER NOT NULL,
    PRIMARY KEY (gateway, timeframe)
);

CREATE TABLE IF NOT EXISTS schedules (
    calendar TEXT NOT NULL,
    symbol TEXT NOT NULL,
    session_date TEXT NOT NULL,
    opens INTEGER,
    closes INTEGER,
    parts TEXT NOT NULL,
    source TEXT NOT NULL,
    learned_at INTEGER NOT NULL,
    PRIMARY KEY (calendar, symbol, session_date)
);

CREATE TABLE IF NOT EXISTS schedule_asks (
    calendar TEXT NOT NULL,
    symbol TEXT NOT NULL,
    first_date TEXT NOT NULL,
    end_date TEXT NOT NULL,
    asked_at INTEGER NOT NULL,
    PRIMARY KEY (calendar, symbol, first_date, end_date)
);

CREATE TABLE IF NOT EXISTS statements (
    symbol TEXT NOT NULL,
    gateway TEXT NOT NULL,
    starts INTEGER NOT NULL,
    ends INTEGER NOT NULL,
    kind TEXT NOT NULL,
    timeframe TEXT NOT NULL,
    said_at INTEGER NOT NULL,
    request TEXT NOT NULL,
    controlled INTEGER NOT NULL,
    reaches_past INTEGER NOT NULL,
    recorded_at INTEGER NOT NULL,
    voided_at INTEGER,
    PRIMARY KEY (symbol, starts, ends, kind, request)
);
CREATE INDEX IF NOT EXISTS statements_said ON statements (gateway, kind, said_at);

CREATE TABLE IF NOT EXISTS disagreements (
    series TEXT NOT NULL,
    starts INTEGER NOT NULL,
    ends INTEGER NOT NULL,
    bars INTEGER NOT NULL,
    ratio REAL NOT NULL,
    found_at INTEGER NOT NULL,
    kind TEXT NOT NULL DEFAULT 'price',
    PRIMARY KEY (series, starts, ends, found_at)
);

CREATE TABLE IF NOT EXISTS findings (
    series TEXT NOT NULL,
    ts INTEGER NOT NULL,
    kind TEXT NOT NULL,
    detail TEXT NOT NULL,
    found_at INTEGER NOT NULL,
    PRIMARY KEY (series, ts, kind)
);

CREATE TABLE IF NOT EXISTS late_bars (
    symbol TEXT NOT NULL,
    session_date TEXT NOT NULL,
    starts INTEGER NOT NULL,
    ends INTEGER NOT NULL,
    PRIMARY KEY (symbol, session_date)
);

CREATE TABLE IF NOT EXISTS schedule_votes (
    calendar TEXT NOT NULL,
    symbol TEXT NOT NULL,
    session_date TEXT NOT NULL,
    parts TEXT NOT NULL,
    told_at INTEGER NOT NULL,
    PRIMARY KEY (calendar, symbol, session_date)
);

CREATE TABLE IF NOT EXISTS symbol_calendars (
    symbol TEXT PRIMARY KEY,
    calendar TEXT NOT NULL
)
"""


BUSY_TIMEOUT_S = 30.0
"""Seconds that a statement waits for another process's transaction; those last milliseconds."""

ERASURE_WAIT_S = 2.0
"""Seconds that erasing free pages waits for readers of the ledger, before it is deferred to the
next opening."""

_REBUILD = "Run `ktrdr repair`: it is rebuilt from the bar files, no bar is lost"

_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
"""SQLITE_ERROR is said of statements that do not fit: ours do, so the tables are not ours."""

_KINDS_OF = {"INTEGER": (int,), "REAL": (int, float), "TEXT": (str, bytes)}
_GREATEST = 4 * 10**18
"""Above every moment and every count that is kept; times of files in nanoseconds are below too."""

_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}

_log = logging.getLogger(__name__)


def series_key(series: Series) -> str:
    """Give the key of a series in the ledger, such as ``AAPL|1m``."""
    return f"{series.symbol}|{series.timeframe}"


class Database:
    """One SQLite file, one connection a thread and process, opened when first used.

    A file that is missing or empty is made; one that was quarantined (by a repair in another
    process) is noticed, and the connection follows the new file. A connection that is open keeps
    to its file wherever that is moved.

    Args:
        path: the file.
        guard: raises where the store at the path is not the one that was opened; it is asked
            before a file at the path is opened.
    """

    def __init__(self, path: Path, guard: Callable[[], object] | None = None) -> None:
        self.path = path
        self._guard = guard or (lambda: None)
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
        """Look through the whole file for damage, and for tables and values that are not ours.

        Raises:
            CorruptFileError: there is some.
        """
        with self._reading() as connection:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            held = _shape(connection)
            if found == "ok":
                found = _odd_value(connection) or "ok"
        for table, columns in _our_shape().items():
            if found == "ok" and held.get(table) != columns:
                found = f"table {table} has the columns {held.get(table)}"
        if found != "ok":
            raise CorruptFileError(
                f"the ledger {self.path} is damaged", reason=found, hint=_REBUILD
            )

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection for reading statements."""
        with self._errors():
            yield self._connection()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection for one transaction, all of it or nothing."""
        with self._errors():
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.commit()
            except BaseException:
                connection.rollback()
                raise

    def _handle(self) -> "_Handle | None":
        handle: _Handle | None = getattr(self._local, "handle", None)
        return handle

    def _connection(self) -> sqlite3.Connection:
        handle = self._handle()
        if handle is None or not handle.is_current(self.path):
            self._local.handle = handle = self._open()
        return handle.connection

    def _open(self) -> "_Handle":
        self._guard()
        require_file(self.path)
        with disk_errors(self.path):
            make_folder(self.path.parent)
        connection = _connect(self.path)
        try:
            self._guard()
            if _version(connection) != LEDGER_VERSION or _is_erasure_due(connection):
                with locked(self.path.with_suffix(".lock"), f"the ledger {self.path}"):
                    self._create(connection)
                    if _is_erasure_due(connection):
                        self._erase(connection)
            return _Handle(connection, self.path)
        except BaseException:
            connection.close()
            raise

    def _create(self, connection: sqlite3.Connection) -> None:
        found = _version(connection)
        if found > LEDGER_VERSION:
            raise StoreError(
                f"the ledger {self.path} has version {found}",
                reason=f"this ktrdr knows versions up to {LEDGER_VERSION}",
                hint="Use a newer ktrdr",
            )
        if found < LEDGER_VERSION:
            connection.execute("PRAGMA journal_mode = WAL")
            changes = [*_renamed_columns(connection, found), *_added_columns(connection, found)]
            script = "; ".join((*changes, TABLES, *_removals(connection, found)))
            connection.executescript(
                f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {LEDGER_VERSION}; COMMIT"
            )

    def _erase(self, connection: sqlite3.Connection) -> None:
        """Write the file anew, so that neither free pages nor the log hold what was taken out.

        Where another process or a full disk keeps it from that, the next opening does it.
        """
        if connection.execute(f"SELECT 1 FROM {ERASURE}").fetchone():  # noqa: S608
            self._remove_copies()
            connection.execute(f"DELETE FROM {ERASURE}")  # noqa: S608
        connection.execute(f"PRAGMA busy_timeout = {round(ERASURE_WAIT_S * 1000)}")
        try:
            connection.execute("VACUUM")
            # The file holds its old pages until all of the log is in it, which readers can delay.
            is_busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not is_busy:
                connection.execute(f"DROP TABLE {ERASURE}")
                return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in {*_BUSY, sqlite3.SQLITE_FULL}:
                raise
        finally:
            connection.execute(f"PRAGMA busy_timeout = {round(BUSY_TIMEOUT_S * 1000)}")
        _log.info("%s is in use; its free pages are erased at another opening", self.path)

    def _remove_copies(self) -> None:
        """Remove files that were made of rows as they were; overridden where there are any."""

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _translated(self.path, error) from error
        except UnicodeError as error:  # sqlite3 reads names of its schema so
            raise CorruptFileError(
                f"cannot use the ledger {self.path}", reason=str(error), hint=_REBUILD
            ) from error


class _Handle:
    """A connection and the file that it was opened on; closes with its thread."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.connection = connection
        self._process = os.getpid()
        self._file = _file_of(path)

    def is_current(self, path: Path) -> bool:
        """Say whether the connection is this process's and of the file now at ``path``."""
        return self._process == os.getpid() and self._file == _file_of(path)

    def __del__(self) -> None:
        if self._process == os.getpid():
            self.connection.close()
        else:
            _INHERITED.append(self.connection)


_INHERITED: list[sqlite3.Connection] = []
"""Connections that came through a fork: SQLite forbids to use them, and to close them."""


def _file_of(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_ino


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _added_columns(connection: sqlite3.Connection, found: int) -> list[str]:
    """Return the statements that add the columns which an earlier version lacks.

    A table that is not there yet is made with them; one that has them, whatever its version
    says, keeps them.
    """
    held = _shape(connection)
    return [
        f"ALTER TABLE {table} ADD COLUMN {column} {kind}"
        for version, table, column, kind in ADDED_COLUMNS
        if found < version and table in held and column not in held[table]
    ]


def _renamed_columns(connection: sqlite3.Connection, found: int) -> list[str]:
    """Return the statements that name columns of an earlier version as they are named now."""
    held = _shape(connection)
    return [
        f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}"
        for version, table, old, new in RENAMED_COLUMNS
        if found < version and old in held.get(table, ())
    ]


def _removals(connection: sqlite3.Connection, found: int) -> list[str]:
    """Return the statements that take accounts out of the rows of an earlier version.

    They belong into the transaction that sets the version. The connection overwrites what it
    deletes from now on.
    """
    if found > ACCOUNTS_UNTIL or not _shape(connection):
        return []
    connection.execute("PRAGMA secure_delete = ON").fetchall()
    connection.create_function("without_accounts", 1, without_accounts, deterministic=True)
    flag = f"CREATE TABLE IF NOT EXISTS {ERASURE} (due); INSERT INTO {ERASURE} VALUES (1)"  # noqa: S608
    return [*REMOVE_ACCOUNTS, flag]


def _is_erasure_due(connection: sqlite3.Connection) -> bool:
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (ERASURE,)).fetchone()
    return found is not None


def _our_shape() -> dict[str, list[str]]:
    """Give the columns of each table as they should be."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(TABLES)
        return _shape(connection)


def _shape(connection: sqlite3.Connection) -> dict[str, list[str]]:
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return {
        name: [row[1] for row in connection.execute(f"PRAGMA table_info('{name}')")]
        for (name,) in rows
    }


def _odd_value(connection: sqlite3.Connection) -> str:
    """Read every row, and say which value its column cannot have, or nothing."""
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    for (table,) in tables:
        columns = connection.execute(f"PRAGMA table_info({table})").fetchall()
        kinds = [_KINDS_OF.get(kind, (object,)) for _, _, kind, *_ in columns]
        for row in connection.execute(f"SELECT * FROM {table}"):  # noqa: S608  (our own names)
            for value, kind, column in zip(row, kinds, columns, strict=True):
                if value is not None and not isinstance(value, kind):
                    return f"table {table} has {value!r} as {column[1]}"
                if isinstance(value, int) and abs(value) > _GREATEST and column[1] != "inode":
                    return f"table {table} has {value} as {column[1]}"
    return ""


def _translated(path: Path, error: sqlite3.Error) -> StoreError:
    """Give the store's error for one of SQLite's."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    what, reason = f"cannot use the ledger {path}", str(error)
    is_undecodable = not code and "decode" in reason
    is_protected = code == sqlite3.SQLITE_READONLY and os.access(path, os.W_OK)
    if code in _CORRUPT or is_undecodable or is_protected:
        return CorruptFileError(what, reason=reason, hint=_REBUILD)
    if code in _BUSY:
        return StoreError(
            what, reason=reason, hint="Another process keeps it: end that one and run it again"
        )
    return DiskError(
        what, reason=reason, hint="Make room and see that it is writable, then run `ktrdr repair`"
    )


_OF_FILES = ("mirror", "claims", "refreshed")
"""Tables whose rows are of files and moments: they are not moved but dropped, and made anew."""


class SymbolsTable(Database):
    """All tables by symbol: those with a column ``series`` (``AAPL|1m``) or ``symbol``."""

    def move_symbol(self, old: str, new: str) -> None:
        """Put every row of a symbol under another name, in one transaction."""
        with self._writing() as connection:
            for table in _tables(connection):
                columns = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
                if table in _OF_FILES:
                    _drop_series(connection, table, old)
                elif "series" in columns:
                    _move_series(connection, table, old, new)
                if "symbol" in columns:
                    connection.execute(
                        f"UPDATE OR REPLACE {table} SET symbol = ? WHERE symbol = ?",  # noqa: S608
                        (new, old),
                    )


def _tables(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return [name for (name,) in rows if not name.startswith("sqlite_")]


def _move_series(connection: sqlite3.Connection, table: str, old: str, new: str) -> None:
    connection.executemany(
        f"UPDATE OR REPLACE {table} SET series = ? WHERE series = ?",  # noqa: S608
        [(f"{new}|{timeframe}", f"{old}|{timeframe}") for timeframe in Timeframe],
    )


def _drop_series(connection: sqlite3.Connection, table: str, old: str) -> None:
    connection.executemany(
        f"DELETE FROM {table} WHERE series = ?",  # noqa: S608
        [(f"{old}|{timeframe}",) for timeframe in Timeframe],
    )
